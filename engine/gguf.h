// gguf.h: GGUF, the weight files of ggml: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
// (versions 2 and 3, little endian). Reading is behind engine/weights.h; this is the writer.
//
// Thread-safety: a writer belongs to one thread.
#ifndef KILN_ENGINE_GGUF_H
#define KILN_ENGINE_GGUF_H

#include "backend/dtype.h"
#include "backend/os.h"

enum { GGUF_ALIGNMENT = 32, GGUF_MAX_DIMS = 4 };

// The number of a type in GGUF files; -1: GGUF has none (fp8, u8, bool).
int gguf_type(DType t);

// Writes the `n` bytes that start at byte `offset` of the tensor into `out`; called in order, with
// chunks of at most GGUF_CHUNK bytes that hold whole blocks. False (with err) stops the file.
enum { GGUF_CHUNK = 4 << 20 };
typedef bool GgufFill(void *user, uint64_t offset, void *out, size_t n, Error *err);

typedef struct GgufWriter GgufWriter;
GgufWriter *gguf_writer(void *parent); // freed by mem_free, or with its parent
void gguf_put_text(GgufWriter *w, const char *key, const char *value);
void gguf_put_u32(GgufWriter *w, const char *key, uint32_t value);
// shape: outermost first. `user` must live until the file is written. Tensors are written in the
// order of these calls.
void gguf_put_tensor(GgufWriter *w, const char *name, DType dtype, int ndim, const int64_t *shape,
                     GgufFill *fill, void *user);
// Whole or not at all. What is wrong (a name or key twice, a type that GGUF lacks, more than four
// dimensions, rows that are not whole blocks) is reported here.
bool gguf_write(GgufWriter *w, const char *path, Error *err);

#endif
