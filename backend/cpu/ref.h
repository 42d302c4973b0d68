// ref.h: what the oracle's kernels stand on: any float type and any strides, read and written one
// element at a time through f64. `ref_<op>` runs a checked call; operands are host memory.
#ifndef KILN_CPU_REF_H
#define KILN_CPU_REF_H

#include "backend/impl.h"

#define OP(name, NAME, Name) void ref_##name(const OpCall *call);
#include "backend/ops.def"
#undef OP

static inline bool ref_has(const TensorRef *t) { return t->buffer != NULL; }
enum { ASK = 4096 }; // elements between two questions, where results have no rows

// Asked between rows of results: true leaves the rest undone.
static inline bool ref_cancelled(const OpCall *c) {
    return c->cancel && c->cancel->asked(c->cancel->user);
}
static inline void *ref_data(const TensorRef *t) {
    return (char *)(uintptr_t)t->buffer->address + t->offset;
}

// The last four dimensions of a tensor (padded in front with 1). Dimensions of length 1 get stride
// 0, so that any index reads them: broadcasting needs no branch. An absent operand has data NULL.
typedef struct View {
    DType dtype;
    void *data;
    int64_t n[4], s[4];
} View;

static inline View ref_view(const TensorRef *t) {
    View v = {.dtype = t->dtype, .n = {1, 1, 1, 1}};
    if (!ref_has(t)) return v;
    v.data = ref_data(t);
    for (int i = 0, d = t->ndim - 4; i < 4; i++, d++) {
        if (d < 0) continue;
        v.n[i] = t->shape[d];
        v.s[i] = t->shape[d] == 1 ? 0 : t->stride[d];
    }
    return v;
}

static inline size_t view_at(const View *v, int64_t a, int64_t b, int64_t c, int64_t d) {
    return (size_t)(a * v->s[0] + b * v->s[1] + c * v->s[2] + d * v->s[3]);
}
static inline double view_get(const View *v, int64_t a, int64_t b, int64_t c, int64_t d) {
    return dtype_load(v->dtype, v->data, view_at(v, a, b, c, d));
}
static inline void view_put(const View *v, int64_t a, int64_t b, int64_t c, int64_t d, double x) {
    dtype_store(v->dtype, v->data, view_at(v, a, b, c, d), (float)x);
}

#endif
