// safetensors.h: weight files: https://huggingface.co/docs/safetensors (a length of 8 bytes, a JSON
// header, then the tensors' bytes, little endian, without gaps).
//
// Reading maps the file and copies no data. All of the header is checked before anything is used:
// length, nesting, names, types, shapes, and that the byte ranges cover the data exactly, without
// overlaps and holes. (A file that another program shortens later still ends the run: a signal
// that mapping cannot avoid.)
//
// Thread-safety: an open StFile is never changed, so any number of threads may read it; a writer
// belongs to one thread.
#ifndef KILN_ENGINE_SAFETENSORS_H
#define KILN_ENGINE_SAFETENSORS_H

#include "backend/dtype.h"
#include "backend/os.h"

enum { ST_MAX_DIMS = 8 };
// More than any model needs; they bound the memory that a hostile header takes (the reference
// implementation allows headers of 100 MB).
#define ST_MAX_HEADER ((uint64_t)24 << 20)
enum { ST_MAX_TENSORS = 100000 };

// ---- reading ----------------------------------------------------------------------------------
typedef struct StTensor {
    const char *name;
    DType dtype;
    int ndim;                   // 0: a single number
    int64_t shape[ST_MAX_DIMS]; // outermost first; 0 is allowed
    uint64_t count, bytes;      // elements, bytes
    const uint8_t *data;        // in the mapping; aligned to nothing: files may put it anywhere
} StTensor;

typedef struct StMeta {
    const char *key, *value;
} StMeta;

typedef struct StFile {
    const char *path;
    int n;             // tensors, sorted by name (bytes)
    StTensor *tensors; // lookups are binary searches, which no choice of names can make slow
    int meta_n;        // entries of __metadata__, in the order of the file
    StMeta *meta;
    FileMap map;
} StFile;

// NULL after an error that names the file and the tensor. End with st_close (freeing the parent
// alone would leave the file mapped).
StFile *st_open(void *parent, const char *path, Error *err);
void st_close(StFile *file); // NULL is allowed
// The same for a file in memory, which must outlive the result; `path` is for messages. mem_free
// or st_close ends it.
StFile *st_parse(void *parent, const char *path, const void *data, size_t size, Error *err);

const StTensor *st_find(const StFile *file, const char *name);            // NULL when missing
const StTensor *st_get(const StFile *file, const char *name, Error *err); // missing: an error
const char *st_meta(const StFile *file, const char *key);                 // NULL when missing

// Writes t->count values as f32 (from any type; I64 and F64 are rounded).
void st_to_f32(const StTensor *t, float *out);
// "[3, 4, 4]"; returns text.
const char *st_shape_text(char text[128], int ndim, const int64_t *shape);

// ---- is it the file we expect? ----------------------------------------------------------------
typedef struct StWant {
    const char *name;
    int ndim;
    int64_t shape[ST_MAX_DIMS]; // -1: any size
    bool optional;              // may be missing
} StWant;

// True when the file holds exactly the `n` wanted tensors, each of the wanted shape and of a
// floating-point type. Otherwise one error that counts what is missing, wrong and unexpected, and
// lists it (the first ten), in this order.
bool st_check(const StFile *file, const StWant *wants, int n, Error *err);

// ---- writing ----------------------------------------------------------------------------------
// Tensors go out sorted by element size (large first, so that each stands aligned to its own), then
// by name: the same content always gives the same bytes. Data starts at a multiple of 64.
typedef struct StWriter StWriter;

// Writes the `n` bytes that start at byte `offset` of the tensor into `out`; called in order, with
// chunks of at most 1 MiB that hold whole elements. False (with err) stops the file.
typedef bool StFill(void *user, uint64_t offset, void *out, size_t n, Error *err);

StWriter *st_writer(void *parent); // freed by mem_free, or with its parent
// Names and texts are copied; `data` must live until the file is written. What is wrong (a name
// twice, too many dimensions) is reported by st_write.
void st_put_meta(StWriter *w, const char *key, const char *value);
void st_put(StWriter *w, const char *name, DType dtype, int ndim, const int64_t *shape,
            const void *data);
void st_put_fill(StWriter *w, const char *name, DType dtype, int ndim, const int64_t *shape,
                 StFill *fill, void *user);
bool st_write(StWriter *w, const char *path, Error *err); // whole or not at all
bool st_write_out(StWriter *w, OutFile *out, Error *err); // the caller commits or aborts
uint64_t st_write_bytes(StWriter *w);                     // what st_write will need on disk

#endif
