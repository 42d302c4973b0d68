// test_npy.c: NumPy files: NumPy's own bytes, round trips, hostile headers, truncation, damage.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "backend/os.h"
#include "engine/npy.h"
#include "tests/damage.h"
#include "tests/scratch.h"

// Version 1 (or `major`) with the dict as given, in a block of exactly its size.
static Bytes make_file(int major, const char *dict, size_t data_bytes) {
    size_t length = strlen(dict), start = major == 1 ? 10 : 12;
    Bytes b = {.n = start + length + data_bytes};
    b.v = calloc(1, b.n);
    memcpy(b.v, "\x93NUMPY", 6);
    b.v[6] = (uint8_t)major;
    b.v[8] = (uint8_t)length;
    b.v[9] = (uint8_t)(length >> 8);
    memcpy(b.v + start, dict, length);
    for (size_t i = 0; i < data_bytes; i++) b.v[start + length + i] = (uint8_t)(i * 7);
    return b;
}

static void expect_refused(Bytes b, const char *part) {
    Error err = {0};
    NpyArray a;
    if (npy_parse(NULL, "some.npy", b.v, b.n, &a, &err))
        fail_msg("expected an error with \"%s\", found none", part);
    assert_int_equal(err.status, STATUS_FAILED);
    if (!strstr(err.text, part)) fail_msg("expected \"%s\" in: %s", part, err.text);
    assert_non_null(strstr(err.text, "some.npy"));
    assert_null(a.data);
    free(b.v);
}

// The bytes that NumPy 2.4 writes for numpy.save(f, numpy.float32([[1, -2, 0.5]])).
static void writes_what_numpy_writes(void **state) {
    const char *dir = *state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *path = mem_printf(scope, "%s/a.npy", dir);
    uint8_t want[128 + 12];
    static const char head[] = "\x93NUMPY\x01\x00\x76\x00"
                               "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }";
    memset(want, ' ', sizeof want);
    memcpy(want, head, sizeof head - 1);
    want[127] = '\n';
    static const float x[3] = {1, -2, 0.5f};
    memcpy(want + 128, x, sizeof x);
    assert_true(npy_write(path, DT_F32, 2, (int64_t[]){1, 3}, x, &err));
    size_t n;
    uint8_t *got = os_read_file(scope, path, 1000, &n, &err);
    assert_int_equal(n, sizeof want);
    assert_memory_equal(got, want, n);
    os_remove(path, &err);
    mem_free(scope);
}

static void round_trips(void **state) {
    const char *dir = *state;
    void *scope = mem_new(NULL, 1);
    char *path = mem_printf(scope, "%s/a.npy", dir);
    static const struct {
        DType dtype;
        int ndim;
        int64_t shape[8];
        size_t count;
    } cases[] = {
        {DT_F32, 4, {1, 4, 3, 2}, 24},
        {DT_F16, 1, {7}, 7},
        {DT_I32, 2, {3, 3}, 9},
        {DT_F64, 0, {0}, 1},
        {DT_U8, 1, {5}, 5},
        {DT_I64, 2, {1, 2}, 2},
        {DT_I16, 1, {3}, 3},
        {DT_I8, 1, {3}, 3},
        {DT_BOOL, 1, {2}, 2},
        {DT_F32, 3, {2, 0, 4}, 0},
        {DT_F32, 8, {1, 1, 1, 1, 1, 1, 1, 2}, 2},
    };
    uint8_t data[256];
    for (int i = 0; i < 256; i++) data[i] = (uint8_t)(i * 37);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Error err = {0};
        NpyArray a;
        if (!npy_write(path, cases[i].dtype, cases[i].ndim, cases[i].shape, data, &err) ||
            !npy_read(scope, path, &a, &err))
            fail_msg("case %zu: %s", i, err.text);
        assert_true(a.dtype == cases[i].dtype && a.ndim == cases[i].ndim);
        assert_memory_equal(a.shape, cases[i].shape, sizeof(int64_t) * (size_t)a.ndim);
        assert_int_equal(a.count, cases[i].count);
        assert_int_equal(a.bytes, cases[i].count * (size_t)dtype_size(a.dtype));
        assert_memory_equal(a.data, data, a.bytes);
    }
    Error err = {0};
    assert_false(npy_write(path, DT_BF16, 1, (int64_t[]){1}, data, &err));
    assert_non_null(strstr(err.text, "found bf16"));
    assert_false(npy_write(path, DT_F32, 9, NULL, data, &err));
    assert_false(npy_write(path, DT_F32, 1, (int64_t[]){-1}, data, &err));
    assert_false(npy_write(path, DT_F32, 2, (int64_t[]){1ll << 40, 1ll << 40}, data, &err));
    os_remove(path, &err);
    mem_free(scope);
}

static void reads_as_f32(void **state) {
    const char *dir = *state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *path = mem_printf(scope, "%s/h.npy", dir);
    static const uint16_t half[4] = {0x3c00, 0xc000, 0x3800, 0x7bff};
    assert_true(npy_write(path, DT_F16, 2, (int64_t[]){2, 2}, half, &err));
    NpyArray a;
    float *v = npy_read_f32(scope, path, 2, (int64_t[]){2, -1}, &a, &err);
    assert_non_null(v);
    assert_true(v[0] == 1 && v[1] == -2 && v[2] == 0.5f && v[3] == 65504);
    assert_true(a.dtype == DT_F32 && a.bytes == 16 && a.shape[1] == 2 && a.data == v);
    assert_non_null(npy_read_f32(scope, path, -1, NULL, NULL, &err));
    assert_null(npy_read_f32(scope, path, 2, (int64_t[]){2, 3}, NULL, &err));
    assert_non_null(strstr(err.text, "expected an array of shape [2, 3], found [2, 2]"));
    assert_null(npy_read_f32(scope, path, 1, (int64_t[]){-1}, NULL, &err));
    static const uint16_t infinite[4] = {0x3c00, 0xc000, 0x7c00, 0x3800};
    assert_true(npy_write(path, DT_F16, 2, (int64_t[]){2, 2}, infinite, &err));
    assert_null(npy_read_f32(scope, path, -1, NULL, NULL, &err));
    assert_non_null(strstr(err.text, "expected finite numbers, found inf at element 2"));
    assert_null(npy_read_f32(scope, "/nonexistent.npy", -1, NULL, NULL, &err));
    assert_non_null(strstr(err.text, "/nonexistent.npy"));
    os_remove(path, &err);
    mem_free(scope);
}

static void reads_other_spellings(void **state) {
    (void)state;
    static const struct {
        int major;
        const char *dict;
        size_t data;
        int ndim;
    } cases[] = {
        {2, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }  \n", 24, 2},
        {3, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3,)}", 24, 2},
        {1, "{\"shape\":(),\"descr\":\"<f4\",\"fortran_order\":False}\n", 4, 0},
        {1, "{'descr':'<f4','fortran_order':False,'shape':(6,)}", 24, 1},
        {1, "{'descr':'<f4','fortran_order':False,'shape':(0, 9223372036854775807)}", 0, 2},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Error err = {0};
        NpyArray a;
        Bytes b = make_file(cases[i].major, cases[i].dict, cases[i].data);
        if (!npy_parse(NULL, "x", b.v, b.n, &a, &err)) fail_msg("case %zu: %s", i, err.text);
        assert_int_equal(a.ndim, cases[i].ndim);
        assert_int_equal(a.bytes, cases[i].data);
        assert_memory_equal(a.data, b.v + b.n - cases[i].data, cases[i].data);
        mem_free(a.data);
        free(b.v);
    }
}

#define DICT(descr, order, shape)                                                                  \
    "{'descr': " descr ", 'fortran_order': " order ", 'shape': " shape ", }"

static void refuses_hostile_headers(void **state) {
    (void)state;
    static const struct {
        const char *dict;
        size_t data;
        const char *part;
    } cases[] = {
        {DICT("'<f4'", "True", "(2, 2)"), 16, "Fortran order"},
        {DICT("'>f4'", "False", "(2,)"), 8, "found '>f4'"},
        {DICT("'<c8'", "False", "(1,)"), 8, "found '<c8'"},
        {DICT("'|O'", "False", "(1,)"), 8, "found '|O'"},
        {DICT("'<f4444444444444444444'", "False", "(1,)"), 8, "little-endian"},
        {DICT("[('x', '<f4')]", "False", "(1,)"), 4, "structured"},
        {DICT("'<f4'", "False", "(3,)"), 8, "expected 12 bytes for its shape, found 8"},
        {DICT("'<f4'", "False", "(1,)"), 8, "expected 4 bytes for its shape, found 8"},
        {DICT("'<f4'", "False", "(4294967296, 4294967296)"), 0, "fits in memory"},
        {DICT("'<f4'", "False", "(2147483648, 2147483648)"), 0, "fits in memory"},
        {DICT("'<f4'", "False", "(99999999999999999999,)"), 0, "expected a shape"},
        {DICT("'<f4'", "False", "(9223372036854775808,)"), 0, "expected a shape"},
        {DICT("'<f4'", "False", "(-1,)"), 0, "expected a shape"},
        {DICT("'<f4'", "False", "(1 2)"), 8, "expected a shape"},
        {DICT("'<f4'", "False", "(,)"), 4, "expected a shape"},
        {DICT("'<f4'", "False", "[1]"), 4, "expected a shape"},
        {DICT("'<f4'", "False", "(1"), 4, "expected a shape"},
        {DICT("'<f4'", "False", "(1,1,1,1,1,1,1,1,1)"), 4, "at most 8 dimensions"},
        {DICT("'<f4'", "Maybe", "(1,)"), 4, "expected an .npy header"},
        {"{'descr': '<f4', 'shape': (1,)}", 4, "expected an .npy header"},
        {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", 4,
         "expected an .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}", 4,
         "expected an .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x", 4, "expected an .npy header"},
        {"{'descr", 0, "expected an .npy header"},
        {"{'de\\'", 0, "expected an .npy header"},
        {"{", 0, "expected an .npy header"},
        {"", 4, "expected an .npy header"},
        {"   ", 4, "expected an .npy header"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        expect_refused(make_file(1, cases[i].dict, cases[i].data), cases[i].part);
    expect_refused(make_file(4, DICT("'<f4'", "False", "(1,)"), 4),
                   "version 1.0 to 3.0, found 4.0");
    expect_refused(make_file(0, DICT("'<f4'", "False", "(1,)"), 4), "version");
    Bytes b = make_file(1, DICT("'<f4'", "False", "(1,)"), 4);
    b.v[7] = 1;
    expect_refused(b, "found 1.1");
    b = make_file(1, DICT("'<f4'", "False", "(1,)"), 4);
    b.v[0] = 'P';
    expect_refused(b, "expected a NumPy .npy file");
    b = make_file(2, DICT("'<f4'", "False", "(1,)"), 4);
    b.v[11] = 0xff; // a header of 4 GB
    expect_refused(b, ".npy header of at most");
    b = make_file(1, "{\0}", 0);
    expect_refused(b, "expected an .npy header");
}

static bool accepts(const Bytes *c) {
    Error err = {0};
    NpyArray a;
    bool ok = npy_parse(NULL, "damaged", c->v, c->n, &a, &err);
    if (ok) assert_true(a.bytes == a.count * (uint64_t)dtype_size(a.dtype) && a.bytes <= c->n);
    else assert_true(err.status == STATUS_FAILED);
    mem_free(a.data);
    return ok;
}

static void survives_truncation_and_damage(void **state) {
    (void)state;
    Bytes b = make_file(1, DICT("'<f4'", "False", "(2, 3)"), 24);
    every_truncation(b, expect_refused);
    random_damage(b, 77, 3, accepts);
    free(b.v);
}

#define IN_FOLDER(test) \
    cmocka_unit_test_setup_teardown(test, scratch_set_up, scratch_tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_FOLDER(writes_what_numpy_writes),
        IN_FOLDER(round_trips),
        IN_FOLDER(reads_as_f32),
        cmocka_unit_test(reads_other_spellings),
        cmocka_unit_test(refuses_hostile_headers),
        cmocka_unit_test(survives_truncation_and_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
