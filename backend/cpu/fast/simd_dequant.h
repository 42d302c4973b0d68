// simd_dequant.h: packed weights as numbers. Every block type is runs of 16 small integers with a
// scale and a minimum (backend/quant.c has the formats in plain words); a block is decoded to f32 in
// the first-level cache, scaled and stored in the type of y.
#include "backend/quant.h"

typedef uint8_t bytes16 __attribute__((vector_size(16)));

INLINE bytes16 bytes_load(const uint8_t *p) { bytes16 v; memcpy(&v, p, 16); return v; }
INLINE float half_at(const uint8_t *p) {
    uint16_t bits = (uint16_t)(p[0] | p[1] << 8);
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    return f32_from_f16(bits);
#endif
}

// y[0..15] = scale q + add, q read as signed bytes.
INLINE void run16(float *y, bytes16 q, float scale, float add) {
#if defined(__AVX512F__)
    vf v = (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)q));
    vstore(y, v * scale + add);
#elif defined(__AVX2__)
    vf low = (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32((__m128i)q));
    vf high = (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64((__m128i)q, (__m128i)q)));
    vstore(y, low * scale + add);
    vstore(y + 8, high * scale + add);
#else
    for (int i = 0; i < 16; i++) y[i] = (float)(int8_t)q[i] * scale + add;
#endif
}

// Bits first.. of a 32-bit word as 16 bytes of 0 or 16.
INLINE bytes16 fifth_bits(const uint8_t *p) { // of 2 bytes
    const bytes16 bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    bytes16 v = {p[0], p[0], p[0], p[0], p[0], p[0], p[0], p[0],
                 p[1], p[1], p[1], p[1], p[1], p[1], p[1], p[1]};
    return (bytes16)((v & bit) != 0) & 16;
}

INLINE bytes16 iq4_bytes(bytes16 nibbles) {
#if defined(__SSSE3__)
    __m128i table = _mm_loadu_si128((const void *)quant_iq4_values);
    return (bytes16)_mm_shuffle_epi8(table, (__m128i)nibbles);
#else
    bytes16 v;
    for (int i = 0; i < 16; i++) v[i] = (uint8_t)quant_iq4_values[nibbles[i]];
    return v;
#endif
}

// ---- blocks of 32 -----------------------------------------------------------------------------
static void block_q8_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    run16(y, bytes_load(b + 2), d, 0);
    run16(y + 16, bytes_load(b + 18), d, 0);
}

static void block_q4_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    bytes16 q = bytes_load(b + 2);
    run16(y, (q & 15) - 8, d, 0);
    run16(y + 16, (q >> 4) - 8, d, 0);
}

static void block_q4_1(const uint8_t *b, float *y) {
    float d = half_at(b), m = half_at(b + 2);
    bytes16 q = bytes_load(b + 4);
    run16(y, q & 15, d, m);
    run16(y + 16, q >> 4, d, m);
}

static void block_q5_0(const uint8_t *b, float *y) {
    float d = half_at(b);
    bytes16 q = bytes_load(b + 6);
    run16(y, ((q & 15) | fifth_bits(b + 2)) - 16, d, 0);
    run16(y + 16, ((q >> 4) | fifth_bits(b + 4)) - 16, d, 0);
}

static void block_q5_1(const uint8_t *b, float *y) {
    float d = half_at(b), m = half_at(b + 2);
    bytes16 q = bytes_load(b + 8);
    run16(y, (q & 15) | fifth_bits(b + 4), d, m);
    run16(y + 16, (q >> 4) | fifth_bits(b + 6), d, m);
}

static void block_iq4_nl(const uint8_t *b, float *y) {
    float d = half_at(b);
    bytes16 q = bytes_load(b + 2);
    run16(y, iq4_bytes(q & 15), d, 0);
    run16(y + 16, iq4_bytes(q >> 4), d, 0);
}

// ---- blocks of 256 ----------------------------------------------------------------------------
// Run r of 16 of the two-bit parts: 128 elements in 32 bytes, 32 elements per pair of bits.
INLINE bytes16 two_bit_run(const uint8_t *q, int r) {
    return bytes_load(q + r / 8 * 32 + r % 2 * 16) >> (r % 8 / 2 * 2) & 3;
}

static void block_q2_k(const uint8_t *b, float *y) {
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int r = 0; r < 16; r++)
        run16(y + 16 * r, two_bit_run(b + 16, r), d * (float)(b[r] & 15), -dmin * (float)(b[r] >> 4));
}

static void block_q3_k(const uint8_t *b, float *y) {
    float d = half_at(b + 108);
    for (int r = 0; r < 16; r++) {
        bytes16 high = bytes_load(b + r % 2 * 16) >> (r / 2) & 1;
        run16(y + 16 * r, two_bit_run(b + 32, r) + (high << 2) - 4,
              d * (float)quant_q3_k_scale(b + 96, r), 0);
    }
}

INLINE void block_q45_k(const uint8_t *b, const uint8_t *high, const uint8_t *low, float *y) {
    float d = half_at(b), dmin = half_at(b + 2);
    for (int j = 0; j < 8; j++) {
        int s, m;
        quant_k_scale(b + 4, j, &s, &m);
        for (int half = 0; half < 2; half++) {
            bytes16 q = bytes_load(low + j / 2 * 32 + half * 16) >> (j % 2 * 4) & 15;
            if (high) q |= (bytes_load(high + half * 16) >> j & 1) << 4;
            run16(y + 32 * j + 16 * half, q, d * (float)s, -dmin * (float)m);
        }
    }
}
static void block_q4_k(const uint8_t *b, float *y) { block_q45_k(b, NULL, b + 16, y); }
static void block_q5_k(const uint8_t *b, float *y) { block_q45_k(b, b + 16, b + 48, y); }

static void block_q6_k(const uint8_t *b, float *y) {
    float d = half_at(b + 208);
    for (int r = 0; r < 16; r++) { // of 128: bytes 0..63 hold runs 0..3 below runs 4..7
        bytes16 low = bytes_load(b + r / 8 * 64 + r % 4 * 16) >> (r % 8 / 4 * 4) & 15;
        run16(y + 16 * r, (low | two_bit_run(b + 128, r) << 4) - 32,
              d * (float)(int8_t)b[192 + r], 0);
    }
}

static void block_iq4_xs(const uint8_t *b, float *y) {
    float d = half_at(b);
    for (int j = 0; j < 8; j++) {
        int low = b[4 + j / 2] >> (j % 2 * 4) & 15, high = (b[2] | b[3] << 8) >> (2 * j) & 3;
        float scale = d * (float)((low | high << 4) - 32);
        bytes16 q = bytes_load(b + 8 + 16 * j);
        run16(y + 32 * j, iq4_bytes(q & 15), scale, 0);
        run16(y + 32 * j + 16, iq4_bytes(q >> 4), scale, 0);
    }
}

// ---- fp8, W at a time: as f16 of the same fields, which holds every value ---------------------
INLINE vf fp8_values(DType type, vb b) {
    vh bits = __builtin_convertvector(b, vh);
    vh as_f16 = bits << 8;
    if (type == DT_F8_E4M3) // bias 7 for 15: 2^8 too small; all bits set is NaN
        as_f16 = (bits & 0x80) << 8 | (bits & 0x7f) << 7 | ((vh)((bits & 0x7f) == 0x7f) & 0x7c00);
    uint16_t t[W];
    memcpy(t, &as_f16, sizeof t);
    vf v = vload_f16(t);
    return type == DT_F8_E4M3 ? v * 256.0f : v;
}

INLINE void fp8_row(DType type, const uint8_t *b, float *y, int64_t n) {
    vb v;
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        memcpy(&v, b + i, W);
        vstore(y + i, fp8_values(type, v));
    }
    if (i == n) return;
    v = (vb){0};
    memcpy(&v, b + i, (size_t)(n - i));
    vstore_n(y + i, fp8_values(type, v), n - i);
}

// ---- a call -----------------------------------------------------------------------------------
enum { DEQUANT_PART = 1 << 15, DEQUANT_RUN = 1 << 10 }; // elements of a part; decoded at a time

typedef struct DequantJob { const TensorRef *w, *y; int64_t count; float scale; } DequantJob;

INLINE void decode_run(DType type, const uint8_t *b, float *y, int64_t n) {
    switch (type) {
#define BLOCKS(TYPE, name, elements, size)                                                        \
    case DT_##TYPE:                                                                               \
        for (; n > 0; n -= elements, b += size, y += elements) block_##name(b, y);                \
        return;
        BLOCKS(Q8_0, q8_0, 32, 34)
        BLOCKS(Q4_0, q4_0, 32, 18)
        BLOCKS(Q4_1, q4_1, 32, 20)
        BLOCKS(Q5_0, q5_0, 32, 22)
        BLOCKS(Q5_1, q5_1, 32, 24)
        BLOCKS(IQ4_NL, iq4_nl, 32, 18)
        BLOCKS(Q2_K, q2_k, 256, 84)
        BLOCKS(Q3_K, q3_k, 256, 110)
        BLOCKS(Q4_K, q4_k, 256, 144)
        BLOCKS(Q5_K, q5_k, 256, 176)
        BLOCKS(Q6_K, q6_k, 256, 210)
        BLOCKS(IQ4_XS, iq4_xs, 256, 136)
#undef BLOCKS
    case DT_F8_E4M3: fp8_row(DT_F8_E4M3, b, y, n); return;
    default: fp8_row(DT_F8_E5M2, b, y, n);
    }
}

#if defined(__AVX512F__)
void FN(unpack)(DType type, const uint8_t *from, float *to, int64_t n) { decode_run(type, from, to, n); }
#endif

static void dequant_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const DequantJob *j = arg;
    int64_t end = MIN(j->count, (part + 1) * DEQUANT_PART), size = dtype_size(j->y->dtype);
    const uint8_t *from = ref_data(j->w);
    float run[DEQUANT_RUN];
    for (int64_t i = part * DEQUANT_PART; i < end; i += DEQUANT_RUN) {
        int64_t n = MIN(DEQUANT_RUN, end - i);
        char *to = (char *)ref_data(j->y) + i * size;
        decode_run(j->w->dtype, from + dtype_bytes(j->w->dtype, (uint64_t)i), run, n);
        if (j->scale != 1)
            for (int64_t k = 0; k < (n + W - 1) / W * W; k += W) vstore(run + k, vload(run + k) * j->scale);
        row_store(j->y->dtype, to, run, n);
    }
}

void FN(dequant)(Cpu *cpu, const OpCall *c) {
    DequantJob j = {.w = &c->t[dequant_w], .y = &c->t[dequant_y], .scale = 1};
    if (has(&c->t[dequant_scale])) j.scale = *(const float *)ref_data(&c->t[dequant_scale]);
    j.count = ref_count(j.w);
    pool_run(cpu->pool, (j.count + DEQUANT_PART - 1) / DEQUANT_PART, dequant_part, &j);
}
