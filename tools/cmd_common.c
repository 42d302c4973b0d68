// cmd_common.c: steps that several subcommands share (cmd.h).
#include "tools/cmd.h"

#include "backend/os.h"
#include "engine/image.h"

#include <errno.h>

bool cmd_given(const Cmd *cmd, const char *option) {
    for (int i = 0; i < cmd->command->option_count; i++)
        if (strcmp(cmd->command->options[i].name, option) == 0) return cmd->given[i];
    return false;
}

bool cmd_usage(const Cmd *cmd, Error *err, const char *format, ...) {
    char text[ERROR_TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return err_set(err, STATUS_USAGE, "%s: %s", cmd->command->name, text);
}

DeviceOptions cmd_device_options(const Cmd *cmd) {
    return (DeviceOptions){
        .budget = cmd->common->vram,
        .threads = (int)cmd->common->threads,
        .cache_dir = os_cache_dir(cmd->mem),
        .log = cmd->log,
    };
}

Device *cmd_open_device(const Cmd *cmd, Error *err) {
    DeviceOptions options = cmd_device_options(cmd);
    Device *dev = dev_open(cmd->mem, cmd->common->device, &options, err);
    if (!dev) return NULL;
    dev_set_cancel(dev, &cmd->cancel);
    log_msg(cmd->log, LOG_DEBUG, "device %s: %s", dev_info(dev)->id, dev_info(dev)->name);
    return dev;
}

bool cmd_weight_type(const char *name, DType *out, Error *err) {
    *out = DT_COUNT;
    if (!name) return true;
    if (!strcmp(name, "fp8")) name = "fp8_e4m3";
    if (dtype_parse(name, out) && (dtype_is_float(*out) || dtype_is_packed(*out))) return true;
    char known[300] = "";
    for (int t = 0; t < DT_COUNT; t++)
        if (dtype_is_float((DType)t) || dtype_is_packed((DType)t))
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", *known ? ", " : "",
                     dtype_name((DType)t));
    return err_set(err, STATUS_USAGE, "--type: expected one of %s; found \"%.60s\"", known, name);
}

bool cmd_check_picture(const Cmd *cmd, const char *option, const char *path, Error *err) {
    return image_can_save(path) ||
           cmd_usage(cmd, err, "--%s: expected a name that ends with .png, .jpg or .jpeg, found \"%.100s\"",
                     option, path);
}

// ---- output -----------------------------------------------------------------------------------

static bool output_failed(Error *err) {
    return err_failed(err, "standard output: expected to write to it; %s", strerror(errno));
}

bool cmd_print(Error *err, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vprintf(format, args);
    va_end(args);
    return n >= 0 || output_failed(err);
}

bool cmd_print_json(JsonOut *w, Error *err) {
    bool ok = fwrite(w->text, 1, w->n, stdout) == w->n && putchar('\n') != EOF &&
        fflush(stdout) == 0;
    json_out_free(w);
    return ok || output_failed(err);
}
