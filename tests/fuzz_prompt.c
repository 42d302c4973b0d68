// fuzz_prompt.c: any bytes as a prompt: spans hold its text, and both tokenizers make whole chunks
// of it. The first two bytes choose the options.
#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "engine/prompt.h"
#include "engine/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void encode(const Tokenizer *t, const char *text, size_t n, PromptOptions o) {
    Error err = {0};
    PromptTokens p;
    const TokenizerInfo *info = tokenizer_info(t);
    if (!prompt_encode(NULL, t, text, n, &o, &p, &err)) {
        assert(err.status == STATUS_FAILED);
        return;
    }
    assert(p.chunks >= 1 && p.chunks <= MAX(o.max_chunks, 1) && p.used <= p.tokens);
    if (!o.no_pad || o.max_chunks > 1) assert(p.tokens == o.max_tokens);
    for (int k = 0; k < p.chunks; k++) {
        const int32_t *ids = p.ids + k * p.tokens;
        if (info->start >= 0) assert(ids[0] == info->start);
        bool ended = false;
        for (int i = 0; i < p.tokens; i++) {
            assert(tokenizer_piece(t, ids[i]) && isfinite(p.weights[k * p.tokens + i]));
            ended = ended || ids[i] == info->end;
        }
        assert(ended);
    }
    if (o.raw && o.max_chunks <= 1) {
        Tokens want;
        bool ok = tokenizer_encode(t, text, n, o.max_tokens, !o.no_pad, NULL, &want, &err);
        assert(ok && want.count == p.tokens && want.truncated == p.truncated);
        assert(!memcmp(want.ids, p.ids, (size_t)want.count * sizeof *want.ids));
        mem_free(want.ids);
    }
    mem_free(p.ids);
    mem_free(p.weights);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Tokenizer *t[2]; // for the whole run
    for (int k = 0; k < 2 && !t[k]; k++) t[k] = tokenizer_builtin(NULL, (TokenizerKind)k, NULL);
    if (size < 2) return 0;
    PromptOptions o = {.raw = data[0] & 1, .no_pad = data[0] & 2, .max_chunks = data[0] >> 2 & 7,
                       .max_tokens = 1 + data[1] % 80};
    const char *text = (const char *)data + 2;
    size_t n = size - 2, total = 0, bad;
    Error err = {0};
    Prompt p;
    if (prompt_parse(NULL, text, n, &p, &err)) {
        assert(p.count > 0 && utf8_valid(text, n, &bad));
        for (int i = 0; i < p.count; i++) {
            assert(fabsf(p.span[i].weight) <= PROMPT_MAX_WEIGHT);
            assert(!p.span[i].is_break || !p.span[i].n);
            assert(utf8_valid(p.span[i].text, p.span[i].n, &bad));
            total += p.span[i].n;
        }
        assert(total <= n);
        mem_free(p.span);
    } else {
        assert(err.status == STATUS_FAILED);
    }
    for (int k = 0; k < 2; k++) encode(t[k], text, n, o);
    return 0;
}
