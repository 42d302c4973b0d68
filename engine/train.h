// train.h: trains Nano-Sora on labelled pictures: data, steps, validation, log, checkpoints,
// resume.
//
// A run is a function of its options, its data and its device alone: noise, timesteps, dropped
// labels, order and flips are drawn from (seed, step), so that a resumed run goes on bit for bit.
//
// Folder `out` receives log.jsonl, checkpoint-<step>.safetensors, model.safetensors (averaged
// weights), samples-<step>.png and loss.svg; each is written whole or not at all (the log by
// lines). Thread-safety: used by the thread of its device; the loader's threads are its own.
#ifndef KILN_ENGINE_TRAIN_H
#define KILN_ENGINE_TRAIN_H

#include "engine/trainer.h"

typedef struct TrainProgress {
    const char *stage; // "data", "train", "validate", "samples", "checkpoint"
    int64_t step, steps; // of the whole run; data: pictures read, of all
    int epoch, epochs;   // epoch counts from 1
    double loss, lr;
    double seconds_per_step, seconds_left, images_per_second; // smoothed; 0: not known yet
} TrainProgress;

typedef struct TrainOptions {
    const char *data, *out;
    const char *val;    // NULL: the test split of a CIFAR folder, none for other data
    const char *weights; // model file to start from; NULL: the published initialisation
    NanoConfig model;   // classes and names are taken from the data
    int epochs, batch;
    double lr, weight_decay, ema_decay;
    int warmup;         // steps; -1: 1000, or a tenth of a run shorter than 10,000
    bool cosine;        // the rate falls to a twentieth by the end of the planned epochs
    double label_dropout;
    bool flip;
    DType precision;    // f32, f16 (with a gradient scaler), bf16
    int checkpoint_every;      // epochs; 0: only at the end and at an interrupt
    int64_t checkpoint_steps;  // besides, every so many steps; 0: none
    int keep;           // checkpoints kept, 1 or more
    bool resume, seed_given;
    uint64_t seed;      // with resume the checkpoint's; seed_given: it must be the same
    int64_t limit_steps; // stop (as at the end) after this step of the whole run; 0: none
    DType model_type;   // of model.safetensors: f32 or f16
    bool samples;       // pictures at checkpoints
    double sample_cfg;
    int loader_threads;
    const Log *log;           // may be NULL
    const Cancel *cancel;     // asked between steps: checkpoint, then STATUS_CANCELLED; may be NULL
    void (*progress)(void *user, const TrainProgress *progress); // may be NULL
    void *user;
} TrainOptions;

typedef struct TrainReport {
    int64_t step, skipped; // last step; steps skipped by the gradient scaler
    double loss, validation_loss; // the last ones (NaN: none)
    RunMemory memory;
    double seconds;
} TrainReport;

TrainOptions train_defaults(void);
// Runs to the end, the limit or an interrupt. `report` may be NULL; it is filled in any case.
bool train_nano(Device *dev, const TrainOptions *options, TrainReport *report, Error *err);

#endif
