// flux.h: FLUX.1's transformer (Black Forest Labs, 2024): a multimodal diffusion transformer (Esser
// et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024) of
// double-stream blocks (text and image have weights of their own and attend jointly) and
// single-stream blocks (parallel attention and MLP), with rotary positions over three axes and
// RMS-normed queries and keys. It predicts the velocity of rectified flow.
//
// Two stages, each a stack of units (engine/stack.h):
//  - schedule: all that depends on timestep, guidance and text alone: the modulations of every
//    block for all steps at once, and the text's projection. 3.25 of 11.9 billion weights; released
//    before the steps begin.
//  - step: head, double blocks, single blocks, tail: tokens to velocity.
//
//   FluxModel *m = flux_open(parent, weights, config, type, &err);
//   FluxSchedule *s = flux_schedule_new(parent, m, dev, &(FluxScheduleShape){...});
//   Stack *stack = stack_new(parent, dev, &s->spec, budget, &err); stack_prepare; write s's inputs;
//   stack_run; FluxConditions *c = flux_conditions_read(parent, s, &err); stack_free; flux_schedule_free
//   FluxStep *f = flux_step_new(parent, m, dev, &(FluxStepShape){...});
//   the same with f->spec: once: flux_step_write_rope; per picture: flux_step_write_text(f, c, ...);
//   per step: flux_step_write_step(f, c, step, ...), param_write(f->tokens_in), stack_run,
//   param_read(f->velocity).
//
// Thread-safety: a FluxModel never changes; stages belong to their device's thread.
#ifndef KILN_MODELS_FLUX_H
#define KILN_MODELS_FLUX_H

#include "engine/config.h"
#include "engine/rope.h"
#include "engine/stack.h"
#include "models/timestep.h"

enum { FLUX_FEATURES = 256, FLUX_AXES = 3 };

typedef struct FluxConfig {
    int in_channels;    // of a token: 64 = 16 latent channels x 2 x 2 (order: channel, row, column)
    int out_channels;   // 64
    int heads, head_dim; // 24, 128
    int dim;            // D = heads * head_dim
    int mlp;            // hidden width of the MLPs: 4 D
    int doubles, singles; // 19, 38
    int text_dim;       // J, of T5's states: 4096
    int pooled_dim;     // of CLIP's pooled text: 768
    bool guidance;      // dev: takes the guidance scale as an input
    int axes[FLUX_AXES]; // rotated numbers of a head per axis (text, row, column): 16, 56, 56
    double theta;       // 10000
} FluxConfig;

typedef struct FluxModel {
    FluxConfig config;
    const Weights *weights; // as given, or the part of it behind `prefix`
    const char *layout;     // "original", "diffusers"
    const char *prefix;     // of the names in the file: "model.diffusion_model."; ""
    int count;
    const BindWant *want;        // [count] under the original names
    const BoundWeight *weight;   // [count]
    uint64_t bytes, schedule_bytes; // of all weights on the device; of those of the schedule stage
    int64_t parameters;
} FluxModel;

// Is there a FLUX transformer in `w` (any layout, any prefix)?
bool flux_is(const Weights *w);
// Detects layout and prefix, finds the configuration (from the shapes, and diffusers' config.json
// where it is given: NULL or without text: not), binds and checks every tensor. `type`: of the
// matrices on the device (DT_COUNT: as in the file). `w` must outlive the model. Each size in
// config.json is that of the tensors, or an error.
// Layouts: original ("double_blocks.0.img_attn.qkv.weight", also in GGUF and fp8 files with
// scale_weight and the marker `scaled_fp8`), diffusers ("transformer_blocks.0.attn.to_q.weight").
FluxModel *flux_open(void *parent, const Weights *w, const ConfigFile *config, DType type,
                     Error *err);

// The steps of flux_open, for tools.
bool flux_config(const Weights *w, const ConfigFile *config, FluxConfig *out, Error *err);
bool flux_check_config(const FluxConfig *c, Error *err);
BindWant *flux_wants(void *parent, const FluxConfig *c, int *count); // all, original names
bool flux_is_schedule(const char *name); // does the schedule stage own this (original) name?
extern const char *const flux_ignore[]; // tensors that files may hold unused (BindOptions.ignore)
// What keeps its type where a packed one is asked for (BindOptions.keep), as city96's converter and
// ComfyUI's scaled fp8 files have it: embedders and the final layer, 0.5 % of the weights.
extern const char *const flux_keep[];

// The published sizes (guidance: dev, else schnell) at 1/divisor of width and depth, rounded up to
// whole heads of the real size and to one block of each kind. text_dim and pooled_dim stay: they are
// the text encoders'.
FluxConfig flux_preset(bool guidance, int divisor);
const char *flux_variant(const FluxConfig *c); // "dev", "schnell"

// ---- inputs made by the host --------------------------------------------------------------------

// Positions of `text` text tokens (0, 0, 0), then of rows x columns image tokens (0, row, column).
// out [text + rows * columns, head_dim / 2, 2].
void flux_rope(const FluxConfig *c, int text, int rows, int columns, float *out);
// Latents [batch, C, 2 rows, 2 columns] to tokens [batch, rows * columns, 4 C] and back.
void flux_pack(int batch, int channels, int rows, int columns, const float *latents, float *tokens);
void flux_unpack(int batch, int channels, int rows, int columns, const float *tokens, float *latents);

// ---- schedule stage -----------------------------------------------------------------------------

typedef struct FluxScheduleShape {
    int steps;   // S
    int prompts; // P: distinct prompts (negative ones count)
    int text;    // Tt: text tokens per prompt
    DType compute;
} FluxScheduleShape;

typedef struct FluxSchedule {
    const FluxModel *model;
    FluxScheduleShape shape;
    StackSpec spec; // for stack_new
    Store *state;   // owned
    // To be written before the pass (f32):
    Param *features;  // [S, 256] timestep_features_f32(1000 t of the step)
    Param *guidance;  // [1, 256] ..._f32(1000 guidance); NULL where the model has none
    Param *pooled;    // [P, pooled_dim] CLIP's pooled text
    Param *text;      // [P, Tt, J] T5's states
    // Results (f32):
    Param *mods;      // [S, P, flux_mods(c)]
    Param *context;   // [P, Tt, D]
    Param *silu;      // internal: [S, P, D]
} FluxSchedule;

// Numbers per step and prompt: double blocks [doubles, 12 D] (image: shift, scale, gate of attention,
// of the MLP; then text), single blocks [singles, 3 D], tail [2 D] (shift, scale).
int64_t flux_mods(const FluxConfig *c);
FluxSchedule *flux_schedule_new(void *parent, const FluxModel *m, Device *dev,
                                const FluxScheduleShape *shape);
void flux_schedule_free(FluxSchedule *s); // with its store; after stack_free

// The results on the host: for all steps and prompts.
typedef struct FluxConditions {
    FluxConfig config;
    int steps, prompts, text;
    float *mods;    // [S, P, flux_mods]
    float *context; // [P, Tt, D]
} FluxConditions;
FluxConditions *flux_conditions_read(void *parent, FluxSchedule *s, Error *err); // after the pass

// ---- step stage ---------------------------------------------------------------------------------

typedef struct FluxStepShape {
    int batch;   // B: pictures, one after the other in each unit, so that its weights move once for all
    int prompts; // 1: the whole batch shares one prompt; else B
    int text;    // Tt
    int tokens;  // Ti: image tokens
    DType compute;
} FluxStepShape;

enum { FLUX_HEAD, FLUX_DOUBLE, FLUX_SINGLE, FLUX_TAIL }; // kinds of units, in this order

typedef struct FluxStep {
    const FluxModel *model;
    FluxStepShape shape;
    StackSpec spec;  // units: 0 head, 1 + i double block i, ..., last: tail
    Store *state;    // owned
    // To be written (f32):
    Param *tokens_in; // [B, Ti, in_channels], per step
    Param *rope;      // [1, Tt + Ti, head_dim / 2, 2], once
    Param *context;   // [P, Tt, D], per prompt
    Param *mods;      // [P, flux_mods(c)], per step
    // Result (f32):
    Param *velocity;  // [B, Ti, out_channels]
    Param *x;         // internal: [B, Tt + Ti, D], text first: the residual stream after each unit
} FluxStep;

FluxStep *flux_step_new(void *parent, const FluxModel *m, Device *dev, const FluxStepShape *shape);
void flux_step_free(FluxStep *f); // with its store; after stack_free
// Writes into the state (after stack_prepare). `prompt` [shape.prompts]: numbers of prompts in `c`.
bool flux_step_write_rope(FluxStep *f, int rows, int columns, Error *err); // rows * columns = Ti
bool flux_step_write_text(FluxStep *f, const FluxConditions *c, const int *prompt, Error *err);
bool flux_step_write_step(FluxStep *f, const FluxConditions *c, int step, const int *prompt, Error *err);

#endif
