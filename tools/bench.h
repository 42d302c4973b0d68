// bench.h: what `kiln bench` measures: one op call or one model, as a median of several runs.
#ifndef KILN_TOOLS_BENCH_H
#define KILN_TOOLS_BENCH_H

#include "tests/conform.h"
#include "tools/cmd.h"

typedef struct BenchSize { // zero: the default of the op
    int64_t batch, m, n, k, tokens, keys, heads, dim, rows, channels;
    DType type;
    DType weights; // of a text model; DT_COUNT: as in the file
} BenchSize;

typedef struct BenchResult {
    char op[24], size[64], row[48];
    const char *type;
    double seconds;      // of one call
    double gflops, gbps; // 1e9 per second
    double share_of_peak; // the larger of the two shares: what bounds the call
    double of_openblas;   // speed beside OpenBLAS's own sgemm of the same size; 0: not a gemm
} BenchResult;

// What the device can do at best, measured in the same run: matrix products of each type (when
// first needed) and copies, of the fastest row. CPUs and software devices are held to device `cpu`
// (OpenBLAS, oneDNN), other devices to themselves.
typedef struct BenchPeak { double gflops[DT_COUNT], gbps; const char *of; } BenchPeak;

typedef struct Bench {
    Cmd *cmd;
    void *mem;
    Device *dev, *cpu; // cpu: the yardstick; may be dev itself
    BenchPeak peak;
} Bench;

// The cases of the table that `kiln bench` prints without options; false past the last.
bool bench_table(int i, Case *c, const char **what);
// One op of the given size. False with *err where the op has no such benchmark.
bool bench_case(OpId op, const BenchSize *size, Case *c, Error *err);
// Measures c on `row` (NULL: what dispatch takes). *fits is false where no row takes it.
bool bench_run(Bench *b, Device *dev, const Case *c, const char *row, BenchResult *r, bool *fits,
               Error *err);
bool bench_peak(Bench *b, DType type, Error *err); // so that b->peak is known for the type
// A part of FLUX.1 in `compute`, weights in `weights` (DT_COUNT: as in the file). model: a file or
// folder of the transformer, a file of T5, CLIP or an autoencoder, or a name that --dummy takes (its
// transformer).
bool bench_flux(Bench *b, const char *model, int width, int height, DType compute, DType weights,
                BenchResult *r, int *count, Error *err);
bool bench_model(Bench *b, const char *model, int64_t batch, DType type, BenchResult *r, int *count,
                 Error *err); // fills up to 4 results
enum { BENCH_MODEL_RESULTS = 8 };
// Loads a file of weights as `type` (DT_COUNT: as in the file) and prints what that took.
bool bench_load(Bench *b, const char *path, DType type, Error *err);

#endif
