// model_parts.c: see model_parts.h.
#include "engine/model_parts.h"

#include "backend/os.h"
#include "engine/json.h"
#include "engine/model_path.h"

enum { MAX_SETS = 4 * PART_COUNT };
#define MODEL "a FLUX.1 model"

// What is closed with the parts.
typedef struct Opened {
    ModelParts parts;
    Weights *set[MAX_SETS];
    int sets;
} Opened;

// ---- recognition --------------------------------------------------------------------------------

static bool wrong_kind(const char *what, const char *expected, const Weights *w, const char *kind,
                       Error *err) {
    if (kind) {
        const char *hint = architecture_hint(kind);
        return err_failed(err, "%s: expected %s, found %s; %s", what, expected, architecture_title(kind),
                          hint ? hint : "this version runs FLUX.1 and Nano-Sora");
    }
    return err_failed(err, "%s: expected %s, found tensors of no known model (%.100s first)", what, expected,
                      weights_count(w) ? weights_at(w, 0)->name : "none");
}

// ---- opening ------------------------------------------------------------------------------------

// The pipeline's kind; for Stable Diffusion the UNet's own configuration tells which.
static const char *folder_kind(const char *path, const char *class_name) {
    const char *kind = pipeline_architecture(class_name);
    if (!kind || strncmp(kind, "sd", 2)) return kind;
    static const struct { const char *kind; int64_t width; const char *is; } narrower[] = {
        {"sd1", 1024, "sd2"}, {"sdxl", 1280, "sdxl-refiner"}, {"sdxl-refiner", 2048, "sdxl"}};
    void *scratch = mem_new(NULL, 1);
    ConfigFile file;
    config_read(scratch, os_path_join(scratch, path, "unet"), "config.json", &file, NULL);
    Json *config = file.text ? config_parse(&file, NULL) : NULL;
    int64_t width = json_int(json_get(config, "cross_attention_dim"), 0);
    for (size_t i = 0; i < COUNT_OF(narrower); i++)
        if (!strcmp(kind, narrower[i].kind) && width == narrower[i].width) {
            kind = narrower[i].is;
            break;
        }
    json_free(config);
    mem_free(scratch);
    return kind;
}

static Weights *open_set(Opened *o, const char *path, Error *err) {
    Weights *w = weights_open(o, path, err);
    if (w) o->set[o->sets++] = w;
    return w;
}

static const Weights *part_of(Opened *o, const Weights *w, const char *prefix) {
    if (!*prefix) return w;
    Weights *part = weights_part(o, w, prefix);
    if (weights_count(part) == 0) {
        weights_close(part);
        return NULL;
    }
    return o->set[o->sets++] = part;
}

// diffusers: model_index.json and one folder per part.
typedef struct Folder { PartId id; const char *name, *tokenizer; } Folder;
static const Folder folders[] = {
    {PART_TRANSFORMER, "transformer", NULL},
    {PART_CLIP_L, "text_encoder", "tokenizer"},
    {PART_T5, "text_encoder_2", "tokenizer_2"},
    {PART_VAE, "vae", NULL},
};

static bool open_folder(Opened *o, const ModelPaths *paths, Error *err) {
    const char *path = paths->model;
    ConfigFile file;
    Json *index = config_read(o, path, "model_index.json", &file, err) ? config_parse(&file, err) : NULL;
    if (!index) return false;
    const char *class_name = json_string(json_get(index, "_class_name"), "");
    const char *kind = folder_kind(path, class_name);
    bool ok = kind && !strcmp(kind, "flux");
    if (!ok && kind) wrong_kind(path, MODEL, NULL, kind, err);
    else if (!ok)
        err_failed(err, "%s: expected " MODEL ", found the pipeline \"%.60s\" in its model_index.json", path,
                   class_name);
    json_free(index);
    if (!ok) return false;
    for (size_t i = 0; i < COUNT_OF(folders); i++) {
        const Folder *f = &folders[i];
        ModelPart *part = &o->parts.part[f->id];
        char *folder = os_path_join(o, path, f->name);
        if (f->tokenizer) {
            char *tokenizer = os_path_join(o, path, f->tokenizer);
            if (os_path_kind(tokenizer) == PATH_DIR) part->tokenizer = tokenizer;
        }
        bool replaced = paths->part[f->id] || (f->id == PART_T5 && paths->distill);
        if (replaced || os_path_kind(folder) != PATH_DIR) continue;
        part->path = folder;
        if (!config_read(o, folder, "config.json", &part->config, err)) return false;
        part->weights = open_set(o, folder, err);
        if (!part->weights) return false;
    }
    char *scheduler = os_path_join(o, path, "scheduler");
    return config_read(o, scheduler, "scheduler_config.json", &o->parts.scheduler, err);
}

// One file: the transformer alone, or ComfyUI's checkpoint with everything in it.
static bool open_file(Opened *o, const char *path, Error *err) {
    const Weights *w = open_set(o, path, err);
    if (!w) return false;
    const char *prefix = "", *kind = weights_architecture(w, &prefix);
    if (!kind || strcmp(kind, "flux")) return wrong_kind(path, MODEL, w, kind, err);
    const struct { PartId id; const char *prefix; } inside[] = {
        {PART_TRANSFORMER, prefix},
        {PART_CLIP_L, "text_encoders.clip_l.transformer."},
        {PART_T5, "text_encoders.t5xxl.transformer."},
        {PART_VAE, "vae."},
        {PART_VAE, "first_stage_model."},
    };
    for (size_t i = 0; i < COUNT_OF(inside); i++) {
        if (o->parts.part[inside[i].id].weights) continue;
        const Weights *part = part_of(o, w, inside[i].prefix);
        if (part) o->parts.part[inside[i].id] = (ModelPart){.weights = part, .path = path};
    }
    return true;
}

static const struct { const char *name, *option, *kind, *title; } wanted[PART_COUNT] = {
    [PART_TRANSFORMER] = {"transformer", "--diffusion-model", "flux", "the FLUX.1 transformer"},
    [PART_CLIP_L] = {"clip_l", "--clip-l", "clip_l", "the CLIP-L text encoder"},
    [PART_T5] = {"t5xxl", "--t5xxl", "t5", "the T5-XXL text encoder"},
    [PART_VAE] = {"vae", "--vae", "vae", "the autoencoder"},
};

const char *model_part_name(PartId part) { return wanted[part].name; }

PartId model_part_of(const char *architecture) {
    int i = 0;
    while (architecture && i < PART_COUNT && strcmp(wanted[i].kind, architecture)) i++;
    return architecture ? (PartId)i : PART_COUNT;
}

static bool open_part(Opened *o, PartId id, const char *path, const char *option, Error *err) {
    ModelPart *part = &o->parts.part[id];
    const Weights *w = open_set(o, path, err);
    if (!w) return err_prefix(err, "%s", option);
    const char *prefix = "", *kind = weights_architecture(w, &prefix);
    part->path = path;
    part->config = (ConfigFile){0}; // of a replaced part
    bool folder = os_path_kind(path) == PATH_DIR;
    if (folder && !config_read(o, path, "config.json", &part->config, err)) return false;
    if (!kind || strcmp(kind, wanted[id].kind)) {
        char *what = mem_printf(o, "%s: %s", option, path);
        return wrong_kind(what, wanted[id].title, w, kind, err);
    }
    part->weights = part_of(o, w, prefix);
    return true;
}

static bool check_complete(const Opened *o, bool partial, Error *err) {
    int missing = 0;
    for (int i = 0; i < PART_COUNT; i++) missing += !o->parts.part[i].weights;
    if (!missing || (partial && missing < PART_COUNT)) return true;
    err_failed(err, "%s: expected a model with all its parts, found %d missing; give them",
               o->parts.path, missing);
    for (int i = 0; i < PART_COUNT; i++)
        if (!o->parts.part[i].weights) err_item(err, "%s: %s FILE", wanted[i].title, wanted[i].option);
    return false;
}

static bool check_distill(const ModelPaths *paths, Error *err) {
    if (!paths->distill || *paths->distill) return true;
    err_failed(err, "--distill: expected the path of a distilled T5-Base, found none; give "
               "--distill PATH, a folder or file with");
    err_item(err, "encoder.block.N.layer.*: a T5-Base encoder (768 wide, 12 blocks, gated GELU)");
    err_item(err, "final_projection.0.weight [4096, 768] and final_projection.3.weight [4096, 4096]");
    err_item(err, "(without the projection its states are padded with zeros to 4096)");
    return false;
}

static bool open_all(Opened *o, const ModelPaths *paths, Error *err) {
    if (!check_distill(paths, err)) return false;
    if (paths->model && os_path_kind(paths->model) == PATH_DIR) {
        char *index = os_path_join(o, paths->model, "model_index.json");
        bool folder = os_path_kind(index) == PATH_FILE;
        if (!(folder ? open_folder(o, paths, err) : open_file(o, paths->model, err))) return false;
    } else if (paths->model) {
        char *path = model_path(o, paths->model, err);
        if (!path || !open_file(o, path, err)) return false;
    }
    for (int i = 0; i < PART_COUNT; i++)
        if (paths->part[i] && !(i == PART_T5 && paths->distill) &&
            !open_part(o, (PartId)i, paths->part[i], wanted[i].option, err))
            return false;
    if (paths->distill && !open_part(o, PART_T5, paths->distill, "--distill", err)) return false;
    o->parts.distill = paths->distill != NULL;
    return check_complete(o, paths->partial, err);
}

static void close_opened(void *parts) {
    Opened *o = parts; // its first member
    while (o->sets) weights_close(o->set[--o->sets]);
    mem_free(o);
}

ModelParts *model_parts_open(void *parent, const ModelPaths *paths, Error *err) {
    Opened *o = MEM_NEW(parent, Opened);
    const char *first = paths->model;
    for (int i = 0; i < PART_COUNT && !first; i++) first = paths->part[i];
    o->parts.path = mem_strdup(o, first ? first : "model");
    o->parts.architecture = "flux";
    o->parts.close = close_opened;
    if (open_all(o, paths, err)) return &o->parts;
    model_parts_close(&o->parts);
    return NULL;
}

void model_parts_close(ModelParts *parts) {
    if (parts) parts->close(parts);
}

bool model_has_parts(const char *path, bool *parts, Error *err) {
    void *scratch = mem_new(NULL, 1);
    char *index = os_path_join(scratch, path, "model_index.json");
    *parts = os_path_kind(index) == PATH_FILE;
    if (!*parts) {
        const char *file = model_path(scratch, path, err); // a shipped name before a folder
        if (!file && os_path_kind(path) == PATH_DIR) file = path;
        Weights *w = file ? weights_open(scratch, file, err) : NULL;
        if (!w) {
            mem_free(scratch);
            return false;
        }
        *parts = !weights_meta(w, "kiln.config");
        weights_close(w);
    }
    mem_free(scratch);
    return true;
}
