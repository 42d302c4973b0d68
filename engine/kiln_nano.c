// kiln_nano.c: libkiln's side of Nano-Sora: from a class to a picture.
#include "engine/kiln_impl.h"

#include "backend/os.h"
#include "engine/model_path.h"

static bool open_nano(KilnModel *m, const KilnModelOptions *options, Error *err) {
    DType compute = DT_F32;
    if (!kiln_precision(options->precision, &compute, err)) return false;
    m->path = model_path(m, m->path, err);
    m->nano = m->path ? nano_open(m, m->ctx->dev, m->path, compute, err) : NULL;
    if (!m->nano) return false;
    const NanoConfig *c = nano_config(m->nano);
    m->names = MEM_ARRAY(m, char *, c->classes);
    for (int i = 0; i < c->classes; i++)
        m->names[i] = c->names ? mem_strdup(m->names, c->names[i]) : mem_printf(m->names, "%d", i);
    return true;
}

static void close_nano(KilnModel *m) { nano_close(m->nano); }

static KilnModelInfo info(const KilnModel *m) {
    const NanoConfig *c = nano_config(m->nano);
    return (KilnModelInfo){.architecture = "nano", .variant = "", .path = m->path, .width = c->size,
                           .height = c->size, .classes = c->classes,
                           .parameters = nano_param_count(c)};
}

static KilnRequest request(const KilnModel *m) {
    (void)m;
    return (KilnRequest){.count = 1, .sampler = "euler", .steps = NANO_DEFAULT_STEPS,
                         .cfg_scale = NANO_DEFAULT_CFG};
}

// Numbers of classes below `parent`, checked.
static int *request_classes(void *parent, const KilnModel *m, const KilnRequest *r, Error *err) {
    const NanoConfig *c = nano_config(m->nano);
    int *classes = MEM_ARRAY(parent, int, r->count), one = -1;
    if (r->class_name) {
        one = nano_find_class(c, r->class_name);
        if (one < 0) {
            err_failed(err, "class: expected one of the model's %d classes, found \"%.60s\"",
                       c->classes, r->class_name);
            for (int i = 0; i < c->classes; i++) err_item(err, "%s", m->names[i]);
            return NULL;
        }
    }
    for (int i = 0; i < r->count; i++)
        classes[i] = r->class_name ? one : r->classes ? r->classes[i] : i % c->classes;
    return classes;
}

static bool check(const KilnModel *m, const KilnRequest *r, Error *err) {
    int size = nano_config(m->nano)->size;
    if (r->prompt && *r->prompt)
        return err_failed(err, "prompt: expected a class for this model, found a text; set "
                               "class_name");
    return nano_check_size(m->nano, r->width, r->height, err) &&
           image_check_count(r->count, size, size, err);
}

static bool plan_request(KilnModel *m, const KilnRequest *r, RunMemory *memory, Error *err) {
    return check(m, r, err) && nano_plan(m->nano, nano_pictures_per_pass(r->count),
                                         r->cfg_scale != 1, memory, err);
}

static bool plan(KilnModel *m, const KilnRequest *r, KilnPlan *out, Error *err) {
    RunMemory memory;
    if (!plan_request(m, r, &memory, err)) return false;
    *out = kiln_plan_of(&memory);
    return true;
}

typedef struct Watch {
    const KilnCallbacks *callbacks;
    double started;
} Watch;

static bool after_step(void *user, const NanoProgress *p, Error *err) {
    const Watch *w = user;
    (void)err;
    double passed = os_seconds() - w->started;
    KilnProgress progress = {.stage = "sample", .done = p->done, .total = p->total,
                             .seconds_left = passed / p->done * (p->total - p->done)};
    if (w->callbacks->progress) w->callbacks->progress(w->callbacks->user, &progress);
    return true;
}

static bool keep_images(KilnImages *images, const KilnModel *m, const KilnRequest *r,
                        const int *classes, const float *x, Error *err) {
    int side = nano_config(m->nano)->size, none = nano_config(m->nano)->classes;
    size_t numbers = (size_t)NANO_CHANNELS * (size_t)side * (size_t)side;
    kiln_images_begin(images, m, r, r->steps, r->cfg_scale, side, side);
    for (int i = 0; i < r->count; i++)
        if (!kiln_images_put(images, i, classes[i] < none ? m->names[classes[i]] : "",
                             x + (size_t)i * numbers, err))
            return false;
    return true;
}

static bool generate(KilnModel *m, const KilnRequest *r, KilnImages *images, Error *err) {
    if (!plan_request(m, r, NULL, err)) return false;
    void *scratch = mem_new(images, 1);
    int *classes = request_classes(scratch, m, r, err);
    if (!classes) return false;
    if (r->callbacks.progress)
        r->callbacks.progress(r->callbacks.user, &(KilnProgress){.stage = "load"});
    if (!nano_prepare(m->nano, err)) return false;
    Watch watch = {&r->callbacks, os_seconds()};
    Cancel cancel = kiln_cancel(&r->callbacks);
    NanoRequest request = {
        .count = r->count, .classes = classes, .noise = r->noise, .seed = r->seed,
        .rng = kiln_noise(r->rng), .sampler = sampler_find(r->sampler), .steps = r->steps,
        .cfg_scale = r->cfg_scale, .cancel = &cancel, .after_step = after_step, .user = &watch,
    };
    int side = nano_config(m->nano)->size;
    float *x = MEM_ARRAY(scratch, float, (size_t)r->count * NANO_CHANNELS * (size_t)(side * side));
    bool ok =
        nano_generate(m->nano, &request, x, err) && keep_images(images, m, r, classes, x, err);
    mem_free(scratch);
    return ok;
}

const KilnKind kiln_nano = {open_nano, close_nano, info, request, plan, generate};
