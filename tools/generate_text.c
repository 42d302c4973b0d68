// generate_text.c: `kiln generate` with a model that takes a prompt (FLUX.1).
#include "tools/generate.h"

#include "backend/os.h"
#include "engine/npy.h"
#include "engine/pipeline_flux.h"
#include "engine/preview.h"
#include "tools/text_model.h"

#include <math.h>

enum { MAX_PROMPT = 16 << 20 };

typedef struct TextJob {
    Job *job;
    Cmd *cmd;
    Device *dev;
    FluxRequest request;
    int64_t done, total;
    int init_width, init_height; // of the picture in --init-img's file
    int first;       // picture of the group that is being denoised, the one that previews show
    char note[48];   // which pictures, where not all at once
} TextJob;

// ---- the request --------------------------------------------------------------------------------

// A prompt as given: text, @FILE or - (standard input); one final newline of a file goes.
static bool read_prompt(const char *option, void *parent, const char *given, const char **text,
                        size_t *size, Error *err) {
    *text = given, *size = given ? strlen(given) : 0;
    if (!given || (given[0] != '@' && strcmp(given, "-"))) return true;
    uint8_t *data;
    if (given[0] == '@') {
        data = os_read_file(parent, given + 1, MAX_PROMPT, size, err);
        if (!data) return err_prefix(err, "--%s", option);
    } else {
        data = mem_new(parent, MAX_PROMPT + 1);
        *size = fread(data, 1, MAX_PROMPT + 1, stdin);
        if (*size > MAX_PROMPT)
            return err_failed(err, "--%s: expected at most %d bytes of text, found more", option,
                              MAX_PROMPT);
    }
    if (*size && data[*size - 1] == '\n') data[--*size] = 0;
    if (*size && given[0] == '@' && data[*size - 1] == '\r') data[--*size] = 0;
    *text = (const char *)data;
    return true;
}

static bool read_init(const GenerateValues *v, TextJob *t, Error *err) {
    if (!v->init_img) return true;
    FluxRequest *r = &t->request;
    Image *image = image_load(t->job, v->init_img, err);
    if (image) t->init_width = image->width, t->init_height = image->height;
    if (image) image = image_fit(t->job, image, IMAGE_LANCZOS, r->width, r->height, err);
    r->init = image;
    return image || err_prefix(err, "--init-img");
}

static bool sampling_options(Cmd *cmd, const GenerateValues *v, FluxRequest *r, Error *err) {
    r->steps = (int)v->steps;
    r->sampler = v->sampler ? sampler_find(v->sampler) : sampler_at(0);
    r->schedule = v->schedule ? schedule_find(v->schedule) : NULL;
    r->shift = v->shift;
    r->cfg = (Guidance){.scale = cmd_given(cmd, "cfg-scale") ? v->cfg_scale : 1,
                        .kind = guidance_find(v->cfg_schedule),
                        .threshold = cmd_given(cmd, "threshold") ? v->threshold : 0};
    if (v->cfg_interval && !guidance_interval(v->cfg_interval, &r->cfg.lo, &r->cfg.hi, err)) {
        err->status = STATUS_USAGE;
        return err_prefix(err, "generate");
    }
    r->guidance = v->guidance;
    r->rng = strcmp(v->rng, "cuda") == 0 ? NOISE_CUDA : NOISE_TORCH;
    r->seed = cmd_given(cmd, "seed") ? v->seed : 0;
    r->strength = v->strength;
    return true;
}

static bool make_request(Cmd *cmd, const GenerateValues *v, TextJob *t, Error *err) {
    FluxRequest *r = &t->request;
    if (!v->prompt && !v->names.dummy)
        return cmd_usage(cmd, err, "expected -p PROMPT, found none");
    if (!read_prompt("prompt", t->job, v->prompt ? v->prompt : "", &r->prompt, &r->prompt_size, err) ||
        !read_prompt("negative-prompt", t->job, v->negative, &r->negative, &r->negative_size, err) ||
        !sampling_options(cmd, v, r, err))
        return false;
    r->prompt_weights = v->prompt_weights;
    r->t5_tokens = (int)v->t5_tokens;
    r->count = cmd_given(cmd, "batch-count") ? (int)v->batch : 1;
    r->width = (int)v->width, r->height = (int)v->height;
    vae_tiling_parse(v->vae_tiling, &r->tiling); // the table allows no other names
    r->cancel = &cmd->cancel;
    return true;
}

static bool plan_job(const GenerateValues *v, const FluxPipeline *p, TextJob *t, Error *err) {
    FluxRequest *r = &t->request;
    Job *job = t->job;
    if (!flux_pipeline_check(p, r, err) || !read_init(v, t, err)) return false;
    job->count = r->count;
    job->columns = MIN(r->count, GENERATE_COLUMNS);
    job->rows = (r->count + job->columns - 1) / job->columns;
    if (job->rows == 1) job->columns = r->count;
    job->width = r->width, job->height = r->height;
    job->channels = flux_pipeline_info(p).channels;
    job->latent_width = r->width / 8, job->latent_height = r->height / 8;
    job->steps = r->steps;
    job->texts = MEM_ARRAY(job, char *, r->count);
    for (int i = 0; i < r->count; i++) job->texts[i] = mem_strndup(job, r->prompt, r->prompt_size);
    job->sheet_text = job->texts[0];
    r->seed = job->seed;
    job->draws = r->init || r->sampler->stochastic; // the autoencoder's sample, noise of steps
    if (v->noise) {
        const int64_t shape[] = {job->count, job->channels, job->latent_height, job->latent_width};
        job->noise = npy_read_f32(job, v->noise, COUNT_OF(shape), shape, NULL, err);
        if (!job->noise) return err_prefix(err, "--noise");
        r->noise = job->noise;
    }
    return job_check_outputs(job, err);
}

// ---- while it runs ------------------------------------------------------------------------------

static void on_stage(void *user, const char *name, const char *unit) {
    TextJob *t = user;
    t->note[0] = 0;
    progress_stage(t->cmd->progress, name, unit);
}

static void on_group(void *user, int first, int count) {
    TextJob *t = user;
    int all = t->job->count;
    t->first = first;
    if (count == all) return;
    if (count == 1) snprintf(t->note, sizeof t->note, "picture %d of %d", first + 1, all);
    else snprintf(t->note, sizeof t->note, "pictures %d-%d of %d", first + 1, first + count, all);
}

static void on_progress(void *user, int64_t done, int64_t total) {
    TextJob *t = user;
    progress_update(t->cmd->progress, done, total, dev_memory(t->dev).used, t->note);
}

static void on_part(void *user, int64_t done, int64_t total) {
    const TextJob *t = user;
    progress_part(t->cmd->progress, done, total);
}

static void on_warning(void *user, const char *line) {
    const TextJob *t = user;
    log_msg(t->cmd->log, LOG_WARN, "%s", line);
}

static bool on_array(void *user, const char *name, int ndim, const int64_t *shape, const float *v,
                     Error *err) {
    TextJob *t = user;
    return job_dump(t->job, name, ndim, shape, v, err);
}

static bool on_step(void *user, int step, int picture, const float *latent, const float *clean,
                    Error *err) {
    TextJob *t = user;
    Job *job = t->job;
    job_keep_latents(job, step, picture, 1, latent);
    const PreviewTable *table = preview_table(job->channels);
    if (!table || picture != t->first || !job_preview_due(job, step)) return true;
    Image *image = preview_image(NULL, table, clean, job->latent_width, job->latent_height, err);
    const Image *images[] = {image};
    bool ok = image && job_preview(job, images, 1, err);
    mem_free(image);
    return ok;
}

static void report_plan(const Cmd *cmd, const FluxPlan *plan) {
    for (int i = 0; i < plan->stages; i++) {
        char peak[32], resident[32], streamed[32];
        format_bytes(peak, plan->stage[i].peak_bytes);
        format_bytes(resident, plan->stage[i].resident_bytes);
        format_bytes(streamed, plan->stage[i].streamed_bytes);
        log_msg(cmd->log, LOG_DEBUG, "plan: %-16s %s resident, %s streamed, peak %s",
                plan->stage[i].name, resident, streamed, peak);
    }
}

// Settings that change nothing, or pictures that are cut, are no error, but said.
static void warn_options(const TextJob *t, const FluxPipeline *p, const FluxPlan *plan) {
    const Cmd *cmd = t->cmd;
    const FluxRequest *r = &t->request;
    if ((int64_t)t->init_width * r->height != (int64_t)t->init_height * r->width)
        log_msg(cmd->log, LOG_WARN, "--init-img: %d x %d is cut to the shape of %d x %d", t->init_width,
                t->init_height, r->width, r->height);
    if (plan->prompts == 1 && cmd_given(cmd, "negative-prompt"))
        log_msg(cmd->log, LOG_WARN, "--negative-prompt: nothing reads it, as no step has a "
                "--cfg-scale other than 1");
    if (cmd_given(cmd, "guidance") && strcmp(flux_pipeline_info(p).variant, "dev") != 0)
        log_msg(cmd->log, LOG_WARN, "--guidance: this model has no distilled guidance; it is left "
                "out");
}

static bool make(TextJob *t, FluxPipeline *p, FluxPlan *plan, FluxMeasured *s, Error *err) {
    Job *job = t->job;
    progress_stage(t->cmd->progress, "planning", NULL);
    if (!flux_pipeline_plan(p, &t->request, 0, plan, err)) return false;
    report_plan(t->cmd, plan);
    warn_options(t, p, plan);
    job->taken = plan->steps;
    flux_pipeline_describe(p, &t->request, plan, job, &job->parameters);
    if (!job_begin_trace(job, err)) return false; // noise and sigmas: as the pipeline makes them
    job->load_seconds = os_seconds() - job->started;
    t->request.events = (FluxEvents){on_stage, on_progress, on_part, on_warning, on_array,
                                       on_group, on_step, t};
    float *latents = MEM_ARRAY(job, float, (size_t)job->count * job->latent_numbers);
    if (!flux_pipeline_generate(p, &t->request, plan, job->pictures, latents, s, err)) return false;
    job->text_seconds = s->text;
    job->denoise_seconds = s->encode + s->schedule + s->denoise;
    double start = os_seconds();
    progress_stage(t->cmd->progress, "writing", NULL);
    bool ok = job_write(job, latents, err);
    job->decode_seconds = s->decode + os_seconds() - start;
    return ok;
}

static bool print_result(const TextJob *t, const FluxPlan *plan, const FluxMeasured *measured,
                         const char *model, Error *err) {
    const FluxStagePlan *peak = &plan->stage[plan->peak_stage];
    const GenerateReport report = {
        .model = model, .architecture = "flux", .device = dev_info(t->dev)->id,
        .sampler = t->request.sampler->name, .planned = plan->peak_bytes,
        .peak = dev_memory(t->dev).peak, .weights = peak->weights_bytes, .arena = peak->arena_bytes,
        .driver = plan->driver_bytes, .cfg_scale = t->request.cfg.scale, .plan = plan,
        .measured = measured,
    };
    return generate_print(t->cmd, t->job, &report, err);
}

bool generate_text(Cmd *cmd, const GenerateValues *v, Error *err) {
    TextJob t = {.job = job_new(cmd->mem), .cmd = cmd};
    generate_common(cmd, v, t.job);
    TextModel model = {0};
    FluxPlan plan = {0};
    FluxMeasured measured = {0};
    bool ok = make_request(cmd, v, &t, err) && text_model_open(cmd, &v->names, v->precision, &model, err);
    t.dev = model.dev;
    ok = ok && plan_job(v, model.pipeline, &t, err) && make(&t, model.pipeline, &plan, &measured, err);
    if (ok) generate_say(cmd, t.job, dev_info(t.dev)->id);
    if (ok && v->common.json) ok = print_result(&t, &plan, &measured, model.parts->path, err);
    text_model_close(&model);
    job_free(t.job);
    return ok;
}
