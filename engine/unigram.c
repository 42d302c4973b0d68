// unigram.c: T5's unigram pieces: of all ways to cut a text into pieces of the vocabulary the one
// of the largest sum of scores (Kudo 2018), found by the Viterbi algorithm.
//
// Two libraries do this with small differences, and both are followed to the id:
// - `tokenizers` (a folder with tokenizer.json): the character map is applied per grapheme cluster,
//   words are cut at white space and encoded apart, sums are in double precision;
// - SentencePiece (a bare spiece.model): the map takes the longest match, the whole text is one
//   sequence, sums are kept in single precision; control pieces are never found in text.
#include "engine/tokenizer_impl.h"

static const char SPACE_MARK[] = "\xe2\x96\x81"; // U+2581 stands for a space
static const double UNKNOWN_PENALTY = 10;         // below the worst score

struct Unigram {
    double *score;
    uint8_t *kind;
    int n, cap;
    Trie *pieces, *user; // user: symbols that normalisation leaves alone; NULL when none
    double unknown;      // score of a character without a piece
    double best;         // the largest score
    uint32_t *unit;      // the character map: a double array (Aoe 1989), NULL when there is none
    uint32_t units;
    char *target;        // what it maps to: zero-ended strings
    uint32_t target_size;
    bool dummy_prefix, remove_extra, escape;
};

void unigram_new(Tokenizer *t) {
    t->unigram = MEM_NEW(t, Unigram);
    unigram_spaces(t, true, true, true);
}

void unigram_score(Tokenizer *t, int id, double score, int kind) {
    Unigram *u = t->unigram;
    if (id >= u->cap) {
        u->cap = MAX(id + 1, u->cap * 2 + 256);
        u->score = mem_resize(u, u->score, (size_t)u->cap * sizeof *u->score);
        u->kind = mem_resize(u, u->kind, (size_t)u->cap);
    }
    u->n = MAX(u->n, id + 1);
    u->score[id] = score;
    u->kind[id] = (uint8_t)kind;
}

void unigram_spaces(Tokenizer *t, bool dummy_prefix, bool remove_extra, bool escape) {
    t->unigram->dummy_prefix = dummy_prefix;
    t->unigram->remove_extra = remove_extra;
    t->unigram->escape = escape;
}

bool unigram_build(Tokenizer *t, Error *err) {
    Unigram *u = t->unigram;
    if (t->info.unknown < 0 || t->info.unknown >= u->n)
        return err_failed(err, "vocabulary: expected a piece for unknown characters, found none");
    TrieKey *keys = MEM_ARRAY(NULL, TrieKey, u->n), *user = MEM_ARRAY(NULL, TrieKey, u->n);
    int count = 0, users = 0;
    bool first = true;
    for (int id = 0; id < u->n; id++) {
        TrieKey key = {t->vocab->piece[id].text, t->vocab->piece[id].n, id};
        int kind = u->kind[id];
        // `tokenizers` knows no kinds: all its pieces are found, and their scores count.
        if (!key.text || (t->sentencepiece && kind != PIECE_NORMAL && kind != PIECE_USER)) continue;
        keys[count++] = key;
        if (kind == PIECE_USER) user[users++] = key;
        if (t->sentencepiece && kind != PIECE_NORMAL) continue;
        if (first || u->score[id] < u->unknown) u->unknown = u->score[id];
        if (first || u->score[id] > u->best) u->best = u->score[id];
        first = false;
    }
    u->unknown -= UNKNOWN_PENALTY;
    if (t->sentencepiece) u->unknown = (float)u->unknown;
    u->pieces = trie_new(u, keys, count);
    u->user = t->sentencepiece && users ? trie_new(u, user, users) : NULL;
    mem_free(keys);
    mem_free(user);
    return true;
}

// ---- the character map ------------------------------------------------------------------------

static uint32_t le32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

bool unigram_charsmap(Tokenizer *t, const uint8_t *map, size_t n, Error *err) {
    Unigram *u = t->unigram;
    if (!n) return true;
    uint32_t size = n < 4 ? 0 : le32(map);
    if (n < 8 || size < 4 || size % 4 || size > n - 4 || n - 4 - size > UINT32_MAX / 2)
        return err_failed(err, "character map: expected a trie and its strings, found %zu bytes "
                               "of something else", n);
    size_t bad, strings = n - 4 - size;
    if (!utf8_valid((const char *)map + 4 + size, strings, &bad))
        return err_failed(err, "character map: expected UTF-8, found another byte at offset %zu",
                          4 + size + bad);
    u->units = size / 4;
    u->unit = MEM_ARRAY(u, uint32_t, u->units);
    for (uint32_t i = 0; i < u->units; i++) u->unit[i] = le32(map + 4 + 4 * (size_t)i);
    u->target_size = (uint32_t)strings;
    u->target = mem_strndup(u, (const char *)map + 4 + size, strings);
    return true;
}

// A unit of the double array: bits 0-7 the byte that leads here, bit 8 whether a key ends here,
// bits 10-30 the offset to the children (times 256 where bit 9 is set); a value has bit 31 set.
static uint32_t unit_offset(uint32_t unit) { return unit >> 10 << ((unit & 1u << 9) >> 6); }

// What the shortest (or longest) beginning of text[n] that the map knows becomes: `taken` bytes of
// it. NULL when it knows none.
static const char *map_prefix(const Unigram *u, const char *text, size_t n, bool longest,
                              size_t *taken) {
    const char *found = NULL;
    if (!u->unit) return NULL;
    uint32_t at = unit_offset(u->unit[0]);
    for (size_t i = 0; i < n && text[i]; i++) {
        uint8_t byte = (uint8_t)text[i];
        at ^= byte;
        if (at >= u->units) break;
        uint32_t unit = u->unit[at];
        if ((unit & (1u << 31 | 0xff)) != byte) break;
        at ^= unit_offset(unit);
        if (at >= u->units) break;
        if (unit >> 8 & 1) {
            uint32_t where = u->unit[at] & ~(1u << 31);
            if (where >= u->target_size) break;
            *taken = i + 1;
            found = u->target + where;
            if (!longest) break;
        }
    }
    return found;
}

// ---- normalisation ----------------------------------------------------------------------------

// As `tokenizers`: a cluster of less than 6 bytes is replaced WHOLE by what its shortest known
// beginning becomes; of others each character is.
static void map_clusters(const Tokenizer *t, const char *text, size_t n, Text *out) {
    enum { SHORT = 6 };
    size_t taken;
    for (size_t i = 0, cluster; i < n; i += cluster) {
        cluster = unicode_grapheme(t->unicode, text + i, n - i);
        const char *to =
            cluster < SHORT ? map_prefix(t->unigram, text + i, cluster, false, &taken) : NULL;
        if (to) {
            text_add(out, to, strlen(to));
            continue;
        }
        for (size_t k = 0, length; k < cluster; k += length) {
            length = utf8_length(text + i + k, cluster - k);
            to = map_prefix(t->unigram, text + i + k, length, false, &taken);
            text_add(out, to ? to : text + i + k, to ? strlen(to) : length);
        }
    }
}

// As SentencePiece: the next step of the map (or a character as it is), `taken` bytes of text.
static const char *map_next(const Unigram *u, const char *text, size_t n, size_t *length,
                            size_t *taken) {
    uint32_t node = 0;
    *taken = 0;
    for (size_t i = 0; u->user && i < n; i++) {
        node = trie_step(u->user, node, (uint8_t)text[i]);
        if (!node) break;
        if (trie_value(u->user, node) >= 0) *taken = i + 1;
    }
    const char *to = *taken ? NULL : map_prefix(u, text, n, true, taken);
    if (to) {
        *length = strlen(to);
        return to;
    }
    if (!*taken) *taken = utf8_length(text, n);
    *length = *taken;
    return text;
}

static void add_spaced(const Unigram *u, Text *out, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        bool mark = u->escape && s[i] == ' ';
        text_add(out, mark ? SPACE_MARK : s + i, mark ? 3 : 1);
    }
}

static void map_sentence(const Unigram *u, const char *text, size_t n, Text *out) {
    size_t i = 0, taken, length;
    if (u->remove_extra)
        for (; i < n; i += taken) {
            const char *s = map_next(u, text + i, n - i, &length, &taken);
            if (length != 1 || *s != ' ') break;
        }
    if (i == n) return;
    if (u->dummy_prefix) add_spaced(u, out, " ", 1);
    bool after_space = u->remove_extra;
    for (; i < n; i += taken) {
        const char *s = map_next(u, text + i, n - i, &length, &taken);
        while (after_space && length && *s == ' ') {
            s++;
            length--;
        }
        add_spaced(u, out, s, length);
        if (length) after_space = u->remove_extra && s[length - 1] == ' ';
    }
    const char *space = u->escape ? SPACE_MARK : " ";
    size_t size = strlen(space);
    while (u->remove_extra && out->n >= size && !memcmp(out->v + out->n - size, space, size))
        out->n -= size;
}

void unigram_normalize(const Tokenizer *t, const char *text, size_t n, Text *out) {
    if (t->sentencepiece)
        map_sentence(t->unigram, text, n, out);
    else if (t->unigram->unit)
        map_clusters(t, text, n, out);
    else
        text_add(out, text, n);
}

// ---- pieces -----------------------------------------------------------------------------------

typedef struct Best { // the best way to cut the text up to here: its score, and its last piece
    double score;
    int32_t id;     // -1: no way yet
    uint32_t start;
} Best;

static void improve(const Tokenizer *t, Best *b, double score, int32_t id, size_t start) {
    if (t->sentencepiece) score = (float)score;
    if (b->id >= 0 && !(score > b->score)) return; // of equals the first found stays
    *b = (Best){score, id, (uint32_t)start};
}

typedef struct Room { // reused from word to word
    Best *best;
    size_t cap;
    ARRAY(int32_t) path; // ids, last first
} Room;

// Leaves the best way to cut text[n] in room->path.
static void viterbi(const Tokenizer *t, const char *text, size_t n, Room *room) {
    const Unigram *u = t->unigram;
    Best *best = room->best;
    for (size_t i = 0; i <= n; i++) best[i] = (Best){.id = -1};
    for (size_t at = 0, length; at < n; at += length) {
        bool single = false;
        length = utf8_length(text + at, n - at);
        uint32_t node = 0;
        for (size_t i = at; i < n; i++) {
            node = trie_step(u->pieces, node, (uint8_t)text[i]);
            if (!node) break;
            int id = trie_value(u->pieces, node);
            if (id < 0) continue;
            double score = u->score[id];
            if (t->sentencepiece && u->kind[id] == PIECE_USER)
                score = (float)((float)(i + 1 - at) * (float)u->best) - 0.1;
            improve(t, &best[i + 1], score + best[at].score, id, at);
            if (i + 1 - at == length) single = true;
        }
        if (!single)
            improve(t, &best[at + length], u->unknown + best[at].score, t->info.unknown, at);
    }
    room->path.n = 0;
    for (size_t end = n; end; end = best[end].start) ARR_PUSH(NULL, &room->path, best[end].id);
}

static void split_piece(const Tokenizer *t, const char *text, size_t n, Room *room, Ids *out) {
    if (room->cap < n + 1) {
        mem_free(room->best);
        room->cap = n + n / 2 + 64;
        room->best = MEM_ARRAY(NULL, Best, room->cap);
    }
    viterbi(t, text, n, room);
    int32_t last = -1;
    for (int i = room->path.n; i-- > 0;) {
        int32_t id = room->path.v[i];
        if (id != last || id != t->info.unknown) ids_add(out, id); // a run of unknowns is one
        last = id;
    }
}

static void room_free(Room *room) {
    mem_free(room->best);
    mem_free(room->path.v);
}

// A word between white space: marked in front, and cut before each further mark.
static void split_word(const Tokenizer *t, const char *text, size_t n, Text *scratch, Room *room,
                       Ids *out) {
    scratch->n = 0;
    if (n < 3 || memcmp(text, SPACE_MARK, 3)) text_add(scratch, SPACE_MARK, 3);
    text_add(scratch, text, n);
    size_t from = 0;
    for (size_t i = 3; i <= scratch->n && !out->full; i++) {
        bool cut = i + 3 <= scratch->n && !memcmp(scratch->v + i, SPACE_MARK, 3);
        if (!cut && i < scratch->n) continue;
        split_piece(t, scratch->v + from, i - from, room, out);
        from = i;
        if (cut) i += 2;
    }
}

void unigram_split(const Tokenizer *t, const char *text, size_t n, Ids *out) {
    Room room = {0};
    if (t->sentencepiece) {
        if (n) split_piece(t, text, n, &room, out);
        room_free(&room);
        return;
    }
    Text scratch = {0};
    size_t word = 0;
    for (size_t i = 0, length; i <= n && !out->full; i += length) {
        uint32_t code = ' ';
        length = i < n ? utf8_get(text + i, &code) : 1;
        if (!(unicode_class(t->unicode, code) & UNICODE_SPACE)) continue;
        if (i > word) split_word(t, text + word, i - word, &scratch, &room, out);
        word = i + length;
    }
    mem_free(scratch.v);
    room_free(&room);
}
