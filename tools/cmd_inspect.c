// cmd_inspect.c: `kiln inspect`: what a weight file holds, and the memory that a run would take.
#include "tools/cmd.h"

#include "backend/os.h"
#include "engine/model_path.h"
#include "engine/pipeline_nano.h"

#include <inttypes.h>

#define NO_DUMMY "synthetic weights are a later addition; name a file"

typedef struct Values {
    CommonOptions common;
    const char *path, *precision;
    int64_t width, height, batch, steps;
    double cfg_scale;
    bool tensors, plan;
} Values;

static const Option options[] = {
    {.name = "PATH", .kind = OPT_TEXT, FIELD(Values, path), .operand = true, .required = true,
     .help = "A .safetensors file, a folder with model.safetensors, or nano (the shipped model)."},
    {.name = "tensors", .kind = OPT_FLAG, FIELD(Values, tensors), .group = "file",
     .help = "List every tensor: name, type, shape."},
    {.name = "dummy", .kind = OPT_LATER, .help = NO_DUMMY},
    {.name = "dummy-scale", .kind = OPT_LATER, .help = NO_DUMMY},
    {.name = "type", .kind = OPT_LATER,
     .help = "weights are kept as the model's plan says; leave it out"},
    {.name = "plan", .kind = OPT_FLAG, FIELD(Values, plan), .group = "plan",
     .help = "Plan a run without allocating anything, and show what it would take, stage by "
             "stage."},
    {.name = "width", .letter = 'W', .kind = OPT_INT, FIELD(Values, width), .value = "PIXELS",
     .min = 8,
     .max = 16384, .says = "the model's", .help = "Width of the pictures."},
    {.name = "height", .letter = 'H', .kind = OPT_INT, FIELD(Values, height), .value = "PIXELS",
     .min = 8, .max = 16384, .says = "the model's", .help = "Height of the pictures."},
    {.name = "batch-count", .letter = 'b', .kind = OPT_INT, FIELD(Values, batch), .value = "N",
     .min = 1, .max = NANO_MAX_PICTURES, .fallback = "1", .help = "Pictures in all."},
    {.name = "steps", .kind = OPT_INT, FIELD(Values, steps), .value = "N", .min = 1,
     .max = SCHEDULE_MAX_STEPS, .fallback = "50",
         .help = "Sampling steps; memory does not depend on them."},
    {.name = "cfg-scale", .kind = OPT_NUMBER, FIELD(Values, cfg_scale), .value = "SCALE", .min = 0,
     .max = 100, .fallback = "4", .help = "Guidance; 1: none, which takes less memory."},
    PRECISION_OPTION(Values),
    COMMON_OPTIONS(Values),
};

// ---- what the file is -------------------------------------------------------------------------

typedef struct Part {
    const char *name, *prefix;
    int tensors;
    uint64_t bytes;
} Part;

enum { MAX_PARTS = 4 };

typedef struct Summary {
    const char *path, *architecture, *variant; // NULL: not recognised
    NanoConfig config;
    Part parts[MAX_PARTS];
    int part_count;
    int tensors;
    uint64_t bytes, numbers;
    int by_type[DT_COUNT];
    uint64_t type_bytes[DT_COUNT];
} Summary;

static bool starts_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

// A training checkpoint holds the model, its averaged weights ("ema.") and AdamW's moments.
static void recognise(void *mem, const StFile *file, Summary *s) {
    const char *config = st_meta(file, "kiln.config");
    Error ignored = {0};
    if (config && nano_parse_config(mem, config, file->path, &s->config, &ignored)) {
        s->architecture = "nano";
        s->variant = st_meta(file, "kiln.state") ? "training checkpoint" : "model";
    }
    bool training = s->architecture && st_meta(file, "kiln.state");
    s->parts[s->part_count++] = (Part){.name = s->architecture ? "diffusion_model" : "unknown"};
    if (!training) return;
    s->parts[s->part_count++] = (Part){.name = "averaged_weights", .prefix = "ema."};
    s->parts[s->part_count++] = (Part){.name = "first_moments", .prefix = "m."};
    s->parts[s->part_count++] = (Part){.name = "second_moments", .prefix = "v."};
}

static void count_tensors(const StFile *file, Summary *s) {
    s->tensors = file->n;
    for (int i = 0; i < file->n; i++) {
        const StTensor *t = &file->tensors[i];
        Part *part = &s->parts[0];
        for (int k = 1; k < s->part_count; k++)
            if (starts_with(t->name, s->parts[k].prefix)) part = &s->parts[k];
        part->tensors++;
        part->bytes += t->bytes;
        s->bytes += t->bytes;
        s->numbers += t->count;
        s->by_type[t->dtype]++;
        s->type_bytes[t->dtype] += t->bytes;
    }
}

// ---- the plan ---------------------------------------------------------------------------------

typedef struct Planned {
    bool done, fits;
    char device[32];
    double planning_ms;
    uint64_t budget;
    RunMemory memory;
    PlanStats stats;
} Planned;

static bool plan_nano(Cmd *cmd, const Values *v, const char *path, Planned *out, Error *err) {
    Device *dev = cmd_open_device(cmd, err);
    if (!dev) return false;
    NanoPipeline *p = nano_open(cmd->mem, dev, path, DT_F32, err);
    bool ok = p != NULL;
    if (ok) {
        int size = nano_config(p)->size;
        if ((v->width && v->width != size) || (v->height && v->height != size))
            ok = err_failed(err,
                            "inspect: expected the size that the model was trained for, %d x %d, "
                            "found %" PRId64 " x %" PRId64, size, size, v->width ? v->width : size,
                            v->height ? v->height : size);
    }
    double start = os_seconds();
    int pictures = nano_pictures_per_pass((int)v->batch);
    ok = ok && nano_plan(p, pictures, v->cfg_scale != 1, &out->memory, err);
    if (ok) {
        out->planning_ms = (os_seconds() - start) * 1e3;
        out->stats = nano_stats(p);
        out->budget = dev_memory(dev).budget;
        out->fits = out->memory.peak_bytes <= out->budget;
        out->done = true;
        snprintf(out->device, sizeof out->device, "%s", dev_info(dev)->id);
    }
    nano_close(p);
    dev_close(dev);
    return ok;
}

// ---- JSON -------------------------------------------------------------------------------------

static void put_tensors(JsonOut *w, const StFile *file) {
    json_key(w, "tensor_list"), json_open(w, '[');
    for (int i = 0; i < file->n; i++) {
        const StTensor *t = &file->tensors[i];
        json_open(w, '{');
        json_key(w, "name"), json_put_string(w, t->name);
        json_key(w, "type"), json_put_string(w, dtype_name(t->dtype));
        json_key(w, "shape"), json_open(w, '[');
        for (int d = 0; d < t->ndim; d++) json_put_int(w, t->shape[d]);
        json_close(w, ']');
        json_key(w, "bytes"), json_put_uint(w, t->bytes);
        json_close(w, '}');
    }
    json_close(w, ']');
}

static void put_plan(JsonOut *w, const Planned *p) {
    json_key(w, "device"), json_put_string(w, p->device);
    json_key(w, "planning_ms"), json_put_number(w, p->planning_ms);
    json_key(w, "peak_bytes"), json_put_uint(w, p->memory.peak_bytes);
    json_key(w, "budget_bytes"), json_put_uint(w, p->budget);
    json_key(w, "driver_bytes"), json_put_uint(w, p->memory.driver_bytes);
    json_key(w, "fits"), json_put_bool(w, p->fits);
    json_key(w, "stages"), json_open(w, '['), json_open(w, '{');
    json_key(w, "name"), json_put_string(w, "step");
    json_key(w, "resident_bytes"), json_put_uint(w, p->memory.weights_bytes);
    json_key(w, "streamed_bytes"), json_put_uint(w, 0);
    json_key(w, "arena_bytes"), json_put_uint(w, p->memory.arena_bytes);
    json_key(w, "peak_bytes"), json_put_uint(w, p->memory.peak_bytes);
    json_key(w, "moved_bytes_per_step"), json_put_uint(w, 0);
    json_key(w, "ops"), json_put_int(w, p->stats.ops);
    json_key(w, "barriers"), json_put_int(w, p->stats.barriers);
    json_key(w, "flops"), json_put_number(w, p->stats.flops);
    json_close(w, '}'), json_close(w, ']');
}

static bool print_json(const Summary *s, const StFile *file, const Planned *p, bool tensors,
                       Error *err) {
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "path"), json_put_string(&w, s->path);
    json_key(&w, "architecture");
    if (s->architecture) json_put_string(&w, s->architecture);
    else json_put_null(&w);
    json_key(&w, "variant");
    if (s->variant) json_put_string(&w, s->variant);
    else json_put_null(&w);
    json_key(&w, "parts"), json_open(&w, '[');
    for (int i = 0; i < s->part_count; i++) {
        json_open(&w, '{');
        json_key(&w, "name"), json_put_string(&w, s->parts[i].name);
        json_key(&w, "tensors"), json_put_int(&w, s->parts[i].tensors);
        json_key(&w, "bytes"), json_put_uint(&w, s->parts[i].bytes);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    json_key(&w, "tensors"), json_put_int(&w, s->tensors);
    json_key(&w, "parameters"), json_put_uint(&w, s->numbers);
    json_key(&w, "bytes"), json_put_uint(&w, s->bytes);
    json_key(&w, "types"), json_open(&w, '{');
    for (int t = 0; t < DT_COUNT; t++)
        if (s->by_type[t]) json_key(&w, dtype_name((DType)t)), json_put_uint(&w, s->type_bytes[t]);
    json_close(&w, '}');
    json_key(&w, "metadata"), json_open(&w, '{');
    for (int i = 0; i < file->meta_n; i++)
        json_key(&w, file->meta[i].key), json_put_string(&w, file->meta[i].value);
    json_close(&w, '}');
    if (tensors) put_tensors(&w, file);
    if (p->done) put_plan(&w, p);
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

// ---- text -------------------------------------------------------------------------------------

// Text from a file, on one line and without control characters.
static const char *safe(char out[100], const char *text) {
    size_t n = 0;
    for (; *text && n < 96; text++)
        out[n++] = (unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text;
    strcpy(out + n, *text ? "..." : "");
    return out;
}

static bool print_plan(const Planned *p, Error *err) {
    char peak[32], budget[32], weights[32], arena[32], driver[32];
    format_bytes(peak, p->memory.peak_bytes);
    format_bytes(budget, p->budget);
    format_bytes(weights, p->memory.weights_bytes);
    format_bytes(arena, p->memory.arena_bytes);
    format_bytes(driver, p->memory.driver_bytes);
    return cmd_print(err,
                     "plan on %s, made in %.1f ms:\n  step: %s resident, 0 streamed, %s arena; %d "
                     "ops, "
                     "%d barriers, %.3g GFLOP\n  peak %s of %s (and %s for the driver): %s\n",
                         p->device,
                     p->planning_ms, weights, arena, p->stats.ops, p->stats.barriers,
                     p->stats.flops / 1e9, peak, budget, driver, p->fits ? "fits" : "does not fit");
}

static bool print_text(const Summary *s, const StFile *file, const Planned *p, bool tensors,
                       Error *err) {
    char bytes[32], text[128], clean[100];
    format_bytes(bytes, s->bytes);
    bool ok = cmd_print(err, "%s: %s%s%s, %d tensors, %" PRIu64 " parameters, %s\n", s->path,
                        s->architecture ? s->architecture : "architecture not recognised",
                        s->variant ? " " : "", s->variant ? s->variant : "", s->tensors, s->numbers,
                        bytes);
    const NanoConfig *c = &s->config;
    if (ok && s->architecture)
        ok = cmd_print(err,
                       "  patch %d, width %d, %d blocks, %d heads, %d x %d pixels, %d classes\n",
                       c->patch, c->dim, c->depth, c->heads, c->size, c->size, c->classes);
    for (int i = 0; i < s->part_count && ok && s->part_count > 1; i++) {
        format_bytes(bytes, s->parts[i].bytes);
        ok = cmd_print(err, "  part %s: %d tensors, %s\n", s->parts[i].name, s->parts[i].tensors,
                       bytes);
    }
    for (int t = 0; t < DT_COUNT && ok; t++) {
        if (!s->by_type[t]) continue;
        format_bytes(bytes, s->type_bytes[t]);
        ok = cmd_print(err, "  type %s: %d tensors, %s\n", dtype_name((DType)t), s->by_type[t],
                       bytes);
    }
    for (int i = 0; i < file->meta_n && ok; i++)
        ok = cmd_print(err, "  %s: ", safe(clean, file->meta[i].key)) &&
             cmd_print(err, "%s\n", safe(clean, file->meta[i].value));
    for (int i = 0; i < file->n && ok && tensors; i++) {
        const StTensor *t = &file->tensors[i];
        ok = cmd_print(err, "  %-40s %-8s %s\n", safe(clean, t->name), dtype_name(t->dtype),
                       st_shape_text(text, t->ndim, t->shape));
    }
    return ok && (!p->done || print_plan(p, err));
}

// ---- run --------------------------------------------------------------------------------------

static bool check(const Cmd *cmd, const Values *v, Error *err) {
    static const char *const of_plan[] = {"width", "height", "batch-count", "steps", "cfg-scale",
                                          "vram",
                                          "device", "threads", "precision"};
    for (size_t i = 0; i < COUNT_OF(of_plan) && !v->plan; i++)
        if (cmd_given(cmd, of_plan[i]))
            return cmd_usage(cmd, err, "--%s: expected --plan beside it, found none", of_plan[i]);
    return true;
}

static bool run(Cmd *cmd, const void *values, Error *err) {
    const Values *v = values;
    if (!check(cmd, v, err)) return false;
    char *path = model_path(cmd->mem, v->path, err);
    StFile *file = path ? st_open(cmd->mem, path, err) : NULL;
    if (!file) return false;
    Summary s = {.path = path};
    recognise(cmd->mem, file, &s);
    count_tensors(file, &s);
    Planned planned = {0};
    bool ok = true;
    if (v->plan && !s.architecture)
        ok = err_failed(err, "%s: expected a model of a known architecture to plan, found none",
                        path);
    ok = ok && (!v->plan || plan_nano(cmd, v, path, &planned, err));
    ok = ok && (v->common.json ? print_json(&s, file, &planned, v->tensors, err)
                               : print_text(&s, file, &planned, v->tensors, err));
    st_close(file);
    if (!ok || !planned.done || planned.fits) return ok;
    char need[32], have[32];
    format_bytes(need, planned.memory.peak_bytes);
    format_bytes(have, planned.budget);
    return err_failed(err,
                      "plan: expected a budget of at least %s (%" PRIu64 " bytes), found %s; raise "
                      "--vram or lower -b", need, planned.memory.peak_bytes, have);
}

const Command cmd_inspect = {
    .name = "inspect",
    .summary = "what a weight file holds, and the memory that a run would take",
    .text = "Reads the header of a weight file: architecture, parts, types, sizes, metadata.",
    .examples = "kiln inspect nano\nkiln inspect run --plan --vram 64M -b 20",
    COMMAND_OPTIONS(Values, options),
    .common_offset = offsetof(Values, common),
    .run = run,
};
