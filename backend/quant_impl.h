// quant_impl.h: what quant.c (decoding) and quant_encode.c share.
#ifndef KILN_QUANT_IMPL_H
#define KILN_QUANT_IMPL_H

#include "backend/quant.h"

extern const int8_t quant_iq4_values[16]; // the code book of IQ4_NL and IQ4_XS, rising
// Scale j (of 16) of a Q3_K block's 12 bytes of scales, and scale and minimum j (of 8) of Q4_K, Q5_K.
int quant_q3_k_scale(const uint8_t *s, int j);
void quant_k_scale(const uint8_t *s, int j, int *scale, int *min);

#endif
