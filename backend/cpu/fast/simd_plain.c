// simd_plain.c: the vector kernels of simd.h, compiled for any processor.
#define FN(name) name##_plain
#include "backend/cpu/fast/simd.h"
