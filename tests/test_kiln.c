// The public interface (engine/kiln.h), as a program that links the library would use it.
#include "engine/kiln.h"

#include "backend/os.h"
#include "engine/image.h"
#include "engine/safetensors.h"
#include "models/nano.h"
#include "tests/scratch.h"

#include <math.h>
#include <setjmp.h>

#include <cmocka.h>

#ifndef KILN_SOURCE_DIR
#define KILN_SOURCE_DIR "."
#endif
#define MODEL KILN_SOURCE_DIR "/tests/golden/nano_p4.safetensors"

enum { BYTES = 3 * 32 * 32 };

#define CHECK(expression)                                                                  \
    do {                                                                                   \
        if (!(expression)) fail_msg("%s: %s", #expression, err.text);                      \
    } while (0)

#define REFUSED(expression, want_status, part)                                                     \
    do {                                                                                           \
        err = (KilnError){0};                                                                      \
        if (expression) fail_msg("%s: expected an error", #expression);                            \
        if (err.status != (want_status) || !strstr(err.text, part))                                \
            fail_msg("%s: expected \"%s\", found %d: %s", #expression, part, err.status,           \
                     err.text);                                                                    \
    } while (0)

static KilnContext *open_context(const char *device) {
    KilnError err;
    KilnContext *ctx = kiln_open(device, &(KilnOptions){.threads = 2, .no_cache = true}, &err);
    CHECK(ctx);
    assert_int_equal(err.status, KILN_OK);
    return ctx;
}

static KilnRequest small_request(const KilnModel *model) {
    KilnRequest r = kiln_request(model);
    assert_true(r.count == 1 && r.steps == 50 && r.cfg_scale > 1 && !strcmp(r.sampler, "euler"));
    r.steps = 3;
    return r;
}

static void devices(void **state) {
    (void)state;
    int major, minor, patch;
    assert_int_equal(sscanf(kiln_version(), "%d.%d.%d", &major, &minor, &patch), 3);
    int count = kiln_devices(NULL, 0);
    assert_true(count >= 2);
    KilnDevice all[64] = {0}, one = {0};
    assert_int_equal(kiln_devices(&one, 1), count);
    assert_int_equal(kiln_devices(all, 64), count);
    assert_string_equal(one.id, all[0].id);
    bool ref = false;
    for (int i = 0; i < count; i++) ref |= !strcmp(all[i].id, "ref");
    assert_true(ref && all[0].name[0]);

    KilnError err;
    REFUSED(kiln_open("abacus", NULL, &err), KILN_FAILED, "abacus");
    REFUSED(kiln_open("cpu", &(KilnOptions){.threads = -1}, &err), KILN_USAGE, "threads");
    assert_null(kiln_open("abacus", NULL, NULL)); // nobody listens
    KilnContext *ctx = open_context("ref");
    assert_string_equal(kiln_device(ctx)->id, "ref");
    kiln_close(ctx);
    kiln_close(NULL);
}

static void models(void **state) {
    (void)state;
    KilnError err;
    KilnContext *ctx = open_context("cpu");
    REFUSED(kiln_model_open(ctx, "/nowhere/at-all.safetensors", NULL, &err), KILN_FAILED,
            "nothing there");
    REFUSED(kiln_model_open(ctx, "a-name-nobody-gave", NULL, &err), KILN_FAILED, "not there: ");
    REFUSED(kiln_model_open(ctx, NULL, NULL, &err), KILN_FAILED, "expected a model file");
    REFUSED(kiln_model_open(ctx, KILN_SOURCE_DIR "/CMakeLists.txt", NULL, &err), KILN_FAILED,
            "CMakeLists");
    REFUSED(kiln_model_open(ctx, MODEL, &(KilnModelOptions){.precision = 9}, &err), KILN_USAGE,
            "precision");
    KilnModel *model = kiln_model_open(ctx, MODEL, NULL, &err);
    CHECK(model);
    KilnModelInfo info = kiln_model_info(model);
    assert_string_equal(info.architecture, "nano");
    assert_string_equal(info.path, MODEL);
    assert_true(info.width == 32 && info.height == 32 && info.classes == 10 &&
                info.parameters > 10000);
    assert_string_equal(kiln_model_class(model, 3), "cat");
    assert_null(kiln_model_class(model, -1));
    assert_null(kiln_model_class(model, 10));
    kiln_model_close(model);
    kiln_model_close(NULL);
    kiln_close(ctx);
}

static void bad_requests(void **state) {
    (void)state;
    KilnError err;
    KilnContext *ctx = open_context("cpu");
    KilnModel *model = kiln_model_open(ctx, MODEL, NULL, &err);
    CHECK(model);
    const KilnRequest good = small_request(model);
    KilnRequest r;
#define BAD(change, status, part)                                        \
    r = good;                                                            \
    change;                                                              \
    REFUSED(kiln_generate(model, &r, &err), status, part)
    BAD(r.count = 0, KILN_USAGE, "count");
    BAD(r.count = 10001, KILN_USAGE, "10000");
    BAD(r.prompt = "a cat", KILN_FAILED, "prompt");
    BAD(r.class_name = "catfish", KILN_FAILED, "airplane");
    BAD(r.classes = (const int[]){11}, KILN_FAILED, "11");
    BAD(r.width = 64, KILN_FAILED, "32 x 32");
    BAD(r.steps = 0, KILN_USAGE, "steps");
    BAD(r.sampler = "magic", KILN_USAGE, "magic");
    BAD(r.sampler = NULL, KILN_USAGE, "sampler");
    BAD(r.rng = 7, KILN_USAGE, "rng");
    BAD(r.cfg_scale = NAN, KILN_FAILED, "finite");
    r = good;
    KilnImages *images = kiln_generate(model, &r, &err); // and the model still works
    CHECK(images);
    REFUSED(kiln_image_save(images, 1, "x.png", &err), KILN_USAGE, "picture");
    REFUSED(kiln_image_save(images, 0, "x.gif", &err), KILN_FAILED, "x.gif");
    REFUSED(kiln_image_save(images, 0, "/nowhere/x.png", &err), KILN_FAILED, "/nowhere");
    REFUSED(kiln_images_save_sheet(images, 0, "x.png", &err), KILN_USAGE, "columns");
    assert_null(kiln_image(images, 1).rgb);
    assert_null(kiln_image(images, -1).rgb);
    kiln_images_free(images);
    kiln_images_free(NULL);
    kiln_model_close(model);
    kiln_close(ctx);
}

typedef struct Seen {
    int calls, stop_at;
    int64_t last;
    char stages[256];
} Seen;

static void see(void *user, const KilnProgress *p) {
    Seen *s = user;
    s->calls++;
    if (!strstr(s->stages, p->stage))
        snprintf(s->stages + strlen(s->stages), sizeof s->stages - strlen(s->stages), "%s ",
                 p->stage);
    if (strcmp(p->stage, "sample") && strcmp(p->stage, "train")) return;
    assert_int_equal(p->done, s->last + 1);
    assert_true(p->done <= p->total && p->seconds_left >= 0);
    s->last = p->done;
}

static bool stop(void *user) {
    const Seen *s = user;
    return s->stop_at && s->last >= s->stop_at;
}

static void pictures(void **state) {
    (void)state;
    KilnError err;
    KilnContext *ctx = open_context("cpu");
    KilnModel *model = kiln_model_open(ctx, MODEL, NULL, &err);
    CHECK(model);
    Seen seen = {0};
    KilnRequest r = small_request(model);
    r.count = 25, r.seed = UINT64_MAX - 1; // more than one pass; seeds wrap
    r.callbacks = (KilnCallbacks){see, stop, &seen};
    KilnPlan plan;
    CHECK(kiln_plan(model, &r, &plan, &err));
    assert_true(plan.peak == plan.weights + plan.arena + plan.programs + plan.staging &&
                plan.peak > 0);
    KilnImages *all = kiln_generate(model, &r, &err);
    CHECK(all);
    assert_true(kiln_memory(ctx).peak <= plan.peak && kiln_memory(ctx).peak >= plan.peak / 10 * 9);
    assert_int_equal(seen.last, 2 * 3);
    assert_string_equal(seen.stages, "load sample ");
    assert_int_equal(kiln_image_count(all), 25);
    assert_true(kiln_image(all, 0).seed == UINT64_MAX - 1 && kiln_image(all, 2).seed == 0);

    seen = (Seen){0};
    r.count = 1, r.seed = 1, r.class_name = "cat"; // picture 3 of the batch: class 3, seed base + 3
    KilnImages *cat = kiln_generate(model, &r, &err);
    CHECK(cat);
    int apart = 0;
    for (int i = 0; i < BYTES; i++)
        apart = MAX(apart, abs(kiln_image(cat, 0).rgb[i] - kiln_image(all, 3).rgb[i]));
    assert_true(apart <= 1); // products of other sizes may round otherwise
    const int classes[] = {3, 10};
    r.class_name = NULL, r.classes = classes, r.count = 2, seen = (Seen){0};
    KilnImages *two = kiln_generate(model, &r, &err);
    CHECK(two);
    assert_true(memcmp(kiln_image(two, 0).rgb, kiln_image(two, 1).rgb, BYTES) != 0);

    seen = (Seen){.stop_at = 2};
    REFUSED(kiln_generate(model, &r, &err), KILN_CANCELLED, "stopped");
    assert_int_equal(seen.last, 2);
    kiln_images_free(all), kiln_images_free(two);
    kiln_model_close(model);
    kiln_close(ctx);
    assert_int_equal(kiln_image(cat, 0).width, 32); // pictures outlive their context
    kiln_images_free(cat);
}

static void files(void **state) {
    (void)state;
    KilnError err;
    void *scope = mem_new(NULL, 1);
    char *dir = scratch_new(scope), *png = os_path_join(scope, dir, "a.png");
    char *jpeg = os_path_join(scope, dir, "a.jpg"), *sheet = os_path_join(scope, dir, "sheet.png");
    KilnContext *ctx = open_context("cpu");
    KilnModel *model = kiln_model_open(ctx, MODEL, NULL, &err);
    CHECK(model);
    KilnRequest r = small_request(model);
    r.count = 3, r.seed = 5;
    KilnImages *images = kiln_generate(model, &r, &err);
    CHECK(images && kiln_image_save(images, 2, png, &err));
    CHECK(kiln_image_save(images, 2, jpeg, &err) && kiln_images_save_sheet(images, 2, sheet, &err));
    Image *back = image_load(scope, png, NULL), *grid = image_load(scope, sheet, NULL);
    assert_memory_equal(back->rgb, kiln_image(images, 2).rgb, BYTES);
    assert_true(grid->width == 2 * 32 + 3 * 2 && grid->height == 2 * 32 + 3 * 2);
    assert_non_null(image_load(scope, jpeg, NULL));
    size_t n;
    uint8_t *bytes = os_read_file(scope, png, 1 << 20, &n, NULL);
    char *text = image_png_text(scope, bytes, n, "parameters");
    assert_non_null(text);
    char *want = mem_printf(scope,
                            "bird\nSteps: 3, Sampler: Euler, CFG scale: %g, Seed: 7, Size: 32x32, "
                            "Model: nano_p4, RNG: CPU, Version: Kiln %s",
                            r.cfg_scale, kiln_version());
    assert_string_equal(text, want);
    kiln_images_free(images);
    kiln_model_close(model);
    kiln_close(ctx);
    scratch_remove(dir);
    mem_free(scope);
}

static void memory_limit(void **state) {
    (void)state;
    KilnError err;
    KilnOptions options = {.threads = 1, .no_cache = true};
    KilnContext *ctx = kiln_open("ref", &options, &err);
    CHECK(ctx);
    KilnModel *model = kiln_model_open(ctx, MODEL, NULL, &err);
    CHECK(model);
    KilnRequest r = small_request(model);
    KilnPlan plan;
    CHECK(kiln_plan(model, &r, &plan, &err));
    kiln_model_close(model);
    kiln_close(ctx);
    for (int fits = 0; fits < 2; fits++) {
        options.memory_limit = plan.peak - !fits;
        ctx = kiln_open("ref", &options, &err);
        CHECK(ctx);
        assert_int_equal(kiln_memory(ctx).limit, options.memory_limit);
        model = kiln_model_open(ctx, MODEL, NULL, &err);
        CHECK(model);
        if (fits) {
            KilnImages *images = kiln_generate(model, &r, &err);
            CHECK(images);
            kiln_images_free(images);
        } else {
            char figure[32];
            snprintf(figure, sizeof figure, "%llu bytes", (unsigned long long)plan.peak);
            REFUSED(kiln_generate(model, &r, &err), KILN_FAILED, figure);
        }
        kiln_model_close(model);
        assert_int_equal(kiln_memory(ctx).used, plan.staging);
        kiln_close(ctx);
    }
}

static void count_lines(void *user, int level, const char *line) {
    assert_true(level >= 0 && level <= 3 && line[0]);
    ++*(int *)user;
}

static void training(void **state) {
    (void)state;
    KilnError err;
    void *scope = mem_new(NULL, 1);
    char *dir = scratch_new(scope);
    enum { RECORD = 3073, RECORDS = 12 };
    uint8_t *records = MEM_ARRAY(scope, uint8_t, RECORD * RECORDS);
    for (int i = 0; i < RECORD * RECORDS; i++)
        records[i] = (uint8_t)(i % RECORD ? i * 7 : i / RECORD % 10);
    scratch_write(scope, dir, "data/data_batch_1.bin", records, RECORD * RECORDS);
    int lines = 0;
    KilnOptions options = {.threads = 2, .no_cache = true, .log = count_lines, .log_user = &lines};
    KilnContext *ctx = kiln_open("cpu", &options, &err);
    CHECK(ctx);
    KilnTraining t = kiln_training();
    assert_true(t.batch == 64 && t.lr == 3e-4 && t.epochs == 100 && t.checkpoint_every == 10);
    REFUSED(kiln_train(ctx, &t, NULL, &err), KILN_USAGE, "data and out");
    t.data = os_path_join(scope, dir, "data"), t.out = os_path_join(scope, dir, "out");
    t.patch = 4, t.dim = 16, t.depth = 1, t.heads = 2, t.size = 8;
    t.batch = 4, t.epochs = 3, t.precision = KILN_BF16;
    Seen seen = {.stop_at = 5};
    t.callbacks = (KilnCallbacks){see, stop, &seen};
    KilnTrained trained;
    REFUSED(kiln_train(ctx, &t, &trained, &err), KILN_CANCELLED, "after step 5");
    assert_int_equal(trained.step, 5);
    seen.stop_at = 0;
    t.resume = true;
    CHECK(kiln_train(ctx, &t, &trained, &err));
    assert_true(trained.step == 9 && isfinite(trained.loss) && trained.memory.peak > 0);
    assert_non_null(strstr(seen.stages, "samples"));
    assert_true(lines > 0); // it did not find a test split, and says where it resumes

    KilnModel *model = kiln_model_open(ctx, t.out, NULL, &err); // the folder
    CHECK(model);
    KilnRequest r = small_request(model);
    KilnImages *images = kiln_generate(model, &r, &err);
    CHECK(images);
    assert_int_equal(kiln_image(images, 0).width, 8);
    kiln_images_free(images);
    kiln_model_close(model);
    assert_int_equal(kiln_memory(ctx).used, trained.memory.staging);
    kiln_close(ctx);
    scratch_remove(dir);
    mem_free(scope);
}

// A model of large pictures with all weights zero, next to no memory of its own.
static char *large_model(void *scope, const char *dir) {
    Error error = {0};
    NanoConfig c = {.patch = 16, .dim = 8, .depth = 1, .heads = 1, .size = 512, .classes = 2};
    int count;
    StWant *wants = nano_wants(scope, &c, &count);
    StWriter *w = st_writer(scope);
    st_put_meta(w, "kiln.config", nano_config_json(scope, &c));
    for (int i = 0; i < count; i++) {
        size_t n = 1;
        for (int d = 0; d < wants[i].ndim; d++) n *= (size_t)wants[i].shape[d];
        st_put(w, wants[i].name, DT_F32, wants[i].ndim, wants[i].shape,
               MEM_ARRAY(scope, float, n));
    }
    char *path = os_path_join(scope, dir, "large.safetensors");
    if (!st_write(w, path, &error)) fail_msg("%s", error.text);
    return path;
}

// Ten thousand pictures of 512 x 512 are 31 GB of numbers: an error, not the program's end.
static void too_many_pictures(void **state) {
    (void)state;
    KilnError err = {0};
    if (os_memory_total() / 4 > (uint64_t)31 << 30) {
        print_message("SKIP: too_many_pictures: this machine can hold them\n");
        skip();
    }
    void *scope = mem_new(NULL, 1);
    char *dir = scratch_new(scope);
    KilnContext *ctx = open_context("cpu");
    KilnModel *model = kiln_model_open(ctx, large_model(scope, dir), NULL, &err);
    CHECK(model);
    KilnRequest r = kiln_request(model);
    r.count = 10000, r.steps = 1;
    REFUSED(kiln_generate(model, &r, &err), KILN_FAILED, "in one request");
    KilnPlan plan;
    REFUSED(kiln_plan(model, &r, &plan, &err), KILN_FAILED, "in one request");
    r.count = 1;
    KilnImages *images = kiln_generate(model, &r, &err);
    CHECK(images);
    kiln_images_free(images);
    kiln_model_close(model);
    kiln_close(ctx);
    scratch_remove(dir);
    mem_free(scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices), cmocka_unit_test(models),       cmocka_unit_test(bad_requests),
        cmocka_unit_test(pictures), cmocka_unit_test(files),       cmocka_unit_test(memory_limit),
        cmocka_unit_test(training), cmocka_unit_test(too_many_pictures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
