// conv2d: y = act(conv(x, w) + bias) + residual, channels last, accumulated in f32.
//
//   x [B, H, W, C], w [O, R, S, C / groups] (OHWI), bias [1, 1, 1, O], residual, y [B, Ho, Wo, O].
//   upsample 2: x is first enlarged by nearest neighbour to [B, 2 H, 2 W, C] (never stored).
//   Ho = (H' + pad_top + pad_bottom - dilation (R - 1) - 1) / stride + 1, H' the (enlarged) height;
//   the same for Wo. Reads outside of x are zeros. stride, dilation, groups, upsample: 0 means 1.
#ifndef KILN_OPS_CONV2D_H
#define KILN_OPS_CONV2D_H
#include "tensor.h"

#define CONV2D_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    IN(conv2d, x) IN(conv2d, w) OPT(conv2d, bias) OPT(conv2d, residual) OUT(conv2d, y)
#define CONV2D_FIELDS \
    U32 stride; \
    U32 dilation; \
    U32 groups; \
    U32 upsample; /* 1 or 2 */ \
    U32 pad_top; \
    U32 pad_bottom; \
    U32 pad_left; \
    U32 pad_right; \
    U32 act; /* ACT_* */
#endif
