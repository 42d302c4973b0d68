// fuzz_gguf.c: any bytes as a GGUF file. What is accepted must be readable to the last byte and
// openable, or refused, as any model.
#include "tests/weights_use.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err = {0};
    if (size < 4 || memcmp(data, "GGUF", 4)) return -1; // other formats have fuzzers of their own
    Weights *w = weights_parse(NULL, "fuzz", data, size, &err);
    if (!w) {
        use_refusal(&err);
        return 0;
    }
    assert(!strcmp(weights_format(w), "gguf"));
    use_tensors(w);
    use_models(w);
    weights_close(w);
    return 0;
}
