// ref_rope.c: the oracle of ops/rope.h.
#include "backend/cpu/ref.h"

void ref_rope(const OpCall *c) {
    View x = ref_view(&c->t[rope_x]), table = ref_view(&c->t[rope_table]);
    View y = ref_view(&c->t[rope_y]);
    int64_t P = table.n[2];
    bool half = c->params.rope.half;
    for (int64_t b = 0; b < x.n[0]; b++)
        for (int64_t t = 0; t < x.n[1] && !ref_cancelled(c); t++)
            for (int64_t h = 0; h < x.n[2]; h++) {
                for (int64_t i = 0; i < P; i++) {
                    int64_t first = half ? i : 2 * i, second = half ? i + P : 2 * i + 1;
                    double u = view_get(&x, b, t, h, first), v = view_get(&x, b, t, h, second);
                    double cosine = view_get(&table, b, t, i, 0), sine = view_get(&table, b, t, i, 1);
                    view_put(&y, b, t, h, first, u * cosine - v * sine);
                    view_put(&y, b, t, h, second, u * sine + v * cosine);
                }
                for (int64_t d = 2 * P; d < x.n[3]; d++)
                    view_put(&y, b, t, h, d, view_get(&x, b, t, h, d));
            }
}
