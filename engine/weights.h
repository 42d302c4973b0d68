// weights.h: where weights come from: a set of named tensors in one or more files (safetensors,
// sharded or not; GGUF; PyTorch's zip checkpoints), or computed (synthetic). One reader, so that
// streaming, upload and dequantisation are the same for all.
//
// Thread-safety: an open Weights never changes; any number of threads may read.
#ifndef KILN_ENGINE_WEIGHTS_H
#define KILN_ENGINE_WEIGHTS_H

#include "backend/dtype.h"
#include "backend/os.h"         // MapAdvice
#include "backend/ops/tensor.h" // MAX_DIMS

typedef struct WeightTensor {
    const char *name;
    DType dtype;                // as stored; packed types (dtype_is_packed) have whole blocks per row
    int ndim;                   // 0: one number
    int64_t shape[MAX_DIMS];    // outermost first, PyTorch's order (GGUF's is reversed while reading)
    uint64_t count, bytes;
    int file;                   // private: of the set
    uint64_t at;                // private: offset in the file's mapping
    const int64_t *stride;      // private: in elements; NULL: contiguous
} WeightTensor;

typedef struct Weights Weights;

// `path`: a .safetensors, .gguf or PyTorch zip file (told apart by content), a
// *.safetensors.index.json, or a folder that holds one of these (the index first; else
// model.safetensors, diffusion_pytorch_model.safetensors, or a single weight file). Everything that
// the headers say is checked here (offsets, overlaps, shards that are missing or do not hold what
// the index says). Files are mapped, nothing is copied. NULL with an error.
Weights *weights_open(void *parent, const char *path, Error *err);
// The same for one file in memory, which must outlive the result; `path` is for messages.
Weights *weights_parse(void *parent, const char *path, const void *data, size_t size, Error *err);
void weights_close(Weights *w); // NULL is allowed. Freeing the parent alone leaves files mapped

const char *weights_path(const Weights *w);
const char *weights_format(const Weights *w); // "safetensors", "gguf", "pytorch", "synthetic"
int weights_count(const Weights *w);
const WeightTensor *weights_at(const Weights *w, int i);              // sorted by name
const WeightTensor *weights_find(const Weights *w, const char *name); // NULL: none
const char *weights_meta(const Weights *w, const char *key);          // metadata as text; NULL: none
int weights_meta_count(const Weights *w);
const char *weights_meta_at(const Weights *w, int i, const char **value); // the key

// Copies `bytes` bytes of a tensor from `offset` into `out`. Any thread.
bool weights_read(const Weights *w, const WeightTensor *t, uint64_t offset, void *out, uint64_t bytes,
                  Error *err);
// The tensor in the mapping (aligned to nothing), or NULL where it does not stand there as such
// (synthetic ones; PyTorch's that are not contiguous): weights_read works for all.
const void *weights_data(const Weights *w, const WeightTensor *t);
// Advice about these bytes of a tensor's file (os_map_advise); elsewhere it does nothing. Any thread.
void weights_advise(const Weights *w, const WeightTensor *t, uint64_t offset, uint64_t bytes,
                    MapAdvice advice);

// A set whose bytes come from a function: tests, `--dummy`. `tensors` (count of them, with name,
// dtype, shape) are copied; `read` fills any byte range of tensor number `index` (as given).
typedef bool WeightsRead(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err);
Weights *weights_synthetic(void *parent, const char *name, const WeightTensor *tensors, int count,
                           WeightsRead *read, void *user);
// A set made of others, renamed: used for all-in-one checkpoints. Tensors of `w` whose names begin
// with `prefix` under their names without it; `w` must outlive the result. An empty prefix: all.
Weights *weights_part(void *parent, const Weights *w, const char *prefix);

#endif
