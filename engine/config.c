// config.c: see config.h.
#include "engine/config.h"

#include "backend/os.h"

enum { MAX_CONFIG = 1 << 20, MAX_INT = 1 << 24 };
#define TRY_PAIR "take it and the weights from one place"

// ---- reading --------------------------------------------------------------------------------------

// Mapped, so that a pipe is refused, not waited for.
static char *text_at(void *parent, const char *path, Error *err) {
    FileMap map;
    if (!os_map(&map, path, err)) return NULL;
    bool ok = map.size <= MAX_CONFIG && (!map.size || !memchr(map.data, 0, map.size));
    char *text = ok ? mem_strndup(parent, map.size ? (const char *)map.data : "", map.size) : NULL;
    if (!ok)
        err_failed(err, "%s: expected at most %d KiB of text, found %zu bytes%s; the file is damaged", path,
                   MAX_CONFIG >> 10, map.size, map.size <= MAX_CONFIG ? " with zeros" : "");
    os_unmap(&map);
    return text;
}

bool config_read(void *parent, const char *folder, const char *name, ConfigFile *out, Error *err) {
    char *path = os_path_join(parent, folder, name);
    *out = (ConfigFile){.path = path};
    return os_path_kind(path) == PATH_NONE || (out->text = text_at(parent, path, err));
}

Json *config_parse(const ConfigFile *file, Error *err) {
    return json_parse(file->text, strlen(file->text), file->path, err);
}

// ---- members --------------------------------------------------------------------------------------

// A value as it stands in the file.
static const char *shown(char out[32], const Json *v) {
    if (json_is_number(v)) snprintf(out, 32, "%g", json_number(v, 0));
    else if (json_is_string(v)) snprintf(out, 32, "\"%.24s\"", json_string(v, ""));
    else snprintf(out, 32, "%s", json_is_bool(v) ? json_bool(v, false) ? "true" : "false" : "something else");
    return out;
}

// The member unless it is missing or null.
static const Json *member(const Json *root, const char *name) {
    const Json *v = json_get(root, name);
    return v && !json_is_null(v) ? v : NULL;
}

static bool wrong_kind(const ConfigFile *file, const char *name, const char *expected, const Json *v,
                       Error *err) {
    char found[32];
    return err_failed(err, "%s: expected `%s` to be %s, found %s", file->path, name, expected,
                      shown(found, v));
}

bool config_int(const ConfigFile *file, const Json *root, const char *name, int *value, Error *err) {
    const Json *v = member(root, name);
    int64_t found = *value;
    if (v && !json_int_in(v, 0, MAX_INT, &found))
        return wrong_kind(file, name, "a whole number from 0 to 16777216", v, err);
    if (v) *value = (int)found;
    return true;
}

bool config_number(const ConfigFile *file, const Json *root, const char *name, double low, double high,
                   double *value, Error *err) {
    const Json *v = member(root, name);
    double found = json_number(v, *value);
    char range[64];
    snprintf(range, sizeof range, "a number from %g to %g", low, high);
    if (v && !(json_is_number(v) && found >= low && found <= high))
        return wrong_kind(file, name, range, v, err);
    *value = found;
    return true;
}

bool config_text(const ConfigFile *file, const Json *root, const char *name, const char **value, Error *err) {
    const Json *v = member(root, name);
    if (v && !json_is_string(v)) return wrong_kind(file, name, "a text", v, err);
    *value = json_string(v, *value);
    return true;
}

bool config_flag(const ConfigFile *file, const Json *root, const char *name, bool *value, Error *err) {
    const Json *v = member(root, name);
    if (v && !json_is_bool(v)) return wrong_kind(file, name, "true or false", v, err);
    *value = json_bool(v, *value);
    return true;
}

// ---- agreement ------------------------------------------------------------------------------------

static bool is_number(const Json *v, int64_t is) {
    int64_t found;
    if (json_is_bool(v)) return json_bool(v, false) == is;
    return json_int_in(v, INT32_MIN, INT32_MAX, &found) && found == is;
}

bool config_agrees(const ConfigFile *file, const Json *root, const ConfigFact *facts, int count,
                   Error *err) {
    for (int i = 0; i < count; i++) {
        const Json *v = json_get(root, facts[i].name);
        char expected[32], found[32];
        if (!v || json_is_null(v) || is_number(v, facts[i].is)) continue;
        snprintf(expected, sizeof expected, "%lld", (long long)facts[i].is);
        if (json_is_bool(v)) snprintf(expected, sizeof expected, "%s", facts[i].is ? "true" : "false");
        return err_failed(err, "%s: expected `%s` %s, as the tensors have it, found %s; " TRY_PAIR,
                          file->path, facts[i].name, expected, shown(found, v));
    }
    return true;
}

bool config_list_agrees(const ConfigFile *file, const Json *root, const char *name, const int *is, int count,
                        Error *err) {
    const Json *list = json_get(root, name);
    if (!list || json_is_null(list)) return true;
    int i = 0;
    char found[32];
    const Json *v = json_first(list);
    for (; v && i < count && is_number(v, is[i]); v = json_next(v)) i++;
    if (json_is_array(list) && i == count && !v) return true;
    if (!json_is_array(list) || i == count || !v)
        return err_failed(err, "%s: expected `%s` of %d numbers, as the tensors have it, found %zu; "
                          TRY_PAIR, file->path, name, count, json_count(list));
    return err_failed(err, "%s: expected `%s` with %d at %d, as the tensors have it, found %s; " TRY_PAIR,
                      file->path, name, is[i], i, shown(found, v));
}

bool config_in_ranges(const char *model, const ConfigRange *ranges, int count, Error *err) {
    for (int i = 0; i < count; i++) {
        const ConfigRange *r = &ranges[i];
        if (r->value < r->low || r->value > r->high)
            return err_failed(err, "%s: expected %s from %d to %d, found %d", model, r->name, r->low, r->high,
                              r->value);
    }
    return true;
}
