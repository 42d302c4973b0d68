// cases_embed_bwd.c: rows scattered and summed by number; numbers outside the table are dropped.
#include "tests/conform.h"

#include <math.h>

enum { GAP = 1, LEAD = 2, BASE = 4, OUTSIDE = 8, SAME = 16, FAR = 32 };

typedef struct Row {
    const char *name;
    int V, D, N, flags;
    Fill fill;
    int types;
} Row;

static const Row rows[] = {
    {"1x1 1", 1, 1, 1, 0, FILL_EXACT, 0},
    {"11x192 64", 11, 192, 64, 0, FILL_EXACT, 0},
    {"3x7 17", 3, 7, 17, GAP, FILL_EXACT, 0},
    {"130x65 33", 130, 65, 33, LEAD, FILL_EXACT, 0},
    {"outside", 10, 33, 70, OUTSIDE, FILL_EXACT, 0},
    {"outside odd", 7, 5, 129, OUTSIDE | GAP | LEAD, FILL_EXACT, 0},
    {"all to one", 5, 66, 130, SAME, FILL_EXACT, 0},
    {"far", 9, 64, 20, BASE, FILL_EXACT, 0},
    {"random 11x65 200", 11, 65, 200, 0, FILL_RANDOM, 0},
    {"random all to one", 3, 33, 500, SAME, FILL_RANDOM, 0},
    {"far rows", 2, 65, 9, FAR, FILL_EXACT, 2},
    {"66000 rows", 66000, 3, 40, 0, FILL_EXACT, 1},
};

static const struct { DType dy, table; } combos[] = {
    {DT_F32, DT_F32}, {DT_BF16, DT_BF16}, {DT_F16, DT_F16}, {DT_BF16, DT_F32}, {DT_F16, DT_F32},
};
static const char *const names[] = {"f32", "bf16", "f16", "bf16 -> f32", "f16 -> f32"};

static double outside(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)operand;
    int64_t V = c->t[embed_bwd_dtable].shape[0];
    switch (index % 7) {
    case 1: return -1;
    case 3: return (double)V;
    case 5: return 1 << 30;
    default: return (double)(random % (uint64_t)V);
    }
}

static double same(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)operand, (void)index, (void)random;
    return (double)(c->t[embed_bwd_dtable].shape[0] - 1);
}

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    case_tensor(c, embed_bwd_dy, combos[types].dy, r->fill, 2, SHAPE(r->N, r->D));
    CaseTensor *ids = case_tensor(c, embed_bwd_ids, DT_I32, FILL_IDS, 1, SHAPE(r->N));
    ids->range = r->V;
    if (r->flags & OUTSIDE) ids->value = outside;
    if (r->flags & SAME) ids->value = same;
    case_tensor(c, embed_bwd_dtable, combos[types].table, FILL_POISON, 2, SHAPE(r->V, r->D));
    for (int i = 0; i < embed_bwd_operand_count; i++) {
        if (r->flags & GAP) case_gap(&c->t[i], 3 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR) c->t[embed_bwd_dtable].far = 1;
    if (r->fill == FILL_EXACT) c->exact = CASE_EXACT;
    c->c = 8;
    return true;
}

static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    (void)o, (void)err, (void)c;
    int64_t D = t[output].shape[1], V = t[output].shape[0];
    memset(mag, 0, (size_t)t[output].count * sizeof *mag);
    for (int64_t n = 0; n < t[embed_bwd_dy].shape[0]; n++) {
        double id = t[embed_bwd_ids].v[n];
        if (id < 0 || id >= (double)V) continue;
        for (int64_t d = 0; d < D; d++)
            mag[(int64_t)id * D + d] += fabs(t[embed_bwd_dy].v[n * D + d]);
    }
    return true;
}

const OpCases embed_bwd_cases = {.types = names, .type_count = COUNT_OF(names),
                                 .count = COUNT_OF(rows), .build = build, .magnitude = magnitude};
