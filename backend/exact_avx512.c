// exact_avx512.c: the loops of exact.h, compiled for AVX-512.
#if defined(__x86_64__)
#include "backend/exact_decode.h"
#include "backend/exact_encode.h"

const ExactRow exact_avx512;
const ExactRow exact_avx512 = {"avx512",   load_row,    store_row,  decode_row,
                               encode_row, largest_row, squares_row};
#endif
