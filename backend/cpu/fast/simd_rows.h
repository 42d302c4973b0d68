// simd_rows.h: norm, its gradient, and the epilogue of matrix products: kernels over rows.

enum { NORM_PART = 8192 }; // elements of a part

// ---- norm -------------------------------------------------------------------------------------
typedef struct NormJob {
    Cpu *cpu;
    const OpCall *c;
    const float *weight, *bias; // [C] as f32, or NULL
    int64_t M, C, rows, per_part;
} NormJob;

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
    const TensorRef *t = j->c->t;
    const NormParams *p = &j->c->params.norm;
    const Rows x = rows_of(&t[norm_x]), y = rows_of(&t[norm_y]), rstd = rows_of(&t[norm_rstd]);
    const Rows scale = rows_of(&t[norm_scale]), shift = rows_of(&t[norm_shift]);
    float *tmp = cpu_scratch(j->cpu, thread);
    float *tscale = tmp + j->C, *tshift = tscale + j->C, *out = tshift + j->C;
    int64_t C = j->C, end = MIN(j->rows, (part + 1) * j->per_part);
    const float *in[4] = {j->weight, j->bias};
    int have = !!j->weight + 2 * !!j->bias + 4 * !!scale.base + 8 * !!shift.base;
    for (int64_t row = part * j->per_part; row < end; row++) {
        int64_t b = row / j->M, m = row % j->M;
        const float *v = row_view(tmp, x.type, row_of(&x, b, m), C);
        float mean = p->kind == NORM_LAYER ? sum_row(v, C) / (float)C : 0;
        float r = 1.0f / sqrtf(square_row(v, mean, C) / (float)C + p->eps);
        if (rstd.base) *(float *)row_of(&rstd, b, m) = r;
        if (scale.base) in[2] = row_view(tscale, scale.type, row_of(&scale, b, m), C);
        if (shift.base) in[3] = row_view(tshift, shift.type, row_of(&shift, b, m), C);
        char *to = row_of(&y, b, m);
        float *o = y.type == DT_F32 ? (float *)to : out;
        if (have == 0 && p->act == ACT_NONE) norm_apply(v, mean, r, in, 0, ACT_NONE, o, C);
        else if (have == 12 && p->act == ACT_NONE) norm_apply(v, mean, r, in, 12, ACT_NONE, o, C);
        else norm_apply(v, mean, r, in, have, p->act, o, C);
        for (int64_t i = 0; p->act == ACT_GELU_ERF && i < C; i++)
            o[i] = (float)act_value(p->act, o[i]);
        row_store(y.type, to, o, C);
    }
}

void FN(norm)(Cpu *cpu, const OpCall *c) {
    if (c->params.norm.kind == NORM_GROUP) {
        group_norm(cpu, c);
        return;
    }
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
    const TensorRef *t = j->c->t;
    const Rows y = rows_of(&t[norm_bwd_y]), g = rows_of(&t[norm_bwd_dy]);
    const Rows rstd = rows_of(&t[norm_bwd_rstd]), dx = rows_of(&t[norm_bwd_dx]);
    bool layer = j->c->params.norm_bwd.kind == NORM_LAYER;
    float *ty = cpu_scratch(j->cpu, thread), *tg = ty + j->C, *out = tg + j->C;
    int64_t C = j->C, end = MIN(j->rows, (part + 1) * j->per_part);
    for (int64_t row = part * j->per_part; row < end; row++) {
        int64_t b = row / j->M, m = row % j->M, i = 0;
        const float *yv = row_view(ty, y.type, row_of(&y, b, m), C);
        const float *gv = row_view(tg, g.type, row_of(&g, b, m), C);
        float r = *(const float *)row_of(&rstd, b, m);
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
        char *to = row_of(&dx, b, m);
        float *o = dx.type == DT_F32 ? (float *)to : out;
        for (i = 0; i + W <= C; i += W)
            vstore(o + i, r * (vload(gv + i) - mean - vload(yv + i) * dot));
        for (; i < C; i++) o[i] = r * (gv[i] - mean - yv[i] * dot);
        row_store(dx.type, to, o, C);
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
// o = residual + gate act(acc + bias); `have`: bits of bias, gate, residual.
INLINE vf epilogue_value(uint32_t act, vf v, vf bias, vf gate, vf residual, int have) {
    if (have & 1) v += bias;
    v = vact(act, v);
    if (have & 2) v *= gate;
    if (have & 4) v += residual;
    return v;
}

INLINE void epilogue_loop(uint32_t act, int have, const float *acc, const float *const in[3],
                          float *o, int64_t n) {
    int64_t i = 0;
    vf f[3] = {{0}};
    for (; i + W <= n; i += W) {
        for (int k = 0; k < 3; k++)
            if (have & 1 << k) f[k] = vload(in[k] + i);
        vstore(o + i, epilogue_value(act, vload(acc + i), f[0], f[1], f[2], have));
    }
    if (i == n) return;
    for (int k = 0; k < 3; k++)
        if (have & 1 << k) f[k] = vload_n(in[k] + i, n - i);
    vstore_n(o + i, epilogue_value(act, vload_n(acc + i, n - i), f[0], f[1], f[2], have), n - i);
}

static void epilogue_row(uint32_t act, int have, const float *acc, const float *const in[3],
                         float *o, int64_t n) {
    switch (act) {
    case ACT_NONE:
        if (have == 1) epilogue_loop(ACT_NONE, 1, acc, in, o, n);
        else epilogue_loop(ACT_NONE, have, acc, in, o, n);
        return;
#define KIND(act) case act: epilogue_loop(act, have, acc, in, o, n); return;
    KIND(ACT_SILU) KIND(ACT_GELU) KIND(ACT_QUICK_GELU) KIND(ACT_RELU) KIND(ACT_TANH)
    KIND(ACT_SIGMOID)
#undef KIND
    }
    for (int64_t i = 0; i < n; i++) {
        double v = act_value(act, have & 1 ? (double)acc[i] + in[0][i] : acc[i]);
        if (have & 2) v *= in[1][i];
        if (have & 4) v += in[2][i];
        o[i] = (float)v;
    }
}

// y[row, n0 + i] for rows row0.. of the folded [B * M] rows (or of batch b alone), from acc
// [rows, ld]; works in place where acc is y itself.
void FN(gemm_epilogue)(const OpCall *c, int64_t b, bool folded, int64_t row0, int64_t rows,
                       int64_t n0, int64_t n, const float *acc, int64_t ld) {
    enum { COLS = 512 };
    const Rows y = rows_of(&c->t[gemm_y]), bias = rows_of(&c->t[gemm_bias]);
    const Rows gate = rows_of(&c->t[gemm_gate]), res = rows_of(&c->t[gemm_residual]);
    int64_t ys = dtype_size(y.type), bs = dtype_size(bias.type), gs = dtype_size(gate.type);
    int64_t rs = dtype_size(res.type), M = ref_dim(&c->t[gemm_y], 4);
    float tmp[3][COLS], out[COLS];
    const float *in[3] = {NULL};
    int have = !!bias.base + 2 * !!gate.base + 4 * !!res.base;
    uint32_t act = c->params.gemm.act;
    for (int64_t i = 0; i < n; i += COLS) {
        int64_t len = MIN(COLS, n - i), col = n0 + i;
        if (bias.base) in[0] = row_view(tmp[0], bias.type, bias.base + col * bs, len);
        for (int64_t r = 0; r < rows; r++) {
            int64_t rb = folded ? (row0 + r) / M : b, m = folded ? (row0 + r) % M : row0 + r;
            if (gate.base)
                in[1] = row_view(tmp[1], gate.type, row_of(&gate, rb, m) + col * gs, len);
            if (res.base) in[2] = row_view(tmp[2], res.type, row_of(&res, rb, m) + col * rs, len);
            char *to = row_of(&y, rb, m) + col * ys;
            const float *from = acc + r * ld + i;
            if (y.type == DT_F32) {
                epilogue_row(act, have, from, in, (float *)to, len);
            } else if (have == 0 && act == ACT_NONE) {
                row_store(y.type, to, from, len);
            } else {
                epilogue_row(act, have, from, in, out, len);
                row_store(y.type, to, out, len);
            }
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
