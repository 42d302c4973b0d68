// exact.h: loops over numbers that large weights pass through while they load: conversions between
// f32 and the types of 8 and 16 bits, decoders and encoders of the block types. One source for
// several instruction sets, and equal bits from all of them: every operation is the one that
// IEEE 754 rounds once, nothing is contracted (cmake/cpu_flags.cmake), sums have one order.
//
// What others call is dtype_convert, quant_decode and quant_encode. Thread-safety: pure functions.
#ifndef KILN_EXACT_H
#define KILN_EXACT_H

#include "backend/dtype.h"

typedef struct ExactRow {
    const char *name; // "avx512", "avx2", "plain"
    // n numbers from or to f32, as dtype_load and dtype_store have them. f16, bf16 and fp8; false
    // for other types. Data may be aligned to nothing.
    bool (*load)(DType from, const void *data, void *x, size_t n);
    bool (*store)(DType to, const void *x, void *data, size_t n);
    void (*decode)(DType t, const void *data, float *x, int64_t n); // quant_decode
    void (*encode)(DType t, const float *x, void *data, int64_t n); // quant_encode
    // The largest magnitude, as f32's bits without the sign: in the order of the numbers, and NaN
    // above infinity. And the sum of squares.
    uint32_t (*largest)(const float *x, size_t n);
    double (*squares)(const float *x, size_t n);
} ExactRow;

enum { EXACT_ROWS_MAX = 3 };
// Those that this processor runs, the fastest first, "plain" last; returns how many.
int exact_rows(const ExactRow *out[EXACT_ROWS_MAX]);
const ExactRow *exact_row(void); // the fastest

#endif
