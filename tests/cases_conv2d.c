// cases_conv2d.c: every parameter alone and all together; borders, kernels wider than x, channel
// counts around every tile, groups down to depthwise, the enlarged input.
#include "tests/conform.h"

#include <math.h>

enum { BIAS = 1, RESIDUAL = 2, GAP = 4, LEAD = 8, BASE = 16, FAR_X = 32, FAR_Y = 64, EXACT = 128 };

typedef struct Row {
    const char *name;
    int B, H, W, C, O, R, S;
    Conv2dParams p; // stride, dilation, groups, upsample, top, bottom, left, right, act
    int flags, types;
} Row;

#define SAME {0, 0, 0, 0, 1, 1, 1, 1, 0}
static const Row rows[] = {
    {"1x1", 1, 1, 1, 1, 1, 1, 1, {0}, 0, 0},
    {"1x1 5x7", 2, 5, 7, 3, 17, 1, 1, {0}, BIAS, 0},
    {"1x1 wide", 1, 9, 8, 72, 130, 1, 1, {0}, GAP, 0},
    {"3x3", 1, 7, 9, 16, 24, 3, 3, SAME, BIAS, 0},
    {"3x3 exact", 2, 11, 13, 20, 36, 3, 3, SAME, EXACT, 0},
    {"3x3 odd channels", 1, 6, 5, 5, 3, 3, 3, SAME, BIAS | GAP, 0},
    {"3x3 one row", 1, 1, 33, 8, 16, 3, 3, SAME, 0, 0},
    {"3x3 one column", 1, 33, 1, 8, 16, 3, 3, SAME, 0, 0},
    {"3x3 no padding", 1, 9, 10, 8, 8, 3, 3, {0}, 0, 0},
    {"3x3 128 channels", 1, 17, 18, 128, 128, 3, 3, SAME, BIAS, 0},
    {"3x3 3 of 128", 1, 10, 19, 128, 3, 3, 3, SAME, BIAS | EXACT, 0},
    {"3x3 160 of 16", 1, 12, 12, 16, 160, 3, 3, SAME, BIAS, 0},
    {"3x3 two rows", 1, 2, 300, 33, 40, 3, 3, SAME, BIAS, 0},
    {"3x3 33x35", 1, 33, 35, 12, 68, 3, 3, SAME, BIAS | EXACT, 2},
    {"stride 2", 1, 9, 10, 8, 12, 3, 3, {2, 0, 0, 0, 1, 1, 1, 1, 0}, BIAS, 0},
    {"stride 2 padded after", 1, 8, 12, 16, 16, 3, 3, {2, 0, 0, 0, 0, 1, 0, 1, 0}, BIAS, 0},
    {"stride 3 exact", 1, 14, 13, 6, 9, 2, 2, {3, 0, 0, 0, 0, 0, 0, 0, 0}, EXACT, 0},
    {"patches 2x2", 2, 8, 10, 16, 48, 2, 2, {2, 0, 0, 0, 0, 0, 0, 0, 0}, BIAS, 0},
    {"dilation 2", 1, 11, 12, 8, 8, 3, 3, {0, 2, 0, 0, 2, 2, 2, 2, 0}, BIAS, 0},
    {"dilation 3 stride 2", 1, 13, 14, 5, 6, 3, 2, {2, 3, 0, 0, 3, 0, 1, 2, 0}, EXACT, 0},
    {"padding of each side", 1, 6, 7, 8, 8, 3, 3, {0, 0, 0, 0, 3, 1, 0, 2, 0}, EXACT, 0},
    {"padding wider than x", 1, 2, 2, 4, 8, 3, 3, {0, 0, 0, 0, 4, 5, 3, 4, 0}, BIAS, 0},
    {"kernel wider than x", 1, 2, 3, 8, 8, 5, 7, {0, 0, 0, 0, 2, 2, 3, 3, 0}, 0, 0},
    {"5x3", 2, 8, 9, 12, 16, 5, 3, {0, 0, 0, 0, 2, 2, 1, 1, 0}, BIAS | LEAD, 0},
    {"upsample 2", 1, 5, 6, 8, 8, 3, 3, {0, 0, 0, 2, 1, 1, 1, 1, 0}, BIAS, 0},
    {"upsample 2 exact", 2, 5, 4, 16, 20, 3, 3, {0, 0, 0, 2, 1, 1, 1, 1, 0}, EXACT | GAP, 0},
    {"upsample 2 stride 2", 1, 7, 6, 6, 8, 3, 3, {2, 0, 0, 2, 1, 0, 0, 1, 0}, EXACT, 0},
    {"upsample 1", 1, 5, 6, 8, 8, 3, 3, {1, 1, 1, 1, 1, 1, 1, 1, 0}, 0, 0},
    {"groups 2", 1, 7, 8, 16, 24, 3, 3, {0, 0, 2, 0, 1, 1, 1, 1, 0}, BIAS, 0},
    {"groups 4 exact", 1, 6, 7, 20, 12, 3, 3, {0, 0, 4, 0, 1, 1, 1, 1, 0}, EXACT, 0},
    {"depthwise", 1, 9, 11, 37, 37, 3, 3, {0, 0, 37, 0, 1, 1, 1, 1, 0}, BIAS, 0},
    {"depthwise 5x5 stride 2", 1, 9, 11, 32, 32, 5, 5, {2, 0, 32, 0, 2, 2, 2, 2, 0}, BIAS | EXACT, 0},
    {"depthwise multiplied", 1, 5, 6, 8, 16, 3, 3, {0, 0, 8, 0, 1, 1, 1, 1, 0}, 0, 0},
    {"residual", 2, 7, 6, 16, 16, 3, 3, SAME, BIAS | RESIDUAL, 0},
    {"residual gaps", 1, 7, 6, 16, 10, 3, 3, SAME, RESIDUAL | GAP | LEAD, 0},
    {"silu", 1, 6, 7, 8, 8, 3, 3, {0, 0, 0, 0, 1, 1, 1, 1, ACT_SILU}, BIAS, 0},
    {"gelu residual", 1, 6, 7, 8, 8, 3, 3, {0, 0, 0, 0, 1, 1, 1, 1, ACT_GELU}, BIAS | RESIDUAL, 0},
    {"gelu_erf", 1, 6, 7, 8, 8, 1, 1, {.act = ACT_GELU_ERF}, 0, 0},
    {"quick_gelu", 1, 6, 7, 8, 8, 1, 1, {.act = ACT_QUICK_GELU}, 0, 0},
    {"relu", 1, 6, 7, 16, 24, 3, 3, {0, 0, 0, 0, 1, 1, 1, 1, ACT_RELU}, BIAS | EXACT, 0},
    {"tanh", 1, 6, 7, 8, 8, 1, 1, {.act = ACT_TANH}, BIAS, 0},
    {"sigmoid", 1, 6, 7, 8, 8, 1, 1, {.act = ACT_SIGMOID}, BIAS, 0},
    {"all", 2, 9, 8, 24, 16, 3, 2, {2, 2, 4, 2, 2, 1, 0, 1, ACT_SILU},
     BIAS | RESIDUAL | GAP | LEAD, 0},
    {"large picture", 1, 65, 70, 12, 20, 3, 3, SAME, BIAS, 2},
    {"many taps", 1, 6, 40, 520, 68, 3, 3, SAME, 0, 2},
    {"far", 1, 5, 6, 16, 16, 3, 3, SAME, BIAS | BASE, 0},
    {"far pictures of x", 2, 5, 6, 16, 16, 3, 3, SAME, FAR_X, 2},
    {"far pictures of y", 2, 5, 6, 16, 16, 3, 3, SAME, FAR_Y, 2},
    {"70000 rows", 1, 70000, 1, 1, 2, 3, 1, {0, 0, 0, 0, 1, 1, 0, 0, 0}, 0, 1},
};

// x and w; bias; residual and y.
static const struct { DType x, bias, y; } combos[] = {
    {DT_F32, DT_F32, DT_F32},   {DT_BF16, DT_F32, DT_F32},  {DT_F16, DT_F16, DT_F16},
    {DT_BF16, DT_F32, DT_BF16}, {DT_F16, DT_F32, DT_F32},   {DT_F32, DT_F32, DT_BF16},
};
static const char *const names[] = {"f32", "bf16 -> f32", "f16", "bf16", "f16 -> f32",
                                    "f32 -> bf16"};

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    c->params.conv2d = r->p;
    Fill fill = r->flags & EXACT ? FILL_EXACT : FILL_RANDOM;
    DType x = combos[types].x, y = combos[types].y;
    int64_t groups = r->p.groups ? r->p.groups : 1;
    const int64_t *out =
        SHAPE(r->B, conv2d_size(r->H, r->R, &r->p, r->p.pad_top, r->p.pad_bottom),
              conv2d_size(r->W, r->S, &r->p, r->p.pad_left, r->p.pad_right), r->O);
    case_tensor(c, conv2d_x, x, fill, 4, SHAPE(r->B, r->H, r->W, r->C));
    case_tensor(c, conv2d_w, x, fill, 4, SHAPE(r->O, r->R, r->S, r->C / groups));
    if (r->flags & BIAS)
        case_tensor(c, conv2d_bias, combos[types].bias, fill, 4, SHAPE(1, 1, 1, r->O));
    if (r->flags & RESIDUAL) case_tensor(c, conv2d_residual, y, fill, 4, out);
    case_tensor(c, conv2d_y, y, FILL_POISON, 4, out);
    for (int i = 0; i < conv2d_operand_count; i++) {
        if (!c->t[i].present) continue;
        if (r->flags & GAP) case_gap(&c->t[i], 3 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR_X) c->t[conv2d_x].far = 1;
    if (r->flags & FAR_Y) c->t[conv2d_y].far = 1;
    if (r->flags & EXACT) c->exact = CASE_EXACT;
    c->c = r->p.act ? 16 : 8; // sums of up to 4,680 products, one after the other
    return true;
}

// The same sum over absolute values, before activation.
static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    HostTensor a[MAX_OPERANDS] = {{0}};
    void *parent = mem_new(NULL, 1);
    for (int i = 0; i < conv2d_operand_count; i++)
        if (t[i].present) a[i] = host_abs(parent, &t[i]);
    OpParams p = c->params;
    p.conv2d.act = ACT_NONE;
    bool ok = oracle_run(o, OP_CONV2D, &p, a, err);
    for (int64_t i = 0; ok && i < a[output].count; i++)
        mag[i] = a[output].v[i] + (c->params.conv2d.act ? 1 : 0);
    mem_free(parent);
    return ok;
}

static const FieldRange ranges[] = {{"act", ACT_COUNT}, {"stride", 4},  {"dilation", 3},
                                    {"groups", 5},      {"upsample", 3}, {0}};
const OpCases conv2d_cases = {.types = names, .type_count = COUNT_OF(names),
                              .count = COUNT_OF(rows), .build = build, .magnitude = magnitude,
                              .ranges = ranges};
