// ref_gemm.c: the oracle of ops/gemm.h.
#include "backend/cpu/ref.h"

enum { ROWS = 32 }; // rows of w held as f64 at a time: saves converting x once per output column

// acc[m, j] += sum over k of x[m, k] w[n0 + j, k]
static void product(const OpCall *c, const View *x, const View *w, bool trans_x, bool trans_w,
                    int64_t b, int64_t n0, int64_t rows, double *acc) {
    int64_t M = x->n[trans_x ? 3 : 2], K = x->n[trans_x ? 2 : 3];
    double *wf = MEM_ARRAY(NULL, double, rows * K), *xf = MEM_ARRAY(wf, double, K);
    for (int64_t j = 0; j < rows; j++)
        for (int64_t k = 0; k < K; k++)
            wf[j * K + k] = trans_w ? view_get(w, 0, b, k, n0 + j) : view_get(w, 0, b, n0 + j, k);
    for (int64_t m = 0; m < M && !ref_cancelled(c); m++) {
        for (int64_t k = 0; k < K; k++)
            xf[k] = trans_x ? view_get(x, 0, b, k, m) : view_get(x, 0, b, m, k);
        for (int64_t j = 0; j < rows; j++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++) sum += xf[k] * wf[j * K + k];
            acc[m * ROWS + j] += sum;
        }
    }
    mem_free(wf);
}

void ref_gemm(const OpCall *c) {
    const GemmParams *p = &c->params.gemm;
    View x = ref_view(&c->t[gemm_x]), w = ref_view(&c->t[gemm_w]);
    View x2 = ref_view(&c->t[gemm_x2]), w2 = ref_view(&c->t[gemm_w2]);
    View bias = ref_view(&c->t[gemm_bias]), gate = ref_view(&c->t[gemm_gate]);
    View residual = ref_view(&c->t[gemm_residual]), y = ref_view(&c->t[gemm_y]);
    int64_t B = y.n[1], M = y.n[2], N = y.n[3];
    double *acc = MEM_ARRAY(NULL, double, M * ROWS);
    for (int64_t b = 0; b < B; b++)
        for (int64_t n0 = 0; n0 < N && !ref_cancelled(c); n0 += ROWS) {
            int64_t rows = MIN(ROWS, N - n0);
            memset(acc, 0, (size_t)(M * ROWS) * sizeof *acc);
            product(c, &x, &w, p->trans_x, p->trans_w, b, n0, rows, acc);
            if (x2.data) product(c, &x2, &w2, false, false, b, n0, rows, acc);
            for (int64_t m = 0; m < M; m++)
                for (int64_t n = n0; n < n0 + rows; n++) {
                    double v = acc[m * ROWS + n - n0];
                    if (bias.data) v += view_get(&bias, 0, 0, 0, n);
                    v = act_value(p->act, v);
                    if (gate.data) v *= view_get(&gate, 0, b, m, n);
                    if (residual.data) v += view_get(&residual, 0, b, m, n);
                    view_put(&y, 0, b, m, n, v);
                }
        }
    mem_free(acc);
}
