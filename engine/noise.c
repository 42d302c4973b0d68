// noise.c: see noise.h.
#include "engine/noise.h"

#include "engine/rng.h"

typedef union Generator {
    RngTorch torch;
    RngCuda cuda;
} Generator;

struct NoiseSource {
    NoiseKind kind;
    int count;
    size_t numbers;
    Generator *generator; // [count]
};

static void seed_generator(NoiseKind kind, Generator *g, uint64_t seed) {
    if (kind == NOISE_CUDA) rng_cuda_seed(&g->cuda, seed, 0);
    else rng_torch_seed(&g->torch, seed);
}

static void draw(NoiseKind kind, Generator *g, float *out, size_t n) {
    if (kind == NOISE_CUDA) rng_cuda_randn(&g->cuda, out, n);
    else rng_torch_randn(&g->torch, out, n);
}

NoiseSource *noise_new(void *parent, NoiseKind kind, uint64_t seed, int first, int count,
                       size_t numbers) {
    NoiseSource *s = MEM_NEW(parent, NoiseSource);
    *s = (NoiseSource){kind, count, numbers, MEM_ARRAY(s, Generator, count)};
    for (int k = 0; k < count; k++)
        seed_generator(kind, &s->generator[k], seed + (uint64_t)first + (uint64_t)k);
    return s;
}

void noise_draw(NoiseSource *s, float *out) {
    for (int k = 0; k < s->count; k++)
        draw(s->kind, &s->generator[k], out + (size_t)k * s->numbers, s->numbers);
}

void noise_first(NoiseKind kind, uint64_t seed, float *out, size_t n) {
    Generator g;
    seed_generator(kind, &g, seed);
    draw(kind, &g, out, n);
}
