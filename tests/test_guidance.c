// Guidance over a run, dynamic thresholding (engine/guidance.h), noise of a request
// (engine/noise.h) and previews (engine/preview.h). Numbers of NumPy and PyTorch, recorded by
// tools/ref/make_sampling_golden.py.
#include "engine/guidance.h"
#include "engine/noise.h"
#include "engine/preview.h"
#include "engine/rng.h"
#include "tests/golden.h"

static StFile *open_golden(void) {
    Error err = {0};
    StFile *f = st_open(NULL, "tests/golden/sampling.safetensors", &err);
    CHECK(f);
    return f;
}

// ---- the scale over the run ---------------------------------------------------------------------

static void scales_follow_their_formula(void **state) {
    (void)state;
    static const int counts[] = {1, 2, 5, 28};
    StFile *f = open_golden();
    int kinds = 0;
    for (; guidance_at(kinds); kinds++) {
        Guidance g = {.scale = 5, .kind = guidance_at(kinds)};
        assert_ptr_equal(guidance_find(g.kind->name), g.kind);
        for (size_t c = 0; c < COUNT_OF(counts); c++) {
            char *key = mem_printf(f, "cfg.%s.%d", g.kind->name, counts[c]);
            const float *want = golden(f, key, NULL);
            double mean = 0;
            for (int i = 0; i < counts[c]; i++) {
                double got = guidance_scale(&g, i, counts[c]);
                assert_true(fabs(got - (double)want[i]) < 1e-6);
                mean += got / counts[c];
            }
            assert_true(fabs(mean - 5) < 1e-12);
        }
    }
    assert_int_equal(kinds, 3);
    assert_null(guidance_find("square"));
    st_close(f);
}

static void interval_limits_guidance(void **state) {
    (void)state;
    Guidance g = {.scale = 5, .lo = 0.25, .hi = 0.5};
    static const bool guided[8] = {false, false, true, true}; // u = 1/16, 3/16, 5/16, 7/16, ...
    for (int i = 0; i < 8; i++) assert_true(guidance_scale(&g, i, 8) == (guided[i] ? 5.0 : 1.0));
    assert_true(guidance_any(&g, 8));
    g.lo = 0.9, g.hi = 0.91;
    assert_false(guidance_any(&g, 8)); // no step falls into it
    Guidance none = {.scale = 1, .kind = guidance_find("cosine")};
    assert_false(guidance_any(&none, 8));
    Guidance whole = {.scale = 0.1};
    for (int i = 0; i < 8; i++) assert_true(guidance_scale(&whole, i, 8) == 0.1);

    Error err = {0};
    double lo = 0, hi = 0;
    CHECK(guidance_interval("0.1:0.8", &lo, &hi, &err));
    assert_true(lo == 0.1 && hi == 0.8);
    CHECK(guidance_interval("0:1", &lo, &hi, &err));
    static const char *const wrong[] = {"", ":", "0.1", "0.1:", ":1", "0.8:0.1", "0.5:0.5", "-1:1",
                                        "0:1.5", "0:1x", "nan:1", "0:nan", "a:b", "0.1:0.2:0.3"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        assert_false(guidance_interval(wrong[i], &lo, &hi, &err));
        assert_int_equal(err.status, STATUS_USAGE);
    }
}

// ---- dynamic thresholding -----------------------------------------------------------------------

static void quantiles_are_those_of_torch(void **state) {
    (void)state;
    static const int counts[] = {1, 2, 3, 10, 999, 1000}, parts[] = {0, 500, 900, 995, 1000};
    StFile *f = open_golden();
    const float *v = golden(f, "quantile.v", NULL);
    for (size_t c = 0; c < COUNT_OF(counts); c++) {
        for (size_t q = 0; q < COUNT_OF(parts); q++) {
            float work[1000];
            for (int i = 0; i < counts[c]; i++) work[i] = fabsf(v[i]);
            float got = guidance_quantile(work, (size_t)counts[c], parts[q] / 1000.0);
            char *key = mem_printf(f, "quantile.%d.%d", counts[c], parts[q]);
            expect_near(key, &got, golden(f, key, NULL), 1, 3e-7);
        }
    }
    float same[100], odd[5] = {NAN, 1, NAN, 2, 3};
    for (int i = 0; i < 100; i++) same[i] = 0.5f;
    assert_true(guidance_quantile(same, 100, 0.995) == 0.5f);
    guidance_quantile(odd, 5, 0.9); // ends, in bounds
    st_close(f);
}

enum { PICTURES = 2, EACH = 300, ALL = PICTURES * EACH };

static void threshold_follows_its_definition(void **state) {
    (void)state;
    StFile *f = open_golden();
    const float *x = golden(f, "threshold.x", NULL), *cond = golden(f, "threshold.cond", NULL);
    const float *uncond = golden(f, "threshold.uncond", NULL);
    const float *want = golden(f, "threshold.v", NULL);
    Guidance g = {.scale = 6, .threshold = 0.995};
    float v[ALL], a[ALL], b[ALL];
    guidance_apply(&g, 0, 1, v, cond, uncond, x, -0.625, PICTURES, EACH);
    expect_near("threshold", v, want, ALL, 2e-5);
    memcpy(a, cond, sizeof a), memcpy(b, uncond, sizeof b);
    guidance_apply(&g, 0, 1, a, a, uncond, x, -0.625, PICTURES, EACH); // in place
    guidance_apply(&g, 0, 1, b, cond, b, x, -0.625, PICTURES, EACH);
    assert_memory_equal(a, v, sizeof v);
    assert_memory_equal(b, v, sizeof v);
    // A rising time gives velocities of the other sign, and the same clean latents.
    for (int i = 0; i < ALL; i++) a[i] = -cond[i], b[i] = -uncond[i];
    guidance_apply(&g, 0, 1, a, a, b, x, 0.625, PICTURES, EACH);
    for (int i = 0; i < ALL; i++) assert_true(a[i] == -v[i]);
    // Each picture by itself.
    guidance_apply(&g, 0, 1, a, cond + EACH, uncond + EACH, x + EACH, -0.625, 1, EACH);
    assert_memory_equal(a, v + EACH, EACH * sizeof *a);
    st_close(f);
}

static void without_guidance_only_outliers_move(void **state) {
    (void)state;
    StFile *f = open_golden();
    const float *x = golden(f, "threshold.x", NULL), *cond = golden(f, "threshold.cond", NULL);
    float v[ALL];
    Guidance g = {.scale = 1};
    guidance_apply(&g, 0, 1, v, cond, NULL, x, -0.625, PICTURES, EACH);
    assert_memory_equal(v, cond, sizeof v);
    g.threshold = 0.9;
    guidance_apply(&g, 0, 1, v, cond, NULL, x, -0.625, PICTURES, EACH);
    int moved = 0;
    for (int i = 0; i < ALL; i++) moved += v[i] != cond[i];
    assert_int_equal(moved, ALL / 10);
    g.threshold = 1; // the quantile is the largest value: nothing is over it
    guidance_apply(&g, 0, 1, v, cond, NULL, x, -0.625, PICTURES, EACH);
    assert_memory_equal(v, cond, sizeof v);
    float zeros[4] = {0}, out[4];
    guidance_apply(&g, 0, 1, out, zeros, NULL, zeros, -0.5, 1, 4); // no division by a zero quantile
    assert_memory_equal(out, zeros, sizeof out);
    st_close(f);
}

// ---- noise --------------------------------------------------------------------------------------

// Picture k's generator is PyTorch's with seed + k, and later draws continue it.
static void noise_continues_each_generator(void **state) {
    (void)state;
    enum { COUNT = 3, N = 40 };
    float draws[2][COUNT * N], want[N];
    NoiseSource *s = noise_new(NULL, NOISE_TORCH, 42, 1, COUNT, N);
    for (int d = 0; d < 2; d++) noise_draw(s, draws[d]);
    for (int k = 0; k < COUNT; k++) {
        RngTorch rng;
        rng_torch_seed(&rng, 43 + (uint64_t)k);
        for (int d = 0; d < 2; d++) {
            rng_torch_randn(&rng, want, N);
            assert_memory_equal(draws[d] + k * N, want, sizeof want);
            if (d) continue;
            float first[N];
            noise_first(NOISE_TORCH, 43 + (uint64_t)k, first, N);
            assert_memory_equal(first, want, sizeof want);
        }
    }
    mem_free(s);
    s = noise_new(NULL, NOISE_CUDA, 42, 0, 1, N);
    RngCuda cuda;
    rng_cuda_seed(&cuda, 42, 0);
    for (int d = 0; d < 2; d++) {
        noise_draw(s, draws[d]);
        rng_cuda_randn(&cuda, want, N);
        assert_memory_equal(draws[d], want, sizeof want);
    }
    assert_memory_not_equal(draws[0], draws[1], sizeof want);
    mem_free(s);
}

// ---- previews -----------------------------------------------------------------------------------

static void previews_are_linear(void **state) {
    (void)state;
    Error err = {0};
    assert_null(preview_table(5));
    const PreviewTable *t = preview_table(16);
    assert_non_null(t);
    float latent[16 * 6] = {0}; // 3 wide, 2 high
    latent[6 * 6 + 4] = 2;      // channel 6 of (1, 1)
    latent[12 * 6 + 2] = 100, latent[13 * 6 + 0] = 100, latent[5] = NAN;
    Image *image = preview_image(NULL, t, latent, 3, 2, &err);
    CHECK(image);
    assert_true(image->width == 3 && image->height == 2);
    for (int c = 0; c < 3; c++) {
        const uint8_t *p = image->rgb + c;
        assert_int_equal(p[3], lround((t->bias[c] + 1) * 127.5));
        assert_int_equal(p[4 * 3], lround((t->bias[c] + 2 * t->weight[6][c] + 1) * 127.5));
        assert_int_equal(p[2 * 3], 255);
        assert_int_equal(p[0], 0);
        assert_int_equal(p[5 * 3], 0); // not a number
    }
    mem_free(image);
    assert_null(preview_image(NULL, t, latent, 0, 2, &err));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_follow_their_formula),
        cmocka_unit_test(interval_limits_guidance),
        cmocka_unit_test(quantiles_are_those_of_torch),
        cmocka_unit_test(threshold_follows_its_definition),
        cmocka_unit_test(without_guidance_only_outliers_move),
        cmocka_unit_test(noise_continues_each_generator),
        cmocka_unit_test(previews_are_linear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
