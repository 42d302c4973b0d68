// flux_stages.c: what FLUX.1's two stages compute. See flux.h.
#include "models/flux_impl.h"

// Numbers of a block's modulation, in widths D.
enum { SHIFT, SCALE, GATE, PART, STREAM_MODS = 2 * PART, DOUBLE_MODS = 2 * STREAM_MODS,
       SINGLE_MODS = PART, TAIL_MODS = 2 };

int64_t flux_mods(const FluxConfig *c) {
    return (int64_t)c->dim * (c->doubles * DOUBLE_MODS + c->singles * SINGLE_MODS + TAIL_MODS);
}

// Where the modulations of a unit begin.
static int64_t mods_of(const FluxConfig *c, int kind, int index) {
    int64_t before[] = {[FLUX_HEAD] = 0,
                        [FLUX_DOUBLE] = (int64_t)index * DOUBLE_MODS,
                        [FLUX_SINGLE] = (int64_t)c->doubles * DOUBLE_MODS + (int64_t)index * SINGLE_MODS,
                        [FLUX_TAIL] = (int64_t)c->doubles * DOUBLE_MODS + (int64_t)c->singles * SINGLE_MODS};
    return before[kind] * c->dim;
}

// A unit per double block and per single block, between given ends.
static void block_units(UnitList *list, const FluxConfig *c, FluxRows doubles, FluxRows singles) {
    FluxGroup group = flux_group(c, doubles);
    for (int i = 0; i < c->doubles; i++)
        units_add(list, FLUX_DOUBLE, i, mem_printf(list->parent, "double_blocks.%d", i), group.rows,
                  group.count);
    group = flux_group(c, singles);
    for (int i = 0; i < c->singles; i++)
        units_add(list, FLUX_SINGLE, i, mem_printf(list->parent, "single_blocks.%d", i), group.rows,
                  group.count);
}

static void end_unit(UnitList *list, const FluxConfig *c, int kind, int index, const char *name,
                     FluxRows rows) {
    FluxGroup group = flux_group(c, rows);
    units_add(list, kind, index, name, group.rows, group.count);
}

static UnitList units_of(void *parent, const FluxModel *m) {
    return (UnitList){.parent = parent, .weight = m->weight, .weights = m->count};
}

// ---- schedule stage ---------------------------------------------------------------------------

// The embedders are small and everything hangs on them: they run in f32.
static Tensor *embedder(Graph *g, Tensor *x, Param *const *w) {
    Tensor *h = g_linear(g, &(Linear){.x = x, .weight = w[MLP_IN_W], .bias = w[MLP_IN_B],
                                      .act = ACT_SILU});
    return g_linear(g, &(Linear){.x = h, .weight = w[MLP_OUT_W], .bias = w[MLP_OUT_B]});
}

static void record_conditioning(const FluxSchedule *s, Graph *g, Param *const *w) {
    int64_t steps = s->shape.steps, prompts = s->shape.prompts, d = s->model->config.dim;
    Tensor *time = embedder(g, g_param(g, s->features), w);                  // [S, D]
    Tensor *pooled = embedder(g, g_param(g, s->pooled), w + MLP_COUNT);      // [P, D]
    if (s->guidance) // [1, D]
        time = g_add(time, embedder(g, g_param(g, s->guidance), w + 2 * MLP_COUNT));
    time = g_reshape(time, DIMS(steps, 1, d));
    pooled = g_reshape(pooled, DIMS(1, prompts, d));
    Tensor *vec = g_add(time, pooled);
    g_ewise(g, EWISE(.kind = EW_ACT, .act = ACT_SILU, .x = vec, .o = g_param(g, s->silu)));
}

// A linear map of the conditioning into its place among all modulations.
static void record_modulation(const FluxSchedule *s, Graph *g, int64_t start, Param *const *w) {
    int64_t rows = (int64_t)s->shape.steps * s->shape.prompts;
    Tensor *silu = g_reshape(g_param(g, s->silu), DIMS(rows, s->model->config.dim));
    Tensor *all = g_reshape(g_param(g, s->mods), DIMS(rows, flux_mods(&s->model->config)));
    Tensor *y = g_slice(all, 1, start, w[LIN_W]->shape[0]);
    g_linear(g, &(Linear){.x = silu, .weight = w[LIN_W], .bias = w[LIN_B],
                          .compute = s->shape.compute, .y = y});
}

enum { SCHEDULE_TIME, SCHEDULE_TEXT }; // indices of the head units

static void record_schedule(void *user, Graph *g, const StackUnit *unit, Param *const *w) {
    const FluxSchedule *s = user;
    const FluxConfig *c = &s->model->config;
    int64_t start = mods_of(c, unit->kind, unit->index);
    if (unit->kind == FLUX_HEAD && unit->index == SCHEDULE_TIME) {
        record_conditioning(s, g, w);
    } else if (unit->kind == FLUX_HEAD) {
        g_linear(g, &(Linear){.x = g_param(g, s->text), .weight = w[LIN_W], .bias = w[LIN_B],
                              .compute = s->shape.compute, .y = g_param(g, s->context)});
    } else {
        record_modulation(s, g, start, w);
        if (unit->kind == FLUX_DOUBLE)
            record_modulation(s, g, start + (int64_t)STREAM_MODS * c->dim, w + LIN_COUNT);
    }
}

FluxSchedule *flux_schedule_new(void *parent, const FluxModel *m, Device *dev,
                                const FluxScheduleShape *shape) {
    FluxSchedule *s = MEM_NEW(parent, FluxSchedule);
    const FluxConfig *c = &m->config;
    int64_t steps = shape->steps, prompts = shape->prompts, text = shape->text;
    s->model = m;
    s->shape = *shape;
    s->state = store_new(s, dev);
    s->features = store_add(s->state, "features", DT_F32, DIMS(steps, FLUX_FEATURES));
    if (c->guidance) s->guidance = store_add(s->state, "guidance", DT_F32, DIMS(1, FLUX_FEATURES));
    s->pooled = store_add(s->state, "pooled", DT_F32, DIMS(prompts, c->pooled_dim));
    s->text = store_add(s->state, "text", DT_F32, DIMS(prompts, text, c->text_dim));
    s->mods = store_add(s->state, "mods", DT_F32, DIMS(steps, prompts, flux_mods(c)));
    s->context = store_add(s->state, "context", DT_F32, DIMS(prompts, text, c->dim));
    s->silu = store_add(s->state, "silu", DT_F32, DIMS(steps, prompts, c->dim));

    UnitList list = units_of(s, m);
    end_unit(&list, c, FLUX_HEAD, SCHEDULE_TIME, "conditioning", FLUX_ROWS_TIME);
    end_unit(&list, c, FLUX_HEAD, SCHEDULE_TEXT, "text projection", FLUX_ROWS_TEXT);
    block_units(&list, c, FLUX_ROWS_DOUBLE_MODS, FLUX_ROWS_SINGLE_MODS);
    end_unit(&list, c, FLUX_TAIL, 0, "final modulation", FLUX_ROWS_TAIL_MODS);
    s->spec = (StackSpec){.name = "schedule", .units = list.n, .unit = list.v,
                          .record = record_schedule, .user = s, .state = s->state};
    return s;
}

void flux_schedule_free(FluxSchedule *s) {
    if (!s) return;
    store_free(s->state);
    mem_free(s);
}

FluxConditions *flux_conditions_read(void *parent, FluxSchedule *s, Error *err) {
    FluxConditions *c = MEM_NEW(parent, FluxConditions);
    c->config = s->model->config;
    c->steps = s->shape.steps;
    c->prompts = s->shape.prompts;
    c->text = s->shape.text;
    c->mods = MEM_ARRAY(c, float, param_count(s->mods));
    c->context = MEM_ARRAY(c, float, param_count(s->context));
    if (param_read(s->mods, DT_F32, c->mods, err) && param_read(s->context, DT_F32, c->context, err))
        return c;
    mem_free(c);
    return NULL;
}

// ---- step stage -------------------------------------------------------------------------------

// What a unit's recording needs beside its weights. A unit is recorded for one picture after the other:
// a picture of a batch has the bits that it has alone on every device, all share one picture's arena,
// and its activations stay in caches; what a batch saves is the moving of weights.
typedef struct Pass {
    const FluxStep *f;
    const FluxConfig *c;
    Graph *g;
    int64_t picture;
    int64_t text, image, tokens; // tokens = text + image
    DType compute;
    Tensor *x;    // [1, T, D] f32, the state
    Tensor *mods; // [1, 1, this unit's numbers]
} Pass;

// The picture's part of a state tensor [B, ...], or the only one.
static Tensor *own(const Pass *p, Param *param) {
    Tensor *all = g_param(p->g, param);
    return g_slice(all, 0, MIN(p->picture, all->shape[0] - 1), 1);
}

static Tensor *mod(const Pass *p, int i) { // [1, 1, D]
    return g_slice(p->mods, 2, (int64_t)i * p->c->dim, p->c->dim);
}

static Tensor *modulated(const Pass *p, Tensor *x, int first, DType type) {
    Tensor *shift = mod(p, first + SHIFT), *scale = mod(p, first + SCALE);
    return g_norm(p->g, NORM(.x = x, .scale = scale, .shift = shift, .eps = 1e-6f, .dtype = type));
}

// Queries or keys of rows [n, 3 H, head]: RMS norm of each head.
static Tensor *head_norm(const Pass *p, Tensor *qkv, int which, Param *weight) {
    Tensor *part = g_slice(qkv, 1, (int64_t)which * p->c->heads, p->c->heads);
    Tensor *w = g_param(p->g, weight);
    return g_norm(p->g, NORM(.x = part, .weight = w, .kind = NORM_RMS, .eps = 1e-6f,
                             .dtype = p->compute));
}

// q, k [T, H, head] normed, qkv [1, T, 3 D]; the result has the type `type`.
static Tensor *attention(const Pass *p, Tensor *q, Tensor *k, Tensor *qkv, DType type) {
    int64_t heads = p->c->heads, width = p->c->head_dim;
    Tensor *table = g_param(p->g, p->f->rope);
    q = g_reshape(q, DIMS(1, p->tokens, heads, width));
    k = g_reshape(k, DIMS(1, p->tokens, heads, width));
    q = g_rope(p->g, ROPE(.x = q, .table = table, .dtype = p->compute));
    k = g_rope(p->g, ROPE(.x = k, .table = table, .dtype = p->compute));
    Tensor *v = g_reshape(qkv, DIMS(1, p->tokens, 3 * heads, width));
    v = g_slice(v, 2, 2 * heads, heads);
    Tensor *y = g_attn(p->g, ATTN(.q = q, .k = k, .v = v, .dtype = type));
    return g_reshape(y, DIMS(1, p->tokens, p->c->dim));
}

// Text stands first in the joint sequence; weights and modulations have the image first.
typedef struct Stream { int64_t start, count; Param *const *w; int mods; } Stream;

static Tensor *stream_of(const Stream *s, Tensor *t) { return g_slice(t, 1, s->start, s->count); }

// Joint attention's queries (which 0) or keys (1) of both streams, in the order of the sequence: one
// norm per stream, each writing its place.
static Tensor *joint_heads(const Pass *p, const Stream *streams, Tensor *qkv, int which) {
    Tensor *part[2];
    for (int i = 0; i < 2; i++) {
        const Stream *s = &streams[i];
        Tensor *rows = g_reshape(stream_of(s, qkv), DIMS(s->count, 3 * p->c->heads, p->c->head_dim));
        part[i] = head_norm(p, rows, which, s->w[which ? STREAM_KEY_NORM : STREAM_QUERY_NORM]);
    }
    return g_concat(p->g, 0, 2, part);
}

static void record_double(const Pass *p, Param *const *w) {
    const Stream streams[2] = {{0, p->text, w + STREAM_COUNT, STREAM_MODS},
                               {p->text, p->image, w, 0}};
    Tensor *part[2], *h[2];
    for (int i = 0; i < 2; i++) {
        const Stream *s = &streams[i];
        Tensor *x = modulated(p, stream_of(s, p->x), s->mods, p->compute);
        part[i] = g_linear(p->g, &(Linear){.x = x, .weight = s->w[STREAM_QKV_W],
                                           .bias = s->w[STREAM_QKV_B], .compute = p->compute,
                                           .out = p->compute});
    }
    Tensor *qkv = g_concat(p->g, 1, 2, part); // [1, T, 3 D]
    Tensor *q = joint_heads(p, streams, qkv, 0);
    Tensor *k = joint_heads(p, streams, qkv, 1);
    Tensor *y = attention(p, q, k, qkv, p->compute);
    for (int i = 0; i < 2; i++) { // h [1, Ts, D] f32: x + gate * proj(y)
        const Stream *s = &streams[i];
        h[i] = g_linear(p->g, &(Linear){.x = stream_of(s, y), .weight = s->w[STREAM_PROJ_W],
                                        .bias = s->w[STREAM_PROJ_B], .compute = p->compute,
                                        .gate = mod(p, s->mods + GATE),
                                        .residual = stream_of(s, p->x)});
    }
    for (int i = 0; i < 2; i++) {
        const Stream *s = &streams[i];
        Tensor *m = modulated(p, h[i], s->mods + PART, p->compute);
        m = g_linear(p->g, &(Linear){.x = m, .weight = s->w[STREAM_FC1_W], .bias = s->w[STREAM_FC1_B],
                                     .compute = p->compute, .out = wide(p->compute),
                                     .act = ACT_GELU});
        g_linear(p->g, &(Linear){.x = m, .weight = s->w[STREAM_FC2_W], .bias = s->w[STREAM_FC2_B],
                                 .compute = wide(p->compute), .gate = mod(p, s->mods + PART + GATE),
                                 .residual = h[i], .y = stream_of(s, p->x)});
    }
}

static void record_single(const Pass *p, Param *const *w) {
    const FluxConfig *c = p->c;
    Tensor *h = modulated(p, p->x, 0, p->compute);
    // One matrix holds the maps to queries, keys, values and to the MLP.
    Tensor *all = g_weight(p->g, w[SINGLE_LINEAR1_W], p->compute);
    Tensor *bias = g_param(p->g, w[SINGLE_LINEAR1_B]);
    int64_t three = 3 * (int64_t)c->dim;
    Tensor *w_qkv = g_slice(all, 0, 0, three), *w_mlp = g_slice(all, 0, three, c->mlp);
    Tensor *b_qkv = g_slice(bias, 0, 0, three), *b_mlp = g_slice(bias, 0, three, c->mlp);
    Tensor *qkv = g_gemm(p->g, GEMM(.x = h, .w = w_qkv, .bias = b_qkv, .dtype = p->compute));
    Tensor *mlp = g_gemm(p->g, GEMM(.x = h, .w = w_mlp, .bias = b_mlp, .act = ACT_GELU,
                                    .dtype = wide(p->compute)));
    Tensor *heads = g_reshape(qkv, DIMS(p->tokens, 3 * c->heads, c->head_dim));
    Tensor *q = head_norm(p, heads, 0, w[SINGLE_QUERY_NORM]);
    Tensor *k = head_norm(p, heads, 1, w[SINGLE_KEY_NORM]);
    Tensor *y = attention(p, q, k, qkv, wide(p->compute));
    Tensor *both = g_concat(p->g, 2, 2, (Tensor *[]){y, mlp}); // [1, T, D + M]
    // Not in place: a product may write y before it reads the residual.
    Tensor *x = g_linear(p->g, &(Linear){.x = both, .weight = w[SINGLE_LINEAR2_W],
                                         .bias = w[SINGLE_LINEAR2_B], .compute = wide(p->compute),
                                         .gate = mod(p, GATE), .residual = p->x});
    g_copy(p->g, COPY(.x = x, .y = p->x));
}

static void record_head(const Pass *p, Param *const *w) {
    Tensor *text = g_slice(p->x, 1, 0, p->text), *image = g_slice(p->x, 1, p->text, p->image);
    g_copy(p->g, COPY(.x = own(p, p->f->context), .y = text));
    g_linear(p->g, &(Linear){.x = own(p, p->f->tokens_in), .weight = w[LIN_W],
                             .bias = w[LIN_B], .y = image});
}

static void record_tail(const Pass *p, Param *const *w) {
    Tensor *h = modulated(p, g_slice(p->x, 1, p->text, p->image), 0, DT_F32);
    g_linear(p->g, &(Linear){.x = h, .weight = w[LIN_W], .bias = w[LIN_B],
                             .y = own(p, p->f->velocity)});
}

static void record_step(void *user, Graph *g, const StackUnit *unit, Param *const *w) {
    static void (*const records[])(const Pass *, Param *const *) = {record_head, record_double,
                                                                    record_single, record_tail};
    static const int counts[] = {1, DOUBLE_MODS, SINGLE_MODS, TAIL_MODS};
    const FluxStep *f = user;
    const FluxConfig *c = &f->model->config;
    int64_t first = mods_of(c, unit->kind, unit->index), count = (int64_t)counts[unit->kind] * c->dim;
    for (int k = 0; k < f->shape.batch; k++) {
        Pass p = {.f = f, .c = c, .g = g, .picture = k, .text = f->shape.text, .image = f->shape.tokens,
                  .tokens = f->shape.text + (int64_t)f->shape.tokens, .compute = f->shape.compute};
        p.x = own(&p, f->x);
        p.mods = g_reshape(g_slice(own(&p, f->mods), 1, first, count), DIMS(1, 1, count));
        records[unit->kind](&p, w);
    }
}

FluxStep *flux_step_new(void *parent, const FluxModel *m, Device *dev, const FluxStepShape *shape) {
    FluxStep *f = MEM_NEW(parent, FluxStep);
    const FluxConfig *c = &m->config;
    int64_t batch = shape->batch, prompts = shape->prompts, text = shape->text, image = shape->tokens;
    f->model = m;
    f->shape = *shape;
    f->state = store_new(f, dev);
    f->tokens_in = store_add(f->state, "tokens", DT_F32, DIMS(batch, image, c->in_channels));
    f->rope = store_add(f->state, "rope", DT_F32, DIMS(1, text + image, c->head_dim / 2, 2));
    f->context = store_add(f->state, "context", DT_F32, DIMS(prompts, text, c->dim));
    f->mods = store_add(f->state, "mods", DT_F32, DIMS(prompts, flux_mods(c)));
    f->velocity = store_add(f->state, "velocity", DT_F32, DIMS(batch, image, c->out_channels));
    f->x = store_add(f->state, "x", DT_F32, DIMS(batch, text + image, c->dim));

    UnitList list = units_of(f, m);
    end_unit(&list, c, FLUX_HEAD, 0, "head", FLUX_ROWS_HEAD);
    block_units(&list, c, FLUX_ROWS_DOUBLE, FLUX_ROWS_SINGLE);
    end_unit(&list, c, FLUX_TAIL, 0, "tail", FLUX_ROWS_TAIL);
    f->spec = (StackSpec){.name = "transformer", .units = list.n, .unit = list.v,
                          .record = record_step, .user = f, .state = f->state};
    return f;
}

void flux_step_free(FluxStep *f) {
    if (!f) return;
    store_free(f->state);
    mem_free(f);
}

// ---- writing the state ------------------------------------------------------------------------

bool flux_step_write_rope(FluxStep *f, int rows, int columns, Error *err) {
    if ((int64_t)rows * columns != f->shape.tokens)
        return err_failed(err, "flux: expected %d image tokens, found %d x %d; this is a defect",
                          f->shape.tokens, rows, columns);
    float *table = MEM_ARRAY(NULL, float, param_count(f->rope));
    flux_rope(&f->model->config, f->shape.text, rows, columns, table);
    bool ok = param_write(f->rope, DT_F32, table, err);
    mem_free(table);
    return ok;
}

// Gathers rows of `size` numbers by prompt.
static bool write_prompts(const FluxStep *f, Param *p, const FluxConditions *c, const float *from,
                          int64_t size, const int *prompt, Error *err) {
    float *values = MEM_ARRAY(NULL, float, param_count(p));
    bool ok = param_count(p) == size * f->shape.prompts ||
              err_failed(err, "flux: expected conditions of %lld numbers, found %lld; this is a defect",
                         (long long)param_count(p), (long long)(size * f->shape.prompts));
    for (int i = 0; i < f->shape.prompts && ok; i++) {
        ok = (prompt[i] >= 0 && prompt[i] < c->prompts) ||
             err_failed(err, "flux: expected a prompt below %d, found %d; this is a defect",
                        c->prompts, prompt[i]);
        if (ok) memcpy(values + size * i, from + size * prompt[i], sizeof(float) * (size_t)size);
    }
    ok = ok && param_write(p, DT_F32, values, err);
    mem_free(values);
    return ok;
}

bool flux_step_write_text(FluxStep *f, const FluxConditions *c, const int *prompt, Error *err) {
    int64_t size = (int64_t)c->text * c->config.dim;
    return write_prompts(f, f->context, c, c->context, size, prompt, err);
}

bool flux_step_write_step(FluxStep *f, const FluxConditions *c, int step, const int *prompt,
                          Error *err) {
    int64_t size = flux_mods(&c->config);
    if (step < 0 || step >= c->steps)
        return err_failed(err, "flux: expected a step below %d, found %d; this is a defect", c->steps,
                          step);
    return write_prompts(f, f->mods, c, c->mods + size * c->prompts * step, size, prompt, err);
}
