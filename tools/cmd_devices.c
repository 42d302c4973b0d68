// cmd_devices.c: `kiln devices`: what there is to run on.
#include "tests/conform.h"
#include "tools/cmd.h"

#include "backend/os.h"

typedef struct Values {
    CommonOptions common;
} Values;

static const Option options[] = {
    {.name = "device", .kind = OPT_DEVICE, FIELD(Values, common.device), .value = "DEVICE",
     .says = "all", .fallback = "auto", .help = "Only this device."},
    REPORT_OPTIONS(Values, "One JSON object on standard output: `devices`, a list.",
                   "Also the kernel row that is chosen per op and type, and why the ones before it "
                   "were not.", "No warnings."),
};

static const char *const kind_names[] = {"cpu", "integrated", "discrete", "software"};

// ---- kernel rows ------------------------------------------------------------------------------

// The call of a conformance case; op checks and rows look at shapes and types only.
static OpCall call_of(const Case *c) {
    static const char place = 0; // stands for a buffer: whether an operand is there, never read
    OpCall call = {.op = c->op, .params = c->params};
    for (int i = 0; i < MAX_OPERANDS; i++) {
        const CaseTensor *t = &c->t[i];
        if (!t->present) continue;
        TensorRef *r = &call.t[i];
        r->buffer = (Buffer *)(uintptr_t)&place;
        r->dtype = t->dtype;
        r->ndim = t->ndim;
        memcpy(r->shape, t->shape, sizeof r->shape);
        memcpy(r->stride, t->stride, sizeof r->stride);
    }
    return call;
}

static bool first_case(OpId op, int types, Case *c) {
    for (int i = 0; i < op_cases[op]->count; i++) {
        memset(c, 0, sizeof *c);
        c->op = op;
        if (op_cases[op]->build(i, types, c)) return true;
    }
    return false;
}

typedef struct RowChoice {
    const char *op, *types, *row; // row NULL: none fits
    char case_name[80], why[300]; // of the rows before it, or of all
} RowChoice;

static RowChoice choose(const Device *dev, OpId op, int types, const Case *c) {
    RowChoice r = {.op = op_info[op].name, .types = op_cases[op]->types[types]};
    OpCall call = call_of(c);
    snprintf(r.case_name, sizeof r.case_name, "%s", c->name);
    size_t n = 0;
    for (int row = 0; row < dev_row_count(dev, op); row++) {
        char why[128] = "";
        if (dev_row_fits(dev, row, &call, why)) {
            r.row = dev_row_name(dev, op, row);
            break;
        }
        int more = snprintf(r.why + n, sizeof r.why - n, "%snot %s: %s", n ? "; " : "",
                            dev_row_name(dev, op, row), why);
        n = MIN(sizeof r.why - 1, n + (size_t)MAX(more, 0));
    }
    return r;
}

// Calls `each` for every op and combination of types; false stops.
static bool each_choice(const Device *dev, bool (*each)(void *, const RowChoice *, Error *),
                        void *user,
                        Error *err) {
    for (int op = 0; op < OP_COUNT; op++) {
        for (int types = 0; types < op_cases[op]->type_count; types++) {
            Case c;
            if (!first_case((OpId)op, types, &c)) continue;
            RowChoice r = choose(dev, (OpId)op, types, &c);
            if (!each(user, &r, err)) return false;
        }
    }
    return true;
}

// ---- JSON -------------------------------------------------------------------------------------

static bool put_choice(void *user, const RowChoice *r, Error *err) {
    (void)err;
    JsonOut *w = user;
    json_open(w, '{');
    json_key(w, "op"), json_put_string(w, r->op);
    json_key(w, "types"), json_put_string(w, r->types);
    json_key(w, "row"), json_put_string(w, r->row);
    json_key(w, "why"), json_put_string(w, r->why);
    json_close(w, '}');
    return true;
}

static void put_names(JsonOut *w, const char *key, const char *const *names, const bool *have,
                      int n) {
    json_key(w, key), json_open(w, '[');
    for (int i = 0; i < n; i++)
        if (have[i]) json_put_string(w, names[i]);
    json_close(w, ']');
}

static bool put_device(JsonOut *w, int index, const DeviceInfo *d, const Device *dev, Error *err) {
    json_open(w, '{');
    json_key(w, "index"), json_put_int(w, index);
    json_key(w, "id"), json_put_string(w, d->id);
    json_key(w, "backend"), json_put_string(w, d->backend);
    json_key(w, "name"), json_put_string(w, d->name);
    json_key(w, "driver"), json_put_string(w, d->driver);
    json_key(w, "kind"), json_put_string(w, kind_names[d->kind]);
    json_key(w, "memory"), json_open(w, '{');
    json_key(w, "total_bytes"), json_put_uint(w, d->memory_total);
    json_key(w, "free_bytes"), json_put_uint(w, d->memory_free);
    json_close(w, '}');
    json_key(w, "limits"), json_open(w, '{');
    json_key(w, "max_buffer_bytes"), json_put_uint(w, d->max_buffer);
    json_key(w, "staging_bytes"), json_put_uint(w, d->staging_bytes);
    json_key(w, "driver_bytes"), json_put_uint(w, d->driver_bytes);
    json_key(w, "buffer_align"), json_put_uint(w, d->buffer_align);
    json_key(w, "subgroup_min"), json_put_uint(w, d->subgroup_min);
    json_key(w, "subgroup_max"), json_put_uint(w, d->subgroup_max);
    json_key(w, "shared_memory_bytes"), json_put_uint(w, d->shared_memory);
    json_close(w, '}');
    put_names(w, "arithmetic", (const char *const[]){"f32", "f16", "bf16", "int_dot"},
              (const bool[]){true, d->f16_arithmetic, d->bf16_arithmetic, d->int_dot}, 4);
    // Matrix instructions that kernels use; shapes and types come with the kernels that take them.
    json_key(w, "cooperative_matrix"), json_put_bool(w, d->cooperative_matrix);
    json_key(w, "deterministic"), json_put_bool(w, d->deterministic);
    bool ok = true;
    if (dev) {
        json_key(w, "rows"), json_open(w, '[');
        ok = each_choice(dev, put_choice, w, err);
        json_close(w, ']');
    }
    json_close(w, '}');
    return ok;
}

// ---- text -------------------------------------------------------------------------------------

static bool print_choice(void *user, const RowChoice *r, Error *err) {
    (void)user;
    return cmd_print(err, "      %-10s %-20s %-14s %s\n", r->op, r->types, r->row ? r->row : "none",
                     r->why);
}

static bool print_device(int index, const DeviceInfo *d, const Device *dev, Error *err) {
    char total[32], left[32], largest[32];
    format_bytes(total, d->memory_total);
    format_bytes(left, d->memory_free);
    format_bytes(largest, d->max_buffer);
    if (!cmd_print(err, "%d  %-10s %s\n   %s, %s; memory %s, %s free\n", index, d->id, d->name,
                   kind_names[d->kind], d->driver, total, left))
        return false;
    if (!cmd_print(err, "   largest buffer %s", largest)) return false;
    if (d->subgroup_max && !cmd_print(err, "; subgroups of %u to %u, %u KiB shared",
                                      d->subgroup_min,
                                      d->subgroup_max, d->shared_memory >> 10))
        return false;
    if (!cmd_print(err, "; arithmetic f32%s%s%s; matrices %s\n", d->f16_arithmetic ? ", f16" : "",
                   d->bf16_arithmetic ? ", bf16" : "", d->int_dot ? ", int8 dot" : "",
                   d->cooperative_matrix ? "yes" : "none"))
        return false;
    if (!dev) return true;
    return cmd_print(err, "   kernel rows:\n") && each_choice(dev, print_choice, NULL, err);
}

// ---- run --------------------------------------------------------------------------------------

static bool matches(const DeviceInfo *d, const char *spec) {
    return strcmp(d->id, spec) == 0 || strcmp(d->backend, spec) == 0;
}

static bool show(Cmd *cmd, const DeviceInfo *d, int index, JsonOut *w, Error *err) {
    Device *dev = NULL;
    if (cmd->common->verbose) {
        DeviceOptions o = {.log = cmd->log};
        dev = dev_open(cmd->mem, d->id, &o, err);
        if (!dev) return false;
    }
    bool ok = cmd->common->json ? put_device(w, index, d, dev, err)
                                : print_device(index, d, dev, err);
    if (dev) dev_close(dev);
    return ok;
}

static bool run(Cmd *cmd, const void *values, Error *err) {
    const Values *v = values;
    int count, shown = 0;
    DeviceInfo *list = dev_list(cmd->mem, &count, cmd->log);
    bool all = !cmd_given(cmd, "device") || strcmp(v->common.device, "auto") == 0, ok = true;
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "devices"), json_open(&w, '[');
    for (int i = 0; i < count && ok; i++) {
        if (!all && !matches(&list[i], v->common.device)) continue;
        ok = show(cmd, &list[i], i, &w, err);
        shown++;
    }
    json_close(&w, ']');
    json_close(&w, '}');
    if (ok && !shown) {
        ok = err_failed(err,
                        "device %s: expected one that is there, found none of that name; these "
                        "are:",
                        v->common.device);
        for (int i = 0; i < count; i++) err_item(err, "%-10s %s", list[i].id, list[i].name);
    }
    if (ok && v->common.json) ok = cmd_print_json(&w, err);
    json_out_free(&w);
    return ok;
}

const Command cmd_devices = {
    .name = "devices",
    .summary = "the devices present, their limits and the kernels they take",
    .text = "Lists every device that --device can name, with the memory it has and what it can "
            "compute.",
    .examples = "kiln devices\nkiln devices -v --device cpu",
    COMMAND_OPTIONS(Values, options),
    .common_offset = offsetof(Values, common),
    .run = run,
};
