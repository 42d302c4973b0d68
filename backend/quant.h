// quant.h: the packed types of weights as numbers, and back: GGUF's block types and fp8.
//
// Decoding gives the bits that ggml's reference and the `gguf` package give. Encoding of Q8_0, Q4_0,
// Q4_1, Q5_0 and Q5_1 does too; for the others, whose formats leave the choice of scales open, it
// searches for the smallest squared error (so files differ in bits from ggml's, not in quality).
//
// `n` is a multiple of dtype_block(t). Thread-safety: pure functions.
#ifndef KILN_QUANT_H
#define KILN_QUANT_H

#include "backend/dtype.h"

// t: any packed type (dtype_is_packed); data may be aligned to nothing.
void quant_decode(DType t, const void *data, float *out, int64_t n);
float quant_load(DType t, const void *data, int64_t index); // one element; NaN for other types
// t: any packed type. Numbers must be finite; fp8 rounds to nearest even and saturates (a plain
// conversion, dtype_store, gives NaN or infinity).
void quant_encode(DType t, const float *x, void *data, int64_t n);

// ---- parts of the formats, for decoders of other speeds ----------------------------------------
// The code book of IQ4_NL and IQ4_XS, rising.
#define QUANT_IQ4_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
extern const int8_t quant_iq4_values[16];
// Scale j (of 16) of a Q3_K block's 12 bytes of scales, and scale and minimum j (of 8) of Q4_K, Q5_K.
int quant_q3_k_scale(const uint8_t *s, int j);
void quant_k_scale(const uint8_t *s, int j, int *scale, int *min);

#endif
