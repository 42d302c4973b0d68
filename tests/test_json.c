// test_json.c: what is read, what is refused, what is written.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "engine/json.h"

static Json *parse(const char *text) {
    Error err = {0};
    Json *json = json_parse(text, strlen(text), "test", &err);
    if (!json) fail_msg("%s: %s", text, err.text);
    return json;
}

static void reads_values(void **state) {
    (void)state;
    Json *j = parse(" {\"a\": 1, \"A\": 2, \"s\": \"x\\u00e9\\n\", \"t\": true, \"n\": null,"
                    " \"l\": [1.5, -2, 9007199254740991, 9007199254740992, 1e400], \"o\": {}}\n");
    assert_int_equal(json_count(j), 7);
    assert_int_equal(json_int(json_get(j, "a"), -1), 1);
    assert_int_equal(json_int(json_get(j, "A"), -1), 2); // names are exact
    assert_string_equal(json_string(json_get(j, "s"), ""), "x\xc3\xa9\n");
    assert_true(json_bool(json_get(j, "t"), false) && json_is_null(json_get(j, "n")));
    assert_null(json_get(j, "absent"));
    assert_null(json_get(json_get(j, "a"), "a"));
    assert_null(json_get(NULL, "a"));
    // Wrong types give the fallback.
    assert_int_equal(json_int(json_get(j, "s"), -1), -1);
    assert_string_equal(json_string(json_get(j, "a"), "none"), "none");
    assert_true(json_number(NULL, 7) == 7 && json_bool(json_get(j, "a"), true));
    const Json *l = json_get(j, "l"), *e = json_first(l);
    assert_true(json_is_array(l) && json_count(l) == 5 && !json_name(e));
    assert_true(json_number(e, 0) == 1.5);
    assert_int_equal(json_int(e, -1), -1); // no whole number
    e = json_next(e);
    assert_int_equal(json_int(e, 0), -2);
    e = json_next(e);
    assert_true(json_int(e, 0) == 9007199254740991);
    e = json_next(e);
    assert_int_equal(json_int(e, -1), -1); // past what a double holds exactly
    int64_t v;
    assert_false(json_int_in(json_next(e), 0, INT64_MAX, &v)); // infinity
    assert_false(json_int_in(json_get(j, "a"), 2, 5, &v));
    assert_true(json_int_in(json_get(j, "a"), 1, 1, &v) && v == 1);
    assert_true(json_count(json_get(j, "o")) == 0 && !json_first(json_get(j, "o")));
    json_free(j);
    json_free(NULL);
}

static void refuses_what_is_not_json(void **state) {
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "offset 0 of 0"},
        {"{\"a\":1", "error at offset"},
        {"{\"a\":1}}", "error at offset 7"},
        {"[1 2]", "error at offset"},
        {"{\"a\":{\"b\":1,\"b\":2}}", "\"b\" twice"},
        {"[{\"c\":1,\"x\":0,\"c\":2}]", "\"c\" twice"},
        {"\"\\u0000\"", "\\u0000"},
        {"\"\\", "error at offset"},
        {"\"a\tb\"", "control character 0x09"},
        {"\x01", "control character"},
        {"\"\xe2\x82\"", "UTF-8, found byte 0xe2 at offset 1"},
        {"\x80", "UTF-8"},
        {"nul", "error at offset"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Error err = {0};
        size_t n = strlen(cases[i].text);
        char *exact = malloc(MAX(n, 1)); // no final zero: reading past it is seen
        memcpy(exact, cases[i].text, n);
        assert_null(json_parse(exact, n, "test", &err));
        assert_int_equal(err.status, STATUS_FAILED);
        if (!strstr(err.text, cases[i].part))
            fail_msg("expected \"%s\" in: %s", cases[i].part, err.text);
        free(exact);
    }
    assert_null(json_parse("1\0", 2, "test", NULL));
    json_free(parse("\"\\\\u0000\"")); // a backslash and letters, no zero byte
    Error err = {0};
    char *vast = calloc(1, JSON_MAX_BYTES + 1);
    assert_null(json_parse(vast, JSON_MAX_BYTES + 1, "test", &err));
    assert_non_null(strstr(err.text, "at most"));
    free(vast);
    assert_null(json_parse_file("/nonexistent.json", 0, &err));
    assert_non_null(strstr(err.text, "/nonexistent.json"));
}

static void writes_values(void **state) {
    (void)state;
    void *parent = mem_new(NULL, 1);
    JsonOut w = {.parent = parent};
    json_open(&w, '{');
    json_key(&w, "a\"b\\");
    json_put_string(&w, "line\n\ttab \x01\x7f\xc3\xa9 \xff");
    json_key(&w, "list");
    json_open(&w, '[');
    json_put_uint(&w, UINT64_MAX);
    json_put_int(&w, INT64_MIN);
    json_put_number(&w, 0.1);
    json_put_number(&w, 3e-4);
    json_put_number(&w, NAN);
    json_put_number(&w, INFINITY);
    json_put_bool(&w, true);
    json_put_bool(&w, false);
    json_put_null(&w);
    json_put_string(&w, NULL);
    json_open(&w, '[');
    json_close(&w, ']');
    json_open(&w, '{');
    json_close(&w, '}');
    json_put_raw(&w, "[1]");
    json_close(&w, ']');
    json_key(&w, "end");
    json_put_int(&w, 0);
    json_close(&w, '}');
    assert_string_equal(w.text,
                        "{\"a\\\"b\\\\\":\"line\\n\\ttab \\u0001\\u007f\xc3\xa9 \xef\xbf\xbd\","
                        "\"list\":[18446744073709551615,-9223372036854775808,0.1,0.0003,null,null,"
                        "true,false,null,null,[],{},[1]],\"end\":0}");
    assert_int_equal(w.n, strlen(w.text));
    Error err = {0};
    Json *j = json_parse(w.text, w.n, "written", &err);
    assert_non_null(j);
    json_free(j);
    json_out_free(&w);
    assert_true(!w.text && w.parent == parent);
    // Numbers read back as they were.
    static const double numbers[] = {
        0, 1, -1, 1.0 / 3, 1e-310, 1.7976931348623157e308, 123456789, 0.30000000000000004};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        json_put_number(&w, numbers[i]);
        assert_true(strtod(w.text, NULL) == numbers[i]);
        json_out_free(&w);
    }
    mem_free(parent);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_values),
        cmocka_unit_test(refuses_what_is_not_json),
        cmocka_unit_test(writes_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
