// test_rng.c: generators against recorded PyTorch numbers, published vectors and statistics.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "engine/rng.h"
#include "engine/safetensors.h"

static const char GOLDEN[] = "tests/golden/rng_torch.safetensors";
static const uint64_t SEEDS[] = {0, 1, 42, (1ull << 32) + 5};
static const size_t LENGTHS[] = {1, 15, 16, 17, 1000};

static StFile *golden(void) {
    Error err = {0};
    StFile *f = st_open(NULL, GOLDEN, &err);
    if (!f) fail_msg("%s", err.text);
    return f;
}

static void expect_close(const StFile *f, const char *name, const float *got, size_t n,
                         double limit) {
    const StTensor *t = st_find(f, name);
    if (!t) fail_msg("%s has no tensor %s", GOLDEN, name);
    assert_int_equal(t->count, n);
    float *want = MEM_ARRAY(NULL, float, n);
    st_to_f32(t, want);
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= limit))
            fail_msg("%s[%zu]: expected %.9g, found %.9g", name, i, want[i], got[i]);
    mem_free(want);
}

static void torch_cpu_matches_recorded_numbers(void **state) {
    (void)state;
    StFile *f = golden();
    float v[1000];
    char name[64];
    RngTorch r;
    for (size_t s = 0; s < COUNT_OF(SEEDS); s++) {
        unsigned long long seed = SEEDS[s];
        for (size_t k = 0; k < COUNT_OF(LENGTHS); k++) {
            rng_torch_seed(&r, seed);
            rng_torch_randn(&r, v, LENGTHS[k]);
            snprintf(name, sizeof name, "cpu.seed%llu.n%zu", seed, LENGTHS[k]);
            expect_close(f, name, v, LENGTHS[k], 2e-6);
        }
        rng_torch_seed(&r, seed);
        rng_torch_rand(&r, v, 33);
        snprintf(name, sizeof name, "cpu.seed%llu.rand.n33", seed);
        expect_close(f, name, v, 33, 0);
        // One generator, draws in turn: the spare of a short draw outlives a long one.
        static const size_t draws[] = {3, 5, 20, 1, 17, 2};
        size_t at = 0;
        rng_torch_seed(&r, seed);
        for (size_t d = 0; d < COUNT_OF(draws); at += draws[d++])
            rng_torch_randn(&r, v + at, draws[d]);
        snprintf(name, sizeof name, "cpu.seed%llu.draws", seed);
        expect_close(f, name, v, at, 2e-6);
    }
    st_close(f);
}

static void torch_keeps_32_bits_of_the_seed(void **state) {
    (void)state;
    RngTorch a, b;
    float x[20], y[20];
    rng_torch_seed(&a, 5);
    rng_torch_seed(&b, (1ull << 32) + 5);
    rng_torch_randn(&a, x, 20);
    rng_torch_randn(&b, y, 20);
    assert_memory_equal(x, y, sizeof x);
    rng_torch_seed(&b, 6);
    rng_torch_randn(&b, y, 20);
    assert_memory_not_equal(x, y, sizeof x);
}

// The standard's check of mt19937: the 10,000th word from the default seed.
static void mt19937_known_word(void **state) {
    (void)state;
    RngTorch r;
    rng_torch_seed(&r, 5489);
    uint32_t x = 0;
    for (int i = 0; i < 10000; i++) x = rng_torch_u32(&r);
    assert_int_equal(x, 4123659995u);
}

// Vectors that were published with Random123.
static void philox_known_vectors(void **state) {
    (void)state;
    static const struct {
        uint32_t ctr[4], key[2], out[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        uint32_t c[4];
        memcpy(c, cases[i].ctr, sizeof c);
        rng_philox(c, cases[i].key);
        assert_memory_equal(c, cases[i].out, sizeof c);
    }
}

static void torch_cuda_matches_recorded_numbers(void **state) {
    (void)state;
    StFile *f = golden();
    float v[1000];
    char name[64];
    RngCuda r;
    for (size_t s = 0; s < COUNT_OF(SEEDS); s++) {
        unsigned long long seed = SEEDS[s];
        for (size_t k = 0; k < COUNT_OF(LENGTHS); k++) {
            rng_cuda_seed(&r, seed, 0);
            rng_cuda_randn(&r, v, LENGTHS[k]);
            snprintf(name, sizeof name, "cuda.seed%llu.n%zu", seed, LENGTHS[k]);
            expect_close(f, name, v, LENGTHS[k], 2e-6);
        }
        rng_cuda_seed(&r, seed, 864);
        rng_cuda_randn(&r, v, 17);
        rng_cuda_randn(&r, v, 17);
        snprintf(name, sizeof name, "cuda.seed%llu.n17.second", seed);
        expect_close(f, name, v, 17, 2e-6);
    }
    st_close(f);
    // What web UIs document for seed 0 of an NVIDIA card.
    static const float known[12] = {-0.92466259f, -0.42534415f, -2.6438457f,  0.14518388f,
                                    -0.12086647f, -0.57972564f, -0.62285122f, -0.32838709f,
                                    -1.07454231f, -0.36314407f, -1.67105067f, 2.26550497f};
    rng_cuda_seed(&r, 0, 0);
    rng_cuda_randn(&r, v, 12);
    for (int i = 0; i < 12; i++) assert_true(fabsf(v[i] - known[i]) <= 2e-6f);
}

// Draws larger than the grid: each thread goes on with the rest of its four, then its next step.
static void cuda_grid_is_walked_in_strides(void **state) {
    (void)state;
    enum { THREADS = 256, N = THREADS * 4 + 100 };
    float big[N], small[THREADS];
    RngCuda r;
    rng_cuda_seed(&r, 7, 1);
    rng_cuda_randn(&r, big, N);
    assert_int_equal(r.offset, 2);
    rng_cuda_seed(&r, 7, 1);
    rng_cuda_randn(&r, small, THREADS);
    assert_memory_equal(big, small, sizeof small);
    rng_cuda_randn(&r, small, THREADS); // the second step of each thread
    assert_memory_equal(big + THREADS * 4, small, 100 * sizeof(float));
    // Number 1 of a thread is the cosine to the sine of number 0: the radius is one of both.
    const uint32_t key[2] = {7, 0};
    for (uint32_t t = 0; t < THREADS; t++) {
        uint32_t c[4] = {0, 0, t, 0};
        rng_philox(c, key);
        for (int pair = 0; pair < 2; pair++) {
            double u = ((double)c[pair * 2] + 0.5) * 0x1p-32;
            double a = big[t + THREADS * 2 * pair], b = big[t + THREADS * (2 * pair + 1)];
            assert_true(fabs(a * a + b * b + 2 * log(u)) < 1e-4);
        }
    }
}

static void own_generator_is_pinned(void **state) {
    (void)state;
    // The published algorithm's first words from the state {1, 2, 3, 4}.
    Rng r = {{1, 2, 3, 4}};
    static const uint64_t want[] = {41943041u, 58720359u, 3588806011781223u, 3591011842654386u};
    for (size_t i = 0; i < COUNT_OF(want); i++) assert_true(rng_u64(&r) == want[i]);
    Rng a, b, c;
    rng_seed(&a, 1, 0);
    rng_seed(&b, 1, 0);
    rng_seed(&c, 1, 1);
    uint64_t x = rng_u64(&a);
    assert_true(x == rng_u64(&b));
    assert_true(x != rng_u64(&c));
    // A saved state goes on bit for bit.
    Rng saved = a;
    float first[7], again[7];
    rng_fill_normal(&a, first, 7);
    rng_fill_normal(&saved, again, 7);
    assert_memory_equal(first, again, sizeof first);
}

static void check_normal(double *v, size_t n) {
    double mean = 0, var = 0, third = 0, fourth = 0;
    for (size_t i = 0; i < n; i++) mean += v[i] / (double)n;
    for (size_t i = 0; i < n; i++) {
        double d = v[i] - mean;
        var += d * d / (double)n;
        third += d * d * d / (double)n;
        fourth += d * d * d * d / (double)n;
    }
    assert_true(fabs(mean) < 0.01 && fabs(var - 1) < 0.02);
    assert_true(fabs(third) < 0.03 && fabs(fourth - 3) < 0.1);
}

static void own_generator_statistics(void **state) {
    (void)state;
    enum { N = 200000 };
    Rng r;
    rng_seed(&r, 12345, 6);
    double *v = MEM_ARRAY(NULL, double, N);
    for (int i = 0; i < N; i++) v[i] = rng_normal(&r);
    check_normal(v, N);
    float *f = MEM_ARRAY(v, float, N);
    rng_fill_normal(&r, f, N - 1); // odd
    assert_true(f[N - 1] == 0);
    for (int i = 0; i < N; i++) v[i] = f[i];
    check_normal(v, N);
    double sum = 0, sum64 = 0;
    for (int i = 0; i < N; i++) {
        float u = rng_f32(&r);
        double d = rng_f64(&r);
        assert_true(u >= 0 && u < 1 && d >= 0 && d < 1);
        sum += u;
        sum64 += d;
    }
    assert_true(fabs(sum / N - 0.5) < 0.005 && fabs(sum64 / N - 0.5) < 0.005);
    int count[10] = {0};
    for (int i = 0; i < N; i++) {
        uint64_t k = rng_below(&r, 10);
        assert_true(k < 10);
        count[k]++;
    }
    for (int i = 0; i < 10; i++) assert_true(abs(count[i] - N / 10) < 700);
    assert_true(rng_below(&r, 0) == 0 && rng_below(&r, 1) == 0);
    uint64_t large = (1ull << 63) + 1; // nearly half of all words are rejected
    for (int i = 0; i < 1000; i++) assert_true(rng_below(&r, large) < large);
    mem_free(v);
}

static void shuffle_is_fair(void **state) {
    (void)state;
    Rng r;
    rng_seed(&r, 3, 0);
    int place[5][5] = {{0}};
    for (int round = 0; round < 20000; round++) {
        uint32_t v[5] = {0, 1, 2, 3, 4}, seen = 0;
        rng_shuffle(&r, v, 5);
        for (int i = 0; i < 5; i++) {
            seen |= 1u << v[i];
            place[i][v[i]]++;
        }
        assert_int_equal(seen, 31);
    }
    for (int i = 0; i < 25; i++) assert_true(abs(place[i / 5][i % 5] - 4000) < 300);
    rng_shuffle(&r, NULL, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(torch_cpu_matches_recorded_numbers),
        cmocka_unit_test(torch_keeps_32_bits_of_the_seed),
        cmocka_unit_test(mt19937_known_word),
        cmocka_unit_test(philox_known_vectors),
        cmocka_unit_test(torch_cuda_matches_recorded_numbers),
        cmocka_unit_test(cuda_grid_is_walked_in_strides),
        cmocka_unit_test(own_generator_is_pinned),
        cmocka_unit_test(own_generator_statistics),
        cmocka_unit_test(shuffle_is_fair),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
