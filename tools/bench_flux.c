// bench_flux.c: `kiln bench --model` for the parts of FLUX.1: the transformer's schedule stage and
// step, a text encoder, an autoencoder.
#include "tools/bench.h"

#include "backend/os.h"
#include "engine/pipeline_dummy.h"
#include "engine/vae.h"
#include "models/clip.h"
#include "models/flux.h"
#include "models/t5.h"

#include <stdlib.h>

enum { RUNS = 3, DEV_TEXT = 512, SCHNELL_TEXT = 256, SCHEDULE_STEPS = 20 };

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

static void result(const Bench *b, BenchResult *r, const char *op, const char *what, DType compute,
                   const char *weights, double seconds, double flops) {
    *r = (BenchResult){.type = dtype_name(compute), .seconds = seconds};
    snprintf(r->op, sizeof r->op, "%s", op);
    snprintf(r->size, sizeof r->size, "%s", what);
    snprintf(r->row, sizeof r->row, "weights %s", weights);
    r->gflops = flops / seconds * 1e-9;
    r->share_of_peak = r->gflops / b->peak.gflops[compute];
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double v[RUNS]) {
    qsort(v, RUNS, sizeof *v, by_value);
    return v[RUNS / 2];
}

// A stack's passes: the median of all (kind -1) and of the mean unit of a kind.
typedef struct Passes {
    const StackSpec *spec;
    Stack *stack;
    double *unit; // [RUNS][units] seconds
} Passes;

static bool run_passes(Bench *b, Passes *p, Error *err) {
    StackPass pass = {.cancel = &b->cmd->cancel, .more = true};
    p->unit = MEM_ARRAY(b->mem, double, RUNS * p->spec->units);
    for (int run = -1; run < RUNS; run++) { // the first warms up
        if (!stack_run(p->stack, &pass, err)) return false;
        for (int i = 0; i < p->spec->units && run >= 0; i++)
            p->unit[run * p->spec->units + i] = stack_unit_seconds(p->stack, i);
    }
    return true;
}

static void of_kind(const Passes *p, int kind, double *seconds, double *flops) {
    double took[RUNS] = {0};
    int units = 0;
    *flops = 0;
    for (int i = 0; i < p->spec->units; i++) {
        if (kind >= 0 && p->spec->unit[i].kind != kind) continue;
        for (int run = 0; run < RUNS; run++) took[run] += p->unit[run * p->spec->units + i];
        *flops += stack_unit_work(p->stack, i).flops;
        units++;
    }
    double parts = kind < 0 ? 1 : MAX(units, 1);
    *seconds = median(took) / parts;
    *flops /= parts;
}

typedef struct Part { const char *name; int kind; } Part;

static void results(const Bench *b, const Passes *p, const char *op, const Part *part, int parts,
                    const char *size, DType compute, const char *weights, BenchResult *r, int *count) {
    for (int i = 0; i < parts; i++) {
        double seconds, flops;
        char what[64];
        of_kind(p, part[i].kind, &seconds, &flops);
        snprintf(what, sizeof what, "%s, %s", part[i].name, size);
        result(b, &r[(*count)++], op, what, compute, weights, seconds, flops);
    }
}

// ---- the transformer ----------------------------------------------------------------------------
static const char *matrix_type(const BindWant *want, const BoundWeight *weight, int count,
                               const char *name) {
    for (int i = 0; i < count; i++)
        if (strstr(want[i].name, name)) return dtype_name(weight[i].dtype);
    return "?";
}

static bool schedule(Bench *b, FluxModel *m, DType compute, BenchResult *r, int *count, Error *err) {
    FluxScheduleShape shape = {.steps = SCHEDULE_STEPS, .prompts = 1, .compute = compute,
                               .text = m->config.guidance ? DEV_TEXT : SCHNELL_TEXT};
    FluxSchedule *f = flux_schedule_new(b->mem, m, b->dev, &shape);
    Passes p = {.spec = &f->spec, .stack = stack_new(b->mem, b->dev, &f->spec, 0, err)};
    bool ok = p.stack && stack_prepare(p.stack, err) && fill(f->features, 1, err) &&
              fill(f->pooled, 1, err) && fill(f->text, 1, err) &&
              (!f->guidance || fill(f->guidance, 1, err)) && run_passes(b, &p, err);
    char size[32];
    snprintf(size, sizeof size, "%d steps", SCHEDULE_STEPS);
    static const Part all = {"schedule", -1};
    if (ok)
        results(b, &p, "flux", &all, 1, size, compute,
                matrix_type(m->want, m->weight, m->count, "img_mod.lin.weight"), r, count);
    stack_free(p.stack);
    flux_schedule_free(f);
    return ok;
}

static bool step(Bench *b, FluxModel *m, int width, int height, DType compute, BenchResult *r,
                 int *count, Error *err) {
    static const Part parts[] = {{"step", -1}, {"double block", FLUX_DOUBLE},
                                 {"single block", FLUX_SINGLE}, {"head", FLUX_HEAD},
                                 {"tail", FLUX_TAIL}};
    int rows = height / 16, columns = width / 16;
    FluxStepShape shape = {.batch = 1, .prompts = 1, .tokens = rows * columns, .compute = compute,
                           .text = m->config.guidance ? DEV_TEXT : SCHNELL_TEXT};
    FluxStep *f = flux_step_new(b->mem, m, b->dev, &shape);
    Passes p = {.spec = &f->spec, .stack = stack_new(b->mem, b->dev, &f->spec, 0, err)};
    bool ok = p.stack && stack_prepare(p.stack, err) && fill_inputs(f, rows, columns, err) &&
              run_passes(b, &p, err);
    char size[40];
    snprintf(size, sizeof size, "%dx%d, %d+%d blocks", width, height, m->config.doubles,
             m->config.singles);
    if (ok)
        results(b, &p, "flux", parts, COUNT_OF(parts), size, compute,
                matrix_type(m->want, m->weight, m->count, "img_attn.qkv.weight"), r, count);
    stack_free(p.stack);
    flux_step_free(f);
    return ok;
}

// ---- text encoders ------------------------------------------------------------------------------
static bool text(Bench *b, const StackSpec *spec, bool (*write)(void *text, Error *err), void *user,
                 const char *op, const char *size, DType compute, const char *weights, BenchResult *r,
                 int *count, Error *err) {
    static const Part all = {"encode", -1};
    Passes p = {.spec = spec, .stack = stack_new(b->mem, b->dev, spec, 0, err)};
    bool ok = p.stack && stack_prepare(p.stack, err) && write(user, err) && run_passes(b, &p, err);
    if (ok) results(b, &p, op, &all, 1, size, compute, weights, r, count);
    stack_free(p.stack);
    return ok;
}

static bool write_t5(void *user, Error *err) {
    static const int32_t ids[DEV_TEXT] = {100, 1};
    return t5_text_write(user, ids, NULL, err);
}
static bool write_clip(void *user, Error *err) {
    static const int32_t ids[77] = {0, 100, 1};
    return clip_text_write(user, ids, err);
}

static bool t5(Bench *b, const Weights *w, DType compute, DType weights, BenchResult *r, int *count,
               Error *err) {
    T5Model *m = t5_open(b->mem, w, NULL, weights, err);
    if (!m) return false;
    char size[40];
    T5Shape shape = {.batch = 1, .tokens = DEV_TEXT, .compute = compute};
    T5Text *t = t5_text_new(b->mem, m, b->dev, &shape);
    snprintf(size, sizeof size, "%d tokens, %d layers", DEV_TEXT, m->config.layers);
    bool ok = text(b, &t->spec, write_t5, t, "t5", size, compute,
                   matrix_type(m->want, m->weight, m->count, "SelfAttention.q.weight"), r, count, err);
    t5_text_free(t);
    return ok;
}

static bool clip(Bench *b, const Weights *w, DType compute, BenchResult *r, int *count, Error *err) {
    ClipModel *m = clip_open(b->mem, w, NULL, err);
    if (!m) return false;
    char size[40];
    ClipShape shape = {.batch = 1, .tokens = MIN(77, m->config.positions), .compute = compute};
    ClipText *t = clip_text_new(b->mem, m, b->dev, &shape);
    snprintf(size, sizeof size, "%d tokens, %d layers", shape.tokens, m->config.layers);
    bool ok = text(b, &t->spec, write_clip, t, "clip", size, compute,
                   matrix_type(m->want, m->weight, m->count, "q_proj.weight"), r, count, err);
    clip_text_free(t);
    return ok;
}

// ---- autoencoder --------------------------------------------------------------------------------
static bool decode(Bench *b, const Vae *vae, int width, int height, DType compute, BenchResult *r,
                   int *count, Error *err) {
    VaeInfo info = vae_info(vae);
    VaeSpec spec = {.pass = VAE_DECODE, .width = width, .height = height, .compute = compute,
                    .tiling = VAE_TILING_OFF};
    VaeRun *run = vae_plan(b->mem, b->dev, vae, &spec, err);
    int64_t n = (int64_t)info.channels * (width / info.factor) * (height / info.factor);
    float *latents = MEM_ARRAY(b->mem, float, n);
    float *image = MEM_ARRAY(b->mem, float, 3 * (int64_t)width * height);
    double took[RUNS];
    for (int64_t i = 0; i < n; i++) latents[i] = (float)case_uniform(conform_mix((uint64_t)i));
    VaeCall call = {.cancel = &b->cmd->cancel};
    bool ok = run && vae_prepare(run, err);
    for (int i = -1; i < RUNS && ok; i++) {
        double start = os_seconds();
        ok = vae_decode(run, latents, image, &call, err);
        if (i >= 0) took[i] = os_seconds() - start;
    }
    char what[40];
    snprintf(what, sizeof what, "decode, %dx%d", width, height);
    if (ok)
        result(b, &r[(*count)++], "vae", what, compute, dtype_name(compute), median(took),
               vae_memory(run).flops);
    vae_run_free(run);
    mem_free(latents), mem_free(image);
    return ok;
}

// ---- which part ---------------------------------------------------------------------------------
bool bench_flux(Bench *b, const char *model, int width, int height, DType compute, DType weights,
                BenchResult *r, int *count, Error *err) {
    Error ignored = {0};
    *count = 0;
    bool dummy = pipeline_dummy_check(model, &ignored);
    ModelParts *parts = dummy ? pipeline_dummy_open(b->mem, model, 1, weights) : NULL;
    Weights *file = dummy ? NULL : weights_open(b->mem, model, err);
    const Weights *w = dummy ? parts->part[PART_TRANSFORMER].weights : file;
    bool ok = w != NULL;
    Vae *vae = w && !flux_is(w) ? vae_open(b->mem, w, NULL, &ignored) : NULL;
    if (w && t5_is(w)) ok = t5(b, w, compute, weights, r, count, err);
    else if (w && clip_is(w)) ok = clip(b, w, compute, r, count, err);
    else if (vae) ok = decode(b, vae, width, height, compute, r, count, err);
    else if (w) {
        FluxModel *m = flux_open(b->mem, w, NULL, weights, err);
        ok = m && step(b, m, width, height, compute, r, count, err) &&
             schedule(b, m, compute, r, count, err);
    }
    vae_close(vae);
    weights_close(file);
    model_parts_close(parts);
    return ok;
}
