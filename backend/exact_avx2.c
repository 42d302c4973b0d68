// exact_avx2.c: the loops of exact.h, compiled for AVX2.
#if defined(__x86_64__)
#define EXACT_NAME "avx2"
#define EXACT_ROW exact_avx2
#include "backend/exact_encode.h"
#endif
