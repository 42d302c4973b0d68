// flux_impl.h: the inside of FLUX.1's model, shared by flux.c, flux_names.c and flux_stages.c.
#ifndef KILN_MODELS_FLUX_IMPL_H
#define KILN_MODELS_FLUX_IMPL_H

#include "models/flux.h"
#include "models/names.h"

const NameLayout *flux_layout(void *parent, const Weights *w, const char **prefix);

// Groups of weights: those of one unit (or of one unit per block).
typedef enum {
    FLUX_ROWS_TIME, FLUX_ROWS_TEXT, FLUX_ROWS_DOUBLE_MODS, FLUX_ROWS_SINGLE_MODS,
    FLUX_ROWS_TAIL_MODS, // so far: the schedule stage
    FLUX_ROWS_HEAD, FLUX_ROWS_DOUBLE, FLUX_ROWS_SINGLE, FLUX_ROWS_TAIL,
    FLUX_ROWS_COUNT
} FluxRows;
typedef struct FluxGroup { const WantRow *rows; int count; } FluxGroup;
FluxGroup flux_group(const FluxConfig *c, FluxRows group); // without guidance where there is none

// Places of a unit's weights, in the order of its rows.
enum { LIN_W, LIN_B, LIN_COUNT };
// Embedders of two layers: time, then pooled text, then guidance.
enum { MLP_IN_W, MLP_IN_B, MLP_OUT_W, MLP_OUT_B, MLP_COUNT };
enum { // one stream of a double block: image, then text
    STREAM_QKV_W, STREAM_QKV_B, STREAM_QUERY_NORM, STREAM_KEY_NORM, STREAM_PROJ_W, STREAM_PROJ_B,
    STREAM_FC1_W, STREAM_FC1_B, STREAM_FC2_W, STREAM_FC2_B, STREAM_COUNT,
};
enum {
    SINGLE_LINEAR1_W, SINGLE_LINEAR1_B, SINGLE_QUERY_NORM, SINGLE_KEY_NORM, SINGLE_LINEAR2_W,
    SINGLE_LINEAR2_B,
};

#endif
