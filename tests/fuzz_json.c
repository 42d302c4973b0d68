// fuzz_json.c: any bytes as JSON. A tree that is accepted is written out and parsed again: the
// second text must equal the first.
#include <assert.h>
#include <stdlib.h>

#include "engine/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_value(JsonOut *w, const Json *v) {
    if (json_is_object(v) || json_is_array(v)) {
        bool object = json_is_object(v);
        size_t n = 0;
        json_open(w, object ? '{' : '[');
        for (const Json *c = json_first(v); c; c = json_next(c), n++) {
            if (object) {
                assert(json_get(v, json_name(c)) == c);
                json_key(w, json_name(c));
            }
            write_value(w, c);
        }
        assert(n == json_count(v));
        json_close(w, object ? '}' : ']');
    } else if (json_is_string(v)) {
        assert(json_is_utf8(json_string(v, "")));
        json_put_string(w, json_string(v, ""));
    } else if (json_is_number(v)) {
        json_put_number(w, json_number(v, 0));
    } else if (json_is_bool(v)) {
        json_put_bool(w, json_bool(v, false));
    } else {
        json_put_null(w);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err = {0};
    Json *json = json_parse((const char *)data, size, "fuzz", &err);
    if (!json) {
        assert(err.status == STATUS_FAILED);
        return 0;
    }
    JsonOut first = {0}, second = {0};
    write_value(&first, json);
    Json *again = json_parse(first.text, first.n, "again", &err);
    assert(again);
    write_value(&second, again);
    assert(first.n == second.n && !memcmp(first.text, second.text, first.n));
    json_free(again);
    json_free(json);
    json_out_free(&first);
    json_out_free(&second);
    return 0;
}
