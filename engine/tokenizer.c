// tokenizer.c: opening, and what all kinds share: tokens spelled out in the text, start, end,
// padding, truncation.
#include "engine/tokenizer_impl.h"

#include "backend/os.h"
#include "engine/gzip.h"

extern const unsigned char kiln_data_clip_merges[], kiln_data_t5_spiece[];
extern const size_t kiln_data_clip_merges_size, kiln_data_t5_spiece_size;

enum { MAX_BUILTIN = 4 << 20, MAX_SPIECE = 64 << 20, T5_EXTRA = 100 };

// What a kind is called and needs; each token is one of these names where no file says otherwise.
static const struct Kind {
    const char *name;
    const char *start, *end, *pad, *unknown; // start NULL: none
    int max_tokens;
    void (*normalize)(const Tokenizer *t, const char *text, size_t n, Text *out);
    void (*split)(const Tokenizer *t, const char *text, size_t n, Ids *out);
} KINDS[] = {
    [TOKENIZER_CLIP] = {"CLIP", "<|startoftext|>", "<|endoftext|>", "<|endoftext|>",
                        "<|endoftext|>", 77, bpe_normalize, bpe_split},
    [TOKENIZER_T5] = {"T5", NULL, "</s>", "<pad>", "<unk>", 512, unigram_normalize, unigram_split},
};

const TokenizerInfo *tokenizer_info(const Tokenizer *t) { return &t->info; }

const char *tokenizer_piece(const Tokenizer *t, int id) {
    return id < 0 || id >= t->vocab->count ? NULL : t->vocab->piece[id].text;
}

int tokenizer_find(const Tokenizer *t, const char *piece) {
    return vocab_find(t->vocab, piece, strlen(piece));
}

// ---- added tokens -----------------------------------------------------------------------------

bool tokenizer_add(Tokenizer *t, int64_t id, const char *text, const AddedToken *flags,
                   Error *err) {
    size_t n = strlen(text);
    int there = vocab_find(t->vocab, text, n);
    if (there < 0 && !vocab_put(t->vocab, id, text, n, err)) return false;
    AddedToken token = *flags;
    token.id = there < 0 ? (int)id : there; // as `tokenizers`: the vocabulary knows better
    token.text = t->vocab->piece[token.id].text;
    token.n = n;
    for (int i = 0; i < t->added.n; i++) // listed again: the last counts
        if (t->added.v[i].id == token.id) {
            t->added.v[i] = token;
            return true;
        }
    ARR_PUSH(t, &t->added, token);
    return true;
}

// The tries that find the added tokens in text as given and in normalised text.
static void build_added(Tokenizer *t) {
    TrieKey *keys = MEM_ARRAY(NULL, TrieKey, t->added.n + 1);
    for (int which = 0; which < 2; which++) {
        int count = 0;
        for (int i = 0; i < t->added.n; i++) {
            const AddedToken *a = &t->added.v[i];
            if (a->normalized != which) continue;
            Text text = {.parent = keys};
            if (which)
                KINDS[t->info.kind].normalize(t, a->text, a->n, &text);
            else
                text_add(&text, a->text, a->n);
            if (text.n) keys[count++] = (TrieKey){text.v, text.n, i};
        }
        t->find[which] = count ? trie_new(t, keys, count) : NULL;
    }
    mem_free(keys);
}

// The longest token that text[n] begins with: its index, -1 for none.
static int token_at(const Trie *trie, const char *text, size_t n, size_t *length) {
    int found = -1;
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        node = trie_step(trie, node, (uint8_t)text[i]);
        if (!node) break;
        int value = trie_value(trie, node);
        if (value < 0) continue;
        found = value;
        *length = i + 1;
    }
    return found;
}

// Bytes of white space at the end of text[n], or at its begin.
static size_t spaces_before(const Tokenizer *t, const char *text, size_t n) {
    size_t end = n;
    while (end) {
        size_t at = end - 1;
        uint32_t code;
        while (at && ((uint8_t)text[at] & 0xc0) == 0x80) at--;
        utf8_get(text + at, &code);
        if (!(unicode_class(t->unicode, code) & UNICODE_SPACE)) break;
        end = at;
    }
    return n - end;
}

static size_t spaces_behind(const Tokenizer *t, const char *text, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint32_t code;
        size_t length = utf8_get(text + i, &code);
        if (!(unicode_class(t->unicode, code) & UNICODE_SPACE)) break;
        i += length;
    }
    return i;
}

// Cuts text at the added tokens that are looked for in it (0: as given, 1: normalised); what is
// between them goes a step further: 0 is normalised and comes here again, 1 goes to the model.
static void cut(const Tokenizer *t, int which, const char *text, size_t n, Ids *out);

static void between(const Tokenizer *t, int which, const char *text, size_t n, Ids *out) {
    const struct Kind *kind = &KINDS[t->info.kind];
    if (!n || out->full) return;
    if (which) {
        kind->split(t, text, n, out);
        return;
    }
    Text normal = {0};
    kind->normalize(t, text, n, &normal);
    if (normal.n) cut(t, 1, normal.v, normal.n, out); // a map may leave nothing
    mem_free(normal.v);
}

static void cut(const Tokenizer *t, int which, const char *text, size_t n, Ids *out) {
    const Trie *trie = t->find[which];
    size_t from = 0;
    for (size_t i = 0, length = 0; trie && i < n && !out->full; i++) {
        int found = token_at(trie, text + i, n - i, &length);
        if (found < 0) continue;
        const AddedToken *a = &t->added.v[found];
        size_t start = i, stop = i + length;
        if (a->lstrip) start -= spaces_before(t, text + from, start - from);
        if (a->rstrip) stop += spaces_behind(t, text + stop, n - stop);
        between(t, which, text + from, start - from, out);
        ids_add(out, a->id);
        from = stop;
        i = stop - 1;
    }
    between(t, which, text + from, n - from, out);
}

// ---- opening ----------------------------------------------------------------------------------

static Tokenizer *new_tokenizer(void *parent, TokenizerKind kind, const char *source, Error *err) {
    Tokenizer *t = MEM_NEW(parent, Tokenizer);
    t->info.kind = kind;
    t->info.source = mem_strdup(t, source);
    t->info.start = t->info.end = t->info.pad = t->info.unknown = -1;
    t->info.max_tokens = KINDS[kind].max_tokens;
    t->vocab = vocab_new(t);
    t->unicode = unicode_open(t, err);
    if (t->unicode) return t;
    mem_free(t);
    return NULL;
}

// A special token: what the files said, else the kind's own name for it. It is found in text.
static bool special(Tokenizer *t, int *id, const char *name, Error *err) {
    if (!name) return true;
    if (*id < 0) *id = vocab_find(t->vocab, name, strlen(name));
    const char *piece = tokenizer_piece(t, *id);
    if (!piece)
        return err_failed(err, "vocabulary: expected the token %s, found none; is it %s's?", name,
                          KINDS[t->info.kind].name);
    for (int i = 0; i < t->added.n; i++)
        if (t->added.v[i].id == *id) return true;
    return t->sentencepiece || tokenizer_add(t, *id, piece, &(AddedToken){0}, err);
}

static bool finish(Tokenizer *t, Error *err) {
    const struct Kind *kind = &KINDS[t->info.kind];
    bool ok = special(t, &t->info.unknown, kind->unknown, err) &&
              special(t, &t->info.start, kind->start, err) &&
              special(t, &t->info.end, kind->end, err) && special(t, &t->info.pad, kind->pad, err);
    if (ok && t->unigram) ok = unigram_build(t, err);
    if (!ok) return false;
    t->info.count = t->vocab->count;
    if (!t->sentencepiece) build_added(t);
    return true;
}

static bool builtin_clip(Tokenizer *t, const char *merges, size_t n, Error *err) {
    if (!bpe_implied_vocab(t->vocab, merges, n, err)) return false;
    bpe_new(t);
    // As the published configuration has them: only the start is found in normalised text.
    const char *start = KINDS[TOKENIZER_CLIP].start;
    return bpe_read_merges(t, merges, n, err) &&
           tokenizer_add(t, -1, start, &(AddedToken){.normalized = true}, err);
}

static bool builtin_t5(Tokenizer *t, const uint8_t *spiece, size_t n, Error *err) {
    if (!tokenizer_read_spiece(t, spiece, n, err)) return false;
    int first = t->vocab->count; // <extra_id_99> .. <extra_id_0>
    for (int i = 0; i < T5_EXTRA; i++) {
        char name[24];
        snprintf(name, sizeof name, "<extra_id_%d>", T5_EXTRA - 1 - i);
        if (!tokenizer_add(t, first + i, name, &(AddedToken){0}, err)) return false;
        unigram_score(t, first + i, 0, PIECE_NORMAL);
    }
    return true;
}

Tokenizer *tokenizer_builtin(void *parent, TokenizerKind kind, Error *err) {
    bool clip = kind == TOKENIZER_CLIP;
    Tokenizer *t = new_tokenizer(parent, kind, "built-in", err);
    if (!t) return NULL;
    size_t n = 0;
    uint8_t *data = gzip_unpack(t, clip ? kiln_data_clip_merges : kiln_data_t5_spiece,
                                clip ? kiln_data_clip_merges_size : kiln_data_t5_spiece_size,
                                MAX_BUILTIN, &n, err);
    bool ok = data && (clip ? builtin_clip(t, (const char *)data, n, err)
                            : builtin_t5(t, data, n, err)) && finish(t, err);
    mem_free(data);
    if (ok) return t;
    err_prefix(err, "built-in %s tokenizer", KINDS[kind].name);
    mem_free(t);
    return NULL;
}

static bool open_spiece(Tokenizer *t, const char *path, Error *err) {
    size_t n = 0;
    uint8_t *data = os_read_file(NULL, path, MAX_SPIECE, &n, err);
    if (!data) return false;
    t->sentencepiece = true;
    bool ok = tokenizer_read_spiece(t, data, n, err);
    mem_free(data);
    return ok;
}

// Files that hold a vocabulary, in the order they are looked for.
static const struct VocabFile {
    TokenizerKind kind;
    const char *name;
    bool (*read)(Tokenizer *t, const char *path, Error *err);
} FILES[] = {
    {TOKENIZER_CLIP, "tokenizer.json", tokenizer_read_json},
    {TOKENIZER_CLIP, "vocab.json", tokenizer_read_vocab_json},
    {TOKENIZER_T5, "tokenizer.json", tokenizer_read_json},
    {TOKENIZER_T5, "spiece.model", open_spiece},
};

// The file to read: path itself, or the first of FILES in it. NULL when there is none.
static const struct VocabFile *choose(void *parent, TokenizerKind kind, const char *path,
                                      char **file, Error *err) {
    PathKind is = os_path_kind(path);
    for (size_t i = 0; i < COUNT_OF(FILES); i++) {
        if (FILES[i].kind != kind) continue;
        // A file of its own may have any name with the right end.
        const char *end = strrchr(FILES[i].name, '.');
        *file = is == PATH_DIR ? os_path_join(parent, path, FILES[i].name)
                               : mem_strdup(parent, path);
        if (is == PATH_DIR ? os_path_kind(*file) != PATH_NONE
                           : is == PATH_FILE && (str_ends(path, FILES[i].name) ||
                                                 (strcmp(end, ".json") && str_ends(path, end))))
            return &FILES[i];
    }
    bool clip = kind == TOKENIZER_CLIP;
    err_failed(err, "%s: expected %s's tokenizer (%s), found %s; leave it out to use the built-in "
                    "one", path, KINDS[kind].name,
               clip ? "tokenizer.json, or vocab.json and merges.txt"
                    : "tokenizer.json or spiece.model",
               is == PATH_NONE ? "nothing" : is == PATH_DIR ? "none of these files" : "another file");
    return NULL;
}

Tokenizer *tokenizer_open(void *parent, TokenizerKind kind, const char *path, Error *err) {
    char *file = NULL;
    void *scope = mem_new(NULL, 1);
    const struct VocabFile *found = choose(scope, kind, path, &file, err);
    Tokenizer *t = found ? new_tokenizer(parent, kind, file, err) : NULL;
    if (t) {
        bool ok = found->read(t, file, err);
        if (!ok) err_prefix(err, "%s", file);
        ok = ok && (t->sentencepiece || tokenizer_read_config(t, os_dir_name(scope, file), err));
        if (ok && !finish(t, err)) {
            err_prefix(err, "%s", file);
            ok = false;
        }
        if (!ok) {
            mem_free(t);
            t = NULL;
        }
    }
    mem_free(scope);
    return t;
}

// ---- encoding ---------------------------------------------------------------------------------

static bool encode(const Tokenizer *t, const char *text, size_t n, Ids *ids, Error *err) {
    size_t bad;
    if (n > TOKENIZER_MAX_TEXT)
        return err_failed(err, "expected at most %d MiB of text, found %zu bytes; shorten "
                               "it", TOKENIZER_MAX_TEXT >> 20, n);
    if (!utf8_valid(text, n, &bad))
        return err_failed(err, "expected text in UTF-8, found byte 0x%02x at offset %zu; "
                               "save the text as UTF-8", (uint8_t)text[bad], bad);
    if (t->sentencepiece)
        between(t, 0, text, n, ids);
    else
        cut(t, 0, text, n, ids);
    return true;
}

bool tokenizer_encode_text(const Tokenizer *t, const char *text, size_t n, int limit,
                           void *parent, Tokens *out, Error *err) {
    Ids ids = {.parent = parent, .limit = MAX(limit, 0)};
    *out = (Tokens){0};
    if (!encode(t, text, n, &ids, err)) return false;
    if (!ids.v) ids.v = MEM_ARRAY(parent, int32_t, 1);
    *out = (Tokens){.ids = ids.v, .count = ids.n, .used = ids.n, .truncated = ids.full};
    return true;
}

bool tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int max_tokens, bool pad,
                      void *parent, Tokens *out, Error *err) {
    int special_count = 1 + (t->info.start >= 0);
    *out = (Tokens){0};
    if (max_tokens && max_tokens < special_count)
        return err_failed(err, "tokens: expected room for %d or more, found %d; raise the limit",
                          special_count, max_tokens);
    // One more than fits, so that at a limit of the special tokens alone nothing is "unlimited".
    int limit = max_tokens ? max_tokens - special_count : 0;
    Ids ids = {.limit = max_tokens ? limit + 1 : 0};
    if (!encode(t, text, n, &ids, err)) {
        mem_free(ids.v);
        return false;
    }
    int kept = max_tokens ? MIN(ids.n, limit) : ids.n;
    out->truncated = kept < ids.n;
    out->used = kept + special_count;
    out->count = pad ? MAX(max_tokens, out->used) : out->used;
    out->ids = MEM_ARRAY(parent, int32_t, out->count);
    int at = 0;
    if (t->info.start >= 0) out->ids[at++] = t->info.start;
    if (kept) memcpy(out->ids + at, ids.v, (size_t)kept * sizeof *ids.v);
    at += kept;
    out->ids[at++] = t->info.end;
    while (at < out->count) out->ids[at++] = t->info.pad;
    mem_free(ids.v);
    return true;
}
