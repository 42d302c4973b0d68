// cases_norm_bwd.c: the gradient of a plain norm from its output.
#include "tests/conform.h"

#include <math.h>

enum { GAP = 1, LEAD = 2, BASE = 4, FAR = 8 };

typedef struct Row {
    const char *name;
    int B, M, C, kind, flags;
    Fill fill;
    int types;
} Row;

static const Row rows[] = {
    {"layer 1x1x1", 1, 1, 1, NORM_LAYER, 0, FILL_RANDOM, 0},
    {"layer 1x3x7", 1, 3, 7, NORM_LAYER, 0, FILL_RANDOM, 0},
    {"layer 3x5x17", 3, 5, 17, NORM_LAYER, GAP, FILL_RANDOM, 0},
    {"layer 2x33x63", 2, 33, 63, NORM_LAYER, 0, FILL_RANDOM, 0},
    {"layer 2x64x192", 2, 64, 192, NORM_LAYER, 0, FILL_RANDOM, 0},
    {"layer 1x5x129", 1, 5, 129, NORM_LAYER, LEAD | GAP, FILL_RANDOM, 0},
    {"layer 1x3x1030", 1, 3, 1030, NORM_LAYER, 0, FILL_RANDOM, 0},
    {"layer outliers", 1, 9, 200, NORM_LAYER, 0, FILL_OUTLIERS, 0},
    {"layer far", 1, 9, 64, NORM_LAYER, BASE, FILL_RANDOM, 0},
    {"layer far rows", 1, 2, 64, NORM_LAYER, FAR, FILL_RANDOM, 2},
    {"layer 70000 rows", 2, 35000, 5, NORM_LAYER, 0, FILL_RANDOM, 1},
    {"layer exact", 2, 9, 64, NORM_LAYER, 0, FILL_EXACT, 3},
    {"rms 1x3x7", 1, 3, 7, NORM_RMS, 0, FILL_RANDOM, 0},
    {"rms 2x17x65", 2, 17, 65, NORM_RMS, GAP, FILL_RANDOM, 0},
    {"rms 1x4x1100", 1, 4, 1100, NORM_RMS, LEAD, FILL_RANDOM, 0},
    {"rms exact", 1, 17, 128, NORM_RMS, 0, FILL_EXACT, 3},
};

// y; dy; dx.
static const struct { DType y, dy, dx; } combos[] = {
    {DT_F32, DT_F32, DT_F32},   {DT_BF16, DT_BF16, DT_BF16}, {DT_F16, DT_F16, DT_F16},
    {DT_BF16, DT_BF16, DT_F32}, {DT_BF16, DT_F32, DT_F32},   {DT_F16, DT_F16, DT_F32},
};
static const char *const names[] = {"f32",         "bf16",       "f16",
                                    "bf16 -> f32", "bf16 x f32", "f16 -> f32"};

static double power_of_two(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)c, (void)operand, (void)index;
    return random % 2 ? 0.5 : 2;
}

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    const int64_t *x = SHAPE(r->B, r->M, r->C);
    bool exact = r->fill == FILL_EXACT;
    case_tensor(c, norm_bwd_y, combos[types].y, exact ? FILL_EXACT : FILL_RANDOM, 3, x)->amp =
        exact ? 1 : 1.7;
    case_tensor(c, norm_bwd_dy, combos[types].dy, r->fill, 3, x);
    CaseTensor *rstd = case_tensor(c, norm_bwd_rstd, DT_F32, FILL_RANDOM, 3, SHAPE(r->B, r->M, 1));
    rstd->shift = 1.5;
    if (exact) rstd->value = power_of_two;
    case_tensor(c, norm_bwd_dx, combos[types].dx, FILL_POISON, 3, x);
    for (int i = 0; i < norm_bwd_operand_count; i++) {
        if (r->flags & GAP) case_gap(&c->t[i], 3 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR) c->t[norm_bwd_dx].far = 2;
    c->params.norm_bwd = (NormBwdParams){.kind = (uint32_t)r->kind};
    // Sums of 64 or 128 sixteenths divided by 64 or 128: exact whatever the order.
    if (exact) c->exact = CASE_EXACT;
    c->c = 8;
    return true;
}

static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    (void)o, (void)err, (void)output;
    const int64_t *n = t[norm_bwd_y].shape;
    int64_t C = n[2];
    for (int64_t row = 0; row < n[0] * n[1]; row++) {
        const double *y = t[norm_bwd_y].v + row * C, *dy = t[norm_bwd_dy].v + row * C;
        double a = 0, b = 0, r = fabs(t[norm_bwd_rstd].v[row]);
        for (int64_t i = 0; i < C; i++) {
            a += fabs(dy[i]) / (double)C;
            b += fabs(dy[i] * y[i]) / (double)C;
        }
        if (c->params.norm_bwd.kind == NORM_RMS) a = 0;
        for (int64_t i = 0; i < C; i++) mag[row * C + i] = r * (fabs(dy[i]) + a + fabs(y[i]) * b);
    }
    return true;
}

static const FieldRange ranges[] = {{"kind", 2}, {0}};
const OpCases norm_bwd_cases = {.types = names, .type_count = COUNT_OF(names),
                                .count = COUNT_OF(rows), .build = build, .magnitude = magnitude,
                                .ranges = ranges};
