// base.h: what every layer of Kiln stands on: errors as values, allocation parents, arrays, log.
//
// Nothing here is global: errors live with the caller, memory hangs on a parent.
#ifndef KILN_BASE_H
#define KILN_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#if defined(__GNUC__)
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define PRINTF_LIKE(fmt, args)
#endif

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

// ---- errors ---------------------------------------------------------------------------------
// A function that can fail takes `Error *err` as its last parameter and returns false or NULL
// after filling it. The values are the program's exit statuses.
typedef enum {
    STATUS_OK = 0,
    STATUS_FAILED = 1,      // the work failed: files, memory, devices
    STATUS_USAGE = 2,       // the command line is wrong, knowable from it alone
    STATUS_CANCELLED = 130, // interrupted by the user
} Status;

enum { ERROR_TEXT = 1024, ERROR_ITEMS = 10, ERROR_ITEM_TEXT = 200 };

typedef struct Error {
    Status status;
    char text[ERROR_TEXT];                      // "WHAT: expected ..., found ...; TRY"
    char item[ERROR_ITEMS][ERROR_ITEM_TEXT];    // a list under it, where several things are wrong
    int items;                                  // how many there were (only the first 10 are kept)
} Error;

// Sets the error, replacing what stood there (list included). Returns false, so that
// `return err_set(...)` works; control characters in the text become '?', so that a hostile file
// name cannot write to a terminal. A NULL `err` is allowed everywhere.
bool err_set(Error *err, Status status, const char *format, ...) PRINTF_LIKE(3, 4);
bool err_failed(Error *err, const char *format, ...) PRINTF_LIKE(2, 3); // STATUS_FAILED
void err_item(Error *err, const char *format, ...) PRINTF_LIKE(2, 3);   // adds a line to the list
// Puts "prefix: " in front of the text: callers add the file or stage they know.
bool err_prefix(Error *err, const char *format, ...) PRINTF_LIKE(2, 3);
// Writes "kiln: TEXT" and the indented list ("  and N more") to `out`.
void err_print(const Error *err, FILE *out);

// ---- memory with parents --------------------------------------------------------------------
// Each block may have a parent block; freeing a block frees all below it. Zero-filled, aligned to
// 64 bytes. Running out of (host) memory for such small bookkeeping ends the program with one
// line; large data goes through device buffers or os_* and reports errors.
void *mem_new(void *parent, size_t size);
void *mem_resize(void *parent, void *block, size_t size); // block may be NULL; new bytes are zero
void mem_free(void *block);                               // NULL is allowed
void mem_move(void *new_parent, void *block);
char *mem_strdup(void *parent, const char *text);
char *mem_strndup(void *parent, const char *text, size_t n);
char *mem_printf(void *parent, const char *format, ...) PRINTF_LIKE(2, 3);
#define MEM_NEW(parent, type) ((type *)mem_new(parent, sizeof(type)))
#define MEM_ARRAY(parent, type, n) ((type *)mem_new(parent, mem_mul(sizeof(type), (size_t)(n))))
size_t mem_mul(size_t a, size_t b); // ends the program on overflow: sizes are checked before

// ---- growing arrays: struct { T *v; int n, cap; } -------------------------------------------
#define ARRAY(T) struct { T *v; int n, cap; }
#define ARR_PUSH(parent, arr, value) \
    (arr_grow((parent), (void **)&(arr)->v, (arr)->n, &(arr)->cap, sizeof *(arr)->v), \
     (arr)->v[(arr)->n++] = (value))
void arr_grow(void *parent, void **v, int n, int *cap, size_t item);

// ---- checked arithmetic on sizes taken from files ---------------------------------------------
bool mul_size(uint64_t a, uint64_t b, uint64_t *out); // false on overflow
bool add_size(uint64_t a, uint64_t b, uint64_t *out);

// ---- log --------------------------------------------------------------------------------------
typedef enum { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG } LogLevel;
typedef struct Log {
    LogLevel level; // messages above it are dropped
    void (*write)(void *user, LogLevel level, const char *line); // NULL: standard error
    void *user;
} Log;
void log_msg(const Log *log, LogLevel level, const char *format, ...) PRINTF_LIKE(3, 4);

// ---- small helpers ----------------------------------------------------------------------------
uint64_t hash_bytes(uint64_t seed, const void *data, size_t n); // FNV-1a, 64 bits
static inline uint64_t align_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }
bool str_ends(const char *text, const char *end); // ignores ASCII case
void format_bytes(char out[32], uint64_t bytes);  // "1.50 GiB"

#endif
