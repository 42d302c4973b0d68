// test_batch.c: several pictures of one request with FLUX.1: where weights stream they go through the
// transformer in groups, and each has the bits that it has alone, on every device, with every sampler
// and setting; the weights move once per step and group, as planned; and what fits picture by picture
// is planned for many.
#include "tests/check_device.h"

#include "engine/pipeline_dummy.h"
#include "engine/pipeline_flux.h"

#include <math.h>

enum { WIDTH = 48, HEIGHT = 16, STEPS = 2, TEXT = 5, PICTURES = 3, CHANNELS = 16, SEED = 7,
       LATENT = CHANNELS * (WIDTH / 8) * (HEIGHT / 8), PIXELS = 3 * WIDTH * HEIGHT };

typedef struct World {
    Device *dev; // NULL: there is none
    ModelParts *model;
    FluxPipeline *pipeline;
    uint64_t planned; // the most of all runs
} World;

static bool world_open(World *w, const char *device, uint64_t budget) {
    Error err = {0};
    if (!budget) {
        w->dev = check_open(NULL, device);
        if (!w->dev) return false;
    } else {
        CHECK(w->dev = dev_open(NULL, device, &(DeviceOptions){.budget = budget}, &err));
    }
    w->planned = 0;
    w->model = pipeline_dummy_open(NULL, "flux-dev", 16, DT_COUNT);
    const FluxPipelineOptions options = {.compute = DT_F32, .type = DT_COUNT};
    CHECK(w->pipeline = flux_pipeline_open(NULL, w->dev, w->model, &options, &err));
    return true;
}

static void world_close(World *w) {
    flux_pipeline_close(w->pipeline);
    model_parts_close(w->model);
    dev_close(w->dev);
}

static FluxRequest request(int count) {
    return (FluxRequest){.prompt = "a lighthouse", .prompt_size = 12, .t5_tokens = TEXT,
                         .count = count, .width = WIDTH, .height = HEIGHT, .steps = STEPS,
                         .seed = SEED, .cfg = {.scale = 1}, .guidance = 3.5, .strength = 0.5};
}

// ---- running ------------------------------------------------------------------------------------

typedef struct Output {
    void *scope;
    FluxPlan plan;
    FluxMeasured measured;
    float *pictures, *latents; // [count, ...]
    float *after;              // [STEPS][count][LATENT] latents after each step
    float *clean;              // the same of what each headed for
    int count, taken, groups, next; // next: the first picture of the next group
    int64_t done, total;       // of progress in the stage "denoise"
    bool denoising, encoding;
    int encoded;               // tiles of the picture to start from
} Output;

static void on_stage(void *user, const char *name, const char *unit) {
    Output *out = user;
    (void)unit;
    out->denoising = !strcmp(name, "denoise");
    out->encoding = !strcmp(name, "encode");
}

static void on_progress(void *user, int64_t done, int64_t total) {
    Output *out = user;
    out->encoded += out->encoding;
    if (!out->denoising) return;
    assert_true(done >= out->done && done <= total);
    out->done = done, out->total = total;
}

static void on_group(void *user, int first, int count) {
    Output *out = user;
    assert_int_equal(first, out->next);
    out->next += count;
    out->groups++;
}

static bool on_step(void *user, int step, int picture, const float *latent, const float *clean,
                    Error *err) {
    Output *out = user;
    (void)err;
    size_t at = ((size_t)step * (size_t)out->count + (size_t)picture) * LATENT;
    assert_true(picture < out->next);
    memcpy(out->after + at, latent, LATENT * sizeof(float));
    memcpy(out->clean + at, clean, LATENT * sizeof(float));
    out->taken++;
    return true;
}

static void generate(World *w, FluxRequest r, Output *out) {
    Error err = {0};
    size_t n = (size_t)r.count;
    out->count = r.count;
    out->pictures = MEM_ARRAY(out->scope, float, n * PIXELS);
    out->latents = MEM_ARRAY(out->scope, float, n * LATENT);
    out->after = MEM_ARRAY(out->scope, float, STEPS * n * LATENT);
    out->clean = MEM_ARRAY(out->scope, float, STEPS * n * LATENT);
    r.events = (FluxEvents){.stage = on_stage, .progress = on_progress, .group = on_group,
                            .after_step = on_step, .user = out};
    CHECK(flux_pipeline_check(w->pipeline, &r, &err));
    CHECK(flux_pipeline_plan(w->pipeline, &r, 0, &out->plan, &err));
    CHECK(flux_pipeline_generate(w->pipeline, &r, &out->plan, out->pictures, out->latents, &out->measured,
                                 &err));
    assert_int_equal(out->groups, out->plan.groups);
    assert_int_equal(out->next, r.count);
    assert_int_equal(out->taken, r.count * out->plan.steps);
    assert_int_equal(out->done, out->plan.groups * out->plan.steps);
    assert_int_equal(out->total, out->done);
    assert_int_equal(out->encoded, r.init != NULL); // once, however many pictures start from it
}

static const FluxStagePlan *stage_of(const FluxPlan *plan, const char *name, int *index) {
    for (int i = 0; i < plan->stages; i++)
        if (!strcmp(plan->stage[i].name, name)) return *index = i, &plan->stage[i];
    return NULL;
}

// The run took the memory, the passes and the traffic that were planned. `passes`: of a step.
// Returns the bytes that the transformer moved.
static uint64_t check_measured(World *w, const Output *out, int passes) {
    static const char *const names[] = {"transformer", "transformer.rest"};
    uint64_t moved = 0;
    int pictures = 0;
    w->planned = MAX(w->planned, out->plan.peak_bytes);
    assert_true(dev_memory(w->dev).peak <= w->planned);
    assert_int_equal(out->plan.stages, out->measured.stages);
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        int k;
        const FluxStagePlan *s = stage_of(&out->plan, names[i], &k);
        if (!s) continue;
        assert_string_equal(out->measured.stage[k].name, names[i]);
        assert_true(out->measured.stage[k].used_bytes <= s->peak_bytes);
        int groups = out->measured.stage[k].passes / passes;
        assert_int_equal(out->measured.stage[k].moved_bytes,
                         s->moved_bytes_per_step * (uint64_t)(groups * passes));
        moved += out->measured.stage[k].moved_bytes;
        pictures += groups * s->pictures;
    }
    assert_int_equal(pictures, out->count);
    return moved;
}

// A budget in which weights stream and more than one picture has room.
static uint64_t streaming_budget(World *w) {
    FluxRequest r = request(1);
    Error err = {0};
    CHECK(flux_pipeline_check(w->pipeline, &r, &err));
    uint64_t smallest = flux_pipeline_smallest(w->pipeline, &r);
    assert_true(smallest > 0);
    return smallest + smallest / 4;
}

// ---- a picture of a group has the bits that it has alone ----------------------------------------

typedef struct Variant {
    const char *name;
    Guidance cfg;
    const char *sampler;
    bool noise, init;
    int passes; // of the transformer, per picture or group
} Variant;

static const Variant variants[] = {
    {.name = "guided, ancestral", .cfg = {.scale = 3, .threshold = 0.9}, .sampler = "euler_ancestral",
     .passes = 2 * STEPS},
    {.name = "plain", .cfg = {.scale = 1}, .sampler = "euler", .passes = STEPS},
    {.name = "guided in a part of the run", .cfg = {.scale = 3, .lo = 0.6, .hi = 0.9},
     .sampler = "dpmpp_2m", .passes = STEPS + 1},
    {.name = "given noise", .cfg = {.scale = 1}, .sampler = "euler", .noise = true, .passes = STEPS},
    {.name = "from a picture", .cfg = {.scale = 1}, .sampler = "euler_ancestral", .init = true,
     .passes = STEPS - 1},
};

static FluxRequest variant_request(const Variant *v, int count, const float *noise,
                                   const Image *init) {
    FluxRequest r = request(count);
    r.cfg = v->cfg;
    r.sampler = sampler_find(v->sampler);
    if (v->noise) r.noise = noise;
    if (v->init) r.init = init;
    return r;
}

// Picture k of `all` against the one of `alone`.
static void want_same(const Output *all, int k, const Output *alone) {
    size_t at = (size_t)k;
    assert_memory_equal(all->latents + at * LATENT, alone->latents, LATENT * sizeof(float));
    assert_memory_equal(all->pictures + at * PIXELS, alone->pictures, PIXELS * sizeof(float));
    for (int step = 0; step < all->plan.steps; step++) {
        size_t here = ((size_t)step * (size_t)all->count + at) * LATENT, there = (size_t)step * LATENT;
        assert_memory_equal(all->after + here, alone->after + there, LATENT * sizeof(float));
        assert_memory_equal(all->clean + here, alone->clean + there, LATENT * sizeof(float));
    }
}

typedef struct Split { int limit, groups, size; } Split;
static const Split splits[] = {{2, 2, 2}, {0, 1, 3}, {1, 3, 1}};

static void check_variant(World *roomy, World *tight, const Variant *v, size_t tried) {
    void *scope = mem_new(NULL, 1);
    float *noise = MEM_ARRAY(scope, float, PICTURES * LATENT);
    Image *init = image_new(scope, WIDTH, HEIGHT, NULL);
    for (int i = 0; i < PICTURES * LATENT; i++) noise[i] = (float)sin(i * 1.7) * 1.4f;
    for (int i = 0; i < PIXELS; i++) init->rgb[i] = (uint8_t)(i * 37 / 11);
    Output alone[PICTURES];
    for (int k = 0; k < PICTURES; k++) {
        FluxRequest r = variant_request(v, 1, noise + (size_t)k * LATENT, init);
        r.seed += (uint64_t)k;
        alone[k] = (Output){.scope = scope};
        generate(roomy, r, &alone[k]);
        assert_int_equal(check_measured(roomy, &alone[k], v->passes), 0);
        if (k && !memcmp(alone[k].latents, alone[0].latents, LATENT * sizeof(float)))
            fail_msg("%s: two seeds, one picture", v->name);
    }
    uint64_t moved[PICTURES + 1] = {0};
    for (size_t i = 0; i < tried; i++) {
        FluxRequest r = variant_request(v, PICTURES, noise, init);
        r.group = splits[i].limit;
        Output all = {.scope = scope};
        generate(tight, r, &all);
        int k;
        assert_int_equal(all.plan.groups, splits[i].groups);
        assert_int_equal(stage_of(&all.plan, "transformer", &k)->pictures, splits[i].size);
        assert_true((stage_of(&all.plan, "transformer.rest", &k) != NULL) ==
                    (PICTURES % splits[i].groups != 0));
        moved[splits[i].groups] = check_measured(tight, &all, v->passes);
        for (k = 0; k < PICTURES; k++) want_same(&all, k, &alone[k]);
    }
    for (int i = 2; i <= PICTURES && tried == COUNT_OF(splits); i++) // more groups: more traffic
        assert_true(moved[i] > moved[i - 1]);
    mem_free(scope);
}

static void same_bits_as_alone(const char *device, size_t every, size_t tried) {
    World roomy, tight;
    if (!world_open(&roomy, device, 0)) skip();
    world_open(&tight, device, streaming_budget(&roomy));
    for (size_t i = 0; i < COUNT_OF(variants); i += every) {
        print_message("    %s\n", variants[i].name);
        check_variant(&roomy, &tight, &variants[i], tried);
    }
    world_close(&roomy), world_close(&tight);
}

static void test_reference(void **state) {
    (void)state;
    same_bits_as_alone("ref", COUNT_OF(variants), 1); // the hardest: the oracle is slow
}

static void test_cpu(void **state) {
    (void)state;
    same_bits_as_alone("cpu", 1, COUNT_OF(splits));
}

static void test_vulkan(void **state) {
    (void)state;
    same_bits_as_alone("vulkan", 2, 1);
}

// ---- how many at once ---------------------------------------------------------------------------

// From the smallest budget, where one picture alone has room, to one that holds all weights: every
// plan fits, and moves no more than picture by picture does.
static void test_groups_of_budgets(void **state) {
    (void)state;
    enum { COUNT = 7, BUDGETS = 40 };
    Error err = {0};
    World w;
    world_open(&w, "cpu", 0);
    FluxRequest one = request(1), many = request(COUNT);
    FluxPlan all, single, group;
    CHECK(flux_pipeline_check(w.pipeline, &one, &err) && flux_pipeline_check(w.pipeline, &many, &err));
    CHECK(flux_pipeline_plan(w.pipeline, &one, 0, &all, &err));
    uint64_t low = flux_pipeline_smallest(w.pipeline, &one), high = all.peak_bytes;
    assert_int_equal(flux_pipeline_smallest(w.pipeline, &many), low);
    bool seen[COUNT + 1] = {0};
    for (uint64_t i = 0; i < BUDGETS; i++) {
        uint64_t budget = low + (high - low) * i * i / ((BUDGETS - 1) * (BUDGETS - 1));
        CHECK(flux_pipeline_plan(w.pipeline, &one, budget, &single, &err));
        CHECK(flux_pipeline_plan(w.pipeline, &many, budget, &group, &err));
        assert_true(group.peak_bytes <= budget);
        int a, b, pictures = 0;
        const FluxStagePlan *s = stage_of(&single, "transformer", &a);
        const FluxStagePlan *g = stage_of(&group, "transformer", &a);
        const FluxStagePlan *rest = stage_of(&group, "transformer.rest", &b);
        int smaller = rest ? group.groups * g->pictures - COUNT : 0, larger = group.groups - smaller;
        pictures = larger * g->pictures + (rest ? smaller * rest->pictures : 0);
        assert_int_equal(pictures, COUNT);
        uint64_t moved = g->moved_bytes_per_step * (uint64_t)larger +
                         (rest ? rest->moved_bytes_per_step * (uint64_t)smaller : 0);
        assert_true(moved <= COUNT * s->moved_bytes_per_step);
        if (!s->moved_bytes_per_step) assert_int_equal(group.groups, COUNT);
        if (i > BUDGETS / 4 && s->moved_bytes_per_step) assert_int_equal(group.groups, 1);
        seen[group.groups] = true;
    }
    assert_true(seen[1] && seen[COUNT]);
    // What does not fit one picture is refused with the same figure for many.
    Error other = {0};
    assert_false(flux_pipeline_plan(w.pipeline, &one, low / 2, &single, &err));
    assert_false(flux_pipeline_plan(w.pipeline, &many, low / 2, &group, &other));
    assert_string_equal(err.text, other.text);
    world_close(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_vulkan),
        cmocka_unit_test(test_groups_of_budgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
