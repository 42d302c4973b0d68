// generate_nano.c: `kiln generate` with a class-conditional Nano-Sora.
#include "tools/generate.h"

#include "backend/os.h"
#include "engine/model_path.h"
#include "engine/npy.h"
#include "engine/pipeline_nano.h"

#include <inttypes.h>

// What nano makes of the command line.
typedef struct NanoJob {
    Job *job;
    const NanoConfig *config;
    int *kinds;   // [rows] class of each row
    int *classes; // [count]
    const Sampler *sampler;
    const ScheduleKind *schedule;
    NoiseKind rng;
    Cmd *cmd;
    Device *dev;
} NanoJob;

static const char *class_name(NanoJob *n, int c) {
    return n->config->names ? n->config->names[c] : mem_printf(n->job, "%d", c);
}

static bool find_classes(const GenerateValues *v, NanoJob *n, Error *err) {
    const NanoConfig *c = n->config;
    int kinds = v->classes.n ? v->classes.n : c->classes;
    n->job->rows = kinds;
    n->kinds = MEM_ARRAY(n->job, int, kinds);
    for (int i = 0; i < kinds; i++) {
        n->kinds[i] = v->classes.n ? nano_find_class(c, v->classes.v[i]) : i;
        if (n->kinds[i] >= 0) continue;
        err_failed(err, "--class: expected one of the model's %d classes, found \"%.60s\"",
                   c->classes, v->classes.v[i]);
        for (int k = 0; k < c->classes; k++) err_item(err, "%s", class_name(n, k));
        return false;
    }
    return true;
}

static bool read_noise(const GenerateValues *v, Job *job, Error *err) {
    if (!v->noise) return true;
    const int64_t shape[] = {job->count, job->channels, job->latent_height, job->latent_width};
    job->noise = npy_read_f32(job, v->noise, COUNT_OF(shape), shape, NULL, err);
    return job->noise != NULL;
}

static void name_pictures(NanoJob *n) {
    Job *job = n->job;
    job->texts = MEM_ARRAY(job, char *, job->count);
    n->classes = MEM_ARRAY(job, int, job->count);
    for (int i = 0; i < job->count; i++) {
        n->classes[i] = n->kinds[i / job->columns];
        job->texts[i] = mem_strdup(job, class_name(n, n->classes[i]));
    }
    char *all = mem_strdup(job, "");
    for (int i = 0; i < job->rows; i++)
        all = mem_printf(job, "%s%s%s", all, i ? ", " : "", class_name(n, n->kinds[i]));
    job->sheet_text = all;
}

static bool plan_job(const Cmd *cmd, const GenerateValues *v, const NanoPipeline *p, NanoJob *n,
                     Error *err) {
    Job *job = n->job;
    int size = n->config->size;
    if (!find_classes(v, n, err) || !nano_check_size(p, v->width, v->height, err)) return false;
    job->columns = cmd_given(cmd, "batch-count") ? (int)v->batch : v->grid ? GENERATE_COLUMNS : 1;
    int64_t count = (int64_t)job->rows * job->columns;
    if (count > NANO_MAX_PICTURES)
        return err_failed(err, "generate: expected at most %d pictures in all, found %" PRId64
                          "; lower -b", NANO_MAX_PICTURES, count);
    job->count = (int)count;
    job->width = job->height = job->latent_width = job->latent_height = size;
    job->channels = NANO_CHANNELS;
    job->steps = cmd_given(cmd, "steps") ? (int)v->steps : NANO_DEFAULT_STEPS;
    name_pictures(n);
    n->sampler = v->sampler ? sampler_find(v->sampler) : sampler_at(0);
    n->schedule = v->schedule ? schedule_find(v->schedule) : schedule_at(0);
    n->rng = strcmp(v->rng, "cuda") == 0 ? NOISE_CUDA : NOISE_TORCH;
    job->parameters.sampler = n->sampler->name;
    job->draws = n->sampler->stochastic;
    job->parameters.cfg_scale = cmd_given(cmd, "cfg-scale") ? v->cfg_scale : NANO_DEFAULT_CFG;
    return read_noise(v, job, err) && job_check_outputs(job, err);
}

// ---- run --------------------------------------------------------------------------------------

static bool after_step(void *user, const NanoProgress *p, Error *err) {
    NanoJob *n = user;
    progress_update(n->cmd->progress, p->done, p->total, dev_memory(n->dev).used, NULL);
    job_keep_latents(n->job, p->step, p->first, p->pictures, p->x);
    if (!job_preview_due(n->job, p->step)) return true;
    const Image **images = MEM_ARRAY(NULL, const Image *, p->pictures);
    bool ok = true;
    for (int i = 0; i < p->pictures && ok; i++)
        ok = (images[i] = image_from_floats(images, p->x + (size_t)i * n->job->numbers,
                                            n->job->width, n->job->height, err)) != NULL;
    ok = ok && job_preview(n->job, images, p->pictures, err);
    mem_free(images);
    return ok;
}

static bool begin_dump(NanoJob *n, Error *err) {
    Job *job = n->job;
    if (!job->dump) return true;
    Schedule *s = schedule_new(NULL, n->schedule, job->steps, err);
    if (!s) return false;
    float *sigmas = MEM_ARRAY(s, float, s->steps + 1); // share of noise: 1 - t
    for (int i = 0; i <= s->steps; i++) sigmas[i] = (float)(1 - s->time[i]);
    float *noise = job->noise;
    if (!noise) { // as the pipeline draws it
        noise = MEM_ARRAY(s, float, (size_t)job->count * job->latent_numbers);
        for (int k = 0; k < job->count; k++)
            noise_first(n->rng, job->seed + (uint64_t)k, noise + (size_t)k * job->latent_numbers,
                        job->latent_numbers);
    }
    bool ok = job_begin_dump(job, noise, sigmas, s->steps + 1, err);
    mem_free(s);
    return ok;
}

static bool make(NanoJob *n, NanoPipeline *p, Error *err) {
    Job *job = n->job;
    Cmd *cmd = n->cmd;
    progress_stage(cmd->progress, "loading", NULL);
    // Planned, and refused where it does not fit, before anything is computed.
    int per_pass = nano_pictures_per_pass(job->count);
    double cfg_scale = job->parameters.cfg_scale;
    if (!nano_plan(p, per_pass, cfg_scale != 1, NULL, err) || !nano_prepare(p, err)) return false;
    job->load_seconds = os_seconds() - job->started;
    char peak[32];
    format_bytes(peak, nano_memory(p).peak_bytes);
    log_msg(cmd->log, LOG_DEBUG, "plan: %d ops, %s", nano_stats(p).ops, peak);

    progress_stage(cmd->progress, "sampling", "step");
    NanoRequest request = {
        .count = job->count, .classes = n->classes, .noise = job->noise, .seed = job->seed,
        .rng = n->rng, .sampler = n->sampler, .schedule = n->schedule, .steps = job->steps,
        .cfg_scale = cfg_scale, .cancel = &cmd->cancel, .after_step = after_step, .user = n,
    };
    double start = os_seconds();
    if (!begin_dump(n, err) || !nano_generate(p, &request, job->pictures, err)) return false;
    job->denoise_seconds = os_seconds() - start;

    start = os_seconds();
    progress_stage(cmd->progress, "writing", NULL);
    if (!job_write(job, job->pictures, err)) return false;
    job->decode_seconds = os_seconds() - start;
    return true;
}

static bool print_result(NanoJob *n, const NanoPipeline *p, const char *model, Error *err) {
    RunMemory m = nano_memory(p);
    char **names = MEM_ARRAY(n->job, char *, n->job->rows);
    for (int i = 0; i < n->job->rows; i++)
        names[i] = mem_strdup(names, class_name(n, n->kinds[i]));
    const GenerateReport report = {
        .model = model, .architecture = "nano", .device = dev_info(n->dev)->id,
        .sampler = n->sampler->name, .planned = m.peak_bytes, .peak = dev_memory(n->dev).peak,
        .weights = m.weights_bytes, .arena = m.arena_bytes, .driver = m.driver_bytes,
        .cfg_scale = n->job->parameters.cfg_scale, .classes = names, .class_count = n->job->rows,
    };
    return generate_print(n->cmd, n->job, &report, err);
}

bool generate_nano(Cmd *cmd, const GenerateValues *v, Error *err) {
    NanoJob n = {.job = job_new(cmd->mem), .cmd = cmd};
    generate_common(cmd, v, n.job);
    char *path = model_path(cmd->mem, v->names.paths.model, err);
    n.dev = path ? cmd_open_device(cmd, err) : NULL;
    NanoPipeline *p = n.dev ? nano_open(cmd->mem, n.dev, path, DT_F32, err) : NULL;
    n.job->parameters.model = path ? mem_strdup(n.job, path) : NULL;
    n.config = p ? nano_config(p) : NULL;
    bool ok = p && plan_job(cmd, v, p, &n, err) && make(&n, p, err);
    if (ok) generate_say(cmd, n.job, dev_info(n.dev)->id);
    if (ok && v->common.json) ok = print_result(&n, p, v->names.paths.model, err);
    nano_close(p);
    if (n.dev) dev_close(n.dev);
    job_free(n.job);
    return ok;
}
