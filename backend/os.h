// os.h: everything that differs between operating systems: files, mapping, threads, time,
// terminals. System headers are behind it alone; a port adds a file beside os_posix.c and os_windows.c.
#ifndef KILN_OS_H
#define KILN_OS_H

#include "base.h"

// ---- reading: files only; a folder, device or pipe (which could block) is refused --------------
typedef struct FileMap {
    const uint8_t *data;
    size_t size;
    int file;       // of os_map_read, + 1; 0: none
} FileMap;
bool os_map(FileMap *map, const char *path, Error *err); // read-only; empty files give size 0
void os_unmap(FileMap *map);
// Copies bytes [at, at + n) inside a mapping: read where the system reads files in larger pieces than
// it maps them, so nothing of them stays in this process's memory. Any thread.
bool os_map_read(const FileMap *map, const char *path, uint64_t at, void *out, uint64_t n, Error *err);
// Advice about bytes [at, at + n) inside a mapping, `at` a multiple of MAP_STEP; what they hold never
// changes. MAP_SOON: the system starts to read them from the disk, without waiting. MAP_DONE: their
// pages leave this process's memory (the system keeps them cached; reading brings them back). Any
// thread.
enum { MAP_STEP = 64 << 10 }; // systems map this much around a page that is touched
typedef enum { MAP_SOON, MAP_DONE } MapAdvice;
void os_map_advise(const FileMap *map, uint64_t at, uint64_t n, MapAdvice advice);
// Whole file into memory, refused past `limit` bytes; one more zero byte follows the data.
uint8_t *os_read_file(void *parent, const char *path, size_t limit, size_t *size, Error *err);

typedef enum { PATH_NONE, PATH_FILE, PATH_DIR } PathKind;
PathKind os_path_kind(const char *path);
bool os_same_file(const char *a, const char *b); // both there, and one file under whatever names
// Names in a folder, without "." and "..", sorted by bytes (so every machine sees one order).
bool os_list(void *parent, const char *path, char ***names, int *count, Error *err);
bool os_is_separator(char c); // between the names of a path
char *os_path_join(void *parent, const char *a, const char *b);
const char *os_base_name(const char *path); // points into path
char *os_dir_name(void *parent, const char *path);
char *os_program_dir(void *parent); // folder of the running program, NULL when unknown
char *os_cache_dir(void *parent);   // KILN_CACHE, else the XDG (Windows: local data) cache + "/kiln"

// ---- writing: whole or not at all -------------------------------------------------------------
// Data goes to a temporary file beside the target; `out_commit` flushes it to disk and renames it.
// `out_abort` (or a crash) leaves the old target as it was. Both free `out`.
typedef struct OutFile OutFile;
OutFile *out_open(void *parent, const char *path, Error *err);
bool out_write(OutFile *out, const void *data, size_t n, Error *err);
bool out_seek(OutFile *out, uint64_t offset, Error *err);
bool out_commit(OutFile *out, Error *err);
void out_abort(OutFile *out); // NULL is allowed
bool os_write_file(const char *path, const void *data, size_t n, Error *err); // the three at once
// Could it be opened so? Leaves nothing behind; pipes are not tried, for who reads them would see an end.
bool out_check(const char *path, Error *err);
bool os_make_dir(const char *path, Error *err); // one; true when something of that name is there
bool os_make_dirs(const char *path, Error *err);
bool os_remove(const char *path, Error *err);
bool os_truncate(const char *path, uint64_t size, Error *err);
void os_remove_stale(const char *dir); // removes temporary files that a killed run left behind

// ---- threads ----------------------------------------------------------------------------------
typedef struct Thread Thread;
typedef struct Mutex Mutex;
typedef struct Cond Cond;
Thread *thread_start(void *parent, void (*run)(void *), void *arg); // NULL when none can be made
void thread_join(Thread *thread);                                   // frees it
Mutex *mutex_new(void *parent); // destroyed with the parent
void mutex_lock(Mutex *m);
void mutex_unlock(Mutex *m);
Cond *cond_new(void *parent);
void cond_wait(Cond *c, Mutex *m);
void cond_wake_all(Cond *c);
int os_cpu_count(void); // cores this process may use

// ---- time, memory, terminal, signals ----------------------------------------------------------
double os_seconds(void);                // monotonic
void os_sleep(double seconds);
uint64_t os_memory_total(void);         // bytes of RAM (0: unknown)
uint64_t os_memory_free(void);          // bytes available to new work
// Large data: aligned to 64 bytes at least, in huge pages where the system has them (12 % of a
// training step). NULL when there is none; contents undefined.
void *os_block_new(uint64_t size);
void os_block_free(void *block);        // NULL is allowed
// Asks the system for the AMX tile registers, for this process; false where it has none.
bool os_enable_tiles(void);
uint64_t os_random_seed(void);
bool os_is_terminal(FILE *f);
int os_terminal_width(FILE *f);         // 80 when unknown
const char *os_env(const char *name);
// Ctrl-C and SIGTERM set a flag instead of ending the program (a second one ends it); writes to a
// closed pipe or past a file-size limit fail instead of ending it.
void os_catch_interrupt(void);
bool os_interrupted(void);

#endif
