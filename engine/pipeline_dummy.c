// pipeline_dummy.c: see pipeline_dummy.h.
#include "engine/pipeline_dummy.h"

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

// ---- the real models, smaller ---------------------------------------------------------------------

static int part(int n, int divisor) { return (n + divisor - 1) / divisor; }

static ClipConfig clip_of(int divisor) {
    int heads = part(12, divisor);
    return (ClipConfig){.vocab = 49408, .positions = 77, .dim = 64 * heads, .heads = heads,
                        .layers = part(12, divisor), .ff = 256 * heads, .act = ACT_QUICK_GELU, .eos = 2,
                        .eps = 1e-5f};
}

static T5Config t5_of(int divisor) {
    int heads = part(64, divisor);
    return (T5Config){.vocab = 32128, .dim = 64 * heads, .heads = heads, .head_dim = 64,
                      .layers = part(24, divisor), .ff = 160 * heads, .gated = true, .act = ACT_GELU,
                      .buckets = 32, .max_distance = 128, .eps = 1e-6f};
}

static FluxConfig flux_of(int divisor, bool guidance) {
    int heads = part(24, divisor), dim = 128 * heads;
    return (FluxConfig){.in_channels = 64, .out_channels = 64, .heads = heads, .head_dim = 128, .dim = dim,
                        .mlp = 4 * dim, .doubles = part(19, divisor), .singles = part(38, divisor),
                        .text_dim = t5_of(divisor).dim, .pooled_dim = clip_of(divisor).dim,
                        .guidance = guidance, .axes = {16, 56, 56}, .theta = 10000};
}

static KlConfig vae_of(int divisor) {
    enum { GROUPS = 32 };
    KlConfig c = {.names = KL_DIFFUSERS, .encoder = true, .decoder = true, .attention = true,
                  .channels = 16, .levels = 4, .layers = 2, .groups = GROUPS, .scale = 0.3611,
                  .shift = 0.1159};
    static const int widths[] = {128, 256, 512, 512};
    for (int i = 0; i < c.levels; i++) c.width[i] = part(part(widths[i], divisor), GROUPS) * GROUPS;
    return c;
}

// ---- as parts -------------------------------------------------------------------------------------

typedef struct Dummy {
    ModelParts parts;
    Weights *set[PART_COUNT];
} Dummy;

static void add(Dummy *d, PartId id, const char *name, const BindWant *wants, int count, DType type) {
    d->set[id] = dummy_weights(d, name, wants, count, type, (uint64_t)id);
    d->parts.part[id] = (ModelPart){.weights = d->set[id], .path = name};
}

static void dummy_close(void *parts) {
    Dummy *d = parts;
    for (int i = 0; i < PART_COUNT; i++) weights_close(d->set[i]);
    mem_free(d);
}

ModelParts *pipeline_dummy_open(void *parent, const char *name, int divisor, DType type) {
    Dummy *d = MEM_NEW(parent, Dummy);
    d->parts = (ModelParts){.path = mem_printf(d, "dummy %s", name), .architecture = "flux",
                            .close = dummy_close};
    if (type == DT_COUNT) type = DT_BF16;
    FluxConfig flux = flux_of(divisor, dummies[MAX(find(name), 0)].guidance);
    ClipConfig clip = clip_of(divisor);
    T5Config t5 = t5_of(divisor);
    KlConfig vae = vae_of(divisor);
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
