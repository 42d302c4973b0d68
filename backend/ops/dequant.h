// dequant: y = scale * decode(w): weights of a packed type (fp8, the blocks of GGUF) as numbers.
//
//   w [..., K] of any packed type (dtype_is_packed), contiguous, K a multiple of its block;
//   scale [1] f32 (fp8's scale_weight; absent: 1), y of w's shape in f32, f16 or bf16.
//   The decoding is quant_decode in backend/quant.h.
#ifndef KILN_OPS_DEQUANT_H
#define KILN_OPS_DEQUANT_H
#include "tensor.h"

#define DEQUANT_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    IN(dequant, w) OPT(dequant, scale) OUT(dequant, y)
#define DEQUANT_FIELDS U32 unused;
#endif
