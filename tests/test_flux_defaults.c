// test_flux_defaults.c: what a request to FLUX.1 gets where it says nothing: sizes of the published
// models, steps, length of T5's tokens, and the sigmas of dev and schnell, as a run reports them.
#include "tests/check.h"

#include <math.h>

#include "engine/pipeline_dummy.h"
#include "engine/pipeline_flux.h"
#include "models/clip.h"
#include "models/flux.h"
#include "models/t5.h"

// FluxTransformer2DModel, T5EncoderModel and CLIPTextModel of FLUX.1 as their config.json have them.
static void sizes_of_the_published_models(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        FluxConfig c = flux_preset(i == 0, 1);
        assert_int_equal(c.guidance, i == 0); // dev; schnell has none
        assert_true(c.dim == 3072 && c.heads == 24 && c.head_dim == 128 && c.mlp == 4 * 3072);
        assert_true(c.doubles == 19 && c.singles == 38 && c.in_channels == 64 && c.out_channels == 64);
        assert_true(c.text_dim == 4096 && c.pooled_dim == 768 && c.theta == 10000);
        assert_true(c.axes[0] == 16 && c.axes[1] == 56 && c.axes[2] == 56);
    }
    T5Config t5 = t5_preset(1);
    assert_true(t5.dim == 4096 && t5.ff == 10240 && t5.heads == 64 && t5.head_dim == 64 && t5.layers == 24);
    assert_true(t5.gated && t5.act == ACT_GELU && t5.buckets == 32 && t5.max_distance == 128);
    ClipConfig clip = clip_preset(1);
    assert_true(clip.dim == 768 && clip.ff == 3072 && clip.heads == 12 && clip.layers == 12);
    assert_true(clip.act == ACT_QUICK_GELU && clip.positions == 77);
}

enum { STEPS = 3, WIDTH = 48, HEIGHT = 32, TOKENS = WIDTH / 16 * HEIGHT / 16 };

typedef struct Seen {
    float sigmas[STEPS + 1];
    int text; // tokens of T5's states
} Seen;

static bool see_array(void *user, const char *name, int ndim, const int64_t *shape, const float *v,
                      Error *err) {
    Seen *seen = user;
    (void)err;
    if (!strcmp(name, "text.t5xxl")) seen->text = (int)shape[1];
    if (strcmp(name, "sigmas")) return true;
    assert_true(ndim == 1 && shape[0] == STEPS + 1);
    memcpy(seen->sigmas, v, sizeof seen->sigmas);
    return true;
}

static Seen run(FluxPipeline *p, double shift, int text) {
    Error err = {0};
    Seen seen = {0};
    void *scope = mem_new(NULL, 1);
    FluxInfo info = flux_pipeline_info(p);
    FluxRequest r = {.prompt = "a", .prompt_size = 1, .t5_tokens = text, .width = WIDTH, .height = HEIGHT,
                     .steps = STEPS, .cfg = {.scale = 1}, .guidance = 3.5, .shift = shift,
                     .events = {.array = see_array, .user = &seen}};
    FluxPlan plan;
    float *picture = MEM_ARRAY(scope, float, 3 * WIDTH * HEIGHT);
    float *latents = MEM_ARRAY(scope, float, info.channels * TOKENS * 4);
    CHECK(flux_pipeline_check(p, &r, &err) && flux_pipeline_plan(p, &r, 0, &plan, &err));
    CHECK(flux_pipeline_generate(p, &r, &plan, picture, latents, NULL, &err));
    mem_free(scope);
    return seen;
}

static double fixed(double shift, double s) { return shift * s / (1 + (shift - 1) * s); }

static double of_tokens(double most, double s) { // base_shift 0.5 at 256 tokens, `most` at 4096
    double mu = 0.5 + (most - 0.5) * (TOKENS - 256) / (4096 - 256);
    return exp(mu) / (exp(mu) + 1 / s - 1);
}

static void want_sigmas(const Seen *seen, double (*shifted)(double, double), double shift) {
    for (int i = 0; i < STEPS; i++)
        assert_true(fabs((double)seen->sigmas[i] - shifted(shift, 1 - (double)i / STEPS)) < 1e-6);
    assert_true(seen->sigmas[STEPS] == 0);
}

static FluxPipeline *open(Device *dev, const ModelParts *model) {
    Error err = {0};
    FluxPipeline *p =
        flux_pipeline_open(NULL, dev, model, &(FluxPipelineOptions){DT_F32, DT_COUNT}, &err);
    CHECK(p);
    return p;
}

static void requests_without_settings(void **state) {
    (void)state;
    static const struct { const char *name, *variant; int steps, tokens; bool dynamic; } models[] = {
        {"flux-dev", "dev", 28, 512, true}, {"flux-schnell", "schnell", 4, 256, false}};
    Error err = {0};
    Device *dev = dev_open(NULL, "cpu", NULL, &err);
    CHECK(dev);
    for (size_t i = 0; i < COUNT_OF(models); i++) {
        ModelParts *model = pipeline_dummy_open(NULL, models[i].name, 32, DT_COUNT), other = *model;
        FluxPipeline *p = open(dev, model);
        FluxInfo info = flux_pipeline_info(p);
        assert_string_equal(info.variant, models[i].variant);
        FluxRequest r = {0};
        CHECK(flux_pipeline_check(p, &r, &err));
        assert_true(r.width == 1024 && r.height == 1024 && r.count == 1);
        assert_true(r.steps == models[i].steps && r.t5_tokens == models[i].tokens);
        assert_string_equal(r.sampler->name, "euler");
        Seen seen = run(p, 0, 0);
        assert_int_equal(seen.text, models[i].tokens);
        want_sigmas(&seen, models[i].dynamic ? of_tokens : fixed, models[i].dynamic ? 1.15 : 1);
        seen = run(p, 2.5, 7); // --shift, --t5-tokens
        assert_int_equal(seen.text, 7);
        want_sigmas(&seen, fixed, 2.5);
        flux_pipeline_close(p);
        // The model's own scheduler_config.json comes before what its kind has.
#define SCHEDULER "{\"_class_name\": \"FlowMatchEulerDiscreteScheduler\", "
        other.scheduler = (ConfigFile){"scheduler_config.json", SCHEDULER "\"shift\": 1.5}"};
        p = open(dev, &other);
        seen = run(p, 0, 7);
        want_sigmas(&seen, fixed, 1.5);
        flux_pipeline_close(p);
        other.scheduler.text = SCHEDULER "\"use_dynamic_shifting\": true, \"max_shift\": 2.5}";
        p = open(dev, &other);
        seen = run(p, 0, 7);
        want_sigmas(&seen, of_tokens, 2.5);
        flux_pipeline_close(p);
        model_parts_close(model);
    }
    dev_close(dev);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_of_the_published_models),
        cmocka_unit_test(requests_without_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
