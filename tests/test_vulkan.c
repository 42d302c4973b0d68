// test_vulkan.c: the Vulkan backend as such: validation layers, cutting into submissions,
// transfers, the pipeline cache, injected failures, several devices at once. The values of every
// kernel row are test_conform's business. Skipped (77) where there is no Vulkan device.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "backend/backend.h"
#include "backend/os.h"
#include "backend/vulkan/shaders.h"
#include "tests/conform_model.h"
#include "tests/scratch.h"

// The validation layer leaks memory of its own, and is unloaded before the leak checker could tell
// whose it is. (Programs without the layer leave nothing behind.)
__attribute__((visibility("default"))) int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void) { return 1; }

enum { ROWS = 37, COLS = 64, COUNT = ROWS * COLS, VOCAB = 11, STEPS = 7 };

static Device *open_device(const char *spec, const DeviceOptions *options) {
    Error err = {0};
    Device *dev = dev_open(NULL, spec, options, &err);
    if (!dev) fail_msg("%s: %s", spec, err.text);
    return dev;
}

#define OK(call) do { if (!(call)) fail_msg("%s: %s", #call, err.text); } while (0)

static float noise(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (1 << 23) - 1;
}

// A row-major tensor at a byte offset.
static TensorRef tensor(Buffer *buf, uint64_t offset, DType type, int ndim, const int64_t *shape) {
    TensorRef t = {.buffer = buf, .offset = offset, .dtype = type, .ndim = ndim};
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        t.shape[i] = shape[i];
        t.stride[i] = stride;
        stride *= shape[i];
    }
    return t;
}
#define DIMS(...) (const int64_t[]){__VA_ARGS__}

// ---- a program that uses every element-wise op ------------------------------------------------
// One buffer holds everything, at these offsets (floats).
enum { X = 0, Y = COUNT, T = 2 * COUNT, Z = 3 * COUNT, SUMS = 4 * COUNT, FLAG = SUMS + 128,
       IDS = FLAG + 64, TABLE = IDS + 64, DTABLE = TABLE + 1024, MOMENT1 = DTABLE + 1024,
       MOMENT2 = MOMENT1 + 1024, HYPER = MOMENT2 + 1024, HALF = HYPER + 64, FLOATS = HALF + COUNT };

static TensorRef at(Buffer *b, int floats, int ndim, const int64_t *shape) {
    return tensor(b, 4 * (uint64_t)floats, DT_F32, ndim, shape);
}

static int make_steps(ProgramStep *steps, Buffer *b) {
    const int64_t rows[2] = {ROWS, COLS}, table[2] = {VOCAB, COLS}, flat[1] = {VOCAB * COLS};
    TensorRef ids = at(b, IDS, 1, DIMS(ROWS));
    ids.dtype = DT_I32;
    TensorRef half = at(b, HALF, 2, DIMS(COLS, ROWS)), x_turned = at(b, X, 2, rows);
    half.dtype = DT_BF16;
    x_turned.shape[0] = COLS, x_turned.shape[1] = ROWS;
    x_turned.stride[0] = 1, x_turned.stride[1] = COLS;
    ProgramStep all[STEPS] = {
        {.call = {.op = OP_EMBED, .t = {[embed_table] = at(b, TABLE, 2, table), [embed_ids] = ids,
                                        [embed_y] = at(b, Y, 2, rows)}}},
        {.call = {.op = OP_EWISE, .params.ewise = {.kind = EW_MUL},
                  .t = {[ewise_x] = at(b, X, 2, rows), [ewise_y] = at(b, Y, 2, rows),
                        [ewise_o] = at(b, T, 2, rows)}}, .barrier = true},
        {.call = {.op = OP_EWISE, .params.ewise = {.kind = EW_ACT, .act = ACT_GELU},
                  .t = {[ewise_x] = at(b, T, 2, rows), [ewise_o] = at(b, Z, 2, rows)}},
         .barrier = true},
        {.call = {.op = OP_COPY, .t = {[copy_x] = x_turned, [copy_y] = half}}},
        {.call = {.op = OP_REDUCE, .params.reduce = {.alpha = 0.5f},
                  .t = {[reduce_x] = at(b, Z, 3, DIMS(1, ROWS, COLS)),
                        [reduce_y] = at(b, SUMS, 3, DIMS(1, 1, COLS))}}, .barrier = true},
        {.call = {.op = OP_EMBED_BWD,
                  .t = {[embed_bwd_dy] = at(b, Z, 2, rows), [embed_bwd_ids] = ids,
                        [embed_bwd_dtable] = at(b, DTABLE, 2, table)}}},
        {.call = {.op = OP_ADAMW,
                  .t = {[adamw_p] = at(b, TABLE, 1, flat), [adamw_m] = at(b, MOMENT1, 1, flat),
                        [adamw_v] = at(b, MOMENT2, 1, flat), [adamw_g] = at(b, DTABLE, 1, flat),
                        [adamw_hyper] = at(b, HYPER, 1, DIMS(ADAMW_HYPER_COUNT))}},
         .barrier = true},
    };
    memcpy(steps, all, sizeof all);
    return STEPS;
}

static void fill_data(float *data) {
    static const float hyper[] = {1e-2f, 0.9f, 0.99f, 1e-8f, 0.01f, 0.1f, 0.01f, 1, 0.999f, 0};
    uint32_t state = 7;
    for (int i = 0; i < FLOATS; i++) data[i] = noise(&state);
    memset(data + MOMENT1, 0, 2048 * sizeof *data);
    memcpy(data + HYPER, hyper, sizeof hyper);
    for (int i = 0; i < 64; i++) { // a few ids fall outside the table
        int32_t id = (int32_t)((unsigned)i * 7 % (VOCAB + 2)) - 1;
        memcpy(data + IDS + i, &id, 4);
    }
}

// Runs the program `turns` times, all submitted before the first wait; out [FLOATS].
static void run_program(const char *spec, const DeviceOptions *options, int turns, float *out) {
    Error err = {0};
    Device *dev = open_device(spec, options);
    Buffer *b = buf_new(dev, FLOATS * 4, "all", &err);
    OK(b);
    fill_data(out);
    OK(dev_write(b, 0, out, FLOATS * 4, &err));
    ProgramStep steps[STEPS];
    Program *prog = prog_new(dev, steps, make_steps(steps, b), &err);
    OK(prog);
    for (int i = 0; i < turns; i++) OK(prog_submit(prog, &err));
    OK(dev_wait(dev, NULL, &err));
    OK(dev_read(b, 0, out, FLOATS * 4, &err));
    prog_free(prog);
    buf_free(b);
    assert_int_equal(dev_memory(dev).used, dev_info(dev)->staging_bytes);
    dev_close(dev);
}

static void assert_close(const float *got, const float *want) {
    for (int i = 0; i < HALF; i++) {
        if (i >= IDS && i < TABLE) continue;
        // Adam divides by the root of the second moment: the sign of a gradient near 0 shows.
        float limit = i >= TABLE && i < DTABLE ? 2e-3f : 2e-5f;
        if (!(fabsf(got[i] - want[i]) <= limit * (1 + fabsf(want[i]))))
            fail_msg("float %d: expected %g, found %g", i, want[i], got[i]);
    }
    assert_memory_equal(got + HALF, want + HALF, COUNT * 2); // bf16, one rounding
}

static void validated_program_matches_the_oracle(void **state) {
    (void)state;
    float *want = malloc(FLOATS * 4), *got = malloc(FLOATS * 4);
    run_program("ref", NULL, 2, want);
    run_program("vulkan", &(DeviceOptions){.validate = 2}, 2, got);
    assert_close(got, want);
    free(want);
    free(got);
}

// A program whose input was freed reads memory that is no buffer's: what the GPU-assisted layer
// must say, and dev_wait must return as an error. In a process of its own, because a driver on
// the CPU may crash. Returns the exit status.
static int stale_address(void) {
    Error err = {0};
    enum { SIZE = 1 << 16 };
    const DeviceOptions options = {.validate = 2, .max_submit = 2e-5};
    Device *dev = dev_open(NULL, "vulkan", &options, &err);
    // Submissions this short are cut anew for the second run, and the layer takes its list of
    // buffers when a command buffer is recorded.
    Buffer *x = buf_new(dev, SIZE, "x", &err), *y = buf_new(dev, SIZE, "y", &err);
    ProgramStep step = {.call = {.op = OP_COPY,
                                 .t = {[copy_x] = tensor(x, 0, DT_F32, 1, DIMS(SIZE / 4)),
                                       [copy_y] = tensor(y, 0, DT_F32, 1, DIMS(SIZE / 4))}}};
    Program *prog = prog_new(dev, &step, 1, &err);
    Device *other = dev_open(NULL, "vulkan", NULL, &err);
    if (!prog || !other || !prog_run(prog, NULL, &err)) return 2;
    buf_free(x);
    // Takes the place that is free now, so that drivers that read it all the same find memory.
    for (int i = 0; i < 16; i++)
        if (!buf_new(other, SIZE, "in its place", &err)) return 2;
    if (prog_run(prog, NULL, &err)) return 3;
    dev_close(dev);
    dev_close(other);
    return strstr(err.text, "validation") && strstr(err.text, "ddress") ? 0 : 4;
}

static const char *program; // argv[0]

// Layers that do not look up addresses when a program runs again, by their manifest.
static bool layer_is_blind(void) {
    static const char path[] =
        "/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json";
    size_t size;
    Error err = {0};
    uint8_t *text = os_read_file(NULL, path, 1 << 20, &size, &err);
    bool blind = text && strstr((const char *)text, "\"1.3.275\""); // of Ubuntu 24.04
    mem_free(text);
    if (blind) print_message("  SKIP: the validation layer 1.3.275 does not look up addresses\n");
    return blind;
}

static void layers_see_a_stale_address(void **state) {
    (void)state;
    Device *dev = open_device("vulkan", NULL);
    bool software = dev_info(dev)->kind == DEV_SOFTWARE;
    dev_close(dev);
    if (!software || layer_is_blind()) skip(); // a card might need a reset after it
    char command[1024];
    snprintf(command, sizeof command, "'%s' stale-address > /dev/null 2>&1", program);
    assert_int_equal(system(command), 0);
}

static void cutting_changes_no_bit(void **state) {
    (void)state;
    static const double limits[] = {1e-9, 3e-6, 2e-5, 1e-3};
    float *want = malloc(FLOATS * 4), *got = malloc(FLOATS * 4);
    run_program("vulkan", &(DeviceOptions){.max_submit = 10}, 3, want);
    for (size_t i = 0; i < COUNT_OF(limits); i++) {
        const DeviceOptions options = {.max_submit = limits[i], .validate = i == 0 ? 2 : 0};
        run_program("vulkan", &options, 3, got);
        assert_memory_equal(got, want, FLOATS * 4);
    }
    free(want);
    free(got);
}

// Timestamps of the first run lead to other cuts; results must not notice.
static void recording_anew_changes_no_bit(void **state) {
    (void)state;
    Error err = {0};
    float *data = malloc(FLOATS * 4), *first = malloc(FLOATS * 4);
    Device *dev = open_device("vulkan", &(DeviceOptions){.max_submit = 1e-5});
    Buffer *b = buf_new(dev, FLOATS * 4, "all", &err);
    ProgramStep steps[STEPS];
    Program *prog = prog_new(dev, steps, make_steps(steps, b), &err);
    OK(prog);
    for (int i = 0; i < 8; i++) {
        fill_data(data);
        OK(dev_write(b, 0, data, FLOATS * 4, &err));
        OK(prog_run(prog, NULL, &err));
        OK(dev_read(b, 0, data, FLOATS * 4, &err));
        if (i == 0) memcpy(first, data, FLOATS * 4);
        assert_memory_equal(data, first, FLOATS * 4);
        double total = 0;
        for (int j = 0; j < STEPS; j++) total += prog_step_seconds(prog, j);
        if (dev_info(dev)->kind == DEV_SOFTWARE) assert_true(total > 0); // others may not measure
    }
    dev_close(dev); // with all that belongs to it
    free(data);
    free(first);
}

// ---- transfers --------------------------------------------------------------------------------

static void transfers_pass_the_staging_buffer(void **state) {
    (void)state;
    Error err = {0};
    const uint64_t size = 3u << 20;
    uint8_t *data = malloc(size), *back = malloc(size);
    uint32_t seed = 3;
    for (uint64_t i = 0; i < size; i++) data[i] = (uint8_t)(noise(&seed) * 127);
    // A budget of 4 MiB leaves 512 KiB of staging: every transfer takes several rounds.
    Device *dev = open_device("vulkan", &(DeviceOptions){.budget = 4u << 20, .validate = 1});
    assert_true(dev_info(dev)->staging_bytes <= 512u << 10);
    Buffer *b = buf_new(dev, size, "data", &err);
    OK(b);
    OK(dev_write(b, 0, data, size, &err));
    OK(dev_read(b, 0, back, size, &err));
    assert_memory_equal(back, data, size);
    OK(dev_write(b, 12345, data + 7, 200001, &err)); // odd places and lengths
    memmove(back + 12345, data + 7, 200001);
    OK(dev_fill(b, 1u << 20, 4096, 0xdeadbeef, &err));
    for (int i = 0; i < 1024; i++) memcpy(back + (1u << 20) + 4 * i, "\xef\xbe\xad\xde", 4);
    OK(dev_read(b, 0, data, size, &err));
    assert_memory_equal(back, data, size);
    OK(dev_read(b, 12347, data, 5, &err));
    assert_memory_equal(data, back + 12347, 5);
    assert_false(dev_write(b, size - 1, data, 2, &err));
    Buffer *more = buf_new(dev, 2u << 20, "more", &err);
    assert_null(more);
    assert_non_null(strstr(err.text, "budget"));
    buf_free(b);
    dev_close(dev);
    free(data);
    free(back);
}

// Two threads fill each half of a slot while programs read the other slot: what a program finds is
// what was uploaded before it was submitted, whole.
typedef struct Uploader {
    Buffer *to;
    uint64_t offset;
    const void *data;
    uint64_t size;
    bool ok;
} Uploader;

static void run_upload(void *arg) {
    Uploader *u = arg;
    u->ok = dev_upload(u->to, u->offset, u->data, u->size, NULL);
}

static void uploads_beside_programs(void **state) {
    (void)state;
    enum { N = 300007, ROUNDS = 6, HALF = 4 * (N / 2) };
    float *data = malloc(2 * 4 * N), *got = malloc(4 * N);
    for (int staged = 0; staged < 2; staged++) {
        Error err = {0};
        // 8 MiB of budget leave 512 KiB of staging: each upload takes several rounds.
        Device *dev = open_device("vulkan", &(DeviceOptions){.budget = 8u << 20, .validate = 1,
                                                             .staged_uploads = staged});
        uint64_t at_first = dev_memory(dev).used;
        assert_int_equal(at_first, dev_info(dev)->staging_bytes);
        Buffer *ring = buf_new(dev, 2 * 4 * N, "slots", &err);
        Buffer *out = buf_new(dev, 4 * N, "out", &err);
        Program *progs[2];
        for (int i = 0; i < 2; i++) {
            TensorRef slot = tensor(ring, 4 * N * (uint64_t)i, DT_F32, 1, DIMS(N));
            TensorRef doubled = tensor(out, 0, DT_F32, 1, DIMS(N));
            ProgramStep step = {.call = {.op = OP_EWISE, .params.ewise = {.alpha = 2},
                                         .t = {[ewise_x] = slot, [ewise_o] = doubled}}};
            progs[i] = prog_new(dev, &step, 1, &err);
            OK(progs[i]);
        }
        for (int i = 0; i < N; i++) data[i] = (float)i;
        OK(dev_upload(ring, 0, data, 4 * N, &err));
        for (int round = 0; round < ROUNDS; round++) {
            int now = round % 2, next = 1 - now;
            OK(prog_submit(progs[now], &err));
            float *fresh = data + N * next;
            for (int i = 0; i < N; i++) fresh[i] = (float)(i + round + 1);
            uint64_t to = 4 * N * (uint64_t)next;
            Uploader up[2] = {{ring, to, fresh, HALF, false},
                              {ring, to + HALF, (char *)fresh + HALF, 4 * N - HALF, false}};
            Thread *threads[2];
            for (int i = 0; i < 2; i++) threads[i] = thread_start(NULL, run_upload, &up[i]);
            OK(dev_read(out, 0, got, 4 * N, &err));
            for (int i = 0; i < 2; i++) thread_join(threads[i]);
            assert_true(up[0].ok && up[1].ok);
            for (int i = 0; i < N; i++) assert_true(got[i] == 2 * (float)(i + round));
        }
        uint64_t programs = prog_bytes(progs[0]) + prog_bytes(progs[1]);
        assert_int_equal(dev_memory(dev).used, at_first + 3 * 4 * N + programs);
        for (int i = 0; i < 2; i++) prog_free(progs[i]);
        buf_free(ring);
        buf_free(out);
        dev_close(dev);
    }
    free(data);
    free(got);
}

// Threads upload pieces of all sizes without a pause, each into its own part of a buffer, beside
// programs cut into many submissions, transfers and new programs.
enum { PART = 1 << 18, UPLOADERS = 3 };
typedef struct Pieces {
    Buffer *to;
    uint64_t offset;
    uint8_t *want; // [PART] what has been uploaded last
    uint32_t seed;
    int count;
    bool ok;
    _Atomic bool *stop;
} Pieces;

static void upload_pieces(void *arg) {
    Pieces *p = arg;
    for (p->ok = true; p->ok && !atomic_load(p->stop); p->count++) {
        uint64_t r = (uint64_t)((noise(&p->seed) + 1) * (PART / 4));
        uint64_t size = p->count % 3 ? r + 1 : 1 + r % 64;
        uint64_t at = (uint64_t)((noise(&p->seed) + 1) * 0.4999 * (double)(PART - size));
        memset(p->want + at, p->count * 7 + 1, size);
        p->ok = dev_upload(p->to, p->offset + at, p->want + at, size, NULL);
    }
}

static void uploads_under_stress(void **state) {
    (void)state;
    for (int staged = 0; staged < 2; staged++) {
        Error err = {0};
        const DeviceOptions options = {
            .budget = 16u << 20, .max_submit = 2e-5, .staged_uploads = staged};
        Device *dev = open_device("vulkan", &options);
        Buffer *ring = buf_new(dev, UPLOADERS * PART, "parts", &err);
        Buffer *b = buf_new(dev, FLOATS * 4, "all", &err);
        uint8_t *want = calloc(UPLOADERS, PART), *got = malloc(UPLOADERS * PART);
        float *data = malloc(FLOATS * 4), *first = malloc(FLOATS * 4);
        OK(dev_upload(ring, 0, want, UPLOADERS * PART, &err));
        _Atomic bool stop = false;
        Pieces pieces[UPLOADERS];
        Thread *threads[UPLOADERS];
        for (int i = 0; i < UPLOADERS; i++) {
            uint64_t offset = PART * (uint64_t)i;
            pieces[i] = (Pieces){ring, offset, want + offset, (uint32_t)i, 0, false, &stop};
            threads[i] = thread_start(NULL, upload_pieces, &pieces[i]);
        }
        ProgramStep steps[STEPS];
        Program *prog = NULL;
        for (int i = 0; i < 60; i++) {
            if (i % 10 == 0) {
                prog_free(prog);
                prog = prog_new(dev, steps, make_steps(steps, b), &err);
                OK(prog);
            }
            fill_data(data);
            OK(dev_write(b, 0, data, FLOATS * 4, &err));
            OK(prog_run(prog, NULL, &err));
            OK(dev_read(b, 0, data, FLOATS * 4, &err));
            if (i == 0) memcpy(first, data, FLOATS * 4);
            assert_memory_equal(data, first, FLOATS * 4);
        }
        atomic_store(&stop, true);
        for (int i = 0; i < UPLOADERS; i++) {
            thread_join(threads[i]);
            assert_true(pieces[i].ok && pieces[i].count > 3);
        }
        OK(dev_read(ring, 0, got, UPLOADERS * PART, &err));
        assert_memory_equal(got, want, UPLOADERS * PART);
        dev_close(dev);
        free(want);
        free(got);
        free(data);
        free(first);
    }
}

static void grids_past_65535(void **state) {
    (void)state;
    Error err = {0};
    enum { N = 70001 };
    Device *dev = open_device("vulkan", NULL);
    Buffer *b = buf_new(dev, 16 * N, "rows", &err);
    OK(b);
    int32_t *ids = malloc(4 * N);
    float *got = malloc(4 * N), table[VOCAB];
    for (int i = 0; i < N; i++) ids[i] = i % VOCAB;
    for (int i = 0; i < VOCAB; i++) table[i] = (float)i + 0.5f;
    OK(dev_write(b, 0, table, sizeof table, &err));
    OK(dev_write(b, 4 * N, ids, 4 * N, &err));
    ProgramStep step = {.call = {.op = OP_EMBED,
                                 .t = {[embed_table] = tensor(b, 0, DT_F32, 2, DIMS(VOCAB, 1)),
                                       [embed_ids] = tensor(b, 4 * N, DT_I32, 1, DIMS(N)),
                                       [embed_y] = tensor(b, 8 * N, DT_F32, 2, DIMS(N, 1))}}};
    Program *prog = prog_new(dev, &step, 1, &err);
    OK(prog);
    OK(prog_run(prog, NULL, &err));
    OK(dev_read(b, 8 * N, got, 4 * N, &err));
    for (int i = 0; i < N; i++) assert_true(got[i] == table[i % VOCAB]);
    prog_free(prog);
    buf_free(b);
    dev_close(dev);
    free(ids);
    free(got);
}

// ---- freeing, cancelling ----------------------------------------------------------------------

static void freeing_waits_for_work(void **state) {
    (void)state;
    Error err = {0};
    float *data = malloc(FLOATS * 4);
    Device *dev = open_device("vulkan", &(DeviceOptions){.max_submit = 1e-6, .validate = 1});
    for (int i = 0; i < 3; i++) {
        Buffer *b = buf_new(dev, FLOATS * 4, "all", &err);
        fill_data(data);
        OK(dev_write(b, 0, data, FLOATS * 4, &err));
        ProgramStep steps[STEPS];
        Program *prog = prog_new(dev, steps, make_steps(steps, b), &err);
        OK(prog);
        for (int j = 0; j < 3; j++) OK(prog_submit(prog, &err));
        if (i % 2) buf_free(b);
        prog_free(prog);
        if (i % 2 == 0) buf_free(b);
    }
    OK(dev_wait(dev, NULL, &err));
    dev_close(dev);
    free(data);
}

static bool asked_at_third(void *user) { return ++*(int *)user >= 3; }

static void cancel_stops_soon(void **state) {
    (void)state;
    Error err = {0};
    float *data = malloc(FLOATS * 4);
    Device *dev = open_device("vulkan", &(DeviceOptions){.max_submit = 1e-9});
    Buffer *b = buf_new(dev, FLOATS * 4, "all", &err);
    fill_data(data);
    OK(dev_write(b, 0, data, FLOATS * 4, &err));
    ProgramStep steps[STEPS];
    Program *prog = prog_new(dev, steps, make_steps(steps, b), &err);
    OK(prog);
    enum { RUNS = 2000 };
    OK(prog_run(prog, NULL, &err)); // compiles
    double start = os_seconds();
    OK(prog_run(prog, NULL, &err));
    double all = RUNS * (os_seconds() - start);
    for (int i = 0; i < RUNS; i++) OK(prog_submit(prog, &err));
    int asked = 0;
    start = os_seconds();
    assert_false(dev_wait(dev, &(Cancel){asked_at_third, &asked}, &err));
    assert_int_equal(err.status, STATUS_CANCELLED);
    print_message("  %.3f s in place of %.1f\n", os_seconds() - start, all);
    assert_true(os_seconds() - start < all / 10);
    OK(prog_run(prog, NULL, &err)); // the device still works
    dev_close(dev);
    free(data);
}

// ---- injected failures ------------------------------------------------------------------------

static void running_out_of_memory_is_one_line(void **state) {
    (void)state;
    int failures = 0;
    for (int n = 1;; n++) {
        Error err = {0};
        Device *dev = dev_open(NULL, "vulkan", &(DeviceOptions){.fail_allocation = n}, &err);
        Buffer *b = dev ? buf_new(dev, FLOATS * 4, "all", &err) : NULL;
        ProgramStep steps[STEPS];
        Program *prog = b ? prog_new(dev, steps, make_steps(steps, b), &err) : NULL;
        bool ok = prog && prog_run(prog, NULL, &err);
        if (!ok) {
            failures++;
            assert_non_null(strstr(err.text, "memory"));
            assert_null(strchr(err.text, '\n'));
        }
        prog_free(prog);
        buf_free(b);
        if (dev) assert_int_equal(dev_memory(dev).used, dev_info(dev)->staging_bytes);
        dev_close(dev);
        if (ok) break;
    }
    assert_int_equal(failures, 3); // staging, the buffer, the program's arguments
}

static void losing_the_device_is_one_line(void **state) {
    (void)state;
    Error err = {0};
    Device *dev = open_device("vulkan", &(DeviceOptions){.lose_at_submit = 2, .max_submit = 1e-7});
    Buffer *b = buf_new(dev, FLOATS * 4, "all", &err);
    OK(dev_fill(b, 0, FLOATS * 4, 0, &err));
    ProgramStep steps[STEPS];
    Program *prog = prog_new(dev, steps, make_steps(steps, b), &err);
    OK(prog);
    OK(prog_submit(prog, &err));
    assert_false(prog_submit(prog, &err)); // the first is still under way
    assert_non_null(strstr(err.text, "lost"));
    float value;
    assert_false(dev_read(b, 0, &value, 4, &err));
    assert_false(dev_wait(dev, NULL, &err));
    prog_free(prog);
    buf_free(b);
    dev_close(dev);
    run_program("vulkan", NULL, 1, (float[FLOATS]){0}); // the next device works
}

// ---- the pipeline cache -----------------------------------------------------------------------

static void damage(const char *path, int kind) {
    Error err = {0};
    size_t size;
    uint8_t *file = os_read_file(NULL, path, 1u << 30, &size, &err);
    OK(file);
    switch (kind) {
    case 0: size /= 2; break;
    case 1: size = 0; break;
    case 2: file[size - 1] ^= 0x10; break;
    case 3: file[9] ^= 1; break; // the version
    case 4: memset(file, 'x', size); break;
    default: file[60] ^= 0x80; break; // a UUID
    }
    OK(os_write_file(path, file, size, &err));
    mem_free(file);
}

static void cache_survives_and_bad_caches_are_ignored(void **state) {
    (void)state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *dir = scratch_new(scope);
    char *cache = os_path_join(scope, dir, "cache");
    DeviceOptions options = {.cache_dir = cache};
    float *want = malloc(FLOATS * 4), *got = malloc(FLOATS * 4);
    run_program("vulkan", &options, 1, want);
    char **names;
    int count;
    OK(os_list(scope, cache, &names, &count, &err));
    assert_int_equal(count, 1);
    char *path = os_path_join(scope, cache, names[0]);
    size_t size, again;
    uint8_t *good = os_read_file(scope, path, 1u << 30, &size, &err);
    for (int kind = -1; kind < 6; kind++) { // -1: undamaged
        if (kind >= 0) damage(path, kind);
        run_program("vulkan", &options, 1, got);
        assert_memory_equal(got, want, FLOATS * 4);
        uint8_t *file = os_read_file(scope, path, 1u << 30, &again, &err);
        OK(file);
        assert_true(again >= 64 && !memcmp(file, good, 40)); // written anew, for this driver
    }
    // A folder that cannot be made costs nothing but the cache.
    OK(os_write_file(os_path_join(scope, dir, "file"), "x", 1, &err));
    options.cache_dir = os_path_join(scope, dir, "file/below");
    run_program("vulkan", &options, 1, got);
    assert_memory_equal(got, want, FLOATS * 4);
    free(want);
    free(got);
    scratch_remove(dir);
    mem_free(scope);
}

// ---- several devices --------------------------------------------------------------------------

typedef struct Beside { float data[FLOATS]; } Beside;
static void run_beside(void *arg) {
    Beside *b = arg;
    for (int i = 0; i < 2; i++) run_program("vulkan", NULL, 2, b->data);
}

static void devices_side_by_side(void **state) {
    (void)state;
    Beside *b = calloc(3, sizeof *b);
    Thread *threads[2];
    for (int i = 0; i < 2; i++) threads[i] = thread_start(NULL, run_beside, &b[i]);
    run_beside(&b[2]);
    for (int i = 0; i < 2; i++) thread_join(threads[i]);
    assert_memory_equal(b[0].data, b[1].data, sizeof b->data);
    assert_memory_equal(b[0].data, b[2].data, sizeof b->data);
    // And two that are open at the same time in one thread, each with its own memory.
    Error err = {0};
    Device *one = open_device("vulkan", &(DeviceOptions){.validate = 1});
    Device *two = open_device("vulkan", NULL);
    Buffer *x = buf_new(one, 4096, "x", &err), *y = buf_new(two, 8192, "y", &err);
    assert_int_equal(dev_memory(one).used - dev_info(one)->staging_bytes, 4096);
    assert_int_equal(dev_memory(two).used - dev_info(two)->staging_bytes, 8192);
    dev_close(one);
    OK(dev_fill(y, 0, 8192, 1, &err));
    OK(dev_wait(two, NULL, &err));
    (void)x;
    dev_close(two);
    free(b);
}

// ---- rows -------------------------------------------------------------------------------------

static void every_op_has_rows_that_say_why_not(void **state) {
    (void)state;
    Error err = {0};
    Device *dev = open_device("vulkan", NULL);
    for (int op = 0; op < OP_COUNT; op++) {
        int rows = dev_row_count(dev, (OpId)op);
        if (rows < 1) fail_msg("%s has no Vulkan kernel", op_info[op].name);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < i; j++)
                assert_string_not_equal(dev_row_name(dev, (OpId)op, i),
                                        dev_row_name(dev, (OpId)op, j));
        assert_null(dev_row_name(dev, (OpId)op, rows));
    }
    Buffer *b = buf_new(dev, 4096, "b", &err);
    char why[128];
    OpCall call = {.op = OP_COPY, .row = "vec4",
                   .t = {[copy_x] = tensor(b, 0, DT_F32, 2, DIMS(3, 7)),
                         [copy_y] = tensor(b, 2048, DT_F32, 2, DIMS(3, 7))}};
    assert_int_equal(dev_row_for(dev, &call, why), -1);
    assert_non_null(strstr(why, "vectors of 4"));
    call.row = NULL;
    assert_true(dev_row_for(dev, &call, why) >= 0);
    ProgramStep step = {.call = call};
    step.call.row = "vec4";
    assert_null(prog_new(dev, &step, 1, &err));
    assert_non_null(strstr(err.text, "vectors of 4"));
    // What the contract refuses on every device: results over what a product still reads.
    TensorRef whole = tensor(b, 0, DT_F32, 3, DIMS(1, 8, 8));
    TensorRef out = tensor(b, 1024, DT_F32, 3, DIMS(1, 8, 8));
    step.call = (OpCall){.op = OP_GEMM, .t = {[gemm_x] = whole, [gemm_w] = whole, [gemm_y] = out}};
    Program *prog = prog_new(dev, &step, 1, &err);
    OK(prog);
    prog_free(prog);
    step.call.t[gemm_residual] = out;
    assert_null(prog_new(dev, &step, 1, &err));
    assert_non_null(strstr(err.text, "memory of its own, found residual"));
    dev_close(dev);
}

static void listed_devices_are_sane(void **state) {
    (void)state;
    int count, found = 0;
    DeviceInfo *infos = dev_list(NULL, &count, NULL);
    for (int i = 0; i < count; i++) {
        const DeviceInfo *d = &infos[i];
        if (strcmp(d->backend, "vulkan")) continue;
        char id[32];
        snprintf(id, sizeof id, "vulkan:%d", found++);
        assert_string_equal(d->id, id);
        assert_true(d->max_buffer >= 1u << 28 && d->max_buffer <= d->memory_total);
        assert_true(d->memory_free > 0 && d->memory_free <= d->memory_total);
        assert_true(d->subgroup_min >= 1 && d->subgroup_max <= 128);
        assert_true(d->shared_memory >= 16384);
        assert_true(d->name[0] && d->driver[0]);
    }
    assert_true(found > 0);
    mem_free(infos);
    Error err = {0};
    assert_null(dev_open(NULL, "vulkan:99", NULL, &err));
    assert_non_null(strstr(err.text, "vulkan:0"));
}

// Pipelines are what starting a model costs: their number is held down (150 modules, 60 pipelines).
static void count_pipelines(void *user, LogLevel level, const char *line) {
    (void)level;
    const char *at = strstr(line, " pipelines compiled"), *number = at;
    if (!at) return;
    while (number > line && number[-1] >= '0' && number[-1] <= '9') number--;
    *(int *)user = MAX(*(int *)user, atoi(number));
}

static void modules_and_pipelines_stay_few(void **state) {
    (void)state;
#ifdef KILN_VULKAN // else there is no device, and no test runs
    assert_in_range(kiln_shader_count, 1, 150);
#endif
    int most = 0; // of the programs of one device: training, with all gradients
    // Under the validation layers: every kernel of training passes them.
    Log log = {.level = LOG_DEBUG, .write = count_pipelines, .user = &most};
    ConformOptions options = {.device = "vulkan", .type = "bf16",
                              .options = {.log = &log, .validate = 1}};
    ConformTotals totals;
    Error err = {0};
    OK(conform_model(&options, "nano", &totals, &err));
    assert_int_equal(totals.failed, 0);
    assert_in_range(most, 10, 60);
}

typedef struct Asked { int times, until; } Asked;
static bool asked_often(void *user) {
    Asked *a = user;
    return a->times++ >= a->until;
}

// Cancelled before its first kernel or after some, prog_new leaves nothing behind, and works later.
static void cancel_between_kernels(void **state) {
    (void)state;
    for (int until = 0; until < 2; until++) {
        Error err = {0};
        Device *dev = open_device("vulkan", &(DeviceOptions){0});
        Buffer *b = buf_new(dev, FLOATS * 4, "all", &err);
        OK(b);
        uint64_t used = dev_memory(dev).used;
        ProgramStep steps[STEPS];
        int count = make_steps(steps, b);
        Asked asked = {.until = until};
        const Cancel cancel = {asked_often, &asked};
        dev_set_cancel(dev, &cancel);
        assert_null(prog_new(dev, steps, count, &err));
        assert_int_equal(err.status, STATUS_CANCELLED);
        assert_int_equal(asked.times, until + 1);
        assert_int_equal(dev_memory(dev).used, used);
        dev_set_cancel(dev, NULL);
        err = (Error){0};
        Program *prog = prog_new(dev, steps, count, &err);
        OK(prog);
        OK(prog_run(prog, NULL, &err));
        prog_free(prog);
        buf_free(b);
        dev_close(dev);
    }
}

static bool at_once(void *user) { (void)user; return true; }

// A driver on the CPU compiles a kernel when it first runs: until then it is handed over alone, and only
// once the queue is empty. So a cancel asked at once finds two of seven kernels run at most; where all
// have run before they are one submission, which runs to its end.
static void kernels_that_never_ran_go_apart(void **state) {
    (void)state;
    Error err = {0};
    Device *dev = open_device("vulkan", &(DeviceOptions){.max_submit = 1000});
    if (dev_info(dev)->kind != DEV_SOFTWARE) {
        dev_close(dev);
        skip();
    }
    float *data = malloc(FLOATS * 4), *got = malloc(FLOATS * 4), *want = malloc(FLOATS * 4);
    Buffer *b = buf_new(dev, FLOATS * 4, "all", &err);
    OK(b);
    fill_data(data);
    ProgramStep steps[STEPS];
    const Cancel now = {at_once, NULL};
    float *const seen[] = {got, want, got};
    for (int run = 0; run < 3; run++) {
        Program *prog = prog_new(dev, steps, make_steps(steps, b), &err);
        OK(prog);
        OK(dev_write(b, 0, data, FLOATS * 4, &err));
        OK(prog_submit(prog, &err));
        bool done = dev_wait(dev, run == 1 ? NULL : &now, &err);
        if (run == 0) assert_false(done);
        else if (run == 1) OK(done);
        OK(dev_read(b, 0, seen[run], FLOATS * 4, &err));
        prog_free(prog);
        if (run) continue;
        assert_int_equal(err.status, STATUS_CANCELLED);
        assert_memory_equal(got + SUMS, data + SUMS, COLS * 4); // the fifth kernel, and those after it
        assert_memory_equal(got + DTABLE, data + DTABLE, VOCAB * COLS * 4);
        assert_memory_equal(got + TABLE, data + TABLE, VOCAB * COLS * 4);
    }
    assert_memory_equal(got, want, FLOATS * 4);
    assert_memory_not_equal(want + TABLE, data + TABLE, VOCAB * COLS * 4);
    buf_free(b);
    dev_close(dev);
    free(data), free(got), free(want);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "stale-address")) return stale_address();
    program = argv[0];
    int count;
    bool any = false;
    DeviceInfo *infos = dev_list(NULL, &count, NULL);
    for (int i = 0; i < count; i++) any |= !strcmp(infos[i].backend, "vulkan");
    mem_free(infos);
    if (!any) {
        puts("SKIP: no Vulkan device (a driver and libvulkan1 would give one)");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(listed_devices_are_sane),
        cmocka_unit_test(every_op_has_rows_that_say_why_not),
        cmocka_unit_test(validated_program_matches_the_oracle),
        cmocka_unit_test(layers_see_a_stale_address),
        cmocka_unit_test(cutting_changes_no_bit),
        cmocka_unit_test(recording_anew_changes_no_bit),
        cmocka_unit_test(transfers_pass_the_staging_buffer),
        cmocka_unit_test(uploads_beside_programs),
        cmocka_unit_test(uploads_under_stress),
        cmocka_unit_test(grids_past_65535),
        cmocka_unit_test(freeing_waits_for_work),
        cmocka_unit_test(cancel_stops_soon),
        cmocka_unit_test(cancel_between_kernels),
        cmocka_unit_test(kernels_that_never_ran_go_apart),
        cmocka_unit_test(running_out_of_memory_is_one_line),
        cmocka_unit_test(losing_the_device_is_one_line),
        cmocka_unit_test(cache_survives_and_bad_caches_are_ignored),
        cmocka_unit_test(devices_side_by_side),
        cmocka_unit_test(modules_and_pipelines_stay_few),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
