// golden.h: numbers recorded in a safetensors file, for tests alone.
#ifndef KILN_TESTS_GOLDEN_H
#define KILN_TESTS_GOLDEN_H

#include "engine/safetensors.h"
#include "tests/check.h"

#include <math.h>

// Tensor `name` as f32, below `file`; *n (may be NULL) becomes the number of its elements.
static inline float *golden(const StFile *file, const char *name, size_t *n) {
    Error err = {0};
    const StTensor *t = st_get(file, name, &err);
    CHECK(t);
    float *v = MEM_ARRAY((void *)file, float, t->count);
    st_to_f32(t, v);
    if (n) *n = (size_t)t->count;
    return v;
}

// Limit 0: the same bits (but for the sign of zero).
static inline void expect_near(const char *name, const float *got, const float *want, size_t n,
                               double limit) {
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= limit))
            fail_msg("%s[%zu]: expected %.9g, found %.9g", name, i, (double)want[i],
                     (double)got[i]);
}

#endif
