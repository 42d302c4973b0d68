// cmd_inspect.c: `kiln inspect`: what weight files hold, and the memory that a run would take.
#include "tools/inspect.h"

#include "engine/safetensors.h"
#include "engine/schedule.h"

#include <inttypes.h>

#define V(f) FIELD(InspectValues, f)

static const Option options[] = {
    {.name = "PATH", .kind = OPT_TEXT, V(names.paths.model), .operand = true,
     .help = "A weight file (.safetensors, .gguf, a PyTorch checkpoint), a diffusers folder, or "
             "nano (the shipped model)."},
    {.name = "tensors", .kind = OPT_FLAG, V(tensors), .group = "file",
     .help = "List every tensor: name, type, shape."},
    DUMMY_OPTIONS(InspectValues),
    PART_OPTIONS(InspectValues),
    {.name = "distill", .kind = OPT_MAYBE, V(names.paths.distill), .value = "PATH",
     .help = "A distilled T5-Base in place of T5-XXL; without PATH: which files are expected."},
    {.name = "type", .kind = OPT_TEXT, V(names.type), .value = "TYPE", .group = "plan",
     .says = "as in the file", .help = "Type of the weights on the device."},
    {.name = "plan", .kind = OPT_FLAG, V(plan),
     .help = "Plan a run without allocating anything, and show what it would take, stage by "
             "stage."},
    {.name = "width", .letter = 'W', .kind = OPT_INT, V(width), .value = "PIXELS", .min = 8,
     .max = 16384, .says = "the model's", .help = "Width of the pictures."},
    {.name = "height", .letter = 'H', .kind = OPT_INT, V(height), .value = "PIXELS", .min = 8,
     .max = 16384, .says = "the model's", .help = "Height of the pictures."},
    {.name = "batch-count", .letter = 'b', .kind = OPT_INT, V(batch), .value = "N", .min = 1,
     .max = 10000, .fallback = "1", .help = "Pictures in all."},
    {.name = "steps", .kind = OPT_INT, V(steps), .value = "N", .min = 1, .max = SCHEDULE_MAX_STEPS,
     .says = "the model's", .help = "Sampling steps."},
    {.name = "cfg-scale", .kind = OPT_NUMBER, V(cfg_scale), .value = "SCALE", .min = 0, .max = 100,
     .fallback = "4", .says = "the model's", .help = "Guidance; 1: none, which takes less memory."},
    {.name = "t5-tokens", .kind = OPT_INT, V(t5_tokens), .value = "N", .min = 1, .max = 512,
     .says = "the model's", .help = "Length of the text."},
    PRECISION_OPTION(InspectValues),
    COMMON_OPTIONS(InspectValues),
};

// ---- JSON -------------------------------------------------------------------------------------

static const Weights *next_set(const Inspected *in, int k) { // of part k, once per set
    for (int i = 0; i < k; i++)
        if (in->part[i].weights == in->part[k].weights) return NULL;
    return in->part[k].weights;
}

static void put_tensors(JsonOut *w, const Inspected *in) {
    json_key(w, "tensor_list"), json_open(w, '[');
    for (int k = 0; k < in->parts; k++) {
        const Weights *set = next_set(in, k);
        for (int i = 0; set && i < weights_count(set); i++) {
            const WeightTensor *t = weights_at(set, i);
            json_open(w, '{');
            json_key(w, "name"), json_put_string(w, t->name);
            json_key(w, "part"),
                json_put_string(w, in->part[MAX(inspect_part_of(in, set, t->name), 0)].name);
            json_key(w, "type"), json_put_string(w, dtype_name(t->dtype));
            json_key(w, "shape"), json_open(w, '[');
            for (int d = 0; d < t->ndim; d++) json_put_int(w, t->shape[d]);
            json_close(w, ']');
            json_key(w, "bytes"), json_put_uint(w, t->bytes);
            json_close(w, '}');
        }
    }
    json_close(w, ']');
}

static void put_plan(JsonOut *w, const InspectPlan *p) {
    json_key(w, "device"), json_put_string(w, p->device);
    json_key(w, "planning_ms"), json_put_number(w, p->plan.planning_ms);
    json_key(w, "peak_bytes"), json_put_uint(w, p->plan.peak_bytes);
    json_key(w, "smallest_bytes"), json_put_uint(w, p->smallest);
    json_key(w, "budget_bytes"), json_put_uint(w, p->budget);
    json_key(w, "driver_bytes"), json_put_uint(w, p->plan.driver_bytes);
    json_key(w, "fits"), json_put_bool(w, p->fits);
    json_key(w, "stages"), json_open(w, '[');
    for (int i = 0; i < p->plan.stages; i++) {
        const FluxStagePlan *s = &p->plan.stage[i];
        json_open(w, '{');
        json_key(w, "name"), json_put_string(w, s->name);
        if (s->pictures) json_key(w, "pictures"), json_put_int(w, s->pictures);
        json_key(w, "resident_bytes"), json_put_uint(w, s->resident_bytes);
        json_key(w, "streamed_bytes"), json_put_uint(w, s->streamed_bytes);
        json_key(w, "arena_bytes"), json_put_uint(w, s->arena_bytes);
        json_key(w, "peak_bytes"), json_put_uint(w, s->peak_bytes);
        json_key(w, "moved_bytes_per_step"), json_put_uint(w, s->moved_bytes_per_step);
        json_key(w, "units"), json_put_int(w, s->units);
        json_key(w, "streamed_units"), json_put_int(w, s->streamed_units);
        json_close(w, '}');
    }
    json_close(w, ']');
}

static bool print_json(const Inspected *in, const InspectPlan *p, bool tensors, Error *err) {
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "path"), json_put_string(&w, in->path);
    json_key(&w, "architecture"), json_put_string(&w, in->architecture);
    json_key(&w, "variant"), json_put_string(&w, in->variant);
    json_key(&w, "parts"), json_open(&w, '[');
    for (int i = 0; i < in->parts; i++) {
        json_open(&w, '{');
        json_key(&w, "name"), json_put_string(&w, in->part[i].name);
        json_key(&w, "path"), json_put_string(&w, in->part[i].path);
        json_key(&w, "format"), json_put_string(&w, weights_format(in->part[i].weights));
        json_key(&w, "tensors"), json_put_int(&w, in->part[i].tensors);
        json_key(&w, "bytes"), json_put_uint(&w, in->part[i].bytes);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    json_key(&w, "tensors"), json_put_int(&w, in->tensors);
    json_key(&w, "parameters"), json_put_uint(&w, in->numbers);
    json_key(&w, "bytes"), json_put_uint(&w, in->bytes);
    json_key(&w, "types"), json_open(&w, '{');
    for (int t = 0; t < DT_COUNT; t++)
        if (in->by_type[t])
            json_key(&w, dtype_name((DType)t)), json_put_uint(&w, in->type_bytes[t]);
    json_close(&w, '}');
    json_key(&w, "metadata"), json_open(&w, '{');
    for (int i = 0; in->file && i < weights_meta_count(in->file); i++) {
        const char *value, *key = weights_meta_at(in->file, i, &value);
        json_key(&w, key), json_put_string(&w, value);
    }
    json_close(&w, '}');
    if (tensors) put_tensors(&w, in);
    if (p) put_plan(&w, p);
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

static bool print_plan(const InspectPlan *p, Error *err) {
    char peak[32], budget[32], driver[32], smallest[32];
    bool ok = cmd_print(err, "plan on %s, made in %.1f ms:\n  %-16s %12s %12s %12s %12s %14s  %s\n",
                        p->device, p->plan.planning_ms, "stage", "resident", "streamed", "arena",
                        "peak", "moved per step", "blocks");
    for (int i = 0; i < p->plan.stages && ok; i++) {
        const FluxStagePlan *s = &p->plan.stage[i];
        char text[5][32], units[64] = "all resident", pictures[48] = "";
        const uint64_t bytes[] = {s->resident_bytes, s->streamed_bytes, s->arena_bytes,
                                  s->peak_bytes, s->moved_bytes_per_step};
        for (size_t k = 0; k < COUNT_OF(bytes); k++) format_bytes(text[k], bytes[k]);
        if (s->streamed_units)
            snprintf(units, sizeof units, "%d resident, %d streamed", s->units - s->streamed_units,
                     s->streamed_units);
        if (s->pictures > 1) snprintf(pictures, sizeof pictures, "; %d pictures at once", s->pictures);
        ok = cmd_print(err, "  %-16s %12s %12s %12s %12s %14s  %s%s\n", s->name, text[0], text[1],
                       text[2], text[3], text[4], units, pictures);
    }
    format_bytes(peak, p->plan.peak_bytes);
    format_bytes(budget, p->budget);
    format_bytes(driver, p->plan.driver_bytes);
    format_bytes(smallest, p->smallest);
    return ok &&
           cmd_print(err,
                     "  peak %s of %s (and %s for the driver): %s\n  smallest budget that works: "
                     "%s (%" PRIu64 " bytes)\n",
                     peak, budget, driver, p->fits ? "fits" : "does not fit", smallest,
                     p->smallest);
}

static bool print_tensors(const Inspected *in, Error *err) {
    char text[128], clean[100];
    for (int k = 0; k < in->parts; k++) {
        const Weights *set = next_set(in, k);
        for (int i = 0; set && i < weights_count(set); i++) {
            const WeightTensor *t = weights_at(set, i);
            if (!cmd_print(err, "  %-40s %-8s %s\n", safe(clean, t->name), dtype_name(t->dtype),
                           st_shape_text(text, t->ndim, t->shape)))
                return false;
        }
    }
    return true;
}

static bool print_text(const Inspected *in, const InspectPlan *p, bool tensors, Error *err) {
    char bytes[32], clean[100];
    format_bytes(bytes, in->bytes);
    bool ok = cmd_print(err, "%s: %s%s%s, %d tensors, %" PRIu64 " parameters, %s\n", in->path,
                        in->architecture ? in->architecture : "architecture not recognised",
                        in->variant ? " " : "", in->variant ? in->variant : "", in->tensors,
                        in->numbers, bytes);
    if (ok && in->title) ok = cmd_print(err, "  %s\n", in->title);
    for (int i = 0; i < in->parts && ok && in->parts > 1; i++) {
        format_bytes(bytes, in->part[i].bytes);
        ok = cmd_print(err, "  part %s: %d tensors, %s (%s)\n", in->part[i].name,
                       in->part[i].tensors, bytes, weights_format(in->part[i].weights));
    }
    for (int t = 0; t < DT_COUNT && ok; t++) {
        if (!in->by_type[t]) continue;
        format_bytes(bytes, in->type_bytes[t]);
        ok = cmd_print(err, "  type %s: %d tensors, %s\n", dtype_name((DType)t), in->by_type[t],
                       bytes);
    }
    for (int i = 0; in->file && i < weights_meta_count(in->file) && ok; i++) {
        const char *value, *key = weights_meta_at(in->file, i, &value);
        ok = cmd_print(err, "  %s: ", safe(clean, key)) &&
             cmd_print(err, "%s\n", safe(clean, value));
    }
    return ok && (!tensors || print_tensors(in, err)) && (!p || print_plan(p, err));
}

// ---- run --------------------------------------------------------------------------------------

static bool check(const Cmd *cmd, const InspectValues *v, Error *err) {
    static const char *const of_plan[] = {"width",     "height",    "batch-count", "steps",
                                          "cfg-scale", "t5-tokens", "type",        "vram",
                                          "device",    "threads",   "precision"};
    DType type;
    if (!cmd_weight_type(v->names.type, &type, err)) return err_prefix(err, "inspect");
    if (!text_model_check(cmd, &v->names, "PATH", err)) return false;
    for (size_t i = 0; i < COUNT_OF(of_plan) && !v->plan; i++)
        if (cmd_given(cmd, of_plan[i]) && !(v->names.dummy && !strcmp(of_plan[i], "type")))
            return cmd_usage(cmd, err, "--%s: expected --plan beside it, found none", of_plan[i]);
    return true;
}

static bool run(Cmd *cmd, const void *values, Error *err) {
    const InspectValues *v = values;
    Inspected in = {0};
    InspectPlan plan;
    if (!check(cmd, v, err)) return false;
    bool ok = inspect_open(cmd, v, &in, err) && (!v->plan || inspect_plan(cmd, v, &in, &plan, err));
    const InspectPlan *shown = v->plan ? &plan : NULL;
    ok = ok && (v->common.json ? print_json(&in, shown, v->tensors, err)
                               : print_text(&in, shown, v->tensors, err));
    inspect_close(&in);
    if (!ok || !v->plan || plan.fits) return ok;
    char need[32], have[32];
    format_bytes(need, plan.plan.peak_bytes);
    format_bytes(have, plan.budget);
    return err_failed(err,
                      "plan: expected a budget of at least %s (%" PRIu64 " bytes), found %s; raise "
                      "--vram or lower -b",
                      need, plan.plan.peak_bytes, have);
}

const Command cmd_inspect = {
    .name = "inspect",
    .summary = "what weight files hold, and the memory that a run would take",
    .text = "Reads the headers of weight files: architecture, parts, types, sizes, metadata.",
    .examples = "kiln inspect nano\nkiln inspect run --plan --vram 64M -b 20\n"
                "kiln inspect --dummy=flux-dev --type fp8 --plan --vram 8G",
    COMMAND_OPTIONS(InspectValues, options),
    .common_offset = offsetof(InspectValues, common),
    .run = run,
};
