// cases_gemm.c: shapes around every tile edge, each epilogue operand alone and all together.
#include "tests/conform.h"

#include <math.h>

enum {
    TX = 1, TW = 2, BIAS = 4, RES = 8,
    GATE = 16,   // [B, M, N]
    GATE_N = 32, // [1, 1, N]
    GATE_B = 64, // [B, 1, N]
    GATE_M = 128, // [1, M, N]
    WB = 256,    // a weight per batch
    GAP = 512,   // rows apart in every tensor
    LEAD = 1024, // first elements at odd places
    BASE = 2048, // far into the buffer
    FAR_X = 4096, FAR_W = 8192, FAR_Y = 16384, // rows over 4 GiB apart
    GATE_ONES = GATE | GATE_N | GATE_B | GATE_M,
};

typedef struct Row {
    const char *name;
    int B, M, N, K, K2, flags, act;
    Fill fill;
    int types; // how many of the type combinations; 0: all
} Row;

static const Row rows[] = {
    {"exact 1x1x1", 1, 1, 1, 1, 0, 0, 0, FILL_EXACT, 0},
    {"exact 3x7x17", 1, 3, 7, 17, 0, 0, 0, FILL_EXACT, 0},
    {"exact 17x3x7", 1, 17, 3, 7, 0, GAP, 0, FILL_EXACT, 0},
    {"exact 63x65x33", 1, 63, 65, 33, 0, 0, 0, FILL_EXACT, 0},
    {"exact 65x63x129", 1, 65, 63, 129, 0, GAP | LEAD, 0, FILL_EXACT, 0},
    {"exact 129x130x65", 1, 129, 130, 65, 0, 0, 0, FILL_EXACT, 0},
    {"exact 64x64x64", 1, 64, 64, 64, 0, 0, 0, FILL_EXACT, 0},
    {"exact 128x192x256", 1, 128, 192, 256, 0, 0, 0, FILL_EXACT, 0},
    {"exact 256x128x96", 2, 256, 128, 96, 0, 0, 0, FILL_EXACT, 3},
    {"exact 516x260x20", 1, 516, 260, 20, 0, BIAS, 0, FILL_EXACT, 3},
    {"exact trans_x", 1, 33, 17, 65, 0, TX, 0, FILL_EXACT, 0},
    {"exact trans_x whole tiles", 1, 64, 128, 64, 0, TX, 0, FILL_EXACT, 0},
    {"exact trans_w", 1, 17, 65, 33, 0, TW, 0, FILL_EXACT, 0},
    {"exact trans_w whole tiles", 1, 64, 64, 128, 0, TW, 0, FILL_EXACT, 0},
    {"exact trans_x trans_w", 2, 66, 35, 70, 0, TX | TW, 0, FILL_EXACT, 0},
    {"exact trans batched", 3, 31, 66, 9, 0, TX | TW | WB | GAP, 0, FILL_EXACT, 0},
    {"exact trans odd start", 1, 40, 36, 44, 0, TX | TW | LEAD | GAP, 0, FILL_EXACT, 0},
    {"exact batch", 3, 5, 9, 20, 0, 0, 0, FILL_EXACT, 0},
    {"exact batch weights", 3, 33, 31, 18, 0, WB, 0, FILL_EXACT, 0},
    {"exact one row", 1, 1, 300, 70, 0, BIAS, 0, FILL_EXACT, 0},
    {"exact one column", 1, 300, 1, 70, 0, BIAS, 0, FILL_EXACT, 0},
    {"exact long k", 1, 5, 6, 1030, 0, 0, 0, FILL_EXACT, 0},
    {"exact k 2", 1, 70, 70, 2, 0, 0, 0, FILL_EXACT, 0},
    {"exact second segment", 1, 65, 33, 40, 8, 0, 0, FILL_EXACT, 0},
    {"exact second segment odd", 2, 17, 66, 31, 13, GAP | LEAD, 0, FILL_EXACT, 0},
    {"exact second segment batched", 2, 9, 20, 8, 5, WB | TW | TX, 0, FILL_EXACT, 0},
    {"exact bias", 1, 65, 67, 32, 0, BIAS, 0, FILL_EXACT, 0},
    {"exact bias relu", 1, 34, 65, 24, 0, BIAS, ACT_RELU, FILL_EXACT, 0},
    {"exact residual", 2, 33, 65, 16, 0, RES, 0, FILL_EXACT, 0},
    {"exact gate full", 2, 33, 65, 16, 0, GATE, 0, FILL_EXACT, 0},
    {"exact gate row", 2, 33, 65, 16, 0, GATE_N, 0, FILL_EXACT, 0},
    {"exact gate batch", 3, 33, 65, 16, 0, GATE_B | RES, 0, FILL_EXACT, 0},
    {"exact gate token", 3, 33, 65, 16, 0, GATE_M | RES, 0, FILL_EXACT, 0},
    {"exact all", 2, 66, 34, 40, 16, BIAS | GATE_B | RES | GAP, ACT_RELU, FILL_EXACT, 0},
    {"exact all odd", 2, 35, 67, 21, 3, BIAS | GATE | RES | GAP | LEAD | WB, 0, FILL_EXACT, 0},
    {"exact far", 1, 40, 36, 24, 0, BASE | BIAS | RES, 0, FILL_EXACT, 0},
    {"exact far rows of x", 1, 2, 70, 40, 0, FAR_X, 0, FILL_EXACT, 2},
    {"exact far rows of w", 1, 40, 2, 36, 0, FAR_W, 0, FILL_EXACT, 2},
    {"exact far rows of y", 1, 2, 70, 40, 0, FAR_Y, 0, FILL_EXACT, 2},
    {"exact far rows of trans_x", 1, 36, 40, 2, 0, FAR_X | TX, 0, FILL_EXACT, 2},
    {"exact 66000 batches", 66000, 1, 2, 1, 0, WB, 0, FILL_EXACT, 1},
    {"exact 66000 row tiles", 1, 66000, 3, 2, 0, 0, 0, FILL_EXACT, 1},
    {"random 64x192x192", 1, 64, 192, 192, 0, BIAS, 0, FILL_RANDOM, 0},
    {"random 130x70x768", 1, 130, 70, 768, 0, BIAS, 0, FILL_RANDOM, 0},
    {"random 7x65x100", 2, 7, 65, 100, 0, GAP, 0, FILL_RANDOM, 0},
    {"random trans_x", 1, 64, 96, 200, 0, TX, 0, FILL_RANDOM, 0},
    {"random trans_w", 1, 100, 64, 96, 0, TW, 0, FILL_RANDOM, 0},
    {"random silu", 1, 33, 70, 50, 0, BIAS, ACT_SILU, FILL_RANDOM, 0},
    {"random gelu", 1, 65, 64, 64, 0, BIAS, ACT_GELU, FILL_RANDOM, 0},
    {"random gelu_erf", 1, 31, 33, 50, 0, BIAS, ACT_GELU_ERF, FILL_RANDOM, 0},
    {"random quick_gelu", 1, 31, 33, 50, 0, 0, ACT_QUICK_GELU, FILL_RANDOM, 0},
    {"random tanh", 1, 31, 33, 50, 0, 0, ACT_TANH, FILL_RANDOM, 0},
    {"random sigmoid", 1, 31, 33, 50, 0, 0, ACT_SIGMOID, FILL_RANDOM, 0},
    {"random all", 2, 66, 100, 130, 16, BIAS | GATE_B | RES, ACT_GELU, FILL_RANDOM, 0},
    {"random residual gate", 2, 40, 72, 60, 0, GATE | RES | GAP, 0, FILL_RANDOM, 0},
    {"outliers 65x66x67", 1, 65, 66, 67, 0, BIAS | RES, 0, FILL_OUTLIERS, 0},
    {"outliers gelu", 1, 33, 64, 40, 0, BIAS, ACT_GELU, FILL_OUTLIERS, 0},
    {"outliers silu", 1, 33, 64, 40, 0, BIAS | GATE_N, ACT_SILU, FILL_OUTLIERS, 0},
};

// x, w (and bias), y (and residual); gate is f32 in the mixed ones.
static const struct { DType x, w, y, gate; } combos[] = {
    {DT_F32, DT_F32, DT_F32, DT_F32},    {DT_BF16, DT_BF16, DT_BF16, DT_BF16},
    {DT_F16, DT_F16, DT_F16, DT_F16},    {DT_F32, DT_F16, DT_F32, DT_F32},
    {DT_F32, DT_BF16, DT_F32, DT_F32},   {DT_BF16, DT_BF16, DT_F32, DT_F32},
    {DT_F16, DT_F16, DT_F32, DT_F32},    {DT_BF16, DT_F32, DT_F32, DT_F32},
    {DT_F32, DT_F32, DT_BF16, DT_F32},
};
static const char *const names[] = {
    "f32", "bf16", "f16", "f32 x f16", "f32 x bf16", "bf16 -> f32", "f16 -> f32",
    "bf16 x f32 -> f32", "f32 -> bf16",
};
// With f16 outputs results stay under 65504 and with exact fills inside 11 bits: 1030/16 and the
// sums of small dyadic numbers do, as outliers (200^2 x 67) do not.
enum { F16_OUT = 2 };

static void gate_tensor(Case *c, const Row *r, DType dtype) {
    int64_t b = r->flags & (GATE | GATE_B) ? r->B : 1, m = r->flags & (GATE | GATE_M) ? r->M : 1;
    case_tensor(c, gemm_gate, dtype, r->fill, 3, SHAPE(b, m, r->N))->amp = 1;
}

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    if (types == F16_OUT && r->fill == FILL_OUTLIERS) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    DType x = combos[types].x, w = combos[types].w, y = combos[types].y;
    int64_t wb = r->flags & WB ? r->B : 1;
    const int64_t *dx = r->flags & TX ? SHAPE(r->B, r->K, r->M) : SHAPE(r->B, r->M, r->K);
    const int64_t *dw = r->flags & TW ? SHAPE(wb, r->K, r->N) : SHAPE(wb, r->N, r->K);
    case_tensor(c, gemm_x, x, r->fill, 3, dx);
    case_tensor(c, gemm_w, w, r->fill, 3, dw);
    if (r->K2) {
        case_tensor(c, gemm_x2, x, r->fill, 3, SHAPE(r->B, r->M, r->K2));
        case_tensor(c, gemm_w2, w, r->fill, 3, SHAPE(wb, r->N, r->K2));
    }
    if (r->flags & BIAS) case_tensor(c, gemm_bias, w, r->fill, 3, SHAPE(1, 1, r->N));
    if (r->flags & GATE_ONES) gate_tensor(c, r, combos[types].gate);
    if (r->flags & RES) case_tensor(c, gemm_residual, y, r->fill, 3, SHAPE(r->B, r->M, r->N));
    case_tensor(c, gemm_y, y, FILL_POISON, 3, SHAPE(r->B, r->M, r->N));
    for (int i = 0; i < gemm_operand_count; i++) {
        if (!c->t[i].present) continue;
        if (r->flags & GAP) case_gap(&c->t[i], 3 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR_X) c->t[gemm_x].far = 2;
    if (r->flags & FAR_W) c->t[gemm_w].far = 2;
    if (r->flags & FAR_Y) c->t[gemm_y].far = 2;
    c->params.gemm = (GemmParams){.act = (uint32_t)r->act, .trans_x = !!(r->flags & TX),
                                  .trans_w = !!(r->flags & TW)};
    if (r->fill == FILL_EXACT) c->exact = CASE_EXACT;
    c->c = r->act ? 16 : 4; // an activation adds its own roundings
    // After an outlier every partial sum is as large as mag and rounds by u mag: a random walk.
    if (r->fill == FILL_OUTLIERS) c->c += 0.75 * sqrt(r->K);
    return true;
}

// The same call on absolute values, without the activation (their slopes stay below 1.13); the
// activation's own rounding is relative to 1 + |its input|.
static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    void *mem = mem_new(NULL, 1);
    HostTensor a[MAX_OPERANDS] = {{0}};
    for (int i = 0; i < gemm_operand_count; i++) a[i] = host_abs(mem, &t[i]);
    OpParams p = c->params;
    p.gemm.act = ACT_NONE;
    if (c->params.gemm.act) {
        const int64_t N = t[gemm_y].shape[2];
        if (!a[gemm_bias].present) a[gemm_bias] = host_new(mem, DT_F32, 3, SHAPE(1, 1, N));
        for (int64_t n = 0; n < N; n++) a[gemm_bias].v[n] += 1;
    }
    bool ok = oracle_run(o, OP_GEMM, &p, a, err);
    memcpy(mag, a[output].v, (size_t)a[output].count * sizeof *mag);
    mem_free(mem);
    return ok;
}

static const FieldRange ranges[] = {{"act", ACT_COUNT}, {0}};
const OpCases gemm_cases = {.types = names, .type_count = COUNT_OF(names), .count = COUNT_OF(rows),
                            .build = build, .magnitude = magnitude, .ranges = ranges};
