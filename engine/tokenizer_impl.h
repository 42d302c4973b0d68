// tokenizer_impl.h: what the tokenizers' own files share. Others include tokenizer.h.
#ifndef KILN_ENGINE_TOKENIZER_IMPL_H
#define KILN_ENGINE_TOKENIZER_IMPL_H

#include "engine/json.h"
#include "engine/tokenizer.h"
#include "engine/unicode.h"

enum {
    VOCAB_MAX_IDS = 1 << 22,       // ids are below it
    VOCAB_MAX_PIECE = 1 << 10,     // bytes
    TOKENIZER_MAX_TEXT = 4 << 20,  // bytes
};

// ---- vocabulary: pieces by id, ids by piece ---------------------------------------------------
typedef struct Vocab {
    struct VocabPiece { const char *text; uint32_t n; } *piece; // text NULL: no such id
    int count, cap;  // ids below count
    uint32_t *slot;  // id + 1 by hash, open addressing
    uint32_t mask;   // slots less one
    int used;
    char *pool;      // where the next piece goes
    size_t pool_left;
} Vocab;

Vocab *vocab_new(void *parent);
// Refuses ids that are taken or too large, pieces that are there already, empty or too long.
bool vocab_put(Vocab *v, int64_t id, const char *piece, size_t n, Error *err);
int vocab_find(const Vocab *v, const char *piece, size_t n); // -1: not there

// ---- trie: the keys that a text begins with ---------------------------------------------------
typedef struct TrieKey { const char *text; size_t n; int value; } TrieKey;
typedef struct Trie Trie;
// Keys are not empty; of equal ones the largest value counts. `keys` is sorted in passing.
Trie *trie_new(void *parent, TrieKey *keys, int count);
// From a node (0: the root) along one byte: the next node, 0 when there is none.
uint32_t trie_step(const Trie *t, uint32_t node, uint8_t byte);
int trie_value(const Trie *t, uint32_t node); // -1: no key ends here

// ---- ids as they come -------------------------------------------------------------------------
typedef struct Ids {
    void *parent;
    int32_t *v;
    int n, cap, limit; // past the limit nothing more is kept, and `full` is set
    bool full;
} Ids;
void ids_add(Ids *ids, int32_t id);

// ---- a tokenizer ------------------------------------------------------------------------------
// Tokens that are found in text whatever the model makes of it, as AddedToken of `tokenizers`.
typedef struct AddedToken {
    const char *text;
    size_t n;
    int id;
    bool normalized;     // looked for in normalised text, else in the text as given
    bool lstrip, rstrip; // takes the white space before, behind
} AddedToken;

typedef struct Bpe Bpe;
typedef struct Unigram Unigram;

struct Tokenizer {
    TokenizerInfo info;
    Unicode *unicode;
    Vocab *vocab;
    struct { AddedToken *v; int n, cap; } added;
    Trie *find[2]; // added tokens: not normalised, normalised; NULL when there are none
    Bpe *bpe;
    Unigram *unigram;
    bool sentencepiece; // a bare spiece.model: no added tokens, SentencePiece's own normalisation
};

// Each kind: normalises text[n], and splits normalised text into ids.
void bpe_normalize(const Tokenizer *t, const char *text, size_t n, Text *out);
void bpe_split(const Tokenizer *t, const char *text, size_t n, Ids *out);
void unigram_normalize(const Tokenizer *t, const char *text, size_t n, Text *out);
void unigram_split(const Tokenizer *t, const char *text, size_t n, Ids *out);

// Byte pairs of t->vocab, which must be there: bpe_new looks the bytes up in it. Merges are added
// in order of rank; both parts and what they make must be pieces.
void bpe_new(Tokenizer *t);
bool bpe_merge(Tokenizer *t, const char *a, size_t an, const char *b, size_t bn, Error *err);
bool bpe_read_merges(Tokenizer *t, const char *merges, size_t n, Error *err); // merges.txt
// The vocabulary that CLIP's merges.txt implies: bytes, bytes that end a word, merges, and behind
// them <|startoftext|> and <|endoftext|>.
bool bpe_implied_vocab(Vocab *v, const char *merges, size_t n, Error *err);

// Unigram pieces of t->vocab. kind: as SentencePiece's proto numbers them.
enum { PIECE_NORMAL = 1, PIECE_UNKNOWN, PIECE_CONTROL, PIECE_USER, PIECE_UNUSED, PIECE_BYTE };
void unigram_new(Tokenizer *t);
void unigram_score(Tokenizer *t, int id, double score, int kind); // ids in order from 0
// charsmap: SentencePiece's precompiled map, n 0 for none. Copied.
bool unigram_charsmap(Tokenizer *t, const uint8_t *map, size_t n, Error *err);
void unigram_spaces(Tokenizer *t, bool dummy_prefix, bool remove_extra, bool escape);
bool unigram_build(Tokenizer *t, Error *err); // needs info.unknown

// tokenizer_files.c: fills vocab and model from files. `what` names the file in errors.
bool tokenizer_read_json(Tokenizer *t, const char *path, Error *err);       // tokenizer.json
bool tokenizer_read_vocab_json(Tokenizer *t, const char *path, Error *err); // vocab.json
bool tokenizer_read_config(Tokenizer *t, const char *folder, Error *err);   // special tokens
bool tokenizer_read_spiece(Tokenizer *t, const uint8_t *data, size_t n, Error *err);
// Adds a token that is looked for in text; its piece joins the vocabulary where it is new.
bool tokenizer_add(Tokenizer *t, int64_t id, const char *text, const AddedToken *flags,
                   Error *err);

#endif
