// zip.h: zip archives in memory whose members are stored, not compressed (what PyTorch writes;
// nothing is ever inflated or unpacked): PKWARE's APPNOTE, with its 64-bit sizes.
//
// Thread-safety: an archive that was read is never changed.
#ifndef KILN_ENGINE_ZIP_H
#define KILN_ENGINE_ZIP_H

#include "backend/base.h"

typedef struct ZipMember {
    const char *name;
    const uint8_t *data; // in the archive
    uint64_t size;
    uint32_t crc; // as the directory says; 0: not computed
} ZipMember;

typedef struct Zip { ZipMember *members; int n; } Zip; // sorted by name

// Checks the whole directory: sizes, offsets, local headers that agree with it, no overlaps, no name
// twice, no names that lead out of a folder; compressed and encrypted members are refused. `path`
// is for messages. Members are owned by `parent`.
bool zip_read(void *parent, const char *path, const uint8_t *data, size_t size, Zip *out, Error *err);
// Does the member's data agree with its checksum? PyTorch writes 0 where it was told to leave it out.
bool zip_check(const char *path, const ZipMember *m, Error *err);
const ZipMember *zip_find(const Zip *zip, const char *name); // NULL: none

#endif
