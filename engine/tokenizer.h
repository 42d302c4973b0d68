// tokenizer.h: text to token ids: CLIP's byte pairs and T5's unigram pieces, exactly as
// transformers 5 (CLIPTokenizer, T5Tokenizer) and, for a bare spiece.model, SentencePiece do it.
//
// Byte pairs: Sennrich et al. 2016. Unigram pieces: Kudo 2018. Vocabularies come from a model's
// folder or are built in. A tokenizer is immutable once opened: any number of threads may use it.
#ifndef KILN_ENGINE_TOKENIZER_H
#define KILN_ENGINE_TOKENIZER_H

#include "backend/base.h"

typedef enum { TOKENIZER_CLIP, TOKENIZER_T5 } TokenizerKind;

typedef struct Tokenizer Tokenizer; // belongs to its parent, mem_free frees it

typedef struct TokenizerInfo {
    TokenizerKind kind;
    const char *source;             // "built-in", or the file the vocabulary came from
    int count;                      // ids are below it
    int start, end, pad, unknown;   // ids; -1 where the kind has none (T5: start)
    int max_tokens;                 // model_max_length (CLIP 77, T5 512), start and end included
} TokenizerInfo;

// The vocabulary that ships with Kiln: CLIP's pads with <|endoftext|>, T5's with <pad>.
Tokenizer *tokenizer_builtin(void *parent, TokenizerKind kind, Error *err);

// From a model's tokenizer folder, or from one file. CLIP: vocab.json with merges.txt, or
// tokenizer.json. T5: tokenizer.json, else spiece.model. tokenizer_config.json and
// special_tokens_map.json, where there, name the special tokens (SD 2 and XL pad with "!").
// NULL and an error naming the file for anything missing, damaged, or of another kind.
Tokenizer *tokenizer_open(void *parent, TokenizerKind kind, const char *path, Error *err);

const TokenizerInfo *tokenizer_info(const Tokenizer *t);

// ids[count]; the first `used` are start, text and end, the others padding.
typedef struct Tokens {
    int32_t *ids; // belongs to the parent given
    int count, used;
    bool truncated; // there was more text than fits
} Tokens;

// text[n] in UTF-8 (invalid bytes are an error that names the first one; zero bytes are text) to
// ids: start and end included, cut to max_tokens (end kept; 0: no limit) and, with `pad`, filled
// up to max_tokens. Special tokens spelled out in the text become those tokens, as in
// transformers. Time is near-linear in n; with a limit little beyond it is looked at. What an error says of
// the text begins with "expected": put the text's name before it.
bool tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int max_tokens, bool pad,
                      void *parent, Tokens *out, Error *err);

// The text's ids alone: no start, end or padding, at most `limit` (0: all).
bool tokenizer_encode_text(const Tokenizer *t, const char *text, size_t n, int limit,
                           void *parent, Tokens *out, Error *err);

// The piece behind an id as the vocabulary spells it ("photo</w>", "▁photo"), NULL when there is
// none. Lives as long as the tokenizer.
const char *tokenizer_piece(const Tokenizer *t, int id);
int tokenizer_find(const Tokenizer *t, const char *piece); // the id, -1 when there is none

#endif
