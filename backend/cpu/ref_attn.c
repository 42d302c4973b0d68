// ref_attn.c: the oracle of ops/attn.h: one whole row of scores at a time.
#include "backend/cpu/ref.h"

#include <math.h>

void ref_attn(const OpCall *c) {
    const AttnParams *p = &c->params.attn;
    View q = ref_view(&c->t[attn_q]), k = ref_view(&c->t[attn_k]), v = ref_view(&c->t[attn_v]);
    View mask = ref_view(&c->t[attn_mask]), y = ref_view(&c->t[attn_y]);
    View lse = ref_view(&c->t[attn_lse]);
    int64_t B = q.n[0], T = q.n[1], H = q.n[2], D = q.n[3], S = k.n[1], group = H / k.n[2];
    double scale = p->scale == 0 ? 1 / sqrt((double)D) : p->scale;
    double *w = MEM_ARRAY(NULL, double, S), *row = MEM_ARRAY(w, double, D);
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t t = 0; t < T && !ref_cancelled(c); t++) {
                double max = -INFINITY, sum = 0;
                for (int64_t d = 0; d < D; d++) row[d] = view_get(&q, b, t, h, d);
                for (int64_t s = 0; s < S; s++) {
                    double dot = 0;
                    for (int64_t d = 0; d < D; d++)
                        dot += row[d] * view_get(&k, b, s, h / group, d);
                    w[s] = dot * scale + (mask.data ? view_get(&mask, b, h, t, s) : 0);
                    if (p->causal && s > t + S - T) w[s] = -INFINITY;
                    if (w[s] > max) max = w[s];
                }
                bool masked = true; // a NaN score is not a masked one
                for (int64_t s = 0; s < S; s++) masked = masked && w[s] == -INFINITY;
                for (int64_t s = 0; s < S; s++) sum += w[s] = masked ? 0 : exp(w[s] - max);
                for (int64_t d = 0; d < D; d++) {
                    double out = 0;
                    for (int64_t s = 0; s < S; s++)
                        if (w[s] != 0) out += w[s] * view_get(&v, b, s, h / group, d);
                    view_put(&y, b, t, h, d, masked ? 0 : out / sum);
                }
                view_put(&lse, 0, b, h, t, masked ? -INFINITY : max + log(sum));
            }
    mem_free(w);
}
