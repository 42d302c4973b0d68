// timestep.c: see timestep.h.
#include "models/timestep.h"

#include <math.h>

void timestep_features(double t, int width, float *out) {
    const int half = width / 2;
    for (int i = 0; i < half; i++) {
        double angle = 1000.0 * t * exp(-log(10000.0) * i / half);
        out[i] = (float)cos(angle);
        out[half + i] = (float)sin(angle);
    }
}
