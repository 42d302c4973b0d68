// trainer.c: see trainer.h.
#include "engine/trainer.h"

#include <math.h>

enum { PART_WEIGHTS, PART_EMA, PART_M, PART_V };
static const char *const part_prefix[TRAINER_PARTS] = {"", "ema.", "m.", "v."};

// The tensors of one plan that the host writes and reads.
typedef struct TrainerPlan {
    Plan *plan;
    Tensor *x_t, *target, *features, *labels; // in
    Tensor *seed, *hyper;                     // in, steps only
    Tensor *loss, *found_inf;                 // out
} TrainerPlan;

struct Trainer {
    TrainerOptions options;
    CheckpointPart part[TRAINER_PARTS];
    NanoModel *model[TRAINER_PARTS]; // the moments have the same shapes and names
    Run *run;
    TrainerPlan step, validate;
    NanoStage *stage;
    Tensor **gradient; // of param i, where kept
};

static Tensor *record_loss(TrainerPlan *p, Graph *g, const NanoModel *m, const TrainerOptions *o) {
    int64_t b = o->batch, s = o->config.size;
    p->x_t = g_input(g, "x_t", DT_F32, DIMS(b, NANO_CHANNELS, s, s));
    p->target = g_input(g, "target", DT_F32, DIMS(b, NANO_CHANNELS, s, s));
    p->features = g_input(g, "features", DT_F32, DIMS(b, NANO_FEATURES));
    p->labels = g_input(g, "labels", DT_I32, DIMS(b));
    Tensor *v = nano_forward(m, g, p->x_t, p->features, p->labels, o->compute);
    Tensor *loss = g_mse(v, p->target);
    p->loss = g_output(g, "loss", loss);
    return loss;
}

static Tensor *flat(Graph *g, Param *p) { return g_reshape(g_param(g, p), DIMS(-1)); }

// 1 in the result where any gradient is not finite.
static Tensor *record_found_inf(Trainer *t, Graph *g) {
    Store *weights = t->part[PART_WEIGHTS].store;
    Tensor *found = NULL;
    for (int i = 0; i < store_count(weights); i++) {
        Tensor *grad = g_param(g, store_at(weights, i))->grad;
        if (!grad) continue;
        grad = g_reshape(grad, DIMS(1, -1, 1));
        found = g_reduce(g, REDUCE(.x = grad, .y = found, .kind = REDUCE_NONFINITE,
                                   .accumulate = found != NULL));
    }
    if (found) found = g_reshape(found, DIMS(1));
    else g_fail(g, "train: expected gradients, found none");
    return found;
}

static void record_update(Trainer *t, Graph *g) {
    Store *weights = t->part[PART_WEIGHTS].store;
    for (int i = 0; i < store_count(weights); i++) {
        Param *p[TRAINER_PARTS];
        for (int k = 0; k < TRAINER_PARTS; k++) p[k] = store_at(t->part[k].store, i);
        Tensor *grad = g_param(g, p[PART_WEIGHTS])->grad;
        if (!grad) {
            g_fail(g, "train: %s: expected a gradient, found none", p[PART_WEIGHTS]->name);
            return;
        }
        if (t->options.keep_gradients) t->gradient[i] = g_output(g, p[PART_WEIGHTS]->name, grad);
        Tensor *w = flat(g, p[PART_WEIGHTS]), *ema = flat(g, p[PART_EMA]);
        Tensor *m = flat(g, p[PART_M]), *v = flat(g, p[PART_V]);
        grad = g_reshape(grad, DIMS(-1));
        g_adamw(g, ADAMW(.p = w, .m = m, .v = v, .ema = ema, .g = grad, .hyper = t->step.hyper,
                         .found_inf = t->step.found_inf));
    }
}

static bool plan_all(Trainer *t, Error *err) {
    TrainerPlan *step = &t->step;
    Graph *g = g_new(t);
    Tensor *loss = record_loss(step, g, t->model[PART_WEIGHTS], &t->options);
    step->seed = g_input(g, "loss_scale", DT_F32, DIMS(1));
    step->hyper = g_input(g, "hyper", DT_F32, DIMS(ADAMW_HYPER_COUNT));
    g_backward(g, loss, step->seed);
    step->found_inf = g_output(g, "found_inf", record_found_inf(t, g));
    record_update(t, g);
    step->plan = run_add_plan(t->run, g, "train step", err);
    if (!step->plan) return false;

    Graph *v = g_new(t);
    record_loss(&t->validate, v, t->model[PART_EMA], &t->options);
    t->validate.plan = run_add_plan(t->run, v, "validation", err);
    if (!t->validate.plan) return false;
    if (t->options.sample_pictures)
        t->stage = nano_stage_new(t, t->run, t->model[PART_EMA], 2 * t->options.sample_pictures,
                                  t->options.compute, "samples", err);
    return t->stage || !t->options.sample_pictures;
}

Trainer *trainer_new(void *parent, Device *dev, const TrainerOptions *options, Error *err) {
    if (options->batch < 1 || options->batch > 4096) {
        err_failed(err, "train: expected a batch of 1 to 4096, found %d", options->batch);
        return NULL;
    }
    if (!nano_check_config(&options->config, err)) return NULL;
    Trainer *t = MEM_NEW(parent, Trainer);
    t->options = *options;
    t->run = run_new(t, dev, NULL);
    for (int k = 0; k < TRAINER_PARTS; k++) {
        t->part[k] = (CheckpointPart){part_prefix[k], store_new(t, dev)};
        t->model[k] = nano_new(t, t->part[k].store, &options->config);
        run_add_store(t->run, t->part[k].store);
    }
    Store *weights = t->part[PART_WEIGHTS].store;
    for (int i = 0; i < store_count(weights); i++) store_at(weights, i)->train = true;
    t->gradient = MEM_ARRAY(t, Tensor *, store_count(weights));
    if (plan_all(t, err) && run_prepare(t->run, err)) return t;
    trainer_free(t);
    return NULL;
}

void trainer_free(Trainer *t) {
    if (!t) return;
    run_free(t->run);
    for (int k = 0; k < TRAINER_PARTS; k++) store_free(t->part[k].store);
    mem_free(t);
}

RunMemory trainer_memory(const Trainer *t) { return run_memory(t->run); }
const CheckpointPart *trainer_parts(const Trainer *t) { return t->part; }
Store *trainer_weights(const Trainer *t) { return t->part[PART_WEIGHTS].store; }
Store *trainer_ema(const Trainer *t) { return t->part[PART_EMA].store; }
NanoStage *trainer_stage(const Trainer *t) { return t->stage; }

// ---- contents ---------------------------------------------------------------------------------

// Averaged weights from the weights, moments to zero.
static bool start_fresh(Trainer *t, Error *err) {
    bool ok = true;
    for (int i = 0; i < store_count(trainer_weights(t)) && ok; i++) {
        Param *w = store_at(trainer_weights(t), i);
        float *values = MEM_ARRAY(NULL, float, param_count(w));
        ok = param_read(w, DT_F32, values, err) &&
             param_write(store_at(trainer_ema(t), i), DT_F32, values, err) &&
             param_zero(store_at(t->part[PART_M].store, i), err) &&
             param_zero(store_at(t->part[PART_V].store, i), err);
        mem_free(values);
    }
    return ok;
}

bool trainer_init(Trainer *t, uint64_t seed, Error *err) {
    return nano_init(t->model[PART_WEIGHTS], seed, err) && start_fresh(t, err);
}

bool trainer_set_weights(Trainer *t, const StFile *model, Error *err) {
    int count;
    StWant *wants = nano_wants(NULL, &t->options.config, &count);
    bool ok = st_check(model, wants, count, err);
    mem_free(wants);
    return ok && nano_load(t->model[PART_WEIGHTS], trainer_weights(t), model, err) &&
           start_fresh(t, err);
}

TrainerBatch trainer_batch(void *parent, const TrainerOptions *o) {
    size_t rows = (size_t)o->batch;
    size_t n = rows * NANO_CHANNELS * (size_t)o->config.size * (size_t)o->config.size;
    TrainerBatch b;
    b.x_t = MEM_ARRAY(parent, float, n);
    b.target = MEM_ARRAY(parent, float, n);
    b.features = MEM_ARRAY(parent, float, rows * NANO_FEATURES);
    b.labels = MEM_ARRAY(parent, int32_t, rows);
    return b;
}

void trainer_fill(TrainerBatch *b, int row, size_t n, const float *image, const float *noise,
                  double t, int32_t label) {
    float *x_t = b->x_t + (size_t)row * n, *target = b->target + (size_t)row * n;
    float a = (float)(1 - t), c = (float)t;
    for (size_t i = 0; i < n; i++) {
        x_t[i] = a * noise[i] + c * image[i];
        target[i] = image[i] - noise[i];
    }
    timestep_features(t, NANO_FEATURES, b->features + (size_t)row * NANO_FEATURES);
    b->labels[row] = label;
}

// ---- running ----------------------------------------------------------------------------------

static bool write_batch(TrainerPlan *p, const TrainerBatch *b, Error *err) {
    return plan_write(p->plan, p->x_t, DT_F32, b->x_t, err) &&
           plan_write(p->plan, p->target, DT_F32, b->target, err) &&
           plan_write(p->plan, p->features, DT_F32, b->features, err) &&
           plan_write(p->plan, p->labels, DT_I32, b->labels, err);
}

bool trainer_step(Trainer *t, const TrainerBatch *batch, const float hyper[ADAMW_HYPER_COUNT],
                  double loss_scale, const Cancel *cancel, TrainerResult *result, Error *err) {
    TrainerPlan *p = &t->step;
    float seed = (float)loss_scale, found;
    if (!write_batch(p, batch, err) || !plan_write(p->plan, p->seed, DT_F32, &seed, err) ||
        !plan_write(p->plan, p->hyper, DT_F32, hyper, err) || !plan_run(p->plan, cancel, err) ||
        !plan_read(p->plan, p->loss, DT_F32, &result->loss, err) ||
        !plan_read(p->plan, p->found_inf, DT_F32, &found, err))
        return false;
    result->found_inf = found != 0;
    return true;
}

bool trainer_validate(Trainer *t, const TrainerBatch *batch, const Cancel *cancel, float *loss,
                      Error *err) {
    TrainerPlan *p = &t->validate;
    return write_batch(p, batch, err) && plan_run(p->plan, cancel, err) &&
           plan_read(p->plan, p->loss, DT_F32, loss, err);
}

bool trainer_gradient(Trainer *t, const char *name, float *out, Error *err) {
    for (int i = 0; i < store_count(trainer_weights(t)); i++)
        if (!strcmp(store_at(trainer_weights(t), i)->name, name) && t->gradient[i])
            return plan_read(t->step.plan, t->gradient[i], DT_F32, out, err);
    return err_failed(err, "%s: expected a kept gradient, found none", name);
}
