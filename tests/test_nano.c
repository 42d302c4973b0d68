// Nano-Sora against PyTorch (tests/golden/nano_*.safetensors): forward, loss, every gradient, ten
// steps of AdamW, sampling from given noise; on every device there is.
#include "engine/image.h"
#include "engine/json.h"
#include "engine/trainer.h"
#include "tests/difference.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

#ifndef KILN_SOURCE_DIR
#define KILN_SOURCE_DIR "."
#endif
#define GOLDEN KILN_SOURCE_DIR "/tests/golden/"

static const int patches[] = {4, 2};

typedef struct Case {
    const char *device;
    int patch;
    Device *dev;
    StFile *model, *ref;
    NanoConfig config;
    Error err;
} Case;

#define CHECK(c, expression)                                                        \
    do {                                                                            \
        if (!(expression)) {                                                        \
            err_print(&(c)->err, stderr);                                           \
            fail_msg("%s p%d: %s", (c)->device, (c)->patch, #expression);           \
        }                                                                           \
    } while (0)

static Case *case_open(const char *device, int patch) {
    Case *c = MEM_NEW(NULL, Case);
    c->device = device;
    c->patch = patch;
    c->dev = dev_open(c, device, NULL, &c->err);
    CHECK(c, c->dev);
    c->model = st_open(c, mem_printf(c, GOLDEN "nano_p%d.safetensors", patch), &c->err);
    CHECK(c, c->model);
    c->ref = st_open(c, mem_printf(c, GOLDEN "nano_p%d_ref.safetensors", patch), &c->err);
    CHECK(c, c->ref);
    CHECK(c, nano_parse_config(c, st_meta(c->model, "kiln.config"), "golden", &c->config, &c->err));
    return c;
}

static void case_close(Case *c) {
    st_close(c->model);
    st_close(c->ref);
    dev_close(c->dev);
    mem_free(c);
}

static float *values(Case *c, const char *name, size_t *n) {
    const StTensor *t = st_get(c->ref, name, &c->err);
    CHECK(c, t);
    float *out = MEM_ARRAY(c, float, t->count);
    st_to_f32(t, out);
    if (n) *n = (size_t)t->count;
    return out;
}

static TrainerBatch batch_of(Case *c, const TrainerOptions *o, const char *prefix, int index) {
    TrainerBatch b = trainer_batch(c, o);
    size_t n = 3 * 32 * 32, rows = (size_t)o->batch, skip = (size_t)index * rows;
    float *image = values(c, mem_printf(c, "%simage", prefix), NULL) + skip * n;
    float *noise = values(c, mem_printf(c, "%snoise", prefix), NULL) + skip * n;
    float *t = values(c, mem_printf(c, "%st", prefix), NULL) + skip;
    float *labels = values(c, mem_printf(c, "%slabels", prefix), NULL) + skip;
    for (size_t i = 0; i < rows; i++)
        trainer_fill(&b, (int)i, n, image + i * n, noise + i * n, t[i], (int32_t)labels[i]);
    return b;
}

static void check_features(Case *c) {
    float *t = values(c, "t", NULL), *want = values(c, "features", NULL);
    for (int i = 0; i < 3; i++) {
        float got[NANO_FEATURES];
        timestep_features(t[i], NANO_FEATURES, got);
        assert_true(difference(got, want + i * NANO_FEATURES, NANO_FEATURES) < 1e-6);
    }
}

static void check_gradients(Case *c, Trainer *t) {
    Store *weights = trainer_weights(t);
    double worst = 0;
    for (int i = 0; i < store_count(weights); i++) {
        const char *name = store_at(weights, i)->name;
        size_t n;
        float *want = values(c, mem_printf(c, "grad.%s", name), &n);
        float *got = MEM_ARRAY(c, float, n);
        CHECK(c, trainer_gradient(t, name, got, &c->err));
        double d = difference(got, want, n);
        if (!(d < 2e-5)) fail_msg("%s p%d: grad.%s differs by %g", c->device, c->patch, name, d);
        worst = fmax(worst, d);
    }
    print_message("  %s p%d: gradients of %d tensors within %.1e\n", c->device, c->patch,
                  store_count(weights), worst);
}

static void run_gradients(const char *device, int patch) {
    Case *c = case_open(device, patch);
    check_features(c);
    TrainerOptions o = {.config = c->config, .batch = 3, .compute = DT_F32, .keep_gradients = true};
    Trainer *t = trainer_new(c, c->dev, &o, &c->err);
    CHECK(c, t);
    CHECK(c, trainer_set_weights(t, c->model, &c->err));
    TrainerBatch b = batch_of(c, &o, "", 0);
    float validation;
    CHECK(c, trainer_validate(t, &b, NULL, &validation, &c->err));
    float hyper[ADAMW_HYPER_COUNT];
    OptimOptions optim = optim_default();
    TrainerResult result, scaled;
    for (int pass = 0; pass < 2; pass++) { // a loss scale multiplies gradients and nothing else
        optim_hyper(&optim, 1, 0, pass ? 1024 : 1, hyper);
        CHECK(c, trainer_set_weights(t, c->model, &c->err));
        CHECK(c,
              trainer_step(t, &b, hyper, pass ? 1024 : 1, NULL, pass ? &scaled : &result, &c->err));
        if (!pass) check_gradients(c, t);
    }
    float *loss = values(c, "loss", NULL);
    assert_true(fabs(result.loss - loss[0]) < 2e-6 * loss[0]);
    assert_true(fabs(validation - loss[0]) < 2e-6 * loss[0]);
    assert_true(scaled.loss == result.loss && !result.found_inf && !scaled.found_inf);
    trainer_free(t);
    case_close(c);
}

// Ten steps of AdamW against float64 PyTorch, loss by loss.
static void run_ten_steps(const char *device, int patch) {
    Case *c = case_open(device, patch);
    TrainerOptions o = {.config = c->config, .batch = 3, .compute = DT_F32};
    Trainer *t = trainer_new(c, c->dev, &o, &c->err);
    CHECK(c, t);
    CHECK(c, trainer_set_weights(t, c->model, &c->err));
    float *want = values(c, "train.losses", NULL);
    OptimOptions optim = optim_default();
    double worst = 0;
    for (int k = 0; k < 10; k++) {
        TrainerBatch b = batch_of(c, &o, "train.", k % 4);
        float hyper[ADAMW_HYPER_COUNT];
        optim_hyper(&optim, k + 1, k, 1, hyper);
        TrainerResult r;
        CHECK(c, trainer_step(t, &b, hyper, 1, NULL, &r, &c->err));
        double d = fabs(r.loss - want[k]) / want[k];
        if (!(d < 1e-5)) fail_msg("%s p%d step %d: loss %g, expected %g", device, patch, k + 1,
                                  (double)r.loss, (double)want[k]);
        worst = fmax(worst, d);
    }
    static const char *const names[] = {"x_embedder.proj.weight", "blocks.0.attn.qkv.bias",
                                        "final_layer.linear.weight"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        size_t n;
        float *after = values(c, mem_printf(c, "train.final.%s", names[i]), &n);
        float *got = MEM_ARRAY(c, float, n);
        CHECK(c, param_read(store_find(trainer_weights(t), names[i]), DT_F32, got, &c->err));
        double d = difference(got, after, n);
        if (!(d < 1e-3))
            fail_msg("%s p%d: %s after ten steps differs by %g", device, patch, names[i], d);
    }
    print_message("  %s p%d: ten losses within %.1e\n", device, patch, worst);
    trainer_free(t);
    case_close(c);
}

// Euler with guidance: 8-bit pictures at most one level apart.
static void run_sampling(const char *device, int patch) {
    Case *c = case_open(device, patch);
    char *path = mem_printf(c, GOLDEN "nano_p%d.safetensors", patch);
    NanoPipeline *p = nano_open(c, c->dev, path, DT_F32, &c->err);
    CHECK(c, p);
    Json *how =
        json_parse(st_meta(c->ref, "sample"), strlen(st_meta(c->ref, "sample")), "sample", NULL);
    size_t n;
    float *labels = values(c, "sample.labels", NULL), *want = values(c, "sample.final", &n);
    const int classes[2] = {(int)labels[0], (int)labels[1]};
    NanoRequest r = {.count = 2, .classes = classes, .noise = values(c, "sample.noise", NULL),
                     .steps = (int)json_int(json_get(how, "steps"), 0),
                     .cfg_scale = json_number(json_get(how, "cfg_scale"), 0)};
    json_free(how);
    assert_true(r.steps > 0 && r.cfg_scale > 1);
    float *got = MEM_ARRAY(c, float, n);
    CHECK(c, nano_generate(p, &r, got, &c->err));
    int apart = 0;
    for (size_t i = 0; i < n; i++)
        apart = MAX(apart, abs(image_from_float(got[i]) - image_from_float(want[i])));
    print_message("  %s p%d: latents within %.1e, bytes within %d\n", device, patch,
                  difference(got, want, n), apart);
    assert_true(apart <= 1);
    nano_close(p);
    case_close(c);
}

#define FOR_ALL(name)                                                          \
    static void name(void **state) {                                           \
        (void)state;                                                           \
        int count;                                                             \
        DeviceInfo *devices = dev_list(NULL, &count, NULL);                    \
        assert_true(count >= 2);                                               \
        for (int d = 0; d < count; d++)                                        \
            for (size_t p = 0; p < COUNT_OF(patches); p++)                     \
                run_##name(devices[d].id, patches[p]);                         \
        mem_free(devices);                                                     \
    }
FOR_ALL(gradients)
FOR_ALL(ten_steps)
FOR_ALL(sampling)

static void vulkan_is_among_them(void **state) {
    (void)state;
    int count;
    bool found = false;
    DeviceInfo *devices = dev_list(NULL, &count, NULL);
    for (int d = 0; d < count; d++) found |= !strcmp(devices[d].backend, "vulkan");
    mem_free(devices);
    if (found) return;
    print_message("SKIP: vulkan_is_among_them: no Vulkan device, so the tests above ran without\n");
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients),
        cmocka_unit_test(ten_steps),
        cmocka_unit_test(sampling),
        cmocka_unit_test(vulkan_is_among_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
