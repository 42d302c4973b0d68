// exact_avx512.c: the loops of exact.h, compiled for AVX-512.
#if defined(__x86_64__)
#define EXACT_NAME "avx512"
#define EXACT_ROW exact_avx512
#include "backend/exact_encode.h"
#endif
