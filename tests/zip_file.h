// zip_file.h: zip archives of stored members in memory, sound or spoiled on purpose, for tests.
#ifndef KILN_TESTS_ZIP_FILE_H
#define KILN_TESTS_ZIP_FILE_H

#include <zlib.h>

#include "backend/base.h"

typedef struct ZipBytes { uint8_t *v; int n, cap; } ZipBytes;
typedef struct ZipFile {
    ZipBytes bytes, directory;
    int members;
    bool use64;        // sizes and offsets in 64-bit fields
    uint32_t crc_flip; // spoils the checksums of the members that follow
    uint16_t method;   // 8: says "deflated" of the members that follow
    uint64_t claim;    // their size as the directory tells it; 0: the true one
} ZipFile;

static inline void zip_number(ZipFile *z, ZipBytes *to, uint64_t value, int n) { // little endian
    for (int i = 0; i < n; i++) ARR_PUSH(z, to, (uint8_t)(value >> (8 * i)));
}

typedef struct ZipField { uint64_t value; int bytes; } ZipField;
static inline void zip_fields(ZipFile *z, ZipBytes *to, const ZipField *f, size_t n) {
    for (size_t i = 0; i < n; i++) zip_number(z, to, f[i].value, f[i].bytes);
}
#define ZIP_FIELDS(z, to, ...)                                              \
    zip_fields((z), &(z)->to, (const ZipField[]){__VA_ARGS__},              \
               COUNT_OF(((const ZipField[]){__VA_ARGS__})))

static inline void zip_put_raw(ZipFile *z, const void *data, size_t n) {
    for (size_t i = 0; i < n; i++) ARR_PUSH(z, &z->bytes, ((const uint8_t *)data)[i]);
}

static inline void zip_put(ZipFile *z, const char *name, const void *data, size_t n) {
    uint32_t crc = (uint32_t)crc32(0, data, (uInt)n) ^ z->crc_flip;
    uint64_t at = (uint64_t)z->bytes.n, size = z->claim ? z->claim : n;
    int length = (int)strlen(name);
    ZIP_FIELDS(z, bytes, {0x04034b50, 4}, {20, 2}, {0, 2}, {z->method, 2}, {0, 4}, {crc, 4}, {n, 4},
               {size, 4}, {(uint64_t)length, 2}, {0, 2});
    zip_put_raw(z, name, (size_t)length);
    zip_put_raw(z, data, n);
    uint64_t packed = z->method ? n : size, full = 0xffffffff;
    bool far = z->use64;
    ZIP_FIELDS(z, directory, {0x02014b50, 4}, {45, 2}, {20, 2}, {0, 2}, {z->method, 2}, {0, 4}, {crc, 4},
               {far ? full : packed, 4}, {far ? full : size, 4}, {(uint64_t)length, 2}, {far ? 28 : 0, 2},
               {0, 6}, {0, 4}, {far ? full : at, 4});
    for (int i = 0; i < length; i++) ARR_PUSH(z, &z->directory, (uint8_t)name[i]);
    if (far) ZIP_FIELDS(z, directory, {1, 2}, {24, 2}, {size, 8}, {packed, 8}, {at, 8});
    z->members++;
}

// Writes the directory, which will stand `hole` bytes further on than in z->bytes, the archive.
static inline void zip_end_at(ZipFile *z, uint64_t hole) {
    uint64_t at = (uint64_t)z->bytes.n + hole, size = (uint64_t)z->directory.n, end = at + size;
    zip_put_raw(z, z->directory.v, (size_t)size);
    uint64_t members = (uint64_t)z->members;
    bool far = z->use64;
    if (far)
        ZIP_FIELDS(z, bytes, {0x06064b50, 4}, {44, 8}, {45, 2}, {45, 2}, {0, 8}, {members, 8}, {members, 8},
                   {size, 8}, {at, 8}, {0x07064b50, 4}, {0, 4}, {end, 8}, {1, 4});
    ZIP_FIELDS(z, bytes, {0x06054b50, 4}, {0, 4}, {far ? 0xffff : members, 2}, {far ? 0xffff : members, 2},
               {far ? 0xffffffff : size, 4}, {far ? 0xffffffff : at, 4}, {0, 2});
}

static inline void zip_end(ZipFile *z) { zip_end_at(z, 0); }

#endif
