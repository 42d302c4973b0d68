// model_parts.c: see model_parts.h.
#include "engine/model_parts.h"

#include "backend/os.h"
#include "engine/json.h"
#include "engine/model_path.h"

enum { MAX_CONFIG = 1 << 20, MAX_SETS = 4 * PART_COUNT };

// What is closed with the parts.
typedef struct Opened {
    ModelParts parts;
    Weights *set[MAX_SETS];
    int sets;
} Opened;

// ---- recognition --------------------------------------------------------------------------------

typedef struct Kind { const char *name, *title; } Kind;
static const Kind kinds[] = {
    {"flux", "FLUX.1"},
    {"sd1", "Stable Diffusion 1"},
    {"sd2", "Stable Diffusion 2"},
    {"sdxl", "Stable Diffusion XL"},
    {"sdxl-refiner", "Stable Diffusion XL refiner"},
    {"sd3", "Stable Diffusion 3"},
    {"cascade", "Stable Cascade"},
    {"pixart", "PixArt"},
    {"auraflow", "AuraFlow"},
    {"hunyuan-dit", "Hunyuan-DiT"},
    {"z-image", "Z-Image"},
    {"qwen-image", "Qwen-Image"},
    {"controlnet", "a ControlNet"},
    {"clip_l", "a CLIP text encoder"},
    {"t5", "a T5 encoder"},
    {"vae", "an autoencoder"},
    {"nano", "Nano-Sora"},
};

const char *architecture_title(const char *architecture) {
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (!strcmp(kinds[i].name, architecture)) return kinds[i].title;
    return architecture;
}

// A tensor that only this kind has; where several fit, the first row. Names are tried with every
// prefix below in front.
typedef struct Marker { const char *kind, *name, *also; } Marker;
static const Marker markers[] = {
    {"controlnet", "controlnet_cond_embedding.conv_in.weight", NULL},
    {"controlnet", "control_model.input_hint_block.0.weight", NULL},
    {"flux", "double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"},
    {"flux", "transformer_blocks.0.attn.add_q_proj.weight", "single_transformer_blocks.0.proj_mlp.weight"},
    {"sd3", "joint_blocks.0.x_block.attn.qkv.weight", NULL},
    {"sd3", "transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"},
    {"auraflow", "double_layers.0.attn.w1q.weight", NULL},
    {"auraflow", "joint_transformer_blocks.0.attn.to_q.weight", NULL},
    {"qwen-image", "transformer_blocks.0.img_mod.1.weight", NULL},
    {"z-image", "noise_refiner.0.attention.to_q.weight", NULL},
    {"z-image", "noise_refiner.0.attention.qkv.weight", NULL},
    {"hunyuan-dit", "blocks.0.attn2.to_q.weight", NULL},
    {"hunyuan-dit", "blocks.0.default_modulation.1.weight", NULL},
    {"pixart", "adaln_single.linear.weight", NULL},
    {"pixart", "t_block.1.weight", "y_embedder.y_proj.fc1.weight"},
    {"sdxl", "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight", NULL},
    {"sdxl-refiner", "conditioner.embedders.0.model.transformer.resblocks.0.attn.in_proj_weight", NULL},
    {"sd2", "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", NULL},
    {"sd1", "cond_stage_model.transformer.text_model.final_layer_norm.weight", NULL},
    {"sdxl", "add_embedding.linear_1.weight", NULL},
    {"sdxl", "label_emb.0.0.weight", NULL},
    {"cascade", "clip_txt_pooled_mapper.weight", NULL},
    {"sd1", "input_blocks.0.0.weight", NULL},
    {"sd1", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", NULL},
    {"nano", "y_embedder.embedding_table.weight", "x_embedder.proj.weight"},
    {"vae", "decoder.conv_in.weight", NULL},
    {"vae", "decoder.1.weight", NULL},
    {"t5", "encoder.block.0.layer.0.SelfAttention.q.weight", NULL},
    {"t5", "enc.blk.0.attn_q.weight", NULL},
    {"clip_l", "text_model.encoder.layers.0.self_attn.q_proj.weight", NULL},
};
static const char *const prefixes[] = {"", "model.diffusion_model.", "diffusion_model.", "transformer.",
                                       "model.", "vae.", "first_stage_model."};

static bool holds(const Weights *w, const char *prefix, const char *name) {
    if (!name) return true;
    char full[200];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return weights_find(w, full) != NULL;
}

const char *weights_architecture(const Weights *w, const char **prefix) {
    for (size_t i = 0; i < COUNT_OF(markers); i++)
        for (size_t k = 0; k < COUNT_OF(prefixes); k++)
            if (holds(w, prefixes[k], markers[i].name) && holds(w, prefixes[k], markers[i].also)) {
                if (prefix) *prefix = prefixes[k];
                return markers[i].kind;
            }
    return NULL;
}

// Pipelines of diffusers, by the beginning of their class names; longer ones first.
static const struct { const char *start, *kind; } classes[] = {
    {"StableDiffusionXLImg2Img", "sdxl-refiner"}, {"StableDiffusionXL", "sdxl"},
    {"StableDiffusion3", "sd3"}, {"StableDiffusion", "sd1"}, {"StableCascade", "cascade"},
    {"FluxControl", "controlnet"}, {"Flux", "flux"}, {"PixArt", "pixart"}, {"AuraFlow", "auraflow"},
    {"HunyuanDiT", "hunyuan-dit"}, {"ZImage", "z-image"}, {"QwenImage", "qwen-image"},
};

static bool expect_flux(const char *path, const char *kind, const char *found, Error *err) {
    if (kind && !strcmp(kind, "flux")) return true;
    if (!kind)
        return err_failed(err, "%s: expected a FLUX.1 model, found %s", path, found);
    return err_failed(err, "%s: expected a FLUX.1 model, found %s; this version runs FLUX.1 and nano",
                      path, architecture_title(kind));
}

// ---- opening ------------------------------------------------------------------------------------

// Text of a small file; NULL where there is none (or it is too large to be one).
static const char *text_in(void *parent, const char *folder, const char *name) {
    char *path = os_path_join(NULL, folder, name);
    size_t n;
    Error ignored = {0};
    const char *text = os_path_kind(path) == PATH_FILE
                           ? (const char *)os_read_file(parent, path, MAX_CONFIG, &n, &ignored)
                           : NULL;
    mem_free(path);
    return text;
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
    char *index_path = os_path_join(o, path, "model_index.json");
    Json *index = json_parse_file(index_path, MAX_CONFIG, err);
    if (!index) return false;
    const char *class_name = json_string(json_get(index, "_class_name"), "");
    const char *kind = NULL;
    for (size_t i = 0; i < COUNT_OF(classes) && !kind; i++)
        if (!strncmp(class_name, classes[i].start, strlen(classes[i].start))) kind = classes[i].kind;
    char *found = mem_printf(o, "the pipeline \"%.60s\"", class_name);
    json_free(index);
    if (!expect_flux(path, kind, found, err)) return false;
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
        part->config = text_in(o, folder, "config.json");
        part->weights = open_set(o, folder, err);
        if (!part->weights) return false;
    }
    char *scheduler = os_path_join(o, path, "scheduler");
    o->parts.scheduler = text_in(o, scheduler, "scheduler_config.json");
    return true;
}

// One file: the transformer alone, or ComfyUI's checkpoint with everything in it.
static bool open_file(Opened *o, const char *path, Error *err) {
    const Weights *w = open_set(o, path, err);
    if (!w) return false;
    const char *prefix = "", *kind = weights_architecture(w, &prefix);
    if (!expect_flux(path, kind, "tensors of no known model", err)) return false;
    const struct { PartId id; const char *prefix; } inside[] = {
        {PART_TRANSFORMER, prefix},
        {PART_CLIP_L, "text_encoders.clip_l.transformer."},
        {PART_T5, "text_encoders.t5xxl.transformer."},
        {PART_VAE, "vae."},
    };
    for (size_t i = 0; i < COUNT_OF(inside); i++) {
        const Weights *part = part_of(o, w, inside[i].prefix);
        if (part) o->parts.part[inside[i].id] = (ModelPart){.weights = part, .path = path};
    }
    return true;
}

static const struct { const char *option, *kind, *title; } wanted[PART_COUNT] = {
    [PART_TRANSFORMER] = {"--diffusion-model", "flux", "the FLUX.1 transformer"},
    [PART_CLIP_L] = {"--clip-l", "clip_l", "the CLIP-L text encoder"},
    [PART_T5] = {"--t5xxl", "t5", "the T5-XXL text encoder"},
    [PART_VAE] = {"--vae", "vae", "the autoencoder"},
};

static bool open_part(Opened *o, PartId id, const char *path, const char *option, Error *err) {
    ModelPart *part = &o->parts.part[id];
    const Weights *w = open_set(o, path, err);
    if (!w) return err_prefix(err, "%s", option);
    const char *prefix = "", *kind = weights_architecture(w, &prefix);
    // A folder's config.json, or one beside the file, describes it.
    const char *folder = os_path_kind(path) == PATH_DIR ? path : os_dir_name(o, path);
    part->config = os_path_kind(path) == PATH_DIR ? text_in(o, folder, "config.json") : NULL;
    part->path = path;
    if (!kind || strcmp(kind, wanted[id].kind))
        return err_failed(err, "%s: %s: expected %s, found %s", option, path, wanted[id].title,
                          kind ? architecture_title(kind) : "tensors of no known model");
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
    if (!paths->distill || paths->distill_path) return true;
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
    if (paths->distill && !open_part(o, PART_T5, paths->distill_path, "--distill", err)) return false;
    o->parts.distill = paths->distill;
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

bool model_has_parts(const char *path) {
    char *index = os_path_join(NULL, path, "model_index.json");
    bool folder = os_path_kind(index) == PATH_FILE;
    mem_free(index);
    if (folder) return true;
    void *scratch = mem_new(NULL, 1);
    Error ignored = {0};
    const char *file = os_path_kind(path) == PATH_DIR ? path : model_path(scratch, path, &ignored);
    Weights *w = file ? weights_open(scratch, file, &ignored) : NULL;
    bool nano = w && weights_meta(w, "kiln.config");
    bool parts = w && !nano;
    weights_close(w);
    mem_free(scratch);
    return parts;
}
