// test_safetensors.c: weight files: round trips, hostile headers, every truncation, random damage.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "engine/json.h"
#include "engine/rng.h"
#include "engine/safetensors.h"
#include "tests/damage.h"
#include "tests/scratch.h"

// ---- helpers ----------------------------------------------------------------------------------

// A file in a block of exactly its size, so that sanitizers see every byte read past it.
static Bytes make_file(const char *header, size_t data_bytes) {
    uint64_t length = strlen(header);
    Bytes b = {.n = 8 + (size_t)length + data_bytes};
    b.v = malloc(b.n);
    memcpy(b.v, &length, 8);
    memcpy(b.v + 8, header, (size_t)length);
    for (size_t i = 0; i < data_bytes; i++) b.v[8 + length + i] = (uint8_t)i;
    return b;
}

// Refused with one line that holds `part`, and with the file's name.
static void expect_refused(Bytes b, const char *part) {
    Error err = {0};
    StFile *f = st_parse(NULL, "some.safetensors", b.v, b.n, &err);
    if (f) fail_msg("expected an error with \"%s\", found none", part);
    assert_int_equal(err.status, STATUS_FAILED);
    if (!strstr(err.text, part)) fail_msg("expected \"%s\" in: %s", part, err.text);
    assert_non_null(strstr(err.text, "some.safetensors"));
    assert_null(strchr(err.text, '\n'));
    free(b.v);
}

// What every accepted file must satisfy; reads every byte.
static void check_invariants(const StFile *f, const uint8_t *file, size_t size) {
    uint64_t total = 0, sum = 0;
    for (int i = 0; i < f->n; i++) {
        const StTensor *t = &f->tensors[i];
        assert_true(i == 0 || strcmp(f->tensors[i - 1].name, t->name) < 0);
        assert_ptr_equal(st_find(f, t->name), t);
        assert_true(t->data >= file + 8 && t->bytes <= (uint64_t)(file + size - t->data));
        assert_true(t->bytes == t->count * (uint64_t)dtype_size(t->dtype));
        for (uint64_t k = 0; k < t->bytes; k++) sum += t->data[k];
        float *v = malloc(MAX((size_t)t->count, 1) * sizeof(float));
        st_to_f32(t, v);
        free(v);
        total += t->bytes;
    }
    assert_true(total <= size && sum <= 255 * total);
}

static char *temp_path(void *parent, const char *dir, const char *name) {
    return mem_printf(parent, "%s/%s", dir, name);
}

static const char TINY[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                           "\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                           "\"b\":{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[16,19]},"
                           "\"s\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[19,21]},"
                           "\"z\":{\"dtype\":\"F16\",\"shape\":[0,5],\"data_offsets\":[21,21]}}";
enum { TINY_DATA = 21 };

// ---- reading ----------------------------------------------------------------------------------

static void reads_a_small_file(void **state) {
    (void)state;
    Error err = {0};
    Bytes b = make_file(TINY, TINY_DATA);
    StFile *f = st_parse(NULL, "tiny", b.v, b.n, &err);
    assert_non_null(f);
    check_invariants(f, b.v, b.n);
    assert_int_equal(f->n, 4);
    assert_string_equal(st_meta(f, "format"), "pt");
    assert_null(st_meta(f, "absent"));
    const StTensor *a = st_find(f, "a");
    assert_true(a->ndim == 2 && a->shape[0] == 2 && a->shape[1] == 2 && a->count == 4);
    assert_true(a->data[0] == 0 && a->data[15] == 15);
    float v[4];
    st_to_f32(st_find(f, "b"), v);
    assert_true(v[0] == 16 && v[1] == 17 && v[2] == 18);
    const StTensor *s = st_find(f, "s"); // bf16 at an odd address
    assert_true(s->ndim == 0 && s->count == 1);
    st_to_f32(s, v);
    assert_true(v[0] == f32_from_bf16(0x1413));
    assert_true(st_find(f, "z")->count == 0);
    assert_null(st_find(f, "c"));
    assert_null(st_get(f, "c", &err));
    assert_non_null(strstr(err.text, "tiny: expected a tensor c"));
    st_close(f);
    free(b.v);
    // Trailing white space in the header is padding; an empty file of tensors is legal.
    b = make_file("{}   \n ", 0);
    f = st_parse(NULL, "empty", b.v, b.n, &err);
    assert_true(f && f->n == 0 && !st_find(f, "a"));
    st_close(f);
    free(b.v);
    st_close(NULL);
}

#define T(name, type, shape, from, to)                                                             \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

static void refuses_hostile_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *part; // of the message
    } cases[] = {
        {"", 0, "error at offset 0"},
        {"{", 0, "error at offset"},
        {"[]", 0, "another JSON value"},
        {"{} x", 0, "error at offset 3"},
        {"{}{}", 0, "error at offset 2"},
        {"{" T("a", "F32", "[1]", 0, 4) "," T("a", "F32", "[1]", 4, 8) "}", 8, "\"a\" twice"},
        {"{" T("a", "F32", "[1]", 0, 4) ",\"\\u0061\":{}}", 4, "\"a\" twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "\"__metadata__\" twice"},
        {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "\"k\" twice"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "__metadata__.k: expected a string"},
        {"{\"__metadata__\":[]}", 0, "__metadata__: expected an object"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         "\"dtype\" twice"},
        {"{" T("a", "F33", "[1]", 0, 4) "}", 4, "tensor a: expected a type such as F32"},
        {"{" T("a", "f32", "[1]", 0, 4) "}", 4, "found \"f32\""},
        {"{\"a\":1}", 0, "tensor a: expected a type"},
        {"{\"a\":{\"dtype\":3}}", 0, "tensor a: expected a type"},
        {"{\"a\":{\"dtype\":\"F32\"}}", 0, "tensor a: expected a shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "tensor a: expected two data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "two data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4,
         "two data_offsets"},
        {"{" T("a", "F32", "[-1]", 0, 4) "}", 4, "expected whole sizes"},
        {"{" T("a", "F32", "[1.5]", 0, 4) "}", 4, "expected whole sizes"},
        {"{" T("a", "F32", "[1e400]", 0, 4) "}", 4, "expected whole sizes"},
        {"{" T("a", "F32", "[\"1\"]", 0, 4) "}", 4, "expected whole sizes"},
        {"{" T("a", "F32", "[9007199254740993]", 0, 4) "}", 4, "expected whole sizes"},
        {"{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, "at most 8 dimensions"},
        {"{" T("a", "F32", "[4294967296,4294967296]", 0, 0) "}", 0, "2^64 elements"},
        {"{" T("a", "F64", "[4503599627370496,1024]", 0, 0) "}", 0, "2^64 bytes"},
        // 2^62 f32 elements: 2^64 bytes, which would wrap to 0.
        {"{" T("a", "F32", "[2147483648,2147483648]", 0, 0) "}", 0, "2^64 bytes"},
        {"{" T("a", "F32", "[1]", 0, 8) "}", 8, "tensor a: expected 4 bytes for F32 [1], found 8"},
        {"{" T("a", "F32", "[2]", 0, 8) "}", 7, "expected data inside the file's 7 bytes"},
        {"{" T("a", "F32", "[1]", 4, 8) "}", 7, "expected data inside"},
        {"{" T("a", "F32", "[1]", 8, 4) "}", 8, "expected data inside"},
        {"{" T("a", "F32", "[1]", -4, 0) "}", 4, "two data_offsets"},
        {"{" T("a", "F32", "[1]", 0.5, 4.5) "}", 8, "two data_offsets"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 2, 6) "}", 6,
         "tensor b: expected data of its own, found it overlapping tensor a"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 0, 4) "}", 4, "overlapping"},
        {"{" T("a", "U8", "[0]", 2, 2) "," T("b", "U8", "[4]", 0, 4) "}", 4, "overlapping"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 5, 9) "}", 9, "gap of 1 bytes"},
        {"{" T("a", "U8", "[4]", 1, 5) "}", 5, "gap of 1 bytes"},
        {"{" T("a", "U8", "[4]", 0, 4) "}", 5, "found 1 more bytes"},
        {"{}", 3, "found 3 more bytes"},
        {"{\"a\\u0000b\":{}}", 0, "\\u0000"},
        {"{\"a\nb\":{}}", 0, "control character"},
        {"{\"a\xff\":{}}", 0, "UTF-8"},
        {"{\"a\xed\xa0\x80\":{}}", 0, "UTF-8"},     // a surrogate
        {"{\"a\xc0\xaf\":{}}", 0, "UTF-8"},         // overlong
        {"{\"a\xf4\x90\x80\x80\":{}}", 0, "UTF-8"}, // past U+10FFFF
        {"{\"a\\ud800\":{}}", 0, "error at offset"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        expect_refused(make_file(cases[i].header, cases[i].data), cases[i].part);
}

static void refuses_deep_huge_and_crowded_headers(void **state) {
    (void)state;
    // Depth 64 is parsed (and is no header); 65 is refused before parsing; a million would
    // overflow the stack of a recursive parser.
    for (size_t depth = 64; depth <= 1000000; depth = depth == 64 ? 65 : depth * 100) {
        char *text = malloc(2 * depth + 1);
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        text[2 * depth] = 0;
        expect_refused(make_file(text, 0), depth == 64 ? "another JSON value" : "64 levels deep");
        free(text);
    }
    // Lengths past the limit and past the file, up to those that overflow a sum.
    static const uint64_t lengths[] = {3,          ST_MAX_HEADER, ST_MAX_HEADER + 1,
                                       1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        Bytes b = make_file("{}", 0);
        memcpy(b.v, &lengths[i], 8);
        expect_refused(b, lengths[i] > ST_MAX_HEADER ? "header of at most" : "the file is cut");
    }
    // Five million values in 10 MB: would take some 500 MB once parsed.
    size_t n = 5000000;
    char *text = malloc(2 * n + 2);
    for (size_t i = 0; i < n; i++) memcpy(text + 2 * i, i ? ",1" : "[1", 2);
    memcpy(text + 2 * n, "]", 2);
    expect_refused(make_file(text, 0), "tensors in the header");
    free(text);
}

// A file that ends early is refused wherever it ends.
static void refuses_every_truncation(void **state) {
    (void)state;
    Bytes b = make_file(TINY, TINY_DATA);
    every_truncation(b, expect_refused);
    free(b.v);
}

static bool accepts(const Bytes *c) {
    Error err = {0};
    StFile *f = st_parse(NULL, "damaged", c->v, c->n, &err);
    if (f) check_invariants(f, c->v, c->n);
    else assert_true(err.status == STATUS_FAILED && strstr(err.text, "damaged"));
    st_close(f);
    return f != NULL;
}

static void survives_random_damage(void **state) {
    (void)state;
    Bytes b = make_file(TINY, TINY_DATA);
    random_damage(b, 2024, 4, accepts);
    free(b.v);
}

static void many_tensors_are_found_fast(void **state) {
    (void)state;
    enum { N = 20000 };
    JsonOut h = {0};
    json_open(&h, '{');
    for (int i = 0; i < N; i++) {
        char text[128];
        snprintf(text, sizeof text, "t%d", i * 7919 % N);
        json_key(&h, text);
        snprintf(text, sizeof text, "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}", i,
                 i + 1);
        json_put_raw(&h, text);
    }
    json_close(&h, '}');
    Bytes b = make_file(h.text, N);
    json_out_free(&h);
    Error err = {0};
    StFile *f = st_parse(NULL, "many", b.v, b.n, &err);
    assert_non_null(f);
    check_invariants(f, b.v, b.n);
    const StTensor *t = st_find(f, "t7919");
    assert_true(t && t->data[0] == 1);
    st_close(f);
    free(b.v);
}

// ---- writing ----------------------------------------------------------------------------------

static bool fill_count(void *user, uint64_t offset, void *out, size_t n, Error *err) {
    (void)err;
    assert_true(offset % 4 == 0 && n % 4 == 0 && n <= 1 << 20);
    assert_true(offset == *(uint64_t *)user); // in order
    *(uint64_t *)user += n;
    for (size_t i = 0; i < n / 4; i++) {
        float v = (float)(offset / 4 + i);
        memcpy((uint8_t *)out + 4 * i, &v, 4);
    }
    return true;
}

static bool fill_fails(void *user, uint64_t offset, void *out, size_t n, Error *err) {
    (void)user, (void)out, (void)n;
    return offset < 2 << 20 || err_failed(err, "device: expected the weights, found it lost");
}

static void round_trip(void **state) {
    const char *dir = *state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *path = temp_path(scope, dir, "round.safetensors");
    char *again = temp_path(scope, dir, "again.safetensors");
    static const float x[6] = {1, -2, 0.5f, 3, 4, 5};
    static const uint16_t half[3] = {0x3c00, 0xc000, 0x7bff};
    static const int64_t longs[1] = {-7};
    static const uint8_t odd[5] = {1, 2, 3, 4, 5};
    enum { BIG = 700001 }; // chunks, the last one short
    for (int order = 0; order < 2; order++) {
        StWriter *w = st_writer(scope);
        uint64_t at = 0;
        if (order) st_put_meta(w, "kiln.config", "{\"patch\":2,\"name\":\"\xc3\xa9\"}");
        st_put(w, order ? "odd" : "m.x", order ? DT_U8 : DT_F32, order ? 1 : 2,
               order ? (int64_t[]){5} : (int64_t[]){2, 3}, order ? (const void *)odd : x);
        st_put(w, "half", DT_F16, 1, (int64_t[]){3}, half);
        st_put_fill(w, "big", DT_F32, 1, (int64_t[]){BIG}, fill_count, &at);
        st_put(w, "scalar", DT_I64, 0, NULL, longs);
        st_put(w, "none", DT_BF16, 2, (int64_t[]){4, 0}, NULL);
        st_put(w, order ? "m.x" : "odd", order ? DT_F32 : DT_U8, order ? 2 : 1,
               order ? (int64_t[]){2, 3} : (int64_t[]){5}, order ? (const void *)x : odd);
        if (!order) st_put_meta(w, "kiln.config", "{\"patch\":2,\"name\":\"\xc3\xa9\"}");
        uint64_t size = st_write_bytes(w);
        assert_true(st_write(w, order ? again : path, &err));
        StFile *f = st_open(scope, order ? again : path, &err);
        assert_non_null(f);
        assert_true(f->map.size == size && f->n == 6);
        check_invariants(f, f->map.data, f->map.size);
        assert_string_equal(st_meta(f, "kiln.config"), "{\"patch\":2,\"name\":\"\xc3\xa9\"}");
        assert_memory_equal(st_find(f, "m.x")->data, x, sizeof x);
        assert_memory_equal(st_find(f, "half")->data, half, sizeof half);
        assert_memory_equal(st_find(f, "odd")->data, odd, sizeof odd);
        assert_memory_equal(st_find(f, "scalar")->data, longs, sizeof longs);
        assert_int_equal(st_find(f, "scalar")->ndim, 0);
        assert_true(st_find(f, "none")->shape[0] == 4);
        for (int i = 0; i < f->n; i++)
            assert_true((uintptr_t)f->tensors[i].data % (size_t)dtype_size(f->tensors[i].dtype) ==
                        0);
        float *big = MEM_ARRAY(scope, float, BIG);
        st_to_f32(st_find(f, "big"), big);
        for (int i = 0; i < BIG; i++) assert_true(big[i] == (float)i);
        st_close(f);
    }
    // The same content in another order gives the same bytes.
    size_t n1 = 0, n2 = 0;
    uint8_t *b1 = os_read_file(scope, path, 1 << 24, &n1, &err);
    uint8_t *b2 = os_read_file(scope, again, 1 << 24, &n2, &err);
    assert_true(b1 && b2 && n1 == n2);
    assert_memory_equal(b1, b2, n1);
    os_remove(path, &err);
    os_remove(again, &err);
    mem_free(scope);
}

static void failed_writes_leave_the_old_file(void **state) {
    const char *dir = *state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *path = temp_path(scope, dir, "kept.safetensors");
    assert_true(os_write_file(path, "old", 3, &err));
    StWriter *w = st_writer(scope);
    st_put_fill(w, "big", DT_F32, 1, (int64_t[]){1 << 20}, fill_fails, NULL);
    assert_false(st_write(w, path, &err));
    assert_string_equal(err.text, "device: expected the weights, found it lost");
    size_t n;
    assert_string_equal((char *)os_read_file(scope, path, 100, &n, &err), "old");
    char **names;
    int count;
    assert_true(os_list(scope, dir, &names, &count, &err));
    assert_int_equal(count, 1); // no temporary file either
    os_remove(path, &err);
    assert_false(st_write(st_writer(scope), "/nonexistent-folder/x.safetensors", &err));
    assert_non_null(strstr(err.text, "/nonexistent-folder"));
    mem_free(scope);
}

static void writer_refuses_nonsense(void **state) {
    const char *dir = *state;
    void *scope = mem_new(NULL, 1);
    char *path = temp_path(scope, dir, "never.safetensors");
    static const float x[2] = {1, 2};
    static const int64_t one[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1}, negative[1] = {-1};
    static const int64_t vast[2] = {1ll << 40, 1ll << 40};
    for (int i = 0; i < 8; i++) {
        Error err = {0};
        StWriter *w = st_writer(scope);
        st_put(w, "fine", DT_F32, 1, one, x);
        static const char *part[] = {"tensor fine: expected each name once",
                                     "reserved",
                                     "dimensions",
                                     "fits in memory",
                                     "fits in memory",
                                     "found none",
                                     "UTF-8",
                                     "each key once"};
        if (i == 0) st_put(w, "fine", DT_F16, 1, one, x);
        if (i == 1) st_put(w, "__metadata__", DT_F32, 1, one, x);
        if (i == 2) st_put(w, "n", DT_F32, 9, one, x);
        if (i == 3) st_put(w, "n", DT_F32, 1, negative, x);
        if (i == 4) st_put(w, "n", DT_F32, 2, vast, x);
        if (i == 5) st_put(w, "n", DT_F32, 1, one, NULL);
        if (i == 6) st_put(w, "n\xff", DT_F32, 1, one, x);
        if (i == 7) st_put_meta(w, "k", "1"), st_put_meta(w, "k", "2");
        assert_false(st_write(w, path, &err));
        if (!strstr(err.text, part[i])) fail_msg("expected \"%s\" in: %s", part[i], err.text);
        assert_true(os_path_kind(path) == PATH_NONE);
    }
    mem_free(scope);
}

// ---- the expected tensors ---------------------------------------------------------------------

static void check_lists_all_that_is_wrong(void **state) {
    (void)state;
    Error err = {0};
    Bytes b = make_file(TINY, TINY_DATA);
    StFile *f = st_parse(NULL, "tiny", b.v, b.n, &err);
    static const StWant right[] = {{"z", 2, {0, 5}, false},
                                   {"a", 2, {2, -1}, false},
                                   {"s", 0, {0}, false},
                                   {"b", 1, {3}, false},
                                   {"opt", 1, {1}, true}};
    // b is an integer: wrong type, the rest fits.
    assert_false(st_check(f, right, 5, &err));
    assert_int_equal(err.items, 1);
    assert_string_equal(err.item[0], "b: expected a floating-point type, [3], found i8 [3]");
    static const StWant other[] = {{"a", 2, {2, 3}, false},
                                   {"w", 2, {7, -1}, false},
                                   {"s", 1, {1}, false},
                                   {"b", 1, {3}, false}};
    err = (Error){0};
    assert_false(st_check(f, other, 4, &err));
    assert_string_equal(err.text,
                        "tiny: expected the 4 tensors of this model, found 1 missing, 3 of "
                        "another shape or type and 1 unexpected; is it the right file?");
    assert_int_equal(err.items, 5);
    assert_string_equal(err.item[0], "w: missing, expected [7, ?]");
    assert_string_equal(err.item[1], "a: expected [2, 3], found f32 [2, 2]");
    assert_string_equal(err.item[2], "s: expected [1], found bf16 []");
    assert_string_equal(err.item[4], "z: unexpected, f16 [0, 5]");
    // More than ten: the first ten are kept, all are counted.
    StWant many[25] = {{0}};
    char name[25][16];
    for (int i = 0; i < 25; i++) {
        snprintf(name[i], sizeof name[i], "w%d", i);
        many[i].name = name[i];
    }
    assert_false(st_check(f, many, 25, &err));
    assert_int_equal(err.items, 29);
    assert_string_equal(err.item[9], "w9: missing, expected []");
    assert_false(st_check(f, NULL, 0, NULL));
    st_close(f);
    free(b.v);
    b = make_file("{" T("a", "F8_E4M3", "[2]", 0, 2) "}", 2);
    f = st_parse(NULL, "good", b.v, b.n, &err);
    static const StWant good[] = {{"a", 1, {2}, false}, {"b", 1, {2}, true}};
    err = (Error){0};
    assert_true(st_check(f, good, 2, &err));
    assert_int_equal(err.status, STATUS_OK);
    st_close(f);
    free(b.v);
}

// Every type reads back as the numbers it stands for, across the conversion's chunks.
static void converts_every_type(void **state) {
    (void)state;
    enum { N = 3000 };
    for (int t = 0; t < DT_COUNT; t++) {
        if (!dtype_info[t].file_name) continue; // block types: not in safetensors
        size_t size = (size_t)dtype_size((DType)t);
        char header[200];
        snprintf(header, sizeof header,
                 "{\"pad\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                 "\"t\":{\"dtype\":\"%s\",\"shape\":[%d],\"data_offsets\":[1,%zu]}}",
                 dtype_info[t].file_name, N, 1 + N * size);
        Bytes b = make_file(header, 1 + N * size);
        Error err = {0};
        StFile *f = st_parse(NULL, "type", b.v, b.n, &err);
        if (!f) fail_msg("%s", err.text);
        float *v = malloc(N * sizeof(float));
        st_to_f32(st_find(f, "t"), v);
        uint8_t *aligned = malloc(N * size);
        memcpy(aligned, st_find(f, "t")->data, N * size);
        for (size_t i = 0; i < N; i++) {
            float want = dtype_load((DType)t, aligned, i);
            assert_true(!memcmp(&v[i], &want, 4) || (v[i] != v[i] && want != want));
        }
        free(aligned);
        free(v);
        st_close(f);
        free(b.v);
    }
}

static void open_reports_missing_files(void **state) {
    (void)state;
    Error err = {0};
    assert_null(st_open(NULL, "/nonexistent.safetensors", &err));
    assert_non_null(strstr(err.text, "/nonexistent.safetensors"));
    assert_null(st_open(NULL, "/dev/null", NULL));
}

#define IN_FOLDER(test) \
    cmocka_unit_test_setup_teardown(test, scratch_set_up, scratch_tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_small_file),
        cmocka_unit_test(refuses_hostile_headers),
        cmocka_unit_test(refuses_deep_huge_and_crowded_headers),
        cmocka_unit_test(refuses_every_truncation),
        cmocka_unit_test(survives_random_damage),
        cmocka_unit_test(many_tensors_are_found_fast),
        IN_FOLDER(round_trip),
        IN_FOLDER(failed_writes_leave_the_old_file),
        IN_FOLDER(writer_refuses_nonsense),
        cmocka_unit_test(check_lists_all_that_is_wrong),
        cmocka_unit_test(converts_every_type),
        cmocka_unit_test(open_reports_missing_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
