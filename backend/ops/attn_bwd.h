// attn_bwd: gradients of attn from its inputs, its outputs and dy.
//
//   Shapes as in attn.h; dy [B, T, H, D]; dq like q, dk and dv like k and v (summed over the query
//   heads that share a key head). P = exp(scale q k^T + mask - lse), delta = sum(dy * y),
//   dS = P (dy v^T - delta), dq = scale dS k, dk = scale dS^T q, dv = P^T dy.
#ifndef KILN_OPS_ATTN_BWD_H
#define KILN_OPS_ATTN_BWD_H
#include "tensor.h"

#define ATTN_BWD_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    IN(attn_bwd, q) IN(attn_bwd, k) IN(attn_bwd, v) OPT(attn_bwd, mask) IN(attn_bwd, y) \
    IN(attn_bwd, lse) IN(attn_bwd, dy) OUT(attn_bwd, dq) OUT(attn_bwd, dk) OUT(attn_bwd, dv)
#define ATTN_BWD_FIELDS \
    F32 scale; \
    U32 causal;
#endif
