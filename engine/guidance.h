// guidance.h: how answers of the model under several conditions become one.
#ifndef KILN_ENGINE_GUIDANCE_H
#define KILN_ENGINE_GUIDANCE_H

#include "backend/base.h"

// Classifier-free guidance (J. Ho and T. Salimans 2022): out = uncond + scale (cond - uncond), each
// [n]. out may be either of the inputs.
void guidance_cfg(float *out, const float *cond, const float *uncond, float scale, size_t n);

#endif
