// cmd_common.c: steps that several subcommands share (cmd.h).
#include "tools/cmd.h"

#include "backend/os.h"

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
    if (dev) log_msg(cmd->log, LOG_DEBUG, "device %s: %s", dev_info(dev)->id, dev_info(dev)->name);
    return dev;
}

// ---- models -----------------------------------------------------------------------------------

#define SHIPPED_NANO "nano-cifar10"
#define MODEL_FILE "model.safetensors"

// The file that `path` names: itself, or model.safetensors in a folder; NULL where there is none.
static char *model_at(void *parent, const char *path) {
    PathKind kind = os_path_kind(path);
    if (kind == PATH_FILE) return mem_strdup(parent, path);
    if (kind == PATH_NONE) return NULL;
    char *inside = os_path_join(parent, path, MODEL_FILE);
    return os_path_kind(inside) == PATH_FILE ? inside : NULL;
}

// NAME in a folder of models: NAME.safetensors, or NAME itself as a file or folder.
static char *model_in(void *parent, const char *folder, const char *name, Error *looked) {
    char *base = os_path_join(parent, folder, name);
    char *found = model_at(parent, mem_printf(parent, "%s.safetensors", base));
    if (!found) found = model_at(parent, base);
    if (!found) err_item(looked, "%s.safetensors", base);
    return found;
}

// Folders where shipped models may be: KILN_MODELS, beside the program (in a build folder, or
// installed), and the source tree that the program was built from.
static int model_folders(void *parent, const char *folders[4]) {
    int n = 0;
    const char *env = os_env("KILN_MODELS");
    if (env && *env) folders[n++] = env;
    char *program = os_program_dir(parent);
    if (program) {
        folders[n++] = os_path_join(parent, program, "../models/weights");
        folders[n++] = os_path_join(parent, program, "../share/kiln/models");
    }
    char *tools = os_dir_name(parent, __FILE__);
    folders[n++] = os_path_join(parent, tools, "../models/weights");
    return n;
}

char *cmd_find_model(void *parent, const char *model, Error *err) {
    bool shipped = strcmp(model, "nano") == 0;
    char *found = shipped ? NULL : model_at(parent, model);
    if (found) return found;
    bool name = *model && !strpbrk(model, "/\\") && os_path_kind(model) == PATH_NONE;
    if (!name) {
        if (os_path_kind(model) == PATH_DIR)
            err_failed(err, "%s: expected a folder with " MODEL_FILE ", found none in it", model);
        else
            err_failed(err, "%s: expected a model file or folder, found nothing there", model);
        return NULL;
    }
    Error looked = {0};
    const char *folders[4];
    int n = model_folders(parent, folders);
    for (int i = 0; i < n && !found; i++) {
        found = model_in(parent, folders[i], model, &looked);
        if (!found && shipped) found = model_in(parent, folders[i], SHIPPED_NANO, &looked);
    }
    if (found) return found;
    err_failed(err, "model %s: expected a file, a folder or a known name, found none of them; set "
               "KILN_MODELS to the folder that holds it", model);
    for (int i = 0; i < MIN(looked.items, (int)ERROR_ITEMS); i++)
        err_item(err, "not there: %s", looked.item[i]);
    return NULL;
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

bool cmd_check_output(const char *path, Error *err) {
    // Only a file beside the target shows whether it can be written (permissions, read-only disks).
    OutFile *probe = out_open(NULL, path, err);
    out_abort(probe);
    return probe != NULL;
}
