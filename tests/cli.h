// cli.h: running the `kiln` command in tests as scripts run it: status, output, files, signals. The
// program is the one named by KILN (build/kiln by default). For tests alone; included once.
#ifndef KILN_TESTS_CLI_H
#define KILN_TESTS_CLI_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "backend/os.h"
#include "engine/image.h"
#include "engine/json.h"
#include "tests/scratch.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_ARGS = 60 };

typedef struct Cli { char *program, *dir; } Cli; // dir: a folder of the test's own
static Cli *cli;

// Set-up and tear-down of a test program. False: there is no program.
static inline bool cli_open(void) {
    cli = MEM_NEW(NULL, Cli);
    const char *program = os_env("KILN");
    cli->program = mem_strdup(cli, program ? program : "build/kiln");
    if (os_path_kind(cli->program) != PATH_FILE) {
        print_message("%s: expected the program there\n", cli->program);
        return false;
    }
    cli->dir = scratch_new(cli);
    unsetenv("KILN_MODELS");
    setenv("KILN_DEVICE", "cpu", 1);
    char *cache = os_path_join(cli, cli->dir, "cache");
    setenv("KILN_CACHE", cache, 1);
    unsetenv("NO_COLOR");
    setenv("OMP_WAIT_POLICY", "passive", 1); // tests share their cores
    return true;
}

static inline void cli_close(void) {
    scratch_remove(cli->dir);
    mem_free(cli);
}

// ---- running the program ----------------------------------------------------------------------

typedef struct Result {
    int status;       // exit status; -1: ended by a signal
    char *out, *err;  // below the scope given
} Result;

typedef struct Spawn {
    const char *stdout_to;   // NULL: a file that is read back
    const char *env[4];      // "NAME=value" set for the child
    long file_limit;         // bytes per file; 0: none
    int stderr_fd;           // 0: a file that is read back
    bool close_stdout;       // standard output is a pipe that nobody reads
} Spawn;

static inline char *at(const char *name) { return os_path_join(cli, cli->dir, name); }

static inline char *slurp(void *scope, const char *path) {
    size_t n;
    uint8_t *bytes = os_read_file(scope, path, (size_t)1 << 26, &n, NULL);
    return bytes ? (char *)bytes : mem_strdup(scope, "");
}

static inline void child(const Spawn *s, char **argv, const char *out, const char *err) {
    int pipe_ends[2], o = open(s->stdout_to ? s->stdout_to : out, O_WRONLY | O_CREAT | O_TRUNC,
                               0600);
    int e = s->stderr_fd ? s->stderr_fd : open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (s->close_stdout && pipe(pipe_ends) == 0) {
        close(pipe_ends[0]);
        o = pipe_ends[1];
    }
    int nothing = open("/dev/null", O_RDONLY);
    if (o < 0 || e < 0 || dup2(nothing, 0) < 0 || dup2(o, 1) < 0 || dup2(e, 2) < 0) _exit(99);
    for (int i = 0; i < 4 && s->env[i]; i++) putenv((char *)(uintptr_t)s->env[i]);
    if (s->file_limit)
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){(rlim_t)s->file_limit, (rlim_t)s->file_limit});
    execv(argv[0], argv);
    _exit(98);
}

static inline pid_t start(const Spawn *s, char **argv, const char *out, const char *err) {
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) child(s, argv, out, err);
    return pid;
}

static inline int finish(pid_t pid) {
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Words of `line` are separated by blanks; '' is an empty word.
static inline char **words(void *scope, const char *line) {
    char **argv = MEM_ARRAY(scope, char *, MAX_ARGS + 1);
    int n = 0;
    argv[n++] = cli->program;
    char *copy = mem_strdup(scope, line), *save = NULL;
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        assert_true(n < MAX_ARGS);
        argv[n++] = strcmp(w, "''") == 0 ? mem_strdup(scope, "") : w;
    }
    return argv;
}

static inline Result run_with(void *scope, const Spawn *s, const char *line) {
    char *out = at("stdout"), *err = at("stderr");
    unlink(out), unlink(err);
    Result r = {.status = finish(start(s, words(scope, line), out, err))};
    r.out = slurp(scope, out);
    r.err = slurp(scope, err);
    mem_free(out), mem_free(err);
    return r;
}

static inline Result kiln(void *scope, const char *format, ...) {
    char line[8000];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return run_with(scope, &(Spawn){0}, line);
}

#define WANT_STATUS(r, wanted)                                                               \
    do {                                                                                     \
        Result result_ = (r);                                                                \
        if (result_.status != (wanted)) print_message("stderr: %s\n", result_.err);         \
        assert_int_equal(result_.status, wanted);                                            \
    } while (0)

// How often a successful run puts a file `name` into folder `dir`: creating each under another name
// first, without which the kernel would join the events.
static inline int times_written(const char *dir, const char *name, const char *line) {
    void *scope = mem_new(NULL, 1);
    int watch = inotify_init1(IN_NONBLOCK), count = 0;
    assert_true(watch >= 0 && inotify_add_watch(watch, dir, IN_CREATE | IN_MOVED_TO) >= 0);
    WANT_STATUS(kiln(scope, "%s", line), 0);
    char events[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
    for (ssize_t n; (n = read(watch, events, sizeof events)) > 0;)
        for (char *e = events; e < events + n;
             e += sizeof(struct inotify_event) + ((struct inotify_event *)e)->len)
            count += strcmp(((struct inotify_event *)e)->name, name) == 0;
    close(watch);
    mem_free(scope);
    return count;
}

#define WANT_TEXT(text, part)                                                                \
    do {                                                                                     \
        if (!strstr(text, part)) print_message("expected \"%s\" in: %s\n", part, text);     \
        assert_non_null(strstr(text, part));                                                 \
    } while (0)

// One line that begins with "kiln: "; indented lines may follow.
static inline void want_one_line(const Result *r) {
    assert_memory_equal(r->err, "kiln: ", 6);
    const char *next = strchr(r->err, '\n');
    assert_non_null(next);
    for (; next[1]; next = strchr(next + 1, '\n')) {
        if (next[1] != ' ') print_message("expected one line: %s\n", r->err);
        assert_int_equal(next[1], ' ');
    }
}

static inline Json *json_of(const char *text) {
    Error err = {0};
    Json *json = json_parse(text, strlen(text), "stdout", &err);
    if (!json) print_message("%s\nin: %s\n", err.text, text);
    assert_non_null(json);
    assert_true(json_is_object(json));
    return json;
}

static inline double number(const Json *v, const char *outer, const char *name) {
    const Json *found = json_get(outer ? json_get(v, outer) : v, name);
    if (!json_is_number(found)) print_message("no number %s\n", name);
    assert_true(json_is_number(found));
    return json_number(found, -1);
}

static inline bool exists(const char *path) { return os_path_kind(path) != PATH_NONE; }

// A fresh folder; a later count of its entries shows whether anything was left behind.
static inline char *fresh(const char *name) {
    char *path = at(name);
    assert_true(os_make_dirs(path, NULL));
    return path;
}

static inline int entries(const char *dir) {
    char **names;
    int n = -1;
    void *scope = mem_new(NULL, 1);
    assert_true(os_list(scope, dir, &names, &n, NULL));
    mem_free(scope);
    return n;
}

static inline uint64_t pixels(const char *path) {
    Error err = {0};
    Image *image = image_load(NULL, path, &err);
    if (!image) print_message("%s\n", err.text);
    assert_non_null(image);
    uint64_t hash = hash_bytes((uint64_t)image->width, image->rgb,
                               (size_t)image->width * (size_t)image->height * 3);
    mem_free(image);
    return hash;
}

// ---- signals and terminals ---------------------------------------------------------------------

static inline size_t file_size(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 ? (size_t)info.st_size : 0;
}

// Starts the line, waits until the file `ready` is larger than `size` bytes, so that the work is
// under way, sends the signal, returns the status. However slow the machine: ctest's limit ends it.
static inline int interrupted(void *scope, const char *line, const char *ready, size_t size,
                              int number) {
    char *out = at("stdout"), *err = at("stderr");
    unlink(out), unlink(err);
    pid_t pid = start(&(Spawn){0}, words(scope, line), out, err);
    siginfo_t ended = {0};
    while (file_size(ready) <= size && !ended.si_pid) {
        os_sleep(0.01);
        waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT);
    }
    if (ended.si_pid) print_message("%s: ended before %s was there\n", line, ready);
    kill(pid, number);
    int status = finish(pid);
    if (status != 130) print_message("stderr: %s\n", slurp(scope, err));
    return status;
}

// Runs with standard error on a terminal, and gives what it received.
static inline char *on_terminal(void *scope, const char *env, const char *line) {
    int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0);
    int inner = open(ptsname(terminal), O_RDWR | O_NOCTTY);
    assert_true(inner >= 0);
    Spawn s = {.env = {env}, .stderr_fd = inner};
    char *out = at("stdout");
    pid_t pid = start(&s, words(scope, line), out, out);
    close(inner);
    char *text = mem_new(scope, 1 << 20);
    size_t n = 0;
    for (ssize_t got; n + 1 < 1 << 20 && (got = read(terminal, text + n, (1 << 20) - 1 - n)) > 0;)
        n += (size_t)got;
    assert_int_equal(finish(pid), 0);
    close(terminal);
    return text;
}

#endif
