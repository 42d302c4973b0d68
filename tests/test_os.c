// The system layer: files whole or not at all, folders, threads, interrupts.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/scratch.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char *dir;
static int setup(void **state) { return (dir = scratch_new(NULL), *state = dir, 0); }
static int teardown(void **state) { return (scratch_remove(*state), mem_free(*state), 0); }

static void assert_file(const char *path, const char *text) {
    size_t n;
    uint8_t *data = os_read_file(NULL, path, 1 << 20, &n, NULL);
    assert_non_null(data);
    assert_int_equal(n, strlen(text));
    assert_memory_equal(data, text, n + 1);
    mem_free(data);
}

static void test_write_replaces(void **state) {
    (void)state;
    Error err = {0};
    char *path = os_path_join(dir, dir, "a.bin");
    assert_true(os_write_file(path, "one", 3, &err));
    OutFile *out = out_open(NULL, path, &err);
    assert_non_null(out);
    assert_true(out_write(out, "two more", 8, &err));
    assert_file(path, "one"); // not before the commit
    assert_int_equal(scratch_count(dir), 2);
    assert_true(out_seek(out, 0, &err));
    assert_true(out_write(out, "TWO", 3, &err));
    assert_true(out_commit(out, &err));
    assert_file(path, "TWO more");
    assert_int_equal(scratch_count(dir), 1);
    out = out_open(NULL, path, &err);
    assert_true(out_write(out, "x", 1, &err));
    out_abort(out);
    out_abort(NULL);
    assert_file(path, "TWO more");
    assert_int_equal(scratch_count(dir), 1);
}

static void test_write_large_and_seek(void **state) {
    (void)state;
    Error err = {0};
    char *path = os_path_join(dir, dir, "large"), *data = mem_new(dir, 1 << 20);
    memset(data, 'k', 1 << 20);
    OutFile *out = out_open(NULL, path, &err);
    for (int i = 0; i < 5; i++) assert_true(out_write(out, data, 100001, &err));
    assert_true(out_write(out, data, 1 << 20, &err));
    assert_true(out_seek(out, 10, &err));
    assert_true(out_write(out, "Z", 1, &err));
    assert_true(out_commit(out, &err));
    FileMap map;
    assert_true(os_map(&map, path, &err));
    assert_int_equal(map.size, 500005 + (1 << 20));
    assert_int_equal(map.data[9], 'k');
    assert_int_equal(map.data[10], 'Z');
    assert_int_equal(map.data[map.size - 1], 'k');
    char part[3];
    assert_true(os_map_read(&map, path, 9, part, 3, &err));
    assert_memory_equal(part, "kZk", 3);
    assert_true(os_truncate(path, 11, &err)); // touching the mapping there would now end the program
    assert_true(os_map_read(&map, path, 9, part, 2, &err));
    assert_false(os_map_read(&map, path, 9, part, 3, &err));
    assert_non_null(strstr(err.text, "expected 1 more bytes, found the end of the file"));
    os_unmap(&map);
    assert_null(map.data);
    assert_true(os_truncate(path, 3, &err));
    assert_file(path, "kkk");
}

static void test_write_errors(void **state) {
    (void)state;
    Error err = {0};
    char *missing = os_path_join(dir, dir, "no/such/file");
    assert_null(out_open(NULL, missing, &err));
    assert_int_equal(err.status, STATUS_FAILED);
    assert_non_null(strstr(err.text, "no/such/file: expected "));
    assert_null(out_open(NULL, dir, &err));
    assert_non_null(strstr(err.text, "found a folder"));
    // A name that is too long is found when it is opened, not when it is renamed at the end.
    char name[300 + 1] = {0};
    memset(name, 'n', sizeof name - 1);
    for (int length = 255; length <= 300; length += 45) {
        name[length] = 0;
        char *path = os_path_join(dir, dir, name);
        OutFile *out = out_open(NULL, path, &err);
        assert_true((length == 255) == (out != NULL));
        assert_true(!out || out_commit(out, &err));
        char *wanted = mem_printf(dir, "%s: expected a name that its folder can", path);
        assert_true(out || strstr(err.text, wanted));
        name[length] = 'n';
    }
    // Links that go round are refused; a pipe that nobody reads is not waited for, nor opened to look.
    char *ring = os_path_join(dir, dir, "ring"), *pipe = os_path_join(dir, dir, "pipe");
    assert_int_equal(symlink("ring", ring), 0);
    assert_false(out_check(ring, &err));
    assert_non_null(strstr(err.text, "ring: expected a name"));
    assert_int_equal(mkfifo(pipe, 0600), 0);
    assert_false(os_write_file(pipe, "x", 1, &err));
    assert_non_null(strstr(err.text, "pipe: expected a device that can be written"));
    int reader = open(pipe, O_RDONLY | O_NONBLOCK);
    struct pollfd end = {.fd = reader};
    assert_true(out_check(pipe, &err));
    assert_int_equal(poll(&end, 1, 0), 0); // no writer has come and gone
    assert_true(os_write_file(pipe, "xyz", 3, &err));
    char got[4] = {0};
    assert_int_equal(read(reader, got, 3), 3);
    assert_string_equal(got, "xyz");
    close(reader);
    // A full disk: every write fails there.
    if (os_path_kind("/dev/full") == PATH_FILE) {
        assert_false(os_write_file("/dev/full", "x", 1, &err));
        assert_non_null(strstr(err.text, "/dev/full: expected room"));
    }
    assert_true(os_write_file("/dev/null", "x", 1, &err)); // a device is written, not replaced
    struct stat st;
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
}

static void test_links_and_modes(void **state) {
    (void)state;
    char *target = scratch_write(dir, dir, "real", "old", 3),
         *name = os_path_join(dir, dir, "link");
    assert_int_equal(chmod(target, 0640), 0);
    assert_int_equal(symlink("real", name), 0);
    assert_true(os_write_file(name, "new", 3, NULL));
    assert_file(target, "new"); // through the link, which stays
    char *later = os_path_join(dir, dir, "later"), *first = os_path_join(dir, dir, "first");
    assert_int_equal(symlink("later", first), 0); // also where it leads to nothing yet
    assert_true(os_write_file(first, "new", 3, NULL));
    assert_file(later, "new");
    struct stat kept;
    assert_true(lstat(first, &kept) == 0 && S_ISLNK(kept.st_mode));
    struct stat st;
    assert_int_equal(lstat(name, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(stat(target, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
}

static void test_stale(void **state) {
    (void)state;
    Error err = {0};
    char *path = os_path_join(dir, dir, "s.bin");
    scratch_write(dir, dir, "keep.kiln-tmp-00000000", "x", 1);
    pid_t child = fork(); // killed in the middle of writing
    if (!child) {
        OutFile *out = out_open(NULL, path, &err);
        if (out) out_write(out, "half", 4, &err);
        kill(getpid(), SIGKILL);
    }
    waitpid(child, NULL, 0);
    assert_int_equal(scratch_count(dir), 2);
    OutFile *out = out_open(NULL, path, &err); // a living writer's file stays
    assert_int_equal(scratch_count(dir), 3);
    os_remove_stale(dir);
    assert_int_equal(scratch_count(dir), 2);
    assert_true(out_commit(out, &err));
    assert_int_equal(os_path_kind(path), PATH_FILE);
    os_remove_stale("/no/such/folder");
}

static void test_read_limits(void **state) {
    (void)state;
    Error err = {0};
    size_t n;
    char *path = scratch_write(dir, dir, "r", "0123456789", 10);
    assert_null(os_read_file(dir, path, 9, &n, &err));
    assert_non_null(strstr(err.text, "expected at most 9 B"));
    uint8_t *data = os_read_file(dir, path, 10, &n, &err);
    assert_int_equal(n, 10);
    assert_string_equal((char *)data, "0123456789");
    char *empty = scratch_write(dir, dir, "e", "", 0);
    assert_non_null(os_read_file(dir, empty, 10, &n, &err));
    assert_int_equal(n, 0);
    FileMap map = {.data = (const uint8_t *)"x", .size = 1};
    assert_true(os_map(&map, empty, &err));
    assert_int_equal(map.size, 0);
    assert_null(os_read_file(dir, dir, 10, &n, &err));
    assert_false(os_map(&map, dir, &err));
    assert_false(os_map(&map, "/no/such", &err));
    if (os_path_kind("/proc/self/cmdline") == PATH_FILE) { // a file without a size
        assert_non_null(os_read_file(dir, "/proc/self/cmdline", 100000, &n, &err));
        assert_true(n > 0);
        assert_null(os_read_file(dir, "/proc/self/cmdline", n - 1, &n, &err));
        assert_non_null(strstr(err.text, "found more"));
    }
    char *pipe = os_path_join(dir, dir, "pipe"); // which nobody writes
    assert_int_equal(mkfifo(pipe, 0600), 0);
    const char *const devices[] = {"/dev/zero", pipe};
    for (size_t i = 0; i < COUNT_OF(devices); i++) {
        assert_null(os_read_file(dir, devices[i], 100000, &n, &err));
        assert_non_null(strstr(err.text, "a device or pipe"));
        assert_false(os_map(&map, devices[i], &err));
        assert_non_null(strstr(err.text, "a device or pipe"));
    }
}

static void test_folders(void **state) {
    (void)state;
    Error err = {0};
    char *deep = os_path_join(dir, dir, "x//y/z/");
    assert_true(os_make_dirs(deep, &err));
    assert_true(os_make_dirs(deep, &err));
    assert_int_equal(os_path_kind(deep), PATH_DIR);
    char *file = scratch_write(dir, dir, "x/f", "1", 1);
    assert_false(os_make_dirs(file, &err));
    assert_false(os_make_dirs(os_path_join(dir, file, "below"), &err));
    static const char *const order[] = {"B", "a", "b10", "b9", "f", "y", "\xc3\xa4"};
    for (int i = 0; i < 4; i++)
        scratch_write(dir, dir, mem_printf(dir, "x/%s", order[3 - i]), "", 0);
    scratch_write(dir, dir, "x/\xc3\xa4", "", 0);
    char **names;
    int count;
    assert_true(os_list(dir, os_path_join(dir, dir, "x"), &names, &count, &err));
    assert_int_equal(count, 7);
    for (int i = 0; i < 7; i++) assert_string_equal(names[i], order[i]);
    assert_false(os_list(dir, file, &names, &count, &err));
    assert_string_equal(os_base_name("a/b/c.d"), "c.d");
    assert_string_equal(os_base_name("c.d"), "c.d");
    assert_string_equal(os_dir_name(dir, "a/b/c.d"), "a/b");
    assert_string_equal(os_dir_name(dir, "c.d"), ".");
    assert_string_equal(os_dir_name(dir, "/c"), "/");
    assert_string_equal(os_path_join(dir, "a/", "b"), "a/b");
    assert_string_equal(os_path_join(dir, "", "b"), "b");
    assert_int_equal(os_path_kind(os_path_join(dir, os_program_dir(dir), "test_os")), PATH_FILE);
    assert_true(os_remove(file, &err));
    assert_false(os_remove(file, &err));
}

static void test_cache_dir(void **state) {
    (void)state;
    setenv("KILN_CACHE", "/a/b", 1);
    assert_string_equal(os_cache_dir(dir), "/a/b");
    setenv("KILN_CACHE", "", 1);
    setenv("XDG_CACHE_HOME", "/x", 1);
    assert_string_equal(os_cache_dir(dir), "/x/kiln");
    setenv("XDG_CACHE_HOME", "relative", 1);
    setenv("HOME", "/h", 1);
    assert_string_equal(os_cache_dir(dir), "/h/.cache/kiln");
    unsetenv("HOME");
    assert_non_null(os_cache_dir(dir));
}

typedef struct Counter {
    Mutex *mutex;
    Cond *cond;
    int value, turn;
} Counter;

static void count_up(void *arg) {
    Counter *c = arg;
    for (int i = 0; i < 1000; i++) {
        mutex_lock(c->mutex);
        while (c->turn != 1) cond_wait(c->cond, c->mutex);
        c->turn = 0;
        c->value++;
        cond_wake_all(c->cond);
        mutex_unlock(c->mutex);
    }
}

static void test_threads(void **state) {
    (void)state;
    Counter *c = MEM_NEW(dir, Counter);
    c->mutex = mutex_new(c);
    c->cond = cond_new(c);
    Thread *thread = thread_start(NULL, count_up, c);
    assert_non_null(thread);
    for (int i = 0; i < 1000; i++) {
        mutex_lock(c->mutex);
        c->turn = 1;
        cond_wake_all(c->cond);
        while (c->turn != 0) cond_wait(c->cond, c->mutex);
        mutex_unlock(c->mutex);
    }
    thread_join(thread);
    assert_int_equal(c->value, 1000);
}

static void test_machine(void **state) {
    (void)state;
    assert_in_range(os_cpu_count(), 1, 100000);
    assert_true(os_memory_total() > (64u << 20));
    assert_true(os_memory_free() > 0 && os_memory_free() <= os_memory_total());
    double start = os_seconds();
    os_sleep(0.02);
    assert_true(os_seconds() - start >= 0.015);
    assert_true(os_random_seed() != os_random_seed());
    FILE *f = fopen(scratch_write(dir, dir, "t", "", 0), "r");
    assert_false(os_is_terminal(f));
    assert_int_equal(os_terminal_width(f), 80);
    fclose(f);
}

static void test_interrupt(void **state) {
    (void)state;
    pid_t child = fork();
    if (!child) {
        os_catch_interrupt();
        if (os_interrupted()) _exit(1);
        raise(SIGTERM);
        if (!os_interrupted()) _exit(2);
        raise(SIGINT); // the second one ends it
        _exit(3);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), STATUS_CANCELLED);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_write_replaces), TEST(test_write_large_and_seek),
        TEST(test_write_errors),   TEST(test_links_and_modes),
        TEST(test_stale),          TEST(test_read_limits),
        TEST(test_folders),        TEST(test_cache_dir),
        TEST(test_threads),        TEST(test_machine),
        TEST(test_interrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
