// prompt.c: see prompt.h.
#include "engine/prompt.h"

#include <math.h>

#include "engine/unicode.h"

enum { COMMA_REACH = 20, MAX_NUMBER = 32 };
static const double ROUND = 1.1; // "(": times this, "[": divided by it
static const char BREAK_WORD[] = "BREAK";

// ---- the syntax -------------------------------------------------------------------------------

typedef struct Spans { // while reading: texts are stretches of one buffer
    struct Piece { size_t from, to; double weight; bool is_break; } *v;
    int n, cap;
} Spans;

typedef struct Reading {
    void *scope;
    Spans spans;
    char *text; // escapes undone
    size_t n;
    int open[2][PROMPT_MAX_DEPTH], depth[2]; // round, square: the first span inside each
} Reading;

static void add_text(Reading *r, const char *s, size_t n, bool is_break) {
    struct Piece p = {r->n, r->n + n, 1, is_break};
    if (n) memcpy(r->text + r->n, s, n);
    r->n += n;
    ARR_PUSH(r->scope, &r->spans, p);
}

static void close_bracket(Reading *r, int which, double weight) {
    for (int i = r->open[which][--r->depth[which]]; i < r->spans.n; i++)
        r->spans.v[i].weight *= weight;
}

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Part of a word, for the borders of BREAK. Bytes of other scripts count as letters.
static bool is_word(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (uint8_t)c >= 0x80;
}

// Text without brackets, cut at each BREAK that is a word of its own; white space around it goes.
static void add_words(Reading *r, const char *s, size_t n) {
    size_t from = 0, length = strlen(BREAK_WORD);
    for (size_t i = 0; i + length <= n; i++) {
        if (memcmp(s + i, BREAK_WORD, length) || (i && is_word(s[i - 1])) ||
            (i + length < n && is_word(s[i + length])))
            continue;
        size_t to = i;
        while (to > from && is_space(s[to - 1])) to--;
        add_text(r, s + from, to - from, false);
        add_text(r, NULL, 0, true);
        i += length;
        while (i < n && is_space(s[i])) i++;
        from = i--;
    }
    add_text(r, s + from, n - from, false);
}

// ":1.3)" with spaces anywhere between: its length and the number, 0 when it is something else.
static size_t read_weight(const char *s, size_t n, double *weight) {
    char number[MAX_NUMBER];
    size_t i = 1, digits = 0, used = 0;
    int points = 0;
    while (i < n && is_space(s[i])) i++;
    if (i < n && (s[i] == '+' || s[i] == '-')) number[used++] = s[i++];
    for (; i < n && used + 1 < sizeof number && ((s[i] >= '0' && s[i] <= '9') || s[i] == '.'); i++) {
        points += s[i] == '.';
        digits += s[i] != '.';
        number[used++] = s[i];
    }
    while (i < n && is_space(s[i])) i++;
    if (i == n || s[i] != ')' || !digits || points > 1) return 0;
    // Read digit by digit: strtod would follow the locale's decimal sign.
    double v = 0, unit = 1;
    bool behind = false;
    for (size_t k = 0; k < used; k++) {
        if (number[k] == '.') behind = true;
        if (number[k] < '0' || number[k] > '9') continue;
        v = v * 10 + (number[k] - '0');
        if (behind) unit *= 10;
    }
    *weight = (number[0] == '-' ? -v : v) / unit;
    return i + 1;
}

// One step of the syntax at s[n] (n > 0): the bytes it took, 0 and an error past the depth.
static size_t read_step(Reading *r, const char *s, size_t n, Error *err) {
    double weight;
    size_t length;
    const char *bracket = strchr("([", s[0]);
    if (s[0] == '\\') {
        bool escaped = n > 1 && s[1] && strchr("()[]\\", s[1]);
        add_text(r, s + 1, escaped, false); // alone it vanishes
        return 1 + escaped;
    }
    if (s[0] && bracket) {
        int which = *bracket == '[';
        if (r->depth[which] == PROMPT_MAX_DEPTH) {
            err_failed(err, "expected at most %d open brackets, found more; write \\%c for the character",
                       PROMPT_MAX_DEPTH, s[0]);
            return 0;
        }
        r->open[which][r->depth[which]++] = r->spans.n;
        return 1;
    }
    if (s[0] == ':' && r->depth[0] && (length = read_weight(s, n, &weight))) {
        close_bracket(r, 0, weight);
        return length;
    }
    int closes = s[0] == ')' ? 0 : s[0] == ']' ? 1 : -1;
    if (closes >= 0 && r->depth[closes]) {
        close_bracket(r, closes, closes ? 1 / ROUND : ROUND);
        return 1;
    }
    for (length = 1; length < n && !(s[length] && strchr("\\()[]:", s[length]));) length++;
    add_words(r, s, length);
    return length;
}

// Neighbours of one weight are one span; empty texts go, but for the only one.
static bool join_spans(void *parent, const Reading *r, Prompt *out, Error *err) {
    out->span = MEM_ARRAY(parent, PromptSpan, r->spans.n + 1);
    const struct Piece *last = NULL;
    PromptSpan *span = NULL;
    for (int i = 0; i < r->spans.n; i++) {
        const struct Piece *p = &r->spans.v[i];
        if (!(fabs(p->weight) <= (double)PROMPT_MAX_WEIGHT)) {
            err_failed(err, "expected weights of at most %g, found %g; nest less",
                       (double)PROMPT_MAX_WEIGHT, p->weight);
            mem_free(out->span);
            *out = (Prompt){0};
            return false;
        }
        if (!p->is_break && p->from == p->to) continue;
        if (last && !last->is_break && !p->is_break && last->weight == p->weight) {
            span->n += p->to - p->from; // what stood between them is gone from r->text
            continue;
        }
        last = p;
        span = &out->span[out->count++];
        *span = (PromptSpan){.text = r->text + p->from, .n = p->to - p->from,
                             .weight = p->is_break ? 1 : (float)p->weight,
                             .is_break = p->is_break};
    }
    if (!out->count) out->span[out->count++] = (PromptSpan){.text = r->text, .weight = 1};
    char *text = mem_new(out->span, r->n + (size_t)out->count); // all texts, each with its zero
    for (int i = 0; i < out->count; i++) {
        span = &out->span[i];
        memcpy(text, span->text, span->n);
        span->text = text;
        text += span->n + 1;
    }
    return true;
}

bool prompt_parse(void *parent, const char *text, size_t n, Prompt *out, Error *err) {
    size_t bad;
    if (!utf8_valid(text, n, &bad))
        return err_failed(err, "expected text in UTF-8, found byte 0x%02x at offset %zu; "
                               "save the text as UTF-8", (uint8_t)text[bad], bad);
    void *scope = mem_new(NULL, 1);
    Reading r = {.scope = scope, .text = mem_new(scope, n + 1)};
    *out = (Prompt){0};
    for (size_t i = 0, step; i < n; i += step)
        if (!(step = read_step(&r, text + i, n - i, err))) {
            mem_free(scope);
            return false;
        }
    for (int which = 0; which < 2; which++) // left open: to the end
        while (r.depth[which]) close_bracket(&r, which, which ? 1 / ROUND : ROUND);
    bool ok = join_spans(parent, &r, out, err);
    mem_free(scope);
    return ok;
}

// ---- tokens -----------------------------------------------------------------------------------

typedef struct Chunks { // text tokens alone, chunk after chunk
    void *scope;
    const Tokenizer *t;
    int room, max, comma; // tokens of text per chunk; chunks; the id of ","
    struct { int32_t *v; int n, cap; } ids;
    struct { float *v; int n, cap; } weights;
    struct { int *v; int n, cap; } begins; // where each chunk begins in ids; the last is filling
    int last_comma;                        // in the filling chunk, -1 when there is none
    bool truncated;
} Chunks;

static int filled(const Chunks *c) { return c->ids.n - c->begins.v[c->begins.n - 1]; }

static bool open_chunk(Chunks *c) {
    if (c->begins.n == c->max) {
        c->truncated = true;
        return false;
    }
    ARR_PUSH(c->scope, &c->begins, c->ids.n);
    c->last_comma = -1;
    return true;
}

// False when there is no room left in any chunk.
static bool add_id(Chunks *c, int32_t id, float weight) {
    if (id == c->comma) c->last_comma = filled(c);
    if (filled(c) == c->room) {
        // What stands behind a comma close to the end moves on, so that no phrase is torn.
        int behind = filled(c) - 1 - c->last_comma;
        bool moves = c->last_comma >= 0 && id != c->comma && behind < COMMA_REACH && c->max > 1 &&
                     c->room > COMMA_REACH;
        if (!open_chunk(c)) return false;
        if (moves) c->begins.v[c->begins.n - 1] -= behind;
    }
    ARR_PUSH(c->scope, &c->ids, id);
    ARR_PUSH(c->scope, &c->weights, weight);
    return true;
}

static bool add_span(Chunks *c, const PromptSpan *span, Error *err) {
    Tokens tokens;
    if (span->is_break) {
        if (c->max > 1) open_chunk(c); // else it is skipped: there is one chunk
        return true;
    }
    // Nothing past the last chunk is asked for: a megabyte of text costs no more than it must.
    int64_t most = (int64_t)c->room * c->max + 1;
    if (!tokenizer_encode_text(c->t, span->text, span->n, (int)MIN(most, INT32_MAX), c->scope,
                               &tokens, err))
        return false;
    for (int i = 0; i < tokens.count; i++)
        if (!add_id(c, tokens.ids[i], span->weight)) break;
    if (tokens.truncated) c->truncated = true;
    mem_free(tokens.ids);
    return true;
}

static void put_chunk(const Chunks *c, int k, PromptTokens *out) {
    const TokenizerInfo *info = tokenizer_info(c->t);
    int from = c->begins.v[k], to = k + 1 < c->begins.n ? c->begins.v[k + 1] : c->ids.n;
    int32_t *ids = out->ids + (size_t)k * (size_t)out->tokens;
    float *weights = out->weights + (size_t)k * (size_t)out->tokens;
    int at = 0;
    for (int i = 0; i < out->tokens; i++) weights[i] = 1;
    if (info->start >= 0) ids[at++] = info->start;
    for (int i = from; i < to; i++, at++) {
        ids[at] = c->ids.v[i];
        weights[at] = c->weights.v[i];
        if (weights[at] != 1) out->weighted = true;
    }
    ids[at++] = info->end;
    out->used = at;
    while (at < out->tokens) ids[at++] = info->pad;
}

bool prompt_encode(void *parent, const Tokenizer *t, const char *text, size_t n,
                   const PromptOptions *options, PromptTokens *out, Error *err) {
    const TokenizerInfo *info = tokenizer_info(t);
    int special = 1 + (info->start >= 0);
    int most = options->max_tokens ? options->max_tokens : info->max_tokens;
    int max_chunks = options->max_chunks ? options->max_chunks : 1;
    *out = (PromptTokens){0};
    int least = special + (max_chunks > 1); // a further chunk must be able to take a token
    if (most < least || max_chunks < 1)
        return err_failed(err, "tokens: expected room for %d or more, found %d; raise the limit", least,
                          most);
    void *scope = mem_new(NULL, 1);
    Chunks c = {.scope = scope, .t = t, .room = most - special, .max = max_chunks};
    c.comma = tokenizer_find(t, info->kind == TOKENIZER_CLIP ? ",</w>" : ",");
    open_chunk(&c);
    Prompt prompt;
    PromptSpan whole = {.text = mem_strndup(scope, text, n), .n = n, .weight = 1};
    bool ok = true;
    if (options->raw)
        prompt = (Prompt){&whole, 1};
    else
        ok = prompt_parse(scope, text, n, &prompt, err);
    for (int i = 0; ok && i < prompt.count && !c.truncated; i++)
        ok = add_span(&c, &prompt.span[i], err);
    if (c.begins.n > 1 && !filled(&c)) c.begins.n--; // nothing came behind the last BREAK
    if (ok) {
        out->chunks = c.begins.n;
        out->truncated = c.truncated;
        out->tokens = options->no_pad && max_chunks == 1 ? c.ids.n + special : most;
        size_t count = (size_t)out->chunks * (size_t)out->tokens;
        out->ids = MEM_ARRAY(parent, int32_t, count);
        out->weights = MEM_ARRAY(parent, float, count);
        for (int k = 0; k < out->chunks; k++) put_chunk(&c, k, out);
    }
    mem_free(scope);
    return ok;
}
