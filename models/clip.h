// clip.h: CLIP's text encoder (Radford et al., "Learning Transferable Visual Models From Natural
// Language Supervision", 2021) as image models use it: hidden states of a chosen layer, and the
// pooled text at the end-of-text token, projected or not.
//
//   ClipModel *m = clip_open(parent, weights, config, &err);
//   ClipText *t = clip_text_new(parent, m, dev, &(ClipShape){...});
//   stack_new(parent, dev, &t->spec, ...), stack_prepare, clip_text_write(t, ids, &err), stack_run,
//   param_read(t->pooled), param_read(t->hidden).
//
// Thread-safety: a ClipModel never changes; a ClipText belongs to its device's thread.
#ifndef KILN_MODELS_CLIP_H
#define KILN_MODELS_CLIP_H

#include "engine/config.h"
#include "engine/stack.h"

typedef struct ClipConfig {
    int vocab;      // 49408
    int positions;  // 77
    int dim, heads, layers, ff; // 768, 12, 12, 3072
    uint32_t act;   // ACT_*: quick_gelu (CLIP-L), gelu (OpenCLIP)
    int projection; // width of the pooled text behind text_projection; 0: the file has none
    int eos;        // pooled where this id stands first; 2 (old configurations): at the largest id
    float eps;      // 1e-5
} ClipConfig;

typedef struct ClipModel {
    ClipConfig config;
    const Weights *weights;
    const char *prefix;        // in front of "text_model." (or of what follows it)
    int count;
    const BindWant *want;      // [count], transformers' names
    const BoundWeight *weight; // [count]
    uint64_t bytes;            // on the device: without the embedding tables (read by the host)
    int64_t parameters;
} ClipModel;

bool clip_is(const Weights *w); // any prefix, for example "text_encoders.clip_l.transformer."
// config: of transformers (CLIPTextConfig); NULL or without text: from the shapes (heads: of 64 numbers
// each where 64 divides the width, else 12; quick_gelu up to a width of 768, gelu above). Sizes that it
// repeats are those of the tensors, or an error; what decides nothing here (projection_dim, dropout,
// the ids of other tokens) is not read.
ClipModel *clip_open(void *parent, const Weights *w, const ConfigFile *config, Error *err);
bool clip_check_config(const ClipConfig *c, Error *err);
BindWant *clip_wants(void *parent, const ClipConfig *c, int *count);

// CLIP-L at 1/divisor of width and depth, rounded up to whole heads of the real size.
ClipConfig clip_preset(int divisor);

typedef struct ClipShape {
    int batch;     // texts
    int tokens;    // T, at most config.positions: 77
    int skip;      // hidden: after layers - skip layers (0: the last)
    bool hidden_norm; // hidden goes through the final norm
    bool projected;   // pooled goes through text_projection, where there is one (FLUX: false)
    DType compute;
} ClipShape;

typedef struct ClipText {
    const ClipModel *model;
    ClipShape shape;
    StackSpec spec; // units: the layers, a tap behind layer layers - skip - 1, the tail
    Store *state;   // owned
    Param *hidden;  // result [B, T, D] f32
    Param *pooled;  // result [B, D, or projection where projected] f32
    Param *x;       // internal: [B, T, D] f32
    Param *end;     // internal: [B] i32, rows of the end-of-text tokens
} ClipText;

ClipText *clip_text_new(void *parent, const ClipModel *m, Device *dev, const ClipShape *shape);
void clip_text_free(ClipText *t); // with its store; after stack_free
// Before each pass: ids [B, T]. Looks up token and position embeddings on the host.
bool clip_text_write(ClipText *t, const int32_t *ids, Error *err);

#endif
