// rope.c: see rope.h.
#include "engine/rope.h"

#include <math.h>

static int rope_pairs(const RopeAxis *axis, int axes) {
    int pairs = 0;
    for (int i = 0; i < axes; i++) pairs += axis[i].dim / 2;
    return pairs;
}

void rope_fill(const RopeAxis *axis, int axes, const double *positions, int64_t tokens, float *out) {
    int pairs = rope_pairs(axis, axes);
    double *frequency = MEM_ARRAY(NULL, double, MAX(pairs, 1));
    int k = 0;
    for (int a = 0; a < axes; a++)
        for (int i = 0; i < axis[a].dim / 2; i++)
            frequency[k++] = pow(axis[a].theta, -2.0 * i / axis[a].dim);
    for (int64_t t = 0; t < tokens; t++) {
        k = 0;
        for (int a = 0; a < axes; a++)
            for (int i = 0; i < axis[a].dim / 2; i++, k++) {
                double angle = positions[t * axes + a] * frequency[k];
                *out++ = (float)cos(angle);
                *out++ = (float)sin(angle);
            }
    }
    mem_free(frequency);
}
