// model_path.c: see model_path.h.
#include "engine/model_path.h"

#include "backend/os.h"

#define MODEL_FILE "model.safetensors"

// Short names of the models that Kiln ships.
static const struct { const char *name, *file; } shipped[] = {{"nano", "nano-cifar10"}};

// `path` itself, or MODEL_FILE in it where it is a folder; NULL where there is none.
static char *file_at(void *parent, const char *path) {
    PathKind kind = os_path_kind(path);
    if (kind == PATH_FILE) return mem_strdup(parent, path);
    if (kind == PATH_NONE) return NULL;
    char *inside = os_path_join(parent, path, MODEL_FILE);
    return os_path_kind(inside) == PATH_FILE ? inside : NULL;
}

static char *file_in(void *parent, const char *folder, const char *name, Error *looked) {
    char *base = os_path_join(parent, folder, name);
    char *found = file_at(parent, mem_printf(parent, "%s.safetensors", base));
    if (!found) found = file_at(parent, base);
    if (!found) err_item(looked, "not there: %s.safetensors", base);
    return found;
}

enum { MAX_FOLDERS = 5 };

static int model_folders(void *parent, const char *folders[MAX_FOLDERS]) {
    int n = 0;
    const char *env = os_env("KILN_MODELS");
    if (env && *env) folders[n++] = env;
    const char *program = os_program_dir(parent);
    if (program) {
        folders[n++] = os_path_join(parent, program, "../models/weights"); // in a build folder
        folders[n++] = os_path_join(parent, program, "../share/kiln/models");
    }
#ifdef KILN_DATA_DIR
    folders[n++] = KILN_DATA_DIR "/models"; // a program elsewhere that uses the installed library
#endif
    char *source = os_dir_name(parent, __FILE__); // a build folder anywhere
    folders[n++] = os_path_join(parent, source, "../models/weights");
    return n;
}

static char *find(void *scratch, const char *model, Error *err) {
    const char *file = NULL; // a shipped name is never a folder that happens to be called so
    for (size_t i = 0; i < COUNT_OF(shipped); i++)
        if (!strcmp(shipped[i].name, model)) file = shipped[i].file;
    char *found = file ? NULL : file_at(scratch, model);
    if (found) return found;
    PathKind kind = os_path_kind(model);
    if (!file && (!*model || strpbrk(model, "/\\") || kind == PATH_DIR)) {
        err_failed(err, "%s: expected a model file or a folder with " MODEL_FILE ", found %s",
                   model, kind == PATH_DIR ? "a folder without one" : "nothing there");
        return NULL;
    }
    const char *folders[MAX_FOLDERS];
    Error looked = {0};
    int n = model_folders(scratch, folders);
    for (int i = 0; i < n && !found; i++) {
        found = file_in(scratch, folders[i], model, &looked);
        if (!found && file) found = file_in(scratch, folders[i], file, &looked);
    }
    if (found) return found;
    err_failed(err, "model %s: expected a file, a folder or a known name, found none of them; set "
               "KILN_MODELS to the folder that holds it", model);
    for (int i = 0; i < MIN(looked.items, (int)ERROR_ITEMS); i++)
        err_item(err, "%s", looked.item[i]);
    return NULL;
}

char *model_path(void *parent, const char *model, Error *err) {
    void *scratch = mem_new(NULL, 1);
    char *found = find(scratch, model, err);
    found = found ? mem_strdup(parent, found) : NULL;
    mem_free(scratch);
    return found;
}
