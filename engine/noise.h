// noise.h: the random numbers of a request for pictures: one generator per picture, picture k's
// seeded with seed + k, each going on from draw to draw as PyTorch's would. So the numbers of a
// picture depend neither on the batch it was made in nor on what a sampler does between draws.
//
// Order of the draws (as diffusers' pipelines): image to image draws the autoencoder's sample
// first; then the starting noise; then, where the sampler injects noise, once per such step.
//
// Thread-safety: a NoiseSource belongs to one thread at a time.
#ifndef KILN_ENGINE_NOISE_H
#define KILN_ENGINE_NOISE_H

#include "backend/base.h"

// Whose numbers (rng.h): PyTorch's CPU generator or its CUDA generator.
typedef enum { NOISE_TORCH, NOISE_CUDA } NoiseKind;

typedef struct NoiseSource NoiseSource;

// Pictures first .. first + count - 1 of a request with `seed`; every draw gives `numbers` normals
// to each. Below `parent`.
NoiseSource *noise_new(void *parent, NoiseKind kind, uint64_t seed, int first, int count,
                       size_t numbers);
// out [count, numbers]: the next draw of each picture's generator.
void noise_draw(NoiseSource *s, float *out);

// The first draw of one picture whose own seed is `seed`, without a source. out [n].
void noise_first(NoiseKind kind, uint64_t seed, float *out, size_t n);

#endif
