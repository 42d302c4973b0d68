// quant_encode.c: see quant.h. Numbers into blocks.
//
// The K types and IQ4: each sub-block's scale (and minimum) is chosen by least squares for several
// roundings, the best kept; the scales are then rounded to their small integers, and the elements
// rounded once more for the scales that will be read back.
#include "backend/quant.h"

#include <math.h>

static void put_f16(uint8_t *b, float x) {
    uint16_t h = f16_from_f32(x);
    b[0] = (uint8_t)h;
    b[1] = (uint8_t)(h >> 8);
}

static float round_f16(float x) { return f32_from_f16(f16_from_f32(x)); }
static float inverse(float x) { return x != 0 ? 1 / x : 0; }

// Truncates within [lo, hi]; safe for any input, NaN too.
static int clip(float x, int lo, int hi) {
    if (!(x > (float)lo)) return lo;
    return x >= (float)hi ? hi : (int)x;
}
static int clip_round(float x, int lo, int hi) { // floorf is slow where SSE4 is not assumed
    if (!(x > (float)lo)) return lo;
    return x >= (float)hi ? hi : (int)(x - (float)lo + 0.5f) + lo;
}

static float largest(const float *x, int n) { // by magnitude, with its sign; the first of equals
    float max = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(max)) max = x[i];
    return max;
}

// ---- blocks of 32: as ggml -----------------------------------------------------------------------

static void encode_q8_0(const float *x, uint8_t *b) {
    float d = fabsf(largest(x, 32)) / 127, id = inverse(d);
    put_f16(b, d);
    for (int i = 0; i < 32; i++) {
        float v = roundf(x[i] * id); // half away from zero
        b[2 + i] = (uint8_t)(int8_t)clip(v, -127, 127);
    }
}

// q [32] below 32 into high bits (NULL: none) and nibbles.
static void put_nibbles(const int *q, uint8_t *high, uint8_t *low) {
    if (high) memset(high, 0, 4);
    for (int i = 0; i < 16; i++) low[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
    for (int i = 0; high && i < 32; i++) high[i / 8] |= (uint8_t)(q[i] >> 4 << (i % 8));
}

static void encode_symmetric(const float *x, uint8_t *b, int half) { // Q4_0: 8, Q5_0: 16
    int q[32];
    float d = largest(x, 32) / (float)-half, id = inverse(d);
    put_f16(b, d);
    for (int i = 0; i < 32; i++) {
        float v = x[i] * id + ((float)half + 0.5f);
        q[i] = clip(v, 0, 2 * half - 1);
    }
    put_nibbles(q, half == 16 ? b + 2 : NULL, half == 16 ? b + 6 : b + 2);
}

static void encode_q4_0(const float *x, uint8_t *b) { encode_symmetric(x, b, 8); }
static void encode_q5_0(const float *x, uint8_t *b) { encode_symmetric(x, b, 16); }

static void encode_minimum(const float *x, uint8_t *b, int top) { // Q4_1: 15, Q5_1: 31
    int q[32];
    float min = x[0], max = x[0];
    for (int i = 1; i < 32; i++) min = fminf(min, x[i]), max = fmaxf(max, x[i]);
    float d = (max - min) / (float)top, id = inverse(d);
    put_f16(b, d);
    put_f16(b + 2, min);
    for (int i = 0; i < 32; i++) {
        float v = (x[i] - min) * id + 0.5f;
        q[i] = clip(v, 0, top);
    }
    put_nibbles(q, top == 31 ? b + 4 : NULL, top == 31 ? b + 8 : b + 4);
}

static void encode_q4_1(const float *x, uint8_t *b) { encode_minimum(x, b, 15); }
static void encode_q5_1(const float *x, uint8_t *b) { encode_minimum(x, b, 31); }

// ---- fitting scales --------------------------------------------------------------------------

// The multiple of a scale nearest to v, as a code: whole numbers lo..hi, or IQ4's code book.
typedef struct Codes { int lo, hi; bool book; } Codes;

// Halfway between neighbours of quant_iq4_values.
static const float book_mid[15] = {-115.5f, -93.5f, -74,   -57,   -42, -28.5f, -16, -4.5f,
                                   7,       19,     31.5f, 45.5f, 61,  79,     101};

static int nearest_value(float v) { // index into the code book
    int a = 0;
    for (int step = 8; step; step /= 2) a += v >= book_mid[a + step - 1] ? step : 0;
    return a;
}

static int code_of(const Codes *c, float v) {
    return c->book ? nearest_value(v) : clip_round(v, c->lo, c->hi);
}

// Sums are kept in lanes, so that compilers make vectors of the loops over them without being
// allowed to reorder anything: 90 % of encoding is here.
enum { LANES = 8 };

static float sum_lanes(const float *v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// Whole numbers within [lo, hi], ties to even: so large a number has no room for a fraction.
static inline float round_in(float v, float lo, float hi) {
    v = v > lo ? v : lo;
    v = v < hi ? v : hi;
    return (v + 0x1.8p23f) - 0x1.8p23f;
}

// The code book's nearest values: how many midpoints lie below, counted for all lanes at once.
static inline void round_to_book(float v[LANES]) {
    int below[LANES] = {0};
    for (int k = 0; k < 15; k++)
        for (int l = 0; l < LANES; l++) below[l] += v[l] >= book_mid[k];
    for (int l = 0; l < LANES; l++) v[l] = quant_iq4_values[below[l]];
}

// Sums of x times and of the squares of the nearest codes' values.
static void code_sums(const Codes *c, const float *x, int n, float id, float *xv, float *vv) {
    float a[LANES] = {0}, b[LANES] = {0}, v[LANES];
    float lo = (float)c->lo, hi = (float)c->hi;
    for (int i = 0; i < n; i += LANES) {
        for (int l = 0; l < LANES; l++) v[l] = x[i + l] * id;
        if (c->book) round_to_book(v);
        else
            for (int l = 0; l < LANES; l++) v[l] = round_in(v[l], lo, hi);
        for (int l = 0; l < LANES; l++) a[l] += x[i + l] * v[l];
        for (int l = 0; l < LANES; l++) b[l] += v[l] * v[l];
    }
    *xv = sum_lanes(a);
    *vv = sum_lanes(b);
}

// The d with the least sum (x - d value)^2 over the roundings tried: the largest element on either
// end of the codes, and a little beyond and within.
static float fit_scale(const Codes *c, const float *x, int n) {
    float max = largest(x, n);
    if (!(fabsf(max) > 1e-30f)) return 0;
    float best = 0, best_gain = 0, ends[2] = {(float)c->lo, (float)c->hi};
    for (int k = 0; k < 2; k++)
        for (int step = -7; step <= 3; step++) {
            float xv, vv;
            code_sums(c, x, n, ends[k] * (1 + 0.025f * (float)step) / max, &xv, &vv);
            float gain = vv > 0 ? xv * xv / vv : 0; // how much of sum x^2 is explained
            if (gain > best_gain) best_gain = gain, best = xv / vv;
        }
    return best;
}

// Sums over the codes q nearest to (x - lo) id in 0..top: of q, q^2 and q x.
static void min_sums(const float *x, int n, float lo, float id, float top, float sum[3]) {
    float a[LANES] = {0}, b[LANES] = {0}, d[LANES] = {0}, q[LANES];
    for (int i = 0; i < n; i += LANES) {
        for (int l = 0; l < LANES; l++) q[l] = round_in((x[i + l] - lo) * id, 0, top);
        for (int l = 0; l < LANES; l++) a[l] += q[l];
        for (int l = 0; l < LANES; l++) b[l] += q[l] * q[l];
        for (int l = 0; l < LANES; l++) d[l] += q[l] * x[i + l];
    }
    sum[0] = sum_lanes(a), sum[1] = sum_lanes(b), sum[2] = sum_lanes(d);
}

// x ~ scale q - min with q in 0..top and both not negative.
static void fit_scale_min(const float *x, int n, int top, float *scale, float *min) {
    float lo = 0, hi = 0, sx = 0;
    for (int i = 0; i < n; i++) lo = fminf(lo, x[i]), hi = fmaxf(hi, x[i]), sx += x[i];
    *scale = hi - lo > 1e-30f ? (hi - lo) / (float)top : 0;
    *min = -lo;
    if (*scale == 0) return;
    double best = INFINITY;
    for (int step = -4; step <= 8; step++) {
        float id = ((float)top + 0.1f * (float)step * (float)MIN(top, 8)) / (hi - lo), sum[3];
        min_sums(x, n, lo, id, (float)top, sum);
        float q1 = sum[0], q2 = sum[1], qx = sum[2];
        float det = (float)n * q2 - q1 * q1;
        if (!(det > 0)) continue; // all codes equal: the ends of the range do
        float s = ((float)n * qx - q1 * sx) / det, m = (q1 * qx - q2 * sx) / det;
        if (m < 0) m = 0, s = qx / q2;
        if (!(s > 0)) continue;
        // sum (s q - m - x)^2, less sum x^2
        double e = (double)s * s * q2 + (double)n * m * m - 2.0 * s * m * q1 - 2.0 * s * qx +
                   2.0 * m * sx;
        if (e < best) best = e, *scale = s, *min = m;
    }
}

// Scales as multiples (lo..hi) of one f16 number, which is returned; the largest becomes `end`.
static float round_scales(const float *s, int n, int lo, int hi, int end, int *code) {
    float d = round_f16(largest(s, n) / (float)end), id = inverse(d);
    for (int j = 0; j < n; j++) code[j] = clip_round(s[j] * id, lo, hi);
    return d;
}

// ---- blocks of 256 -----------------------------------------------------------------------------

// Scales and codes of a symmetric type: `n` sub-blocks, each with a scale in lo..hi of d.
static float encode_sub_blocks(const Codes *c, const float *x, int n, int lo, int hi, int *scale,
                               int *q) {
    float s[16];
    int size = 256 / n;
    for (int j = 0; j < n; j++) s[j] = fit_scale(c, x + size * j, size);
    float d = round_scales(s, n, lo, hi, lo, scale);
    for (int i = 0; i < 256; i++) q[i] = code_of(c, x[i] * inverse(d * (float)scale[i / size]));
    return d;
}

static void put_two_bits(uint8_t *to, const int *q, int shift) {
    for (int i = 0; i < 256; i++)
        to[i / 128 * 32 + i % 32] |= (uint8_t)((q[i] >> shift & 3) << (i % 128 / 32 * 2));
}

static void encode_q3_k(const float *x, uint8_t *b) {
    static const Codes codes = {-4, 3, false};
    int scale[16], q[256];
    memset(b, 0, 108);
    put_f16(b + 108, encode_sub_blocks(&codes, x, 16, -32, 31, scale, q));
    for (int i = 0; i < 256; i++) {
        q[i] += 4;
        b[i % 32] |= (uint8_t)(q[i] >> 2 << (i / 32));
    }
    put_two_bits(b + 32, q, 0);
    for (int j = 0; j < 16; j++) {
        int s = scale[j] + 32;
        b[96 + j % 8] |= (uint8_t)((s & 15) << (j / 8 * 4));
        b[104 + j % 4] |= (uint8_t)(s >> 4 << (j / 4 * 2));
    }
}

static void encode_q6_k(const float *x, uint8_t *b) {
    static const Codes codes = {-32, 31, false};
    int scale[16], q[256];
    memset(b, 0, 208);
    put_f16(b + 208, encode_sub_blocks(&codes, x, 16, -128, 127, scale, q));
    for (int i = 0; i < 256; i++) {
        q[i] += 32;
        b[i / 128 * 64 + i % 64] |= (uint8_t)((q[i] & 15) << (i % 128 / 64 * 4));
    }
    put_two_bits(b + 128, q, 4);
    for (int j = 0; j < 16; j++) b[192 + j] = (uint8_t)(int8_t)scale[j];
}

static const Codes iq4_codes = {-127, 113, true};

static void encode_iq4_nl(const float *x, uint8_t *b) {
    float d = round_f16(fit_scale(&iq4_codes, x, 32)), id = inverse(d);
    int q[32];
    put_f16(b, d);
    for (int i = 0; i < 32; i++) q[i] = nearest_value(x[i] * id);
    put_nibbles(q, NULL, b + 2);
}

static void encode_iq4_xs(const float *x, uint8_t *b) {
    int scale[8], q[256];
    memset(b, 0, 8);
    put_f16(b, encode_sub_blocks(&iq4_codes, x, 8, -32, 31, scale, q));
    int high = 0;
    for (int j = 0; j < 8; j++) {
        int s = scale[j] + 32;
        b[4 + j / 2] |= (uint8_t)((s & 15) << (j % 2 * 4));
        high |= s >> 4 << (2 * j);
        put_nibbles(q + 32 * j, NULL, b + 8 + 16 * j);
    }
    b[2] = (uint8_t)high;
    b[3] = (uint8_t)(high >> 8);
}

// The types with minima: n sub-blocks, scales and minima up to `top_scale`, codes up to `top`.
typedef struct WithMin { float d, dmin; int scale[16], min[16], q[256]; } WithMin;

static void encode_with_min(const float *x, int n, int top_scale, int top, WithMin *r) {
    float s[16], m[16];
    int size = 256 / n;
    for (int j = 0; j < n; j++) fit_scale_min(x + size * j, size, top, &s[j], &m[j]);
    r->d = round_scales(s, n, 0, top_scale, top_scale, r->scale);
    r->dmin = round_scales(m, n, 0, top_scale, top_scale, r->min);
    for (int i = 0; i < 256; i++) {
        float id = inverse(r->d * (float)r->scale[i / size]);
        float v = (x[i] + r->dmin * (float)r->min[i / size]) * id;
        r->q[i] = clip_round(v, 0, top);
    }
}

static void encode_q2_k(const float *x, uint8_t *b) {
    WithMin r;
    encode_with_min(x, 16, 15, 3, &r);
    memset(b, 0, 80);
    for (int j = 0; j < 16; j++) b[j] = (uint8_t)(r.scale[j] | r.min[j] << 4);
    put_two_bits(b + 16, r.q, 0);
    put_f16(b + 80, r.d);
    put_f16(b + 82, r.dmin);
}

static void encode_q45_k(const float *x, uint8_t *b, uint8_t *high, uint8_t *low) {
    WithMin r;
    encode_with_min(x, 8, 63, high ? 31 : 15, &r);
    put_f16(b, r.d);
    put_f16(b + 2, r.dmin);
    uint8_t *s = b + 4;
    memset(s, 0, 12);
    for (int j = 0; j < 4; j++) {
        s[j] = (uint8_t)(r.scale[j] | r.scale[j + 4] >> 4 << 6);
        s[j + 4] = (uint8_t)(r.min[j] | r.min[j + 4] >> 4 << 6);
        s[j + 8] = (uint8_t)((r.scale[j + 4] & 15) | (r.min[j + 4] & 15) << 4);
    }
    memset(low, 0, 128);
    if (high) memset(high, 0, 32);
    for (int i = 0; i < 256; i++) {
        low[i / 64 * 32 + i % 32] |= (uint8_t)((r.q[i] & 15) << (i / 32 % 2 * 4));
        if (high) high[i % 32] |= (uint8_t)(r.q[i] >> 4 << (i / 32));
    }
}

static void encode_q4_k(const float *x, uint8_t *b) { encode_q45_k(x, b, NULL, b + 16); }
static void encode_q5_k(const float *x, uint8_t *b) { encode_q45_k(x, b, b + 16, b + 48); }

typedef void Encode(const float *x, uint8_t *block);
static Encode *const encoders[DT_COUNT] = {
    [DT_Q8_0] = encode_q8_0, [DT_Q4_0] = encode_q4_0,     [DT_Q4_1] = encode_q4_1,
    [DT_Q5_0] = encode_q5_0, [DT_Q5_1] = encode_q5_1,     [DT_Q2_K] = encode_q2_k,
    [DT_Q3_K] = encode_q3_k, [DT_Q4_K] = encode_q4_k,     [DT_Q5_K] = encode_q5_k,
    [DT_Q6_K] = encode_q6_k, [DT_IQ4_NL] = encode_iq4_nl, [DT_IQ4_XS] = encode_iq4_xs,
};

void quant_encode(DType t, const float *x, void *data, int64_t n) {
    uint8_t *b = data;
    if (!encoders[t]) {
        float top = t == DT_F8_E4M3 ? 448.0f : 57344.0f;
        for (int64_t i = 0; i < n; i++) {
            float v = x[i] > top ? top : x[i] < -top ? -top : x[i]; // NaN stays
            b[i] = t == DT_F8_E4M3 ? f8_e4m3_from_f32(v) : f8_e5m2_from_f32(v);
        }
        return;
    }
    int block = dtype_block(t), bytes = dtype_size(t);
    for (; n > 0; n -= block, x += block, b += bytes) encoders[t](x, b);
}
