// guidance.h: how answers of the model under several conditions become one, step by step.
//
// Compile without floating-point contraction. Pure functions: any thread.
#ifndef KILN_ENGINE_GUIDANCE_H
#define KILN_ENGINE_GUIDANCE_H

#include "backend/base.h"

// Classifier-free guidance (J. Ho and T. Salimans 2022): out = uncond + scale (cond - uncond), each
// [n]. out may be either of the inputs.
void guidance_cfg(float *out, const float *cond, const float *uncond, float scale, size_t n);

// How the scale goes over the run: step i of n is at u = (i + 1/2) / n and has the weight w(u);
// scale_i = 1 + (scale - 1) w_i / mean(w), so the mean over the run is `scale`.
typedef struct GuidanceKind {
    const char *name;
    double (*weight)(double u);
} GuidanceKind;

const GuidanceKind *guidance_find(const char *name); // constant, triangle, cosine; NULL: unknown
const GuidanceKind *guidance_at(int i);              // NULL: past the last

typedef struct Guidance {
    double scale;             // 1: no guidance
    const GuidanceKind *kind; // NULL: constant
    // The part of the run that is guided (T. Kynkäänniemi et al., "Applying Guidance in a Limited
    // Interval", 2024): steps with lo <= u <= hi; the others have the scale 1. 0 <= lo < hi <= 1;
    // lo = hi = 0: all of it.
    double lo, hi;
    double threshold; // quantile of dynamic thresholding, in (0, 1]; 0: off
} Guidance;

// The scale of step 0..steps-1; exactly 1 means that the answer without the condition is not
// needed in this step.
double guidance_scale(const Guidance *g, int step, int steps);
// Whether any step needs the answer without the condition (does a plan need its rows?).
bool guidance_any(const Guidance *g, int steps);
// "LO:HI" of --cfg-interval.
bool guidance_interval(const char *text, double *lo, double *hi, Error *err);

// One answer from the answers of `step`: classifier-free guidance with the step's scale, then
// dynamic thresholding. v, cond, uncond, x: [pictures, n]; v may be cond or uncond, never x;
// uncond may be NULL where guidance_scale is 1. to_end is schedule->end - t (schedule.h), which
// turns a velocity into the clean latent x + to_end v.
//
// Dynamic thresholding, after C. Saharia et al. 2022 ("Imagen", 2.3), made fit for latents, per
// picture: the guided clean latent is clamped to plus/minus q_g, the quantile of its absolute
// values, and scaled by q_c / q_g, q_c being the same quantile of the conditional clean latent.
void guidance_apply(const Guidance *g, int step, int steps, float *v, const float *cond,
                    const float *uncond, const float *x, double to_end, int pictures, size_t n);

// The q-quantile (0..1) of v [n], n >= 1, with linear interpolation, as torch.quantile. Reorders v.
float guidance_quantile(float *v, size_t n, double q);

#endif
