// vae.h: autoencoders between pictures and the latents of a diffusion model: AutoencoderKL
// (Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022) and
// the tiny autoencoders of the TAESD family. A Vae is what files hold; a VaeRun is one direction at
// one size on one device, its memory known before anything is allocated.
//
// Latents are those of the diffusion model: what a sampler works on, scaled. Decoding undoes the
// scale itself (z / scale + shift), encoding applies it ((z - shift) * scale). Pictures are planes
// [B, 3, H, W], -1..1, not clamped.
//
// Thread-safety: a Vae never changes. A VaeRun belongs to its device's thread.
#ifndef KILN_ENGINE_VAE_H
#define KILN_ENGINE_VAE_H

#include "backend/backend.h"
#include "engine/config.h"
#include "engine/weights.h"

typedef struct Vae Vae;

typedef enum { VAE_KL, VAE_TINY } VaeKind;

typedef struct VaeInfo {
    VaeKind kind;
    const char *name;     // "AutoencoderKL", "TAESD"
    int channels;         // C of the latents: 4, 16, 32
    int factor;           // pixels per latent and side: 8
    bool encoder, decoder; // which halves the files hold
    double scale, shift;  // latents = (z - shift) * scale; a tiny autoencoder: 1 and 0
    int64_t parameters;
} VaeInfo;

// Recognises the autoencoder in `w` (which must outlive the result) by its names: those of
// diffusers, the original ones (LDM: "decoder.up.3.block.0..."), either below "vae." or
// "first_stage_model."; TAESD in diffusers' names ("decoder.layers.1..."). `config`:
// diffusers' config.json; NULL or without text: scale and shift follow from the number of channels
// (4: 0.18215 and 0; 16: 0.3611 and 0.1159, FLUX). Sizes follow from the tensors' shapes; those that
// config.json repeats must be the same (names of block types, sample_size, force_upcast and a tiny
// autoencoder's lists of blocks decide nothing here and are not read). All names and shapes are
// checked. NULL with an error.
Vae *vae_open(void *parent, const Weights *w, const ConfigFile *config, Error *err);
// A pair of files (taesd's `*_encoder.*`, `*_decoder.*`); one may be NULL. Halves of an
// AutoencoderKL in files of their own do as well.
Vae *vae_open_pair(void *parent, const Weights *encoder, const Weights *decoder, Error *err);
// A file, a folder that holds an autoencoder (config.json beside it is read), a folder with
// `*_encoder.*` and `*_decoder.*` files, or a model's folder with `vae/`. Opens and owns the files.
Vae *vae_open_path(void *parent, const char *path, Error *err);
void vae_close(Vae *vae); // NULL is allowed
VaeInfo vae_info(const Vae *vae);

typedef enum { VAE_DECODE, VAE_ENCODE } VaePass;
typedef enum { VAE_TILING_AUTO, VAE_TILING_ON, VAE_TILING_OFF } VaeTiling;
bool vae_tiling_parse(const char *name, VaeTiling *out); // "auto", "on", "off"

typedef struct VaeSpec {
    VaePass pass;
    int width, height; // of the picture, pixels: multiples of VaeInfo.factor
    // Device memory that the run may take in all (weights, arena, programs, staging); 0: what the
    // device has left of its own budget.
    uint64_t budget;
    // off: the whole picture at once, in exact bands of rows where a tensor would be larger than
    // the device's largest buffer. on: tiles with blended overlaps, which is approximate (norms and
    // attention see one tile at a time). auto: off where it fits the budget, else on with the
    // largest tile that fits.
    VaeTiling tiling;
    int tile;       // pixels per side, a multiple of factor; 0: 512 (on), or chosen (auto)
    DType compute;  // DT_F32, DT_BF16 or DT_F16: operands of convolutions; sums and norms in f32
    int bands;      // tests: at least so many bands; 0: as few as the device allows
} VaeSpec;

typedef struct VaeMemory {
    uint64_t weights_bytes, arena_bytes, program_bytes, staging_bytes;
    uint64_t peak_bytes; // the sum: what the device's allocator will see
    int tile_width, tile_height; // pixels; those of the picture where it is not tiled
    int tiles_x, tiles_y;        // 1 and 1: not tiled
    int bands;                   // most bands that a tensor is cut into; 1: whole
    double flops;                // of one picture, all tiles; known after vae_prepare
} VaeMemory;

typedef struct VaeRun VaeRun;
// Plans; nothing is allocated on the device. NULL with an error (over the budget: the text gives
// the smallest that works).
VaeRun *vae_plan(void *parent, Device *dev, const Vae *vae, const VaeSpec *spec, Error *err);
// The smallest budget with which vae_plan succeeds, to the byte (that of the spec is not looked at); 0 with
// an error: none.
uint64_t vae_smallest(Device *dev, const Vae *vae, const VaeSpec *spec, Error *err);
VaeMemory vae_memory(const VaeRun *run);
// Allocates, uploads the weights, records. Called by vae_decode and vae_encode where it was not.
bool vae_prepare(VaeRun *run, Error *err);
void vae_run_free(VaeRun *run); // with its device memory; NULL is allowed

typedef struct VaeCall {
    int batch;             // B, pictures one after the other; 0: 1
    int samples;           // S, encode: of each picture's distribution; 0: 1
    const Cancel *cancel;  // may be NULL
    // Before each tile (`done` of `total` over the batch); may be NULL.
    void (*progress)(void *user, int done, int total);
    void *user;
} VaeCall;

// latents [B, C, H / factor, W / factor] -> image [B, 3, H, W], both f32. `call` NULL: one picture.
// NaN or infinity in the result is an error.
bool vae_decode(VaeRun *run, const float *latents, float *image, const VaeCall *call, Error *err);
// image [B, 3, H, W] -> latents [B, S, C, H / factor, W / factor]: the mean of the posterior, or with
// `noise` (normal numbers of the same shape; may be `latents` itself) its samples mean + noise *
// exp(log variance / 2), the log variance clamped to -30..20. The network runs once per picture,
// whatever S is. Tiny autoencoders have no variance: noise is ignored.
bool vae_encode(VaeRun *run, const float *image, const float *noise, float *latents,
                const VaeCall *call, Error *err);

#endif
