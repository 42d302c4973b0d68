// ref_norm.c: the oracle of ops/norm.h.
#include "backend/cpu/ref.h"

#include <math.h>

typedef struct Stats { double mean, rstd; } Stats;

// Over rows m0.. m1-1 and channels c0.. c1-1 of batch b.
static Stats stats_of(const View *x, const NormParams *p, int64_t b, int64_t m0, int64_t m1,
                      int64_t c0, int64_t c1) {
    double mean = 0, var = 0, count = (double)((m1 - m0) * (c1 - c0));
    for (int64_t m = m0; m < m1 && p->kind != NORM_RMS; m++)
        for (int64_t i = c0; i < c1; i++) mean += view_get(x, 0, b, m, i);
    mean /= count;
    for (int64_t m = m0; m < m1; m++)
        for (int64_t i = c0; i < c1; i++) {
            double d = view_get(x, 0, b, m, i) - mean;
            var += d * d;
        }
    return (Stats){mean, 1 / sqrt(var / count + p->eps)};
}

void ref_norm(const OpCall *c) {
    const NormParams *p = &c->params.norm;
    View x = ref_view(&c->t[norm_x]), weight = ref_view(&c->t[norm_weight]);
    View bias = ref_view(&c->t[norm_bias]), scale = ref_view(&c->t[norm_scale]);
    View shift = ref_view(&c->t[norm_shift]), y = ref_view(&c->t[norm_y]);
    View rstd = ref_view(&c->t[norm_rstd]);
    int64_t B = x.n[1], M = x.n[2], C = x.n[3], width = C / MAX(p->groups, 1u);
    // Each area has its statistics: one row of all channels, or all rows of a group's.
    int64_t height = p->kind == NORM_GROUP ? M : 1;
    for (int64_t b = 0; b < B; b++)
        for (int64_t m0 = 0; m0 < M; m0 += height)
            for (int64_t c0 = 0; c0 < C && !ref_cancelled(c); c0 += width) {
                Stats s = stats_of(&x, p, b, m0, m0 + height, c0, c0 + width);
                if (rstd.data) view_put(&rstd, 0, b, m0, 0, s.rstd);
                for (int64_t m = m0; m < m0 + height; m++)
                    for (int64_t i = c0; i < c0 + width; i++) {
                        double v = (view_get(&x, 0, b, m, i) - s.mean) * s.rstd;
                        if (weight.data) v *= view_get(&weight, 0, 0, 0, i);
                        if (bias.data) v += view_get(&bias, 0, 0, 0, i);
                        if (scale.data) v *= 1 + view_get(&scale, 0, b, m, i);
                        if (shift.data) v += view_get(&shift, 0, b, m, i);
                        view_put(&y, 0, b, m, i, act_value(p->act, v));
                    }
            }
}
