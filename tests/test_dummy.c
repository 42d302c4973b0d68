// test_dummy.c: computed weights: valid numbers of the promised size in every type, the same bytes
// however they are asked for, and tensors that differ.
#include "tests/check.h"

#include <math.h>

#include "backend/os.h"
#include "backend/quant.h"
#include "engine/dummy.h"

static const DType types[] = {DT_F32,  DT_F16,  DT_BF16, DT_F8_E4M3, DT_F8_E5M2, DT_Q8_0,
                              DT_Q4_0, DT_Q4_1, DT_Q5_0, DT_Q5_1,    DT_Q2_K,    DT_Q3_K,
                              DT_Q4_K, DT_Q5_K, DT_Q6_K, DT_IQ4_NL,  DT_IQ4_XS};

static const BindWant wants[] = {
    {.name = "a.weight", .ndim = 2, .shape = {96, 512}},
    {.name = "b.weight", .ndim = 2, .shape = {96, 512}},
    {.name = "norm.scale", .ndim = 1, .shape = {777}},
    {.name = "a.bias", .ndim = 1, .shape = {100}},
    {.name = "conv.weight", .ndim = 4, .shape = {16, 8, 3, 3}, .layout = BIND_CONV},
    {.name = "odd.weight", .ndim = 2, .shape = {7, 13}},
};

static void numbers(const Weights *w, const char *name, float *out, Error *errp) {
    Error err = {0};
    const WeightTensor *t = weights_find(w, name);
    assert_non_null(t);
    uint8_t *raw = mem_new(NULL, t->bytes);
    CHECK(weights_read(w, t, 0, raw, t->bytes, &err));
    if (dtype_is_packed(t->dtype)) quant_decode(t->dtype, raw, out, (int64_t)t->count);
    else dtype_convert(DT_F32, out, t->dtype, raw, (size_t)t->count);
    mem_free(raw);
    if (errp) *errp = err;
}

static void moments(const float *x, int n, double *mean, double *deviation) {
    double sum = 0, square = 0;
    for (int i = 0; i < n; i++) {
        assert_true(isfinite(x[i]));
        sum += (double)x[i], square += (double)x[i] * (double)x[i];
    }
    *mean = sum / n;
    *deviation = sqrt(square / n - *mean * *mean);
}

static void test_numbers(void **state) {
    (void)state;
    static float x[96 * 512], y[96 * 512];
    for (size_t k = 0; k < COUNT_OF(types); k++) {
        Weights *w = dummy_weights(NULL, "dummy", wants, (int)COUNT_OF(wants), types[k], 7);
        assert_non_null(w);
        assert_int_equal(weights_find(w, "a.weight")->dtype, types[k]);
        double mean, deviation, wish = 1 / sqrt(512);
        numbers(w, "a.weight", x, NULL);
        moments(x, 96 * 512, &mean, &deviation);
        if (fabs(mean) > 0.15 * wish || deviation < 0.85 * wish || deviation > 1.15 * wish)
            fail_msg("%s: mean %g, deviation %g (%g wished)", dtype_name(types[k]), mean, deviation, wish);
        numbers(w, "b.weight", y, NULL);
        int equal = 0;
        for (int i = 0; i < 96 * 512; i++) equal += x[i] == y[i];
        assert_true(equal < 96 * 512 / 2); // two bits a number: a quarter of them meets by chance
        numbers(w, "norm.scale", x, NULL);
        moments(x, 777, &mean, &deviation);
        assert_true(fabs(mean - 1) < 0.01 && deviation > 0.04 && deviation < 0.08);
        numbers(w, "a.bias", x, NULL);
        moments(x, 100, &mean, &deviation);
        assert_true(fabs(mean) < 0.01 && deviation > 0.005 && deviation < 0.02);
        numbers(w, "conv.weight", x, NULL);
        moments(x, 16 * 72, &mean, &deviation);
        assert_true(deviation > 0.1 && deviation < 0.13);
        if (dtype_block(types[k]) > 1) {
            assert_int_equal(weights_find(w, "odd.weight")->dtype, DT_BF16);
            assert_int_equal(weights_find(w, "conv.weight")->dtype, DT_BF16);
        }
        weights_close(w);
    }
}

// Any range gives the bytes that the whole tensor has there; another seed gives others.
static void test_ranges(void **state) {
    (void)state;
    Error err = {0};
    for (size_t k = 0; k < COUNT_OF(types); k++) {
        Weights *w = dummy_weights(NULL, "dummy", wants, (int)COUNT_OF(wants), types[k], 7);
        Weights *other = dummy_weights(NULL, "dummy", wants, (int)COUNT_OF(wants), types[k], 8);
        uint32_t seed = 1;
        for (int i = 0; i < weights_count(w); i++) {
            const WeightTensor *t = weights_at(w, i);
            uint8_t *whole = mem_new(w, t->bytes), *part = mem_new(w, t->bytes);
            CHECK(weights_read(w, t, 0, whole, t->bytes, &err));
            for (int turn = 0; turn < 50; turn++) {
                seed = seed * 1664525u + 1013904223u;
                uint64_t from = (seed >> 8) % t->bytes, n = (seed >> 3) % (t->bytes - from) + 1;
                if (turn % 2) n = MIN(n, 9);
                CHECK(weights_read(w, t, from, part, n, &err));
                assert_memory_equal(part, whole + from, n);
            }
            CHECK(weights_read(other, weights_find(other, t->name), 0, part, t->bytes, &err));
            assert_memory_not_equal(part, whole, t->bytes);
        }
        weights_close(w);
        weights_close(other);
    }
}

static void test_speed(void **state) {
    (void)state;
    enum { BYTES = 32 << 20 };
    BindWant want = {.name = "big.weight", .ndim = 2, .shape = {BYTES / 4096, 4096}};
    uint8_t *out = mem_new(NULL, BYTES);
    memset(out, 1, BYTES);
    for (size_t k = 0; k < COUNT_OF(types); k++) {
        Weights *w = dummy_weights(NULL, "dummy", &want, 1, types[k], 7);
        const WeightTensor *t = weights_at(w, 0);
        uint64_t bytes = MIN(t->bytes, BYTES);
        double start = os_seconds();
        Error err = {0};
        CHECK(weights_read(w, t, 0, out, bytes, &err));
        double seconds = os_seconds() - start;
        print_message("    %-9s %.2f GB/s\n", dtype_name(types[k]), (double)bytes / seconds * 1e-9);
        assert_true((double)bytes / seconds > 100e6); // also under sanitizers; plain builds: several GB/s
        weights_close(w);
    }
    mem_free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
