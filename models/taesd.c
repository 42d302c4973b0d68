// taesd.c: see taesd.h.
#include "models/taesd.h"

enum { NAME_MAX_LENGTH = 128, POOL_GROUPS = 4 };
#define POOL_EPS 1e-5f

// ---- which layers -----------------------------------------------------------------------------

static const WeightTensor *leaf(const Weights *w, const TaesdHalf *h, int number, const char *rest) {
    char name[NAME_MAX_LENGTH];
    snprintf(name, sizeof name, "%s%d.%s", h->prefix, number, rest);
    return weights_find(w, name);
}

static bool channels_of(const Weights *w, const WeightTensor *t, int axis, int *out, Error *err) {
    if (t->ndim != 4 || t->shape[axis] < 1 || t->shape[axis] > 65536)
        return err_failed(err, "%s: %s: expected a convolution of 1 to 65536 channels, found %d "
                          "dimensions", weights_path(w), t->name, t->ndim);
    *out = (int)t->shape[axis];
    return true;
}

static bool read_layer(const Weights *w, const TaesdHalf *h, int number, TaesdLayer *l, Error *err) {
    *l = (TaesdLayer){.number = number};
    const WeightTensor *t = leaf(w, h, number, "weight"), *last, *pool;
    if (t) {
        l->kind = TAESD_CONV;
        l->bias = leaf(w, h, number, "bias") != NULL;
        return channels_of(w, t, 1, &l->in, err) && channels_of(w, t, 0, &l->out, err);
    }
    t = leaf(w, h, number, "conv.0.weight");
    if (!t) return true;
    last = leaf(w, h, number, "conv.4.weight");
    l->kind = TAESD_BLOCK;
    if (!last)
        return err_failed(err, "%s: expected %s%d.conv.4.weight, found none", weights_path(w),
                          h->prefix, number);
    pool = leaf(w, h, number, "pool.0.weight");
    l->pool = pool != NULL;
    if (!channels_of(w, t, 1, &l->in, err) || !channels_of(w, last, 0, &l->out, err) ||
        (pool && !channels_of(w, pool, 0, &l->pool_width, err)))
        return false;
    return l->pool_width % POOL_GROUPS == 0 ||
           err_failed(err, "%s: %s: expected channels in multiples of %d, found %d", weights_path(w),
                      pool->name, POOL_GROUPS, l->pool_width);
}

// Layers without weights lie between those that have some: before a convolution without bias an
// enlargement (which that convolution implies), behind the decoder's first one a ReLU.
static bool read_layers(const Weights *w, TaesdHalf *h, Error *err) {
    int empty = 0;
    for (int number = 0; number < 2 * TAESD_MAX_LAYERS && empty < 3; number++) {
        TaesdLayer l;
        if (!read_layer(w, h, number, &l, err)) return false;
        empty = l.kind ? 0 : empty + 1;
        if (!l.kind) continue;
        if (h->layers + 2 > TAESD_MAX_LAYERS)
            return err_failed(err, "%s: expected a tiny autoencoder of at most %d layers, found more",
                              weights_path(w), TAESD_MAX_LAYERS);
        const TaesdLayer *before = h->layers ? &h->layer[h->layers - 1] : NULL;
        if (before && before->out != l.in)
            return err_failed(err, "%s: layer %s%d: expected %d channels in, found %d",
                              weights_path(w), h->prefix, number, before->out, l.in);
        h->layer[h->layers++] = l;
        if (h->decoder && h->layers == 1)
            h->layer[h->layers++] = (TaesdLayer){.kind = TAESD_RELU, .in = l.out, .out = l.out};
    }
    if (!h->layers) return true;
    const TaesdLayer *first = &h->layer[0], *last = &h->layer[h->layers - 1];
    h->channels = h->decoder ? first->in : last->out;
    h->factor = 1;
    for (int i = 0; i < h->layers; i++)
        if (h->layer[i].kind == TAESD_CONV && !h->layer[i].bias) h->factor *= 2;
    if ((h->decoder ? last->out : first->in) != 3 || h->factor > 64)
        return err_failed(err, "%s: expected an autoencoder of 3 colours and a factor of at most 64, "
                          "found %d and %d", weights_path(w), h->decoder ? last->out : first->in,
                          h->factor);
    return true;
}

bool taesd_find(const Weights *w, bool decoder, TaesdHalf *out, Error *err) {
    static const char *const PREFIXES[][2] = {
        {"encoder.layers.", "decoder.layers."},
        {"taesd_encoder.", "taesd_decoder."},
        {"encoder.", "decoder."},
        {"", ""},
    };
    for (size_t i = 0; i < COUNT_OF(PREFIXES); i++) {
        const char *prefix = PREFIXES[i][decoder];
        *out = (TaesdHalf){.decoder = decoder};
        if (!*prefix && decoder == (weights_find(w, "0.weight") != NULL)) continue;
        snprintf(out->prefix, sizeof out->prefix, "%s", prefix);
        if (!read_layers(w, out, err)) return false;
        if (out->layers) return true;
    }
    return true;
}

// ---- the model, walked for its wants or its graph ---------------------------------------------

typedef struct Walk {
    const TaesdHalf *half;
    Graph *g; // NULL: collecting
    Store *store;
    void *parent;
    ARRAY(BindWant) wants;
} Walk;

static Param *weight(Walk *k, int number, const char *rest, int ndim, const int64_t *shape) {
    char name[NAME_MAX_LENGTH];
    snprintf(name, sizeof name, "%s%d.%s", k->half->prefix, number, rest);
    if (k->g) {
        Param *p = store_find(k->store, name);
        if (!p) g_fail(k->g, "autoencoder: expected a weight %s, found none; this is a defect", name);
        return p;
    }
    BindWant want = {.name = mem_strdup(k->parent, name), .ndim = ndim,
                     .layout = ndim == 4 ? BIND_CONV : BIND_PLAIN};
    memcpy(want.shape, shape, sizeof(int64_t) * (size_t)ndim);
    ARR_PUSH(k->parent, &k->wants, want);
    return NULL;
}

static const Map *conv(Walk *k, const TaesdLayer *l, const char *module, const Map *x, int size,
                       int in, int out, bool bias, MapConv how) {
    char name[32];
    snprintf(name, sizeof name, "%sweight", module);
    how.w = weight(k, l->number, name, DIMS(out, in, size, size));
    snprintf(name, sizeof name, "%sbias", module);
    if (bias) how.bias = weight(k, l->number, name, DIMS(out));
    how.before = how.after = size == 3;
    return how.w && (how.bias || !bias) ? map_conv(x, &how) : x;
}

// Activations between the convolutions of a block are read by convolutions only.
static DType inner(const Map *x) { return x ? x->rules->compute : DT_F32; }

// x + 1x1(relu(norm(1x1(x))))
static const Map *pool(Walk *k, const TaesdLayer *l, const Map *x) {
    const Map *h = conv(k, l, "pool.0.", x, 1, l->in, l->pool_width, false,
                        (MapConv){.dtype = DT_F32});
    MapNorm norm = {.groups = POOL_GROUPS, .eps = POOL_EPS, .act = ACT_RELU, .dtype = inner(x)};
    norm.weight = weight(k, l->number, "pool.1.weight", DIMS(l->pool_width));
    norm.bias = weight(k, l->number, "pool.1.bias", DIMS(l->pool_width));
    if (norm.weight && norm.bias) h = map_norm(h, &norm);
    return conv(k, l, "pool.3.", h, 1, l->pool_width, l->in, false,
                (MapConv){.residual = x, .dtype = DT_F32});
}

// relu(conv(relu(conv(relu(conv(x))))) + x)
static const Map *block(Walk *k, const TaesdLayer *l, const Map *x) {
    if (l->pool) x = pool(k, l, x);
    const MapConv relu = {.act = ACT_RELU, .dtype = inner(x)};
    const Map *h = conv(k, l, "conv.0.", x, 3, l->in, l->out, true, relu);
    h = conv(k, l, "conv.2.", h, 3, l->out, l->out, true, relu);
    if (l->in != l->out)
        x = conv(k, l, "skip.", x, 1, l->in, l->out, false, (MapConv){.dtype = DT_F32});
    h = conv(k, l, "conv.4.", h, 3, l->out, l->out, true,
             (MapConv){.residual = x, .dtype = DT_F32});
    return k->g ? map_act(h, ACT_RELU, DT_F32) : h;
}

static const Map *walk(Walk *k, const Map *x) {
    const TaesdHalf *half = k->half;
    for (int i = 0; i < half->layers; i++) {
        const TaesdLayer *l = &half->layer[i];
        if (k->g) g_scope(k->g, mem_printf(k->g, "%s%d", half->prefix, l->number));
        MapConv how = {.dtype = DT_F32};
        if (!l->bias) *(half->decoder ? &how.upsample : &how.stride) = 2;
        if (l->kind == TAESD_CONV) x = conv(k, l, "", x, 3, l->in, l->out, l->bias, how);
        else if (l->kind == TAESD_BLOCK) x = block(k, l, x);
        else if (k->g) x = map_act(x, ACT_RELU, DT_F32);
    }
    return x;
}

BindWant *taesd_wants(void *parent, const TaesdHalf *half, int *count) {
    Walk k = {.half = half, .parent = parent};
    walk(&k, NULL);
    *count = k.wants.n;
    return k.wants.v;
}

Tensor *taesd_run(const TaesdHalf *half, Store *store, Tensor *x, BandRules *rules) {
    Walk k = {.half = half, .g = x->g, .store = store};
    return map_join(walk(&k, map_of(x, rules)));
}
