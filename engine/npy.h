// npy.h: NumPy's array files: numpy.org/doc/stable/reference/generated/numpy.lib.format.html
// (versions 1 to 3, little endian, C order). Used for --noise, --dump and exchange with scripts.
//
// Thread-safety: the functions keep no state.
#ifndef KILN_ENGINE_NPY_H
#define KILN_ENGINE_NPY_H

#include "backend/dtype.h"

enum { NPY_MAX_DIMS = 8 };

typedef struct NpyArray {
    DType dtype; // F32, F16, F64, I8, I16, I32, I64, U8 or BOOL
    int ndim;    // 0: a single number
    int64_t shape[NPY_MAX_DIMS];
    uint64_t count, bytes;
    void *data; // on the parent given; aligned to 64
} NpyArray;

// Reads one array; errors name the file. Fortran order, big endian, structured and object arrays
// are refused, and so are files that end early or late.
bool npy_read(void *parent, const char *path, NpyArray *out, Error *err);
// The same for a file in memory, `path` being for messages.
bool npy_parse(void *parent, const char *path, const void *data, size_t size, NpyArray *out,
               Error *err);
// Reads and converts to f32, refusing another shape (-1: any size; ndim < 0: any shape) and
// numbers that are not finite. The array of `out`, when given, tells the shape found. Returns the
// values on `parent`, NULL on errors.
float *npy_read_f32(void *parent, const char *path, int ndim, const int64_t *shape, NpyArray *out,
                    Error *err);

// Writes version 1, whole or not at all. Types without a NumPy name (bf16, fp8) are refused.
bool npy_write(const char *path, DType dtype, int ndim, const int64_t *shape, const void *data,
               Error *err);

#endif
