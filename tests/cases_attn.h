// cases_attn.h: what the cases of attn and of its gradient share: the flags of a row, the shapes
// that both run, and how flags become layouts and masks.
#ifndef KILN_TESTS_CASES_ATTN_H
#define KILN_TESTS_CASES_ATTN_H

#include "tests/conform.h"

#include <math.h>

enum {
    MASK = 1,      // [1, 1, T, S]
    MASK_B = 2,    // [B, 1, T, S]
    MASK_H = 4,    // [1, H, T, S]
    CAUSAL = 8,
    PACKED = 16,   // q, k, v interleaved in one [B, T, 3, H, D]; dq, dk, dv in another
    GAP = 32,
    LEAD = 64,
    SCALE = 128,   // scale given, not 1 / sqrt(D)
    ONE = 256,     // each query sees one key: y is that value, dv a sum of dy, exactly
    FULLY = 512,   // some queries see no key
    ADDED = 1024,  // finite values in the mask
    MASK_S = 2048, // [B, 1, 1, S]: the same keys for all queries, as text encoders pad
    ATTN_FLAGS_END = 4096, // further flags of one file start here
    ANY_MASK = MASK | MASK_B | MASK_H | MASK_S,
};

typedef struct AttnRow {
    const char *name;
    int B, T, S, H, Hk, D, flags;
    Fill fill;
    int types; // the first so many combinations of types; 0: all
} AttnRow;

#define ATTN_ROWS                                                                                \
    {"random 1x1", 1, 1, 1, 1, 1, 1, 0, FILL_RANDOM, 0},                                         \
    {"random 3x7", 2, 3, 7, 1, 1, 3, 0, FILL_RANDOM, 0},                                         \
    {"random 17x65", 1, 17, 65, 3, 3, 17, GAP, FILL_RANDOM, 0},                                  \
    {"random d2", 2, 20, 37, 3, 3, 2, 0, FILL_RANDOM, 0},                                        \
    {"random d12", 1, 33, 40, 2, 2, 12, GAP, FILL_RANDOM, 0},                                    \
    {"random mask keys", 3, 21, 67, 3, 3, 40, MASK_S | ADDED | GAP, FILL_RANDOM, 0},             \
    {"random mask keys fully", 3, 18, 33, 4, 2, 64, MASK_S | ADDED | FULLY, FILL_RANDOM, 2},     \
    {"random 64x64 d64", 2, 64, 64, 3, 3, 64, 0, FILL_RANDOM, 0},                                \
    {"random grouped", 2, 33, 40, 6, 2, 32, GAP, FILL_RANDOM, 0},                                \
    {"random one key", 2, 70, 1, 2, 2, 64, 0, FILL_RANDOM, 0},                                   \
    {"random causal", 2, 65, 65, 2, 2, 64, CAUSAL, FILL_RANDOM, 0}

// Where an element of a mask lies: key s of query t, in plane b or h.
typedef struct MaskPlace { int64_t s, t, plane, keys; } MaskPlace;

static inline MaskPlace mask_place(const CaseTensor *m, int64_t index) {
    int64_t S = m->shape[3], T = m->shape[2];
    return (MaskPlace){index % S, index / S % T, index / S / T, S};
}

static inline bool fully_masked(const AttnRow *r, MaskPlace p) {
    return r->flags & FULLY && (p.t + p.plane) % 3 == 1;
}

// The first of the keys that query t of a plane sees, where it sees few.
static inline int64_t first_key(MaskPlace p) { return (p.t * 37 + p.plane * 11) % p.keys; }

// Scattered -inf among values of -3..3.
static inline double mask_added(uint64_t random) {
    return random % 5 == 0 ? -INFINITY : 3 * case_uniform(random);
}

static inline void attn_mask_tensor(Case *c, int operand, DType type, const AttnRow *r,
                                    double (*value)(const Case *, int, int64_t, uint64_t)) {
    if (!(r->flags & ANY_MASK)) return;
    int64_t b = r->flags & (MASK_B | MASK_S) ? r->B : 1, h = r->flags & MASK_H ? r->H : 1;
    int64_t t = r->flags & MASK_S ? 1 : r->T;
    case_tensor(c, operand, type, r->fill, 4, SHAPE(b, h, t, r->S))->value = value;
}

// Gaps and leads of all operands that are there.
static inline void attn_layout(Case *c, const AttnRow *r, int operands) {
    for (int i = 0; i < operands; i++) {
        if (!c->t[i].present) continue;
        if (r->flags & GAP) case_gap(&c->t[i], 4 + i);
        if (r->flags & LEAD) c->t[i].lead = 1 + i;
    }
}

// Three operands [B, T, H, D] become slices of one [B, T, 3, H, D].
static inline void attn_pack(Case *c, const AttnRow *r, int first, int second, int third) {
    const int operand[3] = {first, second, third};
    int64_t W = (int64_t)r->H * r->D;
    for (int i = 0; i < 3 && r->flags & PACKED; i++) {
        CaseTensor *t = &c->t[operand[i]];
        t->stride[2] = r->D;
        t->stride[1] = 3 * W;
        t->stride[0] = 3 * W * r->T;
        t->alias = i ? first + 1 : 0;
        t->lead = i ? i * W : t->lead;
    }
}

#endif
