// sampler.c: see sampler.h.
#include "engine/sampler.h"

#include <math.h>

// Euler: x += (t' - t) v. The factor is rounded to f32 first, as PyTorch does with x + v * dt.
static bool step_euler(SamplerRun *run, int i, Error *err) {
    double t = run->schedule->time[i];
    if (!run->velocity.eval(run->velocity.user, t, run->x, run->v, err)) return false;
    float dt = (float)(run->schedule->time[i + 1] - t);
    for (size_t k = 0; k < run->n; k++) run->x[k] = run->x[k] + run->v[k] * dt;
    return true;
}

static const Sampler samplers[] = {
    {"euler", "one call of the model per step, first order", 1, step_euler},
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
            return err_failed(err, "step %d of %d: expected finite latents, found %g at element %zu; "
                              "try --precision f32", step + 1, run->schedule->steps,
                              (double)run->x[k], k);
    return true;
}

bool sampler_run(const Sampler *sampler, const Schedule *schedule, float *x, size_t n,
                 Velocity velocity, AfterStep after, Error *err) {
    SamplerRun run = {.schedule = schedule, .velocity = velocity, .after = after, .x = x, .n = n,
                      .v = MEM_ARRAY(NULL, float, n)};
    bool ok = true;
    for (int i = 0; i < schedule->steps && ok; i++) {
        ok = sampler->step(&run, i, err) && check_finite(&run, i, err);
        if (ok && after.call) ok = after.call(after.user, i, x, err);
    }
    mem_free(run.v);
    return ok;
}
