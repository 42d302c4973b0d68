// cmd.h: the subcommands of `kiln`: how one is declared, and what it is given.
//
// A subcommand is a file tools/cmd_NAME.c with a struct of values, a table of options over it and a
// `const Command cmd_NAME`; tools/main.c lists them all. To add one: the file, and its row in
// COMMANDS below.
#ifndef KILN_TOOLS_CMD_H
#define KILN_TOOLS_CMD_H

#include "backend/backend.h"
#include "engine/json.h"
#include "tools/options.h"
#include "tools/progress.h"

#define COMMANDS(X)                                                                              \
    X(generate) X(train) X(dataset) X(vae) X(inspect) X(convert) X(devices) X(conform) X(bench) \
    X(serve) X(help)

// Options that every subcommand takes that runs a model. A subcommand's struct has one as its field
// `common`, and COMMON_OPTIONS(T) in its table.
typedef struct CommonOptions {
    const char *device; // never NULL after parsing: KILN_DEVICE or "auto"
    int64_t threads;    // 0: all cores
    uint64_t vram;      // 0: what is free
    bool json, quiet, verbose;
} CommonOptions;

enum { CMD_MAX_THREADS = 1024 };
#define CMD_MAX_BYTES 1125899906842624.0 // 1024T

// --json, -v and -q, with what they mean to a subcommand.
#define REPORT_OPTIONS(T, json_help, verbose_help, quiet_help)                                   \
    {.name = "json", .kind = OPT_FLAG, FIELD(T, common.json), .group = "output",                 \
     .help = json_help},                                                                         \
    {.name = "verbose", .letter = 'v', .kind = OPT_FLAG, FIELD(T, common.verbose),               \
     .help = verbose_help},                                                                      \
    {.name = "quiet", .letter = 'q', .kind = OPT_FLAG, FIELD(T, common.quiet), .help = quiet_help}

#define COMMON_OPTIONS(T)                                                                        \
    {.name = "device", .kind = OPT_DEVICE, FIELD(T, common.device), .value = "DEVICE",           \
     .group = "device", .says = "KILN_DEVICE, else auto",                                        \
     .help = "What runs the work. auto takes CUDA, then a discrete Vulkan device, then an "     \
             "integrated one, then cpu; vulkan alone means the best Vulkan device. `kiln "       \
             "devices` lists them."},                                                            \
    {.name = "vram", .kind = OPT_SIZE, FIELD(T, common.vram), .value = "SIZE", .min = 1,         \
     .max = CMD_MAX_BYTES, .says = "90 % of what is free",                                       \
     .help = "Memory that the work may take on the device (cpu and ref too); what needs more "  \
             "is refused before it starts."},                                                    \
    {.name = "threads", .letter = 't', .kind = OPT_INT, FIELD(T, common.threads), .value = "N",  \
     .min = 1, .max = CMD_MAX_THREADS, .says = "all cores",                                      \
     .help = "Threads that cpu and ref use."},                                                   \
    REPORT_OPTIONS(T, "One JSON object on standard output; everything else goes to standard "    \
                      "error.", "Say more.", "Errors only.")

// --precision auto,f32 into a `const char *precision`.
#define PRECISION_OPTION(T)                                                                      \
    {.name = "precision", .kind = OPT_CHOICE, FIELD(T, precision), .choices = "auto,f32",        \
     .value = "P", .fallback = "auto", .group = "device",                                        \
     .help = "f32: reference precision, every matrix product in f32. auto: what suits model "    \
             "and device (for nano: f32)."}

typedef struct Command Command;

// What a run is given. Everything allocated below `mem` goes with it.
typedef struct Cmd {
    const Command *command;
    void *mem;
    const CommonOptions *common; // zeros where the subcommand has none
    const bool *given;           // [option_count]: which rows of the table were on the command line
    const Log *log;              // standard error; keeps clear of the progress line
    Progress *progress;
    Cancel cancel;               // asked once Ctrl-C was pressed
} Cmd;

struct Command {
    const char *name, *summary; // one line, without a full stop
    const char *text;           // paragraphs for the help, blank lines between; may be NULL
    const char *examples;       // lines; may be NULL
    const Option *options;
    int option_count;
    size_t values_size;         // of the struct that the table fills
    size_t common_offset;       // of its CommonOptions; NO_COMMON: none
    bool any_arguments;         // the command line is not parsed (a subcommand that is refused)
    // Returns false with *err, whose status becomes the exit status; an error without text prints
    // nothing more. Wrong combinations of options are STATUS_USAGE, before anything is opened.
    bool (*run)(Cmd *cmd, const void *values, Error *err);
};
#define NO_COMMON ((size_t)-1)
#define COMMAND_OPTIONS(T, table)                                                                \
    .options = table, .option_count = (int)COUNT_OF(table), .values_size = sizeof(T)

#define DECLARE(name) extern const Command cmd_##name;
COMMANDS(DECLARE)
#undef DECLARE
const Command *command_at(int i); // in the order of COMMANDS; NULL past the last
const Command *command_find(const char *name);

bool cmd_given(const Cmd *cmd, const char *option); // by long name
// Every subcommand's usage errors: "generate: ..." with STATUS_USAGE.
bool cmd_usage(const Cmd *cmd, Error *err, const char *format, ...) PRINTF_LIKE(3, 4);

// ---- shared steps (cmd_common.c) --------------------------------------------------------------
// Opens --device with --vram, --threads and the pipeline cache. dev_close ends it.
Device *cmd_open_device(const Cmd *cmd, Error *err);
DeviceOptions cmd_device_options(const Cmd *cmd);
// --type: the types of weights of dtype.h, and fp8; NULL: DT_COUNT (as in the file). STATUS_USAGE.
bool cmd_weight_type(const char *name, DType *out, Error *err);
// Can a picture be saved under the name that this option gave? STATUS_USAGE.
bool cmd_check_picture(const Cmd *cmd, const char *option, const char *path, Error *err);
bool cmd_print(Error *err, const char *format, ...) PRINTF_LIKE(2, 3); // to stdout
bool cmd_print_json(JsonOut *w, Error *err); // one object and a newline; frees w

// ---- help (cmd_help.c) ------------------------------------------------------------------------
bool help_command(const Command *command, Error *err); // `kiln help NAME`, to standard output
bool help_all(FILE *out);

#endif
