// The loader: one stream for any number of threads and any source, exact resume, clean shutdown.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "engine/loader.h"
#include "engine/rng.h"
#include "tests/scratch.h"

enum { RECORD = 3073, COUNT = 103, PIXELS = 3072 };
static void *scope;
static Dataset *set;

// COUNT pictures whose every pixel tells their number, left half and right half apart.
static uint8_t *make_bytes(void) {
    uint8_t *data = mem_new(scope, COUNT * RECORD);
    for (int i = 0; i < COUNT; i++) {
        data[i * RECORD] = (uint8_t)(i % 10);
        for (int p = 0; p < PIXELS; p++)
            data[i * RECORD + 1 + p] = (uint8_t)(p % 32 < 16 ? i : 255 - i);
    }
    return data;
}

static int setup(void **state) {
    scope = *state = mem_new(NULL, 1);
    set = dataset_open_memory(NULL, DATASET_CIFAR, "x", make_bytes(), COUNT * RECORD, NULL, NULL);
    return !set;
}

static int teardown(void **state) {
    dataset_close(set);
    mem_free(*state);
    return 0;
}

static LoaderOptions options(int threads) {
    return (LoaderOptions){.batch = 16,
                           .size = 32,
                           .seed = 5,
                           .shuffle = true,
                           .flip = true,
                           .drop_last = true,
                           .threads = threads};
}

// Hash of the next `batches` batches: pixels, labels, places.
static uint64_t stream_hash(Loader *l, int batches) {
    uint64_t h = 0;
    for (int i = 0; i < batches; i++) {
        LoaderBatch b;
        Error err = {0};
        if (!loader_next(l, &b, &err)) fail_msg("%s", err.text);
        h = hash_bytes(h, b.pixels, (size_t)b.count * PIXELS);
        h = hash_bytes(h, b.labels, (size_t)b.count * sizeof *b.labels);
        int64_t place[] = {b.count, b.epoch, b.position, b.next_epoch, b.next_position};
        h = hash_bytes(h, place, sizeof place);
    }
    return h;
}

static uint64_t open_and_hash(const LoaderOptions *o, int batches) {
    Error err = {0};
    Loader *l = loader_open(NULL, set, o, &err);
    if (!l) fail_msg("%s", err.text);
    uint64_t h = stream_hash(l, batches);
    loader_close(l);
    return h;
}

static void test_epochs(void **state) {
    (void)state;
    LoaderOptions o = options(2);
    o.drop_last = false;
    Loader *l = loader_open(NULL, set, &o, NULL);
    assert_int_equal(loader_batches_per_epoch(l), 7);
    int first[COUNT], moved = 0, flipped = 0;
    for (int epoch = 0; epoch < 3; epoch++) {
        bool seen[COUNT] = {0};
        for (int k = 0; k < 7; k++) {
            LoaderBatch b;
            assert_true(loader_next(l, &b, NULL));
            assert_int_equal(b.count, k < 6 ? 16 : COUNT - 96);
            assert_int_equal(b.epoch, epoch);
            assert_int_equal(b.position, k * 16);
            assert_int_equal(b.next_epoch, k < 6 ? epoch : epoch + 1);
            assert_int_equal(b.next_position, k < 6 ? k * 16 + 16 : 0);
            assert_null(b.floats);
            for (int i = 0; i < b.count; i++) {
                int n = b.samples[i];
                assert_in_range(n, 0, COUNT - 1);
                assert_false(seen[n]); // each once per epoch
                seen[n] = true;
                assert_int_equal(b.labels[i], n % 10);
                const uint8_t *p = b.pixels + i * PIXELS;
                bool flip = p[0] == 255 - n;
                flipped += flip;
                for (int q = 0; q < PIXELS; q++)
                    assert_int_equal(p[q], (q % 32 < 16) != flip ? n : 255 - n);
                if (epoch == 0) first[k * 16 + i] = n;
                else if (epoch == 1) moved += first[k * 16 + i] != n;
            }
        }
    }
    assert_true(moved > COUNT * 8 / 10);        // another order in each epoch
    assert_in_range(flipped, COUNT, 2 * COUNT); // about half of 3 x COUNT
    loader_close(l);
}

static void test_same_for_any_threads(void **state) {
    (void)state;
    LoaderOptions o = options(1);
    uint64_t one = open_and_hash(&o, 20);
    for (int threads = 2; threads <= 6; threads += 2) {
        o.threads = threads;
        assert_true(open_and_hash(&o, 20) == one);
    }
    o.seed = 6;
    assert_true(open_and_hash(&o, 20) != one);
    o = options(3);
    o.flip = false;
    assert_true(open_and_hash(&o, 20) != one);
}

// The order itself is a promise: checkpoints of other machines and builds must go on alike.
static void test_order_is_fixed(void **state) {
    (void)state;
    LoaderOptions o = options(1);
    Loader *l = loader_open(NULL, set, &o, NULL);
    LoaderBatch b;
    assert_true(loader_next(l, &b, NULL));
    static const int expected[6] = {23, 44, 8, 95, 41, 9};
    for (int i = 0; i < 6; i++) assert_int_equal(b.samples[i], expected[i]);
    loader_close(l);
}

static void test_resume(void **state) {
    (void)state;
    for (int drop = 0; drop < 2; drop++)
        for (int k = 0; k <= 14; k++) { // through the end of two epochs
            LoaderOptions o = options(2);
            o.drop_last = drop;
            Loader *l = loader_open(NULL, set, &o, NULL);
            LoaderBatch b = {0};
            for (int i = 0; i < k; i++) assert_true(loader_next(l, &b, NULL));
            uint64_t rest = stream_hash(l, 9);
            loader_close(l);
            o.epoch = b.next_epoch;
            o.position = b.next_position;
            assert_true(open_and_hash(&o, 9) == rest);
        }
}

static void test_plain_order_and_end(void **state) {
    (void)state;
    LoaderOptions o = {.batch = 50, .size = 32, .epochs = 1, .threads = 2};
    Loader *l = loader_open(NULL, set, &o, NULL);
    LoaderBatch b;
    int at = 0;
    for (int k = 0; k < 3; k++) {
        assert_true(loader_next(l, &b, NULL));
        assert_int_equal(b.count, k < 2 ? 50 : 3);
        for (int i = 0; i < b.count; i++) assert_int_equal(b.samples[i], at++);
    }
    for (int k = 0; k < 3; k++) { // and it stays at the end
        assert_true(loader_next(l, &b, NULL));
        assert_int_equal(b.count, 0);
    }
    loader_close(l);
}

static void test_floats(void **state) {
    (void)state;
    LoaderOptions o = options(2);
    Loader *a = loader_open(NULL, set, &o, NULL);
    o.floats = true;
    Loader *b = loader_open(NULL, set, &o, NULL);
    for (int k = 0; k < 8; k++) {
        LoaderBatch x, y;
        assert_true(loader_next(a, &x, NULL));
        assert_true(loader_next(b, &y, NULL));
        assert_null(y.pixels);
        for (int i = 0; i < 16 * PIXELS; i++)
            assert_true(y.floats[i] == image_to_float(x.pixels[i]));
        assert_memory_equal(x.labels, y.labels, 16 * sizeof *x.labels);
    }
    loader_close(a);
    loader_close(b);
}

static void test_uncached_is_the_same(void **state) {
    (void)state;
    LoaderOptions o = options(2);
    o.size = 16; // decoded and reduced each time, or once
    o.cache_limit = 1000;
    Loader *a = loader_open(NULL, set, &o, NULL);
    assert_false(dataset_is_cached(set, 16));
    Dataset *other =
        dataset_open_memory(NULL, DATASET_CIFAR, "x", make_bytes(), COUNT * RECORD, NULL, NULL);
    o.cache_limit = 0;
    Loader *b = loader_open(NULL, other, &o, NULL);
    assert_true(dataset_is_cached(other, 16));
    for (int k = 0; k < 10; k++) {
        LoaderBatch x, y;
        assert_true(loader_next(a, &x, NULL) && loader_next(b, &y, NULL));
        assert_memory_equal(x.pixels, y.pixels, 16 * 3 * 16 * 16);
    }
    loader_close(a);
    loader_close(b);
    dataset_close(other);
}

// The same pictures as folders and as shards: the same stream.
static void test_sources_agree(void **state) {
    (void)state;
    char *dir = scratch_new(scope);
    Error err = {0};
    for (int i = 0; i < 60; i++) {
        Image *image = image_new(scope, 32, 32, NULL);
        memset(image->rgb, i, PIXELS);
        char *folder = mem_printf(scope, "%s/src/class%d", dir, i % 3);
        assert_true(os_make_dirs(folder, &err));
        assert_true(image_save(mem_printf(scope, "%s/%03d.png", folder, i), image, NULL, 0, &err));
    }
    uint64_t hashes[3];
    Dataset *kept = set, *folders = NULL;
    for (int k = 0; k < 3; k++) {
        char *path = os_path_join(scope, dir, k == 0 ? "src" : k == 1 ? "w" : "gz");
        DatasetImported done;
        DatasetImport how = {.shard_size = 20000, .gzip = k == 2};
        if (k) assert_true(dataset_import(folders, path, &how, &done, &err));
        set = dataset_open(NULL, path, NULL, &err);
        assert_non_null(set);
        LoaderOptions o = options(2);
        hashes[k] = open_and_hash(&o, 9);
        if (k) dataset_close(set);
        else folders = set;
    }
    dataset_close(folders);
    set = kept;
    assert_true(hashes[0] == hashes[1]);
    assert_true(hashes[0] == hashes[2]);
    scratch_remove(dir);
}

static void test_damaged_pictures(void **state) {
    (void)state;
    char *dir = scratch_new(scope);
    Error err = {0};
    for (int i = 0; i < 20; i++) {
        Image *image = image_new(scope, 32, 32, NULL);
        memset(image->rgb, i, PIXELS);
        os_make_dirs(os_path_join(scope, dir, "c"), NULL);
        char *path = mem_printf(scope, "%s/c/%02d.png", dir, i);
        if (i % 5 == 2) assert_true(os_write_file(path, "broken", 6, &err));
        else assert_true(image_save(path, image, NULL, 0, &err));
    }
    Dataset *folders = dataset_open(NULL, dir, NULL, &err);
    LoaderOptions o = {
        .batch = 20, .size = 32, .cache_limit = 1}; // read as it goes: the next one instead
    Loader *l = loader_open(NULL, folders, &o, &err);
    LoaderBatch b;
    assert_true(loader_next(l, &b, &err));
    for (int i = 0; i < 20; i++) assert_int_equal(b.pixels[i * PIXELS], i % 5 == 2 ? i + 1 : i);
    assert_true(loader_replaced(l) >= 4);
    loader_close(l);
    o.batch = 16;
    o.cache_limit = 0; // decoded beforehand: dropped
    l = loader_open(NULL, folders, &o, &err);
    assert_int_equal(dataset_damage_count(folders), 4);
    assert_true(loader_next(l, &b, &err));
    assert_int_equal(b.count, 16);
    assert_int_equal(b.pixels[2 * PIXELS], 3);
    assert_int_equal(loader_replaced(l), 0);
    loader_close(l);
    dataset_close(folders);
    // A file that vanishes later, in a set too large to keep, all gone: an error, no endless loop.
    folders = dataset_open(NULL, dir, NULL, &err);
    scratch_remove(os_path_join(scope, dir, "c"));
    o.cache_limit = 1;
    l = loader_open(NULL, folders, &o, &err);
    assert_non_null(l);
    assert_false(loader_next(l, &b, &err));
    assert_non_null(strstr(err.text, "expected a readable file"));
    assert_false(loader_next(l, &b, &err));
    loader_close(l);
    dataset_close(folders);
    scratch_remove(dir);
}

static void test_close_at_any_moment(void **state) {
    (void)state;
    for (int k = 0; k < 60; k++) {
        LoaderOptions o = options(1 + k % 5);
        Loader *l = loader_open(NULL, set, &o, NULL);
        LoaderBatch b;
        for (int i = 0; i < k % 7; i++) assert_true(loader_next(l, &b, NULL));
        if (k % 3 == 0) os_sleep(0.001 * (k % 4));
        loader_close(l);
    }
    loader_close(NULL);
}

static void test_bad_options(void **state) {
    (void)state;
    Error err = {0};
    LoaderOptions o = options(1);
    o.batch = 0;
    assert_null(loader_open(NULL, set, &o, &err));
    assert_non_null(strstr(err.text, "batch: expected 1 to"));
    o.batch = 200;
    assert_null(loader_open(NULL, set, &o, &err));
    assert_non_null(strstr(err.text, "lower the batch"));
    o.drop_last = false;
    assert_true(open_and_hash(&o, 2) != 0);
    o.position = COUNT + 1;
    assert_null(loader_open(NULL, set, &o, &err));
    assert_non_null(strstr(err.text, "data of the checkpoint"));
    o.position = 0;
    o.size = -1;
    assert_null(loader_open(NULL, set, &o, &err));
}

// The real thing, where it is at hand: CIFAR-10's 10,000 test pictures as class folders of JPEG.
static void test_real_cifar(void **state) {
    (void)state;
    const char *archive = "../shared/reference-data/cifar10/test.tar.xz";
    char *dir = scratch_new(scope), *path = os_path_join(scope, dir, "test");
    char *command = mem_printf(scope, "tar xJf %s -C %s", archive, dir);
    if (os_path_kind(archive) != PATH_FILE || system(command) || os_path_kind(path) != PATH_DIR) {
        print_message("SKIP test_real_cifar: no %s here\n", archive);
        scratch_remove(dir);
        skip();
    }
    Error err = {0};
    Dataset *real = dataset_open(NULL, path, NULL, &err);
    assert_non_null(real);
    LoaderOptions o = options(2);
    o.batch = 64;
    double start = os_seconds();
    Loader *l = loader_open(NULL, real, &o, &err);
    assert_non_null(l);
    assert_int_equal(dataset_damage_count(real), 0);
    assert_int_equal(dataset_class_count(real), 10);
    assert_int_equal(dataset_count(real), 10000);
    double opened = os_seconds();
    LoaderBatch b;
    for (int i = 0; i < 100; i++) assert_true(loader_next(l, &b, &err));
    print_message("%d pictures: decoded in %.2f s, 100 batches in %.3f s\n", dataset_count(real),
                  opened - start, os_seconds() - opened);
    loader_close(l);
    dataset_close(real);
    scratch_remove(dir);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_epochs),
        TEST(test_same_for_any_threads),
        TEST(test_order_is_fixed),
        TEST(test_resume),
        TEST(test_plain_order_and_end),
        TEST(test_floats),
        TEST(test_uncached_is_the_same),
        TEST(test_sources_agree),
        TEST(test_damaged_pictures),
        TEST(test_close_at_any_moment),
        TEST(test_bad_options),
        TEST(test_real_cifar),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
