// os_windows.c: os.h on Windows. Compiled by MinGW, never run yet.
//
// Paths are UTF-8 everywhere in Kiln and become UTF-16 here. The only mutable state outside callers'
// memory is the interrupt flag.
#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include "backend/os_impl.h"

#include <windows.h>
#include <io.h>
#include <process.h>
#include <signal.h>
#include <stdlib.h>

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

bool raw_open_read(RawFile *f, const char *path, uint64_t *size, Error *err) {
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

int64_t raw_read(RawFile f, void *data, size_t n, const char *path, Error *err) {
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

bool os_map_read(const FileMap *map, const char *path, uint64_t at, void *out, uint64_t n, Error *err) {
    (void)path, (void)err;
    memcpy(out, map->data + at, (size_t)n);
    return true;
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
    if (list.n) qsort(list.v, (size_t)list.n, sizeof *list.v, os_compare_names);
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
TempResult raw_create(RawFile *f, const char *temp, const char *target, Error *err) {
    *f = open_file(temp, GENERIC_READ | GENERIC_WRITE, 0, CREATE_NEW);
    if (*f != INVALID_HANDLE_VALUE) return TEMP_OPENED;
    if (GetLastError() == ERROR_FILE_EXISTS) return TEMP_TAKEN;
    fail_system(err, target, "a folder that can be written",
                "choose another place or make the folder");
    return TEMP_FAILED;
}

bool raw_open_device(RawFile *f, const char *path, bool *is_device, Error *err) {
    *is_device = !_stricmp(path, "NUL") || !strncmp(path, "\\\\.\\", 4);
    if (!*is_device) return true;
    *f = open_file(path, GENERIC_WRITE, FILE_SHARE_READ | FILE_SHARE_WRITE, OPEN_EXISTING);
    return *f != INVALID_HANDLE_VALUE ||
           fail_system(err, path, "a device that can be written", OTHER_PLACE);
}

bool raw_is_pipe(const char *path) { return !strncmp(path, "\\\\.\\pipe", 8); }

bool raw_write(RawFile f, const void *data, size_t n, const char *path, Error *err) {
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

bool raw_seek(RawFile f, uint64_t offset, const char *path, Error *err) {
    LARGE_INTEGER to = {.QuadPart = (LONGLONG)offset};
    return SetFilePointerEx(f, to, NULL, FILE_BEGIN) ||
           fail_system(err, path, "a file with positions", "write to an ordinary file");
}

bool raw_sync(RawFile f, const char *path, Error *err) {
    return FlushFileBuffers(f) || fail_system(err, path, ROOM, FREE_SPACE);
}

bool raw_close(RawFile f, const char *path, Error *err) {
    return CloseHandle(f) || fail_system(err, path, ROOM, FREE_SPACE);
}

bool raw_rename(const char *from, const char *to, Error *err) {
    wchar_t *a = wide(NULL, from), *b = wide(a, to);
    bool ok = MoveFileExW(a, b, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH);
    if (!ok) fail_system(err, to, "a name that can be replaced", "close programs that use it");
    mem_free(a);
    return ok;
}

void raw_remove(const char *path) {
    wchar_t *name = wide(NULL, path);
    DeleteFileW(name);
    mem_free(name);
}

void raw_remove_if_stale(const char *path) { raw_remove(path); } // fails while it is open

char *raw_resolve(void *parent, const char *path) { return mem_strdup(parent, path); }

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

static volatile sig_atomic_t interrupted;

bool os_interrupted(void) { return interrupted != 0; }

static BOOL WINAPI on_interrupt(DWORD event) {
    (void)event;
    if (interrupted) ExitProcess(STATUS_CANCELLED);
    interrupted = 1;
    return TRUE;
}

void os_catch_interrupt(void) { SetConsoleCtrlHandler(on_interrupt, TRUE); }

#endif
