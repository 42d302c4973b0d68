// cases_attn.c: lengths that no tile divides, masks (rows and whole tiles fully masked), causal
// with more or fewer keys than queries, grouped heads, q, k and v packed in one tensor.
#include "tests/cases_attn.h"

enum {
    BASE = ATTN_FLAGS_END,
    UNIFORM = ATTN_FLAGS_END << 1, // q = 0: y is the mean of a power of two of values, exactly
    FAR_Q = ATTN_FLAGS_END << 2,   // tokens over 4 GiB apart
    FAR_K = ATTN_FLAGS_END << 3,
    FAR_Y = ATTN_FLAGS_END << 4,
};

static const AttnRow rows[] = {
    {"exact uniform 16 keys", 1, 5, 16, 2, 2, 8, UNIFORM, FILL_EXACT, 0},
    {"exact uniform 64 keys", 2, 64, 64, 3, 3, 32, UNIFORM, FILL_EXACT, 0},
    {"exact uniform masked", 1, 33, 70, 2, 1, 64, UNIFORM | MASK, FILL_EXACT, 0},
    {"exact uniform masked batch", 3, 17, 130, 2, 2, 16, UNIFORM | MASK_B | GAP, FILL_EXACT, 0},
    {"exact uniform masked heads", 2, 9, 65, 4, 2, 40, UNIFORM | MASK_H | LEAD, FILL_EXACT, 0},
    {"exact uniform masked keys", 3, 17, 64, 2, 2, 128, UNIFORM | MASK_S, FILL_EXACT, 0},
    {"exact one key", 2, 65, 63, 3, 3, 64, ONE | MASK, FILL_EXACT, 0},
    {"exact one key far", 1, 7, 300, 2, 2, 32, ONE | MASK_H, FILL_EXACT, 0},
    {"exact one key fully masked", 2, 40, 130, 3, 1, 64, ONE | MASK_B | FULLY, FILL_EXACT, 0},
    {"exact all masked", 1, 17, 33, 2, 2, 16, ONE | FULLY | MASK | SCALE, FILL_EXACT, 0},
    {"exact 1 token", 1, 1, 1, 1, 1, 4, ONE | MASK, FILL_EXACT, 0},
    {"exact far", 1, 20, 16, 2, 2, 32, UNIFORM | BASE, FILL_EXACT, 0},
    {"exact far queries", 1, 2, 16, 2, 2, 32, UNIFORM | FAR_Q, FILL_EXACT, 2},
    {"exact far keys", 1, 9, 2, 2, 2, 32, UNIFORM | FAR_K, FILL_EXACT, 2},
    {"exact far results", 1, 2, 16, 2, 2, 32, UNIFORM | FAR_Y, FILL_EXACT, 2},
    {"exact 66000 heads", 66000, 1, 1, 1, 1, 4, UNIFORM, FILL_EXACT, 1},
    ATTN_ROWS,
    {"random 64x64 d32", 2, 64, 64, 6, 6, 32, PACKED, FILL_RANDOM, 0},
    {"random packed odd", 2, 33, 33, 3, 3, 48, PACKED | LEAD, FILL_RANDOM, 0},
    {"random 129x130", 1, 129, 130, 2, 2, 64, GAP | LEAD, FILL_RANDOM, 0},
    {"random 256x256", 1, 256, 256, 2, 2, 64, 0, FILL_RANDOM, 0},
    {"random d40", 2, 30, 70, 2, 2, 40, 0, FILL_RANDOM, 0},
    {"random d72", 1, 30, 70, 2, 2, 72, 0, FILL_RANDOM, 0},
    {"random d96", 1, 20, 66, 2, 2, 96, GAP, FILL_RANDOM, 0},
    {"random d128", 1, 33, 65, 2, 2, 128, 0, FILL_RANDOM, 0},
    {"random d160", 1, 18, 40, 1, 1, 160, 0, FILL_RANDOM, 0},
    {"random d256", 1, 17, 33, 1, 1, 256, 0, FILL_RANDOM, 0},
    {"random one query", 3, 1, 200, 4, 4, 64, 0, FILL_RANDOM, 0},
    {"random multi-query", 1, 20, 65, 5, 1, 64, SCALE, FILL_RANDOM, 0},
    {"random scale", 1, 33, 65, 2, 2, 32, SCALE, FILL_RANDOM, 0},
    {"random causal more keys", 1, 33, 100, 2, 2, 32, CAUSAL, FILL_RANDOM, 0},
    {"random causal fewer keys", 1, 70, 33, 2, 2, 32, CAUSAL, FILL_RANDOM, 0},
    {"random causal mask", 2, 40, 70, 2, 1, 32, CAUSAL | MASK | ADDED, FILL_RANDOM, 0},
    {"random mask added", 2, 34, 67, 3, 3, 40, MASK_B | ADDED | GAP, FILL_RANDOM, 0},
    {"random mask heads", 2, 20, 130, 3, 3, 64, MASK_H | ADDED | FULLY, FILL_RANDOM, 0},
    {"outliers 33x65", 1, 33, 65, 2, 2, 64, 0, FILL_OUTLIERS, 0},
    {"outliers causal", 1, 65, 70, 2, 2, 32, CAUSAL | SCALE, FILL_OUTLIERS, 0},
};

static const struct { DType q, kv, mask, y; } combos[] = {
    {DT_F32, DT_F32, DT_F32, DT_F32},    {DT_BF16, DT_BF16, DT_BF16, DT_BF16},
    {DT_F16, DT_F16, DT_F16, DT_F16},    {DT_F32, DT_F16, DT_F32, DT_F32},
    {DT_BF16, DT_BF16, DT_F32, DT_F32},
};
static const char *const names[] = {"f32", "bf16", "f16", "f32 x f16", "bf16 -> f32"};

// -inf where query t may not see key s. How many it sees is a power of two (one for ONE).
static double mask_value(const Case *c, int operand, int64_t index, uint64_t random) {
    const AttnRow *r = &rows[c->knob];
    MaskPlace p = mask_place(&c->t[operand], index);
    bool all = r->flags & FULLY && !strcmp(r->name, "exact all masked");
    if (all || fully_masked(r, p)) return -INFINITY;
    if (r->flags & ADDED) return mask_added(random);
    int64_t count = 1;
    if (r->flags & UNIFORM)
        for (int64_t k = (p.t + p.plane) % 8; k > 0 && count * 2 <= p.keys; k--) count *= 2;
    return (p.s - first_key(p) + p.keys) % p.keys < count ? 0 : -INFINITY;
}

static bool build(int index, int types, Case *c) {
    const AttnRow *r = &rows[index];
    if (r->types && types >= r->types) return false;
    if (r->flags & PACKED && combos[types].q != combos[types].kv) return false;
    if (r->fill == FILL_OUTLIERS && combos[types].y == DT_F16) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    c->knob = index;
    bool exact = r->fill == FILL_EXACT;
    Fill qk = r->flags & UNIFORM ? FILL_ZERO : r->fill;
    case_tensor(c, attn_q, combos[types].q, qk, 4, SHAPE(r->B, r->T, r->H, r->D));
    case_tensor(c, attn_k, combos[types].kv, r->fill, 4, SHAPE(r->B, r->S, r->Hk, r->D));
    case_tensor(c, attn_v, combos[types].kv, r->fill, 4, SHAPE(r->B, r->S, r->Hk, r->D));
    if (!exact) c->t[attn_q].amp = c->t[attn_k].amp = 2;
    attn_mask_tensor(c, attn_mask, combos[types].mask, r, mask_value);
    case_tensor(c, attn_y, combos[types].y, FILL_POISON, 4, SHAPE(r->B, r->T, r->H, r->D));
    case_tensor(c, attn_lse, DT_F32, FILL_POISON, 3, SHAPE(r->B, r->H, r->T));
    attn_layout(c, r, attn_operand_count);
    attn_pack(c, r, attn_q, attn_k, attn_v);
    if (r->flags & BASE) c->base = (uint64_t)5 << 30;
    if (r->flags & FAR_Q) c->t[attn_q].far = 2;
    if (r->flags & FAR_K) c->t[attn_v].far = 2;
    if (r->flags & FAR_Y) c->t[attn_y].far = 2;
    c->params.attn = (AttnParams){.scale = r->flags & SCALE ? 0.37f : 0,
                                  .causal = !!(r->flags & CAUSAL)};
    if (exact) c->exact = 1u << attn_y;
    c->c = 8; // exp and log each add roundings of their own
    return true;
}

static double largest(const HostTensor *t) {
    double m = 0;
    for (int64_t i = 0; i < t->count; i++)
        if (isfinite(t->v[i])) m = fmax(m, fabs(t->v[i]));
    return m;
}

// Scores carry an error of u times the sum of |q k|, bounded by its largest value; it moves every
// weight by that relative amount. So y: (1 + score) sum p |v|; lse: 1 + |lse| + score.
static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    int64_t D = t[attn_q].shape[3], rows_q = t[attn_q].count / D, rows_k = t[attn_k].count / D;
    double scale = c->params.attn.scale != 0 ? c->params.attn.scale : 1 / sqrt((double)D);
    double q1 = 0, kmax = largest(&t[attn_k]);
    for (int64_t i = 0; i < rows_q; i++) {
        double sum = 0;
        for (int64_t d = 0; d < D; d++) sum += fabs(t[attn_q].v[i * D + d]);
        q1 = fmax(q1, sum);
    }
    double score = scale * q1 * kmax, other = 0;
    for (int64_t i = 0; i < rows_k; i++) { // the tighter of the two products
        double sum = 0;
        for (int64_t d = 0; d < D; d++) sum += fabs(t[attn_k].v[i * D + d]);
        other = fmax(other, sum);
    }
    score = fmin(score, scale * other * largest(&t[attn_q]));
    if (t[attn_mask].present) score += largest(&t[attn_mask]);
    const HostTensor *out = &t[output];
    if (output == attn_lse) {
        for (int64_t i = 0; i < out->count; i++)
            mag[i] = isfinite(out->v[i]) ? 1 + fabs(out->v[i]) + score : 1;
        return true;
    }
    void *mem = mem_new(NULL, 1);
    HostTensor a[MAX_OPERANDS] = {{0}};
    for (int i = 0; i < attn_operand_count; i++)
        a[i] = i == attn_v || i == attn_y || i == attn_lse ? host_abs(mem, &t[i]) : t[i];
    bool ok = oracle_run(o, OP_ATTN, &c->params, a, err);
    // Where all is bf16, rows may round the probabilities to it too (4 * 2^13 * 2^-24 = 2^-9).
    bool rounded = t[attn_v].dtype == DT_BF16 && out->dtype == DT_BF16;
    score += rounded ? 0x1p13 : 0;
    for (int64_t i = 0; i < out->count; i++) mag[i] = (1 + score) * a[attn_y].v[i];
    mem_free(mem);
    return ok;
}

const OpCases attn_cases = {.types = names, .type_count = COUNT_OF(names), .count = COUNT_OF(rows),
                            .build = build, .magnitude = magnitude};
