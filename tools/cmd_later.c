// cmd_later.c: subcommands of the contract that later versions bring: known, described, refused.
#include "tools/cmd.h"

typedef struct Values { OptList rest; } Values;

static bool refuse(const Cmd *cmd, const char *instead, Error *err) {
    return cmd_usage(cmd, err, "not available in this version; %s", instead);
}

static bool run_serve(Cmd *cmd, const void *values, Error *err) {
    (void)values;
    return refuse(cmd, "use `kiln generate`", err);
}

#define TEXT "This subcommand comes with a later version: it is refused, whatever its options."

const Command cmd_serve = {
    .name = "serve", .summary = "(later) HTTP API and web page", .text = TEXT,
    .values_size = sizeof(Values), .common_offset = NO_COMMON, .run = run_serve,
        .any_arguments = true,
};
