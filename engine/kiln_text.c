// kiln_text.c: libkiln's side of models that take a prompt (FLUX.1).
#include "engine/kiln_impl.h"

#include "backend/os.h"
#include "engine/pipeline_dummy.h"
#include "engine/pipeline_flux.h"

static ModelParts *open_parts(KilnModel *m, const KilnModelOptions *o, DType type, Error *err) {
    if (o->dummy) {
        if (!pipeline_dummy_check(o->dummy, err)) return NULL;
        int divisor = MAX(o->dummy_divisor, 1);
        return pipeline_dummy_open(m, o->dummy, MIN(divisor, PIPELINE_DUMMY_MAX_DIVISOR), type);
    }
    const ModelPaths paths = {
        .model = *m->path ? m->path : NULL,
        .part = {[PART_TRANSFORMER] = o->diffusion_model, [PART_CLIP_L] = o->clip_l, [PART_T5] = o->t5xxl,
                 [PART_VAE] = o->vae},
        .distill = o->distill,
    };
    return model_parts_open(m, &paths, err);
}

static bool open_text(KilnModel *m, const KilnModelOptions *o, Error *err) {
    FluxPipelineOptions options = {.type = DT_COUNT};
    if (!kiln_precision(o->precision, &options.compute, err)) return false;
    if (o->type && !dtype_parse(o->type, &options.type))
        return err_set(err, STATUS_USAGE, "type: expected a type of weights, found \"%.60s\"", o->type);
    m->parts = open_parts(m, o, options.type, err);
    if (!m->parts) return false;
    m->path = mem_strdup(m, m->parts->path);
    m->flux = flux_pipeline_open(m, m->ctx->dev, m->parts, &options, err);
    return m->flux != NULL;
}

static void close_text(KilnModel *m) {
    flux_pipeline_close(m->flux);
    model_parts_close(m->parts);
}

static KilnModelInfo info(const KilnModel *m) {
    FluxInfo i = flux_pipeline_info(m->flux);
    return (KilnModelInfo){.architecture = i.architecture, .variant = i.variant, .path = m->path,
                           .width = FLUX_DEFAULT_SIDE, .height = FLUX_DEFAULT_SIDE,
                           .parameters = i.parameters};
}

static KilnRequest request(const KilnModel *m) {
    return (KilnRequest){.count = 1, .sampler = "euler", .steps = flux_pipeline_info(m->flux).steps,
                         .cfg_scale = 1, .guidance = 3.5, .strength = 0.75};
}

// The pipeline's request; checked. `image` is filled where the request starts from a picture.
static bool translate(const KilnModel *m, const KilnRequest *r, const Cancel *cancel, Image *image,
                      FluxRequest *out, Error *err) {
    const char *prompt = r->prompt ? r->prompt : "", *negative = r->negative_prompt;
    if (r->class_name || r->classes)
        return err_failed(err, "class: expected a prompt for this model, found a class; set prompt");
    *out = (FluxRequest){
        .prompt = prompt, .prompt_size = strlen(prompt), .negative = negative,
        .negative_size = negative ? strlen(negative) : 0, .prompt_weights = r->prompt_weights,
        .t5_tokens = r->t5_tokens, .count = r->count, .width = r->width, .height = r->height,
        .seed = r->seed, .rng = kiln_noise(r->rng),
        .noise = r->noise, .steps = r->steps, .sampler = sampler_find(r->sampler), .shift = r->shift,
        .cfg = {.scale = r->cfg_scale, .kind = guidance_find(r->cfg_schedule ? r->cfg_schedule : "constant"),
                .lo = r->cfg_low, .hi = r->cfg_high, .threshold = r->threshold},
        .guidance = r->guidance, .strength = r->strength, .tiling = VAE_TILING_AUTO, .cancel = cancel,
    };
    if (!out->cfg.kind)
        return err_set(err, STATUS_USAGE, "cfg_schedule: expected constant, triangle or cosine, found "
                                          "\"%.60s\"", r->cfg_schedule);
    if (!flux_pipeline_check(m->flux, out, err) ||
        !image_check_count(out->count, out->width, out->height, err))
        return false;
    if (!r->init) return true;
    *image = (Image){.width = out->width, .height = out->height, .rgb = (uint8_t *)(uintptr_t)r->init};
    out->init = image;
    return true;
}

static bool plan(KilnModel *m, const KilnRequest *r, KilnPlan *out, Error *err) {
    FluxRequest f;
    FluxPlan p;
    Image image;
    if (!translate(m, r, NULL, &image, &f, err) || !flux_pipeline_plan(m->flux, &f, 0, &p, err)) return false;
    const FluxStagePlan *s = &p.stage[p.peak_stage];
    *out = (KilnPlan){.weights = s->weights_bytes, .arena = s->arena_bytes, .peak = p.peak_bytes,
                      .programs = s->peak_bytes - s->weights_bytes - s->arena_bytes,
                      .driver = p.driver_bytes};
    return true;
}

typedef struct Watch {
    const KilnCallbacks *callbacks;
    const char *stage;
    double started;
} Watch;

static void on_stage(void *user, const char *name, const char *unit) {
    Watch *w = user;
    (void)unit;
    w->stage = name;
    w->started = os_seconds();
}

static void on_progress(void *user, int64_t done, int64_t total) {
    const Watch *w = user;
    double passed = os_seconds() - w->started;
    KilnProgress progress = {.stage = w->stage, .done = done, .total = total,
                             .seconds_left = done ? passed / (double)done * (double)(total - done) : 0};
    w->callbacks->progress(w->callbacks->user, &progress);
}

static bool generate(KilnModel *m, const KilnRequest *r, KilnImages *images, Error *err) {
    Cancel cancel = kiln_cancel(&r->callbacks);
    FluxRequest f;
    FluxPlan p;
    Image image;
    if (!translate(m, r, &cancel, &image, &f, err) || !flux_pipeline_plan(m->flux, &f, 0, &p, err))
        return false;
    Watch watch = {&r->callbacks, "load", os_seconds()};
    if (r->callbacks.progress)
        f.events = (FluxEvents){.stage = on_stage, .progress = on_progress, .user = &watch};
    size_t picture = (size_t)3 * (size_t)f.width * (size_t)f.height;
    size_t latent = (size_t)flux_pipeline_info(m->flux).channels * (size_t)(f.width / 8) *
                    (size_t)(f.height / 8);
    void *scratch = mem_new(images, 1);
    float *x = MEM_ARRAY(scratch, float, (size_t)f.count * picture);
    float *z = MEM_ARRAY(scratch, float, (size_t)f.count * latent);
    bool ok = flux_pipeline_generate(m->flux, &f, &p, x, z, NULL, err);
    if (ok) kiln_images_begin(images, m, r, f.steps, r->cfg_scale, f.width, f.height);
    if (ok) {
        Parameters *text = &images->parameters;
        flux_pipeline_describe(m->flux, &f, &p, images, text);
        text->model = mem_strdup(images, text->model); // pictures may outlive the model
        text->negative = mem_strdup(images, text->negative);
        text->seeded |= f.init || f.sampler->stochastic; // drawn beside the given noise
    }
    for (int i = 0; i < f.count && ok; i++)
        ok = kiln_images_put(images, i, f.prompt, x + (size_t)i * picture, err);
    mem_free(scratch);
    return ok;
}

const KilnKind kiln_text = {open_text, close_text, info, request, plan, generate};
