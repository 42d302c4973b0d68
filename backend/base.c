// base.c: errors, memory with parents, arrays, log. See base.h.
#include "backend/base.h"

#include <ctype.h>
#include <stdlib.h>

// ---- errors -----------------------------------------------------------------------------------

// A file name or a string from a file may hold anything: keep terminals safe.
static void make_printable(char *text) {
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
}

bool err_set(Error *err, Status status, const char *format, ...) {
    if (!err) return false;
    err->status = status;
    err->items = 0;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    make_printable(err->text);
    return false;
}

bool err_failed(Error *err, const char *format, ...) {
    char text[ERROR_TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return err_set(err, STATUS_FAILED, "%s", text);
}

void err_item(Error *err, const char *format, ...) {
    if (!err) return;
    if (err->items < ERROR_ITEMS) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->item[err->items], ERROR_ITEM_TEXT, format, args);
        va_end(args);
        make_printable(err->item[err->items]);
    }
    err->items++;
}

bool err_prefix(Error *err, const char *format, ...) {
    if (!err) return false;
    char prefix[ERROR_TEXT], all[2 * ERROR_TEXT + 2];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    make_printable(prefix);
    size_t n = strlen(prefix);
    bool said = !strncmp(err->text, prefix, n) && (err->text[n] == ':' || err->text[n] == '/');
    if (said) return false; // of it, or of a file in it
    snprintf(all, sizeof all, "%s: %s", prefix, err->text);
    memcpy(err->text, all, sizeof err->text - 1); // a longer text loses its end
    err->text[sizeof err->text - 1] = 0;
    make_printable(err->text);
    return false;
}

void err_print(const Error *err, FILE *out) {
    fprintf(out, "kiln: %s\n", err->text);
    for (int i = 0; i < MIN(err->items, (int)ERROR_ITEMS); i++) fprintf(out, "  %s\n", err->item[i]);
    if (err->items > ERROR_ITEMS) fprintf(out, "  and %d more\n", err->items - ERROR_ITEMS);
}

// ---- memory with parents ----------------------------------------------------------------------
// Each block carries a header: a doubly linked list of siblings below its parent.

typedef struct MemHeader MemHeader;
struct MemHeader {
    MemHeader *parent, *child, *prev, *next;
    void *raw; // what malloc gave
    size_t size;
    uint64_t magic;
    uint64_t pad; // keeps the header at 64 bytes, so that blocks are aligned to 64
};

static const uint64_t MEM_MAGIC = 0x6b696c6e6d656d21u;

static MemHeader *header_of(void *block) {
    MemHeader *h = (MemHeader *)block - 1;
    if (h->magic != MEM_MAGIC) {
        fprintf(stderr, "kiln: memory block %p is not (or no longer) one of ours\n", block);
        abort();
    }
    return h;
}

static void link_child(MemHeader *parent, MemHeader *h) {
    h->parent = parent;
    h->prev = NULL;
    h->next = parent ? parent->child : NULL;
    if (h->next) h->next->prev = h;
    if (parent) parent->child = h;
}

static void unlink_child(MemHeader *h) {
    if (h->prev) h->prev->next = h->next;
    else if (h->parent) h->parent->child = h->next;
    if (h->next) h->next->prev = h->prev;
    h->parent = h->prev = h->next = NULL;
}

static _Noreturn void out_of_memory(size_t size) {
    fprintf(stderr, "kiln: host memory: expected %zu more bytes, found none; close other programs\n",
            size);
    exit(STATUS_FAILED);
}

void *mem_new(void *parent, size_t size) {
    if (size > SIZE_MAX - 2 * sizeof(MemHeader)) out_of_memory(size);
    char *raw = calloc(1, size + sizeof(MemHeader) + 64);
    if (!raw) out_of_memory(size);
    MemHeader *h = (MemHeader *)(((uintptr_t)raw + 63) & ~(uintptr_t)63);
    h->raw = raw;
    h->size = size;
    h->magic = MEM_MAGIC;
    link_child(parent ? header_of(parent) : NULL, h);
    return h + 1;
}

void *mem_resize(void *parent, void *block, size_t size) {
    if (!block) return mem_new(parent, size);
    MemHeader *old = header_of(block);
    void *fresh = mem_new(old->parent ? old->parent + 1 : NULL, size);
    memcpy(fresh, block, MIN(size, old->size));
    MemHeader *h = header_of(fresh);
    h->child = old->child; // children follow the block
    for (MemHeader *c = h->child; c; c = c->next) c->parent = h;
    old->child = NULL;
    mem_free(block);
    return fresh;
}

void mem_free(void *block) {
    if (!block) return;
    MemHeader *h = header_of(block);
    unlink_child(h);
    // Depth first without recursion: a chain of parents may be long.
    while (h) {
        if (h->child) {
            MemHeader *c = h->child;
            h->child = c->next;
            if (c->next) c->next->prev = NULL;
            c->next = c->prev = NULL;
            c->parent = h;
            h = c;
            continue;
        }
        MemHeader *up = h->parent;
        h->magic = 0;
        free(h->raw);
        h = up;
    }
}

void mem_move(void *new_parent, void *block) {
    MemHeader *h = header_of(block);
    unlink_child(h);
    link_child(new_parent ? header_of(new_parent) : NULL, h);
}

char *mem_strndup(void *parent, const char *text, size_t n) {
    char *copy = mem_new(parent, n + 1);
    memcpy(copy, text, n);
    return copy;
}

char *mem_strdup(void *parent, const char *text) { return mem_strndup(parent, text, strlen(text)); }

char *mem_printf(void *parent, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    char *text = mem_new(parent, (size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    va_end(args);
    return text;
}

size_t mem_mul(size_t a, size_t b) {
    size_t out;
    if (__builtin_mul_overflow(a, b, &out)) out_of_memory(SIZE_MAX);
    return out;
}

void arr_grow(void *parent, void **v, int n, int *cap, size_t item) {
    if (n < *cap) return;
    int bigger = *cap ? *cap * 2 : 8;
    *v = mem_resize(parent, *v, mem_mul(item, (size_t)bigger));
    *cap = bigger;
}

// ---- checked arithmetic -----------------------------------------------------------------------

bool mul_size(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_mul_overflow(a, b, out); }
bool add_size(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_add_overflow(a, b, out); }

// ---- log --------------------------------------------------------------------------------------

void log_msg(const Log *log, LogLevel level, const char *format, ...) {
    if (!log || level > log->level) return;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (log->write) log->write(log->user, level, line);
    else fprintf(stderr, "kiln: %s\n", line);
}

// ---- small helpers ----------------------------------------------------------------------------

uint64_t hash_bytes(uint64_t seed, const void *data, size_t n) {
    uint64_t h = seed ^ 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
    return h;
}

bool str_ends(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    if (m > n) return false;
    for (size_t i = 0; i < m; i++)
        if (tolower((unsigned char)text[n - m + i]) != tolower((unsigned char)end[i])) return false;
    return true;
}

void format_bytes(char out[32], uint64_t bytes) {
    static const char *unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t u = 0;
    while (value >= 1024 && u + 1 < COUNT_OF(unit)) value /= 1024, u++;
    snprintf(out, 32, u ? "%.2f %s" : "%.0f %s", value, unit[u]);
}
