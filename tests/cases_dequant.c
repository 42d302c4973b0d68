// cases_dequant.c: every packed type into every float type, with and without a scale.
#include "tests/conform.h"

#include <math.h>

enum { SCALE = 1, LEAD = 2, BASE = 4 };

typedef struct Row { const char *name; int rows, blocks, flags; DType y; } Row;

// blocks: per row, of 32 elements or the type's own, whichever is more.
static const Row rows[] = {
    {"one block", 1, 1, 0, DT_F32},
    {"f16", 3, 5, 0, DT_F16},
    {"bf16", 7, 3, 0, DT_BF16},
    {"scale", 5, 9, SCALE, DT_F32},
    {"scale f16", 2, 4, SCALE | LEAD, DT_F16},
    {"scale bf16", 2, 33, SCALE, DT_BF16},
    {"lead", 4, 2, LEAD, DT_F32},
    {"wide", 1, 300, 0, DT_BF16},
    {"far", 3, 2, BASE, DT_F32},
};

static const DType combos[] = {
    DT_F8_E4M3, DT_F8_E5M2, DT_Q8_0, DT_Q4_0, DT_Q4_1, DT_Q5_0,   DT_Q5_1,
    DT_Q2_K,    DT_Q3_K,    DT_Q4_K, DT_Q5_K, DT_Q6_K, DT_IQ4_NL, DT_IQ4_XS,
};
static const char *const names[] = {
    "fp8_e4m3", "fp8_e5m2", "q8_0", "q4_0", "q4_1", "q5_0",   "q5_1",
    "q2_k",     "q3_k",     "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
};

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    snprintf(c->name, sizeof c->name, "%s", r->name);
    const int64_t *shape = SHAPE(r->rows, (int64_t)r->blocks * MAX(dtype_block(combos[types]), 32));
    case_tensor(c, dequant_w, combos[types], FILL_RANDOM, 2, shape);
    if (r->flags & SCALE) {
        CaseTensor *scale = case_tensor(c, dequant_scale, DT_F32, FILL_RANDOM, 1, SHAPE(1));
        scale->shift = 0.7, scale->amp = 0.2;
    }
    case_tensor(c, dequant_y, r->y, FILL_POISON, 2, shape);
    if (r->flags & LEAD) c->t[dequant_w].lead = 3 * dtype_block(combos[types]), c->t[dequant_y].lead = 5;
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    return true;
}

// A number may be the small difference of a product and a minimum: held to the largest of its 32.
static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    (void)o, (void)c, (void)output, (void)err;
    const HostTensor *w = &t[dequant_w];
    double scale = t[dequant_scale].present ? fabs(t[dequant_scale].v[0]) : 1;
    for (int64_t i = 0; i < w->count; i += 32) {
        double most = 0;
        for (int64_t k = i; k < i + 32; k++) most = MAX(most, fabs(w->v[k]));
        for (int64_t k = i; k < i + 32; k++) mag[k] = most * scale;
    }
    return true;
}

const OpCases dequant_cases = {.types = names, .type_count = COUNT_OF(names),
                               .count = COUNT_OF(rows), .build = build, .magnitude = magnitude};
