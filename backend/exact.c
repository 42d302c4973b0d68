// exact.c: see exact.h.
#include "backend/exact.h"

extern const ExactRow exact_avx512, exact_avx2, exact_plain;

int exact_rows(const ExactRow *out[EXACT_ROWS_MAX]) {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        out[n++] = &exact_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out[n++] = &exact_avx2;
#endif
    out[n++] = &exact_plain;
    return n;
}

const ExactRow *exact_row(void) {
    const ExactRow *rows[EXACT_ROWS_MAX];
    exact_rows(rows);
    return rows[0];
}
