// inspect.h: `kiln inspect`: what it finds (inspect_found.c) and how it is shown (cmd_inspect.c).
#ifndef KILN_TOOLS_INSPECT_H
#define KILN_TOOLS_INSPECT_H

#include "engine/weights.h"
#include "tools/text_model.h"

typedef struct InspectValues {
    CommonOptions common;
    TextModelNames names; // model: PATH
    const char *precision;
    int64_t width, height, batch, steps, t5_tokens;
    double cfg_scale;
    bool tensors, plan;
} InspectValues;

// A part of a model: tensors of `weights` whose names begin with `prefix`, of no other part.
typedef struct InspectPart {
    const char *name, *path, *prefix;
    const Weights *weights;
    int tensors;
    uint64_t bytes, numbers;
} InspectPart;

enum { INSPECT_MAX_PARTS = 8 };

typedef struct Inspected {
    const char *path, *architecture, *variant; // NULL: not recognised
    const char *title;                         // one line about the model's sizes; NULL: none
    ModelParts *model;                         // where it is one with parts
    Weights *file;                             // else
    InspectPart part[INSPECT_MAX_PARTS];
    int parts, tensors;
    uint64_t bytes, numbers;
    int by_type[DT_COUNT];
    uint64_t type_bytes[DT_COUNT];
} Inspected;

bool inspect_open(Cmd *cmd, const InspectValues *v, Inspected *out, Error *err);
void inspect_close(Inspected *in);
// Which part tensor `name` of `w` belongs to; -1: none.
int inspect_part_of(const Inspected *in, const Weights *w, const char *name);

typedef struct InspectPlan {
    bool fits;
    char device[32];
    uint64_t budget, smallest; // smallest: 0: not known
    FluxPlan plan; // of any architecture
} InspectPlan;
bool inspect_plan(Cmd *cmd, const InspectValues *v, const Inspected *in, InspectPlan *out, Error *err);

#endif
