// autoencoder_kl.c: see autoencoder_kl.h.
#include "models/autoencoder_kl.h"

#include "engine/json.h"
#include "models/names.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>

enum { NAME_MAX_LENGTH = 160 };
#define KL_EPS 1e-6f

// ---- names ------------------------------------------------------------------------------------

// Our names (diffusers') and the original ones, by their beginnings after each dot. A number after
// a piece is a block's, kept but for the decoder's levels, which the original counts from the end.
static const struct { const char *ours, *theirs; } PIECES[] = {
    {"down_blocks.", "down."},
    {"up_blocks.", "up."},
    {"mid_block.resnets.0", "mid.block_1"},
    {"mid_block.resnets.1", "mid.block_2"},
    {"mid_block.attentions.0.group_norm", "mid.attn_1.norm"},
    {"mid_block.attentions.0.to_q", "mid.attn_1.q"},
    {"mid_block.attentions.0.to_k", "mid.attn_1.k"},
    {"mid_block.attentions.0.to_v", "mid.attn_1.v"},
    {"mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"},
    {"resnets.", "block."},
    {"downsamplers.0", "downsample"},
    {"upsamplers.0", "upsample"},
    {"conv_shortcut", "nin_shortcut"},
    {"conv_norm_out", "norm_out"},
};
static const struct { const char *ours, *theirs; } OLD[] = { // diffusers before 0.14
    {".to_q.", ".query."}, {".to_k.", ".key."}, {".to_v.", ".value."}, {".to_out.0.", ".proj_attn."},
};

static void original_name(const KlConfig *c, const char *name, char out[NAME_MAX_LENGTH]) {
    size_t n = 0;
    bool start = true; // of a piece
    while (*name && n + 32 < NAME_MAX_LENGTH) {
        size_t i = COUNT_OF(PIECES);
        if (start)
            for (i = 0; i < COUNT_OF(PIECES); i++)
                if (!strncmp(name, PIECES[i].ours, strlen(PIECES[i].ours))) break;
        if (i == COUNT_OF(PIECES)) {
            start = *name == '.';
            out[n++] = *name++;
            continue;
        }
        n += (size_t)snprintf(out + n, NAME_MAX_LENGTH - n, "%s", PIECES[i].theirs);
        name += strlen(PIECES[i].ours);
        if (!strcmp(PIECES[i].theirs, "up.")) {
            char *end;
            long level = strtol(name, &end, 10);
            n += (size_t)snprintf(out + n, NAME_MAX_LENGTH - n, "%ld", c->levels - 1 - level);
            name = end;
        }
        start = false;
    }
    out[n] = 0;
}

int kl_names(const void *user, const char *name, const char **out, void *scratch) {
    const KlConfig *c = user;
    char theirs[NAME_MAX_LENGTH];
    out[0] = mem_strdup(scratch, name);
    if (c->names == KL_ORIGINAL) {
        original_name(c, name, theirs);
        out[0] = mem_strdup(scratch, theirs);
    }
    for (size_t i = 0; c->names == KL_DIFFUSERS_OLD && i < COUNT_OF(OLD); i++) {
        const char *at = strstr(name, OLD[i].ours);
        if (at)
            out[0] = mem_printf(scratch, "%.*s%s%s", (int)(at - name), name, OLD[i].theirs,
                                at + strlen(OLD[i].ours));
    }
    return 1;
}

// ---- configuration ----------------------------------------------------------------------------

static const WeightTensor *find(const Weights *w, const char *prefix, const char *format, ...)
    PRINTF_LIKE(3, 4);
static const WeightTensor *find(const Weights *w, const char *prefix, const char *format, ...) {
    char name[NAME_MAX_LENGTH];
    int n = snprintf(name, sizeof name, "%s", prefix);
    if (n < 0 || n >= NAME_MAX_LENGTH) return NULL;
    va_list args;
    va_start(args, format);
    vsnprintf(name + n, sizeof name - (size_t)n, format, args);
    va_end(args);
    return weights_find(w, name);
}

static bool half_found(const Weights *w, const char *prefix, const char *half) {
    return find(w, prefix, "%s.conv_in.weight", half) &&
           (find(w, prefix, "%s.mid.block_1.conv1.weight", half) ||
            find(w, prefix, "%s.mid_block.resnets.0.conv1.weight", half));
}

bool kl_found(const Weights *w, const char *prefix) {
    return half_found(w, prefix, "encoder") || half_found(w, prefix, "decoder");
}

// The first dimension of a convolution under our name; 0: not there.
static int outputs(const Weights *w, const KlConfig *c, const char *name) {
    void *scratch = mem_new(NULL, 1);
    const char *theirs[BIND_MAX_PIECES];
    kl_names(c, name, theirs, scratch);
    const WeightTensor *t = weights_find(w, theirs[0]);
    mem_free(scratch);
    return t && t->ndim == 4 && t->shape[0] > 0 && t->shape[0] < 65536 ? (int)t->shape[0] : 0;
}

// Numbers 0.. of blocks that are there; `format` has one %d.
static int count_blocks(const Weights *w, const KlConfig *c, const char *half, const char *rest) {
    int n = 0;
    for (char name[NAME_MAX_LENGTH]; n < 64; n++) {
        int k = snprintf(name, sizeof name, "%s.", half);
        k += snprintf(name + k, sizeof name - (size_t)k, "%.*s%d%s", (int)(strchr(rest, '#') - rest),
                      rest, n, strchr(rest, '#') + 1);
        if (k >= NAME_MAX_LENGTH || !outputs(w, c, name)) break;
    }
    return n;
}

static bool sizes_from_shapes(const Weights *w, KlConfig *c, Error *err) {
    const char *half = c->encoder ? "encoder" : "decoder";
    bool original = c->names == KL_ORIGINAL;
    // Levels are counted in the file's own names: the decoder's are turned round by their number.
    const char *level = c->encoder ? original ? "encoder.down.%d.block.0.conv1.weight"
                                              : "encoder.down_blocks.%d.resnets.0.conv1.weight"
                                   : original ? "decoder.up.%d.block.0.conv1.weight"
                                              : "decoder.up_blocks.%d.resnets.0.conv1.weight";
    char name[NAME_MAX_LENGTH];
    while (c->levels <= KL_MAX_LEVELS) {
        snprintf(name, sizeof name, level, c->levels);
        if (!weights_find(w, name)) break;
        c->levels++;
    }
    if (c->levels < 1 || c->levels > KL_MAX_LEVELS)
        return err_failed(err, "%s: expected an autoencoder of 1 to %d levels, found %d",
                          weights_path(w), KL_MAX_LEVELS, c->levels);
    for (int i = 0; i < c->levels; i++) {
        int at = c->encoder ? i : c->levels - 1 - i;
        snprintf(name, sizeof name, "%s.%s.%d.resnets.0.conv1.weight", half,
                 c->encoder ? "down_blocks" : "up_blocks", at);
        c->width[i] = outputs(w, c, name);
        if (!c->width[i])
            return err_failed(err, "%s: expected a convolution %s of 1 to 65535 channels, found none",
                              weights_path(w), name);
    }
    c->layers = c->encoder ? count_blocks(w, c, half, "down_blocks.0.resnets.#.conv1.weight")
                           : count_blocks(w, c, half, "up_blocks.0.resnets.#.conv1.weight") - 1;
    const WeightTensor *in = weights_find(w, "decoder.conv_in.weight");
    const WeightTensor *out = weights_find(w, "encoder.conv_out.weight");
    c->channels = c->decoder && in && in->ndim == 4 ? (int)MIN(in->shape[1], 65536)
                  : out && out->ndim == 4           ? (int)MIN(out->shape[0] / 2, 65536) : 0;
    if (c->channels < 1 || c->channels > 1024 || c->layers < 1)
        return err_failed(err, "%s: expected latents of 1 to 1024 channels and a residual block per "
                          "level, found %d and %d", weights_path(w), c->channels, c->layers);
    return true;
}

static bool read_config(const ConfigFile *file, KlConfig *c, Error *err) {
    Json *root = config_parse(file, err);
    if (!root) return false;
    const ConfigFact facts[] = {
        {"in_channels", 3}, {"out_channels", 3}, {"latent_channels", c->channels},
        {"layers_per_block", c->layers}, {"mid_block_add_attention", c->attention},
    };
    const ConfigFact quant = {"use_quant_conv", c->quant}, post = {"use_post_quant_conv", c->post_quant};
    c->shift = 0; // a configuration without one means none
    const char *act = "silu";
    bool ok = config_number(file, root, "scaling_factor", -KL_MAX_SCALE, KL_MAX_SCALE, &c->scale, err) &&
              config_number(file, root, "shift_factor", -KL_MAX_SCALE, KL_MAX_SCALE, &c->shift, err) &&
              config_text(file, root, "act_fn", &act, err) &&
              config_int(file, root, "norm_num_groups", &c->groups, err) &&
              config_agrees(file, root, facts, COUNT_OF(facts), err) &&
              (!c->encoder || config_agrees(file, root, &quant, 1, err)) &&
              (!c->decoder || config_agrees(file, root, &post, 1, err)) &&
              config_list_agrees(file, root, "block_out_channels", c->width, c->levels, err);
    if (ok && c->scale == 0)
        ok = err_failed(err, "%s: expected a scaling_factor other than 0, found 0", file->path);
    const Json *mean = json_get(root, "latents_mean");
    if (ok && mean && !json_is_null(mean))
        ok = err_failed(err, "%s: expected one scaling_factor for all channels, found latents_mean; this "
                        "kind is not supported yet", file->path);
    if (ok && strcmp(act, "silu") && strcmp(act, "swish"))
        ok = err_failed(err, "%s: expected act_fn silu, found %s", file->path, act);
    json_free(root);
    return ok;
}

bool kl_config(const Weights *w, const ConfigFile *config, KlConfig *c, Error *err) {
    *c = (KlConfig){.groups = 32};
    c->encoder = half_found(w, "", "encoder");
    c->decoder = half_found(w, "", "decoder");
    const char *half = c->encoder ? "encoder" : "decoder";
    c->names = find(w, "", "%s.mid.block_1.conv1.weight", half) ? KL_ORIGINAL
               : find(w, "", "%s.mid_block.attentions.0.query.weight", half) ? KL_DIFFUSERS_OLD
                                                                          : KL_DIFFUSERS;
    c->quant = weights_find(w, "quant_conv.weight") != NULL;
    c->post_quant = weights_find(w, "post_quant_conv.weight") != NULL;
    c->attention = find(w, "", "%s.mid.attn_1.norm.weight", half) ||
                   find(w, "", "%s.mid_block.attentions.0.group_norm.weight", half);
    if (!sizes_from_shapes(w, c, err)) return false;
    c->scale = c->channels == 16 ? 0.3611 : 0.18215;
    c->shift = c->channels == 16 ? 0.1159 : 0;
    if (config && config->text && !read_config(config, c, err)) return false;
    for (int i = 0; i < c->levels; i++)
        if (!c->groups || c->width[i] % c->groups)
            return err_failed(err, "%s: expected widths in multiples of the norms' groups (%d), found "
                              "%d", weights_path(w), c->groups, c->width[i]);
    return true;
}

int kl_factor(const KlConfig *c) { return 1 << (c->levels - 1); }

KlConfig kl_preset(int divisor) {
    static const int widths[] = {128, 256, 512, 512};
    KlConfig c = {.names = KL_DIFFUSERS, .encoder = true, .decoder = true, .attention = true,
                  .channels = 16, .levels = COUNT_OF(widths), .layers = 2, .groups = 32,
                  .scale = 0.3611, .shift = 0.1159};
    for (int i = 0; i < c.levels; i++) c.width[i] = scaled_down(widths[i] / c.groups, divisor) * c.groups;
    return c;
}

// ---- the model, walked for its wants or its graph ---------------------------------------------

typedef struct Walk {
    const KlConfig *c;
    // Recording; NULL: collecting, and maps are NULL.
    Graph *g;
    Store *store;
    DType compute;
    // Collecting.
    void *parent;
    ARRAY(BindWant) wants;
} Walk;

// One weight: wanted while collecting (NULL), else found.
static Param *weight(Walk *k, const char *module, const char *leaf, BindLayout layout, int ndim,
                     const int64_t *shape) {
    char name[NAME_MAX_LENGTH];
    snprintf(name, sizeof name, "%s.%s", module, leaf);
    if (k->g) {
        Param *p = store_find(k->store, name);
        if (!p) g_fail(k->g, "autoencoder: expected a weight %s, found none; this is a defect", name);
        return p;
    }
    BindWant want = {.name = mem_strdup(k->parent, name), .ndim = ndim, .layout = layout};
    memcpy(want.shape, shape, sizeof(int64_t) * (size_t)ndim);
    ARR_PUSH(k->parent, &k->wants, want);
    return NULL;
}

// A convolution of `size` x `size` taps from `in` to `out` channels.
static const Map *conv(Walk *k, const char *name, const Map *x, int size, int in, int out,
                       MapConv how) {
    how.w = weight(k, name, "weight", BIND_CONV, DIMS(out, in, size, size));
    how.bias = weight(k, name, "bias", BIND_PLAIN, DIMS(out));
    if (!how.w || !how.bias) return x;
    return map_conv(x, &how);
}
static MapConv same(DType dtype) { // 3 x 3, the size kept
    return (MapConv){.before = 1, .after = 1, .dtype = dtype};
}

static const Map *norm(Walk *k, const char *name, const Map *x, int channels, uint32_t act) {
    MapNorm how = {.groups = (uint32_t)k->c->groups, .eps = KL_EPS, .act = act, .dtype = k->compute};
    how.weight = weight(k, name, "weight", BIND_PLAIN, DIMS(channels));
    how.bias = weight(k, name, "bias", BIND_PLAIN, DIMS(channels));
    if (!how.weight || !how.bias) return x;
    return map_norm(x, &how);
}

static const Map *resnet(Walk *k, const char *name, const Map *x, int in, int out) { // x f32
    char part[NAME_MAX_LENGTH];
    if (k->g) g_scope(k->g, mem_strdup(k->g, name));
    snprintf(part, sizeof part, "%s.norm1", name);
    const Map *h = norm(k, part, x, in, ACT_SILU);
    snprintf(part, sizeof part, "%s.conv1", name);
    h = conv(k, part, h, 3, in, out, same(k->compute));
    snprintf(part, sizeof part, "%s.norm2", name);
    h = norm(k, part, h, out, ACT_SILU);
    if (in != out) {
        snprintf(part, sizeof part, "%s.conv_shortcut", name);
        x = conv(k, part, x, 1, in, out, (MapConv){.dtype = DT_F32});
    }
    MapConv last = same(DT_F32);
    last.residual = x;
    snprintf(part, sizeof part, "%s.conv2", name);
    return conv(k, part, h, 3, out, out, last);
}

// ---- attention --------------------------------------------------------------------------------

// The widest head that every device takes, and what the scores of a part of a wider one may hold.
enum { HEAD_WIDTH = 256, SCORE_BYTES = 64 << 20 };

// Softmax of q k^T times v, [1, T, C] each, q scaled already. A head that is too wide is cut: the
// first part goes through attention as it is, the products of the others are added to its scores as
// a mask, for some rows of q at a time.
static Tensor *attend(Tensor *q, Tensor *k, Tensor *v, DType dtype) {
    Graph *g = q->g;
    int64_t tokens = q->shape[1], width = q->shape[2];
    int64_t parts = (width + HEAD_WIDTH - 1) / HEAD_WIDTH;
    while (width % parts) parts++;
    int64_t one = width / parts, rest = width - one;
    int64_t rows = parts == 1 ? tokens : MAX(1, MIN(tokens, SCORE_BYTES / (4 * tokens)));
    int64_t blocks = (tokens + rows - 1) / rows;
    Tensor *block[4096];
    if (blocks > 4096 || parts > 64) {
        g_fail(g, "autoencoder: expected at most 16 million pixels, found more; use --vae-tiling on");
        return q;
    }
    Tensor *key = g_reshape(g_slice(k, 2, 0, one), DIMS(1, tokens, 1, one));
    Tensor *far_k = parts > 1 ? g_slice(k, 2, one, rest) : NULL;
    for (int64_t i = 0; i < blocks; i++) {
        int64_t first = i * rows, n = MIN(rows, tokens - first);
        Tensor *qi = g_slice(q, 1, first, n), *mask = NULL, *part[64];
        if (parts > 1) {
            Tensor *far_q = g_slice(qi, 2, one, rest);
            mask = g_gemm(g, GEMM(.x = far_q, .w = far_k));
            mask = g_reshape(mask, DIMS(1, 1, n, tokens));
        }
        Tensor *query = g_reshape(g_slice(qi, 2, 0, one), DIMS(1, n, 1, one));
        for (int64_t p = 0; p < parts; p++) {
            Tensor *value = g_reshape(g_slice(v, 2, p * one, one), DIMS(1, tokens, 1, one));
            part[p] = g_attn(g, ATTN(.q = query, .k = key, .v = value, .mask = mask, .scale = 1,
                                     .dtype = dtype));
        }
        block[i] = parts == 1 ? part[0] : g_concat(g, 3, (int)parts, part);
    }
    Tensor *y = blocks == 1 ? block[0] : g_concat(g, 1, (int)blocks, block);
    return g_reshape(y, DIMS(1, tokens, width));
}

typedef struct KlLinear { Param *weight, *bias; } KlLinear;

static Tensor *linear(const Walk *k, const KlLinear *l, Tensor *x, Tensor *residual, DType dtype) {
    Tensor *w = g_weight(k->g, l->weight, k->compute), *bias = g_param(k->g, l->bias);
    return g_gemm(k->g, GEMM(.x = x, .w = w, .bias = bias, .residual = residual, .dtype = dtype));
}

static const Map *attention(Walk *k, const char *name, const Map *x, int width) { // x f32
    static const char *const LINEARS[] = {"to_q", "to_k", "to_v", "to_out.0"};
    char part[NAME_MAX_LENGTH + 16];
    if (k->g) g_scope(k->g, mem_strdup(k->g, name));
    snprintf(part, sizeof part, "%s.group_norm", name);
    const Map *h = norm(k, part, x, width, ACT_NONE);
    KlLinear l[COUNT_OF(LINEARS)];
    for (size_t i = 0; i < COUNT_OF(LINEARS); i++) {
        snprintf(part, sizeof part, "%s.%s", name, LINEARS[i]);
        l[i].weight = weight(k, part, "weight", BIND_PLAIN, DIMS(width, width));
        l[i].bias = weight(k, part, "bias", BIND_PLAIN, DIMS(width));
        if (!l[i].weight || !l[i].bias) h = NULL;
    }
    if (!h) return x;
    int64_t tokens = x->h * x->w;
    Tensor *n = g_reshape(map_join(h), DIMS(1, tokens, width));
    Tensor *q = linear(k, &l[0], n, NULL, DT_F32);
    q = g_ewise(k->g, EWISE(.kind = EW_SCALE, .x = q, .alpha = (float)(1 / sqrt((double)width)),
                            .dtype = k->compute));
    Tensor *key = linear(k, &l[1], n, NULL, k->compute);
    Tensor *value = linear(k, &l[2], n, NULL, k->compute);
    Tensor *y = attend(q, key, value, k->compute);
    Tensor *residual = g_reshape(map_join(x), DIMS(1, tokens, width));
    y = linear(k, &l[3], y, residual, DT_F32);
    return map_of(g_reshape(y, DIMS(1, x->h, x->w, width)), x->rules);
}

static const Map *middle(Walk *k, const char *half, const Map *x) {
    int width = k->c->width[k->c->levels - 1];
    char name[NAME_MAX_LENGTH];
    snprintf(name, sizeof name, "%s.mid_block.resnets.0", half);
    x = resnet(k, name, x, width, width);
    snprintf(name, sizeof name, "%s.mid_block.attentions.0", half);
    if (k->c->attention) x = attention(k, name, x, width);
    snprintf(name, sizeof name, "%s.mid_block.resnets.1", half);
    return resnet(k, name, x, width, width);
}

// ---- halves -----------------------------------------------------------------------------------

static const Map *encoder(Walk *k, const Map *x) {
    const KlConfig *c = k->c;
    char name[NAME_MAX_LENGTH];
    x = conv(k, "encoder.conv_in", x, 3, 3, c->width[0], same(DT_F32));
    for (int i = 0, in = c->width[0]; i < c->levels; in = c->width[i], i++) {
        for (int j = 0; j < c->layers; j++) {
            snprintf(name, sizeof name, "encoder.down_blocks.%d.resnets.%d", i, j);
            x = resnet(k, name, x, j ? c->width[i] : in, c->width[i]);
        }
        snprintf(name, sizeof name, "encoder.down_blocks.%d.downsamplers.0.conv", i);
        MapConv half = {.stride = 2, .after = 1, .dtype = DT_F32};
        if (i < c->levels - 1) x = conv(k, name, x, 3, c->width[i], c->width[i], half);
    }
    x = middle(k, "encoder", x);
    int last = c->width[c->levels - 1];
    x = norm(k, "encoder.conv_norm_out", x, last, ACT_SILU);
    x = conv(k, "encoder.conv_out", x, 3, last, 2 * c->channels, same(DT_F32));
    if (c->quant)
        x = conv(k, "quant_conv", x, 1, 2 * c->channels, 2 * c->channels, (MapConv){.dtype = DT_F32});
    return x;
}

static const Map *decoder(Walk *k, const Map *x) {
    const KlConfig *c = k->c;
    char name[NAME_MAX_LENGTH];
    if (c->post_quant)
        x = conv(k, "post_quant_conv", x, 1, c->channels, c->channels, (MapConv){.dtype = DT_F32});
    int in = c->width[c->levels - 1];
    x = conv(k, "decoder.conv_in", x, 3, c->channels, in, same(DT_F32));
    x = middle(k, "decoder", x);
    for (int i = 0; i < c->levels; i++) {
        int out = c->width[c->levels - 1 - i];
        for (int j = 0; j < c->layers + 1; j++, in = out) {
            snprintf(name, sizeof name, "decoder.up_blocks.%d.resnets.%d", i, j);
            x = resnet(k, name, x, in, out);
        }
        snprintf(name, sizeof name, "decoder.up_blocks.%d.upsamplers.0.conv", i);
        MapConv twice = same(DT_F32);
        twice.upsample = 2;
        if (i < c->levels - 1) x = conv(k, name, x, 3, out, out, twice);
    }
    x = norm(k, "decoder.conv_norm_out", x, c->width[0], ACT_SILU);
    return conv(k, "decoder.conv_out", x, 3, c->width[0], 3, same(DT_F32));
}

BindWant *kl_wants(void *parent, const KlConfig *c, int *count, int *encoder_count) {
    Walk k = {.c = c, .parent = parent};
    if (c->encoder) encoder(&k, NULL);
    *encoder_count = k.wants.n;
    if (c->decoder) decoder(&k, NULL);
    *count = k.wants.n;
    return k.wants.v;
}

static Tensor *record(const KlConfig *c, Store *store, Tensor *x, BandRules *rules,
                      const Map *(*half)(Walk *, const Map *)) {
    Walk k = {.c = c, .g = x->g, .store = store, .compute = rules->compute};
    return map_join(half(&k, map_of(x, rules)));
}

Tensor *kl_decode(const KlConfig *c, Store *store, Tensor *z, BandRules *rules) {
    return record(c, store, z, rules, decoder);
}

Tensor *kl_encode(const KlConfig *c, Store *store, Tensor *picture, BandRules *rules) {
    return record(c, store, picture, rules, encoder);
}
