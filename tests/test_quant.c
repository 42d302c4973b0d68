// test_quant.c: packed types: decoding and encoding against the gguf package's bits
// (tools/ref/make_weights_golden.py), errors of the searched encodings, fp8, sizes.
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>

#include "backend/quant.h"
#include "engine/rng.h"
#include "engine/safetensors.h"

#define GOLDEN KILN_SOURCE_DIR "/tests/golden/weights/quant.safetensors"

static const StTensor *find(const StFile *f, DType t, const char *what) {
    char name[64];
    snprintf(name, sizeof name, "%s.%s", dtype_name(t), what);
    return st_find(f, name);
}

static void randn(uint64_t seed, float *out, size_t n) {
    RngTorch r;
    rng_torch_seed(&r, seed);
    rng_torch_randn(&r, out, n);
}

static bool same_bits(float a, float b) { return !memcmp(&a, &b, 4) || (isnan(a) && isnan(b)); }

static void decodes_as_ggml(void **state) {
    (void)state;
    Error err = {0};
    StFile *f = st_open(NULL, GOLDEN, &err);
    CHECK(f != NULL);
    int types = 0;
    for (int t = 0; t < DT_COUNT; t++) {
        if (dtype_block((DType)t) == 1) continue;
        const StTensor *blocks = find(f, (DType)t, "blocks"), *values = find(f, (DType)t, "values");
        assert_non_null(blocks);
        assert_int_equal(blocks->bytes, dtype_bytes((DType)t, values->count));
        float *got = malloc(values->bytes), want;
        quant_decode((DType)t, blocks->data, got, (int64_t)values->count);
        for (uint64_t i = 0; i < values->count; i++) {
            memcpy(&want, values->data + 4 * i, 4);
            if (!same_bits(got[i], want))
                fail_msg("%s[%d]: expected %a, found %a", dtype_name((DType)t), (int)i, want, got[i]);
            assert_true(same_bits(quant_load((DType)t, blocks->data, (int64_t)i), want));
        }
        free(got);
        types++;
    }
    assert_int_equal(types, 12);
    st_close(f);
}

static void encodes_as_ggml(void **state) {
    (void)state;
    Error err = {0};
    StFile *f = st_open(NULL, GOLDEN, &err);
    CHECK(f != NULL);
    float x[1024];
    st_to_f32(st_find(f, "x"), x);
    int types = 0;
    for (int t = 0; t < DT_COUNT; t++) {
        const StTensor *want = find(f, (DType)t, "encoded");
        if (!want) continue;
        uint8_t *got = malloc(want->bytes);
        quant_encode((DType)t, x, got, 1024);
        assert_memory_equal(got, want->data, want->bytes);
        free(got);
        types++;
    }
    assert_int_equal(types, 5);
    st_close(f);
}

// Relative errors on normal numbers; a type that lost a bit of its scales or codes is far outside.
static void encodings_are_close(void **state) {
    (void)state;
    static const struct { DType t; double limit; } cases[] = {
        {DT_Q8_0, 0.006}, {DT_Q4_0, 0.09}, {DT_Q4_1, 0.085},   {DT_Q5_0, 0.045},  {DT_Q5_1, 0.04},
        {DT_Q2_K, 0.28},  {DT_Q3_K, 0.15}, {DT_Q4_K, 0.076},  {DT_Q5_K, 0.038},  {DT_Q6_K, 0.018},
        {DT_IQ4_NL, 0.076}, {DT_IQ4_XS, 0.077}, {DT_F8_E4M3, 0.03}, {DT_F8_E5M2, 0.06},
    };
    enum { N = 256 * 64 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    uint8_t *blocks = malloc(N * 2);
    randn(5, x, N);
    for (size_t k = 0; k < COUNT_OF(cases); k++)
        for (int round = 0; round < 2; round++) { // again with all positive: minima are not needed
            double e = 0, s = 0;
            for (int i = 0; i < N; i++) x[i] = round ? fabsf(x[i]) : x[i];
            quant_encode(cases[k].t, x, blocks, N);
            quant_decode(cases[k].t, blocks, y, N);
            for (int i = 0; i < N; i++) e += (y[i] - x[i]) * (y[i] - x[i]), s += x[i] * x[i];
            if (!(sqrt(e / s) < cases[k].limit))
                fail_msg("%s: expected an error below %g, found %g", dtype_name(cases[k].t),
                         cases[k].limit, sqrt(e / s));
            if (round) randn(5, x, N);
        }
    free(x), free(y), free(blocks);
}

// Zeros stay zeros, equal numbers stay close, and what is not finite does no harm.
static void odd_blocks(void **state) {
    (void)state;
    float x[256], y[256];
    uint8_t b[512];
    for (int t = 0; t < DT_COUNT; t++) {
        if (dtype_block((DType)t) == 1) continue;
        memset(x, 0, sizeof x);
        quant_encode((DType)t, x, b, 256);
        quant_decode((DType)t, b, y, 256);
        for (int i = 0; i < 256; i++) assert_true(y[i] == 0);
        for (int i = 0; i < 256; i++) x[i] = -0.75f;
        quant_encode((DType)t, x, b, 256);
        quant_decode((DType)t, b, y, 256);
        for (int i = 0; i < 256; i++) assert_true(fabsf(y[i] + 0.75f) < 0.02f);
        for (int i = 0; i < 256; i++) x[i] = i % 3 ? NAN : i % 2 ? INFINITY : -1e38f;
        quant_encode((DType)t, x, b, 256);
        for (int i = 0; i < 256; i++) x[i] = 1e-39f * (float)i; // below normal numbers
        quant_encode((DType)t, x, b, 256);
        quant_decode((DType)t, b, y, 256);
        for (int i = 0; i < 256; i++) assert_true(fabsf(y[i]) < 1e-6f);
    }
}

static void fp8(void **state) {
    (void)state;
    Error err = {0};
    StFile *f = st_open(NULL, GOLDEN, &err);
    CHECK(f != NULL);
    uint8_t every[256], back[256];
    float want[256], got[256];
    for (int i = 0; i < 256; i++) every[i] = (uint8_t)i;
    for (DType t = DT_F8_E4M3; t <= DT_F8_E5M2; t++) {
        st_to_f32(find(f, t, "values"), want);
        quant_decode(t, every, got, 256);
        quant_encode(t, want, back, 256);
        for (int i = 0; i < 256; i++) {
            assert_true(same_bits(got[i], want[i]) && same_bits(dtype_load(t, every, (size_t)i), want[i]));
            if (isfinite(want[i])) assert_int_equal(back[i], i);
        }
        // Halfway between neighbours: to the even code; a little more: up.
        int top = t == DT_F8_E4M3 ? 0x7e : 0x7b;
        for (int i = 0; i < top; i++) {
            float half = (want[i] + want[i + 1]) / 2, up = nextafterf(half, INFINITY);
            uint8_t a, b;
            dtype_store(t, &a, 0, half);
            dtype_store(t, &b, 0, -up);
            assert_int_equal(a, i + (i & 1));
            assert_int_equal(b, (i + 1) | 0x80);
        }
        float beyond[2] = {1e9f, -INFINITY};
        quant_encode(t, beyond, back, 2); // saturates
        assert_int_equal(back[0], top);
        assert_int_equal(back[1], top | 0x80);
    }
    assert_int_equal(f8_e4m3_from_f32(464), 0x7e);
    assert_int_equal(f8_e4m3_from_f32(465), 0x7f);
    assert_int_equal(f8_e5m2_from_f32(61440), 0x7c);
    assert_int_equal(f8_e5m2_from_f32(61439), 0x7b);
    st_close(f);
}

static void sizes_and_names(void **state) {
    (void)state;
    DType t;
    uint64_t bytes;
    assert_true(dtype_parse("Q4_K", &t) && t == DT_Q4_K);
    assert_true(dtype_parse("fp8", &t) && t == DT_F8_E4M3);
    assert_true(dtype_parse("FP8_E5M2", &t) && t == DT_F8_E5M2);
    assert_false(dtype_parse("q4", &t) || dtype_parse("q4_0x", &t) || dtype_parse("", &t));
    assert_false(dtype_parse_file("Q4_0", &t)); // safetensors has no blocks
    assert_int_equal(dtype_bytes(DT_Q8_0, 64), 68);
    assert_int_equal(dtype_bytes(DT_Q6_K, 512), 420);
    assert_int_equal(dtype_bytes(DT_BF16, 7), 14);
    assert_true(dtype_bytes_checked(DT_IQ4_XS, 256, &bytes) && bytes == 136);
    assert_false(dtype_bytes_checked(DT_F64, UINT64_MAX / 4, &bytes));
    assert_true(dtype_is_packed(DT_F8_E5M2) && dtype_is_packed(DT_Q2_K) && !dtype_is_packed(DT_F16));
    assert_true(dtype_is_float(DT_IQ4_NL) && !dtype_is_float(DT_I8));
    // Between block types, over the chunks of the conversion.
    enum { N = 256 * 9 };
    static float x[N], y[N], z[N];
    static uint8_t a[N * 2], b[N * 2];
    randn(6, x, N);
    dtype_convert(DT_Q8_0, a, DT_F32, x, N);
    dtype_convert(DT_F32, y, DT_Q8_0, a, N);
    dtype_convert(DT_Q6_K, b, DT_Q8_0, a, N);
    dtype_convert(DT_F32, z, DT_Q6_K, b, N);
    for (int i = 0; i < N; i++) assert_true(fabsf(x[i] - y[i]) < 0.02f && fabsf(y[i] - z[i]) < 0.08f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_as_ggml), cmocka_unit_test(encodes_as_ggml),
        cmocka_unit_test(encodings_are_close), cmocka_unit_test(odd_blocks),
        cmocka_unit_test(fp8), cmocka_unit_test(sizes_and_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
