// test_exact.c: the loops of backend/exact.h give equal bits on every instruction set: conversions
// those of dtype.c's functions for single numbers, encoders those that were noted when they were
// plain C; for any number of blocks, at any address.
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>

#include "backend/exact.h"
#include "backend/quant.h"

enum { BLOCKS = 321, N = 256 * BLOCKS };

// Numbers as weights are, made of whole ones (equal on every machine), and blocks that are not:
// on one side of 0, constant, sparse, with an outlier, with ties, tiny, huge.
static float *numbers(void) {
    float *x = malloc(N * sizeof *x);
    uint32_t s = 12345;
    for (int i = 0; i < N; i++) {
        int32_t sum = 0;
        for (int k = 0; k < 4; k++) s = s * 1664525 + 1013904223, sum += (int32_t)(s >> 16) - 32768;
        float v = (float)sum * 0x1p-21f;
        switch (i / 256 % 16) {
        case 0: x[i] = fabsf(v); break;
        case 1: x[i] = -fabsf(v); break;
        case 2: x[i] = i / 256 % 32 == 2 ? 0 : -0.75f; break;
        case 3: x[i] = i % 32 ? 0 : v; break;
        case 4: x[i] = i % 97 ? v : v * 1000; break;
        case 5: x[i] = (float)(int)(v * 100); break;
        case 6: x[i] = v * 0x1p-120f; break;
        case 7: x[i] = v * 0x1p120f; break;
        case 8: x[i] = i % 64 < 32 ? 0 : v; break;
        default: x[i] = v;
        }
    }
    return x;
}

static uint64_t hash(const uint8_t *p, uint64_t n) { // FNV-1a
    uint64_t h = 14695981039346656037u;
    for (uint64_t i = 0; i < n; i++) h = (h ^ p[i]) * 1099511628211u;
    return h;
}

static const struct { DType type; uint64_t hash; } noted[] = {
    {DT_F8_E4M3, 0xe064275a5b204534}, {DT_F8_E5M2, 0xd83cc5bfcc1b93e5},
    {DT_Q8_0, 0x409d80947352678e},    {DT_Q4_0, 0x59d3255676a80490},
    {DT_Q4_1, 0xf91638049e969182},    {DT_Q5_0, 0xc93dd15ab4e8bc3a},
    {DT_Q5_1, 0x69f17e61a0727bac},    {DT_Q2_K, 0xa48586854502cc56},
    {DT_Q3_K, 0xd241622047ec52f1},    {DT_Q4_K, 0x2bfc7ae266229f71},
    {DT_Q5_K, 0x00298ef656e28498},    {DT_Q6_K, 0xcd7e9736cbc8848f},
    {DT_IQ4_NL, 0x6e0a05e41164e6c5},  {DT_IQ4_XS, 0x7cd92bc14511a4f6},
};

static void test_noted_bits(void **state) {
    (void)state;
    const ExactRow *rows[EXACT_ROWS_MAX];
    int n = exact_rows(rows);
    assert_string_equal(rows[n - 1]->name, "plain");
    assert_ptr_equal(rows[0], exact_row());
    float *x = numbers();
    uint8_t *out = malloc(2 * N);
    for (int r = 0; r < n; r++) {
        print_message("row %s\n", rows[r]->name);
        for (size_t k = 0; k < COUNT_OF(noted); k++) {
            rows[r]->encode(noted[k].type, x, out, N);
            uint64_t h = hash(out, dtype_bytes(noted[k].type, N));
            if (h != noted[k].hash)
                fail_msg("%s: expected the bits %016llx, found %016llx", dtype_name(noted[k].type),
                         (unsigned long long)noted[k].hash, (unsigned long long)h);
        }
    }
    free(x), free(out);
}

// Some blocks of them, to an odd address, are those among all; nothing beside is touched.
static void test_any_count(void **state) {
    (void)state;
    const ExactRow *rows[EXACT_ROWS_MAX];
    int n = exact_rows(rows);
    float *x = numbers();
    uint8_t *all = malloc(2 * N), *some = malloc(2 * N);
    for (int r = 0; r < n; r++)
        for (size_t k = 0; k < COUNT_OF(noted); k++) {
            DType t = noted[k].type;
            rows[r]->encode(t, x, all, N);
            for (int count = 0; count < 40; count += 1 + count / 5) {
                const int64_t from = 512 * count, m = count * dtype_block(t);
                uint64_t skip = dtype_bytes(t, (uint64_t)from), bytes = dtype_bytes(t, (uint64_t)m);
                memset(some, 0x5a, bytes + 64);
                rows[r]->encode(t, x + from, some + 33, m);
                assert_memory_equal(some + 33, all + skip, bytes);
                for (int i = 0; i < 31; i++) assert_int_equal(some[33 + bytes + i], 0x5a);
                for (int i = 0; i < 33; i++) assert_int_equal(some[i], 0x5a);
            }
        }
    free(x), free(all), free(some);
}

static const DType plain_types[] = {DT_BF16, DT_F16, DT_F8_E4M3, DT_F8_E5M2};

// Random blocks: the same numbers on all instruction sets, and from fewer of them.
static void test_decoders(void **state) {
    (void)state;
    enum { COUNT = 256 * 40 };
    const ExactRow *rows[EXACT_ROWS_MAX];
    int n = exact_rows(rows);
    uint8_t *data = malloc(2 * COUNT + 1);
    float *want = malloc(COUNT * sizeof *want), *got = malloc((COUNT + 1) * sizeof *got);
    uint32_t s = 99;
    for (int i = 0; i < 2 * COUNT + 1; i++) {
        s = s * 1664525 + 1013904223;
        data[i] = (uint8_t)(s >> 24);
    }
    for (size_t k = 0; k < COUNT_OF(noted); k++) {
        DType t = noted[k].type;
        rows[n - 1]->decode(t, data + 1, want, COUNT);
        for (int i = 0; i < COUNT; i += 7) { // one by one too
            float one = quant_load(t, data + 1, i);
            assert_true(!memcmp(&one, &want[i], 4) || (isnan(one) && isnan(want[i])));
        }
        for (int r = 0; r < n; r++)
            for (int count = COUNT; count >= 0; count -= 256 * 13) {
                got[count] = 12345;
                rows[r]->decode(t, data + 1, got, count);
                assert_true(got[count] == 12345);
                for (int i = 0; i < count; i++)
                    if (memcmp(&got[i], &want[i], 4) && !(isnan(got[i]) && isnan(want[i])))
                        fail_msg("%s, %s[%d]: expected %a, found %a", rows[r]->name,
                                 dtype_name(t), i, want[i], got[i]);
            }
    }
    free(data), free(want), free(got);
}

// Every number of 8 and 16 bits, NaN and all.
static void test_loads(void **state) {
    (void)state;
    const ExactRow *rows[EXACT_ROWS_MAX];
    int n = exact_rows(rows);
    enum { ALL = 1 << 16 };
    float *got = malloc((ALL + 1) * sizeof *got);
    uint8_t *data = malloc(2 * ALL + 1);
    for (int r = 0; r < n; r++)
        for (size_t k = 0; k < COUNT_OF(plain_types); k++) {
            DType t = plain_types[k];
            const int size = dtype_size(t), count = size == 1 ? 256 : ALL;
            uint8_t *odd = data + 1;
            for (int i = 0; i < count; i++) {
                odd[i * size] = (uint8_t)i;
                odd[i * size + size - 1] = (uint8_t)(i >> 8 * (size - 1));
            }
            for (int from = 0; from < 20; from++) { // and tails of all lengths
                const int m = count - from;
                got[m] = 12345;
                assert_true(rows[r]->load(t, odd + from * size, got, (size_t)m));
                assert_true(got[m] == 12345);
                for (int i = 0; i < m; i++) {
                    float want = dtype_load(t, odd, (size_t)(from + i));
                    if (memcmp(&want, &got[i], 4))
                        fail_msg("%s, %s %#x: expected %a, found %a", rows[r]->name, dtype_name(t),
                                 from + i, want, got[i]);
                }
            }
        }
    assert_false(rows[0]->load(DT_I16, data, got, 1));
    free(got), free(data);
}

// Bits of all sorts, and around every number of 16 bits and the middles between them.
static void test_stores(void **state) {
    (void)state;
    const ExactRow *rows[EXACT_ROWS_MAX];
    int n = exact_rows(rows);
    enum { COUNT = 5 << 16 };
    float *x = malloc(COUNT * sizeof *x);
    uint8_t *got = malloc(2 * COUNT + 2), want[2];
    uint32_t s = 1;
    for (uint32_t i = 0; i < COUNT; i++) {
        s = s * 1664525 + 1013904223;
        float half = f32_from_f16((uint16_t)i);
        uint32_t bits;
        memcpy(&bits, &half, 4);
        bits = i < 1 << 16   ? s ^ s >> 16 << 7
               : i < 2 << 16 ? i << 16 | (i % 3 * 0x4000 + (i / 3) % 3) // bf16: 0, 1/4, 1/2 on
               : i < 3 << 16 ? bits + 0x1000 + i % 3 - 1                // f16: around the middles
               : i < 4 << 16 ? bits + i % 5 - 2
                             : s >> 8 << 13 | (s & 1); // few bits: ties of fp8
        memcpy(&x[i], &bits, 4);
    }
    for (int r = 0; r < n; r++)
        for (size_t k = 0; k < COUNT_OF(plain_types); k++) {
            DType t = plain_types[k];
            const int size = dtype_size(t);
            got[COUNT * size + 1] = 0x5a;
            assert_true(rows[r]->store(t, x, got + 1, COUNT));
            assert_int_equal(got[COUNT * size + 1], 0x5a);
            for (int i = 0; i < COUNT; i++) {
                dtype_store(t, want, 0, x[i]);
                if (memcmp(want, got + 1 + i * size, (size_t)size))
                    fail_msg("%s, %s of %a: another than dtype_store's", rows[r]->name,
                             dtype_name(t), x[i]);
            }
        }
    assert_false(rows[0]->store(DT_I16, x, got, 1));
    free(x), free(got);
}

// dtype_convert between any two types is by way of f32.
static void test_pairs(void **state) {
    (void)state;
    static const DType types[] = {DT_F32, DT_F16, DT_BF16, DT_F8_E4M3, DT_F8_E5M2, DT_I8, DT_F64};
    enum { COUNT = 2500 };
    float *x = numbers();
    uint8_t *from = malloc(8 * COUNT), *got = malloc(8 * COUNT), want[8];
    for (size_t a = 0; a < COUNT_OF(types); a++)
        for (size_t b = 0; b < COUNT_OF(types) - 1; b++) {
            if (a == b) continue;
            for (int i = 0; i < COUNT; i++) {
                bool whole = types[b] == DT_I8 || types[a] == DT_I8;
                double v = whole ? i % 100 : (double)x[9 * 256 + i];
                if (types[a] == DT_F64) memcpy(from + 8 * i, &v, 8);
                else dtype_store(types[a], from, (size_t)i, (float)v);
            }
            dtype_convert(types[b], got, types[a], from, COUNT);
            for (int i = 0; i < COUNT; i++) {
                dtype_store(types[b], want, 0, dtype_load(types[a], from, (size_t)i));
                const size_t size = (size_t)dtype_size(types[b]);
                if (memcmp(want, got + (size_t)i * size, size))
                    fail_msg("%s from %s, element %d", dtype_name(types[b]), dtype_name(types[a]),
                             i);
            }
        }
    free(x), free(from), free(got);
}

// Magnitudes up to NaN, wherever they stand, and one sum of squares on all.
static void test_measures(void **state) {
    (void)state;
    const ExactRow *rows[EXACT_ROWS_MAX];
    int n = exact_rows(rows);
    float *x = numbers(), special[] = {0, -3, -INFINITY, NAN};
    for (int count = 0; count < 70; count++) {
        const float *at = x + 9 * 256;
        float top = 0;
        double squares = 0, first = rows[0]->squares(at, (size_t)count);
        for (int i = 0; i < count; i++) {
            top = fmaxf(top, fabsf(at[i]));
            squares += (double)at[i] * (double)at[i];
        }
        assert_true(fabs(first - squares) <= 1e-14 * squares);
        for (int r = 0; r < n; r++) {
            double again = rows[r]->squares(at, (size_t)count);
            assert_memory_equal(&again, &first, sizeof first);
            uint32_t bits = rows[r]->largest(at, (size_t)count), want;
            memcpy(&want, &top, 4);
            assert_int_equal(bits, want);
            for (int i = 0; i < count; i++) {
                float y[70], special_one = special[i % 4];
                memcpy(y, at, sizeof y);
                y[i] = special_one;
                memcpy(&want, &special_one, 4);
                if (i % 4) assert_int_equal(rows[r]->largest(y, (size_t)count), want & 0x7fffffff);
            }
        }
    }
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_noted_bits), cmocka_unit_test(test_any_count),
        cmocka_unit_test(test_decoders),   cmocka_unit_test(test_loads),
        cmocka_unit_test(test_stores),     cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_measures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
