// timestep.c: see timestep.h. Compile without floating-point contraction.
#include "models/timestep.h"

#include <math.h>

static void put(double angle, int i, int half, float *out) {
    out[i] = (float)cos(angle);
    out[half + i] = (float)sin(angle);
}

void timestep_features(double t, int width, float *out) {
    const int half = width / 2;
    for (int i = 0; i < half; i++) put(1000.0 * t * exp(-log(10000.0) * i / half), i, half, out);
}

void timestep_features_f32(double t, int width, float *out) {
    const int half = width / 2;
    const float scaled = (float)(1000.0 * t), slope = -(float)log(10000.0);
    for (int i = 0; i < half; i++) {
        float exponent = slope * (float)i / (float)half;
        float frequency = (float)exp((double)exponent), angle = scaled * frequency;
        put((double)angle, i, half, out);
    }
}
