// guidance.c: see guidance.h. Compile without floating-point contraction.
#include "engine/guidance.h"

void guidance_cfg(float *out, const float *cond, const float *uncond, float scale, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float difference = cond[i] - uncond[i];
        out[i] = uncond[i] + scale * difference;
    }
}
