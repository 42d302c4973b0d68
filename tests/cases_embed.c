// cases_embed.c: rows gathered by number; numbers outside the table give zeros.
#include "tests/conform.h"

enum { GAP = 1, LEAD = 2, BASE = 4, OUTSIDE = 8, FAR_TABLE = 16, FAR_Y = 32 };

typedef struct Row {
    const char *name;
    int V, D, N, flags, types;
} Row;

static const Row rows[] = {
    {"1x1 1", 1, 1, 1, 0, 0},
    {"11x192 64", 11, 192, 64, 0, 0},
    {"3x7 17", 3, 7, 17, GAP, 0},
    {"130x65 33", 130, 65, 33, LEAD, 0},
    {"outside", 10, 33, 70, OUTSIDE, 0},
    {"outside odd", 7, 5, 129, OUTSIDE | GAP | LEAD, 0},
    {"1000x256 5", 1000, 256, 5, 0, 0},
    {"far", 9, 64, 20, BASE, 0},
    {"far rows of the table", 2, 65, 9, FAR_TABLE, 2},
    {"far rows of y", 9, 65, 2, FAR_Y, 2},
    {"70000 rows", 50, 3, 70000, OUTSIDE, 1},
};

static const struct { DType table, y; } combos[] = {
    {DT_F32, DT_F32}, {DT_BF16, DT_BF16}, {DT_F16, DT_F16}, {DT_F16, DT_F32}, {DT_BF16, DT_F32},
    {DT_F32, DT_BF16},
};
static const char *const names[] = {"f32", "bf16", "f16", "f16 -> f32", "bf16 -> f32",
                                    "f32 -> bf16"};

static double outside(const Case *c, int operand, int64_t index, uint64_t random) {
    (void)operand;
    int64_t V = c->t[embed_table].shape[0];
    switch (index % 7) {
    case 1: return -1;
    case 3: return (double)V;
    case 5: return index % 2 ? 1 << 30 : -(1 << 30);
    default: return (double)(random % (uint64_t)V);
    }
}

static bool build(int index, int types, Case *c) {
    const Row *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    case_tensor(c, embed_table, combos[types].table, FILL_RANDOM, 2, SHAPE(r->V, r->D));
    CaseTensor *ids = case_tensor(c, embed_ids, DT_I32, FILL_IDS, 1, SHAPE(r->N));
    ids->range = r->V;
    if (r->flags & OUTSIDE) ids->value = outside;
    case_tensor(c, embed_y, combos[types].y, FILL_POISON, 2, SHAPE(r->N, r->D));
    for (int i = 0; i < embed_operand_count; i++) {
        if (r->flags & GAP) case_gap(&c->t[i], 3 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR_TABLE) c->t[embed_table].far = 1;
    if (r->flags & FAR_Y) c->t[embed_y].far = 1;
    c->exact = CASE_EXACT; // moved, and rounded at most once
    return true;
}

const OpCases embed_cases = {.types = names, .type_count = COUNT_OF(names), .count = COUNT_OF(rows),
                             .build = build};
