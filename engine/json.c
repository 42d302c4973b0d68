// json.c: see json.h.
#include "engine/json.h"

#include <math.h>
#include <stdlib.h>

#include <cjson/cJSON.h>

#include "backend/os.h"

static const double MAX_WHOLE = 9007199254740992.0; // 2^53

// ---- checks before parsing --------------------------------------------------------------------

// Length of the UTF-8 sequence at s (n bytes left), 0 when invalid (overlong, surrogate, past
// U+10FFFF, cut).
static size_t utf8_length(const uint8_t *s, size_t n) {
    if (s[0] < 0x80) return 1;
    size_t len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n < len) return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (s[0] == 0xe0 && s[1] < 0xa0) return 0;
    if (s[0] == 0xed && s[1] > 0x9f) return 0;
    if (s[0] == 0xf0 && s[1] < 0x90) return 0;
    if (s[0] == 0xf4 && s[1] > 0x8f) return 0;
    return len;
}

bool json_is_utf8(const char *text) {
    size_t n = strlen(text), len;
    for (size_t i = 0; i < n; i += len) {
        len = utf8_length((const uint8_t *)text + i, n - i);
        if (!len) return false;
    }
    return true;
}

// Bounds depth and size, so that the recursive parser behind is safe, and refuses what C strings
// cannot hold. Grammar is left to the parser.
static bool prescan(const char *text, size_t n, const char *what, Error *err) {
    const uint8_t *s = (const uint8_t *)text;
    size_t depth = 0, values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n;) {
        size_t len = utf8_length(s + i, n - i);
        uint8_t c = s[i];
        if (!len)
            return err_failed(err, "%s: expected JSON in UTF-8, found byte 0x%02x at offset %zu",
                              what, c, i);
        if (c < 0x20 && (in_string || !strchr("\t\n\r", c) || !c))
            return err_failed(
                err, "%s: expected JSON, found control character 0x%02x at offset %zu", what, c, i);
        if (in_string) {
            if (c == '\\' && n - i >= 6 && !memcmp(s + i, "\\u0000", 6))
                return err_failed(err, "%s: expected JSON text, found \\u0000 at offset %zu", what,
                                  i);
            if (c == '\\' && i + 1 < n && s[i + 1] < 0x80 && s[i + 1] >= 0x20) len = 2;
            if (c == '"') in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            values++;
            if (++depth > JSON_MAX_DEPTH)
                return err_failed(err,
                                  "%s: expected JSON at most %d levels deep, found more at "
                                  "offset %zu",
                                  what, JSON_MAX_DEPTH, i);
        } else if (c == '}' || c == ']') {
            if (depth) depth--;
        } else if (c == ',') {
            values++;
        }
        i += len;
    }
    if (values > JSON_MAX_VALUES)
        return err_failed(err, "%s: expected at most %d JSON values, found %zu", what,
                          JSON_MAX_VALUES, values);
    return true;
}

// ---- duplicate names --------------------------------------------------------------------------

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool names_differ(const cJSON *object, const char *what, Error *err) {
    size_t n = 0;
    for (const cJSON *m = object->child; m; m = m->next) n++;
    if (n < 2) return true;
    const char **names = MEM_ARRAY(NULL, const char *, n);
    n = 0;
    for (const cJSON *m = object->child; m; m = m->next) names[n++] = m->string;
    qsort(names, n, sizeof *names, compare_names);
    bool ok = true;
    for (size_t i = 1; i < n && ok; i++)
        if (!strcmp(names[i - 1], names[i]))
            ok = err_failed(err, "%s: expected each name once, found \"%.100s\" twice", what,
                            names[i]);
    mem_free(names);
    return ok;
}

static bool all_names_differ(const cJSON *v, const char *what, Error *err) {
    if (cJSON_IsObject(v) && !names_differ(v, what, err)) return false;
    for (const cJSON *c = v->child; c; c = c->next) // depth is at most JSON_MAX_DEPTH
        if (c->child && !all_names_differ(c, what, err)) return false;
    return true;
}

// ---- reading ----------------------------------------------------------------------------------

Json *json_parse(const char *text, size_t n, const char *what, Error *err) {
    if (n > JSON_MAX_BYTES) {
        err_failed(err, "%s: expected at most %zu bytes of JSON, found %zu", what, JSON_MAX_BYTES,
                   n);
        return NULL;
    }
    if (!prescan(text, n, what, err)) return NULL;
    // A copy with a final zero: cJSON before 1.7.18 may read one byte past text that is cut.
    char *copy = mem_strndup(NULL, text, n);
    const char *end = NULL;
    Json *json = cJSON_ParseWithLengthOpts(copy, n + 1, &end, false);
    size_t at = end ? (size_t)(end - copy) : 0;
    if (json) {
        while (at < n && strchr(" \t\r\n", copy[at])) at++;
        if (at < n) {
            cJSON_Delete(json);
            json = NULL;
        }
    }
    if (!json)
        err_failed(err,
                   "%s: expected JSON, found an error at offset %zu of %zu; the file is damaged",
                   what, MIN(at, n), n);
    else if (!all_names_differ(json, what, err)) {
        cJSON_Delete(json);
        json = NULL;
    }
    mem_free(copy);
    return json;
}

Json *json_parse_file(const char *path, size_t limit, Error *err) {
    size_t size = 0;
    uint8_t *text = os_read_file(NULL, path, limit ? limit : JSON_MAX_BYTES, &size, err);
    if (!text) return NULL;
    Json *json = json_parse((const char *)text, size, path, err);
    mem_free(text);
    return json;
}

void json_free(Json *json) { cJSON_Delete(json); }

bool json_is_object(const Json *v) { return cJSON_IsObject(v); }
bool json_is_array(const Json *v) { return cJSON_IsArray(v); }
bool json_is_string(const Json *v) { return cJSON_IsString(v); }
bool json_is_number(const Json *v) { return cJSON_IsNumber(v); }
bool json_is_bool(const Json *v) { return cJSON_IsBool(v); }
bool json_is_null(const Json *v) { return cJSON_IsNull(v); }

const Json *json_get(const Json *object, const char *name) {
    if (!json_is_object(object)) return NULL;
    for (const cJSON *m = object->child; m; m = m->next)
        if (!strcmp(m->string, name)) return m;
    return NULL;
}

const Json *json_first(const Json *v) {
    return json_is_object(v) || json_is_array(v) ? v->child : NULL;
}

const Json *json_next(const Json *v) { return v ? v->next : NULL; }
const char *json_name(const Json *v) { return v ? v->string : NULL; }

size_t json_count(const Json *v) {
    size_t n = 0;
    for (const Json *c = json_first(v); c; c = c->next) n++;
    return n;
}

const char *json_string(const Json *v, const char *fallback) {
    return json_is_string(v) ? v->valuestring : fallback;
}

double json_number(const Json *v, double fallback) {
    return json_is_number(v) ? v->valuedouble : fallback;
}

bool json_int_in(const Json *v, int64_t lo, int64_t hi, int64_t *out) {
    if (!json_is_number(v)) return false;
    double d = v->valuedouble;
    // Not "> MAX_WHOLE": 2^53 + 1 reads as 2^53, so 2^53 itself is out.
    if (!(d > -MAX_WHOLE && d < MAX_WHOLE) || d != floor(d)) return false;
    if (d < (double)lo || d > (double)hi) return false;
    *out = (int64_t)d;
    return true;
}

int64_t json_int(const Json *v, int64_t fallback) {
    int64_t out;
    return json_int_in(v, INT64_MIN, INT64_MAX, &out) ? out : fallback;
}

bool json_bool(const Json *v, bool fallback) {
    return json_is_bool(v) ? cJSON_IsTrue(v) : fallback;
}

// ---- writing ----------------------------------------------------------------------------------

static void append(JsonOut *w, const char *text, size_t n) {
    if (n + 1 > w->cap - w->n) {
        w->cap = MAX(w->cap * 2, w->n + n + 256);
        w->text = mem_resize(w->parent, w->text, w->cap);
    }
    memcpy(w->text + w->n, text, n);
    w->n += n;
    w->text[w->n] = 0;
}

static void begin_value(JsonOut *w) {
    if (w->need_comma) append(w, ",", 1);
    w->need_comma = true;
}

static void append_quoted(JsonOut *w, const char *text) {
    append(w, "\"", 1);
    size_t n = strlen(text);
    for (size_t i = 0; i < n;) {
        size_t len = utf8_length((const uint8_t *)text + i, n - i);
        unsigned char c = (unsigned char)text[i];
        if (!len) append(w, "\xef\xbf\xbd", 3);
        else if (c == '"' || c == '\\') append(w, (char[]){'\\', (char)c}, 2);
        else if (c == '\n') append(w, "\\n", 2);
        else if (c == '\t') append(w, "\\t", 2);
        else if (c < 0x20 || c == 0x7f) {
            char escape[8];
            append(w, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", c));
        } else append(w, text + i, len);
        i += len ? len : 1;
    }
    append(w, "\"", 1);
}

void json_open(JsonOut *w, char bracket) {
    begin_value(w);
    append(w, &bracket, 1);
    w->need_comma = false;
}

void json_close(JsonOut *w, char bracket) {
    append(w, &bracket, 1);
    w->need_comma = true;
}

void json_key(JsonOut *w, const char *name) {
    begin_value(w);
    append_quoted(w, name);
    append(w, ":", 1);
    w->need_comma = false;
}

void json_put_raw(JsonOut *w, const char *json) {
    begin_value(w);
    append(w, json, strlen(json));
}

void json_put_string(JsonOut *w, const char *text) {
    if (!text) {
        json_put_null(w);
        return;
    }
    begin_value(w);
    append_quoted(w, text);
}

void json_put_uint(JsonOut *w, uint64_t v) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)v);
    json_put_raw(w, text);
}

void json_put_int(JsonOut *w, int64_t v) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)v);
    json_put_raw(w, text);
}

void json_put_number(JsonOut *w, double v) {
    char text[40];
    if (!isfinite(v)) {
        json_put_null(w);
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    for (char *c = text; *c; c++)
        if (*c == ',') *c = '.'; // a host program's locale may write a decimal comma
    json_put_raw(w, text);
}

void json_put_bool(JsonOut *w, bool v) { json_put_raw(w, v ? "true" : "false"); }
void json_put_null(JsonOut *w) { json_put_raw(w, "null"); }

void json_out_free(JsonOut *w) {
    mem_free(w->text);
    *w = (JsonOut){.parent = w->parent};
}
