// ref_dequant.c: the oracle of ops/dequant.h, on the decoder of backend/quant.h.
#include "backend/cpu/ref.h"
#include "backend/quant.h"

enum { CHUNK = 4096 }; // elements: a multiple of every block

void ref_dequant(const OpCall *c) {
    const TensorRef *w = &c->t[dequant_w], *y = &c->t[dequant_y];
    double scale = 1;
    if (ref_has(&c->t[dequant_scale])) scale = dtype_load(DT_F32, ref_data(&c->t[dequant_scale]), 0);
    const char *from = ref_data(w);
    float *f = MEM_ARRAY(NULL, float, CHUNK);
    int64_t n = ref_count(w);
    for (int64_t i = 0; i < n && !ref_cancelled(c); i += CHUNK) {
        int64_t some = MIN(CHUNK, n - i);
        quant_decode(w->dtype, from, f, some);
        from += dtype_bytes(w->dtype, (uint64_t)some);
        for (int64_t k = 0; k < some; k++)
            dtype_store(y->dtype, ref_data(y), (size_t)(i + k), (float)(scale * (double)f[k]));
    }
    mem_free(f);
}
