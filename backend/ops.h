// ops.h: the ops as C sees them, all generated from ops.def and ops/<op>.h: op numbers, operand
// numbers (`gemm_x`), parameter structs (`GemmParams`), the operand table, and the call record
// that travels from the graph to a backend.
#ifndef KILN_OPS_H
#define KILN_OPS_H

#include "backend/dtype.h"
#include "backend/ops/adamw.h"
#include "backend/ops/attn.h"
#include "backend/ops/attn_bwd.h"
#include "backend/ops/conv2d.h"
#include "backend/ops/copy.h"
#include "backend/ops/dequant.h"
#include "backend/ops/embed.h"
#include "backend/ops/embed_bwd.h"
#include "backend/ops/ewise.h"
#include "backend/ops/gemm.h"
#include "backend/ops/norm.h"
#include "backend/ops/norm_bwd.h"
#include "backend/ops/reduce.h"
#include "backend/ops/rope.h"

typedef struct TensorArg TensorArg;

typedef enum {
#define OP(name, NAME, Name) OP_##NAME,
#include "backend/ops.def"
#undef OP
    OP_COUNT
} OpId;

// Operand numbers: gemm_x, gemm_w, ..., gemm_operand_count.
#define OPERAND_NUMBER(op, name) op##_##name,
#define OP(name, NAME, Name)                                                             \
    enum {                                                                               \
        NAME##_OPERANDS(OPERAND_NUMBER, OPERAND_NUMBER, OPERAND_NUMBER, OPERAND_NUMBER,  \
                        OPERAND_NUMBER, OPERAND_NUMBER) name##_operand_count             \
    };
#include "backend/ops.def"
#undef OP
enum { MAX_OPERANDS = 10 };

// GemmParams, AttnParams, ...
#define OP(name, NAME, Name) \
    typedef struct Name##Params { NAME##_FIELDS } Name##Params;
#include "backend/ops.def"
#undef OP

typedef union OpParams {
#define OP(name, NAME, Name) Name##Params name;
#include "backend/ops.def"
#undef OP
} OpParams;

typedef enum { ROLE_IN = 1, ROLE_OUT = 2, ROLE_RW = 3, ROLE_OPTIONAL = 4 } OperandRole; // bits
typedef struct OperandInfo { const char *name; int role; } OperandInfo;

static inline bool role_reads(int role) { return role & ROLE_IN; }
static inline bool role_writes(int role) { return role & ROLE_OUT; }

typedef struct Buffer Buffer;
struct Cancel;
typedef struct Error Error;

// A tensor in a device buffer. Here shape and stride are NOT padded: ndim entries. Strides count
// elements (0 broadcasts an input); the last one is 1, except for `copy` and broadcast inputs of
// `ewise`, or where the dimension has length 1.
typedef struct TensorRef {
    Buffer *buffer;  // NULL: operand absent
    uint64_t offset; // bytes from the start of the buffer, a multiple of the element size
    DType dtype;
    int ndim; // 0..MAX_DIMS
    int64_t shape[MAX_DIMS];
    int64_t stride[MAX_DIMS];
} TensorRef;

typedef struct OpCall {
    OpId op;
    TensorRef t[MAX_OPERANDS];
    OpParams params;
    const char *label; // for messages and dumps; may be NULL
    const char *row;   // forces this kernel row (conformance, benchmarks); NULL: the first that fits
    // Set by host devices while the call runs: kernels ask between pieces of work, in the thread that
    // waits, and once asked leave the rest undone. NULL: never.
    const struct Cancel *cancel;
} OpCall;

// What an op costs: floating-point operations and bytes touched.
typedef struct Work { double flops, bytes; } Work;

typedef struct OpInfo {
    const char *name;
    int operand_count;
    const OperandInfo *operand;
    size_t params_size;
    // Are shapes, types and parameters as ops/<op>.h says? Called by op_check after its own
    // checks of every operand (presence, ranks up to 6, strides).
    bool (*check)(const OpCall *call, Error *err);
    Work (*work)(const OpCall *call);
} OpInfo;
extern const OpInfo op_info[OP_COUNT];

// Everything that can be checked without a device: required operands, types, shapes, strides,
// extents inside the buffers, outputs that overlap inputs in any but the element-by-element way.
bool op_check(const OpCall *call, Error *err);

int64_t ref_count(const TensorRef *t);    // elements
uint64_t ref_extent(const TensorRef *t);  // bytes from the first to the end of the last element
bool ref_contiguous(const TensorRef *t);  // row-major without gaps
TensorArg tensor_arg(const TensorRef *t, uint64_t address); // padded in front to six dimensions
// Dimension i (0..5) of the padded form.
int64_t ref_dim(const TensorRef *t, int i);
int64_t ref_stride(const TensorRef *t, int i);

// For op_check_<op>: each fails with the op, its operand and both shapes in the text.
bool want_dims(const OpCall *call, int operand, int ndim, const int64_t *dims, Error *err); // exact
bool want_broadcast(const OpCall *call, int operand, int ndim, const int64_t *dims, Error *err); // or 1
bool want_dtype(const OpCall *call, int operand, const DType *allowed, int n, Error *err);
bool want_float(const OpCall *call, int operand, Error *err); // f32, f16, bf16
bool want_f32(const OpCall *call, int operand, Error *err);
bool want_rank(const OpCall *call, int operand, int ndim, Error *err);

// Height or width of a conv2d's result from `n` of x, `r` of the kernel; below 1: none.
int64_t conv2d_size(int64_t n, int64_t r, const Conv2dParams *p, uint32_t pad_before,
                    uint32_t pad_after);

// y = act(x), and act'(x), in f64: the truth that every fused or separate activation is held to.
double act_value(uint32_t act, double x);
double act_slope(uint32_t act, double x);

#endif
