// adamw: one step of AdamW (Loshchilov and Hutter 2019, as torch.optim.AdamW), in place.
//
//   p, m, v, ema [N] f32, g [N] any float type, hyper [10] f32 read on the device, so that one
//   recording serves every step:
//     0 lr, 1 beta1, 2 beta2, 3 eps, 4 weight_decay, 5 1 - beta1^t, 6 1 - beta2^t,
//     7 1 / loss scale, 8 EMA decay, 9 unused
//   found_inf [1] f32: when not 0 nothing changes (the step is skipped).
//   g' = g * inv_scale; p -= lr wd p; m = b1 m + (1 - b1) g'; v = b2 v + (1 - b2) g'^2;
//   p -= (lr / bc1) m / (sqrt(v) / sqrt(bc2) + eps); ema = decay ema + (1 - decay) p.
#ifndef KILN_OPS_ADAMW_H
#define KILN_OPS_ADAMW_H
#include "tensor.h"

#define ADAMW_HYPER_COUNT 10
#define ADAMW_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    RW(adamw, p) RW(adamw, m) RW(adamw, v) OPT_RW(adamw, ema) IN(adamw, g) IN(adamw, hyper) \
    OPT(adamw, found_inf)
#define ADAMW_FIELDS U32 unused;
#endif
