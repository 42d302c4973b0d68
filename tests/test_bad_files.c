// test_bad_files.c: files that are no models, or hostile ones, given to `kiln inspect` and `kiln
// generate`: one clear line, exit status 1, little memory, no waiting. Runs the program named by KILN
// (build/kiln by default).
#define _GNU_SOURCE
#include "tests/check.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/safetensors.h"
#include "tests/scratch.h"
#include "tests/zip_file.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum { SECONDS = 120, MAX_RSS_MB = 200 }; // far more than a busy machine takes

static struct { void *scope; char *program, *dir; } world;

static char *at(const char *name) { return os_path_join(world.scope, world.dir, name); }

// ---- running the program ------------------------------------------------------------------------

// Runs `kiln ARGS...`; *err: what it wrote to standard error. Exit status, -1: ended by a signal.
static int run(char **argv, char **err) {
    char *log = at("stderr");
    argv[0] = world.program;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int e = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600), nothing = open("/dev/null", O_RDWR);
        if (e < 0 || dup2(nothing, 0) < 0 || dup2(nothing, 1) < 0 || dup2(e, 2) < 0) _exit(99);
        alarm(SECONDS); // what hangs ends by a signal
        execv(argv[0], argv);
        _exit(98);
    }
    int status;
    struct rusage used;
    assert_int_equal(wait4(pid, &status, 0, &used), pid);
    size_t n;
    *err = (char *)os_read_file(world.scope, log, 1 << 20, &n, NULL);
    if (!SANITIZED && used.ru_maxrss > MAX_RSS_MB * 1024)
        fail_msg("%s %s took %ld MB", argv[1], argv[2], used.ru_maxrss / 1024);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// One line (and an indented list), from kiln, with `part` in it.
static void expect_line(char **argv, const char *part) {
    char *err = NULL;
    int status = run(argv, &err);
    const char *what = mem_printf(world.scope, "%s %s %s", argv[1], argv[2], argv[3] ? argv[3] : "");
    if (status != 1) fail_msg("%s: expected exit status 1, found %d: %s", what, status, err);
    if (strncmp(err, "kiln: ", 6) || !strstr(err, "expected"))
        fail_msg("%s: expected one clear line, found: %s", what, err);
    if (!strstr(err, part)) fail_msg("%s: expected \"%s\" in: %s", what, part, err);
    for (const char *line = strchr(err, '\n'); line && line[1]; line = strchr(line + 1, '\n'))
        if (strncmp(line + 1, "  ", 2)) fail_msg("%s: expected one line, found: %s", what, err);
}

static void expect_bad(char *path, const char *part) {
    char *out = at("out.png");
    char *inspect[] = {NULL, "inspect", path, NULL};
    char *generate[] = {NULL, "generate", "-m", path, "-p", "a cat", "-o", out, NULL};
    char *one_part[] = {NULL, "generate", "--diffusion-model", path, "-p", "a cat", "-o", out, NULL};
    // A sanitized program starts slowly: there the three take turns.
    static int turn;
    if (!SANITIZED || turn % 3 == 0) expect_line(inspect, part);
    if (!SANITIZED || turn % 3 == 1) expect_line(generate, part);
    if ((!SANITIZED || turn % 3 == 2) && !str_ends(path, "pipeline")) expect_line(one_part, part);
    turn++;
    assert_int_equal(os_path_kind(out), PATH_NONE);
}

static char *put_file(const char *name, const void *data, size_t n) {
    return scratch_write(world.scope, world.dir, name, data, n);
}

static void expect_bad_bytes(const char *name, const void *data, size_t n, const char *part) {
    char *path = put_file(name, data, n);
    expect_bad(path, part);
    os_remove(path, NULL);
}

// ---- other kinds of files -----------------------------------------------------------------------

static void other_files(void **state) {
    (void)state;
#define BYTES(text) text, sizeof text - 1
    static const struct { const char *name, *bytes; size_t n; const char *part; } files[] = {
        {"empty.safetensors", BYTES(""), "an empty one"},
        {"text.safetensors", BYTES("Not Found: this is some text\n"), "a text"},
        {"page.safetensors", BYTES("\n<!DOCTYPE html>\n<html><body>Log in</body></html>"), "a web page"},
        {"page.gguf", BYTES("<HTML><head></head></HTML>"), "a web page"},
        {"page.ckpt", BYTES("<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>"), "a web page"},
        {"lfs.safetensors", BYTES("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"),
         "Git LFS pointer, not the file itself; fetch it"},
        {"old.ckpt", BYTES("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."), "before 1.6"},
        {"x.ckpt", BYTES("\x1f\x8b\x08\0\0\0\0\0"), "gzip archive"},
        {"x.safetensors", BYTES("\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "a picture"},
        {"config.safetensors", BYTES("{\"a\": 1}"), "JSON"},
        {"empty.pt", BYTES("PK\5\6\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "an empty zip"},
    };
    for (size_t i = 0; i < COUNT_OF(files); i++)
        expect_bad_bytes(files[i].name, files[i].bytes, files[i].n, files[i].part);
}

static void devices_and_folders(void **state) {
    (void)state;
    char *pipe = at("pipe.safetensors"), *folder = at("folder"), *loop = at("loop");
    assert_int_equal(mkfifo(pipe, 0600), 0);
    expect_bad(pipe, "a device or pipe");
    expect_bad("/dev/zero", "a device or pipe");
    assert_true(os_make_dirs(folder, NULL));
    expect_bad(folder, "found none");
    put_file("folder/readme.txt", "x", 1);
    expect_bad(folder, "found none");
    assert_int_equal(symlink("loop", loop), 0);
    expect_bad(loop, "loop");
    // Pipes in the places of the small files.
    static const char *const inside[] = {"a-pipeline/model_index.json", "a.safetensors.index.json",
                                         "b-pipeline/scheduler/scheduler_config.json",
                                         "c-pipeline/vae/config.json"};
    for (size_t i = 0; i < COUNT_OF(inside); i++) {
        char *path = at(inside[i]), *dir = os_dir_name(world.scope, path);
        assert_true(os_make_dirs(dir, NULL));
        assert_int_equal(mkfifo(path, 0600), 0);
        if (i >= 2) put_file(mem_printf(world.scope, "%c-pipeline/model_index.json", "axbc"[i]),
                             BYTES("{\"_class_name\": \"FluxPipeline\"}"));
        expect_bad(i == 1 ? path : at(mem_printf(world.scope, "%c-pipeline", "axbc"[i])), "a device or pipe");
    }
}

// ---- PyTorch ------------------------------------------------------------------------------------

static ZipFile *zip_new(void) { return MEM_NEW(world.scope, ZipFile); }

static void expect_bad_zip(ZipFile *z, const char *part) {
    zip_end(z);
    expect_bad_bytes("model.ckpt", z->bytes.v, (size_t)z->bytes.n, part);
    mem_free(z);
}

static const uint8_t floats[64];

// An archive around a pickle.
static void expect_bad_pickle(const void *pickle, size_t n, const char *part) {
    ZipFile *z = zip_new();
    zip_put(z, "m/data.pkl", pickle, n);
    zip_put(z, "m/data/0", floats, sizeof floats);
    expect_bad_zip(z, part);
}

// {"w": a tensor of `shape` with storage `key`}
#define TENSOR(key, shape)                                                                            \
    "\x80\x02}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n" \
    "X\1\0\0\0" key "X\3\0\0\0cpuK\x10tQK\0K" shape "\x85K\1\x85\x89}tRs."

static void hostile_pickles(void **state) {
    (void)state;
    char *mark = at("was-here");
    static const char *const calls[][2] = {{"os", "system"}, {"posix", "system"}, {"builtins", "eval"},
                                           {"builtins", "exec"}, {"subprocess", "Popen"},
                                           {"torch", "load"}, {"runpy", "_run_code"}};
    for (size_t i = 0; i < COUNT_OF(calls); i++) {
        char pickle[400];
        int n = snprintf(pickle, sizeof pickle, "\x80\x02}X\1xxxxc%s\n%s\n(Vtouch %s\ntRs.", calls[i][0],
                         calls[i][1], mark);
        memcpy(pickle + 4, "\1\0\0\0w", 5); // the key "w"
        char *part = mem_printf(world.scope, "found a use of Python's %s.%s; nothing was run", calls[i][0],
                                calls[i][1]);
        expect_bad_pickle(pickle, (size_t)n, part);
        assert_int_equal(os_path_kind(mark), PATH_NONE);
    }
    expect_bad_pickle(BYTES(TENSOR("9", "\x10")), "a storage that the archive lacks");
    expect_bad_pickle(BYTES(TENSOR("0", "\x7f")), "reaches past it");
    expect_bad_pickle(BYTES("\x80\x02K\1."), "a dictionary of tensors");
    expect_bad_pickle(BYTES("\x80\x02}"), "its end");
    expect_bad_pickle(BYTES("I1\n."), "opcode 0x49");
}

// Pickles that are small and claim much.
static void pickle_bombs(void **state) {
    (void)state;
    enum { BIG = SANITIZED ? 5 << 20 : 24 << 20 };
    static const struct { const char *start, *again, *part; } floods[] = {
        {"\x80\x02", "(", "without bounds"},              // marks
        {"\x80\x02N", "2", "without bounds"},             // copies of a value
        {"\x80\x02", "}", "values"},                      // dictionaries
        {"\x80\x02)q\1", "(h\1h\1t", "damaged or hostile"}, // tuples
        {"\x80\x02(", "t(", "damaged or hostile"},
    };
    uint8_t *v = malloc(BIG);
    for (size_t i = 0; i < COUNT_OF(floods); i++) {
        size_t n = strlen(floods[i].start), m = strlen(floods[i].again);
        memcpy(v, floods[i].start, n);
        for (; n + m <= BIG; n += m) memcpy(v + n, floods[i].again, m);
        expect_bad_pickle(v, n, floods[i].part);
    }
    // One long key again and again: little in the file, much in a list of names.
    static const char tensor[] = "ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
                                 "X\1\0\0\0" "0X\3\0\0\0cpuK\x10tQK\0K\x10\x85K\1\x85\x89}tRq\2";
    size_t n = 0;
    memcpy(v, "\x80\x02}X\0\x10\0\0", 8), n = 8;
    memset(v + n, 'k', 4096), n += 4096;
    memcpy(v + n, "q\1", 2), n += 2;
    memcpy(v + n, tensor, sizeof tensor - 1), n += sizeof tensor - 1;
    memcpy(v + n, "s", 1), n += 1;
    for (int i = 0; i < 99000; i++) memcpy(v + n, "h\1h\2s", 5), n += 5;
    v[n++] = '.';
    expect_bad_pickle(v, n, "names of at most");
    // Tuples that hold the one before twice: 2^60 leaves for who walks them all.
    memcpy(v, "\x80\x02}", 3), n = 3;
    memcpy(v + n, "X\1\0\0\0a}", 7), n += 7;
    for (int i = 0; i < 60; i++) memcpy(v + n, "q\1}(X\1\0\0\0ah\1X\1\0\0\0bh\1u", 19), n += 19;
    memcpy(v + n, "s.", 2), n += 2;
    expect_bad_pickle(v, n, "hostile");
    free(v);
}

static void hostile_zips(void **state) {
    (void)state;
    static const char *const names[] = {"../m/data.pkl", "/m/data.pkl", "m/../data.pkl",
                                        "m\\data.pkl", "C:data.pkl"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        ZipFile *z = zip_new();
        zip_put(z, names[i], BYTES("\x80\x02}."));
        expect_bad_zip(z, "inside the archive");
    }
    for (int stored = 0; stored < 2; stored++) { // a few bytes that claim four gigabytes
        ZipFile *z = zip_new();
        z->method = stored ? 0 : 8;
        z->claim = 0xfffffff0;
        zip_put(z, "m/data.pkl", BYTES("\x80\x02}."));
        expect_bad_zip(z, stored ? "past the end" : "compressed");
        z = zip_new();
        z->use64 = true;
        z->claim = 1ull << 62;
        z->method = stored ? 0 : 8;
        zip_put(z, "m/data.pkl", BYTES("\x80\x02}."));
        expect_bad_zip(z, stored ? "past the end" : "compressed");
    }
    ZipFile *z = zip_new();
    z->crc_flip = 1;
    zip_put(z, "m/data.pkl", BYTES("\x80\x02}."));
    expect_bad_zip(z, "checksum");
    z = zip_new();
    zip_put(z, "m/data.pkl", BYTES(TENSOR("0", "\x10")));
    z->crc_flip = 1;
    zip_put(z, "m/data/0", floats, sizeof floats);
    expect_bad_zip(z, "m/data/0: expected data with the checksum");
    // The second member inside the first one's data, with a header of its own there.
    ZipFile *inner = zip_new();
    zip_put(inner, "m/data/0", floats, sizeof floats);
    z = zip_new();
    zip_put(z, "m/data.pkl", inner->bytes.v, (size_t)inner->bytes.n);
    zip_put(z, "m/data/0", floats, sizeof floats);
    uint32_t inside = 30 + 10; // header and name of the first
    memcpy(z->directory.v + z->directory.n - 8 - 4, &inside, 4);
    expect_bad_zip(z, "overlap");
    z = zip_new();
    zip_put(z, "m/data.pkl", BYTES("\x80\x02}."));
    zip_put(z, "m/data.pkl", BYTES("\x80\x02}."));
    expect_bad_zip(z, "twice");
    z = zip_new();
    zip_put(z, "word/document.xml", BYTES("<a/>"));
    expect_bad_zip(z, "data.pkl");
    z = zip_new();
    zip_put(z, "m/data.pkl", BYTES("\x80\x02}."));
    zip_end(z);
    expect_bad_bytes("cut.pt", z->bytes.v, (size_t)z->bytes.n - 1, "cut or damaged");
}

// What is sound is taken: 64-bit fields, checksums that were left out.
static void sound_zips(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        ZipFile *z = zip_new();
        z->use64 = i & 1;
        zip_put(z, "m/data.pkl", BYTES(TENSOR("0", "\x10")));
        zip_put(z, "m/data/0", floats, sizeof floats);
        if (i & 2) // the first entry's checksum
            memset(z->directory.v + 16, 0, 4);
        zip_end(z);
        char *err = NULL, *path = put_file("sound.pt", z->bytes.v, (size_t)z->bytes.n);
        char *inspect[] = {NULL, "inspect", path, NULL};
        int status = run(inspect, &err);
        if (status) fail_msg("%d: %s", i, err);
        char *generate[] = {NULL, "generate", "-m", path, "-p", "x", "-o", at("out.png"), NULL};
        expect_line(generate, "no known model");
    }
}

// ---- GGUF ---------------------------------------------------------------------------------------

typedef struct Gguf { uint8_t v[4096]; size_t n; } Gguf;
static void put(Gguf *g, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) g->v[g->n++] = (uint8_t)(value >> (8 * i));
}
static void put_name(Gguf *g, const char *name) {
    put(g, strlen(name), 8);
    memcpy(g->v + g->n, name, strlen(name));
    g->n += strlen(name);
}
static Gguf gguf(uint64_t version, uint64_t tensors, uint64_t meta) {
    Gguf g = {{0}, 0};
    put(&g, 0x46554747, 4);
    put(&g, version, 4), put(&g, tensors, 8), put(&g, meta, 8);
    return g;
}
static void tensor(Gguf *g, const char *name, uint64_t ndim, uint64_t size, uint64_t type, uint64_t offset) {
    put_name(g, name);
    put(g, ndim, 4);
    for (uint64_t i = 0; i < MIN(ndim, 5); i++) put(g, size, 8);
    put(g, type, 4), put(g, offset, 8);
}
static void expect_bad_gguf(Gguf g, const char *part) {
    expect_bad_bytes("model.gguf", g.v, sizeof g.v, part); // zeros follow: data
}

static void hostile_gguf(void **state) {
    (void)state;
    static const struct { uint64_t ndim, size, type, offset; const char *part; } tensors[] = {
        {5, 2, 0, 0, "at most 4 dimensions"}, {1, 8, 4, 0, "GGUF type 4"}, {1, 8, 99, 0, "GGUF type 99"},
        {1, 33, 8, 0, "whole q8_0 blocks"}, {1, 8, 0, 7, "multiple of 32"},
        {1, 8, 0, 1 << 20, "inside the file"}, {1, 8, 0, UINT64_MAX - 31, "inside the file"},
        {4, UINT64_MAX >> 1, 0, 0, "fits in memory"}, {1, 1 << 20, 0, 0, "inside the file"},
        {1, 8, 0, 0, "overlapping"},
    };
    for (size_t i = 0; i < COUNT_OF(tensors); i++) {
        Gguf g = gguf(3, 2, 0);
        tensor(&g, "a", tensors[i].ndim, tensors[i].size, tensors[i].type, tensors[i].offset);
        tensor(&g, "b", 1, 8, 0, 0);
        expect_bad_gguf(g, tensors[i].part);
    }
    expect_bad_gguf(gguf(1, 0, 0), "version 1; convert it anew");
    expect_bad_gguf(gguf(4, 0, 0), "version 4; this program is older");
    expect_bad_gguf(gguf(3ull << 24, 0, 0), "big-endian file, version 3");
    expect_bad_gguf(gguf(3, UINT64_MAX, 0), "counts that fit");
    expect_bad_gguf(gguf(3, 0, UINT64_MAX / 13), "counts that fit");
    static const uint32_t alignments[] = {0, 3, 1u << 31};
    for (size_t i = 0; i < COUNT_OF(alignments); i++) {
        Gguf g = gguf(3, 0, 1);
        put_name(&g, "general.alignment"), put(&g, 4, 4), put(&g, alignments[i], 4);
        expect_bad_gguf(g, "a power of two");
    }
    Gguf g = gguf(3, 0, 1); // a key, then a text, then an array longer than the file
    put(&g, UINT64_MAX, 8);
    expect_bad_gguf(g, "the end");
    g = gguf(3, 0, 1);
    put_name(&g, "k"), put(&g, 8, 4), put(&g, 1ull << 40, 8);
    expect_bad_gguf(g, "the end");
    g = gguf(3, 0, 1);
    put_name(&g, "k"), put(&g, 9, 4), put(&g, 4, 4), put(&g, 1ull << 61, 8);
    expect_bad_gguf(g, "the end");
    expect_bad_bytes("cut.gguf", "GGUF\3\0\0\0", 8, "GGUF");
}

// A file whose header fills it: a million tensors.
static void endless_headers(void **state) {
    (void)state;
    enum { COUNT = 1000000, ENTRY = 8 + 7 + 4 + 4 + 8 };
    size_t n = 24 + (size_t)COUNT * ENTRY;
    uint8_t *v = calloc(1, n);
    Gguf head = gguf(3, COUNT, 0);
    memcpy(v, head.v, head.n);
    for (size_t i = 0; i < COUNT; i++) {
        uint8_t *at_ = v + head.n + i * ENTRY;
        char name[8];
        snprintf(name, sizeof name, "%07zu", i);
        at_[0] = 7;
        memcpy(at_ + 8, name, 7);
    }
    expect_bad_bytes("endless.gguf", v, n, "at most 100000 tensors");
    free(v);
    // Metadata without end.
    enum { TEXT = 1 << 20, TEXTS = 60, PAIR = 8 + 2 + 4 + 8 + TEXT };
    v = calloc(TEXTS, PAIR + 1);
    head = gguf(3, 0, TEXTS);
    memcpy(v, head.v, head.n);
    for (size_t i = 0; i < TEXTS; i++) {
        uint8_t *pair = v + head.n + i * PAIR;
        const uint64_t length = TEXT;
        pair[0] = 2, pair[8] = (uint8_t)(65 + i / 26), pair[9] = (uint8_t)(65 + i % 26), pair[10] = 8;
        memcpy(pair + 14, &length, 8);
        memset(pair + 22, 'x', TEXT);
    }
    expect_bad_bytes("endless.gguf", v, TEXTS * (size_t)PAIR + 24, "header of at most");
    free(v);
    enum { NAMES = 400000 };
    char *text = malloc((size_t)NAMES * 64 + 64);
    n = 8;
    text[n++] = '{';
    for (int i = 0; i < NAMES; i++)
        n += (size_t)sprintf(text + n, "%s\"%d\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}",
                             i ? "," : "", i);
    text[n++] = '}';
    uint64_t length = n - 8;
    memcpy(text, &length, 8);
    expect_bad_bytes("endless.safetensors", text, n, "at most 100000 tensors");
    free(text);
}

// ---- safetensors and indices --------------------------------------------------------------------

static void expect_bad_header(const char *json, size_t data, const char *part) {
    char bytes[1000] = {0};
    uint64_t n = strlen(json);
    memcpy(bytes, &n, 8);
    memcpy(bytes + 8, json, n);
    expect_bad_bytes("model.safetensors", bytes, 8 + n + data, part);
}

static void hostile_safetensors(void **state) {
    (void)state;
    static const struct { const char *json; size_t data; const char *part; } headers[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, "cut or damaged"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, "1 more bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
         12, "overlapping"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "fits in memory"},
        {"{\"a\":{\"dtype\":\"X1\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "a type such as"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "whole sizes"},
        {"{\"a\":1,\"a\":2}", 0, "each name once"},
        {"[1,2]", 0, "JSON object"},
        {"{\"__metadata__\":{\"a\":[]}}", 0, "a string"},
    };
    for (size_t i = 0; i < COUNT_OF(headers); i++)
        expect_bad_header(headers[i].json, headers[i].data, headers[i].part);
    expect_bad_bytes("long.safetensors", BYTES("\xff\xff\xff\xff\xff\xff\xff\x7f{}"), "another kind of file");
    expect_bad_bytes("cut.safetensors", BYTES("\x40\0\0\0\0\0\0\0{}"), "cut");
    char deep[900];
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    expect_bad_header(deep, 0, "levels deep");
}

static void hostile_indices(void **state) {
    (void)state;
    static const char shard[] =
        "H\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"
        "                  \0\0\0\0\0\0\0\0";
    put_file("s-1.safetensors", shard, 8 + 72 + 8);
    put_file("cut-1.safetensors", shard, 60);
    assert_true(os_make_dirs(at("dir.safetensors"), NULL));
    static const struct { const char *json, *part; } indices[] = {
        {"{\"weight_map\":{\"a\":\"s-1.safetensors\",\"b\":\"s-2.safetensors\"}}", "1 of them missing"},
        {"{\"weight_map\":{\"a\":\"s-1.safetensors\",\"b\":\"s-1.safetensors\"}}", "1 elsewhere or nowhere"},
        {"{\"weight_map\":{\"a\":\"s-1.safetensors\",\"a\":\"s-1.safetensors\"}}", "each name once"},
        {"{\"weight_map\":{\"a\":\"cut-1.safetensors\"}}", "cut"},
        {"{\"weight_map\":{\"a\":\"../s-1.safetensors\"}}", "in the same folder"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "in the same folder"},
        {"{\"weight_map\":{\"a\":\"x.safetensors.index.json\"}}", "JSON"},
        {"{\"weight_map\":{\"a\":\"dir.safetensors\"}}", "missing"},
        {"{\"weight_map\":[]}", "weight_map"},
        {"{\"weight_map\":{}}", "an empty one"},
        {"", "JSON"},
    };
    for (size_t i = 0; i < COUNT_OF(indices); i++)
        expect_bad_bytes("x.safetensors.index.json", indices[i].json, strlen(indices[i].json),
                         indices[i].part);
}

// ---- all ----------------------------------------------------------------------------------------

static int set_up(void **state) {
    (void)state;
    world.scope = mem_new(NULL, 1);
    const char *kiln = os_env("KILN");
    world.program = mem_strdup(world.scope, kiln ? kiln : "build/kiln");
    world.dir = scratch_new(world.scope);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    scratch_remove(world.dir);
    mem_free(world.scope);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_files), cmocka_unit_test(devices_and_folders),
        cmocka_unit_test(hostile_pickles), cmocka_unit_test(pickle_bombs), cmocka_unit_test(hostile_zips),
        cmocka_unit_test(sound_zips), cmocka_unit_test(hostile_gguf), cmocka_unit_test(endless_headers),
        cmocka_unit_test(hostile_safetensors), cmocka_unit_test(hostile_indices),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
