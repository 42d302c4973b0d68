// Solvers, schedules and guidance (engine/sampler.h, schedule.h, guidance.h) against what they are
// on paper, without a model, and against recorded numbers (tools/ref/make_sampling_golden.py,
// make_sampler_golden.py).
#include "engine/guidance.h"
#include "engine/sampler.h"

#include "tests/golden.h"

#include <stdlib.h>

enum { N = 3 };

typedef struct Field {
    int calls, stop_at, bad_step, after_calls, after_stop;
    float bad_value;
    double last_t;
} Field;

// dx/dt = t - x, whose solution is x(t) = (x0 + 1) e^-t + t - 1.
static bool decay(void *user, double t, const float *x, float *v, Error *err) {
    Field *f = user;
    if (f->calls++ == f->stop_at) return err_failed(err, "model: expected to run, found a test");
    f->last_t = t;
    for (int i = 0; i < N; i++) v[i] = (float)(t - x[i]);
    return true;
}

static bool constant(void *user, double t, const float *x, float *v, Error *err) {
    Field *f = user;
    (void)t, (void)x, (void)err;
    for (int i = 0; i < N; i++) v[i] = (float)(i + 1) * 0.5f;
    if (f->calls++ == f->bad_step) v[1] = f->bad_value;
    return true;
}

static bool count_after(void *user, int step, const float *x, Error *err) {
    Field *f = user;
    (void)x;
    assert_int_equal(step, f->after_calls);
    return f->after_calls++ != f->after_stop || err_set(err, STATUS_CANCELLED, "stopped");
}

static const Field quiet = {.stop_at = -1, .bad_step = -1, .after_stop = -1};

static const Noise silent = {NULL, NULL};

static double run_decay(int steps, double x0) {
    Error err = {0};
    Field f = quiet;
    Schedule *s = schedule_new(NULL, schedule_find("uniform"), steps, &err);
    assert_non_null(s);
    float x[N] = {(float)x0, (float)x0, (float)x0};
    assert_true(sampler_run(sampler_find("euler"), s, x, N, (Velocity){decay, &f}, silent,
                            (AfterStep){NULL, NULL}, &err));
    assert_int_equal(f.calls, steps);
    assert_true(fabs(f.last_t - (double)(steps - 1) / steps) < 1e-15);
    mem_free(s);
    return x[0];
}

// Euler's own recurrence in double, and the error against the true solution halves with the step.
static void euler_converges(void **state) {
    (void)state;
    double x0 = 1.5, truth = (x0 + 1) * exp(-1.0), last = 0;
    for (int steps = 8; steps <= 128; steps *= 2) {
        double x = x0, h = 1.0 / steps;
        for (int i = 0; i < steps; i++) x += h * (i * h - x);
        double got = run_decay(steps, x0), error = fabs(got - truth);
        assert_true(fabs(got - x) < 2e-6);
        if (last > 0) assert_true(error / last > 0.45 && error / last < 0.55);
        last = error;
    }
}

// A constant velocity (perfect rectified flow) arrives exactly, whatever the number of steps.
static void straight_flow_is_exact(void **state) {
    (void)state;
    for (int steps = 1; steps <= 64; steps *= 4) { // powers of two: exact in f32
        Error err = {0};
        Field f = quiet;
        Schedule *s = schedule_new(NULL, schedule_at(0), steps, &err);
        float x[N] = {0.25f, -1, 2};
        assert_true(sampler_run(sampler_at(0), s, x, N, (Velocity){constant, &f}, silent,
                                (AfterStep){count_after, &f}, &err));
        assert_int_equal(f.after_calls, steps);
        const float want[N] = {0.75f, 0, 3.5f};
        assert_memory_equal(x, want, sizeof x);
        mem_free(s);
    }
}

static void bad_numbers_stop(void **state) {
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < COUNT_OF(values); k++) {
        Error err = {0};
        Field f = quiet;
        f.bad_step = 2, f.bad_value = values[k];
        Schedule *s = schedule_new(NULL, schedule_at(0), 5, &err);
        float x[N] = {0};
        assert_false(sampler_run(sampler_at(0), s, x, N, (Velocity){constant, &f}, silent,
                                 (AfterStep){count_after, &f}, &err));
        assert_int_equal(err.status, STATUS_FAILED);
        assert_non_null(strstr(err.text, "step 3 of 5"));
        assert_non_null(strstr(err.text, "element 1"));
        assert_int_equal(f.calls, 3);
        assert_int_equal(f.after_calls, 2); // nobody is shown the bad step
        mem_free(s);
    }
}

static void callbacks_stop(void **state) {
    (void)state;
    Error err = {0};
    Schedule *s = schedule_new(NULL, schedule_at(0), 5, &err);
    float x[N] = {0};
    Field f = quiet;
    f.after_stop = 1;
    assert_false(sampler_run(sampler_at(0), s, x, N, (Velocity){decay, &f}, silent,
                             (AfterStep){count_after, &f}, &err));
    assert_int_equal(err.status, STATUS_CANCELLED);
    assert_int_equal(f.calls, 2);
    f = quiet;
    f.stop_at = 3;
    assert_false(sampler_run(sampler_at(0), s, x, N, (Velocity){decay, &f}, silent,
                             (AfterStep){NULL, NULL}, &err));
    assert_non_null(strstr(err.text, "found a test"));
    mem_free(s);
}

static void schedules(void **state) {
    (void)state;
    Error err = {0};
    assert_null(schedule_find("karras-of-the-future"));
    assert_null(sampler_find(""));
    for (int i = 0; schedule_at(i); i++)
        assert_ptr_equal(schedule_find(schedule_at(i)->name), schedule_at(i));
    for (int i = 0; sampler_at(i); i++)
        assert_ptr_equal(sampler_find(sampler_at(i)->name), sampler_at(i));
    const int wrong[] = {0, -1, SCHEDULE_MAX_STEPS + 1};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        assert_null(schedule_new(NULL, schedule_at(0), wrong[i], &err));
        assert_non_null(strstr(err.text, "1 to 10000"));
    }
    for (int steps = 1; steps <= SCHEDULE_MAX_STEPS; steps = steps * 3 + 1) {
        Schedule *s = schedule_new(NULL, schedule_at(0), steps, &err);
        assert_int_equal(s->steps, steps);
        assert_true(s->time[0] == 0 && s->time[steps] == 1);
        for (int i = 0; i < steps; i++)
            assert_true(fabs(s->time[i + 1] - s->time[i] - 1.0 / steps) < 1e-15);
        mem_free(s);
    }
}

// ---- recorded trajectories ----------------------------------------------------------------------

enum { TOY = 64 };

typedef struct Toy {
    const float *offset, *noises, *want; // [n], [draws, n], [steps, n]
    int n, draws, steps;
    bool rising; // the same field in Nano-Sora's convention
    double worst;
} Toy;

// The posterior mean of a Gaussian mixture under x = (1 - sigma) x0 + sigma noise; in double.
static double toy_clean(double x, double sigma, double offset) {
    static const double means[] = {-1.1, 0.2, 1.4}, stds[] = {0.35, 0.2, 0.5},
                        weights[] = {0.5, 0.3, 0.2};
    double a = 1 - sigma, sum = 0, mean = 0;
    for (int k = 0; k < 3; k++) {
        double var = a * a * stds[k] * stds[k] + sigma * sigma, e = x - a * (offset + means[k]);
        double r = weights[k] * exp(-e * e / (2 * var)) / sqrt(var);
        sum += r;
        mean += r * (means[k] + a * stds[k] * stds[k] / var * e);
    }
    return offset + mean / sum;
}

static bool toy_velocity(void *user, double t, const float *x, float *v, Error *err) {
    const Toy *toy = user;
    (void)err;
    double sigma = toy->rising ? 1 - t : t;
    for (int i = 0; i < toy->n; i++) {
        double d = (x[i] - toy_clean((double)x[i], sigma, (double)toy->offset[i])) / sigma;
        v[i] = (float)(toy->rising ? -d : d);
    }
    return true;
}

static bool toy_noise(void *user, float *out, Error *err) {
    Toy *toy = user;
    (void)err;
    memcpy(out, toy->noises + toy->draws++ * toy->n, (size_t)toy->n * sizeof *out);
    return true;
}

static bool toy_compare(void *user, int step, const float *x, Error *err) {
    Toy *toy = user;
    (void)err;
    for (int i = 0; i < toy->n; i++)
        toy->worst = MAX(toy->worst, fabs((double)x[i] - (double)toy->want[step * toy->n + i]));
    toy->steps++;
    return true;
}

// Latents after every step, in both conventions of time.
static void trajectories_follow_the_formulas(void **state) {
    (void)state;
    static const struct { const char *name; FlowShift shift; int tokens, steps; } runs[] = {
        {"dev", FLOW_SHIFT_FLUX_DEV, 4096, 5},
        {"dev", FLOW_SHIFT_FLUX_DEV, 4096, 20},
        {"schnell", FLOW_SHIFT_FLUX_SCHNELL, 0, 4},
    };
    Error err = {0};
    StFile *f = st_open(NULL, "tests/golden/sampling.safetensors", &err);
    CHECK(f);
    for (size_t k = 0; k < COUNT_OF(runs) * 2; k++) {
        Schedule *s = schedule_flow(f, NULL, &runs[k / 2].shift, runs[k / 2].tokens,
                                    runs[k / 2].steps, &err);
        CHECK(s);
        bool rising = k % 2;
        for (int i = 0; rising && i <= s->steps; i++) s->time[i] = 1 - s->time[i];
        s->end = rising;
        for (int i = 0; sampler_at(i); i++) {
            const Sampler *sampler = sampler_at(i);
            char *key = mem_printf(s, "toy.%s.%s.%d.%d", sampler->name, runs[k / 2].name,
                                   runs[k / 2].tokens, runs[k / 2].steps);
            Toy toy = {.offset = golden(f, "toy.offset", NULL), .n = TOY, .rising = rising,
                       .noises = golden(f, "toy.noises", NULL), .want = golden(f, key, NULL)};
            float x[TOY];
            memcpy(x, golden(f, "toy.noise0", NULL), sizeof x); // sigma_0 is 1
            CHECK(sampler_run(sampler, s, x, TOY, (Velocity){toy_velocity, &toy},
                              (Noise){toy_noise, &toy}, (AfterStep){toy_compare, &toy}, &err));
            assert_int_equal(toy.steps, s->steps);
            assert_int_equal(toy.draws, sampler->stochastic ? s->steps - 1 : 0);
            if (!(toy.worst < 5e-6)) fail_msg("%s: off by %g", key, toy.worst);
        }
    }
    st_close(f);
}

// The results of ComfyUI's own samplers, on every schedule that it has for flows.
enum { WIDTH = 32 };

static const char *const recorded_samplers[] = {"euler", "euler_ancestral", "dpmpp_2m"};

// Each call of the model has to be with the recorded x, where there is one.
static bool asked_velocity(void *user, double t, const float *x, float *v, Error *err) {
    Toy *toy = user;
    for (int i = 0; toy->want && i < toy->n; i++)
        toy->worst = MAX(toy->worst, fabs((double)x[i] - (double)toy->want[toy->steps * toy->n + i]));
    toy->steps++;
    return toy_velocity(user, t, x, v, err);
}

static void run_recorded(StFile *f, const char *schedule, int steps, size_t k) {
    Error err = {0};
    void *scratch = mem_new(NULL, 1);
    const char *sampler = recorded_samplers[k];
    size_t count;
    const float *given = golden(f, mem_printf(scratch, "sigmas.%s.%d", schedule, steps), &count);
    double sigmas[32];
    assert_true(count <= COUNT_OF(sigmas));
    for (size_t i = 0; i < count; i++) sigmas[i] = (double)given[i];
    Schedule *s = schedule_given(scratch, sigmas, (int)count, &err);
    CHECK(s);
    const float *noise = golden(f, "noise0", NULL);
    Toy toy = {.offset = golden(f, "offset", NULL), .noises = golden(f, "noises", NULL), .n = WIDTH};
    if (!strcmp(schedule, "simple"))
        toy.want = golden(f, mem_printf(scratch, "asked.%s.%d", sampler, steps), NULL);
    float x[WIDTH];
    for (int i = 0; i < WIDTH; i++) x[i] = given[0] * noise[i];
    CHECK(sampler_run(sampler_find(sampler), s, x, WIDTH, (Velocity){asked_velocity, &toy},
                      (Noise){toy_noise, &toy}, (AfterStep){NULL, NULL}, &err));
    assert_int_equal(toy.steps, s->steps);
    assert_int_equal(toy.draws, k == 1 ? s->steps - 1 : 0);
    char *key = mem_printf(scratch, "final.%s.%d", schedule, steps);
    const float *want = golden(f, key, NULL) + k * WIDTH;
    for (int i = 0; i < WIDTH; i++)
        toy.worst = MAX(toy.worst, fabs((double)x[i] - (double)want[i]));
    if (!(toy.worst < 5e-6)) fail_msg("%s of %s: off by %g", key, sampler, toy.worst);
    mem_free(scratch);
}

static void samplers_are_those_of_comfyui(void **state) {
    (void)state;
    static const char *const schedules_there[] = {
        "simple", "normal", "sgm_uniform", "ddim_uniform", "karras", "exponential", "beta",
        "linear_quadratic", "kl_optimal"};
    Error err = {0};
    StFile *f = st_open(NULL, "tests/golden/samplers.safetensors", &err);
    CHECK(f);
    for (int steps = 5; steps <= 20; steps *= 2) {
        for (size_t i = 0; i < COUNT_OF(schedules_there); i++)
            for (size_t k = 0; k < COUNT_OF(recorded_samplers); k++)
                run_recorded(f, schedules_there[i], steps, k);
        // "simple" of a flow with shift 3 is the uniform schedule here.
        Schedule *s = schedule_flow(f, NULL, &FLOW_SHIFT_FIXED(3), 0, steps, &err);
        CHECK(s);
        size_t count;
        const float *sigmas = golden(f, mem_printf(s, "sigmas.simple.%d", steps), &count);
        assert_int_equal(count, steps + 1);
        for (int i = 0; i <= steps; i++) assert_true(fabs(s->time[i] - (double)sigmas[i]) < 2e-7);
    }
    st_close(f);
}

static bool recorded_velocity(void *user, double t, const float *x, float *v, Error *err) {
    const float **next = user;
    (void)t, (void)x, (void)err;
    memcpy(v, *next, TOY * sizeof *v);
    *next += TOY;
    return true;
}

// The very floats of diffusers' scheduler.step.
static void euler_is_that_of_diffusers(void **state) {
    (void)state;
    Error err = {0};
    StFile *f = st_open(NULL, "tests/golden/sampling.safetensors", &err);
    CHECK(f);
    Schedule *s = schedule_flow(f, NULL, &FLOW_SHIFT_FLUX_DEV, 1024, 5, &err);
    const float *v = golden(f, "euler.v", NULL);
    float *x = golden(f, "euler.x", NULL);
    CHECK(sampler_run(sampler_find("euler"), s, x, TOY, (Velocity){recorded_velocity, &v}, silent,
                      (AfterStep){NULL, NULL}, &err));
    expect_near("euler.out", x, golden(f, "euler.out", NULL), TOY, 0);
    st_close(f);
}

static void stochastic_needs_noise(void **state) {
    (void)state;
    Error err = {0};
    Schedule *s = schedule_new(NULL, schedule_at(0), 5, &err);
    Field f = quiet;
    float x[N] = {0};
    assert_false(sampler_run(sampler_find("euler_ancestral"), s, x, N, (Velocity){decay, &f},
                             silent, (AfterStep){NULL, NULL}, &err));
    assert_non_null(strstr(err.text, "source of noise"));
    assert_int_equal(f.calls, 0);
    mem_free(s);
}

static void guidance(void **state) {
    (void)state;
    const float cond[4] = {1, -2, 0.5f, 4}, uncond[4] = {0.5f, 2, 0.5f, -4};
    const struct { float scale, want[4]; } cases[] = {
        {0, {0.5f, 2, 0.5f, -4}}, {1, {1, -2, 0.5f, 4}},        // neither, the condition alone
        {3, {2, -10, 0.5f, 20}},  {-1, {0, 6, 0.5f, -12}},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        float out[4], a[4], b[4];
        guidance_cfg(out, cond, uncond, cases[i].scale, 4);
        assert_memory_equal(out, cases[i].want, sizeof out);
        memcpy(a, cond, sizeof a), memcpy(b, uncond, sizeof b);
        guidance_cfg(a, a, uncond, cases[i].scale, 4); // in place
        guidance_cfg(b, cond, b, cases[i].scale, 4);
        assert_memory_equal(a, cases[i].want, sizeof a);
        assert_memory_equal(b, cases[i].want, sizeof b);
    }
    // Rounded as PyTorch does, product and sum apart (no fused multiply-add).
    const float c = 0.1f, u = 0.7f, s = 3.3f;
    volatile float difference = c - u, product = s * difference, sum = u + product;
    assert_true(fmaf(s, difference, u) != sum); // these numbers tell the two apart
    float out;
    guidance_cfg(&out, &c, &u, s, 1);
    assert_true(out == sum);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(euler_converges),   cmocka_unit_test(straight_flow_is_exact),
        cmocka_unit_test(bad_numbers_stop),  cmocka_unit_test(callbacks_stop),
        cmocka_unit_test(schedules),         cmocka_unit_test(guidance),
        cmocka_unit_test(trajectories_follow_the_formulas),
        cmocka_unit_test(samplers_are_those_of_comfyui),
        cmocka_unit_test(euler_is_that_of_diffusers),
        cmocka_unit_test(stochastic_needs_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
