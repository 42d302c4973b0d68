// exact_vec.h: the vectors of backend/lanes.h for the loops of exact.h, and the plain conversions.
// Not backend/cpu/fast/vec.h: that may contract, and takes the processor's own conversions, which
// treat NaN as they like.
#ifndef KILN_EXACT_VEC_H
#define KILN_EXACT_VEC_H

#include "backend/exact.h"
#include "backend/lanes.h"
#include "backend/quant.h"

#include <math.h>

// Halves, as double.
typedef double vd __attribute__((vector_size(W * 4)));
typedef int64_t vl __attribute__((vector_size(W * 4)));
typedef float half_f __attribute__((vector_size(W * 2)));
typedef int32_t half_i __attribute__((vector_size(W * 2)));

INLINE vi viset(int32_t x) { return (vi){0} + x; }
INLINE vf vabs(vf v) { return (vf)((vi)v & 0x7fffffff); }
INLINE vi vtruncate(vf v) { return __builtin_convertvector(v, vi); }

// a > b ? a : b and a < b ? a : b in each lane: b where they are equal, or one is NaN.
#if defined(__AVX512F__)
INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
INLINE vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__)
INLINE vf vmax(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
#else
INLINE vf vmax(vf a, vf b) { return vselect(a > b, a, b); }
INLINE vf vmin(vf a, vf b) { return vselect(a < b, a, b); }
#endif

// a b + c of whole numbers so small that nothing is rounded: one instruction may do it.
INLINE vf vmac_whole(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// Lanes l and l ^ n trade places, n a power of two.
INLINE vf vswap(vf v, int n) {
#if defined(__AVX512F__)
    return n == 8   ? SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
           : n == 4 ? SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
           : n == 2 ? SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
                    : SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif defined(__AVX2__)
    return n == 4   ? SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3)
           : n == 2 ? SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5)
                    : SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    return n == 2 ? SHUFFLE(v, v, 2, 3, 0, 1) : SHUFFLE(v, v, 1, 0, 3, 2);
#endif
}
// Of all lanes, none of them NaN.
INLINE float vlargest(vf v) {
    for (int n = W / 2; n; n /= 2) v = vmax(v, vswap(v, n));
    return v[0];
}
INLINE float vsmallest(vf v) {
    for (int n = W / 2; n; n /= 2) v = vmin(v, vswap(v, n));
    return v[0];
}

INLINE vd vwiden(const float *p) { // W / 2 of them
    half_f h;
    memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, vd);
}

static const float book_value[16] = {QUANT_IQ4_VALUES};

// Number `index` (0..15) of a table of 16.
INLINE vf look_up(const float *table, vi index) {
#if defined(__AVX512F__)
    return (vf)_mm512_permutexvar_ps((__m512i)index, _mm512_loadu_ps(table));
#elif defined(__AVX2__)
    vf low = (vf)_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
    vf high = (vf)_mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)index);
    return vselect(index > 7, high, low);
#else
    vf v;
    for (int l = 0; l < W; l++) v[l] = table[index[l]];
    return v;
#endif
}

// ---- numbers of 8 and 16 bits ------------------------------------------------------------------
// The vectors of dtype.c's functions; there stands why.

INLINE vf from_bf16(vi h) { return (vf)(h << 16); }

INLINE vf from_f16(vi h) {
    vi sign = (h & 0x8000) << 16, mag = h & 0x7fff, normal = (mag << 13) + (112 << 23);
    normal += (mag >= 0x7c00) & (112 << 23); // infinity and NaN
    vi small = (vi)(__builtin_convertvector(mag, vf) * 0x1p-24f);
    return (vf)(vselect_int(mag < 0x400, small, normal) | sign);
}

INLINE vf from_e5m2(vi v) { return from_f16(v << 8); }

INLINE vf from_e4m3(vi v) {
    vi sign = (v & 0x80) << 24, mag = v & 0x7f, normal = (mag << 20) + (120 << 23);
    vi small = (vi)(__builtin_convertvector(mag, vf) * 0x1p-9f);
    normal = vselect_int(mag == 0x7f, viset(0x7fc00000), normal);
    return (vf)(vselect_int(mag < 8, small, normal) | sign);
}

INLINE vi to_bf16(vf x) {
    vi bits = (vi)x, high = bits >> 16 & 0xffff;
    // What the lower half adds to the upper, without an overflow of signed numbers.
    vi up = ((bits & 0xffff) + 0x7fff + (high & 1)) >> 16;
    return vselect_int(x != x, high | 0x40, high + up);
}

INLINE vi to_f16(vf x) {
    vi bits = (vi)x, sign = bits >> 16 & 0x8000, mag = bits & 0x7fffffff;
    vi small = (vi)((vf)mag + 0.5f) - 0x3f000000;
    // Larger numbers are infinite below; here they must only not overflow.
    vi mid = vselect_int(mag < 0x47800000, mag, viset(0x47800000));
    vi code = (mid + 0xfff + (mid >> 13 & 1) - 0x38000000) >> 13;
    code = vselect_int(mag < 0x38800000, small, code);
    code = vselect_int(mag >= 0x47800000, viset(0x7c00), code);
    return vselect_int(mag > 0x7f800000, viset(0x7e00), code) | sign;
}

INLINE vi to_f8(vf x, int mantissa, int bias, int largest, int beyond) {
    vi bits = (vi)x, sign = bits >> 24 & 0x80, mag = bits & 0x7fffffff;
    int drop = 23 - mantissa, magic = (128 - bias - mantissa + 23) << 23;
    vi small = (vi)((vf)mag + (vf)viset(magic)) - magic;
    vi mid = vselect_int(mag < 0x7f800000, mag, viset(0x7f800000));
    vi code = (mid + ((1 << (drop - 1)) - 1) + (mid >> drop & 1)) >> drop;
    code -= (127 - bias) << mantissa;
    code = vselect_int(mag < (128 - bias) << 23, small, code);
    code = vselect_int(code > largest, viset(beyond), code);
    return vselect_int(mag > 0x7f800000, viset(0x7f), code) | sign;
}
INLINE vi to_e4m3(vf x) { return to_f8(x, 3, 7, 0x7e, 0x7f); }
INLINE vi to_e5m2(vf x) { return to_f8(x, 2, 15, 0x7b, 0x7c); }
INLINE vf within(vf x, float top) { // NaN stays
    return vmax(vset(-top), vmin(vset(top), x));
}
INLINE vi to_e4m3_within(vf x) { return to_e4m3(within(x, 448)); }
INLINE vi to_e5m2_within(vf x) { return to_e5m2(within(x, 57344)); }

#define CONVERT __builtin_convertvector
INLINE vi load_vh(const void *p) { vh h; memcpy(&h, p, sizeof h); return CONVERT(h, vi); }
INLINE vi load_vb(const void *p) { // where it knows the bytes as a part of more, gcc takes them one by one
#if defined(__AVX512F__)
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128(p));
#elif defined(__AVX2__)
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(p));
#else
    vb b;
    memcpy(&b, p, sizeof b);
    return CONVERT(b, vi);
#endif
}
INLINE vi load_signed_vb(const void *p) { return (load_vb(p) ^ 128) - 128; }
INLINE void store_vh(void *p, vi v) { vh h = CONVERT(v, vh); memcpy(p, &h, sizeof h); }
INLINE void store_vb(void *p, vi v) { // the lowest bytes
#if defined(__SSE2__) && !defined(__AVX512F__) // where gcc makes single bytes of the conversion
    __m128i part[W / 4];
    v &= 255;
    memcpy(part, &v, sizeof v);
    __m128i words = _mm_packs_epi32(part[0], part[W / 4 - 1]);
    __m128i bytes = _mm_packus_epi16(words, words);
    memcpy(p, &bytes, W);
#else
    vb b = CONVERT(v, vb);
    memcpy(p, &b, sizeof b);
#endif
}

// Rows of n numbers; the tail passes through whole vectors of its own.
#define LOAD_ROW(name, bits, get)                                            \
    static void load_##name(const void *from, void *to, size_t n) {          \
        const char *p = from;                                                \
        char *x = to;                                                        \
        for (; n >= W; n -= W, p += W * sizeof(bits), x += W * sizeof(float)) \
            vstore(x, from_##name(get(p)));                                  \
        bits tail[W] = {0};                                                  \
        if (n) memcpy(tail, p, n * sizeof(bits));                            \
        vf v = from_##name(get(tail));                                       \
        if (n) memcpy(x, &v, n * sizeof(float));                             \
    }
#define STORE_ROW(name, bits, put)                                           \
    static void store_##name(const void *from, void *to, size_t n) {         \
        const char *x = from;                                                \
        char *p = to;                                                        \
        for (; n >= W; n -= W, p += W * sizeof(bits), x += W * sizeof(float)) \
            put(p, to_##name(vload(x)));                                     \
        float tail[W] = {0};                                                 \
        bits out[W];                                                         \
        if (n) memcpy(tail, x, n * sizeof(float));                           \
        put(out, to_##name(vload(tail)));                                    \
        if (n) memcpy(p, out, n * sizeof(bits));                             \
    }
LOAD_ROW(bf16, uint16_t, load_vh)
LOAD_ROW(f16, uint16_t, load_vh)
LOAD_ROW(e4m3, uint8_t, load_vb)
LOAD_ROW(e5m2, uint8_t, load_vb)
STORE_ROW(bf16, uint16_t, store_vh)
STORE_ROW(f16, uint16_t, store_vh)
STORE_ROW(e4m3, uint8_t, store_vb)
STORE_ROW(e5m2, uint8_t, store_vb)
STORE_ROW(e4m3_within, uint8_t, store_vb)
STORE_ROW(e5m2_within, uint8_t, store_vb)

// ---- measures of a row --------------------------------------------------------------------------

static uint32_t largest_row(const float *x, size_t n) {
    vi top = {0};
    for (; n >= W; n -= W, x += W) {
        vi mag = (vi)vabs(vload(x));
        top = vselect_int(mag > top, mag, top);
    }
    float tail[W] = {0};
    if (n) memcpy(tail, x, n * sizeof *x);
    vi mag = (vi)vabs(vload(tail));
    top = vselect_int(mag > top, mag, top);
    int32_t largest = 0;
    for (int l = 0; l < W; l++) largest = MAX(largest, top[l]);
    return (uint32_t)largest;
}

// Element i is added to sum i % 16, whatever the vectors' width.
static double squares_row(const float *x, size_t n) {
    enum { SUMS = 16, VECTORS = SUMS / (W / 2) };
    vd sum[VECTORS] = {0};
    float tail[SUMS] = {0};
    for (const float *p = x; n; p = x) {
        if (n >= SUMS) x += SUMS, n -= SUMS;
        else p = memcpy(tail, x, n * sizeof *x), n = 0;
        for (int k = 0; k < VECTORS; k++) {
            vd v = vwiden(p + k * W / 2);
            sum[k] += v * v;
        }
    }
    double all = 0;
    for (int i = 0; i < SUMS; i++) all += sum[i / (W / 2)][i % (W / 2)];
    return all;
}

// ---- rows of any type ---------------------------------------------------------------------------

static bool load_row(DType from, const void *data, void *x, size_t n) {
    switch (from) {
    case DT_BF16: load_bf16(data, x, n); return true;
    case DT_F16: load_f16(data, x, n); return true;
    case DT_F8_E4M3: load_e4m3(data, x, n); return true;
    case DT_F8_E5M2: load_e5m2(data, x, n); return true;
    default: return false;
    }
}

static bool store_row(DType to, const void *x, void *data, size_t n) {
    switch (to) {
    case DT_BF16: store_bf16(x, data, n); return true;
    case DT_F16: store_f16(x, data, n); return true;
    case DT_F8_E4M3: store_e4m3(x, data, n); return true;
    case DT_F8_E5M2: store_e5m2(x, data, n); return true;
    default: return false;
    }
}

#endif
