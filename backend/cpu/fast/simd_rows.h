// simd_rows.h: norm, its gradient, and the epilogue of matrix products: kernels over rows.

enum { NORM_PART = 8192, NORM_MAX = 65536 }; // elements of a part; longest row

// ---- norm -------------------------------------------------------------------------------------
typedef struct NormJob {
    Cpu *cpu;
    const OpCall *c;
    const float *weight, *bias; // [C] as f32, or NULL
    int64_t M, C, rows, per_part;
} NormJob;

INLINE int64_t row_place(const TensorRef *t, int64_t b, int64_t m) {
    return b * stride_of(t, 3) + m * stride_of(t, 4);
}

static float sum_row(const float *x, int64_t n) {
    vf a = vset(0), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        a += vload(x + i), b += vload(x + i + W);
        c += vload(x + i + 2 * W), d += vload(x + i + 3 * W);
    }
    for (; i + W <= n; i += W) a += vload(x + i);
    if (i < n) b += vload_n(x + i, n - i);
    return vsum((a + b) + (c + d));
}

// sum of (x - mean)^2
static float square_row(const float *x, float mean, int64_t n) {
    vf a = vset(0), b = a, c = a, d = a, v;
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        v = vload(x + i) - mean, a += v * v;
        v = vload(x + i + W) - mean, b += v * v;
        v = vload(x + i + 2 * W) - mean, c += v * v;
        v = vload(x + i + 3 * W) - mean, d += v * v;
    }
    for (; i + W <= n; i += W) v = vload(x + i) - mean, a += v * v;
    float tail = 0;
    for (; i < n; i++) tail += (x[i] - mean) * (x[i] - mean);
    return vsum((a + b) + (c + d)) + tail;
}

INLINE vf norm_value(vf x, float mean, float r, const vf *f, int have, uint32_t act) {
    vf v = (x - mean) * r;
    if (have & 1) v *= f[0];
    if (have & 2) v += f[1];
    if (have & 4) v *= 1.0f + f[2];
    if (have & 8) v += f[3];
    return vact(act, v);
}

// o = act(((x - mean) r weight + bias) (1 + scale) + shift)
static void norm_apply(const float *x, float mean, float r, const float *const in[4], int have,
                       uint32_t act, float *o, int64_t n) {
    vf f[4] = {{0}};
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        for (int k = 0; k < 4; k++)
            if (have & 1 << k) f[k] = vload(in[k] + i);
        vstore(o + i, norm_value(vload(x + i), mean, r, f, have, act));
    }
    if (i == n) return;
    for (int k = 0; k < 4; k++)
        if (have & 1 << k) f[k] = vload_n(in[k] + i, n - i);
    vstore_n(o + i, norm_value(vload_n(x + i, n - i), mean, r, f, have, act), n - i);
}

static void norm_part(void *arg, int64_t part, int thread) {
    const NormJob *j = arg;
    const TensorRef *t = j->c->t, *x = &t[norm_x], *y = &t[norm_y], *rstd = &t[norm_rstd];
    const NormParams *p = &j->c->params.norm;
    float *tmp = cpu_scratch(j->cpu, thread);
    float *tscale = tmp + j->C, *tshift = tscale + j->C, *out = tshift + j->C;
    int64_t C = j->C, end = MIN(j->rows, (part + 1) * j->per_part);
    for (int64_t row = part * j->per_part; row < end; row++) {
        int64_t b = row / j->M, m = row % j->M;
        const float *v = row_view(tmp, x->dtype, at(x, row_place(x, b, m)), C);
        float mean = p->kind == NORM_LAYER ? sum_row(v, C) / (float)C : 0;
        float r = 1.0f / sqrtf(square_row(v, mean, C) / (float)C + p->eps);
        if (has(rstd)) *(float *)at(rstd, row_place(rstd, b, m)) = r;
        const float *in[4] = {j->weight, j->bias};
        const TensorRef *s = &t[norm_scale], *h = &t[norm_shift];
        if (has(s)) in[2] = row_view(tscale, s->dtype, at(s, row_place(s, b, m)), C);
        if (has(h)) in[3] = row_view(tshift, h->dtype, at(h, row_place(h, b, m)), C);
        int have = 0;
        for (int k = 0; k < 4; k++) have |= in[k] ? 1 << k : 0;
        char *to = at(y, row_place(y, b, m));
        float *o = y->dtype == DT_F32 ? (float *)to : out;
        if (have == 0 && p->act == ACT_NONE) norm_apply(v, mean, r, in, 0, ACT_NONE, o, C);
        else if (have == 12 && p->act == ACT_NONE) norm_apply(v, mean, r, in, 12, ACT_NONE, o, C);
        else norm_apply(v, mean, r, in, have, p->act, o, C);
        for (int64_t i = 0; p->act == ACT_GELU_ERF && i < C; i++)
            o[i] = (float)act_value(p->act, o[i]);
        row_store(y->dtype, to, o, C);
    }
}

void FN(norm)(Cpu *cpu, const OpCall *c) {
    const TensorRef *x = &c->t[norm_x], *w = &c->t[norm_weight], *b = &c->t[norm_bias];
    NormJob j = {.cpu = cpu, .c = c, .M = ref_dim(x, 4), .C = ref_dim(x, 5)};
    j.rows = ref_dim(x, 3) * j.M;
    j.per_part = MAX(1, NORM_PART / j.C);
    float *wide = MEM_ARRAY(NULL, float, 2 * j.C);
    if (has(w)) j.weight = row_view(wide, w->dtype, at(w, 0), j.C);
    if (has(b)) j.bias = row_view(wide + j.C, b->dtype, at(b, 0), j.C);
    pool_run(cpu->pool, (j.rows + j.per_part - 1) / j.per_part, norm_part, &j);
    mem_free(wide);
}

// ---- norm_bwd ---------------------------------------------------------------------------------
static void norm_bwd_part(void *arg, int64_t part, int thread) {
    const NormJob *j = arg;
    const TensorRef *t = j->c->t, *y = &t[norm_bwd_y], *g = &t[norm_bwd_dy];
    const TensorRef *rstd = &t[norm_bwd_rstd], *dx = &t[norm_bwd_dx];
    bool layer = j->c->params.norm_bwd.kind == NORM_LAYER;
    float *ty = cpu_scratch(j->cpu, thread), *tg = ty + j->C, *out = tg + j->C;
    int64_t C = j->C, end = MIN(j->rows, (part + 1) * j->per_part);
    for (int64_t row = part * j->per_part; row < end; row++) {
        int64_t b = row / j->M, m = row % j->M, i = 0;
        const float *yv = row_view(ty, y->dtype, at(y, row_place(y, b, m)), C);
        const float *gv = row_view(tg, g->dtype, at(g, row_place(g, b, m)), C);
        float r = *(const float *)at(rstd, row_place(rstd, b, m));
        vf s0 = vset(0), s1 = s0, d0 = s0, d1 = s0;
        for (; i + 2 * W <= C; i += 2 * W) {
            vf a = vload(gv + i), e = vload(gv + i + W);
            s0 += a, s1 += e, d0 += a * vload(yv + i), d1 += e * vload(yv + i + W);
        }
        for (; i + W <= C; i += W) s0 += vload(gv + i), d0 += vload(gv + i) * vload(yv + i);
        if (i < C) {
            vf a = vload_n(gv + i, C - i);
            s1 += a, d1 += a * vload_n(yv + i, C - i);
        }
        float mean = layer ? vsum(s0 + s1) / (float)C : 0, dot = vsum(d0 + d1) / (float)C;
        char *to = at(dx, row_place(dx, b, m));
        float *o = dx->dtype == DT_F32 ? (float *)to : out;
        for (i = 0; i + W <= C; i += W)
            vstore(o + i, r * (vload(gv + i) - mean - vload(yv + i) * dot));
        for (; i < C; i++) o[i] = r * (gv[i] - mean - yv[i] * dot);
        row_store(dx->dtype, to, o, C);
    }
}

void FN(norm_bwd)(Cpu *cpu, const OpCall *c) {
    const TensorRef *y = &c->t[norm_bwd_y];
    NormJob j = {.cpu = cpu, .c = c, .M = ref_dim(y, 4), .C = ref_dim(y, 5)};
    j.rows = ref_dim(y, 3) * j.M;
    j.per_part = MAX(1, NORM_PART / j.C);
    pool_run(cpu->pool, (j.rows + j.per_part - 1) / j.per_part, norm_bwd_part, &j);
}

// ---- epilogue of a matrix product -------------------------------------------------------------
INLINE void epilogue_act(uint32_t act, const float *acc, const float *bias, float *o, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        vf v = vload(acc + i);
        vstore(o + i, vact(act, bias ? v + vload(bias + i) : v));
    }
    if (i == n) return;
    vf v = vload_n(acc + i, n - i);
    vstore_n(o + i, vact(act, bias ? v + vload_n(bias + i, n - i) : v), n - i);
}

static void epilogue_row(uint32_t act, const float *acc, const float *bias, const float *gate,
                         const float *residual, float *o, int64_t n) {
    switch (act) {
#define KIND(act) case act: epilogue_act(act, acc, bias, o, n); break;
    KIND(ACT_NONE) KIND(ACT_SILU) KIND(ACT_GELU) KIND(ACT_QUICK_GELU) KIND(ACT_RELU)
    KIND(ACT_TANH) KIND(ACT_SIGMOID)
#undef KIND
    default:
        for (int64_t i = 0; i < n; i++)
            o[i] = (float)act_value(act, bias ? (double)acc[i] + bias[i] : acc[i]);
    }
    if (gate) // one pass each: the row is in the first-level cache
        for (int64_t i = 0; i < n; i++) o[i] *= gate[i];
    if (residual)
        for (int64_t i = 0; i < n; i++) o[i] += residual[i];
}

// y[row, n0 + i] for rows row0.. of the folded [B * M] rows (or of batch b alone), from acc
// [rows, ld]; works in place where acc is y itself.
void FN(gemm_epilogue)(const OpCall *c, int64_t b, bool folded, int64_t row0, int64_t rows,
                       int64_t n0, int64_t n, const float *acc, int64_t ld) {
    enum { COLS = 512 };
    const TensorRef *y = &c->t[gemm_y], *gate = &c->t[gemm_gate];
    const TensorRef *res = &c->t[gemm_residual], *bias = &c->t[gemm_bias];
    float tb[COLS], tg[COLS], tr[COLS], out[COLS];
    int64_t M = ref_dim(y, 4);
    for (int64_t i = 0; i < n; i += COLS) {
        int64_t len = MIN(COLS, n - i), col = n0 + i;
        const float *vb = has(bias) ? row_view(tb, bias->dtype, at(bias, col), len) : NULL;
        for (int64_t r = 0; r < rows; r++) {
            int64_t rb = folded ? (row0 + r) / M : b, m = folded ? (row0 + r) % M : row0 + r;
            const float *vg = NULL, *vr = NULL;
            if (has(gate))
                vg = row_view(tg, gate->dtype, at(gate, row_place(gate, rb, m) + col), len);
            if (has(res)) vr = row_view(tr, res->dtype, at(res, row_place(res, rb, m) + col), len);
            char *to = at(y, row_place(y, rb, m) + col);
            float *o = y->dtype == DT_F32 ? (float *)to : out;
            epilogue_row(c->params.gemm.act, acc + r * ld + i, vb, vg, vr, o, len);
            row_store(y->dtype, to, o, len);
        }
    }
}

// A block [rows, cols] of a matrix as f32 [rows, cols], from any strides (sr, sc elements).
void FN(pack_f32)(float *to, const TensorRef *t, int64_t place, int64_t sr, int64_t sc,
                  int64_t rows, int64_t cols) {
    if (sc == 1 || cols == 1) {
        for (int64_t r = 0; r < rows; r++)
            row_load(to + r * cols, t->dtype, at(t, place + r * sr), cols);
        return;
    }
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++)
            to[r * cols + c] = dtype_load(t->dtype, at(t, place + c * sc), (size_t)(r * sr));
}
