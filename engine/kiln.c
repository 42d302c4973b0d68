// kiln.c: see kiln.h. Translates between the public structs and the engine's; the work is theirs.
#include "engine/kiln_impl.h"

#include "backend/os.h"
#include "engine/sampler.h"
#include "engine/train.h"

#include <math.h>

const char *kiln_version(void) { return KILN_VERSION; }

// ---- errors and callbacks -----------------------------------------------------------------------

static bool report(KilnError *to, const Error *from) {
    if (!to) return from->status == STATUS_OK;
    to->status = (KilnStatus)from->status;
    size_t used = (size_t)snprintf(to->text, sizeof to->text, "%s", from->text);
    for (int i = 0; i < MIN(from->items, (int)ERROR_ITEMS); i++)
        used += (size_t)snprintf(to->text + used, sizeof to->text - used, "\n%s", from->item[i]);
    return from->status == STATUS_OK;
}
_Static_assert(sizeof((KilnError){0}.text) > ERROR_TEXT + ERROR_ITEMS * (ERROR_ITEM_TEXT + 1),
               "the public error holds the longest internal one");

static bool never(void *user) { return (void)user, false; }

Cancel kiln_cancel(const KilnCallbacks *c) {
    return (Cancel){c->cancel ? c->cancel : never, c->user};
}

bool kiln_precision(KilnPrecision p, DType *out, Error *err) {
    static const DType types[] = {[KILN_F32] = DT_F32, [KILN_F16] = DT_F16, [KILN_BF16] = DT_BF16};
    if ((unsigned)p >= COUNT_OF(types))
        return err_set(err, STATUS_USAGE, "precision: expected KILN_F32, KILN_F16 or KILN_BF16, "
                       "found %d", (int)p);
    *out = types[p];
    return true;
}

// ---- devices ------------------------------------------------------------------------------------

static KilnDevice device_of(const DeviceInfo *info) {
    static const KilnDeviceKind kinds[] = {
        [DEV_CPU] = KILN_CPU, [DEV_INTEGRATED] = KILN_INTEGRATED, [DEV_DISCRETE] = KILN_DISCRETE,
        [DEV_SOFTWARE] = KILN_SOFTWARE,
    };
    KilnDevice d = {.kind = kinds[info->kind], .memory_total = info->memory_total,
                    .memory_free = info->memory_free};
    snprintf(d.id, sizeof d.id, "%s", info->id);
    snprintf(d.name, sizeof d.name, "%s", info->name);
    snprintf(d.driver, sizeof d.driver, "%s", info->driver);
    return d;
}

int kiln_devices(KilnDevice *devices, int room) {
    int count;
    DeviceInfo *infos = dev_list(NULL, &count, NULL);
    for (int i = 0; i < MIN(count, room); i++) devices[i] = device_of(&infos[i]);
    mem_free(infos);
    return count;
}

static void pass_log(void *user, LogLevel level, const char *line) {
    const KilnContext *ctx = user;
    ctx->options.log(ctx->options.log_user, (int)level, line);
}

static const Log *log_of(const KilnContext *ctx) { return ctx->options.log ? &ctx->log : NULL; }

KilnContext *kiln_open(const char *device, const KilnOptions *options, KilnError *error) {
    Error err = {0};
    KilnContext *ctx = MEM_NEW(NULL, KilnContext);
    if (options) ctx->options = *options;
    ctx->log = (Log){.level = LOG_DEBUG, .write = pass_log, .user = ctx};
    const DeviceOptions o = {
        .budget = ctx->options.memory_limit, .threads = ctx->options.threads,
        .cache_dir = ctx->options.no_cache ? NULL : os_cache_dir(ctx), .log = log_of(ctx),
    };
    if (o.threads < 0 || o.threads > 1024)
        err_set(&err, STATUS_USAGE, "threads: expected 0 to 1024, found %d", o.threads);
    else if ((ctx->dev = dev_open(ctx, device ? device : "auto", &o, &err)))
        ctx->device = device_of(dev_info(ctx->dev));
    if (!ctx->dev) {
        mem_free(ctx);
        ctx = NULL;
    }
    report(error, &err);
    return ctx;
}

void kiln_close(KilnContext *ctx) {
    if (!ctx) return;
    dev_close(ctx->dev);
    mem_free(ctx);
}

const KilnDevice *kiln_device(const KilnContext *ctx) { return &ctx->device; }

KilnMemory kiln_memory(const KilnContext *ctx) {
    MemoryStats m = dev_memory(ctx->dev);
    return (KilnMemory){.used = m.used, .peak = m.peak, .limit = m.budget};
}

// ---- models -------------------------------------------------------------------------------------

KilnModel *kiln_model_open(KilnContext *ctx, const char *path, const KilnModelOptions *options,
                           KilnError *error) {
    Error err = {0};
    static const KilnModelOptions none = {0};
    if (!options) options = &none;
    KilnModel *m = MEM_NEW(NULL, KilnModel);
    m->ctx = ctx;
    m->path = mem_strdup(m, path ? path : "");
    bool parts = options->diffusion_model || options->dummy;
    bool ok = parts || !path || model_has_parts(path, &parts, &err);
    m->kind = parts ? &kiln_text : &kiln_nano;
    if (!ok || !m->kind->open(m, options, &err)) {
        kiln_model_close(m);
        m = NULL;
    }
    report(error, &err);
    return m;
}

void kiln_model_close(KilnModel *m) {
    if (!m) return;
    m->kind->close(m);
    mem_free(m);
}

KilnModelInfo kiln_model_info(const KilnModel *m) { return m->kind->info(m); }

const char *kiln_model_class(const KilnModel *m, int i) {
    return i >= 0 && i < kiln_model_info(m).classes ? m->names[i] : NULL;
}

// ---- pictures -----------------------------------------------------------------------------------

KilnRequest kiln_request(const KilnModel *m) { return m->kind->request(m); }

NoiseKind kiln_noise(KilnRng rng) { return rng == KILN_RNG_CUDA ? NOISE_CUDA : NOISE_TORCH; }

// What holds for every model: count, sampler, random numbers, steps.
static bool check_request(const KilnRequest *r, Error *err) {
    if (r->count < 1 || r->count > NANO_MAX_PICTURES)
        return err_set(err, STATUS_USAGE, "count: expected 1 to %d pictures, found %d",
                       NANO_MAX_PICTURES, r->count);
    if (!sampler_find(r->sampler ? r->sampler : "")) {
        char names[200] = "";
        for (int i = 0; sampler_at(i); i++)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "",
                     sampler_at(i)->name);
        return err_set(err, STATUS_USAGE, "sampler: expected one of %s, found \"%.60s\"", names,
                       r->sampler ? r->sampler : "");
    }
    if (r->rng != KILN_RNG_TORCH && r->rng != KILN_RNG_CUDA)
        return err_set(err, STATUS_USAGE, "rng: expected KILN_RNG_TORCH or KILN_RNG_CUDA, found %d",
                       (int)r->rng);
    if (r->steps < 1 || r->steps > SCHEDULE_MAX_STEPS)
        return err_set(err, STATUS_USAGE, "steps: expected 1 to %d, found %d", SCHEDULE_MAX_STEPS,
                       r->steps);
    return true;
}

KilnPlan kiln_plan_of(const RunMemory *m) {
    return (KilnPlan){.weights = m->weights_bytes, .arena = m->arena_bytes,
                      .programs = m->program_bytes, .staging = m->staging_bytes,
                      .peak = m->peak_bytes, .driver = m->driver_bytes};
}

bool kiln_plan(KilnModel *m, const KilnRequest *r, KilnPlan *plan, KilnError *error) {
    Error err = {0};
    if (check_request(r, &err)) m->kind->plan(m, r, plan, &err);
    return report(error, &err);
}

void kiln_images_begin(KilnImages *images, const KilnModel *m, const KilnRequest *r, int steps,
                       double cfg_scale, int width, int height) {
    images->count = r->count;
    images->image = MEM_ARRAY(images, Image *, r->count);
    images->prompt = MEM_ARRAY(images, char *, r->count);
    images->seed = r->seed;
    images->parameters = (Parameters){
        .sampler = sampler_find(r->sampler)->name, .model = mem_strdup(images, m->path),
        .steps = steps, .width = width, .height = height, .cfg_scale = cfg_scale,
        .seeded = !r->noise, .torch_rng = r->rng == KILN_RNG_TORCH, .version = KILN_VERSION,
    };
}

bool kiln_images_put(KilnImages *images, int k, const char *prompt, const float *planes, Error *err) {
    const Parameters *p = &images->parameters;
    images->prompt[k] = mem_strdup(images, prompt);
    images->image[k] = image_from_floats(images, planes, p->width, p->height, err);
    return images->image[k] != NULL;
}

KilnImages *kiln_generate(KilnModel *m, const KilnRequest *r, KilnError *error) {
    Error err = {0};
    KilnImages *images = MEM_NEW(NULL, KilnImages);
    Cancel cancel = kiln_cancel(&r->callbacks);
    dev_set_cancel(m->ctx->dev, &cancel);
    bool ok = check_request(r, &err) && m->kind->generate(m, r, images, &err);
    dev_set_cancel(m->ctx->dev, NULL);
    if (!ok) {
        mem_free(images);
        images = NULL;
    }
    report(error, &err);
    return images;
}

void kiln_images_free(KilnImages *images) { mem_free(images); }
int kiln_image_count(const KilnImages *images) { return images->count; }

KilnImage kiln_image(const KilnImages *images, int k) {
    if (k < 0 || k >= images->count) return (KilnImage){0};
    const Image *i = images->image[k];
    return (KilnImage){.width = i->width, .height = i->height, .rgb = i->rgb,
                       .seed = images->seed + (uint64_t)k};
}

static bool save(const KilnImages *images, const Image *image, const char *prompt, uint64_t seed,
                 const char *path, Error *err) {
    Parameters p = images->parameters;
    p.prompt = prompt;
    p.seed = seed;
    char *text = parameters_text(NULL, &p);
    bool ok = image_save(path, image, &(ImageText){"parameters", text}, 1, err);
    mem_free(text);
    return ok;
}

bool kiln_image_save(const KilnImages *images, int k, const char *path, KilnError *error) {
    Error err = {0};
    if (k < 0 || k >= images->count)
        err_set(&err, STATUS_USAGE, "picture: expected 0 to %d, found %d", images->count - 1, k);
    else
        save(images, images->image[k], images->prompt[k], images->seed + (uint64_t)k, path, &err);
    return report(error, &err);
}

enum { SHEET_GAP = 2, SHEET_GREY = 255 };

bool kiln_images_save_sheet(const KilnImages *images, int columns, const char *path,
                            KilnError *error) {
    Error err = {0};
    Image *sheet = NULL;
    if (columns < 1)
        err_set(&err, STATUS_USAGE, "columns: expected 1 or more, found %d", columns);
    else
        sheet = image_grid(NULL, (const Image *const *)images->image, images->count,
                           MIN(columns, images->count), SHEET_GAP, SHEET_GREY, &err);
    if (sheet) save(images, sheet, images->prompt[0], images->seed, path, &err);
    mem_free(sheet);
    return report(error, &err);
}

// ---- training -----------------------------------------------------------------------------------

KilnTraining kiln_training(void) {
    TrainOptions o = train_defaults();
    return (KilnTraining){
        .patch = o.model.patch, .dim = o.model.dim, .depth = o.model.depth, .heads = o.model.heads,
        .size = o.model.size, .epochs = o.epochs, .batch = o.batch, .lr = o.lr,
        .weight_decay = o.weight_decay, .ema_decay = o.ema_decay, .label_dropout = o.label_dropout,
        .warmup = o.warmup, .cosine = o.cosine, .flip = o.flip, .samples = o.samples,
        .checkpoint_every = o.checkpoint_every, .keep = o.keep,
    };
}

static void train_progress(void *user, const TrainProgress *p) {
    const KilnCallbacks *c = user;
    KilnProgress progress = {.stage = p->stage, .done = p->step, .total = p->steps,
                             .seconds_left = p->seconds_left, .epoch = p->epoch,
                             .epochs = p->epochs, .loss = p->loss, .lr = p->lr,
                             .images_per_second = p->images_per_second};
    if (c->progress) c->progress(c->user, &progress);
}

static bool train(KilnContext *ctx, const KilnTraining *k, TrainReport *trained, Error *err) {
    if (!k->data || !k->out)
        return err_set(err, STATUS_USAGE, "train: expected data and out, found none");
    KilnCallbacks callbacks = k->callbacks;
    Cancel cancel = kiln_cancel(&callbacks);
    TrainOptions o = train_defaults();
    if (!kiln_precision(k->precision, &o.precision, err)) return false;
    o.data = k->data, o.out = k->out, o.val = k->val, o.weights = k->weights;
    o.model.patch = k->patch, o.model.dim = k->dim, o.model.depth = k->depth;
    o.model.heads = k->heads, o.model.size = k->size;
    o.epochs = k->epochs, o.batch = k->batch, o.limit_steps = k->limit_steps;
    o.lr = k->lr, o.weight_decay = k->weight_decay, o.ema_decay = k->ema_decay;
    o.label_dropout = k->label_dropout, o.warmup = k->warmup;
    o.cosine = k->cosine, o.flip = k->flip, o.samples = k->samples;
    o.checkpoint_every = k->checkpoint_every, o.keep = k->keep;
    o.resume = k->resume, o.seed_given = k->seed_given, o.seed = k->seed;
    o.log = log_of(ctx), o.cancel = &cancel;
    o.progress = train_progress, o.user = &callbacks;
    return train_nano(ctx->dev, &o, trained, err);
}

bool kiln_train(KilnContext *ctx, const KilnTraining *training, KilnTrained *trained,
                KilnError *error) {
    Error err = {0};
    TrainReport r = {.loss = NAN, .validation_loss = NAN};
    train(ctx, training, &r, &err);
    if (trained)
        *trained = (KilnTrained){.step = r.step, .skipped = r.skipped, .loss = r.loss,
                                 .validation_loss = r.validation_loss, .seconds = r.seconds,
                                 .memory = kiln_plan_of(&r.memory)};
    return report(error, &err);
}
