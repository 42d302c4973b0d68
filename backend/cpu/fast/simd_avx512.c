// simd_avx512.c: the vector kernels of simd.h, compiled for AVX512.
#define FN(name) name##_avx512
#include "backend/cpu/fast/simd.h"
