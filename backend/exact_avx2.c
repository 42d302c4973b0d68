// exact_avx2.c: the loops of exact.h, compiled for AVX2.
#if defined(__x86_64__)
#include "backend/exact_decode.h"
#include "backend/exact_encode.h"

const ExactRow exact_avx2;
const ExactRow exact_avx2 = {"avx2",     load_row,    store_row,  decode_row,
                             encode_row, largest_row, squares_row};
#endif
