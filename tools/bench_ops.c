// bench_ops.c: op benchmarks: sizes, tensors on the device, timing.
#include "tools/bench.h"

#include "backend/os.h"

#include <stdlib.h>
#include <time.h>

enum { RUNS = 5, MOST_STEPS = 64 };
static const double RUN_SECONDS = 0.03; // calls are repeated inside a program up to this time

// ---- sizes --------------------------------------------------------------------------------------
static int64_t or(int64_t v, int64_t fallback) { return v > 0 ? v : fallback; }

static void gemm_case(Case *c, const BenchSize *s, bool bias, uint32_t act, bool weight_gradient) {
    int64_t B = or(s->batch, 1), M = or(s->m, 1024), N = or(s->n, M), K = or(s->k, M);
    c->op = OP_GEMM;
    bool t = weight_gradient; // dW [N, K'] = dy^T x: both operands lie the other way
    case_tensor(c, gemm_x, s->type, FILL_RANDOM, 3, t ? SHAPE(B, K, M) : SHAPE(B, M, K));
    case_tensor(c, gemm_w, s->type, FILL_RANDOM, 3, t ? SHAPE(1, K, N) : SHAPE(1, N, K));
    if (bias) case_tensor(c, gemm_bias, s->type, FILL_RANDOM, 3, SHAPE(1, 1, N));
    case_tensor(c, gemm_y, s->type, FILL_RANDOM, 3, SHAPE(B, M, N));
    c->params.gemm = (GemmParams){.act = act, .trans_x = t, .trans_w = t};
}

static void attn_case(Case *c, const BenchSize *s, bool backward) {
    int64_t B = or(s->batch, 1), T = or(s->tokens, 1024), S = or(s->keys, T), H = or(s->heads, 8);
    int64_t D = or(s->dim, 64);
    const int64_t *q = SHAPE(B, T, H, D), *k = SHAPE(B, S, H, D), *lse = SHAPE(B, H, T);
    c->op = backward ? OP_ATTN_BWD : OP_ATTN;
    case_tensor(c, 0, s->type, FILL_RANDOM, 4, q); // q, k and v stand in the same places in both
    case_tensor(c, 1, s->type, FILL_RANDOM, 4, k);
    case_tensor(c, 2, s->type, FILL_RANDOM, 4, k);
    case_tensor(c, backward ? attn_bwd_y : attn_y, s->type, FILL_RANDOM, 4, q);
    case_tensor(c, backward ? attn_bwd_lse : attn_lse, DT_F32, FILL_RANDOM, 3, lse);
    if (!backward) return;
    case_tensor(c, attn_bwd_dy, s->type, FILL_RANDOM, 4, q);
    case_tensor(c, attn_bwd_dq, s->type, FILL_RANDOM, 4, q);
    case_tensor(c, attn_bwd_dk, s->type, FILL_RANDOM, 4, k);
    case_tensor(c, attn_bwd_dv, s->type, FILL_RANDOM, 4, k);
}

static void conv2d_case(Case *c, const BenchSize *s) {
    int64_t B = or(s->batch, 1), side = or(s->rows, 256), C = or(s->channels, 128);
    int64_t O = or(s->n, C), R = or(s->dim, 3);
    uint32_t pad = (uint32_t)R / 2;
    c->op = OP_CONV2D;
    case_tensor(c, conv2d_x, s->type, FILL_RANDOM, 4, SHAPE(B, side, side, C));
    case_tensor(c, conv2d_w, s->type, FILL_RANDOM, 4, SHAPE(O, R, R, C));
    case_tensor(c, conv2d_bias, DT_F32, FILL_RANDOM, 4, SHAPE(1, 1, 1, O));
    case_tensor(c, conv2d_y, s->type, FILL_RANDOM, 4, SHAPE(B, side, side, O));
    c->params.conv2d = (Conv2dParams){.pad_top = pad, .pad_bottom = pad, .pad_left = pad,
                                      .pad_right = pad};
}

static void rope_case(Case *c, const BenchSize *s) {
    int64_t B = or(s->batch, 1), T = or(s->tokens, 1024), H = or(s->heads, 24), D = or(s->dim, 128);
    c->op = OP_ROPE;
    case_tensor(c, rope_x, s->type, FILL_RANDOM, 4, SHAPE(B, T, H, D));
    case_tensor(c, rope_table, DT_F32, FILL_RANDOM, 4, SHAPE(1, T, D / 2, 2));
    case_tensor(c, rope_y, s->type, FILL_RANDOM, 4, SHAPE(B, T, H, D));
}

static DType packed_type(const BenchSize *s) {
    return s->weights < DT_COUNT && dtype_is_packed(s->weights) ? s->weights : DT_Q8_0;
}

static void row_case(Case *c, OpId op, const BenchSize *s) {
    int64_t B = or(s->batch, 1), M = or(s->rows, 4096), C = or(s->channels, 1024);
    const int64_t *x = SHAPE(B, M, C);
    c->op = op;
    switch (op) {
    case OP_NORM:
        case_tensor(c, norm_x, s->type, FILL_RANDOM, 3, x);
        case_tensor(c, norm_y, s->type, FILL_RANDOM, 3, x);
        c->params.norm = (NormParams){.eps = 1e-6f, .groups = s->heads > 1 ? (uint32_t)s->heads : 0};
        if (c->params.norm.groups) { // a group norm
            c->params.norm.kind = NORM_GROUP;
            case_tensor(c, norm_weight, DT_F32, FILL_RANDOM, 3, SHAPE(1, 1, C));
            case_tensor(c, norm_bias, DT_F32, FILL_RANDOM, 3, SHAPE(1, 1, C));
            return;
        }
        case_tensor(c, norm_scale, DT_F32, FILL_RANDOM, 3, SHAPE(B, 1, C));
        case_tensor(c, norm_shift, DT_F32, FILL_RANDOM, 3, SHAPE(B, 1, C));
        return;
    case OP_NORM_BWD:
        case_tensor(c, norm_bwd_y, s->type, FILL_RANDOM, 3, x);
        case_tensor(c, norm_bwd_dy, s->type, FILL_RANDOM, 3, x);
        case_tensor(c, norm_bwd_rstd, DT_F32, FILL_RANDOM, 3, SHAPE(B, M, 1));
        case_tensor(c, norm_bwd_dx, s->type, FILL_RANDOM, 3, x);
        return;
    case OP_REDUCE:
        case_tensor(c, reduce_x, s->type, FILL_RANDOM, 3, x);
        case_tensor(c, reduce_y, DT_F32, FILL_RANDOM, 3, SHAPE(B, 1, C));
        return;
    case OP_COPY:
        case_tensor(c, copy_x, s->type, FILL_RANDOM, 3, x);
        case_tensor(c, copy_y, s->type, FILL_RANDOM, 3, x);
        return;
    case OP_EMBED:
        case_tensor(c, embed_table, s->type, FILL_RANDOM, 2, SHAPE(M, C));
        case_tensor(c, embed_ids, DT_I32, FILL_IDS, 1, SHAPE(M));
        case_tensor(c, embed_y, s->type, FILL_RANDOM, 2, SHAPE(M, C));
        return;
    case OP_EMBED_BWD:
        case_tensor(c, embed_bwd_dy, s->type, FILL_RANDOM, 2, SHAPE(M, C));
        case_tensor(c, embed_bwd_ids, DT_I32, FILL_IDS, 1, SHAPE(M));
        case_tensor(c, embed_bwd_dtable, s->type, FILL_RANDOM, 2, SHAPE(11, C));
        return;
    case OP_DEQUANT:
        case_tensor(c, dequant_w, packed_type(s), FILL_RANDOM, 2, SHAPE(M, C));
        case_tensor(c, dequant_y, s->type, FILL_RANDOM, 2, SHAPE(M, C));
        return;
    case OP_ADAMW:
        for (int i = 0; i < adamw_operand_count; i++)
            if (i != adamw_found_inf)
                case_tensor(c, i, DT_F32, FILL_RANDOM, 1,
                            SHAPE(i == adamw_hyper ? ADAMW_HYPER_COUNT : B * M * C));
        return;
    default:
        c->op = OP_EWISE;
        case_tensor(c, ewise_x, s->type, FILL_RANDOM, 3, x);
        case_tensor(c, ewise_o, s->type, FILL_RANDOM, 3, x);
        c->params.ewise = (EwiseParams){.kind = EW_ACT, .act = ACT_GELU};
    }
}

bool bench_case(OpId op, const BenchSize *size, Case *c, Error *err) {
    *c = (Case){0};
    (void)err;
    if (op == OP_GEMM) gemm_case(c, size, false, ACT_NONE, false);
    else if (op == OP_CONV2D) conv2d_case(c, size);
    else if (op == OP_ROPE) rope_case(c, size);
    else if (op == OP_ATTN || op == OP_ATTN_BWD) attn_case(c, size, op == OP_ATTN_BWD);
    else row_case(c, op, size);
    return true;
}

// Nano-Sora's own shapes in training (64 pictures of 64 tokens), and larger ones.
static const struct {
    const char *what;
    OpId op;
    BenchSize size;
    bool bias, gradient;
    uint32_t act;
} table[] = {
    {"nano qkv", OP_GEMM, {.m = 4096, .n = 576, .k = 192}, true, false, 0},
    {"nano qkv, no bias", OP_GEMM, {.m = 4096, .n = 576, .k = 192}, false, false, 0},
    {"nano proj", OP_GEMM, {.m = 4096, .n = 192, .k = 192}, false, false, 0},
    {"nano fc1", OP_GEMM, {.m = 4096, .n = 768, .k = 192}, false, false, 0},
    {"nano fc1 gelu", OP_GEMM, {.m = 4096, .n = 768, .k = 192}, true, false, ACT_GELU},
    {"nano fc2", OP_GEMM, {.m = 4096, .n = 192, .k = 768}, false, false, 0},
    {"nano adaLN", OP_GEMM, {.m = 64, .n = 1152, .k = 192}, false, false, 0},
    {"nano fc1 weight gradient", OP_GEMM, {.m = 768, .n = 192, .k = 4096}, false, true, 0},
    {"nano fc1 bf16", OP_GEMM, {.m = 4096, .n = 768, .k = 192, .type = DT_BF16}, false, false, 0},
    {"large", OP_GEMM, {.m = 1024, .n = 1024, .k = 1024}, false, false, 0},
    {"large", OP_GEMM, {.m = 512, .n = 4096, .k = 1024}, false, false, 0},
    {"large bf16", OP_GEMM, {.m = 1024, .n = 1024, .k = 1024, .type = DT_BF16}, false, false, 0},
    {"large f16", OP_GEMM, {.m = 1024, .n = 1024, .k = 1024, .type = DT_F16}, false, false, 0},
    {"nano attention", OP_ATTN, {.batch = 64, .tokens = 64, .heads = 6, .dim = 32}, false, false,
     0},
    {"attention", OP_ATTN, {.tokens = 1024, .heads = 8, .dim = 64}, false, false, 0},
    {"nano attention gradient", OP_ATTN_BWD, {.batch = 64, .tokens = 64, .heads = 6, .dim = 32},
     false, false, 0},
    {"nano norm", OP_NORM, {.batch = 64, .rows = 64, .channels = 192}, false, false, 0},
    {"norm", OP_NORM, {.rows = 4096, .channels = 1024}, false, false, 0},
    {"nano norm gradient", OP_NORM_BWD, {.batch = 64, .rows = 64, .channels = 192}, false, false,
     0},
    {"nano gelu", OP_EWISE, {.rows = 4096, .channels = 768}, false, false, 0},
    {"nano bias gradient", OP_REDUCE, {.rows = 4096, .channels = 768}, false, false, 0},
    {"copy", OP_COPY, {.rows = 4096, .channels = 4096}, false, false, 0},
    {"embed", OP_EMBED, {.rows = 1024, .channels = 192}, false, false, 0},
    {"embed gradient", OP_EMBED_BWD, {.rows = 1024, .channels = 192}, false, false, 0},
    {"FLUX mlp bf16", OP_GEMM, {.m = 768, .n = 12288, .k = 3072, .type = DT_BF16}, true, false,
     ACT_GELU},
    {"FLUX single out bf16", OP_GEMM, {.m = 768, .n = 3072, .k = 15360, .type = DT_BF16}, true, false,
     0},
    {"FLUX attention bf16", OP_ATTN, {.tokens = 768, .heads = 24, .dim = 128, .type = DT_BF16}, false,
     false, 0},
    {"FLUX rope bf16", OP_ROPE, {.tokens = 768, .heads = 24, .dim = 128, .type = DT_BF16}, false,
     false, 0},
    {"FLUX q8_0 weight to bf16", OP_DEQUANT,
     {.rows = 12288, .channels = 3072, .type = DT_BF16, .weights = DT_Q8_0}, false, false, 0},
    {"decoder conv bf16", OP_CONV2D, {.rows = 256, .channels = 256, .type = DT_BF16}, false, false, 0},
    {"decoder conv", OP_CONV2D, {.rows = 128, .channels = 256}, false, false, 0},
    {"decoder group norm bf16", OP_NORM, {.rows = 65536, .channels = 256, .heads = 32, .type = DT_BF16},
     false, false, 0},
    {"nano adamw", OP_ADAMW, {.rows = 2700, .channels = 1000}, false, false, 0},
};

bool bench_table(int i, Case *c, const char **what) {
    if (i >= (int)COUNT_OF(table)) return false;
    *c = (Case){0};
    *what = table[i].what;
    if (table[i].op == OP_GEMM)
        gemm_case(c, &table[i].size, table[i].bias, table[i].act, table[i].gradient);
    else
        bench_case(table[i].op, &table[i].size, c, NULL);
    return true;
}

static void size_text(const Case *c, char out[64]) {
    const CaseTensor *t = c->t;
    size_t n = 0;
    if (c->op == OP_GEMM) {
        const GemmParams *p = &c->params.gemm;
        n = t[gemm_y].shape[0] > 1
                ? (size_t)snprintf(out, 64, "%lldx ", (long long)t[gemm_y].shape[0])
                : 0;
        snprintf(out + n, 64 - n, "%lldx%lldx%lld%s", (long long)t[gemm_y].shape[1],
                 (long long)t[gemm_y].shape[2], (long long)t[gemm_x].shape[p->trans_x ? 1 : 2],
                 p->trans_x ? " tt" : p->act ? " +act" : t[gemm_bias].present ? " +bias" : "");
        return;
    }
    int shown = c->op == OP_EMBED_BWD ? embed_bwd_dy : 0;
    for (int d = 0; d < t[shown].ndim && n < 60; d++)
        n += (size_t)snprintf(out + n, 64 - n, d ? "x%lld" : "%lld", (long long)t[shown].shape[d]);
    if (c->op == OP_ATTN && t[attn_k].shape[1] != t[attn_q].shape[1])
        snprintf(out + n, 64 - n, " keys %lld", (long long)t[attn_k].shape[1]);
}

// ---- tensors ------------------------------------------------------------------------------------
static bool fill(Buffer *buffer, const TensorRef *t, int64_t range, Error *err) {
    enum { CHUNK = 1 << 16 };
    int64_t n = ref_count(t);
    size_t size = (size_t)dtype_size(t->dtype);
    uint8_t *data = mem_new(NULL, CHUNK * size);
    if (dtype_is_packed(t->dtype)) { // bytes whose scales are finite, whatever the format
        uint64_t bytes = dtype_bytes(t->dtype, (uint64_t)n);
        for (size_t i = 0; i < CHUNK; i++) data[i] = (uint8_t)(conform_mix(i) & 0x3b);
        bool ok = true;
        for (uint64_t at = 0; at < bytes && ok; at += CHUNK)
            ok = dev_write(buffer, t->offset + at, data, MIN((uint64_t)CHUNK, bytes - at), err);
        mem_free(data);
        return ok;
    }
    for (size_t i = 0; i < CHUNK; i++) {
        uint64_t r = conform_mix(i + t->offset);
        dtype_store(t->dtype, data, i, t->dtype == DT_I32 ? (float)(r % (uint64_t)range)
                                                          : (float)case_uniform(r));
    }
    bool ok = true;
    for (int64_t at = 0; at < n && ok; at += CHUNK)
        ok = dev_write(buffer, t->offset + (uint64_t)at * size, data,
                       (uint64_t)MIN((int64_t)CHUNK, n - at) * size, err);
    mem_free(data);
    return ok;
}

static Buffer *place(Device *dev, const Case *c, OpCall *call, Error *err) {
    uint64_t size = 0, align = MAX(dev_info(dev)->buffer_align, 256u);
    *call = (OpCall){.op = c->op, .params = c->params, .label = "bench"};
    for (int i = 0; i < op_info[c->op].operand_count; i++) {
        const CaseTensor *t = &c->t[i];
        if (!t->present) continue;
        TensorRef *r = &call->t[i];
        *r = (TensorRef){.offset = size, .dtype = t->dtype, .ndim = t->ndim};
        memcpy(r->shape, t->shape, sizeof r->shape);
        memcpy(r->stride, t->stride, sizeof r->stride);
        size += align_up(ref_extent(r), align);
    }
    Buffer *buffer = buf_new(dev, size, "benchmark", err);
    for (int i = 0; i < op_info[c->op].operand_count && buffer; i++) {
        if (!c->t[i].present) continue;
        call->t[i].buffer = buffer;
        // Ids index the rows of operand 0 (embed) or of the result (11 rows in embed_bwd).
        int64_t range = c->op == OP_EMBED_BWD ? 11 : call->t[0].shape[0];
        if (fill(buffer, &call->t[i], range, err)) continue;
        buf_free(buffer);
        buffer = NULL;
    }
    return buffer;
}

// ---- timing -------------------------------------------------------------------------------------
static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool timed(Device *dev, const OpCall *call, int steps, int runs, double *seconds,
                  const Cancel *cancel, Error *err) {
    ProgramStep *step = MEM_ARRAY(NULL, ProgramStep, steps);
    double took[RUNS];
    for (int i = 0; i < steps; i++) step[i] = (ProgramStep){.call = *call, .barrier = true};
    Program *prog = prog_new(dev, step, steps, err);
    mem_free(step);
    bool ok = prog && prog_run(prog, cancel, err); // warm-up
    for (int i = 0; i < runs && ok; i++) {
        double start = os_seconds();
        ok = prog_run(prog, cancel, err);
        took[i] = (os_seconds() - start) / steps;
    }
    prog_free(prog);
    if (!ok) return false;
    qsort(took, (size_t)runs, sizeof took[0], by_value);
    *seconds = took[runs / 2];
    return true;
}

// OpenBLAS's threads spin for up to 0.1 s after a call of its own (openblas-whole), and would take a
// core from what is timed next: wait until this process uses no processor time.
static void settle(void) {
    enum { WAITS = 200 };
    for (int i = 0; i < WAITS; i++) {
        clock_t before = clock();
        os_sleep(0.005);
        if (clock() - before < CLOCKS_PER_SEC / 1000) return;
    }
}

static bool measure(Device *dev, const OpCall *call, double *seconds, const Cancel *cancel,
                    Error *err) {
    double first;
    settle();
    if (!timed(dev, call, 1, 1, &first, cancel, err)) return false;
    int steps = (int)(RUN_SECONDS / MAX(first, 1e-7));
    steps = MAX(1, MIN(steps, (int)MOST_STEPS));
    return timed(dev, call, steps, RUNS, seconds, cancel, err);
}

bool bench_run(Bench *b, Device *dev, const Case *c, const char *row, BenchResult *r, bool *fits,
               Error *err) {
    OpCall call;
    *r = (BenchResult){.type = dtype_name(c->t[c->op == OP_ADAMW ? adamw_g : 0].dtype)};
    snprintf(r->op, sizeof r->op, "%s", op_info[c->op].name);
    size_text(c, r->size);
    Buffer *buffer = place(dev, c, &call, err);
    if (!buffer) return false;
    call.row = row;
    int chosen = dev_row_for(dev, &call, NULL);
    *fits = chosen >= 0;
    DType type = c->t[0].dtype;
    bool ok = true;
    if (*fits) {
        snprintf(r->row, sizeof r->row, "%s", dev_row_name(dev, c->op, chosen));
        ok = measure(dev, &call, &r->seconds, &b->cmd->cancel, err);
    }
    if (*fits && ok) {
        Work work = op_info[c->op].work(&call);
        r->gflops = work.flops / r->seconds * 1e-9;
        r->gbps = work.bytes / r->seconds * 1e-9;
        double flops = b->peak.gflops[type] > 0 ? r->gflops / b->peak.gflops[type] : 0;
        double bytes = b->peak.gbps > 0 ? r->gbps / b->peak.gbps : 0;
        r->share_of_peak = MAX(flops, bytes);
    }
    buf_free(buffer);
    return ok;
}

// The fastest row for c; 0 where none fits.
static bool best_row(Bench *b, Device *dev, const Case *c, double *gflops, double *gbps,
                     Error *err) {
    *gflops = *gbps = 0;
    for (int row = 0; row < dev_row_count(dev, c->op); row++) {
        const char *name = dev_row_name(dev, c->op, row);
        BenchResult r;
        bool fits;
        if (!strcmp(name, "ref")) continue; // the oracle's: minutes at this size
        if (!bench_run(b, dev, c, name, &r, &fits, err)) return false;
        *gflops = MAX(*gflops, r.gflops);
        *gbps = MAX(*gbps, r.gbps);
    }
    return true;
}

bool bench_peak(Bench *b, DType type, Error *err) {
    Case product, copy;
    double none;
    DeviceKind kind = dev_info(b->dev)->kind;
    Device *host = kind == DEV_CPU || kind == DEV_SOFTWARE ? b->cpu : b->dev;
    b->peak.of = host == b->dev ? "its own best rows" : "the best rows of device cpu";
    bench_case(OP_GEMM, &(BenchSize){.m = 1024, .type = type}, &product, err);
    bench_case(OP_COPY, &(BenchSize){.rows = 4096, .channels = 4096}, &copy, err);
    // Packed types have no products of their own: bytes bound them.
    if (b->peak.gflops[type] == 0 && !dtype_is_packed(type) &&
        !best_row(b, host, &product, &b->peak.gflops[type], &none, err))
        return false;
    return b->peak.gbps > 0 || best_row(b, host, &copy, &none, &b->peak.gbps, err);
}
