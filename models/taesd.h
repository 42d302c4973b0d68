// taesd.h: tiny autoencoders (madebyollin/taesd: TAESD, TAEF1, TAEF2 and the like): a stack of 3x3
// convolutions, 64 channels wide, no attention. Which layers there are is read from the file's
// names: numbered layers, each a convolution (with bias: plain; without: it halves the sides in the
// encoder, follows an enlargement in the decoder) or a block.
//
// Thread-safety: pure functions of their arguments.
#ifndef KILN_MODELS_TAESD_H
#define KILN_MODELS_TAESD_H

#include "engine/bind.h"
#include "models/bands.h"

enum { TAESD_MAX_LAYERS = 64 };

typedef enum { TAESD_NONE, TAESD_CONV, TAESD_BLOCK, TAESD_RELU } TaesdKind;

typedef struct TaesdLayer {
    TaesdKind kind;
    int number;     // in the file's names
    int in, out;    // channels
    bool bias;      // convolutions
    bool pool;      // blocks: with a normalised 1x1 branch in front
    int pool_width;
} TaesdLayer;

typedef struct TaesdHalf {
    char prefix[48]; // of the names: "encoder.layers.", ""
    bool decoder;
    int layers;      // 0: the file lacks this half
    TaesdLayer layer[TAESD_MAX_LAYERS];
    int channels;    // of the latents
    int factor;      // pixels per latent and side
} TaesdHalf;

// Looks for half an autoencoder in `w`. Names: diffusers' ("encoder.layers.0.weight"),
// "taesd_encoder.0.weight", "encoder.0.weight", or bare numbers (the decoder's begin at 1: its
// first layer has no weights). out->layers stays 0 where it is not there; false only where layers
// make no sense.
bool taesd_find(const Weights *w, bool decoder, TaesdHalf *out, Error *err);

// Names as in the file. *count wants below `parent`.
BindWant *taesd_wants(void *parent, const TaesdHalf *half, int *count);

// `store` has the wants' tensors under their names. The decoder: latents [1, h, w, channels] f32,
// already through 3 tanh(z / 3) -> picture [1, H, W, 3] f32 0..1 (not clamped). The encoder: the
// other way.
Tensor *taesd_run(const TaesdHalf *half, Store *store, Tensor *x, BandRules *rules);

#endif
