// pipeline_nano.h: class and noise to picture with Nano-Sora (models/nano.h).
//
// A NanoStage is the sampling plan inside a Run that belongs to someone else (training samples
// with its averaged weights); a NanoPipeline owns device memory, weights and a stage.
// Thread-safety: used by the thread of its device.
#ifndef KILN_ENGINE_PIPELINE_NANO_H
#define KILN_ENGINE_PIPELINE_NANO_H

#include "engine/noise.h"
#include "engine/plan.h"
#include "engine/sampler.h"
#include "models/nano.h"

enum { NANO_MAX_PICTURES = 10000, NANO_STAGE_PICTURES = 20, NANO_DEFAULT_STEPS = 50 };
#define NANO_DEFAULT_CFG 4.0

typedef struct NanoProgress {
    int done, total; // steps, of all parts of the request
    int step;        // of this part, from 0
    int first, pictures;
    const float *x;  // [pictures, 3, S, S]: latents of pictures first .. first + pictures - 1
} NanoProgress;

typedef struct NanoRequest {
    int count;           // pictures, 1..NANO_MAX_PICTURES
    const int *classes;  // [count]: 0..classes (classes: none)
    const float *noise;  // [count, 3, S, S]; NULL: picture k draws its own from seed + k
    uint64_t seed;
    NoiseKind rng;
    const Sampler *sampler;       // NULL: euler
    const ScheduleKind *schedule; // NULL: uniform
    int steps;                    // 0: NANO_DEFAULT_STEPS
    double cfg_scale;             // 1: no guidance, half the work
    const Cancel *cancel;         // may be NULL
    // After each step of each part; may be NULL. False (with err) stops.
    bool (*after_step)(void *user, const NanoProgress *progress, Error *err);
    void *user;
} NanoRequest;

// ---- a stage in someone's Run -------------------------------------------------------------------
typedef struct NanoStage NanoStage;
// Records and plans a forward pass of `rows` rows. The model's store must be given to the run.
NanoStage *nano_stage_new(void *parent, Run *run, const NanoModel *model, int rows, DType compute,
                          const char *name, Error *err);
// After run_prepare. out [count, 3, S, S] in -1..1 (not clamped). Guidance takes two rows per
// picture.
bool nano_stage_generate(NanoStage *stage, const NanoRequest *request, float *out, Error *err);

// ---- the whole thing ----------------------------------------------------------------------------
typedef struct NanoPipeline NanoPipeline;

// Opens a model file and checks all of its header: configuration, names, shapes, types. Nothing is
// allocated on the device yet. `compute`: f32, f16 or bf16.
NanoPipeline *nano_open(void *parent, Device *dev, const char *path, DType compute, Error *err);
void nano_close(NanoPipeline *p); // NULL is allowed
const NanoConfig *nano_config(const NanoPipeline *p);
// Pixels asked for; 0: the model's. It makes pictures of its own size only.
bool nano_check_size(const NanoPipeline *p, int64_t width, int64_t height, Error *err);
// Plans for `pictures` at a time (more are done in parts) and says what it will take; the figures
// are known before anything is allocated.
bool nano_plan(NanoPipeline *p, int pictures, bool guidance, RunMemory *memory, Error *err);
// Allocates and uploads, after nano_plan (which is to be called again where this fails).
// nano_generate plans and loads by itself where that has not been done.
bool nano_prepare(NanoPipeline *p, Error *err);
bool nano_generate(NanoPipeline *p, const NanoRequest *request, float *out, Error *err);
RunMemory nano_memory(const NanoPipeline *p); // of the present plan
PlanStats nano_stats(const NanoPipeline *p);
// How many pictures one forward pass takes for a request of `count`.
int nano_pictures_per_pass(int count);

#endif
