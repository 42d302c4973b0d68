// fuzz_cifar.c: any bytes as a CIFAR-10 binary file. The first byte repeats the rest, so that small
// inputs reach several records.
#include <assert.h>
#include <stdlib.h>

#include "engine/dataset.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { RECORD = 3073 };
    if (size < 2) return 0;
    size_t times = (size_t)data[0] * 8 + 1, n = MIN((size - 1) * times, (size_t)8 * RECORD);
    uint8_t *bytes = malloc(n);
    for (size_t i = 0; i < n; i++) bytes[i] = data[1 + i % (size - 1)];
    Error err = {0};
    DatasetOptions options = {.strict = data[0] & 1};
    Dataset *set = dataset_open_memory(NULL, DATASET_CIFAR, "fuzz.bin", bytes, n, &options, &err);
    if (set) {
        assert(dataset_count(set) > 0 && (size_t)dataset_count(set) <= n / RECORD);
        assert(!options.strict || (dataset_damage_count(set) == 0 && n % RECORD == 0));
        for (int i = 0; i < dataset_count(set); i++) {
            uint8_t planes[3072];
            char name[64];
            dataset_name(set, i, name, sizeof name);
            assert(dataset_label(set, i) >= 0 && dataset_label(set, i) < 10);
            assert(dataset_read(set, i, 32, planes, &err));
        }
    } else {
        assert(err.status == STATUS_FAILED && err.text[0]);
    }
    dataset_close(set);
    free(bytes);
    return 0;
}
