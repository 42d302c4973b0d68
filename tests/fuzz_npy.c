// fuzz_npy.c: any bytes as a NumPy file.
#include <assert.h>

#include "engine/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err = {0};
    NpyArray a;
    if (npy_parse(NULL, "fuzz", data, size, &a, &err)) {
        assert(a.bytes == a.count * (uint64_t)dtype_size(a.dtype) && a.bytes < size);
        assert(a.ndim >= 0 && a.ndim <= NPY_MAX_DIMS);
        uint64_t count = 1;
        for (int i = 0; i < a.ndim; i++) {
            assert(a.shape[i] >= 0);
            count *= (uint64_t)a.shape[i];
        }
        assert(count == a.count);
        mem_free(a.data);
    } else {
        assert(err.status == STATUS_FAILED && !a.data);
    }
    return 0;
}
