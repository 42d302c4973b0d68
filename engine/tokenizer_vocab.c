// tokenizer_vocab.c: pieces by id, ids by piece, and the trie of the pieces a text begins with.
#include <stdlib.h>

#include "engine/tokenizer_impl.h"

// ---- vocabulary -------------------------------------------------------------------------------

static uint32_t hash_piece(const char *piece, size_t n) {
    uint64_t h = hash_bytes(0, piece, n);
    return (uint32_t)(h ^ h >> 32);
}

Vocab *vocab_new(void *parent) {
    Vocab *v = MEM_NEW(parent, Vocab);
    v->mask = 1023;
    v->slot = MEM_ARRAY(v, uint32_t, v->mask + 1);
    return v;
}

// Where the piece is, or the empty slot where it belongs.
static uint32_t *find_slot(const Vocab *v, const char *piece, size_t n) {
    for (uint32_t i = hash_piece(piece, n);; i++) {
        uint32_t *slot = &v->slot[i & v->mask];
        if (!*slot) return slot;
        const struct VocabPiece *p = &v->piece[*slot - 1];
        if (p->n == n && !memcmp(p->text, piece, n)) return slot;
    }
}

static void grow_slots(Vocab *v) {
    mem_free(v->slot);
    v->mask = v->mask * 2 + 1;
    v->slot = MEM_ARRAY(v, uint32_t, v->mask + 1u);
    for (int id = 0; id < v->count; id++)
        if (v->piece[id].text)
            *find_slot(v, v->piece[id].text, v->piece[id].n) = (uint32_t)id + 1;
}

// Copies a piece into a pool: a block of its own for each would cost 128 bytes more.
static const char *keep(Vocab *v, const char *piece, size_t n) {
    enum { POOL = 1 << 16 };
    if (v->pool_left < n + 1) {
        v->pool = mem_new(v, POOL);
        v->pool_left = POOL;
    }
    char *copy = v->pool;
    memcpy(copy, piece, n); // a zero follows: pools are zero-filled
    v->pool += n + 1;
    v->pool_left -= n + 1;
    return copy;
}

bool vocab_put(Vocab *v, int64_t id, const char *piece, size_t n, Error *err) {
    if (id < 0 || id >= VOCAB_MAX_IDS)
        return err_failed(err, "vocabulary: expected ids of 0 to %d, found %lld",
                          VOCAB_MAX_IDS - 1, (long long)id);
    if (!n || n > VOCAB_MAX_PIECE)
        return err_failed(err, "vocabulary: expected pieces of 1 to %d bytes, found %zu (id %lld)",
                          VOCAB_MAX_PIECE, n, (long long)id);
    if (id < v->count && v->piece[id].text)
        return err_failed(err, "vocabulary: expected one piece per id, found two for id %lld",
                          (long long)id);
    int there = vocab_find(v, piece, n);
    if (there >= 0)
        return err_failed(err, "vocabulary: expected each piece once, found ids %d and %lld for "
                               "one", there, (long long)id);
    if (id >= v->cap) {
        v->cap = (int)MAX(id + 1, v->cap + v->cap / 2 + 256);
        v->piece = mem_resize(v, v->piece, (size_t)v->cap * sizeof *v->piece);
    }
    if ((uint32_t)v->used * 2 > v->mask) grow_slots(v);
    v->count = (int)MAX(id + 1, v->count);
    v->piece[id].text = keep(v, piece, n);
    v->piece[id].n = (uint32_t)n;
    *find_slot(v, piece, n) = (uint32_t)id + 1;
    v->used++;
    return true;
}

int vocab_find(const Vocab *v, const char *piece, size_t n) {
    return (int)*find_slot(v, piece, n) - 1;
}

// ---- trie -------------------------------------------------------------------------------------

// Nodes in order of breadth, so that the children of each stand together, sorted by their byte.
struct Trie {
    struct TrieNode { uint32_t child; uint16_t children; uint8_t byte; int value; } *node;
    uint32_t root[256]; // the root's children: every search begins there
};

static int order_keys(const void *a, const void *b) {
    const TrieKey *x = a, *y = b;
    int order = memcmp(x->text, y->text, MIN(x->n, y->n));
    if (order) return order;
    if (x->n != y->n) return x->n < y->n ? -1 : 1;
    return x->value < y->value ? -1 : x->value > y->value;
}

Trie *trie_new(void *parent, TrieKey *keys, int count) {
    size_t bytes = 1;
    for (int i = 0; i < count; i++) bytes += keys[i].n;
    if (count) qsort(keys, (size_t)count, sizeof *keys, order_keys);
    Trie *t = MEM_NEW(parent, Trie);
    t->node = MEM_ARRAY(t, struct TrieNode, bytes);
    // The keys below a node are neighbours: `from` and `to` of each node not yet opened.
    struct Span { int from, to; uint32_t depth; } *span = MEM_ARRAY(t, struct Span, bytes);
    span[0] = (struct Span){0, count, 0};
    uint32_t nodes = 1;
    for (uint32_t i = 0; i < nodes; i++) {
        struct Span s = span[i];
        t->node[i].value = -1;
        t->node[i].child = nodes;
        while (s.from < s.to && keys[s.from].n == s.depth) t->node[i].value = keys[s.from++].value;
        while (s.from < s.to) {
            uint8_t byte = (uint8_t)keys[s.from].text[s.depth];
            int to = s.from;
            while (to < s.to && (uint8_t)keys[to].text[s.depth] == byte) to++;
            if (i == 0) t->root[byte] = nodes;
            t->node[i].children++;
            t->node[nodes].byte = byte;
            span[nodes++] = (struct Span){s.from, to, s.depth + 1};
            s.from = to;
        }
    }
    mem_free(span);
    t->node = mem_resize(t, t->node, nodes * sizeof *t->node);
    return t;
}

uint32_t trie_step(const Trie *t, uint32_t node, uint8_t byte) {
    if (!node) return t->root[byte];
    const struct TrieNode *n = &t->node[node];
    uint32_t lo = n->child, hi = n->child + n->children;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (t->node[mid].byte == byte) return mid;
        if (t->node[mid].byte < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return 0;
}

int trie_value(const Trie *t, uint32_t node) { return t->node[node].value; }

// ---- ids --------------------------------------------------------------------------------------

void ids_add(Ids *ids, int32_t id) {
    if (ids->limit && ids->n == ids->limit) {
        ids->full = true;
        return;
    }
    ARR_PUSH(ids->parent, ids, id);
}
