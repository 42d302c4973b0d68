// pipeline_convert.h: what `kiln convert` makes of a model (engine/convert.h): which of its parts
// go into the new file, and under which names.
//  - FLUX.1's transformer: the original names (double_blocks.0.img_attn.qkv.weight, ...), from any
//    layout: what ComfyUI's split files and city96's GGUF files have.
//  - CLIP-L, T5: transformers' names; T5 in GGUF: llama.cpp's.
//  - Autoencoders, Nano-Sora and everything that is not recognised: their own names.
//  - Several parts, safetensors: ComfyUI's checkpoint (model.diffusion_model.*,
//    text_encoders.{clip_l,t5xxl}.transformer.*, vae.*). The type asked for is the transformer's
//    and T5's, as in `generate`; CLIP-L and the autoencoder keep theirs.
//  - Several parts, GGUF: the transformer alone, which is what such files hold.
//
// Thread-safety: one thread.
#ifndef KILN_ENGINE_PIPELINE_CONVERT_H
#define KILN_ENGINE_PIPELINE_CONVERT_H

#include "engine/convert.h"
#include "engine/model_parts.h"

typedef struct ConvertModelOptions {
    ModelPaths paths;
    PartId part; // the only one to take; PART_COUNT: all
    DType type;  // DT_COUNT: as in the files
    ConvertFormat format;
} ConvertModelOptions;

typedef struct ConvertModel {
    Conversion *conversion;
    const char *what;         // "FLUX.1's transformer, original names"
    const char *architecture; // "flux", "vae", ...; NULL: not recognised
    const char *note;         // what is left out, one line; NULL: nothing
    ModelParts *parts;        // where it is one with parts
    Weights *file;            // else
} ConvertModel;

// Opens the model and checks names, shapes and types of what goes into the new file. All hangs on
// `parent` but needs convert_model_close. NULL with an error.
ConvertModel *convert_model_open(void *parent, const ConvertModelOptions *options, Error *err);
void convert_model_close(ConvertModel *m); // NULL is allowed

// Is `path` one of the files that the model is in (by whatever name)?
bool convert_is_source(const ModelPaths *paths, const char *path);

#endif
