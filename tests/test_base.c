// test_base.c: errors as values, memory with parents, arrays, checked sizes, log.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/base.h"

// ---- errors -----------------------------------------------------------------------------------

static void errors_hold_status_and_text(void **state) {
    (void)state;
    Error err = {0};
    assert_false(err_set(&err, STATUS_USAGE, "%s: expected %d", "--steps", 3));
    assert_int_equal(err.status, STATUS_USAGE);
    assert_string_equal(err.text, "--steps: expected 3");
    assert_false(err_prefix(&err, "in %s", "here"));
    assert_string_equal(err.text, "in here: --steps: expected 3");
    assert_false(err_prefix(&err, "in %s", "here")); // once is enough
    assert_string_equal(err.text, "in here: --steps: expected 3");
    assert_int_equal(err.status, STATUS_USAGE);
    assert_false(err_failed(&err, "x"));
    assert_int_equal(err.status, STATUS_FAILED);
    // Without an Error all of them are allowed.
    assert_false(err_set(NULL, STATUS_FAILED, "x"));
    assert_false(err_failed(NULL, "x"));
    assert_false(err_prefix(NULL, "x"));
    err_item(NULL, "x");
}

static void errors_are_cut_and_made_printable(void **state) {
    (void)state;
    Error err = {0};
    char long_text[2000];
    memset(long_text, 'a', sizeof long_text);
    long_text[sizeof long_text - 1] = 0;
    err_failed(&err, "%s", long_text);
    assert_int_equal(strlen(err.text), ERROR_TEXT - 1);
    err_prefix(&err, "%s", long_text);
    assert_int_equal(strlen(err.text), ERROR_TEXT - 1);
    err_prefix(&err, "short");
    assert_memory_equal(err.text, "short: a", 8);
    assert_int_equal(strlen(err.text), ERROR_TEXT - 1);
    err_item(&err, "%s", long_text);
    assert_int_equal(strlen(err.item[0]), ERROR_ITEM_TEXT - 1);
    err_failed(&err, "name\n\x1b[31m\x7f");
    assert_string_equal(err.text, "name??[31m?");
    assert_int_equal(err.items, 0); // a new error starts with an empty list
    err_item(&err, "a\rb");
    assert_string_equal(err.item[0], "a?b");
}

static void errors_print_ten_items(void **state) {
    (void)state;
    Error err = {0};
    err_failed(&err, "model: expected 12 tensors, found none");
    for (int i = 0; i < 12; i++) err_item(&err, "t%d", i);
    assert_int_equal(err.items, 12);
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    err_print(&err, f);
    fclose(f);
    assert_string_equal(text, "kiln: model: expected 12 tensors, found none\n"
                              "  t0\n  t1\n  t2\n  t3\n  t4\n  t5\n  t6\n  t7\n  t8\n  t9\n"
                              "  and 2 more\n");
    free(text);
}

// ---- memory -----------------------------------------------------------------------------------

static void memory_is_aligned_and_zero(void **state) {
    (void)state;
    void *parent = mem_new(NULL, 0);
    for (size_t size = 1; size < 5000; size = size * 3 + 1) {
        uint8_t *p = mem_new(parent, size);
        assert_true((uintptr_t)p % 64 == 0);
        for (size_t i = 0; i < size; i++) assert_int_equal(p[i], 0);
        memset(p, 0xff, size); // sanitizers see a block that is too short
    }
    int *v = MEM_ARRAY(parent, int, 10);
    v[9] = 1;
    mem_free(parent);
    mem_free(NULL);
}

// Freed once, in any order; leaks and double frees are the sanitizers' to see.
static void freeing_a_parent_frees_all_below(void **state) {
    (void)state;
    void *root = mem_new(NULL, 1), *other = mem_new(NULL, 1);
    void *child[5];
    for (int i = 0; i < 5; i++) {
        child[i] = mem_new(root, 10);
        for (int k = 0; k < 3; k++) mem_strdup(child[i], "leaf");
    }
    mem_free(child[2]); // middle, last, first of the siblings
    mem_free(child[4]);
    mem_free(child[0]);
    char *kept = mem_strdup(child[1], "kept");
    mem_move(other, kept); // survives its old parent
    mem_free(root);
    assert_string_equal(kept, "kept");
    mem_move(NULL, kept); // now without a parent
    mem_free(other);
    assert_string_equal(kept, "kept");
    mem_free(kept);
    // A long chain does not overflow the stack.
    void *top = mem_new(NULL, 1), *at = top;
    for (int i = 0; i < 200000; i++) at = mem_new(at, 1);
    mem_free(top);
}

static void resizing_keeps_data_parent_and_children(void **state) {
    (void)state;
    void *root = mem_new(NULL, 1);
    uint8_t *p = mem_resize(root, NULL, 4);
    memcpy(p, "abcd", 4);
    char *child = mem_strdup(p, "child");
    p = mem_resize(root, p, 1000);
    assert_memory_equal(p, "abcd\0\0", 6);
    assert_int_equal(p[999], 0);
    p = mem_resize(root, p, 2);
    assert_memory_equal(p, "ab", 2);
    assert_string_equal(child, "child");
    mem_free(child); // still linked to the moved parent
    mem_strdup(p, "another");
    mem_free(root);
}

static void strings(void **state) {
    (void)state;
    void *root = mem_new(NULL, 1);
    assert_string_equal(mem_strdup(root, ""), "");
    assert_string_equal(mem_strndup(root, "hello", 3), "hel");
    assert_string_equal(mem_printf(root, "%s-%05d", "x", 42), "x-00042");
    char *big = mem_printf(root, "%5000d", 1);
    assert_int_equal(strlen(big), 5000);
    mem_free(root);
}

static void expect_death(void (*f)(void), int status) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(99);
        f();
        _exit(98);
    }
    int rc;
    assert_int_equal(waitpid(pid, &rc, 0), pid);
    if (status) assert_true(WIFEXITED(rc) && WEXITSTATUS(rc) == status);
    else assert_true(WIFSIGNALED(rc) || (WIFEXITED(rc) && WEXITSTATUS(rc) < 98 && WEXITSTATUS(rc)));
}

static void ask_overflow(void) { mem_mul(SIZE_MAX / 2, 3); }
static void ask_all(void) { mem_new(NULL, SIZE_MAX); }
static void free_foreign(void) {
    static uint64_t block[64];
    mem_free(block + 32);
}

static void impossible_requests_end_the_program_cleanly(void **state) {
    (void)state;
    assert_int_equal(mem_mul(3, 5), 15);
    expect_death(ask_overflow, STATUS_FAILED);
    expect_death(ask_all, STATUS_FAILED);
    expect_death(free_foreign, 0); // a programming error: aborts
}

// ---- arrays, sizes, helpers -------------------------------------------------------------------

static void arrays_grow(void **state) {
    (void)state;
    void *root = mem_new(NULL, 1);
    ARRAY(int) a = {0};
    for (int i = 0; i < 1000; i++) ARR_PUSH(root, &a, i * 3);
    assert_int_equal(a.n, 1000);
    assert_true(a.cap >= 1000);
    for (int i = 0; i < 1000; i++) assert_int_equal(a.v[i], i * 3);
    mem_free(root);
}

static void sizes_are_checked(void **state) {
    (void)state;
    uint64_t out = 0;
    assert_true(mul_size(1ull << 32, (1ull << 32) - 1, &out) && out == 0xffffffff00000000u);
    assert_false(mul_size(1ull << 32, 1ull << 32, &out));
    assert_true(mul_size(0, UINT64_MAX, &out) && out == 0);
    assert_true(add_size(UINT64_MAX, 0, &out) && out == UINT64_MAX);
    assert_false(add_size(UINT64_MAX, 1, &out));
    assert_true(align_up(0, 64) == 0 && align_up(1, 64) == 64 && align_up(64, 64) == 64);
}

static void helpers(void **state) {
    (void)state;
    // The published values of FNV-1a, 64 bits.
    assert_true(hash_bytes(0, "", 0) == 0xcbf29ce484222325u);
    assert_true(hash_bytes(0, "a", 1) == 0xaf63dc4c8601ec8cu);
    assert_true(hash_bytes(0, "foobar", 6) == 0x85944171f73967e8u);
    assert_true(hash_bytes(1, "a", 1) != hash_bytes(0, "a", 1));
    assert_true(str_ends("Model.SafeTensors", ".safetensors") && str_ends("x", ""));
    assert_false(str_ends("x", "xx") || str_ends("a.png ", ".png"));
    char text[32];
    static const struct {
        uint64_t bytes;
        const char *text;
    } sizes[] = {{0, "0 B"},
                 {1023, "1023 B"},
                 {1536, "1.50 KiB"},
                 {3ull << 30, "3.00 GiB"},
                 {UINT64_MAX, "16777216.00 TiB"}};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        format_bytes(text, sizes[i].bytes);
        assert_string_equal(text, sizes[i].text);
    }
}

typedef struct Caught {
    int n;
    LogLevel level;
    char line[64];
} Caught;

static void catch_line(void *user, LogLevel level, const char *line) {
    Caught *c = user;
    c->n++;
    c->level = level;
    snprintf(c->line, sizeof c->line, "%s", line);
}

static void log_obeys_its_level(void **state) {
    (void)state;
    Caught c = {0};
    Log log = {.level = LOG_INFO, .write = catch_line, .user = &c};
    log_msg(&log, LOG_DEBUG, "no");
    log_msg(NULL, LOG_ERROR, "no");
    assert_int_equal(c.n, 0);
    log_msg(&log, LOG_INFO, "step %d", 3);
    assert_true(c.n == 1 && c.level == LOG_INFO);
    assert_string_equal(c.line, "step 3");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_hold_status_and_text),
        cmocka_unit_test(errors_are_cut_and_made_printable),
        cmocka_unit_test(errors_print_ten_items),
        cmocka_unit_test(memory_is_aligned_and_zero),
        cmocka_unit_test(freeing_a_parent_frees_all_below),
        cmocka_unit_test(resizing_keeps_data_parent_and_children),
        cmocka_unit_test(strings),
        cmocka_unit_test(impossible_requests_end_the_program_cleanly),
        cmocka_unit_test(arrays_grow),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(helpers),
        cmocka_unit_test(log_obeys_its_level),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
