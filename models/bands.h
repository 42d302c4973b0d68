// bands.h: feature maps of convolutional models, whole or in bands of rows. A map that would be
// larger than the device's largest buffer is kept as several tensors, one per band; convolutions
// read the rows they need across bands, group norms gather their statistics over all of them: the
// result is that of the whole map. Models are written once, in these calls.
//
// Maps are channels last: a band is [1, rows, W, C].
//
// Thread-safety: as the graph.
#ifndef KILN_MODELS_BANDS_H
#define KILN_MODELS_BANDS_H

#include "engine/graph.h"

enum { MAX_BANDS = 256 };

typedef struct BandRules {
    uint64_t limit;  // bytes that one tensor may take
    int at_least;    // tests: so many bands, where a map has as many rows; 0: 1
    int most;        // out: the most bands that any map was cut into
    DType compute;   // operands of convolutions: f32, bf16 or f16
} BandRules;

typedef struct Map {
    Graph *g;
    BandRules *rules;
    int64_t h, w, c;
    DType dtype;
    int n;                        // bands
    int64_t row[MAX_BANDS + 1];   // band i has rows row[i] to row[i + 1]
    Tensor *band[MAX_BANDS];
} Map;

// Maps live as long as their graph and do not change.
Map *map_of(Tensor *whole, BandRules *rules); // whole [1, H, W, C]
Tensor *map_join(const Map *m);               // [1, H, W, C]; the tensor itself where whole
Map *map_act(const Map *m, uint32_t act, DType dtype);

typedef struct MapConv {
    Param *w, *bias; // OHWI; bias may be NULL
    uint32_t stride, upsample; // 0: 1
    uint32_t before, after;    // padding: rows above and columns left; below and right
    uint32_t act;
    const Map *residual;       // added after the activation; may be NULL
    DType dtype;               // of the result
} MapConv;
// x is cast to the compute type, and so is the weight.
Map *map_conv(const Map *x, const MapConv *conv);

typedef struct MapNorm {
    Param *weight, *bias; // [C]
    uint32_t groups;      // a divisor of C
    float eps;
    uint32_t act;
    DType dtype;
} MapNorm;
Map *map_norm(const Map *x, const MapNorm *norm); // group norm

#endif
