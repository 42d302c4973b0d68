// simd_attn.h: attention and its gradient in blocks of queries and keys (Dao et al. 2022), on a
// small matrix product of its own: heads are too narrow for a library's.
//
// Blocks are f32 in a thread's scratch, columns padded to whole vectors with zeros.

enum { QB = 64, KB = 128 }; // queries and keys of a block
enum { NV_MAX = W == 16 ? 4 : 2, MR_MAX = 8 };

INLINE int64_t pad(int64_t n) { return (n + W - 1) / W * W; }

// c [mr, nv W] (+)= sum over k of a(m, k) b[k, :], a(m, k) = a[m am + k ak]
INLINE void mm_tile(int mr, int nv, float *c, int64_t ldc, const float *a, int64_t am, int64_t ak,
                    const float *b, int64_t ldb, int64_t K, bool add) {
    vf s[MR_MAX][NV_MAX];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) s[i][j] = add ? vload(c + i * ldc + j * W) : vset(0);
    for (int64_t k = 0; k < K; k++) {
        vf bv[NV_MAX];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) bv[j] = vload(b + k * ldb + j * W);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            float x = a[i * am + k * ak];
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) s[i][j] += x * bv[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) vstore(c + i * ldc + j * W, s[i][j]);
}

#define MM_COLUMNS(name, nv, mr)                                                                  \
    static void name(float *c, int64_t ldc, const float *a, int64_t am, int64_t ak,               \
                     const float *b, int64_t ldb, int64_t M, int64_t K, bool add) {               \
        int64_t m = 0;                                                                            \
        for (; m + mr <= M; m += mr)                                                              \
            mm_tile(mr, nv, c + m * ldc, ldc, a + m * am, am, ak, b, ldb, K, add);                \
        for (; m + 4 <= M; m += 4)                                                                \
            mm_tile(4, nv, c + m * ldc, ldc, a + m * am, am, ak, b, ldb, K, add);                 \
        for (; m < M; m++) mm_tile(1, nv, c + m * ldc, ldc, a + m * am, am, ak, b, ldb, K, add);  \
    }
MM_COLUMNS(mm_wide, NV_MAX, 6)
MM_COLUMNS(mm_two, 2, 6)
MM_COLUMNS(mm_one, 1, 8)

// c [M, N] (+)= a b; N is a multiple of W
static void mm(float *c, int64_t ldc, const float *a, int64_t am, int64_t ak, const float *b,
               int64_t ldb, int64_t M, int64_t N, int64_t K, bool add) {
    int64_t n = 0;
    for (; n + NV_MAX * W <= N; n += NV_MAX * W)
        mm_wide(c + n, ldc, a, am, ak, b + n, ldb, M, K, add);
    for (; n + 2 * W <= N; n += 2 * W) mm_two(c + n, ldc, a, am, ak, b + n, ldb, M, K, add);
    for (; n < N; n += W) mm_one(c + n, ldc, a, am, ak, b + n, ldb, M, K, add);
}

// Rows i0.. of head h of a [B, T, H, D] operand, times `scale`: to [rows, pad(D)].
static void load_rows(float *to, const TensorRef *t, int64_t b, int64_t i0, int64_t h,
                      int64_t rows, float scale) {
    int64_t D = ref_dim(t, 5), ld = pad(D), base = b * stride_of(t, 2) + h * stride_of(t, 4);
    for (int64_t i = 0; i < rows; i++) {
        float *row = to + i * ld;
        row_load(row, t->dtype, at(t, base + (i0 + i) * stride_of(t, 3)), D);
        for (int64_t d = D; d < ld; d++) row[d] = 0;
        if (scale != 1)
            for (int64_t d = 0; d < ld; d += W) vstore(row + d, vload(row + d) * scale);
    }
}

static void store_rows(const TensorRef *t, int64_t b, int64_t i0, int64_t h, int64_t rows,
                       float *from, float scale) {
    int64_t D = ref_dim(t, 5), ld = pad(D), base = b * stride_of(t, 2) + h * stride_of(t, 4);
    for (int64_t i = 0; i < rows; i++) {
        float *row = from + i * ld;
        if (scale != 1)
            for (int64_t d = 0; d < ld; d += W) vstore(row + d, vload(row + d) * scale);
        row_store(t->dtype, at(t, base + (i0 + i) * stride_of(t, 3)), row, D);
    }
}

// from [rows, pad(D)] to [pad(D), KB]; rows up to pad(rows) must be readable.
static void transpose_rows(float *to, const float *from, int64_t rows, int64_t ld) {
    for (int64_t i = 0; i < rows; i += W)
        for (int64_t d = 0; d < ld; d += W) transpose(to + d * KB + i, KB, from + i * ld + d, ld);
}

typedef struct AttnJob {
    Cpu *cpu;
    const OpCall *c;
    int64_t B, T, H, S, Hk, D, ld, q_blocks;
    float scale;
    bool causal;
} AttnJob;

// Adds the mask to scores of query t and keys k0.. and hides keys that causality or the padding
// hides.
static void mask_row(const AttnJob *j, const TensorRef *mask, int64_t b, int64_t h, int64_t t,
                     int64_t k0, int64_t nk, float *s) {
    float tmp[KB];
    if (has(mask)) {
        int64_t place = b * stride_of(mask, 2) + h * stride_of(mask, 3) + t * stride_of(mask, 4);
        row_load(tmp, mask->dtype, at(mask, place + k0), nk);
        for (int64_t i = 0; i < nk; i++) s[i] += tmp[i];
    }
    int64_t seen = j->causal ? MIN(nk, t + j->S - j->T - k0 + 1) : nk;
    for (int64_t i = MAX(seen, 0); i < pad(nk); i++) s[i] = -INFINITY;
}

// One row of a block: the running maximum m and sum l, s becomes exp(s - m); returns the factor
// that earlier results shrink by.
static float softmax_row(float *s, int64_t n, float *m, float *l, bool first) {
    vf top = vload(s);
    for (int64_t i = W; i < n; i += W) top = vmax(top, vload(s + i));
    float max = vmaximum(top), shrink = 1;
    if (!first) max = MAX(max, *m);
    float base = max == -INFINITY ? 0 : max; // all masked so far: every weight is 0
    vf sum = vset(0);
    for (int64_t i = 0; i < n; i += W) {
        vf p = vexp(vload(s + i) - base);
        vstore(s + i, p);
        sum += p;
    }
    if (!first) shrink = *m == -INFINITY ? 0 : expf(*m - base);
    *l = (first ? 0 : *l * shrink) + vsum(sum);
    *m = max;
    return shrink;
}

static void attn_part(void *arg, int64_t part, int thread) {
    const AttnJob *j = arg;
    const TensorRef *t = j->c->t, *lse = &t[attn_lse];
    int64_t q0 = part % j->q_blocks * QB, h = part / j->q_blocks % j->H;
    int64_t b = part / j->q_blocks / j->H, hk = h / (j->H / j->Hk), ld = j->ld;
    int64_t nq = MIN(QB, j->T - q0);
    float *q = cpu_scratch(j->cpu, thread), *rows = q + QB * ld, *kt = rows + KB * ld;
    float *s = kt + KB * ld, *o = s + QB * KB, m[QB], l[QB];
    load_rows(q, &t[attn_q], b, q0, h, nq, j->scale);
    int64_t keys = j->causal ? MIN(j->S, q0 + nq + j->S - j->T) : j->S;
    for (int64_t k0 = 0; k0 < MAX(keys, 1); k0 += KB) {
        int64_t nk = MIN(KB, j->S - k0);
        load_rows(rows, &t[attn_k], b, k0, hk, nk, 1);
        transpose_rows(kt, rows, nk, ld);
        mm(s, KB, q, ld, 1, kt, KB, nq, pad(nk), j->D, false);
        for (int64_t i = 0; i < nq; i++) {
            mask_row(j, &t[attn_mask], b, h, q0 + i, k0, nk, s + i * KB);
            float shrink = softmax_row(s + i * KB, pad(nk), &m[i], &l[i], k0 == 0);
            if (k0 && shrink != 1)
                for (int64_t d = 0; d < ld; d += W)
                    vstore(o + i * ld + d, vload(o + i * ld + d) * shrink);
        }
        load_rows(rows, &t[attn_v], b, k0, hk, nk, 1);
        mm(o, ld, s, KB, 1, rows, ld, nq, ld, nk, k0 > 0);
    }
    for (int64_t i = 0; i < nq; i++) {
        bool masked = m[i] == -INFINITY && l[i] == 0; // a NaN is not a masked row
        float inv = masked ? 0 : 1 / l[i];
        for (int64_t d = 0; d < ld; d += W)
            vstore(o + i * ld + d, masked ? vset(0) : vload(o + i * ld + d) * inv);
        *(float *)at(lse, b * stride_of(lse, 3) + h * stride_of(lse, 4) + q0 + i) =
            masked ? -INFINITY : m[i] + logf(l[i]);
    }
    store_rows(&t[attn_y], b, q0, h, nq, o, 1);
}

static AttnJob attn_job(Cpu *cpu, const OpCall *c, float scale, bool causal) {
    const TensorRef *q = &c->t[0], *k = &c->t[1]; // the same places in attn and attn_bwd
    AttnJob j = {.cpu = cpu, .c = c, .B = ref_dim(q, 2), .T = ref_dim(q, 3), .H = ref_dim(q, 4),
                 .D = ref_dim(q, 5), .S = ref_dim(k, 3), .Hk = ref_dim(k, 4), .causal = causal};
    j.ld = pad(j.D);
    j.q_blocks = (j.T + QB - 1) / QB;
    j.scale = scale == 0 ? (float)(1 / sqrt((double)j.D)) : scale;
    return j;
}

void FN(attn)(Cpu *cpu, const OpCall *c) {
    AttnJob j = attn_job(cpu, c, c->params.attn.scale, c->params.attn.causal);
    pool_run(cpu->pool, j.B * j.H * j.q_blocks, attn_part, &j);
}

// ---- gradient ---------------------------------------------------------------------------------
// A thread's scratch: one block of queries and of keys, sums for all keys of a head.
typedef struct GradBlocks {
    float *q, *dy, *y, *dq;          // [QB, ld]; q scaled
    float *k, *kt, *vt, *p, *dp;     // [KB, ld], [ld, KB] twice, [QB, KB] twice
    float *dk, *dv;                  // [S, ld]
    float delta[QB], lse[QB];
} GradBlocks;

// Scores to P (in p) and dS (in dp) for query row i of the block.
static void grad_row(GradBlocks *g, int64_t i, int64_t n) {
    float *p = g->p + i * KB, *dp = g->dp + i * KB;
    for (int64_t k = 0; k < n; k += W) {
        vf w = g->lse[i] == -INFINITY ? vset(0) : vexp(vload(p + k) - g->lse[i]);
        vstore(p + k, w);
        vstore(dp + k, w * (vload(dp + k) - g->delta[i]));
    }
}

static void grad_block(const AttnJob *j, GradBlocks *g, int64_t b, int64_t h, int64_t q0,
                       int64_t nq) {
    const TensorRef *t = j->c->t, *lse = &t[attn_bwd_lse];
    int64_t ld = j->ld, hk = h / (j->H / j->Hk);
    load_rows(g->q, &t[attn_bwd_q], b, q0, h, nq, j->scale);
    load_rows(g->dy, &t[attn_bwd_dy], b, q0, h, nq, 1);
    load_rows(g->y, &t[attn_bwd_y], b, q0, h, nq, 1);
    for (int64_t i = 0; i < nq; i++) {
        vf sum = vset(0);
        for (int64_t d = i * ld; d < (i + 1) * ld; d += W)
            sum += vload(g->dy + d) * vload(g->y + d);
        g->delta[i] = vsum(sum);
        g->lse[i] = *(float *)at(lse, b * stride_of(lse, 3) + h * stride_of(lse, 4) + q0 + i);
    }
    int64_t keys = j->causal ? MIN(j->S, q0 + nq + j->S - j->T) : j->S;
    for (int64_t k0 = 0; k0 < MAX(keys, 1); k0 += KB) {
        int64_t nk = MIN(KB, j->S - k0);
        if (k0 || j->S > KB || q0 == 0) { // else the only block of keys is there already
            load_rows(g->k, &t[attn_bwd_v], b, k0, hk, nk, 1);
            transpose_rows(g->vt, g->k, nk, ld);
            load_rows(g->k, &t[attn_bwd_k], b, k0, hk, nk, 1);
            transpose_rows(g->kt, g->k, nk, ld);
        }
        mm(g->p, KB, g->q, ld, 1, g->kt, KB, nq, pad(nk), j->D, false);
        mm(g->dp, KB, g->dy, ld, 1, g->vt, KB, nq, pad(nk), j->D, false);
        for (int64_t i = 0; i < nq; i++) {
            mask_row(j, &t[attn_bwd_mask], b, h, q0 + i, k0, nk, g->p + i * KB);
            grad_row(g, i, pad(nk));
        }
        mm(g->dv + k0 * ld, ld, g->p, 1, KB, g->dy, ld, nk, ld, nq, true);
        mm(g->dk + k0 * ld, ld, g->dp, 1, KB, g->q, ld, nk, ld, nq, true);
        mm(g->dq, ld, g->dp, KB, 1, g->k, ld, nq, ld, nk, k0 > 0);
    }
    store_rows(&t[attn_bwd_dq], b, q0, h, nq, g->dq, j->scale);
}

// All queries of the heads that share key head hk.
static void attn_bwd_part(void *arg, int64_t part, int thread) {
    const AttnJob *j = arg;
    const TensorRef *t = j->c->t;
    int64_t b = part / j->Hk, hk = part % j->Hk, group = j->H / j->Hk, ld = j->ld;
    GradBlocks g;
    float *space = cpu_scratch(j->cpu, thread);
    float **const blocks[] = {&g.q, &g.dy, &g.y, &g.dq, &g.k, &g.kt, &g.vt};
    for (size_t i = 0; i < COUNT_OF(blocks); i++) *blocks[i] = space, space += MAX(QB, KB) * ld;
    g.p = space, g.dp = g.p + QB * KB, g.dk = g.dp + QB * KB, g.dv = g.dk + j->S * ld;
    memset(g.dk, 0, (size_t)(2 * j->S * ld) * sizeof(float)); // dk and dv
    for (int64_t h = hk * group; h < (hk + 1) * group; h++)
        for (int64_t q0 = 0; q0 < j->T; q0 += QB)
            grad_block(j, &g, b, h, q0, MIN(QB, j->T - q0));
    store_rows(&t[attn_bwd_dk], b, 0, hk, j->S, g.dk, 1);
    store_rows(&t[attn_bwd_dv], b, 0, hk, j->S, g.dv, 1);
}

void FN(attn_bwd)(Cpu *cpu, const OpCall *c) {
    AttnJob j = attn_job(cpu, c, c->params.attn_bwd.scale, c->params.attn_bwd.causal);
    pool_run(cpu->pool, j.B * j.Hk, attn_bwd_part, &j);
}
