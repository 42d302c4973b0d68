// fuzz_pytorch.c: any bytes as a PyTorch checkpoint: as the archive itself where they begin like one,
// else as the pickle in a sound archive with two storages.
#include "tests/weights_use.h"

#include "tests/zip_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t storage[256] = {1, 2, 3, 4, 5, 6, 7, 8, 9};

static void use(const uint8_t *data, size_t size) {
    Error err = {0};
    Weights *w = weights_parse(NULL, "fuzz", data, size, &err);
    if (!w) {
        use_refusal(&err);
        return;
    }
    assert(!strcmp(weights_format(w), "pytorch"));
    use_tensors(w);
    use_models(w);
    weights_close(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size >= 4 && !memcmp(data, "PK\3\4", 4)) {
        use(data, size);
        return 0;
    }
    ZipFile *z = MEM_NEW(NULL, ZipFile);
    zip_put(z, "archive/data.pkl", data, size);
    zip_put(z, "archive/byteorder", "little", 6);
    zip_put(z, "archive/data/0", storage, sizeof storage);
    zip_put(z, "archive/data/1", storage, 64);
    zip_end(z);
    uint8_t *exact = malloc(z->bytes.n > 0 ? (size_t)z->bytes.n : 1); // reads past it are seen
    memcpy(exact, z->bytes.v, (size_t)z->bytes.n);
    use(exact, (size_t)z->bytes.n);
    free(exact);
    mem_free(z);
    return 0;
}
