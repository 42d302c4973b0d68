// quant.c: see quant.h. What the loops of backend/exact.h leave.
#include "backend/quant.h"

#include <math.h>

#include "backend/exact.h"

const int8_t quant_iq4_values[16] = {QUANT_IQ4_VALUES};

int quant_q3_k_scale(const uint8_t *s, int j) { // 12 bytes: 4 low bits, then 2 high bits of 16
    int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    return (low | (s[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
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

void quant_decode(DType t, const void *data, float *out, int64_t n) {
    exact_row()->decode(t, data, out, n);
}

void quant_encode(DType t, const float *x, void *data, int64_t n) {
    exact_row()->encode(t, x, data, n);
}

float quant_load(DType t, const void *data, int64_t index) {
    if (!dtype_is_packed(t)) return NAN;
    float block[256];
    int64_t size = dtype_block(t);
    quant_decode(t, (const uint8_t *)data + index / size * dtype_size(t), block, size);
    return block[index % size];
}
