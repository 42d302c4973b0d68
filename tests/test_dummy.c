// test_dummy.c: computed weights: valid numbers of the promised size in every type, the same bytes
// however they are asked for, and tensors that differ; models of them: every block matters, and
// blocks of the full size give finite numbers that hardly depend on the precision.
#include "tests/check.h"

#include <math.h>

#include "backend/os.h"
#include "backend/quant.h"
#include "engine/dummy.h"
#include "engine/pipeline_dummy.h"
#include "engine/pipeline_flux.h"

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
            fail_msg("%s: mean %g, deviation %g (%g wished)", dtype_name(types[k]), mean, deviation,
                     wish);
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

// Seconds that reading BYTES of `w` takes (NULL: copying them), at best: a machine may be busy.
enum { BYTES = 32 << 20 };
static double seconds_of(const Weights *w, uint64_t bytes, uint8_t *out) {
    double best = 1e30;
    for (int i = 0; i < 3; i++) {
        Error err = {0};
        double start = os_seconds();
        if (w) CHECK(weights_read(w, weights_at(w, 0), 0, out, bytes, &err));
        else memcpy(out, out + BYTES, BYTES);
        best = fmin(best, os_seconds() - start);
    }
    return best;
}

static void test_speed(void **state) {
    (void)state;
    BindWant want = {.name = "big.weight", .ndim = 2, .shape = {BYTES / 4096, 4096}};
    uint8_t *out = mem_new(NULL, 2 * BYTES);
    memset(out, 1, 2 * BYTES);
    double copy = BYTES / seconds_of(NULL, BYTES, out);
    print_message("    a copy    %.2f GB/s\n", copy * 1e-9);
    for (size_t k = 0; k < COUNT_OF(types); k++) {
        Weights *w = dummy_weights(NULL, "dummy", &want, 1, types[k], 7);
        const WeightTensor *t = weights_at(w, 0);
        uint64_t bytes = MIN(t->bytes, BYTES);
        double speed = (double)bytes / seconds_of(w, bytes, out);
        print_message("    %-9s %.2f GB/s\n", dtype_name(types[k]), speed * 1e-9);
        assert_true(speed > copy / 50); // also under sanitizers; plain builds: a quarter of it, or more
        weights_close(w);
    }
    mem_free(out);
}

// ---- models of them -----------------------------------------------------------------------------

enum { SIDE = 32, TEXT = 8, CHANNELS = 16, LATENT = CHANNELS * (SIDE / 8) * (SIDE / 8) };

// What a run of a pipeline gives, below `scope`.
typedef struct Output {
    void *scope;
    float *latents, *picture, *pooled, *states;
    size_t pooled_count, states_count;
} Output;

static bool keep_array(void *user, const char *name, int ndim, const int64_t *shape, const float *v,
                       Error *err) {
    Output *out = user;
    size_t n = 1;
    (void)err;
    for (int d = 0; d < ndim; d++) n *= (size_t)shape[d];
    bool pooled = !strcmp(name, "text.clip_l.pooled");
    if (!pooled && strcmp(name, "text.t5xxl")) return true;
    float *copy = memcpy(MEM_ARRAY(out->scope, float, n), v, n * sizeof *v);
    if (pooled) out->pooled = copy, out->pooled_count = n;
    else out->states = copy, out->states_count = n;
    return true;
}

static void generate(FluxPipeline *p, Output *out) {
    Error err = {0};
    out->latents = MEM_ARRAY(out->scope, float, LATENT);
    out->picture = MEM_ARRAY(out->scope, float, 3 * SIDE * SIDE);
    FluxRequest r = {.prompt = "a lighthouse", .prompt_size = 12, .t5_tokens = TEXT, .width = SIDE,
                     .height = SIDE, .steps = 1, .seed = 3, .cfg = {.scale = 1}, .guidance = 3.5,
                     .events = {.array = keep_array, .user = out}};
    FluxPlan plan;
    CHECK(flux_pipeline_check(p, &r, &err) && flux_pipeline_plan(p, &r, 0, &plan, &err));
    CHECK(flux_pipeline_generate(p, &r, &plan, out->picture, out->latents, NULL, &err));
}

// Weights that read as `base`, but for one block, which reads as `other`.
typedef struct Swap { const Weights *base; Weights *other; const char *block; } Swap;

// "double_blocks.0" of "double_blocks.0.img_mod.lin.weight"; "img_in" of "img_in.weight".
static int block_length(const char *name) {
    for (const char *c = name; *c; c++)
        if (c > name && c[-1] == '.' && *c >= '0' && *c <= '9')
            return (int)(c - name) + (int)strspn(c, "0123456789");
    return (int)(strrchr(name, '.') - name);
}

static bool read_swapped(void *user, int index, uint64_t offset, void *out, uint64_t bytes,
                         Error *err) {
    const Swap *s = user;
    const WeightTensor *t = weights_at(s->base, index);
    int n = block_length(t->name);
    bool swapped = s->block && (int)strlen(s->block) == n && !memcmp(s->block, t->name, (size_t)n);
    const Weights *from = swapped ? s->other : s->base;
    return weights_read(from, weights_find(from, t->name), offset, out, bytes, err);
}

static Weights *swappable(Swap *s, const Weights *base) {
    int n = weights_count(base);
    WeightTensor *all = MEM_ARRAY(NULL, WeightTensor, n);
    BindWant *same = MEM_ARRAY(all, BindWant, n);
    for (int i = 0; i < n; i++) {
        all[i] = *weights_at(base, i);
        same[i] = (BindWant){.name = all[i].name, .ndim = all[i].ndim};
        memcpy(same[i].shape, all[i].shape, sizeof all[i].shape);
    }
    *s = (Swap){.base = base, .other = dummy_weights(NULL, "other", same, n, DT_BF16, 12345)};
    Weights *w = weights_synthetic(NULL, "swapped", all, n, read_swapped, s);
    mem_free(all);
    return w;
}

static bool is_used(PartId part, const char *name) { // by a run from a prompt
    return part != PART_VAE || !strncmp(name, "decoder.", 8);
}

// Each block of each model, swapped for another one by one, changes the picture.
static void test_every_block_matters(void **state) {
    (void)state;
    Error err = {0};
    Device *dev = dev_open(NULL, "cpu", NULL, &err);
    CHECK(dev);
    ModelParts *model = pipeline_dummy_open(NULL, "flux-dev", 16, DT_COUNT), swapped = *model;
    Swap swap[PART_COUNT];
    Weights *w[PART_COUNT];
    for (int i = 0; i < PART_COUNT; i++)
        swapped.part[i].weights = w[i] = swappable(&swap[i], model->part[i].weights);
    FluxPipeline *p = flux_pipeline_open(
        NULL, dev, &swapped, &(FluxPipelineOptions){.compute = DT_F32, .type = DT_COUNT}, &err);
    CHECK(p);
    void *scope = mem_new(NULL, 1);
    Output base = {.scope = scope}, same = {.scope = scope};
    generate(p, &base), generate(p, &same);
    size_t bytes = sizeof(float) * 3 * SIDE * SIDE;
    assert_memory_equal(base.picture, same.picture, bytes);
    int blocks = 0;
    for (int i = 0; i < PART_COUNT; i++) {
        for (int k = 0; k < weights_count(w[i]); k++) {
            const char *name = weights_at(w[i], k)->name;
            char *block = mem_strndup(scope, name, (size_t)block_length(name));
            if (!is_used((PartId)i, name) || (swap[i].block && !strcmp(block, swap[i].block)))
                continue;
            swap[i].block = block;
            Output now = {.scope = scope};
            generate(p, &now);
            if (!memcmp(now.picture, base.picture, bytes)) fail_msg("%s: the picture stays", block);
            for (int n = 0; n < 3 * SIDE * SIDE; n++) assert_true(isfinite(now.picture[n]));
            blocks++;
        }
        swap[i].block = NULL;
    }
    print_message("    %d blocks\n", blocks);
    assert_true(blocks > 30);
    flux_pipeline_close(p);
    for (int i = 0; i < PART_COUNT; i++) weights_close(w[i]), weights_close(swap[i].other);
    model_parts_close(model);
    dev_close(dev);
    mem_free(scope);
}

// No two matrices are the same (vectors of a few numbers may be, by chance).
static void test_blocks_differ(void **state) {
    (void)state;
    Error err = {0};
    ModelParts *model = pipeline_dummy_open(NULL, "flux-dev", 8, DT_Q4_K);
    int compared = 0;
    for (int part = 0; part < PART_COUNT; part++) {
        const Weights *w = model->part[part].weights;
        void *scope = mem_new(NULL, 1);
        uint8_t **data = MEM_ARRAY(scope, uint8_t *, weights_count(w));
        for (int i = 0; i < weights_count(w); i++) {
            const WeightTensor *t = weights_at(w, i);
            if (t->ndim < 2) continue;
            data[i] = mem_new(scope, t->bytes);
            CHECK(weights_read(w, t, 0, data[i], t->bytes, &err));
            for (int k = 0; k < i; k++) {
                const WeightTensor *other = weights_at(w, k);
                if (!data[k] || other->bytes != t->bytes) continue;
                compared++;
                if (!memcmp(data[i], data[k], t->bytes)) fail_msg("%s is %s", t->name, other->name);
            }
        }
        mem_free(scope);
    }
    print_message("    %d pairs\n", compared);
    assert_true(compared > 500);
    model_parts_close(model);
}

static double relative(const float *a, const float *b, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(isfinite(a[i]) && isfinite(b[i]));
        double d = (double)a[i] - (double)b[i];
        difference += d * d, size += (double)a[i] * (double)a[i];
    }
    assert_true(size > 0);
    return sqrt(difference / size);
}

// One block of each kind at its full size: double and single stream of width 3072, T5-XXL (4096 and
// 10240), CLIP-L, and the whole decoder.
static void test_full_size_blocks(void **state) {
    (void)state;
    Error err = {0};
    static const DType compute[] = {DT_F32, DT_BF16};
    void *scope = mem_new(NULL, 1);
    Output out[2] = {{.scope = scope}, {.scope = scope}};
    Device *dev = dev_open(NULL, "cpu", &(DeviceOptions){.budget = (uint64_t)1 << 30}, &err);
    CHECK(dev);
    ModelParts *model =
        pipeline_dummy_sized(NULL, "flux-dev", 1, PIPELINE_DUMMY_MAX_DIVISOR, DT_BF16);
    for (int i = 0; i < 2; i++) {
        double start = os_seconds();
        FluxPipelineOptions options = {.compute = compute[i], .type = DT_COUNT};
        FluxPipeline *p = flux_pipeline_open(NULL, dev, model, &options, &err);
        CHECK(p);
        generate(p, &out[i]);
        flux_pipeline_close(p);
        print_message("    %s: %.1f s\n", dtype_name(compute[i]), os_seconds() - start);
    }
    assert_int_equal(out[0].states_count, TEXT * 4096);
    assert_int_equal(out[0].pooled_count, 768);
    const struct { const char *name; const float *f32, *bf16; size_t n; double limit; } parts[] = {
        {"CLIP-L", out[0].pooled, out[1].pooled, out[0].pooled_count, 0.02},
        {"T5-XXL", out[0].states, out[1].states, out[0].states_count, 0.02},
        {"latents", out[0].latents, out[1].latents, LATENT, 0.02},
        {"picture", out[0].picture, out[1].picture, 3 * SIDE * SIDE, 0.05},
    };
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        double r = relative(parts[i].f32, parts[i].bf16, parts[i].n);
        print_message("    %s: f32 and bf16 differ by %.2e\n", parts[i].name, r);
        if (!(r > 0 && r < parts[i].limit)) fail_msg("%s: %g", parts[i].name, r);
    }
    model_parts_close(model);
    dev_close(dev);
    mem_free(scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_speed),
        cmocka_unit_test(test_blocks_differ),
        cmocka_unit_test(test_every_block_matters),
        cmocka_unit_test(test_full_size_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
