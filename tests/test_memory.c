// test_memory.c: random requests to a small synthetic FLUX, each within random budgets: a run takes no more
// memory than its plan says, moves the bytes per pass that it says, and makes the same picture whatever
// stays or streams; the smallest budget works, and a byte less is refused with its figure. And the weights
// of the next step are on their way before it begins.
#include "tests/check_device.h"

#include "backend/os.h"
#include "engine/pipeline_dummy.h"
#include "engine/pipeline_flux.h"

#include <stdatomic.h>

// ---- requests -----------------------------------------------------------------------------------

typedef struct Random { uint64_t state; } Random;

static int below(Random *r, int n) { // 0..n - 1
    r->state = r->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((r->state >> 33) % (uint64_t)n);
}

typedef struct Setup {
    const char *device, *model;
    int narrower; // than the real model's width
    DType type, compute;
    FluxRequest request;
    size_t pixels, latents; // numbers of all pictures
} Setup;

enum { SIDE = 16, LONG_SIDE = 10 * SIDE, // a longer side than the smallest tile, so that tiles come up
       DEPTH = 16 };                     // the model has so many times fewer blocks

static Setup random_setup(Random *r, const char *device, Image *init) {
    static const DType types[] = {DT_BF16, DT_F32, DT_Q8_0, DT_F8_E4M3, DT_Q4_K, DT_IQ4_NL, DT_F16};
    bool slow = strcmp(device, "cpu") != 0; // the oracle; kernels that are compiled as they run
    Setup s = {.device = device, .model = pipeline_dummy_name(below(r, 2)),
               .narrower = slow || below(r, 3) ? 64 : DEPTH,
               .type = types[below(r, COUNT_OF(types))], .compute = below(r, 2) ? DT_F32 : DT_BF16};
    FluxRequest *q = &s.request;
    *q = (FluxRequest){.prompt = "a lighthouse", .prompt_size = 12, .t5_tokens = 1 + below(r, 24),
                       .count = 1 + below(r, 3), .width = SIDE * (1 + below(r, 3)),
                       .height = SIDE * (1 + below(r, 3)), .steps = 1 + below(r, 3),
                       .seed = (uint64_t)below(r, 1000), .cfg = {.scale = below(r, 3) ? 1 : 3},
                       .guidance = 3.5, .strength = 0.7, .group = below(r, 3),
                       .tiling = (VaeTiling)below(r, 3)};
    if (below(r, 3) == 0) *(below(r, 2) ? &q->width : &q->height) = LONG_SIDE;
    if (slow) q->count = q->steps = 1, q->width = q->height = SIDE;
    if (below(r, 3) == 0) {
        *init = (Image){.width = q->width, .height = q->height, .rgb = init->rgb};
        q->init = init;
    }
    s.pixels = 3 * (size_t)q->count * (size_t)q->width * (size_t)q->height;
    s.latents = 16 * s.pixels / (3 * 64);
    return s;
}

// ---- runs ---------------------------------------------------------------------------------------

typedef struct World {
    Device *dev;
    ModelParts *model;
    FluxPipeline *pipeline;
} World;

// Within `budget` bytes: past it the device's allocator fails. 0: all that there is.
static bool world_open(World *w, const Setup *s, uint64_t budget) {
    Error err = {0};
    if (budget) CHECK(w->dev = dev_open(NULL, s->device, &(DeviceOptions){.budget = budget}, &err));
    else if (!(w->dev = check_open(NULL, s->device))) return false;
    w->model = pipeline_dummy_sized(NULL, s->model, s->narrower, DEPTH, s->type);
    const FluxPipelineOptions options = {.compute = s->compute, .type = DT_COUNT};
    CHECK(w->pipeline = flux_pipeline_open(NULL, w->dev, w->model, &options, &err));
    return true;
}

static void world_close(World *w) {
    flux_pipeline_close(w->pipeline);
    model_parts_close(w->model);
    dev_close(w->dev);
}

typedef struct Result {
    FluxPlan plan;
    float *pictures, *latents;
    double moved; // bytes streamed to the device
} Result;

// Passes of the transformer over all groups: one per step, two where a second prompt counts.
static void check_measured(const Setup *s, const FluxPlan *plan, const FluxMeasured *m) {
    int passes = 0;
    assert_int_equal(m->stages, plan->stages);
    for (int i = 0; i < m->stages; i++) {
        const FluxStagePlan *p = &plan->stage[i];
        assert_string_equal(m->stage[i].name, p->name);
        if (m->stage[i].used_bytes > p->peak_bytes || p->peak_bytes > plan->peak_bytes)
            fail_msg("%s: %llu bytes planned, %llu used", p->name, (unsigned long long)p->peak_bytes,
                     (unsigned long long)m->stage[i].used_bytes);
        if (m->stage[i].moved_bytes != p->moved_bytes_per_step * (uint64_t)m->stage[i].passes)
            fail_msg("%s: %llu bytes a pass planned, %llu moved in %d", p->name,
                     (unsigned long long)p->moved_bytes_per_step,
                     (unsigned long long)m->stage[i].moved_bytes, m->stage[i].passes);
        assert_int_equal(p->moved_bytes_per_step > 0, p->streamed_units > 0);
        if (p->pictures) passes += m->stage[i].passes;
    }
    assert_int_equal(passes, plan->steps * plan->prompts * plan->groups);
    assert_int_equal(plan->prompts, s->request.cfg.scale == 1 ? 1 : 2);
}

static void generate(void *scope, World *w, const Setup *s, uint64_t budget, Result *out) {
    Error err = {0};
    FluxRequest r = s->request;
    FluxMeasured measured;
    out->pictures = MEM_ARRAY(scope, float, s->pixels);
    out->latents = MEM_ARRAY(scope, float, s->latents);
    CHECK(flux_pipeline_check(w->pipeline, &r, &err));
    CHECK(flux_pipeline_plan(w->pipeline, &r, budget, &out->plan, &err));
    dev_reset_peak(w->dev);
    CHECK(flux_pipeline_generate(w->pipeline, &r, &out->plan, out->pictures, out->latents, &measured, &err));
    uint64_t peak = dev_memory(w->dev).peak, limit = out->plan.peak_bytes;
    if (peak > limit || (double)peak < 0.9 * (double)limit || (budget && limit > budget))
        fail_msg("%llu bytes planned, %llu used", (unsigned long long)limit, (unsigned long long)peak);
    check_measured(s, &out->plan, &measured);
    out->moved = 0;
    for (int i = 0; i < measured.stages; i++) out->moved += (double)measured.stage[i].moved_bytes;
}

// Tiles are approximate, and chosen by the budget where the request leaves it open: pictures in other tiles
// are other pictures, and so are latents of a picture that was encoded in others.
static void want_same(const Setup *s, const Result *a, const Result *b) {
    bool tiles = a->plan.tile_width == b->plan.tile_width && a->plan.tile_height == b->plan.tile_height;
    assert_true(tiles || s->request.tiling != VAE_TILING_OFF);
    if (tiles || !s->request.init)
        assert_memory_equal(a->latents, b->latents, s->latents * sizeof(float));
    if (tiles) assert_memory_equal(a->pictures, b->pictures, s->pixels * sizeof(float));
}

// ---- budgets ------------------------------------------------------------------------------------

// `smallest` bytes work, fewer are refused with that figure: on a device that has no more, or on one whose
// staging does not depend on what it has.
static void want_planned(const World *roomy, const Setup *s, uint64_t budget, uint64_t smallest) {
    Error err = {0};
    World own;
    FluxPlan plan;
    FluxRequest r = s->request;
    char figure[32];
    bool staged = dev_info(roomy->dev)->staging_bytes;
    if (staged) world_open(&own, s, budget);
    const World *w = staged ? &own : roomy;
    CHECK(flux_pipeline_check(w->pipeline, &r, &err));
    assert_int_equal(flux_pipeline_plan(w->pipeline, &r, staged ? 0 : budget, &plan, &err),
                     budget >= smallest);
    snprintf(figure, sizeof figure, "(%llu bytes)", (unsigned long long)smallest);
    if (budget < smallest && !strstr(err.text, figure)) fail_msg("%s: expected %s", err.text, figure);
    if (staged) world_close(&own);
}

// The device's own budget is the limit, or the plan's on a device that has more.
static void run_within(void *scope, World *roomy, const Setup *s, uint64_t budget, bool own, Result *out) {
    World w;
    if (!own) {
        generate(scope, roomy, s, budget, out);
        return;
    }
    world_open(&w, s, budget);
    generate(scope, &w, s, 0, out);
    assert_true(out->plan.peak_bytes <= budget);
    world_close(&w);
}

static void describe(int i, const Setup *s) {
    const FluxRequest *q = &s->request;
    print_message("    %d: %s, %s, %s: %d of %d x %d, %d tokens, %d steps, cfg %g, tiling %d%s\n", i,
                  s->device, s->model, dtype_name(s->type), q->count, q->width, q->height, q->t5_tokens,
                  q->steps, q->cfg.scale, (int)q->tiling, q->init ? ", from a picture" : "");
}

// *streamed counts those whose weights do within the smallest budget: not where the decoder takes most.
static bool check_setup(Random *r, const Setup *s, int *streamed) {
    Error err = {0};
    World roomy;
    Result all, tight, some;
    FluxRequest q = s->request;
    void *scope = mem_new(NULL, 1);
    if (!world_open(&roomy, s, 0)) return false;
    generate(scope, &roomy, s, 0, &all);
    CHECK(flux_pipeline_check(roomy.pipeline, &q, &err));
    uint64_t low = flux_pipeline_smallest(roomy.pipeline, &q), high = all.plan.peak_bytes;
    assert_true(low > 0 && low <= high);
    assert_true(all.moved == 0);
    want_planned(&roomy, s, low - 1, low);
    want_planned(&roomy, s, low / 2, low);
    want_planned(&roomy, s, low, low);
    bool own = strcmp(s->device, "vulkan") != 0; // there another device compiles all kernels anew
    uint64_t more = dev_info(roomy.dev)->staging_bytes; // one of much memory may stage more
    run_within(scope, &roomy, s, own ? low : low + more, own, &tight);
    want_same(s, &all, &tight);
    *streamed += tight.moved > 0;
    uint64_t budget = low + (high - low) * (uint64_t)below(r, 1000) / 1000;
    run_within(scope, &roomy, s, budget + more, false, &some);
    want_same(s, &all, &some);
    if (s->request.tiling == VAE_TILING_OFF || !s->request.init) assert_true(some.moved <= tight.moved);
    world_close(&roomy);
    mem_free(scope);
    return true;
}

static void random_runs(const char *device, int runs, uint64_t seed) {
    Random r = {seed};
    uint8_t *rgb = MEM_ARRAY(NULL, uint8_t, 3 * LONG_SIDE * LONG_SIDE);
    for (int i = 0; i < 3 * LONG_SIDE * LONG_SIDE; i++) rgb[i] = (uint8_t)(i * 37 / 11);
    int done = 0, streamed = 0;
    for (; done < runs; done++) {
        Image init = {.rgb = rgb};
        Setup s = random_setup(&r, device, &init);
        describe(done, &s);
        if (!check_setup(&r, &s, &streamed)) break;
    }
    assert_true(2 * streamed >= done);
    mem_free(rgb);
}

#ifdef __SANITIZE_ADDRESS__
enum { CPU_RUNS = 4 }; // five times as slow
#else
enum { CPU_RUNS = 10 };
#endif

static void test_reference(void **state) { (void)state, random_runs("ref", 1, 11); }
static void test_cpu(void **state) { (void)state, random_runs("cpu", CPU_RUNS, 5); }
static void test_vulkan(void **state) { (void)state, random_runs("vulkan", 1, 3); }

// ---- from step to step --------------------------------------------------------------------------

typedef struct Counted {
    const Weights *from;
    atomic_int reads;
    int start, each; // reads before the first step; of a step, 0: not known yet
    int steps;
    bool missed;
} Counted;

static bool read_counted(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    Counted *c = user;
    c->reads++;
    return weights_read(c->from, weights_at(c->from, index), offset, out, bytes, err);
}

static void on_stage(void *user, const char *name, const char *unit) {
    Counted *c = user;
    (void)unit;
    if (!strcmp(name, "denoise")) c->start = c->reads;
}

// The step is over, the next one has not begun: its weights come, though nobody waits for them.
static bool on_step(void *user, int step, int picture, const float *latent, const float *clean, Error *err) {
    Counted *c = user;
    (void)picture, (void)latent, (void)clean, (void)err;
    if (!c->each || step == c->steps - 1 || c->missed) return true;
    int done = c->start + (step + 1) * c->each;
    for (int i = 0; i < 6000 && c->reads <= done; i++) os_sleep(0.01);
    c->missed |= c->reads <= done;
    return true;
}

static void test_next_step_is_on_its_way(void **state) {
    (void)state;
    enum { STEPS = 3 };
    for (int guided = 0; guided < 2; guided++) {
        Error err = {0};
        Setup s = {.device = "cpu", .model = "flux-dev", .narrower = DEPTH, .type = DT_BF16,
                   .compute = DT_F32};
        World w;
        world_open(&w, &s, 0);
        const Weights *from = w.model->part[PART_TRANSFORMER].weights;
        int n = weights_count(from);
        Counted counted = {.from = from};
        WeightTensor *all = MEM_ARRAY(NULL, WeightTensor, n);
        for (int i = 0; i < n; i++) all[i] = *weights_at(from, i);
        ModelParts parts = *w.model;
        Weights *seen = weights_synthetic(NULL, "counted", all, n, read_counted, &counted);
        parts.part[PART_TRANSFORMER].weights = seen;
        const FluxPipelineOptions options = {.compute = DT_F32, .type = DT_COUNT};
        FluxPipeline *p = flux_pipeline_open(NULL, w.dev, &parts, &options, &err);
        CHECK(p);
        for (int steps = 1; steps <= STEPS; steps += STEPS - 1) {
            float latents[16 * 2 * 2], picture[3 * SIDE * SIDE];
            FluxPlan plan;
            FluxRequest r = {.prompt = "", .t5_tokens = 4, .width = SIDE, .height = SIDE, .steps = steps,
                             .cfg = {.scale = guided ? 3 : 1}, .guidance = 3.5,
                             .events = {.stage = on_stage, .after_step = on_step, .user = &counted}};
            CHECK(flux_pipeline_check(p, &r, &err));
            counted.steps = steps;
            CHECK(flux_pipeline_plan(p, &r, flux_pipeline_smallest(p, &r), &plan, &err));
            CHECK(flux_pipeline_generate(p, &r, &plan, picture, latents, NULL, &err));
            assert_false(counted.missed);
            int reads = counted.reads - counted.start;
            if (steps == 1) counted.each = reads;
            assert_true(counted.each > 0);
            assert_int_equal(reads, steps * counted.each); // and none in vain
        }
        flux_pipeline_close(p);
        weights_close(seen);
        mem_free(all);
        world_close(&w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_next_step_is_on_its_way),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_vulkan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
