// test_architecture.c: reads the sources and prints what breaks the rules of the design: who may
// include whom, which library stays in which folder, lengths of files and functions, no branch on
// the backend above it, no global mutable state. Each rule is first shown a small offender, so that
// none can pass by being blind.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ctype.h>
#include <stdlib.h>

#include "backend/os.h"

enum { MAX_FILE_LINES = 1000, MAX_FUNCTION_LINES = 80, MAX_COLUMNS = 110 };

static const char *const FOLDERS[] = {"backend", "engine", "models", "shaders",
                                      "tools",   "tests",  "cmake",  "third_party"};

// ---- the rules, as tables ---------------------------------------------------------------------

// The first row whose folder begins the file's path holds: its quoted includes must begin with one
// of `may` and with none of `never`.
static const struct {
    const char *folder;
    const char *may[6], *never[5];
} LAYERS[] = {
    {"backend/cpu/", {"backend/"}, {"backend/vulkan/", "backend/cuda/"}},
    {"backend/vulkan/", {"backend/"}, {"backend/cpu/", "backend/cuda/"}},
    {"backend/cuda/", {"backend/"}, {"backend/cpu/", "backend/vulkan/"}},
    {"backend/ops/", {"backend/"}, {"backend/cpu/", "backend/vulkan/", "backend/cuda/"}},
    {"backend/", {"backend/"}, {NULL}},
    // Pipelines join a model to a sampler, so they alone in engine/ see models/.
    {"engine/pipeline",
     {"models/", "engine/", "backend/"},
     {"backend/impl.h", "backend/cpu/", "backend/vulkan/", "backend/cuda/"}},
    // The stage in front of the autoencoders: which of them a file holds, and its plan.
    {"engine/vae",
     {"models/", "engine/", "backend/"},
     {"backend/impl.h", "backend/cpu/", "backend/vulkan/", "backend/cuda/"}},
    {"engine/",
     {"engine/", "backend/"},
     {"backend/impl.h", "backend/cpu/", "backend/vulkan/", "backend/cuda/"}},
    {"models/", {"models/", "engine/"}, {NULL}},
    {"tools/",
     {"tools/", "models/", "engine/", "backend/", "tests/conform"},
     {"backend/impl.h", "backend/cpu/", "backend/vulkan/", "backend/cuda/"}},
    {"shaders/", {"shaders/", "common/", "backend/ops/"}, {NULL}},
    {"tests/", {"tests/", "tools/", "models/", "engine/", "backend/"}, {"backend/impl.h"}},
};

// Headers of others, by how their name begins, and the only places that may include them.
static const struct {
    const char *header;
    const char *where[3];
} FOREIGN[] = {
    {"vulkan/", {"backend/vulkan/"}},
    {"vulkan.h", {"backend/vulkan/"}},
    {"volk", {"backend/vulkan/"}},
    {"cuda", {"backend/cuda/"}},
    {"cblas", {"backend/cpu/fast/"}},
    {"openblas", {"backend/cpu/fast/"}},
    {"dnnl", {"backend/cpu/fast/"}},
    {"immintrin.h", {"backend/cpu/", "backend/lanes"}},
    {"arm_neon.h", {"backend/cpu/"}},
    {"cjson/", {"engine/json.c"}},
    {"windows.h", {"backend/os_windows.c"}},
    {"pthread.h", {"backend/os_", "tests/"}},
    {"unistd.h", {"backend/os_", "tests/"}},
    {"dirent.h", {"backend/os_", "tests/"}},
    {"fcntl.h", {"backend/os_", "tests/"}},
    {"signal.h", {"backend/os_", "tests/"}},
    {"sys/", {"backend/os_", "tests/"}},
};

// Mutable state outside callers' memory: signals have no owner, and the process has one Vulkan
// loader.
static const char *const STATE_EXCEPTIONS[] = {"backend/os_", "backend/vulkan/instance.c",
                                               "tests/"};

// ---- report -----------------------------------------------------------------------------------

typedef struct Report {
    int n;
    bool quiet;
    char last[512];
} Report;

static void offend(Report *r, const char *format, ...) PRINTF_LIKE(2, 3);
static void offend(Report *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(r->last, sizeof r->last, format, args);
    va_end(args);
    r->n++;
    if (!r->quiet) printf("  %s\n", r->last);
}

static bool begins(const char *text, const char *with) {
    return !strncmp(text, with, strlen(with));
}

static bool begins_any(const char *text, const char *const *list, size_t n) {
    for (size_t i = 0; i < n && list[i]; i++)
        if (begins(text, list[i])) return true;
    return false;
}

// ---- reading code -----------------------------------------------------------------------------

// Comments become spaces, and so does the inside of strings when `strings` is set. Lines stay.
static char *strip(void *parent, const char *text, bool strings) {
    char *out = mem_strdup(parent, text);
    for (char *c = out; *c;) {
        if (c[0] == '/' && c[1] == '/') {
            while (*c && *c != '\n') *c++ = ' ';
        } else if (c[0] == '/' && c[1] == '*') {
            for (; *c && !(c[0] == '*' && c[1] == '/'); c++)
                if (*c != '\n') *c = ' ';
            if (*c) c[0] = c[1] = ' ';
        } else if (*c == '"' || *c == '\'') {
            char quote = *c++;
            for (; *c && *c != quote && *c != '\n'; c++) {
                bool escaped = *c == '\\' && c[1] && c[1] != '\n';
                if (strings) *c = ' ';
                if (escaped && strings) c[1] = ' ';
                if (escaped) c++;
            }
            if (*c) c++;
        } else c++;
    }
    return out;
}

// Preprocessor lines, with their continuations, become spaces too.
static void strip_directives(char *text) {
    bool directive = false;
    for (char *line = text; *line;) {
        char *end = line + strcspn(line, "\n");
        if (line[strspn(line, " \t")] == '#') directive = true;
        bool goes_on = end > line && end[-1] == '\\';
        if (directive) memset(line, ' ', (size_t)(end - line));
        if (!goes_on) directive = false;
        line = *end ? end + 1 : end;
    }
}

// Calls `see` for each line of the text.
typedef struct Line {
    const char *path;
    int number;
    Report *report;
} Line;

static void each_line(const char *path, char *text, Report *r, void (*see)(Line, const char *)) {
    int number = 1;
    for (char *line = text; *line; number++) {
        char *end = line + strcspn(line, "\n"), kept = *end;
        *end = 0;
        see((Line){path, number, r}, line);
        *end = kept;
        line = kept ? end + 1 : end;
    }
}

// ---- includes ---------------------------------------------------------------------------------

static void check_quoted(Line at, const char *name) {
    const char *slash = strchr(name, '/');
    if (strstr(name, "..")) {
        offend(at.report, "%s:%d: includes \"%s\": no paths with ..", at.path, at.number, name);
        return;
    }
    // A header of one's own folder hides inside one folder only: foo_impl.h.
    const char *impl = strstr(name, "_impl.h");
    size_t own = (size_t)(strrchr(at.path, '/') + 1 - at.path);
    if (impl && slash && strncmp(at.path, name, own) && !begins(at.path, "tests/"))
        offend(at.report, "%s:%d: includes \"%s\", which is private to its folder", at.path,
               at.number, name);
    if (!slash) return; // beside the file
    for (size_t i = 0; i < COUNT_OF(LAYERS); i++) {
        if (!begins(at.path, LAYERS[i].folder)) continue;
        if (!begins_any(name, LAYERS[i].may, COUNT_OF(LAYERS[i].may)) ||
            begins_any(name, LAYERS[i].never, COUNT_OF(LAYERS[i].never)))
            offend(at.report, "%s:%d: %s may not include \"%s\"", at.path, at.number,
                   LAYERS[i].folder, name);
        return;
    }
}

static void check_foreign(Line at, const char *name) {
    for (size_t i = 0; i < COUNT_OF(FOREIGN); i++)
        if (begins(name, FOREIGN[i].header) &&
            !begins_any(at.path, FOREIGN[i].where, COUNT_OF(FOREIGN[i].where)))
            offend(at.report, "%s:%d: <%s> belongs in %s only", at.path, at.number, name,
                   FOREIGN[i].where[0]);
}

static void see_include(Line at, const char *line) {
    line += strspn(line, " \t");
    if (*line++ != '#') return;
    line += strspn(line, " \t");
    if (!begins(line, "include")) return;
    line += strcspn(line, "\"<");
    if (!*line) return;
    char name[256];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(line + 1, "\">"), line + 1);
    if (*line == '"') check_quoted(at, name);
    check_foreign(at, name);
}

// ---- branches on the backend ------------------------------------------------------------------

// Only backends' exact names count: "cuda" beside "rng" or "noise" is a generator's.
static void see_branch(Line at, const char *line) {
    static const char *const names[] = {"\"ref\"", "\"cpu\"", "\"vulkan\"", "\"cuda\"",
                                        "\"vulkan:"};
    static const char *const macros[] = {"KILN_VULKAN",    "KILN_CUDA",  "KILN_HAVE_VULKAN",
                                         "KILN_HAVE_CUDA", "->backend,", "->backend)",
                                         ".backend,",      ".backend)"};
    bool compares = strstr(line, "cmp(") || strstr(line, "==");
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (strstr(line, names[i]) && !strstr(line, "rng") && !strstr(line, "noise"))
            offend(at.report, "%s:%d: names the backend %s", at.path, at.number, names[i]);
    for (size_t i = 0; i < COUNT_OF(macros); i++)
        if (strstr(line, macros[i]) && (i < 4 || compares))
            offend(at.report, "%s:%d: asks which backend runs (%s)", at.path, at.number, macros[i]);
}

// ---- functions and global state ---------------------------------------------------------------

static bool has_word(const char *text, const char *word) {
    size_t n = strlen(word);
    for (const char *c = text; (c = strstr(c, word)); c++) {
        bool before = c == text || !(isalnum((unsigned char)c[-1]) || c[-1] == '_');
        bool after = !(isalnum((unsigned char)c[n]) || c[n] == '_');
        if (before && after) return true;
    }
    return false;
}

static int count_words(const char *text) {
    int n = 0;
    for (bool inside = false; *text; text++) {
        bool space = isspace((unsigned char)*text);
        n += !space && !inside;
        inside = !space;
    }
    return n;
}

// A statement outside all braces, without what stood inside them: does it define a variable that
// can change?
static bool is_mutable_state(const char *s) {
    s += strspn(s, " \t\n");
    static const char *const harmless[] = {"typedef", "extern", "const", "_Static_assert"};
    for (size_t i = 0; i < COUNT_OF(harmless); i++)
        if (has_word(s, harmless[i])) return false;
    size_t name = strcspn(s, "=");
    if (memchr(s, '(', name)) return false; // a function, or a macro's use
    bool type = begins(s, "struct") || begins(s, "enum") || begins(s, "union");
    if (type && count_words(s) <= 2 && !s[name]) return false;
    return count_words(s) >= 2;
}

typedef struct Scan {
    char statement[2048]; // at depth 0
    size_t n;
    int depth, start, line; // the statement's first line
} Scan;

static void scan_reset(Scan *s) {
    s->n = 0;
    s->start = 0;
}

static void scan_add(Scan *s, char c) {
    if (!s->start && !isspace((unsigned char)c)) s->start = s->line;
    if (s->start && s->n + 1 < sizeof s->statement) s->statement[s->n++] = c;
    s->statement[s->n] = 0;
}

static bool scan_is_function(const Scan *s) {
    return s->n && strchr(s->statement, ')') && !strchr(s->statement, '=');
}

// `bare`: without comments, strings and directives.
static void check_functions(const char *path, const char *bare, bool state, Report *r) {
    Scan s = {.line = 1};
    for (const char *c = bare; *c; c++) {
        if (*c == '{') {
            s.depth++;
        } else if (*c == '}') {
            if (--s.depth == 0 && scan_is_function(&s)) {
                int lines = s.line - s.start + 1;
                if (lines > MAX_FUNCTION_LINES)
                    offend(r, "%s:%d: a function of %d lines (%d at most)", path, s.start, lines,
                           MAX_FUNCTION_LINES);
                scan_reset(&s);
            }
        } else if (s.depth == 0 && *c == ';') {
            if (state && is_mutable_state(s.statement))
                offend(r, "%s:%d: global mutable state: %.60s", path, s.start, s.statement);
            scan_reset(&s);
            s.statement[0] = 0;
        } else if (s.depth == 0) {
            scan_add(&s, *c);
        }
        if (*c == '\n') s.line++;
    }
    if (s.depth) offend(r, "%s: braces do not match: the rules cannot be checked", path);
}

static void see_static(Line at, const char *line) {
    bool indented = *line == ' ';
    line += strspn(line, " \t");
    if (indented && begins(line, "static ") && !has_word(line, "const") && !strchr(line, '('))
        offend(at.report, "%s:%d: state that outlives its function: %.60s", at.path, at.number,
               line);
}

// ---- all rules on one file --------------------------------------------------------------------

static void check_columns(const char *path, const char *text, Report *r) {
    for (int line = 1, columns = 0; *text; text++) {
        columns += (*text & 0xc0) != 0x80; // characters, not bytes of UTF-8
        if (*text != '\n') continue;
        if (--columns > MAX_COLUMNS)
            offend(r, "%s:%d: %d columns (%d at most)", path, line, columns, MAX_COLUMNS);
        line++;
        columns = 0;
    }
}

static void check_file(const char *path, const char *text, Report *r) {
    int lines = 0;
    for (const char *c = text; *c; c++) lines += *c == '\n';
    if (lines > MAX_FILE_LINES) offend(r, "%s: %d lines (%d at most)", path, lines, MAX_FILE_LINES);
    if (strstr(text, "-march="
                     "native") ||
        strstr(text, "-mtune="
                     "native"))
        offend(r, "%s: builds for the machine at hand: one binary must run on any x86-64", path);
    if (str_ends(path, ".py") || str_ends(path, ".sh") || str_ends(path, ".cmake") ||
        str_ends(path, ".txt"))
        return;
    check_columns(path, text, r);
    void *scope = mem_new(NULL, 1);
    char *code = strip(scope, text, false), *bare = strip(scope, text, true);
    each_line(path, code, r, see_include);
    if (begins(path, "engine/") || begins(path, "models/")) each_line(path, code, r, see_branch);
    bool state = !str_ends(path, ".glsl") && !str_ends(path, ".comp") &&
                 !begins_any(path, STATE_EXCEPTIONS, COUNT_OF(STATE_EXCEPTIONS));
    strip_directives(bare);
    if (!str_ends(path, ".def")) check_functions(path, bare, state, r);
    if (state) each_line(path, bare, r, see_static);
    mem_free(scope);
}

static bool is_source(const char *name) {
    static const char *const ends[] = {".c",    ".h",   ".cu", ".cuh", ".comp",
                                       ".glsl", ".def", ".py", ".sh",  ".cmake"};
    for (size_t i = 0; i < COUNT_OF(ends); i++)
        if (str_ends(name, ends[i])) return true;
    return false;
}

// Returns the number of files read.
static int walk(void *scope, const char *folder, Report *r) {
    Error err = {0};
    char **names;
    int count, files = 0;
    if (!os_list(scope, folder, &names, &count, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < count; i++) {
        char *path = os_path_join(scope, folder, names[i]);
        PathKind kind = os_path_kind(path);
        if (kind == PATH_DIR && names[i][0] != '.') files += walk(scope, path, r);
        if (kind != PATH_FILE || names[i][0] == '.' || !is_source(names[i])) continue;
        size_t size;
        uint8_t *text = os_read_file(scope, path, 16 << 20, &size, &err);
        if (!text) fail_msg("%s", err.text);
        check_file(path, (const char *)text, r);
        files++;
    }
    return files;
}

// ---- tests ------------------------------------------------------------------------------------

// A rule must see its offender, in exactly one place, and nothing in the innocent twin.
static void rules_see_small_offenders(void **state) {
    (void)state;
    static const struct {
        const char *path, *bad, *part, *good;
    } cases[] = {
        {"models/a.c", "#include \"backend/backend.h\"\n", "may not include",
         "#include \"engine/graph.h\"\n"},
        {"engine/pipeline_a.c", "#include \"backend/impl.h\"\n", "may not include",
         "#include \"models/nano.h\"\n"},
        {"engine/a.c", "#include \"models/nano.h\"\n", "may not include",
         "// #include \"models/nano.h\"\n/* #include \"models/nano.h\" */\n"},
        {"engine/a.c", " # include \"backend/impl.h\" // why\n", "may not include",
         "#include \"backend/backend.h\"\n"},
        {"tests/test_a.c", "#include \"backend/impl.h\"\n", "may not include",
         "#include \"backend/vulkan/kernels.h\"\n"},
        {"backend/base.c", "#include \"engine/json.h\"\n", "may not include",
         "#include \"backend/base.h\"\n"},
        {"backend/cpu/a.c", "#include \"backend/vulkan/vk.h\"\n", "may not include",
         "#include \"backend/impl.h\"\n"},
        {"tools/a.c", "#include \"backend/cpu/cpu.h\"\n", "may not include",
         "#include \"tests/conform.h\"\n"},
        {"models/a.c", "#include \"engine/graph_impl.h\"\n", "private",
         "#include \"models/nano.h\"\n"},
        {"engine/a.c", "#include \"../backend/backend.h\"\n", "no paths with ..",
         "#include \"engine/graph_impl.h\"\n"},
        {"engine/a.c", "#include <vulkan/vulkan.h>\n", "backend/vulkan/ only",
         "#include <math.h>\n"},
        {"backend/device.c", "#include <volk.h>\n", "backend/vulkan/ only", "#include <math.h>\n"},
        {"tests/a.c", "#include <cuda_runtime.h>\n", "backend/cuda/ only", "#include <unistd.h>\n"},
        {"engine/a.c", "#include <pthread.h>\n", "backend/os_ only", "#include <stdlib.h>\n"},
        {"models/a.c", "    if (!strcmp(name, \"vulkan\")) x = 1;\n", "names the backend",
         "    // \"vulkan\"\n    f(\"vulkan is one\");\n"},
        {"engine/a.c", "#if KILN_HAVE_VULKAN\n#endif\n", "asks which backend", "#if X\n#endif\n"},
        {"engine/a.c", "int f(D *d) { return !strcmp(d->backend, x); }\n", "asks which backend",
         "int f(D *d) { return g(d->backend); }\n"},
        {"engine/a.c", "static int counter;\n", "global mutable",
         "static const int counter = 1;\n"},
        {"engine/a.c", "static struct { int x; } all[3] = {{1}};\n", "global mutable",
         "struct S { int x; };\nenum { A, B };\nint f(int x);\nstruct S;\n"},
        {"engine/a.c", "float table[4] = {f(1)};\n", "global mutable",
         "void f(int a) { int b[4] = {0}; }\ntypedef struct T { int x; } T;\n"},
        {"engine/a.c", "int f(void) {\n    static int calls;\n    return calls++;\n}\n", "outlives",
         "int f(void) {\n    static const int calls = 1;\n    return calls;\n}\n"},
        {"cmake/a.cmake",
         "add(-march="
         "native)\n",
         "machine at hand", "add(-mavx2)\n"},
        {"engine/a.c", "int f(void) {\n", "braces do not match",
         "int f(void) { return g('{', \"{\"); } // {\n"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Report bad = {.quiet = true}, good = {.quiet = true};
        check_file(cases[i].path, cases[i].bad, &bad);
        check_file(cases[i].path, cases[i].good, &good);
        if (bad.n != 1 || !strstr(bad.last, cases[i].part))
            fail_msg("case %zu: expected one \"%s\", found %d: %s", i, cases[i].part, bad.n,
                     bad.last);
        if (good.n) fail_msg("case %zu: the innocent text was refused: %s", i, good.last);
    }
}

static void length_rules_see_offenders(void **state) {
    (void)state;
    // A file of n lines; a function of n lines, of which the first two are its head.
    for (int n = 79; n <= 1001; n = n == 79 ? 80 : n == 80 ? 81 : n == 81 ? 1000 : n + 1) {
        char text[20000] = "";
        size_t used = 0;
        for (int i = 0; i < n; i++) used += (size_t)snprintf(text + used, 100, "// line\n");
        Report file = {.quiet = true}, function = {.quiet = true};
        check_file("engine/a.c", text, &file);
        assert_int_equal(file.n, n > MAX_FILE_LINES);
        used = (size_t)snprintf(text, 100,
                                "int before(void);\n\n// why\nstatic int f(int a,\n"
                                "             int b) {\n");
        for (int i = 0; i < n - 3; i++) used += (size_t)snprintf(text + used, 100, "    a++;\n");
        snprintf(text + used, 100, "}\n");
        check_file("engine/a.c", text, &function);
        assert_int_equal(function.n > 0, n > MAX_FUNCTION_LINES);
        if (n == 81) assert_non_null(strstr(function.last, "a.c:4: a function of 81 lines"));
    }
}

static void columns_are_counted(void **state) {
    (void)state;
    for (int n = MAX_COLUMNS - 1; n <= MAX_COLUMNS + 1; n++) {
        char text[2 * MAX_COLUMNS + 10] = "//";
        for (int i = 2; i < n; i++) strcat(text, "\xc3\xa9"); // one character
        Report r = {.quiet = true};
        check_file("engine/a.c", strcat(text, "\n"), &r);
        assert_int_equal(r.n, n > MAX_COLUMNS);
    }
}

static void the_tree_obeys(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    Report r = {0};
    int files = 0;
    for (size_t i = 0; i < COUNT_OF(FOLDERS); i++) files += walk(scope, FOLDERS[i], &r);
    Error err = {0};
    size_t size;
    uint8_t *build = os_read_file(scope, "CMakeLists.txt", 1 << 20, &size, &err);
    if (!build) fail_msg("%s", err.text);
    check_file("CMakeLists.txt", (const char *)build, &r);
    mem_free(scope);
    assert_true(files > 20); // it did find the sources
    if (r.n) fail_msg("%d offenders in %d files, listed above", r.n, files);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_see_small_offenders),
        cmocka_unit_test(length_rules_see_offenders), cmocka_unit_test(columns_are_counted),
        cmocka_unit_test(the_tree_obeys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
