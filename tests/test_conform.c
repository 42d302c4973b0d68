// test_conform.c: every device against the reference, op by op (values and gradients) and as a
// whole model; what is skipped is pinned, so that a device that supports nothing cannot pass.
// Whether the driver can fail at all is shown by the mutants (tests/mutants).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "tests/conform_model.h"

// rows: kernel rows skipped because this machine has no hardware for them.
typedef struct Count { int ok, fail, skip, rows, printed; } Count;

static void report(void *user, const ConformResult *r) {
    Count *count = user;
    if (r->status == CONFORM_OK) count->ok++;
    if (r->status == CONFORM_FAIL) count->fail++;
    bool row = !strncmp(r->name, "coverage", 8);
    if (r->status == CONFORM_SKIP) row ? count->rows++ : count->skip++;
    if (r->status == CONFORM_OK || count->printed++ > 60) return;
    print_message("%s %s %s %s '%s' [%s]: %s\n", r->status == CONFORM_FAIL ? "FAIL" : "SKIP",
                  r->device, r->op, r->row, r->name, r->types, r->reason);
}

static bool on_gpu(const char *device) {
    Error err = {0};
    Device *dev = dev_open(NULL, device, NULL, &err);
    if (!dev) fail_msg("%s: %s", device, err.text);
    DeviceKind kind = dev_info(dev)->kind;
    dev_close(dev);
    return kind == DEV_DISCRETE || kind == DEV_INTEGRATED;
}

// `skips`: exactly so many cases; `least`: that much at least must have run. Rows for other hardware
// are skipped on GPUs only: the CPU devices and the software driver of the tests run all.
static void run(const char *device, const ConformOptions *extra, const char *model, int skips,
                int least) {
    ConformOptions o = extra ? *extra : (ConformOptions){0};
    ConformTotals totals;
    Count count = {0};
    Error err = {0};
    o.device = device;
    o.report = report;
    o.user = &count;
    bool ok = model ? conform_model(&o, model, &totals, &err) : conform_run(&o, &totals, &err);
    if (!ok) fail_msg("%s: %s", device, err.text);
    print_message("  %s%s%s: %d passed, %d failed, %d skipped (seed %llu)\n", device,
                  o.grad ? " gradients" : "", model ? " nano" : "", totals.passed, totals.failed,
                  totals.skipped, (unsigned long long)(o.seed ? o.seed : CONFORM_SEED));
    assert_int_equal(count.ok, totals.passed);
    assert_int_equal(totals.failed, 0);
    assert_int_equal(count.skip, skips);
    assert_int_equal(count.skip + count.rows, totals.skipped);
    if (!on_gpu(device)) assert_int_equal(count.rows, 0);
    assert_true(totals.passed >= least);
}

static bool vulkan_there(void) {
    Error err = {0};
    Device *dev = dev_open(NULL, "vulkan", NULL, &err);
    if (!dev) print_message("SKIP: no Vulkan device: %s\n", err.text);
    dev_close(dev);
    return dev != NULL;
}

enum {
    CASES = 2000,     // of one row per op, in all types
    GRAD_CASES = 45,
    MODEL_CASES = 100,
    VULKAN_SKIPS = 0,
};

static void test_ref(void **state) {
    (void)state;
    // The oracle against itself finds errors of its strided, typed and far accesses only.
    run("ref", NULL, NULL, 0, CASES);
    run("ref", &(ConformOptions){.grad = true}, NULL, 0, GRAD_CASES);
}

static void test_cpu(void **state) {
    (void)state;
    run("cpu", NULL, NULL, 0, 2 * CASES);
    run("cpu", &(ConformOptions){.grad = true}, NULL, 0, GRAD_CASES);
    run("cpu", NULL, "nano", 0, MODEL_CASES);
}

static void test_vulkan(void **state) {
    (void)state;
    if (!vulkan_there()) skip();
#ifdef __SANITIZE_ADDRESS__
    // The driver's compiler, which takes most of the time, is not ours to sanitise; the gradients
    // and the model below pass through all of our code.
    print_message("SKIP: every case on Vulkan under a sanitizer: the plain build runs them\n");
    skip();
#endif
    run("vulkan", NULL, NULL, VULKAN_SKIPS, CASES / 4);
}

static void test_vulkan_model(void **state) {
    (void)state;
    if (!vulkan_there()) skip();
    run("vulkan", &(ConformOptions){.grad = true}, NULL, 0, GRAD_CASES / 2);
    run("vulkan", NULL, "nano", 0, MODEL_CASES);
}

// Another seed: other numbers, the same verdict. A seed repeats itself.
static void test_seeds(void **state) {
    (void)state;
    run("cpu", &(ConformOptions){.op = "attn", .type = "f32", .seed = 7}, NULL, 0, 30);
    Count count = {0};
    ConformOptions o = {
        .device = "ref", .op = "norm", .name = "layer 3x5x17", .report = report, .user = &count};
    ConformTotals a, b;
    Error err = {0};
    assert_true(conform_run(&o, &a, &err));
    assert_true(conform_run(&o, &b, &err));
    assert_int_equal(a.passed, b.passed);
    assert_true(a.passed > 0);
}

// The oracle itself, against numbers worked out by hand.
static void one(Device *dev, OpId op, OpParams p, HostTensor *t, int out, const double *want,
                int n) {
    Error err = {0};
    Oracle oracle = {dev};
    if (!oracle_run(&oracle, op, &p, t, &err)) fail_msg("%s: %s", op_info[op].name, err.text);
    for (int i = 0; i < n; i++)
        if (!(fabs(t[out].v[i] - want[i]) <= 1e-6 * fmax(1, fabs(want[i]))))
            fail_msg("%s [%d]: expected %g, found %g", op_info[op].name, i, want[i], t[out].v[i]);
}

static HostTensor given(void *mem, DType dtype, int ndim, const int64_t *shape, const double *v) {
    HostTensor t = host_new(mem, dtype, ndim, shape);
    if (v) memcpy(t.v, v, (size_t)t.count * sizeof *v);
    return t;
}
#define V(...) ((const double[]){__VA_ARGS__})

static void test_oracle_by_hand(void **state) {
    (void)state;
    Error err = {0};
    void *mem = mem_new(NULL, 1);
    Device *dev = dev_open(mem, "ref", NULL, &err);
    assert_non_null(dev);
    HostTensor t[MAX_OPERANDS] = {{0}};
    t[gemm_x] = given(mem, DT_F32, 3, SHAPE(1, 2, 3), V(1, 2, 3, 4, 5, 6));
    t[gemm_w] = given(mem, DT_F32, 3, SHAPE(1, 2, 3), V(1, 0, 1, 0, 1, -1));
    t[gemm_bias] = given(mem, DT_F32, 3, SHAPE(1, 1, 2), V(10, -10));
    t[gemm_residual] = given(mem, DT_F32, 3, SHAPE(1, 2, 2), V(100, 200, 300, 400));
    t[gemm_gate] = given(mem, DT_F32, 3, SHAPE(1, 1, 2), V(2, 3));
    t[gemm_y] = given(mem, DT_F32, 3, SHAPE(1, 2, 2), NULL);
    one(dev, OP_GEMM, (OpParams){.gemm = {.act = ACT_RELU}}, t, gemm_y, V(128, 200, 340, 400), 4);
    memset(t, 0, sizeof t);
    double h = log(3); // softmax of (0, log 3) is (1/4, 3/4)
    t[attn_q] = given(mem, DT_F32, 4, SHAPE(1, 2, 1, 1), V(0, 1));
    t[attn_k] = given(mem, DT_F32, 4, SHAPE(1, 2, 1, 1), V(0, h));
    t[attn_v] = given(mem, DT_F32, 4, SHAPE(1, 2, 1, 1), V(4, 8));
    t[attn_y] = given(mem, DT_F32, 4, SHAPE(1, 2, 1, 1), NULL);
    t[attn_lse] = given(mem, DT_F32, 3, SHAPE(1, 1, 2), NULL);
    one(dev, OP_ATTN, (OpParams){0}, t, attn_y, V(6, 7), 2);
    one(dev, OP_ATTN, (OpParams){0}, t, attn_lse, V(log(2), log(4)), 2);
    one(dev, OP_ATTN, (OpParams){.attn = {.causal = 1}}, t, attn_y, V(4, 7), 2);
    memset(t, 0, sizeof t);
    t[norm_x] = given(mem, DT_F32, 3, SHAPE(1, 1, 2), V(1, 5));
    t[norm_y] = given(mem, DT_F32, 3, SHAPE(1, 1, 2), NULL);
    t[norm_rstd] = given(mem, DT_F32, 3, SHAPE(1, 1, 1), NULL);
    one(dev, OP_NORM, (OpParams){0}, t, norm_y, V(-1, 1), 2);
    one(dev, OP_NORM, (OpParams){.norm = {.kind = NORM_RMS, .eps = 3}}, t, norm_rstd, V(0.25), 1);
    memset(t, 0, sizeof t);
    t[reduce_x] = given(mem, DT_F32, 3, SHAPE(2, 2, 2), V(1, 2, INFINITY, 4, 5, 6, 7, 8));
    t[reduce_y] = given(mem, DT_F32, 3, SHAPE(1, 1, 1), NULL);
    one(dev, OP_REDUCE, (OpParams){.reduce = {.kind = REDUCE_NONFINITE}}, t, reduce_y, V(1), 1);
    t[reduce_x].v[2] = 3;
    one(dev, OP_REDUCE, (OpParams){.reduce = {.kind = REDUCE_NONFINITE}}, t, reduce_y, V(0), 1);
    t[reduce_y] = given(mem, DT_F32, 3, SHAPE(2, 1, 2), V(1, 1, 1, 1));
    one(dev, OP_REDUCE, (OpParams){.reduce = {.alpha = 0.5f, .accumulate = 1}}, t, reduce_y,
        V(3, 4, 7, 8), 4);
    dev_close(dev);
    mem_free(mem);
}

// Names that match nothing are refused, not passed.
static void test_refusals(void **state) {
    (void)state;
    const ConformOptions wrong[] = {{.device = "ref", .op = "gem"},
                                    {.device = "ref", .row = "none"},
                                    {.device = "ref", .type = "f99"},
                                    {.device = "ref", .name = "no such case"},
                                    {.device = "toaster"}};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        ConformTotals totals;
        Error err = {0};
        assert_false(conform_run(&wrong[i], &totals, &err));
        assert_true(err.text[0] != 0);
        assert_int_equal(totals.passed, 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle_by_hand), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_seeds),          cmocka_unit_test(test_ref),
        cmocka_unit_test(test_cpu),            cmocka_unit_test(test_vulkan),
        cmocka_unit_test(test_vulkan_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
