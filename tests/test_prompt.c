// test_prompt.c: the prompt syntax, span by span; tokens with weights; chunks.
#include "tests/check.h"

#include <math.h>
#include <time.h>

#include "backend/os.h"
#include "engine/prompt.h"

// "[text|weight]..." with BREAK as "/".
static void describe(const Prompt *p, char *out, size_t size) {
    out[0] = 0;
    for (int i = 0; i < p->count; i++) {
        const PromptSpan *s = &p->span[i];
        size_t at = strlen(out);
        if (s->is_break)
            snprintf(out + at, size - at, "/");
        else
            snprintf(out + at, size - at, "{%s|%.4g}", s->text, (double)s->weight);
        assert_int_equal(strlen(s->text), s->n);
    }
}

static void reads_the_syntax(void **state) {
    (void)state;
    // Expected as A1111's parse_prompt_attention gives them (BREAK apart, which it hides in text).
    static const struct { const char *text, *spans; } CASES[] = {
        {"", "{|1}"},
        {"plain text", "{plain text|1}"},
        {"an (important) word", "{an |1}{important|1.1}{ word|1}"},
        {"(unbalanced", "{unbalanced|1.1}"},
        {"\\(literal\\]", "{(literal]|1}"},
        {"(unnecessary)(parens)", "{unnecessaryparens|1.1}"},
        {"a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
         "{a |1}{house|1.573}{ |1.1}{on|1}{ a |1.1}{hill|0.55}{, sun, |1.1}{sky|1.464}{.|1.1}"},
        {"(a:1.5)", "{a|1.5}"},
        {"(a: 1.5 )", "{a|1.5}"},
        {"(a:-.5)(b:+2)", "{a|-0.5}{b|2}"},
        {"(a:x)", "{a:x|1.1}"},
        {"(a:1.2.3)", "{a:1.2.3|1.1}"},
        {"(a:)", "{a:|1.1}"},
        {"a:1.5)", "{a:1.5)|1}"},
        {"[a]", "{a|0.9091}"},
        {"[[a] b", "{a|0.8264}{ b|0.9091}"},
        {"a) b]", "{a) b]|1}"},
        {"()", "{|1}"},
        {"\\\\(x\\)", "{\\|1}{x)|1.1}"},
        {"a\\b", "{ab|1}"},
        {"a\\", "{a|1}"},
        {"(a[b)c]", "{a|1.1}{b|1}{c|0.9091}"},
        {"12:30 o'clock", "{12:30 o'clock|1}"},
        {"a BREAK b", "{a|1}/{b|1}"},
        {"a\n BREAK \tb BREAKING xBREAK", "{a|1}/{b BREAKING xBREAK|1}"},
        {"BREAK", "/"},
        {"(a BREAK b:2)", "{a|2}/{b|2}"},
        {"aBREAK, BREAK,b", "{aBREAK,|1}/{,b|1}"},
        {"BREAK BREAK", "//"},
        {"\xc3\xa9 (\xe6\x97\xa5:1.2)", "{\xc3\xa9 |1}{\xe6\x97\xa5|1.2}"},
    };
    for (size_t i = 0; i < COUNT_OF(CASES); i++) {
        Error err = {0};
        Prompt p;
        char found[512];
        CHECK(prompt_parse(NULL, CASES[i].text, strlen(CASES[i].text), &p, &err));
        describe(&p, found, sizeof found);
        if (strcmp(found, CASES[i].spans))
            fail_msg("%s: expected %s, found %s", CASES[i].text, CASES[i].spans, found);
        mem_free(p.span);
    }
}

static void refuses_what_has_no_end(void **state) {
    (void)state;
    char deep[PROMPT_MAX_DEPTH + 2];
    Prompt p;
    memset(deep, '(', sizeof deep);
    for (int which = 0; which < 2; which++) {
        Error err = {0};
        assert_false(prompt_parse(NULL, deep, PROMPT_MAX_DEPTH + 1, &p, &err));
        assert_non_null(strstr(err.text, "open brackets"));
        memset(deep, '[', sizeof deep);
        CHECK(prompt_parse(NULL, deep, PROMPT_MAX_DEPTH, &p, &err)); // of nothing
        mem_free(p.span);
    }
    static const char *const HEAVY[] = {"(a:10001)", "((a:1000):-1000)",
                                        "(a:99999999999999999999999999)"};
    for (size_t i = 0; i < COUNT_OF(HEAVY); i++) {
        Error err = {0};
        assert_false(prompt_parse(NULL, HEAVY[i], strlen(HEAVY[i]), &p, &err));
        assert_non_null(strstr(err.text, "weights"));
    }
    Error err = {0};
    assert_false(prompt_parse(NULL, "ab(\xff)", 5, &p, &err));
    assert_non_null(strstr(err.text, "offset 3;"));
}

static Tokenizer *clip(void) {
    Error err = {0};
    Tokenizer *t = tokenizer_builtin(NULL, TOKENIZER_CLIP, &err);
    CHECK(t);
    return t;
}

static void plain_text_is_the_tokenizer(void **state) {
    (void)state;
    static const char *const TEXTS[] = {"", "a photo of a cat", "it's 12:30 o'clock!", "(a) [b] BREAK"};
    for (int kind = 0; kind < 2; kind++) {
        Error err = {0};
        Tokenizer *t = tokenizer_builtin(NULL, (TokenizerKind)kind, &err);
        CHECK(t);
        for (size_t i = 0; i < COUNT_OF(TEXTS); i++)
            for (int pad = 0; pad < 2; pad++)
                for (int most = 1 + (kind == TOKENIZER_CLIP); most < 12; most++) {
                    Tokens want;
                    PromptTokens got;
                    size_t n = strlen(TEXTS[i]);
                    PromptOptions o = {.raw = i == 3, .max_tokens = most, .no_pad = !pad};
                    CHECK(tokenizer_encode(t, TEXTS[i], n, most, pad, t, &want, &err));
                    CHECK(prompt_encode(t, t, TEXTS[i], n, &o, &got, &err));
                    assert_true(got.chunks == 1 && got.tokens == want.count && !got.weighted);
                    assert_int_equal(got.used, want.used);
                    assert_int_equal(got.truncated, want.truncated);
                    assert_memory_equal(got.ids, want.ids, (size_t)want.count * 4);
                    for (int k = 0; k < got.tokens; k++) assert_true(got.weights[k] == 1);
                }
        mem_free(t);
    }
}

static void weights_follow_tokens(void **state) {
    (void)state;
    Error err = {0};
    Tokenizer *t = clip();
    PromptTokens p;
    const char *text = "a (red:1.5) cat";
    CHECK(prompt_encode(t, t, text, strlen(text), &(PromptOptions){.max_tokens = 8}, &p, &err));
    const int32_t ids[] = {49406, 320, 736, 2368, 49407, 49407, 49407, 49407};
    const float weights[] = {1, 1, 1.5f, 1, 1, 1, 1, 1};
    assert_memory_equal(p.ids, ids, sizeof ids);
    assert_memory_equal(p.weights, weights, sizeof weights);
    assert_true(p.weighted && p.used == 5 && !p.truncated);
    CHECK(prompt_encode(t, t, text, strlen(text), &(PromptOptions){0}, &p, &err));
    assert_int_equal(p.tokens, 77);
    assert_false(prompt_encode(t, t, text, strlen(text), &(PromptOptions){.max_tokens = 1}, &p,
                               &err));
    mem_free(t);
}

// Chunk k holds n tokens of text and begins with this one.
static void expect_chunk(const PromptTokens *p, int k, int n, const Tokenizer *t,
                         const char *first) {
    const int32_t *ids = p->ids + k * p->tokens;
    int end = 1;
    while (end < p->tokens && ids[end] != 49407) end++;
    assert_int_equal(ids[0], 49406);
    assert_int_equal(end - 1, n);
    if (n) assert_string_equal(tokenizer_piece(t, ids[1]), first);
}

static void long_prompts_are_chunks(void **state) {
    (void)state;
    Error err = {0};
    Tokenizer *t = clip();
    PromptTokens p;
    PromptOptions o = {.max_chunks = 3};
    char text[1024] = "";
    for (int i = 0; i < 80; i++) strcat(text, "cat ");
    CHECK(prompt_encode(t, t, text, strlen(text), &o, &p, &err));
    assert_true(p.chunks == 2 && p.tokens == 77 && !p.truncated && p.used == 7);
    expect_chunk(&p, 0, 75, t, "cat</w>");
    expect_chunk(&p, 1, 5, t, "cat</w>");

    // A comma among the last 20: what stands behind it moves on.
    text[0] = 0;
    for (int i = 0; i < 80; i++) strcat(text, i == 59 ? "cat, dog " : "cat ");
    CHECK(prompt_encode(t, t, text, strlen(text), &o, &p, &err));
    assert_int_equal(p.chunks, 2);
    expect_chunk(&p, 0, 61, t, "cat</w>");
    expect_chunk(&p, 1, 21, t, "dog</w>");
    // One too far away: the chunk is filled.
    text[0] = 0;
    for (int i = 0; i < 80; i++) strcat(text, i == 53 ? "cat, dog " : "cat ");
    CHECK(prompt_encode(t, t, text, strlen(text), &o, &p, &err));
    expect_chunk(&p, 0, 75, t, "cat</w>");

    CHECK(prompt_encode(t, t, "a BREAK dog BREAK", 17, &o, &p, &err));
    assert_int_equal(p.chunks, 2);
    expect_chunk(&p, 0, 1, t, "a</w>");
    expect_chunk(&p, 1, 1, t, "dog</w>");
    CHECK(prompt_encode(t, t, "BREAK dog", 9, &o, &p, &err));
    assert_int_equal(p.chunks, 2);
    expect_chunk(&p, 0, 0, t, "");
    CHECK(prompt_encode(t, t, "a BREAK b BREAK c BREAK d", 25, &o, &p, &err));
    assert_true(p.chunks == 3 && p.truncated);
    CHECK(prompt_encode(t, t, "a BREAK b", 9, &(PromptOptions){0}, &p, &err)); // one chunk
    assert_int_equal(p.chunks, 1);
    expect_chunk(&p, 0, 2, t, "a</w>");
    mem_free(t);
}

// Seconds of the processor: other programs' do not count.
static double encode_seconds(Tokenizer *t, const char *text, size_t n, int chunks, PromptTokens *p,
                             bool *ok) {
    Error err = {0};
    clock_t from = clock();
    *ok = prompt_encode(t, t, text, n, &(PromptOptions){.max_chunks = chunks}, p, &err);
    return (double)(clock() - from) / CLOCKS_PER_SEC;
}

// No more than seconds for a megabyte, or, on a slow machine, in proportion to an eighth of it.
static void long_text_is_quick(void **state) {
    (void)state;
    static const char *const UNITS[] = {"(a)", "(a", "a)", "[b](c:0.3)", "BREAK ", "\\", ":1.1)", "a, "};
    enum { LONG = 1 << 20 };
    Tokenizer *t = clip();
    char *text = mem_new(t, LONG + 16);
    for (size_t u = 0; u < COUNT_OF(UNITS); u++)
        for (int chunks = 1; chunks < 50; chunks += 48) {
            PromptTokens p, part;
            bool ok, part_ok;
            size_t unit = strlen(UNITS[u]), n = LONG / unit * unit;
            for (size_t i = 0; i < n; i += unit) memcpy(text + i, UNITS[u], unit);
            double took = encode_seconds(t, text, n, chunks, &p, &ok);
            assert_int_equal(ok, u != 1); // "(a(a(a" is too deep
            if (took > 10) assert_true(took < 20 * encode_seconds(t, text, n / 8, chunks, &part, &part_ok));
            assert_true(!ok || (p.chunks >= 1 && p.chunks <= chunks));
        }
    mem_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_the_syntax),        cmocka_unit_test(refuses_what_has_no_end),
        cmocka_unit_test(plain_text_is_the_tokenizer), cmocka_unit_test(weights_follow_tokens),
        cmocka_unit_test(long_prompts_are_chunks), cmocka_unit_test(long_text_is_quick),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
