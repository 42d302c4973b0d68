// test_flux_types.c: FLUX.1 with packed weights (fp8, GGUF's blocks) against the same weights decoded
// to f32 beforehand: every type, at f32 precision, gives the same picture to 1/255.
#include "tests/check.h"
#include "tests/check_device.h"
#include "tests/difference.h"

#include "backend/quant.h"
#include "engine/pipeline_dummy.h"
#include "engine/pipeline_flux.h"

enum { WIDTH = 32, HEIGHT = 16, TEXT = 8, LATENT = 16 * (WIDTH / 8) * (HEIGHT / 8), DIVISOR = 16 };

typedef struct Output {
    float picture[3 * WIDTH * HEIGHT], latents[LATENT];
} Output;

static void generate(Device *dev, const ModelParts *model, Output *out) {
    Error err = {0};
    FluxPipeline *p =
        flux_pipeline_open(NULL, dev, model, &(FluxPipelineOptions){DT_F32, DT_COUNT}, &err);
    CHECK(p);
    FluxRequest r = {.prompt = "a lighthouse", .prompt_size = 12, .t5_tokens = TEXT, .width = WIDTH,
                     .height = HEIGHT, .steps = 1, .seed = 3, .cfg = {.scale = 1}, .guidance = 3.5};
    FluxPlan plan;
    CHECK(flux_pipeline_check(p, &r, &err) && flux_pipeline_plan(p, &r, 0, &plan, &err));
    CHECK(flux_pipeline_generate(p, &r, &plan, out->picture, out->latents, NULL, &err));
    flux_pipeline_close(p);
}

// The tensors of another file, decoded: the blocks that the range lies in.
static bool read_decoded(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    const Weights *packed = user;
    const WeightTensor *t = weights_at(packed, index);
    uint64_t block = (uint64_t)dtype_block(t->dtype), first = offset / sizeof(float) / block * block;
    uint64_t after = (offset + bytes + block * sizeof(float) - 1) / sizeof(float) / block * block;
    uint64_t count = MIN(after, t->count) - first, size = dtype_bytes(t->dtype, count);
    uint8_t *raw = mem_new(NULL, (size_t)size);
    float *v = MEM_ARRAY(raw, float, count);
    bool ok = weights_read(packed, t, dtype_bytes(t->dtype, first), raw, size, err);
    if (dtype_is_packed(t->dtype)) quant_decode(t->dtype, raw, v, (int64_t)count);
    else dtype_convert(DT_F32, v, t->dtype, raw, (size_t)count);
    memcpy(out, (const uint8_t *)v + (offset - first * sizeof(float)), (size_t)bytes);
    mem_free(raw);
    return ok;
}

static Weights *decoded(const Weights *packed, DType type, int *matrices) {
    int n = weights_count(packed);
    WeightTensor *t = MEM_ARRAY(NULL, WeightTensor, n);
    for (int i = 0; i < n; i++) {
        t[i] = *weights_at(packed, i);
        *matrices += t[i].dtype == type;
        t[i].dtype = DT_F32;
        t[i].bytes = t[i].count * sizeof(float);
    }
    Weights *w = weights_synthetic(NULL, "decoded", t, n, read_decoded, (void *)(uintptr_t)packed);
    assert_non_null(w);
    mem_free(t);
    return w;
}

static void same_as_decoded(Device *dev, DType type) {
    ModelParts *model = pipeline_dummy_open(NULL, "flux-dev", DIVISOR, type), plain = *model;
    int matrices = 0;
    for (int i = 0; i < PART_COUNT; i++)
        plain.part[i].weights = decoded(model->part[i].weights, type, &matrices);
    assert_true(matrices > 20);
    Output *a = MEM_NEW(NULL, Output), *b = MEM_NEW(a, Output);
    generate(dev, model, a);
    generate(dev, &plain, b);
    double latents = difference(a->latents, b->latents, LATENT), worst = 0;
    for (int i = 0; i < 3 * WIDTH * HEIGHT; i++)
        worst = MAX(worst, fabs((double)a->picture[i] - (double)b->picture[i]) / 2);
    print_message("    %s %s: latents within %.1e, pictures within %.4f / 255\n", dev_info(dev)->id,
                  dtype_name(type), latents, worst * 255);
    if (!(worst < 1.0 / 255 && latents < 1e-4)) fail_msg("%s: not as decoded", dtype_name(type));
    for (int i = 0; i < PART_COUNT; i++) weights_close((Weights *)(uintptr_t)plain.part[i].weights);
    model_parts_close(model);
    mem_free(a);
}

static void on_device(const char *device, const DType *types, size_t count) {
    Device *dev = check_open(NULL, device);
    if (!dev) skip();
    for (size_t i = 0; i < count; i++) same_as_decoded(dev, types[i]);
    dev_close(dev);
}

static void on_the_cpu(void **state) {
    (void)state;
    static const DType all[] = {DT_F8_E4M3, DT_F8_E5M2, DT_Q8_0, DT_Q4_0, DT_Q4_1, DT_Q5_0, DT_Q5_1, DT_Q2_K,
                                DT_Q3_K,    DT_Q4_K,    DT_Q5_K, DT_Q6_K, DT_IQ4_NL, DT_IQ4_XS};
    on_device("cpu", all, COUNT_OF(all));
}

static void on_the_reference(void **state) {
    (void)state;
    static const DType some[] = {DT_F8_E5M2, DT_Q4_K};
    on_device("ref", some, COUNT_OF(some));
}

static void on_vulkan(void **state) {
    (void)state;
    static const DType some[] = {DT_F8_E4M3, DT_Q8_0, DT_Q3_K};
    on_device("vulkan", some, COUNT_OF(some));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(on_the_cpu),
        cmocka_unit_test(on_the_reference),
        cmocka_unit_test(on_vulkan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
