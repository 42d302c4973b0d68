// bind.h: from names in files to the tensors that a model wants. A model asks for tensors under
// its own (canonical) names; a layout says which file tensors make each of them, stacked along the
// outermost dimension. All names, shapes and types are checked before anything is allocated.
//
// Thread-safety: what bind_weights returns never changes; any number of threads may read from it.
#ifndef KILN_ENGINE_BIND_H
#define KILN_ENGINE_BIND_H

#include "engine/weights.h"

typedef enum {
    BIND_PLAIN,
    // A convolution [O, I, spatial...] that the device wants as [O, spatial..., I] (want.shape is
    // the first of them).
    BIND_CONV,
} BindLayout;

typedef struct BindWant {
    const char *name;        // canonical: "double_blocks.0.img_attn.qkv.weight"
    int ndim;
    int64_t shape[MAX_DIMS]; // as in PyTorch; the file may lack or add dimensions of 1 at the end
    BindLayout layout;
    bool optional;
} BindWant;

enum { BIND_MAX_PIECES = 4 };
typedef struct BindPiece {
    const WeightTensor *t;
    int64_t row, rows; // of the outermost dimension of t
    float scale;       // multiplied in while loading; 1 where the device does it (BoundWeight.scale)
} BindPiece;

// One tensor ready to be loaded.
typedef struct BoundWeight {
    const char *name;
    const Weights *source;
    // On the device. Tensors of one dimension: f32. Others: as `type` of bind_weights asks, where
    // rows are whole blocks of it; else the file's type, and f32 where pieces differ in type or
    // scale, where the file has f64, or where a convolution is stored in blocks.
    DType dtype;
    int ndim;
    int64_t shape[MAX_DIMS]; // on the device (after BIND_CONV: [O, R, S, I])
    uint64_t bytes;
    BindLayout layout;
    float scale; // that the device multiplies with: packed types with a scale_weight; else 1
    int pieces;  // 0: an optional tensor that the file lacks
    BindPiece piece[BIND_MAX_PIECES];
} BoundWeight;

// Tells which file tensors make the wanted tensor `name`: fills up to BIND_MAX_PIECES names below
// `scratch`, returns how many (0: the layout has no such tensor). They are stacked in their order.
//   "NAME"         the whole tensor
//   "NAME[a:b]"    its outermost rows from a to b in halves: "x.weight[1:2]" is the second half
//   "NAME[a:b/n]"  the same in n-ths, for n up to 8: "in_proj_weight[0:1/3]" is the first third
// NULL as a layout: the file uses the canonical names.
typedef int BindNames(const void *user, const char *name, const char **out, void *scratch);

typedef struct BindOptions {
    BindNames *names;
    const void *user;
    // Type on the device for matrices (two dimensions and more); DT_COUNT: as in the file.
    // Conversions run row by row while loading; no second copy of a tensor is made on the host.
    DType type;
    // Beginnings of wanted names that keep the file's type where `type` is a packed one: what little
    // there is of them is worth more than the bytes. NULL-terminated; NULL: none.
    const char *const *keep;
    // Tensors that may be in the file unused: a NULL-terminated list of beginnings ("first_stage.")
    // and, after a '*', endings ("*.position_ids"); others that are not wanted are listed as
    // unexpected. fp8's marks (scaled_fp8, *.scale_input, *.input_scale, *.comfy_quant, and scales
    // that were used) need not be named.
    const char *const *ignore;
} BindOptions;

// Resolves all `count` wants; out [count], below `parent`; `w` must outlive it. `options` may be
// NULL: canonical names, types as in the file. One error lists what is missing, wrong and
// unexpected (ten lines in all, each kind getting its share). ComfyUI's "NAME.scale_weight" or
// "NAME.weight_scale" (one number) beside "NAME.weight" becomes `scale`.
BoundWeight *bind_weights(void *parent, const Weights *w, const BindWant *wants, int count,
                          const BindOptions *options, Error *err);

// Writes the bytes [offset, offset + bytes) of the tensor as the device wants them (types converted,
// scales applied, convolutions repacked) into out. Any thread. `offset` and `bytes` are multiples of
// the tensor's row (the innermost dimension): bound_row_bytes.
bool bound_read(const BoundWeight *b, uint64_t offset, void *out, uint64_t bytes, Error *err);
uint64_t bound_row_bytes(const BoundWeight *b);
// Does `name` match one of the patterns (as BindOptions.ignore; NULL: none)?
bool bind_matches(const char *name, const char *const *patterns);
// What fp8 files hold beside the weights: markers and scales of inputs (patterns).
extern const char *const bind_marks[];
// Advice about the parts of the file that these bytes come from (os_map_advise). Any thread.
void bound_advise(const BoundWeight *b, uint64_t offset, uint64_t bytes, MapAdvice advice);

#endif
