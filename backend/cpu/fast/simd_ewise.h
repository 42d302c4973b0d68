// simd_ewise.h: ewise and copy. Dimensions are merged where all operands allow it; the innermost
// run is cut into blocks that stay in the first-level cache.

enum { BLOCK = 1024, PART = 32768 }; // elements of a block; elements of a part of the pool

// An iteration space of merged dimensions, operand strides beside it; the last dimension is run.
typedef struct Space {
    int dims, operands;
    int64_t n[MAX_DIMS];
    int64_t s[4][MAX_DIMS];
    int64_t rows, rows_per_part, segments, segment; // a part: rows_per_part rows, or one segment
} Space;

static Space space_of(const TensorRef *const *t, int operands, const TensorRef *out) {
    Space sp = {.operands = operands};
    for (int d = 0; d < MAX_DIMS; d++) {
        int64_t n = ref_dim(out, d), s[4];
        if (n == 1) continue;
        bool merge = sp.dims > 0;
        for (int i = 0; i < operands; i++) {
            s[i] = has(t[i]) ? stride_of(t[i], d) : 0;
            merge = merge && sp.s[i][sp.dims - 1] == s[i] * n;
        }
        if (!merge) sp.n[sp.dims++] = 1;
        sp.n[sp.dims - 1] *= n;
        for (int i = 0; i < operands; i++) sp.s[i][sp.dims - 1] = s[i];
    }
    if (!sp.dims) sp.n[sp.dims++] = 1;
    return sp;
}

// Swaps the innermost dimension with the one where the output is contiguous.
UNUSED static void space_inner(Space *sp, int out) {
    for (int d = 0; d < sp->dims - 1; d++) {
        if (sp->s[out][d] != 1 || sp->s[out][sp->dims - 1] == 1) continue;
        int e = sp->dims - 1;
        int64_t n = sp->n[d];
        sp->n[d] = sp->n[e], sp->n[e] = n;
        for (int i = 0; i < sp->operands; i++) {
            int64_t s = sp->s[i][d];
            sp->s[i][d] = sp->s[i][e], sp->s[i][e] = s;
        }
    }
}

static int64_t space_parts(Space *sp) {
    int64_t run = sp->n[sp->dims - 1];
    sp->rows = 1;
    for (int d = 0; d < sp->dims - 1; d++) sp->rows *= sp->n[d];
    sp->segment = MIN(run, PART);
    sp->segments = (run + PART - 1) / PART;
    sp->rows_per_part = sp->segments > 1 ? 1 : MAX(1, PART / MAX(run, 1));
    return (sp->rows + sp->rows_per_part - 1) / sp->rows_per_part * sp->segments;
}

// Calls run(arg, place of each operand, length) for each run of a part.
typedef void RunFn(const void *arg, const int64_t place[4], int64_t n);
INLINE void space_part(const Space *sp, int64_t part, RunFn *run, const void *arg) {
    int64_t from = part % sp->segments * sp->segment, last = sp->dims - 1;
    int64_t n = MIN(sp->segment, sp->n[last] - from);
    int64_t row = part / sp->segments * sp->rows_per_part;
    int64_t end = MIN(sp->rows, row + sp->rows_per_part), index[MAX_DIMS] = {0}, place[4] = {0};
    for (int64_t d = last - 1, r = row; d >= 0; r /= sp->n[d], d--) index[d] = r % sp->n[d];
    for (int i = 0; i < sp->operands; i++) {
        place[i] = from * sp->s[i][last];
        for (int64_t d = 0; d < last; d++) place[i] += index[d] * sp->s[i][d];
    }
    for (; row < end; row++) {
        run(arg, place, n);
        for (int64_t d = last - 1; d >= 0; d--) {
            for (int i = 0; i < sp->operands; i++) place[i] += sp->s[i][d];
            if (++index[d] < sp->n[d]) break;
            for (int i = 0; i < sp->operands; i++) place[i] -= sp->s[i][d] * sp->n[d];
            index[d] = 0;
        }
    }
}

// ---- ewise ------------------------------------------------------------------------------------
typedef struct EwiseJob {
    Space space;
    const TensorRef *t[4]; // x, y, z, o
    EwiseParams p;
} EwiseJob;

// Elements place, place + s, ... of an operand as f32 (the operand's own memory where it is so).
static const float *gather(float *tmp, const TensorRef *t, int64_t place, int64_t s, int64_t n) {
    const char *from = at(t, place);
    if (s == 1) return row_view(tmp, t->dtype, from, n);
    if (s == 0) {
        float v = dtype_load(t->dtype, from, 0);
        for (int64_t i = 0; i < n; i++) tmp[i] = v;
    } else {
        for (int64_t i = 0; i < n; i++) tmp[i] = dtype_load(t->dtype, from, (size_t)(i * s));
    }
    return tmp;
}

INLINE vf ewise_value(const EwiseParams *p, uint32_t kind, uint32_t act, vf x, vf y, vf z) {
    switch (kind) {
    case EW_SCALE: return p->alpha * x + p->beta;
    case EW_ACT: return vact(act, x);
    case EW_ACT_BWD: return y * vslope(act, x);
    case EW_ADD: return x + y;
    case EW_SUB: return x - y;
    case EW_MUL: return x * y;
    case EW_DIV: return x / y;
    case EW_MULADD: return x * y + z;
    case EW_MODULATE: return x * (1.0f + y) + z;
    case EW_SQUARE: return x * x;
    case EW_CLAMP:
        return vselect(x < p->alpha, vset(MIN(p->alpha, p->beta)),
                       vselect(x > p->beta, vset(p->beta), x));
    case EW_EXP: return vexp(x);
    default: return vsqrt(x);
    }
}

// One block; kind and act are constants here, so that each pair compiles to its own loop.
INLINE void ewise_loop(const EwiseParams *p, uint32_t kind, uint32_t act, const float *x,
                       const float *y, const float *z, float *o, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W)
        vstore(o + i, ewise_value(p, kind, act, vload(x + i), vload(y + i), vload(z + i)));
    if (i < n)
        vstore_n(o + i, ewise_value(p, kind, act, vload_n(x + i, n - i), vload_n(y + i, n - i),
                                    vload_n(z + i, n - i)), n - i);
}

static void ewise_block(const EwiseParams *p, const float *x, const float *y, const float *z,
                        float *o, int64_t n) {
    switch (p->kind) {
#define KIND(kind) case kind: ewise_loop(p, kind, 0, x, y, z, o, n); return;
    KIND(EW_SCALE) KIND(EW_ADD) KIND(EW_SUB) KIND(EW_MUL) KIND(EW_DIV) KIND(EW_MULADD)
    KIND(EW_MODULATE) KIND(EW_SQUARE) KIND(EW_CLAMP) KIND(EW_EXP) KIND(EW_SQRT)
#undef KIND
    }
    for (int64_t i = 0; p->act == ACT_GELU_ERF && i < n; i++) {
        double v = p->kind == EW_ACT ? act_value(p->act, x[i]) : y[i] * act_slope(p->act, x[i]);
        o[i] = (float)v;
    }
    switch (p->act) {
#define KIND(act)                                                  \
    case act:                                                      \
        if (p->kind == EW_ACT) ewise_loop(p, EW_ACT, act, x, y, z, o, n); \
        else ewise_loop(p, EW_ACT_BWD, act, x, y, z, o, n);        \
        return;
    KIND(ACT_NONE) KIND(ACT_SILU) KIND(ACT_GELU) KIND(ACT_QUICK_GELU) KIND(ACT_RELU)
    KIND(ACT_TANH) KIND(ACT_SIGMOID)
#undef KIND
    }
}

static void ewise_run(const void *arg, const int64_t place[4], int64_t n) {
    const EwiseJob *j = arg;
    const TensorRef *o = j->t[3];
    float tmp[3][BLOCK], out[BLOCK];
    int last = j->space.dims - 1, size = dtype_size(o->dtype);
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t len = MIN(BLOCK, n - i);
        const float *in[3];
        for (int k = 0; k < 3; k++) {
            int64_t s = j->space.s[k][last];
            in[k] = has(j->t[k]) ? gather(tmp[k], j->t[k], place[k] + i * s, s, len) : in[0];
        }
        int64_t so = j->space.s[3][last];
        char *to = at(o, place[3] + i * so);
        bool direct = o->dtype == DT_F32 && (so == 1 || len == 1);
        ewise_block(&j->p, in[0], in[1], in[2], direct ? (float *)to : out, len);
        if (direct) continue;
        if (so == 1 || len == 1) {
            row_store(o->dtype, to, out, len);
            continue;
        }
        for (int64_t k = 0; k < len; k++) dtype_store(o->dtype, to + k * so * size, 0, out[k]);
    }
}

static void ewise_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const EwiseJob *j = arg;
    space_part(&j->space, part, ewise_run, j);
}

void FN(ewise)(Cpu *cpu, const OpCall *c) {
    EwiseJob j = {.t = {&c->t[ewise_x], &c->t[ewise_y], &c->t[ewise_z], &c->t[ewise_o]},
                  .p = c->params.ewise};
    j.space = space_of(j.t, 4, j.t[3]);
    pool_run(cpu->pool, space_parts(&j.space), ewise_part, &j);
}

// ---- copy -------------------------------------------------------------------------------------
typedef struct CopyJob {
    Space space;
    const TensorRef *t[2];
} CopyJob;

static void copy_run(const void *arg, const int64_t place[4], int64_t n) {
    const CopyJob *j = arg;
    const TensorRef *x = j->t[0], *y = j->t[1];
    int last = j->space.dims - 1, size = dtype_size(x->dtype);
    int64_t sx = j->space.s[0][last], sy = j->space.s[1][last];
    const char *from = at(x, place[0]);
    char *to = at(y, place[1]);
    bool same = x->dtype == y->dtype;
    if (n == 1) sx = sy = 1;
    if (sx == 1 && sy == 1 && same) {
        memcpy(to, from, (size_t)(n * size));
    } else if (same && size == 4) {
        for (int64_t i = 0; i < n; i++) memcpy(to + i * sy * 4, from + i * sx * 4, 4);
    } else if (same && size == 2) {
        for (int64_t i = 0; i < n; i++) memcpy(to + i * sy * 2, from + i * sx * 2, 2);
    } else if (same) {
        for (int64_t i = 0; i < n; i++)
            memcpy(to + i * sy * size, from + i * sx * size, (size_t)size);
    } else {
        float tmp[BLOCK];
        for (int64_t i = 0; i < n; i += BLOCK) {
            int64_t len = MIN(BLOCK, n - i);
            const float *v = gather(tmp, x, place[0] + i * sx, sx, len);
            char *out = at(y, place[1] + i * sy);
            if (sy == 1) {
                row_store(y->dtype, out, v, len);
                continue;
            }
            for (int64_t k = 0; k < len; k++)
                dtype_store(y->dtype, out, (size_t)(k * sy), v[k]);
        }
    }
}

static void copy_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const CopyJob *j = arg;
    space_part(&j->space, part, copy_run, j);
}

void FN(copy)(Cpu *cpu, const OpCall *c) {
    CopyJob j = {.t = {&c->t[copy_x], &c->t[copy_y]}};
    j.space = space_of(j.t, 2, j.t[1]);
    space_inner(&j.space, 1);
    pool_run(cpu->pool, space_parts(&j.space), copy_part, &j);
}
