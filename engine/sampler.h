// sampler.h: solvers of the differential equation that turns noise into a picture. They work on
// latents in host memory (f32) and ask for the model's answer through a callback, so that one
// solver serves every model, guidance and device. They take both conventions of schedule.h.
//
// Compile without floating-point contraction: the same numbers on every machine.
// Thread-safety: none shared; a run belongs to its caller.
#ifndef KILN_ENGINE_SAMPLER_H
#define KILN_ENGINE_SAMPLER_H

#include "engine/schedule.h"

// dx/dt at time t of the latents x [n], guidance included. t is always one of the schedule's
// points; each solver here asks once per step, so schedule_step(schedule, t) is the step's number.
typedef struct Velocity {
    bool (*eval)(void *user, double t, const float *x, float *v, Error *err);
    void *user;
} Velocity;

// Fresh standard normals for a step that injects noise: out [n], in the layout of x. Called in
// order of the steps, only by samplers with `stochastic`. call may be NULL for the others.
// (noise_draw of noise.h continues PyTorch's generators.)
typedef struct Noise {
    bool (*call)(void *user, float *out, Error *err);
    void *user;
} Noise;

// Called with the latents after each step (0 .. steps - 1); false (with err) stops the run.
typedef struct AfterStep {
    bool (*call)(void *user, int step, const float *x, Error *err);
    void *user;
} AfterStep;

typedef struct SamplerRun {
    const Schedule *schedule;
    Velocity velocity;
    Noise noise;
    float *x;        // [n]: noise in, picture out
    size_t n;
    float *v;        // [n]: the last velocity; scratch of the solvers
    float *memory;   // [n]: what the solver keeps from step to step; NULL where it keeps nothing
} SamplerRun;

typedef struct Sampler {
    const char *name;
    const char *title; // as the A1111 web UI calls it, for the settings in pictures
    bool stochastic; // draws noise on the way
    bool keeps;      // has SamplerRun.memory
    bool (*step)(SamplerRun *run, int i, Error *err);
} Sampler;

const Sampler *sampler_find(const char *name); // NULL: unknown
const Sampler *sampler_at(int i);              // NULL: past the last
// Runs all steps on x in place. After each step x is checked: a NaN or infinity stops the run with
// the step named. A stochastic sampler without noise.call is an error.
bool sampler_run(const Sampler *sampler, const Schedule *schedule, float *x, size_t n,
                 Velocity velocity, Noise noise, AfterStep after, Error *err); // after.call may be NULL

#endif
