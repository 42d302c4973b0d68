// bind.h: from names in files to the tensors that a model wants. A model asks for tensors under
// its own (canonical) names; a layout says which file tensors make each of them, stacked along the
// outermost dimension. All names, shapes and types are checked before anything is allocated.
#ifndef KILN_ENGINE_BIND_H
#define KILN_ENGINE_BIND_H

#include "engine/weights.h"

typedef enum {
    BIND_PLAIN,
    BIND_CONV, // a convolution [O, I, R, S] that the device wants as [O, R, S, I] (want.shape is [O, I, R, S])
} BindLayout;

typedef struct BindWant {
    const char *name;        // canonical: "double_blocks.0.img_attn.qkv.weight"
    int ndim;
    int64_t shape[MAX_DIMS]; // as in PyTorch
    BindLayout layout;
    bool optional;
} BindWant;

enum { BIND_MAX_PIECES = 4 };
typedef struct BindPiece {
    const WeightTensor *t;
    int64_t row, rows; // of the outermost dimension of t
} BindPiece;

// One tensor ready to be loaded.
typedef struct BoundWeight {
    const char *name;
    const Weights *source;
    DType dtype; // on the device: the file's type; f32 for tensors of one dimension, where pieces
                 // differ, and as `type` of bind_weights asks
    int ndim;
    int64_t shape[MAX_DIMS]; // on the device (after BIND_CONV: [O, R, S, I])
    uint64_t bytes;
    BindLayout layout;
    float scale; // of fp8 weights (scale_weight); 1
    int pieces;  // 0: an optional tensor that the file lacks
    BindPiece piece[BIND_MAX_PIECES];
} BoundWeight;

// Tells which file tensors make the wanted tensor `name`: fills up to BIND_MAX_PIECES names
// ("NAME", or "NAME[a:b]" for rows a up to b in halves: see bind.c) below `scratch`, returns how many.
// NULL as a layout: the file uses the canonical names.
typedef int BindNames(void *user, const char *name, const char **out, void *scratch);

typedef struct BindOptions {
    BindNames *names;
    void *user;
    // Type on the device for matrices (two dimensions and more); DT_COUNT: as in the file.
    DType type;
    // Tensors that may be in the file unused (a NULL-terminated list of prefixes and suffixes
    // "*.scale_weight"); others that are not wanted are listed as unexpected.
    const char *const *ignore;
} BindOptions;

// Resolves all `count` wants; out [count], below `parent`. One error lists what is missing, wrong
// and unexpected (up to ten each way). ComfyUI's "NAME.scale_weight" / "NAME.weight_scale" beside a
// weight becomes `scale`.
BoundWeight *bind_weights(void *parent, const Weights *w, const BindWant *wants, int count,
                          const BindOptions *options, Error *err);

// Writes the bytes [offset, offset + bytes) of the tensor as the device wants them (types converted,
// convolutions repacked) into out. Any thread. `offset` and `bytes` are multiples of the tensor's
// row (the innermost dimension). 
bool bound_read(const BoundWeight *b, uint64_t offset, void *out, uint64_t bytes, Error *err);

#endif
