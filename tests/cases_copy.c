// cases_copy.c: any strides on both sides, every pair of float types: casts round once, to even.
#include "tests/conform.h"

enum {
    GAP = 1, LEAD = 2, BASE = 4,
    TURN_X = 8,    // the last two dimensions of x exchanged in memory
    TURN_Y = 16,   // of y
    PATCHIFY = 32, // x walked as [B, C, H/p, p, W/p, p] -> [B, H/p, W/p, C, p, p]
    SKIP_X = 64,   // every other element of x's last dimension
    ROW_X = 128,
    FAR_X = 256, FAR_Y = 512, // rows over 4 GiB apart   // x broadcast over the first dimension
};

typedef struct Row {
    const char *name;
    int ndim, shape[MAX_DIMS], flags;
    Fill fill;
    int types;
} Row;

static const Row rows[] = {
    {"1", 1, {1}, 0, FILL_RANDOM, 0},
    {"rank 0", 0, {0}, 0, FILL_RANDOM, 0},
    {"65", 1, {65}, 0, FILL_RANDOM, 0},
    {"17x63", 2, {17, 63}, GAP, FILL_RANDOM, 0},
    {"64x128", 2, {64, 128}, 0, FILL_RANDOM, 0},
    {"3x5x129", 3, {3, 5, 129}, LEAD | GAP, FILL_RANDOM, 0},
    {"turned x", 2, {33, 65}, TURN_X, FILL_RANDOM, 0},
    {"turned y", 3, {2, 33, 65}, TURN_Y, FILL_RANDOM, 0},
    {"turned both", 3, {2, 31, 17}, TURN_X | TURN_Y, FILL_RANDOM, 0},
    {"turned 64x64", 2, {64, 64}, TURN_X, FILL_RANDOM, 0},
    {"patchify 2", 6, {2, 5, 4, 3, 2, 2}, PATCHIFY, FILL_RANDOM, 0},
    {"patchify 4", 6, {1, 8, 8, 3, 4, 4}, PATCHIFY | LEAD, FILL_RANDOM, 0},
    {"six dimensions", 6, {2, 1, 3, 2, 3, 5}, GAP, FILL_RANDOM, 0},
    {"every other", 2, {9, 33}, SKIP_X, FILL_RANDOM, 0},
    {"broadcast rows", 3, {4, 7, 33}, ROW_X, FILL_RANDOM, 0},
    {"outliers", 2, {65, 33}, 0, FILL_OUTLIERS, 0},
    {"far", 2, {17, 33}, BASE | TURN_X, FILL_RANDOM, 0},
    {"far rows of x", 2, {2, 129}, FAR_X, FILL_RANDOM, 7},
    {"far rows of y", 2, {2, 129}, FAR_Y, FILL_RANDOM, 7},
    {"17 million", 2, {65537, 257}, TURN_X, FILL_EXACT, 1},
};

static const struct { DType x, y; } combos[] = {
    {DT_F32, DT_F32}, {DT_F32, DT_F16}, {DT_F32, DT_BF16}, {DT_F16, DT_F32}, {DT_BF16, DT_F32},
    {DT_F16, DT_F16}, {DT_BF16, DT_BF16}, {DT_F16, DT_BF16}, {DT_BF16, DT_F16}, {DT_I32, DT_I32},
};
static const char *const names[] = {
    "f32", "f32 -> f16", "f32 -> bf16", "f16 -> f32", "bf16 -> f32",
    "f16", "bf16", "f16 -> bf16", "bf16 -> f16", "i32",
};

static void turn(CaseTensor *t) { // contiguous in the other order
    int n = t->ndim;
    t->stride[n - 1] = t->shape[n - 2];
    t->stride[n - 2] = 1;
}

// y [B, H/p, W/p, C, p, p] of a picture x [B, C, H, W].
static void patchify(CaseTensor *x) {
    const int64_t *n = x->shape;
    int64_t H = n[1] * n[4], W = n[2] * n[5];
    const int64_t stride[6] = {n[3] * H * W, n[4] * W, n[5], H * W, W, 1};
    memcpy(x->stride, stride, sizeof stride);
}

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    int64_t shape[MAX_DIMS];
    for (int d = 0; d < r->ndim; d++) shape[d] = r->shape[d];
    bool whole = combos[types].x == DT_I32;
    CaseTensor *x =
        case_tensor(c, copy_x, combos[types].x, whole ? FILL_IDS : r->fill, r->ndim, shape);
    CaseTensor *y = case_tensor(c, copy_y, combos[types].y, FILL_POISON, r->ndim, shape);
    x->amp = 1.5;
    x->range = 1 << 20;
    if (r->flags & GAP) case_gap(x, 3), case_gap(y, 5);
    if (r->flags & LEAD) x->lead = 1, y->lead = 3;
    if (r->flags & TURN_X) turn(x);
    if (r->flags & TURN_Y) turn(y);
    if (r->flags & PATCHIFY) patchify(x);
    if (r->flags & ROW_X) x->stride[0] = 0;
    if (r->flags & SKIP_X)
        for (int d = 0; d < x->ndim; d++) x->stride[d] *= 2;
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR_X) c->t[copy_x].far = 1;
    if (r->flags & FAR_Y) c->t[copy_y].far = 1;
    c->exact = CASE_EXACT;
    return true;
}

const OpCases copy_cases = {.types = names, .type_count = COUNT_OF(names), .count = COUNT_OF(rows),
                            .build = build};
