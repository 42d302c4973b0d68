// attn_amx_bf16.c: attention of bf16 heads on AMX tiles, in blocks of queries and keys (Dao et al.
// 2022). Keys and values are packed as tiles once per head, for all its queries; scores and sums are
// f32, probabilities are rounded to bf16 for the second product.
#include "backend/cpu/fast/gemm.h"

#if HAVE_AVX512_BF16 && defined(__AVX512F__)
#include "backend/cpu/fast/amx.h"

enum {
    QUERIES = 64,          // of a block
    KEYS = 256,
    PACK_BYTES = 32 << 20, // packed keys and values of the running heads
    PACK_KEYS = 512,       // keys that one part packs
};

typedef struct AmxAttn {
    Cpu *cpu;
    const OpCall *c;
    int64_t T, H, S, group, D, q_blocks;
    int64_t wide, keys;   // D and S in whole tiles
    int64_t first, heads; // packed now: of the B * H / group key heads
    int64_t head_size;    // bf16 of a packed head: keys, then values
    uint16_t *pack;
    float scale;
    bool causal;
} AmxAttn;

static const uint16_t *head_row(const TensorRef *t, int64_t b, int64_t i, int64_t h) {
    return (const uint16_t *)(void *)at(t, b * stride_of(t, 2) + i * stride_of(t, 3) +
                                               h * stride_of(t, 4));
}

// Keys as right tiles [panels of 32 keys][steps of d][2 tiles], values as [panels of 32 d][steps of
// keys][2 tiles].
static void pack_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const AmxAttn *j = arg;
    const TensorRef *k = &j->c->t[attn_k], *v = &j->c->t[attn_v];
    int64_t runs = (j->keys + PACK_KEYS - 1) / PACK_KEYS, Hk = j->H / j->group;
    int64_t head = part / runs, s0 = part % runs * PACK_KEYS, end = MIN(s0 + PACK_KEYS, j->keys);
    int64_t b = (j->first + head) / Hk, h = (j->first + head) % Hk, steps = j->wide / STEP;
    uint16_t *to = j->pack + head * j->head_size, *values = to + j->keys * j->wide;
    const uint16_t *from = head_row(k, b, 0, h);
    for (int64_t s = s0; s < end; s += 16)
        for (int64_t i = 0; i < steps; i++)
            columns_tile(to + ((s / SIDE * steps + i) * 2 + s / 16 % 2) * TILE,
                         from + s * stride_of(k, 3) + i * STEP, stride_of(k, 3), j->S - s,
                         j->D - i * STEP);
    pairs_tiles(values + s0 / STEP * 2 * TILE, j->keys / STEP * 2 * TILE, head_row(v, b, s0, h),
                stride_of(v, 3), MIN(end, j->S) - s0, j->D);
}

// 2^x for x <= 0, to 2e-7: a polynomial on -1/2..1/2. What would be subnormal is 0, as in vexp.
INLINE __m512 power_of_two(__m512 x) {
    __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126), _CMP_NLT_UQ);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.33335581e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61812911e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55041087e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40226507e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93147181e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    return _mm512_maskz_scalef_ps(normal, p, n);
}

// Scores of query t and keys k0.. with scale and mask; what causality or the padding hides is -inf.
static void mask_row(const AmxAttn *j, int64_t b, int64_t h, int64_t t, int64_t k0, int64_t nk,
                     float *s) {
    const TensorRef *mask = &j->c->t[attn_mask];
    float added[KEYS];
    for (int64_t i = 0; i < nk; i += W) vstore(s + i, vload(s + i) * j->scale);
    if (has(mask)) {
        int64_t place = b * stride_of(mask, 2) + h * stride_of(mask, 3) + t * stride_of(mask, 4);
        row_load(added, mask->dtype, at(mask, place + k0), nk);
        for (int64_t i = 0; i < nk; i++) s[i] += added[i];
    }
    int64_t seen = j->causal ? MIN(nk, t + j->S - j->T - k0 + 1) : nk;
    for (int64_t i = MAX(seen, 0); i < (int64_t)align_up((uint64_t)nk, SIDE); i++) s[i] = -INFINITY;
}

typedef struct RowState { float max, sum; } RowState; // of scores times `scale`

// p = exp(scale s - max) as bf16; the row's running maximum and sum; returns the factor that earlier
// results shrink by. A row that saw nothing yet has the sum 0.
static float softmax_row(const float *s, float scale, int64_t n, RowState *row, uint16_t *p) {
    const float log2e = 1.44269504f;
    __m512 top = _mm512_loadu_ps(s), other = _mm512_loadu_ps(s + 16);
    int64_t i = 32;
    for (; i < n; i += 32) {
        top = _mm512_max_ps(_mm512_loadu_ps(s + i), top);
        other = _mm512_max_ps(_mm512_loadu_ps(s + i + 16), other);
    }
    float max = MAX(_mm512_reduce_max_ps(_mm512_max_ps(top, other)) * scale, row->max);
    float base = max == -INFINITY ? 0 : max; // all hidden so far: every weight is 0
    __m512 factor = _mm512_set1_ps(scale * log2e), less = _mm512_set1_ps(base * log2e);
    __m512 a = _mm512_setzero_ps(), c = a;
    for (i = 0; i < n; i += 32) {
        __m512 x = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(s + i), factor, less));
        __m512 y = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(s + i + 16), factor, less));
        a = _mm512_add_ps(a, x), c = _mm512_add_ps(c, y);
        __m512bh pair = _mm512_cvtne2ps_pbh(y, x);
        memcpy(p + i, &pair, sizeof pair);
    }
    float shrink = row->max == -INFINITY ? 0 : expf(row->max - base);
    row->sum = row->sum * shrink + _mm512_reduce_add_ps(_mm512_add_ps(a, c));
    row->max = max;
    return shrink;
}

typedef struct Block { // a thread's scratch
    uint16_t *q, *p; // q as left tiles [strips][steps][2 tiles], p [QUERIES, KEYS]
    float *s, *o;    // [QUERIES, KEYS], [QUERIES, wide]
    RowState row[QUERIES];
} Block;

static void key_block(const AmxAttn *j, Block *x, int64_t b, int64_t h, int64_t q0, int64_t nq,
                      int64_t k0, const uint16_t *head) {
    int64_t nk = MIN(KEYS, j->S - k0), wide = (int64_t)align_up((uint64_t)nk, SIDE);
    int64_t steps = j->wide / STEP, panel = steps * 2 * TILE, strips = (nq + SIDE - 1) / SIDE;
    for (int64_t m = 0; m < strips; m++) {
        const uint16_t *q = x->q + m * panel;
        for (int64_t n = 0; n < wide; n += SIDE)
            micro(x->s + m * SIDE * KEYS + n, KEYS, (const char *)q, (const char *)(q + TILE), 64,
                  4 * TILE, (const char *)(head + (k0 + n) / SIDE * panel), steps, false);
    }
    bool plain = !has(&j->c->t[attn_mask]) && nk == wide &&
                 (!j->causal || k0 + nk <= q0 + j->S - j->T + 1);
    for (int64_t i = 0; i < nq; i++) {
        float *s = x->s + i * KEYS, *o = x->o + i * j->wide;
        if (!plain) mask_row(j, b, h, q0 + i, k0, nk, s);
        float shrink = softmax_row(s, plain ? j->scale : 1, wide, &x->row[i], x->p + i * KEYS);
        if (k0 && shrink != 1)
            for (int64_t d = 0; d < j->wide; d += W) vstore(o + d, vload(o + d) * shrink);
    }
    const uint16_t *values = head + j->keys * j->wide + k0 / STEP * 2 * TILE;
    for (int64_t m = 0; m < strips; m++) {
        const char *p = (const char *)(x->p + m * SIDE * KEYS);
        for (int64_t d = 0; d < j->wide; d += SIDE)
            micro(x->o + m * SIDE * j->wide + d, j->wide, p, p + 16 * KEYS * 2, KEYS * 2, 64,
                  (const char *)(values + d / SIDE * (j->keys / STEP * 2 * TILE)), wide / STEP,
                  k0 > 0);
    }
}

static void attn_amx_part(void *arg, int64_t part, int thread) {
    const AmxAttn *j = arg;
    const TensorRef *q = &j->c->t[attn_q], *y = &j->c->t[attn_y], *lse = &j->c->t[attn_lse];
    int64_t q0 = part % j->q_blocks * QUERIES, nq = MIN(QUERIES, j->T - q0);
    int64_t member = part / j->q_blocks % j->group, packed = part / j->q_blocks / j->group;
    int64_t Hk = j->H / j->group, b = (j->first + packed) / Hk;
    int64_t h = (j->first + packed) % Hk * j->group + member, steps = j->wide / STEP;
    Block x = {.s = cpu_scratch(j->cpu, thread)};
    x.o = x.s + QUERIES * KEYS;
    x.q = (uint16_t *)(void *)(x.o + QUERIES * j->wide);
    x.p = x.q + QUERIES * j->wide;
    for (int64_t i = 0; i < QUERIES; i++) x.row[i].max = -INFINITY;
    const uint16_t *from = head_row(q, b, q0, h);
    for (int64_t m = 0; m < nq; m += 16)
        for (int64_t i = 0; i < steps; i++)
            rows_tile(x.q + ((m / SIDE * steps + i) * 2 + m / 16 % 2) * TILE,
                      from + m * stride_of(q, 3) + i * STEP, stride_of(q, 3), nq - m,
                      j->D - i * STEP);
    if (nq % QUERIES) memset(x.p, 0, QUERIES * KEYS * sizeof *x.p);
    int64_t keys = j->causal ? MIN(j->S, q0 + nq + j->S - j->T) : j->S;
    tiles_on();
    for (int64_t k0 = 0; k0 < MAX(keys, 1); k0 += KEYS)
        key_block(j, &x, b, h, q0, nq, k0, j->pack + packed * j->head_size);
    tiles_off();
    for (int64_t i = 0; i < nq; i++) {
        RowState r = x.row[i];
        bool hidden = r.max == -INFINITY && r.sum == 0; // a NaN is not a hidden row
        float *o = x.o + i * j->wide, inverse = hidden ? 0 : 1 / r.sum;
        for (int64_t d = 0; d < j->wide; d += W)
            vstore(o + d, hidden ? vset(0) : vload(o + d) * inverse);
        row_store(y->dtype, (uint16_t *)(uintptr_t)head_row(y, b, q0 + i, h), o, j->D);
        *(float *)at(lse, b * stride_of(lse, 3) + h * stride_of(lse, 4) + q0 + i) =
            hidden ? -INFINITY : r.max + logf(r.sum);
    }
}

static int64_t whole(int64_t n) { return (int64_t)align_up((uint64_t)n, SIDE); }

void attn_amx(Cpu *cpu, const OpCall *c) {
    const TensorRef *q = &c->t[attn_q], *k = &c->t[attn_k];
    AmxAttn j = {.cpu = cpu, .c = c, .T = ref_dim(q, 3), .H = ref_dim(q, 4), .D = ref_dim(q, 5),
                 .S = ref_dim(k, 3), .causal = c->params.attn.causal};
    j.group = j.H / ref_dim(k, 4);
    j.q_blocks = (j.T + QUERIES - 1) / QUERIES;
    j.wide = whole(j.D), j.keys = whole(j.S), j.head_size = 2 * j.wide * j.keys;
    float scale = c->params.attn.scale;
    j.scale = scale == 0 ? (float)(1 / sqrt((double)j.D)) : scale;
    if (!cpu->pack && !(cpu->pack = os_block_new(PACK_BYTES))) {
        attn_avx512(cpu, c);
        return;
    }
    j.pack = cpu->pack;
    int64_t all = ref_dim(q, 2) * ref_dim(k, 4), most = PACK_BYTES / 2 / j.head_size;
    for (j.first = 0; j.first < all; j.first += j.heads) {
        j.heads = MIN(most, all - j.first);
        pool_run(cpu->pool, j.heads * ((j.keys + PACK_KEYS - 1) / PACK_KEYS), pack_part, &j);
        pool_run(cpu->pool, j.heads * j.group * j.q_blocks, attn_amx_part, &j);
    }
}

bool fits_attn_amx(const OpCall *c, char why[128]) {
    const int operands[] = {attn_q, attn_k, attn_v, attn_y};
    for (int i = 0; i < 4; i++)
        if (c->t[operands[i]].dtype != DT_BF16) {
            snprintf(why, 128, "operands that are not all bf16");
            return false;
        }
    const TensorRef *q = &c->t[attn_q], *k = &c->t[attn_k];
    const char *reason = NULL;
    if (c->params.attn.scale < 0) reason = "a negative scale";
    else if (whole(ref_dim(q, 5)) * whole(ref_dim(k, 3)) > PACK_BYTES / 4)
        reason = "a head's keys and values over 32 MiB";
    else if (ref_dim(q, 5) < 16 && ref_dim(k, 3) < SIDE) reason = "heads that fill no tile";
    if (reason) snprintf(why, 128, "%s", reason);
    return !reason && fits_attn(c, why);
}
#endif
