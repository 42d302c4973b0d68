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

typedef struct Cpu {
    Pool *pool;
    int features;
    void *scratch; // one space of SCRATCH_BYTES per thread
    void *onednn;  // cached primitives; NULL until the first
    void *pack;    // weights in the layout of the AMX kernels; NULL until the first
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

#define ROW(op, name, need, fits, run)           \
    bool fits(const OpCall *call, char why[128]); \
    void run(Cpu *cpu, const OpCall *call);
#include "backend/cpu/kernels.def"
#undef ROW

#endif
