// exact_encode.h: numbers into blocks (backend/quant.h), for one instruction set.
//
// The K types and IQ4: each sub-block's scale (and minimum) is chosen by least squares for several
// roundings, the best kept; the scales are then rounded to their small integers, and the elements
// rounded once more for the scales that will be read back. The search is nearly all of the time:
// there sub-blocks stand side by side, one in each lane.
#include "backend/exact_vec.h"
#include "backend/quant.h"

static void put_f16(uint8_t *b, float x) {
    uint16_t h = f16_from_f32(x);
    b[0] = (uint8_t)h;
    b[1] = (uint8_t)(h >> 8);
}

static float round_f16(float x) { return f32_from_f16(f16_from_f32(x)); }
static float inverse(float x) { return x != 0 ? 1 / x : 0; }

// The nearest whole number within [lo, hi], halves up; `lo` for NaN.
static int clip_round(float x, int lo, int hi) {
    if (!(x > (float)lo)) return lo;
    return x >= (float)hi ? hi : (int)(x - (float)lo + 0.5f) + lo;
}

static float largest(const float *x, int n) { // by magnitude, with its sign; the first of equals
    float max = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(max)) max = x[i];
    return max;
}

// ---- blocks of 32: as ggml ----------------------------------------------------------------------

static void encode_q8_0(const float *x, uint8_t *b) {
    vf top = vset(0);
    for (int i = 0; i < 32; i += W) top = vmax(vabs(vload(x + i)), top);
    float d = vlargest(top) / 127, id = inverse(d);
    put_f16(b, d);
    for (int i = 0; i < 32; i += W) {
        vf v = vmin(vmax(vload(x + i) * id, vset(-127)), vset(127));
        // Half away from zero: the number below 1/2 carries exactly the halves over.
        vi half = (vi)vset(0x1.fffffep-2f) | ((vi)v & INT32_MIN);
        store_vb(b + 2 + i, vtruncate(v + (vf)half));
    }
}

// `largest` of 32. A scan in order is left for the largest on both sides of 0, and zeros.
static float largest_of_block(const float *x) {
    vf high = vset(0), low = vset(0);
    for (int i = 0; i < 32; i += W) {
        high = vmax(vload(x + i), high);
        low = vmin(vload(x + i), low);
    }
    float a = vlargest(high), b = vsmallest(low);
    return a > -b ? a : -b > a ? b : largest(x, 32);
}

// q = (x - min) id + add without its fraction, within 0..top.
INLINE void truncate_block(const float *x, float min, float id, float add, int top, uint8_t *q) {
    for (int i = 0; i < 32; i += W) {
        vf v = (vload(x + i) - min) * id + add;
        store_vb(q + i, vtruncate(vmin(vmax(v, vset(0)), vset((float)top))));
    }
}

// q [32] below 32 into high bits (NULL: none) and nibbles.
INLINE void put_nibbles(const uint8_t *q, uint8_t *high, uint8_t *low) {
    for (int i = 0; i < 16; i++) low[i] = (uint8_t)((q[i] & 15) | q[i + 16] << 4);
    for (int i = 0; high && i < 4; i++) {
        uint64_t eight;
        memcpy(&eight, q + 8 * i, 8);
        eight = eight >> 4 & UINT64_C(0x0101010101010101); // byte k's bit goes to bit 56 + k
        high[i] = (uint8_t)(eight * UINT64_C(0x0102040810204080) >> 56);
    }
}

INLINE void encode_symmetric(const float *x, uint8_t *b, int half) { // Q4_0: 8, Q5_0: 16
    uint8_t q[32];
    float d = largest_of_block(x) / (float)-half;
    put_f16(b, d);
    truncate_block(x, 0, inverse(d), (float)half + 0.5f, 2 * half - 1, q);
    put_nibbles(q, half == 16 ? b + 2 : NULL, half == 16 ? b + 6 : b + 2);
}

static void encode_q4_0(const float *x, uint8_t *b) { encode_symmetric(x, b, 8); }
static void encode_q5_0(const float *x, uint8_t *b) { encode_symmetric(x, b, 16); }

INLINE void encode_minimum(const float *x, uint8_t *b, int top) { // Q4_1: 15, Q5_1: 31
    uint8_t q[32];
    vf low = vset(INFINITY), high = vset(-INFINITY);
    for (int i = 0; i < 32; i += W) {
        low = vmin(vload(x + i), low);
        high = vmax(vload(x + i), high);
    }
    float min = vsmallest(low), max = vlargest(high);
    if (min == 0 || max == 0) { // of zeros with either sign the first, as ggml
        min = max = x[0];
        for (int i = 1; i < 32; i++) min = x[i] < min ? x[i] : min, max = x[i] > max ? x[i] : max;
    }
    float d = (max - min) / (float)top;
    put_f16(b, d);
    put_f16(b + 2, min);
    truncate_block(x, min, inverse(d), 0.5f, top, q);
    put_nibbles(q, top == 31 ? b + 4 : NULL, top == 31 ? b + 8 : b + 4);
}

static void encode_q4_1(const float *x, uint8_t *b) { encode_minimum(x, b, 15); }
static void encode_q5_1(const float *x, uint8_t *b) { encode_minimum(x, b, 31); }

// ---- fitting scales --------------------------------------------------------------------------

// What an element is, as a multiple of its scale: whole numbers lo..hi, or IQ4's code book.
typedef struct Codes { int lo, hi; bool book; } Codes;

enum { SIDE = 16, SUB_MAX = 32 }; // sub-blocks that are fitted together, their elements at most

// to[i][s] = element i of sub-block s, which has n elements.
INLINE void side_by_side(float (*to)[SIDE], const float *x, int n) {
    for (int s = 0; s < SIDE; s += W)
        for (int i = 0; i < n; i += W) transpose(&to[i][s], SIDE, x + s * n + i, n);
}

// Whole numbers within [lo, hi], ties to even: so large a number has no room for a fraction.
INLINE vf round_in(vf v, float lo, float hi) {
    return (vmin(vmax(v, vset(lo)), vset(hi)) + 0x1.8p23f) - 0x1.8p23f;
}

// Halfway between neighbours of quant_iq4_values.
static const float book_mid[16] = {-115.5f, -93.5f, -74,   -57,   -42, -28.5f, -16, -4.5f,
                                   7,       19,     31.5f, 45.5f, 61,  79,     101, INFINITY};

// Index of the code book's nearest value: how many midpoints do not lie above. 0 for NaN.
INLINE vi nearest_index(vf v) {
#if defined(__AVX2__)
    vi a = (v >= book_mid[7]) & 8;
    a += (v >= look_up(book_mid, a + 3)) & 4;
    a += (v >= look_up(book_mid, a + 1)) & 2;
    return a + ((v >= look_up(book_mid, a)) & 1);
#else
    vi a = {0};
    for (int k = 0; k < 15; k++) a -= v >= book_mid[k];
    return a;
#endif
}

INLINE vf nearest_value(vf v) {
#if defined(__AVX2__)
    return look_up(book_value, nearest_index(v));
#else
    vf sum = vset(book_value[0]); // whole numbers: exact
    for (int k = 0; k < 15; k++)
        sum += (vf)((v >= book_mid[k]) & (vi)vset(book_value[k + 1] - book_value[k]));
    return sum;
#endif
}

// Sums of n terms, term i in part i % 8: one order, whatever the vectors' width.
INLINE vf sum_parts(const vf v[8]) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// The d with the least sum (x - d value)^2 over the roundings tried: the largest element on either
// end of the codes, and a little beyond and within. Of W sub-blocks from lane `at` on.
INLINE vf fit_scale(const Codes c, const float (*x)[SIDE], int at, int n) {
    vf max = vset(0), best_gain = vset(0), best_a = vset(0), best_b = vset(1);
    for (int i = 0; i < n; i++) {
        vf v = vload(&x[i][at]);
        max = vselect(vabs(v) > vabs(max), v, max);
    }
    for (int k = 0; k < 2; k++)
        for (int step = -7; step <= 3; step++) {
            vf id = vset((float)(k ? c.hi : c.lo) * (1 + 0.025f * (float)step)) / max;
            // Squares of whole numbers: any order.
            vf xv[8] = {0}, vv[2] = {0};
#pragma GCC unroll 32
            for (int i = 0; i < n; i++) {
                vf u = vload(&x[i][at]), v = u * id;
                v = c.book ? nearest_value(v) : round_in(v, (float)c.lo, (float)c.hi);
                xv[i % 8] += u * v;
                vv[i % 2] = vmac_whole(v, v, vv[i % 2]);
            }
            vf a = sum_parts(xv), b = vv[0] + vv[1];
            vf gain = vselect(b > 0, a * a / b, vset(0)); // how much of sum x^2 is explained
            vi better = gain > best_gain;
            best_a = vselect(better, a, best_a);
            best_b = vselect(better, b, best_b);
            best_gain = vmax(gain, best_gain);
        }
    return vselect(vabs(max) > 1e-30f, best_a / best_b, vset(0));
}

INLINE bool any_lane(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#else
    int32_t seen = 0;
    for (int l = 0; l < W; l++) seen |= mask[l];
    return seen;
#endif
}

// What the fits of scale and minimum to one rounding know: of the codes q the sums of q, q^2 and q x.
typedef struct MinSums { vf q1, q2, qx; } MinSums;

// Of codes 0..top, the nearest to above * id. `clamp`: some may be larger. Nothing is below 0, and
// sums with NaN are never better.
INLINE MinSums sum_codes(const float (*x)[SIDE], int at, const vf *above, int n, vf id, int top,
                         bool clamp) {
    vf q1[2] = {0}, q2[2] = {0}, qx[8] = {0}; // q1, q2: whole numbers, any order
#pragma GCC unroll 32
    for (int i = 0; i < n; i++) {
        vf q = above[i] * id;
        if (clamp) q = vmin(q, vset((float)top));
        q = (q + 0x1.8p23f) - 0x1.8p23f;
        q1[i % 2] += q;
        q2[i % 2] = vmac_whole(q, q, q2[i % 2]);
        qx[i % 8] += q * vload(&x[i][at]);
    }
    return (MinSums){q1[0] + q1[1], q2[0] + q2[1], sum_parts(qx)};
}

// Where the sum (s q - m - x)^2 (less sum x^2, of n terms) is below the best so far.
INLINE vi is_better(vf s, vf m, const MinSums *sum, vf sum_x, int n, vd best[2]) {
    float f[6][W];
    vstore(f[0], s), vstore(f[1], m), vstore(f[2], sum->q1);
    vstore(f[3], sum->q2), vstore(f[4], sum->qx), vstore(f[5], sum_x);
    int32_t mask[W];
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        const int at = h * W / 2;
        vd ds = vwiden(f[0] + at), dm = vwiden(f[1] + at), q1 = vwiden(f[2] + at);
        vd q2 = vwiden(f[3] + at), qx = vwiden(f[4] + at), sx = vwiden(f[5] + at);
        vd e = ds * ds * q2 + (double)n * dm * dm - 2.0 * ds * dm * q1 - 2.0 * ds * qx +
               2.0 * dm * sx;
        vl less = e < best[h];
        best[h] = (vd)((less & (vl)e) | (~less & (vl)best[h]));
        half_i narrow = __builtin_convertvector(less, half_i);
        memcpy(mask + at, &narrow, sizeof narrow);
    }
    vi out;
    memcpy(&out, mask, sizeof out);
    return out;
}

// x ~ scale q - min with q in 0..top and both not negative. Of W sub-blocks from lane `at` on.
INLINE void fit_scale_min(const float (*x)[SIDE], int at, int n, int top, float *scale,
                          float *min) {
    enum { FIRST = -4, LAST = 8 };
    vf lo = vset(0), hi = vset(0), sx = vset(0), above[SUB_MAX];
    for (int i = 0; i < n; i++) {
        vf v = vload(&x[i][at]);
        lo = vmin(v, lo), hi = vmax(v, hi), sx += v;
    }
    for (int i = 0; i < n; i++) above[i] = vload(&x[i][at]) - lo;
    vf range = hi - lo, s_best = range / (float)top, m_best = -lo;
    // First all sums, then all fits: the latter wait for divisions, many of them at a time.
    MinSums sums[LAST - FIRST + 1];
    for (int step = FIRST; step <= LAST; step++) {
        vf id = vset((float)top + 0.1f * (float)step * (float)MIN(top, 8)) / range;
        sums[step - FIRST] = step > 0 ? sum_codes(x, at, above, n, id, top, true)
                                      : sum_codes(x, at, above, n, id, top, false);
    }
    vd best[2] = {(vd){0} + INFINITY, (vd){0} + INFINITY};
    for (int k = 0; k <= LAST - FIRST; k++) {
        MinSums sum = sums[k];
        // Not above 0: all codes are equal, and the ends of the range do.
        vf det = (float)n * sum.q2 - sum.q1 * sum.q1;
        vf s = ((float)n * sum.qx - sum.q1 * sx) / det;
        vf m = (sum.q1 * sum.qx - sum.q2 * sx) / det;
        vi below = m < 0;
        if (any_lane(below)) {
            s = vselect(below, sum.qx / sum.q2, s);
            m = vselect(below, vset(0), m);
        }
        // Lanes without a fit get NaN, which is never better.
        s = vselect((det > 0) & (s > 0), s, vset(NAN));
        vi better = is_better(s, m, &sum, sx, n, best);
        s_best = vselect(better, s, s_best);
        m_best = vselect(better, m, m_best);
    }
    vstore(scale + at, vselect(range > 1e-30f, s_best, vset(0)));
    vstore(min + at, vselect(range > 1e-30f, m_best, -lo));
}

// SIDE sub-blocks of n elements.
INLINE void fit_scales(const Codes c, const float *x, int n, float *scale) {
    float side[SUB_MAX][SIDE];
    side_by_side(side, x, n);
    for (int at = 0; at < SIDE; at += W)
        vstore(scale + at, fit_scale(c, (const void *)side, at, n));
}

INLINE void fit_scales_min(const float *x, int n, int top, float *scale, float *min) {
    float side[SUB_MAX][SIDE];
    side_by_side(side, x, n);
    for (int at = 0; at < SIDE; at += W)
        fit_scale_min((const void *)side, at, n, top, scale, min);
}

// Scales as multiples (lo..hi) of one f16 number, which is returned; the largest becomes `end`.
static float round_scales(const float *s, int n, int lo, int hi, int end, int *code) {
    float d = round_f16(largest(s, n) / (float)end), id = inverse(d);
    for (int j = 0; j < n; j++) code[j] = clip_round(s[j] * id, lo, hi);
    return d;
}

// ---- blocks of 256 -----------------------------------------------------------------------------

// q = the nearest whole number to (x + add) id within lo..hi, less lo; n elements.
INLINE void round_run(const float *x, int n, float add, float id, int lo, int hi, uint8_t *q) {
    for (int i = 0; i < n; i += W) {
        vf v = (vload(x + i) + add) * id;
        v = vmin(vmax(v, vset((float)lo)), vset((float)hi));
        store_vb(q + i, vtruncate(v - (float)lo + 0.5f));
    }
}

// Codes of a block of a symmetric type with scales s of n sub-blocks, which become whole numbers
// within lo..hi of the d that is returned. q: less the codes' lo, or indices into the book.
INLINE float encode_sub_blocks(const Codes c, const float *x, const float *s, int n, int lo, int hi,
                               int *scale, uint8_t *q) {
    const int size = 256 / n;
    float d = round_scales(s, n, lo, hi, lo, scale);
    for (int j = 0; j < n; j++) {
        float id = inverse(d * (float)scale[j]);
        for (int i = size * j; c.book && i < size * (j + 1); i += W)
            store_vb(q + i, nearest_index(vload(x + i) * id));
        if (!c.book) round_run(x + size * j, size, 0, id, c.lo, c.hi, q + size * j);
    }
    return d;
}

INLINE void put_two_bits(uint8_t *to, const uint8_t *q, int shift) {
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *p = q + 128 * h + i;
            to[32 * h + i] = (uint8_t)((p[0] >> shift & 3) | (p[32] >> shift & 3) << 2 |
                                       (p[64] >> shift & 3) << 4 | (p[96] >> shift & 3) << 6);
        }
}

static void encode_q3_k(const float *x, uint8_t *b) {
    const Codes codes = {-4, 3, false};
    float s[SIDE];
    uint8_t q[256], high[32] = {0}, low[64], packed[12] = {0};
    int scale[16];
    fit_scales(codes, x, 16, s);
    put_f16(b + 108, encode_sub_blocks(codes, x, s, 16, -32, 31, scale, q));
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) high[i] |= (uint8_t)(q[32 * j + i] >> 2 << j);
    put_two_bits(low, q, 0);
    for (int j = 0; j < 16; j++) {
        int v = scale[j] + 32;
        packed[j % 8] |= (uint8_t)((v & 15) << (j / 8 * 4));
        packed[8 + j % 4] |= (uint8_t)(v >> 4 << (j / 4 * 2));
    }
    memcpy(b, high, 32), memcpy(b + 32, low, 64), memcpy(b + 96, packed, 12);
}

static void encode_q6_k(const float *x, uint8_t *b) {
    const Codes codes = {-32, 31, false};
    float s[SIDE];
    uint8_t q[256], low[128], high[64];
    int scale[16];
    fit_scales(codes, x, 16, s);
    put_f16(b + 208, encode_sub_blocks(codes, x, s, 16, -128, 127, scale, q));
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 64; i++)
            low[64 * h + i] = (uint8_t)((q[128 * h + i] & 15) | q[128 * h + 64 + i] << 4);
    put_two_bits(high, q, 4);
    memcpy(b, low, 128), memcpy(b + 128, high, 64);
    for (int j = 0; j < 16; j++) b[192 + j] = (uint8_t)(int8_t)scale[j];
}

static const Codes iq4_codes = {-127, 113, true};

static void fit_iq4(const float *x, float *s) { fit_scales(iq4_codes, x, 32, s); }

static void encode_iq4_nl(const float *x, uint8_t *b) { // 16 blocks
    float s[SIDE];
    fit_iq4(x, s);
    for (int k = 0; k < 16; k++, x += 32, b += 18) {
        float d = round_f16(s[k]), id = inverse(d);
        uint8_t q[32];
        put_f16(b, d);
        for (int i = 0; i < 32; i += W) store_vb(q + i, nearest_index(vload(x + i) * id));
        put_nibbles(q, NULL, b + 2);
    }
}

static void encode_iq4_xs(const float *x, uint8_t *b) { // 2 blocks
    float s[SIDE];
    fit_iq4(x, s);
    for (int k = 0; k < 2; k++, x += 256, b += 136) {
        int scale[8], high = 0;
        uint8_t q[256];
        put_f16(b, encode_sub_blocks(iq4_codes, x, s + 8 * k, 8, -32, 31, scale, q));
        memset(b + 4, 0, 4);
        for (int j = 0; j < 8; j++) {
            int v = scale[j] + 32;
            b[4 + j / 2] |= (uint8_t)((v & 15) << (j % 2 * 4));
            high |= v >> 4 << (2 * j);
            put_nibbles(q + 32 * j, NULL, b + 8 + 16 * j);
        }
        b[2] = (uint8_t)high;
        b[3] = (uint8_t)(high >> 8);
    }
}

// The types with minima: n sub-blocks, scales and minima up to `top_scale`, codes up to `top`.
typedef struct WithMin { float d, dmin; int scale[16], min[16]; uint8_t q[256]; } WithMin;

INLINE void encode_with_min(const float *x, const float *s, const float *m, int n, int top_scale,
                            int top, WithMin *r) {
    const int size = 256 / n;
    r->d = round_scales(s, n, 0, top_scale, top_scale, r->scale);
    r->dmin = round_scales(m, n, 0, top_scale, top_scale, r->min);
    for (int j = 0; j < n; j++) {
        float id = inverse(r->d * (float)r->scale[j]), add = r->dmin * (float)r->min[j];
        round_run(x + size * j, size, add, id, 0, top, r->q + size * j);
    }
}

static void encode_q2_k(const float *x, uint8_t *b) {
    float s[SIDE], m[SIDE];
    uint8_t low[64];
    WithMin r;
    fit_scales_min(x, 16, 3, s, m);
    encode_with_min(x, s, m, 16, 15, 3, &r);
    for (int j = 0; j < 16; j++) b[j] = (uint8_t)(r.scale[j] | r.min[j] << 4);
    put_two_bits(low, r.q, 0);
    memcpy(b + 16, low, 64);
    put_f16(b + 80, r.d);
    put_f16(b + 82, r.dmin);
}

INLINE void encode_q45_k(const float *x, uint8_t *b, int top) { // 2 blocks; top: 15 or 31
    float s[SIDE], m[SIDE];
    fit_scales_min(x, 32, top, s, m);
    for (int k = 0; k < 2; k++, x += 256) {
        WithMin r;
        uint8_t low[128], high[32] = {0}, *packed = b + 4;
        encode_with_min(x, s + 8 * k, m + 8 * k, 8, 63, top, &r);
        put_f16(b, r.d);
        put_f16(b + 2, r.dmin);
        for (int j = 0; j < 4; j++) {
            packed[j] = (uint8_t)(r.scale[j] | r.scale[j + 4] >> 4 << 6);
            packed[j + 4] = (uint8_t)(r.min[j] | r.min[j + 4] >> 4 << 6);
            packed[j + 8] = (uint8_t)((r.scale[j + 4] & 15) | (r.min[j + 4] & 15) << 4);
        }
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 32; i++)
                low[32 * j + i] = (uint8_t)((r.q[64 * j + i] & 15) | r.q[64 * j + 32 + i] << 4);
        for (int j = 0; top > 15 && j < 8; j++)
            for (int i = 0; i < 32; i++) high[i] |= (uint8_t)(r.q[32 * j + i] >> 4 << j);
        if (top > 15) memcpy(b + 16, high, 32);
        memcpy(b + (top > 15 ? 48 : 16), low, 128);
        b += top > 15 ? 176 : 144;
    }
}

static void encode_q4_k(const float *x, uint8_t *b) { encode_q45_k(x, b, 15); }
static void encode_q5_k(const float *x, uint8_t *b) { encode_q45_k(x, b, 31); }

// ---- any number of blocks -----------------------------------------------------------------------

typedef struct Encoder { void (*encode)(const float *x, uint8_t *b); int blocks; } Encoder;
static const Encoder encoders[DT_COUNT] = {
    [DT_Q8_0] = {encode_q8_0, 1},      [DT_Q4_0] = {encode_q4_0, 1}, [DT_Q4_1] = {encode_q4_1, 1},
    [DT_Q5_0] = {encode_q5_0, 1},      [DT_Q5_1] = {encode_q5_1, 1}, [DT_Q2_K] = {encode_q2_k, 1},
    [DT_Q3_K] = {encode_q3_k, 1},      [DT_Q4_K] = {encode_q4_k, 2}, [DT_Q5_K] = {encode_q5_k, 2},
    [DT_Q6_K] = {encode_q6_k, 1},      [DT_IQ4_XS] = {encode_iq4_xs, 2},
    [DT_IQ4_NL] = {encode_iq4_nl, 16},
};
enum { TOGETHER_MAX = 512, TOGETHER_BYTES = 512 }; // elements and bytes of blocks made together

static void encode_row(DType t, const float *x, void *data, int64_t n) {
    if (t == DT_F8_E4M3) store_e4m3_within(x, data, (size_t)n);
    else if (t == DT_F8_E5M2) store_e5m2_within(x, data, (size_t)n);
    if (!encoders[t].encode) return;
    int64_t together = (int64_t)encoders[t].blocks * dtype_block(t);
    uint8_t *b = data, last[TOGETHER_BYTES];
    for (; n >= together; n -= together, x += together, b += dtype_bytes(t, (uint64_t)together))
        encoders[t].encode(x, b);
    if (n <= 0) return;
    float rest[TOGETHER_MAX] = {0};
    memcpy(rest, x, (size_t)n * sizeof *x);
    encoders[t].encode(rest, last);
    memcpy(b, last, (size_t)dtype_bytes(t, (uint64_t)n));
}
