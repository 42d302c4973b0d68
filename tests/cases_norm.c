// cases_norm.c: all kinds, each operand alone and all together, channel counts around every
// vector and subgroup width, and rows whose mean is large beside their spread.
#include "tests/conform.h"

#include <math.h>

enum {
    WEIGHT = 1, BIAS = 2, SCALE = 4, SHIFT = 8,
    PER_BATCH = 16, // scale and shift [B, 1, C]
    PER_ROW = 32,   // [B, M, C]; neither: [1, 1, C]
    PER_TOKEN = 64, // [1, M, C]
    RSTD = 128, GAP = 256, LEAD = 512, BASE = 1024,
    FLAT = 2048, // rows without any variance
    FAR_X = 4096, FAR_Y = 8192, // rows over 4 GiB apart
    ADALN = SCALE | SHIFT | PER_BATCH,
};

typedef struct Row {
    const char *name;
    int B, M, C, kind, act, flags;
    double mean, spread; // of x
    Fill fill;
    int types;
    unsigned groups;
} Row;

static const Row rows[] = {
    {"layer 1x1x1", 1, 1, 1, NORM_LAYER, 0, 0, 0, 1, FILL_RANDOM, 0, 0},
    {"layer 1x1x7", 1, 1, 7, NORM_LAYER, 0, RSTD, 0, 1, FILL_RANDOM, 0, 0},
    {"layer 3x5x17", 3, 5, 17, NORM_LAYER, 0, RSTD | GAP, 0, 1, FILL_RANDOM, 0, 0},
    {"layer 2x33x63", 2, 33, 63, NORM_LAYER, 0, RSTD, 0, 1, FILL_RANDOM, 0, 0},
    {"layer 2x9x64", 2, 9, 64, NORM_LAYER, 0, 0, 0, 1, FILL_RANDOM, 0, 0},
    {"layer 2x64x192", 2, 64, 192, NORM_LAYER, 0, RSTD, 0, 1, FILL_RANDOM, 0, 0},
    {"layer 1x5x129", 1, 5, 129, NORM_LAYER, 0, LEAD, 0, 1, FILL_RANDOM, 0, 0},
    {"layer 1x3x1030", 1, 3, 1030, NORM_LAYER, 0, RSTD, 0, 1, FILL_RANDOM, 0, 0},
    {"layer 1x2x3072", 1, 2, 3072, NORM_LAYER, 0, 0, 0, 1, FILL_RANDOM, 0, 0},
    {"layer weight", 2, 7, 65, NORM_LAYER, 0, WEIGHT, 0, 1, FILL_RANDOM, 0, 0},
    {"layer bias", 2, 7, 66, NORM_LAYER, 0, BIAS, 0, 1, FILL_RANDOM, 0, 0},
    {"layer weight bias", 1, 17, 100, NORM_LAYER, 0, WEIGHT | BIAS | RSTD, 0, 1, FILL_RANDOM, 0, 0},
    {"layer adaLN", 3, 17, 192, NORM_LAYER, 0, ADALN | RSTD, 0, 1, FILL_RANDOM, 0, 0},
    {"layer adaLN odd", 3, 9, 67, NORM_LAYER, 0, ADALN | GAP | LEAD, 0, 1, FILL_RANDOM, 0, 0},
    {"layer scale only", 2, 9, 40, NORM_LAYER, 0, SCALE | PER_ROW, 0, 1, FILL_RANDOM, 0, 0},
    {"layer shift only", 2, 9, 40, NORM_LAYER, 0, SHIFT | PER_TOKEN, 0, 1, FILL_RANDOM, 0, 0},
    {"layer scale row", 2, 9, 40, NORM_LAYER, 0, SCALE | SHIFT, 0, 1, FILL_RANDOM, 0, 0},
    {"layer all", 2, 11, 72, NORM_LAYER, ACT_SILU, WEIGHT | BIAS | ADALN | RSTD | GAP, 0, 1,
     FILL_RANDOM, 0, 0},
    {"layer silu", 1, 5, 33, NORM_LAYER, ACT_SILU, 0, 0, 1, FILL_RANDOM, 0, 0},
    {"layer gelu", 1, 5, 33, NORM_LAYER, ACT_GELU, WEIGHT, 0, 1, FILL_RANDOM, 0, 0},
    {"layer gelu_erf", 1, 5, 33, NORM_LAYER, ACT_GELU_ERF, WEIGHT, 0, 1, FILL_RANDOM, 0, 0},
    {"layer quick_gelu", 1, 5, 33, NORM_LAYER, ACT_QUICK_GELU, BIAS, 0, 1, FILL_RANDOM, 0, 0},
    {"layer relu", 1, 5, 33, NORM_LAYER, ACT_RELU, BIAS, 0, 1, FILL_RANDOM, 0, 0},
    {"layer tanh", 1, 5, 33, NORM_LAYER, ACT_TANH, 0, 0, 1, FILL_RANDOM, 0, 0},
    {"layer sigmoid", 1, 5, 33, NORM_LAYER, ACT_SIGMOID, 0, 0, 1, FILL_RANDOM, 0, 0},
    {"layer large mean", 2, 9, 192, NORM_LAYER, 0, RSTD, 1000, 0.1, FILL_RANDOM, 0, 0},
    {"layer large mean odd", 1, 5, 131, NORM_LAYER, 0, WEIGHT | RSTD, -300, 0.5, FILL_RANDOM, 0, 0},
    {"layer tiny spread", 1, 5, 96, NORM_LAYER, 0, RSTD, 0, 1e-3, FILL_RANDOM, 0, 0},
    {"layer flat rows", 2, 5, 64, NORM_LAYER, 0, RSTD | FLAT, 4, 0, FILL_RANDOM, 0, 0},
    {"layer outliers", 2, 9, 200, NORM_LAYER, 0, RSTD | ADALN, 0, 1, FILL_OUTLIERS, 0, 0},
    {"layer far", 1, 5, 64, NORM_LAYER, 0, WEIGHT | BASE, 0, 1, FILL_RANDOM, 0, 0},
    {"layer far rows of x", 1, 2, 72, NORM_LAYER, 0, RSTD | FAR_X, 0, 1, FILL_RANDOM, 2, 0},
    {"layer far rows of y", 1, 2, 72, NORM_LAYER, 0, FAR_Y, 0, 1, FILL_RANDOM, 2, 0},
    {"layer 70000 rows", 1, 70000, 5, NORM_LAYER, 0, 0, 0, 1, FILL_RANDOM, 1, 0},
    {"rms 1x3x7", 1, 3, 7, NORM_RMS, 0, RSTD, 0, 1, FILL_RANDOM, 0, 0},
    {"rms 2x17x65", 2, 17, 65, NORM_RMS, 0, WEIGHT | GAP, 0, 1, FILL_RANDOM, 0, 0},
    {"rms 1x33x256", 1, 33, 256, NORM_RMS, 0, WEIGHT | RSTD, 0.5, 1, FILL_RANDOM, 0, 0},
    {"rms 1x4x1100", 1, 4, 1100, NORM_RMS, 0, LEAD, 0, 1, FILL_RANDOM, 0, 0},
    {"rms all", 2, 9, 72, NORM_RMS, ACT_GELU, WEIGHT | BIAS | ADALN | RSTD, 0, 1, FILL_RANDOM, 0, 0},
    {"rms outliers", 2, 5, 130, NORM_RMS, 0, WEIGHT, 0, 1, FILL_OUTLIERS, 0, 0},
    {"rms tiny", 1, 5, 64, NORM_RMS, 0, RSTD, 0, 1e-3, FILL_RANDOM, 0, 0},
    {"rms heads 1x300x128", 1, 300, 128, NORM_RMS, 0, WEIGHT, 0, 1, FILL_RANDOM, 0, 0},
    {"group 1x1x1", 1, 1, 1, NORM_GROUP, 0, 0, 0, 1, FILL_RANDOM, 0, 0},
    {"group of all", 2, 9, 40, NORM_GROUP, 0, WEIGHT, 0, 1, FILL_RANDOM, 0, 1},
    {"group 32 of 128", 2, 35, 128, NORM_GROUP, 0, WEIGHT | BIAS, 0, 1, FILL_RANDOM, 0, 32},
    {"group 32 of 64 silu", 1, 130, 64, NORM_GROUP, ACT_SILU, WEIGHT | BIAS, 0, 1, FILL_RANDOM, 0,
     32},
    {"group 32 of 512", 1, 17, 512, NORM_GROUP, ACT_SILU, WEIGHT | BIAS | GAP, 0, 1, FILL_RANDOM, 0,
     32},
    {"group 3 of 21", 3, 11, 21, NORM_GROUP, 0, BIAS | LEAD, 0, 1, FILL_RANDOM, 0, 3},
    {"group of each channel", 2, 33, 24, NORM_GROUP, 0, 0, 0, 1, FILL_RANDOM, 0, 24},
    {"group gelu gaps", 2, 19, 72, NORM_GROUP, ACT_GELU, WEIGHT | BIAS | GAP | LEAD, 0, 1,
     FILL_RANDOM, 0, 8},
    {"group scale shift", 2, 9, 48, NORM_GROUP, ACT_SILU, WEIGHT | BIAS | ADALN, 0, 1, FILL_RANDOM,
     0, 4},
    {"group scale row", 2, 9, 48, NORM_GROUP, 0, SCALE | PER_ROW, 0, 1, FILL_RANDOM, 0, 16},
    {"group shift", 2, 9, 30, NORM_GROUP, 0, SHIFT | PER_TOKEN, 0, 1, FILL_RANDOM, 0, 5},
    {"group large mean", 1, 200, 64, NORM_GROUP, 0, WEIGHT, 1000, 0.1, FILL_RANDOM, 0, 32},
    {"group outliers", 1, 300, 32, NORM_GROUP, 0, WEIGHT | BIAS, 0, 1, FILL_OUTLIERS, 0, 8},
    {"group 5000 rows", 1, 5000, 33, NORM_GROUP, 0, 0, 0.5, 1, FILL_RANDOM, 2, 11},
    {"group 1027 rows", 2, 1027, 34, NORM_GROUP, ACT_SILU, WEIGHT | BIAS | GAP, 0.5, 1, FILL_RANDOM, 0,
     17},
    {"group 1100 rows large mean", 1, 1100, 64, NORM_GROUP, 0, 0, 300, 0.5, FILL_RANDOM, 2, 32},
    {"group far", 1, 5, 64, NORM_GROUP, 0, WEIGHT | BASE, 0, 1, FILL_RANDOM, 0, 4},
    {"group far rows of x", 1, 2, 72, NORM_GROUP, 0, FAR_X, 0, 1, FILL_RANDOM, 2, 6},
};

// x; weight and bias; scale and shift; y.
static const struct { DType x, w, s, y; } combos[] = {
    {DT_F32, DT_F32, DT_F32, DT_F32},   {DT_BF16, DT_BF16, DT_BF16, DT_BF16},
    {DT_F16, DT_F16, DT_F16, DT_F16},   {DT_F32, DT_F32, DT_F32, DT_BF16},
    {DT_F32, DT_F32, DT_F32, DT_F16},   {DT_F32, DT_F16, DT_F32, DT_F32},
    {DT_BF16, DT_F32, DT_F32, DT_BF16}, {DT_F32, DT_BF16, DT_BF16, DT_BF16},
};
static const char *const names[] = {
    "f32", "bf16", "f16", "f32 -> bf16", "f32 -> f16", "f32 x f16", "bf16 x f32", "f32 x bf16",
};

static double flat_value(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)random;
    return (double)(index / c->t[operand].shape[2] % 3) * 0.5 + rows[c->knob].mean;
}

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    c->knob = index;
    CaseTensor *x = case_tensor(c, norm_x, combos[types].x, r->fill, 3, SHAPE(r->B, r->M, r->C));
    x->shift = r->mean;
    x->amp = r->spread;
    if (r->flags & FLAT) x->value = flat_value;
    int64_t b = r->flags & (PER_BATCH | PER_ROW) ? r->B : 1;
    int64_t m = r->flags & (PER_ROW | PER_TOKEN) ? r->M : 1;
    const int64_t *channels = SHAPE(1, 1, r->C), *rows_of = SHAPE(b, m, r->C);
    if (r->flags & WEIGHT) case_tensor(c, norm_weight, combos[types].w, FILL_RANDOM, 3, channels);
    if (r->flags & BIAS) case_tensor(c, norm_bias, combos[types].w, FILL_RANDOM, 3, channels);
    if (r->flags & SCALE) case_tensor(c, norm_scale, combos[types].s, FILL_RANDOM, 3, rows_of);
    if (r->flags & SHIFT) case_tensor(c, norm_shift, combos[types].s, FILL_RANDOM, 3, rows_of);
    case_tensor(c, norm_y, combos[types].y, FILL_POISON, 3, SHAPE(r->B, r->M, r->C));
    if (r->flags & RSTD) case_tensor(c, norm_rstd, DT_F32, FILL_POISON, 3, SHAPE(r->B, r->M, 1));
    for (int i = 0; i < norm_operand_count; i++) {
        if (!c->t[i].present) continue;
        if (r->flags & GAP) case_gap(&c->t[i], 3 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR_X) c->t[norm_x].far = 2;
    if (r->flags & FAR_Y) c->t[norm_y].far = 2;
    c->params.norm = (NormParams){.kind = (uint32_t)r->kind, .act = (uint32_t)r->act,
                                  .groups = r->groups,
                                  .eps = index % 3 == 1 ? 1e-5f : 1e-6f};
    c->c = r->act ? 16 : 8;
    return true;
}

// mean, size and 1 / deviation of the elements that share the statistics of element `at`.
typedef struct Area { double mean, size, r; } Area;
static Area area_of(const Case *c, const HostTensor *x, int64_t at) {
    const NormParams *p = &c->params.norm;
    int64_t M = x->shape[1], C = x->shape[2], width = C / (p->groups ? p->groups : 1);
    bool grouped = p->kind == NORM_GROUP;
    int64_t rows_of = grouped ? M : 1, row = at / C / rows_of * rows_of, first = at % C / width * width;
    double count = (double)(rows_of * width), var = 0;
    Area a = {0};
    for (int64_t k = 0; k < rows_of * width; k++) {
        double v = x->v[(row + k / width) * C + first + k % width];
        a.mean += v / count, a.size += fabs(v) / count;
    }
    if (p->kind == NORM_RMS) a.mean = a.size = 0;
    for (int64_t k = 0; k < rows_of * width; k++) {
        double d = x->v[(row + k / width) * C + first + k % width] - a.mean;
        var += d * d / count;
    }
    a.r = 1 / sqrt(var + (double)p->eps);
    return a;
}

// With r = rstd and n = (x - mean) r: the rounding of the mean is relative to the mean of |x|, and
// reaches r only squared. Then weight, bias, scale, shift as absolute values.
static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    (void)o, (void)err;
    const HostTensor *x = &t[norm_x], *s = &t[norm_scale];
    int64_t M = x->shape[1], C = x->shape[2];
    const NormParams *p = &c->params.norm;
    int64_t width = C / (p->groups ? p->groups : 1), areas = C / width;
    Area *area = MEM_ARRAY(NULL, Area, x->count / width);
    for (int64_t k = 0; k < x->count / width; k++) { // a group's rows share theirs
        bool first = p->kind != NORM_GROUP || k / areas % M == 0;
        area[k] = first ? area_of(c, x, k * width) : area[k - areas];
    }
    for (int64_t i = 0; i < t[output].count; i++) {
        int64_t at = output == norm_rstd ? i * C : i, row = at / C, channel = at % C;
        Area a = area[at / width];
        double moved = a.size * a.r * a.size * a.r * 0x1p-20; // of the mean's error, squared
        if (output == norm_rstd) {
            mag[i] = a.r * (4 + moved);
            continue;
        }
        double m = (fabs(x->v[at]) + a.size) * a.r * (1 + moved);
        int64_t from = 0;
        if (s->present || t[norm_shift].present) {
            const int64_t *k = s->present ? s->shape : t[norm_shift].shape;
            from = ((k[0] == 1 ? 0 : row / M) * k[1] + (k[1] == 1 ? 0 : row % M)) * C + channel;
        }
        if (t[norm_weight].present) m *= fabs(t[norm_weight].v[channel]);
        if (t[norm_bias].present) m += fabs(t[norm_bias].v[channel]);
        if (s->present) m *= 1 + fabs(s->v[from]);
        if (t[norm_shift].present) m += fabs(t[norm_shift].v[from]);
        mag[i] = m + (p->act ? 1 : 0);
    }
    mem_free(area);
    return true;
}

static const FieldRange ranges[] = {{"act", ACT_COUNT}, {"kind", 3}, {"groups", 6}, {0}};
const OpCases norm_cases = {.types = names, .type_count = COUNT_OF(names), .count = COUNT_OF(rows),
                            .build = build, .magnitude = magnitude, .ranges = ranges};
