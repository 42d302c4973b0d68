// tar.h: tar archives (POSIX ustar, pax and GNU long names): reading from memory, writing to a
// file.
//
// The reader never touches the file system: names come back as they stand in the archive, hostile
// ones included (`tar_name_is_safe`). Nothing is shared; a reader or writer is used by one thread.
#ifndef KILN_ENGINE_TAR_H
#define KILN_ENGINE_TAR_H

#include "backend/os.h"

// ---- reading ----------------------------------------------------------------------------------
typedef struct TarReader {
    const uint8_t *data; // the whole archive: a file mapping, or unpacked gzip
    size_t size;
    size_t at;  // next header
    char *name; // of the member last given; belongs to `parent`
    void *parent;
    bool ended;
} TarReader;

typedef struct TarMember {
    const char *name;    // valid until the next tar_next
    const uint8_t *data; // points into the archive
    size_t size;
    bool is_file; // false: folder, link, device: `data` is empty
} TarMember;

typedef enum {
    TAR_MEMBER,  // a member
    TAR_DAMAGED, // something is wrong here, told in err; the next call goes on behind it
    TAR_END,
} TarResult;

TarReader tar_reader(void *parent, const uint8_t *data, size_t size);
// Damage: a wrong header checksum (then the next sound header is searched), a size past the end, a
// sparse member, a broken pax record, a missing end mark (the archive was cut).
TarResult tar_next(TarReader *tar, TarMember *member, Error *err);
// Relative, without "..", backslash, drive letter or control characters, and not empty.
bool tar_name_is_safe(const char *name);

// ---- writing ----------------------------------------------------------------------------------
typedef struct TarWriter TarWriter;
// The file appears at tar_finish, whole, or never. With `gzip` it is packed. Headers hold no times
// or owners: the same members give the same bytes.
TarWriter *tar_open(void *parent, const char *path, bool gzip, Error *err);
bool tar_add(TarWriter *tar, const char *name, const void *data, size_t size, Error *err);
uint64_t tar_size(const TarWriter *tar);     // bytes so far, before packing
bool tar_finish(TarWriter *tar, Error *err); // frees it, after an error too
void tar_abort(TarWriter *tar);              // frees it; NULL is allowed

#endif
