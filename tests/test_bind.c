// test_bind.c: what a model wants, found in files of other layouts and types: stacked, cut, turned,
// converted and scaled as they should be, in any chunks; and every complaint in one error.
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>

#include "backend/quant.h"
#include "engine/bind.h"

// ---- files in memory ----------------------------------------------------------------------------

// A tensor of known numbers: element i of tensor number t is value(t, i).
typedef struct File { int count; WeightTensor tensor[16]; uint8_t *data[16]; } File;

static float value(int t, int64_t i) {
    uint32_t x = (uint32_t)(i * 2654435761u + (int64_t)t * 40503u + 12345u);
    return ((float)(x >> 20) - 2048) / 4096; // exact in f32; rounded in others
}

static bool read_file(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    const File *f = user;
    (void)err;
    memcpy(out, f->data[index] + offset, bytes);
    return true;
}

static void add(File *f, const char *name, DType dtype, int ndim, const int64_t *shape) {
    int t = f->count++;
    f->tensor[t] = (WeightTensor){.name = name, .dtype = dtype, .ndim = ndim};
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= f->tensor[t].shape[i] = shape[i];
    float *x = MEM_ARRAY(f, float, n + 1);
    for (int64_t i = 0; i < n; i++) x[i] = value(t, i);
    f->data[t] = mem_new(f, dtype_bytes(dtype, (uint64_t)n) + 8);
    if (dtype_is_packed(dtype)) quant_encode(dtype, x, f->data[t], n);
    else dtype_convert(dtype, f->data[t], DT_F32, x, (size_t)n);
}
#define SHAPE(...) (int)COUNT_OF(((int64_t[]){__VA_ARGS__})), (const int64_t[]){__VA_ARGS__}

static void add_number(File *f, const char *name, float x) {
    add(f, name, DT_F32, 0, NULL);
    memcpy(f->data[f->count - 1], &x, sizeof x);
}

static Weights *open_file(File *f) {
    Weights *w = weights_synthetic(f, "file", f->tensor, f->count, read_file, f);
    assert_non_null(w);
    return w;
}

// Tensor t of the file as f32.
static float *stored(File *f, int t) {
    int64_t n = 1;
    for (int i = 0; i < f->tensor[t].ndim; i++) n *= f->tensor[t].shape[i];
    float *x = MEM_ARRAY(f, float, n);
    DType dtype = f->tensor[t].dtype;
    if (dtype_is_packed(dtype)) quant_decode(dtype, f->data[t], x, n);
    else dtype_convert(DT_F32, x, dtype, f->data[t], (size_t)n);
    return x;
}

// The bound tensor as f32: read whole, then again in parts of random rows, which must be the same.
static float *loaded(void *parent, const BoundWeight *b) {
    Error err = {0};
    uint8_t *whole = mem_new(parent, b->bytes + 8), *part = mem_new(parent, b->bytes + 8);
    memset(whole, 0x5a, b->bytes + 8);
    CHECK(bound_read(b, 0, whole, b->bytes, &err));
    for (int i = 0; i < 8; i++) assert_int_equal(whole[b->bytes + (uint64_t)i], 0x5a);
    uint64_t row = bound_row_bytes(b), rows = b->bytes / row;
    for (uint64_t at = 0, n, turn = 1; at < rows; at += n, turn++) {
        n = MIN(1 + turn * 7 % 5, rows - at);
        CHECK(bound_read(b, at * row, part, n * row, &err));
        assert_memory_equal(part, whole + at * row, n * row);
    }
    int64_t n = 1;
    for (int i = 0; i < b->ndim; i++) n *= b->shape[i];
    float *x = MEM_ARRAY(parent, float, n);
    if (dtype_is_packed(b->dtype)) quant_decode(b->dtype, whole, x, n);
    else dtype_convert(DT_F32, x, b->dtype, whole, (size_t)n);
    return x;
}

static File *file_new(void) { return MEM_NEW(NULL, File); }

static BoundWeight *bind(File *f, const BindWant *wants, int count, const BindOptions *options) {
    Error err = {0};
    BoundWeight *b = bind_weights(f, open_file(f), wants, count, options, &err);
    CHECK(b);
    return b;
}

// ---- layouts ------------------------------------------------------------------------------------

static int other_names(const void *user, const char *name, const char **out, void *scratch) {
    (void)user;
    if (!strcmp(name, "qkv.weight")) {
        out[0] = "to_q.weight", out[1] = "to_k.weight", out[2] = "to_v.weight";
        return 3;
    }
    if (!strcmp(name, "mod.weight")) { // the halves change places
        out[0] = "norm_out.weight[1:2]", out[1] = "norm_out.weight[0:1]";
        return 2;
    }
    if (!strcmp(name, "mod.bias")) {
        out[0] = "norm_out.bias[1:2]", out[1] = "norm_out.bias[0:1]";
        return 2;
    }
    if (!strcmp(name, "middle.weight")) {
        out[0] = "fused[1:2/3]";
        return 1;
    }
    if (!strcmp(name, "nothing")) return 0;
    out[0] = mem_printf(scratch, "prefix.%s", name);
    return 1;
}

static void test_layouts(void **state) {
    (void)state;
    File *f = file_new();
    add(f, "to_q.weight", DT_BF16, SHAPE(4, 32));
    add(f, "to_k.weight", DT_BF16, SHAPE(6, 32));
    add(f, "to_v.weight", DT_BF16, SHAPE(2, 32));
    add(f, "norm_out.weight", DT_F16, SHAPE(10, 8));
    add(f, "norm_out.bias", DT_F16, SHAPE(10));
    add(f, "fused", DT_F32, SHAPE(9, 5));
    add(f, "prefix.x", DT_F32, SHAPE(3, 3, 1, 1));
    static const BindWant wants[] = {
        {.name = "qkv.weight", .ndim = 2, .shape = {12, 32}},
        {.name = "mod.weight", .ndim = 2, .shape = {10, 8}},
        {.name = "mod.bias", .ndim = 1, .shape = {10}},
        {.name = "middle.weight", .ndim = 2, .shape = {3, 5}},
        {.name = "x", .ndim = 2, .shape = {3, 3}},
        {.name = "nothing", .ndim = 1, .shape = {3}, .optional = true},
        {.name = "absent", .ndim = 1, .shape = {3}, .optional = true},
    };
    BindOptions options = {.names = other_names, .type = DT_COUNT};
    BoundWeight *b = bind(f, wants, (int)COUNT_OF(wants), &options);
    assert_int_equal(b[0].dtype, DT_BF16);
    assert_int_equal(b[0].bytes, 12 * 32 * 2);
    float *x = loaded(f, &b[0]);
    assert_memory_equal(x, stored(f, 0), 4 * 32 * 4);
    assert_memory_equal(x + 4 * 32, stored(f, 1), 6 * 32 * 4);
    assert_memory_equal(x + 10 * 32, stored(f, 2), 2 * 32 * 4);
    x = loaded(f, &b[1]);
    assert_memory_equal(x, stored(f, 3) + 40, 40 * 4);
    assert_memory_equal(x + 40, stored(f, 3), 40 * 4);
    assert_int_equal(b[2].dtype, DT_F32);
    x = loaded(f, &b[2]);
    assert_memory_equal(x, stored(f, 4) + 5, 5 * 4);
    assert_memory_equal(x + 5, stored(f, 4), 5 * 4);
    assert_memory_equal(loaded(f, &b[3]), stored(f, 5) + 15, 15 * 4);
    assert_memory_equal(loaded(f, &b[4]), stored(f, 6), 9 * 4);
    assert_int_equal(b[5].pieces, 0);
    assert_int_equal(b[6].pieces, 0);
    mem_free(f);
}

static void test_convolutions(void **state) {
    (void)state;
    static const DType types[] = {DT_F32, DT_F16, DT_BF16, DT_F8_E4M3, DT_Q8_0};
    for (size_t k = 0; k < COUNT_OF(types); k++) {
        File *f = file_new();
        enum { O = 5, I = 7, R = 3, S = 32 };
        add(f, "c", types[k], SHAPE(O, I, R, S));
        BindWant want = {.name = "c", .ndim = 4, .shape = {O, I, R, S}, .layout = BIND_CONV};
        BoundWeight *b = bind(f, &want, 1, NULL);
        assert_int_equal(b->dtype, types[k] == DT_Q8_0 ? DT_F32 : types[k]); // blocks cannot be turned
        assert_true(b->shape[0] == O && b->shape[1] == R && b->shape[2] == S && b->shape[3] == I);
        float *x = loaded(f, b), *from = stored(f, 0);
        for (int o = 0; o < O; o++)
            for (int i = 0; i < I; i++)
                for (int p = 0; p < R * S; p++)
                    assert_true(x[(o * R * S + p) * I + i] == from[(o * I + i) * R * S + p]);
        mem_free(f);
    }
}

// ---- types --------------------------------------------------------------------------------------

static const DType reals[] = {DT_F32,  DT_F16,  DT_BF16, DT_F64,  DT_F8_E4M3, DT_F8_E5M2,
                              DT_Q8_0, DT_Q4_0, DT_Q4_1, DT_Q5_0, DT_Q5_1,    DT_Q2_K,
                              DT_Q3_K, DT_Q4_K, DT_Q5_K, DT_Q6_K, DT_IQ4_NL,  DT_IQ4_XS};

// Every type in the file to every type on the device equals the conversion of the whole tensor.
static void test_conversions(void **state) {
    (void)state;
    enum { N = 9, K = 512 };
    for (size_t a = 0; a < COUNT_OF(reals); a++)
        for (size_t z = 0; z <= COUNT_OF(reals); z++) {
            DType to = z < COUNT_OF(reals) ? reals[z] : DT_COUNT;
            if (to == DT_F64) continue;
            File *f = file_new();
            add(f, "w", reals[a], SHAPE(N, K));
            BindWant want = {.name = "w", .ndim = 2, .shape = {N, K}};
            BoundWeight *b = bind(f, &want, 1, &(BindOptions){.type = to});
            DType device = to != DT_COUNT ? to : reals[a] == DT_F64 ? DT_F32 : reals[a];
            assert_int_equal(b->dtype, device);
            assert_int_equal(b->bytes, dtype_bytes(device, N * K));
            uint8_t *raw = mem_new(f, b->bytes);
            float *x = stored(f, 0), *y = loaded(f, b), *wish = MEM_ARRAY(f, float, N * K);
            if (device == reals[a]) {
                memcpy(wish, x, N * K * 4);
            } else if (dtype_is_packed(device)) {
                quant_encode(device, x, raw, N * K);
                quant_decode(device, raw, wish, N * K);
            } else {
                dtype_convert(device, raw, DT_F32, x, N * K);
                dtype_convert(DT_F32, wish, device, raw, N * K);
            }
            if (memcmp(y, wish, N * K * 4)) fail_msg("%s to %s", dtype_name(reals[a]), dtype_name(device));
            mem_free(f);
        }
}

static void test_types_on_the_device(void **state) {
    (void)state;
    File *f = file_new();
    add(f, "narrow", DT_F16, SHAPE(4, 40));     // rows are no whole blocks of what is asked for
    add(f, "bias", DT_BF16, SHAPE(64));         // vectors are f32
    add(f, "to_q.weight", DT_Q8_0, SHAPE(4, 32)); // pieces of several types
    add(f, "to_k.weight", DT_F16, SHAPE(4, 32));
    add(f, "to_v.weight", DT_Q8_0, SHAPE(4, 32));
    static const BindWant wants[] = {{.name = "narrow", .ndim = 2, .shape = {4, 40}},
                                     {.name = "bias", .ndim = 1, .shape = {64}}};
    BindOptions options = {.type = DT_Q8_0, .ignore = (const char *const[]){"to_", NULL}};
    BoundWeight *b = bind(f, wants, 2, &options);
    assert_int_equal(b[0].dtype, DT_F16);
    assert_int_equal(b[1].dtype, DT_F32);
    assert_memory_equal(loaded(f, &b[0]), stored(f, 0), 160 * 4);
    assert_memory_equal(loaded(f, &b[1]), stored(f, 1), 64 * 4);
    BindWant qkv = {.name = "qkv.weight", .ndim = 2, .shape = {12, 32}};
    BindOptions mixed = {.names = other_names, .type = DT_COUNT,
                         .ignore = (const char *const[]){"narrow", "*ias", NULL}};
    b = bind(f, &qkv, 1, &mixed);
    assert_int_equal(b->dtype, DT_F32);
    float *x = loaded(f, b);
    for (int i = 0; i < 3; i++) assert_memory_equal(x + i * 128, stored(f, 2 + i), 128 * 4);
    mem_free(f);
}

static void test_scales(void **state) {
    (void)state;
    File *f = file_new();
    add(f, "a.weight", DT_F8_E4M3, SHAPE(4, 8));
    add_number(f, "a.scale_weight", 0.25f);
    add(f, "b.weight", DT_F8_E5M2, SHAPE(4, 8));
    add_number(f, "b.weight_scale", 3);
    add(f, "to_q.weight", DT_F8_E4M3, SHAPE(4, 8));
    add_number(f, "to_q.scale_weight", 0.5f);
    add(f, "to_k.weight", DT_F8_E4M3, SHAPE(4, 8));
    add_number(f, "to_k.scale_weight", 2);
    add(f, "to_v.weight", DT_F8_E4M3, SHAPE(4, 8));
    add(f, "scaled_fp8", DT_F8_E4M3, SHAPE(2));
    add_number(f, "a.scale_input", 1);
    BindWant wants[] = {{.name = "a.weight", .ndim = 2, .shape = {4, 8}},
                        {.name = "b.weight", .ndim = 2, .shape = {4, 8}}};
    BindOptions options = {.type = DT_COUNT, .ignore = (const char *const[]){"to_", NULL}};
    BoundWeight *b = bind(f, wants, 2, &options); // stay packed: the device scales
    assert_int_equal(b[0].dtype, DT_F8_E4M3);
    assert_true(b[0].scale == 0.25f && b[1].scale == 3);
    assert_memory_equal(loaded(f, &b[0]), stored(f, 0), 32 * 4);
    options.type = DT_F32; // converted: scaled while loading
    b = bind(f, wants, 2, &options);
    assert_true(b[0].scale == 1 && b[1].scale == 1);
    float *x = loaded(f, &b[1]), *y = stored(f, 2);
    for (int i = 0; i < 32; i++) assert_true(x[i] == 3 * y[i]);
    BindWant qkv = {.name = "qkv.weight", .ndim = 2, .shape = {12, 8}};
    BindOptions pieces = {.names = other_names, .type = DT_COUNT,
                          .ignore = (const char *const[]){"a.", "b.", NULL}};
    b = bind(f, &qkv, 1, &pieces); // pieces of different scales
    assert_true(b->dtype == DT_F32 && b->scale == 1);
    x = loaded(f, b);
    for (int i = 0; i < 32; i++)
        assert_true(x[i] == 0.5f * stored(f, 4)[i] && x[32 + i] == 2 * stored(f, 6)[i] &&
                    x[64 + i] == stored(f, 8)[i]);
    mem_free(f);
}

// ---- complaints ---------------------------------------------------------------------------------

static int lines_with(const Error *err, const char *text) {
    int n = 0;
    for (int i = 0; i < MIN(err->items, ERROR_ITEMS); i++) n += strstr(err->item[i], text) != NULL;
    return n;
}

// One number in any form that files have it in, and what stands beside it; more than one is refused by
// name: scales of rows (torchao, compressed-tensors) and of blocks (MXFP8, musubi-tuner).
static void test_forms_of_scales(void **state) {
    (void)state;
    static const DType types[] = {DT_F32, DT_F16, DT_BF16, DT_F64};
    static const char *const names[] = {"a.scale_weight", "a.weight_scale"};
    const BindWant want = {.name = "a.weight", .ndim = 2, .shape = {4, 8}};
    for (size_t i = 0; i < 3 * COUNT_OF(types) * COUNT_OF(names); i++) {
        File *f = file_new();
        add(f, "a.weight", i % 2 ? DT_F8_E4M3 : DT_F8_E5M2, SHAPE(4, 8));
        add(f, names[i % 2], types[i / 2 % COUNT_OF(types)], (int)(i / 8), (const int64_t[]){1, 1});
        static const float half = 0.5f;
        dtype_convert(types[i / 2 % COUNT_OF(types)], f->data[1], DT_F32, &half, 1);
        add(f, "scaled_fp8", DT_F8_E4M3, SHAPE((int64_t)i % 3)); // empty, or of any size
        add(f, "a.scale_input", DT_F32, 0, NULL);
        add(f, "a.input_scale", DT_F32, SHAPE(1));
        add(f, "a.comfy_quant", DT_U8, SHAPE(27)); // {"format": "float8_e4m3fn"}
        BoundWeight *b = bind(f, &want, 1, NULL);
        assert_true(b->scale == 0.5f && b->piece[0].scale == 1 && b->dtype == f->tensor[0].dtype);
        assert_memory_equal(loaded(f, b), stored(f, 0), 32 * 4);
        mem_free(f);
    }
    static const struct { DType type; int64_t shape[3]; int ndim; const char *says; } many[] = {
        {DT_F32, {4}, 1, "a.weight_scale: expected one number, found f32 [4]"},
        {DT_BF16, {4, 1}, 2, "a.weight_scale: expected one number, found bf16 [4, 1]"},
        {DT_F32, {4, 1, 1}, 3, "a.weight_scale: expected one number, found f32 [4, 1, 1]"},
        {DT_U8, {1}, 1, "a.weight_scale: expected one number, found u8 [1]"},
    };
    for (size_t i = 0; i < COUNT_OF(many); i++) {
        File *f = file_new();
        add(f, "a.weight", DT_F8_E4M3, SHAPE(4, 8));
        add(f, "a.weight_scale", many[i].type, many[i].ndim, many[i].shape);
        add(f, "a.weight_scale_2", DT_F32, SHAPE(1));
        Error err = {0};
        assert_null(bind_weights(f, open_file(f), &want, 1, NULL, &err));
        assert_int_equal(err.items, 2);
        assert_int_equal(lines_with(&err, many[i].says), 1);
        assert_int_equal(lines_with(&err, "unexpected: a.weight_scale_2"), 1);
        mem_free(f);
    }
}

static void test_complaints(void **state) {
    (void)state;
    File *f = file_new();
    add(f, "good.weight", DT_F8_E4M3, SHAPE(4, 8));
    add(f, "good.scale_weight", DT_F32, SHAPE(2));
    add(f, "shape", DT_F32, SHAPE(4, 8));
    add(f, "type", DT_I32, SHAPE(4));
    add(f, "endless.weight", DT_F8_E4M3, SHAPE(4, 8));
    add_number(f, "endless.weight_scale", INFINITY);
    for (int i = 0; i < 8; i++) add(f, mem_printf(f, "extra.%d", i), DT_F32, SHAPE(2));
    BindWant wants[20] = {{.name = "good.weight", .ndim = 2, .shape = {4, 8}},
                          {.name = "shape", .ndim = 2, .shape = {8, 4}},
                          {.name = "type", .ndim = 1, .shape = {4}},
                          {.name = "endless.weight", .ndim = 2, .shape = {4, 8}}};
    for (int i = 0; i < 12; i++)
        wants[4 + i] = (BindWant){.name = mem_printf(f, "gone.%d", i), .ndim = 1, .shape = {3}};
    Error err = {0};
    assert_null(bind_weights(f, open_file(f), wants, 16, NULL, &err));
    assert_non_null(strstr(err.text, "12 missing, 4 wrong, 8 unexpected"));
    assert_int_equal(err.items, 24);
    assert_int_equal(lines_with(&err, "wrong: "), 4);
    assert_true(lines_with(&err, "missing: gone.") >= 3);
    assert_true(lines_with(&err, "unexpected: extra.") >= 3);
    assert_int_equal(lines_with(&err, "shape: expected [8, 4], found [4, 8]"), 1);
    assert_int_equal(lines_with(&err, "type: expected a type of real numbers, found i32"), 1);
    assert_int_equal(lines_with(&err, "good.scale_weight: expected one number, found f32 [2]"), 1);
    assert_int_equal(lines_with(&err, "endless.weight_scale: expected a finite number, found inf"), 1);
    mem_free(f);
}

// A wanted tensor that the layout makes of several is not half there; an odd number of rows has no
// halves; optional ones may be missing, but not wrong.
static void test_pieces_that_do_not_fit(void **state) {
    (void)state;
    File *f = file_new();
    add(f, "to_q.weight", DT_F32, SHAPE(4, 8));
    add(f, "to_k.weight", DT_F32, SHAPE(4, 8));
    add(f, "norm_out.weight", DT_F32, SHAPE(5, 8));
    add(f, "prefix.there", DT_F32, SHAPE(5));
    BindWant wants[] = {{.name = "qkv.weight", .ndim = 2, .shape = {12, 8}, .optional = true},
                        {.name = "mod.weight", .ndim = 2, .shape = {5, 8}},
                        {.name = "there", .ndim = 1, .shape = {6}, .optional = true}};
    Error err = {0};
    BindOptions options = {.names = other_names, .type = DT_COUNT};
    assert_null(bind_weights(f, open_file(f), wants, 3, &options, &err));
    assert_int_equal(err.items, 3);
    assert_int_equal(lines_with(&err, "missing: to_v.weight"), 1);
    assert_int_equal(lines_with(&err, "norm_out.weight: expected a multiple of 2 rows"), 1);
    assert_int_equal(lines_with(&err, "prefix.there: expected [6], found [5]"), 1);
    mem_free(f);
}

static void test_ranges_are_rows(void **state) {
    (void)state;
    File *f = file_new();
    add(f, "w", DT_F32, SHAPE(4, 8));
    BindWant want = {.name = "w", .ndim = 2, .shape = {4, 8}};
    BoundWeight *b = bind(f, &want, 1, NULL);
    char out[256];
    static const uint64_t bad[][2] = {{4, 32}, {0, 4}, {0, 160}, {128, 32}, {1 << 20, 32}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        Error err = {0};
        assert_false(bound_read(b, bad[i][0], out, bad[i][1], &err));
        assert_non_null(strstr(err.text, "expected whole rows of 32 bytes"));
    }
    Error err = {0};
    assert_true(bound_read(b, 128, out, 0, &err));
    mem_free(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_convolutions),
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_types_on_the_device),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_forms_of_scales),
        cmocka_unit_test(test_complaints),
        cmocka_unit_test(test_pieces_that_do_not_fit),
        cmocka_unit_test(test_ranges_are_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
