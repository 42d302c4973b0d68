// Data sets: the three kinds of source, damage named and counted, import that keeps every picture.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // memmem
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "engine/dataset.h"
#include "engine/gzip.h"
#include "engine/rng.h"
#include "engine/tar.h"
#include "tests/scratch.h"

enum { RECORD = 3073 };
static char *dir;
static int setup(void **state) { return (dir = scratch_new(NULL), *state = dir, 0); }
static int teardown(void **state) { return (scratch_remove(*state), mem_free(*state), 0); }

static char *at(const char *name) { return os_path_join(dir, dir, name); }

static Image *picture(int number, int side) {
    Image *image = image_new(dir, side, side, NULL);
    Rng rng;
    rng_seed(&rng, (uint64_t)number, 0);
    for (int i = 0; i < side * side * 3; i++) image->rgb[i] = (uint8_t)rng_below(&rng, 256);
    return image;
}

static void save_picture(const char *name, int number, int side) {
    Error err = {0};
    char *path = at(name);
    assert_true(os_make_dirs(os_dir_name(dir, path), &err));
    if (!image_save(path, picture(number, side), NULL, 0, &err)) fail_msg("%s", err.text);
}

// Three classes, in an order that is not that of their making.
static void make_folders(void) {
    save_picture("src/dog/b.png", 1, 32);
    save_picture("src/dog/a.jpg", 2, 40);
    save_picture("src/cat/10.png", 3, 32);
    save_picture("src/cat/9.PNG", 4, 32);
    save_picture("src/Ant/x.jpeg", 5, 64);
    scratch_write(dir, dir, "src/cat/notes.txt", "not a picture", 13);
    scratch_write(dir, dir, "src/readme.md", "not a class", 11);
    scratch_write(dir, dir, "src/.hidden/x.png", "", 0);
}

static uint8_t *cifar_bytes(int first, int count) {
    uint8_t *data = mem_new(dir, (size_t)count * RECORD);
    for (int i = 0; i < count; i++) {
        data[i * RECORD] = (uint8_t)((first + i) % 10);
        image_to_planes(picture(first + i, 32), data + i * RECORD + 1);
    }
    return data;
}

static void assert_damage(const Dataset *set, int count, const char *text) {
    assert_int_equal(dataset_damage_count(set), count);
    for (int i = 0; i < count; i++)
        if (strstr(dataset_damage(set, i), text)) return;
    fail_msg("expected damage with \"%s\", found \"%s\"", text,
             count ? dataset_damage(set, 0) : "none");
}

static void assert_name(const Dataset *set, int i, const char *name) {
    char text[300];
    dataset_name(set, i, text, sizeof text);
    assert_string_equal(text, name);
}

static bool check(Dataset *set, Error *err) {
    return dataset_load(set, &(DatasetLoad){.size = 32, .check = true}, err);
}

static void test_folders(void **state) {
    (void)state;
    make_folders();
    Error err = {0};
    Dataset *set = dataset_open(NULL, at("src"), NULL, &err);
    assert_non_null(set);
    assert_int_equal(dataset_kind(set), DATASET_FOLDER);
    assert_int_equal(dataset_count(set), 5);
    assert_int_equal(dataset_class_count(set), 3);
    assert_string_equal(dataset_class(set, 0), "Ant"); // byte order
    assert_string_equal(dataset_class(set, 2), "dog");
    static const char *const names[] = {"Ant/x.jpeg", "cat/10.png", "cat/9.PNG", "dog/a.jpg",
                                        "dog/b.png"};
    static const int labels[] = {0, 1, 1, 2, 2};
    for (int i = 0; i < 5; i++) {
        assert_name(set, i, names[i]);
        assert_int_equal(dataset_label(set, i), labels[i]);
    }
    uint8_t planes[3072], expected[3072], cached[3072];
    assert_true(dataset_read(set, 4, 32, planes, &err));
    image_to_planes(picture(1, 32), expected);
    assert_memory_equal(planes, expected, 3072);
    assert_true(dataset_read(set, 0, 32, planes, &err)); // 64x64, reduced
    assert_true(dataset_load(set, &(DatasetLoad){.size = 32, .threads = 3}, &err));
    assert_true(dataset_is_cached(set, 32));
    assert_true(dataset_read(set, 0, 32, cached, &err));
    assert_memory_equal(planes, cached, 3072);
    uint8_t small[3 * 8 * 8];
    assert_true(dataset_read(set, 0, 8, small, &err)); // another size than the cache's
    assert_false(dataset_load(set, &(DatasetLoad){.size = 0}, &err));
    dataset_close(set);
}

static void test_folder_damage(void **state) {
    (void)state;
    make_folders();
    scratch_write(dir, dir, "src/cat/00.png", "\x89PNG\r\n\x1a\n cut", 12);
    scratch_write(dir, dir, "src/dog/zz.jpg", "", 0);
    save_picture("src/dog/half.jpg", 9, 32);
    assert_true(os_truncate(at("src/dog/half.jpg"), 900, NULL));
    Error err = {0};
    Dataset *set = dataset_open(NULL, at("src"), NULL, &err);
    uint8_t planes[3072];
    assert_int_equal(dataset_count(set), 8);
    assert_name(set, 1, "cat/00.png");
    assert_false(dataset_read(set, 1, 32, planes, &err));
    assert_non_null(strstr(err.text, "cat/00.png: PNG: expected"));
    assert_true(check(set, &err));
    assert_int_equal(dataset_count(set), 5);
    assert_name(set, 1, "cat/10.png");
    assert_damage(set, 3, "cat/00.png: ");
    assert_damage(set, 3, "dog/half.jpg: JPEG: expected");
    assert_damage(set, 3, "dog/zz.jpg: picture: expected PNG or JPEG, found an empty file");
    assert_true(dataset_read(set, 4, 32, planes, &err)); // the cache moved with the list
    uint8_t expected[3072];
    image_to_planes(picture(1, 32), expected);
    assert_memory_equal(planes, expected, 3072);
    dataset_close(set);
    set = dataset_open(NULL, at("src"), &(DatasetOptions){.strict = true}, &err);
    assert_non_null(set);
    assert_false(check(set, &err));
    assert_int_equal(err.items, 3);
    assert_non_null(strstr(err.text, "found 3 damaged"));
    assert_non_null(strstr(err.item[0], "cat/00.png"));
    dataset_close(set);
}

static void test_cifar(void **state) {
    (void)state;
    Error err = {0};
    for (int k = 1; k <= 5; k++) {
        char *name = mem_printf(dir, "c/data_batch_%d.bin", k);
        scratch_write(dir, dir, name, cifar_bytes(k * 100, 4), 4 * RECORD);
    }
    scratch_write(dir, dir, "c/test_batch.bin", cifar_bytes(7, 3), 3 * RECORD);
    const char *names = "plane\ncar\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
    scratch_write(dir, dir, "c/batches.meta.txt", names, strlen(names));
    Dataset *set = dataset_open(NULL, at("c"), NULL, &err);
    assert_non_null(set);
    assert_int_equal(dataset_kind(set), DATASET_CIFAR);
    assert_int_equal(dataset_count(set), 20);
    assert_int_equal(dataset_class_count(set), 10);
    assert_string_equal(dataset_class(set, 0), "plane");
    uint8_t planes[3072], expected[3072];
    for (int i = 0; i < 20; i++) {
        int number = (i / 4 + 1) * 100 + i % 4;
        assert_int_equal(dataset_label(set, i), number % 10);
        assert_true(dataset_read(set, i, 32, planes, &err));
        image_to_planes(picture(number, 32), expected);
        assert_memory_equal(planes, expected, 3072);
    }
    assert_name(set, 6, "data_batch_2.bin record 2");
    Image *image = dataset_image(dir, set, 6, &err);
    assert_memory_equal(image->rgb, picture(202, 32)->rgb, 3072);
    dataset_close(set);
    set = dataset_open(NULL, at("c"), &(DatasetOptions){.test = true}, &err);
    assert_int_equal(dataset_count(set), 3);
    assert_int_equal(dataset_label(set, 0), 7);
    dataset_close(set);
    set = dataset_open(NULL, at("c/test_batch.bin"), NULL, &err);
    assert_int_equal(dataset_count(set), 3);
    assert_string_equal(dataset_class(set, 9), "truck");
    dataset_close(set);
}

static void test_cifar_damage(void **state) {
    (void)state;
    Error err = {0};
    uint8_t *data = cifar_bytes(0, 4);
    data[2 * RECORD] = 10;
    Dataset *set =
        dataset_open_memory(NULL, DATASET_CIFAR, "x.bin", data, 4 * RECORD - 5, NULL, &err);
    assert_int_equal(dataset_count(set), 2);
    assert_damage(set, 2, "x.bin record 2: expected a class of 0 to 9, found 10");
    assert_damage(set, 2, "x.bin: expected records of 3073 bytes, found 3068 bytes at the end");
    dataset_close(set);
    DatasetOptions strict = {.strict = true};
    assert_null(dataset_open_memory(NULL, DATASET_CIFAR, "x.bin", data, 4 * RECORD, &strict, &err));
    assert_int_equal(err.items, 1);
    assert_null(dataset_open_memory(NULL, DATASET_CIFAR, "x.bin", data, 0, NULL, &err));
    assert_non_null(strstr(err.text, "found none whole"));
    assert_null(dataset_open_memory(NULL, DATASET_CIFAR, "x.bin", data, 100, NULL, &err));
}

// A shard from pairs (name, content); content NULL: picture number `i`.
static uint8_t *shard(const char *const (*members)[2], int count, size_t *n) {
    char *path = at("made.tar");
    TarWriter *tar = tar_open(NULL, path, false, NULL);
    for (int i = 0; i < count; i++) {
        uint8_t *bytes = (uint8_t *)(uintptr_t)members[i][1];
        size_t size = bytes ? strlen(members[i][1]) : 0;
        if (!bytes)
            assert_true(image_encode_png(dir, picture(i, 32), NULL, 0, &bytes, &size, NULL));
        assert_true(tar_add(tar, members[i][0], bytes, size, NULL));
    }
    assert_true(tar_finish(tar, NULL));
    uint8_t *data = os_read_file(dir, path, 1 << 24, n, NULL);
    os_remove(path, NULL);
    return data;
}

static void test_shards(void **state) {
    (void)state;
    Error err = {0};
    size_t n;
    static const char *const members[][2] = {
        {"a.png", NULL},     {"a.cls", "2"},    {"d/b.json", "{}"},
        {"d/b.cls", " 0\n"}, {"d/b.jpg", NULL}, {"notes", "nothing"},
        {"c.txt", "hey"},    {"e.png", NULL},   {"e.cls", "1"},
    };
    uint8_t *data = shard(members, COUNT_OF(members), &n);
    Dataset *set = dataset_open_memory(NULL, DATASET_SHARDS, "m.tar", data, n, NULL, &err);
    assert_non_null(set);
    assert_int_equal(dataset_count(set), 3);
    assert_int_equal(dataset_damage_count(set), 0);
    assert_int_equal(dataset_class_count(set), 3);
    assert_string_equal(dataset_class(set, 2), "2"); // no classes.txt
    assert_name(set, 1, "m.tar: d/b");
    static const int labels[] = {2, 0, 1}, pictures[] = {0, 4, 7};
    uint8_t planes[3072], expected[3072];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(dataset_label(set, i), labels[i]);
        assert_true(dataset_read(set, i, 32, planes, &err));
        image_to_planes(picture(pictures[i], 32), expected);
        assert_memory_equal(planes, expected, 3072);
    }
    DatasetFile file;
    assert_true(dataset_file(dir, set, 1, &file, &err));
    assert_int_equal(file.json_size, 2);
    assert_string_equal(file.extension, "png"); // by content
    dataset_close(set);
    // Truncated anywhere: what is whole is kept, the rest is named; never more than was there.
    for (size_t k = 0; k < n; k += 211) {
        uint8_t *cut = malloc(k + 1);
        memcpy(cut, data, k);
        set = dataset_open_memory(NULL, DATASET_SHARDS, "m.tar", cut, k, NULL, &err);
        if (set) {
            if (k < n - 1024) assert_true(dataset_damage_count(set) > 0);
            check(set, NULL);
            assert_in_range(dataset_count(set), 0, 3);
        }
        dataset_close(set);
        free(cut);
    }
}

static void test_shard_damage(void **state) {
    (void)state;
    Error err = {0};
    size_t n;
    static const char *const members[][2] = {
        {"good.png", NULL},
        {"good.cls", "1"},
        {"nocls.png", NULL},
        {"nopic.cls", "1"},
        {"bad.png", NULL},
        {"bad.cls", "cat"},
        {"neg.png", NULL},
        {"neg.cls", "-1"},
        {"large.png", NULL},
        {"large.cls", "9"},
        {"../up.png", NULL},
        {"../up.cls", "0"},
        {"/abs.png", NULL},
        {"/abs.cls", "0"},
        {"two.png", NULL},
        {"two.jpg", NULL},
        {"two.cls", "1"},
        {"huge.png", NULL},
        {"huge.cls", "99999999999999999999"},
        {"broken.png", "no"},
        {"broken.cls", "0"},
    };
    uint8_t *data = shard(members, COUNT_OF(members), &n);
    assert_true(os_make_dirs(at("w"), NULL));
    scratch_write(dir, dir, "w/000000.tar", data, n);
    scratch_write(dir, dir, "w/classes.txt", "no\r\nyes\r\n", 9);
    Dataset *set = dataset_open(NULL, at("w"), NULL, &err);
    assert_non_null(set);
    assert_int_equal(dataset_class_count(set), 2);
    assert_string_equal(dataset_class(set, 1), "yes");
    assert_int_equal(dataset_count(set), 2);
    assert_damage(set, 11, "000000.tar: nocls: expected a .cls member");
    assert_damage(set, 11, "nopic: expected a picture");
    assert_damage(set, 11, "bad: expected a class number");
    assert_damage(set, 11, "neg: expected a class number");
    assert_damage(set, 11, "large: expected a class of classes.txt");
    assert_damage(set, 11, "../up.png: expected a short relative name");
    assert_damage(set, 11, "/abs.cls: expected a short relative name");
    assert_damage(set, 11, "two: expected one picture");
    assert_damage(set, 11, "huge: expected a class number");
    assert_true(check(set, &err));
    assert_int_equal(dataset_count(set), 1);
    assert_damage(set, 12, "000000.tar: broken: picture: expected PNG or JPEG");
    dataset_close(set);
    assert_null(dataset_open(NULL, at("w"), &(DatasetOptions){.strict = true}, &err));
    assert_int_equal(err.items, 11);
    scratch_write(dir, dir, "w/classes.txt", "", 0);
    assert_null(dataset_open(NULL, at("w"), NULL, &err));
    assert_non_null(strstr(err.text, "classes.txt: expected"));
}

static void test_gzip_shards(void **state) {
    (void)state;
    Error err = {0};
    make_folders();
    Dataset *set = dataset_open(NULL, at("src"), NULL, &err);
    DatasetImported done;
    assert_true(dataset_import(set, at("gz"), &(DatasetImport){.gzip = true}, &done, &err));
    dataset_close(set);
    size_t n;
    char *path = at("gz/000000.tar.gz");
    uint8_t *data = os_read_file(dir, path, 1 << 24, &n, &err);
    assert_true(gzip_is(data, n));
    set = dataset_open(NULL, path, NULL, &err); // one shard by its name
    assert_int_equal(dataset_count(set), 5);
    assert_string_equal(dataset_class(set, 0), "Ant");
    dataset_close(set);
    assert_null(dataset_open(NULL, at("gz"), &(DatasetOptions){.memory_limit = 1000}, &err));
    assert_int_equal(err.items, 1);
    assert_non_null(strstr(err.item[0], "expected at most 1000 B unpacked"));
    data[n / 2] ^= 1;
    scratch_write(dir, dir, "gz/000001.tar.gz", data, n);
    set = dataset_open(NULL, at("gz"), NULL, &err);
    assert_int_equal(dataset_count(set), 5);
    assert_damage(set, 1, "000001.tar.gz: gzip: expected a whole file");
    dataset_close(set);
}

static void test_nothing_there(void **state) {
    (void)state;
    Error err = {0};
    assert_null(dataset_open(NULL, at("none"), NULL, &err));
    assert_non_null(strstr(err.text, "found nothing"));
    assert_null(dataset_open(NULL, dir, NULL, &err));
    assert_non_null(
        strstr(err.text, "expected a folder of .jpg or .png files per class, found none"));
    assert_null(dataset_open(NULL, scratch_write(dir, dir, "x.zip", "", 0), NULL, &err));
    assert_non_null(strstr(err.text, "found another file"));
    assert_null(dataset_open(NULL, scratch_write(dir, dir, "t/0.tar", "", 0), NULL, &err));
    assert_null(dataset_open(NULL, at("t"), NULL, &err));
    assert_non_null(strstr(err.text, "found none whole"));
}

static bool same_samples(Dataset *a, Dataset *b) {
    if (dataset_count(a) != dataset_count(b) || dataset_class_count(a) != dataset_class_count(b))
        return false;
    uint8_t x[3072], y[3072];
    for (int c = 0; c < dataset_class_count(a); c++)
        if (strcmp(dataset_class(a, c), dataset_class(b, c)) != 0) return false;
    for (int i = 0; i < dataset_count(a); i++)
        if (dataset_label(a, i) != dataset_label(b, i) || !dataset_read(a, i, 32, x, NULL) ||
            !dataset_read(b, i, 32, y, NULL) || memcmp(x, y, 3072) != 0)
            return false;
    return true;
}

static void test_import(void **state) {
    (void)state;
    Error err = {0};
    make_folders();
    scratch_write(dir, dir, "src/cat/00.png", "broken", 6);
    scratch_write(dir, dir, "c/data_batch_1.bin", cifar_bytes(0, 30), 30 * RECORD);
    DatasetImported done;
    for (int cifar = 0; cifar < 2; cifar++) {
        Dataset *set = dataset_open(NULL, at(cifar ? "c" : "src"), NULL, &err);
        char *dst = at(cifar ? "new/w1" : "w0"), *again = at(cifar ? "v1" : "v0");
        DatasetImport options = {.shard_size = cifar ? 20000 : 1};
        if (!dataset_import(set, dst, &options, &done, &err)) fail_msg("%s", err.text);
        assert_int_equal(done.count, cifar ? 30 : 5);
        if (!cifar) assert_int_equal(done.shards, 5);
        else assert_in_range(done.shards, 6, 10);
        assert_int_equal(scratch_count(dst), done.shards + 1);
        assert_int_equal(dataset_damage_count(set), !cifar);
        Dataset *shards = dataset_open(NULL, dst, NULL, &err);
        assert_non_null(shards);
        assert_int_equal(dataset_damage_count(shards), 0);
        assert_true(same_samples(set, shards));
        // Shards of shards hold the very same bytes.
        assert_true(dataset_import(shards, again, &options, &done, &err));
        size_t n, m;
        uint8_t *a = os_read_file(dir, os_path_join(dir, dst, "000001.tar"), 1 << 20, &n, &err);
        uint8_t *b = os_read_file(dir, os_path_join(dir, again, "000001.tar"), 1 << 20, &m, &err);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, n);
        if (cifar) assert_in_range(n, 3000, 20000);
        assert_false(dataset_import(set, dst, &options, &done, &err)); // not over anything
        assert_non_null(strstr(err.text, "expected a new or empty folder"));
        dataset_close(shards);
        dataset_close(set);
    }
    // Encoded bytes are kept.
    size_t n, m;
    uint8_t *original = os_read_file(dir, at("src/Ant/x.jpeg"), 1 << 20, &n, &err);
    uint8_t *tarred = os_read_file(dir, at("w0/000000.tar"), 1 << 20, &m, &err);
    assert_non_null(memmem(tarred, m, original, n));
}

static bool cancel_in_write(void *user, const char *stage, int done, int total) {
    ++*(int *)user;
    return strcmp(stage, "write") != 0 || done * 2 < total;
}

static bool cancel_in_check(void *user, const char *stage, int done, int total) {
    (void)user, (void)done, (void)total;
    return strcmp(stage, "check") != 0;
}

static void test_import_failures(void **state) {
    (void)state;
    Error err = {0};
    make_folders();
    DatasetImported done;
    int calls = 0;
    DatasetImport options = {.shard_size = 1, .progress = cancel_in_write, .user = &calls};
    Dataset *set = dataset_open(NULL, at("src"), NULL, &err);
    assert_false(dataset_import(set, at("w"), &options, &done, &err));
    assert_int_equal(err.status, STATUS_CANCELLED);
    assert_int_equal(os_path_kind(at("w")), PATH_NONE);
    assert_true(calls > 2);
    assert_true(os_make_dirs(at("kept"), &err));
    assert_false(dataset_import(set, at("kept"), &options, &done, &err));
    assert_int_equal(scratch_count(at("kept")), 0); // it was there before and stays
    dataset_close(set);
    set = dataset_open(NULL, at("src"), NULL, &err);
    options.progress = cancel_in_check;
    assert_false(dataset_import(set, at("w"), &options, &done, &err));
    assert_int_equal(err.status, STATUS_CANCELLED);
    assert_int_equal(os_path_kind(at("w")), PATH_NONE);
    options.progress = NULL;
    char *file = scratch_write(dir, dir, "file", "", 0);
    assert_false(dataset_import(set, file, &options, &done, &err));
    assert_non_null(strstr(err.text, "found a file"));
    assert_false(dataset_import(set, os_path_join(dir, file, "w"), &options, &done, &err));
    dataset_close(set);
    scratch_write(dir, dir, "src/cat/00.png", "broken", 6);
    set = dataset_open(NULL, at("src"), &(DatasetOptions){.strict = true}, &err);
    assert_false(dataset_import(set, at("w"), &options, &done, &err));
    assert_int_equal(err.items, 1);
    assert_non_null(strstr(err.item[0], "cat/00.png"));
    assert_int_equal(os_path_kind(at("w")), PATH_NONE);
    dataset_close(set);
}

static void test_info_and_preview(void **state) {
    (void)state;
    Error err = {0};
    make_folders();
    scratch_write(dir, dir, "src/cat/00.png", "broken", 6);
    Dataset *set = dataset_open(NULL, at("src"), NULL, &err);
    DatasetInfo info;
    assert_true(dataset_info(dir, set, &info, NULL, NULL, &err));
    assert_int_equal(info.count, 5);
    assert_int_equal(info.classes, 3);
    assert_int_equal(info.damaged, 1);
    assert_int_equal(info.per_class[0] * 100 + info.per_class[1] * 10 + info.per_class[2], 122);
    assert_int_equal(info.size_count, 3);
    assert_int_equal(info.sizes[0].width * 10 + info.sizes[0].count, 323);
    assert_int_equal(info.sizes[2].width, 64);
    assert_true(info.bytes > 3 * 3072 && info.bytes < 60000);
    Image *sheet = dataset_preview(dir, set, 3, 4, 32, &err);
    assert_int_equal(sheet->width, 4 * 34 + 2);
    assert_int_equal(sheet->height, 3 * 34 + 2);
    const uint8_t *cell =
        sheet->rgb + ((36 + 0) * sheet->width + 2) * 3; // row of "cat", first picture
    assert_memory_equal(cell, picture(3, 32)->rgb, 32 * 3);
    assert_null(dataset_preview(dir, set, 3, 0, 32, &err));
    dataset_close(set);
    set = dataset_open_memory(NULL, DATASET_CIFAR, "x.bin", cifar_bytes(0, 12), 12 * RECORD, NULL,
                              &err);
    assert_true(dataset_info(dir, set, &info, NULL, NULL, &err));
    assert_int_equal(info.part_count, 1);
    assert_int_equal(info.parts[0].count, 12);
    assert_int_equal(info.per_class[1], 2);
    dataset_close(set);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_folders),         TEST(test_folder_damage),    TEST(test_cifar),
        TEST(test_cifar_damage),    TEST(test_shards),           TEST(test_shard_damage),
        TEST(test_gzip_shards),     TEST(test_nothing_there),    TEST(test_import),
        TEST(test_import_failures), TEST(test_info_and_preview),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
