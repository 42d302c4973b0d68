// dataset.h: labelled pictures from three kinds of source, behind one interface.
//
//   CIFAR    the official CIFAR-10 binary files: a folder with data_batch_1..5.bin (test_batch.bin
//            for the test split) and batches.meta.txt, or one .bin file. Records of 3073 bytes:
//            label, then planes R, G, B of 32x32. (A. Krizhevsky, 2009.)
//   FOLDER   one folder of .jpg/.jpeg/.png files per class, in byte order of their names.
//   SHARDS   WebDataset: a folder of .tar, .tar.gz or .tgz files (or one such file), in byte order
//            of names; members KEY.jpg|jpeg|png and KEY.cls (the class number), KEY.json
//            optional; classes.txt beside them names the classes, one a line.
//
// Samples are numbered 0..count-1 in the order above, so the same data gives the same numbers on
// every machine. What is damaged is named, counted and left out; with `strict` it is an error that
// lists it. Files that are none of these kinds are ignored.
//
// Threads: dataset_read and the getters may run on any number of threads at once; everything else
// changes the set and needs it alone.
#ifndef KILN_ENGINE_DATASET_H
#define KILN_ENGINE_DATASET_H

#include "engine/image.h"

typedef struct Dataset Dataset;
typedef enum { DATASET_FOLDER, DATASET_CIFAR, DATASET_SHARDS } DatasetKind;
enum { DATASET_MAX_CLASSES = 100000, DATASET_KEPT_DAMAGE = 1000 };

typedef struct DatasetOptions {
    bool test;           // CIFAR folders: test_batch.bin in place of data_batch_*.bin
    bool strict;         // damage is an error
    size_t memory_limit; // bytes for unpacked gzip shards, all together; 0: half of the RAM
} DatasetOptions;

// Indexes everything under `path`; pictures are not decoded yet, so damage inside them shows later
// (dataset_load, dataset_read). `options` may be NULL. End with dataset_close: freeing the parent
// alone leaves files mapped.
Dataset *dataset_open(void *parent, const char *path, const DatasetOptions *options, Error *err);
// The same from one CIFAR file or one tar archive (packed or not) in memory, which stays the
// caller's and must outlive the set. `name` is used in messages.
Dataset *dataset_open_memory(void *parent, DatasetKind kind, const char *name, const uint8_t *bytes,
                             size_t n, const DatasetOptions *options, Error *err);

void dataset_close(Dataset *set); // NULL is allowed

DatasetKind dataset_kind(const Dataset *set);
const char *dataset_kind_name(DatasetKind kind); // "class folders", "CIFAR-10 binary", "WebDataset"
const char *dataset_path(const Dataset *set);
bool dataset_is_strict(const Dataset *set);
int dataset_count(const Dataset *set); // samples, damaged ones left out
int dataset_class_count(const Dataset *set);
const char *dataset_class(const Dataset *set, int c); // its name
int dataset_label(const Dataset *set, int i);         // 0..class_count-1
// "cat/0001.jpg", "data_batch_1.bin record 17", "000000.tar: 000000017": for messages.
void dataset_name(const Dataset *set, int i, char *out, size_t size);
// What was left out so far: a count, and the first DATASET_KEPT_DAMAGE as "NAME: why".
int dataset_damage_count(const Dataset *set);
const char *dataset_damage(const Dataset *set, int k);

// Sample i as planes [3, size, size], u8. Other sizes and shapes are cut to the centred square and
// resized (image_fit). Fails on a damaged picture, naming it.
bool dataset_read(const Dataset *set, int i, int size, uint8_t *planes, Error *err);
// The picture as it is (not resized), and its file: the original PNG or JPEG; CIFAR records are
// encoded as PNG. `json` NULL when the sample has none.
Image *dataset_image(void *parent, const Dataset *set, int i, Error *err);
typedef struct DatasetFile {
    const uint8_t *bytes, *json; // below `parent` or in the set
    size_t size, json_size;
    const char *extension; // "png" or "jpg"
} DatasetFile;
bool dataset_file(void *parent, const Dataset *set, int i, DatasetFile *file, Error *err);

// Called on the calling thread, often; `stage` is "check" or "write". False cancels the work
// (STATUS_CANCELLED).
typedef bool (*DatasetProgress)(void *user, const char *stage, int done, int total);

typedef struct DatasetLoad {
    int size;           // of the planes kept
    size_t cache_limit; // bytes; 0: 1 GiB
    bool check;         // decode all even when they do not fit (info, import, strict)
    int threads;        // 0: one per core
    DatasetProgress progress;
    void *user;
} DatasetLoad;
// Decodes all samples on several threads, drops the damaged ones (strict: an error that lists them)
// and, if count x 3 x size x size fits the limit, keeps the planes: dataset_read of that size then
// only copies. A set that does not fit is left as it is, unless `check`.
bool dataset_load(Dataset *set, const DatasetLoad *load, Error *err);
bool dataset_is_cached(const Dataset *set, int size);

// ---- info, import, preview (dataset_import.c) ---------------------------------------------------
typedef struct DatasetSize {
    int width, height, count;
} DatasetSize;
typedef struct DatasetPart {
    const char *name;
    int count;
    uint64_t bytes;
} DatasetPart;
typedef struct DatasetInfo {
    DatasetKind kind;
    int count, classes, damaged;
    int *per_class;     // [classes]
    DatasetSize *sizes; // most frequent first
    int size_count;
    DatasetPart *parts; // CIFAR files and shards with their samples; none for folders
    int part_count;
    uint64_t bytes; // of picture files (CIFAR: of records)
} DatasetInfo;
// Decodes everything (damaged members are found and dropped); arrays hang on `parent`.
bool dataset_info(void *parent, Dataset *set, DatasetInfo *info, DatasetProgress progress,
                  void *user, Error *err);

typedef struct DatasetImport {
    uint64_t shard_size; // bytes of a tar before packing; 0: 256 MiB
    bool gzip;           // NNNNNN.tar.gz
    DatasetProgress progress;
    void *user;
} DatasetImport;
typedef struct DatasetImported {
    int count, shards;
    uint64_t bytes;
} DatasetImported;
// Writes `set` as DST/NNNNNN.tar and DST/classes.txt. DST must not exist or be empty. Pictures keep
// their bytes; damaged ones are skipped and counted in the set (or refused, if it is strict, before
// anything is written). After an error or a cancel nothing of it stays in DST.
bool dataset_import(Dataset *set, const char *dst, const DatasetImport *options,
                    DatasetImported *imported, Error *err);

// A contact sheet: one row per class (the first `rows`), `columns` pictures in each, size x size,
// spread over the set.
Image *dataset_preview(void *parent, const Dataset *set, int rows, int columns, int size,
                       Error *err);

// For dataset_import.c: sizes of pictures and files as dataset_load's decoding saw them. [count],
// NULL before.
typedef struct DatasetShape {
    int width, height;
    uint64_t bytes;
} DatasetShape;
const DatasetShape *dataset_shapes(const Dataset *set);
void dataset_parts(void *parent, const Dataset *set, DatasetInfo *info); // parts and bytes

#endif
