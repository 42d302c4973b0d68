// os_common.c: the part of os.h that is the same on every system.
#include "backend/os_impl.h"

#include <stdlib.h>

enum { OUT_BUFFER = 1 << 18, TEMP_TRIES = 100 };
static const char TEMP_MARK[] = ".kiln-tmp-"; // part of every temporary name

// ---- names --------------------------------------------------------------------------------------

int os_compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

const char *os_env(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

char *os_path_join(void *parent, const char *a, const char *b) {
    size_t n = strlen(a);
    if (!n) return mem_strdup(parent, b);
    return mem_printf(parent, os_is_separator(a[n - 1]) ? "%s%s" : "%s/%s", a, b);
}

const char *os_base_name(const char *path) {
    const char *base = path;
    for (const char *c = path; *c; c++)
        if (os_is_separator(*c)) base = c + 1;
    return base;
}

char *os_dir_name(void *parent, const char *path) {
    size_t n = (size_t)(os_base_name(path) - path);
    if (!n) return mem_strdup(parent, ".");
    while (n > 1 && os_is_separator(path[n - 1])) n--;
    return mem_strndup(parent, path, n);
}

bool os_make_dirs(const char *path, Error *err) {
    char *part = mem_strdup(NULL, path);
    bool ok = true;
    size_t n = strlen(part);
    while (n > 1 && os_is_separator(part[n - 1])) part[--n] = 0;
    for (size_t i = 1; ok && i <= n; i++) {
        if (i < n && !os_is_separator(part[i])) continue;
        if (os_is_separator(part[i - 1]) || part[i - 1] == ':') continue; // "a//b", "C:\"
        char kept = part[i];
        part[i] = 0;
        ok = os_make_dir(part, err);
        part[i] = kept;
    }
    if (ok && os_path_kind(path) != PATH_DIR)
        ok = err_failed(err, "%s: expected a folder, found something else; choose another name",
                        path);
    mem_free(part);
    return ok;
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

bool out_check(const char *path, Error *err) {
    // Only a file beside the target shows whether it can be written (permissions, read-only disks).
    if (raw_is_pipe(path)) return true;
    OutFile *probe = out_open(NULL, path, err);
    out_abort(probe);
    return probe != NULL;
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

bool os_write_file(const char *path, const void *data, size_t n, Error *err) {
    OutFile *out = out_open(NULL, path, err);
    if (!out) return false;
    if (out_write(out, data, n, err)) return out_commit(out, err);
    out_abort(out);
    return false;
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

// ---- reading a whole file ----------------------------------------------------------------------

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
