// Whole models on every device there is: the same seed gives the same picture, memory is what the
// plan said, and what does not fit is refused with the figure.
#include "engine/image.h"
#include "engine/trainer.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>

#include "tests/check.h"

#ifndef KILN_SOURCE_DIR
#define KILN_SOURCE_DIR "."
#endif
#define GOLDEN KILN_SOURCE_DIR "/tests/golden/"

static Device *open_device(const char *id, const DeviceOptions *options) {
    Error err = {0};
    DeviceOptions o = options ? *options : (DeviceOptions){0};
    o.threads = 2;
    Device *dev = dev_open(NULL, id, &o, &err);
    CHECK(dev);
    return dev;
}

// Calls `test` for each device (backend NULL: all).
static int on_devices(const char *backend, void (*test)(const char *id)) {
    int count, ran = 0;
    DeviceInfo *infos = dev_list(NULL, &count, NULL);
    for (int i = 0; i < count; i++) {
        if (backend && strcmp(infos[i].backend, backend)) continue;
        test(infos[i].id);
        ran++;
    }
    mem_free(infos);
    return ran;
}

// ---- the same picture ---------------------------------------------------------------------------

enum { PICTURES = 4, NUMBERS = 3 * 32 * 32 };

static float *sample(const char *id, const char *file, int steps) {
    Error err = {0};
    static const int classes[PICTURES] = {0, 3, 9, 10}; // the last without a class
    Device *dev = open_device(id, NULL);
    char *path = mem_printf(NULL, GOLDEN "%s", file);
    NanoPipeline *p = nano_open(NULL, dev, path, DT_F32, &err);
    CHECK(p);
    NanoRequest r = {
        .count = PICTURES, .classes = classes, .seed = 42, .steps = steps, .cfg_scale = 3};
    float *x = MEM_ARRAY(NULL, float, PICTURES * NUMBERS);
    CHECK(nano_generate(p, &r, x, &err));
    nano_close(p);
    dev_close(dev);
    mem_free(path);
    return x;
}

static double psnr(const float *a, const float *b, size_t n) { // of values in -1..1
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fmax(-1, fmin(1, a[i])) - fmax(-1, fmin(1, b[i]));
        sum += d * d;
    }
    return 10 * log10(4 / (sum / (double)n + 1e-30));
}

static void compare_with_ref(const char *id) {
    static const struct { const char *file; int steps; } cases[] = {
        {"nano_p4.safetensors", 20}, {"nano_p2.safetensors", 4}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        float *want = sample("ref", cases[i].file, cases[i].steps);
        float *got = sample(id, cases[i].file, cases[i].steps);
        float *again = sample(id, cases[i].file, cases[i].steps);
        double db = psnr(got, want, PICTURES * NUMBERS);
        print_message("  %s %s: PSNR %.1f dB\n", id, cases[i].file, db);
        if (!(db > 50)) fail_msg("%s %s: PSNR %.1f dB, expected over 50", id, cases[i].file, db);
        assert_memory_equal(got, again, PICTURES * NUMBERS * sizeof(float)); // bit for bit
        for (int k = 1; k < PICTURES; k++)
            assert_true(psnr(got, got + k * NUMBERS, NUMBERS) < 40); // pictures, not one picture
        mem_free(want), mem_free(got), mem_free(again);
    }
}

static void pictures_on_cpu(void **state) {
    (void)state;
    on_devices("cpu", compare_with_ref);
}

static void pictures_on_vulkan(void **state) {
    (void)state;
    if (on_devices("vulkan", compare_with_ref)) return;
    print_message("SKIP: pictures_on_vulkan: no Vulkan device\n");
    skip();
}

// ---- memory -------------------------------------------------------------------------------------

// Each does a job on a device of the given options; false where it was refused. `planned` gets the
// plan's figure.
typedef bool Job(const char *id, const DeviceOptions *options, uint64_t *planned, Error *err);

static void check_peak(const char *id, const char *what, const Device *dev, uint64_t planned) {
    uint64_t peak = dev_memory(dev).peak;
    double share = (double)peak / (double)planned;
    print_message("  %s %s: planned %.2f MB, measured %.4f of it\n", id, what,
                  (double)planned / 1e6, share);
    if (!(share <= 1 && share >= 0.9)) fail_msg("%s %s: %.4f of the plan", id, what, share);
}

static bool generate_job(const char *id, const DeviceOptions *options, uint64_t *planned,
                         Error *err) {
    Device *dev = open_device(id, options);
    uint64_t before = dev_memory(dev).used;
    NanoPipeline *p = nano_open(NULL, dev, GOLDEN "nano_p2.safetensors", DT_F32, err);
    RunMemory m;
    bool ok = p && nano_plan(p, 2, true, &m, err);
    if (ok) {
        *planned = m.peak_bytes;
        assert_int_equal(m.peak_bytes,
                         m.weights_bytes + m.arena_bytes + m.program_bytes + m.staging_bytes);
        assert_int_equal(dev_memory(dev).used, before); // nothing allocated yet
    }
    NanoRequest r = {.count = 2, .classes = (const int[]){1, 2}, .steps = 1, .cfg_scale = 2};
    float *x = MEM_ARRAY(NULL, float, 2 * NUMBERS);
    ok = ok && nano_generate(p, &r, x, err);
    if (p && !ok && options && options->fail_allocation) { // it works again when there is memory
        assert_true(nano_generate(p, &r, x, NULL));
        check_peak(id, "generate at the second try", dev, nano_memory(p).peak_bytes);
    }
    if (ok) check_peak(id, "generate", dev, *planned);
    mem_free(x);
    nano_close(p);
    assert_int_equal(dev_memory(dev).used, before);
    dev_close(dev);
    return ok;
}

static bool train_job(const char *id, const DeviceOptions *options, uint64_t *planned, Error *err) {
    Device *dev = open_device(id, options);
    uint64_t before = dev_memory(dev).used;
    TrainerOptions o = {
        .config = {.patch = 4, .dim = 32, .depth = 2, .heads = 2, .size = 16, .classes = 4},
        .batch = 4, .compute = DT_F32, .sample_pictures = 2};
    Trainer *t = trainer_new(NULL, dev, &o, err);
    bool ok = t && trainer_init(t, 1, err);
    if (ok) {
        *planned = trainer_memory(t).peak_bytes;
        TrainerBatch b = trainer_batch(t, &o);
        float hyper[ADAMW_HYPER_COUNT], loss;
        OptimOptions optim = optim_default();
        optim_hyper(&optim, 1, 0, 1, hyper);
        TrainerResult r;
        ok = trainer_step(t, &b, hyper, 1, NULL, &r, err) &&
             trainer_validate(t, &b, NULL, &loss, err);
    }
    if (ok) check_peak(id, "train", dev, *planned);
    trainer_free(t);
    assert_int_equal(dev_memory(dev).used, before);
    dev_close(dev);
    return ok;
}

// Refused with a small budget, and the text gives the figure: done with that, refused with one byte
// fewer. Every allocation is made to fail in turn: an error each time, and nothing stays allocated.
static void check_budget(const char *id, Job *job) {
    Error err = {0};
    uint64_t planned = 0, same;
    CHECK(job(id, NULL, &planned, &err));
    DeviceOptions o = {.budget = 256 << 10};
    assert_false(job(id, &o, &same, &err));
    const char *at = strstr(err.text, " ("); // "... at least 1.2 MiB (1258291 bytes: ..."
    unsigned long long figure = 0;
    if (!at || sscanf(at, " (%llu bytes", &figure) != 1) fail_msg("no figure in: %s", err.text);
    o.budget = figure;
    CHECK(job(id, &o, &same, &err));
    assert_int_equal(same, figure);
    assert_true(figure <= planned); // a small budget gets a small staging buffer
    o.budget = figure - 1;
    assert_false(job(id, &o, &same, &err));
    Device *dev = open_device(id, NULL);
    int first = dev_memory(dev).used > 0 ? 2 : 1; // opening the device claims its staging memory
    dev_close(dev);
    int failures = 0;
    for (int n = first; n < 1000; n++, failures++) {
        o = (DeviceOptions){.fail_allocation = n};
        err = (Error){0};
        if (job(id, &o, &same, &err)) break;
        if (err.status != STATUS_FAILED || !strstr(err.text, "memory"))
            fail_msg("%d: %s", n, err.text);
    }
    print_message("  %s: %d allocations failed in turn\n", id, failures);
    assert_true(failures >= 2 && failures < 900);
}

static void check_memory(const char *id) {
    check_budget(id, generate_job);
    check_budget(id, train_job);
}

static void memory_on_cpu(void **state) {
    (void)state;
    assert_true(on_devices("cpu", check_memory) == 1);
}

static void memory_on_ref(void **state) {
    (void)state;
    assert_true(on_devices("ref", check_memory) == 1);
}

static void memory_on_vulkan(void **state) {
    (void)state;
    if (on_devices("vulkan", check_memory)) return;
    print_message("SKIP: memory_on_vulkan: no Vulkan device\n");
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pictures_on_cpu), cmocka_unit_test(pictures_on_vulkan),
        cmocka_unit_test(memory_on_cpu),   cmocka_unit_test(memory_on_ref),
        cmocka_unit_test(memory_on_vulkan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
