// test_weights.c: weight files of every format as other programs write them
// (tools/ref/make_weights_golden.py), folders and sharded indices, and files that are cut, damaged
// or hostile.
#include "tests/check.h"

#include <stdlib.h>

#include "engine/gguf.h"
#include "engine/safetensors.h"
#include "engine/weights.h"
#include "tests/scratch.h"

#define GOLDEN KILN_SOURCE_DIR "/tests/golden/weights/"

typedef struct Bytes { uint8_t *v; size_t n; } Bytes;

static Bytes load(const char *path) {
    Error err = {0};
    Bytes b = {0};
    b.v = os_read_file(NULL, path, 1 << 20, &b.n, &err);
    CHECK(b.v != NULL);
    // Without zip's checksums, as PyTorch writes it when told so: damage must reach what is behind.
    for (size_t i = 0; i + 46 < b.n && !memcmp(b.v, "PK", 2); i++)
        if (!memcmp(b.v + i, "PK\1\2", 4)) memset(b.v + i + 16, 0, 4);
    return b;
}

// A copy of exactly the size, so that a sanitizer sees every read past it.
static Bytes copy_of(Bytes b, size_t n) {
    Bytes c = {malloc(MAX(n, 1)), n};
    memcpy(c.v, b.v, n);
    return c;
}

// Reads every byte of what was accepted.
static void read_all(const Weights *w) {
    Error err = {0};
    for (int i = 0; i < weights_count(w); i++) {
        const WeightTensor *t = weights_at(w, i);
        assert_ptr_equal(weights_find(w, t->name), t);
        uint8_t *v = malloc((size_t)t->bytes + 1);
        CHECK(weights_read(w, t, 0, v, t->bytes, &err));
        free(v);
    }
}

static void expect_refused(const void *data, size_t n, const char *part) {
    Error err = {0};
    Bytes b = copy_of((Bytes){(uint8_t *)data, n}, n);
    if (weights_parse(NULL, "some.file", b.v, b.n, &err)) fail_msg("expected \"%s\", found no error", part);
    if (!strstr(err.text, part)) fail_msg("expected \"%s\" in: %s", part, err.text);
    assert_int_equal(strncmp(err.text, "some.file", 9), 0);
    free(b.v);
}

static void expect_open_refused(const char *path, const char *part, int items) {
    Error err = {0};
    if (weights_open(NULL, path, &err)) fail_msg("expected \"%s\", found no error", part);
    if (!strstr(err.text, part)) fail_msg("expected \"%s\" in: %s", part, err.text);
    assert_int_equal(err.items, items);
}

// ---- what other programs write ----------------------------------------------------------------

// Every tensor of the file equals expected.safetensors' PREFIX.NAME, by whole and by odd ranges.
static void expect_golden(const char *file, const char *prefix, const char *format, int count) {
    Error err = {0};
    char path[300];
    snprintf(path, sizeof path, GOLDEN "%s", file);
    StFile *want = st_open(NULL, GOLDEN "expected.safetensors", &err);
    Weights *w = weights_open(NULL, path, &err);
    CHECK(want && w);
    assert_string_equal(weights_format(w), format);
    assert_int_equal(weights_count(w), count);
    for (int i = 0; i < count; i++) {
        const WeightTensor *t = weights_at(w, i);
        char name[100];
        snprintf(name, sizeof name, "%s.%s", prefix, t->name);
        const StTensor *e = st_find(want, name);
        assert_non_null(e);
        assert_int_equal(t->ndim, e->ndim);
        for (int d = 0; d < t->ndim; d++) assert_int_equal(t->shape[d], e->shape[d]);
        assert_int_equal(t->count, e->count);
        uint8_t *v = malloc((size_t)t->bytes + 1), *part = malloc((size_t)t->bytes + 1);
        float *got = malloc((size_t)t->count * 4 + 4);
        CHECK(weights_read(w, t, 0, v, t->bytes, &err));
        dtype_convert(DT_F32, got, t->dtype, v, (size_t)t->count);
        if (e->bytes) assert_memory_equal(got, e->data, e->bytes);
        for (uint64_t from = 0; from < t->bytes; from += 5) {
            uint64_t n = MIN(t->bytes - from, 11);
            CHECK(weights_read(w, t, from, part, n, &err));
            assert_memory_equal(part, v + from, n);
        }
        assert_false(weights_read(w, t, t->bytes, part, 1, &err));
        free(v), free(part), free(got);
    }
    weights_close(w);
    st_close(want);
}

static void reads_gguf(void **state) {
    (void)state;
    Error err = {0};
    expect_golden("tensors.gguf", "gguf", "gguf", 9);
    Weights *w = weights_open(NULL, GOLDEN "tensors.gguf", &err);
    CHECK(w != NULL);
    static const char *const meta[][2] = {
        {"general.architecture", "flux"}, {"general.name", "a name with \xc3\xbcmlauts"},
        {"test.u32", "4000000000"}, {"test.i64", "-5"}, {"test.f32", "0.5"}, {"test.bool", "true"},
        {"test.u8", "200"}, {"test.array", "[1, 2, 3]"}, {"test.texts", "[one, two]"},
    };
    for (size_t i = 0; i < COUNT_OF(meta); i++)
        assert_string_equal(weights_meta(w, meta[i][0]), meta[i][1]);
    assert_null(weights_meta(w, "none"));
    assert_int_equal(weights_meta_count(w), 11);
    assert_int_equal(weights_find(w, "m.q4_k")->dtype, DT_Q4_K);
    assert_int_equal(weights_find(w, "m.q4_k")->bytes, 2 * 2 * 144);
    weights_close(w);
}

static void reads_pytorch(void **state) {
    (void)state;
    Error err = {0};
    expect_golden("tensors.pt", "pt", "pytorch", 12);
    Weights *w = weights_open(NULL, GOLDEN "tensors.pt", &err);
    CHECK(w != NULL);
    assert_ptr_equal(weights_data(w, weights_find(w, "b.tied")),
                     weights_data(w, weights_find(w, "b.tied_too")));
    assert_null(weights_data(w, weights_find(w, "a.transposed")));
    weights_close(w);
}

static void parts_and_synthetic(void **state) {
    (void)state;
    Error err = {0};
    Weights *w = weights_open(NULL, GOLDEN "tensors.pt", &err);
    CHECK(w != NULL);
    Weights *part = weights_part(w, w, "b."), *again = weights_part(w, part, "t");
    assert_int_equal(weights_count(part), 5);
    assert_int_equal(weights_count(again), 2);
    assert_string_equal(weights_at(part, 0)->name, "channels_last");
    read_all(part);
    read_all(again);
    const WeightTensor *t = weights_find(part, "parameter");
    assert_ptr_equal(weights_data(part, t), weights_data(w, weights_find(w, "b.parameter")));
    assert_null(weights_find(part, "a.weight"));
    weights_close(w);
}

static bool count_bytes(void *user, int index, uint64_t offset, void *out, uint64_t n, Error *err) {
    (void)user, (void)err;
    for (uint64_t i = 0; i < n; i++) ((uint8_t *)out)[i] = (uint8_t)((uint64_t)index * 100 + offset + i);
    return true;
}

static void synthetic(void **state) {
    (void)state;
    Error err = {0};
    const WeightTensor tensors[] = {
        {.name = "z", .dtype = DT_Q8_0, .ndim = 2, .shape = {3, 64}},
        {.name = "a", .dtype = DT_BF16, .ndim = 1, .shape = {4}},
    };
    Weights *w = weights_synthetic(NULL, "made", tensors, 2, count_bytes, NULL);
    const WeightTensor *z = weights_find(w, "z"), *a = weights_at(w, 0);
    assert_int_equal(z->bytes, 204);
    assert_int_equal(z->count, 192);
    uint8_t v[8];
    CHECK(weights_read(w, z, 7, v, 2, &err) && v[0] == 7 && v[1] == 8);
    CHECK(weights_read(w, a, 0, v, 8, &err) && v[0] == 100);
    assert_null(weights_data(w, a));
    Weights *part = weights_part(w, w, "");
    CHECK(weights_read(part, weights_find(part, "z"), 1, v, 1, &err) && v[0] == 1);
    weights_close(w);
}

// ---- writing GGUF -----------------------------------------------------------------------------

static bool fill_pattern(void *user, uint64_t offset, void *out, size_t n, Error *err) {
    (void)err;
    for (size_t i = 0; i < n; i++) ((uint8_t *)out)[i] = (uint8_t)((offset + i) * 13 + *(uint8_t *)user);
    return true;
}
static bool fill_fails(void *user, uint64_t offset, void *out, size_t n, Error *err) {
    (void)user, (void)offset, (void)out, (void)n;
    return err_failed(err, "fill: expected this failure");
}

static void writes_gguf(void **state) {
    const char *dir = *state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *path = os_path_join(scope, dir, "out.gguf");
    uint8_t seeds[3] = {1, 2, 3};
    GgufWriter *w = gguf_writer(scope);
    gguf_put_text(w, "general.architecture", "flux");
    gguf_put_u32(w, "general.file_type", 12);
    gguf_put_tensor(w, "b", DT_Q4_K, 2, (int64_t[]){3, 512}, fill_pattern, &seeds[0]);
    gguf_put_tensor(w, "a", DT_F16, 4, (int64_t[]){2, 3, 1, 5}, fill_pattern, &seeds[1]);
    gguf_put_tensor(w, "big", DT_Q6_K, 2, (int64_t[]){1000, 8192}, fill_pattern, &seeds[2]); // chunks
    CHECK(gguf_write(w, path, &err));
    Weights *r = weights_open(scope, path, &err);
    CHECK(r != NULL);
    assert_int_equal(weights_count(r), 3);
    assert_string_equal(weights_meta(r, "general.file_type"), "12");
    static const struct { const char *name; int seed; int64_t first; } want[] = {
        {"b", 0, 3}, {"a", 1, 2}, {"big", 2, 1000}};
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        const WeightTensor *t = weights_find(r, want[i].name);
        assert_int_equal(t->shape[0], want[i].first);
        const uint8_t *v = weights_data(r, t);
        for (uint64_t k = 0; k < t->bytes; k++)
            if (v[k] != (uint8_t)(k * 13 + seeds[want[i].seed])) fail_msg("%s[%d]", t->name, (int)k);
    }
    weights_close(r);
    // A failure leaves the old file; wrong tensors are refused.
    w = gguf_writer(scope);
    gguf_put_tensor(w, "x", DT_F32, 1, (int64_t[]){4}, fill_fails, NULL);
    assert_false(gguf_write(w, path, &err));
    assert_non_null(strstr(err.text, "expected this failure"));
    r = weights_open(scope, path, &err);
    CHECK(r != NULL);
    weights_close(r);
    static const struct { DType t; int ndim; int64_t shape[5]; } wrong[] = {
        {DT_F8_E4M3, 1, {4}}, {DT_Q8_0, 2, {4, 33}}, {DT_F32, 5, {1, 1, 1, 1, 1}}};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        w = gguf_writer(scope);
        gguf_put_tensor(w, "x", wrong[i].t, wrong[i].ndim, wrong[i].shape, fill_pattern, seeds);
        assert_false(gguf_write(w, path, &err));
    }
    w = gguf_writer(scope);
    for (int i = 0; i < 2; i++) gguf_put_tensor(w, "x", DT_F32, 0, NULL, fill_pattern, seeds);
    assert_false(gguf_write(w, path, &err));
    assert_non_null(strstr(err.text, "twice"));
    mem_free(scope);
}

// ---- folders and indices ----------------------------------------------------------------------

static void write_shard(const char *dir, const char *name, const char *const *tensors, int n, float v) {
    Error err = {0};
    StWriter *w = st_writer(NULL);
    float data[2] = {v, v + 1};
    for (int i = 0; i < n; i++) st_put(w, tensors[i], DT_F32, 1, (int64_t[]){2}, data);
    char *path = os_path_join(w, dir, name);
    CHECK(os_make_dirs(dir, &err) && st_write(w, path, &err));
    mem_free(w);
}

#define INDEX "model.safetensors.index.json"
static void index_refused(const char *dir, const char *json, const char *part, int items) {
    void *scope = mem_new(NULL, 1);
    scratch_write(scope, dir, INDEX, json, strlen(json));
    expect_open_refused(dir, part, items);
    mem_free(scope);
}

static void sharded(void **state) {
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *dir = os_path_join(scope, *state, "sharded");
    write_shard(dir, "m-00001-of-00002.safetensors", (const char *[]){"a", "b"}, 2, 1);
    write_shard(dir, "m-00002-of-00002.safetensors", (const char *[]){"c"}, 1, 5);
    expect_open_refused(dir, "shards without their", 0);
    static const char good[] =
        "{\"metadata\":{\"total_size\":24},\"weight_map\":{\"a\":\"m-00001-of-00002.safetensors\","
        "\"c\":\"m-00002-of-00002.safetensors\",\"b\":\"m-00001-of-00002.safetensors\"}}";
    char *path = scratch_write(scope, dir, INDEX, good, strlen(good));
    const char *const names[] = {dir, path};
    for (int i = 0; i < 2; i++) {
        Weights *w = weights_open(scope, names[i], &err);
        CHECK(w != NULL);
        assert_int_equal(weights_count(w), 3);
        float v[2];
        CHECK(weights_read(w, weights_find(w, "c"), 0, v, 8, &err));
        assert_true(v[0] == 5 && v[1] == 6);
        CHECK(weights_read(w, weights_find(w, "b"), 4, v, 4, &err));
        assert_true(v[0] == 2);
        weights_close(w);
    }
    index_refused(dir, "{\"weight_map\":{\"a\":\"m-00001-of-00002.safetensors\",\"z\":\"m-00009-of-"
                  "00002.safetensors\",\"y\":\"n.safetensors\"}}", "2 of them missing", 2);
    index_refused(dir, "{\"weight_map\":{\"a\":\"m-00002-of-00002.safetensors\",\"c\":\"m-00002-of-"
                  "00002.safetensors\",\"q\":\"m-00001-of-00002.safetensors\"}}", "2 elsewhere", 2);
    index_refused(dir, "{\"weight_map\":{\"a\":\"m-00001-of-00002.safetensors\",\"a\":\"m-00002-of-"
                  "00002.safetensors\"}}", "\"a\"", 0);
    static const char *const tricks[] = {"../sharded/m-00001-of-00002.safetensors", "/etc/passwd", "..",
                                         ".", "a\\\\b", "", "c:d"};
    for (size_t i = 0; i < COUNT_OF(tricks); i++) {
        char *json = mem_printf(scope, "{\"weight_map\":{\"a\":\"%s\"}}", tricks[i]);
        index_refused(dir, json, "in the same folder", 0);
    }
    index_refused(dir, "{\"weight_map\":{\"a\":7}}", "in the same folder", 0);
    index_refused(dir, "{\"weight_map\":{}}", "an empty one", 0);
    index_refused(dir, "{\"weight_map\":[]}", "weight_map", 0);
    index_refused(dir, "{}", "weight_map", 0);
    index_refused(dir, "{\"weight_map\":", "index.json", 0);
    index_refused(dir, "{\"weight_map\":{\"a\":\"" INDEX "\"}}", "JSON", 0);
    mem_free(scope);
}

static void folders(void **state) {
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *dir = os_path_join(scope, *state, "folder");
    CHECK(os_make_dirs(dir, &err));
    expect_open_refused(dir, "none", 0);
    write_shard(dir, "some.safetensors", (const char *[]){"a"}, 1, 1);
    Weights *w = weights_open(scope, dir, &err);
    CHECK(w && weights_find(w, "a"));
    weights_close(w);
    write_shard(dir, "other.safetensors", (const char *[]){"b"}, 1, 1);
    expect_open_refused(dir, "several", 2);
    write_shard(dir, "model.safetensors", (const char *[]){"m"}, 1, 1);
    w = weights_open(scope, dir, &err);
    CHECK(w && weights_find(w, "m"));
    weights_close(w);
    expect_open_refused(os_path_join(scope, dir, "missing.gguf"), "missing.gguf", 0);
    mem_free(scope);
}

// ---- cut, damaged, hostile --------------------------------------------------------------------

static void every_cut_is_refused(void **state) {
    (void)state;
    static const char *const files[] = {GOLDEN "tensors.gguf", GOLDEN "tensors.pt"};
    for (size_t f = 0; f < COUNT_OF(files); f++) {
        Bytes b = load(files[f]);
        size_t whole = b.n - (f == 0 ? 16 : 0); // GGUF's last tensor is padded
        for (size_t n = 0; n < whole; n++) {
            Error err = {0};
            Bytes c = copy_of(b, n);
            Weights *w = weights_parse(NULL, "cut", c.v, n, &err);
            if (w && f == 0 && n + 32 > b.n) weights_close(w); // padding only
            else if (w) fail_msg("%s: %d of %d bytes were accepted", files[f], (int)n, (int)b.n);
            free(c.v);
        }
        mem_free(b.v);
    }
}

static void damage_does_no_harm(void **state) {
    (void)state;
    static const char *const files[] = {GOLDEN "tensors.gguf", GOLDEN "tensors.pt", GOLDEN "hostile.pt"};
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
    for (size_t f = 0; f < COUNT_OF(files); f++) {
        Bytes b = load(files[f]);
        for (size_t i = 0; i < b.n; i++)
            for (size_t k = 0; k < COUNT_OF(values); k++) {
                Error err = {0};
                Bytes c = copy_of(b, b.n);
                c.v[i] = values[k];
                Weights *w = weights_parse(NULL, "damaged", c.v, c.n, &err);
                if (w) read_all(w);
                else assert_true(err.status == STATUS_FAILED && strstr(err.text, "expected"));
                weights_close(w);
                free(c.v);
            }
        mem_free(b.v);
    }
}

static void put(Bytes *b, const void *v, size_t n) {
    b->v = realloc(b->v, b->n + n);
    memcpy(b->v + b->n, v, n);
    b->n += n;
}
static void put64(Bytes *b, uint64_t v) { put(b, &v, 8); }
static void put32(Bytes *b, uint32_t v) { put(b, &v, 4); }
static void put_text(Bytes *b, const char *text) {
    put64(b, strlen(text));
    put(b, text, strlen(text));
}
static void put_tensor(Bytes *b, const char *name, uint64_t columns, uint64_t rows, uint32_t type,
                       uint64_t at) {
    put_text(b, name);
    put32(b, 2);
    put64(b, columns);
    put64(b, rows);
    put32(b, type);
    put64(b, at);
}
static Bytes gguf_head(uint64_t tensors, uint64_t meta) {
    Bytes b = {0};
    put(&b, "GGUF\3\0\0\0", 8);
    put64(&b, tensors);
    put64(&b, meta);
    return b;
}
static void refuse_gguf(Bytes b, const char *part) {
    static const uint8_t data[4096];
    put(&b, data, sizeof data);
    expect_refused(b.v, b.n, part);
    free(b.v);
}

static void hostile_gguf(void **state) {
    (void)state;
    static const struct {
        const char *a, *b; uint64_t columns, rows; uint32_t type; uint64_t at; const char *part;
    } t[] = {
        {"x", "x", 8, 1, 0, 32, "twice"},
        {"x", "y", 8, 1, 0, 0, "overlapping"},
        {"x", "y", 33, 1, 8, 32, "whole q8_0 blocks"},
        {"x", "y", 8, 1, 4, 32, "GGUF type 4"},
        {"x", "y", 8, 1, 0, 31, "multiple of 32"},
        {"x", "y", 8, 1, 0, (uint64_t)1 << 40, "inside the file"},
        {"x", "y", 8, 1, 0, UINT64_MAX - 31, "inside the file"},
        {"x", "y", 4096, 1, 0, 32, "inside the file"},
        {"x", "y", (uint64_t)1 << 62, 8, 0, 32, "fits in memory"},
        {"x", "y", UINT64_MAX, 1, 0, 32, "below 2^63"},
        {"x", "\xff", 8, 1, 0, 32, "UTF-8"},
        {"x", "", 8, 1, 0, 32, "1 to"},
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        Bytes b = gguf_head(2, 0);
        put_tensor(&b, t[i].a, 8, 1, 0, 0);
        put_tensor(&b, t[i].b, t[i].columns, t[i].rows, t[i].type, t[i].at);
        refuse_gguf(b, t[i].part);
    }
    refuse_gguf(gguf_head(1ull << 60, 0), "counts that fit");
    refuse_gguf(gguf_head(0, 1ull << 60), "counts that fit");
    Bytes b = gguf_head(0, 1); // an array that claims more than the file
    put_text(&b, "k");
    put32(&b, 9);
    put32(&b, 0);
    put64(&b, 1ull << 62);
    refuse_gguf(b, "the end");
    b = gguf_head(0, 1); // arrays of arrays
    put_text(&b, "k");
    put32(&b, 9);
    put32(&b, 9);
    put64(&b, 4);
    refuse_gguf(b, "arrays of numbers");
    b = gguf_head(0, 2);
    for (int i = 0; i < 2; i++) put_text(&b, "k"), put32(&b, 4), put32(&b, 1);
    refuse_gguf(b, "twice");
    b = gguf_head(0, 1);
    put_text(&b, "general.alignment"), put32(&b, 4), put32(&b, 3);
    refuse_gguf(b, "power of two");
    expect_refused("GGUF\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, "version 2 or 3");
    expect_refused("GGUF\0\0\0\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, "version 2 or 3");
}

// Replaces every occurrence of `from` by `to` (of equal length).
static Bytes patched(const char *path, const char *from, const char *to, size_t n) {
    Bytes b = load(path);
    Bytes c = copy_of(b, b.n);
    int found = 0;
    for (size_t i = 0; i + n <= c.n; i++)
        if (!memcmp(c.v + i, from, n)) memcpy(c.v + i, to, n), found++;
    assert_true(found > 0);
    mem_free(b.v);
    return c;
}

static void hostile_pytorch(void **state) {
    (void)state;
    os_remove("/tmp/kiln-was-here", NULL);
    Bytes b = load(GOLDEN "hostile.pt");
    expect_refused(b.v, b.n, "posix.system; nothing was run");
    mem_free(b.v);
    assert_int_equal(os_path_kind("/tmp/kiln-was-here"), PATH_NONE);
    static const struct { const char *from, *to; size_t n; const char *part; } t[] = {
        {"tensors/byteorder", "../sors/byteorder", 17, "inside the archive"},
        {"tensors/byteorder", "/ensors/byteorder", 17, "inside the archive"},
        {"tensors/byteorder", "te\\sors/byteorder", 17, "inside the archive"},
        {"tensors/data/3", "tensors/data/2", 14, "twice"},
        {"tensors/data/3", "tensors/data/x", 14, "a storage that the archive lacks"},
        {"tensors/data.pkl", "tensors/data.pkz", 16, "data.pkl"},
        {"torch\nHalfStorage", "torch\nHalfStorazz", 17, "torch.HalfStorazz; nothing was run"},
        {"collections\nOrderedDict", "builtins\nevaluateabcdefg", 23, "nothing was run"},
        {"little", "big\0\0\0", 6, "little-endian"},
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        Bytes c = patched(GOLDEN "tensors.pt", t[i].from, t[i].to, t[i].n);
        expect_refused(c.v, c.n, t[i].part);
        free(c.v);
    }
    // Compressed members: in the directory (the first entry's method).
    Bytes c = patched(GOLDEN "tensors.pt", "PK\1\2", "PK\1\2", 4);
    for (size_t i = 0; i + 46 < c.n; i++)
        if (!memcmp(c.v + i, "PK\1\2", 4)) c.v[i + 10] = 8;
    expect_refused(c.v, c.n, "compressed");
    free(c.v);
}

static void other_kinds(void **state) {
    (void)state;
    expect_refused("", 0, "an empty one");
    expect_refused("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9", 9, "before 1.6");
    expect_refused("version https://git-lfs.github.com/spec/v1\noid", 46, "LFS pointer");
    expect_refused("{\"weight_map\": {}}", 18, "JSON");
    expect_refused("ggml\1\0\0\0", 8, "before GGUF");
    expect_refused("PK\3\4 and nothing else that a zip would have", 40, "zip archive");
    expect_refused("some text that is no weight file at all", 39, "a text");
}

// Headers whose length looks like the beginning of a pickle (0x80 2 ... 5) or a gzip archive.
static void lengths_like_other_kinds(void **state) {
    (void)state;
    static const uint64_t lengths[] = {0x280, 0x380, 0x480, 0x580, 0x8b1f};
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        static const char json[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
        Error err = {0};
        uint8_t *v = malloc(8 + lengths[i] + 4);
        memcpy(v, &lengths[i], 8);
        memset(v + 8, ' ', lengths[i] + 4);
        memcpy(v + 8, json, strlen(json));
        Weights *w = weights_parse(NULL, "padded", v, 8 + lengths[i] + 4, &err);
        CHECK(w != NULL && weights_count(w) == 1);
        weights_close(w);
        free(v);
    }
}

static int set_up(void **state) {
    *state = scratch_new(NULL);
    return 0;
}
static int tear_down(void **state) {
    scratch_remove(*state);
    mem_free(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_gguf), cmocka_unit_test(reads_pytorch),
        cmocka_unit_test(parts_and_synthetic), cmocka_unit_test(synthetic),
        cmocka_unit_test(writes_gguf), cmocka_unit_test(sharded), cmocka_unit_test(folders),
        cmocka_unit_test(every_cut_is_refused), cmocka_unit_test(damage_does_no_harm),
        cmocka_unit_test(hostile_gguf), cmocka_unit_test(hostile_pytorch), cmocka_unit_test(other_kinds),
        cmocka_unit_test(lengths_like_other_kinds),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
