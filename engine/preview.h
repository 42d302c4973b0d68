// preview.h: a small picture of a latent by a linear projection of its channels to RGB: no
// autoencoder, next to no time. One picture point per latent point (1/8 of the picture's side).
//
// Pure functions: any thread.
#ifndef KILN_ENGINE_PREVIEW_H
#define KILN_ENGINE_PREVIEW_H

#include "engine/image.h"

// colour[c] = bias[c] + sum_k weight[k][c] latent[k], of latents as the transformer sees them
// (shifted and scaled); colours in -1..1.
typedef struct PreviewTable {
    const char *name;
    int channels;
    const float (*weight)[3]; // [channels][3]
    float bias[3];
} PreviewTable;

// By number of latent channels (16: FLUX.1); NULL: there is none.
const PreviewTable *preview_table(int channels);
// latent [channels, height, width], the clean estimate x + (end - t) v where there is one. NULL
// when the size is out of an image's range. Numbers that are not finite show as black.
Image *preview_image(void *parent, const PreviewTable *t, const float *latent, int width,
                     int height, Error *err);

#endif
