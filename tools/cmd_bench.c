// cmd_bench.c: `kiln bench`: speed of ops and models beside what the device can do at best.
#include "tools/bench.h"

typedef struct BenchValues {
    CommonOptions common;
    const char *op, *type, *row, *model, *load, *weights, *precision;
    int64_t batch, m, n, k, tokens, keys, heads, dim, rows, channels, width, height;
} BenchValues;

static const char *op_name_at(int i) { return i < OP_COUNT ? op_info[i].name : NULL; }

#define T BenchValues
#define SIZE_OPTION(text, field, most, what)                                                      \
    {.name = text, .kind = OPT_INT, FIELD(T, field), .value = "N", .min = 1, .max = most,         \
     .says = "by the op", .help = what}
static const Option options[] = {
    {.name = "op", .kind = OPT_CHOICE, FIELD(T, op), .choice_at = op_name_at, .value = "NAME",
     .group = "what", .says = "a table of all", .help = "Only this op."},
    {.name = "model", .kind = OPT_TEXT, FIELD(T, model), .value = "NAME", .says = "none",
     .help = "nano: its forward pass, and that with gradients. flux-dev, flux-schnell (synthetic "
             "weights) or the file of a FLUX.1 transformer: one step, its blocks, and the schedule stage "
             "of 20 steps. The file of T5, CLIP or an autoencoder: one text of 512 or 77 tokens, one "
             "picture decoded."},
    {.name = "load", .kind = OPT_TEXT, FIELD(T, load), .value = "PATH", .says = "none",
     .help = "Loading this file (or folder) of weights alone; with --vram, streaming what does not fit."},
    {.name = "weights", .kind = OPT_TEXT, FIELD(T, weights), .value = "TYPE", .says = "as in the file",
     .help = "FLUX.1 and --load: type of the weights on the device."},
    {.name = "type", .kind = OPT_CHOICE, FIELD(T, type), .choices = "f32,f16,bf16", .value = "TYPE",
     .fallback = "f32", .help = "Of the tensors."},
    {.name = "row", .kind = OPT_TEXT, FIELD(T, row), .value = "NAME", .says = "what dispatch takes",
     .help = "This kernel row (`kiln devices -v` names them)."},
    SIZE_OPTION("m", m, 65536, "gemm: rows of x."),
    SIZE_OPTION("n", n, 65536, "gemm: rows of the weight."),
    SIZE_OPTION("k", k, 65536, "gemm: length of the sums."),
    SIZE_OPTION("batch", batch, 65536, "Of any op or model."),
    SIZE_OPTION("tokens", tokens, 65536, "attn: queries."),
    SIZE_OPTION("keys", keys, 65536, "attn: keys."),
    SIZE_OPTION("heads", heads, 256, "attn: heads."),
    SIZE_OPTION("dim", dim, 1024, "attn: width of a head."),
    SIZE_OPTION("rows", rows, 1048576, "Other ops: rows."),
    SIZE_OPTION("channels", channels, 65536, "Other ops: length of a row."),
    {.name = "width", .letter = 'W', .kind = OPT_INT, FIELD(T, width), .value = "N", .min = 8,
     .max = 8192, .says = "the model's", .help = "Of the picture; nano makes 32."},
    {.name = "height", .letter = 'H', .kind = OPT_INT, FIELD(T, height), .value = "N", .min = 8,
     .max = 8192, .says = "the model's", .help = "Of the picture; nano makes 32."},
    {.name = "precision", .kind = OPT_CHOICE, FIELD(T, precision), .choices = "auto,f32",
     .value = "P", .fallback = "auto", .group = "device",
     .help = "f32: reference precision, and nothing but --type f32."},
    COMMON_OPTIONS(T),
};
#undef T

static bool print_result(Bench *b, const char *what, const BenchResult *r, Error *err) {
    if (!b->cmd->common->json) {
        char blas[16] = "";
        if (r->of_openblas > 0) snprintf(blas, sizeof blas, "%6.0f %%", 100 * r->of_openblas);
        return cmd_print(err, "%-26s %-9s %-22s %-5s %-16s %11.3f %9.1f %8.1f %7.0f %% %s\n", what,
                         r->op, r->size, r->type, r->row, r->seconds * 1e3, r->gflops, r->gbps,
                         100 * r->share_of_peak, blas);
    }
    JsonOut w = {0};
    DType type = DT_F32;
    dtype_parse(r->type, &type);
    const struct { const char *name, *text; } texts[] = {
        {"device", dev_info(b->dev)->id}, {"what", what}, {"op", r->op}, {"size", r->size},
        {"type", r->type}, {"row", r->row}, {"peak_of", b->peak.of},
    };
    const struct { const char *name; double v; } numbers[] = {
        {"seconds", r->seconds}, {"gflops", r->gflops}, {"gbps", r->gbps},
        {"share_of_peak", r->share_of_peak}, {"peak_gflops", b->peak.gflops[type]},
        {"peak_gbps", b->peak.gbps},
    };
    json_open(&w, '{');
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        json_key(&w, texts[i].name);
        json_put_string(&w, texts[i].text);
    }
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        json_key(&w, numbers[i].name);
        json_put_number(&w, numbers[i].v);
    }
    if (r->of_openblas > 0) {
        json_key(&w, "of_openblas");
        json_put_number(&w, r->of_openblas);
    }
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

static bool head(Bench *b, Error *err) {
    if (b->cmd->common->json) return true;
    return cmd_print(err,
                     "%s (%s): peak %.1f GFLOP/s f32, %.1f GB/s (%s)\n%-26s %-9s %-22s %-5s "
                     "%-16s %11s %9s %8s %9s %s\n",
                     dev_info(b->dev)->id, dev_info(b->dev)->name, b->peak.gflops[DT_F32],
                     b->peak.gbps, b->peak.of, "what", "op", "size", "type", "row", "ms", "GFLOP/s",
                     "GB/s", "of peak", "of OpenBLAS");
}

// OpenBLAS's own sgemm of the same size and layout, right after: both see the same machine.
static bool beside_openblas(Bench *b, const Case *c, BenchResult *r, Error *err) {
    Case plain = *c;
    BenchResult blas;
    bool fits;
    if (c->op != OP_GEMM) return true;
    for (int i = 0; i < gemm_operand_count; i++) {
        plain.t[i].dtype = DT_F32;
        if (i != gemm_x && i != gemm_w && i != gemm_y) plain.t[i].present = false;
    }
    plain.params.gemm.act = ACT_NONE;
    if (!bench_run(b, b->cpu, &plain, "openblas-whole", &blas, &fits, err)) return false;
    if (fits) r->of_openblas = blas.seconds / r->seconds;
    return true;
}

static bool one(Bench *b, const char *what, const Case *c, const char *row, Error *err) {
    BenchResult r;
    bool fits;
    if (!bench_peak(b, c->t[0].dtype, err) || !bench_run(b, b->dev, c, row, &r, &fits, err))
        return false;
    if (!fits) {
        if (row)
            return err_failed(
                err,
                "bench: expected a row of %s that takes this size and type, found %s; "
                "`kiln devices -v` names the rows",
                dev_info(b->dev)->id, row);
        log_msg(b->cmd->log, LOG_WARN, "%s %s %s: no kernel row, skipped", r.op, r.size, r.type);
        return true;
    }
    return beside_openblas(b, c, &r, err) && print_result(b, what, &r, err);
}

static bool run_all(Bench *b, const BenchValues *v, const BenchSize *size, Error *err) {
    Case c;
    const char *what;
    if (!head(b, err)) return false;
    if (v->model) {
        BenchResult r[BENCH_MODEL_RESULTS];
        int count;
        int64_t batch = v->batch ? v->batch : 64;
        if (!bench_peak(b, size->type, err) ||
            !(strcmp(v->model, "nano")
                  ? bench_flux(b, v->model, v->width ? (int)v->width : 1024,
                               v->height ? (int)v->height : 1024, size->type, size->weights, r,
                               &count, err)
                  : bench_model(b, v->model, batch, size->type, r, &count, err)))
            return false;
        for (int i = 0; i < count; i++)
            if (!print_result(b, "model", &r[i], err)) return false;
        return true;
    }
    for (OpId op = 0; op < OP_COUNT; op++)
        if (v->op && !strcmp(v->op, op_info[op].name))
            return bench_case(op, size, &c, err) && one(b, "as asked", &c, v->row, err);
    for (int i = 0; bench_table(i, &c, &what); i++) {
        if (b->cmd->cancel.asked && b->cmd->cancel.asked(b->cmd->cancel.user))
            return err_set(err, STATUS_CANCELLED, "%s", "");
        if (!one(b, what, &c, NULL, err)) return false;
    }
    return true;
}

static bool run(Cmd *cmd, const void *given, Error *err) {
    const BenchValues *v = given;
    bool sized = v->m || v->n || v->k || v->tokens || v->keys || v->heads || v->dim || v->rows ||
                 v->channels || v->row;
    if (sized && !v->op)
        return cmd_usage(cmd, err,
                         "expected --op with a size or --row, found none; give --op NAME");
    if (strcmp(v->precision, "f32") == 0 && strcmp(v->type, "f32") != 0)
        return cmd_usage(cmd, err, "--precision f32: expected --type f32 beside it, found %s",
                         v->type);
    if (!!v->op + !!v->model + !!v->load > 1)
        return cmd_usage(cmd, err, "expected one of --op, --model and --load, found more; give one");
    if ((v->width || v->height) && !v->model)
        return cmd_usage(cmd, err, "--width and --height: expected --model beside them, found "
                         "none; give --model nano, or leave them out");
    bool nano = v->model && strcmp(v->model, "nano") == 0;
    int64_t step = nano ? 32 : 16; // nano: one size; FLUX.1: whole tokens
    if ((nano && (v->width > 32 || v->height > 32)) || v->width % step || v->height % step)
        return cmd_usage(cmd, err, "--width and --height: expected %s, found another number; leave "
                         "them out", nano ? "32 (nano)" : "multiples of 16");
    BenchSize size = {v->batch, v->m, v->n, v->k, v->tokens, v->keys, v->heads, v->dim, v->rows,
                      v->channels, DT_F32, DT_COUNT};
    dtype_parse(v->type, &size.type);
    if (!cmd_weight_type(v->weights, &size.weights, err)) return err_prefix(err, "bench");
    Bench b = {.cmd = cmd, .mem = cmd->mem};
    b.dev = cmd_open_device(cmd, err);
    if (!b.dev) return false;
    DeviceOptions plain = {.threads = (int)cmd->common->threads, .log = cmd->log};
    b.cpu = strcmp(dev_info(b.dev)->id, "cpu") ? dev_open(cmd->mem, "cpu", &plain, err) : b.dev;
    bool ok = b.cpu && (v->load ? bench_load(&b, v->load, size.weights, err)
                                : bench_peak(&b, DT_F32, err) && run_all(&b, v, &size, err));
    if (b.cpu && b.cpu != b.dev) dev_close(b.cpu);
    dev_close(b.dev);
    return ok;
}

const Command cmd_bench = {
    .name = "bench",
    .summary = "speed of ops and models, beside the device's own measured peak",
    .text = "The median of several runs after a warm-up. The peak is measured in the same run, "
            "on the fastest rows: matrix products of the same type, and copies of 64 MiB (CPUs and "
            "software devices are held to device cpu); a call's share is that of whichever of the "
            "two bounds it, and can pass 100 % where its data stay in a cache. For "
            "matrix products, `of OpenBLAS` compares with one call of OpenBLAS's sgemm of the same "
            "size on this CPU, measured right after. Without options: a table over the shapes of "
            "Nano-Sora's training and larger ones.",
    .examples =
        "kiln bench --device cpu\n"
        "kiln bench --device vulkan --op gemm --m 512 --n 4096 --k 4096\n"
        "kiln bench --device vulkan --op attn --tokens 1024 --heads 8 --dim 64 --type bf16\n"
        "kiln bench --model nano --batch 64",
    COMMAND_OPTIONS(BenchValues, options),
    .common_offset = offsetof(BenchValues, common),
    .run = run,
};
