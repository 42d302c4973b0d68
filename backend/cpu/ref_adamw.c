// ref_adamw.c: the oracle of ops/adamw.h.
#include "backend/cpu/ref.h"

#include <math.h>

void ref_adamw(const OpCall *c) {
    View p = ref_view(&c->t[adamw_p]), m = ref_view(&c->t[adamw_m]), v = ref_view(&c->t[adamw_v]);
    View ema = ref_view(&c->t[adamw_ema]), g = ref_view(&c->t[adamw_g]);
    View h = ref_view(&c->t[adamw_hyper]), found_inf = ref_view(&c->t[adamw_found_inf]);
    if (found_inf.data && view_get(&found_inf, 0, 0, 0, 0) != 0) return;
    double lr = view_get(&h, 0, 0, 0, 0), b1 = view_get(&h, 0, 0, 0, 1);
    double b2 = view_get(&h, 0, 0, 0, 2), eps = view_get(&h, 0, 0, 0, 3);
    double decay = view_get(&h, 0, 0, 0, 4), bc1 = view_get(&h, 0, 0, 0, 5);
    double bc2 = view_get(&h, 0, 0, 0, 6), inv_scale = view_get(&h, 0, 0, 0, 7);
    double ema_decay = view_get(&h, 0, 0, 0, 8);
    for (int64_t i = 0; i < p.n[3] && (i % ASK || !ref_cancelled(c)); i++) {
        double grad = view_get(&g, 0, 0, 0, i) * inv_scale, w = view_get(&p, 0, 0, 0, i);
        double m1 = b1 * view_get(&m, 0, 0, 0, i) + (1 - b1) * grad;
        double v1 = b2 * view_get(&v, 0, 0, 0, i) + (1 - b2) * grad * grad;
        w -= lr * decay * w;
        w -= lr / bc1 * m1 / (sqrt(v1) / sqrt(bc2) + eps);
        view_put(&p, 0, 0, 0, i, w);
        view_put(&m, 0, 0, 0, i, m1);
        view_put(&v, 0, 0, 0, i, v1);
        if (ema.data)
            view_put(&ema, 0, 0, 0, i,
                     ema_decay * view_get(&ema, 0, 0, 0, i) + (1 - ema_decay) * w);
    }
}
