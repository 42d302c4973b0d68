// bands.c: see bands.h.
#include "models/bands.h"

// ---- cutting ----------------------------------------------------------------------------------

// Rows that a band may borrow from its neighbours when a convolution reads it.
enum { HALO = 4 };

// A map in as few bands as its size allows, but no fewer than `like` has: a convolution reads about
// as many rows of its input as it makes of its result, and these must fit too.
static Map *map_new(const Map *like, int64_t h, int64_t w, int64_t c, DType dtype) {
    Map *m = MEM_NEW(like->g, Map);
    m->g = like->g;
    m->rules = like->rules;
    m->h = h, m->w = w, m->c = c;
    m->dtype = dtype;
    // f32, whatever the type: casts and sums of this map are cut at the same rows.
    uint64_t row = (uint64_t)w * (uint64_t)c * 4;
    int64_t n = 1, rows = h;
    if ((uint64_t)h * row > m->rules->limit) {
        rows = (int64_t)(m->rules->limit / row) - HALO;
        n = rows > 0 ? (h + rows - 1) / rows : MAX_BANDS + 1;
    }
    n = MAX(n, MIN(h, MAX(like->n, m->rules->at_least)));
    if (n > MAX_BANDS) {
        g_fail(m->g, "a map of %lld x %lld pixels and %lld channels: expected rows that fit the "
               "device's largest buffer, found %llu bytes in each; take a smaller picture",
               (long long)w, (long long)h, (long long)c, (unsigned long long)row);
        n = 1;
    }
    m->n = (int)n;
    m->rules->most = MAX(m->rules->most, m->n);
    for (int i = 0; i <= m->n; i++) m->row[i] = h * i / n;
    return m;
}

static Map *map_like(const Map *m, DType dtype) {
    return map_new(m, m->h, m->w, m->c, dtype);
}

// Rows lo to hi of a map: a view where they lie in one band.
static Tensor *map_rows(const Map *m, int64_t lo, int64_t hi) {
    Tensor *part[MAX_BANDS];
    int n = 0;
    for (int i = 0; i < m->n; i++) {
        int64_t a = MAX(lo, m->row[i]), b = MIN(hi, m->row[i + 1]);
        if (a >= b) continue;
        bool all = a == m->row[i] && b == m->row[i + 1];
        part[n++] = all ? m->band[i] : g_slice(m->band[i], 1, a - m->row[i], b - a);
    }
    return n == 1 ? part[0] : g_concat(m->g, 1, n, part);
}

Map *map_of(Tensor *whole, BandRules *rules) {
    const Map like = {.g = whole->g, .rules = rules};
    const int64_t *s = whole->shape;
    Map *m = map_new(&like, s[1], s[2], s[3], whole->dtype);
    for (int i = 0; i < m->n; i++)
        m->band[i] = m->n == 1 ? whole : g_slice(whole, 1, m->row[i], m->row[i + 1] - m->row[i]);
    return m;
}

Tensor *map_join(const Map *m) { return map_rows(m, 0, m->h); }

// ---- element by element -----------------------------------------------------------------------

static const Map *map_cast(const Map *m, DType dtype) {
    if (m->dtype == dtype) return m; // as it is: maps do not change
    Map *y = map_like(m, dtype);
    for (int i = 0; i < m->n; i++) y->band[i] = g_cast(m->band[i], dtype);
    return y;
}

Map *map_act(const Map *m, uint32_t act, DType dtype) {
    Map *y = map_like(m, dtype);
    for (int i = 0; i < m->n; i++) y->band[i] = g_act(m->band[i], act, dtype);
    return y;
}

// ---- convolution ------------------------------------------------------------------------------

// Rows first to last of the result, from the rows of x that they see.
static Tensor *conv_band(const Map *x, const MapConv *conv, Tensor *w, Tensor *bias, int64_t first,
                         int64_t last) {
    int64_t stride = MAX(conv->stride, 1), up = MAX(conv->upsample, 1), taps = w->shape[1];
    // In rows of the (enlarged) input, of which those outside are padding.
    int64_t lo = first * stride - conv->before, hi = (last - 1) * stride - conv->before + taps;
    int64_t above = MAX(0, -lo), below = MAX(0, hi - up * x->h);
    lo += above, hi -= below;
    // Whole input rows are read; the rows of the result that they add are cut off again.
    int64_t a = lo / up, b = (hi + up - 1) / up, extra = lo - a * up;
    Tensor *y = g_conv2d(x->g, &(Conv2dRec){
        .x = map_rows(x, a, b), .w = w, .bias = bias,
        .residual = conv->residual ? map_rows(conv->residual, first, last) : NULL,
        .stride = (uint32_t)stride, .upsample = (uint32_t)up,
        .pad_top = (uint32_t)above, .pad_bottom = (uint32_t)below,
        .pad_left = conv->before, .pad_right = conv->after,
        .act = conv->act, .dtype = conv->dtype});
    return y->shape[1] == last - first ? y : g_slice(y, 1, extra, last - first);
}

Map *map_conv(const Map *input, const MapConv *conv) {
    const Map *x = map_cast(input, input->rules->compute);
    Tensor *w = g_weight(x->g, conv->w, x->dtype);
    Tensor *bias = conv->bias ? g_param(x->g, conv->bias) : NULL;
    int64_t stride = MAX(conv->stride, 1), up = MAX(conv->upsample, 1);
    int64_t pad = (int64_t)conv->before + conv->after;
    int64_t h = (up * x->h + pad - w->shape[1]) / stride + 1;
    int64_t wide = (up * x->w + pad - w->shape[2]) / stride + 1;
    Map *y = map_new(x, h, wide, w->shape[0], conv->dtype);
    for (int i = 0; i < y->n; i++)
        y->band[i] = conv_band(x, conv, w, bias, y->row[i], y->row[i + 1]);
    return y;
}

// ---- group norm -------------------------------------------------------------------------------

// Mean over group and rows of all bands of what `value` makes of a band: [1, 1, groups, 1].
static Tensor *group_mean(const Map *x, int64_t groups, Tensor *mean) {
    Tensor *sum = NULL;
    int64_t wide = x->c / groups;
    float share = 1.0f / (float)(x->h * x->w) / (float)wide;
    for (int i = 0; i < x->n; i++) {
        int64_t pixels = (x->row[i + 1] - x->row[i]) * x->w;
        Tensor *t = g_reshape(x->band[i], DIMS(1, pixels, groups, wide));
        if (mean) { // the second moment about it
            t = g_sub(t, mean);
            t = g_ewise(x->g, EWISE(.kind = EW_SQUARE, .x = t));
        }
        t = g_reshape(t, DIMS(1, pixels, x->c));
        t = g_reduce(x->g, REDUCE(.x = t, .alpha = share));
        sum = sum ? g_add(sum, t) : t;
    }
    sum = g_reshape(sum, DIMS(groups, wide, 1));
    sum = g_reduce(x->g, REDUCE(.x = sum));
    return g_reshape(sum, DIMS(1, 1, groups, 1));
}

static void norm_bands(const Map *x, const MapNorm *norm, Tensor *weight, Tensor *bias, Map *y) {
    Graph *g = x->g;
    int64_t groups = norm->groups;
    Tensor *mean = group_mean(x, groups, NULL), *var = group_mean(x, groups, mean);
    Tensor *eps = g_scale(var, 1, norm->eps);
    Tensor *std = g_ewise(g, EWISE(.kind = EW_SQRT, .x = eps));
    for (int i = 0; i < x->n; i++) {
        int64_t rows = x->row[i + 1] - x->row[i];
        Tensor *t = g_reshape(x->band[i], DIMS(1, rows * x->w, groups, x->c / groups));
        t = g_sub(t, mean);
        t = g_ewise(g, EWISE(.kind = EW_DIV, .x = t, .y = std));
        t = g_reshape(t, DIMS(1, rows, x->w, x->c));
        t = g_ewise(g, EWISE(.kind = EW_MULADD, .x = t, .y = weight, .z = bias,
                             .dtype = norm->act ? DT_F32 : norm->dtype));
        y->band[i] = norm->act ? g_act(t, norm->act, norm->dtype) : t;
    }
}

Map *map_norm(const Map *x, const MapNorm *norm) {
    Map *y = map_like(x, norm->dtype);
    Tensor *weight = g_weight(x->g, norm->weight, DT_F32);
    Tensor *bias = g_weight(x->g, norm->bias, DT_F32);
    if (x->n > 1) {
        norm_bands(x, norm, weight, bias, y);
        return y;
    }
    Tensor *t = g_reshape(x->band[0], DIMS(1, x->h * x->w, x->c));
    t = g_norm(x->g, NORM(.x = t, .weight = weight, .bias = bias, .kind = NORM_GROUP,
                          .groups = norm->groups, .eps = norm->eps, .act = norm->act,
                          .dtype = norm->dtype));
    y->band[0] = g_reshape(t, DIMS(1, x->h, x->w, x->c));
    return y;
}
