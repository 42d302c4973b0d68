// ref_copy.c: the oracle of ops/copy.h.
#include "backend/cpu/ref.h"

void ref_copy(const OpCall *c) {
    const TensorRef *x = &c->t[copy_x], *y = &c->t[copy_y];
    int64_t at[MAX_DIMS] = {0}, left = ref_count(y);
    while (left-- > 0 && (left % ASK || !ref_cancelled(c))) {
        int64_t from = 0, to = 0;
        for (int d = 0; d < MAX_DIMS; d++) {
            from += ref_dim(x, d) == 1 ? 0 : at[d] * ref_stride(x, d);
            to += at[d] * ref_stride(y, d);
        }
        if (x->dtype == y->dtype) { // the bits, also of types without a float value
            size_t n = (size_t)dtype_size(x->dtype);
            memcpy((char *)ref_data(y) + (size_t)to * n, (char *)ref_data(x) + (size_t)from * n, n);
        } else {
            dtype_store(y->dtype, ref_data(y), (size_t)to,
                        dtype_load(x->dtype, ref_data(x), (size_t)from));
        }
        for (int d = MAX_DIMS - 1; d >= 0; d--) {
            if (++at[d] < ref_dim(y, d)) break;
            at[d] = 0;
        }
    }
}
