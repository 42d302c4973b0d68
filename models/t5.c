// t5.c: see t5.h.
#include "models/t5.h"

#include <math.h>

#include "engine/lookup.h"
#include "models/names.h"

// ---- weights ----------------------------------------------------------------------------------

// Letters: D width, A all heads, N heads, R buckets, F feed-forward, V vocabulary, Q projection's
// hidden width, P its width.
#define BLOCK "encoder.block.#.layer."
#define MATRIX(name, out, in) {BLOCK name ".weight", out " " in, false}

enum { TABLE_TOKENS, TABLE_BIAS, TABLES };
static const WantRow table_rows[] = {
    {"shared.weight", "V D", false},
    {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "R N", false},
};
enum { NORM1, QUERY, KEY, VALUE, OUT, NORM2, FF_OUT, FF_IN, FF_GATED };
#define LAYER_ROWS                                                                             \
    {BLOCK "0.layer_norm.weight", "D", false}, MATRIX("0.SelfAttention.q", "A", "D"),           \
    MATRIX("0.SelfAttention.k", "A", "D"), MATRIX("0.SelfAttention.v", "A", "D"),               \
    MATRIX("0.SelfAttention.o", "D", "A"), {BLOCK "1.layer_norm.weight", "D", false},           \
    MATRIX("1.DenseReluDense.wo", "D", "F")
static const WantRow gated_rows[] = {LAYER_ROWS, MATRIX("1.DenseReluDense.wi_0", "F", "D"),
                                     MATRIX("1.DenseReluDense.wi_1", "F", "D")};
static const WantRow plain_rows[] = {LAYER_ROWS, MATRIX("1.DenseReluDense.wi", "F", "D")};
enum { FINAL_NORM, PROJECTION_IN, PROJECTION_OUT };
static const WantRow tail_rows[] = {
    {"encoder.final_layer_norm.weight", "D", false},
    {"final_projection.0.weight", "Q D", false},
    {"final_projection.3.weight", "P Q", false},
};
static int tail_count(const T5Config *c) { return c->projection ? COUNT_OF(tail_rows) : 1; }
static int layer_count(const T5Config *c) {
    return c->gated ? COUNT_OF(gated_rows) : COUNT_OF(plain_rows);
}
static const WantRow *layer_rows(const T5Config *c) { return c->gated ? gated_rows : plain_rows; }

static int64_t dim_of(const void *config, char letter) {
    const T5Config *c = config;
    switch (letter) {
    case 'D': return c->dim;
    case 'A': return (int64_t)c->heads * c->head_dim;
    case 'N': return c->heads;
    case 'R': return c->buckets;
    case 'F': return c->ff;
    case 'V': return c->vocab;
    case 'Q': return c->projection_hidden;
    default: return c->projection;
    }
}

BindWant *t5_wants(void *parent, const T5Config *c, int *count) {
    WantList list = {.parent = parent, .dim_of = dim_of, .config = c};
    wants_add(&list, table_rows, TABLES, 0);
    for (int i = 0; i < c->layers; i++) wants_add(&list, layer_rows(c), layer_count(c), i);
    wants_add(&list, tail_rows, tail_count(c), 0);
    *count = list.n;
    return list.v;
}

int t5_width(const T5Config *c) { return c->projection ? c->projection : c->dim; }

// llama.cpp's names, as in the T5 encoders that GGUF files hold.
static const NameRow gguf_rows[] = {
    {"shared.weight", {"token_embd.weight"}},
    {"encoder.final_layer_norm.", {"enc.output_norm."}},
    {BLOCK "0.SelfAttention.relative_attention_bias.", {"enc.blk.#.attn_rel_b."}},
    {BLOCK "0.layer_norm.", {"enc.blk.#.attn_norm."}},
    {BLOCK "0.SelfAttention.q.", {"enc.blk.#.attn_q."}},
    {BLOCK "0.SelfAttention.k.", {"enc.blk.#.attn_k."}},
    {BLOCK "0.SelfAttention.v.", {"enc.blk.#.attn_v."}},
    {BLOCK "0.SelfAttention.o.", {"enc.blk.#.attn_o."}},
    {BLOCK "1.layer_norm.", {"enc.blk.#.ffn_norm."}},
    {BLOCK "1.DenseReluDense.wi_0.", {"enc.blk.#.ffn_gate."}},
    {BLOCK "1.DenseReluDense.wi_1.", {"enc.blk.#.ffn_up."}},
    {BLOCK "1.DenseReluDense.wi.", {"enc.blk.#.ffn_up."}},
    {BLOCK "1.DenseReluDense.wo.", {"enc.blk.#.ffn_down."}},
};
// Some files hold the token table under its second name only.
static const NameRow tied_rows[] = {{"shared.", {"encoder.embed_tokens."}}};
static const NameLayout layouts[] = {
    {"transformers", "encoder.block.0.layer.0.SelfAttention.q.weight", NULL, 0},
    {"gguf", "enc.blk.0.attn_q.weight", gguf_rows, COUNT_OF(gguf_rows)},
};
static const NameLayout tied_layout = {"transformers", "", tied_rows, COUNT_OF(tied_rows)};
static const char *const ignored[] = {"decoder.", "dec.", "lm_head.", "output.weight",
                                      "encoder.embed_tokens.", "spiece_model", "logit_scale", NULL};

const char *const t5_keep[] = {
    "shared.", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.", NULL};

const char *t5_gguf_name(void *parent, const char *name) {
    const char *theirs[BIND_MAX_PIECES] = {0};
    names_translate(&layouts[1], name, theirs, parent);
    return theirs[0] == name ? mem_strdup(parent, name) : theirs[0];
}

static const NameLayout *layout_of(void *parent, const Weights *w, const char **prefix) {
    return names_detect(parent, w, layouts, COUNT_OF(layouts), prefix);
}

bool t5_is(const Weights *w) { return layout_of(NULL, w, NULL) != NULL; }

// ---- configuration ----------------------------------------------------------------------------

bool t5_check_config(const T5Config *c, Error *err) {
    const ConfigRange ranges[] = {
        {"vocab_size", c->vocab, 1, 1 << 24}, {"d_model", c->dim, 1, 65536},
        {"num_heads", c->heads, 1, 512}, {"d_kv", c->head_dim, 1, 256},
        {"num_layers", c->layers, 1, 256}, {"d_ff", c->ff, 1, 1 << 18},
        {"relative_attention_num_buckets", c->buckets, 4, 4096},
        {"relative_attention_max_distance", c->max_distance, c->buckets / 4 + 1, 1 << 20},
        {"width of final_projection", c->projection, 0, 65536},
    };
    return config_in_ranges("t5", ranges, COUNT_OF(ranges), err);
}

#define FIRST "encoder.block.0.layer."

static bool config_from_shapes(const Weights *w, const NameLayout *layout, T5Config *c, Error *err) {
    int inner = 0;
    const NameSize sizes[] = {
        {"shared.weight", 0, &c->vocab, false},
        {"shared.weight", 1, &c->dim, false},
        {FIRST "0.SelfAttention.relative_attention_bias.weight", 0, &c->buckets, false},
        {FIRST "0.SelfAttention.relative_attention_bias.weight", 1, &c->heads, false},
        {FIRST "0.SelfAttention.q.weight", 0, &inner, false},
        {FIRST "1.DenseReluDense.wo.weight", 1, &c->ff, false},
        {"final_projection.3.weight", 0, &c->projection, true},
        {"final_projection.3.weight", 1, &c->projection_hidden, true},
    };
    if (!names_sizes(w, layout, sizes, COUNT_OF(sizes), err)) return false;
    c->layers = names_blocks(w, layout, BLOCK "0.SelfAttention.q.weight");
    c->head_dim = inner / c->heads;
    c->gated = names_find(w, layout, FIRST "1.DenseReluDense.wi_0.weight") != NULL;
    c->act = c->gated ? ACT_GELU : ACT_RELU;
    c->max_distance = 128;
    c->eps = 1e-6f;
    return true;
}

// How the feed-forward layers act: as transformers and older files name it.
static bool check_act(const ConfigFile *file, const Json *root, const T5Config *c, Error *err) {
    static const char *const members[] = {"feed_forward_proj", "dense_act_fn"};
    static const char *const acts[2][3] = {{"relu"}, {"gated-gelu", "gelu_new", "gelu_pytorch_tanh"}};
    for (size_t i = 0; i < COUNT_OF(members); i++) {
        const char *act = acts[c->gated][0];
        if (!config_text(file, root, members[i], &act, err)) return false;
        bool known = false;
        for (size_t k = 0; k < COUNT_OF(acts[0]); k++)
            known = known || (acts[c->gated][k] && !strcmp(act, acts[c->gated][k]));
        if (!known)
            return err_failed(err, "%s: expected `%s` %s, as the tensors %s a gate, found %s", file->path,
                              members[i], acts[c->gated][c->gated * i], c->gated ? "have" : "lack", act);
    }
    return true;
}

static bool config_from_json(const ConfigFile *file, T5Config *c, Error *err) {
    Json *root = config_parse(file, err);
    if (!root) return false;
    const struct { const char *name; int *field; } members[] = {
        {"num_heads", &c->heads}, {"d_kv", &c->head_dim}, {"num_layers", &c->layers},
        {"relative_attention_num_buckets", &c->buckets},
        {"relative_attention_max_distance", &c->max_distance},
    };
    const ConfigFact facts[] = {{"d_model", c->dim}, {"d_ff", c->ff}, {"vocab_size", c->vocab},
                                {"is_gated_act", c->gated}};
    const char *type = "t5";
    double eps = c->eps;
    bool ok = config_text(file, root, "model_type", &type, err) &&
              config_number(file, root, "layer_norm_epsilon", 0, 1, &eps, err) &&
              (!strcmp(type, "t5") ||
               err_failed(err, "%s: expected `model_type` t5, found %s", file->path, type));
    for (size_t i = 0; ok && i < COUNT_OF(members); i++)
        ok = config_int(file, root, members[i].name, members[i].field, err);
    ok = ok && config_agrees(file, root, facts, COUNT_OF(facts), err) && check_act(file, root, c, err);
    c->eps = (float)eps;
    json_free(root);
    return ok;
}

T5Model *t5_open(void *parent, const Weights *w, const ConfigFile *config, DType type,
                 Error *err) {
    T5Model *m = MEM_NEW(parent, T5Model);
    const NameLayout *layout = layout_of(m, w, &m->prefix);
    bool ok = layout || err_failed(err, "%s: expected T5's encoder (a tensor `%s` or `%s`), found none; "
                                   "name another file", weights_path(w), layouts[0].marker,
                                   layouts[1].marker);
    if (ok) {
        m->layout = layout->name;
        m->weights = *m->prefix ? weights_part(m, w, m->prefix) : w;
        bool tied = !layout->count && !weights_find(m->weights, "shared.weight");
        if (tied) layout = &tied_layout;
        ok = config_from_shapes(m->weights, layout, &m->config, err);
    }
    ok = ok && (!config || !config->text || config_from_json(config, &m->config, err));
    if (ok && !t5_check_config(&m->config, err)) ok = err_prefix(err, "%s", weights_path(w));
    if (ok) {
        const BindOptions options = {.names = names_translate, .user = layout, .type = type,
                                     .keep = t5_keep, .ignore = ignored};
        m->want = t5_wants(m, &m->config, &m->count);
        m->weight = bind_weights(m, m->weights, m->want, m->count, &options, err);
        ok = m->weight != NULL;
    }
    if (!ok) {
        mem_free(m);
        return NULL;
    }
    for (int i = TABLES; i < m->count; i++) m->bytes += m->weight[i].bytes;
    m->parameters = wants_parameters(m->want, m->count);
    return m;
}

T5Config t5_preset(int divisor) {
    int heads = scaled_down(64, divisor);
    return (T5Config){.vocab = 32128, .dim = 64 * heads, .heads = heads, .head_dim = 64,
                      .layers = scaled_down(24, divisor), .ff = 160 * heads, .gated = true,
                      .act = ACT_GELU, .buckets = 32, .max_distance = 128, .eps = 1e-6f};
}

// ---- recording --------------------------------------------------------------------------------

enum { T5_LAYER, T5_TAIL };

static Tensor *rms_norm(const T5Text *t, Graph *g, Tensor *x, Param *weight, DType type, Tensor *y) {
    Tensor *w = g_param(g, weight);
    return g_norm(g, NORM(.x = x, .weight = w, .kind = NORM_RMS, .eps = t->model->config.eps, .y = y,
                          .dtype = type));
}

// The feed-forward layer's product reaches far over f16's range in trained models.
static void feed_forward(const T5Text *t, Graph *g, Tensor *x, Param *const *w) {
    const T5Config *c = &t->model->config;
    DType compute = t->shape.compute, type = wide(compute);
    Tensor *h = rms_norm(t, g, x, w[NORM2], compute, NULL);
    Tensor *m = g_linear(g, &(Linear){.x = h, .weight = w[FF_IN], .compute = compute, .out = type,
                                      .act = c->act});
    if (c->gated) {
        Tensor *gate = g_linear(g, &(Linear){.x = h, .weight = w[FF_GATED], .compute = compute,
                                             .out = type});
        m = g_ewise(g, EWISE(.kind = EW_MUL, .x = m, .y = gate, .dtype = type));
    }
    g_linear(g, &(Linear){.x = m, .weight = w[FF_OUT], .compute = type, .residual = x,
                          .y = g_param(g, t->x)});
}

static void record_layer(const T5Text *t, Graph *g, Param *const *w) {
    const T5Config *c = &t->model->config;
    DType compute = t->shape.compute;
    int64_t batch = t->shape.batch, tokens = t->shape.tokens;
    Tensor *x = g_param(g, t->x), *qkv[3];
    Tensor *h = rms_norm(t, g, x, w[NORM1], compute, NULL);
    for (int i = 0; i < 3; i++) {
        qkv[i] = g_linear(g, &(Linear){.x = h, .weight = w[QUERY + i], .compute = compute,
                                       .out = compute});
        qkv[i] = g_reshape(qkv[i], DIMS(batch, tokens, c->heads, c->head_dim));
    }
    Tensor *bias = g_param(g, t->bias);
    Tensor *y = g_attn(g, ATTN(.q = qkv[0], .k = qkv[1], .v = qkv[2], .mask = bias, .scale = 1,
                               .dtype = compute));
    y = g_reshape(y, DIMS(batch, tokens, (int64_t)c->heads * c->head_dim));
    x = g_linear(g, &(Linear){.x = y, .weight = w[OUT], .compute = compute, .residual = x});
    feed_forward(t, g, x, w);
}

static void record_tail(const T5Text *t, Graph *g, Param *const *w) {
    const T5Config *c = &t->model->config;
    Tensor *x = g_param(g, t->x), *states = g_param(g, t->states);
    if (!c->projection) {
        rms_norm(t, g, x, w[FINAL_NORM], DT_F32, states);
        return;
    }
    DType compute = t->shape.compute;
    Tensor *h = rms_norm(t, g, x, w[FINAL_NORM], compute, NULL);
    h = g_linear(g, &(Linear){.x = h, .weight = w[PROJECTION_IN], .compute = compute,
                              .out = wide(compute), .act = ACT_RELU});
    g_linear(g, &(Linear){.x = h, .weight = w[PROJECTION_OUT], .compute = wide(compute), .y = states});
}

static void record(void *user, Graph *g, const StackUnit *unit, Param *const *w) {
    (unit->kind == T5_LAYER ? record_layer : record_tail)(user, g, w);
}

T5Text *t5_text_new(void *parent, const T5Model *m, Device *dev, const T5Shape *shape) {
    const T5Config *c = &m->config;
    T5Text *t = MEM_NEW(parent, T5Text);
    int64_t batch = shape->batch, tokens = shape->tokens;
    t->model = m;
    t->shape = *shape;
    t->state = store_new(t, dev);
    t->x = store_add(t->state, "x", DT_F32, DIMS(batch, tokens, c->dim));
    t->states = store_add(t->state, "states", DT_F32, DIMS(batch, tokens, t5_width(c)));
    t->bias = store_add(t->state, "bias", DT_F32, DIMS(shape->masked ? batch : 1, c->heads, tokens, tokens));

    UnitList list = {.parent = t, .weight = m->weight, .weights = m->count};
    for (int i = 0; i < c->layers; i++)
        units_add(&list, T5_LAYER, i, mem_printf(t, "block %d", i), layer_rows(c), layer_count(c));
    units_add(&list, T5_TAIL, 0, "final norm", tail_rows, tail_count(c));
    t->spec = (StackSpec){.name = "T5", .units = list.n, .unit = list.v, .record = record, .user = t,
                          .state = t->state};
    return t;
}

void t5_text_free(T5Text *t) {
    if (!t) return;
    store_free(t->state);
    mem_free(t);
}

// ---- inputs and results -----------------------------------------------------------------------

// Half of the buckets tell the direction; of the rest half hold one distance each, the others grow
// in powers up to max_distance. In f32, as the models were trained.
int t5_bucket(int64_t relative, int buckets, int max_distance) {
    int half = buckets / 2, exact = half / 2, side = relative > 0 ? half : 0;
    int64_t distance = relative < 0 ? -relative : relative;
    if (distance < exact) return side + (int)distance;
    float grown = logf((float)distance / (float)exact) /
                  (float)log((double)max_distance / exact) * (float)(half - exact);
    return side + MIN(exact + (int)grown, half - 1);
}

static bool fill_bias(const T5Text *t, const int *lengths, float *out, Error *err) {
    const T5Config *c = &t->model->config;
    int64_t n = t->shape.tokens, batch = t->shape.masked ? t->shape.batch : 1;
    float *table = MEM_ARRAY(NULL, float, (int64_t)c->buckets * c->heads);
    int *bucket = MEM_ARRAY(table, int, 2 * n); // of key - query + n
    for (int64_t d = 1 - n; d < n; d++) bucket[d + n] = t5_bucket(d, c->buckets, c->max_distance);
    bool ok = lookup_all(&t->model->weight[TABLE_BIAS], table, err);
    for (int64_t b = 0; b < batch && ok; b++)
        for (int64_t h = 0; h < c->heads; h++)
            for (int64_t query = 0; query < n; query++)
                for (int64_t key = 0; key < n; key++)
                    *out++ = t->shape.masked && lengths && key >= lengths[b]
                                 ? -INFINITY
                                 : table[(int64_t)bucket[key - query + n] * c->heads + h];
    mem_free(table);
    return ok;
}

bool t5_text_write(T5Text *t, const int32_t *ids, const int *lengths, Error *err) {
    float *x = MEM_ARRAY(NULL, float, param_count(t->x));
    float *bias = MEM_ARRAY(x, float, param_count(t->bias));
    int64_t tokens = (int64_t)t->shape.batch * t->shape.tokens;
    bool ok = lookup_rows(&t->model->weight[TABLE_TOKENS], ids, tokens, x, err) &&
              fill_bias(t, lengths, bias, err) && param_write(t->x, DT_F32, x, err) &&
              param_write(t->bias, DT_F32, bias, err);
    mem_free(x);
    return ok;
}

bool t5_text_read(T5Text *t, int width, float *out, Error *err) {
    int own = t5_width(&t->model->config);
    if (own > width)
        return err_failed(err, "%s: expected text states of at most %d numbers for this transformer, "
                          "found %d; take the text encoder that belongs to it",
                          weights_path(t->model->weights), width, own);
    if (own == width) return param_read(t->states, DT_F32, out, err);
    int64_t rows = (int64_t)t->shape.batch * t->shape.tokens;
    float *narrow = MEM_ARRAY(NULL, float, rows * own);
    bool ok = param_read(t->states, DT_F32, narrow, err);
    memset(out, 0, sizeof(float) * (size_t)(rows * width));
    for (int64_t i = 0; i < rows && ok; i++)
        memcpy(out + i * width, narrow + i * own, sizeof(float) * (size_t)own);
    mem_free(narrow);
    return ok;
}

const char *t5_warning(void *parent, const T5Config *c, int width) {
    int own = t5_width(c);
    if (own >= width) return NULL;
    return mem_printf(parent, "the text encoder's states have %d numbers, the transformer takes %d: zeros "
                      "fill them up; pictures will hardly follow the prompt (DistillT5 has the "
                      "tensors final_projection.0.weight and final_projection.3.weight)", own, width);
}
