// norm_bwd: gradient of a plain norm (no weight, no scale, no activation) from its OUTPUT y:
//   layer: dx = rstd (dy - mean(dy) - y mean(dy y)); RMS: dx = rstd (dy - y mean(dy y)).
//
//   y, dy, dx [B, M, C]; rstd [B, M, 1] f32.
#ifndef KILN_OPS_NORM_BWD_H
#define KILN_OPS_NORM_BWD_H
#include "tensor.h"

#define NORM_BWD_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    IN(norm_bwd, y) IN(norm_bwd, dy) IN(norm_bwd, rstd) OUT(norm_bwd, dx)
#define NORM_BWD_FIELDS \
    U32 kind; /* NORM_* */
#endif
