// bpe_clip.c: CLIP's byte pairs. Text is composed (NFC), white space becomes single spaces, letters
// lower case; then it falls into words, numbers digit by digit, and runs of other signs, whose
// bytes are merged in the order of the merges' ranks (Sennrich et al. 2016).
#include "engine/tokenizer_impl.h"

static const char WORD_END[] = "</w>";
static const char *const ENDINGS[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
// Spelled out (behind the added tokens) they are cut off whole and then again at the signs.
static const char *const MARKERS[] = {"<|startoftext|>", "<|endoftext|>"};

typedef struct Merge { uint64_t pair; int32_t rank, id; } Merge; // pair 0: an empty slot

struct Bpe {
    int32_t byte[256], last[256]; // ids of a byte inside and at the end of a word, -1 for none
    Merge *slot;                  // by hash of the pair (left id + 1, right id)
    uint32_t mask;
    int merges;
};

// ---- bytes as characters ----------------------------------------------------------------------

// Vocabularies spell bytes as printable characters: those that are not, in order, from U+0100.
static bool is_printable(int byte) {
    return (byte >= 33 && byte < 127) || (byte >= 161 && byte != 173);
}

static size_t byte_piece(int byte, bool last, char out[8]) {
    uint32_t code = (uint32_t)byte;
    if (!is_printable(byte)) {
        code = 256;
        for (int b = 0; b < byte; b++) code += !is_printable(b);
    }
    size_t n = utf8_put(out, code);
    if (last) memcpy(out + n, WORD_END, 4);
    return n + (last ? 4 : 0);
}

// ---- merges -----------------------------------------------------------------------------------

static uint64_t pair_key(int32_t a, int32_t b) { return (uint64_t)(a + 1) << 32 | (uint32_t)b; }

static Merge *find_merge(const Bpe *bpe, uint64_t pair) {
    uint64_t h = pair * 0x9e3779b97f4a7c15u;
    for (uint32_t i = (uint32_t)(h >> 32);; i++) {
        Merge *m = &bpe->slot[i & bpe->mask];
        if (!m->pair || m->pair == pair) return m;
    }
}

void bpe_new(Tokenizer *t) {
    Bpe *bpe = t->bpe = MEM_NEW(t, Bpe);
    bpe->mask = (1 << 17) - 1;
    bpe->slot = MEM_ARRAY(bpe, Merge, bpe->mask + 1u);
    char piece[8];
    for (int b = 0; b < 256; b++) {
        bpe->byte[b] = vocab_find(t->vocab, piece, byte_piece(b, false, piece));
        bpe->last[b] = vocab_find(t->vocab, piece, byte_piece(b, true, piece));
    }
}

static void grow_merges(Bpe *bpe) {
    Merge *old = bpe->slot;
    uint32_t n = bpe->mask + 1;
    bpe->mask = n * 2 - 1;
    bpe->slot = MEM_ARRAY(bpe, Merge, bpe->mask + 1u);
    for (uint32_t i = 0; i < n; i++)
        if (old[i].pair) *find_merge(bpe, old[i].pair) = old[i];
    mem_free(old);
}

bool bpe_merge(Tokenizer *t, const char *a, size_t an, const char *b, size_t bn, Error *err) {
    Bpe *bpe = t->bpe;
    char whole[2 * VOCAB_MAX_PIECE];
    int32_t made = -1, left = vocab_find(t->vocab, a, an), right = vocab_find(t->vocab, b, bn);
    if (left >= 0 && right >= 0) { // both are at most VOCAB_MAX_PIECE long then
        memcpy(whole, a, an);
        memcpy(whole + an, b, bn);
        made = vocab_find(t->vocab, whole, an + bn);
    }
    if (made < 0)
        return err_failed(err, "merge %d: expected two pieces of the vocabulary that make a third, "
                               "found \"%.*s %.*s\"", bpe->merges, (int)MIN(an, (size_t)40), a,
                          (int)MIN(bn, (size_t)40), b);
    if ((uint32_t)bpe->merges * 2 > bpe->mask) grow_merges(bpe);
    uint64_t pair = pair_key(left, right);
    *find_merge(bpe, pair) = (Merge){pair, bpe->merges++, made}; // listed twice: the last counts
    return true;
}

// The next line that is a merge: its two parts. False at the end, or (with err) at nonsense.
static bool next_merge(const char **at, const char *end, const char **part, size_t *length,
                       bool *done, Error *err) {
    while (*at < end) {
        const char *line = *at, *stop = memchr(line, '\n', (size_t)(end - line));
        *at = stop ? stop + 1 : end;
        if (!stop) stop = end;
        if (stop > line && stop[-1] == '\r') stop--;
        size_t n = (size_t)(stop - line);
        if (!n || (n >= 8 && !memcmp(line, "#version", 8))) continue;
        const char *space = memchr(line, ' ', n);
        if (!space || space == line || space + 1 == stop ||
            memchr(space + 1, ' ', (size_t)(stop - space - 1)))
            return err_failed(err, "merges: expected lines of two pieces, found \"%.*s\"; is it a "
                                   "merges.txt?", (int)MIN(n, (size_t)80), line);
        part[0] = line;
        length[0] = (size_t)(space - line);
        part[1] = space + 1;
        length[1] = (size_t)(stop - space - 1);
        return true;
    }
    *done = true;
    return false;
}

bool bpe_read_merges(Tokenizer *t, const char *merges, size_t n, Error *err) {
    const char *at = merges, *part[2];
    size_t length[2];
    bool done = false;
    while (next_merge(&at, merges + n, part, length, &done, err))
        if (!bpe_merge(t, part[0], length[0], part[1], length[1], err)) return false;
    return done;
}

bool bpe_implied_vocab(Vocab *v, const char *merges, size_t n, Error *err) {
    char piece[2 * VOCAB_MAX_PIECE];
    for (int last = 0; last < 2; last++)
        for (int printable = 1; printable >= 0; printable--)
            for (int b = 0; b < 256; b++)
                if (is_printable(b) == printable &&
                    !vocab_put(v, v->count, piece, byte_piece(b, last, piece), err))
                    return false;
    const char *at = merges, *part[2];
    size_t length[2];
    bool done = false;
    while (next_merge(&at, merges + n, part, length, &done, err)) {
        if (MAX(length[0], length[1]) > VOCAB_MAX_PIECE)
            return err_failed(err, "merges: expected pieces of at most %d bytes, found longer ones",
                              VOCAB_MAX_PIECE);
        memcpy(piece, part[0], length[0]);
        memcpy(piece + length[0], part[1], length[1]);
        if (!vocab_put(v, v->count, piece, length[0] + length[1], err)) return false;
    }
    for (size_t i = 0; done && i < COUNT_OF(MARKERS); i++)
        done = vocab_put(v, v->count, MARKERS[i], strlen(MARKERS[i]), err);
    return done;
}

// ---- one word ---------------------------------------------------------------------------------

typedef struct Symbol { int32_t id, prev, next; } Symbol; // id -1: merged into the one before
typedef struct Candidate { uint64_t order; int32_t id; } Candidate; // order: rank, then position

typedef struct Word {
    ARRAY(Symbol) symbols;
    struct { Candidate *v; int n, cap; } heap; // the smallest first
} Word;

static void heap_push(Word *w, Candidate c) {
    ARR_PUSH(NULL, &w->heap, c);
    Candidate *v = w->heap.v;
    int i = w->heap.n - 1;
    for (int up; i && v[up = (i - 1) / 2].order > c.order; i = up) v[i] = v[up];
    v[i] = c;
}

static Candidate heap_pop(Word *w) {
    Candidate *v = w->heap.v, top = v[0], c = v[--w->heap.n];
    int i = 0, n = w->heap.n;
    for (int k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && v[k + 1].order < v[k].order) k++;
        if (v[k].order >= c.order) break;
        v[i] = v[k];
    }
    v[i] = c;
    return top;
}

static const Merge *merge_at(const Bpe *bpe, const Word *w, int32_t i) {
    const Symbol *s = &w->symbols.v[i];
    if (s->id < 0 || s->next < 0) return NULL;
    const Merge *m = find_merge(bpe, pair_key(s->id, w->symbols.v[s->next].id));
    return m->pair ? m : NULL;
}

static void consider(const Bpe *bpe, Word *w, int32_t i) {
    const Merge *m = i < 0 ? NULL : merge_at(bpe, w, i);
    if (m) heap_push(w, (Candidate){(uint64_t)m->rank << 32 | (uint32_t)i, m->id});
}

static void encode_word(const Tokenizer *t, Word *w, const char *text, size_t n, Ids *out) {
    const Bpe *bpe = t->bpe;
    w->symbols.n = w->heap.n = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = (i + 1 < n ? bpe->byte : bpe->last)[(uint8_t)text[i]];
        Symbol s = {id < 0 ? t->info.unknown : id, (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1};
        ARR_PUSH(NULL, &w->symbols, s);
    }
    Symbol *v = w->symbols.v;
    for (int32_t i = 0; i + 1 < w->symbols.n; i++) consider(bpe, w, i);
    while (w->heap.n) {
        Candidate top = heap_pop(w);
        int32_t i = (int32_t)(uint32_t)top.order;
        const Merge *m = merge_at(bpe, w, i);
        if (!m || m->id != top.id) continue; // something else was merged here meanwhile
        int32_t gone = v[i].next;
        v[i].id = top.id;
        v[i].next = v[gone].next;
        v[gone].id = -1;
        if (v[i].next >= 0) v[v[i].next].prev = i;
        consider(bpe, w, v[i].prev);
        consider(bpe, w, i);
    }
    for (int32_t i = 0; i >= 0 && w->symbols.n; i = v[i].next) ids_add(out, v[i].id);
}

// ---- text -------------------------------------------------------------------------------------

void bpe_normalize(const Tokenizer *t, const char *text, size_t n, Text *out) {
    Text composed = {.parent = out->parent};
    unicode_nfc(t->unicode, text, n, &composed);
    bool space = false;
    uint32_t code, lower[3];
    for (size_t i = 0; i < composed.n;) {
        i += utf8_get(composed.v + i, &code);
        bool is_space = unicode_class(t->unicode, code) & UNICODE_SPACE;
        if (is_space && !space) text_add(out, " ", 1);
        space = is_space;
        if (is_space) continue;
        int count = unicode_lower(t->unicode, code, lower);
        for (int k = 0; k < count; k++) text_add_code(out, lower[k]);
    }
    mem_free(composed.v);
}

static bool begins_with(const char *text, size_t n, const char *with) {
    size_t length = strlen(with);
    return n >= length && !memcmp(text, with, length);
}

static unsigned class_at(const Tokenizer *t, const char *text, size_t *length) {
    uint32_t code;
    *length = utf8_get(text, &code);
    return unicode_class(t->unicode, code);
}

// Bytes of the piece that text[n] begins with (n > 0).
static size_t piece_length(const Tokenizer *t, const char *text, size_t n) {
    for (size_t i = 0; i < COUNT_OF(ENDINGS); i++)
        if (begins_with(text, n, ENDINGS[i])) return strlen(ENDINGS[i]);
    size_t length, end;
    unsigned kind = class_at(t, text, &length);
    if (kind & (UNICODE_SPACE | UNICODE_NUMBER)) return length;
    for (end = length; end < n; end += length)
        if (class_at(t, text + end, &length) != kind) break;
    return end;
}

void bpe_split(const Tokenizer *t, const char *text, size_t n, Ids *out) {
    Word word = {0};
    for (size_t i = 0, length; i < n && !out->full; i += length) {
        length = 0;
        for (size_t k = 0; k < COUNT_OF(MARKERS); k++)
            if (begins_with(text + i, n - i, MARKERS[k])) length = strlen(MARKERS[k]);
        if (length) { // "<|", the name, "|>"
            encode_word(t, &word, text + i, 2, out);
            encode_word(t, &word, text + i + 2, length - 4, out);
            encode_word(t, &word, text + i + length - 2, 2, out);
            continue;
        }
        length = piece_length(t, text + i, n - i);
        size_t one;
        if (!(class_at(t, text + i, &one) & UNICODE_SPACE))
            encode_word(t, &word, text + i, length, out);
    }
    mem_free(word.symbols.v);
    mem_free(word.heap.v);
}
