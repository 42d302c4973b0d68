// prompt.h: A1111's prompt syntax, to tokens with weights.
//
//   (text)      weight times 1.1; nests      (text:1.3)  weight times 1.3
//   [text]      weight divided by 1.1        \( \) \[ \] \\  the character itself
//   BREAK       (a word of its own) ends the current chunk of tokens
//
// Inside brackets BREAK ends a chunk too, where A1111 takes it for a word of negative weight.
// Brackets left open run to the end; stray closing ones are text. Spans of text of equal weight
// are tokenised together, others apart, as A1111 does it.
#ifndef KILN_ENGINE_PROMPT_H
#define KILN_ENGINE_PROMPT_H

#include "engine/tokenizer.h"

enum { PROMPT_MAX_DEPTH = 256 };     // open brackets
#define PROMPT_MAX_WEIGHT 10000.0f   // either way, nested weights multiplied

typedef struct PromptSpan {
    char *text; // n bytes and a zero; escapes undone
    size_t n;
    float weight;
    bool is_break; // BREAK: no text, weight 1
} PromptSpan;

typedef struct Prompt {
    PromptSpan *span; // belongs to the parent given; at least one, perhaps of empty text
    int count;
} Prompt;

// Reads the syntax. Errors, worded as tokenizer_encode's: brackets nested deeper, or weights larger, than
// the limits above.
bool prompt_parse(void *parent, const char *text, size_t n, Prompt *out, Error *err);

typedef struct PromptOptions {
    bool raw;       // no syntax: one span of weight 1, brackets are text
    int max_tokens; // per chunk, start and end included; 0: the tokenizer's max_tokens
    int max_chunks; // 0: 1. With 1, what does not fit is cut off; a chunk that overflows is
                    // otherwise split at its last comma where that is among its last 20 tokens
    bool no_pad;    // only with max_chunks 1: `tokens` is what is used
} PromptOptions;

// [chunks][tokens], each chunk: start, text, end, padding.
typedef struct PromptTokens {
    int32_t *ids;   // belongs to the parent given
    float *weights; // of each id; 1 for start, end and padding
    int chunks, tokens;
    int used;       // ids of the last chunk that are no padding
    bool weighted;  // some weight is not 1
    bool truncated; // there was more text than fits
} PromptTokens;

// Raw (or without any syntax in the text) and with one chunk, ids are tokenizer_encode's.
bool prompt_encode(void *parent, const Tokenizer *t, const char *text, size_t n,
                   const PromptOptions *options, PromptTokens *out, Error *err);

#endif
