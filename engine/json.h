// json.h: JSON in and out. Reading is a safe layer over cJSON: text is checked before cJSON sees
// it, so that hostile files cannot exhaust the stack or memory, nor hide one name behind another.
//
// Thread-safety: a tree or a writer belongs to one thread at a time.
#ifndef KILN_ENGINE_JSON_H
#define KILN_ENGINE_JSON_H

#include "backend/base.h"

// ---- reading ----------------------------------------------------------------------------------
typedef struct cJSON Json; // opaque: use the functions below

enum { JSON_MAX_DEPTH = 64 };
#define JSON_MAX_BYTES ((size_t)100 << 20)
#define JSON_MAX_VALUES 4000000 // commas and brackets; bounds memory at about 400 MB

// Parses n bytes (they need no final zero), which must be one JSON value and white space.
// Refused: more than JSON_MAX_BYTES, nesting past JSON_MAX_DEPTH, invalid UTF-8, zero bytes and
// \u0000, raw control characters in strings, and two members of one object with the same name.
// `what` begins the error's text ("model.safetensors: header"). Free the tree with json_free.
Json *json_parse(const char *text, size_t n, const char *what, Error *err);
Json *json_parse_file(const char *path, size_t limit, Error *err); // limit 0: JSON_MAX_BYTES
void json_free(Json *json);                                        // NULL is allowed

bool json_is_object(const Json *v);
bool json_is_array(const Json *v);
bool json_is_string(const Json *v);
bool json_is_number(const Json *v);
bool json_is_bool(const Json *v);
bool json_is_null(const Json *v);

// Members and elements in the order of the file. json_get: by exact name, NULL when missing (or
// when `object` is NULL or no object); it takes time linear in the members: iterate big objects.
//   for (const Json *m = json_first(obj); m; m = json_next(m)) ... json_name(m) ...
const Json *json_get(const Json *object, const char *name);
const Json *json_first(const Json *v); // of an object or array; NULL when empty
const Json *json_next(const Json *v);
const char *json_name(const Json *v); // of a member; NULL for elements
size_t json_count(const Json *v);     // of an object or array; linear

// The value, or the default when v is NULL, of another type, or out of range.
const char *json_string(const Json *v, const char *fallback); // lives as long as the tree
double json_number(const Json *v, double fallback);
int64_t json_int(const Json *v, int64_t fallback); // whole numbers up to 2^53 either way
bool json_bool(const Json *v, bool fallback);
// True when v is a whole number in lo..hi (at most 2^53).
bool json_int_in(const Json *v, int64_t lo, int64_t hi, int64_t *out);

bool json_is_utf8(const char *text); // valid UTF-8, as JSON must be

// ---- writing ----------------------------------------------------------------------------------
// Text grows in memory: commas and quotes are the writer's business. A member's name is given just
// before its value; elements have none:
//   JsonOut w = {0};
//   json_open(&w, '{'); json_key(&w, "seed"); json_put_uint(&w, 42); json_close(&w, '}');
//   ... w.text, w.n ...; json_out_free(&w);
// Invalid UTF-8 in strings becomes U+FFFD, NaN and infinities become null.
typedef struct JsonOut {
    void *parent; // owns text; may be NULL
    char *text;   // zero-terminated once something was written
    size_t n, cap;
    bool need_comma;
} JsonOut;

void json_open(JsonOut *w, char bracket);  // '{' or '['
void json_close(JsonOut *w, char bracket); // '}' or ']'
void json_key(JsonOut *w, const char *name);
void json_put_string(JsonOut *w, const char *text); // NULL: null
void json_put_uint(JsonOut *w, uint64_t v);
void json_put_int(JsonOut *w, int64_t v);
void json_put_number(JsonOut *w, double v); // shortest text that reads back as v; null where it is not finite
void json_put_bool(JsonOut *w, bool v);
void json_put_null(JsonOut *w);
void json_put_raw(JsonOut *w, const char *json); // a whole value that is JSON already
void json_out_free(JsonOut *w);                  // ready for use again

#endif
