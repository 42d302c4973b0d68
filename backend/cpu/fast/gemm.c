// gemm.c: the partition and epilogue of all matrix product rows, and the row on OpenBLAS: parts
// run on the pool's threads, each a single-threaded call, so that the library's threads and ours
// never compete and the bits do not depend on their number.
#include "backend/cpu/fast/gemm.h"

#include <cblas.h>

static int64_t stride_of(const TensorRef *t, int d) {
    return ref_dim(t, d) == 1 ? 0 : ref_stride(t, d);
}

// Strides of single rows or columns are free: the smallest that a BLAS takes.
static void tidy(int64_t *sr, int64_t *sc, int64_t rows, int64_t cols) {
    if (cols == 1) *sc = 1;
    if (rows == 1) *sr = *sc == 1 ? cols : 1;
}

static Segment segment_of(const OpCall *c, int x, int w, bool tx, bool tw, int64_t M, int64_t N) {
    Segment s = {.x = &c->t[x], .w = &c->t[w]};
    s.K = ref_dim(s.x, tx ? 4 : 5);
    s.xb = stride_of(s.x, 3), s.xr = stride_of(s.x, tx ? 5 : 4), s.xk = stride_of(s.x, tx ? 4 : 5);
    s.wb = stride_of(s.w, 3), s.wk = stride_of(s.w, tw ? 4 : 5), s.wn = stride_of(s.w, tw ? 5 : 4);
    tidy(&s.wk, &s.wn, s.K, N);
    (void)M;
    return s;
}

// Can the batches of x be read as more rows?
static bool folds(const GemmJob *j, int64_t M) {
    for (int i = 0; i < j->segments; i++) {
        const Segment *s = &j->seg[i];
        if (ref_dim(s->w, 3) != 1 || (M > 1 && s->xb != M * s->xr)) return false;
    }
    const TensorRef *y = &j->c->t[gemm_y];
    return M == 1 || stride_of(y, 3) == M * stride_of(y, 4);
}

// Parts: by shape alone. A transposed x (gradients of weights: few outputs, long sums) is packed
// anew by every part, so those are larger; an odd number of them would leave a thread idle.
static void cut(GemmJob *j, bool trans_x) {
    j->mb = MIN(j->R, 256);
    j->nb = MIN(j->N, trans_x ? 512 : 256);
    if (!trans_x && j->R * j->N <= 64 * 512) j->nb = MIN(j->nb, 64); // few parts: smaller ones
    j->row_blocks = (j->R + j->mb - 1) / j->mb;
    j->col_blocks = (j->N + j->nb - 1) / j->nb;
    if (trans_x && (j->row_blocks * j->col_blocks & 1) && j->R >= 64) {
        j->mb = (int64_t)align_up((uint64_t)(j->R / (j->row_blocks + 1)), 32);
        j->row_blocks = (j->R + j->mb - 1) / j->mb;
    }
}

void gemm_setup(GemmJob *j, Cpu *cpu, const OpCall *c) {
    const TensorRef *t = c->t, *y = &t[gemm_y];
    const GemmParams *p = &c->params.gemm;
    int64_t B = ref_dim(y, 3), M = ref_dim(y, 4);
    *j = (GemmJob){.cpu = cpu, .c = c, .B = B, .R = M, .N = ref_dim(y, 5), .segments = 1};
    j->seg[0] = segment_of(c, gemm_x, gemm_w, p->trans_x, p->trans_w, M, j->N);
    if (ref_has(&t[gemm_x2]))
        j->seg[j->segments++] = segment_of(c, gemm_x2, gemm_w2, false, false, M, j->N);
    if (B > 1 && !p->trans_x && folds(j, M)) {
        j->folded = true, j->B = 1, j->R = B * M;
        for (int i = 0; i < j->segments; i++)
            if (M == 1) j->seg[i].xr = j->seg[i].xb;
    }
    for (int i = 0; i < j->segments; i++) tidy(&j->seg[i].xr, &j->seg[i].xk, j->R, j->seg[i].K);
    cut(j, p->trans_x);
    bool rest = ref_has(&t[gemm_bias]) || ref_has(&t[gemm_gate]) || ref_has(&t[gemm_residual]) ||
                p->act != ACT_NONE;
    // In place where y's rows are f32 and regular.
    int64_t ys = j->folded && M == 1 ? stride_of(y, 3) : stride_of(y, 4);
    j->direct = y->dtype == DT_F32 && (j->R == 1 || ys >= j->N);
    j->plain = j->direct && !rest;
    bool wide = cpu->features & NEED_AVX512, avx2 = cpu->features & NEED_AVX2;
    j->epilogue = wide ? gemm_epilogue_avx512 : avx2 ? gemm_epilogue_avx2 : gemm_epilogue_plain;
    j->pack = wide ? pack_f32_avx512 : avx2 ? pack_f32_avx2 : pack_f32_plain;
}

GemmPart gemm_part(const GemmJob *j, int64_t b, int64_t col, int64_t row, int thread) {
    GemmPart p = {.b = b, .m0 = row * j->mb, .n0 = col * j->nb};
    p.rows = MIN(j->mb, j->R - p.m0);
    p.cols = MIN(j->nb, j->N - p.n0);
    p.acc = cpu_scratch(j->cpu, thread);
    p.ld = j->nb;
    if (j->direct) {
        const TensorRef *y = &j->c->t[gemm_y];
        p.ld = stride_of(y, ref_dim(y, 4) == 1 ? 3 : 4);
        if (!j->folded) p.ld = stride_of(y, 4);
        if (j->R == 1) p.ld = j->N;
        p.acc = (float *)gemm_at(y, b * stride_of(y, 3) + p.m0 * p.ld + p.n0);
    }
    return p;
}

void gemm_finish(const GemmJob *j, const GemmPart *p) {
    if (!j->plain)
        j->epilogue(j->c, p->b, j->folded, p->m0, p->rows, p->n0, p->cols, p->acc, p->ld);
}

static bool gate_full(const OpCall *c, char why[128]) {
    const TensorRef *gate = &c->t[gemm_gate];
    if (!gate->buffer || ref_dim(gate, 5) == ref_dim(&c->t[gemm_y], 5)) return true;
    snprintf(why, 128, "a gate that broadcasts over columns");
    return false;
}

// ---- OpenBLAS ---------------------------------------------------------------------------------

enum { PANEL = 512 }; // k of a converted panel

// acc (+)= x w for one part and segment, operands as they lie.
static void blas_direct(const Segment *s, const GemmPart *p, bool add) {
    bool xt = s->xk != 1 || s->xr < s->K, wt = s->wn != 1;
    const float *x = (const float *)gemm_at(s->x, p->b * s->xb + p->m0 * s->xr);
    const float *w = (const float *)gemm_at(s->w, p->b * s->wb + p->n0 * s->wn);
    cblas_sgemm(CblasRowMajor, xt ? CblasTrans : CblasNoTrans, wt ? CblasTrans : CblasNoTrans,
                (int)p->rows, (int)p->cols, (int)s->K, 1, x, (int)(xt ? s->xk : s->xr), w,
                (int)(wt ? s->wn : s->wk), add ? 1 : 0, p->acc, (int)p->ld);
}

// The same for any types and strides: panels of both operands converted to f32.
static void blas_panels(const GemmJob *j, const Segment *s, const GemmPart *p, bool add,
                        int thread) {
    float *x = (float *)((char *)cpu_scratch(j->cpu, thread) + ACC_BYTES);
    float *w = x + j->mb * PANEL;
    for (int64_t k0 = 0; k0 < s->K; k0 += PANEL) {
        int64_t n = MIN(PANEL, s->K - k0);
        bool xt = s->xr == 1 && s->xk != 1; // panels keep the direction in which memory runs
        const int64_t from = p->b * s->xb + p->m0 * s->xr + k0 * s->xk;
        if (xt) j->pack(x, s->x, from, s->xk, s->xr, n, p->rows);
        else j->pack(x, s->x, from, s->xr, s->xk, p->rows, n);
        const int64_t at = p->b * s->wb + p->n0 * s->wn + k0 * s->wk;
        if (s->wn == 1) j->pack(w, s->w, at, s->wk, s->wn, n, p->cols);
        else j->pack(w, s->w, at, s->wn, s->wk, p->cols, n);
        cblas_sgemm(CblasRowMajor, xt ? CblasTrans : CblasNoTrans,
                    s->wn == 1 ? CblasNoTrans : CblasTrans, (int)p->rows, (int)p->cols, (int)n, 1,
                    x, (int)(xt ? p->rows : n), w,
                    (int)(s->wn == 1 ? p->cols : n), add || k0 ? 1 : 0, p->acc, (int)p->ld);
    }
}

// Layers of large models in f32: OpenBLAS packs the weights as it goes, in parts much larger than
// oneDNN's primitives take (768 x 3072 x 3072: 0.8 of OpenBLAS's own speed there).
static bool is_large(const GemmJob *j) {
    const Segment *s = &j->seg[0];
    return j->segments == 1 && j->direct && s->x->dtype == DT_F32 && s->w->dtype == DT_F32 &&
           s->xk == 1 && s->wk == 1 && s->K >= 1024 && j->N >= 1024 && j->R >= 128;
}
static void cut_large(GemmJob *j) {
    j->mb = MIN(j->R, 1024);
    j->nb = 512;
    j->row_blocks = (j->R + j->mb - 1) / j->mb;
    j->col_blocks = (j->N + j->nb - 1) / j->nb;
}

static void blas_part(void *arg, int64_t part, int thread) {
    const GemmJob *j = arg;
    int64_t blocks = j->row_blocks * j->col_blocks, i = part % blocks;
    GemmPart p = gemm_part(j, part / blocks, i / j->row_blocks, i % j->row_blocks, thread);
    for (int k = 0; k < j->segments; k++) {
        const Segment *s = &j->seg[k];
        bool f32 = s->x->dtype == DT_F32 && s->w->dtype == DT_F32;
        if (f32 && blas_matrix(s->xr, s->xk, j->R, s->K) && blas_matrix(s->wk, s->wn, s->K, j->N))
            blas_direct(s, &p, k > 0);
        else
            blas_panels(j, s, &p, k > 0, thread);
    }
    gemm_finish(j, &p);
}

void gemm_openblas(Cpu *cpu, const OpCall *c) {
    GemmJob j;
    gemm_setup(&j, cpu, c);
    if (is_large(&j)) cut_large(&j);
    int threads = openblas_get_num_threads(); // the program's setting, put back below
    openblas_set_num_threads(1);
    pool_run(cpu->pool, j.B * j.row_blocks * j.col_blocks, blas_part, &j);
    openblas_set_num_threads(threads);
}

bool fits_gemm_openblas(const OpCall *c, char why[128]) {
    for (int i = 0; i < gemm_operand_count; i++)
        for (int d = 3; d < 6; d++)
            if (c->t[i].buffer && (ref_dim(&c->t[i], d) > INT32_MAX ||
                                   (d > 3 && ref_stride(&c->t[i], d) > INT32_MAX))) {
                snprintf(why, 128, "dimensions past 2^31");
                return false;
            }
    return gate_full(c, why);
}

// ---- oneDNN: what it takes; the rest is in gemm_onednn.c ---------------------------------------
#if HAVE_ONEDNN
static bool fits_onednn(const OpCall *c, DType type, char why[128]) {
    const TensorRef *t = c->t;
    const int operands[] = {gemm_x, gemm_w, gemm_x2, gemm_w2};
    for (int i = 0; i < 4; i++)
        if (t[operands[i]].buffer && t[operands[i]].dtype != type) {
            snprintf(why, 128, "operands that are not all %s", dtype_name(type));
            return false;
        }
    GemmJob j;
    Cpu none = {0};
    gemm_setup(&j, &none, c);
    for (int i = 0; i < j.segments; i++) {
        const Segment *s = &j.seg[i];
        if (blas_matrix(s->xr, s->xk, j.R, s->K) && blas_matrix(s->wk, s->wn, s->K, j.N)) continue;
        snprintf(why, 128, "strides that overlap");
        return false;
    }
    if (is_large(&j)) {
        snprintf(why, 128, "weights as large as these, which OpenBLAS takes faster");
        return false;
    }
    return gate_full(c, why);
}
bool fits_gemm_onednn(const OpCall *c, char why[128]) { return fits_onednn(c, DT_F32, why); }
bool fits_gemm_onednn_bf16(const OpCall *c, char why[128]) { return fits_onednn(c, DT_BF16, why); }
#endif
