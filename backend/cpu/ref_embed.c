// ref_embed.c: the oracle of ops/embed.h.
#include "backend/cpu/ref.h"

void ref_embed(const OpCall *c) {
    View table = ref_view(&c->t[embed_table]), ids = ref_view(&c->t[embed_ids]);
    View y = ref_view(&c->t[embed_y]);
    for (int64_t n = 0; n < y.n[2] && !ref_cancelled(c); n++) {
        int32_t id = ((const int32_t *)ids.data)[view_at(&ids, 0, 0, 0, n)];
        bool known = id >= 0 && id < table.n[2];
        for (int64_t d = 0; d < y.n[3]; d++)
            view_put(&y, 0, 0, n, d, known ? view_get(&table, 0, 0, id, d) : 0);
    }
}
