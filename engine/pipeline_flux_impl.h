// pipeline_flux_impl.h: the inside of FLUX.1's pipeline, shared by pipeline_flux.c (opens it; requests,
// stages, settings as text), pipeline_flux_plan.c (memory, groups of pictures) and pipeline_flux_run.c.
#ifndef KILN_PIPELINE_FLUX_IMPL_H
#define KILN_PIPELINE_FLUX_IMPL_H

#include "backend/os.h"
#include "engine/pipeline_flux.h"
#include "engine/prompt.h"
#include "models/clip.h"
#include "models/flux.h"
#include "models/t5.h"

struct FluxPipeline {
    Device *dev;
    const ModelParts *parts;
    DType compute, type; // type: DT_COUNT: as in the files
    FluxModel *model;
    ClipModel *clip;
    T5Model *t5;
    Vae *vae;
    Tokenizer *clip_words, *t5_words;
    FlowShift shift;
    FluxInfo info;
    const Cancel *cancel; // of the request that runs
    const FluxEvents *on;
};

enum { CLIP_TOKENS = 77 };

// What the shapes of all stages follow from; batch: pictures in one pass of the transformer.
typedef struct Shape { int prompts, steps, text, rows, columns, batch; } Shape;

// The sigmas of a request. Image to image keeps the last part of them.
Schedule *flux_request_schedule(void *parent, const FluxPipeline *p, const FluxRequest *r, Error *err);
Shape flux_shape(const FluxRequest *r, int steps); // of one picture at a time

// ---- stages -------------------------------------------------------------------------------------

// STAGE_REST: the transformer again, for the last groups where these are smaller.
typedef enum { STAGE_CLIP, STAGE_T5, STAGE_SCHEDULE, STAGE_STEP, STAGE_REST, STAGE_COUNT } StageId;

// A stack with the state of its model; one of the pointers is set.
typedef struct Stage {
    Stack *stack;
    ClipText *clip;
    T5Text *t5;
    FluxSchedule *schedule;
    FluxStep *step;
} Stage;

const char *flux_stage_name(StageId id);
// Plans it within `budget` bytes (0: the device's).
bool flux_stage_open(Stage *s, FluxPipeline *p, StageId id, const Shape *shape, uint64_t budget,
                     Error *err);
void flux_stage_close(Stage *s);
VaeSpec flux_vae_spec(const FluxPipeline *p, VaePass pass, const FluxRequest *r);
VaeRun *flux_vae_stage(FluxPipeline *p, VaePass pass, const FluxRequest *r, uint64_t budget, Error *err);

// ---- groups -------------------------------------------------------------------------------------

// `count` pictures in `groups` groups as even as can be, the larger ones first.
typedef struct Groups { int count, groups; } Groups;
int flux_group_size(Groups g, int i); // 0: there is no group i

#endif
