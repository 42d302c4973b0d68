// pipeline_flux.h: a prompt to pictures with FLUX.1 (models/flux.h), stage by stage:
//   text       CLIP-L's pooled state and T5's states of the prompt (and of the negative prompt)
//   encode     image to image only: the picture's latents
//   schedule   all that depends on timestep, guidance and pooled text, for every step
//   transformer  one pass (two with classifier-free guidance) per step and group of pictures
//   decode     latents to pictures
// Only one stage is on the device at a time; each is planned within the device's budget, and the
// memory of all is known before the first begins. Pictures are denoised in groups as large as saves
// traffic of weights; a picture is the same in a group as alone.
//
// Thread-safety: used by the thread of its device.
#ifndef KILN_ENGINE_PIPELINE_FLUX_H
#define KILN_ENGINE_PIPELINE_FLUX_H

#include "engine/guidance.h"
#include "engine/image.h"
#include "engine/model_parts.h"
#include "engine/noise.h"
#include "engine/parameters.h"
#include "engine/sampler.h"
#include "engine/stack.h"
#include "engine/vae.h"

typedef struct FluxPipeline FluxPipeline;

typedef struct FluxPipelineOptions {
    DType compute; // of matrix operands and of activations inside blocks: f32, bf16, f16
    DType type;    // of the transformer's and T5's matrices on the device; DT_COUNT: as in the file
} FluxPipelineOptions;

// What happens while a request runs; every function may be NULL.
typedef struct FluxEvents {
    // A stage begins: "text", "encode", "schedule", "denoise", "decode", and before some of them
    // "load", of weights; `unit` is what is counted.
    void (*stage)(void *user, const char *name, const char *unit);
    void (*progress)(void *user, int64_t done, int64_t total);
    void (*part)(void *user, int64_t done, int64_t total); // of the step under way: blocks
    void (*warn)(void *user, const char *line); // a prompt that was cut, ...
    // Arrays for --dump: "text.clip_l.pooled", "noise", "sigmas", ...
    bool (*array)(void *user, const char *name, int ndim, const int64_t *shape, const float *v,
                  Error *err);
    // The group of pictures first .. first + count - 1 begins to be denoised.
    void (*group)(void *user, int first, int count);
    // After each step, for each picture of the group in turn: latents [C, h, w] of `picture`, and the
    // clean latent it now heads for.
    bool (*after_step)(void *user, int step, int picture, const float *latent, const float *clean,
                       Error *err);
    void *user;
} FluxEvents;

typedef struct FluxRequest {
    const char *prompt, *negative; // UTF-8; negative NULL: empty
    size_t prompt_size, negative_size;
    bool prompt_weights;           // (word:1.3), [word], BREAK: engine/prompt.h; else text as it stands
    int t5_tokens;                 // 0: the model's
    int count, width, height;      // pictures; multiples of 16; 0: 1024
    int group;                     // pictures denoised at once, at most; 0: no more than pays
    uint64_t seed;                 // picture k uses seed + k
    NoiseKind rng;
    const float *noise;            // [count, C, height / 8, width / 8]; NULL: drawn from the seed
    int steps;                     // 0: the model's
    const Sampler *sampler;        // NULL: euler
    const ScheduleKind *schedule;  // NULL: the first
    double shift;                  // 0: the model's
    Guidance cfg;                  // classifier-free guidance
    double guidance;               // distilled guidance (dev)
    const Image *init;             // of the request's size; NULL: from noise alone
    double strength;
    VaeTiling tiling;
    const Cancel *cancel;          // may be NULL
    FluxEvents events;
} FluxRequest;

typedef struct FluxInfo {
    const char *architecture, *variant; // "flux"; "dev", "schnell"
    int channels;                       // of the latents
    int steps, t5_tokens;               // the model's defaults
    int64_t parameters;                 // of all parts
} FluxInfo;

enum { FLUX_MAX_STAGES = 8, FLUX_DEFAULT_SIDE = 1024, FLUX_SIZE_STEP = 16, FLUX_MAX_SIDE = 8192 };

typedef struct FluxStagePlan {
    // "text.clip_l", "text.t5xxl", "encode", "schedule", "transformer", "transformer.rest" (where the last
    // groups are smaller than the first), "decode"
    const char *name;
    uint64_t resident_bytes, streamed_bytes, arena_bytes, peak_bytes;
    uint64_t moved_bytes_per_step; // uploaded per pass
    uint64_t weights_bytes;        // on the device: resident ones and slots
    int units, streamed_units;     // blocks (and head, tail); those that pass through the slots
    int pictures;                  // "transformer", "transformer.rest": that a pass holds; else 0
} FluxStagePlan;

typedef struct FluxPlan {
    int stages;
    FluxStagePlan stage[FLUX_MAX_STAGES];
    int peak_stage;       // the one that takes most
    int prompts;          // 2 where the negative prompt counts
    int steps;            // that are run: fewer than the request's where it starts from a picture
    int groups;           // of pictures, as even as can be, the larger ones first
    int tile_width, tile_height; // pixels, where a picture is decoded or encoded in tiles; else 0
    uint64_t budget;      // that was asked for; 0: the device's
    uint64_t peak_bytes, driver_bytes;
    double planning_ms;
} FluxPlan;

// Opens a model: configurations, names, shapes and types of all parts are checked; nothing is
// allocated on the device. `parts` must outlive the pipeline.
FluxPipeline *flux_pipeline_open(void *parent, Device *dev, const ModelParts *parts,
                        const FluxPipelineOptions *options, Error *err);
void flux_pipeline_close(FluxPipeline *p); // NULL is allowed
FluxInfo flux_pipeline_info(const FluxPipeline *p);
// Fills in what is 0 in the request and checks it.
bool flux_pipeline_check(const FluxPipeline *p, FluxRequest *r, Error *err);
// Plans every stage of a checked request within `budget` bytes (0: the device's). False where one does
// not fit: the text gives the smallest budget that does.
bool flux_pipeline_plan(FluxPipeline *p, const FluxRequest *r, uint64_t budget, FluxPlan *plan, Error *err);

// The smallest budget with which a device can run the request, to the byte; 0: none, or another error.
// Takes a while: the autoencoder is planned for every size of tiles.
uint64_t flux_pipeline_smallest(FluxPipeline *p, const FluxRequest *r);

// The settings of a planned request that change its pictures, for the text in picture files: all of
// `out` but prompt, seed and size. What it points to hangs on `parent` or belongs to the request.
void flux_pipeline_describe(const FluxPipeline *p, const FluxRequest *r, const FluxPlan *plan,
                            void *parent, Parameters *out);

// What a run took, as measured; stages in the plan's order.
typedef struct FluxMeasured {
    double text, encode, schedule, denoise, decode; // seconds
    int stages;
    struct {
        const char *name;
        uint64_t used_bytes;  // by the device's allocator, when the stage ended
        uint64_t moved_bytes; // streamed to the device, by the uploader's count
        int passes;           // over all units
    } stage[FLUX_MAX_STAGES];
} FluxMeasured;
// Runs a checked request as flux_pipeline_plan planned it, within the same budget. pictures
// [count, 3, H, W] in -1..1 (not clamped), latents [count, C, H/8, W/8]. `measured` may be NULL.
bool flux_pipeline_generate(FluxPipeline *p, const FluxRequest *r, const FluxPlan *plan, float *pictures,
                            float *latents, FluxMeasured *measured, Error *err);

#endif
