// os_common.c: the part of os.h that is built from its other functions, the same on every system.
#include "backend/os.h"

#include <stdlib.h>

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

bool os_write_file(const char *path, const void *data, size_t n, Error *err) {
    OutFile *out = out_open(NULL, path, err);
    if (!out) return false;
    if (out_write(out, data, n, err)) return out_commit(out, err);
    out_abort(out);
    return false;
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
