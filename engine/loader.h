// loader.h: batches of a data set, shuffled, read ahead by background threads.
//
// The stream is a function of (set, seed, batch, options) alone: the same on every machine, with
// any number of threads, and for any kind of source whose list of samples is equal. It runs through
// epoch after epoch; LoaderBatch tells where to go on: opening a loader at (next_epoch,
// next_position) continues the stream bit for bit.
//
// Order: samples 0..n-1 by Fisher-Yates with Rng (rng.h) on stream 0x6c6f616400000000 + epoch
// of the seed; flips: one bit per place in the epoch, from a hash of (seed, epoch, place).
//
// Threads: one thread calls loader_next and loader_close. The set must not change meanwhile and
// must outlive the loader.
#ifndef KILN_ENGINE_LOADER_H
#define KILN_ENGINE_LOADER_H

#include "engine/dataset.h"

typedef struct Loader Loader;

typedef struct LoaderOptions {
    int batch; // 1..65536
    int size;  // side of the pictures
    uint64_t seed;
    bool shuffle;             // otherwise in the set's order
    bool flip;                // mirror half of the pictures, left to right
    bool floats;              // fill `floats` (-1..1) in place of `pixels`
    bool drop_last;           // training: leave out an epoch's partial last batch; else it is given
    int threads;              // 0: 1
    int epochs;               // stop after epoch `epochs - 1`; 0: endless
    int64_t epoch;            // where to begin ...
    int64_t position;         // ... with how many samples of that epoch already used: 0..count
    size_t cache_limit;       // bytes of decoded planes kept; 0: 1 GiB
    DatasetProgress progress; // while the set is decoded, see dataset_load; may be NULL
    void *user;
} LoaderOptions;

typedef struct LoaderBatch {
    int count;                         // pictures; 0: the last epoch is over
    const uint8_t *pixels;             // [count, 3, size, size] u8; NULL with `floats`
    const float *floats;               // [count, 3, size, size] -1..1; NULL without
    const int32_t *labels;             // [count]
    const int32_t *samples;            // [count] numbers in the set
    int64_t epoch, position;           // of the first picture
    int64_t next_epoch, next_position; // where the stream goes on: what a checkpoint keeps
} LoaderBatch;

// Decodes the set if it fits `cache_limit` (damaged pictures drop out then); a larger set is
// decoded as it is read, and a damaged picture's place is taken by the next sound one. (strict
// sets: an error.) NULL after an error.
Loader *loader_open(void *parent, Dataset *set, const LoaderOptions *options, Error *err);
// The next batch; its arrays are the loader's and last until the next call. Waits if need be.
bool loader_next(Loader *loader, LoaderBatch *batch, Error *err);
int loader_batches_per_epoch(const Loader *loader);
// Pictures replaced because they were damaged (0 when all were decoded beforehand).
int64_t loader_replaced(Loader *loader);
void loader_close(Loader *loader); // at any moment; NULL is allowed

#endif
