// inspect_found.c: see inspect.h.
#include "tools/inspect.h"

#include "backend/os.h"
#include "engine/model_path.h"
#include "engine/pipeline_nano.h"
#include "models/flux.h"

static bool starts_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

// ---- what there is ------------------------------------------------------------------------------

static void add_part(Inspected *in, const char *name, const char *path, const Weights *w,
                     const char *prefix) {
    if (w && in->parts < INSPECT_MAX_PARTS)
        in->part[in->parts++] =
            (InspectPart){.name = name, .path = path, .weights = w, .prefix = prefix};
}

static void count_tensors(Inspected *in) {
    for (int k = 0; k < in->parts; k++) {
        const Weights *w = in->part[k].weights;
        bool seen = false; // several parts of one file: counted once
        for (int i = 0; i < k; i++) seen = seen || in->part[i].weights == w;
        for (int i = 0; !seen && i < weights_count(w); i++) {
            const WeightTensor *t = weights_at(w, i);
            InspectPart *part = &in->part[MAX(inspect_part_of(in, w, t->name), 0)];
            part->tensors++, in->tensors++;
            part->bytes += t->bytes, in->bytes += t->bytes;
            part->numbers += t->count, in->numbers += t->count;
            in->by_type[t->dtype]++;
            in->type_bytes[t->dtype] += t->bytes;
        }
    }
}

int inspect_part_of(const Inspected *in, const Weights *w, const char *name) {
    int best = -1;
    for (int k = 0; k < in->parts; k++)
        if (in->part[k].weights == w && starts_with(name, in->part[k].prefix) &&
            (best < 0 || strlen(in->part[k].prefix) > strlen(in->part[best].prefix)))
            best = k;
    return best;
}

// NULL: not known, for the transformer is not whole; planning and running say what it lacks.
static const char *variant_of(const ModelPart *transformer) {
    FluxConfig c;
    Error ignored = {0};
    return flux_config(transformer->weights, &transformer->config, &c, &ignored) ? flux_variant(&c)
                                                                                 : NULL;
}

static void found_model(Inspected *in, ModelParts *model) {
    in->model = model;
    in->path = model->path;
    in->architecture = model->architecture;
    for (int i = 0; i < PART_COUNT; i++)
        add_part(in, model_part_name((PartId)i), model->part[i].path, model->part[i].weights, "");
    in->variant = variant_of(&model->part[PART_TRANSFORMER]);
}

// A training checkpoint holds the model, its averaged weights ("ema.") and AdamW's moments.
static void found_nano(void *mem, Inspected *in) {
    NanoConfig c;
    Error ignored = {0};
    const char *config = weights_meta(in->file, "kiln.config");
    if (!config || !nano_parse_config(mem, config, in->path, &c, &ignored)) return;
    bool training = weights_meta(in->file, "kiln.state");
    in->architecture = "nano";
    in->variant = training ? "training checkpoint" : "model";
    in->title =
        mem_printf(mem, "patch %d, width %d, %d blocks, %d heads, %d x %d pixels, %d classes",
                   c.patch, c.dim, c.depth, c.heads, c.size, c.size, c.classes);
    add_part(in, "diffusion_model", in->path, in->file, "");
    if (!training) return;
    add_part(in, "averaged_weights", in->path, in->file, "ema.");
    add_part(in, "first_moments", in->path, in->file, "m.");
    add_part(in, "second_moments", in->path, in->file, "v.");
}

// Parts that stand in one file (ComfyUI's and the original checkpoints), by prefix.
static void found_file(Inspected *in) {
    static const struct { const char *name, *prefix; } inside[] = {
        {"diffusion_model", "model.diffusion_model."}, {"clip_l", "text_encoders.clip_l."},
        {"t5xxl", "text_encoders.t5xxl."}, {"vae", "vae."}, {"vae", "first_stage_model."},
        {"text_encoder", "cond_stage_model."}, {"text_encoders", "conditioner."},
    };
    static const struct { const char *kind, *name; } alone[] = {
        {"vae", "vae"}, {"t5", "text_encoder"}, {"clip_l", "text_encoder"}};
    const char *kind = weights_architecture(in->file, NULL),
               *name = kind ? "diffusion_model" : "unknown";
    in->architecture = kind;
    for (size_t i = 0; kind && i < COUNT_OF(alone); i++)
        if (!strcmp(alone[i].kind, kind)) name = alone[i].name;
    if (kind && !strcmp(kind, "flux"))
        in->variant = variant_of(&(ModelPart){.weights = in->file});
    add_part(in, name, in->path, in->file, "");
    for (size_t i = 0; i < COUNT_OF(inside); i++) {
        bool any = false;
        for (int k = 0; k < weights_count(in->file) && !any; k++)
            any = starts_with(weights_at(in->file, k)->name, inside[i].prefix);
        if (any) add_part(in, inside[i].name, in->path, in->file, inside[i].prefix);
    }
    bool rest = false;
    for (int k = 0; k < weights_count(in->file) && in->parts > 1 && !rest; k++)
        rest = inspect_part_of(in, in->file, weights_at(in->file, k)->name) == 0;
    if (in->parts > 1 && !rest) { // everything has a part of its own
        memmove(in->part, in->part + 1, sizeof in->part[0] * (size_t)(in->parts - 1));
        in->parts--;
    }
}

bool inspect_open(Cmd *cmd, const InspectValues *v, Inspected *in, Error *err) {
    *in = (Inspected){0};
    DType type;
    const char *path = v->names.paths.model;
    char *index = path ? os_path_join(cmd->mem, path, "model_index.json") : NULL;
    if ((index && os_path_kind(index) == PATH_FILE) || text_model_given(&v->names)) {
        ModelParts *model = text_model_parts(cmd, &v->names, &type, err);
        if (!model) return false;
        found_model(in, model);
    } else {
        in->path = os_path_kind(path) == PATH_DIR ? path : model_path(cmd->mem, path, err);
        in->file = in->path ? weights_open(cmd->mem, in->path, err) : NULL;
        if (!in->file) return false;
        found_nano(cmd->mem, in);
        if (!in->architecture) found_file(in);
    }
    count_tensors(in);
    return true;
}

void inspect_close(Inspected *in) {
    model_parts_close(in->model);
    weights_close(in->file);
}

// ---- the plan -----------------------------------------------------------------------------------

static bool plan_nano(Cmd *cmd, const InspectValues *v, InspectPlan *out, Error *err) {
    Device *dev = cmd_open_device(cmd, err);
    if (!dev) return false;
    char *path = model_path(cmd->mem, v->names.paths.model, err);
    NanoPipeline *p = path ? nano_open(cmd->mem, dev, path, DT_F32, err) : NULL;
    bool ok = p && nano_check_size(p, v->width, v->height, err);
    double start = os_seconds();
    RunMemory m = {0};
    ok = ok && nano_plan(p, nano_pictures_per_pass((int)v->batch), v->cfg_scale != 1, &m, err);
    if (ok) {
        out->plan = (FluxPlan){.stages = 1,
                               .peak_bytes = m.peak_bytes,
                               .driver_bytes = m.driver_bytes,
                               .planning_ms = (os_seconds() - start) * 1e3};
        out->plan.stage[0] = (FluxStagePlan){
            .name = "step", .resident_bytes = m.weights_bytes, .weights_bytes = m.weights_bytes,
            .arena_bytes = m.arena_bytes, .peak_bytes = m.peak_bytes,
            .pictures = nano_pictures_per_pass((int)v->batch)};
        out->budget = dev_memory(dev).budget;
        out->fits = m.peak_bytes <= out->budget;
        out->smallest = m.peak_bytes;
        snprintf(out->device, sizeof out->device, "%s", dev_info(dev)->id);
    }
    nano_close(p);
    dev_close(dev);
    return ok;
}

static bool plan_text(Cmd *cmd, const InspectValues *v, InspectPlan *out, Error *err) {
    TextModel model = {0};
    FluxRequest r = {.width = (int)v->width, .height = (int)v->height, .count = (int)v->batch,
                     .steps = cmd_given(cmd, "steps") ? (int)v->steps : 0,
                     .t5_tokens = (int)v->t5_tokens, .guidance = 3.5,
                     .cfg = {.scale = cmd_given(cmd, "cfg-scale") ? v->cfg_scale : 1}};
    bool ok = text_model_open(cmd, &v->names, v->precision, &model, err) &&
              flux_pipeline_check(model.pipeline, &r, err);
    if (ok) {
        out->budget = dev_memory(model.dev).budget;
        snprintf(out->device, sizeof out->device, "%s", dev_info(model.dev)->id);
        out->fits = ok = flux_pipeline_plan(model.pipeline, &r, 0, &out->plan, err);
        if (ok) out->smallest = flux_pipeline_smallest(model.pipeline, &r);
    }
    text_model_close(&model);
    return ok;
}

bool inspect_plan(Cmd *cmd, const InspectValues *v, const Inspected *in, InspectPlan *out,
                  Error *err) {
    *out = (InspectPlan){0};
    if (!in->architecture)
        return err_failed(err, "%s: expected a model of a known architecture to plan, found none",
                          in->path);
    return strcmp(in->architecture, "nano") ? plan_text(cmd, v, out, err)
                                            : plan_nano(cmd, v, out, err);
}
