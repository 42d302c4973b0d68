// cases_attn_bwd.c: the gradient of attn on the shapes its forward cases use; y and lse come from
// the oracle's own forward pass.
#include "tests/cases_attn.h"

enum { FAR_Q = ATTN_FLAGS_END, FAR_DK = ATTN_FLAGS_END << 1 }; // tokens over 4 GiB apart

static const AttnRow rows[] = {
    {"exact one key", 2, 33, 31, 2, 2, 32, ONE | MASK, FILL_EXACT, 2},
    {"exact one key grouped", 1, 65, 40, 4, 2, 16, ONE | MASK_H | GAP, FILL_EXACT, 2},
    {"exact one key fully masked", 2, 20, 70, 2, 1, 64, ONE | MASK_B | FULLY, FILL_EXACT, 2},
    {"exact far queries", 1, 2, 20, 2, 2, 32, ONE | MASK | FAR_Q, FILL_EXACT, 2},
    {"exact far gradient", 1, 20, 2, 2, 2, 32, ONE | MASK | FAR_DK, FILL_EXACT, 2},
    ATTN_ROWS,
    {"random 64x64 packed", 2, 64, 64, 3, 3, 32, PACKED, FILL_RANDOM, 0},
    {"random packed odd", 2, 35, 35, 2, 2, 40, PACKED | LEAD, FILL_RANDOM, 0},
    {"random 129x66", 1, 129, 66, 2, 2, 64, GAP | LEAD, FILL_RANDOM, 0},
    {"random d72", 1, 30, 40, 2, 2, 72, 0, FILL_RANDOM, 0},
    {"random d128", 1, 33, 34, 2, 2, 128, 0, FILL_RANDOM, 0},
    {"random multi-query", 1, 20, 65, 5, 1, 32, SCALE, FILL_RANDOM, 0},
    {"random one query", 2, 1, 130, 2, 2, 64, 0, FILL_RANDOM, 0},
    {"random causal more keys", 1, 33, 70, 2, 2, 32, CAUSAL | SCALE, FILL_RANDOM, 0},
    {"random causal fewer keys", 1, 50, 33, 2, 2, 32, CAUSAL, FILL_RANDOM, 0},
    {"random mask", 2, 34, 67, 3, 3, 40, MASK_B, FILL_RANDOM, 0},
    {"random mask heads", 2, 20, 66, 4, 2, 64, MASK_H | FULLY, FILL_RANDOM, 0},
    {"random mask causal", 1, 40, 40, 2, 2, 32, MASK | CAUSAL, FILL_RANDOM, 0},
};

// q, k, v; y and dy; dq, dk, dv.
static const struct { DType in, out, grad; } combos[] = {
    {DT_F32, DT_F32, DT_F32}, {DT_BF16, DT_BF16, DT_BF16}, {DT_F16, DT_F16, DT_F16},
    {DT_BF16, DT_BF16, DT_F32}, {DT_BF16, DT_F32, DT_F32},
};
static const char *const names[] = {"f32", "bf16", "f16", "bf16 -> f32", "bf16 x f32 -> f32"};

static double mask_value(const Case *c, int operand, int64_t index, uint64_t random) {
    const AttnRow *r = &rows[c->knob];
    MaskPlace p = mask_place(&c->t[operand], index);
    if (fully_masked(r, p)) return -INFINITY;
    if (r->flags & ONE) return p.s == first_key(p) ? 0 : -INFINITY;
    return mask_added(random);
}

static bool build(int index, int types, Case *c) {
    const AttnRow *r = &rows[index];
    if (r->types && types >= r->types) return false;
    snprintf(c->name, sizeof c->name, "%s", r->name);
    c->knob = index;
    bool exact = r->fill == FILL_EXACT;
    DType in = combos[types].in, out = combos[types].out, grad = combos[types].grad;
    const int64_t *query = SHAPE(r->B, r->T, r->H, r->D), *key = SHAPE(r->B, r->S, r->Hk, r->D);
    case_tensor(c, attn_bwd_q, in, exact ? FILL_ZERO : r->fill, 4, query);
    case_tensor(c, attn_bwd_k, in, r->fill, 4, key);
    case_tensor(c, attn_bwd_v, in, r->fill, 4, key);
    attn_mask_tensor(c, attn_bwd_mask, in, r, mask_value);
    case_tensor(c, attn_bwd_y, out, FILL_DERIVED, 4, query);
    case_tensor(c, attn_bwd_lse, DT_F32, FILL_DERIVED, 3, SHAPE(r->B, r->H, r->T));
    case_tensor(c, attn_bwd_dy, out, r->fill, 4, query);
    case_tensor(c, attn_bwd_dq, grad, FILL_POISON, 4, query);
    case_tensor(c, attn_bwd_dk, grad, FILL_POISON, 4, key);
    case_tensor(c, attn_bwd_dv, grad, FILL_POISON, 4, key);
    attn_layout(c, r, attn_bwd_operand_count);
    attn_pack(c, r, attn_bwd_q, attn_bwd_k, attn_bwd_v);
    attn_pack(c, r, attn_bwd_dq, attn_bwd_dk, attn_bwd_dv);
    if (r->flags & FAR_Q) c->t[attn_bwd_dy].far = 2;
    if (r->flags & FAR_DK) c->t[attn_bwd_dv].far = 2;
    c->params.attn_bwd = (AttnBwdParams){.scale = r->flags & SCALE ? 0.37f : 0,
                                         .causal = !!(r->flags & CAUSAL)};
    if (exact) c->exact = CASE_EXACT;
    c->c = 8;
    return true;
}

static bool derive(const Oracle *o, const Case *c, HostTensor *t, Error *err) {
    HostTensor f[MAX_OPERANDS] = {{0}};
    f[attn_q] = t[attn_bwd_q], f[attn_k] = t[attn_bwd_k], f[attn_v] = t[attn_bwd_v];
    f[attn_mask] = t[attn_bwd_mask], f[attn_y] = t[attn_bwd_y], f[attn_lse] = t[attn_bwd_lse];
    OpParams p = {.attn = {.scale = c->params.attn_bwd.scale, .causal = c->params.attn_bwd.causal}};
    return oracle_run(o, OP_ATTN, &p, f, err);
}

static double at4(const HostTensor *t, int64_t a, int64_t b, int64_t c, int64_t d) {
    const int64_t *n = t->shape;
    return t->v[((a * n[1] + b) * n[2] + c) * n[3] + d];
}

// One (query, key) pair's share of the three bounds: every term by its absolute value, times
// 1 + the size of the score, whose own rounding moves exp by that much.
static void pair(const Case *c, const HostTensor *t, int64_t b, int64_t h, int64_t q, int64_t s,
                 int output, double *mag) {
    const HostTensor *Q = &t[attn_bwd_q], *K = &t[attn_bwd_k];
    int64_t D = Q->shape[3], H = Q->shape[2], T = Q->shape[1], S = K->shape[1], Hk = K->shape[2];
    int64_t g = h / (H / Hk);
    double scale = c->params.attn_bwd.scale, dot = 0, size = 0, p, ds = 0;
    if (scale == 0) scale = 1 / sqrt((double)D);
    if (c->params.attn_bwd.causal && s > q + S - T) return;
    for (int64_t d = 0; d < D; d++) {
        double qk = at4(Q, b, q, h, d) * at4(K, b, s, g, d);
        dot += qk;
        size += fabs(qk);
        ds += fabs(at4(&t[attn_bwd_dy], b, q, h, d)) *
              (fabs(at4(&t[attn_bwd_v], b, s, g, d)) + fabs(at4(&t[attn_bwd_y], b, q, h, d)));
    }
    double add = 0;
    const HostTensor *m = &t[attn_bwd_mask];
    if (m->present)
        add = at4(m, m->shape[0] == 1 ? 0 : b, m->shape[1] == 1 ? 0 : h, m->shape[2] == 1 ? 0 : q, s);
    double lse = t[attn_bwd_lse].v[(b * H + h) * T + q];
    if (isinf(add) || isinf(lse)) return;
    p = exp(dot * scale + add - lse) * (2 + size * scale + fabs(add) + fabs(lse));
    for (int64_t d = 0; d < D; d++) {
        int64_t query = ((b * T + q) * H + h) * D + d, key = ((b * S + s) * Hk + g) * D + d;
        if (output == attn_bwd_dq) mag[query] += scale * p * ds * fabs(K->v[key]);
        if (output == attn_bwd_dk) mag[key] += scale * p * ds * fabs(Q->v[query]);
        if (output == attn_bwd_dv) mag[key] += p * fabs(t[attn_bwd_dy].v[query]);
    }
}

static bool magnitude(const Oracle *o, const Case *c, const HostTensor *t, int output, double *mag,
                      Error *err) {
    (void)o, (void)err;
    const int64_t *n = t[attn_bwd_q].shape;
    memset(mag, 0, (size_t)t[output].count * sizeof *mag);
    for (int64_t b = 0; b < n[0]; b++)
        for (int64_t h = 0; h < n[2]; h++)
            for (int64_t q = 0; q < n[1]; q++)
                for (int64_t s = 0; s < t[attn_bwd_k].shape[1]; s++)
                    pair(c, t, b, h, q, s, output, mag);
    return true;
}

const OpCases attn_bwd_cases = {.types = names, .type_count = COUNT_OF(names),
                                .count = COUNT_OF(rows), .build = build, .magnitude = magnitude,
                                .derive = derive};
