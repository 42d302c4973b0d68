// conform_model.c: Nano-Sora, forward, loss and every gradient, on a device and on `ref`; then the
// device against itself: replayed, with changed inputs in between, with memory shared or not,
// barriers everywhere, a poisoned arena, cut into many submissions, small buffers: all bit-equal.
#include "tests/conform_model.h"

#include <math.h>

#include "engine/plan.h"
#include "models/nano.h"

enum { BATCH = 3 };
static const NanoConfig config = {.patch = 4, .dim = 96, .depth = 2, .heads = 3, .size = 32,
                                  .classes = 10};

typedef struct Inputs {
    float *x, *target, *features;
    int32_t labels[BATCH];
    size_t pixels;
} Inputs;

// One device, one plan.
typedef struct Setup {
    void *mem;
    Device *dev;
    Store *store;
    Run *run;
    Plan *plan;
    Tensor *x, *features, *labels, *target, *v, *loss;
    Tensor **grad; // per param; NULL where it does not depend
} Setup;

// Everything a run gives back, in one row of numbers.
typedef struct Outputs {
    float *v, *grad;
    float loss;
    size_t v_count, grad_count;
} Outputs;

static Inputs inputs_new(void *mem, uint64_t seed) {
    Inputs in = {.pixels =
                     (size_t)BATCH * NANO_CHANNELS * (size_t)config.size * (size_t)config.size};
    in.x = MEM_ARRAY(mem, float, in.pixels);
    in.target = MEM_ARRAY(mem, float, in.pixels);
    in.features = MEM_ARRAY(mem, float, BATCH * NANO_FEATURES);
    for (size_t i = 0; i < in.pixels; i++) {
        in.x[i] = (float)(1.5 * case_uniform(conform_mix(seed + 2 * i)));
        in.target[i] = (float)(1.5 * case_uniform(conform_mix(seed + 2 * i + 1)));
    }
    for (int b = 0; b < BATCH; b++) {
        timestep_features(0.1 + 0.35 * b, NANO_FEATURES, in.features + b * NANO_FEATURES);
        in.labels[b] = b == 1 ? config.classes : (int32_t)(conform_mix(seed + (uint64_t)b) % 10);
    }
    return in;
}

// The published initialisation zeroes most of the model; here every weight counts.
static bool random_weights(Store *store, uint64_t seed, Error *err) {
    bool ok = true;
    for (int i = 0; i < store_count(store) && ok; i++) {
        Param *p = store_at(store, i);
        int64_t n = param_count(p), fan = p->ndim > 1 ? n / p->shape[0] : 64;
        float *w = MEM_ARRAY(NULL, float, n);
        uint64_t mine = conform_hash(seed, p->name);
        for (int64_t k = 0; k < n; k++)
            w[k] = (float)(case_uniform(conform_mix(mine + (uint64_t)k)) / sqrt((double)fan));
        ok = param_write(p, DT_F32, w, err);
        mem_free(w);
    }
    return ok;
}

static bool setup_open(Setup *s, const char *device, const DeviceOptions *options,
                       const RunOptions *run_options, DType compute, bool grad, uint64_t seed,
                       Error *err) {
    *s = (Setup){.mem = mem_new(NULL, 1)};
    s->dev = dev_open(s->mem, device, options, err);
    if (!s->dev) return false;
    s->store = store_new(s->mem, s->dev);
    NanoModel *m = nano_new(s->mem, s->store, &config);
    Graph *g = g_new(s->mem);
    const int64_t picture[4] = {BATCH, NANO_CHANNELS, config.size, config.size};
    s->x = g_input(g, "x", DT_F32, 4, picture);
    s->target = g_input(g, "target", DT_F32, 4, picture);
    s->features = g_input(g, "features", DT_F32, 2, (const int64_t[]){BATCH, NANO_FEATURES});
    s->labels = g_input(g, "labels", DT_I32, 1, (const int64_t[]){BATCH});
    int params = store_count(s->store);
    for (int i = 0; i < params; i++) store_at(s->store, i)->train = grad;
    s->v = g_output(g, "v", nano_forward(m, g, s->x, s->features, s->labels, compute));
    s->loss = g_output(g, "loss", g_mse(s->v, s->target));
    s->grad = MEM_ARRAY(s->mem, Tensor *, params);
    if (grad) {
        g_backward(g, s->loss, NULL);
        for (int i = 0; i < params; i++) {
            Param *p = store_at(s->store, i);
            Tensor *t = g_param(g, p)->grad;
            if (t) s->grad[i] = g_output(g, p->name, t);
        }
    }
    s->run = run_new(s->mem, s->dev, run_options);
    run_add_store(s->run, s->store);
    s->plan = run_add_plan(s->run, g, "nano", err);
    return s->plan && run_prepare(s->run, err) && random_weights(s->store, seed, err);
}

static void setup_close(Setup *s) {
    if (s->run) run_free(s->run);
    if (s->store) store_free(s->store);
    if (s->dev) dev_close(s->dev);
    mem_free(s->mem);
}

static bool setup_run(Setup *s, const Inputs *in, void *mem, Outputs *out, Error *err) {
    *out = (Outputs){.v_count = in->pixels};
    out->v = MEM_ARRAY(mem, float, in->pixels);
    bool ok = plan_write(s->plan, s->x, DT_F32, in->x, err) &&
              plan_write(s->plan, s->target, DT_F32, in->target, err) &&
              plan_write(s->plan, s->features, DT_F32, in->features, err) &&
              plan_write(s->plan, s->labels, DT_I32, in->labels, err) &&
              plan_run(s->plan, NULL, err) && plan_read(s->plan, s->v, DT_F32, out->v, err) &&
              plan_read(s->plan, s->loss, DT_F32, &out->loss, err);
    size_t total = 0, at = 0;
    for (int i = 0; i < store_count(s->store); i++)
        if (s->grad[i]) total += (size_t)param_count(store_at(s->store, i));
    out->grad = MEM_ARRAY(mem, float, total + 1);
    out->grad_count = total;
    for (int i = 0; i < store_count(s->store) && ok; i++) {
        if (!s->grad[i]) continue;
        ok = plan_read(s->plan, s->grad[i], DT_F32, out->grad + at, err);
        at += (size_t)param_count(store_at(s->store, i));
    }
    return ok;
}

// ---- results ------------------------------------------------------------------------------------
typedef struct Model {
    const ConformOptions *o;
    ConformTotals *totals;
    const char *device;
    uint64_t seed;
} Model;

static void report(Model *m, const char *name, const char *types, ConformResult *r) {
    r->device = m->device;
    r->op = "nano";
    r->name = name;
    r->row = "";
    r->types = types;
    if (r->status == CONFORM_OK) m->totals->passed++;
    if (r->status == CONFORM_FAIL) m->totals->failed++;
    if (r->status == CONFORM_SKIP) m->totals->skipped++;
    if (m->o->report) m->o->report(m->o->user, r);
}

static void compare(Model *m, const char *name, const char *types, const float *ref,
                    const float *got, size_t n, double limit) {
    ConformResult r = {.status = CONFORM_OK, .limit = limit};
    double error2 = 0, ref2 = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - ref[i];
        if (!(fabs(d) <= r.max_error)) r.max_error = fabs(d);
        error2 += d * d;
        ref2 += (double)ref[i] * ref[i];
    }
    r.nmse = ref2 > 0 ? error2 / ref2 : error2;
    r.max_error /= sqrt(ref2 / (double)n) > 0 ? sqrt(ref2 / (double)n) : 1; // of the typical value
    if (!(r.max_error <= limit)) {
        r.status = CONFORM_FAIL;
        snprintf(r.reason, sizeof r.reason,
                 "expected differences up to %.2g of the typical value, found %.3g", limit,
                 r.max_error);
    }
    report(m, name, types, &r);
}

static void compare_all(Model *m, const char *types, const Setup *s, const Outputs *ref,
                        const Outputs *got, double limit) {
    char name[96];
    snprintf(name, sizeof name, "forward");
    compare(m, name, types, ref->v, got->v, ref->v_count, limit);
    compare(m, "loss", types, &ref->loss, &got->loss, 1, limit);
    size_t at = 0;
    for (int i = 0; i < store_count(s->store); i++) {
        if (!s->grad[i]) continue;
        const Param *p = store_at(s->store, i);
        size_t n = (size_t)param_count(p);
        snprintf(name, sizeof name, "gradient %s", p->name);
        compare(m, name, types, ref->grad + at, got->grad + at, n, 4 * limit);
        at += n;
    }
}

static void same_bits(Model *m, const char *name, const char *types, const Outputs *a,
                      const Outputs *b) {
    ConformResult r = {.status = CONFORM_OK};
    bool same = !memcmp(a->v, b->v, a->v_count * sizeof *a->v) && !memcmp(&a->loss, &b->loss, 4) &&
                !memcmp(a->grad, b->grad, a->grad_count * sizeof *a->grad);
    if (!same) {
        r.status = CONFORM_FAIL;
        snprintf(r.reason, sizeof r.reason,
                 "expected the same bits as the plain run, found others");
    }
    report(m, name, types, &r);
}

// ---- cases --------------------------------------------------------------------------------------
static const struct { const char *name; DType compute; bool grad; double limit; } kinds[] = {
    // Limits: f32 sums of some hundred terms, eight layers deep; bf16 and f16 activations inside
    // blocks differ by single roundings of 2^-8 and 2^-11.
    {"f32", DT_F32, true, 2e-5},
    {"bf16", DT_BF16, true, 0.02},
    {"f16", DT_F16, true, 0.01},
};

static bool against_ref(Model *m, size_t kind, void *mem, const Inputs *in, Outputs *plain,
                        Error *err) {
    Setup ref, dev;
    Outputs want;
    DeviceOptions one = {.threads = m->o->options.threads};
    bool ok =
        setup_open(&ref, "ref", &one, NULL, kinds[kind].compute, kinds[kind].grad, m->seed, err) &&
        setup_run(&ref, in, mem, &want, err);
    ok = ok && setup_open(&dev, m->o->device, &m->o->options, NULL, kinds[kind].compute,
                          kinds[kind].grad, m->seed, err);
    if (ok) {
        m->device = mem_strdup(mem, dev_info(dev.dev)->id);
        ok = setup_run(&dev, in, mem, plain, err);
        if (ok) compare_all(m, kinds[kind].name, &dev, &want, plain, kinds[kind].limit);
        // Replays: other inputs in between must leave nothing behind.
        Inputs other = inputs_new(mem, m->seed + 77);
        Outputs again;
        ok = ok && setup_run(&dev, in, mem, &again, err);
        if (ok) same_bits(m, "replayed", kinds[kind].name, plain, &again);
        ok = ok && setup_run(&dev, &other, mem, &again, err) &&
             setup_run(&dev, in, mem, &again, err);
        if (ok) same_bits(m, "replayed after other inputs", kinds[kind].name, plain, &again);
        ok = ok && run_poison(dev.run, err) && setup_run(&dev, in, mem, &again, err);
        if (ok) same_bits(m, "poisoned arena", kinds[kind].name, plain, &again);
        setup_close(&dev);
    }
    setup_close(&ref);
    return ok;
}

static bool against_itself(Model *m, size_t kind, void *mem, const Inputs *in, const Outputs *plain,
                           Error *err) {
    static const struct {
        const char *name;
        RunOptions run;
        double max_submit;
        uint64_t max_buffer;
    } ways[] = {
        {"memory not shared", {.no_alias = true}, 0, 0},
        {"barriers everywhere", {.all_barriers = true}, 0, 0},
        {"cut into submissions", {0}, 1e-5, 0},
        {"small buffers", {0}, 0, 4 << 20},
    };
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        DeviceOptions options = m->o->options;
        if (ways[i].max_submit > 0) options.max_submit = ways[i].max_submit;
        if (ways[i].max_buffer) options.max_buffer = ways[i].max_buffer;
        Setup s;
        Outputs out;
        if (conform_cancelled(m->o, err)) return false;
        bool ok = setup_open(&s, m->o->device, &options, &ways[i].run, kinds[kind].compute,
                             kinds[kind].grad, m->seed, err) &&
                  run_poison(s.run, err) && setup_run(&s, in, mem, &out, err);
        if (ok) same_bits(m, ways[i].name, kinds[kind].name, plain, &out);
        setup_close(&s);
        if (!ok) return false;
    }
    return true;
}

bool conform_model(const ConformOptions *o, const char *model, ConformTotals *totals, Error *err) {
    *totals = (ConformTotals){0};
    if (strcmp(model, "nano"))
        return err_set(err, STATUS_USAGE, "--model: expected nano, found '%s'", model);
    ConformOptions own = *o;
    if (!own.device) own.device = "cpu";
    void *mem = mem_new(NULL, 1);
    Model m = {&own, totals, own.device, o->seed ? o->seed : CONFORM_SEED};
    Inputs in = inputs_new(mem, m.seed);
    bool ok = true;
    for (size_t kind = 0; kind < COUNT_OF(kinds) && ok; kind++) {
        if (o->type && strcmp(o->type, dtype_name(kinds[kind].compute))) continue;
        Outputs plain;
        ok = against_ref(&m, kind, mem, &in, &plain, err) &&
             against_itself(&m, kind, mem, &in, &plain, err);
    }
    mem_free(mem);
    return ok;
}
