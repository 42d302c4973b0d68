// gzip.h: gzip files (RFC 1952) through zlib: unpacking into memory, packing as a stream.
//
// Nothing is shared between threads; one writer is used by one thread at a time.
#ifndef KILN_ENGINE_GZIP_H
#define KILN_ENGINE_GZIP_H

#include "backend/os.h"

bool gzip_is(const uint8_t *bytes, size_t n); // by the two magic bytes

// Unpacks all members of a gzip file. Refused past `limit` bytes (a small file may claim
// terabytes). Truncation, wrong checksums or lengths, and bytes behind the end that are not a
// further member (zero padding apart) are errors. The result belongs to `parent`; one zero byte
// follows it.
uint8_t *gzip_unpack(void *parent, const uint8_t *bytes, size_t n, size_t limit, size_t *size,
                     Error *err);

// Packs a stream into an OutFile, which stays the caller's: finish the stream, then commit the
// file. The same bytes in give the same bytes out (no time or name in the header).
typedef struct GzipWriter GzipWriter;
GzipWriter *gzip_open(void *parent, OutFile *out, Error *err);
bool gzip_write(GzipWriter *gz, const void *data, size_t n, Error *err);
bool gzip_finish(GzipWriter *gz, Error *err); // frees it, after an error too
void gzip_abort(GzipWriter *gz);              // frees it; NULL is allowed

#endif
