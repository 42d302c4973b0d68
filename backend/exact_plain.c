// exact_plain.c: the loops of exact.h for any processor.
#define EXACT_NAME "plain"
#define EXACT_ROW exact_plain
#include "backend/exact_encode.h"
