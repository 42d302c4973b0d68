// damage.h: files in memory, cut and flipped, for the tests of parsers.
#ifndef KILN_TESTS_DAMAGE_H
#define KILN_TESTS_DAMAGE_H

#include "engine/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

// A file in a block (malloc) of exactly its size, so that sanitizers see every byte read past it.
typedef struct Bytes {
    uint8_t *v;
    size_t n;
} Bytes;

static inline Bytes cut_copy(Bytes b, size_t n) {
    Bytes c = {.v = malloc(MAX(n, 1)), .n = n};
    memcpy(c.v, b.v, n);
    return c;
}

// A file that ends early is refused wherever it ends. `refused` fails the test where it is not, and
// frees its bytes.
static inline void every_truncation(Bytes b, void (*refused)(Bytes cut, const char *part)) {
    for (size_t n = 0; n < b.n; n++) refused(cut_copy(b, n), "expected");
}

enum { DAMAGE_ROUNDS = 20000 };

// Copies with 1 to `flips` random bits flipped. `accepts` parses one, checks what it got (or the
// error) and says which it was; both must have happened often enough.
static inline void random_damage(Bytes b, uint64_t seed, uint64_t flips,
                                 bool (*accepts)(const Bytes *damaged)) {
    Rng r;
    rng_seed(&r, seed, 0);
    int accepted = 0;
    for (int round = 0; round < DAMAGE_ROUNDS; round++) {
        Bytes c = cut_copy(b, b.n);
        for (uint64_t k = 1 + rng_below(&r, flips); k > 0; k--) {
            size_t at = (size_t)rng_below(&r, c.n);
            c.v[at] ^= (uint8_t)(1u << rng_below(&r, 8));
        }
        accepted += accepts(&c);
        free(c.v);
    }
    assert_true(accepted > 100 && DAMAGE_ROUNDS - accepted > 1000);
}

#endif
