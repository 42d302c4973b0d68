// lanes.h: vectors of W floats in GCC's vector extension, one source for AVX-512, AVX2 and plain
// builds (the compiler's target decides): what moves numbers and does not round them. Arithmetic
// stands in the headers that include this: backend/exact_vec.h (equal bits everywhere) and
// backend/cpu/fast/vec.h (the fastest).
#ifndef KILN_LANES_H
#define KILN_LANES_H

#include "backend/base.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { W = 16 };
#elif defined(__AVX2__)
enum { W = 8 };
#else
enum { W = 4 };
#endif
#define INLINE static inline __attribute__((always_inline, unused))
#define SHUFFLE __builtin_shufflevector

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef uint8_t vb __attribute__((vector_size(W)));

INLINE vf vload(const void *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void vstore(void *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vf vset(float x) { return (vf){0} + x; }
INLINE vi vselect_int(vi mask, vi a, vi b) { return (mask & a) | (~mask & b); }
INLINE vf vselect(vi mask, vf a, vf b) { return (vf)vselect_int(mask, (vi)a, (vi)b); }

// Transposes a W x W block: log2(W) rounds of interleaving rows i and i + W / 2.
INLINE void transpose(float *to, int64_t ldt, const float *from, int64_t ldf) {
    vf r[W], s[W];
    for (int i = 0; i < W; i++) r[i] = vload(from + i * ldf);
#pragma GCC unroll 4
    for (int round = 1; round < W; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < W / 2; i++) {
            vf a = r[i], b = r[i + W / 2];
#if defined(__AVX512F__)
            s[2 * i] = SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            s[2 * i + 1] =
                SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
            s[2 * i] = SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            s[2 * i + 1] = SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
            s[2 * i] = SHUFFLE(a, b, 0, 4, 1, 5);
            s[2 * i + 1] = SHUFFLE(a, b, 2, 6, 3, 7);
#endif
        }
        memcpy(r, s, sizeof r);
    }
    for (int i = 0; i < W; i++) vstore(to + i * ldt, r[i]);
}

#endif
