// bench_flux.c: `kiln bench --model` for FLUX.1: one step of the transformer, alone.
#include "tools/bench.h"

#include "backend/os.h"
#include "engine/pipeline_dummy.h"
#include "models/flux.h"

#include <stdlib.h>

enum { STEP_RUNS = 3, DEV_TEXT = 512, SCHNELL_TEXT = 256 };

// A fixed pattern of about unit size in every input.
static bool fill(Param *p, float size, Error *err) {
    int64_t n = param_count(p);
    float *v = MEM_ARRAY(NULL, float, n);
    for (int64_t i = 0; i < n; i++) v[i] = size * ((float)(i * 2654435761u % 1024) / 512.0f - 1);
    bool ok = param_write(p, DT_F32, v, err);
    mem_free(v);
    return ok;
}

static bool fill_inputs(FluxStep *f, int rows, int columns, Error *err) {
    return flux_step_write_rope(f, rows, columns, err) && fill(f->tokens_in, 1, err) &&
           fill(f->context, 1, err) && fill(f->mods, 0.5f, err);
}

// Units of one kind: their mean time and rate.
static void of_kind(const FluxStep *f, const Stack *s, int kind, double *seconds, double *flops, int *units) {
    *seconds = *flops = 0, *units = 0;
    for (int i = 0; i < f->spec.units; i++) {
        if (kind >= 0 && f->spec.unit[i].kind != kind) continue;
        *seconds += stack_unit_seconds(s, i);
        *flops += stack_unit_work(s, i).flops;
        ++*units;
    }
}

static void result(const Bench *b, BenchResult *r, const char *what, DType compute, const char *weights,
                   double seconds, double flops) {
    *r = (BenchResult){.type = dtype_name(compute), .seconds = seconds};
    snprintf(r->op, sizeof r->op, "flux");
    snprintf(r->size, sizeof r->size, "%s", what);
    snprintf(r->row, sizeof r->row, "weights %s", weights);
    r->gflops = flops / seconds * 1e-9;
    r->share_of_peak = r->gflops / b->peak.gflops[compute];
}

static bool measure(Bench *b, FluxModel *m, int width, int height, DType compute, BenchResult *r, int *count,
                    Error *err) {
    int rows = height / 16, columns = width / 16;
    FluxStepShape shape = {.batch = 1, .prompts = 1, .tokens = rows * columns, .compute = compute,
                           .text = m->config.guidance ? DEV_TEXT : SCHNELL_TEXT};
    FluxStep *f = flux_step_new(b->mem, m, b->dev, &shape);
    Stack *s = stack_new(b->mem, b->dev, &f->spec, 0, err);
    StackPass pass = {.cancel = &b->cmd->cancel};
    bool ok = s && stack_prepare(s, err) && fill_inputs(f, rows, columns, err);
    double best = 0;
    for (int i = 0; i <= STEP_RUNS && ok; i++) { // the first warms up
        double start = os_seconds();
        ok = stack_run(s, &pass, err);
        double took = os_seconds() - start;
        if (i == 1 || (i > 1 && took < best)) best = took;
    }
    if (ok) {
        static const struct { const char *name; int kind; } parts[] = {
            {"step", -1}, {"double block", FLUX_DOUBLE}, {"single block", FLUX_SINGLE}};
        const char *weights = dtype_name(m->weight[0].dtype);
        for (int i = 0; i < m->count; i++)
            if (strstr(m->want[i].name, "img_attn.qkv.weight")) weights = dtype_name(m->weight[i].dtype);
        for (size_t i = 0; i < COUNT_OF(parts); i++) {
            double seconds, flops;
            int units;
            char what[64];
            of_kind(f, s, parts[i].kind, &seconds, &flops, &units);
            if (parts[i].kind >= 0) seconds /= MAX(units, 1), flops /= MAX(units, 1);
            else seconds = best;
            snprintf(what, sizeof what, "%s, %dx%d, %d+%d blocks", parts[i].name, width, height,
                     m->config.doubles, m->config.singles);
            result(b, &r[(*count)++], what, compute, weights, seconds, flops);
        }
    }
    stack_free(s);
    flux_step_free(f);
    return ok;
}

bool bench_flux(Bench *b, const char *model, int width, int height, DType compute, DType weights,
                BenchResult *r, int *count, Error *err) {
    Error ignored = {0};
    bool dummy = pipeline_dummy_check(model, &ignored);
    ModelParts *parts = dummy ? pipeline_dummy_open(b->mem, model, 1, weights) : NULL;
    Weights *file = dummy ? NULL : weights_open(b->mem, model, err);
    const Weights *w = dummy ? parts->part[PART_TRANSFORMER].weights : file;
    FluxModel *m = w ? flux_open(b->mem, w, NULL, weights, err) : NULL;
    *count = 0;
    bool ok = m && measure(b, m, width, height, compute, r, count, err);
    weights_close(file);
    model_parts_close(parts);
    return ok;
}
