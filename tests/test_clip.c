// CLIP's text encoder against transformers (tests/golden/flux_*.safetensors): hidden states of the
// last and the last but one layer, with and without the final norm, pooled and projected text.
#include "models/clip.h"
#include "models/names.h"
#include "tests/model_check.h"

static const char *const cases[] = {"a", "b"};

static const struct Wanted { int skip; bool norm, projected; const char *hidden, *pooled; } wanted[] = {
    {0, false, false, "want.clip.last", "want.clip.pooled"},
    {1, false, true, "want.clip.before", "want.clip.projected"},
    {1, true, false, "want.clip.before_normed", "want.clip.pooled"},
};

static void check_run(void *scope, const ClipModel *m, Device *dev, const Weights *w,
                      const struct Wanted *want, DType compute, double limit) {
    Error err = {0};
    ClipShape shape = {.batch = 2, .tokens = 13, .skip = want->skip, .hidden_norm = want->norm,
                       .projected = want->projected, .compute = compute};
    ClipText *t = clip_text_new(scope, m, dev, &shape);
    Stack *s = stage_open(scope, dev, &t->spec, 0);
    CHECK(clip_text_write(t, golden_ids(scope, w, "want.clip.ids"), &err));
    CHECK(stack_run(s, NULL, &err));
    size_t n, pooled_n;
    float *hidden = golden(scope, w, want->hidden, &n);
    float *pooled = golden(scope, w, want->pooled, &pooled_n);
    assert_int_equal(param_count(t->hidden), n);
    assert_int_equal(param_count(t->pooled), pooled_n);
    double a = difference(param_values(scope, t->hidden), hidden, n);
    double b = difference(param_values(scope, t->pooled), pooled, pooled_n);
    print_message("  %s %s %s: hidden within %.1e, pooled within %.1e\n", dev_info(dev)->id,
                  dtype_name(compute), want->hidden, a, b);
    assert_true(a < limit && b < limit);
    stack_free(s);
    clip_text_free(t);
}

static void states_are_those_of_transformers(void **state) {
    (void)state;
    Error err = {0};
    for (size_t d = 0; d < COUNT_OF(check_devices); d++)
        for (size_t i = 0; i < COUNT_OF(cases); i++) {
            void *scope = mem_new(NULL, 1);
            Device *dev = check_open(scope, check_devices[d]);
            if (!dev) {
                mem_free(scope);
                continue;
            }
            Weights *w = weights_open(scope, mem_printf(scope, GOLDEN "flux_%s.safetensors", cases[i]), &err);
            CHECK(w);
            ClipModel *m = clip_open(scope, w, CONFIG(weights_meta(w, "clip")), &err);
            CHECK(m);
            assert_string_equal(m->prefix, "clip.");
            for (size_t k = 0; k < COUNT_OF(wanted); k++)
                check_run(scope, m, dev, w, &wanted[k], DT_F32, 2e-5);
            check_run(scope, m, dev, w, &wanted[0], DT_BF16, 4e-2);
            weights_close(w);
            dev_close(dev);
            mem_free(scope);
        }
}

// The tensors of a full-size CLIP-L, and of the small ones, are consistent.
static void presets_hold_what_they_say(void **state) {
    (void)state;
    CHECK_PRESETS(ClipConfig, clip, clip_preset(divisor), 2 + 12 * 16 + 2, 123060480,
                  c.dim == 64 * c.heads && c.layers >= 1);
}

static void wrong_files_are_told(void **state) {
    (void)state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    Weights *w = weights_open(scope, GOLDEN "flux_a.safetensors", &err);
    CHECK(w);
    assert_null(clip_open(scope, weights_part(scope, w, "t5."), NULL, &err));
    assert_non_null(strstr(err.text, "expected CLIP's text encoder"));
    err = (Error){0};
    assert_null(clip_open(scope, w, CONFIG("{\"hidden_act\": \"mish\"}"), &err));
    assert_non_null(strstr(err.text, "found mish"));
    err = (Error){0};
    assert_null(clip_open(scope, w, CONFIG("{\"num_attention_heads\": 7}"), &err));
    assert_non_null(strstr(err.text, "(7) divides"));
    static const struct { const char *json, *text; } wrong[] = {
        {"{\"hidden_act\": 3}", "some/config.json: expected `hidden_act` to be a text, found 3"},
        {"{\"layer_norm_eps\": \"x\"}", "`layer_norm_eps` to be a number from 0 to 1, found \"x\""},
        {"{\"layer_norm_eps\": -1e-5}", "from 0 to 1, found -1e-05"},
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        err = (Error){0};
        assert_null(clip_open(scope, w, CONFIG(wrong[i].json), &err));
        if (!strstr(err.text, wrong[i].text)) fail_msg("%s: %s", wrong[i].json, err.text);
    }
    static const char *const sizes[] = {"hidden_size", "intermediate_size", "vocab_size",
                                        "max_position_embeddings", "num_attention_heads"};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        err = (Error){0};
        char *json = mem_printf(scope, "{\"text_config\": {\"%s\": 4294967297}}", sizes[i]);
        assert_null(clip_open(scope, w, CONFIG(json), &err));
        assert_non_null(strstr(err.text, "some/config.json: expected "));
        assert_non_null(strstr(err.text, mem_printf(scope, "`%s`", sizes[i])));
    }
    weights_close(w);
    mem_free(scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_are_those_of_transformers),
        cmocka_unit_test(presets_hold_what_they_say),
        cmocka_unit_test(wrong_files_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
