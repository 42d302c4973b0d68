// test_cli_progress.c: what `kiln generate` shows on a terminal while it works (stage, step, seconds per
// step, time left, memory; nothing in a pipe), and Ctrl-C in every stage that it shows: status 130, soon,
// and no file.
#include "tests/cli.h"

enum { SEEN_MAX = 1 << 20 };

// The command on a terminal of its own, its lines collected until it ends; once `until` is shown it is
// interrupted (NULL: never). *waited: seconds from there to its end.
static int watched(void *scope, const char *line, const char *until, char **seen, double *waited) {
    int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0);
    int end = open(ptsname(terminal), O_RDWR | O_NOCTTY);
    assert_true(end >= 0);
    char *text = mem_new(scope, SEEN_MAX + 1), *out = at("stdout");
    pid_t pid = start(&(Spawn){.stderr_fd = end}, words(scope, line), out, out);
    close(end);
    double asked = 0;
    ssize_t n;
    for (size_t at = 0; at < SEEN_MAX && (n = read(terminal, text + at, SEEN_MAX - at)) > 0;) {
        at += (size_t)n;
        text[at] = 0;
        if (asked > 0 || !until || !strstr(text, until)) continue;
        kill(pid, SIGINT);
        asked = os_seconds();
    }
    int status = finish(pid);
    if (until && !(asked > 0)) fail_msg("%s: never showed \"%s\": %s", line, until, text);
    *seen = text;
    *waited = os_seconds() - asked;
    close(terminal);
    mem_free(out);
    return status;
}

static void test_line(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *seen, *file = at("seen.png");
    double waited;
    char *line = mem_printf(scope, "generate --dummy --dummy-scale 1/16 -p cat -s 1 -W 64 -H 64 --steps 3 "
                            "--t5-tokens 16 -o %s", file);
    setenv("NO_COLOR", "1", 1);
    assert_int_equal(watched(scope, line, NULL, &seen, &waited), 0);
    const char *const stages[] = {"load", "text", "schedule", "denoise", "decode", "writing"};
    const char *from = seen;
    for (size_t i = 0; i < COUNT_OF(stages); i++) {
        char *begins = mem_printf(scope, "\r%s", stages[i]);
        if (!(from = strstr(from, begins))) fail_msg("no stage %s in %s", stages[i], seen);
    }
    const char *last = strstr(seen, "\rdenoise  step 3/3 (100%)  "); // pace, time left and memory follow
    assert_non_null(last);
    char *rest = mem_strndup(scope, last, strcspn(last + 1, "\r") + 1);
    assert_non_null(strstr(rest, "s/step  0s left  "));
    assert_true(strstr(rest, " MiB") || strstr(rest, " GiB"));
    assert_null(strstr(seen, "\033[1m")); // NO_COLOR
    unsetenv("NO_COLOR");
    Result r = run_with(scope, &(Spawn){0}, line);
    assert_int_equal(r.status, 0);
    assert_null(strchr(r.err, '\r'));
    assert_null(strstr(r.err, "step 3/3"));
    mem_free(scope);
}

static void test_interrupts(void **state) {
    (void)state;
    static const struct { const char *until, *options; } cases[] = {
        {"load", "--dummy-scale 1/1 --vram 3G"},
        {"load\033[0m  MiB 1", "--dummy-scale 1/1 --type q4_k"}, // quantised on the way
        {"text\033[0m  block", "--dummy-scale 1/2 --vram 600M"}, // streamed
        {"denoise\033[0m  step 0/", "--dummy-scale 1/2"},
        {"denoise\033[0m  step 1", "--dummy-scale 1/8 --vram 200M --steps 400"}, // 1 or 10 to 19, as shown
        {"decode", "--dummy-scale 1/8 --steps 1"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        void *scope = mem_new(NULL, 1);
        char *seen, *file = at("stopped.png");
        double waited;
        char *line = mem_printf(scope, "generate --dummy -p cat -s 1 -W 256 -H 256 %s -o %s",
                                cases[i].options, file);
        int status = watched(scope, line, cases[i].until, &seen, &waited);
        if (status != 130) fail_msg("%s: status %d: %s", line, status, seen);
        if (waited > 10) fail_msg("%s: %.1f s until it stopped", line, waited);
        assert_int_equal(os_path_kind(file), PATH_NONE);
        char **names;
        int count;
        Error err = {0};
        assert_true(os_list(scope, cli->dir, &names, &count, &err));
        for (int k = 0; k < count; k++) assert_null(strstr(names[k], "stopped"));
        mem_free(scope);
    }
}

static int set_up(void **state) {
    (void)state;
    return cli_open() ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    cli_close();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_line), cmocka_unit_test(test_interrupts)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
