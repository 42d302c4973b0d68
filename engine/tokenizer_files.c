// tokenizer_files.c: tokenizer.json, vocab.json and merges.txt, the configuration beside them, and
// SentencePiece's protobuf.
#include "engine/tokenizer_impl.h"

#include "backend/os.h"

enum { MAX_JSON = 64 << 20, MAX_MERGES = 64 << 20, MAX_ADDED = 100000 };

// ---- a merges.txt beside a vocab.json ---------------------------------------------------------

// Members "piece": id.
static bool read_ids(Tokenizer *t, const Json *object, Error *err) {
    if (!json_is_object(object) || !json_first(object))
        return err_failed(err, "vocabulary: expected an object of pieces and ids, found something "
                               "else");
    for (const Json *m = json_first(object); m; m = json_next(m)) {
        int64_t id;
        if (!json_int_in(m, 0, VOCAB_MAX_IDS - 1, &id))
            return err_failed(err, "vocabulary: expected whole numbers as ids, found another for "
                                   "\"%s\"", json_name(m));
        if (!vocab_put(t->vocab, id, json_name(m), strlen(json_name(m)), err)) return false;
    }
    return true;
}

bool tokenizer_read_vocab_json(Tokenizer *t, const char *path, Error *err) {
    void *scope = mem_new(NULL, 1);
    Json *json = json_parse_file(path, MAX_JSON, err);
    bool ok = json && read_ids(t, json, err);
    json_free(json);
    size_t n = 0;
    const char *merges = os_path_join(scope, os_dir_name(scope, path), "merges.txt");
    uint8_t *data = ok ? os_read_file(scope, merges, MAX_MERGES, &n, err) : NULL;
    size_t bad;
    if (data && !n) {
        err_failed(err, "%s: expected merges of pieces, found an empty file", merges);
        data = NULL;
    } else if (data && !utf8_valid((const char *)data, n, &bad)) {
        err_failed(err, "%s: expected UTF-8, found another byte at offset %zu", merges, bad);
        data = NULL;
    }
    if (data) bpe_new(t);
    ok = data && (bpe_read_merges(t, (const char *)data, n, err) || err_prefix(err, "%s", merges));
    mem_free(scope);
    return ok;
}

// ---- tokenizer.json ---------------------------------------------------------------------------

// "merges": strings "a b" or pairs ["a", "b"].
static bool read_merges(Tokenizer *t, const Json *merges, Error *err) {
    if (!json_is_array(merges))
        return err_failed(err, "merges: expected a list, found none");
    for (const Json *m = json_first(merges); m; m = json_next(m)) {
        const char *a = json_string(m, NULL), *b = a ? strchr(a, ' ') : NULL;
        size_t an = b ? (size_t)(b - a) : 0;
        if (b) b++;
        const Json *first = json_is_array(m) ? json_first(m) : NULL;
        const Json *second = first ? json_next(first) : NULL;
        if (second && !json_next(second)) {
            a = json_string(first, NULL);
            b = json_string(second, NULL);
            an = a ? strlen(a) : 0;
        }
        if (!a || !b) return err_failed(err, "merges: expected two pieces each, found other values");
        if (!bpe_merge(t, a, an, b, strlen(b), err)) return false;
    }
    return true;
}

// "vocab": [["piece", score], ...] in order of ids.
static bool read_scores(Tokenizer *t, const Json *vocab, Error *err) {
    int id = 0;
    if (!json_is_array(vocab) || !json_first(vocab))
        return err_failed(err, "vocabulary: expected a list of pieces and scores, found none");
    for (const Json *m = json_first(vocab); m; m = json_next(m), id++) {
        const Json *piece = json_is_array(m) ? json_first(m) : NULL;
        const Json *score = piece ? json_next(piece) : NULL;
        double value = json_number(score, 0);
        if (!json_is_string(piece) || !json_is_number(score) || !(value > -1e9 && value < 1e9))
            return err_failed(err, "vocabulary: expected a piece and its score, found other values "
                                   "at id %d", id);
        const char *text = json_string(piece, "");
        if (!vocab_put(t->vocab, id, text, strlen(text), err)) return false;
        unigram_score(t, id, value, PIECE_NORMAL);
    }
    return true;
}

static int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static uint8_t *base64(void *parent, const char *text, size_t *size) {
    size_t n = strlen(text), out = 0;
    while (n && text[n - 1] == '=') n--;
    uint8_t *data = mem_new(parent, n / 4 * 3 + 4);
    uint32_t bits = 0;
    for (size_t i = 0; i < n; i++) {
        int digit = base64_digit(text[i]);
        if (digit < 0) {
            mem_free(data);
            return NULL;
        }
        bits = bits << 6 | (uint32_t)digit;
        if (i % 4 == 0) continue;
        data[out++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
    }
    *size = out;
    return data;
}

// The character map is the one part of the file's own normalisation that transformers keeps: white
// space it treats as its T5 class does, whatever the file says.
static bool read_charsmap(Tokenizer *t, const Json *normalizer, Error *err) {
    const Json *list = json_get(normalizer, "normalizers");
    const Json *n = json_is_array(list) ? json_first(list) : normalizer;
    for (; n; n = n == normalizer ? NULL : json_next(n)) {
        if (strcmp(json_string(json_get(n, "type"), ""), "Precompiled")) continue;
        size_t size = 0;
        const char *text = json_string(json_get(n, "precompiled_charsmap"), NULL);
        uint8_t *map = text ? base64(NULL, text, &size) : NULL;
        bool ok = map ? unigram_charsmap(t, map, size, err)
                      : err_failed(err, "character map: expected base64, found something else");
        mem_free(map);
        return ok;
    }
    return true;
}

// One added token: {"content": TEXT, "normalized": ...}.
static bool add_token(Tokenizer *t, int64_t id, const Json *token, Error *err) {
    const char *text = json_string(json_get(token, "content"), NULL);
    if (!text) return err_failed(err, "added tokens: expected a text for id %lld, found none",
                                 (long long)id);
    if (!*text) return true; // as `tokenizers`
    if (json_bool(json_get(token, "single_word"), false))
        return err_failed(err, "added tokens: expected \"single_word\" false, found true for "
                               "\"%s\"; only such tokens are supported", text);
    bool special = json_bool(json_get(token, "special"), false);
    AddedToken flags = {.normalized = json_bool(json_get(token, "normalized"), !special),
                        .lstrip = json_bool(json_get(token, "lstrip"), false),
                        .rstrip = json_bool(json_get(token, "rstrip"), false)};
    if (t->added.n >= MAX_ADDED)
        return err_failed(err, "added tokens: expected at most %d, found more", MAX_ADDED);
    return tokenizer_add(t, id, text, &flags, err);
}

static bool read_added(Tokenizer *t, const Json *list, Error *err) {
    for (const Json *a = json_is_array(list) ? json_first(list) : NULL; a; a = json_next(a)) {
        int64_t id;
        if (!json_int_in(json_get(a, "id"), 0, VOCAB_MAX_IDS - 1, &id))
            return err_failed(err, "added tokens: expected an id each, found none");
        if (!add_token(t, id, a, err)) return false;
    }
    return true;
}

// "model" of the kind that is asked for.
static bool read_model(Tokenizer *t, const Json *json, Error *err) {
    const Json *model = json_get(json, "model");
    bool clip = t->info.kind == TOKENIZER_CLIP;
    const char *want = clip ? "BPE" : "Unigram", *type = json_string(json_get(model, "type"), NULL);
    const Json *vocab = json_get(model, "vocab");
    if (!type) type = json_get(model, "merges") ? "BPE" : json_is_array(vocab) ? "Unigram" : "?";
    if (strcmp(type, want))
        return err_failed(err, "tokenizer: expected a %s model, found %s; is it another model's?",
                          want, type);
    if (clip) {
        if (!read_ids(t, vocab, err)) return false;
        bpe_new(t);
        return read_merges(t, json_get(model, "merges"), err);
    }
    unigram_new(t);
    int64_t unknown = 2;
    const Json *id = json_get(model, "unk_id");
    if (id && !json_is_null(id) && !json_int_in(id, 0, VOCAB_MAX_IDS - 1, &unknown))
        return err_failed(err, "vocabulary: expected the id of unknown pieces, found other values");
    if (!read_scores(t, vocab, err)) return false;
    t->info.unknown = (int)unknown;
    return read_charsmap(t, json_get(json, "normalizer"), err);
}

bool tokenizer_read_json(Tokenizer *t, const char *path, Error *err) {
    Json *json = json_parse_file(path, MAX_JSON, err);
    if (!json) return false;
    bool ok = read_model(t, json, err) && read_added(t, json_get(json, "added_tokens"), err);
    json_free(json);
    return ok;
}

// ---- tokenizer_config.json, special_tokens_map.json -------------------------------------------

// A special token's text: "TEXT" or {"content": "TEXT"}.
static const char *token_text(const Json *v) {
    return json_string(json_is_object(v) ? json_get(v, "content") : v, NULL);
}

static bool read_special(Tokenizer *t, const Json *json, Error *err) {
    const struct { const char *name; int *id; } NAMES[] = {
        {"bos_token", t->info.kind == TOKENIZER_CLIP ? &t->info.start : NULL},
        {"eos_token", &t->info.end},
        {"pad_token", &t->info.pad},
        // T5's is a number of the model (2), whatever the configuration calls it.
        {"unk_token", t->info.kind == TOKENIZER_CLIP ? &t->info.unknown : NULL},
    };
    for (size_t i = 0; i < COUNT_OF(NAMES); i++) {
        const Json *v = json_get(json, NAMES[i].name);
        const char *text = token_text(v);
        if (!text || !*text || !NAMES[i].id) continue;
        int id = vocab_find(t->vocab, text, strlen(text));
        if (id < 0)
            return err_failed(err, "%s: expected a piece of the vocabulary, found \"%s\"",
                              NAMES[i].name, text);
        *NAMES[i].id = id;
        bool known = false;
        for (int k = 0; k < t->added.n; k++) known = known || t->added.v[k].id == id;
        if (known) continue;
        AddedToken flags = {.normalized = json_bool(json_get(v, "normalized"), false),
                            .lstrip = json_bool(json_get(v, "lstrip"), false),
                            .rstrip = json_bool(json_get(v, "rstrip"), false)};
        if (!tokenizer_add(t, id, text, &flags, err)) return false;
    }
    return true;
}

static bool apply_config(Tokenizer *t, const Json *config, Error *err) {
    const Json *added = json_get(config, "added_tokens_decoder");
    if (json_is_object(added)) t->added.n = 0; // it stands in place of all others
    for (const Json *a = json_is_object(added) ? json_first(added) : NULL; a; a = json_next(a)) {
        int64_t id = 0;
        const char *digit = json_name(a);
        for (; *digit >= '0' && *digit <= '9' && id < VOCAB_MAX_IDS; digit++)
            id = id * 10 + (*digit - '0');
        if (*digit || digit == json_name(a))
            return err_failed(err, "added_tokens_decoder: expected ids as names, found \"%s\"",
                              json_name(a));
        if (!add_token(t, id, a, err)) return false;
    }
    double most = json_number(json_get(config, "model_max_length"), 0);
    if (most >= 2 && most <= 1 << 20) t->info.max_tokens = (int)most; // 1e30: no limit
    return read_special(t, config, err);
}

// As transformers: the map of special tokens counts only where the configuration lists no added
// tokens.
bool tokenizer_read_config(Tokenizer *t, const char *folder, Error *err) {
    static const char *const NAMES[] = {"tokenizer_config.json", "special_tokens_map.json"};
    void *scope = mem_new(NULL, 1);
    bool ok = true, decided = false;
    for (size_t i = 0; ok && i < COUNT_OF(NAMES) && !decided; i++) {
        const char *path = os_path_join(scope, folder, NAMES[i]);
        if (os_path_kind(path) == PATH_NONE) continue;
        Json *json = json_parse_file(path, MAX_JSON, err);
        ok = json && (i ? read_special(t, json, err) : apply_config(t, json, err));
        if (!ok) err_prefix(err, "%s", path);
        decided = ok && json_get(json, "added_tokens_decoder");
        json_free(json);
    }
    mem_free(scope);
    return ok;
}

// ---- spiece.model -----------------------------------------------------------------------------

// A field of a protobuf message: number, and either a number or bytes.
typedef struct Field { uint32_t number, wire; uint64_t value; const uint8_t *bytes; size_t n; } Field;
typedef struct Proto { const uint8_t *at, *end; bool broken; } Proto;

static uint64_t varint(Proto *p) {
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (p->at == p->end) break;
        uint8_t b = *p->at++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) return v;
    }
    p->broken = true;
    return 0;
}

// The next field; false at the end or at nonsense (`broken`).
static bool next_field(Proto *p, Field *f) {
    enum { VARINT, FIXED64, BYTES, FIXED32 = 5 };
    if (p->at == p->end || p->broken) return false;
    uint64_t key = varint(p), length = 0;
    *f = (Field){.number = (uint32_t)MIN(key >> 3, UINT32_MAX), .wire = key & 7};
    if (f->wire == VARINT) f->value = varint(p);
    else if (f->wire == BYTES) length = varint(p);
    else if (f->wire == FIXED32) length = 4;
    else if (f->wire == FIXED64) length = 8;
    else p->broken = true;
    if (p->broken || length > (uint64_t)(p->end - p->at)) return !(p->broken = true);
    f->bytes = p->at;
    f->n = (size_t)length;
    p->at += length;
    return true;
}

static bool fail_spiece(Error *err, const char *expected) {
    return err_failed(err, "spiece: expected %s, found something else; is it a SentencePiece model?",
                      expected);
}

static float le_float(const uint8_t *p) {
    uint32_t bits = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static bool read_piece(Tokenizer *t, int id, const Field *message, Error *err) {
    Proto p = {message->bytes, message->bytes + message->n, false};
    Field f, piece = {0};
    float score = 0;
    uint64_t kind = PIECE_NORMAL;
    while (next_field(&p, &f)) {
        if (f.number == 1 && f.wire == 2) piece = f;
        if (f.number == 2 && f.wire == 5) score = le_float(f.bytes);
        if (f.number == 3 && f.wire == 0) kind = f.value;
    }
    size_t bad;
    if (p.broken || !piece.n || !utf8_valid((const char *)piece.bytes, piece.n, &bad) ||
        memchr(piece.bytes, 0, piece.n) || !(score > -1e9f && score < 1e9f) ||
        kind < PIECE_NORMAL || kind > PIECE_BYTE)
        return fail_spiece(err, "pieces of text with a score");
    if (kind == PIECE_BYTE)
        return err_failed(err, "spiece: expected a vocabulary without bytes as pieces, found some; "
                               "is it another model's?");
    if (kind == PIECE_UNKNOWN && t->info.unknown < 0) t->info.unknown = id;
    if (!vocab_put(t->vocab, id, (const char *)piece.bytes, piece.n, err)) return false;
    unigram_score(t, id, score, (int)kind);
    return true;
}

// TrainerSpec: the type of model must be unigram (1, the default), spaces in front of words.
static bool read_trainer(const Field *message, Error *err) {
    Proto p = {message->bytes, message->bytes + message->n, false};
    Field f;
    while (next_field(&p, &f)) {
        if (f.number == 3 && f.wire == 0 && f.value != 1)
            return err_failed(err, "spiece: expected a unigram model (1), found type %llu; is it "
                                   "another model's?", (unsigned long long)f.value);
        if ((f.number == 24 || f.number == 35) && f.wire == 0 && f.value)
            return err_failed(err, "spiece: expected spaces before words and no byte fallback, "
                                   "found one of these; is it another model's?");
    }
    return !p.broken || fail_spiece(err, "a whole trainer's record");
}

static bool read_normalizer(Tokenizer *t, const Field *message, Error *err) {
    Proto p = {message->bytes, message->bytes + message->n, false};
    Field f, map = {0};
    bool dummy = true, remove = true, escape = true;
    while (next_field(&p, &f)) {
        if (f.number == 2 && f.wire == 2) map = f;
        if (f.number == 3 && f.wire == 0) dummy = f.value;
        if (f.number == 4 && f.wire == 0) remove = f.value;
        if (f.number == 5 && f.wire == 0) escape = f.value;
    }
    if (p.broken) return fail_spiece(err, "a whole record of the normalisation");
    unigram_spaces(t, dummy, remove, escape);
    return !map.n || unigram_charsmap(t, map.bytes, map.n, err);
}

bool tokenizer_read_spiece(Tokenizer *t, const uint8_t *data, size_t n, Error *err) {
    Proto p = {data, data + n, false};
    Field f, trainer = {0}, normalizer = {0};
    int id = 0;
    unigram_new(t);
    while (next_field(&p, &f)) {
        if (f.wire != 2) continue;
        if (f.number == 1 && !read_piece(t, id++, &f, err)) return false;
        if (f.number == 2) trainer = f;
        if (f.number == 3) normalizer = f;
    }
    if (p.broken || !id) return fail_spiece(err, "a list of pieces");
    return (!trainer.bytes || read_trainer(&trainer, err)) && // left out: all defaults
           (!normalizer.bytes || read_normalizer(t, &normalizer, err));
}
