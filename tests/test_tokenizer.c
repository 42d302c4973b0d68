// test_tokenizer.c: ids against those of transformers and SentencePiece for 10,000 strings, with
// the built-in vocabularies and with the models' folders; small vocabularies written here for ties,
// added tokens and SentencePiece's rules; damaged files; hostile and very long text.
#include "tests/check.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "backend/os.h"
#include "engine/gzip.h"
#include "engine/tokenizer.h"
#include "engine/unicode.h"
#include "tests/scratch.h"

#ifndef KILN_SOURCE_DIR
#define KILN_SOURCE_DIR "."
#endif
#define TOKENIZERS KILN_SOURCE_DIR "/../shared/reference-data/tokenizers"

// ---- the committed strings and ids ------------------------------------------------------------

enum { CLIP_IDS, T5_IDS, SPIECE_IDS, COLUMNS, KEPT = 64, MAX_GOLDEN = 16 << 20 };

typedef struct Expected { uint32_t count; const uint8_t *ids; uint64_t hash; } Expected;
typedef struct Golden { const uint8_t *at; uint32_t left; uint8_t *data; } Golden;

static uint32_t u32(const uint8_t **p) {
    uint32_t v = (*p)[0] | (uint32_t)(*p)[1] << 8 | (uint32_t)(*p)[2] << 16 |
                 (uint32_t)(*p)[3] << 24;
    *p += 4;
    return v;
}

static Golden golden_open(void *parent) {
    Error err = {0};
    FileMap map;
    Golden g = {0};
    size_t n = 0;
    CHECK(os_map(&map, KILN_SOURCE_DIR "/tests/golden/tokens.gz", &err));
    CHECK(g.data = gzip_unpack(parent, map.data, map.size, MAX_GOLDEN, &n, &err));
    os_unmap(&map);
    assert_memory_equal(g.data, "tokens1\n", 8);
    g.at = g.data + 8;
    g.left = u32(&g.at);
    return g;
}

// The next string (its repeats written out) and its ids in each column.
static char *golden_next(Golden *g, size_t *n, Expected want[COLUMNS]) {
    if (!g->left) return NULL;
    g->left--;
    uint32_t repeats = u32(&g->at), unit = u32(&g->at);
    char *text = malloc((size_t)repeats * unit + 1);
    for (uint32_t i = 0; i < repeats; i++) memcpy(text + (size_t)i * unit, g->at, unit);
    *n = (size_t)repeats * unit;
    g->at += unit;
    for (int c = 0; c < COLUMNS; c++) {
        want[c] = (Expected){.count = u32(&g->at), .ids = g->at};
        g->at += 2 * MIN(want[c].count, (uint32_t)KEPT);
        if (want[c].count <= KEPT) continue;
        want[c].hash = u32(&g->at);
        want[c].hash |= (uint64_t)u32(&g->at) << 32;
    }
    return text;
}

static bool same(const Expected *want, const int32_t *ids, uint32_t count) {
    if (count != want->count) return false;
    for (uint32_t i = 0; i < MIN(count, (uint32_t)KEPT); i++)
        if (ids[i] != (want->ids[2 * i] | want->ids[2 * i + 1] << 8)) return false;
    if (count <= KEPT) return true;
    uint64_t h = 0;
    for (uint32_t i = 0; i < count; i++) { // as little-endian bytes on any machine
        uint32_t v = (uint32_t)ids[i];
        uint8_t bytes[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
        h = hash_bytes(i ? h ^ 0xcbf29ce484222325u : 0, bytes, 4);
    }
    return h == want->hash;
}

// All strings, every `step`-th one only.
static void compare(const Tokenizer *t, int column, int step) {
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    Golden g = golden_open(scope);
    assert_int_equal(g.left, 10000);
    Expected want[COLUMNS];
    size_t n;
    int wrong = 0, index = 0;
    for (char *text; (text = golden_next(&g, &n, want)); free(text), index++) {
        if (index % step) continue;
        Tokens out;
        CHECK(tokenizer_encode(t, text, n, 0, false, scope, &out, &err));
        assert_true(out.used == out.count && !out.truncated);
        if (!same(&want[column], out.ids, (uint32_t)out.count) && wrong++ < 5)
            fprintf(stderr, "string %d (%zu bytes) %.200s: %d ids, expected %u\n", index, n, text,
                    out.count, want[column].count);
        mem_free(out.ids);
    }
    assert_int_equal(wrong, 0);
    mem_free(scope);
}

static Tokenizer *builtin(TokenizerKind kind) {
    Error err = {0};
    Tokenizer *t = tokenizer_builtin(NULL, kind, &err);
    CHECK(t);
    return t;
}

static void clip_is_transformers(void **state) {
    (void)state;
    Tokenizer *t = builtin(TOKENIZER_CLIP);
    const TokenizerInfo *info = tokenizer_info(t);
    assert_true(info->start == 49406 && info->end == 49407 && info->pad == 49407);
    assert_true(info->count == 49408 && info->max_tokens == 77 && info->unknown == 49407);
    assert_string_equal(tokenizer_piece(t, 1125), "photo</w>");
    assert_int_equal(tokenizer_find(t, "photo</w>"), 1125);
    assert_true(tokenizer_find(t, "no such piece") == -1 && !tokenizer_piece(t, 49408) &&
                !tokenizer_piece(t, -1));
    compare(t, CLIP_IDS, 1);
    mem_free(t);
}

static void t5_is_transformers(void **state) {
    (void)state;
    Tokenizer *t = builtin(TOKENIZER_T5);
    const TokenizerInfo *info = tokenizer_info(t);
    assert_true(info->start == -1 && info->end == 1 && info->pad == 0 && info->unknown == 2);
    assert_true(info->count == 32100 && info->max_tokens == 512);
    assert_int_equal(tokenizer_find(t, "<extra_id_0>"), 32099);
    compare(t, T5_IDS, 1);
    mem_free(t);
}

// The folders as they are published; the same files one by one.
static void folders_give_the_same(void **state) {
    (void)state;
    if (os_path_kind(TOKENIZERS) != PATH_DIR) {
        print_message("SKIP: %s is absent\n", TOKENIZERS);
        skip();
    }
    const struct { TokenizerKind kind; const char *path; int column, step; } FILES[] = {
        {TOKENIZER_CLIP, TOKENIZERS "/clip", CLIP_IDS, 7},
        {TOKENIZER_CLIP, TOKENIZERS "/clip/vocab.json", CLIP_IDS, 50},
        {TOKENIZER_T5, TOKENIZERS "/t5", T5_IDS, 7},
        {TOKENIZER_T5, TOKENIZERS "/t5/spiece.model", SPIECE_IDS, 1},
    };
    for (size_t i = 0; i < COUNT_OF(FILES); i++) {
        Error err = {0};
        Tokenizer *t = tokenizer_open(NULL, FILES[i].kind, FILES[i].path, &err);
        CHECK(t);
        compare(t, FILES[i].column, FILES[i].step);
        mem_free(t);
    }
}

// Cutting and padding: what transformers makes of them follows from the whole list of ids.
static void cuts_and_pads(void **state) {
    (void)state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    for (int kind = TOKENIZER_CLIP; kind <= TOKENIZER_T5; kind++) {
        Tokenizer *t = builtin((TokenizerKind)kind);
        const TokenizerInfo *info = tokenizer_info(t);
        int special = 1 + (info->start >= 0);
        const char *text = "a photo of a cat, don't you see, in the style of nobody";
        Tokens all, plain, some;
        CHECK(tokenizer_encode(t, text, strlen(text), 0, true, scope, &all, &err));
        CHECK(tokenizer_encode_text(t, text, strlen(text), 0, scope, &plain, &err));
        assert_int_equal(plain.count + special, all.count);
        assert_memory_equal(plain.ids, all.ids + special - 1, (size_t)plain.count * 4);
        for (int most = 1; most <= all.count + 5; most++) {
            if (most < special) {
                assert_false(tokenizer_encode(t, text, strlen(text), most, true, scope, &some,
                                              &err));
                continue;
            }
            CHECK(tokenizer_encode(t, text, strlen(text), most, true, scope, &some, &err));
            int used = MIN(most, all.count);
            assert_true(some.count == most && some.used == used);
            assert_int_equal(some.truncated, most < all.count);
            assert_memory_equal(some.ids, all.ids, (size_t)(used - 1) * 4);
            assert_int_equal(some.ids[used - 1], info->end);
            for (int i = used; i < most; i++) assert_int_equal(some.ids[i], info->pad);
            CHECK(tokenizer_encode(t, text, strlen(text), most, false, scope, &some, &err));
            assert_int_equal(some.count, used);
            CHECK(tokenizer_encode_text(t, text, strlen(text), most, scope, &some, &err));
            assert_int_equal(some.count, MIN(most, plain.count));
            assert_int_equal(some.truncated, most < plain.count);
        }
        mem_free(t);
    }
    mem_free(scope);
}

// ---- small vocabularies -----------------------------------------------------------------------

static void expect_ids(const Tokenizer *t, const char *text, const char *want) {
    Error err = {0};
    Tokens out;
    char found[512] = "";
    CHECK(tokenizer_encode(t, text, strlen(text), 0, false, NULL, &out, &err));
    for (int i = 0; i < out.count; i++)
        snprintf(found + strlen(found), sizeof found - strlen(found), "%s%d", i ? " " : "",
                 out.ids[i]);
    mem_free(out.ids);
    assert_string_equal(found, want);
}

#define T5_HEAD "[\"<pad>\",0],[\"</s>\",0],[\"<unk>\",0],"
static Tokenizer *open_text(void *scope, TokenizerKind kind, const char *dir, const char *name,
                            const char *text, Error *err) {
    os_make_dirs(dir, NULL);
    const char *path = os_path_join(scope, dir, name);
    if (!os_write_file(path, text, strlen(text), err)) return NULL;
    return tokenizer_open(NULL, kind, path, err);
}

// ---- tokenizer.json of the published vocabularies, written here --------------------------------

static void add(Text *out, const char *text) { text_add(out, text, strlen(text)); }

static void add_string(Text *out, const char *text, size_t n) {
    add(out, "\"");
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '"' || text[i] == '\\') add(out, "\\");
        text_add(out, text + i, 1);
    }
    add(out, "\"");
}

static void add_special(Text *out, int id, const char *text, const char *more) {
    add(out, mem_printf(out->parent, "{\"id\":%d,\"special\":true%s,\"content\":\"%s\"},", id, more, text));
}

static Tokenizer *open_json(Text *json, TokenizerKind kind) {
    Error err = {0};
    char *dir = scratch_new(json->parent);
    scratch_write(json->parent, dir, "tokenizer.json", json->v, json->n);
    Tokenizer *t = tokenizer_open(NULL, kind, dir, &err);
    scratch_remove(dir);
    CHECK(t);
    return t;
}

static uint8_t *published(void *parent, const char *name, size_t *n) {
    Error err = {0};
    FileMap map;
    CHECK(os_map(&map, mem_printf(parent, "%s/engine/data/%s.gz", KILN_SOURCE_DIR, name), &err));
    uint8_t *data = gzip_unpack(parent, map.data, map.size, MAX_GOLDEN, n, &err);
    os_unmap(&map);
    CHECK(data);
    return data;
}

static void clip_in_json(void **state) {
    (void)state;
    size_t n;
    void *scope = mem_new(NULL, 1);
    Tokenizer *known = builtin(TOKENIZER_CLIP);
    for (int pairs = 0; pairs < 2; pairs++) { // "a b" as older files have it, ["a", "b"] as newer ones
        Text json = {.parent = scope};
        add(&json, "{\"added_tokens\":[");
        add_special(&json, 49406, "<|startoftext|>", ",\"normalized\":true");
        add_special(&json, 49407, "<|endoftext|>", ",\"normalized\":false");
        json.v[--json.n] = 0; // its comma
        add(&json, "],\"model\":{\"type\":\"BPE\",\"vocab\":{");
        for (int id = 0; id < tokenizer_info(known)->count; id++) {
            const char *piece = tokenizer_piece(known, id);
            add(&json, id ? "," : "");
            add_string(&json, piece, strlen(piece));
            add(&json, mem_printf(scope, ":%d", id));
        }
        add(&json, "},\"merges\":[");
        const char *merges = (const char *)published(scope, "clip-merges", &n);
        char *save, *line = strtok_r(mem_strndup(scope, merges, n), "\n", &save);
        for (int i = 0; (line = strtok_r(NULL, "\n", &save)) != NULL; i++) { // after the line #version
            size_t a = strcspn(line, " "), all = strlen(line);
            add(&json, i ? "," : "");
            add(&json, pairs ? "[" : "");
            add_string(&json, line, pairs ? a : all);
            add(&json, pairs ? "," : "");
            if (pairs) add_string(&json, line + a + 1, all - a - 1);
            add(&json, pairs ? "]" : "");
        }
        add(&json, "]}}");
        Tokenizer *t = open_json(&json, TOKENIZER_CLIP);
        compare(t, CLIP_IDS, 3);
        mem_free(t);
    }
    mem_free(known);
    mem_free(scope);
}

// One field of a protobuf message; its bytes where it has a length. False at the end.
static bool field(const uint8_t **p, const uint8_t *end, int *number, const uint8_t **bytes, size_t *n) {
    uint64_t v[2] = {0};
    if (*p >= end) return false;
    for (int i = 0; i < 2; i++) {
        int wire = (int)(v[0] & 7);
        if (i && wire == 5) v[1] = 4;
        else for (int shift = 0;; shift += 7) {
            v[i] |= (uint64_t)(**p & 127) << shift;
            if (*(*p)++ < 128) break;
        }
    }
    *number = (int)(v[0] >> 3), *bytes = *p, *n = (v[0] & 7) == 0 ? 0 : (size_t)v[1];
    *p += *n;
    return true;
}

static void add_base64(Text *out, const uint8_t *data, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        uint32_t b = (uint32_t)data[i] << 16;
        if (i + 1 < n) b |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < n) b |= data[i + 2];
        for (size_t k = 0; k < 4; k++) text_add(out, i + k > n ? "=" : &digits[b >> (18 - 6 * k) & 63], 1);
    }
}

static void t5_in_json(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    Text json = {.parent = scope}, map = {.parent = scope};
    const uint8_t *bytes, *inner;
    size_t n, size;
    int number, inside, pieces = 0;
    const uint8_t *p = published(scope, "t5-spiece", &n), *end = p + n;
    add(&json, "{\"model\":{\"type\":\"Unigram\",\"unk_id\":2,\"vocab\":[");
    while (field(&p, end, &number, &bytes, &size)) {
        const uint8_t *stop = bytes + size, *text = NULL;
        float score = 0;
        size_t text_size = 0, inner_size;
        while ((number == 1 || number == 3) && field(&bytes, stop, &inside, &inner, &inner_size)) {
            if (number == 3 && inside == 2) add_base64(&map, inner, inner_size);
            if (number == 1 && inside == 1) text = inner, text_size = inner_size;
            if (number == 1 && inside == 2) memcpy(&score, inner, sizeof score);
        }
        if (number != 1) continue;
        add(&json, pieces++ ? ",[" : "[");
        add_string(&json, (const char *)text, text_size);
        add(&json, mem_printf(scope, ",%.17g]", (double)score));
    }
    assert_int_equal(pieces, 32000);
    for (int i = 99; i >= 0; i--) add(&json, mem_printf(scope, ",[\"<extra_id_%d>\",0]", i));
    add(&json, "]},\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Precompiled\","
               "\"precompiled_charsmap\":\"");
    assert_true(map.n > 100000);
    text_add(&json, map.v, map.n);
    add(&json, "\"}]},\"added_tokens\":[");
    for (int i = 99; i >= 0; i--) add_special(&json, 32099 - i, mem_printf(scope, "<extra_id_%d>", i), "");
    add_special(&json, 0, "<pad>", "");
    add_special(&json, 1, "</s>", "");
    add_special(&json, 2, "<unk>", "");
    json.v[--json.n] = 0;
    add(&json, "]}");
    Tokenizer *t = open_json(&json, TOKENIZER_T5);
    assert_int_equal(tokenizer_info(t)->count, 32100);
    compare(t, T5_IDS, 3);
    mem_free(t);
    mem_free(scope);
}

// As transformers 5: entities, tags and wrongly decoded letters are text like any other.
static void text_is_not_cleaned_up(void **state) {
    (void)state;
    Tokenizer *clip = builtin(TOKENIZER_CLIP), *t5 = builtin(TOKENIZER_T5);
    const char *entities = "&lt;b&gt; caf\xc3\x83\xc2\xa9 &amp;amp;",
               *quotes = "<br/>It\xe2\x80\x99s  \xc3\xa2\xe2\x82\xac\xc5\x93" "A\xc3\xa2\xe2\x82\xac\xc2\x9d";
    expect_ids(clip, entities, "49406 261 3333 282 321 261 4725 282 3471 127 352 5811 261 6259 282 6259 282 "
                               "49407");
    expect_ids(clip, quotes, "49406 283 7532 14 285 585 728 503 338 127 351 6309 129 241 64 127 351 34919 "
                             "126 507 49407");
    expect_ids(t5, entities, "3 184 40 17 117 115 184 122 17 117 212 89 2 3 184 4624 117 4624 117 1");
    expect_ids(t5, quotes, "3 2 115 52 87 3155 196 17 22 7 3 1439 3378 2 188 1439 3378 2 1");
    mem_free(clip);
    mem_free(t5);
}

// spiece.model alone gives what SentencePiece makes of it; beside it tokenizer.json is the truth.
static void spiece_alone_and_beside_json(void **state) {
    (void)state;
    Error err = {0};
    size_t n;
    void *scope = mem_new(NULL, 1);
    char *dir = scratch_new(scope);
    uint8_t *spiece = published(scope, "t5-spiece", &n);
    scratch_write(scope, dir, "spiece.model", spiece, n);
    Tokenizer *t = tokenizer_open(NULL, TOKENIZER_T5, dir, &err);
    CHECK(t);
    compare(t, SPIECE_IDS, 3);
    expect_ids(t, "a cat", "3 9 1712 1");
    mem_free(t);
    static const char json[] = "{\"model\":{\"type\":\"Unigram\",\"unk_id\":2,\"vocab\":[" T5_HEAD
                               "[\"\xe2\x96\x81\",-1],[\"a\",-1]]}}";
    scratch_write(scope, dir, "tokenizer.json", json, sizeof json - 1);
    t = tokenizer_open(NULL, TOKENIZER_T5, dir, &err);
    CHECK(t);
    expect_ids(t, "a cat", "3 4 3 2 4 2 1");
    mem_free(t);
    scratch_remove(dir);
    mem_free(scope);
}

static void unigram_rules(void **state) {
    (void)state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *dir = scratch_new(scope);
    // 3 "▁" 4 "a" 5 "aa" 6 "▁a" 7 "b" 8 "ab" 9 "ba": sums tie often; the first way found stays.
    Tokenizer *t = open_text(scope, TOKENIZER_T5, dir, "tokenizer.json",
        "{\"model\":{\"type\":\"Unigram\",\"unk_id\":2,\"vocab\":[" T5_HEAD
        "[\"\xe2\x96\x81\",-1],[\"a\",-1],[\"aa\",-2],[\"\xe2\x96\x81" "a\",-2],[\"b\",-1],"
        "[\"ab\",-2],[\"ba\",-2.5]]},\"added_tokens\":["
        "{\"id\":20,\"content\":\"<x>\",\"special\":true},"
        "{\"id\":21,\"content\":\"<x>y\",\"special\":true},"
        "{\"id\":22,\"content\":\"<l>\",\"special\":true,\"lstrip\":true,\"rstrip\":true}]}", &err);
    CHECK(t);
    // "▁a" whole (-2) is found before "▁", "a" (-2): it stays; so do the longer pieces.
    expect_ids(t, "a", "6 1");
    expect_ids(t, "aa", "3 5 1"); // "aa" reaches the end before the second "a" does
    expect_ids(t, "ba", "3 7 4 1");
    expect_ids(t, "bab", "3 7 8 1");
    expect_ids(t, "zz", "3 2 1");               // a run of unknown characters is one
    expect_ids(t, "z\xe2\x96\x81z", "3 2 3 2 1"); // cut before the mark
    expect_ids(t, "<x>y<x>", "21 20 1");          // the longest, then the rest
    expect_ids(t, "a <l> a<l>", "6 22 6 22 1");
    expect_ids(t, "</s>", "1 1");
    expect_ids(t, " \t\n", "1");
    assert_int_equal(tokenizer_info(t)->count, 23);
    mem_free(t);
    scratch_remove(dir);
    mem_free(scope);
}

static void bpe_rules(void **state) {
    (void)state;
    Error err = {0};
    void *scope = mem_new(NULL, 1);
    char *dir = scratch_new(scope);
    // No "c" but at the end of a word: inside it is unknown (4).
    const char *vocab = "{\"a\":0,\"b</w>\":1,\"ab</w>\":2,\"<|startoftext|>\":3,"
                        "\"<|endoftext|>\":4,\"b\":5,\"a</w>\":6,\"c</w>\":7,\"ba\":8,\"!\":9,"
                        "\"!</w>\":10,\"aa\":11}";
    CHECK(os_write_file(os_path_join(scope, dir, "merges.txt"),
                        "#version: 0.2\r\nb a\r\na b</w>\r\na a\r\n", 34, &err));
    Tokenizer *t = open_text(scope, TOKENIZER_CLIP, dir, "vocab.json", vocab, &err);
    CHECK(t);
    expect_ids(t, "ab", "3 2 4");
    expect_ids(t, "BAB", "3 8 1 4"); // the lower rank goes first
    expect_ids(t, "aaab", "3 11 2 4");
    expect_ids(t, "aca", "3 0 4 6 4");
    expect_ids(t, "a!", "3 6 10 4");
    mem_free(t);
    // Another padding, found in text as it stands, as SD 2 and XL have it.
    const char *config = "{\"pad_token\":\"!\",\"model_max_length\":9,\"added_tokens_decoder\":{"
                         "\"9\":{\"content\":\"!\",\"special\":true}}}";
    CHECK(os_write_file(os_path_join(scope, dir, "tokenizer_config.json"), config, strlen(config),
                        &err));
    t = tokenizer_open(NULL, TOKENIZER_CLIP, dir, &err);
    CHECK(t);
    assert_true(tokenizer_info(t)->pad == 9 && tokenizer_info(t)->max_tokens == 9);
    expect_ids(t, "a!", "3 6 9 4");
    mem_free(t);
    // Merges that are no merges: told with the file's whole name.
    static const char *const bad[] = {"", "#version: 0.2\na\xff b\n", "a b c\n"};
    char *merges = os_path_join(scope, dir, "merges.txt");
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        CHECK(os_write_file(merges, bad[i], strlen(bad[i]), &err));
        assert_null(tokenizer_open(NULL, TOKENIZER_CLIP, dir, &err));
        assert_non_null(strstr(err.text, mem_printf(scope, "%s: ", merges)));
        assert_non_null(strstr(err.text, "expected "));
    }
    scratch_remove(dir);
    mem_free(scope);
}

// ---- what is wrong with files -----------------------------------------------------------------

static void refuses_bad_files(void **state) {
    (void)state;
    static const struct { TokenizerKind kind; const char *name, *text, *says; } BAD[] = {
        {TOKENIZER_T5, "tokenizer.json", "", "JSON"},
        {TOKENIZER_T5, "tokenizer.json", "{}", "Unigram"},
        {TOKENIZER_T5, "tokenizer.json", "{\"model\":{\"type\":\"BPE\"}}", "found BPE"},
        {TOKENIZER_CLIP, "tokenizer.json", "{\"model\":{\"type\":\"Unigram\"}}", "found Unigram"},
        {TOKENIZER_T5, "tokenizer.json",
         "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\"]]}}", "score"},
        {TOKENIZER_T5, "tokenizer.json",
         "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",1],[\"a\",2]]}}", "once"},
        {TOKENIZER_T5, "tokenizer.json",
         "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",1]],\"unk_id\":-1}}", "unknown"},
        {TOKENIZER_T5, "tokenizer.json",
         "{\"model\":{\"type\":\"Unigram\",\"unk_id\":3,\"vocab\":[[\"<pad>\",1],[\"</s>\",2],"
         "[\"<unk>\",0]]}}", "<unk>"},
        {TOKENIZER_T5, "tokenizer.json",
         "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",1],[\"b\",1],[\"c\",2]]}}", "</s>"},
        {TOKENIZER_T5, "tokenizer.json",
         "{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"?\"},"
         "\"model\":{\"vocab\":[" T5_HEAD "[\"a\",1]]}}", "base64"},
        {TOKENIZER_T5, "tokenizer.json",
         "{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAAAAAAAAA=\"},"
         "\"model\":{\"vocab\":[" T5_HEAD "[\"a\",1]]}}", "character map"},
        {TOKENIZER_T5, "tokenizer.json",
         "{\"added_tokens\":[{\"content\":\"x\"}],\"model\":{\"vocab\":[" T5_HEAD "[\"a\",1]]}}",
         "an id each"},
        {TOKENIZER_T5, "spiece.model", "not a model", "SentencePiece"},
        {TOKENIZER_T5, "spiece.model", "", "SentencePiece"},
        {TOKENIZER_T5, "spiece.model", "\x0a\x03\x0a\x01" "a\x0a\x7f", "SentencePiece"},
        {TOKENIZER_T5, "spiece.model", "\x0a\x03\x0a\x01" "a\x12\x02\x18\x02", "unigram"},
        {TOKENIZER_CLIP, "vocab.json", "[]", "object"},
        {TOKENIZER_CLIP, "vocab.json", "{\"a\":-1}", "whole numbers"},
        {TOKENIZER_CLIP, "vocab.json", "{\"a\":4194304}", "whole numbers"},
        {TOKENIZER_CLIP, "vocab.json", "{\"a\":1,\"b\":1}", "one piece per id"},
        {TOKENIZER_CLIP, "vocab.json", "{\"a\":1}", "merges.txt"},
        {TOKENIZER_CLIP, "vocab.txt", "a\nb\n", "tokenizer.json, or vocab.json"},
    };
    void *scope = mem_new(NULL, 1);
    char *dir = scratch_new(scope);
    for (size_t i = 0; i < COUNT_OF(BAD); i++) {
        Error err = {0};
        const char *sub = mem_printf(scope, "%s/%zu", dir, i);
        Tokenizer *t = open_text(scope, BAD[i].kind, sub, BAD[i].name, BAD[i].text, &err);
        if (t || !strstr(err.text, BAD[i].says))
            fail_msg("%zu: expected an error with \"%s\", found \"%s\"", i, BAD[i].says, err.text);
        assert_int_equal(err.status, STATUS_FAILED);
        assert_non_null(strstr(err.text, BAD[i].name)); // the file is named
    }
    Error err = {0};
    // Folders and pipes in place of the files are refused, neither passed over nor waited for.
    static const char *const NAMES[] = {"tokenizer.json", "vocab.json", "spiece.model"};
    for (size_t i = 0; i < COUNT_OF(NAMES) * 2; i++) {
        const char *sub = mem_printf(scope, "%s/other-%zu", dir, i), *name = NAMES[i / 2];
        const char *path = os_path_join(scope, sub, name);
        assert_true(os_make_dirs(i % 2 ? sub : path, &err));
        if (i % 2) assert_int_equal(mkfifo(path, 0600), 0);
        assert_null(tokenizer_open(NULL, i / 2 == 1 ? TOKENIZER_CLIP : TOKENIZER_T5, sub, &err));
        assert_non_null(strstr(err.text, path));
        assert_non_null(strstr(err.text, i % 2 ? "found a device or pipe" : "found a folder"));
    }
    assert_null(tokenizer_open(NULL, TOKENIZER_T5, dir, &err));
    assert_non_null(strstr(err.text, "none of these files"));
    assert_null(tokenizer_open(NULL, TOKENIZER_CLIP, "/no/such/folder", &err));
    assert_non_null(strstr(err.text, "found nothing"));
    scratch_remove(dir);
    mem_free(scope);
}

// ---- hostile text -----------------------------------------------------------------------------

static void refuses_bad_text(void **state) {
    (void)state;
    static const struct { const char *text; size_t n; int offset; } BAD[] = {
        {"ab\xff", 3, 2}, {"\xc3", 1, 0}, {"a\xc0\x80", 3, 1}, {"\xed\xa0\x80", 3, 0},
        {"abc\xf4\x90\x80\x80", 7, 3}, {"\xe2\x82", 2, 0}, {"x\x80", 2, 1},
    };
    Tokenizer *t[2] = {builtin(TOKENIZER_CLIP), builtin(TOKENIZER_T5)};
    for (size_t i = 0; i < COUNT_OF(BAD); i++)
        for (int k = 0; k < 2; k++) {
            Error err = {0};
            Tokens out;
            assert_false(tokenizer_encode(t[k], BAD[i].text, BAD[i].n, 77, true, NULL, &out, &err));
            char offset[32];
            snprintf(offset, sizeof offset, "offset %d;", BAD[i].offset);
            assert_non_null(strstr(err.text, offset));
            assert_non_null(strstr(err.text, "UTF-8"));
        }
    mem_free(t[0]);
    mem_free(t[1]);
}

// Seconds of the processor: other programs' do not count.
static double encode_seconds(Tokenizer *t, const char *text, size_t n, void *scope, Tokens *out) {
    Error err = {0};
    clock_t from = clock();
    CHECK(tokenizer_encode(t, text, n, 77, true, scope, out, &err));
    return (double)(clock() - from) / CLOCKS_PER_SEC;
}

// A megabyte of anything takes no more than seconds, even in a build with checks (on a slow machine: in
// proportion to an eighth of it), and with a limit gives the begin of what it gives without.
static void long_text_is_quick(void **state) {
    (void)state;
    static const char *const UNITS[] = {"a", "a ", "ab'", "\xcc\x81\xcc\x96", "<|endoftext|>", "</s",
                                        "\xe6\x97\xa5", "\xe2\x96\x81", " ", "1", "\xef\xb7\xba"};
    enum { LONG = 1 << 20 };
    void *scope = mem_new(NULL, 1);
    char *text = mem_new(scope, LONG + 16);
    Tokenizer *t[2] = {builtin(TOKENIZER_CLIP), builtin(TOKENIZER_T5)};
    for (size_t u = 0; u < COUNT_OF(UNITS); u++) {
        size_t unit = strlen(UNITS[u]), n = LONG / unit * unit;
        for (size_t i = 0; i < n; i += unit) memcpy(text + i, UNITS[u], unit);
        for (int k = 0; k < 2; k++) {
            Error err = {0};
            Tokens all, some;
            double took = encode_seconds(t[k], text, n, scope, &some);
            if (took > 10) assert_true(took < 20 * encode_seconds(t[k], text, n / 8, scope, &all));
            CHECK(tokenizer_encode(t[k], text, n, 0, false, scope, &all, &err));
            assert_int_equal(some.used, MIN(all.used, 77));
            assert_int_equal(some.truncated, all.used > 77);
            assert_memory_equal(all.ids, some.ids, (size_t)(some.used - 1) * 4);
        }
    }
    Error err = {0};
    Tokens out;
    size_t much = (size_t)5 << 20;
    char *more = mem_new(scope, much);
    memset(more, 'a', much);
    assert_false(tokenizer_encode(t[0], more, much, 77, true, scope, &out, &err));
    assert_non_null(strstr(err.text, "at most 4 MiB"));
    mem_free(t[0]);
    mem_free(t[1]);
    mem_free(scope);
}

// ---- Unicode ----------------------------------------------------------------------------------

static void composes(void **state) {
    (void)state;
    static const struct { const char *from, *to; } CASES[] = {
        {"plain", "plain"},
        {"e\xcc\x81", "\xc3\xa9"},
        {"q\xcc\x87\xcc\xa3", "q\xcc\xa3\xcc\x87"},            // marks in order of class
        {"\xe2\x84\xab", "\xc3\x85"},                          // a singleton
        {"\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"}, // Hangul
        {"\xed\x95\x98\xe1\x86\xab", "\xed\x95\x9c"},
        {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"},           // excluded from composition
        {"a\xcc\xa8\xcc\x81", "\xc4\x85\xcc\x81"},             // composed once, blocked then
    };
    Error err = {0};
    Unicode *u = unicode_open(NULL, &err);
    CHECK(u);
    for (size_t i = 0; i < COUNT_OF(CASES); i++) {
        Text out = {.parent = u};
        unicode_nfc(u, CASES[i].from, strlen(CASES[i].from), &out);
        text_add(&out, "", 1);
        assert_string_equal(out.v, CASES[i].to);
    }
    assert_int_equal(unicode_grapheme(u, "e\xcc\x81x", 4), 3);
    assert_int_equal(unicode_grapheme(u, "\r\nx", 3), 2);
    assert_int_equal(unicode_grapheme(u, "\n\xcc\x81", 3), 1);
    // Flags: two and two.
    assert_int_equal(unicode_grapheme(u, "\xf0\x9f\x87\xa9\xf0\x9f\x87\xaa\xf0\x9f\x87\xa9", 12), 8);
    // A family: pictures joined.
    assert_int_equal(unicode_grapheme(u, "\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9x", 12), 11);
    mem_free(u);
    assert_null(unicode_read(NULL, (const uint8_t *)"\1\0\0\0", 4, &err));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clip_is_transformers), cmocka_unit_test(t5_is_transformers),
        cmocka_unit_test(folders_give_the_same), cmocka_unit_test(cuts_and_pads),
        cmocka_unit_test(clip_in_json), cmocka_unit_test(t5_in_json),
        cmocka_unit_test(text_is_not_cleaned_up), cmocka_unit_test(spiece_alone_and_beside_json),
        cmocka_unit_test(unigram_rules), cmocka_unit_test(bpe_rules),
        cmocka_unit_test(refuses_bad_files), cmocka_unit_test(refuses_bad_text),
        cmocka_unit_test(long_text_is_quick), cmocka_unit_test(composes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
