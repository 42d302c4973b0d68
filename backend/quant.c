// quant.c: see quant.h. Decoding. Plain and in one order of operations, so that every machine gives
// the same bits; this file is the truth that the fast rows and shaders are held to.
//
// Blocks of 32: a scale d (and a minimum m), then the 4-bit parts q of elements i and i + 16 in one
// byte, fifth bits apart. Blocks of 256 ("K"): sub-blocks of 16 or 32 whose small integer scales
// (and minima) are themselves scaled by d (and dmin). All little endian.
#include "backend/quant.h"

#include <math.h>

const int8_t quant_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};

static float get_f16(const uint8_t *b) { return f32_from_f16((uint16_t)(b[0] | b[1] << 8)); }

static void decode_q8_0(const uint8_t *b, float *y) {
    float d = get_f16(b);
    for (int i = 0; i < 32; i++) y[i] = (float)(int8_t)b[2 + i] * d;
}

static void decode_q4_0(const uint8_t *b, float *y) {
    float d = get_f16(b);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((b[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((b[2 + i] >> 4) - 8) * d;
    }
}

static void decode_q4_1(const uint8_t *b, float *y) {
    float d = get_f16(b), m = get_f16(b + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)(b[4 + i] & 15) * d + m;
        y[i + 16] = (float)(b[4 + i] >> 4) * d + m;
    }
}

// Element i of 32 five-bit numbers: bits of `high` (4 bytes), nibbles of `low` (16 bytes).
static int five_bits(const uint8_t *high, const uint8_t *low, int i) {
    int nibble = i < 16 ? low[i] & 15 : low[i - 16] >> 4;
    return nibble | (high[i / 8] >> (i % 8) & 1) << 4;
}

static void decode_q5_0(const uint8_t *b, float *y) {
    float d = get_f16(b);
    for (int i = 0; i < 32; i++) y[i] = (float)(five_bits(b + 2, b + 6, i) - 16) * d;
}

static void decode_q5_1(const uint8_t *b, float *y) {
    float d = get_f16(b), m = get_f16(b + 2);
    for (int i = 0; i < 32; i++) y[i] = (float)five_bits(b + 4, b + 8, i) * d + m;
}

static void decode_iq4_nl(const uint8_t *b, float *y) {
    float d = get_f16(b);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)quant_iq4_values[b[2 + i] & 15] * d;
        y[i + 16] = (float)quant_iq4_values[b[2 + i] >> 4] * d;
    }
}

// The two-bit part of element i of 256: each run of 128 lies in 32 bytes, 32 elements per bit pair.
static int two_bits(const uint8_t *q, int i) {
    return q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

static void decode_q2_k(const uint8_t *b, float *y) { // scales [16], q [64], d, dmin
    float d = get_f16(b + 80), dmin = get_f16(b + 82);
    for (int i = 0; i < 256; i++) {
        uint8_t s = b[i / 16];
        float scale = d * (float)(s & 15), min = dmin * (float)(s >> 4);
        y[i] = scale * (float)two_bits(b + 16, i) - min;
    }
}

int quant_q3_k_scale(const uint8_t *s, int j) { // 12 bytes: 4 low bits, then 2 high bits of 16
    int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    return (low | (s[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
}

static void decode_q3_k(const uint8_t *b, float *y) { // high bits [32], q [64], scales [12], d
    float d = get_f16(b + 108);
    for (int i = 0; i < 256; i++) {
        int high = b[i % 32] >> (i / 32) & 1; // a set bit means: nothing to subtract
        float scale = d * (float)quant_q3_k_scale(b + 96, i / 16);
        y[i] = scale * (float)(two_bits(b + 32, i) - (high ? 0 : 4));
    }
}

void quant_k_scale(const uint8_t *s, int j, int *scale, int *min) { // 12 bytes: 8 pairs of 6 bits
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        *min = s[j + 4] >> 4 | s[j] >> 6 << 4;
    }
}

// Sub-block j's nibbles: two sub-blocks of 32 share 32 bytes.
static int k_nibble(const uint8_t *q, int i) { return q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15; }

static void decode_q45_k(const uint8_t *b, const uint8_t *high, const uint8_t *low, float *y) {
    float d = get_f16(b), dmin = get_f16(b + 2);
    for (int j = 0; j < 8; j++) {
        int s, m;
        quant_k_scale(b + 4, j, &s, &m);
        float scale = d * (float)s, min = dmin * (float)m;
        for (int i = 32 * j; i < 32 * j + 32; i++) {
            int q = k_nibble(low, i);
            if (high) q |= (high[i % 32] >> j & 1) << 4;
            y[i] = scale * (float)q - min;
        }
    }
}

static void decode_q4_k(const uint8_t *b, float *y) { // d, dmin, scales [12], q [128]
    decode_q45_k(b, NULL, b + 16, y);
}

static void decode_q5_k(const uint8_t *b, float *y) { // d, dmin, scales [12], high [32], q [128]
    decode_q45_k(b, b + 16, b + 48, y);
}

static void decode_q6_k(const uint8_t *b, float *y) { // low [128], high [64], scales [16], d
    float d = get_f16(b + 208);
    for (int i = 0; i < 256; i++) {
        int part = i % 128 / 32; // of 128 elements: bytes 0..63 hold parts 0, 1 below 2, 3
        uint8_t low = b[i / 128 * 64 + i % 64];
        int q = (part < 2 ? low & 15 : low >> 4) | two_bits(b + 128, i) << 4;
        y[i] = d * (float)(int8_t)b[192 + i / 16] * (float)(q - 32);
    }
}

static void decode_iq4_xs(const uint8_t *b, float *y) { // d, high scales u16, low [4], q [128]
    float d = get_f16(b);
    for (int j = 0; j < 8; j++) {
        int low = b[4 + j / 2] >> (j % 2 * 4) & 15, high = (b[2] | b[3] << 8) >> (2 * j) & 3;
        float scale = d * (float)((low | high << 4) - 32);
        const uint8_t *q = b + 8 + 16 * j;
        for (int i = 0; i < 16; i++) {
            y[32 * j + i] = scale * (float)quant_iq4_values[q[i] & 15];
            y[32 * j + i + 16] = scale * (float)quant_iq4_values[q[i] >> 4];
        }
    }
}

typedef void Decode(const uint8_t *block, float *y);
static Decode *const decoders[DT_COUNT] = {
    [DT_Q8_0] = decode_q8_0, [DT_Q4_0] = decode_q4_0,     [DT_Q4_1] = decode_q4_1,
    [DT_Q5_0] = decode_q5_0, [DT_Q5_1] = decode_q5_1,     [DT_Q2_K] = decode_q2_k,
    [DT_Q3_K] = decode_q3_k, [DT_Q4_K] = decode_q4_k,     [DT_Q5_K] = decode_q5_k,
    [DT_Q6_K] = decode_q6_k, [DT_IQ4_NL] = decode_iq4_nl, [DT_IQ4_XS] = decode_iq4_xs,
};

void quant_decode(DType t, const void *data, float *out, int64_t n) {
    const uint8_t *b = data;
    if (!decoders[t]) {
        dtype_convert(DT_F32, out, t, data, (size_t)n);
        return;
    }
    int block = dtype_block(t), bytes = dtype_size(t);
    for (; n > 0; n -= block, out += block, b += bytes) decoders[t](b, out);
}

float quant_load(DType t, const void *data, int64_t index) {
    if (!decoders[t]) return NAN;
    float block[256];
    int64_t size = dtype_block(t);
    decoders[t]((const uint8_t *)data + index / size * dtype_size(t), block);
    return block[index % size];
}
