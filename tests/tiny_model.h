// tiny_model.h: the parts of a FLUX.1 of a few numbers, as tensors and as files of zeros, for tests
// that open models and run none.
#ifndef KILN_TESTS_TINY_MODEL_H
#define KILN_TESTS_TINY_MODEL_H

#include <assert.h>

#include "engine/model_parts.h"
#include "engine/safetensors.h"
#include "models/autoencoder_kl.h"
#include "models/clip.h"
#include "models/flux.h"
#include "models/names.h"
#include "models/t5.h"
#include "tests/scratch.h"

typedef struct TinyPart { WeightTensor *t; int n; } TinyPart;

static inline TinyPart tiny_vae(void *parent, KlNames names) {
    KlConfig kl = {.names = names, .encoder = true, .decoder = true, .attention = true, .channels = 4,
                   .levels = 4, .layers = 1, .groups = 32, .scale = 1, .width = {32, 32, 32, 32}};
    TinyPart p = {0};
    int encoder;
    BindWant *wants = kl_wants(parent, &kl, &p.n, &encoder);
    p.t = MEM_ARRAY(parent, WeightTensor, p.n);
    for (int i = 0; i < p.n; i++) {
        WeightTensor *t = &p.t[i];
        const char *theirs[BIND_MAX_PIECES] = {NULL};
        kl_names(&kl, wants[i].name, theirs, parent);
        *t = (WeightTensor){.name = theirs[0], .dtype = DT_F16, .ndim = wants[i].ndim, .bytes = 2};
        memcpy(t->shape, wants[i].shape, sizeof t->shape);
        for (int d = 0; d < t->ndim; d++) t->bytes *= (uint64_t)t->shape[d];
    }
    return p;
}

static inline TinyPart tiny_part(void *parent, PartId id) {
    FluxConfig flux = {.in_channels = 16, .out_channels = 16, .heads = 1, .head_dim = 32, .dim = 32,
                       .mlp = 16, .doubles = 1, .singles = 1, .text_dim = 8, .pooled_dim = 12,
                       .guidance = true};
    ClipConfig clip = {.vocab = 16, .positions = 77, .dim = 12, .heads = 1, .layers = 1, .ff = 8};
    T5Config t5 = {.vocab = 16, .dim = 8, .heads = 1, .head_dim = 8, .layers = 1, .ff = 8, .gated = true,
                   .buckets = 32};
    TinyPart p = {0};
    const BindWant *wants;
    if (id == PART_TRANSFORMER) wants = flux_wants(parent, &flux, &p.n);
    else if (id == PART_CLIP_L) wants = clip_wants(parent, &clip, &p.n);
    else if (id == PART_T5) wants = t5_wants(parent, &t5, &p.n);
    else return tiny_vae(parent, KL_DIFFUSERS);
    p.t = MEM_ARRAY(parent, WeightTensor, p.n);
    for (int i = 0; i < p.n; i++) {
        WeightTensor *t = &p.t[i];
        *t = (WeightTensor){.name = wants[i].name, .dtype = wants[i].ndim < 2 ? DT_F32 : DT_F16,
                            .ndim = wants[i].ndim, .count = (uint64_t)wants_parameters(&wants[i], 1)};
        t->bytes = (uint64_t)dtype_bytes(t->dtype, (int64_t)t->count);
        memcpy(t->shape, wants[i].shape, sizeof t->shape);
    }
    return p;
}

// Tensors from..to, zeros, as a safetensors file; its folder is made.
static inline void tiny_write(const char *path, const WeightTensor *t, int from, int to) {
    Error err = {0};
    StWriter *w = st_writer(NULL);
    for (int i = from; i < to; i++)
        st_put(w, t[i].name, t[i].dtype, t[i].ndim, t[i].shape, mem_new(w, (size_t)t[i].bytes + 1));
    bool ok = os_make_dirs(os_dir_name(w, path), &err) && st_write(w, path, &err);
    if (!ok) err_print(&err, stderr);
    assert(ok);
    mem_free(w);
}

#endif
