// vec.h: arithmetic on the vectors of backend/lanes.h: conversions from and to f16 and bf16, exp and
// the activations, to about 2 units in the last place.
#ifndef KILN_CPU_VEC_H
#define KILN_CPU_VEC_H

#include "backend/cpu/cpu.h"
#include "backend/lanes.h"

#include <math.h>

#define UNUSED __attribute__((unused))

typedef uint32_t vu __attribute__((vector_size(W * 4)));

INLINE vf vmax(vf a, vf b) { return vselect(a > b, a, b); }
INLINE float vsum(vf v) {
    float t[W];
    vstore(t, v);
    for (int n = W / 2; n; n /= 2)
        for (int i = 0; i < n; i++) t[i] += t[i + n];
    return t[0];
}
INLINE float vmaximum(vf v) {
    float t[W], m;
    vstore(t, v);
    m = t[0];
    for (int i = 1; i < W; i++) m = t[i] > m || t[i] != t[i] ? t[i] : m;
    return m;
}
INLINE vf vsqrt(vf v) {
#if defined(__AVX512F__)
    return (vf)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < W; i++) v[i] = sqrtf(v[i]);
    return v;
#endif
}

// ---- conversions of W elements ----------------------------------------------------------------
INLINE vf vload_bf16(const uint16_t *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
INLINE void vstore_bf16(uint16_t *p, vf v) {
    vu bits = (vu)v, nan = (vu)(v != v);
    vu rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    rounded = (nan & (bits >> 16 | 0x40)) | (~nan & rounded);
    vh h = __builtin_convertvector(rounded, vh);
    memcpy(p, &h, sizeof h);
}
INLINE vf vload_f16(const uint16_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
#else
    vf v;
    for (int i = 0; i < W; i++) v[i] = f32_from_f16(p[i]);
    return v;
#endif
}
INLINE void vstore_f16(uint16_t *p, vf v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < W; i++) p[i] = f16_from_f32(v[i]);
#endif
}

// ---- rows of n elements, the last one contiguous ----------------------------------------------
UNUSED static void row_load(float *to, DType type, const void *from, int64_t n) {
    int64_t i = 0;
    if (type == DT_F32) {
        memcpy(to, from, (size_t)n * 4);
    } else if (type == DT_BF16) {
        const uint16_t *p = from;
        for (; i + W <= n; i += W) vstore(to + i, vload_bf16(p + i));
        for (; i < n; i++) to[i] = f32_from_bf16(p[i]);
    } else if (type == DT_F16) {
        const uint16_t *p = from;
        for (; i + W <= n; i += W) vstore(to + i, vload_f16(p + i));
        for (; i < n; i++) to[i] = f32_from_f16(p[i]);
    } else {
        for (; i < n; i++) to[i] = dtype_load(type, from, (size_t)i);
    }
}

UNUSED static void row_store(DType type, void *to, const float *from, int64_t n) {
    int64_t i = 0;
    if (type == DT_F32) {
        if (to != from) memcpy(to, from, (size_t)n * 4);
    } else if (type == DT_BF16) {
        uint16_t *p = to;
        for (; i + W <= n; i += W) vstore_bf16(p + i, vload(from + i));
        for (; i < n; i++) p[i] = bf16_from_f32(from[i]);
    } else if (type == DT_F16) {
        uint16_t *p = to;
        for (; i + W <= n; i += W) vstore_f16(p + i, vload(from + i));
        for (; i < n; i++) p[i] = f16_from_f32(from[i]);
    } else {
        for (; i < n; i++) dtype_store(type, to, (size_t)i, from[i]);
    }
}

// A row as f32: the row itself where it is f32, else converted into tmp.
INLINE const float *row_view(float *tmp, DType type, const void *from, int64_t n) {
    if (type == DT_F32) return from;
    row_load(tmp, type, from, n);
    return tmp;
}

// The tail of a row (n % W elements) passes through padded copies: nothing outside is touched.
INLINE vf vload_n(const float *p, int64_t n) { // n < W elements, the rest 0
    float t[W] = {0};
    for (int64_t i = 0; i < n; i++) t[i] = p[i];
    return vload(t);
}
INLINE void vstore_n(float *p, vf v, int64_t n) {
    float t[W];
    vstore(t, v);
    for (int64_t i = 0; i < n; i++) p[i] = t[i];
}

// ---- functions --------------------------------------------------------------------------------
#define EXP_LOWEST -87.336f // just over ln 2^-126

// e^x: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor's polynomial of degree 7 (error 5e-9), scaled by
// 2^n so that infinity comes out right. NaN stays. What would be subnormal is 0: a vector with one
// such result takes 30 times as long, and softmax is full of them.
INLINE vf vexp(vf x) {
#if defined(__AVX512F__)
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(EXP_LOWEST), _CMP_NLT_UQ);
    x = (vf)_mm512_min_ps(_mm512_set1_ps(89.0f), (__m512)x);
    vf k = (vf)_mm512_roundscale_ps((__m512)(x * 1.44269504088896341f), _MM_FROUND_TO_NEAREST_INT);
#else
    vi low = x < EXP_LOWEST;
    x = vselect(low, vset(EXP_LOWEST), x);
    x = vselect(x > 89.0f, vset(89.0f), x);
    vf t = x * 1.44269504088896341f + 12582912.0f; // 1.5 * 2^23: rounds to an integer
    vi n = (vi)t - 0x4b400000;
    vf k = t - 12582912.0f;
#endif
    vf r = x - k * 0.693145751953125f; // ln 2 in two parts: the first product is exact
    r = r - k * 1.42860677e-6f;
    vf p = vset(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)k);
#else
    vi half = n >> 1; // 2^n in two steps
    return vselect(low, vset(0), p * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23));
#endif
}
// 1 / x for x in 1..infinity, to a unit in the last place or two: much faster than dividing. What
// would be subnormal is 0, as in vexp.
INLINE vf vinverse(vf x) {
#if defined(__AVX512F__)
    vf y = (vf)_mm512_rcp14_ps((__m512)x), e = 1.0f - x * y;
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(0x1p126f), _CMP_NGE_UQ);
    return (vf)_mm512_maskz_fmadd_ps(normal, (__m512)y, (__m512)e, (__m512)y);
#else
    return 1.0f / x;
#endif
}
INLINE vf vsigmoid(vf x) { return vinverse(1.0f + vexp(-x)); }
INLINE vf vtanh(vf x) {
    // Odd polynomial (Cephes, tanhf) near 0, where 1 - 2 / (e^2x + 1) would cancel.
    vf s = x * x, p = vset(-5.70498872745e-3f);
    p = p * s + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    p = p * s * x + x;
    return vselect(s < 0.390625f, p, 1.0f - 2.0f / (vexp(2.0f * x) + 1.0f));
}
#define GELU_2K 1.5957691216057308f // 2 sqrt(2 / pi): 0.5 (1 + tanh u) = sigmoid(2 u)

// Never called with ACT_GELU_ERF, which has no short polynomial: rows leave it to act_value.
INLINE vf vact(uint32_t act, vf x) {
    switch (act) {
    case ACT_SILU: return x * vsigmoid(x);
    case ACT_GELU: return x * vsigmoid(GELU_2K * (x + 0.044715f * x * x * x));
    case ACT_QUICK_GELU: return x * vsigmoid(1.702f * x);
    case ACT_RELU: return vselect(x <= 0.0f, vset(0), x);
    case ACT_TANH: return vtanh(x);
    case ACT_SIGMOID: return vsigmoid(x);
    default: return x;
    }
}
INLINE vf vslope(uint32_t act, vf x) {
    vf s;
    switch (act) {
    case ACT_SILU: s = vsigmoid(x); return s + s * x * (1.0f - s);
    case ACT_GELU:
        s = vsigmoid(GELU_2K * (x + 0.044715f * x * x * x));
        return s + x * s * (1.0f - s) * (GELU_2K * (1.0f + 0.134145f * x * x));
    case ACT_QUICK_GELU: s = vsigmoid(1.702f * x); return s + 1.702f * x * s * (1.0f - s);
    case ACT_RELU: return vselect(x > 0.0f, vset(1), vset(0));
    case ACT_TANH: s = vtanh(x); return 1.0f - s * s;
    case ACT_SIGMOID: s = vsigmoid(x); return s * (1.0f - s);
    default: return vset(1);
    }
}

INLINE bool has(const TensorRef *t) { return t->buffer != NULL; }
INLINE char *at(const TensorRef *t, int64_t index) { // element `index` in strides' units
    return (char *)ref_data(t) + index * dtype_size(t->dtype);
}
// Strides of a [.., A, B, C] operand with 0 where the dimension broadcasts.
INLINE int64_t stride_of(const TensorRef *t, int d) {
    return ref_dim(t, d) == 1 ? 0 : ref_stride(t, d);
}

// A [.., B, M, C] operand as rows, strides in bytes: what a loop over rows needs at hand.
typedef struct Rows { char *base; DType type; int64_t sb, sm; } Rows;
INLINE Rows rows_of(const TensorRef *t) {
    if (!has(t)) return (Rows){0};
    int64_t size = dtype_size(t->dtype);
    return (Rows){ref_data(t), t->dtype, stride_of(t, 3) * size, stride_of(t, 4) * size};
}
INLINE char *row_of(const Rows *r, int64_t b, int64_t m) { return r->base + b * r->sb + m * r->sm; }

#endif
