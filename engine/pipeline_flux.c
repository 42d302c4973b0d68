// pipeline_flux.c: see pipeline_flux.h.
#include "engine/pipeline_flux_impl.h"

enum { DEV_STEPS = 28, SCHNELL_STEPS = 4, DEV_TEXT = 512, SCHNELL_TEXT = 256 };

// ---- opening ------------------------------------------------------------------------------------

static Tokenizer *open_words(FluxPipeline *p, TokenizerKind kind, const ModelPart *part, Error *err) {
    return part->tokenizer ? tokenizer_open(p, kind, part->tokenizer, err)
                           : tokenizer_builtin(p, kind, err);
}

static bool open_shift(FluxPipeline *p, Error *err) {
    bool dev = p->model->config.guidance;
    p->shift = dev ? FLOW_SHIFT_FLUX_DEV : FLOW_SHIFT_FLUX_SCHNELL;
    const ConfigFile *file = &p->parts->scheduler;
    return !file->text || flow_shift_parse(file, &p->shift, err);
}

static bool open_models(FluxPipeline *p, const FluxPipelineOptions *o, Error *err) {
    const ModelPart *part = p->parts->part;
#define OPEN(field, call, id)                                                     \
    if (!(p->field = call) && !err_prefix(err, "%s", part[id].path)) return false
    OPEN(model, flux_open(p, part[PART_TRANSFORMER].weights, &part[PART_TRANSFORMER].config, o->type, err),
         PART_TRANSFORMER);
    OPEN(clip, clip_open(p, part[PART_CLIP_L].weights, &part[PART_CLIP_L].config, err), PART_CLIP_L);
    OPEN(t5, t5_open(p, part[PART_T5].weights, &part[PART_T5].config, o->type, err), PART_T5);
    OPEN(vae, vae_open(p, part[PART_VAE].weights, &part[PART_VAE].config, err), PART_VAE);
#undef OPEN
    p->clip_words = open_words(p, TOKENIZER_CLIP, &part[PART_CLIP_L], err);
    p->t5_words = p->clip_words ? open_words(p, TOKENIZER_T5, &part[PART_T5], err) : NULL;
    return p->t5_words != NULL;
}

// Has every token an embedding?
static bool check_words(const Tokenizer *words, const ModelPart *part, int vocab, Error *err) {
    int tokens = tokenizer_info(words)->count;
    if (tokens <= vocab) return true;
    const char *what = part->tokenizer ? part->tokenizer : "the built-in tokenizer";
    return err_failed(err, "%s: expected at most %d tokens, as %s has embeddings, found %d; take tokenizer "
                      "and text encoder from one place", what, vocab, part->path, tokens);
}

// Do the parts belong together?
static bool check_parts(const FluxPipeline *p, Error *err) {
    const FluxConfig *c = &p->model->config;
    const ClipConfig *clip = &p->clip->config;
    const ModelPart *part = p->parts->part;
    VaeInfo vae = vae_info(p->vae);
    int t5 = t5_width(&p->t5->config);
    if (clip->dim != c->pooled_dim) // FLUX takes it as it is: not projected
        return err_failed(err, "%s: expected a CLIP whose pooled text has %d numbers, found %d; FLUX.1 "
                          "takes CLIP-L", part[PART_CLIP_L].path, c->pooled_dim, clip->dim);
    if (clip->positions < CLIP_TOKENS)
        return err_failed(err, "%s: expected a CLIP of at least %d positions, found %d; FLUX.1 takes "
                          "CLIP-L", part[PART_CLIP_L].path, CLIP_TOKENS, clip->positions);
    if (t5 > c->text_dim || (!p->parts->distill && t5 != c->text_dim))
        return err_failed(err, "%s: expected a T5 encoder of width %d, found %d%s", part[PART_T5].path,
                          c->text_dim, t5,
                          t5 > c->text_dim ? "" : "; a distilled one is given with --distill");
    if (vae.channels * 4 != c->in_channels || vae.factor != 8)
        return err_failed(err, "%s: expected an autoencoder with %d channels, each for 8 x 8 pixels, found "
                          "%d for %d x %d", part[PART_VAE].path, c->in_channels / 4, vae.channels, vae.factor,
                          vae.factor);
    if (!vae.decoder)
        return err_failed(err, "%s: expected an autoencoder with a decoder, found an encoder alone",
                          part[PART_VAE].path);
    return check_words(p->clip_words, &part[PART_CLIP_L], clip->vocab, err) &&
           check_words(p->t5_words, &part[PART_T5], p->t5->config.vocab, err);
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
        return err_failed(err, "%s: expected an autoencoder with an encoder for --init-img, found a decoder "
                          "alone", p->parts->part[PART_VAE].path);
    return true;
}

Schedule *flux_request_schedule(void *parent, const FluxPipeline *p, const FluxRequest *r, Error *err) {
    FlowShift shift = r->shift > 0 ? FLOW_SHIFT_FIXED(r->shift) : p->shift;
    int tokens = (r->width / FLUX_SIZE_STEP) * (r->height / FLUX_SIZE_STEP);
    Schedule *s = schedule_flow(parent, r->schedule, &shift, tokens, r->steps, err);
    return s && (!r->init || schedule_keep(s, r->strength, err)) ? s : NULL;
}

static int prompts_of(const FluxRequest *r, int steps) { return guidance_any(&r->cfg, steps) ? 2 : 1; }

// ---- stages -------------------------------------------------------------------------------------

void flux_stage_close(Stage *s) {
    stack_free(s->stack);
    if (s->clip) clip_text_free(s->clip);
    if (s->t5) t5_text_free(s->t5);
    if (s->schedule) flux_schedule_free(s->schedule);
    if (s->step) flux_step_free(s->step);
    *s = (Stage){0};
}

static const StackSpec *spec_clip(Stage *s, FluxPipeline *p, const Shape *shape) {
    ClipShape c = {.batch = shape->prompts, .tokens = CLIP_TOKENS, .hidden_norm = true,
                   .compute = p->compute};
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
    FluxStepShape c = {.batch = shape->batch, .prompts = 1, .text = shape->text,
                       .tokens = shape->rows * shape->columns, .compute = p->compute};
    return &(s->step = flux_step_new(p, p->model, p->dev, &c))->spec;
}

typedef const StackSpec *SpecMaker(Stage *s, FluxPipeline *p, const Shape *shape);
static const struct { const char *name; SpecMaker *spec; } stages[STAGE_COUNT] = {
    [STAGE_CLIP] = {"text.clip_l", spec_clip},
    [STAGE_T5] = {"text.t5xxl", spec_t5},
    [STAGE_SCHEDULE] = {"schedule", spec_schedule},
    [STAGE_STEP] = {"transformer", spec_step},
    [STAGE_REST] = {"transformer.rest", spec_step},
};

const char *flux_stage_name(StageId id) { return stages[id].name; }

static void on_loading(void *user, uint64_t done, uint64_t total) {
    const FluxEvents *on = user;
    if (on->progress) on->progress(on->user, (int64_t)(done >> 20), (int64_t)(total >> 20));
}

bool flux_stage_open(Stage *s, FluxPipeline *p, StageId id, const Shape *shape, uint64_t budget,
                     Error *err) {
    StackSpec spec = *stages[id].spec(s, p, shape);
    spec.cancel = p->cancel;
    spec.loading = p->on ? on_loading : NULL, spec.loading_user = (void *)(uintptr_t)p->on;
    s->stack = stack_new(p, p->dev, &spec, budget, err);
    if (s->stack) return true;
    flux_stage_close(s);
    return err_prefix(err, "stage %s", stages[id].name);
}

VaeSpec flux_vae_spec(const FluxPipeline *p, VaePass pass, const FluxRequest *r) {
    return (VaeSpec){.pass = pass, .width = r->width, .height = r->height, .tiling = r->tiling,
                     .compute = p->compute};
}

VaeRun *flux_vae_stage(FluxPipeline *p, VaePass pass, const FluxRequest *r, uint64_t budget, Error *err) {
    VaeSpec spec = flux_vae_spec(p, pass, r);
    spec.budget = budget;
    VaeRun *run = vae_plan(p, p->dev, p->vae, &spec, err);
    if (!run) err_prefix(err, "stage %s", pass == VAE_DECODE ? "decode" : "encode");
    return run;
}

Shape flux_shape(const FluxRequest *r, int steps) {
    return (Shape){.prompts = prompts_of(r, steps), .steps = steps, .text = r->t5_tokens,
                   .rows = r->height / FLUX_SIZE_STEP, .columns = r->width / FLUX_SIZE_STEP, .batch = 1};
}

// ---- settings as text ---------------------------------------------------------------------------

static void describe_guidance(const Guidance *g, void *parent, Parameters *out) {
    if (g->kind && g->kind != guidance_at(0))
        parameters_add(parent, out, "CFG schedule", "%s", g->kind->name);
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
    if (r->prompt_weights) parameters_add(parent, out, "Emphasis", "No norm"); // A1111's name for it
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

