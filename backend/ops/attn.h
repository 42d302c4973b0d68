// attn: y = softmax(scale q k^T + mask) v per head; lse = log sum exp of the scaled, masked scores.
//
//   q [B, T, H, D], k, v [B, S, Hk, D] with H a multiple of Hk (head h reads h / (H / Hk)),
//   mask [1 or B, 1 or H, T, S] added to the scores, y [B, T, H, D], lse [B, H, T] f32.
//   scale 0 means 1 / sqrt(D). causal: query t sees keys s <= t + S - T.
//   A row with every key masked (-inf) gives zeros, and lse -inf.
//   Dao et al. 2022 (FlashAttention) describes the blocked evaluation.
#ifndef KILN_OPS_ATTN_H
#define KILN_OPS_ATTN_H
#include "tensor.h"

#define ATTN_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    IN(attn, q) IN(attn, k) IN(attn, v) OPT(attn, mask) OUT(attn, y) OUT(attn, lse)
#define ATTN_FIELDS \
    F32 scale; \
    U32 causal;
#endif
