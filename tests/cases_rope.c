// cases_rope.c: both pairings, heads rotated in part, tables for all batches or one each.
#include "tests/conform.h"

#include <math.h>

enum { HALF = 1, TABLES = 2, GAP = 4, LEAD = 8, BASE = 16, FAR = 32, EXACT = 64, PACKED = 128 };

typedef struct Row { const char *name; int B, T, H, D, P, flags, types; } Row;

static const Row rows[] = {
    {"1x1x1x2", 1, 1, 1, 2, 1, 0, 0},
    {"3x5x64", 1, 3, 5, 64, 32, 0, 0},
    {"2 batches 17x3x128", 2, 17, 3, 128, 64, 0, 0},
    {"tables", 3, 7, 2, 16, 8, TABLES, 0},
    {"tables gaps", 2, 7, 2, 40, 20, TABLES | GAP | LEAD, 0},
    {"part of a head", 1, 9, 3, 66, 12, 0, 0},
    {"odd head", 1, 5, 2, 33, 16, LEAD, 0},
    {"exact", 2, 9, 3, 48, 24, EXACT, 0},
    {"exact part", 1, 9, 3, 50, 7, EXACT | GAP, 0},
    {"half 1x1x1x2", 1, 1, 1, 2, 1, HALF, 0},
    {"half 3x5x64", 1, 3, 5, 64, 32, HALF, 0},
    {"half tables", 2, 7, 3, 24, 12, HALF | TABLES, 0},
    {"half part of a head", 1, 9, 3, 66, 12, HALF | GAP, 0},
    {"half odd", 1, 5, 2, 35, 17, HALF | LEAD, 0},
    {"half exact", 2, 6, 3, 96, 48, HALF | EXACT, 0},
    {"of a packed qkv", 2, 9, 4, 32, 16, PACKED, 0},
    {"far", 1, 5, 3, 64, 32, BASE, 0},
    {"far tokens", 1, 2, 3, 64, 32, FAR, 2},
    {"70000 tokens", 1, 70000, 1, 4, 2, 0, 1},
};

static const struct { DType x, y; } combos[] = {
    {DT_F32, DT_F32}, {DT_BF16, DT_BF16}, {DT_F16, DT_F16}, {DT_F32, DT_BF16}, {DT_F32, DT_F16},
    {DT_BF16, DT_F32},
};
static const char *const names[] = {"f32", "bf16", "f16", "f32 -> bf16", "f32 -> f16",
                                    "bf16 -> f32"};

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    Fill fill = r->flags & EXACT ? FILL_EXACT : FILL_RANDOM;
    const int64_t *shape = SHAPE(r->B, r->T, r->H, r->D);
    CaseTensor *x = case_tensor(c, rope_x, combos[types].x, fill, 4, shape);
    case_tensor(c, rope_table, DT_F32, fill, 4, SHAPE(r->flags & TABLES ? r->B : 1, r->T, r->P, 2));
    case_tensor(c, rope_y, combos[types].y, FILL_POISON, 4, shape);
    for (int i = 0; i < rope_operand_count; i++) {
        if (r->flags & GAP) case_gap(&c->t[i], i == rope_table ? 4 : 3 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
    if (r->flags & PACKED) { // the middle of [B, T, 3, H, D]
        x->stride[1] = 3 * r->H * r->D;
        x->stride[0] = r->T * x->stride[1];
        x->lead = r->H * r->D;
    }
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR) c->t[rope_x].far = 2;
    if (r->flags & EXACT) c->exact = CASE_EXACT;
    c->params.rope.half = r->flags & HALF ? 1 : 0;
    return true;
}

static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    (void)o, (void)output, (void)err;
    const int64_t *n = t[rope_x].shape;
    int64_t P = t[rope_table].shape[2];
    for (int64_t i = 0; i < t[rope_x].count; i++) {
        int64_t d = i % n[3], head = i - d, token = i / n[3] / n[2];
        if (t[rope_table].shape[0] == 1) token %= n[1];
        mag[i] = 0; // the rest of a head is copied
        if (d >= 2 * P) continue;
        int64_t pair = c->params.rope.half ? d % P : d / 2;
        int64_t other = c->params.rope.half ? (d + P) % (2 * P) : d ^ 1;
        const double *table = t[rope_table].v + (token * P + pair) * 2;
        mag[i] = fabs(t[rope_x].v[i] * table[0]) + fabs(t[rope_x].v[head + other] * table[1]);
    }
    return true;
}

const OpCases rope_cases = {.types = names, .type_count = COUNT_OF(names), .count = COUNT_OF(rows),
                            .build = build, .magnitude = magnitude};
