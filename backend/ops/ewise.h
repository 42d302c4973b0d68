// ewise: o = f(x, y, z) per element, up to six dimensions, inputs broadcast by stride 0.
#ifndef KILN_OPS_EWISE_H
#define KILN_OPS_EWISE_H
#include "tensor.h"

#define EW_SCALE 0     // alpha x + beta
#define EW_ACT 1       // act(x)
#define EW_ACT_BWD 2   // y act'(x): y is the gradient of act's output
#define EW_ADD 3       // x + y
#define EW_SUB 4       // x - y
#define EW_MUL 5       // x y
#define EW_DIV 6       // x / y
#define EW_MULADD 7    // x y + z
#define EW_MODULATE 8  // x (1 + y) + z
#define EW_SQUARE 9    // x x
#define EW_CLAMP 10    // min(max(x, alpha), beta)
#define EW_EXP 11      // e^x
#define EW_SQRT 12     // square root
#define EW_COUNT 13

#define EWISE_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW)                                          \
    IN(ewise, x) OPT(ewise, y) OPT(ewise, z) OUT(ewise, o)
#define EWISE_FIELDS \
    U32 kind; /* EW_* */ \
    U32 act;  /* ACT_*, for EW_ACT and EW_ACT_BWD */ \
    F32 alpha; \
    F32 beta;
#endif
