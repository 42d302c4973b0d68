// exact_plain.c: the loops of exact.h for any processor.
#include "backend/exact_decode.h"
#include "backend/exact_encode.h"

const ExactRow exact_plain;
const ExactRow exact_plain = {"plain",    load_row,    store_row,  decode_row,
                              encode_row, largest_row, squares_row};
