// optim.c: see optim.h.
#include "engine/optim.h"

#include <float.h>
#include <math.h>

OptimOptions optim_default(void) {
    return (OptimOptions){.lr = 3e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8,
                          .ema_decay = 0.9999};
}

double optim_lr(const OptimOptions *o, int64_t step) {
    if (step < o->warmup) return o->lr * (double)step / (double)o->warmup;
    if (o->decay_steps <= o->warmup) return o->lr;
    double done = (double)(step - o->warmup) / (double)(o->decay_steps - o->warmup);
    double share = 0.5 * (1 + cos(3.14159265358979323846 * fmin(done, 1)));
    return o->lr * (o->lr_end + (1 - o->lr_end) * share);
}

double optim_ema_decay(const OptimOptions *o, int64_t step) {
    return fmin(o->ema_decay, (1.0 + (double)step) / (10.0 + (double)step));
}

void optim_hyper(const OptimOptions *o, int64_t step, int64_t updates, double loss_scale,
                 float out[ADAMW_HYPER_COUNT]) {
    double t = (double)updates + 1;
    const double hyper[ADAMW_HYPER_COUNT] = {
        optim_lr(o, step), o->beta1, o->beta2, o->eps, o->weight_decay, 1 - pow(o->beta1, t),
        1 - pow(o->beta2, t), 1 / loss_scale, optim_ema_decay(o, step), 0,
    };
    for (int i = 0; i < ADAMW_HYPER_COUNT; i++) out[i] = (float)hyper[i];
}

GradScaler scaler_new(bool enabled) {
    return (GradScaler){.enabled = enabled, .scale = enabled ? 65536 : 1, .growth = 2,
                        .backoff = 0.5, .interval = 2000};
}

void scaler_update(GradScaler *s, bool found_inf) {
    if (found_inf) s->skipped++;
    if (!s->enabled) return;
    if (found_inf) {
        s->scale *= s->backoff;
        s->good = 0;
    } else if (++s->good == s->interval) {
        double grown = s->scale * s->growth;
        if (grown <= FLT_MAX) s->scale = grown; // the device holds it in f32
        s->good = 0;
    }
}
