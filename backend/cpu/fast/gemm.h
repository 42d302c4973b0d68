// gemm.h: what the matrix product rows share: operands as strided matrices, a partition of the
// output by shape alone, the epilogue.
#ifndef KILN_CPU_GEMM_H
#define KILN_CPU_GEMM_H

#include "backend/cpu/cpu.h"

// One K segment: y += x w, x [R, K] and w [K, N] per batch, strides in elements.
typedef struct Segment {
    const TensorRef *x, *w;
    int64_t K;
    int64_t xb, xr, xk; // strides of x: batch, row, k
    int64_t wb, wk, wn;
} Segment;

typedef struct GemmJob {
    Cpu *cpu;
    const OpCall *c;
    bool folded;             // batches are rows: one product of B * M rows
    int64_t B, R, N;         // batches (1 when folded), rows, columns
    Segment seg[2];
    int segments;
    int64_t mb, nb;          // rows and columns of a part
    int64_t row_blocks, col_blocks;
    bool direct;             // products are accumulated in y itself
    bool plain;              // nothing to do after them
    void (*epilogue)(const OpCall *c, int64_t b, bool folded, int64_t row0, int64_t rows,
                     int64_t n0, int64_t n, const float *acc, int64_t ld);
    void (*pack)(float *to, const TensorRef *t, int64_t place, int64_t sr, int64_t sc,
                 int64_t rows, int64_t cols);
    void *own; // a row's own data
    int failed;
} GemmJob;

// A part of the output: rows m0.. and columns n0.. of batch b.
typedef struct GemmPart { int64_t b, m0, rows, n0, cols; float *acc; int64_t ld; } GemmPart;

enum { ACC_BYTES = 1 << 20 }; // at the start of a thread's scratch: products that are not f32 in y

void gemm_setup(GemmJob *job, Cpu *cpu, const OpCall *c);
GemmPart gemm_part(const GemmJob *job, int64_t b, int64_t col, int64_t row, int thread);
void gemm_finish(const GemmJob *job, const GemmPart *part);
static inline bool blas_matrix(int64_t sr, int64_t sc, int64_t rows, int64_t cols) {
    return (sc == 1 && sr >= cols) || (sr == 1 && sc >= rows);
}
static inline char *gemm_at(const TensorRef *t, int64_t place) {
    return (char *)ref_data(t) + place * dtype_size(t->dtype);
}

#define ISA(isa)                                                                                \
    void gemm_epilogue_##isa(const OpCall *c, int64_t b, bool folded, int64_t row0, int64_t rows, \
                             int64_t n0, int64_t n, const float *acc, int64_t ld);               \
    void pack_f32_##isa(float *to, const TensorRef *t, int64_t place, int64_t sr, int64_t sc,    \
                        int64_t rows, int64_t cols);
ISA(avx512) ISA(avx2) ISA(plain)
#undef ISA

#endif
