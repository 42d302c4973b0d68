// nano.h: Nano-Sora: a small diffusion transformer (W. Peebles and S. Xie, "Scalable Diffusion
// Models with Transformers", ICCV 2023) with adaLN-Zero, conditioned on timestep and class, that
// predicts the velocity of rectified flow (X. Liu et al., "Flow Straight and Fast", 2022):
// x_t = (1 - t) noise + t image, v = image - noise. Names and shapes as in facebookresearch/DiT.
//
// Thread-safety: a NanoModel belongs to the thread of its store's device.
#ifndef KILN_MODELS_NANO_H
#define KILN_MODELS_NANO_H

#include "engine/graph.h"
#include "engine/rng.h"
#include "engine/safetensors.h"
#include "models/timestep.h"

enum { NANO_FEATURES = 256, NANO_CHANNELS = 3 };

typedef struct NanoConfig {
    int patch;   // pixels per side of a token: 1..16, a divisor of size
    int dim;     // width D, 8..4096, a multiple of heads and of 8
    int depth;   // blocks, 1..64
    int heads;   // H
    int size;    // pixels per side S of a picture, 8..512
    int classes; // 1..10000; class number `classes` means "no class"
    char **names; // of the classes, NULL: none
} NanoConfig;

NanoConfig nano_default(void); // patch 4, width 192, 6 blocks, 6 heads, 32 pixels, 10 classes
bool nano_check_config(const NanoConfig *c, Error *err);
// `kiln.config` as JSON. Names are copied below `parent`; `what` begins the error's text.
bool nano_parse_config(void *parent, const char *json, const char *what, NanoConfig *out,
                       Error *err);
char *nano_config_json(void *parent, const NanoConfig *c);
int nano_tokens(const NanoConfig *c);                        // T
int64_t nano_param_count(const NanoConfig *c);               // numbers in all weights
int nano_find_class(const NanoConfig *c, const char *name);  // by name or number; -1: none such

typedef struct NanoLinear { Param *weight, *bias; } NanoLinear; // [N, K], [N]

typedef struct NanoBlock {
    NanoLinear ada;      // [6 D, D]
    NanoLinear qkv, proj; // [3 D, D], [D, D]
    NanoLinear fc1, fc2; // [4 D, D], [D, 4 D]
} NanoBlock;

typedef struct NanoModel {
    NanoConfig config;
    NanoLinear patches;   // [D, 3, p, p]
    Param *positions;     // [1, T, D]
    NanoLinear time[2];   // [D, 256], [D, D]
    Param *labels;        // [classes + 1, D]
    NanoBlock *blocks;
    NanoLinear final_ada; // [2 D, D]
    NanoLinear final;     // [3 p p, D]
} NanoModel;

// Adds the model's tensors to `store` (all f32, in the order of nano_wants) and binds them.
NanoModel *nano_new(void *parent, Store *store, const NanoConfig *config);
// What a file of this model must hold; `*count` entries owned by `parent`.
StWant *nano_wants(void *parent, const NanoConfig *config, int *count);
// After store_commit. nano_load expects a file that passed st_check against nano_wants.
bool nano_init(NanoModel *m, uint64_t seed, Error *err); // the published initialisation
bool nano_load(NanoModel *m, Store *store, const StFile *file, Error *err);

// Records the forward pass. x [B, 3, S, S], features [B, 256] (timestep.h), labels [B] i32;
// returns the velocity [B, 3, S, S] f32. `compute` (f32, f16, bf16) is the type of GEMM operands
// and of activations inside blocks; the residual stream and the conditioning stay f32.
Tensor *nano_forward(const NanoModel *m, Graph *g, Tensor *x, Tensor *features, Tensor *labels,
                     DType compute);

#endif
