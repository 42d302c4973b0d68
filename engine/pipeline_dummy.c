// pipeline_dummy.c: see pipeline_dummy.h.
#include "engine/pipeline_dummy.h"

#include "backend/os.h"

#include "engine/dummy.h"
#include "models/autoencoder_kl.h"
#include "models/clip.h"
#include "models/flux.h"
#include "models/t5.h"

#include <stdlib.h>

static const struct { const char *name; bool guidance; } dummies[] = {
    {"flux-dev", true}, {"flux-schnell", false},
};

const char *pipeline_dummy_name(int i) {
    return i >= 0 && i < (int)COUNT_OF(dummies) ? dummies[i].name : NULL;
}

static int find(const char *name) {
    for (int i = 0; i < (int)COUNT_OF(dummies); i++)
        if (!strcmp(dummies[i].name, name)) return i;
    return -1;
}

bool pipeline_dummy_check(const char *name, Error *err) {
    return find(name) >= 0 || err_set(err, STATUS_USAGE, "--dummy: expected flux-dev or flux-schnell, "
                                                        "found \"%.60s\"", name);
}

bool pipeline_dummy_divisor(const char *text, int *divisor, Error *err) {
    *divisor = 1;
    if (!text || !strcmp(text, "1")) return true;
    char *end = NULL;
    bool fraction = !strncmp(text, "1/", 2) && text[2] >= '1' && text[2] <= '9';
    long n = fraction ? strtol(text + 2, &end, 10) : 0;
    if (n >= 1 && n <= PIPELINE_DUMMY_MAX_DIVISOR && !*end) return *divisor = (int)n, true;
    return err_set(err, STATUS_USAGE, "--dummy-scale: expected 1/1 to 1/%d, found \"%.60s\"",
                   PIPELINE_DUMMY_MAX_DIVISOR, text);
}

// ---- as parts -------------------------------------------------------------------------------------

typedef struct Dummy {
    ModelParts parts;
    Weights *set[PART_COUNT];
} Dummy;

static void add(Dummy *d, PartId id, const char *name, const BindWant *wants, int count, DType type) {
    d->set[id] = dummy_weights(d, name, wants, count, type, (uint64_t)id);
    d->parts.part[id] = (ModelPart){.weights = d->set[id], .path = os_path_join(d, d->parts.path, name)};
}

static void dummy_close(void *parts) {
    Dummy *d = parts;
    for (int i = 0; i < PART_COUNT; i++) weights_close(d->set[i]);
    mem_free(d);
}

ModelParts *pipeline_dummy_open(void *parent, const char *name, int divisor, DType type) {
    return pipeline_dummy_sized(parent, name, divisor, divisor, type);
}

ModelParts *pipeline_dummy_sized(void *parent, const char *name, int width, int depth, DType type) {
    Dummy *d = MEM_NEW(parent, Dummy);
    d->parts = (ModelParts){.path = mem_printf(d, "dummy %s", name), .architecture = "flux",
                            .close = dummy_close};
    if (type == DT_COUNT) type = DT_BF16;
    bool guidance = dummies[MAX(find(name), 0)].guidance;
    FluxConfig flux = flux_preset(guidance, width), few = flux_preset(guidance, depth);
    ClipConfig clip = clip_preset(width);
    T5Config t5 = t5_preset(width);
    KlConfig vae = kl_preset(width);
    flux.doubles = few.doubles, flux.singles = few.singles;
    clip.layers = clip_preset(depth).layers, t5.layers = t5_preset(depth).layers;
    flux.text_dim = t5_width(&t5), flux.pooled_dim = clip.dim;
    int n, encoder;
    const BindWant *wants = flux_wants(d, &flux, &n);
    add(d, PART_TRANSFORMER, "dummy transformer", wants, n, type);
    wants = clip_wants(d, &clip, &n);
    add(d, PART_CLIP_L, "dummy clip_l", wants, n, DT_BF16);
    wants = t5_wants(d, &t5, &n);
    add(d, PART_T5, "dummy t5xxl", wants, n, type);
    wants = kl_wants(d, &vae, &n, &encoder);
    add(d, PART_VAE, "dummy vae", wants, n, DT_BF16);
    return &d->parts;
}
