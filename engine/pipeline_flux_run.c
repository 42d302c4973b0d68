// pipeline_flux_run.c: a request from text to pictures, stage by stage. See pipeline_flux.h.
#include "engine/pipeline_flux_impl.h"

#include "engine/finite.h"

#include <math.h>

// ---- running ------------------------------------------------------------------------------------

typedef struct FluxJob {
    FluxPipeline *p;
    const FluxRequest *r;
    const FluxEvents *on;
    uint64_t budget;        // of each stage
    Shape shape;
    Schedule *schedule;
    float *pooled;          // [P, pooled_dim]
    float *states;          // [P, Tt, J]
    FluxConditions *conditions;
    size_t numbers;         // of one picture's latents
    // Denoising one group of pictures:
    Groups groups;
    Stage step;
    int first, prompt;      // the group's first picture; the prompt whose text is on the device; -1: none
    bool follows;           // a group of as many pictures
    bool more;              // passes follow: their weights may be on the way already
    int evaluation, evaluations; // of the model in this step
    int steps_done;         // of all groups
    float *tokens, *cond, *uncond, *clean; // [pictures of the group, ...]
    NoiseSource **noise;    // [count]
    FluxMeasured measured;
    int passes; // of the stage at hand
} FluxJob;

static void begin(const FluxJob *j, const char *stage, const char *unit) {
    if (j->on->stage) j->on->stage(j->on->user, stage, unit);
}

static bool keep(const FluxJob *j, const char *name, int ndim, const int64_t *shape, const float *v,
                 Error *err) {
    return !j->on->array || j->on->array(j->on->user, name, ndim, shape, v, err);
}

static void on_unit(void *user, const char *unit, int done, int total) {
    const FluxJob *j = user;
    (void)unit;
    if (j->on->progress) j->on->progress(j->on->user, done, total);
}

static void on_part(void *user, const char *unit, int done, int total) {
    const FluxJob *j = user;
    (void)unit;
    if (!j->on->part) return;
    j->on->part(j->on->user, (int64_t)j->evaluation * total + done, (int64_t)j->evaluations * total);
}

static bool pass(FluxJob *j, Stack *stack, bool show, Error *err) {
    StackPass one = {.cancel = j->r->cancel, .progress = show ? on_unit : on_part, .user = j,
                     .more = j->more};
    j->passes++;
    return stack_run(stack, &one, err);
}

// A stage ends; its memory is still held.
static void measure(FluxJob *j, const char *name, uint64_t moved) {
    FluxMeasured *m = &j->measured;
    m->stage[m->stages].name = name;
    m->stage[m->stages].used_bytes = dev_memory(j->p->dev).used;
    m->stage[m->stages].moved_bytes = moved;
    m->stage[m->stages++].passes = j->passes;
    j->passes = 0;
}

static void end_stage(FluxJob *j, Stage *s, StageId id) {
    if (s->stack) measure(j, flux_stage_name(id), stack_moved(s->stack));
    flux_stage_close(s);
}

static bool load(const FluxJob *j, const Stage *s, const char *then, const char *unit, Error *err) {
    begin(j, "load", "MiB");
    if (!stack_prepare(s->stack, err)) return false;
    begin(j, then, unit);
    return true;
}

// What a tokenizer left out of a prompt; NULL: nothing. Below parent.
static char *what_was_cut(void *parent, const PromptTokens *t, const char *prompt, const char *encoder) {
    if (t->chunks > 1) return mem_printf(parent, "%s reads the first chunk of the %s alone", encoder, prompt);
    if (!t->truncated) return NULL;
    return mem_printf(parent, "the %s was cut to %d tokens of %s", prompt, t->tokens, encoder);
}

// Prompts in order: the prompt, then the negative one. ids, weights (of each id; may be NULL): [P, tokens].
// Of a text in chunks CLIP reads the first one, as A1111's pooled state is of it.
static bool encode_ids(const FluxJob *j, const Tokenizer *words, int tokens, int32_t *ids, float *weights,
                       Error *err) {
    bool clip = tokenizer_info(words)->kind == TOKENIZER_CLIP, weighted = j->r->prompt_weights;
    const PromptOptions options = {.raw = !weighted, .max_tokens = tokens,
                                   .max_chunks = clip && weighted ? 2 : 1};
    const struct { const char *name, *text; size_t n; } prompt[] = {
        {"prompt", j->r->prompt, j->r->prompt_size},
        {"negative prompt", j->r->negative, j->r->negative_size},
    };
    for (int i = 0; i < j->shape.prompts; i++) {
        void *scratch = mem_new(NULL, 1);
        PromptTokens out;
        size_t at = (size_t)i * (size_t)tokens;
        bool ok = prompt_encode(scratch, words, prompt[i].text, prompt[i].n, &options, &out, err);
        if (ok) memcpy(ids + at, out.ids, (size_t)tokens * sizeof *ids);
        if (ok && weights) memcpy(weights + at, out.weights, (size_t)tokens * sizeof *weights);
        char *cut = ok ? what_was_cut(scratch, &out, prompt[i].name, clip ? "CLIP" : "T5") : NULL;
        if (cut && j->on->warn) j->on->warn(j->on->user, cut);
        mem_free(scratch);
        if (!ok) return err_prefix(err, "%s", prompt[i].name);
    }
    return true;
}

// Dumps row 0 (the prompt) and row 1 (the negative prompt) of v [P, ...].
static bool keep_text(const FluxJob *j, const char *what, int64_t tokens, int64_t width, const float *v,
                      Error *err) {
    for (int i = 0; i < j->shape.prompts; i++) {
        char name[64];
        snprintf(name, sizeof name, "text.%s%s", i ? "negative." : "", what);
        const int64_t shape[] = {1, tokens, width}, flat[] = {1, width};
        const float *row = v + (size_t)i * (size_t)(MAX(tokens, 1) * width);
        if (!keep(j, name, tokens ? 3 : 2, tokens ? shape : flat, row, err)) return false;
    }
    return true;
}

static bool run_clip(FluxJob *j, Error *err) {
    FluxPipeline *p = j->p;
    const ClipConfig *c = &p->clip->config;
    int P = j->shape.prompts;
    int32_t *ids = MEM_ARRAY(j, int32_t, P * CLIP_TOKENS);
    float *hidden = MEM_ARRAY(j, float, (size_t)P * CLIP_TOKENS * (size_t)c->dim);
    j->pooled = MEM_ARRAY(j, float, (size_t)P * (size_t)p->model->config.pooled_dim);
    Stage s = {0};
    bool ok = encode_ids(j, p->clip_words, CLIP_TOKENS, ids, NULL, err) &&
              flux_stage_open(&s, p, STAGE_CLIP, &j->shape, j->budget, err) &&
              load(j, &s, "text", "block", err) &&
              clip_text_write(s.clip, ids, err) && pass(j, s.stack, true, err) &&
              param_read(s.clip->pooled, DT_F32, j->pooled, err) &&
              param_read(s.clip->hidden, DT_F32, hidden, err) &&
              keep_text(j, "clip_l", CLIP_TOKENS, c->dim, hidden, err) &&
              keep_text(j, "clip_l.pooled", 0, p->model->config.pooled_dim, j->pooled, err);
    end_stage(j, &s, STAGE_CLIP);
    mem_free(hidden);
    return ok;
}

// Each token's state times its weight; the mean is not restored (docs/decisions.md).
static void weigh(const float *weights, int rows, int width, float *states) {
    for (int i = 0; i < rows; i++, states += width)
        for (int k = 0; k < width; k++) states[k] *= weights[i];
}

static bool run_t5(FluxJob *j, Error *err) {
    FluxPipeline *p = j->p;
    int P = j->shape.prompts, T = j->shape.text, J = p->model->config.text_dim;
    const char *warning = t5_warning(j, &p->t5->config, J);
    if (warning && j->on->warn) j->on->warn(j->on->user, warning);
    int32_t *ids = MEM_ARRAY(j, int32_t, P * T);
    float *weights = MEM_ARRAY(j, float, P * T);
    j->states = MEM_ARRAY(j, float, (size_t)P * (size_t)T * (size_t)J);
    Stage s = {0};
    bool ok = encode_ids(j, p->t5_words, T, ids, weights, err) &&
              flux_stage_open(&s, p, STAGE_T5, &j->shape, j->budget, err) &&
              load(j, &s, "text", "block", err) &&
              t5_text_write(s.t5, ids, NULL, err) && pass(j, s.stack, true, err) &&
              t5_text_read(s.t5, J, j->states, err);
    if (ok) weigh(weights, P * T, J, j->states);
    ok = ok && keep_text(j, "t5xxl", T, J, j->states, err);
    end_stage(j, &s, STAGE_T5);
    return ok;
}

static bool write_features(const FluxJob *j, const FluxSchedule *s, Error *err) {
    float *features = MEM_ARRAY(NULL, float, j->shape.steps * FLUX_FEATURES), guidance[FLUX_FEATURES];
    for (int i = 0; i < j->shape.steps; i++)
        timestep_features_f32(flow_timestep(j->schedule->time[i]), FLUX_FEATURES,
                              features + i * FLUX_FEATURES);
    bool ok = param_write(s->features, DT_F32, features, err);
    mem_free(features);
    if (!ok || !s->guidance) return ok;
    timestep_features_f32((float)j->r->guidance * 1000, FLUX_FEATURES, guidance);
    return param_write(s->guidance, DT_F32, guidance, err);
}

static bool run_schedule(FluxJob *j, Error *err) {
    Stage s = {0};
    bool ok = flux_stage_open(&s, j->p, STAGE_SCHEDULE, &j->shape, j->budget, err) &&
              load(j, &s, "schedule", "block", err) &&
              write_features(j, s.schedule, err) &&
              param_write(s.schedule->pooled, DT_F32, j->pooled, err) &&
              param_write(s.schedule->text, DT_F32, j->states, err) && pass(j, s.stack, true, err) &&
              (j->conditions = flux_conditions_read(j, s.schedule, err));
    end_stage(j, &s, STAGE_SCHEDULE);
    return ok;
}

// ---- denoising ----------------------------------------------------------------------------------

// The model's answer for latents x of the group under one prompt: v, both [B, C, h, w].
static bool evaluate(FluxJob *j, int prompt, int step, const float *x, float *v, Error *err) {
    const Shape *s = &j->shape;
    FluxStep *f = j->step.step;
    int channels = j->p->info.channels;
    if (j->prompt != prompt && !flux_step_write_text(f, j->conditions, &prompt, err)) return false;
    j->prompt = prompt;
    flux_pack(s->batch, channels, s->rows, s->columns, x, j->tokens);
    if (!flux_step_write_step(f, j->conditions, step, &prompt, err) ||
        !param_write(f->tokens_in, DT_F32, j->tokens, err) || !pass(j, j->step.stack, false, err) ||
        !param_read(f->velocity, DT_F32, j->tokens, err))
        return false;
    flux_unpack(s->batch, channels, s->rows, s->columns, j->tokens, v);
    return true;
}

static bool velocity(void *user, double t, const float *x, float *v, Error *err) {
    FluxJob *j = user;
    const Guidance *g = &j->r->cfg;
    int step = schedule_step(j->schedule, t), steps = j->schedule->steps, pictures = j->shape.batch;
    double to_end = j->schedule->end - t;
    bool guided = guidance_scale(g, step, steps) != 1, last = step == steps - 1 && !j->follows;
    size_t n = j->numbers * (size_t)pictures;
    j->evaluation = 0, j->evaluations = 1 + guided;
    j->more = guided || !last;
    if (!evaluate(j, 0, step, x, j->cond, err)) return false;
    j->evaluation = 1;
    j->more = !last;
    if (guided && !evaluate(j, 1, step, x, j->uncond, err)) return false;
    guidance_apply(g, step, steps, v, j->cond, guided ? j->uncond : NULL, x, to_end, pictures, j->numbers);
    for (size_t i = 0; i < n; i++) j->clean[i] = (float)(x[i] + to_end * v[i]);
    return true;
}

static int64_t all_steps(const FluxJob *j) { return (int64_t)j->groups.groups * j->schedule->steps; }

static bool after_step(void *user, int step, const float *x, Error *err) {
    FluxJob *j = user;
    const FluxEvents *on = j->on;
    j->steps_done++;
    if (on->progress) on->progress(on->user, j->steps_done, all_steps(j));
    if (j->r->cancel && j->r->cancel->asked(j->r->cancel->user))
        return err_set(err, STATUS_CANCELLED, "cancelled");
    for (int k = 0; k < j->shape.batch && on->after_step; k++) {
        size_t at = (size_t)k * j->numbers;
        if (!on->after_step(on->user, step, j->first + k, x + at, j->clean + at, err)) return false;
    }
    return true;
}

// Each picture's noise comes from its own seed.
static bool draw(void *user, float *out, Error *err) {
    const FluxJob *j = user;
    (void)err;
    for (int k = 0; k < j->shape.batch; k++)
        noise_draw(j->noise[j->first + k], out + (size_t)k * j->numbers);
    return true;
}

// The transformer for groups of as many pictures as the shape says; those of the first groups come first.
static bool open_steps(FluxJob *j, Error *err) {
    StageId id = j->first ? STAGE_REST : STAGE_STEP;
    j->prompt = -1;
    return flux_stage_open(&j->step, j->p, id, &j->shape, j->budget, err) &&
           load(j, &j->step, "denoise", "step", err) &&
           flux_step_write_rope(j->step.step, j->shape.rows, j->shape.columns, err);
}

// A file's weights are told in place of the latents that they spoil.
static void blame(const FluxJob *j, Error *err) {
    const FluxPipeline *p = j->p;
    const struct { const BoundWeight *weight; int count; } sets[] = {
        {p->clip->weight, p->clip->count}, {p->t5->weight, p->t5->count},
        {p->model->weight, p->model->count}};
    bool ok = true;
    for (size_t i = 0; ok && i < COUNT_OF(sets); i++)
        ok = bound_finite(sets[i].weight, sets[i].count, j->r->cancel, err);
}

// latents [B, C, h, w] of the group.
static bool run_group(FluxJob *j, float *latents, Error *err) {
    const FluxEvents *on = j->on;
    if (on->group) on->group(on->user, j->first, j->shape.batch);
    if (on->progress) on->progress(on->user, j->steps_done, all_steps(j));
    size_t n = (size_t)j->shape.batch * j->numbers;
    bool ok = sampler_run(j->r->sampler, j->schedule, latents, n, (Velocity){velocity, j}, (Noise){draw, j},
                          (AfterStep){after_step, j}, err);
    if (!ok && !all_finite(latents, n)) blame(j, err);
    return ok;
}

static void close_steps(FluxJob *j) {
    bool rest = j->shape.batch < flux_group_size(j->groups, 0);
    end_stage(j, &j->step, rest ? STAGE_REST : STAGE_STEP);
}

// latents [count, C, h, w]: starting points in, results out.
static bool run_steps(FluxJob *j, float *latents, Error *err) {
    size_t n = j->numbers * (size_t)flux_group_size(j->groups, 0);
    bool ok = true;
    j->tokens = MEM_ARRAY(j, float, n);
    j->cond = MEM_ARRAY(j, float, n), j->uncond = MEM_ARRAY(j, float, n);
    j->clean = MEM_ARRAY(j, float, n);
    for (int i = 0; i < j->groups.groups && ok; i++) {
        int size = flux_group_size(j->groups, i);
        bool anew = i == 0 || size != j->shape.batch;
        if (anew && i) close_steps(j);
        j->shape.batch = size;
        j->follows = flux_group_size(j->groups, i + 1) == size;
        ok = (!anew || open_steps(j, err)) && run_group(j, latents + (size_t)j->first * j->numbers, err);
        j->first += size;
    }
    close_steps(j);
    if (!ok && err && err->status == STATUS_CANCELLED)
        err_set(err, STATUS_CANCELLED, "generate: stopped after step %d of %lld", j->steps_done,
                (long long)all_steps(j));
    return ok;
}

// ---- start and end ------------------------------------------------------------------------------

static void on_tile(void *user, int done, int total) { on_unit(user, NULL, done, total); }

// Latents of the picture to start from, each sampled with its picture's own noise: [count, C, h, w].
static bool encode_init(FluxJob *j, float *out, Error *err) {
    const FluxRequest *r = j->r;
    begin(j, "encode", "tile");
    float *planes = MEM_ARRAY(j, float, (size_t)3 * (size_t)r->width * (size_t)r->height);
    image_to_floats(r->init, planes);
    for (int k = 0; k < r->count; k++) noise_draw(j->noise[k], out + (size_t)k * j->numbers);
    VaeRun *run = flux_vae_stage(j->p, VAE_ENCODE, r, j->budget, err);
    VaeCall call = {.samples = r->count, .cancel = r->cancel, .progress = on_tile, .user = j};
    bool ok = run && vae_encode(run, planes, out, out, &call, err);
    measure(j, "encode", 0);
    vae_run_free(run);
    mem_free(planes);
    return ok;
}

static bool start(FluxJob *j, float *latents, Error *err) {
    const FluxRequest *r = j->r;
    size_t n = j->numbers, all = (size_t)r->count * n;
    j->noise = MEM_ARRAY(j, NoiseSource *, r->count);
    for (int k = 0; k < r->count; k++) j->noise[k] = noise_new(j, r->rng, r->seed, k, 1, n);
    float *noise = MEM_ARRAY(j, float, all);
    bool ok = !r->init || encode_init(j, latents, err);
    for (int k = 0; k < r->count; k++) noise_draw(j->noise[k], noise + (size_t)k * n);
    if (r->noise) memcpy(noise, r->noise, all * sizeof(float));
    if (r->init) flow_mix(latents, latents, noise, j->schedule->time[0], all);
    else memcpy(latents, noise, all * sizeof(float));
    float *sigmas = MEM_ARRAY(j, float, j->schedule->steps + 1);
    for (int i = 0; i <= j->schedule->steps; i++) sigmas[i] = (float)j->schedule->time[i];
    const int64_t shape[] = {r->count, j->p->info.channels, r->height / 8, r->width / 8};
    ok = ok && keep(j, "noise", 4, shape, noise, err) &&
         keep(j, "sigmas", 1, (const int64_t[]){j->schedule->steps + 1}, sigmas, err);
    mem_free(noise);
    return ok;
}

static bool decode(FluxJob *j, const float *latents, float *pictures, Error *err) {
    begin(j, "decode", "tile");
    VaeRun *run = flux_vae_stage(j->p, VAE_DECODE, j->r, j->budget, err);
    VaeCall call = {.batch = j->r->count, .cancel = j->r->cancel, .progress = on_tile, .user = j};
    bool ok = run && vae_decode(run, latents, pictures, &call, err);
    measure(j, "decode", 0);
    vae_run_free(run);
    return ok;
}

bool flux_pipeline_generate(FluxPipeline *p, const FluxRequest *request, const FluxPlan *plan,
                            float *pictures, float *latents, FluxMeasured *measured, Error *err) {
    FluxRequest r = *request;
    if (!flux_pipeline_check(p, &r, err)) return false;
    if (plan->groups < 1 || plan->groups > r.count)
        return err_failed(err, "generate: expected the plan of %d pictures, found one of %d groups; this is "
                          "a defect", r.count, plan->groups);
    FluxJob *j = MEM_NEW(p, FluxJob);
    *j = (FluxJob){.p = p, .r = &r, .on = &r.events, .budget = plan->budget,
                    .groups = {r.count, plan->groups}};
    p->cancel = r.cancel, p->on = &r.events;
    double t0 = os_seconds();
    j->schedule = flux_request_schedule(j, p, &r, err);
    bool ok = j->schedule != NULL;
    if (ok) j->shape = flux_shape(&r, j->schedule->steps);
    j->numbers = (size_t)p->info.channels * (size_t)(r.width / 8) * (size_t)(r.height / 8);
    ok = ok && run_clip(j, err) && run_t5(j, err);
    double t1 = os_seconds();
    ok = ok && start(j, latents, err);
    double t2 = os_seconds();
    ok = ok && run_schedule(j, err);
    double t3 = os_seconds();
    ok = ok && run_steps(j, latents, err);
    double t4 = os_seconds();
    ok = ok && decode(j, latents, pictures, err);
    FluxMeasured *m = &j->measured;
    m->text = t1 - t0, m->encode = t2 - t1, m->schedule = t3 - t2, m->denoise = t4 - t3;
    m->decode = os_seconds() - t4;
    if (measured) *measured = *m;
    p->cancel = NULL, p->on = NULL;
    mem_free(j);
    return ok;
}
