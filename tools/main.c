// main.c: the `kiln` command: finds the subcommand, parses its options, runs it, turns its error
// into one line and an exit status.
#include "tools/cmd.h"

#include "backend/os.h"

#include <errno.h>

static const Command *const commands[] = {
#define ROW(name) &cmd_##name,
    COMMANDS(ROW)
#undef ROW
};

const Command *command_at(int i) {
    return i >= 0 && i < (int)COUNT_OF(commands) ? commands[i] : NULL;
}

const Command *command_find(const char *name) {
    for (size_t i = 0; i < COUNT_OF(commands); i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static const char *command_name_at(const void *user, int i) {
    (void)user;
    const Command *c = command_at(i);
    return c ? c->name : NULL;
}

// ---- log and cancel: shared by all subcommands ------------------------------------------------

static void write_log(void *user, LogLevel level, const char *line) {
    progress_clear(user);
    fprintf(stderr, "kiln: %s%s\n", level == LOG_WARN ? "warning: " : "", line);
}

static bool cancel_asked(void *user) {
    (void)user;
    return os_interrupted();
}

// ---- running ----------------------------------------------------------------------------------

// KILN_DEVICE stands in for --device, and is checked as strictly.
static bool default_device(CommonOptions *common, Error *err) {
    if (common->device) return true;
    common->device = "auto";
    const char *env = os_env("KILN_DEVICE");
    if (!env || !*env) return true;
    const Option row = {.name = "KILN_DEVICE", .kind = OPT_DEVICE};
    if (option_value(&row, "KILN_DEVICE", env, &common->device, err)) return true;
    err->status = STATUS_FAILED; // not the command line's fault
    return false;
}

static bool wants_help(const Command *c, int argc, char **argv) {
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--") == 0) return false;
        if (strcmp(argv[i], "--help") == 0 || (strcmp(argv[i], "-h") == 0 && c)) return true;
    }
    return false;
}

static bool run_command(const Command *c, int argc, char **argv, Error *err) {
    if (wants_help(c, argc, argv)) return help_command(c, err);
    void *mem = mem_new(NULL, 1);
    char *values = mem_new(mem, c->values_size + 1);
    bool *given = MEM_ARRAY(mem, bool, c->option_count + 1);
    static const CommonOptions none = {.device = "auto"};
    Log log = {.level = LOG_INFO, .write = write_log};
    Cmd cmd = {.command = c, .mem = mem, .common = &none, .given = given, .log = &log,
               .cancel = {cancel_asked, NULL}};
    bool ok = c->any_arguments ||
              options_parse(mem, c->name, c->options, c->option_count, argc, argv, values, given,
                            err);
    if (ok && c->common_offset != NO_COMMON) {
        CommonOptions *common = (CommonOptions *)(void *)(values + c->common_offset);
        ok = default_device(common, err);
        cmd.common = common;
        log.level = common->quiet ? LOG_ERROR : common->verbose ? LOG_DEBUG : LOG_INFO;
    }
    if (ok) {
        cmd.progress = progress_new(mem, cmd.common->quiet);
        log.user = cmd.progress;
        ok = c->run(&cmd, values, err);
        progress_clear(cmd.progress);
    }
    mem_free(mem);
    return ok;
}

static bool run_line(int argc, char **argv, Error *err) {
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!name) {
        err_set(err, STATUS_USAGE, "expected a subcommand, found nothing; try `kiln help`");
        for (int i = 0; command_at(i) && i < ERROR_ITEMS; i++)
            err_item(err, "%-9s %s", command_at(i)->name, command_at(i)->summary);
        return false;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) return help_all(stdout);
    if (strcmp(name, "--version") == 0) return cmd_print(err, "kiln %s\n", KILN_VERSION);
    const Command *c = command_find(name);
    if (c) return run_command(c, argc - 2, argv + 2, err);
    const char *near = nearest_name(name, command_name_at, NULL);
    if (near)
        return err_set(err, STATUS_USAGE, "unknown subcommand %.100s; did you mean %s?", name,
                       near);
    return err_set(err, STATUS_USAGE, "unknown subcommand %.100s; `kiln help` lists them", name);
}

int main(int argc, char **argv) {
    os_catch_interrupt();
    Error err = {0};
    bool ok = run_line(argc, argv, &err);
    // What was printed must have arrived: a full disk or closed pipe is a failure too.
    if (fflush(stdout) != 0 || ferror(stdout)) {
        if (ok) err_failed(&err, "standard output: expected to write to it; %s", strerror(errno));
        ok = false;
    }
    if (ok) return STATUS_OK;
    if (os_interrupted() && err.status != STATUS_USAGE) err.status = STATUS_CANCELLED;
    if (err.status == STATUS_OK) err.status = STATUS_FAILED;
    if (err.text[0]) err_print(&err, stderr);
    return (int)err.status;
}
