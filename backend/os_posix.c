// os_posix.c: os.h on POSIX (Linux is the tested one).
//
// The only mutable state outside callers' memory is the interrupt flag: signals have no owner.
#ifndef _WIN32
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "backend/os_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
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

enum { MAX_LINKS = 40 }; // as Linux follows

bool os_is_separator(char c) { return c == '/'; }

static bool fail_errno(Error *err, const char *path, const char *expected, const char *hint) {
    int code = errno;
    return err_failed(err, "%s: expected %s, found \"%s\"; %s", path, expected, strerror(code),
                      hint);
}

// ---- reading ----------------------------------------------------------------------------------

bool raw_open_read(RawFile *f, const char *path, uint64_t *size, Error *err) {
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

int64_t raw_read(RawFile f, void *data, size_t n, const char *path, Error *err) {
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
        if (ok) *map = (FileMap){data, (size_t)size, f + 1};
        else fail_errno(err, path, "address space to map it", "check limits (ulimit -v)");
    }
    if (!map->data) close(f);
    return ok;
}

bool os_map_read(const FileMap *map, const char *path, uint64_t at, void *out, uint64_t n, Error *err) {
    if (!map->file) memcpy(out, map->data + at, (size_t)n);
    for (uint64_t done = 0; map->file && done < n;) {
        size_t part = (size_t)MIN(n - done, UINT64_C(1) << 30);
        ssize_t got = pread(map->file - 1, (uint8_t *)out + done, part, (off_t)(at + done));
        if (got == 0)
            return err_failed(err, "%s: expected %llu more bytes, found the end of the file; let nothing "
                              "change it while it is in use", path, (unsigned long long)(n - done));
        if (got < 0 && errno != EINTR) return fail_errno(err, path, READABLE, "check the disk");
        done += got > 0 ? (uint64_t)got : 0;
    }
    return true;
}

void os_unmap(FileMap *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    if (map->file) close(map->file - 1);
    *map = (FileMap){0};
}

void os_map_advise(const FileMap *map, uint64_t at, uint64_t n, MapAdvice advice) {
    madvise((void *)(uintptr_t)(map->data + at), n, advice == MAP_DONE ? MADV_DONTNEED : MADV_WILLNEED);
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
    if (list.n) qsort(list.v, (size_t)list.n, sizeof *list.v, os_compare_names);
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
TempResult raw_create(RawFile *f, const char *temp, const char *target, Error *err) {
    struct stat st, old;
    bool replaces = stat(target, &old) == 0;
    if (!replaces && (errno == ENAMETOOLONG || errno == ELOOP)) { // the temporary name alone may do
        fail_errno(err, target, "a name that its folder can hold", "choose another");
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
bool raw_open_device(RawFile *f, const char *path, bool *is_device, Error *err) {
    struct stat st;
    *is_device = stat(path, &st) == 0 && !S_ISREG(st.st_mode);
    if (!*is_device) return true;
    // A pipe that nobody reads is refused, not waited for.
    *f = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    if (*f < 0) return fail_errno(err, path, "a device that can be written", OTHER_PLACE);
    (void)fcntl(*f, F_SETFL, fcntl(*f, F_GETFL) & ~O_NONBLOCK);
    return true;
}

bool raw_is_pipe(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISFIFO(st.st_mode);
}

bool raw_write(RawFile f, const void *data, size_t n, const char *path, Error *err) {
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

bool raw_seek(RawFile f, uint64_t offset, const char *path, Error *err) {
    if (offset > INT64_MAX || lseek(f, (off_t)offset, SEEK_SET) < 0)
        return fail_errno(err, path, "a file with positions", "write to an ordinary file");
    return true;
}

bool raw_sync(RawFile f, const char *path, Error *err) {
    while (fsync(f) != 0) {
        if (errno == EINTR) continue;
        if (errno == EINVAL || errno == EROFS) return true; // a file system without it
        return fail_errno(err, path, ROOM, FREE_SPACE);
    }
    return true;
}

bool raw_close(RawFile f, const char *path, Error *err) {
    if (close(f) == 0 || errno == EINTR) return true;
    return fail_errno(err, path, ROOM, FREE_SPACE);
}

bool raw_rename(const char *from, const char *to, Error *err) {
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

void raw_remove(const char *path) { (void)unlink(path); }

void raw_remove_if_stale(const char *path) {
    int f = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (f < 0) return;
    if (flock(f, LOCK_EX | LOCK_NB) == 0) (void)unlink(path);
    close(f);
}

char *raw_resolve(void *parent, const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0 || !S_ISLNK(st.st_mode)) return mem_strdup(parent, path);
    char *real = realpath(path, NULL), text[4096];
    char *at = mem_strdup(parent, real ? real : path);
    free(real);
    for (int i = 0; i < MAX_LINKS && stat(at, &st) != 0; i++) { // what it leads to is not there yet
        ssize_t n = readlink(at, text, sizeof text - 1);
        if (n < 0) break;
        text[n] = 0;
        at = text[0] == '/' ? mem_strdup(parent, text) : os_path_join(parent, os_dir_name(parent, at), text);
    }
    return at;
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

static volatile sig_atomic_t interrupted;

bool os_interrupted(void) { return interrupted != 0; }

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

#endif
