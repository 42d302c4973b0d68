// Archives: what is written reads back (also by the system's tar), and damage is told.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "engine/gzip.h"
#include "engine/rng.h"
#include "engine/tar.h"
#include "tests/scratch.h"

static char *dir;
static int setup(void **state) { return (dir = scratch_new(NULL), *state = dir, 0); }
static int teardown(void **state) { return (scratch_remove(*state), mem_free(*state), 0); }

static char long_name[240];

static uint8_t *write_archive(const char *name, bool gzip, size_t *n) {
    Error err = {0};
    char *path = os_path_join(dir, dir, name);
    memset(long_name, 'n', sizeof long_name - 1);
    memcpy(long_name, "folder/", 7);
    TarWriter *tar = tar_open(NULL, path, gzip, &err);
    assert_non_null(tar);
    assert_true(tar_add(tar, "a.txt", "hello", 5, &err));
    assert_true(tar_add(tar, "empty", NULL, 0, &err));
    assert_true(tar_add(tar, long_name, "long", 4, &err));
    char block[1024];
    memset(block, 'b', sizeof block);
    assert_true(tar_add(tar, "block", block, sizeof block, &err));
    assert_int_equal(tar_size(tar), 1024 + 512 + 1024 + 1024 + 512 + 1024);
    assert_int_equal(os_path_kind(path), PATH_NONE);
    assert_true(tar_finish(tar, &err));
    uint8_t *data = os_read_file(dir, path, 1 << 20, n, &err);
    assert_non_null(data);
    return data;
}

static void check_archive(const uint8_t *data, size_t n) {
    Error err = {0};
    TarReader tar = tar_reader(dir, data, n);
    TarMember m;
    static const char *const names[] = {"a.txt", "empty", long_name, "block"};
    static const size_t sizes[] = {5, 0, 4, 1024};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(tar_next(&tar, &m, &err), TAR_MEMBER);
        assert_string_equal(m.name, names[i]);
        assert_int_equal(m.size, sizes[i]);
        assert_true(m.is_file);
        if (i == 0) assert_memory_equal(m.data, "hello", 5);
    }
    assert_int_equal(tar_next(&tar, &m, &err), TAR_END);
    assert_int_equal(tar_next(&tar, &m, &err), TAR_END);
}

static void test_round_trip(void **state) {
    (void)state;
    size_t n, packed, size;
    uint8_t *data = write_archive("a.tar", false, &n);
    assert_int_equal(n % 512, 0);
    check_archive(data, n);
    uint8_t *gz = write_archive("a.tar.gz", true, &packed);
    assert_true(packed < n / 4);
    uint8_t *back = gzip_unpack(dir, gz, packed, n, &size, NULL);
    assert_int_equal(size, n);
    assert_memory_equal(back, data, n);
}

static void test_abort(void **state) {
    (void)state;
    for (int gzip = 0; gzip < 2; gzip++) {
        TarWriter *tar = tar_open(NULL, os_path_join(dir, dir, "x.tar"), gzip, NULL);
        assert_true(tar_add(tar, "a", "hello", 5, NULL));
        tar_abort(tar);
    }
    tar_abort(NULL);
    assert_int_equal(scratch_count(dir), 0);
    assert_null(tar_open(NULL, os_path_join(dir, dir, "no/x.tar"), true, NULL));
    if (os_path_kind("/dev/full") == PATH_FILE) { // a full disk
        Error err = {0};
        TarWriter *tar = tar_open(NULL, "/dev/full", false, &err);
        assert_false(tar_finish(tar, &err));
        assert_non_null(strstr(err.text, "/dev/full"));
    }
}

// The system's tar must read ours, and we what it writes in its own formats.
static void test_system_tar(void **state) {
    (void)state;
    size_t n;
    if (system("tar --version >/dev/null 2>&1")) skip();
    write_archive("a.tar", false, &n);
    char *command =
        mem_printf(dir,
                   "cd %s && mkdir out && tar xf a.tar -C out && test \"$(cat out/a.txt)\" = "
                   "hello && test -f out/%s",
                   dir, long_name);
    assert_int_equal(system(command), 0);
    char deep[64], name[400];
    snprintf(deep, sizeof deep, "deep/%050d", 0);
    snprintf(name, sizeof name, "%s/%090d.txt", deep, 1);
    scratch_write(dir, dir, name, "deep one", 8);
    static const char *const formats[] = {"v7", "ustar", "gnu", "pax"};
    for (int i = 0; i < 4; i++) {
        command = mem_printf(dir, "cd %s && tar cf f.tar --format=%s %s 2>/dev/null", dir,
                             formats[i], i ? "deep" : "a.tar");
        assert_int_equal(system(command), 0);
        uint8_t *data = os_read_file(dir, os_path_join(dir, dir, "f.tar"), 1 << 20, &n, NULL);
        TarReader tar = tar_reader(dir, data, n);
        TarMember m;
        int files = 0;
        while (tar_next(&tar, &m, NULL) == TAR_MEMBER) {
            if (!m.is_file) continue;
            files++;
            assert_string_equal(m.name, i ? name : "a.tar");
            if (i) assert_memory_equal(m.data, "deep one", 8);
        }
        assert_int_equal(files, 1);
        assert_int_equal(tar_next(&tar, &m, NULL), TAR_END);
    }
}

// Reads an archive to its end; members and damages counted. Ends whatever the bytes are.
static void count_results(const uint8_t *data, size_t n, int *members, int *damaged) {
    uint8_t *copy = malloc(n + 1); // a block of its own: reads past it are seen
    memcpy(copy, data, n);
    TarReader tar = tar_reader(dir, copy, n);
    TarMember m;
    *members = *damaged = 0;
    unsigned sum = 0;
    Error err = {0};
    for (TarResult r; (r = tar_next(&tar, &m, &err)) != TAR_END;) {
        if (r == TAR_DAMAGED) ++*damaged;
        else ++*members;
        for (size_t i = 0; r == TAR_MEMBER && i < m.size; i++) sum += m.data[i];
    }
    if (*damaged) assert_non_null(strstr(err.text, "tar: expected"));
    free(copy);
    (void)sum;
}

static void test_truncated(void **state) {
    (void)state;
    size_t n;
    uint8_t *data = write_archive("a.tar", false, &n);
    int members, damaged;
    for (size_t k = 0; k + 1024 < n; k += k % 512 < 3 || k % 512 > 508 ? 1 : 61) {
        count_results(data, k, &members, &damaged);
        assert_int_equal(damaged, 1);
        assert_in_range(members, 0, 4);
    }
    count_results(data, n - 512, &members, &damaged); // one zero block is common
    assert_int_equal(members * 10 + damaged, 40);
}

static void fix_checksum(uint8_t *header) {
    unsigned sum = 0;
    memset(header + 148, ' ', 8);
    for (int i = 0; i < 512; i++) sum += header[i];
    snprintf((char *)header + 148, 8, "%06o", sum);
}

static void test_hostile_headers(void **state) {
    (void)state;
    size_t n;
    int members, damaged;
    uint8_t *data = write_archive("a.tar", false, &n), *h = mem_new(dir, n);
    for (int i = 0; i < 512; i++) { // any byte of the first header wrong: named, the rest is read
        memcpy(h, data, n);
        h[i] ^= 0x15;
        count_results(h, n, &members, &damaged);
        if (i < 148 || i >= 155) assert_int_equal(members * 10 + damaged, 31);
    }
    static const char *const sizes[] = {"77777777777", "\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
                                        "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                                        "0000000x005",
                                        "\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        memcpy(h, data, n);
        memcpy(h + 124, sizes[i], 12);
        fix_checksum(h);
        count_results(h, n, &members, &damaged);
        assert_int_equal(members * 10 + damaged, 31);
    }
    memcpy(h, data, n); // base 256 is fine where it is small
    memcpy(h + 124, "\x80\0\0\0\0\0\0\0\0\0\0\x05", 12);
    fix_checksum(h);
    count_results(h, n, &members, &damaged);
    assert_int_equal(members * 10 + damaged, 40);
    // pax records: broken lengths, sizes past the end.
    static const char *const records[] = {"999 path=x\n",
                                          "5 path=x\n",
                                          "0 path=x\n",
                                          "-3 path=x\n",
                                          "12 pathx\n",
                                          "30 size=99999999999999999999\n",
                                          "x",
                                          "21 size=99999999999\n",
                                          "22 GNU.sparse.major=1\n"};
    for (size_t i = 0; i < COUNT_OF(records); i++) {
        memcpy(h, data, n);
        h[156] = 'x';
        snprintf((char *)h + 124, 12, "%011o", (unsigned)strlen(records[i]));
        memcpy(h + 512, records[i], strlen(records[i]) + 1);
        fix_checksum(h);
        count_results(h, n, &members, &damaged);
        assert_int_equal(damaged, 1);
    }
}

static void test_names(void **state) {
    (void)state;
    static const char *const safe[] = {"a", "a/b.jpg", "a..b", "..a/b", "a/..b", "./a"};
    static const char *const unsafe[] = {"",     "/etc/passwd", "../a",    "a/../../b",
                                         "a/..", "..",          "c:\\x",   "c:x",
                                         "a\\b", "a\nb",        "a\x1b[2J"};
    for (size_t i = 0; i < COUNT_OF(safe); i++) assert_true(tar_name_is_safe(safe[i]));
    for (size_t i = 0; i < COUNT_OF(unsafe); i++) assert_false(tar_name_is_safe(unsafe[i]));
}

static void test_gzip_damage(void **state) {
    (void)state;
    size_t n, plain, size;
    uint8_t *gz = write_archive("a.tar.gz", true, &n);
    Error err = {0};
    uint8_t *sound = gzip_unpack(dir, gz, n, 1 << 20, &plain, &err);
    int passed = 0;
    assert_non_null(sound);
    for (size_t k = 0; k < n; k++) {
        uint8_t *cut = malloc(k + 1);
        memcpy(cut, gz, k);
        assert_null(gzip_unpack(dir, cut, k, 1 << 20, &size, &err));
        assert_non_null(strstr(err.text, "gzip: expected"));
        free(cut);
    }
    for (size_t bit = 80; bit < n * 8; bit++) { // behind the header, whose time and system are free
        gz[bit / 8] ^= (uint8_t)(1 << bit % 8);
        uint8_t *back = gzip_unpack(dir, gz, n, 1 << 20, &size, &err);
        // A few bits mean nothing (the fill before the checksum): then the bytes are the right
        // ones.
        if (back) assert_true(size == plain && !memcmp(back, sound, plain));
        passed += back != NULL;
        mem_free(back);
        gz[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_in_range(passed, 0, n * 8 / 20);
    assert_non_null(gzip_unpack(dir, gz, n, plain, &size, &err));
    assert_null(gzip_unpack(dir, gz, n, plain - 1, &size, &err)); // a bomb: past the limit
    assert_non_null(strstr(err.text, "found more"));
    uint8_t *two =
        mem_new(dir, 2 * n + 8); // members may follow each other, padding may follow them
    memcpy(two, gz, n);
    memcpy(two + n, gz, n);
    assert_non_null(gzip_unpack(dir, two, 2 * n + 8, 1 << 20, &size, &err));
    assert_int_equal(size, 2 * plain);
    two[2 * n + 3] = 1;
    assert_null(gzip_unpack(dir, two, 2 * n + 8, 1 << 20, &size, &err));
    assert_non_null(strstr(err.text, "other data behind its end"));
    assert_null(gzip_unpack(dir, (const uint8_t *)"plain text", 10, 100, &size, &err));
}

static void test_gzip_large(void **state) {
    (void)state;
    size_t n = 3 << 20, packed, size;
    uint8_t *data = mem_new(dir, n);
    Rng rng;
    rng_seed(&rng, 1, 0);
    for (size_t i = 0; i < n; i++) data[i] = (uint8_t)rng_below(&rng, 40);
    char *path = os_path_join(dir, dir, "l.gz");
    OutFile *out = out_open(NULL, path, NULL);
    GzipWriter *gz = gzip_open(NULL, out, NULL);
    for (size_t at = 0; at < n; at += 100000)
        assert_true(gzip_write(gz, data + at, MIN(n - at, 100000), NULL));
    assert_true(gzip_finish(gz, NULL));
    assert_true(out_commit(out, NULL));
    uint8_t *bytes = os_read_file(dir, path, n, &packed, NULL);
    uint8_t *back = gzip_unpack(dir, bytes, packed, 1 << 30, &size, NULL);
    assert_int_equal(size, n);
    assert_memory_equal(back, data, n);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),      TEST(test_abort), TEST(test_system_tar),  TEST(test_truncated),
        TEST(test_hostile_headers), TEST(test_names), TEST(test_gzip_damage), TEST(test_gzip_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
