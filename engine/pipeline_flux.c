// pipeline_flux.c: see pipeline_flux.h.
#include "engine/pipeline_flux.h"

#include "backend/os.h"
#include "engine/tokenizer.h"
#include "models/clip.h"
#include "models/flux.h"
#include "models/t5.h"

#include <math.h>

struct FluxPipeline {
    Device *dev;
    const ModelParts *parts;
    DType compute, type; // type: DT_COUNT: as in the files
    FluxModel *model;
    ClipModel *clip;
    T5Model *t5;
    Vae *vae;
    Tokenizer *clip_words, *t5_words;
    FlowShift shift;
    FluxInfo info;
    const Cancel *cancel; // of the request that runs
    const FluxEvents *on;
};

#define PLENTY ((uint64_t)1 << 50) // a budget that refuses nothing
enum { CLIP_TOKENS = 77, DEV_STEPS = 28, SCHNELL_STEPS = 4, DEV_TEXT = 512, SCHNELL_TEXT = 256 };

// ---- opening ------------------------------------------------------------------------------------

static Tokenizer *open_words(FluxPipeline *p, TokenizerKind kind, const ModelPart *part, Error *err) {
    return part->tokenizer ? tokenizer_open(p, kind, part->tokenizer, err)
                           : tokenizer_builtin(p, kind, err);
}

static bool open_shift(FluxPipeline *p, Error *err) {
    bool dev = p->model->config.guidance;
    p->shift = dev ? FLOW_SHIFT_FLUX_DEV : FLOW_SHIFT_FLUX_SCHNELL;
    const char *json = p->parts->scheduler;
    return !json || flow_shift_parse(json, strlen(json), "scheduler_config.json", &p->shift, err);
}

static bool open_models(FluxPipeline *p, const FluxPipelineOptions *o, Error *err) {
    const ModelPart *part = p->parts->part;
#define OPEN(field, call, id)                                                     \
    if (!(p->field = call) && !err_prefix(err, "%s", part[id].path)) return false
    OPEN(model, flux_open(p, part[PART_TRANSFORMER].weights, part[PART_TRANSFORMER].config, o->type, err),
         PART_TRANSFORMER);
    OPEN(clip, clip_open(p, part[PART_CLIP_L].weights, part[PART_CLIP_L].config, err), PART_CLIP_L);
    OPEN(t5, t5_open(p, part[PART_T5].weights, part[PART_T5].config, o->type, err), PART_T5);
    OPEN(vae, vae_open(p, part[PART_VAE].weights, part[PART_VAE].config, err), PART_VAE);
#undef OPEN
    p->clip_words = open_words(p, TOKENIZER_CLIP, &part[PART_CLIP_L], err);
    p->t5_words = p->clip_words ? open_words(p, TOKENIZER_T5, &part[PART_T5], err) : NULL;
    return p->t5_words != NULL;
}

// Do the parts belong together?
static bool check_parts(const FluxPipeline *p, Error *err) {
    const FluxConfig *c = &p->model->config;
    const ClipConfig *clip = &p->clip->config;
    VaeInfo vae = vae_info(p->vae);
    if (clip->dim != c->pooled_dim) // FLUX takes it as it is: not projected
        return err_failed(err, "model: expected a CLIP whose pooled text has %d numbers, found %d; "
                          "FLUX.1 takes CLIP-L", c->pooled_dim, clip->dim);
    if (t5_width(&p->t5->config) > c->text_dim)
        return err_failed(err, "model: expected a T5 encoder of width %d, found %d", c->text_dim,
                          t5_width(&p->t5->config));
    if (!p->parts->distill && t5_width(&p->t5->config) != c->text_dim)
        return err_failed(err, "model: expected a T5 encoder of width %d, found %d; a distilled one "
                          "is given with --distill", c->text_dim, t5_width(&p->t5->config));
    if (vae.channels * 4 != c->in_channels || vae.factor != 8)
        return err_failed(err, "model: expected an autoencoder with %d channels, found %d",
                          c->in_channels / 4, vae.channels);
    if (!vae.decoder)
        return err_failed(err, "model: expected an autoencoder with a decoder, found an encoder alone");
    if (clip->positions < CLIP_TOKENS || tokenizer_info(p->clip_words)->count > clip->vocab ||
        tokenizer_info(p->t5_words)->count > p->t5->config.vocab)
        return err_failed(err, "model: expected tokenizers that fit the text encoders, found more "
                          "tokens than embeddings");
    return true;
}

FluxPipeline *flux_pipeline_open(void *parent, Device *dev, const ModelParts *parts,
                                 const FluxPipelineOptions *options, Error *err) {
    FluxPipeline *p = MEM_NEW(parent, FluxPipeline);
    p->dev = dev;
    p->parts = parts;
    p->compute = options->compute;
    p->type = options->type;
    if (!open_models(p, options, err) || !check_parts(p, err) || !open_shift(p, err)) {
        flux_pipeline_close(p);
        return NULL;
    }
    bool is_dev = p->model->config.guidance;
    p->info = (FluxInfo){
        .architecture = "flux", .variant = flux_variant(&p->model->config),
        .channels = vae_info(p->vae).channels, .steps = is_dev ? DEV_STEPS : SCHNELL_STEPS,
        .t5_tokens = is_dev ? DEV_TEXT : SCHNELL_TEXT,
        .parameters = p->model->parameters + p->clip->parameters + p->t5->parameters +
                      vae_info(p->vae).parameters,
    };
    return p;
}

void flux_pipeline_close(FluxPipeline *p) {
    if (!p) return;
    vae_close(p->vae);
    mem_free(p);
}

FluxInfo flux_pipeline_info(const FluxPipeline *p) { return p->info; }

// ---- requests -----------------------------------------------------------------------------------

static bool check_side(const char *name, int n, Error *err) {
    if (n % FLUX_SIZE_STEP == 0 && n >= FLUX_SIZE_STEP && n <= FLUX_MAX_SIDE) return true;
    int below = MAX(n / FLUX_SIZE_STEP * FLUX_SIZE_STEP, FLUX_SIZE_STEP), above = below + FLUX_SIZE_STEP;
    if (n > FLUX_MAX_SIDE)
        return err_failed(err, "%s: expected at most %d, found %d", name, FLUX_MAX_SIDE, n);
    return err_failed(err, "%s: expected a multiple of %d, found %d; the nearest are %d and %d", name,
                      FLUX_SIZE_STEP, n, below, above);
}

bool flux_pipeline_check(const FluxPipeline *p, FluxRequest *r, Error *err) {
    if (!r->width) r->width = FLUX_DEFAULT_SIDE;
    if (!r->height) r->height = FLUX_DEFAULT_SIDE;
    if (!r->steps) r->steps = p->info.steps;
    if (!r->t5_tokens) r->t5_tokens = p->info.t5_tokens;
    if (!r->sampler) r->sampler = sampler_at(0);
    if (!r->count) r->count = 1;
    if (!r->negative) r->negative = "", r->negative_size = 0;
    if (!check_side("width", r->width, err) || !check_side("height", r->height, err)) return false;
    if (r->count < 1 || r->count > 10000)
        return err_failed(err, "count: expected 1 to 10000 pictures, found %d", r->count);
    if (r->init && !vae_info(p->vae).encoder)
        return err_failed(err, "init-img: expected an autoencoder with an encoder, found a decoder alone");
    return true;
}

// The sigmas of a request. Image to image keeps the last part of them.
static Schedule *request_schedule(void *parent, const FluxPipeline *p, const FluxRequest *r, Error *err) {
    FlowShift shift = r->shift > 0 ? FLOW_SHIFT_FIXED(r->shift) : p->shift;
    int tokens = (r->width / FLUX_SIZE_STEP) * (r->height / FLUX_SIZE_STEP);
    Schedule *s = schedule_flow(parent, r->schedule, &shift, tokens, r->steps, err);
    return s && (!r->init || schedule_keep(s, r->strength, err)) ? s : NULL;
}

static int prompts_of(const FluxRequest *r, int steps) { return guidance_any(&r->cfg, steps) ? 2 : 1; }

// ---- stages -------------------------------------------------------------------------------------

// A stack with the state of its model; one of the pointers is set.
typedef struct Stage {
    Stack *stack;
    ClipText *clip;
    T5Text *t5;
    FluxSchedule *schedule;
    FluxStep *step;
} Stage;

static void stage_close(Stage *s) {
    stack_free(s->stack);
    if (s->clip) clip_text_free(s->clip);
    if (s->t5) t5_text_free(s->t5);
    if (s->schedule) flux_schedule_free(s->schedule);
    if (s->step) flux_step_free(s->step);
    *s = (Stage){0};
}

// What the shapes of all stages follow from.
typedef struct Shape { int prompts, steps, text, rows, columns; } Shape;

static const StackSpec *spec_clip(Stage *s, FluxPipeline *p, const Shape *shape) {
    ClipShape c = {.batch = shape->prompts, .tokens = CLIP_TOKENS, .hidden_norm = true, .compute = p->compute};
    return &(s->clip = clip_text_new(p, p->clip, p->dev, &c))->spec;
}

static const StackSpec *spec_t5(Stage *s, FluxPipeline *p, const Shape *shape) {
    T5Shape c = {.batch = shape->prompts, .tokens = shape->text, .compute = p->compute};
    return &(s->t5 = t5_text_new(p, p->t5, p->dev, &c))->spec;
}

static const StackSpec *spec_schedule(Stage *s, FluxPipeline *p, const Shape *shape) {
    FluxScheduleShape c = {.steps = shape->steps, .prompts = shape->prompts, .text = shape->text,
                           .compute = p->compute};
    return &(s->schedule = flux_schedule_new(p, p->model, p->dev, &c))->spec;
}

static const StackSpec *spec_step(Stage *s, FluxPipeline *p, const Shape *shape) {
    FluxStepShape c = {.batch = 1, .prompts = 1, .text = shape->text,
                       .tokens = shape->rows * shape->columns, .compute = p->compute};
    return &(s->step = flux_step_new(p, p->model, p->dev, &c))->spec;
}

typedef const StackSpec *SpecMaker(Stage *s, FluxPipeline *p, const Shape *shape);
typedef enum { STAGE_CLIP, STAGE_T5, STAGE_SCHEDULE, STAGE_STEP, STAGE_COUNT } StageId;
static const struct { const char *name; SpecMaker *spec; } stages[STAGE_COUNT] = {
    [STAGE_CLIP] = {"text.clip_l", spec_clip},
    [STAGE_T5] = {"text.t5xxl", spec_t5},
    [STAGE_SCHEDULE] = {"schedule", spec_schedule},
    [STAGE_STEP] = {"transformer", spec_step},
};

static void on_loading(void *user, uint64_t done, uint64_t total) {
    const FluxEvents *on = user;
    if (on->progress) on->progress(on->user, (int64_t)(done >> 20), (int64_t)(total >> 20));
}

static bool stage_open(Stage *s, FluxPipeline *p, StageId id, const Shape *shape, uint64_t budget,
                       Error *err) {
    StackSpec spec = *stages[id].spec(s, p, shape);
    spec.cancel = p->cancel;
    spec.loading = p->on ? on_loading : NULL, spec.loading_user = (void *)(uintptr_t)p->on;
    s->stack = stack_new(p, p->dev, &spec, budget, err);
    if (s->stack) return true;
    stage_close(s);
    return err_prefix(err, "stage %s", stages[id].name);
}

static VaeRun *vae_stage(FluxPipeline *p, VaePass pass, const FluxRequest *r, uint64_t budget, Error *err) {
    VaeSpec spec = {.pass = pass, .width = r->width, .height = r->height, .budget = budget,
                    .tiling = r->tiling, .compute = p->compute};
    VaeRun *run = vae_plan(p, p->dev, p->vae, &spec, err);
    if (!run) err_prefix(err, "stage %s", pass == VAE_DECODE ? "decode" : "encode");
    return run;
}

static Shape shape_of(const FluxRequest *r, int steps) {
    return (Shape){.prompts = prompts_of(r, steps), .steps = steps, .text = r->t5_tokens,
                   .rows = r->height / FLUX_SIZE_STEP, .columns = r->width / FLUX_SIZE_STEP};
}

// ---- the plan -----------------------------------------------------------------------------------

static void plan_add(FluxPlan *plan, FluxStagePlan stage) {
    plan->stage[plan->stages++] = stage;
    if (stage.peak_bytes > plan->peak_bytes) {
        plan->peak_bytes = stage.peak_bytes;
        plan->peak_stage = plan->stages - 1;
    }
}

static bool plan_stack(FluxPipeline *p, StageId id, const Shape *shape, uint64_t budget, FluxPlan *plan,
                       Error *err) {
    Stage s = {0};
    if (!stage_open(&s, p, id, shape, budget, err)) return false;
    StackMemory m = stack_memory(s.stack);
    plan_add(plan, (FluxStagePlan){
        .name = stages[id].name, .resident_bytes = m.resident_bytes, .streamed_bytes = m.streamed_bytes,
        .arena_bytes = m.arena_bytes + m.state_bytes, .peak_bytes = m.peak_bytes,
        .moved_bytes_per_step = m.moved_bytes, .weights_bytes = m.resident_bytes + m.slots_bytes,
    });
    FluxStagePlan *stage = &plan->stage[plan->stages - 1];
    for (; stage->units < stack_units(s.stack); stage->units++)
        stage->streamed_units += !stack_unit_resident(s.stack, stage->units);
    stage_close(&s);
    return true;
}

static bool plan_vae(FluxPipeline *p, VaePass pass, const FluxRequest *r, uint64_t budget, FluxPlan *plan,
                     Error *err) {
    VaeRun *run = vae_stage(p, pass, r, budget, err);
    if (!run) return false;
    VaeMemory m = vae_memory(run);
    plan_add(plan, (FluxStagePlan){
        .name = pass == VAE_DECODE ? "decode" : "encode", .resident_bytes = m.weights_bytes,
        .arena_bytes = m.arena_bytes, .peak_bytes = m.peak_bytes, .weights_bytes = m.weights_bytes,
        .flops = m.flops,
    });
    if (m.tiles_x * m.tiles_y > 1) plan->tile_width = m.tile_width, plan->tile_height = m.tile_height;
    vae_run_free(run);
    return true;
}

static bool plan_all(FluxPipeline *p, const FluxRequest *r, const Shape *shape, uint64_t budget,
                     FluxPlan *plan, Error *err) {
    return plan_stack(p, STAGE_CLIP, shape, budget, plan, err) &&
           plan_stack(p, STAGE_T5, shape, budget, plan, err) &&
           (!r->init || plan_vae(p, VAE_ENCODE, r, budget, plan, err)) &&
           plan_stack(p, STAGE_SCHEDULE, shape, budget, plan, err) &&
           plan_stack(p, STAGE_STEP, shape, budget, plan, err) &&
           plan_vae(p, VAE_DECODE, r, budget, plan, err);
}

// The smallest budget in which the autoencoder's stage can be planned (in tiles, if need be).
static uint64_t smallest_vae(FluxPipeline *p, VaePass pass, const FluxRequest *r) {
    uint64_t low = 0, high = PLENTY; // does not fit, fits
    while (high - low > (1 << 20)) {
        uint64_t middle = low + (high - low) / 2;
        Error ignored = {0};
        VaeRun *run = vae_stage(p, pass, r, middle, &ignored);
        if (run) high = MIN(middle, vae_memory(run).peak_bytes);
        else low = middle;
        vae_run_free(run);
    }
    return high;
}

// What was planned with this device's staging, with that of the budget itself, which may be another.
static uint64_t with_its_staging(const DeviceInfo *info, uint64_t need) {
    uint64_t rest = need - MIN(info->staging_bytes, need), budget = rest;
    for (int i = 0; i < STAGING_STEPS && (i == 0 || budget >= info->staging_step[i].budget); i++)
        budget = rest + info->staging_step[i].bytes;
    return budget;
}

// The smallest budget in which every stage can be planned; 0: none.
static uint64_t smallest_budget(FluxPipeline *p, const FluxRequest *r, const Shape *shape) {
    uint64_t need = smallest_vae(p, VAE_DECODE, r);
    if (r->init) need = MAX(need, smallest_vae(p, VAE_ENCODE, r));
    for (int id = 0; id < STAGE_COUNT; id++) {
        Stage s = {0};
        Error ignored = {0};
        if (!stage_open(&s, p, (StageId)id, shape, PLENTY, &ignored)) return 0;
        need = MAX(need, stack_memory(s.stack).smallest_peak);
        stage_close(&s);
    }
    return with_its_staging(dev_info(p->dev), need);
}

static bool over_budget(FluxPipeline *p, const FluxRequest *r, const Shape *shape, uint64_t budget, Error *err) {
    uint64_t need = smallest_budget(p, r, shape);
    if (!need || need <= budget) return false; // it failed for another reason, which err says
    char text[32], have[32];
    format_bytes(text, need);
    format_bytes(have, budget);
    return err_failed(err, "memory: expected a budget of at least %s (%llu bytes) for all stages, found %s; "
                      "give --vram %lluM or more, or a smaller picture", text, (unsigned long long)need, have,
                      (unsigned long long)((need + (1 << 20) - 1) >> 20));
}

uint64_t flux_pipeline_smallest(FluxPipeline *p, const FluxRequest *r) {
    Error ignored = {0};
    Schedule *schedule = request_schedule(p, p, r, &ignored);
    if (!schedule) return 0;
    Shape shape = shape_of(r, schedule->steps);
    mem_free(schedule);
    return smallest_budget(p, r, &shape);
}

bool flux_pipeline_plan(FluxPipeline *p, const FluxRequest *r, uint64_t budget, FluxPlan *plan, Error *err) {
    double start = os_seconds();
    *plan = (FluxPlan){.driver_bytes = dev_info(p->dev)->driver_bytes};
    Schedule *schedule = request_schedule(p, p, r, err);
    if (!schedule) return false;
    plan->steps = schedule->steps;
    Shape shape = shape_of(r, schedule->steps);
    plan->prompts = shape.prompts;
    mem_free(schedule);
    bool ok = plan_all(p, r, &shape, budget, plan, err);
    plan->planning_ms = (os_seconds() - start) * 1e3;
    if (!ok) over_budget(p, r, &shape, budget ? budget : dev_memory(p->dev).budget, err);
    return ok;
}

// ---- settings as text ---------------------------------------------------------------------------

static void describe_guidance(const Guidance *g, void *parent, Parameters *out) {
    if (g->kind && g->kind != guidance_at(0)) parameters_add(parent, out, "CFG schedule", "%s", g->kind->name);
    if (g->hi > 0) parameters_add(parent, out, "CFG interval", "%g-%g", g->lo, g->hi);
}

// The model's own: its file, or a folder directly in it.
static bool own_part(const char *model, const char *part) {
    size_t n = strlen(model);
    while (n > 1 && model[n - 1] == '/') n--;
    if (strncmp(part, model, n) != 0) return false;
    return !part[n] || (part[n] == '/' && !strpbrk(part + n + 1, "/."));
}

// Parts from files other than the model's, as the web UI Forge lists them.
static void describe_parts(const ModelParts *parts, void *parent, Parameters *out) {
    int modules = 0;
    for (int i = 0; i < PART_COUNT; i++) {
        const char *path = parts->part[i].path;
        char name[24];
        if (!path || own_part(parts->path, path)) continue;
        snprintf(name, sizeof name, "Module %d", modules + 1);
        if (i == PART_TRANSFORMER) out->model = path;
        else parameters_add(parent, out, name, "%s", parameters_model(parent, path)), modules++;
    }
}

void flux_pipeline_describe(const FluxPipeline *p, const FluxRequest *r, const FluxPlan *plan,
                            void *parent, Parameters *out) {
    out->model = p->parts->path;
    out->negative = r->negative;
    out->sampler = r->sampler->name;
    out->steps = r->steps;
    out->cfg_scale = r->cfg.scale;
    out->guidance = p->model->config.guidance ? r->guidance : 0;
    out->torch_rng = r->rng == NOISE_TORCH;
    describe_parts(p->parts, parent, out);
    if (r->init) parameters_add(parent, out, "Denoising strength", "%.15g", r->strength);
    if (r->schedule && r->schedule != schedule_at(0))
        parameters_add(parent, out, "Schedule type", "%s", r->schedule->name);
    if (r->shift > 0) parameters_add(parent, out, "Shift", "%.15g", r->shift);
    if (plan->prompts > 1) describe_guidance(&r->cfg, parent, out);
    if (r->cfg.threshold > 0) parameters_add(parent, out, "Dynamic threshold", "%.15g", r->cfg.threshold);
    if (r->t5_tokens != p->info.t5_tokens) parameters_add(parent, out, "T5 tokens", "%d", r->t5_tokens);
    if (p->type != DT_COUNT) parameters_add(parent, out, "Weights", "%s", dtype_name(p->type));
    if (p->compute == DT_F32) parameters_add(parent, out, "Precision", "f32");
    if (plan->tile_width)
        parameters_add(parent, out, "VAE tiling", "%dx%d", plan->tile_width, plan->tile_height);
}

// ---- running ------------------------------------------------------------------------------------

typedef struct FluxJob {
    FluxPipeline *p;
    const FluxRequest *r;
    const FluxEvents *on;
    Shape shape;
    Schedule *schedule;
    float *pooled;          // [P, pooled_dim]
    float *states;          // [P, Tt, J]
    FluxConditions *conditions;
    size_t numbers;         // of one picture's latents
    // Denoising one picture:
    Stage step;
    int picture, prompt;    // prompt: the one whose text is on the device; -1: none
    bool more;              // steps follow: their weights may be on the way already
    int evaluation, evaluations; // of the model in this step
    int steps_done;
    float *tokens, *cond, *uncond, *clean;
    NoiseSource *noise;
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
    if (j->on->part) j->on->part(j->on->user, (int64_t)j->evaluation * total + done, (int64_t)j->evaluations * total);
}

static bool pass(FluxJob *j, Stack *stack, bool show, Error *err) {
    StackPass one = {.cancel = j->r->cancel, .progress = show ? on_unit : on_part, .user = j, .more = j->more};
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
    if (s->stack) measure(j, stages[id].name, stack_moved(s->stack));
    stage_close(s);
}

static bool load(const FluxJob *j, const Stage *s, const char *then, const char *unit, Error *err) {
    begin(j, "load", "MiB");
    if (!stack_prepare(s->stack, err)) return false;
    begin(j, then, unit);
    return true;
}

// Prompts in order: the prompt, then the negative one.
static bool encode_ids(const FluxJob *j, const Tokenizer *words, int tokens, int32_t *ids, Error *err) {
    const struct { const char *name, *text; size_t n; } prompt[] = {
        {"prompt", j->r->prompt, j->r->prompt_size},
        {"negative prompt", j->r->negative, j->r->negative_size},
    };
    for (int i = 0; i < j->shape.prompts; i++) {
        void *scratch = mem_new(NULL, 1);
        Tokens out;
        bool ok = tokenizer_encode(words, prompt[i].text, prompt[i].n, tokens, true, scratch, &out, err);
        if (ok) memcpy(ids + (size_t)i * (size_t)tokens, out.ids, (size_t)tokens * sizeof *ids);
        if (ok && out.truncated && j->on->warn) {
            char *line = mem_printf(scratch, "the %s was cut to %d tokens of %s", prompt[i].name, tokens,
                                    tokenizer_info(words)->kind == TOKENIZER_CLIP ? "CLIP" : "T5");
            j->on->warn(j->on->user, line);
        }
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
    bool ok = encode_ids(j, p->clip_words, CLIP_TOKENS, ids, err) &&
              stage_open(&s, p, STAGE_CLIP, &j->shape, 0, err) &&
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

static bool run_t5(FluxJob *j, Error *err) {
    FluxPipeline *p = j->p;
    int P = j->shape.prompts, T = j->shape.text, J = p->model->config.text_dim;
    const char *warning = t5_warning(j, &p->t5->config, J);
    if (warning && j->on->warn) j->on->warn(j->on->user, warning);
    int32_t *ids = MEM_ARRAY(j, int32_t, P * T);
    j->states = MEM_ARRAY(j, float, (size_t)P * (size_t)T * (size_t)J);
    Stage s = {0};
    bool ok = encode_ids(j, p->t5_words, T, ids, err) &&
              stage_open(&s, p, STAGE_T5, &j->shape, 0, err) && load(j, &s, "text", "block", err) &&
              t5_text_write(s.t5, ids, NULL, err) && pass(j, s.stack, true, err) &&
              t5_text_read(s.t5, J, j->states, err) && keep_text(j, "t5xxl", T, J, j->states, err);
    end_stage(j, &s, STAGE_T5);
    return ok;
}

static bool write_features(const FluxJob *j, const FluxSchedule *s, Error *err) {
    float *features = MEM_ARRAY(NULL, float, j->shape.steps * FLUX_FEATURES), guidance[FLUX_FEATURES];
    for (int i = 0; i < j->shape.steps; i++)
        timestep_features_f32(flow_timestep(j->schedule->time[i]) / 1000.0, FLUX_FEATURES,
                              features + i * FLUX_FEATURES);
    bool ok = param_write(s->features, DT_F32, features, err);
    mem_free(features);
    if (!ok || !s->guidance) return ok;
    timestep_features_f32(j->r->guidance, FLUX_FEATURES, guidance);
    return param_write(s->guidance, DT_F32, guidance, err);
}

static bool run_schedule(FluxJob *j, Error *err) {
    Stage s = {0};
    bool ok = stage_open(&s, j->p, STAGE_SCHEDULE, &j->shape, 0, err) &&
              load(j, &s, "schedule", "block", err) &&
              write_features(j, s.schedule, err) &&
              param_write(s.schedule->pooled, DT_F32, j->pooled, err) &&
              param_write(s.schedule->text, DT_F32, j->states, err) && pass(j, s.stack, true, err) &&
              (j->conditions = flux_conditions_read(j, s.schedule, err));
    end_stage(j, &s, STAGE_SCHEDULE);
    return ok;
}

// ---- denoising ----------------------------------------------------------------------------------

// The model's answer for latents x under one prompt: v [C, h, w].
static bool evaluate(FluxJob *j, int prompt, int step, const float *x, float *v, Error *err) {
    const Shape *s = &j->shape;
    FluxStep *f = j->step.step;
    int channels = j->p->info.channels;
    if (j->prompt != prompt && !flux_step_write_text(f, j->conditions, &prompt, err)) return false;
    j->prompt = prompt;
    flux_pack(1, channels, s->rows, s->columns, x, j->tokens);
    if (!flux_step_write_step(f, j->conditions, step, &prompt, err) ||
        !param_write(f->tokens_in, DT_F32, j->tokens, err) || !pass(j, j->step.stack, false, err) ||
        !param_read(f->velocity, DT_F32, j->tokens, err))
        return false;
    flux_unpack(1, channels, s->rows, s->columns, j->tokens, v);
    return true;
}

static bool velocity(void *user, double t, const float *x, float *v, Error *err) {
    FluxJob *j = user;
    const Guidance *g = &j->r->cfg;
    int step = schedule_step(j->schedule, t), steps = j->schedule->steps;
    double to_end = j->schedule->end - t;
    bool guided = guidance_scale(g, step, steps) != 1;
    j->more = step < steps - 1 || j->picture < j->r->count - 1;
    j->evaluation = 0, j->evaluations = 1 + guided;
    if (!evaluate(j, 0, step, x, j->cond, err)) return false;
    j->evaluation = 1;
    if (guided && !evaluate(j, 1, step, x, j->uncond, err)) return false;
    guidance_apply(g, step, steps, v, j->cond, guided ? j->uncond : NULL, x, to_end, 1, j->numbers);
    for (size_t i = 0; i < j->numbers; i++) j->clean[i] = (float)(x[i] + to_end * v[i]);
    return true;
}

static bool after_step(void *user, int step, const float *x, Error *err) {
    FluxJob *j = user;
    j->steps_done++;
    if (j->on->progress)
        j->on->progress(j->on->user, j->steps_done, (int64_t)j->r->count * j->schedule->steps);
    if (j->r->cancel && j->r->cancel->asked(j->r->cancel->user))
        return err_set(err, STATUS_CANCELLED, "cancelled");
    return !j->on->after_step || j->on->after_step(j->on->user, step, j->picture, x, j->clean, err);
}

static bool draw(void *user, float *out, Error *err) {
    (void)err;
    noise_draw(((FluxJob *)user)->noise, out);
    return true;
}

// latents [count, C, h, w]: starting points in, results out. sources: one generator per picture.
static bool run_steps(FluxJob *j, float *latents, NoiseSource **sources, Error *err) {
    size_t n = j->numbers;
    j->tokens = MEM_ARRAY(j, float, n);
    j->cond = MEM_ARRAY(j, float, n), j->uncond = MEM_ARRAY(j, float, n);
    j->clean = MEM_ARRAY(j, float, n);
    j->prompt = -1;
    bool ok = stage_open(&j->step, j->p, STAGE_STEP, &j->shape, 0, err) &&
              load(j, &j->step, "denoise", "step", err) &&
              flux_step_write_rope(j->step.step, j->shape.rows, j->shape.columns, err);
    if (ok && j->on->progress) j->on->progress(j->on->user, 0, (int64_t)j->r->count * j->schedule->steps);
    for (j->picture = 0; j->picture < j->r->count && ok; j->picture++) {
        j->noise = sources[j->picture];
        ok = sampler_run(j->r->sampler, j->schedule, latents + (size_t)j->picture * n, n,
                         (Velocity){velocity, j}, (Noise){draw, j}, (AfterStep){after_step, j}, err);
    }
    if (!ok && err && err->status == STATUS_CANCELLED)
        err_set(err, STATUS_CANCELLED, "generate: stopped after step %d of %d", j->steps_done,
                j->r->count * j->schedule->steps);
    return ok;
}

// ---- start and end ------------------------------------------------------------------------------

// Latents of the picture to start from, sampled with each picture's own noise: [count, C, h, w].
static bool encode_init(FluxJob *j, NoiseSource **sources, float *out, Error *err) {
    const FluxRequest *r = j->r;
    begin(j, "encode", "picture");
    float *planes = MEM_ARRAY(j, float, (size_t)3 * (size_t)r->width * (size_t)r->height);
    float *noise = MEM_ARRAY(j, float, j->numbers);
    image_to_floats(r->init, planes);
    VaeRun *run = vae_stage(j->p, VAE_ENCODE, r, 0, err);
    bool ok = run;
    for (int k = 0; k < r->count && ok; k++) {
        noise_draw(sources[k], noise);
        VaeCall call = {.batch = 1, .cancel = r->cancel};
        ok = vae_encode(run, planes, noise, out + (size_t)k * j->numbers, &call, err);
    }
    measure(j, "encode", 0);
    vae_run_free(run);
    mem_free(planes);
    mem_free(noise);
    return ok;
}

static bool start(FluxJob *j, float *latents, NoiseSource **sources, Error *err) {
    const FluxRequest *r = j->r;
    size_t n = j->numbers, all = (size_t)r->count * n;
    for (int k = 0; k < r->count; k++) sources[k] = noise_new(j, r->rng, r->seed, k, 1, n);
    float *noise = MEM_ARRAY(j, float, all);
    bool ok = !r->init || encode_init(j, sources, latents, err);
    for (int k = 0; k < r->count; k++) noise_draw(sources[k], noise + (size_t)k * n);
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

static void on_tile(void *user, int done, int total) { on_unit(user, NULL, done, total); }

static bool decode(FluxJob *j, const float *latents, float *pictures, Error *err) {
    begin(j, "decode", "tile");
    VaeRun *run = vae_stage(j->p, VAE_DECODE, j->r, 0, err);
    VaeCall call = {.batch = j->r->count, .cancel = j->r->cancel, .progress = on_tile, .user = j};
    bool ok = run && vae_decode(run, latents, pictures, &call, err);
    measure(j, "decode", 0);
    vae_run_free(run);
    return ok;
}

bool flux_pipeline_generate(FluxPipeline *p, const FluxRequest *request, float *pictures, float *latents,
                            FluxMeasured *measured, Error *err) {
    FluxRequest r = *request;
    if (!flux_pipeline_check(p, &r, err)) return false;
    FluxJob *j = MEM_NEW(p, FluxJob);
    *j = (FluxJob){.p = p, .r = &r, .on = &r.events};
    p->cancel = r.cancel, p->on = &r.events;
    double t0 = os_seconds();
    j->schedule = request_schedule(j, p, &r, err);
    bool ok = j->schedule != NULL;
    if (ok) j->shape = shape_of(&r, j->schedule->steps);
    j->numbers = (size_t)p->info.channels * (size_t)(r.width / 8) * (size_t)(r.height / 8);
    NoiseSource **sources = MEM_ARRAY(j, NoiseSource *, r.count);
    ok = ok && run_clip(j, err) && run_t5(j, err);
    double t1 = os_seconds();
    ok = ok && start(j, latents, sources, err);
    double t2 = os_seconds();
    ok = ok && run_schedule(j, err);
    double t3 = os_seconds();
    ok = ok && run_steps(j, latents, sources, err);
    end_stage(j, &j->step, STAGE_STEP);
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
