// gemm.c: what gemm accepts and what it costs. Semantics: gemm.h.
#include "backend/ops.h"

bool op_check_gemm(const OpCall *c, Error *err) {
    const TensorRef *t = c->t;
    for (int i = 0; i < gemm_operand_count; i++)
        if (!want_rank(c, i, 3, err) || !want_float(c, i, err)) return false;
    int64_t B = t[gemm_y].shape[0], M = t[gemm_y].shape[1], N = t[gemm_y].shape[2];
    const GemmParams *p = &c->params.gemm;
    int64_t K = t[gemm_x].shape[p->trans_x ? 1 : 2];
    int64_t wb = t[gemm_w].shape[0] == 1 ? 1 : B;
    const int64_t x[3] = {B, p->trans_x ? K : M, p->trans_x ? M : K};
    const int64_t w[3] = {wb, p->trans_w ? K : N, p->trans_w ? N : K};
    const int64_t bias[3] = {1, 1, N}, y[3] = {B, M, N};
    if (p->act >= ACT_COUNT)
        return err_failed(err, "gemm: expected act below %d, found %u; this is a defect", ACT_COUNT,
                          p->act);
    if (!t[gemm_x2].buffer != !t[gemm_w2].buffer)
        return err_failed(err, "gemm: expected x2 and w2 together, found one; this is a defect");
    if (t[gemm_x2].buffer) {
        int64_t K2 = t[gemm_x2].shape[2], wb2 = t[gemm_w2].shape[0] == 1 ? 1 : B;
        if (!want_dims(c, gemm_x2, 3, (const int64_t[]){B, M, K2}, err) ||
            !want_dims(c, gemm_w2, 3, (const int64_t[]){wb2, N, K2}, err))
            return false;
    }
    return want_dims(c, gemm_x, 3, x, err) && want_dims(c, gemm_w, 3, w, err) &&
           want_dims(c, gemm_bias, 3, bias, err) && want_broadcast(c, gemm_gate, 3, y, err) &&
           want_dims(c, gemm_residual, 3, y, err);
}

Work op_work_gemm(const OpCall *c) {
    const TensorRef *t = c->t;
    double outputs = (double)ref_count(&t[gemm_y]);
    double k = (double)t[gemm_x].shape[c->params.gemm.trans_x ? 1 : 2];
    if (t[gemm_x2].buffer) k += (double)t[gemm_x2].shape[2];
    Work work = {2 * outputs * k, 0};
    for (int i = 0; i < gemm_operand_count; i++)
        if (t[i].buffer) work.bytes += (double)dtype_bytes(t[i].dtype, (uint64_t)ref_count(&t[i]));
    return work;
}
