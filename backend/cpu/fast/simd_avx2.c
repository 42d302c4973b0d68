// simd_avx2.c: the vector kernels of simd.h, compiled for AVX2.
#define FN(name) name##_avx2
#include "backend/cpu/fast/simd.h"
