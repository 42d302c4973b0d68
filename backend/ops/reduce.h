// reduce: REDUCE_SUM: y[a, 0, c] = alpha * sum over r of x[a, r, c], in an order fixed per device;
// REDUCE_NONFINITE: y[0, 0, 0] = 1 where any x is NaN or infinite, 0 otherwise.
//
//   x [A, R, C]; y [A, 1, C] (SUM) or [1, 1, 1] (NONFINITE), f32.
//   accumulate: SUM adds to y; NONFINITE leaves y at 1 where it was.
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
