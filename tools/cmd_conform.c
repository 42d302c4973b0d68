// cmd_conform.c: `kiln conform`: a device against the reference, case by case.
#include "tests/conform.h"
#include "tests/conform_model.h"
#include "tools/cmd.h"

typedef struct ConformValues {
    CommonOptions common;
    const char *op, *type, *row, *name, *model, *precision;
    uint64_t seed;
    bool grad, list, all;
} ConformValues;

static const char *op_name_at(int i) { return i < OP_COUNT ? op_info[i].name : NULL; }

#define T ConformValues
static const Option options[] = {
    {.name = "op", .kind = OPT_CHOICE, FIELD(T, op), .choice_at = op_name_at, .value = "NAME",
     .group = "what", .says = "all", .help = "Only this op."},
    {.name = "type", .kind = OPT_CHOICE, FIELD(T, type), .choices = "f32,f16,bf16", .value = "TYPE",
     .says = "all", .help = "Only cases in which some operand has this type."},
    {.name = "row", .kind = OPT_TEXT, FIELD(T, row), .value = "NAME", .says = "each in turn",
     .help = "Only this kernel row (`kiln devices -v` names them)."},
    {.name = "case", .kind = OPT_TEXT, FIELD(T, name), .value = "NAME", .says = "all",
     .help = "Only the cases of this name (--list shows them)."},
    {.name = "model", .kind = OPT_CHOICE, FIELD(T, model), .choices = "nano", .value = "NAME",
     .says = "none", .help = "A whole model instead of single ops: forward, loss and gradients, "
                             "plans with and without sharing of memory, and replays."},
    {.name = "grad", .kind = OPT_FLAG, FIELD(T, grad),
     .help = "Gradient kernels against differences of the reference's forward ops, in place of "
             "values."},
    {.name = "seed", .letter = 's', .kind = OPT_SEED, FIELD(T, seed), .value = "N",
     .says = "fixed, and printed", .help = "Of the random inputs."},
    {.name = "all", .kind = OPT_FLAG, FIELD(T, all),
     .help = "Every case on every row in every type on software Vulkan drivers too, where "
             "compiling takes long; without it they run f32 so, and other types in every fourth "
             "case on one row."},
    {.name = "list", .kind = OPT_FLAG, FIELD(T, list), .help = "Name the cases, run none."},
    {.name = "precision", .kind = OPT_CHOICE, FIELD(T, precision), .choices = "auto,f32",
     .value = "P", .fallback = "auto", .group = "device",
     .help = "f32: only what runs at reference precision, as --type f32 and, with --model, its f32 "
             "passes."},
    COMMON_OPTIONS(T),
};
#undef T

typedef struct Sink {
    const ConformValues *values;
    Cmd *cmd;
    Error *err; // the first failure to write
    bool broken;
} Sink;

static const char *const status_name[] = {"ok", "fail", "skip"};
static const char *const status_line[] = {"ok  ", "FAIL", "SKIP"};

static void put_text(JsonOut *w, const char *name, const char *text) {
    json_key(w, name);
    json_put_string(w, text);
}

static void put_number(JsonOut *w, const char *name, double v) {
    json_key(w, name);
    json_put_number(w, v);
}

static bool print_json(const ConformResult *r, Error *err) {
    JsonOut w = {0};
    json_open(&w, '{');
    put_text(&w, "device", r->device);
    put_text(&w, "op", r->op);
    put_text(&w, "case", r->name);
    put_text(&w, "row", r->row);
    put_text(&w, "types", r->types);
    put_text(&w, "status", status_name[r->status]);
    put_number(&w, "max_error", r->max_error);
    put_number(&w, "limit", r->limit);
    put_number(&w, "nmse", r->nmse);
    put_text(&w, "reason", r->reason);
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

static void report(void *user, const ConformResult *r) {
    Sink *sink = user;
    const CommonOptions *common = sink->cmd->common;
    if (sink->broken) return;
    bool ok = true;
    if (common->json) {
        ok = print_json(r, sink->err);
    } else if (sink->values->list) {
        ok = cmd_print(sink->err, "%-9s %-12s %s\n", r->op, r->types, r->name);
    } else if (r->status != CONFORM_OK || common->verbose) {
        ok = cmd_print(sink->err, "%s %s %s%s%s '%s'%s%s%s", status_line[r->status], r->device,
                       r->op, r->row[0] ? " " : "", r->row, r->name, r->types[0] ? " [" : "",
                       r->types, r->types[0] ? "]" : "");
        if (ok && r->status != CONFORM_SKIP && r->limit > 0)
            ok = cmd_print(sink->err, " error %.3g of %.3g, nmse %.2g", r->max_error, r->limit,
                           r->nmse);
        ok = ok && cmd_print(sink->err, r->reason[0] ? ": %s\n" : "%s\n", r->reason);
    }
    sink->broken = !ok;
}

static bool run(Cmd *cmd, const void *given, Error *err) {
    const ConformValues *v = given;
    Sink sink = {v, cmd, err, false};
    if (v->model && (v->op || v->type || v->row || v->name || v->grad || v->list))
        return cmd_usage(cmd, err, "--model: expected no --op, --type, --row, --case, --grad or "
                         "--list beside it, found one; give one of the two");
    bool f32 = strcmp(v->precision, "f32") == 0;
    if (f32 && v->type && strcmp(v->type, "f32") != 0)
        return cmd_usage(
            cmd, err, "--precision f32: expected no --type but f32 beside it, found %s", v->type);
    ConformOptions o = {.device = cmd->common->device,
                        .op = v->op,
                        .type = f32 ? "f32" : v->type,
                        .row = v->row,
                        .name = v->name,
                        .grad = v->grad,
                        .list = v->list,
                        .all = v->all,
                        .seed = cmd_given(cmd, "seed") ? v->seed : 0,
                        .options = cmd_device_options(cmd),
                        .report = report,
                        .user = &sink,
                        .cancel = &cmd->cancel};
    ConformTotals totals = {0};
    bool ok = v->model ? conform_model(&o, v->model, &totals, err) : conform_run(&o, &totals, err);
    bool stopped = !ok && err->status == STATUS_CANCELLED; // the totals so far are still of use
    if ((!ok && !stopped) || sink.broken) return false;
    if (v->list) return ok;
    FILE *out = cmd->common->json ? stderr : stdout;
    fprintf(out, "%d passed, %d failed, %d skipped (seed %llu)\n", totals.passed, totals.failed,
            totals.skipped, (unsigned long long)(o.seed ? o.seed : CONFORM_SEED));
    if (stopped || totals.failed == 0) return ok;
    return err_failed(err,
                      "conform: expected every case of %s to agree with the reference, found %d "
                      "that do not; see the lines above",
                      cmd->common->device, totals.failed);
}

const Command cmd_conform = {
    .name = "conform",
    .summary = "check a device against the reference, op by op and model by model",
    .text = "Runs each case of each op on every kernel row of the device in turn and compares the "
            "results with the reference, element by element. Prints a line per failing or skipped "
            "case (-v: all), then the totals. A kernel row, parameter or operand that no case "
            "reached is a failure too.",
    .examples = "kiln conform --device vulkan\n"
                "kiln conform --device cpu --op gemm --type bf16 -v\n"
                "kiln conform --device vulkan --model nano",
    COMMAND_OPTIONS(ConformValues, options),
    .common_offset = offsetof(ConformValues, common),
    .run = run,
};
