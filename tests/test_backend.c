// test_backend.c: the front of the backends: what op_check refuses, budgets, accounting, injected
// failures, cancelling, names of devices; on every device that is there.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "backend/backend.h"
#include "backend/os.h"

enum { MIB = 1 << 20 };
static const char *const specs[] = {"ref", "cpu", "vulkan"};

// NULL where this machine has no such device.
static Device *open_or_skip(const char *spec, const DeviceOptions *options) {
    Error err = {0};
    Device *dev = dev_open(NULL, spec, options, &err);
    if (!dev && strcmp(spec, "vulkan")) fail_msg("%s: %s", spec, err.text);
    if (!dev) print_message("SKIP %s: %s\n", spec, err.text);
    return dev;
}

static TensorRef tensor(Buffer *buffer, uint64_t offset, DType dtype, int ndim,
                        const int64_t *shape) {
    TensorRef t = {.buffer = buffer, .offset = offset, .dtype = dtype, .ndim = ndim};
    int64_t stride = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        t.shape[d] = shape[d];
        t.stride[d] = stride;
        stride *= shape[d];
    }
    return t;
}
#define DIMS3(a, b, c) 3, (const int64_t[]){a, b, c}

// y [1, 4, 8] = x [1, 4, 16] w [1, 8, 16]^T, all f32 in one buffer of 64 KiB.
static OpCall gemm_call(Buffer *b) {
    OpCall c = {.op = OP_GEMM};
    c.t[gemm_x] = tensor(b, 0, DT_F32, DIMS3(1, 4, 16));
    c.t[gemm_w] = tensor(b, 4096, DT_F32, DIMS3(1, 8, 16));
    c.t[gemm_y] = tensor(b, 8192, DT_F32, DIMS3(1, 4, 8));
    return c;
}

// o [4, 8] = x + y
static OpCall add_call(Buffer *b) {
    OpCall c = {.op = OP_EWISE, .params.ewise.kind = EW_ADD};
    const int64_t shape[2] = {4, 8};
    c.t[ewise_x] = tensor(b, 0, DT_F32, 2, shape);
    c.t[ewise_y] = tensor(b, 4096, DT_F32, 2, shape);
    c.t[ewise_o] = tensor(b, 8192, DT_F32, 2, shape);
    return c;
}

static OpCall attn_call(Buffer *b) {
    OpCall c = {.op = OP_ATTN};
    const int64_t q[4] = {1, 4, 4, 8}, k[4] = {1, 6, 2, 8};
    c.t[attn_q] = tensor(b, 0, DT_F32, 4, q);
    c.t[attn_k] = tensor(b, 4096, DT_F32, 4, k);
    c.t[attn_v] = tensor(b, 8192, DT_F32, 4, k);
    c.t[attn_y] = tensor(b, 12288, DT_F32, 4, q);
    c.t[attn_lse] = tensor(b, 16384, DT_F32, DIMS3(1, 4, 4));
    return c;
}

// ---- op_check -----------------------------------------------------------------------------------
static void gemm_no_y(OpCall *c) { c->t[gemm_y].buffer = NULL; }
static void gemm_rank(OpCall *c) { c->t[gemm_x].ndim = 2; }
static void gemm_k(OpCall *c) { c->t[gemm_w].shape[2] = 15; }
static void gemm_type(OpCall *c) { c->t[gemm_w].dtype = DT_I32; }
static void gemm_far(OpCall *c) { c->t[gemm_y].offset = 65536 - 4; }
static void gemm_past(OpCall *c) { c->t[gemm_y].offset = UINT64_MAX - 3; }
static void gemm_unaligned(OpCall *c) { c->t[gemm_x].offset = 2; }
static void gemm_strided(OpCall *c) { c->t[gemm_x].stride[2] = 2; }
static void gemm_same_y(OpCall *c) { c->t[gemm_y].stride[1] = 0; }
static void gemm_on_x(OpCall *c) { c->t[gemm_y].offset = 16; }
static void gemm_act(OpCall *c) { c->params.gemm.act = ACT_COUNT; }
static void gemm_half_segment(OpCall *c) { c->t[gemm_x2] = c->t[gemm_x]; }
static void gemm_short_bias(OpCall *c) {
    c->t[gemm_bias] = tensor(c->t[0].buffer, 16384, DT_F32, DIMS3(1, 1, 7));
}
static void gemm_zero(OpCall *c) { c->t[gemm_x].shape[1] = c->t[gemm_y].shape[1] = 0; }
static void gemm_huge(OpCall *c) {
    for (int i = 0; i < 2; i++) c->t[gemm_x].shape[i] = c->t[gemm_x].stride[i] = UINT32_MAX;
}
static void gemm_negative(OpCall *c) { c->t[gemm_x].stride[1] = -16; }
static void gemm_dims(OpCall *c) { c->t[gemm_x].ndim = 7; }
static void ewise_missing(OpCall *c) { c->t[ewise_y].buffer = NULL; }
static void ewise_extra(OpCall *c) { c->t[ewise_z] = c->t[ewise_y]; }
static void ewise_kind(OpCall *c) { c->params.ewise.kind = EW_COUNT; }
static void ewise_shape(OpCall *c) { c->t[ewise_y].shape[1] = 7; }
static void ewise_shifted(OpCall *c) { c->t[ewise_o].offset = 4; }
static void ewise_other_strides(OpCall *c) {
    c->t[ewise_o].offset = 0, c->t[ewise_o].stride[0] = 9;
}
static void attn_heads(OpCall *c) { c->t[attn_k].shape[2] = c->t[attn_v].shape[2] = 3; }
static void attn_lse_type(OpCall *c) { c->t[attn_lse].dtype = DT_BF16; }
static void attn_keys(OpCall *c) { c->t[attn_v].shape[1] = 5; }
static void op_number(OpCall *c) { c->op = OP_COUNT; }

static const struct {
    const char *what;
    OpCall (*call)(Buffer *b);
    void (*spoil)(OpCall *c);
} refused[] = {
    {"an output that is missing", gemm_call, gemm_no_y},
    {"a wrong rank", gemm_call, gemm_rank},
    {"lengths of sums that differ", gemm_call, gemm_k},
    {"integers", gemm_call, gemm_type},
    {"the end of the buffer passed", gemm_call, gemm_far},
    {"an offset that wraps", gemm_call, gemm_past},
    {"an offset inside an element", gemm_call, gemm_unaligned},
    {"a strided last dimension", gemm_call, gemm_strided},
    {"an output broadcast", gemm_call, gemm_same_y},
    {"an output on an input", gemm_call, gemm_on_x},
    {"an unknown activation", gemm_call, gemm_act},
    {"x2 without w2", gemm_call, gemm_half_segment},
    {"a bias of another length", gemm_call, gemm_short_bias},
    {"an empty tensor", gemm_call, gemm_zero},
    {"a size that overflows", gemm_call, gemm_huge},
    {"a negative stride", gemm_call, gemm_negative},
    {"seven dimensions", gemm_call, gemm_dims},
    {"an input too few", add_call, ewise_missing},
    {"an input too many", add_call, ewise_extra},
    {"an unknown kind", add_call, ewise_kind},
    {"shapes that differ", add_call, ewise_shape},
    {"an output shifted on its input", add_call, ewise_shifted},
    {"in place with other strides", add_call, ewise_other_strides},
    {"heads that no group divides", attn_call, attn_heads},
    {"an lse in bf16", attn_call, attn_lse_type},
    {"keys and values of other lengths", attn_call, attn_keys},
    {"an unknown op", add_call, op_number},
};

static void test_refusals(void **state) {
    (void)state;
    Error err = {0};
    Device *dev = open_or_skip("ref", NULL);
    Buffer *b = buf_new(dev, 65536, "test", &err);
    assert_non_null(b);
    OpCall (*const good[])(Buffer *) = {gemm_call, add_call, attn_call};
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        OpCall c = good[i](b);
        if (!op_check(&c, &err)) fail_msg("%s", err.text);
    }
    OpCall in_place = add_call(b);
    in_place.t[ewise_o].offset = 0;
    assert_true(op_check(&in_place, &err));
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        OpCall c = refused[i].call(b);
        refused[i].spoil(&c);
        err = (Error){0};
        if (op_check(&c, &err)) fail_msg("%s was not refused", refused[i].what);
        if (!strstr(err.text, "expected") || !strstr(err.text, "found"))
            fail_msg("%s: '%s' is not a whole message", refused[i].what, err.text);
        assert_int_equal(err.status, STATUS_FAILED);
        ProgramStep step = {.call = c}; // programs refuse the same
        assert_null(prog_new(dev, &step, 1, &err));
    }
    buf_free(b);
    dev_close(dev);
}

// dq, dk and dv of one packed tensor interleave without sharing an element.
static void test_interleaved(void **state) {
    (void)state;
    Error err = {0};
    Device *dev = open_or_skip("ref", NULL);
    Buffer *b = buf_new(dev, MIB, "test", &err);
    OpCall c = {.op = OP_ATTN_BWD};
    const int64_t x[4] = {2, 6, 2, 8}, lse[3] = {2, 2, 6};
    for (int i = 0; i < attn_bwd_operand_count; i++)
        if (i != attn_bwd_mask)
            c.t[i] = tensor(b, (uint64_t)i * 16384, DT_F32, i == attn_bwd_lse ? 3 : 4,
                            i == attn_bwd_lse ? lse : x);
    for (int i = 0; i < 3; i++) {
        TensorRef *t = &c.t[attn_bwd_dq + i];
        t->offset = 512 * 1024 + (uint64_t)i * 16 * 4;
        t->stride[1] = 48, t->stride[0] = 48 * 6;
    }
    if (!op_check(&c, &err)) fail_msg("%s", err.text);
    c.t[attn_bwd_dk].offset -= 4; // one element of dq
    assert_false(op_check(&c, &err));
    buf_free(b);
    dev_close(dev);
}

// ---- devices ------------------------------------------------------------------------------------
// A device is opened without a look at other backends: no Vulkan driver comes into the process.
static void test_named_backend_only(void **state) {
    (void)state;
    static const char *const specs[] = {"cpu", "ref"};
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps) skip(); // not Linux
    for (size_t i = 0; i < COUNT_OF(specs); i++) dev_close(open_or_skip(specs[i], NULL));
    char line[512];
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "libvulkan")) fail_msg("the Vulkan loader is loaded: %s", line);
    fclose(maps);
}

static void test_names(void **state) {
    (void)state;
    static const char *const unknown[] = {"toaster", "", "cpu:1", "vulkan:99", "ref ", "CPU"};
    for (size_t i = 0; i < COUNT_OF(unknown); i++) {
        Error err = {0};
        assert_null(dev_open(NULL, unknown[i], NULL, &err));
        assert_non_null(strstr(err.text, "expected"));
        assert_non_null(strstr(err.text, "cpu"));
        assert_int_equal(err.status, STATUS_FAILED);
    }
    int count;
    void *mem = mem_new(NULL, 1);
    DeviceInfo *infos = dev_list(mem, &count, NULL);
    assert_true(count >= 2);
    assert_string_equal(infos[0].id, "cpu");
    assert_string_equal(infos[1].id, "ref");
    for (int i = 0; i < count; i++) { // each can be opened by its id
        Error err = {0};
        Device *dev = dev_open(NULL, infos[i].id, NULL, &err);
        if (!dev) fail_msg("%s: %s", infos[i].id, err.text);
        assert_string_equal(dev_info(dev)->id, infos[i].id);
        assert_true(dev_info(dev)->max_buffer >= 128 * (uint64_t)MIB);
        assert_true(dev_info(dev)->buffer_align >= 16);
        dev_close(dev);
    }
    Device *dev = open_or_skip("auto", NULL); // never the reference, never a software driver
    assert_string_not_equal(dev_info(dev)->backend, "ref");
    assert_int_not_equal(dev_info(dev)->kind, DEV_SOFTWARE);
    dev_close(dev);
    mem_free(mem);
}

static void run_memory(const char *spec) {
    Error err = {0};
    DeviceOptions options = {.budget = 48 * (uint64_t)MIB};
    Device *dev = open_or_skip(spec, &options);
    if (!dev) return;
    uint64_t start = dev_memory(dev).used;
    assert_true(start <= dev_info(dev)->staging_bytes);
    Buffer *a = buf_new(dev, 3 * MIB, "a", &err), *b = buf_new(dev, 5 * MIB, "b", &err);
    assert_non_null(a), assert_non_null(b);
    assert_int_equal(buf_size(b), 5 * MIB);
    MemoryStats m = dev_memory(dev);
    assert_int_equal(m.used, start + 8 * MIB);
    assert_int_equal(m.budget, options.budget);
    buf_free(a);
    assert_int_equal(dev_memory(dev).used, start + 5 * MIB);
    assert_true(dev_memory(dev).peak >= start + 8 * MIB);
    dev_reset_peak(dev);
    assert_int_equal(dev_memory(dev).peak, dev_memory(dev).used);
    // Past the budget: refused, with both figures, and nothing is lost by it.
    assert_null(buf_new(dev, 100 * (uint64_t)MIB, "too large", &err));
    assert_non_null(strstr(err.text, "too large"));
    assert_non_null(strstr(err.text, "48.0"));
    assert_int_equal(dev_memory(dev).used, start + 5 * MIB);
    assert_null(buf_new(dev, UINT64_MAX, "endless", &err));
    assert_null(buf_new(dev, 0, "empty", &err));
    Buffer *fits = buf_new(dev, 8 * MIB, "fits", &err);
    assert_non_null(fits);
    buf_free(fits);
    // A program counts what its recording holds.
    ProgramStep step = {.call = add_call(b)};
    uint64_t before = dev_memory(dev).used;
    Program *prog = prog_new(dev, &step, 1, &err);
    if (!prog) fail_msg("%s", err.text);
    assert_int_equal(dev_memory(dev).used, before + prog_bytes(prog));
    assert_int_equal(prog_bytes(prog), prog_bytes_for(dev, 1));
    prog_free(prog);
    assert_int_equal(dev_memory(dev).used, before);
    buf_free(b);
    buf_free(NULL);
    assert_int_equal(dev_memory(dev).used, start);
    dev_close(dev);
}

static void test_memory(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(specs); i++) run_memory(specs[i]);
}

// The n-th allocation fails, for every n until all is done: one clear line each time, nothing
// leaks (the sanitizers look), and the device closes.
static bool all_done(const char *spec, int n, Error *err) {
    DeviceOptions options = {.fail_allocation = n};
    Device *dev = dev_open(NULL, spec, &options, err);
    if (!dev) return false;
    Buffer *b = buf_new(dev, 65536, "test", err);
    float ones[64];
    for (int i = 0; i < 64; i++) ones[i] = 1;
    ProgramStep steps[2] = {0};
    bool ok =
        b && dev_write(b, 0, ones, sizeof ones, err) && dev_write(b, 4096, ones, sizeof ones, err);
    if (ok) steps[0].call = steps[1].call = add_call(b);
    steps[0].barrier = steps[1].barrier = true;
    Program *prog = ok ? prog_new(dev, steps, 2, err) : NULL;
    ok = prog && prog_run(prog, NULL, err) && dev_read(b, 8192, ones, 32 * 4, err);
    if (ok) assert_true(ones[0] == 2 && ones[31] == 2);
    prog_free(prog);
    buf_free(b);
    dev_close(dev);
    return ok;
}

static void test_failing_allocations(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(specs); i++) {
        Device *there = open_or_skip(specs[i], NULL);
        if (!there) continue;
        dev_close(there);
        int n = 1;
        for (;; n++) {
            Error err = {0};
            if (all_done(specs[i], n, &err)) break;
            if (!strstr(err.text, "expected") || strchr(err.text, '\n'))
                fail_msg("%s, allocation %d: '%s'", specs[i], n, err.text);
            assert_int_equal(err.status, STATUS_FAILED);
            assert_true(n < 50);
        }
        assert_true(n > 1); // something was injected
    }
}

static void test_device_loss(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(specs); i++) {
        Error err = {0};
        Device *dev = open_or_skip(specs[i], &(DeviceOptions){.lose_at_submit = 2});
        if (!dev) continue;
        Buffer *b = buf_new(dev, 65536, "test", &err);
        assert_true(dev_fill(b, 0, 65536, 0, &err));
        ProgramStep step = {.call = add_call(b)};
        Program *prog = prog_new(dev, &step, 1, &err);
        assert_true(prog_run(prog, NULL, &err));
        assert_false(prog_run(prog, NULL, &err));
        assert_non_null(strstr(err.text, "lost"));
        float x;
        // From now on only closing works.
        assert_false(prog_run(prog, NULL, &err));
        assert_false(dev_read(b, 0, &x, 4, &err));
        assert_false(dev_write(b, 0, &x, 4, &err));
        assert_null(buf_new(dev, 4, "more", &err));
        assert_null(prog_new(dev, &step, 1, &err));
        assert_false(dev_wait(dev, NULL, &err));
        assert_non_null(strstr(err.text, "lost"));
        prog_free(prog);
        buf_free(b);
        dev_close(dev);
    }
}

static bool yes(void *user) { return (*(int *)user)++, true; }
static bool no(void *user) { return (*(int *)user)++, false; }

static void test_cancel(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(specs); i++) {
        Error err = {0};
        Device *dev = open_or_skip(specs[i], &(DeviceOptions){.max_submit = 1e-4});
        if (!dev) continue;
        enum { N = 384, STEPS = 40 };
        Buffer *b = buf_new(dev, 3 * N * N * 4, "test", &err);
        assert_true(dev_fill(b, 0, 3 * N * N * 4, 0, &err));
        ProgramStep step[STEPS] = {0};
        for (int s = 0; s < STEPS; s++) {
            step[s].call.op = OP_GEMM;
            step[s].call.t[gemm_x] = tensor(b, 0, DT_F32, DIMS3(1, N, N));
            step[s].call.t[gemm_w] = tensor(b, N * N * 4, DT_F32, DIMS3(1, N, N));
            step[s].call.t[gemm_y] = tensor(b, 2 * N * N * 4, DT_F32, DIMS3(1, N, N));
            step[s].barrier = true;
        }
        Program *prog = prog_new(dev, step, strcmp(specs[i], "ref") ? STEPS : 2, &err);
        if (!prog) { // a device without this op yet
            print_message("SKIP %s: %s\n", specs[i], err.text);
            buf_free(b);
            dev_close(dev);
            continue;
        }
        int asked = 0;
        assert_false(prog_run(prog, &(Cancel){yes, &asked}, &err));
        assert_int_equal(err.status, STATUS_CANCELLED);
        assert_true(asked > 0);
        float zero = 1; // the device goes on working
        assert_true(prog_run(prog, &(Cancel){no, &asked}, &err));
        assert_true(dev_read(b, 2 * N * N * 4, &zero, 4, &err));
        assert_true(zero == 0);
        prog_free(prog);
        buf_free(b);
        dev_close(dev);
    }
}

static bool after_a_while(void *user) { return os_seconds() > *(double *)user; }

static Program *attention(Device *dev, Buffer *b, uint64_t size, int64_t T, int64_t D) {
    Error err = {0};
    const int64_t rows[] = {1, T, 1, D};
    ProgramStep step = {.call.op = OP_ATTN};
    const int place[] = {attn_q, attn_k, attn_v, attn_y};
    for (uint64_t k = 0; k < 4; k++) step.call.t[place[k]] = tensor(b, k * size, DT_F32, 4, rows);
    step.call.t[attn_lse] = tensor(b, 4 * size, DT_F32, DIMS3(1, 1, T));
    Program *prog = prog_new(dev, &step, 1, &err);
    assert_non_null(prog);
    return prog;
}

// One op that would run for long on any of the devices (as long as a small one times the work), left
// near its beginning.

static void test_cancel_inside_an_op(void **state) {
    (void)state;
    enum { T = 1 << 18, D = 16, PART = 256 }; // T T D: 4.4 TFLOP
    for (size_t i = 0; i < COUNT_OF(specs); i++) {
        Error err = {0};
        Device *dev = open_or_skip(specs[i], NULL);
        if (!dev) continue;
        uint64_t size = (uint64_t)T * D * 4;
        Buffer *b = buf_new(dev, 4 * size + T * 4, "test", &err);
        assert_non_null(b);
        assert_true(dev_fill(b, 0, 4 * size + T * 4, 0, &err));
        Program *prog = attention(dev, b, size, T / PART, D);
        double start = 0;
        for (int k = 0; k < 2; k++) { // the first run may compile
            start = os_seconds();
            assert_true(prog_run(prog, NULL, &err));
        }
        double whole = (os_seconds() - start) * PART * PART;
        prog_free(prog);
        prog = attention(dev, b, size, T, D);
        start = os_seconds();
        double stop = start + fmin(0.2, whole / 100);
        assert_false(prog_run(prog, &(Cancel){after_a_while, &stop}, &err));
        assert_int_equal(err.status, STATUS_CANCELLED);
        double took = os_seconds() - start;
        prog_free(prog); // nothing of it is left to run
        buf_free(b);
        dev_close(dev);
        double freed = os_seconds() - start;
        print_message("  %s: cancelled after %.2f s, free after %.2f, of %.0f\n", specs[i], took, freed,
                      whole);
        assert_true(took < whole / 4 && freed < whole / 4);
    }
}

// What was not begun when cancel was asked is not done: most of the result is as it was.
static bool third_time(void *user) { return ++*(int *)user >= 3; }

static void test_cancel_leaves_the_rest(void **state) {
    (void)state;
    enum { N = 2048, K = 256 };
    for (size_t i = 0; i < COUNT_OF(specs); i++) {
        Error err = {0};
        Device *dev = open_or_skip(specs[i], &(DeviceOptions){.max_submit = 1e-3, .threads = 2});
        if (!dev) continue;
        uint64_t in = (uint64_t)N * K * 4, out = (uint64_t)N * N * 4;
        Buffer *b = buf_new(dev, in + out, "test", &err);
        assert_true(dev_fill(b, 0, in, 0, &err));
        ProgramStep step = {.call.op = OP_GEMM};
        step.call.t[gemm_x] = step.call.t[gemm_w] = tensor(b, 0, DT_F32, DIMS3(1, N, K));
        step.call.t[gemm_y] = tensor(b, in, DT_F32, DIMS3(1, N, N));
        Program *prog = prog_new(dev, &step, 1, &err);
        assert_non_null(prog);
        float *y = malloc(out);
        int untouched = 0;
        // Where the thread that asks has to wait for its turn, the others go on meanwhile.
        for (int tries = 0; tries < 100 && untouched < N * N / 2; tries++) {
            int asked = 0;
            untouched = 0;
            assert_true(dev_fill(b, in, out, UINT32_MAX, &err));
            assert_false(prog_run(prog, &(Cancel){third_time, &asked}, &err));
            assert_int_equal(err.status, STATUS_CANCELLED);
            assert_true(dev_read(b, in, y, out, &err));
            for (int k = 0; k < N * N; k++) untouched += isnan(y[k]);
        }
        if (untouched < N * N / 2) fail_msg("%s: only %d left undone", specs[i], untouched);
        assert_true(prog_run(prog, NULL, &err)); // and whole again
        assert_true(dev_read(b, in, y, out, &err));
        for (int k = 0; k < N * N; k++) assert_true(y[k] == 0);
        free(y);
        prog_free(prog);
        buf_free(b);
        dev_close(dev);
    }
}

// ---- transfers and order ------------------------------------------------------------------------
static void test_transfers(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(specs); i++) {
        Error err = {0};
        Device *dev = open_or_skip(specs[i], NULL);
        if (!dev) continue;
        enum { SIZE = 37 * MIB + 12 }; // more than any staging buffer
        Buffer *b = buf_new(dev, SIZE, "test", &err);
        uint8_t *data = mem_new(NULL, SIZE), *back = mem_new(NULL, SIZE);
        for (size_t k = 0; k < SIZE; k++) data[k] = (uint8_t)(k * 2654435761u >> 13);
        assert_true(dev_write(b, 0, data, SIZE, &err));
        assert_true(dev_read(b, 0, back, SIZE, &err));
        assert_memory_equal(data, back, SIZE);
        assert_true(dev_write(b, 4097, data + 7, 3, &err)); // odd places, odd lengths
        memcpy(data + 4097, data + 7, 3);
        assert_true(dev_fill(b, 8, 12, 0x01020304, &err));
        for (int k = 0; k < 3; k++) memcpy(data + 8 + 4 * k, &(uint32_t){0x01020304}, 4);
        assert_true(dev_read(b, 1, back, 5000, &err));
        assert_memory_equal(data + 1, back, 5000);
        assert_true(dev_read(b, SIZE - 5, back, 5, &err));
        assert_memory_equal(data + SIZE - 5, back, 5);
        assert_true(dev_upload(b, 3, data + 99, SIZE - 99 - 3, &err));
        memmove(data + 3, data + 99, SIZE - 99 - 3);
        assert_true(dev_read(b, 0, back, SIZE - 99, &err));
        assert_memory_equal(data, back, SIZE - 99);
        uint8_t *place = dev_upload_place(b, 5, 3);
        assert_true(place || dev_info(dev)->kind != DEV_CPU); // the host's memory is such a place
        if (place) memcpy(place, "abc", 3), memcpy(data + 5, "abc", 3);
        assert_true(dev_read(b, 0, back, 16, &err));
        assert_memory_equal(data, back, 16);
        assert_null(dev_upload_place(b, SIZE - 3, 4));
        assert_true(dev_write(b, SIZE, data, 0, &err)); // nothing, at the end
        assert_true(dev_upload(b, SIZE, data, 0, &err));
        assert_false(dev_upload(b, SIZE - 3, data, 4, &err));
        assert_false(dev_upload(b, UINT64_MAX, data, 2, &err));
        assert_false(dev_write(b, SIZE - 3, data, 4, &err));
        assert_false(dev_read(b, UINT64_MAX, back, 2, &err));
        assert_false(dev_read(b, 0, back, UINT64_MAX, &err));
        assert_false(dev_fill(b, 2, 4, 0, &err));
        assert_false(dev_fill(b, 0, 6, 0, &err));
        buf_free(b);
        mem_free(data);
        mem_free(back);
        dev_close(dev);
    }
}

// Steps that depend on each other through a barrier, a program submitted several times, writes and
// reads in between: x = 2 x, then y = x + y, in one recording.
static void test_order(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(specs); i++) {
        Error err = {0};
        Device *dev = open_or_skip(specs[i], NULL);
        if (!dev) continue;
        enum { N = 100000 };
        const int64_t shape[1] = {N};
        Buffer *b = buf_new(dev, 2 * N * 4 + 256, "test", &err);
        uint64_t second = N * 4 + 128;
        TensorRef x = tensor(b, 0, DT_F32, 1, shape), y = tensor(b, second, DT_F32, 1, shape);
        ProgramStep step[2] = {
            {.call = {.op = OP_EWISE, .params.ewise = {.kind = EW_SCALE, .alpha = 2}}},
            {.call = {.op = OP_EWISE, .params.ewise = {.kind = EW_ADD}}, .barrier = true},
        };
        step[0].call.t[ewise_x] = step[0].call.t[ewise_o] = x;
        step[1].call.t[ewise_x] = x, step[1].call.t[ewise_y] = step[1].call.t[ewise_o] = y;
        Program *prog = prog_new(dev, step, 2, &err);
        if (!prog) fail_msg("%s", err.text);
        float *v = MEM_ARRAY(NULL, float, N);
        for (int k = 0; k < N; k++) v[k] = (float)(k % 100);
        assert_true(dev_write(b, 0, v, N * 4, &err));
        assert_true(dev_fill(b, second, N * 4, 0, &err));
        for (int turn = 0; turn < 3; turn++) assert_true(prog_submit(prog, &err));
        assert_true(dev_read(b, second, v, N * 4, &err)); // after all three
        for (int k = 0; k < N; k++) assert_true(v[k] == (float)(k % 100) * (2 + 4 + 8));
        assert_true(dev_fill(b, 0, N * 4, 0, &err)); // seen by the next one
        assert_true(prog_run(prog, NULL, &err));
        assert_true(dev_read(b, second, v, N * 4, &err));
        for (int k = 0; k < N; k++) assert_true(v[k] == (float)(k % 100) * (2 + 4 + 8));
        mem_free(v);
        prog_free(prog);
        buf_free(b);
        dev_close(dev);
    }
}

static void test_side_by_side(void **state) {
    (void)state;
    Error err = {0};
    for (size_t i = 0; i < COUNT_OF(specs); i++) {
        Device *a = open_or_skip(specs[i], NULL);
        if (!a) continue;
        Device *b = open_or_skip(specs[i], &(DeviceOptions){.budget = 32 * MIB});
        Buffer *in_a = buf_new(a, 65536, "a", &err);
        assert_non_null(in_a);
        assert_true(dev_memory(b).used < dev_memory(a).used);
        assert_true(dev_fill(in_a, 0, 65536, 0x3f800000, &err)); // 1.0
        dev_close(b); // leaves the other alone
        ProgramStep step = {.call = add_call(in_a)};
        Program *prog = prog_new(a, &step, 1, &err);
        float v = 0;
        assert_true(prog_run(prog, NULL, &err) && dev_read(in_a, 8192, &v, 4, &err));
        assert_true(v == 2);
        prog_free(prog);
        buf_free(in_a);
        dev_close(a);
    }
}

// A forced row is the one that runs; a name that does not exist is refused.
static void test_rows(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(specs); i++) {
        Error err = {0};
        Device *dev = open_or_skip(specs[i], NULL);
        if (!dev) continue;
        Buffer *b = buf_new(dev, 65536, "test", &err);
        OpCall c = add_call(b);
        char why[128];
        int count = dev_row_count(dev, OP_EWISE);
        assert_true(count >= 1);
        assert_true(dev_row_for(dev, &c, why) >= 0);
        for (int row = 0; row < count; row++) {
            for (int other = 0; other < row; other++)
                assert_string_not_equal(dev_row_name(dev, OP_EWISE, row),
                                        dev_row_name(dev, OP_EWISE, other));
            c.row = dev_row_name(dev, OP_EWISE, row);
            int got = dev_row_for(dev, &c, why);
            assert_int_equal(got, dev_row_fits(dev, row, &c, NULL) ? row : -1);
        }
        c.row = "no such row";
        assert_int_equal(dev_row_for(dev, &c, why), -1);
        assert_true(why[0] != 0);
        ProgramStep step = {.call = c};
        assert_null(prog_new(dev, &step, 1, &err));
        buf_free(b);
        dev_close(dev);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named_backend_only), // first: later tests open every device
        cmocka_unit_test(test_refusals),  cmocka_unit_test(test_interleaved),
        cmocka_unit_test(test_names),     cmocka_unit_test(test_memory),
        cmocka_unit_test(test_failing_allocations), cmocka_unit_test(test_device_loss),
        cmocka_unit_test(test_cancel),    cmocka_unit_test(test_transfers),
        cmocka_unit_test(test_cancel_inside_an_op), cmocka_unit_test(test_cancel_leaves_the_rest),
        cmocka_unit_test(test_order),     cmocka_unit_test(test_side_by_side),
        cmocka_unit_test(test_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
