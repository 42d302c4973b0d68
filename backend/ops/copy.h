// copy: y = x with any strides on both sides (the last one too) and a change of float type:
// patchify, pixel shuffle, casts, concatenation. Up to six dimensions.
#ifndef KILN_OPS_COPY_H
#define KILN_OPS_COPY_H
#include "tensor.h"

#define COPY_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) IN(copy, x) OUT(copy, y)
#define COPY_FIELDS U32 unused;
#endif
