// vae_impl.h: the inside of a Vae, shared by vae_open.c (which autoencoder) and vae.c (running it).
#ifndef KILN_ENGINE_VAE_IMPL_H
#define KILN_ENGINE_VAE_IMPL_H

#include "engine/vae.h"
#include "models/autoencoder_kl.h"
#include "models/taesd.h"

enum { VAE_HALVES = 2 }; // indexed by VaePass

typedef struct VaeHalf {
    KlConfig kl;    // VAE_KL
    TaesdHalf tiny; // VAE_TINY
    int count;      // weights; 0: the files lack this half
    BoundWeight *weight;
} VaeHalf;

struct Vae {
    VaeInfo info;
    VaeHalf half[VAE_HALVES];
    const char *path;   // for messages
    Weights *owned[VAE_HALVES];
};

#endif
