// cases_ewise.c: every kind and activation, up to six dimensions, inputs broadcast and strided in
// any dimension, in place.
#include "tests/conform.h"

#include <math.h>

enum {
    GAP = 1, LEAD = 2, BASE = 4,
    IN_PLACE = 8, // o takes over x
    Y_ROW = 16,   // y is broadcast over all but the last dimension
    Y_COL = 32,   // y is broadcast over the last dimension
    Y_ONE = 64,   // y is one number
    Z_BATCH = 128, // z is broadcast over the middle dimensions
    X_TURNED = 256, // x has its last two dimensions exchanged in memory
    X_ONE = 512,
    FAR_X = 1024, FAR_O = 2048, // rows over 4 GiB apart
};

typedef struct Row {
    const char *name;
    int kind, act, flags;
    float alpha, beta;
    int ndim, shape[MAX_DIMS];
    Fill fill;
    int types;
} Row;

#define ACT_ROW(text, act) \
    {text, EW_ACT, act, 0, 0, 0, 2, {17, 65}, FILL_RANDOM, 0}, \
    {text " odd", EW_ACT, act, GAP | LEAD, 0, 0, 3, {3, 5, 7}, FILL_RANDOM, 0}, \
    {text " large", EW_ACT, act, 0, 0, 0, 2, {9, 129}, FILL_OUTLIERS, 0}, \
    {text " slope", EW_ACT_BWD, act, 0, 0, 0, 2, {17, 65}, FILL_RANDOM, 0}, \
    {text " slope large", EW_ACT_BWD, act, GAP, 0, 0, 3, {2, 9, 63}, FILL_OUTLIERS, 0}

static const Row rows[] = {
    {"scale 1", EW_SCALE, 0, 0, 2, 0.5f, 1, {1}, FILL_EXACT, 0},
    {"scale", EW_SCALE, 0, 0, -0.5f, 0.25f, 2, {17, 65}, FILL_EXACT, 0},
    {"scale in place", EW_SCALE, 0, IN_PLACE | GAP, 0.5f, 1, 3, {3, 7, 33}, FILL_EXACT, 0},
    {"scale rank 0", EW_SCALE, 0, 0, 2, 1, 0, {0}, FILL_EXACT, 0},
    {"scale 6 dims", EW_SCALE, 0, GAP, 2, 0, 6, {2, 3, 2, 3, 2, 5}, FILL_EXACT, 0},
    {"scale turned", EW_SCALE, 0, X_TURNED, 1, 1, 3, {3, 17, 35}, FILL_EXACT, 0},
    {"scale one to all", EW_SCALE, 0, X_ONE, 0, 7, 2, {9, 33}, FILL_EXACT, 0},
    {"scale random", EW_SCALE, 0, 0, 0.3f, -1.7f, 2, {33, 100}, FILL_RANDOM, 0},
    {"add", EW_ADD, 0, 0, 0, 0, 2, {17, 65}, FILL_EXACT, 0},
    {"add odd start", EW_ADD, 0, LEAD | GAP, 0, 0, 3, {3, 5, 67}, FILL_EXACT, 0},
    {"add in place", EW_ADD, 0, IN_PLACE, 0, 0, 2, {33, 64}, FILL_EXACT, 0},
    {"add row", EW_ADD, 0, Y_ROW, 0, 0, 3, {2, 17, 64}, FILL_EXACT, 0},
    {"add column", EW_ADD, 0, Y_COL | GAP, 0, 0, 3, {2, 17, 33}, FILL_EXACT, 0},
    {"add one", EW_ADD, 0, Y_ONE, 0, 0, 3, {2, 5, 33}, FILL_EXACT, 0},
    {"add turned", EW_ADD, 0, X_TURNED | Y_ROW, 0, 0, 4, {2, 3, 9, 17}, FILL_EXACT, 0},
    {"add far", EW_ADD, 0, BASE, 0, 0, 2, {17, 33}, FILL_EXACT, 0},
    {"add far rows of x", EW_ADD, 0, FAR_X, 0, 0, 2, {2, 300}, FILL_EXACT, 2},
    {"add far rows of o", EW_ADD, 0, FAR_O, 0, 0, 2, {2, 300}, FILL_EXACT, 2},
    {"add 17 million", EW_ADD, 0, Y_COL, 0, 0, 2, {65537, 257}, FILL_EXACT, 1},
    {"add random", EW_ADD, 0, 0, 0, 0, 2, {33, 65}, FILL_RANDOM, 0},
    {"sub", EW_SUB, 0, 0, 0, 0, 2, {7, 129}, FILL_EXACT, 0},
    {"sub 4 dims row", EW_SUB, 0, Y_ROW | GAP, 0, 0, 4, {2, 3, 4, 15}, FILL_EXACT, 0},
    {"mul", EW_MUL, 0, 0, 0, 0, 2, {17, 63}, FILL_EXACT, 0},
    {"mul column in place", EW_MUL, 0, IN_PLACE | Y_COL, 0, 0, 3, {2, 9, 40}, FILL_EXACT, 0},
    {"mul random", EW_MUL, 0, LEAD, 0, 0, 2, {33, 65}, FILL_RANDOM, 0},
    {"div random", EW_DIV, 0, 0, 0, 0, 2, {17, 65}, FILL_RANDOM, 0},
    {"div column", EW_DIV, 0, Y_COL | GAP, 0, 0, 3, {2, 5, 65}, FILL_RANDOM, 0},
    {"muladd", EW_MULADD, 0, 0, 0, 0, 2, {17, 65}, FILL_EXACT, 0},
    {"muladd broadcast", EW_MULADD, 0, Y_ROW | Z_BATCH, 0, 0, 3, {3, 9, 32}, FILL_EXACT, 0},
    {"muladd random", EW_MULADD, 0, GAP | LEAD, 0, 0, 3, {2, 9, 33}, FILL_RANDOM, 0},
    {"modulate", EW_MODULATE, 0, Z_BATCH, 0, 0, 3, {3, 17, 64}, FILL_EXACT, 0},
    {"modulate in place", EW_MODULATE, 0, IN_PLACE | Y_ROW | Z_BATCH, 0, 0, 3, {2, 9, 65},
     FILL_EXACT, 0},
    {"modulate random", EW_MODULATE, 0, 0, 0, 0, 3, {2, 17, 96}, FILL_RANDOM, 0},
    {"square", EW_SQUARE, 0, 0, 0, 0, 2, {9, 129}, FILL_EXACT, 0},
    {"square random", EW_SQUARE, 0, GAP, 0, 0, 3, {2, 9, 31}, FILL_RANDOM, 0},
    {"clamp", EW_CLAMP, 0, 0, -0.25f, 0.5f, 2, {9, 129}, FILL_EXACT, 0},
    {"clamp in place", EW_CLAMP, 0, IN_PLACE | LEAD, -1, 1, 2, {17, 31}, FILL_EXACT, 0},
    {"exp", EW_EXP, 0, 0, 0, 0, 2, {17, 65}, FILL_RANDOM, 0},
    {"exp odd", EW_EXP, 0, GAP | LEAD, 0, 0, 3, {3, 5, 7}, FILL_RANDOM, 0},
    {"sqrt", EW_SQRT, 0, 0, 0, 0, 2, {17, 65}, FILL_RANDOM, 0},
    {"sqrt odd", EW_SQRT, 0, GAP | LEAD, 0, 0, 3, {3, 5, 7}, FILL_RANDOM, 0},
    ACT_ROW("none", ACT_NONE),
    ACT_ROW("silu", ACT_SILU),
    ACT_ROW("gelu", ACT_GELU),
    ACT_ROW("gelu_erf", ACT_GELU_ERF),
    ACT_ROW("quick_gelu", ACT_QUICK_GELU),
    ACT_ROW("relu", ACT_RELU),
    ACT_ROW("tanh", ACT_TANH),
    ACT_ROW("sigmoid", ACT_SIGMOID),
};

static const struct { DType x, yz, o; } combos[] = {
    {DT_F32, DT_F32, DT_F32},   {DT_BF16, DT_BF16, DT_BF16}, {DT_F16, DT_F16, DT_F16},
    {DT_F32, DT_BF16, DT_F32},  {DT_BF16, DT_F32, DT_BF16},  {DT_BF16, DT_BF16, DT_F32},
    {DT_F32, DT_F32, DT_BF16},  {DT_F16, DT_F32, DT_F32},
};
static const char *const names[] = {"f32",        "bf16",        "f16",         "f32 x bf16",
                                    "bf16 x f32", "bf16 -> f32", "f32 -> bf16", "f16 -> f32"};

static const int inputs[EW_COUNT] = {
    [EW_SCALE] = 1, [EW_ACT] = 1, [EW_ACT_BWD] = 2, [EW_ADD] = 2, [EW_SUB] = 2, [EW_MUL] = 2,
    [EW_DIV] = 2, [EW_MULADD] = 3, [EW_MODULATE] = 3, [EW_SQUARE] = 1, [EW_CLAMP] = 1,
    [EW_EXP] = 1, [EW_SQRT] = 1,
};

// Gives dimensions a stride of 0 where `drop` has their bit, and packs the rest.
static void broadcast(CaseTensor *t, unsigned drop) {
    int64_t stride = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        bool dropped = drop >> d & 1;
        t->stride[d] = dropped ? 0 : stride;
        if (!dropped) stride *= t->shape[d];
    }
}

static double positive(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)c, (void)operand, (void)index;
    return 2.5 + 2.4 * case_uniform(random);
}

static double away_from_zero(const Case *c, int operand, int64_t index, uint64_t random) {
    double u = case_uniform(random);
    (void)c, (void)operand, (void)index;
    return u < 0 ? u - 0.3 : u + 0.3;
}

static void layout(Case *c, const Row *r) {
    int n = r->ndim;
    for (int i = 0; i < ewise_operand_count; i++) {
        if (!c->t[i].present) continue;
        if (r->flags & GAP) case_gap(&c->t[i], 3 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
    unsigned all = (1u << n) - 1, last = n ? 1u << (n - 1) : 0;
    CaseTensor *x = &c->t[ewise_x], *y = &c->t[ewise_y], *z = &c->t[ewise_z];
    if (r->flags & X_ONE) broadcast(x, all);
    if (r->flags & Y_ROW) broadcast(y, all & ~last);
    if (r->flags & Y_COL) broadcast(y, last);
    if (r->flags & Y_ONE) broadcast(y, all);
    if (r->flags & Z_BATCH) broadcast(z, all & ~last & ~1u);
    if (r->flags & X_TURNED) { // as [.., last, last but one] in memory
        x->stride[n - 1] = x->shape[n - 2];
        x->stride[n - 2] = 1;
    }
}

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    DType type[4] = {combos[types].x, combos[types].yz, combos[types].yz, combos[types].o};
    if (r->flags & IN_PLACE && type[0] != type[3]) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    int64_t shape[MAX_DIMS];
    for (int d = 0; d < r->ndim; d++) shape[d] = r->shape[d];
    for (int i = 0; i < inputs[r->kind]; i++) {
        case_tensor(c, i, type[i], r->fill, r->ndim, shape);
        if (r->kind == EW_ACT || r->kind == EW_ACT_BWD || r->kind == EW_EXP) c->t[i].amp = 4;
        if (r->fill == FILL_OUTLIERS) c->t[i].amp = 0.5; // outliers up to 100
    }
    if (r->kind == EW_SQRT) c->t[ewise_x].value = positive;
    if (r->kind == EW_DIV) c->t[ewise_y].value = away_from_zero;
    case_tensor(c, ewise_o, type[3], FILL_POISON, r->ndim, shape);
    layout(c, r);
    if (r->flags & IN_PLACE) {
        c->t[ewise_o].alias = ewise_x + 1;
        c->t[ewise_o].lead = 0;
        memcpy(c->t[ewise_o].stride, c->t[ewise_x].stride, sizeof c->t[ewise_x].stride);
    }
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR_X) c->t[ewise_x].far = 1;
    if (r->flags & FAR_O) c->t[ewise_o].far = 1;
    c->params.ewise = (EwiseParams){.kind = (uint32_t)r->kind, .act = (uint32_t)r->act,
                                    .alpha = r->alpha, .beta = r->beta};
    if (r->fill == FILL_EXACT) c->exact = CASE_EXACT;
    c->c = 16;
    return true;
}

// Sums: the sum of absolute terms. Functions: their value, plus their argument where that decides
// (exp turns an absolute error of its argument into a relative one; x sigmoid(x) and the GELUs
// cancel towards -infinity, so their error is relative to x, or to 1).
static double bound(const EwiseParams *p, double x, double y, double z) {
    switch (p->kind) {
    case EW_SCALE: return fabs(p->alpha * x) + fabs((double)p->beta);
    case EW_ACT: return fabs(x) + fabs(act_value(p->act, x)) +
                        (p->act == ACT_SIGMOID || p->act == ACT_TANH ? 1 : 0);
    case EW_ACT_BWD: return fabs(y) * (1 + fabs(act_slope(p->act, x)) + fmin(fabs(x), 10));
    case EW_ADD:
    case EW_SUB: return fabs(x) + fabs(y);
    case EW_MUL: return fabs(x * y);
    case EW_DIV: return fabs(x / y);
    case EW_MULADD: return fabs(x * y) + fabs(z);
    case EW_MODULATE: return fabs(x) * (1 + fabs(y)) + fabs(z);
    case EW_SQUARE: return x * x;
    case EW_EXP: return exp(x) * (1 + fabs(x));
    case EW_SQRT: return sqrt(x);
    default: return fabs(x);
    }
}

static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    (void)o, (void)err;
    for (int64_t i = 0; i < t[output].count; i++) {
        double v[3] = {0};
        for (int k = 0; k < 3; k++)
            if (t[k].present) v[k] = t[k].v[i];
        mag[i] = bound(&c->params.ewise, v[0], v[1], v[2]);
    }
    return true;
}

static const FieldRange ranges[] = {{"kind", EW_COUNT}, {"act", ACT_COUNT}, {"alpha", 4},
                                    {"beta", 4}, {0}};
const OpCases ewise_cases = {.types = names, .type_count = COUNT_OF(names), .count = COUNT_OF(rows),
                             .build = build, .magnitude = magnitude, .ranges = ranges};
