// model_parts.h: which model a user has named, and where its parts are: a diffusers folder, a single
// checkpoint, or one file per part.
//
// Thread-safety: an open ModelParts never changes.
#ifndef KILN_ENGINE_MODEL_PARTS_H
#define KILN_ENGINE_MODEL_PARTS_H

#include "engine/config.h"
#include "engine/weights.h"

typedef enum { PART_TRANSFORMER, PART_CLIP_L, PART_T5, PART_VAE, PART_COUNT } PartId;

// What the user gave; NULL: not given.
typedef struct ModelPaths {
    const char *model;            // -m
    const char *part[PART_COUNT]; // --diffusion-model, --clip-l, --t5xxl, --vae: override
    const char *distill;          // --distill: of a distilled T5-Base in T5's place; "": no path
    bool partial;                 // parts may be missing (convert); at least one is there
} ModelPaths;

typedef struct ModelPart {
    const Weights *weights; // NULL: not there
    const char *path;       // for messages
    ConfigFile config;      // config.json
    const char *tokenizer;  // folder; NULL: the built-in vocabulary
} ModelPart;

typedef struct ModelParts {
    const char *path;         // of the model, as the user named it
    const char *architecture; // "flux"
    ModelPart part[PART_COUNT];
    ConfigFile scheduler;     // scheduler_config.json
    bool distill;
    void (*close)(void *parts); // private: of what made them
} ModelParts;

// "transformer", "clip_l", "t5xxl", "vae"
const char *model_part_name(PartId part);
// The part that weights of this architecture (below) are; PART_COUNT: none. NULL is allowed.
PartId model_part_of(const char *architecture);

// Opens and checks everything; all hangs on `parent` but needs model_parts_close. A model of
// another architecture is refused with the name of what it is; missing parts are listed with the
// options that give them.
ModelParts *model_parts_open(void *parent, const ModelPaths *paths, Error *err);
void model_parts_close(ModelParts *parts); // NULL is allowed

// The name of what a set of weights holds, known by its tensors: "flux", "sd1", "sd2", "sdxl",
// "sdxl-refiner", "sd3", "lora", "clip_l", "t5", "vae", ...; NULL: not recognised. *prefix (may be
// NULL): what stands in front of the part's own names.
const char *weights_architecture(const Weights *w, const char **prefix);
// The same for a pipeline class of diffusers ("StableDiffusionXLPipeline"); NULL: not known.
const char *pipeline_architecture(const char *class_name);
// A sentence part for people: "Stable Diffusion XL (SDXL)". `architecture` as above.
const char *architecture_title(const char *architecture);
// What to do with it where a FLUX.1 model is expected ("give it with --vae"); NULL: nothing.
const char *architecture_hint(const char *architecture);
// Is `path` something for model_parts_open (a diffusers folder, or a file that is no Nano-Sora)?
// False with an error where nothing is there, or nothing that can be read.
bool model_has_parts(const char *path, bool *parts, Error *err);

#endif
