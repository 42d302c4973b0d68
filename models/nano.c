// nano.c: see nano.h. The table binds each name in a file to a field; all else follows from it.
#include "models/nano.h"

#include "engine/config.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>

typedef enum { INIT_ZERO, INIT_XAVIER, INIT_NORMAL, INIT_POSITIONS } NanoInit;

// Shapes are words: a factor, then a letter: D width, T tokens, P patch, F features, V classes + 1,
// O 3 p^2, C 3.
typedef struct NanoRow {
    const char *name;
    size_t field; // of a Param * in NanoModel or NanoBlock
    const char *shape;
    NanoInit init;
} NanoRow;

#define LINEAR(type, prefix, field, out, in, init)                              \
    {prefix ".weight", offsetof(type, field.weight), out " " in, init},         \
    {prefix ".bias", offsetof(type, field.bias), out, INIT_ZERO}

static const NanoRow head_rows[] = {
    LINEAR(NanoModel, "x_embedder.proj", patches, "D", "C P P", INIT_XAVIER),
    {"pos_embed", offsetof(NanoModel, positions), "1 T D", INIT_POSITIONS},
    LINEAR(NanoModel, "t_embedder.mlp.0", time[0], "D", "F", INIT_NORMAL),
    LINEAR(NanoModel, "t_embedder.mlp.2", time[1], "D", "D", INIT_NORMAL),
    {"y_embedder.embedding_table.weight", offsetof(NanoModel, labels), "V D", INIT_NORMAL},
};
static const NanoRow block_rows[] = { // "blocks.N." goes in front
    LINEAR(NanoBlock, "adaLN_modulation.1", ada, "6D", "D", INIT_ZERO),
    LINEAR(NanoBlock, "attn.qkv", qkv, "3D", "D", INIT_XAVIER),
    LINEAR(NanoBlock, "attn.proj", proj, "D", "D", INIT_XAVIER),
    LINEAR(NanoBlock, "mlp.fc1", fc1, "4D", "D", INIT_XAVIER),
    LINEAR(NanoBlock, "mlp.fc2", fc2, "D", "4D", INIT_XAVIER),
};
static const NanoRow tail_rows[] = {
    LINEAR(NanoModel, "final_layer.adaLN_modulation.1", final_ada, "2D", "D", INIT_ZERO),
    LINEAR(NanoModel, "final_layer.linear", final, "O", "D", INIT_ZERO),
};

// ---- configuration ----------------------------------------------------------------------------

NanoConfig nano_default(void) {
    return (NanoConfig){.patch = 4, .dim = 192, .depth = 6, .heads = 6, .size = 32, .classes = 10};
}

bool nano_check_config(const NanoConfig *c, Error *err) {
    const ConfigRange ranges[] = {
        {"patch", c->patch, 1, 16},   {"dim", c->dim, 8, 4096}, {"depth", c->depth, 1, 64},
        {"heads", c->heads, 1, 512},  {"size", c->size, 8, 512}, {"classes", c->classes, 1, 10000},
    };
    if (!config_in_ranges("nano", ranges, COUNT_OF(ranges), err)) return false;
    if (c->size % c->patch)
        return err_failed(err, "nano: expected a patch that divides the size %d, found %d", c->size,
                          c->patch);
    if (nano_tokens(c) > 16384)
        return err_failed(err, "nano: expected at most 16384 tokens, found %d; take larger patches",
                          nano_tokens(c));
    if (c->dim % 8 || c->dim % c->heads)
        return err_failed(err, "nano: expected a width that 8 and the number of heads (%d) divide, "
                          "found %d", c->heads, c->dim);
    return true;
}

int nano_tokens(const NanoConfig *c) { return (c->size / c->patch) * (c->size / c->patch); }

static bool config_names(void *parent, const Json *list, const char *what, NanoConfig *c,
                         Error *err) {
    size_t n = json_count(list);
    if (!json_is_array(list) || n < 1 || n > 10000)
        return err_failed(err, "%s: expected `classes` to be a list of 1 to 10000 names, found %s", what,
                          json_is_array(list) ? "none or more" : "something else");
    c->classes = (int)n;
    c->names = MEM_ARRAY(parent, char *, n);
    int i = 0;
    for (const Json *v = json_first(list); v; v = json_next(v), i++) {
        if (!json_is_string(v))
            return err_failed(err, "%s: expected class %d to be a name, found another type", what,
                              i);
        c->names[i] = mem_strdup(c->names, json_string(v, ""));
    }
    return true;
}

bool nano_parse_config(void *parent, const char *text, const char *what, NanoConfig *out,
                       Error *err) {
    Json *root = json_parse(text, strlen(text), what, err);
    if (!root) return false;
    *out = nano_default();
    const struct { const char *name; int *field; bool optional; } members[] = {
        {"patch", &out->patch, false}, {"dim", &out->dim, false}, {"depth", &out->depth, false},
        {"heads", &out->heads, false}, {"size", &out->size, true},
    };
    bool ok = json_is_object(root) ||
              err_failed(err, "%s: expected an object, found another type", what);
    for (size_t i = 0; ok && i < COUNT_OF(members); i++) {
        const Json *v = json_get(root, members[i].name);
        int64_t value;
        if (!v && members[i].optional) continue;
        ok = json_int_in(v, 0, INT32_MAX, &value) ||
             err_failed(err, "%s: expected a whole number `%s`, found %s", what, members[i].name,
                        v ? "something else" : "none");
        if (ok) *members[i].field = (int)value;
    }
    ok = ok && config_names(parent, json_get(root, "classes"), what, out, err);
    json_free(root);
    if (ok && !nano_check_config(out, err)) ok = err_prefix(err, "%s", what);
    return ok;
}

char *nano_config_json(void *parent, const NanoConfig *c) {
    JsonOut w = {.parent = parent};
    const struct { const char *name; int value; } members[] = {
        {"patch", c->patch}, {"dim", c->dim}, {"depth", c->depth}, {"heads", c->heads},
        {"size", c->size},
    };
    json_open(&w, '{');
    for (size_t i = 0; i < COUNT_OF(members); i++) {
        json_key(&w, members[i].name);
        json_put_int(&w, members[i].value);
    }
    json_key(&w, "classes");
    json_open(&w, '[');
    for (int i = 0; i < c->classes; i++) {
        char number[16];
        snprintf(number, sizeof number, "%d", i);
        json_put_string(&w, c->names ? c->names[i] : number);
    }
    json_close(&w, ']');
    json_close(&w, '}');
    return w.text;
}

int nano_find_class(const NanoConfig *c, const char *name) {
    for (int i = 0; c->names && i < c->classes; i++)
        if (!strcmp(c->names[i], name)) return i;
    char *end;
    long n = strtol(name, &end, 10);
    return isdigit((unsigned char)name[0]) && !*end && n >= 0 && n < c->classes ? (int)n : -1;
}

// ---- the table, expanded ----------------------------------------------------------------------

typedef struct NanoTensor {
    char name[64];
    size_t field;
    int block; // -1: the field is in NanoModel
    NanoInit init;
    int ndim;
    int64_t shape[4];
} NanoTensor;

static int64_t dim_of(const NanoConfig *c, char letter) {
    switch (letter) {
    case 'D': return c->dim;
    case 'T': return nano_tokens(c);
    case 'P': return c->patch;
    case 'F': return NANO_FEATURES;
    case 'V': return c->classes + 1;
    case 'O': return NANO_CHANNELS * c->patch * c->patch;
    case 'C': return NANO_CHANNELS;
    default: return 1;
    }
}

static NanoTensor expand(const NanoConfig *c, const NanoRow *row, int block) {
    NanoTensor t = {.field = row->field, .block = block, .init = row->init};
    if (block < 0) snprintf(t.name, sizeof t.name, "%s", row->name);
    else snprintf(t.name, sizeof t.name, "blocks.%d.%s", block, row->name);
    for (const char *s = row->shape; *s; s += *s == ' ') {
        int64_t factor = isdigit((unsigned char)*s) ? *s++ - '0' : 1;
        t.shape[t.ndim++] = factor * (*s && *s != ' ' ? dim_of(c, *s++) : 1);
    }
    return t;
}

// All tensors of a model in order; *count of them, below parent.
static NanoTensor *tensors_of(void *parent, const NanoConfig *c, int *count) {
    int n = (int)COUNT_OF(head_rows) + c->depth * (int)COUNT_OF(block_rows) +
            (int)COUNT_OF(tail_rows);
    NanoTensor *t = MEM_ARRAY(parent, NanoTensor, n);
    int k = 0;
    for (size_t i = 0; i < COUNT_OF(head_rows); i++) t[k++] = expand(c, &head_rows[i], -1);
    for (int b = 0; b < c->depth; b++)
        for (size_t i = 0; i < COUNT_OF(block_rows); i++) t[k++] = expand(c, &block_rows[i], b);
    for (size_t i = 0; i < COUNT_OF(tail_rows); i++) t[k++] = expand(c, &tail_rows[i], -1);
    *count = k;
    return t;
}

static Param **slot_of(NanoModel *m, const NanoTensor *t) {
    char *base = t->block < 0 ? (char *)m : (char *)&m->blocks[t->block];
    return (Param **)(void *)(base + t->field);
}

static int64_t count_of(const NanoTensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}

int64_t nano_param_count(const NanoConfig *c) {
    int n;
    NanoTensor *t = tensors_of(NULL, c, &n);
    int64_t sum = 0;
    for (int i = 0; i < n; i++) sum += count_of(&t[i]);
    mem_free(t);
    return sum;
}

NanoModel *nano_new(void *parent, Store *store, const NanoConfig *config) {
    NanoModel *m = MEM_NEW(parent, NanoModel);
    m->config = *config;
    m->blocks = MEM_ARRAY(m, NanoBlock, config->depth);
    int n;
    NanoTensor *t = tensors_of(NULL, config, &n);
    for (int i = 0; i < n; i++)
        *slot_of(m, &t[i]) = store_add(store, t[i].name, DT_F32, t[i].ndim, t[i].shape);
    mem_free(t);
    return m;
}

StWant *nano_wants(void *parent, const NanoConfig *config, int *count) {
    NanoTensor *t = tensors_of(NULL, config, count);
    StWant *wants = MEM_ARRAY(parent, StWant, *count);
    for (int i = 0; i < *count; i++) {
        wants[i].name = mem_strdup(wants, t[i].name);
        wants[i].ndim = t[i].ndim;
        for (int d = 0; d < t[i].ndim; d++) wants[i].shape[d] = t[i].shape[d];
    }
    mem_free(t);
    return wants;
}

// ---- contents ---------------------------------------------------------------------------------

// The table of Vaswani et al. in two dimensions, as in the published code: the first half of the
// width tells the column, the second the row; each is sines, then cosines.
static void fill_positions(const NanoConfig *c, float *out) {
    int side = c->size / c->patch, quarter = c->dim / 4;
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) {
            float *row = out + (size_t)(y * side + x) * (size_t)c->dim;
            for (int half = 0; half < 2; half++)
                for (int i = 0; i < quarter; i++) {
                    double angle = (half ? y : x) * pow(10000.0, -(double)i / quarter);
                    row[2 * half * quarter + i] = (float)sin(angle);
                    row[(2 * half + 1) * quarter + i] = (float)cos(angle);
                }
        }
}

static void fill_initial(const NanoConfig *c, const NanoTensor *t, Rng *rng, float *out) {
    int64_t n = count_of(t);
    switch (t->init) {
    case INIT_ZERO: break; // the memory is zero
    case INIT_POSITIONS: fill_positions(c, out); break;
    case INIT_NORMAL:
        rng_fill_normal(rng, out, (size_t)n);
        for (int64_t i = 0; i < n; i++) out[i] *= 0.02f;
        break;
    case INIT_XAVIER: { // Glorot and Bengio 2010; a convolution counts as the linear map it is
        int64_t fan_out = t->shape[0], fan_in = n / fan_out;
        float bound = (float)sqrt(6.0 / (double)(fan_in + fan_out));
        for (int64_t i = 0; i < n; i++) out[i] = (2 * rng_f32(rng) - 1) * bound;
        break;
    }
    }
}

bool nano_init(NanoModel *m, uint64_t seed, Error *err) {
    int n;
    NanoTensor *t = tensors_of(NULL, &m->config, &n);
    bool ok = true;
    for (int i = 0; i < n && ok; i++) {
        Rng rng; // a stream per tensor: a change of one leaves the others
        rng_seed(&rng, seed, hash_bytes(0, t[i].name, strlen(t[i].name)));
        float *values = MEM_ARRAY(t, float, count_of(&t[i]));
        fill_initial(&m->config, &t[i], &rng, values);
        ok = param_write(*slot_of(m, &t[i]), DT_F32, values, err);
        mem_free(values);
    }
    mem_free(t);
    return ok;
}

bool nano_load(NanoModel *m, Store *store, const StFile *file, Error *err) {
    (void)m;
    bool ok = true;
    for (int i = 0; i < store_count(store) && ok; i++) {
        Param *p = store_at(store, i);
        const StTensor *t = st_get(file, p->name, err);
        if (!t) return false;
        float *values = MEM_ARRAY(NULL, float, t->count);
        st_to_f32(t, values);
        for (uint64_t k = 0; k < t->count && ok; k++)
            if (!isfinite(values[k]))
                ok = err_failed(err, "%s: %s: expected finite numbers, found %g at element %llu",
                                file->path, p->name, (double)values[k], (unsigned long long)k);
        ok = ok && param_write(p, DT_F32, values, err);
        mem_free(values);
    }
    return ok;
}

// ---- forward ----------------------------------------------------------------------------------

// What a pass needs beside the tensors.
typedef struct Pass {
    Graph *g;
    const NanoConfig *c;
    int64_t batch;
    DType compute;
    Tensor *silu_c; // [B, D] f32: SiLU of the conditioning, what every modulation starts from
} Pass;

// The weight as a matrix [N, K] in the type that products are computed in.
static Tensor *matrix(const Pass *p, Param *w, DType type) {
    Tensor *t = g_param(p->g, w);
    if (t->ndim != 2) t = g_reshape(t, DIMS(t->shape[0], -1));
    return g_cast(t, type);
}

static Tensor *linear(const Pass *p, const NanoLinear *l, Tensor *x, DType type, uint32_t act) {
    Tensor *w = matrix(p, l->weight, x->dtype);
    Tensor *bias = g_param(p->g, l->bias);
    return g_gemm(p->g, GEMM(.x = x, .w = w, .bias = bias, .act = act, .dtype = type));
}

// residual + gate * linear(x)
static Tensor *gated(const Pass *p, const NanoLinear *l, Tensor *x, Tensor *gate,
                     Tensor *residual) {
    Tensor *w = matrix(p, l->weight, x->dtype);
    Tensor *bias = g_param(p->g, l->bias);
    return g_gemm(p->g, GEMM(.x = x, .w = w, .bias = bias, .gate = gate, .residual = residual,
                             .dtype = DT_F32));
}

// `count` modulations [B, 1, D] of the conditioning.
static void modulations(const Pass *p, const NanoLinear *ada, int count, Tensor **out) {
    int64_t d = p->c->dim;
    Tensor *all = linear(p, ada, p->silu_c, DT_F32, ACT_NONE);
    all = g_reshape(all, DIMS(p->batch, 1, count * d));
    for (int i = 0; i < count; i++) out[i] = g_slice(all, 2, i * d, d);
}

static Tensor *modulated_norm(const Pass *p, Tensor *x, Tensor *shift, Tensor *scale) {
    return g_norm(p->g, NORM(.x = x, .scale = scale, .shift = shift, .kind = NORM_LAYER,
                             .eps = 1e-6f, .dtype = p->compute));
}

static Tensor *attention(const Pass *p, const NanoBlock *b, Tensor *x) { // x [B, T, D]
    int64_t tokens = x->shape[1], heads = p->c->heads, width = p->c->dim / heads;
    Tensor *qkv = linear(p, &b->qkv, x, p->compute, ACT_NONE);
    qkv = g_reshape(qkv, DIMS(p->batch, tokens, 3 * heads, width));
    Tensor *q = g_slice(qkv, 2, 0, heads), *k = g_slice(qkv, 2, heads, heads);
    Tensor *v = g_slice(qkv, 2, 2 * heads, heads);
    Tensor *y = g_attn(p->g, ATTN(.q = q, .k = k, .v = v, .dtype = p->compute));
    return g_reshape(y, DIMS(p->batch, tokens, p->c->dim));
}

static Tensor *block(const Pass *p, const NanoBlock *b, Tensor *x) { // x [B, T, D] f32
    Tensor *m[6]; // shift, scale, gate of attention, then of the MLP
    modulations(p, &b->ada, 6, m);
    Tensor *h = attention(p, b, modulated_norm(p, x, m[0], m[1]));
    x = gated(p, &b->proj, h, m[2], x);
    h = modulated_norm(p, x, m[3], m[4]);
    h = linear(p, &b->fc1, h, p->compute, ACT_GELU);
    return gated(p, &b->fc2, h, m[5], x);
}

static Tensor *embed_patches(const Pass *p, const NanoModel *m, Tensor *x) { // x [B, 3, S, S]
    int64_t side = p->c->size / p->c->patch, patch = p->c->patch;
    x = g_reshape(x, DIMS(p->batch, NANO_CHANNELS, side, patch, side, patch));
    x = g_permute(x, ORDER(0, 2, 4, 1, 3, 5)); // a token's pixels as the convolution's weight
    x = g_copy(p->g, COPY(.x = x, .dtype = p->compute));
    x = g_reshape(x, DIMS(p->batch, side * side, NANO_CHANNELS * patch * patch));
    x = linear(p, &m->patches, x, DT_F32, ACT_NONE);
    return g_add(x, g_param(p->g, m->positions));
}

Tensor *nano_forward(const NanoModel *m, Graph *g, Tensor *x, Tensor *features, Tensor *labels,
                     DType compute) {
    const NanoConfig *c = &m->config;
    Pass p = {.g = g, .c = c, .batch = x->shape[0], .compute = compute};
    Tensor *time = linear(&p, &m->time[0], features, DT_F32, ACT_SILU);
    time = linear(&p, &m->time[1], time, DT_F32, ACT_NONE);
    Tensor *table = g_param(g, m->labels);
    Tensor *label = g_embed(g, EMBED(.table = table, .ids = labels, .dtype = DT_F32));
    p.silu_c = g_act(g_add(time, label), ACT_SILU, DT_F32);

    Tensor *h = embed_patches(&p, m, x); // [B, T, D] f32
    for (int i = 0; i < c->depth; i++) h = block(&p, &m->blocks[i], h);

    Tensor *mod[2];
    modulations(&p, &m->final_ada, 2, mod);
    h = modulated_norm(&p, h, mod[0], mod[1]);
    h = linear(&p, &m->final, h, DT_F32, ACT_NONE); // [B, T, p p 3]: colours innermost
    int64_t side = c->size / c->patch, patch = c->patch;
    h = g_reshape(h, DIMS(p.batch, side, side, patch, patch, NANO_CHANNELS));
    h = g_permute(h, ORDER(0, 5, 1, 3, 2, 4));
    h = g_contiguous(h);
    return g_reshape(h, DIMS(p.batch, NANO_CHANNELS, c->size, c->size));
}
