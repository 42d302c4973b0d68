// clip.c: see clip.h.
#include "models/clip.h"

#include "engine/lookup.h"
#include "models/names.h"

// ---- weights ----------------------------------------------------------------------------------

// Letters: D width, F feed-forward, V vocabulary, N positions, P projection.
#define LAYER "text_model.encoder.layers.#."
#define LINEAR(name, out, in) {LAYER name ".weight", out " " in, false}, {LAYER name ".bias", out, false}
#define NORM_ROWS(name) {name ".weight", "D", false}, {name ".bias", "D", false}

enum { TABLE_TOKENS, TABLE_POSITIONS };
static const WantRow table_rows[] = {
    {"text_model.embeddings.token_embedding.weight", "V D", false},
    {"text_model.embeddings.position_embedding.weight", "N D", false},
};
enum {
    NORM1_W, NORM1_B, Q_W, Q_B, K_W, K_B, V_W, V_B, OUT_W, OUT_B, NORM2_W, NORM2_B, FC1_W, FC1_B,
    FC2_W, FC2_B,
};
static const WantRow layer_rows[] = {
    NORM_ROWS(LAYER "layer_norm1"), LINEAR("self_attn.q_proj", "D", "D"),
    LINEAR("self_attn.k_proj", "D", "D"), LINEAR("self_attn.v_proj", "D", "D"),
    LINEAR("self_attn.out_proj", "D", "D"), NORM_ROWS(LAYER "layer_norm2"),
    LINEAR("mlp.fc1", "F", "D"), LINEAR("mlp.fc2", "D", "F"),
};
enum { FINAL_W, FINAL_B, PROJECTION_W };
static const WantRow tail_rows[] = {
    NORM_ROWS("text_model.final_layer_norm"),
    {"text_projection.weight", "P D", false},
};
static int tail_count(bool projection) { return (int)COUNT_OF(tail_rows) - !projection; }

static int64_t dim_of(const void *config, char letter) {
    const ClipConfig *c = config;
    switch (letter) {
    case 'D': return c->dim;
    case 'F': return c->ff;
    case 'V': return c->vocab;
    case 'N': return c->positions;
    default: return c->projection;
    }
}

BindWant *clip_wants(void *parent, const ClipConfig *c, int *count) {
    WantList list = {.parent = parent, .dim_of = dim_of, .config = c};
    wants_add(&list, table_rows, COUNT_OF(table_rows), 0);
    for (int i = 0; i < c->layers; i++) wants_add(&list, layer_rows, COUNT_OF(layer_rows), i);
    wants_add(&list, tail_rows, tail_count(c->projection > 0), 0);
    *count = list.n;
    return list.v;
}

// Some files leave out "text_model."; then what follows it begins their names.
static const NameRow bare_rows[] = {{"text_model.", {""}}};
static const NameLayout layouts[] = {
    {"transformers", "text_model.embeddings.token_embedding.weight", NULL, 0},
    {"bare", "embeddings.token_embedding.weight", bare_rows, COUNT_OF(bare_rows)},
};
static const char *const ignored[] = {"*position_ids", "logit_scale", "visual_projection.",
                                      "vision_model.", "text_projection", NULL};

// The first layout ends with the second's marker: it is asked first.
static const NameLayout *layout_of(void *parent, const Weights *w, const char **prefix) {
    for (size_t i = 0; i < COUNT_OF(layouts); i++) {
        const NameLayout *found = names_detect(parent, w, &layouts[i], 1, prefix);
        if (found) return found;
    }
    return NULL;
}

bool clip_is(const Weights *w) { return layout_of(NULL, w, NULL) != NULL; }

// ---- configuration ----------------------------------------------------------------------------

bool clip_check_config(const ClipConfig *c, Error *err) {
    const ConfigRange ranges[] = {
        {"vocab_size", c->vocab, 1, 1 << 24}, {"max_position_embeddings", c->positions, 1, 4096},
        {"hidden_size", c->dim, 1, 16384}, {"num_attention_heads", c->heads, 1, 256},
        {"num_hidden_layers", c->layers, 1, 256}, {"intermediate_size", c->ff, 1, 1 << 17},
        {"projection_dim", c->projection, 0, 16384},
    };
    if (!config_in_ranges("clip", ranges, COUNT_OF(ranges), err)) return false;
    if (c->dim % c->heads)
        return err_failed(err, "clip: expected a width that the number of heads (%d) divides, found %d",
                          c->heads, c->dim);
    return true;
}

static bool config_from_shapes(const Weights *w, const NameLayout *layout, ClipConfig *c, Error *err) {
    const NameSize sizes[] = {
        {"text_model.embeddings.token_embedding.weight", 0, &c->vocab, false},
        {"text_model.embeddings.token_embedding.weight", 1, &c->dim, false},
        {"text_model.embeddings.position_embedding.weight", 0, &c->positions, false},
        {"text_model.encoder.layers.0.mlp.fc1.weight", 0, &c->ff, false},
    };
    if (!names_sizes(w, layout, sizes, COUNT_OF(sizes), err)) return false;
    c->layers = names_blocks(w, layout, LAYER "mlp.fc1.weight");
    const WeightTensor *projection = weights_find(w, "text_projection.weight");
    if (projection && projection->ndim == 2 && projection->shape[1] == c->dim)
        c->projection = (int)MIN(projection->shape[0], INT32_MAX);
    c->heads = c->dim % 64 == 0 ? c->dim / 64 : 12;
    c->act = c->dim <= 768 ? ACT_QUICK_GELU : ACT_GELU_ERF;
    c->eos = c->vocab > 49407 ? 49407 : 2;
    c->eps = 1e-5f;
    return true;
}

static bool config_from_json(const ConfigFile *file, ClipConfig *c, Error *err) {
    static const struct { const char *name; uint32_t act; } acts[] = {
        {"quick_gelu", ACT_QUICK_GELU}, {"gelu", ACT_GELU_ERF}, {"gelu_new", ACT_GELU},
        {"gelu_pytorch_tanh", ACT_GELU}, {"relu", ACT_RELU}, {"silu", ACT_SILU},
    };
    Json *root = config_parse(file, err);
    if (!root) return false;
    const Json *inner = json_get(root, "text_config"); // configurations of the whole CLIP
    const Json *from = inner ? inner : root;
    const ConfigFact facts[] = {{"hidden_size", c->dim}, {"intermediate_size", c->ff},
                                {"vocab_size", c->vocab}, {"max_position_embeddings", c->positions}};
    double eps = c->eps;
    const char *act = NULL;
    bool ok = config_int(file, from, "num_attention_heads", &c->heads, err) &&
              config_int(file, from, "num_hidden_layers", &c->layers, err) &&
              config_int(file, from, "eos_token_id", &c->eos, err) &&
              config_number(file, from, "layer_norm_eps", 0, 1, &eps, err) &&
              config_text(file, from, "hidden_act", &act, err) &&
              config_agrees(file, from, facts, COUNT_OF(facts), err);
    c->eps = (float)eps;
    bool known = !act;
    for (size_t i = 0; act && i < COUNT_OF(acts); i++)
        if (!strcmp(act, acts[i].name)) c->act = acts[i].act, known = true;
    if (ok && !known)
        ok = err_failed(err, "%s: expected `hidden_act` quick_gelu or gelu, found %s", file->path, act);
    json_free(root);
    return ok;
}

ClipModel *clip_open(void *parent, const Weights *w, const ConfigFile *config, Error *err) {
    ClipModel *m = MEM_NEW(parent, ClipModel);
    const NameLayout *layout = layout_of(m, w, &m->prefix);
    bool ok = layout || err_failed(err, "%s: expected CLIP's text encoder (a tensor "
                                   "`text_model.embeddings.token_embedding.weight`), found none; name "
                                   "another file", weights_path(w));
    if (ok) {
        m->weights = *m->prefix ? weights_part(m, w, m->prefix) : w;
        ok = config_from_shapes(m->weights, layout, &m->config, err);
    }
    ok = ok && (!config || !config->text || config_from_json(config, &m->config, err));
    if (ok && !clip_check_config(&m->config, err)) ok = err_prefix(err, "%s", weights_path(w));
    if (ok) {
        const BindOptions options = {.names = names_translate, .user = layout, .type = DT_COUNT,
                                     .ignore = ignored};
        m->want = clip_wants(m, &m->config, &m->count);
        m->weight = bind_weights(m, m->weights, m->want, m->count, &options, err);
        ok = m->weight != NULL;
    }
    if (!ok) {
        mem_free(m);
        return NULL;
    }
    for (int i = COUNT_OF(table_rows); i < m->count; i++) m->bytes += m->weight[i].bytes;
    m->parameters = wants_parameters(m->want, m->count);
    return m;
}

ClipConfig clip_preset(int divisor) {
    int heads = scaled_down(12, divisor);
    return (ClipConfig){.vocab = 49408, .positions = 77, .dim = 64 * heads, .heads = heads,
                        .layers = scaled_down(12, divisor), .ff = 256 * heads, .act = ACT_QUICK_GELU,
                        .eos = 2, .eps = 1e-5f};
}

// ---- recording --------------------------------------------------------------------------------

enum { CLIP_LAYER, CLIP_TAP, CLIP_TAIL };

static Tensor *layer_norm(const ClipText *t, Graph *g, Tensor *x, Param *const *w, DType type, Tensor *y) {
    Tensor *weight = g_param(g, w[0]), *bias = g_param(g, w[1]);
    return g_norm(g, NORM(.x = x, .weight = weight, .bias = bias, .eps = t->model->config.eps, .y = y,
                          .dtype = type));
}

static void record_layer(const ClipText *t, Graph *g, Param *const *w) {
    const ClipConfig *c = &t->model->config;
    const int maps[3] = {Q_W, K_W, V_W};
    DType compute = t->shape.compute;
    int64_t batch = t->shape.batch, tokens = t->shape.tokens;
    Tensor *x = g_param(g, t->x), *qkv[3];
    Tensor *h = layer_norm(t, g, x, w + NORM1_W, compute, NULL);
    for (int i = 0; i < 3; i++) {
        qkv[i] = g_linear(g, &(Linear){.x = h, .weight = w[maps[i]], .bias = w[maps[i] + 1],
                                       .compute = compute, .out = compute});
        qkv[i] = g_reshape(qkv[i], DIMS(batch, tokens, c->heads, c->dim / c->heads));
    }
    Tensor *y = g_attn(g, ATTN(.q = qkv[0], .k = qkv[1], .v = qkv[2], .causal = 1, .dtype = compute));
    y = g_reshape(y, DIMS(batch, tokens, c->dim));
    Tensor *mid = g_linear(g, &(Linear){.x = y, .weight = w[OUT_W], .bias = w[OUT_B],
                                        .compute = compute, .residual = x});
    h = layer_norm(t, g, mid, w + NORM2_W, compute, NULL);
    h = g_linear(g, &(Linear){.x = h, .weight = w[FC1_W], .bias = w[FC1_B], .compute = compute,
                              .out = wide(compute), .act = c->act});
    g_linear(g, &(Linear){.x = h, .weight = w[FC2_W], .bias = w[FC2_B], .compute = wide(compute),
                          .residual = mid, .y = x});
}

// Keeps the states as they are here.
static void record_tap(const ClipText *t, Graph *g, Param *const *w) {
    Tensor *x = g_param(g, t->x), *hidden = g_param(g, t->hidden);
    if (t->shape.hidden_norm) layer_norm(t, g, x, w, DT_F32, hidden);
    else g_copy(g, COPY(.x = x, .y = hidden));
}

static void record_tail(const ClipText *t, Graph *g, Param *const *w) {
    const ClipConfig *c = &t->model->config;
    Tensor *h = layer_norm(t, g, g_param(g, t->x), w + FINAL_W, DT_F32, NULL);
    h = g_reshape(h, DIMS((int64_t)t->shape.batch * t->shape.tokens, c->dim));
    Tensor *end = g_param(g, t->end), *pooled = g_param(g, t->pooled);
    if (!t->shape.projected) {
        g_embed(g, EMBED(.table = h, .ids = end, .y = pooled));
        return;
    }
    h = g_embed(g, EMBED(.table = h, .ids = end));
    g_linear(g, &(Linear){.x = h, .weight = w[PROJECTION_W], .y = pooled});
}

static void record(void *user, Graph *g, const StackUnit *unit, Param *const *w) {
    static void (*const records[])(const ClipText *, Graph *, Param *const *) = {record_layer, record_tap,
                                                                               record_tail};
    records[unit->kind](user, g, w);
}

ClipText *clip_text_new(void *parent, const ClipModel *m, Device *dev, const ClipShape *shape) {
    const ClipConfig *c = &m->config;
    ClipText *t = MEM_NEW(parent, ClipText);
    t->model = m;
    t->shape = *shape;
    t->shape.projected = shape->projected && c->projection;
    t->shape.skip = MIN(MAX(shape->skip, 0), c->layers - 1);
    t->state = store_new(t, dev);
    t->x = store_add(t->state, "x", DT_F32, DIMS(shape->batch, shape->tokens, c->dim));
    t->hidden = store_add(t->state, "hidden", DT_F32, DIMS(shape->batch, shape->tokens, c->dim));
    t->pooled = store_add(t->state, "pooled", DT_F32,
                          DIMS(shape->batch, t->shape.projected ? c->projection : c->dim));
    t->end = store_add(t->state, "end", DT_I32, DIMS(shape->batch));

    UnitList list = {.parent = t, .weight = m->weight, .weights = m->count};
    for (int i = 0; i < c->layers; i++) {
        units_add(&list, CLIP_LAYER, i, mem_printf(t, "layer %d", i), layer_rows, COUNT_OF(layer_rows));
        if (i == c->layers - 1 - t->shape.skip)
            units_add(&list, CLIP_TAP, 0, "hidden states", tail_rows, shape->hidden_norm ? 2 : 0);
    }
    units_add(&list, CLIP_TAIL, 0, "pooled text", tail_rows, tail_count(t->shape.projected));
    t->spec = (StackSpec){.name = "CLIP", .units = list.n, .unit = list.v, .record = record, .user = t,
                          .state = t->state};
    return t;
}

void clip_text_free(ClipText *t) {
    if (!t) return;
    store_free(t->state);
    mem_free(t);
}

// Where the text ends: see ClipConfig.eos.
static int end_of(const ClipConfig *c, const int32_t *ids, int tokens) {
    int best = 0;
    for (int i = 0; i < tokens; i++) {
        if (c->eos != 2 && ids[i] == c->eos) return i;
        if (c->eos == 2 && ids[i] > ids[best]) best = i;
    }
    return best;
}

bool clip_text_write(ClipText *t, const int32_t *ids, Error *err) {
    const ClipConfig *c = &t->model->config;
    int tokens = t->shape.tokens, batch = t->shape.batch;
    if (tokens > c->positions)
        return err_failed(err, "clip: expected at most %d tokens, found %d; shorten the prompt",
                          c->positions, tokens);
    int64_t size = (int64_t)tokens * c->dim;
    float *x = MEM_ARRAY(NULL, float, size * batch);
    float *positions = MEM_ARRAY(x, float, (int64_t)c->positions * c->dim);
    int32_t *end = MEM_ARRAY(x, int32_t, batch);
    bool ok = lookup_rows(&t->model->weight[TABLE_TOKENS], ids, (int64_t)batch * tokens, x, err) &&
              lookup_all(&t->model->weight[TABLE_POSITIONS], positions, err);
    for (int b = 0; b < batch; b++) {
        for (int64_t i = 0; i < size; i++) x[b * size + i] += positions[i];
        end[b] = b * tokens + end_of(c, ids + (int64_t)b * tokens, tokens);
    }
    ok = ok && param_write(t->x, DT_F32, x, err) && param_write(t->end, DT_I32, end, err);
    mem_free(x);
    return ok;
}
