// ref_embed_bwd.c: the oracle of ops/embed_bwd.h.
#include "backend/cpu/ref.h"

void ref_embed_bwd(const OpCall *c) {
    View dy = ref_view(&c->t[embed_bwd_dy]), ids = ref_view(&c->t[embed_bwd_ids]);
    View table = ref_view(&c->t[embed_bwd_dtable]);
    for (int64_t v = 0; v < table.n[2]; v++)
        for (int64_t d = 0; d < table.n[3] && !ref_cancelled(c); d++) {
            double sum = 0;
            for (int64_t n = 0; n < dy.n[2]; n++)
                if (((const int32_t *)ids.data)[view_at(&ids, 0, 0, 0, n)] == v)
                    sum += view_get(&dy, 0, 0, n, d);
            view_put(&table, 0, 0, v, d, sum);
        }
}
