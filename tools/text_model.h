// text_model.h: opening the model that a command line names: files, parts or synthetic weights, with
// the device and precision asked for. Shared by generate, inspect and bench.
#ifndef KILN_TOOLS_TEXT_MODEL_H
#define KILN_TOOLS_TEXT_MODEL_H

#include "engine/pipeline_flux.h"
#include "tools/cmd.h"

// The values of the options that name a model; NULL: not given.
typedef struct TextModelNames {
    ModelPaths paths;        // model: -m, inspect's PATH
    const char *dummy;       // "": without a value
    const char *dummy_scale; // "1/16"; NULL: 1
    const char *type;        // NULL: as in the file
} TextModelNames;

// The rows that read alike everywhere; T has `TextModelNames names`.
#define PART_FIELD(T, part_id) FIELD(T, names.paths.part[part_id])
#define PART_OPTIONS(T)                                                                          \
    {.name = "diffusion-model", .kind = OPT_TEXT, PART_FIELD(T, PART_TRANSFORMER),               \
     .value = "FILE",                                                                            \
     .help = "The transformer. Parts in files of their own take the place of the model's; all "  \
             "four make a model."},                                                              \
    {.name = "clip-l", .kind = OPT_TEXT, PART_FIELD(T, PART_CLIP_L), .value = "FILE",            \
     .help = "The CLIP-L text encoder."},                                                        \
    {.name = "t5xxl", .kind = OPT_TEXT, PART_FIELD(T, PART_T5), .value = "FILE",                 \
     .help = "The T5-XXL text encoder."},                                                        \
    {.name = "vae", .kind = OPT_TEXT, PART_FIELD(T, PART_VAE), .value = "FILE",                  \
     .help = "The autoencoder."}
#define DUMMY_OPTIONS(T)                                                                         \
    {.name = "dummy", .kind = OPT_MAYBE, FIELD(T, names.dummy), .value = "NAME",                 \
     .group = "model",                                                                           \
     .help = "A model with synthetic weights, no files needed: flux-dev (when no name is given) " \
             "or flux-schnell. Its pictures mean nothing; time and memory do."},                 \
    {.name = "dummy-scale", .kind = OPT_TEXT, FIELD(T, names.dummy_scale), .value = "1/N",       \
     .says = "1", .help = "With --dummy: narrower and shallower by this, 1/1 to 1/64."}

bool text_model_given(const TextModelNames *names); // parts or a dummy, beside `model`
// Usage errors: nothing named, a dummy beside files. `model`: what that option is called.
bool text_model_check(const Cmd *cmd, const TextModelNames *names, const char *model, Error *err);
// Its weights alone; *type: of the matrices on the device. Usage errors (type, scale, unknown dummy)
// come before anything is opened. model_parts_close ends it.
ModelParts *text_model_parts(Cmd *cmd, const TextModelNames *names, DType *type, Error *err);

typedef struct TextModel {
    ModelParts *parts;
    Device *dev;
    FluxPipeline *pipeline;
} TextModel;

// With the device and the pipeline; precision: "auto", "f32". After a failure too, text_model_close.
bool text_model_open(Cmd *cmd, const TextModelNames *names, const char *precision, TextModel *out,
                     Error *err);
void text_model_close(TextModel *model); // what was opened; zeros are allowed

#endif
