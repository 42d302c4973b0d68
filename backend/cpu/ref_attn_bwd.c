// ref_attn_bwd.c: the oracle of ops/attn_bwd.h: P is rebuilt from q, k and lse, one row at a time.
#include "backend/cpu/ref.h"

#include <math.h>

typedef struct Grad {
    View q, k, v, mask, y, lse, dy;
    int64_t T, S, D;
    double scale;
    bool causal;
    double *qf, *kf, *vf, *dyf; // [T, D], [S, D], [S, D], [T, D] of one head
    double *dq, *dk, *dv;       // their gradients
} Grad;

static void gather(const View *x, int64_t b, int64_t h, int64_t rows, int64_t D, double *out) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < D; d++) out[i * D + d] = view_get(x, b, i, h, d);
}

static void put(const View *x, int64_t b, int64_t h, int64_t rows, int64_t D, const double *in) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < D; d++) view_put(x, b, i, h, d, in[i * D + d]);
}

// Adds query row t of head h to dq, dk and dv.
static void row(const Grad *g, int64_t b, int64_t h, int64_t t) {
    const double *q = g->qf + t * g->D, *dy = g->dyf + t * g->D;
    double lse = view_get(&g->lse, 0, b, h, t), delta = 0;
    for (int64_t d = 0; d < g->D; d++) delta += dy[d] * view_get(&g->y, b, t, h, d);
    for (int64_t s = 0; s < g->S; s++) {
        const double *k = g->kf + s * g->D, *v = g->vf + s * g->D;
        double dot = 0, dp = 0;
        for (int64_t d = 0; d < g->D; d++) dot += q[d] * k[d], dp += dy[d] * v[d];
        double score = dot * g->scale + (g->mask.data ? view_get(&g->mask, b, h, t, s) : 0);
        if (g->causal && s > t + g->S - g->T) score = -INFINITY;
        if (score == -INFINITY) continue; // P is 0, also in a row with every key masked
        double P = exp(score - lse), dS = P * (dp - delta) * g->scale;
        for (int64_t d = 0; d < g->D; d++) {
            g->dq[t * g->D + d] += dS * k[d];
            g->dk[s * g->D + d] += dS * q[d];
            g->dv[s * g->D + d] += P * dy[d];
        }
    }
}

void ref_attn_bwd(const OpCall *c) {
    const AttnBwdParams *p = &c->params.attn_bwd;
    const TensorRef *t = c->t;
    Grad g = {.q = ref_view(&t[attn_bwd_q]), .k = ref_view(&t[attn_bwd_k]),
              .v = ref_view(&t[attn_bwd_v]), .mask = ref_view(&t[attn_bwd_mask]),
              .y = ref_view(&t[attn_bwd_y]), .lse = ref_view(&t[attn_bwd_lse]),
              .dy = ref_view(&t[attn_bwd_dy]), .causal = p->causal};
    View dq = ref_view(&t[attn_bwd_dq]), dk = ref_view(&t[attn_bwd_dk]);
    View dv = ref_view(&t[attn_bwd_dv]);
    int64_t B = g.q.n[0], H = g.q.n[2], Hk = g.k.n[2], group = H / Hk;
    int64_t T = g.T = g.q.n[1], D = g.D = g.q.n[3], S = g.S = g.k.n[1];
    g.scale = p->scale == 0 ? 1 / sqrt((double)D) : p->scale;
    double *all = MEM_ARRAY(NULL, double, 3 * T * D + 4 * S * D);
    g.qf = all, g.dyf = g.qf + T * D, g.dq = g.dyf + T * D;
    g.kf = g.dq + T * D, g.vf = g.kf + S * D, g.dk = g.vf + S * D, g.dv = g.dk + S * D;
    for (int64_t b = 0; b < B; b++)
        for (int64_t hk = 0; hk < Hk; hk++) {
            gather(&g.k, b, hk, S, D, g.kf);
            gather(&g.v, b, hk, S, D, g.vf);
            memset(g.dk, 0, (size_t)(2 * S * D) * sizeof(double)); // dk and dv
            for (int64_t h = hk * group; h < (hk + 1) * group; h++) {
                gather(&g.q, b, h, T, D, g.qf);
                gather(&g.dy, b, h, T, D, g.dyf);
                memset(g.dq, 0, (size_t)(T * D) * sizeof(double));
                for (int64_t i = 0; i < T && !ref_cancelled(c); i++) row(&g, b, h, i);
                put(&dq, b, h, T, D, g.dq);
            }
            put(&dk, b, hk, S, D, g.dk);
            put(&dv, b, hk, S, D, g.dv);
        }
    mem_free(all);
}
