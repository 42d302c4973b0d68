// gemm_whole.c: the row "openblas-whole": one call of OpenBLAS's own sgemm on its own threads, for
// plain f32 products. Dispatch never comes to it (gemm.c's row stands before it): it is the
// yardstick that `kiln bench` holds every other matrix product to.
#include "backend/cpu/fast/gemm.h"

#include <cblas.h>

bool fits_gemm_openblas_whole(const OpCall *c, char why[128]) {
    const TensorRef *t = c->t;
    bool plain = c->params.gemm.act == ACT_NONE;
    for (int i = 0; i < gemm_operand_count; i++) {
        if (!t[i].buffer) continue;
        plain = plain && t[i].dtype == DT_F32 && ref_dim(&t[i], 3) == 1 && ref_contiguous(&t[i]) &&
                ref_dim(&t[i], 4) <= INT32_MAX && ref_dim(&t[i], 5) <= INT32_MAX &&
                (i == gemm_x || i == gemm_w || i == gemm_y);
    }
    if (!plain) snprintf(why, 128, "more than one plain contiguous f32 product");
    return plain;
}

void gemm_openblas_whole(Cpu *cpu, const OpCall *c) {
    const GemmParams *p = &c->params.gemm;
    const TensorRef *y = &c->t[gemm_y];
    int M = (int)ref_dim(y, 4), N = (int)ref_dim(y, 5);
    int K = (int)ref_dim(&c->t[gemm_x], p->trans_x ? 4 : 5);
    int threads = openblas_get_num_threads(); // the program's setting, put back below
    openblas_set_num_threads(pool_threads(cpu->pool));
    cblas_sgemm(CblasRowMajor, p->trans_x ? CblasTrans : CblasNoTrans,
                p->trans_w ? CblasNoTrans : CblasTrans, M, N, K, 1, ref_data(&c->t[gemm_x]),
                p->trans_x ? M : K, ref_data(&c->t[gemm_w]), p->trans_w ? N : K, 0, ref_data(y), N);
    openblas_set_num_threads(threads);
}
