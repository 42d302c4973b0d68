// text_model.h: opening the model that a command line names: files, parts or synthetic weights, with
// the device and precision asked for. Shared by generate, inspect and bench.
#ifndef KILN_TOOLS_TEXT_MODEL_H
#define KILN_TOOLS_TEXT_MODEL_H

#include "engine/pipeline_flux.h"
#include "tools/cmd.h"

typedef struct TextModelNames {
    ModelPaths paths;
    const char *dummy;       // NULL: not asked for; "": the default
    const char *dummy_scale; // "1/16"; NULL: 1
    const char *type;        // NULL: as in the file
    const char *precision;   // "auto", "f32"
} TextModelNames;

typedef struct TextModel {
    ModelParts *parts;
    Device *dev;
    FluxPipeline *pipeline;
} TextModel;

// Usage errors (type, scale, unknown dummy) come before anything is opened.
bool text_model_open(Cmd *cmd, const TextModelNames *names, TextModel *out, Error *err);
void text_model_close(TextModel *model); // what was opened; zeros are allowed

#endif
