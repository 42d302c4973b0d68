// rope: rotary position embedding (Su et al. 2021): pairs of a head's numbers are rotated by an
// angle that depends on the token: (a, b) -> (a cos - b sin, a sin + b cos).
//
//   x, y [B, T, H, D], table [1 or B, T, P, 2] f32 (cos, sin) with 2 P <= D; the first 2 P numbers
//   are rotated, the rest is copied. half 0: pairs are (2 i, 2 i + 1); half 1: (i, i + P).
//   The table is computed on the host in f64 (engine/rope.h).
#ifndef KILN_OPS_ROPE_H
#define KILN_OPS_ROPE_H
#include "tensor.h"

#define ROPE_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    IN(rope, x) IN(rope, table) OUT(rope, y)
#define ROPE_FIELDS U32 half;
#endif
