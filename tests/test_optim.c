// What each training step's AdamW is told (engine/optim.h): rates, bias corrections, averaging and
// the loss scale, against PyTorch's numbers (tools/ref/optim_numbers.py).
#include "engine/graph.h"
#include "engine/optim.h"
#include "engine/plan.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include "tests/check.h"

static void near(double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance)) fail_msg("expected %.12g, found %.12g", want, got);
}

static void learning_rate(void **state) {
    (void)state;
    OptimOptions o = optim_default();
    near(optim_lr(&o, 1), 3e-4, 0);
    o.warmup = 4;
    const double warm[] = {0.25, 0.5, 0.75, 1, 1, 1};
    for (int i = 0; i < 6; i++) near(optim_lr(&o, i + 1), 3e-4 * warm[i], 1e-18);
    o.decay_steps = 104; // 100 steps of a cosine from the end of the warm-up
    o.lr_end = 0.1;
    near(optim_lr(&o, 4), 3e-4, 1e-18);
    near(optim_lr(&o, 54), 3e-4 * 0.55, 1e-12); // half way: the mean of both ends
    near(optim_lr(&o, 29), 3e-4 * (0.1 + 0.9 * 0.853553391), 1e-12);
    near(optim_lr(&o, 104), 3e-5, 1e-15);
    near(optim_lr(&o, 1000), 3e-5, 1e-15); // and stays
    for (int i = 5; i <= 104; i++) assert_true(optim_lr(&o, i) < optim_lr(&o, i - 1));
    o.decay_steps = 4; // nothing left to fall over
    near(optim_lr(&o, 50), 3e-4, 0);
}

static void averaging(void **state) {
    (void)state;
    OptimOptions o = optim_default();
    o.ema_decay = 0.99;
    near(optim_ema_decay(&o, 1), 2.0 / 11, 1e-15);
    near(optim_ema_decay(&o, 90), 0.91, 1e-15);
    near(optim_ema_decay(&o, 890), 0.99, 1e-15);
    near(optim_ema_decay(&o, 100000), 0.99, 0);
    o.ema_decay = 0;
    near(optim_ema_decay(&o, 5), 0, 0);
}

static void hyper_numbers(void **state) {
    (void)state;
    OptimOptions o = optim_default();
    o.warmup = 10;
    o.weight_decay = 0.01;
    float h[ADAMW_HYPER_COUNT];
    optim_hyper(&o, 5, 2, 1024, h); // the fifth step, two of four before it were skipped
    const double want[] = {1.5e-4,          0.9,        0.999,   1e-8, 0.01, 1 - 0.729,
                           1 - 0.997002999, 1.0 / 1024, 6.0 / 15};
    for (size_t i = 0; i < COUNT_OF(want); i++) near(h[i], want[i], 1e-7 * want[i]);
}

typedef struct Bench {
    Device *dev;
    Store *store;
    Run *run;
    Plan *plan;
    Param *p, *m, *v, *ema;
    Tensor *g, *hyper, *found;
} Bench;

static Bench *bench_new(void) {
    Error err = {0};
    Bench *b = MEM_NEW(NULL, Bench);
    b->dev = dev_open(b, "ref", NULL, &err);
    CHECK(b->dev);
    b->store = store_new(b, b->dev);
    const int64_t n[] = {4};
    b->p = store_add(b->store, "p", DT_F32, 1, n);
    b->m = store_add(b->store, "m", DT_F32, 1, n);
    b->v = store_add(b->store, "v", DT_F32, 1, n);
    b->ema = store_add(b->store, "ema", DT_F32, 1, n);
    Graph *g = g_new(b);
    b->g = g_input(g, "g", DT_F32, DIMS(4));
    b->hyper = g_input(g, "hyper", DT_F32, DIMS(ADAMW_HYPER_COUNT));
    b->found = g_input(g, "found", DT_F32, DIMS(1));
    Tensor *p = g_param(g, b->p), *m = g_param(g, b->m), *v = g_param(g, b->v),
           *e = g_param(g, b->ema);
    g_adamw(g, ADAMW(.p = p, .m = m, .v = v, .ema = e, .g = b->g, .hyper = b->hyper,
                     .found_inf = b->found));
    b->run = run_new(b, b->dev, NULL);
    run_add_store(b->run, b->store);
    b->plan = run_add_plan(b->run, g, "adamw", &err);
    CHECK(b->plan && run_prepare(b->run, &err));
    CHECK(param_zero(b->m, &err) && param_zero(b->v, &err));
    return b;
}

static void bench_free(Bench *b) {
    run_free(b->run);
    store_free(b->store);
    dev_close(b->dev);
    mem_free(b);
}

static void bench_step(Bench *b, const float g[4], const OptimOptions *o, int64_t step,
                       int64_t updates, double scale, float found) {
    Error err = {0};
    float hyper[ADAMW_HYPER_COUNT], scaled[4];
    optim_hyper(o, step, updates, scale, hyper);
    for (int i = 0; i < 4; i++) scaled[i] = g[i] * (float)scale;
    CHECK(plan_write(b->plan, b->g, DT_F32, scaled, &err));
    CHECK(plan_write(b->plan, b->hyper, DT_F32, hyper, &err));
    CHECK(plan_write(b->plan, b->found, DT_F32, &found, &err));
    CHECK(plan_run(b->plan, NULL, &err));
}

// Four steps as torch.optim.AdamW in float64, under a loss scale, with a skipped step between that
// must leave no trace.
static void adamw_steps(void **state) {
    (void)state;
    static const float gradients[4][4] = {
        {0.5f, -1, 0.25f, 2}, {0.125f, 1, -0.5f, -2}, {-1, 0, 0.75f, 1}, {0.25f, 0.5f, 0.5f, 0.5f}};
    static const double want[4][4] = {
        {0.989000000, -1.988000000, 0.489500000, -0.010000000},
        {0.970410050, -1.985076632, 0.495843071, -0.008927368},
        {0.975719895, -1.980341933, 0.484058309, -0.014142352},
        {0.975581891, -1.981161128, 0.466945500, -0.021204470}};
    const float first[4] = {1, -2, 0.5f, 0}, broken[4] = {INFINITY, 1, NAN, 0};
    OptimOptions o = optim_default();
    o.lr = 3e-2, o.weight_decay = 0.1, o.warmup = 3, o.ema_decay = 0.5;
    Error err = {0};
    Bench *b = bench_new();
    CHECK(param_write(b->p, DT_F32, first, &err) && param_write(b->ema, DT_F32, first, &err));
    float p[4], before[4], ema[4];
    double average[4] = {1, -2, 0.5, 0};
    for (int k = 0; k < 4; k++) {
        bench_step(b, gradients[k], &o, k + 1, k, 256, 0);
        CHECK(param_read(b->p, DT_F32, p, &err) && param_read(b->ema, DT_F32, ema, &err));
        double decay = fmin(0.5, (2.0 + k) / (11.0 + k));
        for (int i = 0; i < 4; i++) {
            near(p[i], want[k][i], 1e-6);
            average[i] = decay * average[i] + (1 - decay) * want[k][i];
            near(ema[i], average[i], 1e-6);
        }
        bench_step(b, broken, &o, k + 2, k + 1, 256, 1);
        CHECK(param_read(b->p, DT_F32, before, &err));
        assert_memory_equal(p, before, sizeof p);
        CHECK(param_read(b->ema, DT_F32, before, &err));
        assert_memory_equal(ema, before, sizeof ema);
    }
    bench_free(b);
}

// torch.amp.GradScaler with a growth interval of three.
static void loss_scale(void **state) {
    (void)state;
    static const int bad[] = {0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0};
    static const double want[] = {65536, 65536, 131072, 131072, 65536, 65536, 65536, 32768, 16384,
                                  16384, 16384, 32768, 32768, 32768, 65536, 32768, 32768};
    GradScaler s = scaler_new(true);
    assert_true(s.scale == 65536 && s.interval == 2000 && s.growth == 2 && s.backoff == 0.5);
    s.interval = 3;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        scaler_update(&s, bad[i]);
        if (s.scale != want[i]) fail_msg("step %zu: expected %g, found %g", i, want[i], s.scale);
    }
    assert_int_equal(s.skipped, 4);
    s.scale = ldexp(1, 127); // the largest that float32 holds stays
    s.interval = 1, s.good = 0;
    scaler_update(&s, false);
    assert_true(s.scale == ldexp(1, 127) && s.good == 0);

    GradScaler off = scaler_new(false);
    for (int i = 0; i < 5000; i++) scaler_update(&off, false);
    assert_true(off.scale == 1 && off.skipped == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learning_rate), cmocka_unit_test(averaging),
        cmocka_unit_test(hyper_numbers), cmocka_unit_test(adamw_steps),
        cmocka_unit_test(loss_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
