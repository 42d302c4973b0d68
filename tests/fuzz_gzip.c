// fuzz_gzip.c: any bytes as a gzip file.
#include <assert.h>

#include "engine/gzip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { LIMIT = 1 << 20 };
    Error err = {0};
    size_t n = 99;
    uint8_t *out = gzip_unpack(NULL, data, size, LIMIT, &n, &err);
    if (out) assert(n <= LIMIT && out[n] == 0 && gzip_is(data, size));
    else assert(n == 0 && err.status == STATUS_FAILED && err.text[0]);
    mem_free(out);
    return 0;
}
