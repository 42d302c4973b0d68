// t5.h: T5's encoder (Raffel et al., "Exploring the Limits of Transfer Learning with a Unified
// Text-to-Text Transformer", 2020; version 1.1 with a gated GELU, and the first one with ReLU), and
// DistillT5 (Wang et al., "Scaling Down Text Encoders of Text-to-Image Diffusion Models", 2025): a
// T5-Base behind whose last norm two linear maps with a ReLU between give states as wide as T5-XXL's.
//
//   T5Model *m = t5_open(parent, weights, config, type, &err);
//   T5Text *t = t5_text_new(parent, m, dev, &(T5Shape){...});
//   stack_new(parent, dev, &t->spec, ...), stack_prepare, t5_text_write(t, ids, NULL, &err),
//   stack_run, t5_text_read(t, width, out, &err).
//
// The residual stream is f32 and the feed-forward's product is never f16, so nothing overflows in
// half precision.
//
// Thread-safety: a T5Model never changes; a T5Text belongs to its device's thread.
#ifndef KILN_MODELS_T5_H
#define KILN_MODELS_T5_H

#include "engine/config.h"
#include "engine/stack.h"

typedef struct T5Config {
    int vocab;         // 32128
    int dim;           // D: 4096
    int heads, head_dim; // 64, 64 (heads * head_dim need not be D)
    int layers, ff;    // 24, 10240
    bool gated;        // wi_0, wi_1 instead of wi
    uint32_t act;      // ACT_GELU; ACT_RELU where not gated
    int buckets, max_distance; // of relative positions: 32, 128
    int projection;    // DistillT5: width of final_projection.3 (4096); 0: none
    int projection_hidden; // width between the two
    float eps;         // 1e-6
} T5Config;

typedef struct T5Model {
    T5Config config;
    const Weights *weights;
    const char *layout;        // "transformers", "gguf" (llama.cpp's names)
    const char *prefix;
    int count;
    const BindWant *want;      // [count], transformers' names
    const BoundWeight *weight; // [count]
    uint64_t bytes;            // on the device: without the token table (read by the host)
    int64_t parameters;
} T5Model;

bool t5_is(const Weights *w); // any prefix, for example "text_encoders.t5xxl.transformer."
// config: of transformers (T5Config); NULL or without text: from the shapes. Sizes and activation that
// it repeats are those of the tensors, or an error; what decides nothing here (the decoder's members,
// dropout, ids of tokens) is not read. type: of the matrices on the device (DT_COUNT: as in the file).
T5Model *t5_open(void *parent, const Weights *w, const ConfigFile *config, DType type,
                 Error *err);
bool t5_check_config(const T5Config *c, Error *err);
BindWant *t5_wants(void *parent, const T5Config *c, int *count);
int t5_width(const T5Config *c); // of the states: the projection's, else D
extern const char *const t5_keep[]; // keep their type where a packed one is asked for: both tables
// llama.cpp's name of a wanted tensor, as GGUF files have it; below parent.
const char *t5_gguf_name(void *parent, const char *name);

// T5-XXL v1.1's encoder at 1/divisor of width and depth, rounded up to whole heads of the real size.
T5Config t5_preset(int divisor);

typedef struct T5Shape {
    int batch;   // texts
    int tokens;  // T
    bool masked; // padding is not attended to (FLUX: it is)
    DType compute;
} T5Shape;

typedef struct T5Text {
    const T5Model *model;
    T5Shape shape;
    StackSpec spec;   // units: the layers, the tail
    Store *state;     // owned
    Param *states;    // result [B, T, t5_width] f32
    Param *x;         // internal: [B, T, D] f32
    Param *bias;      // internal: [B where masked, else 1, heads, T, T] f32
} T5Text;

T5Text *t5_text_new(void *parent, const T5Model *m, Device *dev, const T5Shape *shape);
void t5_text_free(T5Text *t); // with its store; after stack_free
// Before each pass: ids [B, T]; lengths [B]: tokens that count (masked only; else NULL). Looks up
// the embeddings and the relative position bias on the host.
bool t5_text_write(T5Text *t, const int32_t *ids, const int *lengths, Error *err);
// After the pass: states [B, T, width] f32 for a transformer that wants `width`. Narrower states
// (a T5-Base without projection) get zeros behind; wider ones are refused.
bool t5_text_read(T5Text *t, int width, float *out, Error *err);
// The warning for the user where t5_text_read would fill up with zeros; NULL: nothing to warn of.
const char *t5_warning(void *parent, const T5Config *c, int width);

// The bucket of a relative position (key - query), both directions.
int t5_bucket(int64_t relative, int buckets, int max_distance);

#endif
