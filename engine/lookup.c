// lookup.c: see lookup.h.
#include "engine/lookup.h"

#include "backend/quant.h"

// `bytes` at `offset` of the tensor on the device's terms, as n numbers.
static bool read_as_f32(const BoundWeight *w, uint64_t offset, uint64_t bytes, int64_t n, void *raw,
                        float *out, Error *err) {
    if (!bound_read(w, offset, raw, bytes, err)) return false;
    if (dtype_is_packed(w->dtype)) quant_decode(w->dtype, raw, out, n);
    else dtype_convert(DT_F32, out, w->dtype, raw, (size_t)n);
    for (int64_t i = 0; w->scale != 1 && i < n; i++) out[i] *= w->scale;
    return true;
}

bool lookup_rows(const BoundWeight *table, const int32_t *ids, int64_t n, float *out, Error *err) {
    int64_t rows = table->shape[0], width = table->shape[1];
    uint64_t row_bytes = bound_row_bytes(table);
    void *raw = mem_new(NULL, (size_t)row_bytes);
    bool ok = true;
    for (int64_t i = 0; i < n && ok; i++)
        ok = (ids[i] >= 0 && ids[i] < rows) ||
             err_failed(err, "%s: expected ids from 0 to %lld, found %d; take the tokenizer that "
                        "belongs to the model", table->name, (long long)rows - 1, ids[i]);
    for (int64_t i = 0; i < n && ok; i++)
        ok = read_as_f32(table, (uint64_t)ids[i] * row_bytes, row_bytes, width, raw,
                         out + i * width, err);
    mem_free(raw);
    return ok;
}

bool lookup_all(const BoundWeight *w, float *out, Error *err) {
    int64_t n = 1;
    for (int d = 0; d < w->ndim; d++) n *= w->shape[d];
    void *raw = mem_new(NULL, (size_t)w->bytes);
    bool ok = read_as_f32(w, 0, w->bytes, n, raw, out, err);
    mem_free(raw);
    return ok;
}
