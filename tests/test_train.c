// Training as a whole (engine/train.h, trainer.h): it learns, it stops and goes on bit for bit, it
// is killed, its disk fills up, its files are damaged. Models of a few thousand weights, 8 x 8
// pictures.
#include "engine/json.h"
#include "engine/loader.h"
#include "engine/train.h"
#include "tests/scratch.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/check.h"

enum { PICTURES = 40, BATCH = 8, EPOCHS = 4, STEPS = PICTURES / BATCH * EPOCHS, SAVE_STEPS = 3 };

static const char *program; // this one's path: it starts itself as the child that is killed

// ---- a small training run -----------------------------------------------------------------------

typedef struct Place {
    char *root, *data, *out;
} Place;

// CIFAR-10 files with PICTURES records of smooth pictures.
static Place *place_new(void) {
    Place *p = MEM_NEW(NULL, Place);
    p->root = scratch_new(p);
    p->data = os_path_join(p, p->root, "data");
    p->out = os_path_join(p, p->root, "out");
    enum { RECORD = 1 + 3 * 32 * 32 };
    uint8_t *records = MEM_ARRAY(p, uint8_t, PICTURES * RECORD);
    for (int i = 0; i < PICTURES; i++) {
        records[i * RECORD] = (uint8_t)(i % 10);
        for (int k = 0; k < RECORD - 1; k++)
            records[i * RECORD + 1 + k] =
                (uint8_t)(128 + 100 * sin(0.05 * (i + 3) * (k % 32) + k / 300));
    }
    scratch_write(p, p->data, "data_batch_1.bin", records, PICTURES * RECORD);
    scratch_write(p, p->data, "test_batch.bin", records, BATCH * RECORD);
    return p;
}

static void place_free(Place *p) {
    scratch_remove(p->root);
    mem_free(p);
}

static TrainOptions small_run(const char *data, const char *out, DType precision) {
    TrainOptions o = train_defaults();
    o.data = data, o.out = out, o.precision = precision;
    o.model = (NanoConfig){.patch = 4, .dim = 16, .depth = 1, .heads = 2, .size = 8, .classes = 10};
    o.batch = BATCH, o.epochs = EPOCHS, o.lr = 1e-3, o.seed = 7;
    o.checkpoint_every = 0, o.checkpoint_steps = SAVE_STEPS;
    o.samples = false;
    return o;
}

static bool train_on(const char *device, const TrainOptions *o, TrainReport *report, Error *err) {
    Device *dev = dev_open(NULL, device, &(DeviceOptions){.threads = 2}, err);
    bool ok = dev && train_nano(dev, o, report, err);
    dev_close(dev);
    return ok;
}

static void train_or_fail(const TrainOptions *o) {
    Error err = {0};
    CHECK(train_on("cpu", o, NULL, &err));
}

// The log without what a clock says: "step loss lr validation_loss" in full precision, line by
// line.
static char *log_text(void *parent, const char *out) {
    Error err = {0};
    size_t size;
    char *log =
        (char *)os_read_file(parent, os_path_join(parent, out, "log.jsonl"), 1 << 24, &size, &err);
    CHECK(log);
    char *text = mem_strdup(parent, "");
    for (char *line = log; *line; line += strcspn(line, "\n") + 1) {
        size_t n = strcspn(line, "\n");
        Json *j = json_parse(line, n, "log", &err);
        CHECK(j && line[n] == '\n');
        text = mem_printf(parent, "%s%.17g %.17g %.17g %.17g %d\n", text,
                          json_number(json_get(j, "step"), -1),
                          json_number(json_get(j, "loss"), -1), json_number(json_get(j, "lr"), -1),
                          json_number(json_get(j, "validation_loss"), -1),
                          json_bool(json_get(j, "skipped"), false));
        json_free(j);
    }
    return text;
}

static void same_file(const char *dir_a, const char *dir_b, const char *name) {
    void *scope = mem_new(NULL, 1);
    Error err = {0};
    size_t n, m;
    uint8_t *a = os_read_file(scope, os_path_join(scope, dir_a, name), 1 << 26, &n, &err);
    uint8_t *b = os_read_file(scope, os_path_join(scope, dir_b, name), 1 << 26, &m, &err);
    CHECK(a && b);
    if (n != m || memcmp(a, b, n)) fail_msg("%s differs", name);
    mem_free(scope);
}

// Weights, averages, moments, state and losses of two finished runs are the same bytes.
static void same_runs(const char *a, const char *b, int last_step) {
    void *scope = mem_new(NULL, 1);
    same_file(a, b, mem_printf(scope, "checkpoint-%d.safetensors", last_step));
    same_file(a, b, "model.safetensors");
    assert_string_equal(log_text(scope, a), log_text(scope, b));
    mem_free(scope);
}

typedef struct Warnings {
    int n;
    char last[256];
} Warnings;

static void count_warning(void *user, LogLevel level, const char *line) {
    Warnings *w = user;
    if (level != LOG_WARN) return;
    w->n++;
    snprintf(w->last, sizeof w->last, "%s", line);
}

// The newest checkpoint's step (0: none); any damage fails the test.
static int64_t newest_whole(const char *out) {
    Warnings w = {0};
    Error err = {0};
    Log log = {.level = LOG_WARN, .write = count_warning, .user = &w};
    int64_t step = 0;
    StFile *file = checkpoint_newest(NULL, out, &step, &log, &err);
    if (w.n) fail_msg("%s", w.last);
    CHECK(err.status == STATUS_OK);
    st_close(file);
    return step;
}

// ---- it learns ----------------------------------------------------------------------------------

typedef struct Fit {
    NanoConfig config;
    DType compute;
    int batch, steps;
    bool fresh_noise; // one picture, new noise and times below 0.9 at each step
    double lr;
} Fit;

// The mean loss of the last tenth of the steps.
static double fit(const Fit *f) {
    Error err = {0};
    Device *dev = dev_open(NULL, "cpu", &(DeviceOptions){.threads = 2}, &err);
    CHECK(dev);
    TrainerOptions o = {.config = f->config, .batch = f->batch, .compute = f->compute};
    Trainer *t = trainer_new(NULL, dev, &o, &err);
    CHECK(t && trainer_init(t, 1, &err));
    size_t n = 3 * (size_t)(f->config.size * f->config.size), rows = (size_t)f->batch;
    TrainerBatch b = trainer_batch(t, &o);
    float *image = MEM_ARRAY(t, float, rows * n), *noise = MEM_ARRAY(t, float, rows * n);
    for (size_t i = 0; i < rows * n; i++)
        image[i] =
            (float)(0.8 * sin(0.7 * (double)(i % n) * (double)(1 + i / n) + (double)(i / n)));
    Rng rng;
    rng_seed(&rng, 5, 5);
    OptimOptions optim = optim_default();
    optim.lr = f->lr, optim.warmup = 20, optim.decay_steps = f->steps, optim.lr_end = 0.02;
    double sum = 0;
    for (int k = 1; k <= f->steps; k++) {
        if (k == 1 || f->fresh_noise) rng_fill_normal(&rng, noise, rows * n);
        for (size_t i = 0; i < rows; i++) {
            double time = f->fresh_noise ? 0.9 * rng_f64(&rng) : ((double)i + 0.5) / (double)rows;
            trainer_fill(&b, (int)i, n, image + (f->fresh_noise ? 0 : i * n), noise + i * n, time,
                         f->fresh_noise ? 1 : (int32_t)i);
        }
        float hyper[ADAMW_HYPER_COUNT];
        double scale = f->compute == DT_F16 ? 1024 : 1;
        optim_hyper(&optim, k, k - 1, scale, hyper);
        TrainerResult r;
        CHECK(trainer_step(t, &b, hyper, scale, NULL, &r, &err) && !r.found_inf);
        if (k > f->steps - f->steps / 10) sum += r.loss;
    }
    trainer_free(t);
    dev_close(dev);
    return sum / (f->steps / 10);
}

static void one_batch_overfits(void **state) {
    (void)state;
    static const struct { DType type; double limit; } cases[] = {
        {DT_F32, 0.01}, {DT_BF16, 0.01}, {DT_F16, 0.01}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Fit f = {
            .config = {.patch = 4, .dim = 64, .depth = 2, .heads = 2, .size = 16, .classes = 4},
            .compute = cases[i].type,
            .batch = 4,
            .steps = 200,
            .lr = 3e-3};
        double loss = fit(&f);
        print_message("  %s: loss %.5f\n", dtype_name(f.compute), loss);
        if (!(loss < cases[i].limit)) fail_msg("%s: loss %g", dtype_name(f.compute), loss);
    }
}

static void one_picture_with_fresh_noise(void **state) {
    (void)state;
    Fit f = {.config = {.patch = 2, .dim = 32, .depth = 2, .heads = 2, .size = 8, .classes = 4},
             .batch = 16, .steps = 700, .fresh_noise = true, .lr = 3e-3};
    double loss = fit(&f);
    print_message("  loss %.5f\n", loss);
    assert_true(loss < 0.01);
}

// ---- it goes on ---------------------------------------------------------------------------------

typedef struct StopAfter { int64_t step, seen; } StopAfter;

static void watch_step(void *user, const TrainProgress *p) {
    if (!strcmp(p->stage, "train")) ((StopAfter *)user)->seen = p->step;
}
static bool stop_asked(void *user) {
    const StopAfter *s = user;
    return s->seen >= s->step;
}

static void resume_case(const char *device, DType precision) {
    Place *p = place_new();
    Error err = {0};
    char *whole = os_path_join(p, p->root, "whole");
    TrainOptions o = small_run(p->data, whole, precision);
    TrainReport report;
    CHECK(train_on(device, &o, &report, &err));
    assert_int_equal(report.step, STEPS);
    assert_true(isfinite(report.loss) && isfinite(report.validation_loss));

    o.out = p->out;
    o.limit_steps = 7; // in the middle of an epoch, and not at a checkpoint
    CHECK(train_on(device, &o, NULL, &err));
    o.limit_steps = 0, o.resume = true;
    StopAfter stop = {.step = 13};
    Cancel cancel = {stop_asked, &stop};
    o.cancel = &cancel, o.progress = watch_step, o.user = &stop;
    assert_false(train_on(device, &o, &report, &err));
    assert_int_equal(err.status, STATUS_CANCELLED);
    assert_int_equal(newest_whole(p->out), 13);
    o.cancel = NULL;
    CHECK(train_on(device, &o, &report, &err));
    same_runs(whole, p->out, STEPS);
    print_message("  %s %s: the same\n", device, dtype_name(precision));
    place_free(p);
}

static void resume_equals_uninterrupted(void **state) {
    (void)state;
    int count;
    DeviceInfo *devices = dev_list(NULL, &count, NULL);
    for (int i = 0; i < count; i++) resume_case(devices[i].id, DT_F32);
    mem_free(devices);
    resume_case("cpu", DT_BF16);
    resume_case("cpu", DT_F16);
}

// A run may go on in another precision; f16 then begins with a loss scale of its own.
static void other_precision(void **state) {
    (void)state;
    Place *p = place_new();
    TrainOptions o = small_run(p->data, p->out, DT_F32);
    o.limit_steps = 4;
    train_or_fail(&o);
    o.limit_steps = 0, o.resume = true, o.precision = DT_F16;
    train_or_fail(&o);
    Error err = {0};
    size_t n;
    char *log = (char *)os_read_file(p, os_path_join(p, p->out, "log.jsonl"), 1 << 24, &n, &err);
    CHECK(log);
    char *fifth = strstr(log, "\"step\":5,");
    assert_non_null(fifth);
    fifth[strcspn(fifth, "\n")] = 0;
    assert_non_null(strstr(fifth, "\"loss_scale\":65536"));
    place_free(p);
}

static void refusals(void **state) {
    (void)state;
    Place *p = place_new();
    TrainOptions o = small_run(p->data, p->out, DT_F32);
    o.limit_steps = 4;
    train_or_fail(&o);
    const struct {
        const char *text;
        bool resume, other_seed;
        int batch, dim, epochs;
        double lr;
        const char *out, *data;
    } cases[] = {
        {"give --resume", false, false, BATCH, 16, EPOCHS, 1e-3, NULL, NULL},
        {"give --batch 8", true, false, 4, 16, EPOCHS, 1e-3, NULL, NULL},
        {"expected the model", true, false, BATCH, 24, EPOCHS, 1e-3, NULL, NULL},
        {"leave --seed out", true, true, BATCH, 16, EPOCHS, 1e-3, NULL, NULL},
        {"epochs", true, false, BATCH, 16, 0, 1e-3, NULL, NULL},
        {"learning rate", true, false, BATCH, 16, EPOCHS, NAN, NULL, NULL},
        {"no-such-data", true, false, BATCH, 16, EPOCHS, 1e-3, NULL, "no-such-data"},
        {"data_batch_1.bin", true, false, BATCH, 16, EPOCHS, 1e-3, "data/data_batch_1.bin/out",
         NULL},
        {"at least one batch of 41", false, false, PICTURES + 1, 16, EPOCHS, 1e-3, "other", NULL},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        o = small_run(p->data, p->out, DT_F32);
        o.resume = cases[i].resume, o.batch = cases[i].batch, o.model.dim = cases[i].dim;
        o.epochs = cases[i].epochs, o.lr = cases[i].lr;
        if (cases[i].other_seed) o.seed_given = true, o.seed = 8;
        if (cases[i].out) o.out = os_path_join(p, p->root, cases[i].out);
        if (cases[i].data) o.data = os_path_join(p, p->root, cases[i].data);
        Error err = {0};
        assert_false(train_on("cpu", &o, NULL, &err));
        if (!strstr(err.text, cases[i].text) || strchr(err.text, '\n'))
            fail_msg("case %zu: expected \"%s\", found: %s", i, cases[i].text, err.text);
        assert_int_equal(newest_whole(p->out), 4);
    }
    place_free(p);
}

// ---- it is killed -------------------------------------------------------------------------------

static int child(char **argv) {
    Error err = {0};
    TrainOptions o = small_run(argv[2], argv[3], DT_F32);
    o.epochs = atoi(argv[4]);
    o.resume = true;
    if (train_on("cpu", &o, NULL, &err)) return 0;
    err_print(&err, stderr);
    return 1;
}

static pid_t start_child(const Place *p, const char *out, int epochs) {
    char text[16];
    snprintf(text, sizeof text, "%d", epochs);
    pid_t pid = fork();
    if (pid) return pid;
    execl(program, program, "--train", p->data, out, text, (char *)NULL);
    _exit(127);
}

static int last_logged_step(const char *out) {
    void *scope = mem_new(NULL, 1);
    size_t size;
    char *path = os_path_join(scope, out, "log.jsonl");
    char *log = (char *)os_read_file(scope, path, 1 << 24, &size, NULL);
    int step = 0;
    for (char *line = log; line && (line = strstr(line, "\"step\":")); line++)
        step = atoi(line + 7);
    mem_free(scope);
    return step;
}

// Waits until the child has logged `step`, or has ended.
static void wait_for_step(pid_t pid, const char *out, int step) {
    siginfo_t ended = {0};
    while (last_logged_step(out) < step && !ended.si_pid) {
        os_sleep(0.001);
        waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT);
    }
}

static void kill_at_any_moment(void **state) {
    (void)state;
    enum { KILLS = 8, LONG = 60 };
    Place *p = place_new();
    char *whole = os_path_join(p, p->root, "whole");
    double start = os_seconds();
    int status;
    pid_t pid = start_child(p, whole, LONG);
    wait_for_step(pid, whole, 1);
    double begin_seconds = os_seconds() - start; // until the first step
    assert_int_equal(waitpid(pid, &status, 0) > 0 && status == 0, true);

    Rng rng;
    rng_seed(&rng, 3, 0);
    int64_t before = 0;
    int killed = 0;
    for (int k = 0; k < KILLS; k++) {
        pid = start_child(p, p->out, LONG);
        if (k % 4 == 3) os_sleep(begin_seconds * 1.5 * rng_f64(&rng)); // as it begins
        else wait_for_step(pid, p->out, (int)before + 1 + (int)(24 * rng_f64(&rng)));
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFSIGNALED(status)) {
            assert_int_equal(status, 0); // it had finished
            break;
        }
        killed++;
        int64_t newest = newest_whole(p->out); // and none is damaged
        int logged = last_logged_step(p->out);
        assert_true(newest >= before);
        if (logged > newest + SAVE_STEPS)
            fail_msg("killed after step %d, but the newest checkpoint is %d", logged, (int)newest);
        before = newest;
    }
    print_message("  killed %d times, the last time after checkpoint %d\n", killed, (int)before);
    assert_true(killed >= 3);
    assert_int_equal(waitpid(start_child(p, p->out, LONG), &status, 0) > 0 && status == 0, true);
    same_runs(whole, p->out, PICTURES / BATCH * LONG);
    assert_int_equal(scratch_count(whole), scratch_count(p->out)); // nothing half-written stays
    place_free(p);
}

static void torn_log_is_repaired(void **state) {
    (void)state;
    static const char *const tails[] = {"{\"step\":4,\"lo",
                                        "{\"step\":4,\"epoch\":1,\"loss\":9}\n{", "\n\n",
                                        "garbage\n", "[1]\n{\"loss\":1}\n"};
    Place *p = place_new();
    char *whole = os_path_join(p, p->root, "whole"), *log = os_path_join(p, p->out, "log.jsonl");
    TrainOptions o = small_run(p->data, whole, DT_F32);
    train_or_fail(&o);
    for (size_t i = 0; i < COUNT_OF(tails); i++) {
        o = small_run(p->data, p->out, DT_F32);
        o.limit_steps = SAVE_STEPS;
        train_or_fail(&o);
        FILE *f = fopen(log, "ab");
        fputs(tails[i], f);
        fclose(f);
        o.limit_steps = 0, o.resume = true;
        train_or_fail(&o);
        same_runs(whole, p->out, STEPS);
        scratch_remove(p->out);
    }
    place_free(p);
}

// ---- its files are damaged, its disk is full ----------------------------------------------------

static void damage(const char *path, bool truncate) {
    Error err = {0};
    size_t n;
    uint8_t *bytes = os_read_file(NULL, path, 1 << 26, &n, &err);
    CHECK(bytes);
    bytes[n - n / 3] ^= 0x10; // in the tensors: only the checksum can tell
    CHECK(os_write_file(path, bytes, truncate ? n / 2 : n, &err));
    mem_free(bytes);
}

static void damaged_checkpoint_is_passed_over(void **state) {
    (void)state;
    Place *p = place_new();
    char *whole = os_path_join(p, p->root, "whole");
    TrainOptions o = small_run(p->data, whole, DT_F32);
    train_or_fail(&o);
    o.out = p->out, o.limit_steps = 9; // 3, 6, 9
    train_or_fail(&o);
    damage(checkpoint_path(p, p->out, 9), true);
    damage(checkpoint_path(p, p->out, 6), false);
    Warnings w = {0};
    Log log = {.level = LOG_WARN, .write = count_warning, .user = &w};
    o.log = &log, o.limit_steps = 0, o.resume = true;
    train_or_fail(&o);
    assert_int_equal(w.n, 2);
    same_runs(whole, p->out, STEPS);

    // A damaged one that is newer does not count among those that are kept.
    damage(checkpoint_path(p, p->out, STEPS), false);
    o.keep = 1, o.limit_steps = 19;
    train_or_fail(&o);
    assert_int_equal(w.n, 3);
    int64_t step;
    Error err = {0};
    StFile *whole_one = checkpoint_newest(p, p->out, &step, &log, &err);
    CHECK(whole_one);
    assert_int_equal(step, 19);
    st_close(whole_one);

    int count;
    int64_t *steps = checkpoint_list(p, p->out, &count);
    assert_int_equal(count, 2);
    damage(checkpoint_path(p, p->out, steps[1]), true);
    assert_false(train_on("cpu", &o, NULL, &err));
    assert_non_null(strstr(err.text, "expected a whole checkpoint, found 2 damaged"));
    place_free(p);
}

static void limit_file_size(rlim_t bytes) {
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = MIN(bytes, limit.rlim_max);
    setrlimit(RLIMIT_FSIZE, &limit);
}

// A limit on the size of files stands for the full disk: writing fails in the middle.
static void full_disk(void **state) {
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    Place *p = place_new();
    char *whole = os_path_join(p, p->root, "whole");
    TrainOptions o = small_run(p->data, whole, DT_F32);
    train_or_fail(&o);
    o.out = p->out, o.limit_steps = 4;
    train_or_fail(&o);
    int files = scratch_count(p->out);
    FileMap map;
    Error err = {0};
    CHECK(os_map(&map, checkpoint_path(p, p->out, 4), &err));
    size_t size = map.size;
    os_unmap(&map);
    o.limit_steps = 0, o.resume = true;

    limit_file_size(size / 2); // the next checkpoint does not fit
    bool ok = train_on("cpu", &o, NULL, &err);
    limit_file_size(RLIM_INFINITY);
    assert_false(ok);
    print_message("  %s\n", err.text);
    assert_non_null(strstr(err.text, "checkpoint-6"));
    assert_null(strchr(err.text, '\n'));
    assert_int_equal(newest_whole(p->out), 4);
    assert_int_equal(scratch_count(p->out), files);

    CHECK(os_map(&map, os_path_join(p, p->out, "log.jsonl"), &err));
    size = map.size;
    os_unmap(&map);
    limit_file_size(size - 20); // the log does not fit: a torn line
    ok = train_on("cpu", &o, NULL, &err);
    limit_file_size(RLIM_INFINITY);
    assert_false(ok);
    print_message("  %s\n", err.text);
    assert_non_null(strstr(err.text, "log.jsonl"));
    assert_int_equal(newest_whole(p->out), 4);
    train_or_fail(&o);
    same_runs(whole, p->out, STEPS);
    place_free(p);
}

// ---- f16 ----------------------------------------------------------------------------------------

static uint64_t weights_hash(Trainer *t) {
    uint64_t hash = 0;
    for (int k = 0; k < TRAINER_PARTS; k++)
        for (int i = 0; i < store_count(trainer_parts(t)[k].store); i++) {
            Param *p = store_at(trainer_parts(t)[k].store, i);
            float *v = MEM_ARRAY(NULL, float, param_count(p));
            assert_true(param_read(p, DT_F32, v, NULL));
            hash = hash_bytes(hash, v, (size_t)param_count(p) * sizeof *v);
            mem_free(v);
        }
    return hash;
}

// A scale at which gradients overflow f16: nothing changes, the scale halves, until a step works.
static void overflow_skips_the_step(void **state) {
    (void)state;
    Error err = {0};
    Device *dev = dev_open(NULL, "cpu", NULL, &err);
    NanoConfig c = {.patch = 4, .dim = 16, .depth = 1, .heads = 2, .size = 8, .classes = 4};
    TrainerOptions o = {.config = c, .batch = 2, .compute = DT_F16};
    Trainer *t = trainer_new(NULL, dev, &o, &err);
    CHECK(t && trainer_init(t, 1, &err));
    TrainerBatch b = trainer_batch(t, &o);
    float image[192], noise[192];
    Rng rng;
    rng_seed(&rng, 1, 1);
    rng_fill_normal(&rng, noise, 192);
    for (int i = 0; i < 192; i++) image[i] = 0.01f * (float)(i - 96);
    for (int i = 0; i < 2; i++) trainer_fill(&b, i, 192, image, noise, 0.3 + 0.4 * i, i);

    OptimOptions optim = optim_default();
    GradScaler s = scaler_new(true);
    s.scale = ldexp(1, 40);
    int64_t skipped = 0, updates = 0;
    while (updates < 3) {
        uint64_t before = weights_hash(t);
        float hyper[ADAMW_HYPER_COUNT];
        optim_hyper(&optim, updates + 1, updates, s.scale, hyper);
        TrainerResult r;
        CHECK(trainer_step(t, &b, hyper, s.scale, NULL, &r, &err));
        assert_true(isfinite(r.loss));
        assert_true(r.found_inf == (weights_hash(t) == before));
        double scale = s.scale;
        scaler_update(&s, r.found_inf);
        assert_true(s.scale == (r.found_inf ? scale / 2 : scale));
        skipped += r.found_inf, updates += !r.found_inf;
        assert_true(skipped < 60);
    }
    assert_int_equal(s.skipped, skipped);
    print_message("  %d steps skipped, scale 2^%d\n", (int)skipped, ilogb(s.scale));
    assert_true(skipped >= 3);
    trainer_free(t);
    dev_close(dev);
}

// The same in a run: a checkpoint whose scale was set too high; the log tells of each skipped step.
static void skipped_steps_are_logged(void **state) {
    (void)state;
    static const char usual[] = "loss_scale\\\":65536", high[] = "loss_scale\\\":1e+12";
    Place *p = place_new();
    TrainOptions o = small_run(p->data, p->out, DT_F16);
    o.limit_steps = SAVE_STEPS;
    train_or_fail(&o);
    Error err = {0};
    size_t n, k = 0;
    char *path = checkpoint_path(p, p->out, SAVE_STEPS);
    uint8_t *bytes = os_read_file(p, path, 1 << 26, &n, &err);
    CHECK(bytes);
    while (k + sizeof usual <= n && memcmp(bytes + k, usual, sizeof usual - 1)) k++;
    assert_true(k + sizeof usual <= n);
    memcpy(bytes + k, high, sizeof high - 1); // as long
    CHECK(os_write_file(path, bytes, n, &err));
    o.limit_steps = 0, o.epochs = 12, o.resume = true;
    TrainReport report;
    CHECK(train_on("cpu", &o, &report, &err));
    assert_true(report.skipped >= 3 && report.skipped < 40);

    char *log = (char *)os_read_file(p, os_path_join(p, p->out, "log.jsonl"), 1 << 24, &n, &err);
    double scale = 1e12;
    int64_t seen = 0;
    for (char *line = log; *line; line += strcspn(line, "\n") + 1) {
        Json *j = json_parse(line, strcspn(line, "\n"), "log", &err);
        CHECK(j);
        if (json_bool(json_get(j, "skipped"), false)) {
            assert_true(json_number(json_get(j, "loss_scale"), 0) == scale);
            assert_null(json_get(j, "loss"));
            scale /= 2, seen++;
        }
        json_free(j);
    }
    assert_int_equal(seen, report.skipped);
    assert_true(isfinite(report.loss));
    place_free(p);
}

int main(int argc, char **argv) {
    program = argv[0];
    if (argc == 5 && !strcmp(argv[1], "--train")) return child(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_batch_overfits),
        cmocka_unit_test(one_picture_with_fresh_noise),
        cmocka_unit_test(resume_equals_uninterrupted),
        cmocka_unit_test(other_precision),
        cmocka_unit_test(refusals),
        cmocka_unit_test(kill_at_any_moment),
        cmocka_unit_test(torn_log_is_repaired),
        cmocka_unit_test(damaged_checkpoint_is_passed_over),
        cmocka_unit_test(full_disk),
        cmocka_unit_test(overflow_skips_the_step),
        cmocka_unit_test(skipped_steps_are_logged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
