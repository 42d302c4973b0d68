// sampler.c: see sampler.h. Compile without floating-point contraction.
#include "engine/sampler.h"

#include <math.h>

// ---- parts that solvers share -------------------------------------------------------------------

static bool ask(SamplerRun *run, int i, Error *err) {
    return run->velocity.eval(run->velocity.user, run->schedule->time[i], run->x, run->v, err);
}

// Share of noise at point i; exactly 0 at the clean end.
static double sigma_at(const Schedule *s, int i) { return fabs(s->end - s->time[i]); }

// The velocity becomes the clean latent it points to.
static void to_clean(SamplerRun *run, int i) {
    float left = (float)(run->schedule->end - run->schedule->time[i]);
    for (size_t k = 0; k < run->n; k++) run->v[k] = run->x[k] + run->v[k] * left;
}

// x = a x + b clean
static void blend(float *x, double a, const float *clean, double b, size_t n) {
    float fa = (float)a, fb = (float)b;
    for (size_t k = 0; k < n; k++) {
        float kept = fa * x[k], added = fb * clean[k];
        x[k] = kept + added;
    }
}

// ---- solvers ------------------------------------------------------------------------------------

// Euler: x += (t' - t) v. The factor is rounded to f32 first, as PyTorch does with x + v * dt.
static bool step_euler(SamplerRun *run, int i, Error *err) {
    if (!ask(run, i, err)) return false;
    float dt = (float)(run->schedule->time[i + 1] - run->schedule->time[i]);
    for (size_t k = 0; k < run->n; k++) run->x[k] = run->x[k] + run->v[k] * dt;
    return true;
}

// Euler ancestral for flows, as k-diffusion's descendants have it: a step past sigma' down to
// sigma_down = sigma'^2 / sigma, and back up by fresh noise. Picture and noise have to keep the
// shares 1 - sigma' and sigma', hence the factor on x before noise is added.
static bool step_ancestral(SamplerRun *run, int i, Error *err) {
    double from = sigma_at(run->schedule, i), to = sigma_at(run->schedule, i + 1);
    if (!ask(run, i, err)) return false;
    to_clean(run, i);
    if (to == 0) {
        memcpy(run->x, run->v, run->n * sizeof *run->x);
        return true;
    }
    double down = to * (to / from), keep = down / from;
    double shrink = (1 - to) / (1 - down);
    double renoise = sqrt(MAX(to * to - down * down * shrink * shrink, 0.0));
    blend(run->x, keep, run->v, 1 - keep, run->n);
    if (!run->noise.call(run->noise.user, run->v, err)) return false;
    blend(run->x, shrink, run->v, renoise, run->n);
    return true;
}

// DPM-Solver++(2M): C. Lu et al., "DPM-Solver++", 2022, algorithm 2, in the time -log sigma, which
// is how ComfyUI runs it on flows. The first step and the step to 0 are of first order.
static bool step_dpmpp_2m(SamplerRun *run, int i, Error *err) {
    const Schedule *s = run->schedule;
    double from = sigma_at(s, i), to = sigma_at(s, i + 1), keep = to / from;
    if (!ask(run, i, err)) return false;
    to_clean(run, i);
    if (i == 0 || to == 0) {
        blend(run->x, keep, run->v, 1 - keep, run->n);
    } else {
        double h = log(from / to), before = log(sigma_at(s, i - 1) / from);
        double extra = h / (2 * before) * (1 - keep); // 1 / (2 r) of the step's weight
        blend(run->x, keep, run->v, 1 - keep + extra, run->n);
        blend(run->x, 1, run->memory, -extra, run->n);
    }
    float *last = run->memory; // this step's clean latent is kept, its place reused
    run->memory = run->v, run->v = last;
    return true;
}

static const Sampler samplers[] = {
    {"euler", "Euler", false, false, step_euler},
    {"euler_ancestral", "Euler a", true, false, step_ancestral},
    {"dpmpp_2m", "DPM++ 2M", false, true, step_dpmpp_2m},
};

const Sampler *sampler_at(int i) {
    return i >= 0 && i < (int)COUNT_OF(samplers) ? &samplers[i] : NULL;
}

const Sampler *sampler_find(const char *name) {
    for (size_t i = 0; i < COUNT_OF(samplers); i++)
        if (!strcmp(samplers[i].name, name)) return &samplers[i];
    return NULL;
}

static bool check_finite(const SamplerRun *run, int step, Error *err) {
    for (size_t k = 0; k < run->n; k++)
        if (!isfinite(run->x[k]))
            return err_failed(err, "step %d of %d: expected finite latents, found %g at element "
                              "%zu; try --precision f32", step + 1, run->schedule->steps,
                              (double)run->x[k], k);
    return true;
}

bool sampler_run(const Sampler *sampler, const Schedule *schedule, float *x, size_t n,
                 Velocity velocity, Noise noise, AfterStep after, Error *err) {
    if (sampler->stochastic && !noise.call)
        return err_failed(err, "sampler %s: expected a source of noise, found none", sampler->name);
    SamplerRun run = {.schedule = schedule, .velocity = velocity, .noise = noise,
                      .x = x, .n = n};
    void *scratch = mem_new(NULL, 1);
    run.v = MEM_ARRAY(scratch, float, n);
    run.memory = sampler->keeps ? MEM_ARRAY(scratch, float, n) : NULL;
    bool ok = true;
    for (int i = 0; i < schedule->steps && ok; i++) {
        ok = sampler->step(&run, i, err) && check_finite(&run, i, err);
        if (ok && after.call) ok = after.call(after.user, i, x, err);
    }
    mem_free(scratch);
    return ok;
}
