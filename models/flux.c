// flux.c: configuration, weights and host-side inputs of FLUX.1. See flux.h.
#include "models/flux_impl.h"


// ---- weights ----------------------------------------------------------------------------------

// Letters: D width, H head, M MLP, I and O tokens in and out, J text states, P pooled text,
// F features.
#define LINEAR(name, out, in) {name ".weight", out " " in, false}, {name ".bias", out, false}
#define EMBEDDER(name, in) LINEAR(name ".in_layer", "D", in), LINEAR(name ".out_layer", "D", "D")
#define STREAM(s)                                                                               \
    LINEAR("double_blocks.#." s "_attn.qkv", "3D", "D"),                                         \
    {"double_blocks.#." s "_attn.norm.query_norm.scale", "H", false},                            \
    {"double_blocks.#." s "_attn.norm.key_norm.scale", "H", false},                              \
    LINEAR("double_blocks.#." s "_attn.proj", "D", "D"),                                         \
    LINEAR("double_blocks.#." s "_mlp.0", "M", "D"), LINEAR("double_blocks.#." s "_mlp.2", "D", "M")

static const WantRow time_rows[] = {EMBEDDER("time_in", "F"), EMBEDDER("vector_in", "P"),
                                    EMBEDDER("guidance_in", "F")};
static const WantRow text_rows[] = {LINEAR("txt_in", "D", "J")};
static const WantRow double_mod_rows[] = {LINEAR("double_blocks.#.img_mod.lin", "6D", "D"),
                                          LINEAR("double_blocks.#.txt_mod.lin", "6D", "D")};
static const WantRow single_mod_rows[] = {LINEAR("single_blocks.#.modulation.lin", "3D", "D")};
static const WantRow tail_mod_rows[] = {LINEAR("final_layer.adaLN_modulation.1", "2D", "D")};
static const WantRow head_rows[] = {LINEAR("img_in", "D", "I")};
static const WantRow double_rows[] = {STREAM("img"), STREAM("txt")};
static const WantRow single_rows[] = {
    LINEAR("single_blocks.#.linear1", "3D+M", "D"),
    {"single_blocks.#.norm.query_norm.scale", "H", false},
    {"single_blocks.#.norm.key_norm.scale", "H", false},
    LINEAR("single_blocks.#.linear2", "D", "D+M"),
};
static const WantRow tail_rows[] = {LINEAR("final_layer.linear", "O", "D")};

#define GROUP(rows) {rows, COUNT_OF(rows)}
static const FluxGroup groups[FLUX_ROWS_COUNT] = {
    [FLUX_ROWS_TIME] = GROUP(time_rows),
    [FLUX_ROWS_TEXT] = GROUP(text_rows),
    [FLUX_ROWS_DOUBLE_MODS] = GROUP(double_mod_rows),
    [FLUX_ROWS_SINGLE_MODS] = GROUP(single_mod_rows),
    [FLUX_ROWS_TAIL_MODS] = GROUP(tail_mod_rows),
    [FLUX_ROWS_HEAD] = GROUP(head_rows),
    [FLUX_ROWS_DOUBLE] = GROUP(double_rows),
    [FLUX_ROWS_SINGLE] = GROUP(single_rows),
    [FLUX_ROWS_TAIL] = GROUP(tail_rows),
};

FluxGroup flux_group(const FluxConfig *c, FluxRows group) {
    FluxGroup g = groups[group];
    if (group == FLUX_ROWS_TIME && !c->guidance) g.count -= MLP_COUNT;
    return g;
}

static int64_t dim_of(const void *config, char letter) {
    const FluxConfig *c = config;
    switch (letter) {
    case 'D': return c->dim;
    case 'H': return c->head_dim;
    case 'M': return c->mlp;
    case 'I': return c->in_channels;
    case 'O': return c->out_channels;
    case 'J': return c->text_dim;
    case 'P': return c->pooled_dim;
    default: return FLUX_FEATURES;
    }
}

BindWant *flux_wants(void *parent, const FluxConfig *c, int *count) {
    WantList list = {.parent = parent, .dim_of = dim_of, .config = c};
    const int blocks[FLUX_ROWS_COUNT] = {1, 1, c->doubles, c->singles, 1, 1, c->doubles, c->singles, 1};
    for (int i = 0; i < FLUX_ROWS_COUNT; i++) {
        FluxGroup group = flux_group(c, (FluxRows)i);
        for (int block = 0; block < blocks[i]; block++)
            wants_add(&list, group.rows, group.count, block);
    }
    *count = list.n;
    return list.v;
}

bool flux_is_schedule(const char *name) {
    static const char *const parts[] = {"time_in.", "vector_in.", "guidance_in.", "txt_in.",
                                        "_mod.lin.", ".modulation.lin.", ".adaLN_modulation."};
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        if (strstr(name, parts[i])) return true;
    return false;
}

// ---- configuration ----------------------------------------------------------------------------

bool flux_check_config(const FluxConfig *c, Error *err) {
    const ConfigRange ranges[] = {
        {"in_channels", c->in_channels, 4, 4096}, {"out_channels", c->out_channels, 4, 4096},
        {"num_attention_heads", c->heads, 1, 256}, {"attention_head_dim", c->head_dim, 8, 256},
        {"width of the MLPs", c->mlp, 8, 1 << 18}, {"num_layers", c->doubles, 1, 256},
        {"num_single_layers", c->singles, 1, 256}, {"joint_attention_dim", c->text_dim, 1, 65536},
        {"pooled_projection_dim", c->pooled_dim, 1, 65536},
        {"width", c->dim, 8, 65536},
    };
    if (!config_in_ranges("flux", ranges, COUNT_OF(ranges), err)) return false;
    int sum = 0;
    bool even = true;
    for (int i = 0; i < FLUX_AXES; i++) {
        even = even && c->axes[i] >= 0 && c->axes[i] <= 256 && c->axes[i] % 2 == 0;
        sum += c->axes[i];
    }
    if (!even || sum != c->head_dim)
        return err_failed(err, "flux: expected axes_dims_rope of three even numbers with the sum %d "
                          "(the head's width), found %d, %d, %d", c->head_dim, c->axes[0],
                          c->axes[1], c->axes[2]);
    if (c->dim != c->heads * c->head_dim)
        return err_failed(err, "flux: expected a width of heads x head width = %d x %d, found %d",
                          c->heads, c->head_dim, c->dim);
    return true;
}

static void axes_of(FluxConfig *c) { // 1/8 and twice 7/16 of a head: 16, 56, 56
    c->axes[0] = c->head_dim / 8;
    c->axes[1] = c->axes[2] = (c->head_dim - c->axes[0]) / 2;
}

static bool config_from_shapes(const Weights *w, const NameLayout *layout, FluxConfig *c, Error *err) {
    const NameSize sizes[] = {
        {"img_in.weight", 0, &c->dim, false},
        {"img_in.weight", 1, &c->in_channels, false},
        {"txt_in.weight", 1, &c->text_dim, false},
        {"vector_in.in_layer.weight", 1, &c->pooled_dim, false},
        {"double_blocks.0.img_mlp.0.weight", 0, &c->mlp, false},
        {"double_blocks.0.img_attn.norm.query_norm.scale", 0, &c->head_dim, false},
        {"final_layer.linear.weight", 0, &c->out_channels, false},
    };
    if (!names_sizes(w, layout, sizes, COUNT_OF(sizes), err)) return false;
    c->heads = c->dim / c->head_dim;
    c->theta = 10000;
    c->guidance = names_find(w, layout, "guidance_in.in_layer.weight") != NULL;
    c->doubles = names_blocks(w, layout, "double_blocks.#.img_mod.lin.weight");
    c->singles = names_blocks(w, layout, "single_blocks.#.modulation.lin.weight");
    axes_of(c);
    return true;
}

// diffusers' config.json: sizes override what the shapes say, and the binding tells where they differ.
static bool config_from_json(const ConfigFile *file, FluxConfig *c, Error *err) {
    Json *root = config_parse(file, err);
    if (!root) return false;
    const struct { const char *name; int *field; } members[] = {
        {"in_channels", &c->in_channels}, {"out_channels", &c->out_channels},
        {"num_attention_heads", &c->heads}, {"attention_head_dim", &c->head_dim},
        {"num_layers", &c->doubles}, {"num_single_layers", &c->singles},
        {"joint_attention_dim", &c->text_dim}, {"pooled_projection_dim", &c->pooled_dim},
    };
    const ConfigFact facts[] = {{"patch_size", 1}, {"guidance_embeds", c->guidance}};
    const char *class = "FluxTransformer2DModel";
    bool ok = config_text(file, root, "_class_name", &class, err) &&
              (!strcmp(class, "FluxTransformer2DModel") ||
               err_failed(err, "%s: expected `_class_name` FluxTransformer2DModel, found %s", file->path,
                          class));
    for (size_t i = 0; ok && i < COUNT_OF(members); i++)
        ok = config_int(file, root, members[i].name, members[i].field, err);
    ok = ok && config_agrees(file, root, facts, COUNT_OF(facts), err);
    c->dim = (int)MIN((int64_t)c->heads * c->head_dim, INT32_MAX);
    axes_of(c);
    const Json *axes = json_get(root, "axes_dims_rope");
    if (ok && axes && json_count(axes) != FLUX_AXES)
        ok = err_failed(err, "%s: expected `axes_dims_rope` of three numbers, found %zu", file->path,
                        json_count(axes));
    int i = 0;
    for (const Json *v = ok ? json_first(axes) : NULL; v; v = json_next(v), i++) {
        int64_t value;
        c->axes[i] = json_int_in(v, 0, 256, &value) ? (int)value : -1;
    }
    json_free(root);
    return ok;
}

static bool no_flux(const Weights *w, Error *err) {
    return err_failed(err, "%s: expected the transformer of FLUX.1 (a tensor "
                      "`double_blocks.0.img_mod.lin.weight` or "
                      "`single_transformer_blocks.0.proj_mlp.weight`), found none; name another file",
                      weights_path(w));
}

// w: without prefix.
static bool config_of(const Weights *w, const NameLayout *layout, const ConfigFile *file, FluxConfig *out,
                      Error *err) {
    *out = (FluxConfig){0};
    bool ok = config_from_shapes(w, layout, out, err) &&
              (!file || !file->text || config_from_json(file, out, err));
    return ok && (flux_check_config(out, err) || err_prefix(err, "%s", weights_path(w)));
}

bool flux_config(const Weights *w, const ConfigFile *config, FluxConfig *out, Error *err) {
    void *scratch = mem_new(NULL, 1);
    const char *prefix = "";
    const NameLayout *layout = flux_layout(scratch, w, &prefix);
    bool ok = layout ? config_of(*prefix ? weights_part(scratch, w, prefix) : w, layout, config, out, err)
                     : no_flux(w, err);
    mem_free(scratch);
    return ok;
}

FluxModel *flux_open(void *parent, const Weights *w, const ConfigFile *config, DType type,
                     Error *err) {
    FluxModel *m = MEM_NEW(parent, FluxModel);
    const NameLayout *layout = flux_layout(m, w, &m->prefix);
    bool ok = layout || no_flux(w, err);
    if (ok) {
        m->layout = layout->name;
        m->weights = *m->prefix ? weights_part(m, w, m->prefix) : w;
        ok = config_of(m->weights, layout, config, &m->config, err);
    }
    if (ok) {
        const BindOptions options = {.names = names_translate, .user = layout, .type = type,
                                     .keep = flux_keep, .ignore = flux_ignore};
        m->want = flux_wants(m, &m->config, &m->count);
        m->weight = bind_weights(m, m->weights, m->want, m->count, &options, err);
        ok = m->weight != NULL;
    }
    if (!ok) {
        mem_free(m);
        return NULL;
    }
    for (int i = 0; i < m->count; i++) {
        m->bytes += m->weight[i].bytes;
        if (flux_is_schedule(m->weight[i].name)) m->schedule_bytes += m->weight[i].bytes;
    }
    m->parameters = wants_parameters(m->want, m->count);
    return m;
}

FluxConfig flux_preset(bool guidance, int divisor) {
    int heads = scaled_down(24, divisor), dim = 128 * heads;
    return (FluxConfig){.in_channels = 64, .out_channels = 64, .heads = heads, .head_dim = 128, .dim = dim,
                        .mlp = 4 * dim, .doubles = scaled_down(19, divisor),
                        .singles = scaled_down(38, divisor), .text_dim = 4096, .pooled_dim = 768,
                        .guidance = guidance, .axes = {16, 56, 56}, .theta = 10000};
}

const char *flux_variant(const FluxConfig *c) { return c->guidance ? "dev" : "schnell"; }

// ---- inputs made by the host ------------------------------------------------------------------

void flux_rope(const FluxConfig *c, int text, int rows, int columns, float *out) {
    RopeAxis axis[FLUX_AXES];
    for (int i = 0; i < FLUX_AXES; i++) axis[i] = (RopeAxis){c->axes[i], c->theta};
    int64_t tokens = text + (int64_t)rows * columns;
    double *positions = MEM_ARRAY(NULL, double, MAX(tokens * FLUX_AXES, 1)); // zero for the text
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < columns; x++) {
            double *p = positions + (text + (int64_t)y * columns + x) * FLUX_AXES;
            p[1] = y;
            p[2] = x;
        }
    rope_fill(axis, FLUX_AXES, positions, tokens, out);
    mem_free(positions);
}

// One walk serves both directions.
static void each_pixel(int batch, int channels, int rows, int columns, float *latents, float *tokens,
                       bool pack) {
    int width = 2 * columns, height = 2 * rows;
    for (int64_t plane = 0; plane < (int64_t)batch * channels; plane++)
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++) {
                int64_t image = plane / channels, channel = plane % channels;
                int64_t token = (image * rows + y / 2) * columns + x / 2;
                float *a = latents + (plane * height + y) * width + x;
                float *b = tokens + (token * channels + channel) * 4 + y % 2 * 2 + x % 2;
                if (pack) *b = *a;
                else *a = *b;
            }
}

void flux_pack(int batch, int channels, int rows, int columns, const float *latents, float *tokens) {
    each_pixel(batch, channels, rows, columns, (float *)(uintptr_t)latents, tokens, true);
}

void flux_unpack(int batch, int channels, int rows, int columns, const float *tokens, float *latents) {
    each_pixel(batch, channels, rows, columns, latents, (float *)(uintptr_t)tokens, false);
}
