// pipeline_nano.c: see pipeline_nano.h.
#include "engine/pipeline_nano.h"

#include "engine/guidance.h"

#include <math.h>

struct NanoStage {
    const NanoModel *model;
    Plan *plan;
    int rows;
    size_t numbers; // in one picture
    Tensor *x, *features, *labels, *v;
    float *host_x, *host_v, *host_features; // [rows, ...]
    int32_t *host_labels;
};

struct NanoPipeline {
    Device *dev;
    StFile *file;
    char *path;
    NanoConfig config;
    DType compute;
    Store *store;
    NanoModel *model;
    Run *run; // of the present plan
    NanoStage *stage;
    bool loaded, prepared;
};

// ---- stage --------------------------------------------------------------------------------------

NanoStage *nano_stage_new(void *parent, Run *run, const NanoModel *model, int rows, DType compute,
                          const char *name, Error *err) {
    const NanoConfig *c = &model->config;
    NanoStage *s = MEM_NEW(parent, NanoStage);
    s->model = model;
    s->rows = rows;
    s->numbers = (size_t)NANO_CHANNELS * (size_t)c->size * (size_t)c->size;
    s->host_x = MEM_ARRAY(s, float, (size_t)rows * s->numbers);
    s->host_v = MEM_ARRAY(s, float, (size_t)rows * s->numbers);
    s->host_features = MEM_ARRAY(s, float, rows * NANO_FEATURES);
    s->host_labels = MEM_ARRAY(s, int32_t, rows);

    Graph *g = g_new(s);
    s->x = g_input(g, "x", DT_F32, DIMS(rows, NANO_CHANNELS, c->size, c->size));
    s->features = g_input(g, "features", DT_F32, DIMS(rows, NANO_FEATURES));
    s->labels = g_input(g, "labels", DT_I32, DIMS(rows));
    Tensor *v = nano_forward(model, g, s->x, s->features, s->labels, compute);
    s->v = g_output(g, "v", v);
    s->plan = run_add_plan(run, g, name, err);
    return s->plan ? s : NULL;
}

// One part of a request: up to stage->rows rows of pictures first .. first + count - 1.
typedef struct Part {
    NanoStage *stage;
    const NanoRequest *request;
    int first, count;
    int done, total; // steps, for progress
    bool guided;
    NoiseSource *noise; // of the part's pictures
} Part;

// The pictures' rows come first, then (guided) the same pictures without their class; unused rows
// repeat the first picture, so that they hold finite numbers.
static bool part_velocity(void *user, double t, const float *x, float *v, Error *err) {
    Part *part = user;
    NanoStage *s = part->stage;
    size_t n = s->numbers, row_bytes = n * sizeof(float), half = (size_t)part->count;
    for (int r = 0; r < s->rows; r++) {
        size_t picture = r < part->count ? (size_t)r
                         : part->guided && r < 2 * part->count ? (size_t)(r - part->count) : 0;
        memcpy(s->host_x + (size_t)r * n, x + picture * n, row_bytes);
    }
    timestep_features(t, NANO_FEATURES, s->host_features);
    for (int r = 1; r < s->rows; r++)
        memcpy(s->host_features + r * NANO_FEATURES, s->host_features,
               NANO_FEATURES * sizeof(float));
    if (!plan_write(s->plan, s->x, DT_F32, s->host_x, err) ||
        !plan_write(s->plan, s->features, DT_F32, s->host_features, err) ||
        !plan_run(s->plan, part->request->cancel, err) ||
        !plan_read(s->plan, s->v, DT_F32, s->host_v, err))
        return false;
    if (part->guided)
        guidance_cfg(v, s->host_v, s->host_v + half * n, (float)part->request->cfg_scale, half * n);
    else
        memcpy(v, s->host_v, half * row_bytes);
    return true;
}

static bool part_after_step(void *user, int step, const float *x, Error *err) {
    Part *part = user;
    const NanoRequest *r = part->request;
    part->done++;
    if (r->cancel && r->cancel->asked(r->cancel->user))
        return err_set(err, STATUS_CANCELLED, "cancelled");
    NanoProgress progress = {part->done, part->total, step, part->first, part->count, x};
    return !r->after_step || r->after_step(r->user, &progress, err);
}

static bool part_noise(void *user, float *out, Error *err) {
    Part *part = user;
    (void)err;
    noise_draw(part->noise, out);
    return true;
}

static bool run_part(Part *part, const Sampler *sampler, const Schedule *schedule, float *x,
                     Error *err) {
    NanoStage *s = part->stage;
    for (int r = 0; r < s->rows; r++)
        s->host_labels[r] = r < part->count ? part->request->classes[part->first + r]
                                            : s->model->config.classes;
    if (!plan_write(s->plan, s->labels, DT_I32, s->host_labels, err)) return false;
    Velocity velocity = {part_velocity, part};
    AfterStep after = {part_after_step, part};
    return sampler_run(sampler, schedule, x, (size_t)part->count * s->numbers, velocity,
                       (Noise){part_noise, part}, after, err);
}

static bool check_request(const NanoRequest *r, const NanoConfig *c, Error *err) {
    if (r->count < 1 || r->count > NANO_MAX_PICTURES)
        return err_failed(err, "generate: expected 1 to %d pictures, found %d", NANO_MAX_PICTURES,
                          r->count);
    if (!isfinite(r->cfg_scale))
        return err_failed(err, "generate: expected a finite guidance scale, found %g",
                          r->cfg_scale);
    for (int i = 0; i < r->count; i++)
        if (r->classes[i] < 0 || r->classes[i] > c->classes)
            return err_failed(err, "generate: expected classes from 0 to %d, found %d", c->classes,
                              r->classes[i]);
    return true;
}

bool nano_stage_generate(NanoStage *s, const NanoRequest *r, float *out, Error *err) {
    if (!check_request(r, &s->model->config, err)) return false;
    bool guided = r->cfg_scale != 1;
    int per_pass = guided ? s->rows / 2 : s->rows;
    if (per_pass < 1) return err_failed(err, "generate: expected a plan of two rows or more");
    const Sampler *sampler = r->sampler ? r->sampler : sampler_at(0);
    Schedule *schedule = schedule_new(NULL, r->schedule ? r->schedule : schedule_at(0),
                                      r->steps ? r->steps : NANO_DEFAULT_STEPS, err);
    if (!schedule) return false;
    int parts = (r->count + per_pass - 1) / per_pass;
    Part part = {.stage = s, .request = r, .total = parts * schedule->steps, .guided = guided};
    bool ok = true;
    for (part.first = 0; part.first < r->count && ok; part.first += part.count) {
        part.count = MIN(per_pass, r->count - part.first);
        float *x = out + (size_t)part.first * s->numbers;
        part.noise = noise_new(NULL, r->rng, r->seed, part.first, part.count, s->numbers);
        noise_draw(part.noise, x); // drawn even if not used: later draws are the same then
        if (r->noise)
            memcpy(x, r->noise + (size_t)part.first * s->numbers,
                   (size_t)part.count * s->numbers * sizeof *x);
        ok = run_part(&part, sampler, schedule, x, err);
        mem_free(part.noise);
    }
    mem_free(schedule);
    if (!ok && err && err->status == STATUS_CANCELLED)
        err_set(err, STATUS_CANCELLED, "generate: stopped after step %d of %d", part.done,
                part.total);
    return ok;
}

// ---- pipeline -----------------------------------------------------------------------------------

static bool read_header(NanoPipeline *p, Error *err) {
    char *what = mem_printf(p, "%s: kiln.config", p->path);
    const char *config = st_meta(p->file, "kiln.config");
    if (!config)
        return err_failed(err,
                          "%s: expected `kiln.config` in the metadata, found none; take a file "
                          "written by kiln train",
                          p->path);
    if (!nano_parse_config(p, config, what, &p->config, err)) return false;
    int count;
    StWant *wants = nano_wants(p, &p->config, &count);
    bool ok = st_check(p->file, wants, count, err);
    mem_free(wants);
    return ok;
}

NanoPipeline *nano_open(void *parent, Device *dev, const char *path, DType compute, Error *err) {
    NanoPipeline *p = MEM_NEW(parent, NanoPipeline);
    p->dev = dev;
    p->path = mem_strdup(p, path);
    p->compute = compute;
    p->file = st_open(p, path, err);
    if (!p->file || !read_header(p, err)) {
        nano_close(p);
        return NULL;
    }
    p->store = store_new(p, dev);
    p->model = nano_new(p, p->store, &p->config);
    return p;
}

static void drop_run(NanoPipeline *p) {
    run_free(p->run);
    mem_free(p->stage);
    p->run = NULL;
    p->stage = NULL;
    p->prepared = false;
}

void nano_close(NanoPipeline *p) {
    if (!p) return;
    drop_run(p);
    store_free(p->store);
    st_close(p->file);
    mem_free(p);
}

const NanoConfig *nano_config(const NanoPipeline *p) { return &p->config; }

bool nano_check_size(const NanoPipeline *p, int64_t width, int64_t height, Error *err) {
    int size = p->config.size;
    if ((!width || width == size) && (!height || height == size)) return true;
    return err_failed(err, "size: expected the one that the model was trained for, %d x %d, found %lld x "
                      "%lld; leave it out", size, size, (long long)(width ? width : size),
                      (long long)(height ? height : size));
}

RunMemory nano_memory(const NanoPipeline *p) { return run_memory(p->run); }
PlanStats nano_stats(const NanoPipeline *p) { return plan_stats(p->stage->plan); }

// Equal parts of at most NANO_STAGE_PICTURES.
int nano_pictures_per_pass(int count) {
    int parts = (count + NANO_STAGE_PICTURES - 1) / NANO_STAGE_PICTURES;
    return (count + parts - 1) / MAX(parts, 1);
}

bool nano_plan(NanoPipeline *p, int pictures, bool guidance, RunMemory *memory, Error *err) {
    int rows = pictures * (guidance ? 2 : 1);
    if (!p->stage || p->stage->rows != rows) {
        drop_run(p);
        p->run = run_new(p, p->dev, NULL);
        run_add_store(p->run, p->store);
        p->stage = nano_stage_new(p, p->run, p->model, rows, p->compute, "step", err);
        if (!p->stage) {
            drop_run(p);
            return false;
        }
    }
    if (memory) *memory = run_memory(p->run);
    return true;
}

bool nano_prepare(NanoPipeline *p, Error *err) {
    if (p->prepared) return true;
    if (!run_prepare(p->run, err)) {
        drop_run(p); // gives back what it did get
        return false;
    }
    p->prepared = true;
    if (!p->loaded) p->loaded = nano_load(p->model, p->store, p->file, err);
    return p->loaded;
}

bool nano_generate(NanoPipeline *p, const NanoRequest *r, float *out, Error *err) {
    int pictures = nano_pictures_per_pass(MAX(1, MIN(r->count, NANO_MAX_PICTURES)));
    return nano_plan(p, pictures, r->cfg_scale != 1, NULL, err) && nano_prepare(p, err) &&
           nano_stage_generate(p->stage, r, out, err);
}
