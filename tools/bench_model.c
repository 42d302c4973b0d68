// bench_model.c: `kiln bench --model nano`: one forward pass, and forward with gradients.
#include "tools/bench.h"

#include "backend/os.h"
#include "engine/plan.h"
#include "models/nano.h"

#include <stdlib.h>

enum { RUNS = 5 };

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool write_inputs(Plan *plan, Tensor *const *in, int count, Error *err) {
    for (int i = 0; i < count; i++) {
        int64_t n = 1;
        for (int d = 0; d < in[i]->ndim; d++) n *= in[i]->shape[d];
        void *data = mem_new(NULL, (size_t)n * 4);
        for (int64_t k = 0; k < n; k++) {
            if (in[i]->dtype == DT_I32) ((int32_t *)data)[k] = (int32_t)(k % 10);
            else ((float *)data)[k] = (float)case_uniform(conform_mix((uint64_t)k));
        }
        bool ok = plan_write(plan, in[i], in[i]->dtype, data, err);
        mem_free(data);
        if (!ok) return false;
    }
    return true;
}

// `gradients`: the loss and d loss / d each weight too.
static bool measure(Bench *b, int64_t batch, DType type, bool gradients, BenchResult *r,
                    Error *err) {
    void *mem = mem_new(NULL, 1);
    NanoConfig config = nano_default();
    Store *store = store_new(mem, b->dev);
    NanoModel *m = nano_new(mem, store, &config);
    Graph *g = g_new(mem);
    const int64_t picture[4] = {batch, NANO_CHANNELS, config.size, config.size};
    for (int i = 0; i < store_count(store); i++) store_at(store, i)->train = gradients;
    Tensor *in[4] = {g_input(g, "x", DT_F32, 4, picture),
                     g_input(g, "features", DT_F32, 2, (const int64_t[]){batch, NANO_FEATURES}),
                     g_input(g, "labels", DT_I32, 1, &batch), NULL};
    Tensor *v = nano_forward(m, g, in[0], in[1], in[2], type);
    if (gradients) {
        in[3] = g_input(g, "target", DT_F32, 4, picture);
        Tensor *loss = g_mse(v, in[3]);
        g_backward(g, loss, NULL);
        for (int i = 0; i < store_count(store); i++) {
            Tensor *grad = g_param(g, store_at(store, i))->grad;
            if (grad) g_output(g, store_at(store, i)->name, grad);
        }
    } else {
        g_output(g, "v", v);
    }
    Run *run = run_new(mem, b->dev, NULL);
    run_add_store(run, store);
    Plan *plan = run_add_plan(run, g, "bench", err);
    double took[RUNS];
    bool ok = plan && run_prepare(run, err) && nano_init(m, 1, err) &&
              write_inputs(plan, in, 3 + gradients, err) && plan_run(plan, &b->cmd->cancel, err);
    for (int i = 0; i < RUNS && ok; i++) {
        double start = os_seconds();
        ok = plan_run(plan, &b->cmd->cancel, err);
        took[i] = os_seconds() - start;
    }
    if (ok) {
        qsort(took, RUNS, sizeof took[0], by_value);
        PlanStats stats = plan_stats(plan);
        *r = (BenchResult){.type = dtype_name(type), .seconds = took[RUNS / 2]};
        snprintf(r->op, sizeof r->op, "nano");
        snprintf(r->size, sizeof r->size, "batch %lld, %s", (long long)batch,
                 gradients ? "forward and gradients" : "forward");
        r->gflops = stats.flops / r->seconds * 1e-9;
        r->gbps = stats.bytes / r->seconds * 1e-9;
        r->share_of_peak = MAX(r->gflops / b->peak.gflops[type], r->gbps / b->peak.gbps);
    }
    run_free(run);
    store_free(store);
    mem_free(mem);
    return ok;
}

bool bench_model(Bench *b, const char *model, int64_t batch, DType type, BenchResult *r, int *count,
                 Error *err) {
    (void)model; // nano is the only one so far
    *count = 2;
    return measure(b, batch, type, false, &r[0], err) && measure(b, batch, type, true, &r[1], err);
}
