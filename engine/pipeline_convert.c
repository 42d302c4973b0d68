// pipeline_convert.c: see pipeline_convert.h.
#include "engine/pipeline_convert.h"

#include "backend/os.h"
#include "engine/model_path.h"
#include "models/clip.h"
#include "models/flux.h"
#include "models/t5.h"

// What a part is alone, and what stands in front of its tensors beside other parts.
static const struct { const char *what, *prefix, *architecture; } part_of[PART_COUNT] = {
    [PART_TRANSFORMER] = {"FLUX.1's transformer, original names", "model.diffusion_model.", "flux"},
    [PART_CLIP_L] = {"CLIP-L, transformers' names", "text_encoders.clip_l.transformer.", "clip_l"},
    [PART_T5] = {"T5, transformers' names", "text_encoders.t5xxl.transformer.", "t5encoder"},
    [PART_VAE] = {"the autoencoder, its own names", "vae.", "vae"},
};

// ---- one part -----------------------------------------------------------------------------------

typedef struct PartTensors {
    const BoundWeight *weight;
    int count;
    const char *const *keep;
} PartTensors;

static bool bind_part(void *parent, PartId id, const Weights *w, const ConfigFile *config,
                      PartTensors *out, Error *err) {
    if (id == PART_TRANSFORMER) {
        const FluxModel *m = flux_open(parent, w, config, DT_COUNT, err);
        if (m) *out = (PartTensors){m->weight, m->count, flux_keep};
        return m != NULL;
    }
    if (id == PART_T5) {
        const T5Model *m = t5_open(parent, w, config, DT_COUNT, err);
        if (m) *out = (PartTensors){m->weight, m->count, t5_keep};
        return m != NULL;
    }
    static const char *const clip_keep[] = {"text_model.embeddings.", NULL};
    const ClipModel *m = clip_open(parent, w, config, err);
    if (m) *out = (PartTensors){m->weight, m->count, clip_keep};
    return m != NULL;
}

static bool add_part(ConvertModel *m, PartId id, const Weights *w, const ConfigFile *config,
                     const char *prefix, ConvertRules rules, const ConvertModelOptions *o,
                     Error *err) {
    Conversion *c = m->conversion;
    bool ok;
    if (id == PART_VAE) {
        ok = conversion_add_all(c, prefix, w, &rules, err);
    } else {
        PartTensors tensors;
        ok = bind_part(m, id, w, config, &tensors, err);
        for (int i = 0; ok && i < tensors.count; i++) {
            const BoundWeight *b = &tensors.weight[i];
            bool llama = id == PART_T5 && o->format == CONVERT_GGUF;
            char *name = mem_printf(m, "%s%s", prefix, llama ? t5_gguf_name(m, b->name) : b->name);
            rules.keep = bind_matches(b->name, tensors.keep);
            ok = conversion_add(c, name, b, &rules, err) || err_prefix(err, "%s", weights_path(w));
            mem_free(name);
        }
    }
    if (ok) conversion_mark(c, prefix);
    return ok;
}

// ---- a model with parts -------------------------------------------------------------------------

static bool no_such_part(const ConvertModelOptions *o, const char *path, Error *err) {
    return err_failed(err, "%s: expected the part %s that --part names, found none of it", path,
                      model_part_name(o->part));
}

// Which parts to take. GGUF files hold one.
static bool choose_parts(ConvertModel *m, const ConvertModelOptions *o, bool take[PART_COUNT],
                         int *count, Error *err) {
    const ModelPart *part = m->parts->part;
    *count = 0;
    for (int i = 0; i < PART_COUNT; i++) {
        take[i] = part[i].weights && (o->part == PART_COUNT || o->part == (PartId)i);
        *count += take[i];
    }
    if (*count == 0) return no_such_part(o, m->parts->path, err);
    if (*count == 1 || o->format != CONVERT_GGUF) return true;
    if (!take[PART_TRANSFORMER])
        return err_failed(err, "%s: expected one part for a GGUF file, found %d; give --part, or "
                          "--output FILE.safetensors for all", m->parts->path, *count);
    for (int i = 0; i < PART_COUNT; i++) take[i] = i == PART_TRANSFORMER;
    *count = 1;
    m->note = "a GGUF file holds the transformer alone, as ComfyUI-GGUF reads it: the other parts "
              "are left out (--part takes one of them, a .safetensors takes all)";
    return true;
}

static bool add_parts(ConvertModel *m, const ConvertModelOptions *o, Error *err) {
    bool take[PART_COUNT];
    int count;
    if (!choose_parts(m, o, take, &count, err)) return false;
    m->architecture = m->parts->architecture;
    m->what = "a checkpoint of several parts, ComfyUI's names";
    for (int i = 0; i < PART_COUNT; i++) {
        const ModelPart *part = &m->parts->part[i];
        if (!take[i]) continue;
        bool small = count > 1 && (i == PART_CLIP_L || i == PART_VAE);
        const ConvertRules rules = {.type = small ? DT_COUNT : o->type,
                                    .widen = o->type != DT_COUNT};
        if (count == 1) {
            m->what = part_of[i].what;
            m->architecture = part_of[i].architecture;
        }
        if (!add_part(m, (PartId)i, part->weights, &part->config, count > 1 ? part_of[i].prefix : "",
                      rules, o, err))
            return false;
    }
    return true;
}

// ---- one set of weights -------------------------------------------------------------------------

static void copy_meta(ConvertModel *m) {
    const char *value;
    for (int i = 0; i < weights_meta_count(m->file); i++) {
        const char *key = weights_meta_at(m->file, i, &value);
        conversion_meta(m->conversion, key, value);
    }
}

static bool check_nano(const ConvertModel *m, const ConvertModelOptions *o, Error *err) {
    const char *path = weights_path(m->file);
    if (weights_meta(m->file, "kiln.state"))
        return err_failed(err, "%s: expected a model, found a training checkpoint; take the "
                          "model.safetensors beside it", path);
    bool plain = o->type == DT_COUNT || !dtype_is_packed(o->type);
    if (o->format == CONVERT_SAFETENSORS && plain) return true;
    return err_failed(err, "%s: expected f32, f16 or bf16 in a .safetensors for Nano-Sora, found "
                      "%s; it is read from nothing else", path,
                      plain ? "a .gguf" : dtype_name(o->type));
}

static bool add_file(ConvertModel *m, const ConvertModelOptions *o, Error *err) {
    const char *prefix = "", *kind = weights_architecture(m->file, &prefix);
    const ConvertRules rules = {.type = o->type, .widen = o->type != DT_COUNT};
    PartId part = model_part_of(kind);
    if (o->part != PART_COUNT && o->part != part)
        return no_such_part(o, weights_path(m->file), err);
    m->architecture = kind;
    if (kind && !strcmp(kind, "nano") && !check_nano(m, o, err)) return false;
    if (o->format == CONVERT_SAFETENSORS && !strcmp(weights_format(m->file), "safetensors"))
        copy_meta(m);
    if (part == PART_COUNT || part == PART_VAE) {
        m->what = part == PART_VAE ? part_of[part].what
                  : kind ? mem_printf(m, "%s, its own names", architecture_title(kind))
                         : "weights that are not recognised, their own names";
        return add_part(m, PART_VAE, m->file, NULL, "", rules, o, err);
    }
    m->what = part_of[part].what;
    m->architecture = part_of[part].architecture;
    return add_part(m, part, m->file, NULL, "", rules, o, err);
}

// Has the user named several parts, or a model that may have them?
static bool has_parts(ConvertModel *m, const ConvertModelOptions *o, bool *parts, Error *err) {
    const char *path = o->paths.model;
    *parts = o->paths.distill != NULL;
    for (int i = 0; i < PART_COUNT; i++) *parts = *parts || o->paths.part[i];
    if (*parts || !path) return true;
    char *index = os_path_join(m, path, "model_index.json");
    *parts = os_path_kind(index) == PATH_FILE;
    if (*parts) return true;
    if (os_path_kind(path) != PATH_DIR) path = model_path(m, path, err);
    m->file = path ? weights_open(m, path, err) : NULL;
    const char *kind = m->file ? weights_architecture(m->file, NULL) : NULL;
    *parts = kind && !strcmp(kind, "flux");
    return m->file != NULL;
}

ConvertModel *convert_model_open(void *parent, const ConvertModelOptions *o, Error *err) {
    ConvertModel *m = MEM_NEW(parent, ConvertModel);
    bool parts = false, ok = has_parts(m, o, &parts, err);
    if (ok) m->conversion = conversion_new(m, o->format, o->type);
    if (ok && parts) {
        ModelPaths paths = o->paths;
        paths.partial = true;
        m->parts = model_parts_open(m, &paths, err);
        ok = m->parts && add_parts(m, o, err);
    } else if (ok) {
        ok = add_file(m, o, err);
    }
    if (ok) {
        conversion_architecture(m->conversion, m->architecture ? m->architecture : "unknown");
        return m;
    }
    convert_model_close(m);
    return NULL;
}

void convert_model_close(ConvertModel *m) {
    if (!m) return;
    model_parts_close(m->parts);
    weights_close(m->file);
    mem_free(m);
}

// ---- is the result a source? --------------------------------------------------------------------

// Folders down to `depth`: those of a model's parts.
static bool is_below(const char *folder, const char *path, int depth) {
    void *scope = mem_new(NULL, 1);
    char **names;
    int count;
    bool found = false;
    if (os_list(scope, folder, &names, &count, NULL))
        for (int i = 0; i < count && !found; i++) {
            char *inner = os_path_join(scope, folder, names[i]);
            found = os_path_kind(inner) == PATH_DIR ? depth > 0 && is_below(inner, path, depth - 1)
                                                    : os_same_file(inner, path);
        }
    mem_free(scope);
    return found;
}

static bool is_inside(const char *source, const char *path) {
    if (!source) return false;
    void *scope = mem_new(NULL, 1);
    bool found;
    if (os_path_kind(source) == PATH_DIR) {
        found = is_below(source, path, 1);
    } else {
        const char *file = model_path(scope, source, NULL);
        found = file && os_same_file(file, path);
        if (file && str_ends(file, ".index.json")) // its shards lie beside it
            found = found || is_below(os_dir_name(scope, file), path, 0);
    }
    mem_free(scope);
    return found;
}

bool convert_is_source(const ModelPaths *paths, const char *path) {
    if (os_path_kind(path) != PATH_FILE) return false;
    bool found = is_inside(paths->model, path) || is_inside(paths->distill, path);
    for (int i = 0; i < PART_COUNT; i++) found = found || is_inside(paths->part[i], path);
    return found;
}
