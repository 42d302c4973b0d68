// fuzz_tar.c: any bytes as a tar archive and as a WebDataset shard; header checksums made right.
#include <assert.h>
#include <stdlib.h>

#include "engine/dataset.h"
#include "engine/tar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fix_checksums(uint8_t *tar, size_t n) {
    for (size_t at = 0; n - at >= 512; at += 512) {
        unsigned sum = 0;
        if (memcmp(tar + at + 257, "ustar", 5) != 0) continue;
        memset(tar + at + 148, ' ', 8);
        for (int i = 0; i < 512; i++) sum += tar[at + (size_t)i];
        snprintf((char *)tar + at + 148, 8, "%06o", sum);
    }
}

static void read_shard(const uint8_t *data, size_t size) {
    Error err = {0};
    DatasetOptions options = {.memory_limit = 1 << 20};
    Dataset *set =
        dataset_open_memory(NULL, DATASET_SHARDS, "fuzz.tar", data, size, &options, &err);
    if (!set) {
        assert(err.status == STATUS_FAILED && err.text[0]);
        return;
    }
    assert(dataset_count(set) > 0);
    uint8_t planes[3 * 8 * 8];
    for (int i = 0; i < dataset_count(set); i++) {
        assert(dataset_label(set, i) >= 0 && dataset_label(set, i) < dataset_class_count(set));
        DatasetFile file;
        void *scope = mem_new(NULL, 1);
        assert(dataset_file(scope, set, i, &file, &err));
        int width, height; // large pictures are slow, and fuzz_image has them
        if (image_probe(file.bytes, file.size, &width, &height, NULL) && width * height < 100000)
            dataset_read(set, i, 8, planes, &err);
        mem_free(scope);
    }
    dataset_close(set);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size + 1);
    memcpy(copy, data, size);
    fix_checksums(copy, size);
    void *scope = mem_new(NULL, 1);
    TarReader tar = tar_reader(scope, copy, size);
    TarMember m;
    Error err = {0};
    unsigned sum = 0;
    size_t steps = 0;
    for (TarResult r; (r = tar_next(&tar, &m, &err)) != TAR_END;) {
        assert(++steps <= size / 512 + 1); // each step moves on
        if (r == TAR_DAMAGED) {
            assert(err.status == STATUS_FAILED);
            continue;
        }
        assert(!m.size || (m.data >= copy && m.data + m.size <= copy + size));
        for (size_t i = 0; i < m.size; i++) sum += m.data[i];
        sum += tar_name_is_safe(m.name);
    }
    (void)sum;
    mem_free(scope);
    read_shard(copy, size);
    free(copy);
    return 0;
}
