// optim.h: the host's side of training: what each step's AdamW (backend/ops/adamw.h) is told. Plain
// arithmetic in f64, no device.
#ifndef KILN_ENGINE_OPTIM_H
#define KILN_ENGINE_OPTIM_H

#include "backend/ops.h"

typedef struct OptimOptions {
    double lr, beta1, beta2, eps, weight_decay;
    int64_t warmup;      // steps in which the rate rises linearly to lr
    int64_t decay_steps; // 0: the rate stays; else it falls by a cosine to lr_end at this step
    double lr_end;       // as a share of lr
    double ema_decay;    // of the averaged weights, reached after their own warm-up
} OptimOptions;

OptimOptions optim_default(void); // 3e-4, 0.9, 0.999, 1e-8, 0; no warm-up, no decay; 0.9999

// `step` counts from 1: the step about to be taken.
double optim_lr(const OptimOptions *o, int64_t step);
// min(ema_decay, (1 + step) / (10 + step)): without it the average starts as the random weights
// and keeps them for 1 / (1 - decay) steps.
double optim_ema_decay(const OptimOptions *o, int64_t step);
// `updates` counts the steps taken before, skipped ones not: they set the bias corrections.
void optim_hyper(const OptimOptions *o, int64_t step, int64_t updates, double loss_scale,
                 float out[ADAMW_HYPER_COUNT]);

// ---- loss scale ---------------------------------------------------------------------------------
// As torch.amp.GradScaler: the loss is multiplied so that gradients do not vanish in f16; a step
// with a NaN or infinite gradient is skipped and halves the scale; `interval` good steps in a row
// double it. A scaler that is not enabled keeps scale 1.
typedef struct GradScaler {
    bool enabled;
    double scale, growth, backoff;
    int64_t interval, good; // steps since the last change
    int64_t skipped;        // steps skipped in all
} GradScaler;

GradScaler scaler_new(bool enabled); // 65536, growth 2 every 2000, backoff 0.5
void scaler_update(GradScaler *s, bool found_inf);

#endif
