// T5's encoder against transformers (tests/golden/flux_*.safetensors): states, masked states,
// DistillT5's projection, buckets of relative positions, layouts.
#include "models/t5.h"
#include "models/names.h"
#include "tests/model_check.h"

static const char *const cases[] = {"a", "b"};

static float *run(void *scope, const T5Model *m, Device *dev, const T5Shape *shape, const int32_t *ids,
                  const int *lengths, int width) {
    Error err = {0};
    T5Text *t = t5_text_new(scope, m, dev, shape);
    Stack *s = stage_open(scope, dev, &t->spec, 0);
    float *out = MEM_ARRAY(scope, float, (int64_t)shape->batch * shape->tokens * width);
    CHECK(t5_text_write(t, ids, lengths, &err));
    CHECK(stack_run(s, NULL, &err));
    CHECK(t5_text_read(t, width, out, &err));
    stack_free(s);
    t5_text_free(t);
    return out;
}

static void check_case(const char *device, const char *name) {
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    Device *dev = check_open(scope, device);
    if (!dev) {
        mem_free(scope);
        return;
    }
    Weights *w = weights_open(scope, mem_printf(scope, GOLDEN "flux_%s.safetensors", name), &err);
    CHECK(w);
    assert_true(t5_is(w));
    T5Model *m = t5_open(scope, w, CONFIG(weights_meta(w, "t5")), DT_COUNT, &err);
    CHECK(m);
    assert_string_equal(m->prefix, "t5.");
    T5Config inferred = t5_open(scope, w, NULL, DT_COUNT, &err)->config;
    assert_memory_equal(&inferred, &m->config, sizeof inferred);
    int width = t5_width(&m->config), tokens = 40;
    int32_t *ids = golden_ids(scope, w, "want.t5.ids");
    const int lengths[] = {31, 17};
    const struct { const char *want; bool masked; DType compute; double limit; } runs[] = {
        {"want.t5.states", false, DT_F32, 2e-5}, {"want.t5.masked", true, DT_F32, 2e-5},
        {"want.t5.states", false, DT_BF16, 6e-2}, {"want.t5.states", false, DT_F16, 2e-2},
    };
    for (size_t i = 0; i < COUNT_OF(runs); i++) {
        T5Shape shape = {2, tokens, runs[i].masked, runs[i].compute};
        float *got = run(scope, m, dev, &shape, ids, lengths, width + 3), *fit = got;
        size_t n;
        float *want = golden(scope, w, runs[i].want, &n);
        for (int64_t r = 0; r < 2 * tokens; r++) { // zeros behind narrower states
            for (int k = width; k < width + 3; k++) assert_true(got[r * (width + 3) + k] == 0);
            memmove(fit + r * width, got + r * (width + 3), sizeof(float) * (size_t)width);
        }
        double d = difference(fit, want, n);
        print_message("  %s %s: %s in %s within %.1e\n", device, name, runs[i].want,
                      dtype_name(runs[i].compute), d);
        assert_true(d < runs[i].limit);
    }
    weights_close(w);
    dev_close(dev);
    mem_free(scope);
}

static void states_are_those_of_transformers(void **state) {
    (void)state;
    for (size_t d = 0; d < COUNT_OF(check_devices); d++)
        for (size_t i = 0; i < COUNT_OF(cases); i++) check_case(check_devices[d], cases[i]);
}

// ---- half precision -----------------------------------------------------------------------------

// The matrices into the gated layer times 2^10: its product, and then the state, go far over 65504,
// the largest number of f16, as those of trained models do.
static bool read_enlarged(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    const Weights *w = user;
    const WeightTensor *t = weights_at(w, index);
    uint16_t *all = mem_new(NULL, (size_t)t->bytes); // bf16: the file may ask for any range
    float *v = MEM_ARRAY(all, float, t->count);
    bool ok = weights_read(w, t, 0, all, t->bytes, err);
    dtype_convert(DT_F32, v, t->dtype, all, (size_t)t->count);
    for (uint64_t i = 0; i < t->count && strstr(t->name, "DenseReluDense.wi_"); i++) v[i] *= 1024;
    dtype_convert(t->dtype, all, DT_F32, v, (size_t)t->count);
    memcpy(out, (const uint8_t *)all + offset, (size_t)bytes);
    mem_free(all);
    return ok;
}

static void half_precision_does_not_overflow(void **state) {
    (void)state;
    Error err = {0};
    for (size_t d = 0; d < COUNT_OF(check_devices); d++) {
        void *scope = mem_new(NULL, 1);
        Device *dev = check_open(scope, check_devices[d]);
        if (!dev) {
            mem_free(scope);
            continue;
        }
        Weights *w = weights_open(scope, GOLDEN "flux_a.safetensors", &err);
        CHECK(w);
        int n = weights_count(w), tokens = 40;
        WeightTensor *t = MEM_ARRAY(scope, WeightTensor, n);
        for (int i = 0; i < n; i++) t[i] = *weights_at(w, i);
        Weights *large = weights_synthetic(scope, "large", t, n, read_enlarged, w);
        T5Model *m = t5_open(scope, large, NULL, DT_COUNT, &err);
        CHECK(m);
        int width = t5_width(&m->config), rows = 2 * tokens;
        int32_t *ids = golden_ids(scope, w, "want.t5.ids");
        float *want = run(scope, m, dev, &(T5Shape){2, tokens, false, DT_F32}, ids, NULL, width);
        float *got = run(scope, m, dev, &(T5Shape){2, tokens, false, DT_F16}, ids, NULL, width);
        for (int i = 0; i < rows * width; i++) assert_true(isfinite(got[i]));
        double off = difference(got, want, (size_t)(rows * width));
        print_message("  %s: f16 within %.1e of f32\n", check_devices[d], off);
        assert_true(off < 2e-2);
        weights_close(w);
        dev_close(dev);
        mem_free(scope);
    }
}

static void buckets_are_those_of_transformers(void **state) {
    (void)state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    Weights *w = weights_open(scope, GOLDEN "flux_a.safetensors", &err);
    CHECK(w);
    int32_t *want = golden_ids(scope, w, "want.t5.buckets");
    for (int d = -700; d <= 700; d++) assert_int_equal(t5_bucket(d, 32, 128), want[d + 700]);
    weights_close(w);
    mem_free(scope);
}

static void wrong_inputs_are_told(void **state) {
    (void)state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    Device *dev = dev_open(scope, "ref", NULL, &err);
    CHECK(dev);
    Weights *w = weights_open(scope, GOLDEN "flux_a.safetensors", &err);
    CHECK(w);
    T5Model *m = t5_open(scope, w, NULL, DT_COUNT, &err);
    CHECK(m);
    T5Text *t = t5_text_new(scope, m, dev, &(T5Shape){1, 3, false, DT_F32});
    Stack *s = stage_open(scope, dev, &t->spec, 0);
    assert_false(t5_text_write(t, (int32_t[]){3, 120, 4}, NULL, &err));
    assert_non_null(strstr(err.text, "from 0 to 119, found 120"));
    err = (Error){0};
    float out[200];
    assert_false(t5_text_read(t, 39, out, &err)); // states of 40 numbers
    assert_non_null(strstr(err.text, "at most 39 numbers for this transformer, found 40"));
    assert_null(t5_warning(scope, &m->config, 40));
    assert_non_null(strstr(t5_warning(scope, &m->config, 64), "final_projection"));
    err = (Error){0};
    assert_null(t5_open(scope, w, CONFIG("{\"num_layers\": 3}"), DT_COUNT, &err)); // the file has two
    assert_non_null(strstr(err.item[0], "block.2"));
    static const struct { const char *json, *text; } wrong[] = {
        {"{\"d_model\": 41}", "some/config.json: expected `d_model` 40, as the tensors have it, found 41"},
        {"{\"d_ff\": 4}", "`d_ff`"},
        {"{\"vocab_size\": 1.5}", "`vocab_size`"},
        {"{\"is_gated_act\": false}", "`is_gated_act` true, as the tensors have it, found false"},
        {"{\"feed_forward_proj\": \"relu\"}", "`feed_forward_proj` gated-gelu, as the tensors have a gate"},
        {"{\"dense_act_fn\": \"silu\"}", "`dense_act_fn` gelu_new, as the tensors have a gate, found silu"},
        {"{\"model_type\": \"umt5\"}", "found umt5"},
        {"{\"model_type\": []}", "`model_type` to be a text, found something else"},
        {"{\"dense_act_fn\": 1}", "`dense_act_fn` to be a text, found 1"},
        {"{\"layer_norm_epsilon\": 2}", "`layer_norm_epsilon` to be a number from 0 to 1, found 2"},
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        err = (Error){0};
        assert_null(t5_open(scope, w, CONFIG(wrong[i].json), DT_COUNT, &err));
        if (!strstr(err.text, wrong[i].text)) fail_msg("%s: %s", wrong[i].json, err.text);
    }
    err = (Error){0};
    Weights *part = weights_part(scope, w, "clip.");
    assert_null(t5_open(scope, part, NULL, DT_COUNT, &err));
    assert_non_null(strstr(err.text, "expected T5's encoder"));
    stack_free(s);
    t5_text_free(t);
    weights_close(w);
    dev_close(dev);
    mem_free(scope);
}

// The tensors of a full-size T5-XXL v1.1 encoder, and of the small ones, are consistent.
static void presets_hold_what_they_say(void **state) {
    (void)state;
    CHECK_PRESETS(T5Config, t5, t5_preset(divisor), 2 + 24 * 9 + 1, 4762310656,
                  c.head_dim == 64 && c.layers >= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_are_those_of_transformers),
        cmocka_unit_test(half_precision_does_not_overflow),
        cmocka_unit_test(buckets_are_those_of_transformers),
        cmocka_unit_test(wrong_inputs_are_told),
        cmocka_unit_test(presets_hold_what_they_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
