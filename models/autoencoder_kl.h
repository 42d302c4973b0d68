// autoencoder_kl.h: AutoencoderKL (Rombach et al., "High-Resolution Image Synthesis with Latent
// Diffusion Models", CVPR 2022) as SD 1 to 3, SDXL, FLUX.1 and others use it: residual blocks with
// group norms, one attention in the middle, a factor of 2 per level.
//
// The model is written once: the functions that record it also list the weights it wants.
//
// Thread-safety: pure functions of their arguments.
#ifndef KILN_MODELS_AUTOENCODER_KL_H
#define KILN_MODELS_AUTOENCODER_KL_H

#include "engine/bind.h"
#include "engine/config.h"
#include "models/bands.h"

enum { KL_MAX_LEVELS = 8, KL_MAX_SCALE = 1000000 };

typedef enum { KL_DIFFUSERS, KL_DIFFUSERS_OLD, KL_ORIGINAL } KlNames;

typedef struct KlConfig {
    KlNames names;           // of the file
    bool encoder, decoder;   // which halves are there
    bool quant, post_quant;  // 1x1 convolutions at the latents
    bool attention;          // in the middle
    int channels;            // of the latents
    int levels;              // a side shrinks by 2^(levels - 1)
    int width[KL_MAX_LEVELS]; // channels per level, the largest pictures first
    int layers;              // residual blocks per level of the encoder; the decoder has one more
    int groups;              // of the norms
    double scale, shift;     // latents = (z - shift) * scale
} KlConfig;

// Is there an AutoencoderKL (or half of one) in `w`, whose names begin with `prefix`?
bool kl_found(const Weights *w, const char *prefix);
// Sizes from the shapes of tensors (names without prefix), norm groups, scale and shift from the
// config.json or the defaults of vae.h.
bool kl_config(const Weights *w, const ConfigFile *config, KlConfig *out, Error *err);
int kl_factor(const KlConfig *c); // pixels per latent and side
// FLUX.1's, 1/divisor as wide, rounded up to one channel per norm group.
KlConfig kl_preset(int divisor);

// What a file must hold, the encoder's first: *count wants below `parent`, *encoder of them the
// encoder's.
BindWant *kl_wants(void *parent, const KlConfig *c, int *count, int *encoder);
// BindNames; user: the KlConfig.
int kl_names(const void *user, const char *name, const char **out, void *scratch);

// `store` has the wants' tensors under their names. z [1, h, w, channels] f32, not scaled
// -> [1, H, W, 3] f32, -1..1.
Tensor *kl_decode(const KlConfig *c, Store *store, Tensor *z, BandRules *rules);
// picture [1, H, W, 3] f32 -> moments [1, h, w, 2 channels] f32: means, then log variances.
Tensor *kl_encode(const KlConfig *c, Store *store, Tensor *picture, BandRules *rules);

#endif
