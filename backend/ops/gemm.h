// gemm: y = residual + gate * act(x W^T + x2 W2^T + bias), accumulated in f32.
//
//   x [B, M, K], w [1 or B, N, K] (a Linear's weight), x2 [B, M, K2], w2 [1 or B, N, K2],
//   bias [1, 1, N], gate [1 or B, 1 or M, N], residual [B, M, N], y [B, M, N].
//   trans_x: x is stored as [B, K, M]; trans_w: w is stored as [1 or B, K, N] (x2, w2 never are).
#ifndef KILN_OPS_GEMM_H
#define KILN_OPS_GEMM_H
#include "tensor.h"

#define GEMM_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    IN(gemm, x) IN(gemm, w) OPT(gemm, x2) OPT(gemm, w2) OPT(gemm, bias) OPT(gemm, gate) \
    OPT(gemm, residual) OUT(gemm, y)
#define GEMM_FIELDS \
    U32 act;        /* ACT_* */ \
    U32 trans_x; \
    U32 trans_w;
#endif
