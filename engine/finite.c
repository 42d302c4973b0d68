// finite.c: see finite.h.
#include "engine/finite.h"

#include "backend/exact.h"
#include "backend/quant.h"

#include <math.h>

enum { PART = 1 << 16 }; // numbers at a time, about

bool all_finite(const float *v, size_t n) {
    uint32_t bits = exact_row()->largest(v, n), infinity = 0x7f800000;
    return bits < infinity;
}

// A tensor that cannot be read is not to blame.
static bool tensor_finite(const BoundWeight *b, float *x, uint8_t *raw, uint64_t rows, Error *err) {
    uint64_t row = bound_row_bytes(b);
    for (uint64_t at = 0; at < b->bytes; at += rows * row) {
        uint64_t bytes = MIN(rows * row, b->bytes - at);
        int64_t n = (int64_t)(bytes / dtype_bytes(b->dtype, (uint64_t)dtype_block(b->dtype))) *
                    dtype_block(b->dtype);
        if (!bound_read(b, at, raw, bytes, NULL)) return true;
        if (dtype_is_packed(b->dtype)) quant_decode(b->dtype, raw, x, n);
        else dtype_convert(DT_F32, x, b->dtype, raw, (size_t)n);
        if (all_finite(x, (size_t)n)) continue;
        while (isfinite(*x)) x++;
        return err_failed(err, "%s: tensor %.100s: expected finite numbers, found %s; the file is damaged",
                          weights_path(b->source), b->name, isnan(*x) ? "NaN" : "infinity");
    }
    return true;
}

static bool stopped(const Cancel *c) { return c && c->asked && c->asked(c->user); }

bool bound_finite(const BoundWeight *w, int count, const Cancel *cancel, Error *err) {
    bool ok = true;
    for (int i = 0; i < count && ok && !stopped(cancel); i++) {
        const BoundWeight *b = &w[i];
        if (!b->pieces || !b->bytes) continue;
        void *scratch = mem_new(NULL, 1);
        uint64_t width = b->ndim ? (uint64_t)b->shape[b->ndim - 1] : 1, rows = MAX(PART / width, 1);
        float *x = MEM_ARRAY(scratch, float, rows * width);
        uint8_t *raw = mem_new(scratch, rows * bound_row_bytes(b));
        ok = tensor_finite(b, x, raw, rows, err);
        mem_free(scratch);
    }
    return ok;
}
