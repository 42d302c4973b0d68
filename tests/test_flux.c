// FLUX.1's transformer against diffusers (tests/golden/flux_*.safetensors): both stages, both
// layouts, batches with a prompt each, streamed as resident; host-side inputs.
#include "engine/model_parts.h"
#include "engine/safetensors.h"
#include "models/flux.h"
#include "models/names.h"
#include "tests/model_check.h"
#include "tests/scratch.h"

static const char *const cases[] = {"a", "b"};

typedef struct Case {
    void *scope;
    Device *dev;
    Weights *w;
    int batch, text, rows, columns, steps;
} Case;

// Without a device (c.dev is NULL) nothing else is open, and case_close is due all the same.
static Case case_open(const char *device, const char *name) {
    Error err = {0};
    Case c = {.scope = mem_new(NULL, 1)};
    c.dev = check_open(c.scope, device);
    if (!c.dev) return c;
    c.w = weights_open(c.scope, mem_printf(c.scope, GOLDEN "flux_%s.safetensors", name), &err);
    CHECK(c.w);
    assert_int_equal(sscanf(weights_meta(c.w, "grid"), "%dx%d", &c.rows, &c.columns), 2);
    c.steps = (int)golden_dim(c.w, "want.flux.tokens", 0);
    c.batch = (int)golden_dim(c.w, "want.flux.tokens", 1);
    c.text = (int)golden_dim(c.w, "want.flux.states", 1);
    return c;
}

static void case_close(Case *c) {
    if (c->w) weights_close(c->w);
    dev_close(c->dev);
    mem_free(c->scope);
}

static FluxConditions *run_schedule(const Case *c, const FluxModel *m, DType compute) {
    Error err = {0};
    FluxScheduleShape shape = {c->steps, c->batch, c->text, compute};
    FluxSchedule *s = flux_schedule_new(c->scope, m, c->dev, &shape);
    Stack *stack = stage_open(c->scope, c->dev, &s->spec, 0);
    float *times = golden(c->scope, c->w, "want.flux.times", NULL);
    float *features = MEM_ARRAY(c->scope, float, c->steps * FLUX_FEATURES), guidance[FLUX_FEATURES];
    for (int i = 0; i < c->steps; i++)
        timestep_features_f32(times[i] * 1000, FLUX_FEATURES, features + i * FLUX_FEATURES);
    timestep_features_f32(3500, FLUX_FEATURES, guidance);
    CHECK(param_write(s->features, DT_F32, features, &err));
    if (s->guidance) CHECK(param_write(s->guidance, DT_F32, guidance, &err));
    CHECK(param_write(s->pooled, DT_F32, golden(c->scope, c->w, "want.flux.pooled", NULL), &err));
    CHECK(param_write(s->text, DT_F32, golden(c->scope, c->w, "want.flux.states", NULL), &err));
    CHECK(stack_run(stack, NULL, &err));
    FluxConditions *conditions = flux_conditions_read(c->scope, s, &err);
    CHECK(conditions);
    stack_free(stack);
    flux_schedule_free(s);
    return conditions;
}

// The velocities of all steps [S, B, Ti, O]. budget 0: all resident.
static float *run_steps(const Case *c, const FluxModel *m, DType compute, bool streamed) {
    Error err = {0};
    FluxConditions *conditions = run_schedule(c, m, compute);
    FluxStepShape shape = {c->batch, c->batch, c->text, c->rows * c->columns, compute};
    FluxStep *f = flux_step_new(c->scope, m, c->dev, &shape);
    uint64_t budget = 0;
    if (streamed) {
        Stack *probe = stack_new(c->scope, c->dev, &f->spec, 0, &err);
        CHECK(probe);
        budget = stack_memory(probe).smallest_peak;
        stack_free(probe);
    }
    Stack *stack = stage_open(c->scope, c->dev, &f->spec, budget);
    if (streamed) assert_true(stack_memory(stack).moved_bytes > 0);
    int prompts[] = {0, 1};
    size_t n;
    float *tokens = golden(c->scope, c->w, "want.flux.tokens", NULL);
    golden(c->scope, c->w, "want.flux.velocity", &n);
    float *out = MEM_ARRAY(c->scope, float, n);
    int64_t in_size = param_count(f->tokens_in), out_size = param_count(f->velocity);
    assert_int_equal(n, out_size * c->steps);
    CHECK(flux_step_write_rope(f, c->rows, c->columns, &err));
    CHECK(flux_step_write_text(f, conditions, prompts, &err));
    for (int i = 0; i < c->steps; i++) {
        CHECK(flux_step_write_step(f, conditions, i, prompts, &err));
        CHECK(param_write(f->tokens_in, DT_F32, tokens + i * in_size, &err));
        CHECK(stack_run(stack, NULL, &err));
        CHECK(param_read(f->velocity, DT_F32, out + i * out_size, &err));
    }
    stack_free(stack);
    flux_step_free(f);
    return out;
}

static void velocities_are_those_of_diffusers(void **state) {
    (void)state;
    Error err = {0};
    const struct { DType compute; double limit; } runs[] = {{DT_F32, 5e-6}, {DT_BF16, 1e-2}, {DT_F16, 1e-2}};
    for (size_t d = 0; d < COUNT_OF(check_devices); d++)
        for (size_t i = 0; i < COUNT_OF(cases); i++) {
            Case c = case_open(check_devices[d], cases[i]);
            if (!c.dev) {
                case_close(&c);
                continue;
            }
            FluxModel *m = flux_open(c.scope, c.w, CONFIG(weights_meta(c.w, "transformer")), DT_COUNT, &err);
            CHECK(m);
            assert_string_equal(m->layout, "diffusers");
            assert_string_equal(m->prefix, "transformer.");
            size_t n;
            float *want = golden(c.scope, c.w, "want.flux.velocity", &n);
            for (size_t k = 0; k < COUNT_OF(runs); k++) {
                double off = difference(run_steps(&c, m, runs[k].compute, false), want, n);
                print_message("  %s %s: velocity in %s within %.1e\n", check_devices[d], cases[i],
                              dtype_name(runs[k].compute), off);
                assert_true(off < runs[k].limit);
            }
            case_close(&c);
        }
}

static void streamed_is_resident_bit_for_bit(void **state) {
    (void)state;
    Error err = {0};
    for (size_t i = 0; i < 2 * COUNT_OF(cases); i++) {
        Case c = case_open(i % 2 ? "vulkan" : "cpu", cases[i / 2]);
        if (!c.dev) {
            case_close(&c);
            continue;
        }
        FluxModel *m = flux_open(c.scope, c.w, CONFIG(weights_meta(c.w, "transformer")), DT_COUNT, &err);
        CHECK(m);
        size_t n;
        golden(c.scope, c.w, "want.flux.velocity", &n);
        float *resident = run_steps(&c, m, DT_BF16, false), *streamed = run_steps(&c, m, DT_BF16, true);
        assert_memory_equal(resident, streamed, n * sizeof(float));
        case_close(&c);
    }
}

// The same weights under the original names, behind a prefix.
typedef struct Renamed { const FluxModel *m; } Renamed;
static bool read_renamed(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    const BoundWeight *b = &((const Renamed *)user)->m->weight[index];
    uint8_t *all = mem_new(NULL, (size_t)b->bytes); // the file may ask for any range
    bool ok = bound_read(b, 0, all, b->bytes, err);
    memcpy(out, all + offset, (size_t)bytes);
    mem_free(all);
    return ok;
}

static void layouts_give_the_same(void **state) {
    (void)state;
    Error err = {0};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Case c = case_open("ref", cases[i]);
        const char *json = weights_meta(c.w, "transformer");
        FluxModel *m = flux_open(c.scope, c.w, CONFIG(json), DT_COUNT, &err);
        CHECK(m);
        WeightTensor *t = MEM_ARRAY(c.scope, WeightTensor, m->count);
        for (int k = 0; k < m->count; k++) {
            const BoundWeight *b = &m->weight[k];
            t[k] = (WeightTensor){.name = mem_printf(c.scope, "model.diffusion_model.%s", b->name),
                                  .dtype = b->dtype, .ndim = b->ndim, .bytes = b->bytes};
            memcpy(t[k].shape, b->shape, sizeof b->shape);
            t[k].count = b->bytes / (uint64_t)dtype_size(b->dtype);
        }
        Renamed renamed = {m};
        Weights *w = weights_synthetic(c.scope, "renamed", t, m->count, read_renamed, &renamed);
        assert_non_null(w);
        FluxModel *o = flux_open(c.scope, w, CONFIG(json), DT_COUNT, &err);
        CHECK(o);
        assert_string_equal(o->layout, "original");
        assert_string_equal(o->prefix, "model.diffusion_model.");
        size_t n;
        golden(c.scope, c.w, "want.flux.velocity", &n);
        assert_memory_equal(run_steps(&c, m, DT_F32, false), run_steps(&c, o, DT_F32, false),
                            n * sizeof(float));
        case_close(&c);
    }
}

// As diffusers saves after fuse_qkv_projections, with the pieces or without them.
static void put_fused(StWriter *out, const Weights *w, const char *name, bool pieces) {
    static const struct { const char *piece[3], *whole; } fused[] = {
        {{".to_q.", ".to_k.", ".to_v."}, ".to_qkv."},
        {{".add_q_proj.", ".add_k_proj.", ".add_v_proj."}, ".to_added_qkv."},
    };
    Error err = {0};
    const WeightTensor *t = weights_find(w, name);
    bool kept = true;
    for (size_t i = 0; i < 2 * COUNT_OF(fused); i++) {
        const char *const *piece = fused[i / 2].piece, *at = strstr(name, piece[0]);
        kept = kept && !strstr(name, piece[i % 2 + 1]) && (!at || pieces);
        if (!at || i % 2) continue;
        uint8_t *all = mem_new(out, 3 * (size_t)t->bytes);
        int head = (int)(at - name);
        for (int k = 0; k < 3; k++) {
            char *own = mem_printf(out, "%.*s%s%s", head, name, piece[k], at + strlen(piece[0]));
            CHECK(weights_read(w, weights_find(w, own), 0, all + (size_t)k * t->bytes, t->bytes, &err));
        }
        int64_t shape[MAX_DIMS] = {3 * t->shape[0], t->shape[1]};
        st_put(out, mem_printf(out, "%.*s%s%s", head, name, fused[i / 2].whole, at + strlen(piece[0])),
               t->dtype, t->ndim, shape, all);
    }
    if (!kept && !pieces) return;
    uint8_t *bytes = mem_new(out, (size_t)t->bytes);
    CHECK(weights_read(w, t, 0, bytes, t->bytes, &err));
    st_put(out, name, t->dtype, t->ndim, t->shape, bytes);
}

static void fused_projections_give_the_same(void **state) {
    (void)state;
    Error err = {0};
    Case c = case_open("ref", "b");
    char *dir = scratch_new(c.scope);
    FluxModel *m = flux_open(c.scope, c.w, CONFIG(weights_meta(c.w, "transformer")), DT_COUNT, &err);
    CHECK(m);
    size_t n;
    golden(c.scope, c.w, "want.flux.velocity", &n);
    float *want = run_steps(&c, m, DT_F32, false);
    for (int pieces = 0; pieces < 2; pieces++) {
        char *path = os_path_join(c.scope, dir, pieces ? "both.safetensors" : "fused.safetensors");
        StWriter *out = st_writer(c.scope);
        for (int i = 0; i < weights_count(m->weights); i++)
            put_fused(out, m->weights, weights_at(m->weights, i)->name, pieces);
        CHECK(st_write(out, path, &err));
        Weights *w = weights_open(c.scope, path, &err);
        CHECK(w);
        assert_string_equal(weights_architecture(w, NULL), "flux");
        FluxModel *fused = flux_open(c.scope, w, CONFIG(weights_meta(c.w, "transformer")), DT_COUNT, &err);
        CHECK(fused);
        assert_string_equal(fused->layout, pieces ? "diffusers" : "diffusers, fused");
        assert_memory_equal(run_steps(&c, fused, DT_F32, false), want, n * sizeof(float));
        weights_close(w);
    }
    scratch_remove(dir);
    case_close(&c);
}

static void configurations_are_found_and_checked(void **state) {
    (void)state;
    Error err = {0};
    Case c = case_open("ref", "a");
    FluxConfig given, found, full;
    CHECK(flux_config(c.w, CONFIG(weights_meta(c.w, "transformer")), &given, &err));
    CHECK(flux_config(c.w, NULL, &found, &err));
    assert_memory_equal(&given, &found, sizeof given);
    const struct { const char *json, *text; } bad[] = {
        {"{\"num_layers\": 2}", "missing"},
        {"{\"axes_dims_rope\": [4, 4, 4]}", "axes_dims_rope"},
        {"{\"axes_dims_rope\": [4, 28]}", "axes_dims_rope"},
        {"{\"num_attention_heads\": 0}", "num_attention_heads"},
        {"{\"_class_name\": \"SD3Transformer2DModel\"}", "found SD3Transformer2DModel"},
        {"{\"patch_size\": 2}", "some/config.json: expected `patch_size` 1, as the tensors have it, found 2"},
        {"{\"guidance_embeds\": 0.5}", "`guidance_embeds`"},
        {"{\"in_channels\": 128}", "1 wrong"},
        {"{\"joint_attention_dim\": 128}", "1 wrong"},
        {"{\"pooled_projection_dim\": \"x\"}", "some/config.json: expected `pooled_projection_dim` to be"},
        {"[", "config.json"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        err = (Error){0};
        assert_null(flux_open(c.scope, c.w, CONFIG(bad[i].json), DT_COUNT, &err));
        if (!strstr(err.text, bad[i].text)) fail_msg("%s: %s", bad[i].json, err.text);
    }
    err = (Error){0};
    assert_null(flux_open(c.scope, weights_part(c.scope, c.w, "t5."), NULL, DT_COUNT, &err));
    assert_non_null(strstr(err.text, "expected the transformer of FLUX.1"));
    full = flux_preset(true, 1);
    int count;
    const BindWant *wants = flux_wants(c.scope, &full, &count);
    int64_t n = wants_parameters(wants, count), schedule = 0;
    for (int i = 0; i < count; i++)
        if (flux_is_schedule(wants[i].name)) schedule += wants_parameters(&wants[i], 1);
    assert_true(n == 11901408320); // FLUX.1-dev
    print_message("  flux-dev: %.2f of %.2f billion weights in the schedule stage\n",
                  (double)schedule / 1e9, (double)n / 1e9);
    assert_true(schedule > 3200000000u && schedule < 3300000000u);
    for (int divisor = 1; divisor <= 64; divisor++) {
        full = flux_preset(false, divisor);
        CHECK(flux_check_config(&full, &err));
        assert_int_equal(full.head_dim, 128); // whole heads of the real size
        assert_true(full.doubles >= 1 && full.singles >= full.doubles);
    }
    case_close(&c);
}

// Against diffusers' get_timestep_embedding, the cosines first, at a guidance of 100.
static void features_are_those_of_diffusers(void **state) {
    (void)state;
    static const struct { int i; float cosine, sine; } want[] = {
        {13, -0.965196788f, -0.261524677f}, {44, 0.583316147f, 0.81224519f},
        {119, 0.966397285f, 0.257053167f}};
    float got[FLUX_FEATURES];
    timestep_features_f32(100000, FLUX_FEATURES, got);
    for (size_t k = 0; k < COUNT_OF(want); k++) {
        assert_true(fabsf(got[want[k].i] - want[k].cosine) < 2e-7f);
        assert_true(fabsf(got[FLUX_FEATURES / 2 + want[k].i] - want[k].sine) < 2e-7f);
    }
}

static void latents_are_packed_and_unpacked(void **state) {
    (void)state;
    enum { B = 2, C = 3, R = 2, W = 5, N = B * C * 4 * R * W };
    float latents[N], tokens[N], back[N];
    for (int i = 0; i < N; i++) latents[i] = (float)i;
    flux_pack(B, C, R, W, latents, tokens);
    // Token (row 1, column 3) of picture 1: channel 2, lower left pixel.
    assert_true(tokens[(1 * R * W + 1 * W + 3) * 4 * C + 2 * 4 + 2] ==
                latents[((1 * C + 2) * 2 * R + 3) * 2 * W + 6]);
    flux_unpack(B, C, R, W, tokens, back);
    assert_memory_equal(latents, back, sizeof back);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(velocities_are_those_of_diffusers),
        cmocka_unit_test(streamed_is_resident_bit_for_bit),
        cmocka_unit_test(layouts_give_the_same),
        cmocka_unit_test(fused_projections_give_the_same),
        cmocka_unit_test(configurations_are_found_and_checked),
        cmocka_unit_test(features_are_those_of_diffusers),
        cmocka_unit_test(latents_are_packed_and_unpacked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
