// rope.h: tables for the op `rope`: cosines and sines of the rotation angles of rotary position
// embedding (Su et al. 2021), computed in f64 and rounded once.
//
// Thread-safety: all functions are pure.
#ifndef KILN_ENGINE_ROPE_H
#define KILN_ENGINE_ROPE_H

#include "backend/base.h"

// One position axis of a head: `dim` numbers (even) are rotated by its angles.
typedef struct RopeAxis {
    int dim;
    double theta; // base: pair i turns by position * theta^(-2 i / dim)
} RopeAxis;

// positions [tokens, axes] (numbers, not only whole ones), out [tokens, pairs, 2] (cos, sin): half the sum
// of all dims are pairs, the axes' one after another.
void rope_fill(const RopeAxis *axis, int axes, const double *positions, int64_t tokens, float *out);

#endif
