// ref_reduce.c: the oracle of ops/reduce.h.
#include "backend/cpu/ref.h"

#include <math.h>

void ref_reduce(const OpCall *c) {
    const ReduceParams *p = &c->params.reduce;
    View x = ref_view(&c->t[reduce_x]), y = ref_view(&c->t[reduce_y]);
    double alpha = p->alpha == 0 ? 1 : p->alpha, bad = 0;
    for (int64_t a = 0; a < x.n[1]; a++)
        for (int64_t i = 0; i < x.n[3] && !ref_cancelled(c); i++) {
            double sum = 0;
            for (int64_t r = 0; r < x.n[2]; r++) {
                double v = view_get(&x, 0, a, r, i);
                sum += v;
                if (!isfinite(v)) bad = 1;
            }
            if (p->kind == REDUCE_SUM)
                view_put(&y, 0, a, 0, i,
                         (p->accumulate ? view_get(&y, 0, a, 0, i) : 0) + alpha * sum);
        }
    if (p->kind == REDUCE_NONFINITE)
        view_put(&y, 0, 0, 0, 0, p->accumulate && view_get(&y, 0, 0, 0, 0) != 0 ? 1 : bad);
}
