// cmd_later.c: subcommands of the contract that later versions bring: known, described, refused.
#include "tools/cmd.h"

static bool run_serve(Cmd *cmd, const void *values, Error *err) {
    (void)values;
    return cmd_usage(cmd, err, "not available in this version; use `kiln generate`");
}

const Command cmd_serve = {
    .name = "serve", .summary = "(later) HTTP API and web page",
    .text = "This subcommand comes with a later version: it is refused, whatever its options.",
    .common_offset = NO_COMMON, .run = run_serve, .any_arguments = true,
};
