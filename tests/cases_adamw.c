// cases_adamw.c: one optimiser step in place; skipped where found_inf is set.
#include "tests/conform.h"

#include <math.h>

enum { EMA = 1, FOUND = 2, INF = 4, LEAD = 8, BASE = 16, NO_DECAY = 32, FIRST = 64, SCALED = 128 };

typedef struct Row {
    const char *name;
    int N, flags, types;
} Row;

static const Row rows[] = {
    {"1", 1, 0, 0},
    {"7 ema", 7, EMA, 0},
    {"65 first step", 65, FIRST | EMA, 0},
    {"129 scaled", 129, SCALED | FOUND | EMA, 0},
    {"1000 no decay", 1000, NO_DECAY, 0},
    {"1025 odd start", 1025, EMA | LEAD, 0},
    {"300 skipped", 300, FOUND | INF | EMA, 0},
    {"33 skipped without ema", 33, FOUND | INF | LEAD, 0},
    {"5000", 5000, EMA | SCALED, 0},
    {"far", 100, EMA | BASE, 0},
};

static const DType combos[] = {DT_F32, DT_BF16, DT_F16};
static const char *const names[] = {"f32", "bf16", "f16"};

static double hyper_value(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)operand, (void)random;
    int flags = rows[c->knob].flags;
    double step = flags & FIRST ? 1 : 37;
    const double v[ADAMW_HYPER_COUNT] = {
        3e-4,
        0.9,
        0.999,
        1e-8,
        flags & NO_DECAY ? 0 : 0.01,
        1 - pow(0.9, step),
        1 - pow(0.999, step),
        flags & SCALED ? 1.0 / 1024 : 1,
        0.999,
        NAN,
    };
    return v[index];
}

static double square(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)c, (void)operand, (void)index;
    double u = case_uniform(random);
    return u * u * 1e-2 + 1e-6;
}

static double found_value(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)operand, (void)index, (void)random;
    return rows[c->knob].flags & INF ? 1 : 0;
}

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    c->knob = index;
    const int64_t *n = SHAPE(r->N);
    case_tensor(c, adamw_p, DT_F32, FILL_RANDOM, 1, n);
    case_tensor(c, adamw_m, DT_F32, r->flags & FIRST ? FILL_ZERO : FILL_RANDOM, 1, n)->amp = 0.1;
    case_tensor(c, adamw_v, DT_F32, r->flags & FIRST ? FILL_ZERO : FILL_RANDOM, 1, n);
    if (!(r->flags & FIRST)) c->t[adamw_v].value = square;
    if (r->flags & EMA) case_tensor(c, adamw_ema, DT_F32, FILL_RANDOM, 1, n);
    case_tensor(c, adamw_g, combos[types], FILL_RANDOM, 1, n)->amp = r->flags & SCALED ? 100 : 0.1;
    case_tensor(c, adamw_hyper, DT_F32, FILL_RANDOM, 1, SHAPE(ADAMW_HYPER_COUNT))->value =
        hyper_value;
    if (r->flags & FOUND) {
        case_tensor(c, adamw_found_inf, DT_F32, FILL_RANDOM, 1, SHAPE(1))->value = found_value;
        if (r->flags & INF) c->exact = CASE_EXACT; // nothing may move
    }
    if (r->flags & LEAD)
        for (int i = 0; i < adamw_operand_count; i++) c->t[i].lead = 1 + i;
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    c->c = 16;
    return true;
}

// Every term of each new value by its absolute size.
static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    (void)o, (void)err, (void)c;
    const double *h = t[adamw_hyper].v;
    for (int64_t i = 0; i < t[adamw_p].count; i++) {
        double p = fabs(t[adamw_p].v[i]), m = fabs(t[adamw_m].v[i]), v = t[adamw_v].v[i];
        double g = t[adamw_g].v[i] * h[7];
        double m1 = h[1] * m + (1 - h[1]) * fabs(g), v1 = h[2] * v + (1 - h[2]) * g * g;
        double p1 = p + h[0] * h[4] * p + h[0] / h[5] * m1 / (sqrt(v1 / h[6]) + h[3]);
        if (output == adamw_m) mag[i] = m1;
        if (output == adamw_v) mag[i] = v1;
        if (output == adamw_p) mag[i] = p1;
        if (output == adamw_ema) mag[i] = h[8] * fabs(t[adamw_ema].v[i]) + (1 - h[8]) * p1;
    }
    return true;
}

const OpCases adamw_cases = {.types = names, .type_count = COUNT_OF(names), .count = COUNT_OF(rows),
                             .build = build, .magnitude = magnitude};
