// test_fuse.c: products that decode packed weights themselves give the bits of dequant and product,
// and dequant's result is still written wherever anything else may look at it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "backend/backend.h"
#include "backend/quant.h"

enum { K = 1280, N = 336, M = 70, SLICE = 48 }; // no multiples of 64 rows or columns; a tail of k

typedef struct Lab {
    Device *dev;
    Buffer *x, *w, *scale, *decoded, *y, *part, *seen;
} Lab;

static TensorRef ref(Buffer *b, DType type, int64_t rows, int64_t columns) {
    return (TensorRef){.buffer = b, .dtype = type, .ndim = 3, .shape = {1, rows, columns},
                       .stride = {rows * columns, columns, 1}};
}

static void lab_open(Lab *l, DType type, int threads) {
    Error err = {0};
    DeviceOptions options = {.threads = threads};
    l->dev = dev_open(NULL, "cpu", &options, &err);
    assert_non_null(l->dev);
    float *f = malloc(sizeof *f * N * K);
    uint16_t *b = malloc(sizeof *b * M * K);
    uint64_t bytes = dtype_bytes(type, (uint64_t)N * K);
    void *packed = malloc(bytes);
    for (int i = 0; i < N * K; i++) f[i] = (float)((uint32_t)i * 2654435761u >> 8) * 0x1p-24f - 0.5f;
    for (int i = 0; i < M * K; i++)
        b[i] = bf16_from_f32((float)((uint32_t)i * 40503u >> 4 & 1023) * 0x1p-10f - 0.5f);
    quant_encode(type, f, packed, N * K);
    const struct { Buffer **at; uint64_t size; const void *data; } buffers[] = {
        {&l->x, (uint64_t)M * K * 2, b}, {&l->w, bytes, packed}, {&l->scale, 4, &(float){0.37f}},
        {&l->decoded, (uint64_t)N * K * 2, NULL}, {&l->y, (uint64_t)M * N * 4, NULL},
        {&l->part, (uint64_t)M * SLICE * 4, NULL}, {&l->seen, (uint64_t)N * K * 2, NULL}};
    for (size_t i = 0; i < COUNT_OF(buffers); i++) {
        *buffers[i].at = buf_new(l->dev, buffers[i].size, "test", &err);
        assert_non_null(*buffers[i].at);
        if (buffers[i].data)
            assert_true(dev_write(*buffers[i].at, 0, buffers[i].data, buffers[i].size, &err));
        else assert_true(dev_fill(*buffers[i].at, 0, buffers[i].size / 4 * 4, 0x7fc07fc0u, &err));
    }
    free(f), free(b), free(packed);
}

static void lab_close(Lab *l) {
    Buffer *all[] = {l->x, l->w, l->scale, l->decoded, l->y, l->part, l->seen};
    for (size_t i = 0; i < COUNT_OF(all); i++) buf_free(all[i]);
    dev_close(l->dev);
}

// dequant, a product with all rows, one with rows 32.. of it; `look`: a copy of what dequant wrote.
static int steps_of(const Lab *l, DType type, bool scaled, bool internal, bool look, ProgramStep s[4]) {
    TensorRef decoded = ref(l->decoded, DT_BF16, N, K), slice = ref(l->decoded, DT_BF16, SLICE, K);
    slice.offset = 32 * K * 2;
    s[0] = (ProgramStep){.call = {.op = OP_DEQUANT}, .barrier = true, .internal = internal};
    s[0].call.t[dequant_w] = ref(l->w, type, N, K);
    s[0].call.t[dequant_y] = decoded;
    if (scaled)
        s[0].call.t[dequant_scale] = (TensorRef){.buffer = l->scale, .dtype = DT_F32, .ndim = 1,
                                                 .shape = {1}, .stride = {1}};
    for (int i = 1; i < 3; i++) {
        s[i] = (ProgramStep){.call = {.op = OP_GEMM}, .barrier = true};
        s[i].call.t[gemm_x] = ref(l->x, DT_BF16, M, K);
        s[i].call.t[gemm_w] = i == 1 ? decoded : slice;
        s[i].call.t[gemm_y] = i == 1 ? ref(l->y, DT_F32, M, N) : ref(l->part, DT_F32, M, SLICE);
    }
    s[3] = (ProgramStep){.call = {.op = OP_COPY}, .barrier = true};
    s[3].call.t[copy_x] = decoded;
    s[3].call.t[copy_y] = ref(l->seen, DT_BF16, N, K);
    return look ? 4 : 3;
}

typedef struct Result { float y[M * N], part[M * SLICE]; uint16_t seen[N * K]; bool skipped; } Result;

static void run(Lab *l, const ProgramStep *steps, int count, Result *r) {
    Error err = {0};
    Program *prog = prog_new(l->dev, steps, count, &err);
    if (!prog) fail_msg("%s", err.text);
    assert_true(prog_run(prog, NULL, &err));
    assert_true(dev_read(l->y, 0, r->y, sizeof r->y, &err));
    assert_true(dev_read(l->part, 0, r->part, sizeof r->part, &err));
    assert_true(dev_read(l->seen, 0, r->seen, sizeof r->seen, &err));
    r->skipped = prog_step_seconds(prog, 0) == 0;
    prog_free(prog);
}

static bool has_tiles(const Lab *l) {
    return dev_row_count(l->dev, OP_GEMM) && !strcmp(dev_row_name(l->dev, OP_GEMM, 0), "amx-bf16");
}

static void test_bits(void **state) {
    (void)state;
    static const DType types[] = {DT_Q8_0, DT_Q4_0, DT_Q5_1, DT_Q6_K, DT_IQ4_XS, DT_F8_E4M3, DT_F8_E5M2};
    Result *apart = malloc(sizeof *apart), *fused = malloc(sizeof *fused);
    for (size_t i = 0; i < COUNT_OF(types) * 2; i++) {
        Lab l;
        ProgramStep s[4];
        DType type = types[i / 2];
        lab_open(&l, type, 1 + i % 2 * 2);
        run(&l, s, steps_of(&l, type, i % 2, false, false, s), apart);
        assert_false(apart->skipped);
        assert_true(dev_fill(l.y, 0, sizeof apart->y, 0x7fc07fc0u, NULL));
        assert_true(dev_fill(l.decoded, 0, sizeof apart->seen, 0x7fc07fc0u, NULL)); // nobody needs it
        run(&l, s, steps_of(&l, type, i % 2, true, false, s), fused);
        if (memcmp(apart->y, fused->y, sizeof apart->y) ||
            memcmp(apart->part, fused->part, sizeof apart->part))
            fail_msg("%s: other bits from packed weights", dtype_name(type));
        assert_int_equal(fused->skipped, has_tiles(&l));
        if (i == 0 && !has_tiles(&l)) print_message("no AMX here: nothing is fused\n");
        lab_close(&l);
    }
    free(apart), free(fused);
}

static void test_other_readers(void **state) {
    (void)state;
    Lab l;
    ProgramStep s[4];
    Result *apart = malloc(sizeof *apart), *r = malloc(sizeof *r);
    lab_open(&l, DT_Q8_0, 2);
    run(&l, s, steps_of(&l, DT_Q8_0, false, false, true, s), apart);
    run(&l, s, steps_of(&l, DT_Q8_0, false, true, true, s), r); // a copy reads the decoded weights
    assert_false(r->skipped);
    assert_memory_equal(r->seen, apart->seen, sizeof r->seen);
    assert_memory_equal(r->y, apart->y, sizeof r->y);

    // The packed weights change between the products.
    ProgramStep change[4];
    steps_of(&l, DT_Q8_0, false, true, false, change);
    change[3] = change[2];
    change[2] = (ProgramStep){.call = {.op = OP_COPY}, .barrier = true};
    change[2].call.t[copy_x] = ref(l.x, DT_BF16, 1, K);
    change[2].call.t[copy_y] = ref(l.w, DT_BF16, 1, K);
    run(&l, change, 4, r);
    assert_false(r->skipped);
    assert_memory_equal(r->part, apart->part, sizeof r->part);
    lab_close(&l);

    // A weight of the product that overlaps what was decoded, but is no whole rows of it.
    lab_open(&l, DT_Q8_0, 2);
    int count = steps_of(&l, DT_Q8_0, false, false, false, s);
    s[2].call.t[gemm_w].offset += 64;
    run(&l, s, count, apart);
    s[0].internal = true;
    run(&l, s, count, r);
    assert_false(r->skipped);
    assert_memory_equal(r->part, apart->part, sizeof r->part);
    lab_close(&l);
    free(apart), free(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bits), cmocka_unit_test(test_other_readers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
