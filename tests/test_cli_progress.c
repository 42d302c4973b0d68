// test_cli_progress.c: what `kiln generate` shows on a terminal while it works (stage, step, seconds per
// step, time left, memory; nothing in a pipe), and Ctrl-C in every stage that it shows: status 130, soon,
// and no file.
#include "tests/cli.h"

#define SMALL "generate --dummy --dummy-scale 1/16 -p cat -s 1 -W 64 -H 64 --steps 3 --t5-tokens 16"
enum { SEEN_MAX = 1 << 20, SIDE_MAX = 2048 };

// Is `wanted` in `text`? In it "#" stands for a digit from 1 to 9: the line is drawn ten times a second
// at most, so that nobody knows which steps it shows.
static bool shows(const char *text, const char *wanted) {
    for (; *text; text++) {
        size_t i = 0;
        while (wanted[i] && (wanted[i] == '#' ? text[i] >= '1' && text[i] <= '9' : text[i] == wanted[i])) i++;
        if (!wanted[i]) return true;
    }
    return false;
}

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
        if (asked > 0 || !until || !shows(text, until)) continue;
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
    char *line = mem_printf(scope, SMALL " -o %s", file);
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
    // Of several pictures: which one, throughout.
    assert_int_equal(watched(scope, mem_printf(scope, "%s -b 2", line), NULL, &seen, &waited), 0);
    for (const char *at = seen; (at = strstr(at, "\rdenoise  step ")); at++) {
        char *shown = mem_strndup(scope, at, strcspn(at + 1, "\r") + 1);
        int step = atoi(shown + strlen("\rdenoise  step "));
        if (!strstr(shown, step < 3 ? "picture 1 of 2" : step > 3 ? "picture 2 of 2" : " of 2"))
            fail_msg("no picture in %s", shown);
    }
    assert_non_null(strstr(seen, "\rdenoise  step 6/6 (100%)  "));
    unsetenv("NO_COLOR");
    Result r = run_with(scope, &(Spawn){0}, line);
    assert_int_equal(r.status, 0);
    assert_null(strchr(r.err, '\r'));
    assert_null(strstr(r.err, "step 3/3"));
    mem_free(scope);
}

// Interrupted once `until` is shown. *waited: seconds from there. False: it was quicker than the signal.
static bool interrupts(const char *until, const char *options, int side, double *waited) {
    void *scope = mem_new(NULL, 1);
    char *seen, *file = at("stopped.png");
    char *line = mem_printf(scope, "generate --dummy -p cat -s 1 -W %d -H %d %s -o %s", side, side, options,
                            file);
    int status = watched(scope, line, until, &seen, waited);
    if (status != 130 && status != 0) fail_msg("%s: status %d: %s", line, status, seen);
    assert_int_equal(os_path_kind(file), status == 0 ? PATH_FILE : PATH_NONE);
    if (status == 0) unlink(file);
    char **names;
    int count;
    Error err = {0};
    assert_true(os_list(scope, cli->dir, &names, &count, &err));
    for (int k = 0; k < count; k++) assert_null(strstr(names[k], "stopped"));
    mem_free(scope);
    return status == 130;
}

static void test_interrupts(void **state) {
    (void)state;
    static const struct { const char *until, *options; } cases[] = {
        {"load", "--dummy-scale 1/1 --vram 3G"},
        {"load\033[0m  MiB #", "--dummy-scale 1/1 --type q4_k"}, // quantised on the way
        {"text\033[0m  block", "--dummy-scale 1/2 --vram 600M"}, // streamed
        {"denoise\033[0m  step", "--dummy-scale 1/2 --steps 100"}, // the first, unless it takes no time
        {"denoise\033[0m  step #", "--dummy-scale 1/8 --vram 200M --steps 400"},
        {"decode", "--dummy-scale 1/8 --steps 1"},
    };
    // "Soon" is some times what a small run takes, on this machine, busy as it is.
    double start = os_seconds();
    WANT_STATUS(run_with(cli, &(Spawn){0}, mem_printf(cli, SMALL " -o %s", at("small.png"))), 0);
    double soon = MAX(10, 20 * (os_seconds() - start));
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        double waited;
        int side = 256; // larger pictures take longer, and the signal is in time
        while (!interrupts(cases[i].until, cases[i].options, side, &waited))
            if ((side *= 2) > SIDE_MAX) fail_msg("never stopped at \"%s\"", cases[i].until);
        print_message("  %s: %d x %d, %.2f s\n", cases[i].options, side, side, waited);
        if (waited > soon) fail_msg("%.1f s until it stopped, %.1f s at most", waited, soon);
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
