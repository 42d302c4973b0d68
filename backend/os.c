// os.c: everything that differs between operating systems. See os.h.
//
// Three parts: what every system shares, then POSIX (Linux is the tested one), then Windows.
// The only mutable state outside callers' memory is the interrupt flag: signals have no owner.
#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "backend/os.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <io.h>
#include <process.h>
typedef HANDLE RawFile;
#else
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <pwd.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif
#include <time.h>
#include <unistd.h>
typedef int RawFile;
#endif

enum { OUT_BUFFER = 1 << 18, TEMP_TRIES = 100 };
static const char TEMP_MARK[] = ".kiln-tmp-"; // part of every temporary name
#define READABLE "a readable file"
#define CHECK_PATH "check the path and its permissions"
#define ROOM "room to write it"
#define FREE_SPACE "free space or choose another disk"
#define OTHER_PLACE "choose another place"

// `raw_*`: files as the system sees them; they set `err` with `path` named.
typedef enum { TEMP_OPENED, TEMP_TAKEN, TEMP_FAILED } TempResult;

static TempResult raw_create(RawFile *f, const char *temp, const char *target, Error *err);
static bool raw_open_device(RawFile *f, const char *path, bool *is_device, Error *err);
static bool raw_write(RawFile f, const void *data, size_t n, const char *path, Error *err);
static bool raw_seek(RawFile f, uint64_t offset, const char *path, Error *err);
static bool raw_sync(RawFile f, const char *path, Error *err);
static bool raw_close(RawFile f, const char *path, Error *err);
static bool raw_rename(const char *from, const char *to, Error *err);
static void raw_remove(const char *path);
static void raw_remove_if_stale(const char *path);
static char *raw_resolve(void *parent, const char *path);

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

// ---- writing: whole or not at all -------------------------------------------------------------

struct OutFile {
    char *path;   // as the caller named it, for messages
    char *target; // links resolved
    char *temp;   // NULL when the target is a device or a pipe, which is written directly
    RawFile file;
    uint8_t *buffer;
    size_t used;
};

OutFile *out_open(void *parent, const char *path, Error *err) {
    if (os_path_kind(path) == PATH_DIR || !*os_base_name(path)) {
        err_failed(err, "%s: expected a file name, found a folder; name a file in it", path);
        return NULL;
    }
    OutFile *out = MEM_NEW(parent, OutFile);
    out->path = mem_strdup(out, path);
    out->target = raw_resolve(out, path);
    out->buffer = mem_new(out, OUT_BUFFER);
    bool is_device = false;
    if (!raw_open_device(&out->file, out->target, &is_device, err)) goto fail;
    if (is_device) return out;
    char *dir = os_dir_name(out, out->target);
    const char *name = os_base_name(out->target);
    TempResult result = TEMP_TAKEN;
    for (int i = 0; i < TEMP_TRIES && result == TEMP_TAKEN; i++) {
        // The name is cut so that it fits where the target's own name just fits.
        char *leaf = mem_printf(out, ".%.200s%s%08x", name, TEMP_MARK,
                                (unsigned)(os_random_seed() & 0xffffffffu));
        out->temp = os_path_join(out, dir, leaf);
        result = raw_create(&out->file, out->temp, out->target, err);
    }
    if (result == TEMP_TAKEN)
        err_failed(err,
                   "%s: expected a free temporary name beside it, found none; clean the folder",
                   path);
    if (result == TEMP_OPENED) return out;
fail:
    mem_free(out);
    return NULL;
}

static bool flush_buffer(OutFile *out, Error *err) {
    size_t n = out->used;
    out->used = 0;
    return !n || raw_write(out->file, out->buffer, n, out->path, err);
}

bool out_write(OutFile *out, const void *data, size_t n, Error *err) {
    if (n > OUT_BUFFER - out->used && !flush_buffer(out, err)) return false;
    if (n >= OUT_BUFFER) return raw_write(out->file, data, n, out->path, err);
    if (n) memcpy(out->buffer + out->used, data, n);
    out->used += n;
    return true;
}

bool out_seek(OutFile *out, uint64_t offset, Error *err) {
    return flush_buffer(out, err) && raw_seek(out->file, offset, out->path, err);
}

bool out_commit(OutFile *out, Error *err) {
    bool ok = flush_buffer(out, err) && (!out->temp || raw_sync(out->file, out->path, err));
    // Closed even after a failure, but the first error is the one to tell.
    ok = raw_close(out->file, out->path, ok ? err : NULL) && ok;
    if (ok && out->temp) ok = raw_rename(out->temp, out->target, err);
    if (!ok && out->temp) raw_remove(out->temp);
    mem_free(out);
    return ok;
}

void out_abort(OutFile *out) {
    if (!out) return;
    raw_close(out->file, out->path, NULL);
    if (out->temp) raw_remove(out->temp);
    mem_free(out);
}

// ".NAME.kiln-tmp-XXXXXXXX", nothing else: other people's files are not ours to remove.
static bool is_temp_name(const char *name) {
    size_t n = strlen(name), tail = strlen(TEMP_MARK) + 8;
    if (name[0] != '.' || n <= tail || strncmp(name + n - tail, TEMP_MARK, strlen(TEMP_MARK)))
        return false;
    return strspn(name + n - 8, "0123456789abcdef") == 8;
}

void os_remove_stale(const char *dir) {
    void *scope = mem_new(NULL, 1);
    char **names;
    int count;
    if (os_list(scope, dir, &names, &count, NULL))
        for (int i = 0; i < count; i++)
            if (is_temp_name(names[i])) raw_remove_if_stale(os_path_join(scope, dir, names[i]));
    mem_free(scope);
}

// ---- reading a whole file: one loop over a system's read ----------------------------------------

// Reads up to n bytes; -1 after an error (err set), 0 at the end.
static int64_t raw_read(RawFile f, void *data, size_t n, const char *path, Error *err);
static bool raw_open_read(RawFile *f, const char *path, uint64_t *size, Error *err);

uint8_t *os_read_file(void *parent, const char *path, size_t limit, size_t *size, Error *err) {
    RawFile f;
    uint64_t expected = 0;
    *size = 0;
    if (!raw_open_read(&f, path, &expected, err)) return NULL;
    uint8_t *data = NULL;
    size_t n = 0, cap = 0;
    bool ok = expected <= limit;
    // Some files of the system tell no size, and one may grow: the limit holds for the bytes read.
    while (ok) {
        if (n == cap) {
            size_t want = n ? n * 2 : (size_t)expected + 1;
            cap = MIN(MAX(want, (size_t)4096), limit < SIZE_MAX - 1 ? limit + 1 : limit);
            if (cap <= n) break;
            data = mem_resize(parent, data, cap + 1);
        }
        int64_t got = raw_read(f, data + n, cap - n, path, err);
        if (got < 0) goto fail;
        if (got == 0) break;
        n += (size_t)got;
        ok = n <= limit;
    }
    if (!ok) {
        char text[32];
        format_bytes(text, limit);
        err_failed(err, "%s: expected at most %s, found more; check that it is the right file",
                   path, text);
        goto fail;
    }
    raw_close(f, path, NULL);
    if (!data) data = mem_new(parent, 1);
    data[n] = 0;
    *size = n;
    return data;
fail:
    raw_close(f, path, NULL);
    mem_free(data);
    return NULL;
}

// ---- interrupt flag ---------------------------------------------------------------------------

static volatile sig_atomic_t interrupted;

bool os_interrupted(void) { return interrupted != 0; }

#ifndef _WIN32
// ==== POSIX ======================================================================================

bool os_is_separator(char c) { return c == '/'; }

static bool fail_errno(Error *err, const char *path, const char *expected, const char *hint) {
    int code = errno;
    return err_failed(err, "%s: expected %s, found \"%s\"; %s", path, expected, strerror(code),
                      hint);
}

// ---- reading ----------------------------------------------------------------------------------

static bool raw_open_read(RawFile *f, const char *path, uint64_t *size, Error *err) {
    // Not blocking: opening a pipe that nobody writes would wait for ever.
    *f = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*f < 0) return fail_errno(err, path, READABLE, CHECK_PATH);
    struct stat st;
    bool ok = fstat(*f, &st) == 0;
    if (!ok)
        fail_errno(err, path, READABLE, "check the disk");
    else if (S_ISDIR(st.st_mode))
        ok = err_failed(err, "%s: expected a file, found a folder; name a file in it", path);
    else if (!S_ISREG(st.st_mode))
        ok = err_failed(err, "%s: expected a file, found a device or pipe; name a file", path);
    if (!ok) close(*f);
    *size = ok ? (uint64_t)st.st_size : 0;
    return ok;
}

static int64_t raw_read(RawFile f, void *data, size_t n, const char *path, Error *err) {
    for (;;) {
        ssize_t got = read(f, data, MIN(n, (size_t)1 << 30));
        if (got >= 0) return got;
        if (errno == EINTR) continue;
        fail_errno(err, path, READABLE, "check the disk");
        return -1;
    }
}

bool os_map(FileMap *map, const char *path, Error *err) {
    *map = (FileMap){0};
    RawFile f;
    uint64_t size;
    if (!raw_open_read(&f, path, &size, err)) return false;
    bool ok = true;
    if (size > 0) {
        void *data = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, f, 0);
        ok = data != MAP_FAILED;
        if (ok) *map = (FileMap){.data = data, .size = (size_t)size};
        else fail_errno(err, path, "address space to map it", "check limits (ulimit -v)");
    }
    close(f);
    return ok;
}

void os_unmap(FileMap *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    *map = (FileMap){0};
}

void os_map_advise(const FileMap *map, uint64_t at, uint64_t n, MapAdvice advice) {
    madvise((void *)(uintptr_t)(map->data + at), n, advice == MAP_SOON ? MADV_WILLNEED : MADV_DONTNEED);
}

PathKind os_path_kind(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) return PATH_NONE;
    return S_ISDIR(st.st_mode) ? PATH_DIR : PATH_FILE;
}

bool os_same_file(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool os_list(void *parent, const char *path, char ***names, int *count, Error *err) {
    *names = NULL;
    *count = 0;
    DIR *dir = opendir(path);
    if (!dir) return fail_errno(err, path, "a readable folder", CHECK_PATH);
    ARRAY(char *) list = {0};
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry) break;
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..")) continue;
        char *copy = mem_strdup(parent, name);
        ARR_PUSH(parent, &list, copy);
    }
    bool ok = errno == 0;
    if (!ok) fail_errno(err, path, "a readable folder", "check the disk");
    closedir(dir);
    if (list.n) qsort(list.v, (size_t)list.n, sizeof *list.v, compare_names);
    *names = list.v;
    *count = list.n;
    return ok;
}

char *os_program_dir(void *parent) {
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0 || n >= (ssize_t)sizeof path - 1) return NULL;
    path[n] = 0;
    return os_dir_name(parent, path);
}

char *os_cache_dir(void *parent) {
    const char *own = os_env("KILN_CACHE"), *xdg = os_env("XDG_CACHE_HOME"), *home = os_env("HOME");
    if (own) return mem_strdup(parent, own);
    if (xdg && xdg[0] == '/') return os_path_join(parent, xdg, "kiln"); // its spec: absolute only
    if (home) return os_path_join(parent, home, ".cache/kiln");
    struct passwd entry, *found = NULL;
    char text[4096];
    if (getpwuid_r(getuid(), &entry, text, sizeof text, &found) == 0 && found && *found->pw_dir)
        return os_path_join(parent, found->pw_dir, ".cache/kiln");
    return mem_printf(parent, "/tmp/kiln-cache-%u", (unsigned)getuid());
}

// ---- writing ----------------------------------------------------------------------------------

// A lock tells a living writer's file from one that a killed run left; it goes with the process.
static TempResult raw_create(RawFile *f, const char *temp, const char *target, Error *err) {
    struct stat st, old;
    bool replaces = stat(target, &old) == 0;
    if (!replaces && errno == ENAMETOOLONG) { // the temporary name alone may fit
        fail_errno(err, target, "a name that its folder can hold", "choose a shorter one");
        return TEMP_FAILED;
    }
    *f = open(temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (*f < 0 && errno == EEXIST) return TEMP_TAKEN;
    if (*f < 0) {
        fail_errno(err, target, "a folder that can be written",
                   "choose another place or make the folder");
        return TEMP_FAILED;
    }
    (void)flock(*f, LOCK_EX | LOCK_NB);
    if (fstat(*f, &st) == 0 && st.st_nlink == 0) { // a cleaner took it between open and lock
        close(*f);
        return TEMP_TAKEN;
    }
    if (replaces) (void)fchmod(*f, old.st_mode & 0777);
    return TEMP_OPENED;
}

// Devices, pipes and sockets cannot be renamed over: they are written as they are.
static bool raw_open_device(RawFile *f, const char *path, bool *is_device, Error *err) {
    struct stat st;
    *is_device = stat(path, &st) == 0 && !S_ISREG(st.st_mode);
    if (!*is_device) return true;
    *f = open(path, O_WRONLY | O_CLOEXEC);
    return *f >= 0 || fail_errno(err, path, "a device that can be written", OTHER_PLACE);
}

static bool raw_write(RawFile f, const void *data, size_t n, const char *path, Error *err) {
    const uint8_t *at = data;
    while (n) {
        ssize_t done = write(f, at, MIN(n, (size_t)1 << 30));
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return fail_errno(err, path, ROOM, FREE_SPACE);
        at += done;
        n -= (size_t)done;
    }
    return true;
}

static bool raw_seek(RawFile f, uint64_t offset, const char *path, Error *err) {
    if (offset > INT64_MAX || lseek(f, (off_t)offset, SEEK_SET) < 0)
        return fail_errno(err, path, "a file with positions", "write to an ordinary file");
    return true;
}

static bool raw_sync(RawFile f, const char *path, Error *err) {
    while (fsync(f) != 0) {
        if (errno == EINTR) continue;
        if (errno == EINVAL || errno == EROFS) return true; // a file system without it
        return fail_errno(err, path, ROOM, FREE_SPACE);
    }
    return true;
}

static bool raw_close(RawFile f, const char *path, Error *err) {
    if (close(f) == 0 || errno == EINTR) return true;
    return fail_errno(err, path, ROOM, FREE_SPACE);
}

static bool raw_rename(const char *from, const char *to, Error *err) {
    if (rename(from, to) != 0)
        return fail_errno(err, to, "a name that can be replaced", OTHER_PLACE);
    // The name itself reaches the disk with its folder. Best effort: not every file system has it.
    char *dir = os_dir_name(NULL, to);
    int f = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f >= 0) {
        (void)fsync(f);
        close(f);
    }
    mem_free(dir);
    return true;
}

static void raw_remove(const char *path) { (void)unlink(path); }

static void raw_remove_if_stale(const char *path) {
    int f = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (f < 0) return;
    if (flock(f, LOCK_EX | LOCK_NB) == 0) (void)unlink(path);
    close(f);
}

static char *raw_resolve(void *parent, const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0 || !S_ISLNK(st.st_mode)) return mem_strdup(parent, path);
    char *real = realpath(path, NULL);
    char *copy = mem_strdup(parent, real ? real : path);
    free(real);
    return copy;
}

bool os_make_dir(const char *path, Error *err) {
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return true; // a file there: told by the caller
    if (os_path_kind(path) == PATH_DIR) return true; // read-only parents give EROFS first
    return fail_errno(err, path, "a folder that can be made", OTHER_PLACE);
}

bool os_remove(const char *path, Error *err) {
    return remove(path) == 0 ||
           fail_errno(err, path, "something that can be removed", "check permissions");
}

bool os_truncate(const char *path, uint64_t size, Error *err) {
    if (size > INT64_MAX) errno = EFBIG;
    else if (truncate(path, (off_t)size) == 0) return true;
    return fail_errno(err, path, "a file that can be cut", "check permissions");
}

// ---- threads ----------------------------------------------------------------------------------

struct Thread {
    pthread_t id;
    void (*run)(void *);
    void *arg;
};
// Neither needs destroying on Linux (no resources behind them), so memory may simply go.
struct Mutex {
    pthread_mutex_t m;
};
struct Cond {
    pthread_cond_t c;
};

static void *thread_main(void *user) {
    Thread *thread = user;
    thread->run(thread->arg);
    return NULL;
}

Thread *thread_start(void *parent, void (*run)(void *), void *arg) {
    Thread *thread = MEM_NEW(parent, Thread);
    thread->run = run;
    thread->arg = arg;
    // Signals belong to the main thread: its waits are the ones to wake.
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(&thread->id, NULL, thread_main, thread);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!failed) return thread;
    mem_free(thread);
    return NULL;
}

void thread_join(Thread *thread) {
    if (!thread) return;
    pthread_join(thread->id, NULL);
    mem_free(thread);
}

Mutex *mutex_new(void *parent) {
    Mutex *m = MEM_NEW(parent, Mutex);
    pthread_mutex_init(&m->m, NULL);
    return m;
}
void mutex_lock(Mutex *m) { pthread_mutex_lock(&m->m); }
void mutex_unlock(Mutex *m) { pthread_mutex_unlock(&m->m); }

Cond *cond_new(void *parent) {
    Cond *c = MEM_NEW(parent, Cond);
    pthread_cond_init(&c->c, NULL);
    return c;
}
void cond_wait(Cond *c, Mutex *m) { pthread_cond_wait(&c->c, &m->m); }
void cond_wake_all(Cond *c) { pthread_cond_broadcast(&c->c); }

// ---- machine ----------------------------------------------------------------------------------

// The first `n` numbers of a small file of the kernel; how many were there ("max" is none).
static int read_numbers(const char *path, uint64_t *out, int n) {
    FILE *f = fopen(path, "re");
    int got = 0;
    if (!f) return 0;
    while (got < n) {
        unsigned long long value;
        if (fscanf(f, "%llu", &value) != 1) break;
        out[got++] = value;
    }
    fclose(f);
    return got;
}

// The number after `key` in a file of lines "key value" (meminfo's values are in KiB).
static uint64_t read_key(const char *path, const char *key) {
    FILE *f = fopen(path, "re");
    char line[256];
    uint64_t value = 0;
    size_t n = strlen(key);
    if (!f) return 0;
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, key, n) && (line[n] == ' ' || line[n] == ':')) {
            value = strtoull(line + n + 1, NULL, 10);
            break;
        }
    fclose(f);
    return value;
}

void *os_block_new(uint64_t size) {
    enum { HUGE_PAGE = 2 << 20 };
    void *block = NULL;
    bool huge = size >= HUGE_PAGE;
    if (size > SIZE_MAX / 2 || posix_memalign(&block, huge ? HUGE_PAGE : 64, size ? size : 1))
        return NULL;
#ifdef MADV_HUGEPAGE
    if (huge) madvise(block, (size_t)size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return block;
}

void os_block_free(void *block) { free(block); }

bool os_enable_tiles(void) {
#if defined(__linux__) && defined(__x86_64__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
#else
    return false;
#endif
}

int os_cpu_count(void) {
    cpu_set_t set;
    int cores = 0;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    if (cores < 1) cores = (int)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1);
    uint64_t quota[2]; // containers: microseconds of CPU time per period
    if (read_numbers("/sys/fs/cgroup/cpu.max", quota, 2) == 2 && quota[1]) {
        uint64_t allowed = MAX((quota[0] + quota[1] - 1) / quota[1], 1u);
        if (allowed < (uint64_t)cores) cores = (int)allowed;
    }
    return cores;
}

uint64_t os_memory_total(void) {
    uint64_t total = read_key("/proc/meminfo", "MemTotal") * 1024, limit;
    if (read_numbers("/sys/fs/cgroup/memory.max", &limit, 1) == 1 && limit < total) total = limit;
    return total;
}

uint64_t os_memory_free(void) {
    uint64_t avail = read_key("/proc/meminfo", "MemAvailable") * 1024, limit, used;
    if (read_numbers("/sys/fs/cgroup/memory.max", &limit, 1) != 1 ||
        read_numbers("/sys/fs/cgroup/memory.current", &used, 1) != 1)
        return avail;
    used -= MIN(used, read_key("/sys/fs/cgroup/memory.stat", "inactive_file")); // cache, given back
    return MIN(avail, limit - MIN(limit, used));
}

double os_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void os_sleep(double seconds) {
    if (!(seconds > 0)) return;
    struct timespec t = {.tv_sec = (time_t)seconds};
    t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
    nanosleep(&t, NULL); // an interrupt may cut it short
}

uint64_t os_random_seed(void) {
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) == (ssize_t)sizeof seed) return seed;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t mix[3] = {(uint64_t)t.tv_sec, (uint64_t)t.tv_nsec, (uint64_t)getpid()};
    return hash_bytes((uintptr_t)&seed, mix, sizeof mix);
}

bool os_is_terminal(FILE *f) { return isatty(fileno(f)) == 1; }

int os_terminal_width(FILE *f) {
    struct winsize size;
    if (ioctl(fileno(f), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return 80;
}

static void on_interrupt(int number) {
    (void)number;
    if (interrupted) _exit(STATUS_CANCELLED);
    interrupted = 1;
}

void os_catch_interrupt(void) {
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    // A closed pipe or a file-size limit then fails a write, which is told as any failure is.
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGXFSZ, &action, NULL);
}

#else
// ==== Windows ====================================================================================
// Paths are UTF-8 everywhere in Kiln and become UTF-16 here.

bool os_is_separator(char c) { return c == '/' || c == '\\' || c == ':'; }

static wchar_t *wide(void *parent, const char *text) {
    int n = MultiByteToWideChar(CP_UTF8, 0, text, -1, NULL, 0);
    wchar_t *out = mem_new(parent, mem_mul(sizeof *out, (size_t)MAX(n, 1)));
    if (n > 0) MultiByteToWideChar(CP_UTF8, 0, text, -1, out, n);
    return out;
}

static char *narrow(void *parent, const wchar_t *text) {
    int n = WideCharToMultiByte(CP_UTF8, 0, text, -1, NULL, 0, NULL, NULL);
    char *out = mem_new(parent, (size_t)MAX(n, 1));
    if (n > 0) WideCharToMultiByte(CP_UTF8, 0, text, -1, out, n, NULL, NULL);
    return out;
}

// CreateFileW with a UTF-8 path.
static HANDLE open_file(const char *path, DWORD access, DWORD share, DWORD how) {
    wchar_t *name = wide(NULL, path);
    HANDLE f = CreateFileW(name, access, share, NULL, how, FILE_ATTRIBUTE_NORMAL, NULL);
    mem_free(name);
    return f;
}

static bool fail_system(Error *err, const char *path, const char *expected, const char *hint) {
    DWORD code = GetLastError();
    wchar_t text[256] = {0};
    FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, NULL, code, 0, text,
                   255, NULL);
    for (wchar_t *c = text; *c; c++)
        if (*c == L'\r' || *c == L'\n') *c = 0;
    char *message = narrow(NULL, text);
    err_failed(err, "%s: expected %s, found \"%s\"; %s", path, expected, message, hint);
    mem_free(message);
    return false;
}

static bool raw_open_read(RawFile *f, const char *path, uint64_t *size, Error *err) {
    if (os_path_kind(path) == PATH_DIR)
        return err_failed(err, "%s: expected a file, found a folder; name a file in it", path);
    *f = open_file(path, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                   OPEN_EXISTING);
    if (*f == INVALID_HANDLE_VALUE) return fail_system(err, path, READABLE, CHECK_PATH);
    LARGE_INTEGER bytes = {0};
    bool ok = GetFileType(*f) == FILE_TYPE_DISK;
    if (!ok)
        err_failed(err, "%s: expected a file, found a device or pipe; name a file", path);
    else if (!GetFileSizeEx(*f, &bytes))
        ok = fail_system(err, path, READABLE, "check the disk");
    if (!ok) CloseHandle(*f);
    *size = (uint64_t)bytes.QuadPart;
    return ok;
}

static int64_t raw_read(RawFile f, void *data, size_t n, const char *path, Error *err) {
    DWORD got = 0;
    if (ReadFile(f, data, (DWORD)MIN(n, (size_t)1 << 30), &got, NULL)) return got;
    fail_system(err, path, READABLE, "check the disk");
    return -1;
}

bool os_map(FileMap *map, const char *path, Error *err) {
    *map = (FileMap){0};
    RawFile f;
    uint64_t size;
    if (!raw_open_read(&f, path, &size, err)) return false;
    bool ok = true;
    if (size > 0) {
        HANDLE mapping = CreateFileMappingW(f, NULL, PAGE_READONLY, 0, 0, NULL);
        void *data = mapping ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0) : NULL;
        ok = data != NULL;
        if (ok) *map = (FileMap){.data = data, .size = (size_t)size};
        else fail_system(err, path, "address space to map it", "close other programs");
        if (mapping) CloseHandle(mapping); // the view keeps it alive
    }
    CloseHandle(f);
    return ok;
}

void os_unmap(FileMap *map) {
    if (map->data) UnmapViewOfFile(map->data);
    *map = (FileMap){0};
}

void os_map_advise(const FileMap *map, uint64_t at, uint64_t n, MapAdvice advice) {
    WIN32_MEMORY_RANGE_ENTRY range = {(void *)(uintptr_t)(map->data + at), n};
    if (advice == MAP_SOON) PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
    else VirtualUnlock(range.VirtualAddress, n); // of pages never locked: takes them out
}

PathKind os_path_kind(const char *path) {
    wchar_t *name = wide(NULL, path);
    DWORD kind = GetFileAttributesW(name);
    mem_free(name);
    if (kind == INVALID_FILE_ATTRIBUTES) return PATH_NONE;
    return kind & FILE_ATTRIBUTE_DIRECTORY ? PATH_DIR : PATH_FILE;
}

bool os_same_file(const char *a, const char *b) {
    const char *path[2] = {a, b};
    BY_HANDLE_FILE_INFORMATION x[2] = {{0}};
    bool ok = true;
    for (int i = 0; i < 2; i++) {
        HANDLE f = open_file(path[i], 0, FILE_SHARE_READ | FILE_SHARE_WRITE, OPEN_EXISTING);
        ok = f != INVALID_HANDLE_VALUE && GetFileInformationByHandle(f, &x[i]) && ok;
        if (f != INVALID_HANDLE_VALUE) CloseHandle(f);
    }
    return ok && x[0].dwVolumeSerialNumber == x[1].dwVolumeSerialNumber &&
           x[0].nFileIndexHigh == x[1].nFileIndexHigh && x[0].nFileIndexLow == x[1].nFileIndexLow;
}

bool os_list(void *parent, const char *path, char ***names, int *count, Error *err) {
    *names = NULL;
    *count = 0;
    char *pattern = os_path_join(NULL, path, "*");
    wchar_t *name = wide(pattern, pattern);
    WIN32_FIND_DATAW entry;
    HANDLE find = FindFirstFileW(name, &entry);
    mem_free(pattern);
    if (find == INVALID_HANDLE_VALUE)
        return fail_system(err, path, "a readable folder", CHECK_PATH);
    ARRAY(char *) list = {0};
    do {
        if (!wcscmp(entry.cFileName, L".") || !wcscmp(entry.cFileName, L"..")) continue;
        char *copy = narrow(parent, entry.cFileName);
        ARR_PUSH(parent, &list, copy);
    } while (FindNextFileW(find, &entry));
    bool ok = GetLastError() == ERROR_NO_MORE_FILES;
    if (!ok) fail_system(err, path, "a readable folder", "check the disk");
    FindClose(find);
    if (list.n) qsort(list.v, (size_t)list.n, sizeof *list.v, compare_names);
    *names = list.v;
    *count = list.n;
    return ok;
}

char *os_program_dir(void *parent) {
    wchar_t path[4096];
    DWORD n = GetModuleFileNameW(NULL, path, COUNT_OF(path));
    if (n == 0 || n >= COUNT_OF(path)) return NULL;
    char *text = narrow(NULL, path), *dir = os_dir_name(parent, text);
    mem_free(text);
    return dir;
}

char *os_cache_dir(void *parent) {
    const wchar_t *own = _wgetenv(L"KILN_CACHE"), *local = _wgetenv(L"LOCALAPPDATA");
    if (own && *own) return narrow(parent, own);
    char *base = narrow(parent, local && *local ? local : L".");
    return os_path_join(parent, base, "kiln");
}

// Opened without sharing: while its writer lives nobody else can open or remove it.
static TempResult raw_create(RawFile *f, const char *temp, const char *target, Error *err) {
    *f = open_file(temp, GENERIC_READ | GENERIC_WRITE, 0, CREATE_NEW);
    if (*f != INVALID_HANDLE_VALUE) return TEMP_OPENED;
    if (GetLastError() == ERROR_FILE_EXISTS) return TEMP_TAKEN;
    fail_system(err, target, "a folder that can be written",
                "choose another place or make the folder");
    return TEMP_FAILED;
}

static bool raw_open_device(RawFile *f, const char *path, bool *is_device, Error *err) {
    *is_device = !_stricmp(path, "NUL") || !strncmp(path, "\\\\.\\", 4);
    if (!*is_device) return true;
    *f = open_file(path, GENERIC_WRITE, FILE_SHARE_READ | FILE_SHARE_WRITE, OPEN_EXISTING);
    return *f != INVALID_HANDLE_VALUE ||
           fail_system(err, path, "a device that can be written", OTHER_PLACE);
}

static bool raw_write(RawFile f, const void *data, size_t n, const char *path, Error *err) {
    const uint8_t *at = data;
    while (n) {
        DWORD done = 0;
        if (!WriteFile(f, at, (DWORD)MIN(n, (size_t)1 << 30), &done, NULL))
            return fail_system(err, path, ROOM, FREE_SPACE);
        at += done;
        n -= done;
    }
    return true;
}

static bool raw_seek(RawFile f, uint64_t offset, const char *path, Error *err) {
    LARGE_INTEGER to = {.QuadPart = (LONGLONG)offset};
    return SetFilePointerEx(f, to, NULL, FILE_BEGIN) ||
           fail_system(err, path, "a file with positions", "write to an ordinary file");
}

static bool raw_sync(RawFile f, const char *path, Error *err) {
    return FlushFileBuffers(f) || fail_system(err, path, ROOM, FREE_SPACE);
}

static bool raw_close(RawFile f, const char *path, Error *err) {
    return CloseHandle(f) || fail_system(err, path, ROOM, FREE_SPACE);
}

static bool raw_rename(const char *from, const char *to, Error *err) {
    wchar_t *a = wide(NULL, from), *b = wide(a, to);
    bool ok = MoveFileExW(a, b, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH);
    if (!ok) fail_system(err, to, "a name that can be replaced", "close programs that use it");
    mem_free(a);
    return ok;
}

static void raw_remove(const char *path) {
    wchar_t *name = wide(NULL, path);
    DeleteFileW(name);
    mem_free(name);
}

static void raw_remove_if_stale(const char *path) { raw_remove(path); } // fails while it is open

static char *raw_resolve(void *parent, const char *path) { return mem_strdup(parent, path); }

bool os_make_dir(const char *path, Error *err) {
    wchar_t *name = wide(NULL, path);
    bool ok = CreateDirectoryW(name, NULL) || GetLastError() == ERROR_ALREADY_EXISTS;
    if (!ok && os_path_kind(path) == PATH_DIR) ok = true;
    if (!ok) fail_system(err, path, "a folder that can be made", OTHER_PLACE);
    mem_free(name);
    return ok;
}

bool os_remove(const char *path, Error *err) {
    wchar_t *name = wide(NULL, path);
    bool ok = os_path_kind(path) == PATH_DIR ? RemoveDirectoryW(name) : DeleteFileW(name);
    if (!ok) fail_system(err, path, "something that can be removed", "check permissions");
    mem_free(name);
    return ok;
}

bool os_truncate(const char *path, uint64_t size, Error *err) {
    HANDLE f = open_file(path, GENERIC_WRITE, FILE_SHARE_READ, OPEN_EXISTING);
    LARGE_INTEGER to = {.QuadPart = (LONGLONG)size};
    bool ok =
        f != INVALID_HANDLE_VALUE && SetFilePointerEx(f, to, NULL, FILE_BEGIN) && SetEndOfFile(f);
    if (!ok) fail_system(err, path, "a file that can be cut", "check permissions");
    if (f != INVALID_HANDLE_VALUE) CloseHandle(f);
    return ok;
}

struct Thread {
    HANDLE handle;
    void (*run)(void *);
    void *arg;
};
struct Mutex {
    SRWLOCK lock;
};
struct Cond {
    CONDITION_VARIABLE variable;
};

static unsigned __stdcall thread_main(void *user) {
    Thread *thread = user;
    thread->run(thread->arg);
    return 0;
}

Thread *thread_start(void *parent, void (*run)(void *), void *arg) {
    Thread *thread = MEM_NEW(parent, Thread);
    thread->run = run;
    thread->arg = arg;
    thread->handle = (HANDLE)_beginthreadex(NULL, 0, thread_main, thread, 0, NULL);
    if (thread->handle) return thread;
    mem_free(thread);
    return NULL;
}

void thread_join(Thread *thread) {
    if (!thread) return;
    WaitForSingleObject(thread->handle, INFINITE);
    CloseHandle(thread->handle);
    mem_free(thread);
}

Mutex *mutex_new(void *parent) {
    Mutex *m = MEM_NEW(parent, Mutex);
    InitializeSRWLock(&m->lock);
    return m;
}
void mutex_lock(Mutex *m) { AcquireSRWLockExclusive(&m->lock); }
void mutex_unlock(Mutex *m) { ReleaseSRWLockExclusive(&m->lock); }

Cond *cond_new(void *parent) {
    Cond *c = MEM_NEW(parent, Cond);
    InitializeConditionVariable(&c->variable);
    return c;
}
void cond_wait(Cond *c, Mutex *m) {
    SleepConditionVariableSRW(&c->variable, &m->lock, INFINITE, 0);
}
void cond_wake_all(Cond *c) { WakeAllConditionVariable(&c->variable); }

void *os_block_new(uint64_t size) {
    return size > SIZE_MAX / 2 ? NULL : _aligned_malloc(size ? (size_t)size : 1, 64);
}

void os_block_free(void *block) { _aligned_free(block); }

bool os_enable_tiles(void) { return false; }

int os_cpu_count(void) {
    DWORD_PTR mine = 0, all = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &mine, &all) && mine)
        return __builtin_popcountll((unsigned long long)mine);
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return (int)MAX(info.dwNumberOfProcessors, 1u);
}

uint64_t os_memory_total(void) {
    MEMORYSTATUSEX status = {.dwLength = sizeof status};
    return GlobalMemoryStatusEx(&status) ? status.ullTotalPhys : 0;
}

uint64_t os_memory_free(void) {
    MEMORYSTATUSEX status = {.dwLength = sizeof status};
    return GlobalMemoryStatusEx(&status) ? status.ullAvailPhys : 0;
}

double os_seconds(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart / (double)per_second.QuadPart;
}

void os_sleep(double seconds) {
    if (seconds > 0) Sleep((DWORD)(seconds * 1000 + 0.5));
}

uint64_t os_random_seed(void) {
    // No dependency on a cryptography library: seeds only need to differ between runs.
    LARGE_INTEGER ticks;
    FILETIME now;
    QueryPerformanceCounter(&ticks);
    GetSystemTimeAsFileTime(&now);
    uint64_t mix[4] = {(uint64_t)ticks.QuadPart,
                       ((uint64_t)now.dwHighDateTime << 32) | now.dwLowDateTime,
                       GetCurrentProcessId(), GetCurrentThreadId()};
    return hash_bytes((uintptr_t)&ticks, mix, sizeof mix);
}

bool os_is_terminal(FILE *f) { return _isatty(_fileno(f)) != 0; }

int os_terminal_width(FILE *f) {
    CONSOLE_SCREEN_BUFFER_INFO info;
    HANDLE console = (HANDLE)_get_osfhandle(_fileno(f));
    if (GetConsoleScreenBufferInfo(console, &info))
        return info.srWindow.Right - info.srWindow.Left + 1;
    return 80;
}

static BOOL WINAPI on_interrupt(DWORD event) {
    (void)event;
    if (interrupted) ExitProcess(STATUS_CANCELLED);
    interrupted = 1;
    return TRUE;
}

void os_catch_interrupt(void) { SetConsoleCtrlHandler(on_interrupt, TRUE); }

#endif
