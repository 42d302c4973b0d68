// lookup.h: rows of an embedding table straight from the file. A prompt needs a few hundred rows of
// a table of hundreds of megabytes: only these are read, and the table never goes to the device.
//
// Thread-safety: pure, apart from the file's own.
#ifndef KILN_ENGINE_LOOKUP_H
#define KILN_ENGINE_LOOKUP_H

#include "engine/bind.h"

// table [V, D] of any type; ids [n], each in 0..V-1 (refused with the table's name); out [n, D].
// fp8's scale is applied.
bool lookup_rows(const BoundWeight *table, const int32_t *ids, int64_t n, float *out, Error *err);
// The whole tensor (any shape) as f32.
bool lookup_all(const BoundWeight *w, float *out, Error *err);

#endif
