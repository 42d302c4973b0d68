// exact_decode.h: blocks into numbers (backend/quant.h), for one instruction set: what the fast
// rows and shaders of the devices are held to. Every type is codes q, unpacked to bytes, of which
// runs share a scale and a minimum.
//
// Blocks of 32: a scale d (and a minimum m), then the 4-bit parts q of elements i and i + 16 in one
// byte, fifth bits apart. Blocks of 256 ("K"): sub-blocks of 16 or 32 whose small integer scales
// (and minima) are themselves scaled by d (and dmin). All little endian.
#include "backend/exact_vec.h"
#include "backend/quant.h"

static float get_f16(const uint8_t *b) { return f32_from_f16((uint16_t)(b[0] | b[1] << 8)); }
INLINE vf get_scale(const uint8_t *b) { return from_f16(viset(b[0] | b[1] << 8)); }

// y = (q - zero) scale, n elements; q as whole numbers from 0.
INLINE void scaled(float *y, const uint8_t *q, int n, int zero, float scale) {
    for (int i = 0; i < n; i += W) vstore(y + i, CONVERT(load_vb(q + i) - zero, vf) * scale);
}

// y = q scale + add.
INLINE void scaled_from(float *y, const uint8_t *q, int n, float scale, float add) {
    for (int i = 0; i < n; i += W) vstore(y + i, CONVERT(load_vb(q + i), vf) * scale + add);
}

// y = value of q in IQ4's code book, scaled.
INLINE void scaled_from_book(float *y, const uint8_t *q, int n, float scale) {
    for (int i = 0; i < n; i += W) vstore(y + i, look_up(book_value, load_vb(q + i)) * scale);
}

// n bytes: the low halves, then the high ones.
INLINE void unpack_nibbles(const uint8_t *b, int n, uint8_t *q) {
    for (int i = 0; i < n; i++) q[i] = b[i] & 15;
    for (int i = 0; i < n; i++) q[n + i] = b[i] >> 4;
}

// Bits 0.. of 4 bytes become 16s in 32.
INLINE void add_fifth_bits(const uint8_t *high, uint8_t *q) {
    for (int i = 0; i < 4; i++) {
        uint64_t eight, bits = high[i] * UINT64_C(0x0101010101010101);
        bits &= UINT64_C(0x8040201008040201); // bit k in byte k
        bits = (bits + UINT64_C(0x7f7f7f7f7f7f7f7f)) >> 7 & UINT64_C(0x0101010101010101);
        memcpy(&eight, q + 8 * i, 8);
        eight |= bits << 4;
        memcpy(q + 8 * i, &eight, 8);
    }
}

static void decode_q8_0(const uint8_t *b, float *y) {
    vf scale = get_scale(b);
    for (int i = 0; i < 32; i += W) vstore(y + i, CONVERT(load_signed_vb(b + 2 + i), vf) * scale);
}

static void decode_q4_0(const uint8_t *b, float *y) {
    uint8_t q[32];
    unpack_nibbles(b + 2, 16, q);
    scaled(y, q, 32, 8, get_f16(b));
}

static void decode_q4_1(const uint8_t *b, float *y) {
    uint8_t q[32];
    unpack_nibbles(b + 4, 16, q);
    scaled_from(y, q, 32, get_f16(b), get_f16(b + 2));
}

static void decode_q5_0(const uint8_t *b, float *y) {
    uint8_t q[32];
    unpack_nibbles(b + 6, 16, q);
    add_fifth_bits(b + 2, q);
    scaled(y, q, 32, 16, get_f16(b));
}

static void decode_q5_1(const uint8_t *b, float *y) {
    uint8_t q[32];
    unpack_nibbles(b + 8, 16, q);
    add_fifth_bits(b + 4, q);
    scaled_from(y, q, 32, get_f16(b), get_f16(b + 2));
}

static void decode_iq4_nl(const uint8_t *b, float *y) {
    uint8_t q[32];
    unpack_nibbles(b + 2, 16, q);
    scaled_from_book(y, q, 32, get_f16(b));
}

// The two-bit parts of 256: each run of 128 lies in 32 bytes, 32 elements per bit pair.
INLINE void unpack_two_bits(const uint8_t *b, uint8_t *q) {
    for (int h = 0; h < 2; h++)
        for (int part = 0; part < 4; part++)
            for (int i = 0; i < 32; i++)
                q[128 * h + 32 * part + i] = b[32 * h + i] >> (2 * part) & 3;
}

static void decode_q2_k(const uint8_t *b, float *y) { // scales [16], q [64], d, dmin
    uint8_t q[256];
    float d = get_f16(b + 80), dmin = get_f16(b + 82);
    unpack_two_bits(b + 16, q);
    for (int j = 0; j < 16; j++) {
        float scale = d * (float)(b[j] & 15), min = dmin * (float)(b[j] >> 4);
        scaled_from(y + 16 * j, q + 16 * j, 16, scale, -min);
    }
}

static void decode_q3_k(const uint8_t *b, float *y) { // high bits [32], q [64], scales [12], d
    uint8_t q[256];
    float d = get_f16(b + 108);
    unpack_two_bits(b + 32, q);
    for (int j = 0; j < 8; j++) // a set bit means: nothing to subtract
        for (int i = 0; i < 32; i++) q[32 * j + i] |= (b[i] >> j & 1) << 2;
    for (int j = 0; j < 16; j++)
        scaled(y + 16 * j, q + 16 * j, 16, 4, d * (float)quant_q3_k_scale(b + 96, j));
}

INLINE void decode_q45_k(const uint8_t *b, const uint8_t *high, const uint8_t *low, float *y) {
    uint8_t q[256];
    float d = get_f16(b), dmin = get_f16(b + 2);
    for (int j = 0; j < 4; j++) unpack_nibbles(low + 32 * j, 32, q + 64 * j);
    for (int j = 0; high && j < 8; j++)
        for (int i = 0; i < 32; i++) q[32 * j + i] |= (high[i] >> j & 1) << 4;
    for (int j = 0; j < 8; j++) {
        int s, m;
        quant_k_scale(b + 4, j, &s, &m);
        float scale = d * (float)s, min = dmin * (float)m;
        scaled_from(y + 32 * j, q + 32 * j, 32, scale, -min);
    }
}

static void decode_q4_k(const uint8_t *b, float *y) { // d, dmin, scales [12], q [128]
    decode_q45_k(b, NULL, b + 16, y);
}

static void decode_q5_k(const uint8_t *b, float *y) { // d, dmin, scales [12], high [32], q [128]
    decode_q45_k(b, b + 16, b + 48, y);
}

static void decode_q6_k(const uint8_t *b, float *y) { // low [128], high [64], scales [16], d
    uint8_t q[256], high[256];
    float d = get_f16(b + 208);
    for (int h = 0; h < 2; h++) unpack_nibbles(b + 64 * h, 64, q + 128 * h);
    unpack_two_bits(b + 128, high);
    for (int i = 0; i < 256; i++) q[i] |= high[i] << 4;
    for (int j = 0; j < 16; j++)
        scaled(y + 16 * j, q + 16 * j, 16, 32, d * (float)(int8_t)b[192 + j]);
}

static void decode_iq4_xs(const uint8_t *b, float *y) { // d, high scales u16, low [4], q [128]
    float d = get_f16(b);
    for (int j = 0; j < 8; j++) {
        int low = b[4 + j / 2] >> (j % 2 * 4) & 15, high = (b[2] | b[3] << 8) >> (2 * j) & 3;
        uint8_t q[32];
        unpack_nibbles(b + 8 + 16 * j, 16, q);
        scaled_from_book(y + 32 * j, q, 32, d * (float)((low | high << 4) - 32));
    }
}

typedef void Decode(const uint8_t *block, float *y);
static Decode *const decoders[DT_COUNT] = {
    [DT_Q8_0] = decode_q8_0, [DT_Q4_0] = decode_q4_0,     [DT_Q4_1] = decode_q4_1,
    [DT_Q5_0] = decode_q5_0, [DT_Q5_1] = decode_q5_1,     [DT_Q2_K] = decode_q2_k,
    [DT_Q3_K] = decode_q3_k, [DT_Q4_K] = decode_q4_k,     [DT_Q5_K] = decode_q5_k,
    [DT_Q6_K] = decode_q6_k, [DT_IQ4_NL] = decode_iq4_nl, [DT_IQ4_XS] = decode_iq4_xs,
};

static void decode_row(DType t, const void *data, float *x, int64_t n) {
    if (load_row(t, data, x, (size_t)n) || !decoders[t]) return;
    const int block = dtype_block(t), bytes = dtype_size(t);
    for (const uint8_t *b = data; n > 0; n -= block, x += block, b += bytes) decoders[t](b, x);
}
