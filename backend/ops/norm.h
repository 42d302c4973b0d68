// norm: y = act(((x - mean) * rstd * weight + bias) * (1 + scale) + shift), statistics over the
// last dimension; rstd = 1 / sqrt(var + eps), var the biased variance (two passes: a large mean
// must not cancel). NORM_RMS: mean is 0 and var = mean(x^2). NORM_GROUP (Wu and He 2018): the last
// dimension is cut into `groups` equal runs; statistics per batch and group, over all M rows.
//
//   x [B, M, C], weight, bias [1, 1, C], scale, shift [1 or B, 1 or M, C] (adaLN),
//   y [B, M, C], rstd [B, M, 1] f32 (kept for the gradient; not for NORM_GROUP).
//   groups: a divisor of C; 0 means 1. Only NORM_GROUP has groups.
#ifndef KILN_OPS_NORM_H
#define KILN_OPS_NORM_H
#include "tensor.h"

#define NORM_LAYER 0
#define NORM_RMS 1
#define NORM_GROUP 2

#define NORM_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    IN(norm, x) OPT(norm, weight) OPT(norm, bias) OPT(norm, scale) OPT(norm, shift) \
    OUT(norm, y) OPT_OUT(norm, rstd)
#define NORM_FIELDS \
    U32 kind; /* NORM_* */ \
    F32 eps; \
    U32 act;  /* ACT_* */ \
    U32 groups;
#endif
