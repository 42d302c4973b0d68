// cpu.h: what the kernels of device `cpu` share.
#ifndef KILN_CPU_CPU_H
#define KILN_CPU_CPU_H

#include "backend/cpu/pool.h"
#include "backend/cpu/ref.h"

// What a row needs of the processor; bits.
enum {
    NEED_AVX2 = 1,        // with FMA and F16C
    NEED_AVX512 = 2,      // F, BW, VL, DQ
    NEED_AVX512_BF16 = 4, // dot products of bf16 pairs
    NEED_AMX_BF16 = 8,    // matrix tiles, granted by the system
};
int cpu_features(void);

// Rows of a weight in a packed type, which a product decodes itself (fuse.c).
typedef struct PackedRows {
    DType type;
    const uint8_t *data;
    const float *scale; // NULL: 1
} PackedRows;

typedef struct Cpu {
    Pool *pool;
    int features;
    void *scratch; // one space of SCRATCH_BYTES per thread
    void *onednn;  // cached primitives; NULL until the first
    void *pack;    // weights in the layout of the AMX kernels; NULL until the first
    const PackedRows *packed; // the running product's w as it is stored; NULL: as the call says
} Cpu;
void onednn_close(Cpu *cpu);

enum { SCRATCH_BYTES = 8 << 20 };
static inline void *cpu_scratch(const Cpu *cpu, int thread) {
    return (char *)cpu->scratch + (size_t)thread * SCRATCH_BYTES;
}

// One kernel row: a way to run an op. Rows stand in kernels.def.
typedef struct CpuRow {
    OpId op;
    const char *name;
    int need;                                        // NEED_*
    bool (*fits)(const OpCall *call, char why[128]); // why is never NULL
    void (*run)(Cpu *cpu, const OpCall *call);
} CpuRow;

// What became of a step of a program: `skip`: not run; data: see Cpu.packed.
typedef struct Fused { bool skip; PackedRows packed; } Fused;
// Finds results of dequant that products alone read, and which they decode as they pack: NULL, or one
// Fused per step, owned by the program. packs[i]: does step i's kernel take a packed w?
Fused *fuse_dequant(Program *prog, const bool *packs);
// Can gemm_amx decode w itself, were it packed in rows of K?
bool gemm_amx_packs(Cpu *cpu, const OpCall *call);
// n decoded numbers of a packed type, whole blocks (avx512).
void unpack_avx512(DType type, const uint8_t *from, float *to, int64_t n);

#define ROW(op, name, need, fits, run)           \
    bool fits(const OpCall *call, char why[128]); \
    void run(Cpu *cpu, const OpCall *call);
#include "backend/cpu/kernels.def"
#undef ROW

#endif
