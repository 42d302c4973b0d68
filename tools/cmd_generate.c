// cmd_generate.c: `kiln generate`: from a class (later: a prompt) to pictures.
#include "tools/cmd.h"

#include "backend/os.h"
#include "engine/model_path.h"
#include "engine/npy.h"
#include "tools/generate_output.h"

#include <inttypes.h>

#define NO_TEXT "text models are a later addition; nano takes --class NAME"
#define NO_PARTS "models made of several files are a later addition; give -m nano or a model file"
#define NO_IMAGE "image to image is a later addition"
#define NO_SAMPLING "it comes with later models; leave it out"

static const char *sampler_name(int i) {
    const Sampler *s = sampler_at(i);
    return s ? s->name : NULL;
}

static const char *schedule_name(int i) {
    const ScheduleKind *s = schedule_at(i);
    return s ? s->name : NULL;
}

typedef struct Values {
    CommonOptions common;
    const char *model, *precision, *sampler, *schedule, *rng;
    const char *output, *dump, *noise, *preview;
    OptList classes;
    int64_t width, height, batch, steps;
    uint64_t seed;
    double cfg_scale;
    bool grid;
} Values;

enum { MAX_SIDE = 16384, GRID_COLUMNS = 8 };

#define LATER(NAME, HELP) {.name = NAME, .kind = OPT_LATER, .help = HELP}

static const Option options[] = {
    {.name = "model", .letter = 'm', .kind = OPT_TEXT, FIELD(Values, model), .value = "PATH",
     .group = "model",
     .help = "nano (the model that Kiln ships, found from any folder), a file written by `kiln "
             "train`, "
             "or the folder that holds it as model.safetensors. A bare name is looked up in "
             "KILN_MODELS."},
    LATER("diffusion-model", NO_PARTS), LATER("clip-l", NO_PARTS), LATER("clip-g", NO_PARTS),
    LATER("t5xxl", NO_PARTS), LATER("llm", NO_PARTS), LATER("vae", NO_PARTS),
    LATER("lora", NO_PARTS), LATER("distill", NO_PARTS),
    LATER("dummy", "synthetic weights are a later addition; give -m nano or a model file"),
    LATER("dummy-scale", "synthetic weights are a later addition; give -m nano or a model file"),
    {.name = "class", .kind = OPT_LIST, FIELD(Values, classes), .value = "NAME", .group = "picture",
     .says = "every class in turn",
     .help = "Class of the pictures, by name or number; may be given several times."},
    {.name = "width", .letter = 'W', .kind = OPT_INT, FIELD(Values, width), .value = "PIXELS",
     .min = 8,
     .max = MAX_SIDE, .says = "the model's",
         .help = "Width. nano makes pictures of its own size only."},
    {.name = "height", .letter = 'H', .kind = OPT_INT, FIELD(Values, height), .value = "PIXELS",
     .min = 8, .max = MAX_SIDE, .says = "the model's", .help = "Height, likewise."},
    {.name = "batch-count", .letter = 'b', .kind = OPT_INT, FIELD(Values, batch), .value = "N",
     .min = 1, .max = NANO_MAX_PICTURES, .says = "1; with --grid 8",
     .help = "Pictures of each class."},
    {.name = "seed", .letter = 's', .kind = OPT_SEED, FIELD(Values, seed), .value = "N",
     .says = "random, and printed",
     .help = "Of the first picture; picture k (from 0) uses seed + k. The same seed makes the same "
             "noise as in diffusers and ComfyUI."},
    {.name = "prompt", .letter = 'p', .kind = OPT_LATER, .help = NO_TEXT},
    {.name = "negative-prompt", .letter = 'n', .kind = OPT_LATER, .help = NO_TEXT},
    LATER("raw-prompt", NO_TEXT), LATER("t5-tokens", NO_TEXT), LATER("clip-skip", NO_TEXT),
    LATER("init-img", NO_IMAGE), LATER("strength", NO_IMAGE), LATER("mask", NO_IMAGE),
    {.name = "steps", .kind = OPT_INT, FIELD(Values, steps), .value = "N", .min = 1,
     .max = SCHEDULE_MAX_STEPS, .fallback = "50", .group = "sampling", .help = "Sampling steps."},
    {.name = "sampler", .alias = "sampling-method", .kind = OPT_CHOICE, FIELD(Values, sampler),
     .choice_at = sampler_name, .value = "NAME", .fallback = "euler", .help = "Solver."},
    {.name = "schedule", .kind = OPT_CHOICE, FIELD(Values, schedule), .choice_at = schedule_name,
     .value = "NAME", .says = "the model's", .help = "Times at which the model is asked."},
    {.name = "cfg-scale", .kind = OPT_NUMBER, FIELD(Values, cfg_scale), .value = "SCALE", .min = 0,
     .max = 100, .says = "the model's (nano: 4)",
     .help = "Classifier-free guidance; 1: none, in half the time."},
    {.name = "rng", .kind = OPT_CHOICE, FIELD(Values, rng), .choices = "torch,cuda",
     .value = "KIND",
     .fallback = "torch",
     .help = "Whose random numbers: PyTorch's CPU generator, or its CUDA generator."},
    LATER("guidance", NO_SAMPLING), LATER("cfg-interval", NO_SAMPLING),
    LATER("cfg-schedule", NO_SAMPLING), LATER("threshold", NO_SAMPLING),
    LATER("shift", NO_SAMPLING),
    PRECISION_OPTION(Values),
    LATER("type", "weights are kept as the model's plan says; leave it out"),
    LATER("vae-tiling", "nano has no autoencoder; leave it out"),
    {.name = "output", .letter = 'o', .kind = OPT_TEXT, FIELD(Values, output), .value = "FILE",
     .group = "output", .fallback = "output.png",
     .help = ".png or .jpg. With more than one picture %d becomes its number (%03d: with zeros); "
             "without %d the number is put before the ending. Pictures carry their settings as "
             "text."},
    {.name = "grid", .kind = OPT_FLAG, FIELD(Values, grid),
     .help = "One contact sheet in place of single files: one row per class."},
    {.name = "dump", .kind = OPT_TEXT, FIELD(Values, dump), .value = "DIR",
     .help = "float32 .npy files for comparison with other engines: noise, sigmas, latent.<step> "
             "after "
             "each step (from 0), latent.final, image ([B, 3, H, W], -1..1, before rounding)."},
    {.name = "noise", .kind = OPT_TEXT, FIELD(Values, noise), .value = "FILE.npy",
     .help = "Start from this array [B, 3, H, W] in place of the seed's random numbers."},
    {.name = "preview", .kind = OPT_TEXT, FIELD(Values, preview), .value = "FILE",
     .help = "Picture file that is rewritten as the pictures form."},
    COMMON_OPTIONS(Values),
};

// ---- what is to be made -----------------------------------------------------------------------

static bool check(const Cmd *cmd, const Values *v, Error *err) {
    if (!v->model) return cmd_usage(cmd, err, "expected -m MODEL, found none; try -m nano");
    if (!image_can_save(v->output))
        return cmd_usage(cmd, err,
                         "--output: expected a name that ends with .png, .jpg or .jpeg, found "
                         "\"%.100s\"", v->output);
    if (v->preview && !image_can_save(v->preview))
        return cmd_usage(cmd, err,
                         "--preview: expected a name that ends with .png, .jpg or .jpeg, found "
                         "\"%.100s\"", v->preview);
    return true;
}

static bool find_classes(const Values *v, const NanoConfig *c, Job *job, Error *err) {
    int kinds = v->classes.n ? v->classes.n : c->classes;
    job->rows = kinds;
    job->kinds = MEM_ARRAY(job, int, kinds);
    for (int i = 0; i < kinds; i++) {
        job->kinds[i] = v->classes.n ? nano_find_class(c, v->classes.v[i]) : i;
        if (job->kinds[i] >= 0) continue;
        err_failed(err, "--class: expected one of the model's %d classes, found \"%.60s\"",
                   c->classes,
                   v->classes.v[i]);
        for (int k = 0; k < c->classes; k++) {
            if (c->names) err_item(err, "%s", c->names[k]);
            else err_item(err, "%d", k);
        }
        return false;
    }
    return true;
}

static bool check_size(const Values *v, const NanoConfig *c, Error *err) {
    if ((v->width && v->width != c->size) || (v->height && v->height != c->size))
        return err_failed(err,
                          "generate: expected the size that the model was trained for, %d x %d, "
                          "found %" PRId64 " x %" PRId64 "; leave -W and -H out", c->size, c->size,
                          v->width ? v->width : c->size, v->height ? v->height : c->size);
    return true;
}

static bool read_noise(const Values *v, Job *job, Error *err) {
    if (!v->noise) return true;
    const int64_t shape[] = {job->count, NANO_CHANNELS, job->size, job->size};
    job->noise = npy_read_f32(job, v->noise, COUNT_OF(shape), shape, NULL, err);
    return job->noise != NULL;
}

static bool plan_job(const Cmd *cmd, const Values *v, const NanoConfig *c, Job *job, Error *err) {
    if (!find_classes(v, c, job, err) || !check_size(v, c, err)) return false;
    job->columns = cmd_given(cmd, "batch-count") ? (int)v->batch : v->grid ? GRID_COLUMNS : 1;
    int64_t count = (int64_t)job->rows * job->columns;
    if (count > NANO_MAX_PICTURES)
        return err_failed(err, "generate: expected at most %d pictures in all, found %" PRId64
                          "; lower -b", NANO_MAX_PICTURES, count);
    job->count = (int)count;
    job->size = c->size;
    job->numbers = (size_t)NANO_CHANNELS * (size_t)c->size * (size_t)c->size;
    job->classes = MEM_ARRAY(job, int, job->count);
    for (int i = 0; i < job->count; i++) job->classes[i] = job->kinds[i / job->columns];
    job->names = c->names;
    job->steps = (int)v->steps;
    job->sampler = sampler_find(v->sampler);
    job->schedule = v->schedule ? schedule_find(v->schedule) : schedule_at(0);
    job->cfg_scale = cmd_given(cmd, "cfg-scale") ? v->cfg_scale : NANO_DEFAULT_CFG;
    job->rng = strcmp(v->rng, "cuda") == 0 ? NOISE_CUDA : NOISE_TORCH;
    job->seed = cmd_given(cmd, "seed") ? v->seed : os_random_seed();
    job->output = v->output, job->dump = v->dump, job->preview = v->preview;
    job->grid = v->grid;
    return read_noise(v, job, err) && job_check_outputs(job, err);
}

// ---- run --------------------------------------------------------------------------------------

typedef struct Watch {
    Cmd *cmd;
    Device *dev;
    Job *job;
} Watch;

static bool after_step(void *user, const NanoProgress *p, Error *err) {
    Watch *w = user;
    progress_update(w->cmd->progress, p->done, p->total, dev_memory(w->dev).used, NULL);
    return job_after_step(w->job, p, err);
}

static bool print_result(const Cmd *cmd, const Job *job, const NanoPipeline *p, Device *dev,
                         const Values *v,
                         Error *err) {
    RunMemory m = nano_memory(p);
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "images"), json_open(&w, '[');
    for (int i = 0; i < job->path_count; i++) json_put_string(&w, job->paths[i]);
    json_close(&w, ']');
    json_key(&w, "seed");
    if (job->noise && !cmd_given(cmd, "seed")) json_put_null(&w);
    else json_put_uint(&w, job->seed);
    json_key(&w, "model"), json_put_string(&w, v->model);
    json_key(&w, "architecture"), json_put_string(&w, "nano");
    json_key(&w, "device"), json_put_string(&w, dev_info(dev)->id);
    json_key(&w, "width"), json_put_int(&w, job->size);
    json_key(&w, "height"), json_put_int(&w, job->size);
    json_key(&w, "steps"), json_put_int(&w, job->steps);
    json_key(&w, "cfg_scale"), json_put_number(&w, job->cfg_scale);
    json_key(&w, "sampler"), json_put_string(&w, job->sampler->name);
    json_key(&w, "classes"), json_open(&w, '[');
    for (int i = 0; i < job->rows; i++) json_put_string(&w, job_class(job, job->kinds[i]));
    json_close(&w, ']');
    json_key(&w, "memory"), json_open(&w, '{');
    json_key(&w, "planned_bytes"), json_put_uint(&w, m.peak_bytes);
    json_key(&w, "peak_bytes"), json_put_uint(&w, dev_memory(dev).peak);
    json_key(&w, "weights_bytes"), json_put_uint(&w, m.weights_bytes);
    json_key(&w, "arena_bytes"), json_put_uint(&w, m.arena_bytes);
    json_key(&w, "driver_bytes"), json_put_uint(&w, m.driver_bytes);
    json_close(&w, '}');
    json_key(&w, "seconds"), json_open(&w, '{');
    json_key(&w, "load"), json_put_number(&w, job->load_seconds);
    json_key(&w, "text"), json_put_number(&w, 0);
    json_key(&w, "denoise"), json_put_number(&w, job->denoise_seconds);
    json_key(&w, "decode"), json_put_number(&w, job->decode_seconds);
    json_key(&w, "total"), json_put_number(&w, os_seconds() - job->started);
    json_close(&w, '}');
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

static bool make(Cmd *cmd, Job *job, Device *dev, NanoPipeline *p, Error *err) {
    progress_stage(cmd->progress, "loading", NULL);
    // Planned, and refused where it does not fit, before anything is computed.
    int per_pass = nano_pictures_per_pass(job->count);
    if (!nano_plan(p, per_pass, job->cfg_scale != 1, NULL, err) || !nano_prepare(p, err))
        return false;
    job->load_seconds = os_seconds() - job->started;
    char peak[32];
    format_bytes(peak, nano_memory(p).peak_bytes);
    log_msg(cmd->log, LOG_DEBUG, "plan: %d ops, %s", nano_stats(p).ops, peak);

    progress_stage(cmd->progress, "sampling", "step");
    Watch watch = {cmd, dev, job};
    NanoRequest request = {
        .count = job->count, .classes = job->classes, .noise = job->noise, .seed = job->seed,
        .rng = job->rng, .sampler = job->sampler, .schedule = job->schedule, .steps = job->steps,
        .cfg_scale = job->cfg_scale, .cancel = &cmd->cancel, .after_step = after_step,
            .user = &watch,
    };
    double start = os_seconds();
    if (!job_begin_dump(job, err) || !nano_generate(p, &request, job->pictures, err)) return false;
    job->denoise_seconds = os_seconds() - start;

    start = os_seconds();
    progress_stage(cmd->progress, "writing", NULL);
    if (!job_write(job, err)) return false;
    job->decode_seconds = os_seconds() - start;
    return true;
}

static void say(const Cmd *cmd, const Job *job, const Device *dev) {
    progress_clear(cmd->progress);
    char seeds[64] = "given noise";
    if (!job->noise) snprintf(seeds, sizeof seeds, "seed %" PRIu64, job->seed);
    log_msg(cmd->log, LOG_INFO, "%s%s: %d picture%s, %s, %d steps, %s, %.1f s",
            job->paths[0], job->path_count > 1 ? " ..." : "", job->count, job->count > 1 ? "s" : "",
            seeds, job->steps, dev_info(dev)->id, os_seconds() - job->started);
}

static bool run(Cmd *cmd, const void *values, Error *err) {
    const Values *v = values;
    if (!check(cmd, v, err)) return false;
    Job *job = job_new(cmd->mem);
    char *path = model_path(cmd->mem, v->model, err);
    Device *dev = path ? cmd_open_device(cmd, err) : NULL;
    NanoPipeline *p = dev ? nano_open(cmd->mem, dev, path, DT_F32, err) : NULL;
    job->model = path ? mem_strdup(job, path) : NULL;
    bool ok = p && plan_job(cmd, v, nano_config(p), job, err) && make(cmd, job, dev, p, err);
    if (ok) say(cmd, job, dev);
    if (ok && v->common.json) ok = print_result(cmd, job, p, dev, v, err);
    nano_close(p);
    if (dev) dev_close(dev);
    job_free(job);
    return ok;
}

const Command cmd_generate = {
    .name = "generate",
    .summary = "make pictures from a class",
    .text = "Makes pictures with a trained model. `-m nano` is the model that comes with Kiln: 32 "
            "x 32 "
            "pictures of the ten classes of CIFAR-10.",
    .examples = "kiln generate -m nano --class cat -o cat.png\n"
                "kiln generate -m nano --class cat --class dog -b 4 -o '%d.png'\n"
                "kiln generate -m nano --grid --seed 1 -o sheet.png",
    COMMAND_OPTIONS(Values, options),
    .common_offset = offsetof(Values, common),
    .run = run,
};
