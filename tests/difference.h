// difference.h: how far results are from what they should be. For tests alone.
#ifndef KILN_TESTS_DIFFERENCE_H
#define KILN_TESTS_DIFFERENCE_H

#include <math.h>
#include <stddef.h>

// Largest difference, as a share of the largest value.
static inline double difference(const float *got, const float *want, size_t n) {
    double worst = 0, largest = 1e-30;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - want[i]);
        if (!(d <= worst)) worst = d; // NaN too
        largest = fmax(largest, fabs(want[i]));
    }
    return worst / largest;
}

#endif
