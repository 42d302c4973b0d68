// mutate.c: makes the spoiled copies of kernels that tests/mutants/mutants.txt lists.
//   mutate TABLE ROOT OUT SET
// Reads sources below ROOT. Set `ref`: each mutant becomes OUT/NAME.c, its kernel renamed to
// mutant_NAME. Other sets: the changed files below OUT, at the same paths, all mutants in one copy.
// OUT/SET.h gets one line per mutant: MUTANT(name, "op", "case", applied). A line that is not found
// exactly once leaves the source as it is, with applied = 0: the test then fails and says so.
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/os.h"

typedef struct Mutant {
    char name[64], set[16], op[32], where[80], file[128], from[256], to[256];
} Mutant;
enum { MAX_MUTANTS = 128 };

static void take(char *to, size_t size, const char *line, const char *key) {
    size_t n = strlen(key);
    if (strncmp(line, key, n)) return;
    size_t length = MIN(strlen(line + n), size - 1);
    memcpy(to, line + n, length);
    to[length] = 0;
}

static int read_table(const char *path, Mutant *m) {
    FILE *f = fopen(path, "r");
    char line[512];
    int count = 0;
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (line[0] == '[' && count < MAX_MUTANTS) {
            m[count] = (Mutant){0};
            snprintf(m[count].name, sizeof m->name, "%.*s", (int)strcspn(line + 1, "]"), line + 1);
            count++;
        }
        if (!count) continue;
        Mutant *now = &m[count - 1];
        take(now->set, sizeof now->set, line, "set ");
        take(now->op, sizeof now->op, line, "op ");
        take(now->where, sizeof now->where, line, "case ");
        take(now->file, sizeof now->file, line, "file ");
        take(now->from, sizeof now->from, line, "- ");
        take(now->to, sizeof now->to, line, "+ ");
    }
    if (f) fclose(f);
    return count;
}

static bool blank(char c) { return c == ' ' || c == '\t' || c == '\n'; }

// Length of the text at `at` that reads like `pattern`, however it is broken into lines; 0: other.
static size_t match(const char *at, const char *pattern) {
    const char *t = at;
    for (; *pattern; pattern++) {
        const char *gap = t;
        while (blank(*gap)) gap++;
        bool broken = memchr(t, '\n', (size_t)(gap - t)) != NULL;
        if (*pattern == ' ' && gap > t) t = gap;
        else if (*(broken ? t = gap : t) == *pattern && *t) t++;
        else return 0;
    }
    return (size_t)(t - at);
}

// Replaces the only occurrence of m->from; false where there is none, or several.
static bool apply(char **text, const Mutant *m) {
    char *found = NULL;
    for (char *at = *text; *at && m->from[0]; at++) {
        if (*at != m->from[0] || !match(at, m->from)) continue;
        if (found) return false;
        found = at;
    }
    if (!found) return false;
    char *out = mem_printf(NULL, "%.*s%s%s", (int)(found - *text), *text, m->to,
                           found + match(found, m->from));
    mem_free(*text);
    *text = out;
    return true;
}

static char *source(const char *root, const char *out, const char *file) {
    Error err = {0};
    size_t n;
    char *changed = os_path_join(NULL, out, file), *path = os_path_join(changed, root, file);
    // A file that an earlier mutant of the set changed is changed further.
    char *text = (char *)os_read_file(NULL, changed, 1 << 22, &n, NULL);
    if (!text) text = (char *)os_read_file(NULL, path, 1 << 22, &n, &err);
    mem_free(changed);
    if (!text) err_print(&err, stderr);
    return text;
}

static bool put(const char *out, const char *file, const char *text) {
    Error err = {0};
    char *path = os_path_join(NULL, out, file);
    bool ok = os_make_dirs(os_dir_name(path, path), &err) &&
              os_write_file(path, text, strlen(text), &err);
    if (!ok) err_print(&err, stderr);
    mem_free(path);
    return ok;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    const char *root = argv[2], *out = argv[3], *set = argv[4];
    Mutant *m = MEM_ARRAY(NULL, Mutant, MAX_MUTANTS);
    int count = read_table(argv[1], m);
    bool ok = count > 0, single = !strcmp(set, "ref");
    for (int i = 0; i < count; i++) { // from the sources, not from an earlier run
        char *path = os_path_join(NULL, out, m[i].file);
        if (!single && !strcmp(m[i].set, set) && os_path_kind(path) == PATH_FILE)
            ok = ok && os_remove(path, NULL);
        mem_free(path);
    }
    char *header = mem_strdup(NULL, "// Made by mutate from tests/mutants/mutants.txt.\n");
    for (int i = 0; i < count && ok; i++) {
        if (strcmp(m[i].set, set)) continue;
        char *text = source(root, single ? "/nonexistent" : out, m[i].file);
        if (!text) return 1;
        bool applied = apply(&text, &m[i]);
        if (!applied)
            fprintf(stderr, "mutants.txt: %s: expected its line once in %s, found another number; "
                    "write the line as it is now\n", m[i].name, m[i].file);
        if (single) {
            char *renamed = mem_printf(NULL, "#define ref_%s mutant_%s\n#line 1 \"%s\"\n%s",
                                       m[i].op, m[i].name, m[i].file, text);
            char *file = mem_printf(renamed, "%s.c", m[i].name);
            ok = put(out, file, renamed);
            mem_free(renamed);
        } else {
            ok = put(out, m[i].file, text);
        }
        char *more = mem_printf(NULL, "%sMUTANT(%s, \"%s\", \"%s\", %d)\n", header, m[i].name,
                                m[i].op, m[i].where, applied);
        mem_free(header);
        header = more;
        mem_free(text);
    }
    char *name = mem_printf(NULL, "%s.h", set);
    ok = ok && put(out, name, header);
    mem_free(name);
    mem_free(header);
    mem_free(m);
    return ok ? 0 : 1;
}
