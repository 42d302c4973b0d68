// reduce: y[a, 0, c] = alpha * sum over r of x[a, r, c] (REDUCE_SUM), or 1 where any x[a, r, c] is
// NaN or infinite and 0 otherwise (REDUCE_NONFINITE). The order of summation is fixed per device.
//
//   x [A, R, C], y [A, 1, C] f32. accumulate: y = max(y, result) for NONFINITE, y += for SUM.
#ifndef KILN_OPS_REDUCE_H
#define KILN_OPS_REDUCE_H
#include "tensor.h"

#define REDUCE_SUM 0
#define REDUCE_NONFINITE 1

#define REDUCE_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) IN(reduce, x) RW(reduce, y)
#define REDUCE_FIELDS \
    U32 kind;  /* REDUCE_* */ \
    F32 alpha; /* 0 means 1 */ \
    U32 accumulate;
#endif
