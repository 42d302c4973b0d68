// cases_reduce.c: sums over few and many rows, accumulated or not, and the search for NaN and Inf.
#include "tests/conform.h"

#include <math.h>

enum { GAP = 1, LEAD = 2, BASE = 4, NANS = 8, INFS = 16, FIRST = 32, LAST = 64, FAR = 128 };

typedef struct Row {
    const char *name;
    int A, R, C, kind, accumulate, flags;
    float alpha;
    Fill fill;
    int types;
} Row;

static const Row rows[] = {
    {"sum 1x1x1", 1, 1, 1, REDUCE_SUM, 0, 0, 0, FILL_EXACT, 0},
    {"sum 3x7x17", 3, 7, 17, REDUCE_SUM, 0, GAP, 0, FILL_EXACT, 0},
    {"sum 1x64x192", 1, 64, 192, REDUCE_SUM, 0, 0, 0, FILL_EXACT, 0},
    {"sum 1x4096x65", 1, 4096, 65, REDUCE_SUM, 0, 0, 0.5f, FILL_EXACT, 0},
    {"sum 1x1025x3", 1, 1025, 3, REDUCE_SUM, 1, GAP, 0, FILL_EXACT, 0},
    {"sum 5x33x129", 5, 33, 129, REDUCE_SUM, 1, LEAD, 2, FILL_EXACT, 0},
    {"sum 65x1x7", 65, 1, 7, REDUCE_SUM, 0, 0, 0, FILL_EXACT, 0},
    {"sum all", 1, 5000, 1, REDUCE_SUM, 0, 0, 0.25f, FILL_EXACT, 0},
    {"sum rows", 130, 65, 1, REDUCE_SUM, 1, GAP, 1, FILL_EXACT, 0},
    {"sum far", 2, 9, 33, REDUCE_SUM, 0, BASE, 0, FILL_EXACT, 0},
    {"sum far rows", 1, 2, 65, REDUCE_SUM, 0, FAR, 0, FILL_EXACT, 2},
    {"nonfinite far rows", 1, 2, 65, REDUCE_NONFINITE, 0, FAR | LAST, 0, FILL_RANDOM, 2},
    {"sum 66000 columns", 66000, 2, 3, REDUCE_SUM, 0, 0, 0, FILL_EXACT, 1},
    {"sum random", 2, 1000, 70, REDUCE_SUM, 0, 0, 0.001f, FILL_RANDOM, 0},
    {"sum random accumulate", 3, 77, 65, REDUCE_SUM, 1, GAP, 0, FILL_RANDOM, 0},
    {"sum random all", 1, 20000, 1, REDUCE_SUM, 0, 0, 5e-5f, FILL_RANDOM, 0},
    {"sum outliers", 1, 300, 66, REDUCE_SUM, 0, 0, 0, FILL_OUTLIERS, 0},
    {"nonfinite none", 2, 65, 33, REDUCE_NONFINITE, 0, 0, 0, FILL_RANDOM, 0},
    {"nonfinite nan", 2, 65, 33, REDUCE_NONFINITE, 0, NANS, 0, FILL_RANDOM, 0},
    {"nonfinite inf", 1, 1, 1000, REDUCE_NONFINITE, 0, INFS, 0, FILL_RANDOM, 0},
    {"nonfinite first", 3, 17, 63, REDUCE_NONFINITE, 0, FIRST | GAP, 0, FILL_RANDOM, 0},
    {"nonfinite last", 3, 17, 63, REDUCE_NONFINITE, 0, LAST | GAP, 0, FILL_RANDOM, 0},
    {"nonfinite last of many", 1, 3000, 7, REDUCE_NONFINITE, 0, LAST, 0, FILL_RANDOM, 0},
    {"nonfinite one", 1, 1, 1, REDUCE_NONFINITE, 0, LAST, 0, FILL_RANDOM, 0},
    {"nonfinite accumulate none", 1, 9, 65, REDUCE_NONFINITE, 1, 0, 0, FILL_RANDOM, 0},
    {"nonfinite accumulate", 2, 9, 65, REDUCE_NONFINITE, 1, LAST | LEAD, 0, FILL_RANDOM, 0},
    {"nonfinite large", 1, 33, 65, REDUCE_NONFINITE, 0, 0, 1, FILL_OUTLIERS, 0},
};

static const DType combos[] = {DT_F32, DT_BF16, DT_F16};
static const char *const names[] = {"f32", "bf16", "f16"};

static double spoiled(const Case *c, int operand, int64_t index, uint64_t random) {
    const Row *r = &rows[c->knob];
    const int64_t *n = c->t[operand].shape;
    int64_t last = n[0] * n[1] * n[2] - 1;
    if (r->flags & NANS && index == last / 2) return NAN;
    if (r->flags & INFS && index == last / 3) return -INFINITY;
    if (r->flags & FIRST && index == 0) return INFINITY;
    if (r->flags & LAST && index == last) return NAN;
    return case_uniform(random);
}

static double flag_before(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)operand, (void)index, (void)random;
    return rows[c->knob].flags & LAST ? 0 : 1; // an older flag stays up
}

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    c->knob = index;
    bool sum = r->kind == REDUCE_SUM;
    case_tensor(c, reduce_x, combos[types], r->fill, 3, SHAPE(r->A, r->R, r->C));
    if (!sum && r->fill == FILL_RANDOM) c->t[reduce_x].value = spoiled;
    // Not accumulated: what stood in y must not matter, not even NaN.
    CaseTensor *y = case_tensor(c, reduce_y, DT_F32, r->accumulate ? r->fill : FILL_POISON, 3,
                                sum ? SHAPE(r->A, 1, r->C) : SHAPE(1, 1, 1));
    if (!sum && r->accumulate) y->value = flag_before;
    for (int i = 0; i < reduce_operand_count; i++) {
        if (r->flags & GAP) case_gap(&c->t[i], 3 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR) c->t[reduce_x].far = 2;
    c->params.reduce = (ReduceParams){.kind = (uint32_t)r->kind, .alpha = r->alpha,
                                      .accumulate = (uint32_t)r->accumulate};
    if (r->fill == FILL_EXACT || !sum) c->exact = CASE_EXACT;
    c->c = 8; // long sums in f32: several roundings deep in each partial sum
    return true;
}

static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    (void)o, (void)err, (void)output;
    const int64_t *n = t[reduce_x].shape;
    double alpha = c->params.reduce.alpha == 0 ? 1 : fabs((double)c->params.reduce.alpha);
    for (int64_t a = 0; a < n[0]; a++)
        for (int64_t i = 0; i < n[2]; i++) {
            double sum = 0;
            for (int64_t r = 0; r < n[1]; r++)
                sum += fabs(t[reduce_x].v[(a * n[1] + r) * n[2] + i]);
            double old = c->params.reduce.accumulate ? fabs(t[reduce_y].v[a * n[2] + i]) : 0;
            mag[a * n[2] + i] = alpha * sum + old;
        }
    return true;
}

static const FieldRange ranges[] = {{"kind", 2}, {"alpha", 4}, {"accumulate", 2}, {0}};
const OpCases reduce_cases = {.types = names, .type_count = COUNT_OF(names),
                              .count = COUNT_OF(rows), .build = build, .magnitude = magnitude,
                              .ranges = ranges};
