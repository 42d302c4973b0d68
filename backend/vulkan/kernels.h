// kernels.h: the form of the rows in kernels.def, and what dispatch asks of them. Nothing here
// knows an op: a row says in data which calls it takes and how many tiles they make.
#ifndef KILN_VULKAN_KERNELS_H
#define KILN_VULKAN_KERNELS_H

#include "backend/impl.h"

enum { MAX_PASSES = 3, MAX_CONSTANTS = 8, MAX_NEEDS = 8 };
// The argument block of a step: operands, parameters, and room that its kernels may use (group norms
// leave their statistics there for the next pass).
enum { BLOCK_BYTES = 1024 };
enum { CONSTANT_THREADS = 6, CONSTANT_FLAT = 7, CONSTANT_TYPES = 16 }; // as in kiln.glsl

// Operand types as bits, for .types and .typed.
#define T_F32 (1u << DT_F32)
#define T_F16 (1u << DT_F16)
#define T_BF16 (1u << DT_BF16)
#define T_I32 (1u << DT_I32)
#define T_FLOAT (T_F32 | T_F16 | T_BF16)
#define T_PACKED (1u << DT_F8_E4M3 | 1u << DT_F8_E5M2 | ((1u << DT_COUNT) - (1u << DT_Q8_0)))
#define OPERAND(n) (1u << (n)) // for .typed and .absent

// What a device must have beyond the baseline.
enum {
    CAP_F16 = 1,          // f16 arithmetic
    CAP_INT_DOT = 2,      // 8-bit integer dot products
    CAP_MATRIX = 4,       // cooperative matrices
    CAP_SUBGROUP_OPS = 8, // shuffles, ballots (arithmetic is part of the baseline)
    CAP_CPU = 16,         // a driver that runs shaders on the CPU
};

// A number taken from the call: a literal; a dimension of an operand's padded shape; a word of the
// parameters; the dimensions left after merging those OPERAND bits; 1 if one of them spans 2^31
// elements or more, else 0.
typedef enum { FROM_VALUE, FROM_DIM, FROM_PARAM, FROM_RANK, FROM_WIDE } Source;
#define PARAM(Op, field) (offsetof(Op##Params, field) / 4)

typedef struct RowConstant {
    uint32_t id;    // specialisation constant, 32 and up
    uint32_t value; // FROM_VALUE: itself; FROM_DIM: the dimension 0..5; FROM_PARAM: PARAM(...);
                    // FROM_RANK, FROM_WIDE: OPERAND bits
    Source from;
    int operand;    // FROM_DIM
} RowConstant;

// The row takes a call only if min <= number <= max (max 0: no limit) and number is a multiple.
typedef struct RowNeed {
    Source from; // FROM_DIM or FROM_PARAM; FROM_VALUE ends the list
    int operand;
    uint32_t index; // dimension or PARAM(...)
    uint32_t min, max, multiple;
    bool zero;      // must be 0 (a max of 0 means none)
} RowNeed;

// One dispatch. A row of several passes runs them one after the other without barriers (they write
// different operands) unless `barrier` says so.
typedef struct KernelPass {
    const char *module;
    int grid;          // the operand whose shape the tiles cover
    uint32_t tile[6];  // elements per tile in its padded shape; 0: the whole dimension
    uint32_t flat;     // instead of .tile: elements per tile of the shape taken as one dimension
    // Instead of .tile: for each index of the grid operand's first four dimensions so many tiles,
    // which the shader lays out itself: a number, or (1 + PARAM(...)) a parameter, 0 counting as 1.
    uint32_t parts, parts_param;
    uint32_t threads;  // invocations per workgroup
    uint32_t subgroup; // required subgroup size; 0: any
    bool barrier;      // reads what the pass before it wrote
    int if_present;    // 1 + operand: the pass is skipped where that operand is absent; 0: always
    RowConstant constants[MAX_CONSTANTS]; // id 0 ends the list
} KernelPass;

typedef struct KernelRow {
    OpId op;
    const char *name;
    uint32_t types[MAX_OPERANDS]; // T_* that it takes; 0 means T_FLOAT
    uint32_t typed;               // OPERAND bits whose dtype becomes constant 16 + operand
    uint32_t same_type;           // OPERAND bits that must have one dtype
    uint32_t absent;              // OPERAND bits that must be absent
    // n: rows of the operand can be read as vectors of n elements: its offset, its last dimension
    // and its outer strides are multiples of n, the last stride is 1. 0 or 1: nothing asked.
    uint32_t align[MAX_OPERANDS];
    RowNeed needs[MAX_NEEDS];
    // OPERAND bits, all of one shape: the argument block has their neighbouring dimensions merged
    // where they lie one after the other in all of them (FROM_RANK says how many are left).
    uint32_t merge;
    uint32_t caps;   // CAP_*
    uint32_t shared; // bytes of shared memory
    KernelPass pass[MAX_PASSES]; // module NULL ends the list
} KernelRow;

// What a device offers to rows.
typedef struct RowLimits {
    uint32_t caps, shared, threads; // CAP_*, bytes per workgroup, invocations per workgroup
    bool choose_subgroup;           // a pipeline may ask for its subgroup size
    uint32_t subgroup_min, subgroup_max;
} RowLimits;

extern const KernelRow kernel_rows[];
extern const int kernel_row_count;

int rows_count(OpId op);
const KernelRow *rows_get(OpId op, int row); // NULL past the end
// Could a device of these limits run the call by this row? `why` (128 bytes) may be NULL.
bool row_takes(const KernelRow *row, const OpCall *call, const RowLimits *limits, char *why);
// Tiles of one pass for this call; 0 where a shape is empty or the pass is skipped.
uint64_t pass_tiles(const KernelPass *pass, const OpCall *call);
// The operands as the argument block has them (merged where the row asks for it); address 0 where
// absent.
void row_arguments(const KernelRow *row, const OpCall *call, TensorArg *args);
// Value of a constant or need.
uint32_t row_number(Source from, int operand, uint32_t index, const OpCall *call);

#endif
