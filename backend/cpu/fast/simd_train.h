// simd_train.h: reduce, embed, embed_bwd and adamw.

// ---- reduce -----------------------------------------------------------------------------------
// Sums are cut into chunks of rows whose sums are added in order: the same bits for any number of
// threads, and a smaller error than one long chain.
enum { REDUCE_ROWS = 128, REDUCE_FLAT = 16384, REDUCE_COLS = 128, REDUCE_PARTIALS = 1 << 18 };

typedef struct ReduceJob {
    const OpCall *c;
    int64_t A, R, C, sa, sr; // strides of x
    int64_t blocks;          // column blocks, or chunks of a flat row
    double *partial;         // [A, blocks]
    int64_t rows;            // NONFINITE: rows of a part
    int found;
} ReduceJob;

static void reduce_put(const ReduceJob *j, int64_t a, int64_t col, float sum) {
    const ReduceParams *p = &j->c->params.reduce;
    const TensorRef *y = &j->c->t[reduce_y];
    float *to = (float *)at(y, a * stride_of(y, 3) + col);
    *to = (p->accumulate ? *to : 0) + (p->alpha == 0 ? 1 : p->alpha) * sum;
}

// Sums of a block of columns.
static void reduce_columns_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const ReduceJob *j = arg;
    const TensorRef *x = &j->c->t[reduce_x];
    int64_t a = part / j->blocks, c0 = part % j->blocks * REDUCE_COLS;
    int64_t n = MIN(REDUCE_COLS, j->C - c0);
    float total[REDUCE_COLS] = {0}, tmp[REDUCE_COLS] = {0};
    for (int64_t r0 = 0; r0 < j->R; r0 += REDUCE_ROWS) {
        vf acc[REDUCE_COLS / W] = {{0}};
        for (int64_t r = r0; r < MIN(j->R, r0 + REDUCE_ROWS); r++) {
            const float *v = row_view(tmp, x->dtype, at(x, a * j->sa + r * j->sr + c0), n);
            if (n < REDUCE_COLS && v != tmp) { // whole vectors must be readable
                memcpy(tmp, v, (size_t)n * 4);
                v = tmp;
            }
            for (int i = 0; i < REDUCE_COLS / W; i++) acc[i] += vload(v + i * W);
        }
        for (int i = 0; i < REDUCE_COLS / W; i++)
            vstore(total + i * W, vload(total + i * W) + acc[i]);
    }
    for (int64_t i = 0; i < n; i++) reduce_put(j, a, c0 + i, total[i]);
}

// The sum of one chunk of a contiguous row of R elements.
static void reduce_flat_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const ReduceJob *j = arg;
    const TensorRef *x = &j->c->t[reduce_x];
    int64_t a = part / j->blocks, r = part % j->blocks * REDUCE_FLAT;
    int64_t end = MIN(j->R, r + REDUCE_FLAT);
    double sum = 0;
    float tmp[1024];
    for (; r < end; r += 1024) {
        int64_t n = MIN(1024, end - r);
        sum += (double)sum_row(row_view(tmp, x->dtype, at(x, a * j->sa + r), n), n);
    }
    j->partial[part] = sum;
}

// Looks for a NaN or an infinity in a block of rows, or of a flat tensor; x - x is 0 for finite
// numbers and NaN for all others. Which part finds one does not matter.
static void nonfinite_part(void *arg, int64_t part, int thread) {
    (void)thread;
    ReduceJob *j = arg;
    const TensorRef *x = &j->c->t[reduce_x];
    int64_t a = part / j->blocks, r0 = part % j->blocks * j->rows;
    float tmp[1024];
    for (int64_t r = r0; r < MIN(j->R, r0 + j->rows); r++)
        for (int64_t c = 0; c < j->C; c += 1024) {
            int64_t n = MIN(1024, j->C - c), i = 0;
            const float *v = row_view(tmp, x->dtype, at(x, a * j->sa + r * j->sr + c), n);
            vf bad = vset(0);
            for (; i + W <= n; i += W) bad += vload(v + i) - vload(v + i);
            if (i < n) bad += vload_n(v + i, n - i) - vload_n(v + i, n - i);
            if (vsum(bad) != 0) __atomic_store_n(&j->found, 1, __ATOMIC_RELAXED);
        }
}

static void reduce_nonfinite(Cpu *cpu, ReduceJob *j) {
    float *y = (float *)at(&j->c->t[reduce_y], 0);
    if (j->R == 1) j->R = j->A, j->sr = j->sa, j->A = 1;
    else if (j->A == 1 || j->sa == j->R * j->sr) j->R *= j->A, j->A = 1;
    if (j->A == 1 && (j->sr == j->C || j->R == 1)) { // flat: rows of a chunk each
        int64_t n = j->R * j->C;
        j->R = n / REDUCE_FLAT, j->C = j->sr = REDUCE_FLAT, j->rows = j->blocks = 1;
        if (j->R) j->blocks = j->R, pool_run(cpu->pool, j->R, nonfinite_part, j);
        j->sa = j->R * REDUCE_FLAT, j->A = 2, j->C = n - j->sa, j->R = j->blocks = 1;
        if (j->C) nonfinite_part(j, 1, 0);
    } else {
        j->rows = MAX(1, REDUCE_FLAT / j->C);
        j->blocks = (j->R + j->rows - 1) / j->rows;
        pool_run(cpu->pool, j->A * j->blocks, nonfinite_part, j);
    }
    *y = (j->c->params.reduce.accumulate && *y != 0) || j->found;
}

void FN(reduce)(Cpu *cpu, const OpCall *c) {
    const TensorRef *x = &c->t[reduce_x];
    ReduceJob j = {.c = c, .A = ref_dim(x, 3), .R = ref_dim(x, 4), .C = ref_dim(x, 5),
                   .sa = stride_of(x, 3), .sr = stride_of(x, 4)};
    if (c->params.reduce.kind == REDUCE_NONFINITE) {
        reduce_nonfinite(cpu, &j);
        return;
    }
    j.blocks = (j.R + REDUCE_FLAT - 1) / REDUCE_FLAT;
    bool flat = j.C == 1 && (j.sr == 1 || j.R == 1) && j.A * j.blocks <= REDUCE_PARTIALS;
    if (!flat) {
        j.blocks = (j.C + REDUCE_COLS - 1) / REDUCE_COLS;
        pool_run(cpu->pool, j.A * j.blocks, reduce_columns_part, &j);
        return;
    }
    j.partial = cpu->scratch; // shared: REDUCE_PARTIALS doubles fit one thread's space
    pool_run(cpu->pool, j.A * j.blocks, reduce_flat_part, &j);
    for (int64_t a = 0; a < j.A; a++) {
        double sum = 0;
        for (int64_t i = 0; i < j.blocks; i++) sum += j.partial[a * j.blocks + i];
        reduce_put(&j, a, 0, (float)sum);
    }
}

// ---- embed, embed_bwd -------------------------------------------------------------------------
typedef struct EmbedJob {
    const OpCall *c;
    int64_t N, V, D;
    Cpu *cpu;
} EmbedJob;
enum { EMBED_ROWS = 16, EMBED_COLS = 1024 };

INLINE int32_t id_at(const TensorRef *ids, int64_t n) {
    return *(const int32_t *)at(ids, n * stride_of(ids, 5));
}

static void embed_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const EmbedJob *j = arg;
    const TensorRef *table = &j->c->t[embed_table], *ids = &j->c->t[embed_ids];
    const TensorRef *y = &j->c->t[embed_y];
    float tmp[EMBED_COLS];
    for (int64_t n = part * EMBED_ROWS; n < MIN(j->N, (part + 1) * EMBED_ROWS); n++) {
        int32_t id = id_at(ids, n);
        bool known = id >= 0 && id < j->V;
        for (int64_t d = 0; d < j->D; d += EMBED_COLS) {
            int64_t len = MIN(EMBED_COLS, j->D - d);
            if (known) row_load(tmp, table->dtype, at(table, id * stride_of(table, 4) + d), len);
            else memset(tmp, 0, sizeof tmp);
            row_store(y->dtype, at(y, n * stride_of(y, 4) + d), tmp, len);
        }
    }
}

void FN(embed)(Cpu *cpu, const OpCall *c) {
    EmbedJob j = {.c = c, .N = ref_dim(&c->t[embed_y], 4), .V = ref_dim(&c->t[embed_table], 4),
                  .D = ref_dim(&c->t[embed_y], 5)};
    pool_run(cpu->pool, (j.N + EMBED_ROWS - 1) / EMBED_ROWS, embed_part, &j);
}

// One row of the table's gradient: the gradients of its uses, in their order.
static void embed_bwd_part(void *arg, int64_t v, int thread) {
    (void)thread;
    const EmbedJob *j = arg;
    const TensorRef *dy = &j->c->t[embed_bwd_dy], *ids = &j->c->t[embed_bwd_ids];
    const TensorRef *table = &j->c->t[embed_bwd_dtable];
    float tmp[EMBED_COLS], sum[EMBED_COLS];
    for (int64_t d = 0; d < j->D; d += EMBED_COLS) {
        int64_t len = MIN(EMBED_COLS, j->D - d);
        memset(sum, 0, sizeof sum);
        for (int64_t n = 0; n < j->N; n++) {
            if (id_at(ids, n) != v) continue;
            const float *g = row_view(tmp, dy->dtype, at(dy, n * stride_of(dy, 4) + d), len);
            for (int64_t i = 0; i < len; i++) sum[i] += g[i];
        }
        row_store(table->dtype, at(table, v * stride_of(table, 4) + d), sum, len);
    }
}

void FN(embed_bwd)(Cpu *cpu, const OpCall *c) {
    EmbedJob j = {.c = c, .N = ref_dim(&c->t[embed_bwd_dy], 4),
                  .V = ref_dim(&c->t[embed_bwd_dtable], 4), .D = ref_dim(&c->t[embed_bwd_dy], 5)};
    pool_run(cpu->pool, j.V, embed_bwd_part, &j);
}

// ---- adamw ------------------------------------------------------------------------------------
enum { ADAMW_PART = 16384 };
typedef struct AdamwJob {
    float *p, *m, *v, *ema;
    const TensorRef *g;
    int64_t N;
    float h[ADAMW_HYPER_COUNT];
} AdamwJob;

typedef struct AdamwState { vf p, m, v, e; } AdamwState;
INLINE AdamwState adamw_value(const float *h, AdamwState s, vf g) {
    g *= h[7];
    s.m = h[1] * s.m + (1.0f - h[1]) * g;
    s.v = h[2] * s.v + (1.0f - h[2]) * g * g;
    s.p -= h[0] * h[4] * s.p;
    s.p -= h[0] / h[5] * s.m / (vsqrt(s.v) / sqrtf(h[6]) + h[3]);
    s.e = h[8] * s.e + (1.0f - h[8]) * s.p;
    return s;
}

static void adamw_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const AdamwJob *j = arg;
    float tmp[1024], none[W] = {0};
    int64_t end = MIN(j->N, (part + 1) * ADAMW_PART);
    for (int64_t i = part * ADAMW_PART; i < end; i += 1024) {
        int64_t n = MIN(1024, end - i), k = 0;
        const float *g = row_view(tmp, j->g->dtype, at(j->g, i), n);
        float *p = j->p + i, *m = j->m + i, *v = j->v + i, *e = j->ema ? j->ema + i : NULL;
        for (; k + W <= n; k += W) {
            AdamwState s = {vload(p + k), vload(m + k), vload(v + k), vload(e ? e + k : none)};
            s = adamw_value(j->h, s, vload(g + k));
            vstore(p + k, s.p), vstore(m + k, s.m), vstore(v + k, s.v);
            if (e) vstore(e + k, s.e);
        }
        if (k == n) continue;
        int64_t rest = n - k;
        AdamwState s = {vload_n(p + k, rest), vload_n(m + k, rest), vload_n(v + k, rest),
                        e ? vload_n(e + k, rest) : vset(0)};
        s = adamw_value(j->h, s, vload_n(g + k, rest));
        vstore_n(p + k, s.p, rest), vstore_n(m + k, s.m, rest), vstore_n(v + k, s.v, rest);
        if (e) vstore_n(e + k, s.e, rest);
    }
}

void FN(adamw)(Cpu *cpu, const OpCall *c) {
    const TensorRef *t = c->t;
    if (has(&t[adamw_found_inf]) && *(const float *)at(&t[adamw_found_inf], 0) != 0) return;
    AdamwJob j = {.p = (float *)at(&t[adamw_p], 0), .m = (float *)at(&t[adamw_m], 0),
                  .v = (float *)at(&t[adamw_v], 0), .g = &t[adamw_g],
                  .N = ref_dim(&t[adamw_p], 5)};
    if (has(&t[adamw_ema])) j.ema = (float *)at(&t[adamw_ema], 0);
    memcpy(j.h, at(&t[adamw_hyper], 0), sizeof j.h);
    pool_run(cpu->pool, (j.N + ADAMW_PART - 1) / ADAMW_PART, adamw_part, &j);
}
