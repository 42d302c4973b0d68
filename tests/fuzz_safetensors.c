// fuzz_safetensors.c: any bytes as a weight file. What is accepted must be readable to the last
// byte, and must come out of the writer as the same tensors.
#include <assert.h>
#include <stdlib.h>

#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err = {0};
    StFile *f = st_parse(NULL, "fuzz", data, size, &err);
    if (!f) {
        assert(err.status == STATUS_FAILED && !strncmp(err.text, "fuzz", 4));
        return 0;
    }
    StWriter *w = st_writer(f);
    for (int i = 0; i < f->n; i++) {
        const StTensor *t = &f->tensors[i];
        assert(st_find(f, t->name) == t);
        float *v = malloc((size_t)t->count * sizeof(float) + 1);
        st_to_f32(t, v);
        free(v);
        st_put(w, t->name, t->dtype, t->ndim, t->shape, t->data);
    }
    for (int i = 0; i < f->meta_n; i++) st_put_meta(w, f->meta[i].key, f->meta[i].value);
    assert(st_write_bytes(w) >= 10);
    StWant want = {.name = "a", .ndim = 1, .shape = {-1}};
    st_check(f, &want, 1, &err);
    st_close(f);
    return 0;
}
