// tensor.h: what C, GLSL and CUDA kernels agree on: the argument block of an op.
//
// A dispatch receives the device address of one immutable block `struct <Op>Args`: one TensorArg
// per operand (in the order of the op's operand list), then the op's parameters. All members are
// 32-bit, so C, std430 and scalar layouts agree without padding.
#ifndef KILN_OPS_TENSOR_H
#define KILN_OPS_TENSOR_H

#ifdef KILN_GLSL
#define U32 uint
#define I32 int
#define F32 float
#else
#include <stdint.h>
#define U32 uint32_t
#define I32 int32_t
#define F32 float
#endif

#define MAX_DIMS 6

// A tensor in memory. shape and stride are padded in FRONT to six dimensions (shape 1, stride 0):
// a kernel over [B, M, N] reads entries 3, 4, 5. Strides count elements; 0 broadcasts.
// An absent optional operand has address 0.
struct TensorArg {
    U32 addr_lo, addr_hi; // device address of the first element
    U32 dtype;            // as DType in dtype.h
    U32 count_hi;         // unused, 0
    U32 shape[MAX_DIMS];
    U32 stride[MAX_DIMS];
};

#define DTYPE_F32 0
#define DTYPE_F16 1
#define DTYPE_BF16 2
#define DTYPE_I32 3
// Packed: only dequant reads them.
#define DTYPE_F8_E4M3 4
#define DTYPE_F8_E5M2 5
#define DTYPE_Q8_0 12
#define DTYPE_Q4_0 13
#define DTYPE_Q4_1 14
#define DTYPE_Q5_0 15
#define DTYPE_Q5_1 16
#define DTYPE_Q2_K 17
#define DTYPE_Q3_K 18
#define DTYPE_Q4_K 19
#define DTYPE_Q5_K 20
#define DTYPE_Q6_K 21
#define DTYPE_IQ4_NL 22
#define DTYPE_IQ4_XS 23

// Activations, fused (gemm, norm) or alone (ewise).
#define ACT_NONE 0
#define ACT_SILU 1       // x sigmoid(x)
#define ACT_GELU 2       // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
#define ACT_GELU_ERF 3   // 0.5 x (1 + erf(x / sqrt 2))
#define ACT_QUICK_GELU 4 // x sigmoid(1.702 x)
#define ACT_RELU 5
#define ACT_TANH 6
#define ACT_SIGMOID 7
#define ACT_COUNT 8

#endif
