// model_check.h: shared by the tests of models that run as stacks: golden files, running a stage,
// comparing. For tests alone.
#ifndef KILN_TESTS_MODEL_CHECK_H
#define KILN_TESTS_MODEL_CHECK_H

#include "engine/config.h"
#include "engine/npy.h"
#include "engine/stack.h"
#include "tests/check_device.h"
#include "tests/difference.h"

#include <math.h>
#include <stdlib.h>

#ifndef KILN_SOURCE_DIR
#define KILN_SOURCE_DIR "."
#endif
#define GOLDEN KILN_SOURCE_DIR "/tests/golden/"
#define CONFIG(json) (&(const ConfigFile){"some/config.json", json})

// A tensor of a file as f32.
static inline float *golden(void *parent, const Weights *w, const char *name, size_t *n) {
    Error err = {0};
    const WeightTensor *t = weights_find(w, name);
    if (!t) fail_msg("%s: no tensor %s", weights_path(w), name);
    void *raw = mem_new(parent, (size_t)t->bytes);
    float *out = MEM_ARRAY(parent, float, t->count);
    CHECK(weights_read(w, t, 0, raw, t->bytes, &err));
    dtype_convert(DT_F32, out, t->dtype, raw, (size_t)t->count);
    if (n) *n = (size_t)t->count;
    return out;
}

static inline int64_t golden_dim(const Weights *w, const char *name, int axis) {
    const WeightTensor *t = weights_find(w, name);
    if (!t || t->ndim <= axis) fail_msg("%s: no tensor %s", weights_path(w), name);
    return t->shape[axis];
}

static inline int32_t *golden_ids(void *parent, const Weights *w, const char *name) {
    size_t n;
    float *values = golden(parent, w, name, &n);
    int32_t *out = MEM_ARRAY(parent, int32_t, n);
    for (size_t i = 0; i < n; i++) out[i] = (int32_t)values[i];
    return out;
}

static inline float *param_values(void *parent, Param *p) {
    Error err = {0};
    float *out = MEM_ARRAY(parent, float, param_count(p));
    CHECK(param_read(p, DT_F32, out, &err));
    return out;
}

// A stage ready to be written to.
static inline Stack *stage_open(void *parent, Device *dev, const StackSpec *spec, uint64_t budget) {
    Error err = {0};
    Stack *s = stack_new(parent, dev, spec, budget, &err);
    CHECK(s);
    CHECK(stack_prepare(s, &err));
    return s;
}

// In a test: at full size a model has so many tensors and numbers, and from 1/1 to 1/64 of it (`preset`,
// of `divisor`) is one that runs and for which `holds`, of `c`.
#define CHECK_PRESETS(Config, model, preset, tensors, numbers, holds)        \
    do {                                                                     \
        void *scope = mem_new(NULL, 1);                                      \
        Error err = {0};                                                     \
        for (int divisor = 1; divisor <= 64; divisor++) {                    \
            Config c = preset;                                               \
            CHECK(model##_check_config(&c, &err));                           \
            assert_true(holds);                                              \
            if (divisor > 1) continue;                                       \
            int count;                                                       \
            const BindWant *wants = model##_wants(scope, &c, &count);        \
            assert_int_equal(count, tensors);                                \
            assert_true(wants_parameters(wants, count) == (numbers));        \
        }                                                                    \
        mem_free(scope);                                                     \
    } while (0)

#endif
