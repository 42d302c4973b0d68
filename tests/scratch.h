// scratch.h: a folder of its own for a test, and files in it. For tests alone.
#ifndef KILN_TESTS_SCRATCH_H
#define KILN_TESTS_SCRATCH_H

#include "backend/os.h"

#include <stdlib.h>

// A new empty folder; its path is below `parent`. Ends the program when there is none to be had.
static inline char *scratch_new(void *parent) {
    const char *base = os_env("TMPDIR");
    for (int i = 0; i < 100; i++) {
        char *path = mem_printf(parent, "%s/kiln-test-%08x", base ? base : "/tmp",
                                (unsigned)(os_random_seed() & 0xffffffffu));
        if (os_path_kind(path) == PATH_NONE && os_make_dirs(path, NULL)) return path;
    }
    fprintf(stderr, "no scratch folder\n");
    exit(1);
}

static inline void scratch_remove(const char *path) {
    void *scope = mem_new(NULL, 1);
    char **names;
    int count;
    if (os_path_kind(path) == PATH_DIR && os_list(scope, path, &names, &count, NULL))
        for (int i = 0; i < count; i++) scratch_remove(os_path_join(scope, path, names[i]));
    os_remove(path, NULL);
    mem_free(scope);
}

static inline int scratch_count(const char *path) { // entries in a folder, -1 when there is none
    void *scope = mem_new(NULL, 1);
    char **names;
    int count;
    bool ok = os_list(scope, path, &names, &count, NULL);
    mem_free(scope);
    return ok ? count : -1;
}

static inline char *scratch_write(void *parent, const char *dir, const char *name, const void *data,
                                  size_t n) {
    char *path = os_path_join(parent, dir, name), *folder = os_dir_name(parent, path);
    Error err = {0};
    if (os_make_dirs(folder, &err) && os_write_file(path, data, n, &err)) return path;
    err_print(&err, stderr);
    exit(1);
}

// Fixtures of a test whose state is the path of a folder of its own; the second fails where the test
// left something behind.
static inline int scratch_set_up(void **state) {
    *state = scratch_new(NULL);
    return 0;
}
static inline int scratch_tear_down(void **state) {
    int rc = scratch_count(*state) == 0 ? 0 : -1;
    scratch_remove(*state);
    mem_free(*state);
    return rc;
}

#endif
