// trainer.h: one training step of Nano-Sora on a device: weights, AdamW's moments and the averaged
// (EMA) weights, the plan of a step, the plan of validation. No files, no data, no clock:
// engine/train.h has the loop.
//
// Thread-safety: used by the thread of its device.
#ifndef KILN_ENGINE_TRAINER_H
#define KILN_ENGINE_TRAINER_H

#include "engine/checkpoint.h"
#include "engine/optim.h"
#include "engine/pipeline_nano.h"

typedef struct Trainer Trainer;

typedef struct TrainerOptions {
    NanoConfig config;
    int batch;     // 1..4096
    DType compute; // f32, f16, bf16: of matrix products and activations; weights and sums stay f32
    int sample_pictures; // rows / 2 of a sampling stage with the averaged weights; 0: none
    bool keep_gradients; // tests: trainer_gradient works
} TrainerOptions;

// What a step sees, in host memory.
typedef struct TrainerBatch {
    float *x_t, *target; // [B, 3, S, S]: (1 - t) noise + t image, image - noise
    float *features;     // [B, 256]
    int32_t *labels;     // [B]
} TrainerBatch;

typedef struct TrainerResult {
    float loss;     // of the batch, before the step
    bool found_inf; // a gradient (or the loss) was NaN or infinite: nothing was changed
} TrainerResult;

// Plans everything and allocates. Weights are undefined until trainer_init, trainer_set_weights, or
// until a checkpoint was read into trainer_parts.
Trainer *trainer_new(void *parent, Device *dev, const TrainerOptions *options, Error *err);
void trainer_free(Trainer *t); // NULL is allowed
// Fresh weights, or those of a model file; averaged weights as the weights, moments 0.
bool trainer_init(Trainer *t, uint64_t seed, Error *err);
bool trainer_set_weights(Trainer *t, const StFile *model, Error *err);
RunMemory trainer_memory(const Trainer *t);

// weights "", averaged "ema.", moments "m." and "v."
enum { TRAINER_PARTS = 4 };
const CheckpointPart *trainer_parts(const Trainer *t);
Store *trainer_weights(const Trainer *t);
Store *trainer_ema(const Trainer *t);
NanoStage *trainer_stage(const Trainer *t); // NULL where sample_pictures is 0

// Memory for one batch below `parent`.
TrainerBatch trainer_batch(void *parent, const TrainerOptions *options);
// Row `row` of a batch: image, noise [3, S, S], t in 0..1.
void trainer_fill(TrainerBatch *batch, int row, size_t numbers, const float *image,
                  const float *noise, double t, int32_t label);

bool trainer_step(Trainer *t, const TrainerBatch *batch, const float hyper[ADAMW_HYPER_COUNT],
                  double loss_scale, const Cancel *cancel, TrainerResult *result, Error *err);
// Mean squared error of the averaged weights; nothing changes.
bool trainer_validate(Trainer *t, const TrainerBatch *batch, const Cancel *cancel, float *loss,
                      Error *err);
// Tests: the gradient of a weight from the last trainer_step (keep_gradients), times its loss
// scale.
bool trainer_gradient(Trainer *t, const char *name, float *out, Error *err);

#endif
