// cmd_train.c: `kiln train`: options for engine/train.h.
#include "tools/cmd.h"

#include "backend/os.h"
#include "engine/train.h"

#include <inttypes.h>
#include <math.h>

typedef struct Values {
    CommonOptions common;
    const char *model, *data, *out, *val, *weights, *precision, *weight_type;
    int64_t epochs, batch, checkpoint_every, checkpoint_steps, keep, limit_steps, warmup;
    int64_t patch, dim, depth, heads, size;
    double lr, weight_decay, ema, label_dropout, sample_cfg;
    uint64_t seed;
    bool resume, cosine, no_flip, no_samples;
} Values;

static const Option options[] = {
    {.name = "MODEL", .kind = OPT_CHOICE, FIELD(Values, model), .choices = "nano", .operand = true,
     .required = true, .help = "The architecture to train."},
    {.name = "data", .kind = OPT_TEXT, FIELD(Values, data), .value = "PATH", .group = "files",
     .help = "Pictures: a folder with one folder of JPEG or PNG files per class, a folder of "
             "CIFAR-10 "
             "binary files, or WebDataset shards. Required."},
    {.name = "out", .kind = OPT_TEXT, FIELD(Values, out), .value = "DIR",
     .help = "Receives log.jsonl, checkpoint-<step>.safetensors, model.safetensors (averaged "
             "weights), "
             "samples-<step>.png and loss.svg. Required."},
    {.name = "val", .kind = OPT_TEXT, FIELD(Values, val), .value = "PATH",
     .says = "the test split of a CIFAR-10 folder",
     .help = "Pictures for the validation loss, as for --data."},
    {.name = "weights", .kind = OPT_TEXT, FIELD(Values, weights), .value = "FILE",
     .help = "Start from the weights of this model.safetensors (fine-tuning)."},
    {.name = "resume", .kind = OPT_FLAG, FIELD(Values, resume),
     .help = "Go on from the newest whole checkpoint in DIR, bit for bit; start anew if there is "
             "none."},
    {.name = "checkpoint-every", .kind = OPT_INT, FIELD(Values, checkpoint_every),
     .value = "EPOCHS",
     .min = 0, .max = 1000000, .fallback = "10",
     .help = "Epochs between checkpoints; 0: only at the end. An interrupt (Ctrl-C) writes one "
             "too."},
    {.name = "checkpoint-steps", .kind = OPT_INT, FIELD(Values, checkpoint_steps), .value = "N",
     .min = 0, .max = 1e12, .fallback = "0",
     .help = "Besides, a checkpoint every so many steps; 0: none."},
    {.name = "keep", .kind = OPT_INT, FIELD(Values, keep), .value = "N", .min = 1, .max = 1000000,
     .fallback = "3", .help = "Checkpoints kept; older ones are removed."},
    {.name = "weight-type", .kind = OPT_CHOICE, FIELD(Values, weight_type), .choices = "f32,f16",
     .fallback = "f32", .value = "TYPE", .help = "Type of the weights in model.safetensors."},
    {.name = "no-samples", .kind = OPT_FLAG, FIELD(Values, no_samples),
     .help = "No sample pictures at checkpoints."},
    {.name = "epochs", .kind = OPT_INT, FIELD(Values, epochs), .value = "N", .min = 1,
     .max = 1000000,
     .fallback = "100", .group = "training", .help = "Passes over the data."},
    {.name = "batch", .kind = OPT_INT, FIELD(Values, batch), .value = "N", .min = 1, .max = 4096,
     .fallback = "64", .help = "Pictures per step."},
    {.name = "lr", .kind = OPT_NUMBER, FIELD(Values, lr), .value = "RATE", .min = 1e-8, .max = 1,
     .fallback = "3e-4", .help = "Learning rate after the warm-up."},
    {.name = "cosine", .kind = OPT_FLAG, FIELD(Values, cosine),
     .help = "Let the rate fall along a cosine, to a twentieth at the end of the planned epochs."},
    {.name = "warmup", .kind = OPT_INT, FIELD(Values, warmup), .value = "STEPS", .min = 0,
     .max = 1000000, .says = "1000, or a tenth of a shorter run",
     .help = "Steps in which the rate rises to --lr."},
    {.name = "weight-decay", .kind = OPT_NUMBER, FIELD(Values, weight_decay), .value = "W",
     .min = 0,
     .max = 1, .fallback = "0", .help = "AdamW's weight decay."},
    {.name = "ema", .kind = OPT_NUMBER, FIELD(Values, ema), .value = "DECAY", .min = 0, .max = 1,
     .says = "0.9995", .help = "Decay of the averaged weights, per step."},
    {.name = "label-dropout", .kind = OPT_NUMBER, FIELD(Values, label_dropout), .value = "P",
     .min = 0,
     .max = 1, .fallback = "0.1", .help = "Share of pictures trained without their class."},
    {.name = "no-flip", .kind = OPT_FLAG, FIELD(Values, no_flip),
     .help = "Do not mirror half of the pictures."},
    {.name = "precision", .kind = OPT_CHOICE, FIELD(Values, precision), .choices = "f32,fp16,bf16",
     .fallback = "f32", .value = "P",
     .help = "Type of matrix products and activations; fp16 with a gradient scaler. Weights, "
             "moments "
             "and sums stay f32."},
    {.name = "seed", .letter = 's', .kind = OPT_SEED, FIELD(Values, seed), .value = "N",
     .says = "random, and printed", .help = "Everything random in the run."},
    {.name = "limit-steps", .kind = OPT_INT, FIELD(Values, limit_steps), .value = "N", .min = 1,
     .max = 1e12, .help = "Stop, as at the end, after this step of the whole run."},
    {.name = "patch", .kind = OPT_INT, FIELD(Values, patch), .value = "N", .min = 1, .max = 16,
     .fallback = "4", .group = "model", .help = "Pixels per side of a token."},
    {.name = "dim", .kind = OPT_INT, FIELD(Values, dim), .value = "N", .min = 8, .max = 4096,
     .fallback = "192", .help = "Width of the transformer, a multiple of 8 and of --heads."},
    {.name = "depth", .kind = OPT_INT, FIELD(Values, depth), .value = "N", .min = 1, .max = 64,
     .fallback = "6", .help = "Blocks."},
    {.name = "heads", .kind = OPT_INT, FIELD(Values, heads), .value = "N", .min = 1, .max = 512,
     .fallback = "6", .help = "Attention heads."},
    {.name = "size", .kind = OPT_INT, FIELD(Values, size), .value = "N", .min = 8, .max = 512,
     .fallback = "32",
         .help = "Pixels per side of a picture, a multiple of --patch; others are cut and "
                 "resized."},
    {.name = "sample-cfg-scale", .kind = OPT_NUMBER, FIELD(Values, sample_cfg), .value = "SCALE",
     .min = 0, .max = 100, .says = "3", .help = "Guidance of the sample pictures."},
    COMMON_OPTIONS(Values),
};

typedef struct Watch {
    Cmd *cmd;
    Device *dev;
    const char *stage;
    double said;
} Watch;

enum { SAY_EVERY = 60 }; // seconds between lines where there is no terminal

static void watch_progress(void *user, const TrainProgress *t) {
    Watch *w = user;
    if (w->stage != t->stage) {
        w->stage = t->stage;
        progress_stage(w->cmd->progress, t->stage, strcmp(t->stage,
                                                          "data") == 0 ? "picture" : "step");
    }
    char note[96] = "";
    if (t->epochs)
        snprintf(note, sizeof note, "epoch %d/%d  loss %.4f  lr %.2e", t->epoch, t->epochs, t->loss,
                 t->lr);
    progress_update(w->cmd->progress, t->step, t->steps, dev_memory(w->dev).used, note);
    double now = os_seconds();
    if (strcmp(t->stage, "train") != 0 || now - w->said < SAY_EVERY ||
        progress_shown(w->cmd->progress))
        return;
    w->said = now;
    log_msg(w->cmd->log, LOG_INFO, "step %" PRId64 "/%" PRId64 "  %s  %.3f s/step  %.0f images/s",
            t->step, t->steps, note, t->seconds_per_step, t->images_per_second);
}

static bool check(const Cmd *cmd, const Values *v, Error *err) {
    if (!v->data) return cmd_usage(cmd, err, "expected --data PATH, found none");
    if (!v->out) return cmd_usage(cmd, err, "expected --out DIR, found none");
    if (v->resume && v->weights)
        return cmd_usage(cmd, err, "expected --resume or --weights, found both");
    if (v->size % v->patch)
        return cmd_usage(cmd, err,
                         "--patch: expected a divisor of --size %" PRId64 ", found %" PRId64,
                         v->size, v->patch);
    if (v->dim % v->heads || v->dim % 8)
        return cmd_usage(cmd, err, "--dim: expected a multiple of 8 and of --heads %" PRId64
                         ", found %" PRId64, v->heads, v->dim);
    return true;
}

static TrainOptions train_options(Cmd *cmd, const Values *v) {
    TrainOptions o = train_defaults();
    o.data = v->data, o.out = v->out, o.val = v->val, o.weights = v->weights;
    o.model.patch = (int)v->patch, o.model.dim = (int)v->dim, o.model.depth = (int)v->depth;
    o.model.heads = (int)v->heads, o.model.size = (int)v->size;
    o.epochs = (int)v->epochs, o.batch = (int)v->batch;
    o.lr = v->lr, o.weight_decay = v->weight_decay, o.label_dropout = v->label_dropout;
    if (cmd_given(cmd, "ema")) o.ema_decay = v->ema;
    if (cmd_given(cmd, "sample-cfg-scale")) o.sample_cfg = v->sample_cfg;
    o.warmup = cmd_given(cmd, "warmup") ? (int)v->warmup : -1;
    o.cosine = v->cosine, o.flip = !v->no_flip, o.samples = !v->no_samples;
    o.precision = strcmp(v->precision, "fp16") == 0 ? DT_F16
                  : strcmp(v->precision, "bf16") == 0 ? DT_BF16 : DT_F32;
    o.model_type = strcmp(v->weight_type, "f16") == 0 ? DT_F16 : DT_F32;
    o.checkpoint_every = (int)v->checkpoint_every, o.keep = (int)v->keep;
    o.checkpoint_steps = v->checkpoint_steps;
    o.resume = v->resume, o.limit_steps = v->limit_steps;
    o.seed_given = cmd_given(cmd, "seed");
    o.seed = o.seed_given ? v->seed : os_random_seed();
    o.log = cmd->log, o.cancel = &cmd->cancel;
    return o;
}

static void put_memory(JsonOut *w, const RunMemory *m, uint64_t peak) {
    json_key(w, "memory"), json_open(w, '{');
    json_key(w, "planned_bytes"), json_put_uint(w, m->peak_bytes);
    json_key(w, "peak_bytes"), json_put_uint(w, peak);
    json_key(w, "weights_bytes"), json_put_uint(w, m->weights_bytes);
    json_key(w, "arena_bytes"), json_put_uint(w, m->arena_bytes);
    json_key(w, "driver_bytes"), json_put_uint(w, m->driver_bytes);
    json_close(w, '}');
}

static bool print_report(const Values *v, const TrainOptions *o, const TrainReport *r, Device *dev,
                         Error *err) {
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "model"), json_put_string(&w, v->model);
    json_key(&w, "out"), json_put_string(&w, v->out);
    json_key(&w, "device"), json_put_string(&w, dev_info(dev)->id);
    json_key(&w, "seed"), json_put_uint(&w, o->seed);
    json_key(&w, "step"), json_put_int(&w, r->step);
    json_key(&w, "skipped"), json_put_int(&w, r->skipped);
    json_key(&w, "loss"), json_put_number(&w, r->loss);
    json_key(&w, "validation_loss"), json_put_number(&w, r->validation_loss);
    put_memory(&w, &r->memory, dev_memory(dev).peak);
    json_key(&w, "seconds"), json_put_number(&w, r->seconds);
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

static bool run(Cmd *cmd, const void *values, Error *err) {
    const Values *v = values;
    if (!check(cmd, v, err)) return false;
    TrainOptions o = train_options(cmd, v);
    Device *dev = cmd_open_device(cmd, err);
    if (!dev) return false;
    Watch watch = {.cmd = cmd, .dev = dev, .said = os_seconds()};
    o.progress = watch_progress, o.user = &watch;
    if (!o.resume)
        log_msg(cmd->log, LOG_INFO, "seed %" PRIu64 ", device %s", o.seed, dev_info(dev)->id);
    TrainReport report = {0};
    bool ok = train_nano(dev, &o, &report, err);
    progress_clear(cmd->progress);
    if (ok) {
        log_msg(cmd->log, LOG_INFO, "%s: step %" PRId64 ", loss %.4f, %.0f s", v->out, report.step,
                report.loss, report.seconds);
        if (v->common.json) ok = print_report(v, &o, &report, dev, err);
    }
    dev_close(dev);
    return ok;
}

const Command cmd_train = {
    .name = "train",
    .summary = "train or fine-tune a model; stop and resume at any moment",
    .text = "Trains Nano-Sora, a small class-conditional diffusion transformer, by rectified flow. "
            "Ctrl-C writes a checkpoint and stops; --resume goes on from it as if nothing had "
            "happened "
            "(same device, same losses).",
    .examples = "kiln train nano --data cifar-10-batches-bin --out run\n"
                "kiln train nano --data cifar-10-batches-bin --out run --resume\n"
                "kiln generate -m run --class cat",
    COMMAND_OPTIONS(Values, options),
    .common_offset = offsetof(Values, common),
    .run = run,
};
