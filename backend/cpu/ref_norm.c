// ref_norm.c: the oracle of ops/norm.h.
#include "backend/cpu/ref.h"

#include <math.h>

void ref_norm(const OpCall *c) {
    const NormParams *p = &c->params.norm;
    View x = ref_view(&c->t[norm_x]), weight = ref_view(&c->t[norm_weight]);
    View bias = ref_view(&c->t[norm_bias]), scale = ref_view(&c->t[norm_scale]);
    View shift = ref_view(&c->t[norm_shift]), y = ref_view(&c->t[norm_y]);
    View rstd = ref_view(&c->t[norm_rstd]);
    int64_t C = x.n[3];
    for (int64_t b = 0; b < x.n[1]; b++)
        for (int64_t m = 0; m < x.n[2]; m++) {
            double mean = 0, var = 0;
            if (p->kind == NORM_LAYER) {
                for (int64_t i = 0; i < C; i++) mean += view_get(&x, 0, b, m, i);
                mean /= (double)C;
            }
            for (int64_t i = 0; i < C; i++) {
                double d = view_get(&x, 0, b, m, i) - mean;
                var += d * d;
            }
            double r = 1 / sqrt(var / (double)C + p->eps);
            if (rstd.data) view_put(&rstd, 0, b, m, 0, r);
            for (int64_t i = 0; i < C; i++) {
                double v = (view_get(&x, 0, b, m, i) - mean) * r;
                if (weight.data) v *= view_get(&weight, 0, 0, 0, i);
                if (bias.data) v += view_get(&bias, 0, 0, 0, i);
                if (scale.data) v *= 1 + view_get(&scale, 0, b, m, i);
                if (shift.data) v += view_get(&shift, 0, b, m, i);
                view_put(&y, 0, b, m, i, act_value(p->act, v));
            }
        }
}
