// train.c: see train.h.
#include "engine/train.h"

#include "engine/image.h"
#include "engine/loader.h"
#include "engine/train_log.h"

#include <float.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>

// Streams of the run's seed (rng.h); the loader's are small numbers.
static const uint64_t stream_step = (uint64_t)1 << 40, stream_val = (uint64_t)2 << 40;

enum { VAL_BATCHES = 16, SAMPLE_ROWS = 10, SAMPLE_COLUMNS = 4, MAX_SKIPPED_IN_A_ROW = 100 };

typedef struct Training {
    const TrainOptions *o;
    Device *dev;
    NanoConfig config;
    TrainerOptions trainer_options;
    OptimOptions optim;
    Trainer *trainer;
    Dataset *data, *val;
    Loader *loader;
    TrainLog *log;
    TrainerBatch batch, val_batch;
    float *noise; // [B, 3, S, S]
    size_t numbers; // in one picture
    char *log_path;
    // The state that a checkpoint keeps, beside the tensors.
    uint64_t seed;
    int64_t step, updates, epoch, position;
    GradScaler scaler;
    // Bookkeeping.
    int64_t steps_per_epoch, total_steps, skipped_in_a_row, saved_step;
    double loss, validation_loss, step_seconds, started;
} Training;

TrainOptions train_defaults(void) {
    return (TrainOptions){
        .model = nano_default(), .epochs = 100, .batch = 64, .lr = 3e-4, .ema_decay = 0.9995,
        .warmup = -1, .label_dropout = 0.1, .flip = true, .precision = DT_F32,
        .checkpoint_every = 10, .keep = 3, .model_type = DT_F32, .samples = true,
        .sample_cfg = NANO_DEFAULT_CFG, .loader_threads = 1,
    };
}

// ---- data ---------------------------------------------------------------------------------------

static bool data_progress(void *user, const char *stage, int done, int total) {
    Training *t = user;
    (void)stage;
    TrainProgress p = {.stage = "data", .step = done, .steps = total};
    if (t->o->progress) t->o->progress(t->o->user, &p);
    return !t->o->cancel || !t->o->cancel->asked(t->o->cancel->user);
}

static bool same_classes(const Dataset *a, const Dataset *b) {
    if (dataset_class_count(a) != dataset_class_count(b)) return false;
    for (int i = 0; i < dataset_class_count(a); i++)
        if (strcmp(dataset_class(a, i), dataset_class(b, i))) return false;
    return true;
}

static bool open_data(Training *t, Error *err) {
    const TrainOptions *o = t->o;
    t->data = dataset_open(t, o->data, NULL, err);
    if (!t->data) return false;
    const char *val = o->val;
    if (!val && dataset_kind(t->data) == DATASET_CIFAR && os_path_kind(o->data) == PATH_DIR)
        val = o->data;
    if (val) {
        Error why = {0};
        t->val = dataset_open(t, val, &(DatasetOptions){.test = true}, &why);
        if (!t->val && o->val) return *err = why, false;
        if (!t->val) log_msg(o->log, LOG_WARN, "no validation: %s", why.text);
        if (t->val && !same_classes(t->data, t->val))
            return err_failed(err, "%s: expected the classes of %s, found others", val, o->data);
        DatasetLoad load = {.size = t->config.size, .progress = data_progress, .user = t};
        if (t->val && !dataset_load(t->val, &load, err)) return false;
    }
    t->config.classes = dataset_class_count(t->data);
    t->config.names = MEM_ARRAY(t, char *, t->config.classes);
    for (int i = 0; i < t->config.classes; i++)
        t->config.names[i] = mem_strdup(t, dataset_class(t->data, i));
    return nano_check_config(&t->config, err);
}

// After the state is known (resume).
static bool open_loader(Training *t, Error *err) {
    LoaderOptions options = {
        .batch = t->o->batch, .size = t->config.size, .seed = t->seed, .shuffle = true,
        .flip = t->o->flip, .floats = true, .drop_last = true, .threads = t->o->loader_threads,
        .epoch = t->epoch, .position = t->position, .progress = data_progress, .user = t,
    };
    t->loader = loader_open(t, t->data, &options, err);
    if (!t->loader) return false;
    t->steps_per_epoch = loader_batches_per_epoch(t->loader); // 1 or more: the loader sees to it
    t->total_steps = t->steps_per_epoch * t->o->epochs;
    if (t->o->limit_steps) t->total_steps = MIN(t->total_steps, t->o->limit_steps);
    return true;
}

// ---- state --------------------------------------------------------------------------------------

static char *state_json(void *parent, const Training *t) {
    JsonOut w = {.parent = parent};
    char seed[24];
    snprintf(seed, sizeof seed, "%" PRIu64, t->seed);
    json_open(&w, '{');
    json_key(&w, "version"), json_put_int(&w, 1);
    json_key(&w, "step"), json_put_int(&w, t->step);
    json_key(&w, "updates"), json_put_int(&w, t->updates);
    json_key(&w, "epoch"), json_put_int(&w, t->epoch);
    json_key(&w, "position"), json_put_int(&w, t->position);
    json_key(&w, "seed"), json_put_string(&w, seed); // past 2^53 JSON numbers are not exact
    json_key(&w, "batch"), json_put_int(&w, t->o->batch);
    json_key(&w, "pictures"), json_put_int(&w, dataset_count(t->data));
    json_key(&w, "precision"), json_put_string(&w, dtype_name(t->o->precision));
    json_key(&w, "loss_scale"), json_put_number(&w, t->scaler.scale);
    json_key(&w, "good_steps"), json_put_int(&w, t->scaler.good);
    json_key(&w, "skipped"), json_put_int(&w, t->scaler.skipped);
    json_close(&w, '}');
    return w.text;
}

static bool parse_state(Training *t, const char *text, const char *path, Error *err) {
    char what[300];
    snprintf(what, sizeof what, "%s: kiln.state", path);
    if (!text) return err_failed(err, "%s: expected the state of a training run, found none", what);
    Json *s = json_parse(text, strlen(text), what, err);
    if (!s) return false;
    const int64_t most = (int64_t)1 << 53;
    int64_t batch = 0, pictures = 0;
    const char *seed = json_string(json_get(s, "seed"), "");
    bool ok = json_int_in(json_get(s, "step"), 1, most, &t->step) &&
              json_int_in(json_get(s, "updates"), 0, most, &t->updates) &&
              json_int_in(json_get(s, "epoch"), 0, INT32_MAX, &t->epoch) &&
              json_int_in(json_get(s, "position"), 0, INT32_MAX, &t->position) &&
              json_int_in(json_get(s, "batch"), 1, INT32_MAX, &batch) &&
              json_int_in(json_get(s, "pictures"), 1, INT32_MAX, &pictures) &&
              json_int_in(json_get(s, "good_steps"), 0, most, &t->scaler.good) &&
              json_int_in(json_get(s, "skipped"), 0, most, &t->scaler.skipped) &&
              sscanf(seed, "%" SCNu64, &t->seed) == 1;
    if (!ok)
        err_failed(err, "%s: expected the state of a training run, found something else", what);
    // Another precision is allowed (and starts with a loss scale of its own): say f16 after bf16.
    const char *precision = json_string(json_get(s, "precision"), "");
    double scale = json_number(json_get(s, "loss_scale"), 0);
    if (strcmp(precision, dtype_name(t->o->precision)))
        t->scaler.good = 0;
    else if (t->scaler.enabled && scale > 0 && scale <= FLT_MAX)
        t->scaler.scale = scale;
    json_free(s);
    if (ok && batch != t->o->batch)
        ok = err_failed(err, "%s: expected the batch of this run, %d, found %" PRId64 "; give "
                        "--batch %" PRId64, what, t->o->batch, batch, batch);
    if (ok && pictures != dataset_count(t->data))
        ok = err_failed(err, "%s: expected as many pictures as in %s, %d, found %" PRId64, what,
                        t->o->data, dataset_count(t->data), pictures);
    if (ok && t->o->seed_given && t->seed != t->o->seed)
        ok = err_failed(err, "%s: expected seed %" PRIu64 ", found %" PRIu64 "; leave --seed out",
                        what, t->o->seed, t->seed);
    return ok;
}

static bool same_config(const NanoConfig *a, const NanoConfig *b) {
    if (a->patch != b->patch || a->dim != b->dim || a->depth != b->depth || a->heads != b->heads ||
        a->size != b->size || a->classes != b->classes)
        return false;
    for (int i = 0; i < a->classes; i++)
        if (strcmp(a->names[i], b->names[i])) return false;
    return true;
}

static bool restore(Training *t, const StFile *file, Error *err) {
    const char *text = st_meta(file, "kiln.config");
    if (!text) return err_failed(err, "%s: expected `kiln.config`, found none", file->path);
    NanoConfig found;
    void *scratch = mem_new(NULL, 1);
    bool ok = nano_parse_config(scratch, text, file->path, &found, err);
    if (ok && !same_config(&found, &t->config))
        ok = err_failed(err, "%s: expected the model %s, found %s", file->path,
                        nano_config_json(scratch, &t->config), nano_config_json(scratch, &found));
    mem_free(scratch);
    return ok && parse_state(t, st_meta(file, "kiln.state"), file->path, err);
}

// Weights and state: from the newest checkpoint, a model file, or fresh.
static bool start(Training *t, Error *err) {
    const TrainOptions *o = t->o;
    if (!os_make_dirs(o->out, err)) return false;
    os_remove_stale(o->out);
    int count;
    mem_free(checkpoint_list(NULL, o->out, &count));
    if (count && !o->resume)
        return err_failed(err,
                          "%s: expected a folder without checkpoints, found %d; give --resume to "
                          "go on, or another --out",
                          o->out, count);
    int64_t step = 0;
    StFile *file = NULL;
    if (o->resume) {
        file = checkpoint_newest(t, o->out, &step, o->log, err);
        if (!file && count) return false;
        if (file && !restore(t, file, err)) return st_close(file), false;
    }
    t->trainer = trainer_new(t, t->dev, &t->trainer_options, err);
    bool ok = t->trainer != NULL;
    if (ok && file) {
        ok = checkpoint_load(file, trainer_parts(t->trainer), TRAINER_PARTS, err);
        log_msg(o->log, LOG_INFO, "resuming after step %" PRId64, t->step);
    } else if (ok && o->weights) {
        StFile *model = st_open(t, o->weights, err);
        ok = model && trainer_set_weights(t->trainer, model, err);
        st_close(model);
    } else if (ok) {
        ok = trainer_init(t->trainer, t->seed, err);
    }
    st_close(file);
    t->saved_step = t->step;
    return ok && (t->log = train_log_open(t, t->log_path, t->step, err));
}

// ---- checkpoints --------------------------------------------------------------------------------

static void tell(Training *t, const char *stage) {
    if (!t->o->progress) return;
    TrainProgress p = {
        .stage = stage, .step = t->step, .steps = t->total_steps,
        .epoch = (int)t->epoch + 1, .epochs = t->o->epochs, .loss = t->loss,
        .lr = optim_lr(&t->optim, t->step), .seconds_per_step = t->step_seconds,
        .seconds_left = t->step_seconds * (double)(t->total_steps - t->step),
        .images_per_second = t->step_seconds > 0 ? t->o->batch / t->step_seconds : 0,
    };
    t->o->progress(t->o->user, &p);
}

static bool save_samples(Training *t, Error *err) {
    tell(t, "samples");
    int rows = MIN(t->config.classes, SAMPLE_ROWS), n = rows * SAMPLE_COLUMNS;
    void *scratch = mem_new(NULL, 1);
    int *classes = MEM_ARRAY(scratch, int, n);
    for (int i = 0; i < n; i++) classes[i] = i / SAMPLE_COLUMNS;
    float *pictures = MEM_ARRAY(scratch, float, (size_t)n * t->numbers);
    // The same noise each time, so that sheets compare.
    NanoRequest request = {.count = n, .classes = classes, .seed = 0, .cfg_scale = t->o->sample_cfg,
                           .cancel = t->o->cancel};
    Error why = {0};
    bool ok = nano_stage_generate(trainer_stage(t->trainer), &request, pictures, &why);
    if (!ok) { // the checkpoint is there: a sheet less is no reason to lose the run
        if (why.status != STATUS_CANCELLED)
            log_msg(t->o->log, LOG_WARN, "no sample pictures: %s", why.text);
        mem_free(scratch);
        return true;
    }
    const Image **images = MEM_ARRAY(scratch, const Image *, n);
    int side = t->config.size;
    for (int i = 0; i < n && ok; i++)
        ok = (images[i] = image_from_floats(scratch, pictures + (size_t)i * t->numbers, side, side,
                                            err));
    Image *sheet = ok ? image_grid(scratch, images, n, SAMPLE_COLUMNS, 2, 255, err) : NULL;
    char *name = mem_printf(scratch, "samples-%" PRId64 ".png", t->step);
    ok = sheet && image_save(os_path_join(scratch, t->o->out, name), sheet, NULL, 0, err);
    mem_free(scratch);
    return ok;
}

static bool save(Training *t, bool pictures, Error *err) {
    tell(t, "checkpoint");
    void *scratch = mem_new(NULL, 1);
    const TrainOptions *o = t->o;
    const CheckpointMeta meta[] = {
        {"kiln.config", nano_config_json(scratch, &t->config)},
        {"kiln.state", state_json(scratch, t)},
        {"kiln.architecture", "nano"},
    };
    char step[24];
    snprintf(step, sizeof step, "%" PRId64, t->step);
    const CheckpointMeta model_meta[] = {meta[0], meta[2], {"kiln.step", step}};
    bool ok = checkpoint_save(o->out, t->step, trainer_parts(t->trainer), TRAINER_PARTS, meta,
                              COUNT_OF(meta), err) &&
              checkpoint_save_model(os_path_join(scratch, o->out, "model.safetensors"),
                                    trainer_ema(t->trainer), o->model_type, model_meta,
                                    COUNT_OF(model_meta), err);
    if (ok) {
        t->saved_step = t->step;
        checkpoint_prune(o->out, t->step, o->keep, o->log);
    }
    ok = ok && train_log_plot(t->log_path, os_path_join(scratch, o->out, "loss.svg"), err);
    mem_free(scratch);
    if (ok && pictures && o->samples) ok = save_samples(t, err);
    return ok;
}

// ---- steps --------------------------------------------------------------------------------------

// Noise, times and mixing on this thread: 2 ms for 64 pictures of 32 x 32, where a step of the
// default model takes 235 ms on two cores.
static void make_batch(Training *t, const LoaderBatch *from) {
    Rng rng;
    rng_seed(&rng, t->seed, stream_step + (uint64_t)t->step);
    rng_fill_normal(&rng, t->noise, (size_t)from->count * t->numbers);
    for (int i = 0; i < from->count; i++) {
        double time = rng_f64(&rng);
        bool drop = rng_f64(&rng) < t->o->label_dropout;
        trainer_fill(&t->batch, i, t->numbers, from->floats + (size_t)i * t->numbers,
                     t->noise + (size_t)i * t->numbers, time,
                     drop ? t->config.classes : from->labels[i]);
    }
}

static void begin_line(const Training *t, JsonOut *w) {
    json_open(w, '{');
    json_key(w, "step"), json_put_int(w, t->step);
    json_key(w, "epoch"), json_put_int(w, t->epoch + 1);
}

static bool log_step(Training *t, const TrainerResult *r, double seconds, Error *err) {
    JsonOut w = {0};
    begin_line(t, &w);
    if (r->found_inf) {
        json_key(&w, "skipped"), json_put_bool(&w, true);
        json_key(&w, "loss_scale"), json_put_number(&w, t->scaler.scale);
    } else {
        json_key(&w, "loss"), json_put_number(&w, r->loss);
        json_key(&w, "lr"), json_put_number(&w, optim_lr(&t->optim, t->step));
        if (t->scaler.enabled) json_key(&w, "loss_scale"), json_put_number(&w, t->scaler.scale);
        json_key(&w, "seconds"), json_put_number(&w, round(seconds * 1e4) / 1e4);
        json_key(&w, "images_per_second"),
            json_put_number(&w, round(t->o->batch / seconds * 10) / 10);
    }
    json_close(&w, '}');
    return train_log_put(t->log, &w, err);
}

// One step; t->step is its number (from 1).
static bool step(Training *t, Error *err) {
    double start = os_seconds();
    LoaderBatch from;
    if (!loader_next(t->loader, &from, err)) return false;
    t->step++;
    t->epoch = from.epoch;
    make_batch(t, &from);
    float hyper[ADAMW_HYPER_COUNT];
    optim_hyper(&t->optim, t->step, t->updates, t->scaler.scale, hyper);
    TrainerResult result;
    // Not cancelled inside: a step is whole or not at all.
    if (!trainer_step(t->trainer, &t->batch, hyper, t->scaler.scale, NULL, &result, err))
        return err_prefix(err, "step %" PRId64, t->step);
    bool bad = result.found_inf || !isfinite(result.loss);
    if (bad && !t->scaler.enabled)
        return err_failed(err,
                          "step %" PRId64 ": expected a finite loss and gradients, found loss %g; "
                          "try a lower --lr or --precision f32",
                          t->step, (double)result.loss);
    result.found_inf = bad;
    t->skipped_in_a_row = bad ? t->skipped_in_a_row + 1 : 0;
    if (t->skipped_in_a_row > MAX_SKIPPED_IN_A_ROW)
        return err_failed(err,
                          "step %" PRId64 ": expected finite gradients at some loss scale, found "
                          "none in %d steps; try --precision bf16 or f32",
                          t->step, MAX_SKIPPED_IN_A_ROW);
    if (!bad) {
        t->updates++;
        t->loss = result.loss;
    }
    double seconds = os_seconds() - start;
    t->step_seconds = t->step_seconds > 0 ? 0.95 * t->step_seconds + 0.05 * seconds : seconds;
    if (!log_step(t, &result, seconds, err)) return false;
    scaler_update(&t->scaler, bad);
    tell(t, "train");
    t->epoch = from.next_epoch;
    t->position = from.next_position;
    return true;
}

// The same pictures, noise and times at each epoch, so that losses compare.
static bool validate(Training *t, Error *err) {
    if (!t->val) return true;
    tell(t, "validate");
    int count = dataset_count(t->val), b = t->o->batch, batches = MIN(VAL_BATCHES, count / b);
    if (batches < 1) return true;
    uint8_t *planes = MEM_ARRAY(NULL, uint8_t, t->numbers);
    float *image = MEM_ARRAY(planes, float, t->numbers);
    double sum = 0;
    bool ok = true;
    for (int k = 0; k < batches && ok; k++) {
        Rng rng;
        rng_seed(&rng, t->seed, stream_val + (uint64_t)k);
        rng_fill_normal(&rng, t->noise, (size_t)b * t->numbers);
        for (int i = 0; i < b && ok; i++) {
            int64_t n = (int64_t)k * b + i, which = n * count / ((int64_t)batches * b);
            ok = dataset_read(t->val, (int)which, t->config.size, planes, err);
            for (size_t p = 0; p < t->numbers; p++) image[p] = image_to_float(planes[p]);
            double time = ((double)(n % b) + 0.5) / b;
            trainer_fill(&t->val_batch, i, t->numbers, image, t->noise + (size_t)i * t->numbers,
                         time, dataset_label(t->val, (int)which));
        }
        float loss = 0;
        ok = ok && trainer_validate(t->trainer, &t->val_batch, NULL, &loss, err);
        sum += loss;
    }
    mem_free(planes);
    if (!ok) return false;
    t->validation_loss = sum / batches;
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "step"), json_put_int(&w, t->step);
    json_key(&w, "epoch"), json_put_int(&w, t->epoch); // epochs that are over
    json_key(&w, "validation_loss"), json_put_number(&w, t->validation_loss);
    json_close(&w, '}');
    return train_log_put(t->log, &w, err);
}

static bool checkpoint_due(const Training *t, bool epoch_over) {
    const TrainOptions *o = t->o;
    return (epoch_over && o->checkpoint_every && t->epoch % o->checkpoint_every == 0) ||
           (o->checkpoint_steps && t->step % o->checkpoint_steps == 0);
}

static bool loop(Training *t, Error *err) {
    while (t->step < t->total_steps) {
        int64_t before = t->epoch;
        if (!step(t, err)) return false;
        bool epoch_over = t->epoch > before;
        if (epoch_over && !validate(t, err)) return false;
        if (t->step < t->total_steps && checkpoint_due(t, epoch_over) && !save(t, true, err))
            return false;
        if (t->o->cancel && t->o->cancel->asked(t->o->cancel->user)) {
            if (t->saved_step != t->step && !save(t, false, err)) return false;
            return err_set(err, STATUS_CANCELLED,
                           "train: stopped after step %" PRId64 "; go on with "
                           "--resume",
                           t->step);
        }
    }
    return save(t, true, err);
}

static void set_schedule(Training *t) {
    const TrainOptions *o = t->o;
    int64_t planned = t->steps_per_epoch * o->epochs;
    t->optim = optim_default();
    t->optim.lr = o->lr;
    t->optim.weight_decay = o->weight_decay;
    t->optim.ema_decay = o->ema_decay;
    t->optim.warmup = o->warmup >= 0 ? o->warmup : planned < 10000 ? planned / 10 : 1000;
    if (o->cosine) {
        t->optim.decay_steps = planned;
        t->optim.lr_end = 0.05;
    }
}

static bool check_options(const TrainOptions *o, Error *err) {
    const struct { const char *name; int64_t value, low, high; } range[] = {
        {"epochs", o->epochs, 1, 1000000},
        {"epochs between checkpoints", o->checkpoint_every, 0, 1000000},
        {"steps between checkpoints", o->checkpoint_steps, 0, INT64_MAX},
        {"kept checkpoints", o->keep, 1, INT_MAX},
        {"steps in all", o->limit_steps, 0, INT64_MAX},
        {"warm-up steps", o->warmup, -1, INT_MAX},
    };
    for (size_t i = 0; i < COUNT_OF(range); i++)
        if (range[i].value < range[i].low || range[i].value > range[i].high)
            return err_failed(err, "train: expected %" PRId64 " to %" PRId64 " %s, found %" PRId64,
                              range[i].low, range[i].high, range[i].name, range[i].value);
    if (!(o->lr > 0 && o->lr <= 10))
        return err_failed(err, "train: expected a learning rate above 0, up to 10, found %g",
                          o->lr);
    if (!(o->ema_decay >= 0 && o->ema_decay < 1))
        return err_failed(err, "train: expected an EMA decay from 0 to below 1, found %g",
                          o->ema_decay);
    if (!(o->label_dropout >= 0 && o->label_dropout <= 1))
        return err_failed(err, "train: expected a label dropout from 0 to 1, found %g",
                          o->label_dropout);
    if (!(o->weight_decay >= 0 && o->weight_decay <= 1))
        return err_failed(err, "train: expected a weight decay from 0 to 1, found %g",
                          o->weight_decay);
    if (o->precision != DT_F32 && o->precision != DT_F16 && o->precision != DT_BF16)
        return err_failed(err, "train: expected precision f32, fp16 or bf16, found %s",
                          dtype_name(o->precision));
    return true;
}

static bool run(Training *t, Error *err) {
    const TrainOptions *o = t->o;
    if (!check_options(o, err) || !open_data(t, err)) return false;
    t->trainer_options = (TrainerOptions){
        .config = t->config, .batch = o->batch, .compute = o->precision,
        .sample_pictures = o->samples ? NANO_STAGE_PICTURES : 0,
    };
    if (!start(t, err) || !open_loader(t, err)) return false;
    set_schedule(t);
    t->batch = trainer_batch(t, &t->trainer_options);
    t->val_batch = trainer_batch(t, &t->trainer_options);
    t->noise = MEM_ARRAY(t, float, (size_t)o->batch * t->numbers);
    return loop(t, err);
}

bool train_nano(Device *dev, const TrainOptions *o, TrainReport *report, Error *err) {
    Training *t = MEM_NEW(NULL, Training);
    t->o = o;
    t->dev = dev;
    t->config = o->model;
    t->seed = o->seed;
    t->scaler = scaler_new(o->precision == DT_F16);
    t->loss = t->validation_loss = NAN;
    t->numbers = (size_t)NANO_CHANNELS * (size_t)o->model.size * (size_t)o->model.size;
    t->log_path = os_path_join(t, o->out, "log.jsonl");
    t->started = os_seconds();
    bool ok = run(t, err);
    if (report) {
        *report = (TrainReport){.step = t->step, .skipped = t->scaler.skipped, .loss = t->loss,
                                .validation_loss = t->validation_loss,
                                .seconds = os_seconds() - t->started};
        if (t->trainer) report->memory = trainer_memory(t->trainer);
    }
    train_log_close(t->log);
    loader_close(t->loader);
    trainer_free(t->trainer);
    mem_free(t);
    return ok;
}
