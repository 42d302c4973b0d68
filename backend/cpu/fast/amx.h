// amx.h: what the kernels on AMX tiles share (matrix products, attention, convolutions of bf16,
// accumulated in f32): operands as tiles, and a micro kernel of 32 x 32 outputs.
//
// A tile holds 16 rows of 64 bytes: of the left operand, 16 rows of 32 k; of the right one, 16 pairs
// of k of 16 columns (the two k of a pair side by side).
#ifndef KILN_CPU_AMX_H
#define KILN_CPU_AMX_H

#include "backend/cpu/fast/vec.h"

#define TILES __attribute__((target("amx-tile,amx-bf16"), unused))

enum {
    SIDE = 32,  // outputs of the micro kernel in each direction
    STEP = 32,  // k of a tile
    TILE = 512, // bf16 in a tile
};

// ---- packing ----------------------------------------------------------------------------------
INLINE __mmask16 first16(int64_t n) {
    return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1 << n) - 1);
}
INLINE __mmask32 first32(int64_t n) {
    return n >= 32 ? 0xffffffff : n <= 0 ? 0 : ((__mmask32)1 << n) - 1;
}

// 16 columns of rows p and p + stride as 16 pairs; those past `cols` or without a row are 0.
INLINE __m512i pairs(const uint16_t *p, int64_t stride, int64_t cols, int64_t rows) {
    __m512i a = _mm512_setzero_si512(), b = a;
    if (rows > 0) a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first16(cols), p));
    if (rows > 1) b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first16(cols), p + stride));
    return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

// A tile from `rows` rows of `n` numbers along k, as they lie; what is missing to 16 and 32 is 0.
UNUSED static void rows_tile(uint16_t *to, const uint16_t *from, int64_t stride, int64_t rows, int64_t n) {
    for (int64_t i = 0; i < 16; i++)
        _mm512_storeu_si512(to + i * STEP,
                            i < rows ? _mm512_maskz_loadu_epi16(first32(n), from + i * stride)
                                     : _mm512_setzero_si512());
}

// Tiles whose row i is pair i of k, from k rows of `cols` contiguous columns: [panels][steps][2
// tiles], panels `panel` elements apart. Whole rows are read in turn: columns are far apart in
// memory, a column at a time would miss the cache at every step.
UNUSED static void pairs_tiles(uint16_t *to, int64_t panel, const uint16_t *from, int64_t stride,
                        int64_t k, int64_t cols) {
    for (int64_t i = 0; i < (int64_t)align_up((uint64_t)k, STEP); i += 2, from += 2 * stride) {
        uint16_t *row = to + i / STEP * 2 * TILE + i % STEP / 2 * STEP;
        for (int64_t n = 0; n < cols; n += SIDE, row += panel) {
            _mm512_storeu_si512(row, pairs(from + n, stride, cols - n, k - i));
            _mm512_storeu_si512(row + TILE, pairs(from + n + 16, stride, cols - n - 16, k - i));
        }
    }
}

// 16 x 16 pairs, transposed: groups of four rows meet in registers as they are read, so that two
// rounds of interleaving are left of four.
INLINE void transposed_tile(uint16_t *to, const uint16_t *from, int64_t stride) {
#define QUARTER(row, k) _mm_loadu_si128((const void *)(from + (row) * stride + (k) * 8))
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m512i v[4], s[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            v[i] = _mm512_castsi128_si512(QUARTER(i, k));
            v[i] = _mm512_inserti32x4(v[i], QUARTER(i + 4, k), 1);
            v[i] = _mm512_inserti32x4(v[i], QUARTER(i + 8, k), 2);
            v[i] = _mm512_inserti32x4(v[i], QUARTER(i + 12, k), 3);
        }
        s[0] = _mm512_unpacklo_epi32(v[0], v[1]), s[1] = _mm512_unpackhi_epi32(v[0], v[1]);
        s[2] = _mm512_unpacklo_epi32(v[2], v[3]), s[3] = _mm512_unpackhi_epi32(v[2], v[3]);
        uint16_t *row = to + k * 4 * STEP;
        _mm512_storeu_si512(row, _mm512_unpacklo_epi64(s[0], s[2]));
        _mm512_storeu_si512(row + STEP, _mm512_unpackhi_epi64(s[0], s[2]));
        _mm512_storeu_si512(row + 2 * STEP, _mm512_unpacklo_epi64(s[1], s[3]));
        _mm512_storeu_si512(row + 3 * STEP, _mm512_unpackhi_epi64(s[1], s[3]));
    }
#undef QUARTER
}

// A right tile from 16 columns that lie as rows of k.
UNUSED static void columns_tile(uint16_t *to, const uint16_t *from, int64_t stride, int64_t cols,
                                int64_t n) {
    uint16_t edge[TILE];
    if (cols < 16 || n < STEP) { // in part: the rest is 0
        rows_tile(edge, from, stride, cols, n);
        from = edge, stride = STEP;
    }
    transposed_tile(to, from, stride);
}

// ---- tiles ------------------------------------------------------------------------------------
// Compilers do not see what the tile instructions read and write: MEMORY says "anything".
#define MEMORY __asm__ volatile("" ::: "memory")

TILES static void tiles_on(void) {
    static const struct {
        uint8_t palette, start, zero[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1,
                .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    MEMORY;
    _tile_loadconfig(&config);
}
TILES static void tiles_off(void) { _tile_release(); }

// Tiles 0 to 3 hold the sums of 32 x 32 results, 4 and 5 rows of x, 6 and 7 columns of w.
TILES static inline void sums_zero(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
TILES static inline void sums_store(float *c, int64_t ld) {
    _tile_stored(0, c, ld * 4);
    _tile_stored(1, c + 16, ld * 4);
    _tile_stored(2, c + 16 * ld, ld * 4);
    _tile_stored(3, c + 16 * ld + 16, ld * 4);
}
// Adds one tile of k: rows of x and x2 `xs` bytes apart, four tiles of w. w passes by the
// first-level cache, so that x, which the next call reads again, stays in it (1.2 times the speed of
// products with 32 KiB of each).
TILES static inline void sums_add(const char *x, const char *x2, int64_t xs, const char *w) {
    _tile_loadd(4, x, xs);
    _tile_stream_loadd(6, w, 64);
    _tile_loadd(5, x2, xs);
    _tile_stream_loadd(7, w + 2 * TILE, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

// c [32, 32] (+)= x w over `steps` tiles of k. x: rows `xs` bytes apart, its second 16 rows at x2,
// tiles `xt` bytes apart.
TILES static void micro(float *c, int64_t ld, const char *x, const char *x2, int64_t xs, int64_t xt,
                        const char *w, int64_t steps, bool add) {
    MEMORY;
    if (add) {
        _tile_loadd(0, c, ld * 4);
        _tile_loadd(1, c + 16, ld * 4);
        _tile_loadd(2, c + 16 * ld, ld * 4);
        _tile_loadd(3, c + 16 * ld + 16, ld * 4);
    } else {
        sums_zero();
    }
    for (int64_t i = 0; i < steps; i++, x += xt, x2 += xt, w += 4 * TILE) sums_add(x, x2, xs, w);
    sums_store(c, ld);
    MEMORY;
}

#endif
