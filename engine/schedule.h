// schedule.h: the times at which a sampler calls the model. One table of kinds; nothing here
// depends on a model.
//
// Two conventions of a flow's time share every solver, for dx/dtime = velocity in both:
//   rising   time = share of picture, 0 to 1; the model gives picture - noise (Nano-Sora)
//   falling  time = sigma, share of noise, 1 to 0; the model gives noise - picture (FLUX, SD3)
// `end` is the time of the clean picture: sigma = |end - time|, picture = x + (end - time) v.
#ifndef KILN_ENGINE_SCHEDULE_H
#define KILN_ENGINE_SCHEDULE_H

#include "engine/config.h"

typedef struct Schedule {
    int steps;
    double *time; // steps + 1 points, from the first to the end
    double end;   // 1: rising, 0: falling
} Schedule;

enum { SCHEDULE_MAX_STEPS = 10000 };

typedef struct ScheduleKind {
    const char *name;
    void (*fill)(double *points, int steps);   // rising, points[0..steps]
    void (*sigmas)(double *points, int steps); // falling, before the shift, points[0..steps - 1]
} ScheduleKind;

const ScheduleKind *schedule_find(const char *name); // NULL: unknown
const ScheduleKind *schedule_at(int i);              // NULL: past the last
// Rising. steps 1..SCHEDULE_MAX_STEPS. The result hangs on `parent`.
Schedule *schedule_new(void *parent, const ScheduleKind *kind, int steps, Error *err);

// ---- falling: sigmas of a flow model --------------------------------------------------------
// How a model moves its steps towards more noise (P. Esser et al., "Scaling Rectified Flow
// Transformers", 2024, section 5.3.2), with the field names of diffusers'
// FlowMatchEulerDiscreteScheduler:
//   fixed    s' = shift s / (1 + (shift - 1) s)
//   dynamic  s' = e^mu / (e^mu + 1/s - 1), mu linear in the number of image tokens:
//            base_shift at base_tokens, max_shift at max_tokens, and beyond
typedef struct FlowShift {
    bool dynamic;
    double shift;                 // fixed; 1: none
    double base_shift, max_shift; // dynamic
    int base_tokens, max_tokens;
} FlowShift;

#define FLOW_SHIFT_NONE ((FlowShift){.shift = 1})
#define FLOW_SHIFT_FIXED(s) ((FlowShift){.shift = (s)})
#define FLOW_SHIFT_FLUX_SCHNELL FLOW_SHIFT_NONE
#define FLOW_SHIFT_FLUX_DEV \
    ((FlowShift){.dynamic = true, .shift = 3, .base_shift = 0.5, .max_shift = 1.15, \
                 .base_tokens = 256, .max_tokens = 4096})

#define SHIFT_MIN 0.001 // of a configuration; --shift allows less
#define SHIFT_MAX 1000.0
#define SHIFT_MOST 20.0 // of base_shift and max_shift, either way

// scheduler/scheduler_config.json. Members that are missing have diffusers' defaults (fixed, shift 1).
// Refused: another class of scheduler, and what no flow model here uses (karras, exponential or beta
// sigmas, a terminal shift, stochastic steps, timesteps other than 1000).
bool flow_shift_parse(const ConfigFile *file, FlowShift *out, Error *err);
// mu of a picture of `tokens` image tokens (FLUX: width/16 * height/16).
double flow_shift_mu(const FlowShift *s, int tokens);

// Falling: time[i] is a sigma, time[0] = 1 (but for img2img), time[steps] = 0. Each is exactly the
// float32 that diffusers computes. `tokens` is read by a dynamic shift only. kind NULL: the first.
Schedule *schedule_flow(void *parent, const ScheduleKind *kind, const FlowShift *shift, int tokens,
                        int steps, Error *err);
// Given sigmas, count = steps + 1 of them: within 0..1, falling strictly, the last may be 0.
Schedule *schedule_given(void *parent, const double *sigmas, int count, Error *err);

// Image to image: keeps the last part of the schedule, as diffusers' FluxImg2ImgPipeline: the first
// int(steps - min(steps * strength, steps)) steps go. strength in 0..1, 1 keeps all; so small a
// strength that no step is left is an error. Then start from flow_mix(picture, noise, time[0]).
bool schedule_keep(Schedule *s, double strength, Error *err);
// out = sigma noise + (1 - sigma) picture, each [n], rounded as in float32; out may be either.
void flow_mix(float *out, const float *picture, const float *noise, double sigma, size_t n);

// The number of the step that begins at time t (exactly one of the points); -1: none.
int schedule_step(const Schedule *s, double t);
// What diffusers' FLUX transformer embeds at sigma: 1000 sigma, through the pipeline's roundings in
// float32 (times 1000, over 1000, times 1000).
float flow_timestep(double sigma);

#endif
