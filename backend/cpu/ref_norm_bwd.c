// ref_norm_bwd.c: the oracle of ops/norm_bwd.h.
#include "backend/cpu/ref.h"

void ref_norm_bwd(const OpCall *c) {
    View y = ref_view(&c->t[norm_bwd_y]), dy = ref_view(&c->t[norm_bwd_dy]);
    View rstd = ref_view(&c->t[norm_bwd_rstd]), dx = ref_view(&c->t[norm_bwd_dx]);
    bool layer = c->params.norm_bwd.kind == NORM_LAYER;
    int64_t C = y.n[3];
    for (int64_t b = 0; b < y.n[1]; b++)
        for (int64_t m = 0; m < y.n[2] && !ref_cancelled(c); m++) {
            double mean = 0, dot = 0, r = view_get(&rstd, 0, b, m, 0);
            for (int64_t i = 0; i < C; i++) {
                mean += layer ? view_get(&dy, 0, b, m, i) : 0;
                dot += view_get(&dy, 0, b, m, i) * view_get(&y, 0, b, m, i);
            }
            mean /= (double)C, dot /= (double)C;
            for (int64_t i = 0; i < C; i++) {
                double d = view_get(&dy, 0, b, m, i) - mean - view_get(&y, 0, b, m, i) * dot;
                view_put(&dx, 0, b, m, i, r * d);
            }
        }
}
