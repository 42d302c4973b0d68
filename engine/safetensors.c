// safetensors.c: see safetensors.h.
#include "engine/safetensors.h"

#include <stdlib.h>

#include "engine/json.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "tensors are used as they lie in the file");

enum { ALIGN = 64, CHUNK = 1 << 20 };
static const char META[] = "__metadata__";

// ---- reading ----------------------------------------------------------------------------------

static int compare_tensors(const void *a, const void *b) {
    return strcmp(((const StTensor *)a)->name, ((const StTensor *)b)->name);
}

static bool parse_meta(StFile *f, const Json *entry, Error *err) {
    if (!json_is_object(entry))
        return err_failed(err, "%s: %s: expected an object of strings, found another type", f->path,
                          META);
    f->meta = MEM_ARRAY(f, StMeta, json_count(entry));
    for (const Json *m = json_first(entry); m; m = json_next(m)) {
        if (!json_is_string(m))
            return err_failed(err, "%s: %s.%.100s: expected a string, found another type", f->path,
                              META, json_name(m));
        f->meta[f->meta_n++] = (StMeta){.key = mem_strdup(f, json_name(m)),
                                        .value = mem_strdup(f, json_string(m, ""))};
    }
    return true;
}

static bool parse_shape(StFile *f, StTensor *t, const Json *shape, Error *err) {
    if (!json_is_array(shape))
        return err_failed(err, "%s: tensor %.100s: expected a shape (a list), found none", f->path,
                          t->name);
    t->count = 1;
    for (const Json *d = json_first(shape); d; d = json_next(d)) {
        if (t->ndim == ST_MAX_DIMS)
            return err_failed(err, "%s: tensor %.100s: expected at most %d dimensions, found more",
                              f->path, t->name, ST_MAX_DIMS);
        int64_t size;
        if (!json_int_in(d, 0, INT64_MAX, &size))
            return err_failed(err,
                              "%s: tensor %.100s: expected whole sizes in its shape, found "
                              "something else",
                              f->path, t->name);
        t->shape[t->ndim++] = size;
        if (!mul_size(t->count, (uint64_t)size, &t->count))
            return err_failed(err,
                              "%s: tensor %.100s: expected a shape that fits in memory, found "
                              "more than 2^64 elements",
                              f->path, t->name);
    }
    if (!mul_size(t->count, (uint64_t)dtype_size(t->dtype), &t->bytes))
        return err_failed(err,
                          "%s: tensor %.100s: expected a shape that fits in memory, found more "
                          "than 2^64 bytes",
                          f->path, t->name);
    return true;
}

// `start`: offset of the data in the file.
static bool parse_tensor(StFile *f, StTensor *t, const Json *entry, uint64_t start, Error *err) {
    t->name = mem_strdup(f, json_name(entry));
    const char *dtype = json_string(json_get(entry, "dtype"), "");
    if (!dtype_parse_file(dtype, &t->dtype))
        return err_failed(err,
                          "%s: tensor %.100s: expected a type such as F32, F16 or BF16, found "
                          "\"%.20s\"",
                          f->path, t->name, dtype);
    if (!parse_shape(f, t, json_get(entry, "shape"), err)) return false;
    const Json *offsets = json_get(entry, "data_offsets");
    const Json *first = json_is_array(offsets) ? json_first(offsets) : NULL;
    const Json *second = json_next(first);
    int64_t begin, end;
    if (!json_int_in(first, 0, INT64_MAX, &begin) || !json_int_in(second, 0, INT64_MAX, &end) ||
        json_next(second))
        return err_failed(err, "%s: tensor %.100s: expected two data_offsets, found something else",
                          f->path, t->name);
    uint64_t size = f->map.size - start;
    if (begin > end || (uint64_t)end > size)
        return err_failed(err,
                          "%s: tensor %.100s: expected data inside the file's %llu bytes of "
                          "data, found it at %lld to %lld; the file is cut or damaged",
                          f->path, t->name, (unsigned long long)size, (long long)begin,
                          (long long)end);
    if ((uint64_t)(end - begin) != t->bytes) {
        char text[128];
        return err_failed(err,
                          "%s: tensor %.100s: expected %llu bytes for %s %s, found %lld; the "
                          "file is damaged",
                          f->path, t->name, (unsigned long long)t->bytes, dtype,
                          st_shape_text(text, t->ndim, t->shape), (long long)(end - begin));
    }
    t->data = f->map.data + start + begin;
    return true;
}

static int compare_places(const void *a, const void *b) {
    const StTensor *x = *(const StTensor *const *)a, *y = *(const StTensor *const *)b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; // empty ones first
    return strcmp(x->name, y->name);
}

// The tensors must cover the data exactly: gaps could hide other content, overlaps would alias.
static bool check_cover(const StFile *f, uint64_t start, Error *err) {
    const StTensor **order = MEM_ARRAY(NULL, const StTensor *, f->n);
    for (int i = 0; i < f->n; i++) order[i] = &f->tensors[i];
    if (f->n) qsort(order, (size_t)f->n, sizeof *order, compare_places);
    const uint8_t *at = f->map.data + start;
    bool ok = true;
    for (int i = 0; i < f->n && ok; i++) {
        const uint8_t *data = order[i]->data;
        if (data < at)
            ok = err_failed(err,
                            "%s: tensor %.100s: expected data of its own, found it overlapping "
                            "tensor %.100s; the file is damaged",
                            f->path, order[i]->name, order[i - 1]->name);
        else if (data > at)
            ok = err_failed(err,
                            "%s: tensor %.100s: expected data right after the one before, found "
                            "a gap of %llu bytes; the file is damaged",
                            f->path, order[i]->name, (unsigned long long)(data - at));
        at = data + order[i]->bytes;
    }
    uint64_t left = (uint64_t)(f->map.data + f->map.size - at);
    if (ok && left)
        ok = err_failed(err,
                        "%s: expected the file to end after its last tensor, found %llu more "
                        "bytes; the file is damaged",
                        f->path, (unsigned long long)left);
    mem_free(order);
    return ok;
}

static bool parse_header(StFile *f, const Json *header, uint64_t start, Error *err) {
    if (!json_is_object(header))
        return err_failed(err,
                          "%s: expected a safetensors header (a JSON object), found another "
                          "JSON value",
                          f->path);
    f->tensors = MEM_ARRAY(f, StTensor, json_count(header));
    for (const Json *m = json_first(header); m; m = json_next(m)) {
        if (!strcmp(json_name(m), META)) {
            if (!parse_meta(f, m, err)) return false;
        } else if (!parse_tensor(f, &f->tensors[f->n++], m, start, err)) return false;
    }
    if (f->n) qsort(f->tensors, (size_t)f->n, sizeof *f->tensors, compare_tensors);
    return check_cover(f, start, err); // names differ: json_parse refused the rest
}

// Before anything is built: a tensor has one brace of its own, and about ten values.
static bool check_count(const char *header, uint64_t n, const char *path, Error *err) {
    uint64_t braces = 0, values = 0;
    for (uint64_t i = 0; i < n; i++) {
        braces += header[i] == '{';
        values += header[i] == ',' || header[i] == '[';
    }
    return (braces <= ST_MAX_TENSORS + 2 && values <= 12 * ST_MAX_TENSORS) ||
           err_failed(err, "%s: expected at most %d tensors in the header, found more; the file is "
                      "damaged or hostile", path, ST_MAX_TENSORS);
}

static bool parse_file(StFile *f, Error *err) {
    if (f->map.size < 8)
        return err_failed(err, "%s: expected a safetensors file, found %zu bytes", f->path,
                          f->map.size);
    uint64_t length;
    memcpy(&length, f->map.data, 8);
    if (length > ST_MAX_HEADER)
        return err_failed(err,
                          "%s: expected a safetensors header of at most %llu bytes, found %llu; "
                          "it is another kind of file, or damaged",
                          f->path, (unsigned long long)ST_MAX_HEADER, (unsigned long long)length);
    if (length > f->map.size - 8)
        return err_failed(err,
                          "%s: expected a header of %llu bytes, found only %zu bytes after its "
                          "length; the file is cut",
                          f->path, (unsigned long long)length, f->map.size - 8);
    if (!check_count((const char *)f->map.data + 8, length, f->path, err)) return false;
    char what[ERROR_TEXT];
    snprintf(what, sizeof what, "%.300s: header", f->path);
    Json *header = json_parse((const char *)f->map.data + 8, (size_t)length, what, err);
    if (!header) return false;
    bool ok = parse_header(f, header, 8 + length, err);
    json_free(header);
    return ok;
}

StFile *st_parse(void *parent, const char *path, const void *data, size_t size, Error *err) {
    StFile *f = MEM_NEW(parent, StFile);
    f->path = mem_strdup(f, path);
    f->map = (FileMap){.data = data, .size = size};
    bool ok = parse_file(f, err);
    f->map = (FileMap){0}; // not ours to unmap
    if (ok) return f;
    mem_free(f);
    return NULL;
}

StFile *st_open(void *parent, const char *path, Error *err) {
    FileMap map;
    if (!os_map(&map, path, err)) return NULL;
    StFile *f = st_parse(parent, path, map.data, map.size, err);
    if (f) f->map = map;
    else os_unmap(&map);
    return f;
}

void st_close(StFile *f) {
    if (!f) return;
    if (f->map.data) os_unmap(&f->map);
    mem_free(f);
}

const StTensor *st_find(const StFile *f, const char *name) {
    StTensor key = {.name = name};
    return f->n ? bsearch(&key, f->tensors, (size_t)f->n, sizeof key, compare_tensors) : NULL;
}

const StTensor *st_get(const StFile *f, const char *name, Error *err) {
    const StTensor *t = st_find(f, name);
    if (!t) err_failed(err, "%s: expected a tensor %.100s, found none of that name", f->path, name);
    return t;
}

const char *st_meta(const StFile *f, const char *key) {
    for (int i = 0; i < f->meta_n; i++)
        if (!strcmp(f->meta[i].key, key)) return f->meta[i].value;
    return NULL;
}

void st_to_f32(const StTensor *t, float *out) {
    size_t size = (size_t)dtype_size(t->dtype);
    if (t->dtype == DT_F32) {
        if (t->bytes) memcpy(out, t->data, t->bytes);
        return;
    }
    // Through a small buffer, because data in a file may stand at any address.
    _Alignas(8) uint8_t part[4096];
    for (uint64_t i = 0; i < t->count;) {
        size_t n = (size_t)MIN(t->count - i, sizeof part / size);
        memcpy(part, t->data + i * size, n * size);
        dtype_convert(DT_F32, out + i, t->dtype, part, n);
        i += n;
    }
}

const char *st_shape_text(char text[128], int ndim, const int64_t *shape) {
    int used = snprintf(text, 128, "[");
    for (int i = 0; i < ndim && used < 100; i++)
        used += shape[i] < 0 ? snprintf(text + used, 128 - (size_t)used, "%s?", i ? ", " : "")
                             : snprintf(text + used, 128 - (size_t)used, "%s%lld", i ? ", " : "",
                                        (long long)shape[i]);
    snprintf(text + used, 128 - (size_t)used, "]");
    return text;
}

// ---- is it the file we expect? ----------------------------------------------------------------

static int compare_wants(const void *a, const void *b) {
    return strcmp((*(const StWant *const *)a)->name, (*(const StWant *const *)b)->name);
}

static bool shape_fits(const StTensor *t, const StWant *want) {
    if (t->ndim != want->ndim) return false;
    for (int i = 0; i < t->ndim; i++)
        if (want->shape[i] >= 0 && want->shape[i] != t->shape[i]) return false;
    return true;
}

// Names are cut so that the shapes after them are never lost.
static int list_missing(const StFile *f, const StWant *wants, int n, Error *err) {
    int count = 0;
    char shape[128];
    for (int i = 0; i < n; i++) {
        if (wants[i].optional || st_find(f, wants[i].name)) continue;
        count++;
        err_item(err, "%.120s: missing, expected %s", wants[i].name,
                 st_shape_text(shape, wants[i].ndim, wants[i].shape));
    }
    return count;
}

static int list_wrong(const StFile *f, const StWant *wants, int n, Error *err) {
    int count = 0;
    char want[128], found[128];
    for (int i = 0; i < n; i++) {
        const StTensor *t = st_find(f, wants[i].name);
        if (!t || (dtype_is_float(t->dtype) && shape_fits(t, &wants[i]))) continue;
        count++;
        err_item(err, "%.80s: expected %s%s, found %s %s", wants[i].name,
                 dtype_is_float(t->dtype) ? "" : "a floating-point type, ",
                 st_shape_text(want, wants[i].ndim, wants[i].shape), dtype_name(t->dtype),
                 st_shape_text(found, t->ndim, t->shape));
    }
    return count;
}

static int list_unexpected(const StFile *f, const StWant *wants, int n, Error *err) {
    const StWant **sorted = MEM_ARRAY(NULL, const StWant *, n);
    for (int i = 0; i < n; i++) sorted[i] = &wants[i];
    if (n) qsort(sorted, (size_t)n, sizeof *sorted, compare_wants);
    int count = 0;
    char found[128];
    for (int i = 0; i < f->n; i++) {
        const StTensor *t = &f->tensors[i];
        StWant key = {.name = t->name};
        const StWant *key_at = &key;
        if (n && bsearch(&key_at, sorted, (size_t)n, sizeof *sorted, compare_wants)) continue;
        count++;
        err_item(err, "%.120s: unexpected, %s %s", t->name, dtype_name(t->dtype),
                 st_shape_text(found, t->ndim, t->shape));
    }
    mem_free(sorted);
    return count;
}

bool st_check(const StFile *f, const StWant *wants, int n, Error *err) {
    Error list = {0}; // the text needs the counts, and setting it clears the list
    int missing = list_missing(f, wants, n, &list);
    int wrong = list_wrong(f, wants, n, &list);
    int unexpected = list_unexpected(f, wants, n, &list);
    if (!list.items) return true;
    err_failed(&list,
               "%s: expected the %d tensors of this model, found %d missing, %d of another "
               "shape or type and %d unexpected; is it the right file?",
               f->path, n, missing, wrong, unexpected);
    // err_set emptied the list's count, not its lines.
    list.items = missing + wrong + unexpected;
    if (err) *err = list;
    return false;
}

// ---- writing ----------------------------------------------------------------------------------

typedef struct Entry {
    const char *name;
    DType dtype;
    int ndim;
    int64_t shape[ST_MAX_DIMS];
    uint64_t bytes;
    const void *data;
    StFill *fill;
    void *user;
} Entry;

struct StWriter {
    ARRAY(Entry) entries;
    ARRAY(StMeta) meta;
    Error error; // the first thing that was wrong
};

StWriter *st_writer(void *parent) { return MEM_NEW(parent, StWriter); }

void st_put_meta(StWriter *w, const char *key, const char *value) {
    StMeta m = {.key = mem_strdup(w, key), .value = mem_strdup(w, value)};
    ARR_PUSH(w, &w->meta, m);
}

static void writer_error(StWriter *w, const char *name, const char *text) {
    if (w->error.status == STATUS_OK) err_failed(&w->error, "tensor %.100s: %s", name, text);
}

static void put(StWriter *w, Entry e, const int64_t *shape) {
    e.name = mem_strdup(w, e.name);
    if (!json_is_utf8(e.name))
        writer_error(w, e.name, "expected a name in UTF-8, found other bytes");
    if (!strcmp(e.name, META))
        writer_error(w, e.name, "expected another name, found a reserved one");
    if (e.ndim < 0 || e.ndim > ST_MAX_DIMS) {
        writer_error(w, e.name, "expected at most 8 dimensions, found more");
        return;
    }
    uint64_t bytes = (uint64_t)dtype_size(e.dtype);
    for (int i = 0; i < e.ndim; i++) {
        e.shape[i] = shape[i];
        if (shape[i] < 0 || !mul_size(bytes, (uint64_t)shape[i], &bytes)) {
            writer_error(w, e.name, "expected a shape that fits in memory, found a larger one");
            return;
        }
    }
    e.bytes = bytes;
    if (bytes && !e.data && !e.fill) writer_error(w, e.name, "expected data, found none");
    ARR_PUSH(w, &w->entries, e);
}

void st_put(StWriter *w, const char *name, DType dtype, int ndim, const int64_t *shape,
            const void *data) {
    put(w, (Entry){.name = name, .dtype = dtype, .ndim = ndim, .data = data}, shape);
}

void st_put_fill(StWriter *w, const char *name, DType dtype, int ndim, const int64_t *shape,
                 StFill *fill, void *user) {
    put(w, (Entry){.name = name, .dtype = dtype, .ndim = ndim, .fill = fill, .user = user}, shape);
}

static int compare_entries(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    int difference = dtype_size(y->dtype) - dtype_size(x->dtype);
    return difference ? difference : strcmp(x->name, y->name);
}

static int compare_entry_names(const void *a, const void *b) {
    return strcmp((*(const Entry *const *)a)->name, (*(const Entry *const *)b)->name);
}

static int compare_meta(const void *a, const void *b) {
    return strcmp(((const StMeta *)a)->key, ((const StMeta *)b)->key);
}

// Puts all in its final order and finds names given twice.
static bool settle(StWriter *w, Error *err) {
    int n = w->entries.n;
    if (n) qsort(w->entries.v, (size_t)n, sizeof *w->entries.v, compare_entries);
    if (w->meta.n) qsort(w->meta.v, (size_t)w->meta.n, sizeof *w->meta.v, compare_meta);
    for (int i = 1; i < w->meta.n; i++)
        if (!strcmp(w->meta.v[i].key, w->meta.v[i - 1].key))
            writer_error(w, META, "expected each key once, found one twice");
    const Entry **names = MEM_ARRAY(NULL, const Entry *, n);
    for (int i = 0; i < n; i++) names[i] = &w->entries.v[i];
    if (n) qsort(names, (size_t)n, sizeof *names, compare_entry_names);
    for (int i = 1; i < n; i++)
        if (!strcmp(names[i]->name, names[i - 1]->name))
            writer_error(w, names[i]->name, "expected each name once, found it twice");
    mem_free(names);
    if (w->error.status == STATUS_OK) return true;
    if (err) *err = w->error;
    return false;
}

// The length, the header and its padding. Owned by the caller (json_out_free).
static JsonOut make_header(StWriter *w, uint64_t *data_bytes) {
    JsonOut h = {.parent = w};
    json_open(&h, '{');
    if (w->meta.n) {
        json_key(&h, META);
        json_open(&h, '{');
        for (int i = 0; i < w->meta.n; i++) {
            json_key(&h, w->meta.v[i].key);
            json_put_string(&h, w->meta.v[i].value);
        }
        json_close(&h, '}');
    }
    uint64_t at = 0;
    for (int i = 0; i < w->entries.n; i++) {
        const Entry *e = &w->entries.v[i];
        json_key(&h, e->name);
        json_open(&h, '{');
        json_key(&h, "dtype");
        json_put_string(&h, dtype_info[e->dtype].file_name);
        json_key(&h, "shape");
        json_open(&h, '[');
        for (int d = 0; d < e->ndim; d++) json_put_int(&h, e->shape[d]);
        json_close(&h, ']');
        json_key(&h, "data_offsets");
        json_open(&h, '[');
        json_put_uint(&h, at);
        json_put_uint(&h, at += e->bytes);
        json_close(&h, ']');
        json_close(&h, '}');
    }
    json_close(&h, '}');
    *data_bytes = at;
    return h;
}

static uint64_t padded_length(const JsonOut *h) { return align_up(8 + h->n, ALIGN) - 8; }

uint64_t st_write_bytes(StWriter *w) {
    uint64_t data_bytes;
    JsonOut h = make_header(w, &data_bytes);
    uint64_t length = padded_length(&h);
    json_out_free(&h);
    return 8 + length + data_bytes;
}

static bool write_entry(const Entry *e, OutFile *out, uint8_t *chunk, Error *err) {
    if (!e->fill) return !e->bytes || out_write(out, e->data, (size_t)e->bytes, err);
    for (uint64_t at = 0; at < e->bytes;) {
        size_t n = (size_t)MIN(e->bytes - at, (uint64_t)CHUNK);
        if (!e->fill(e->user, at, chunk, n, err)) return false;
        if (!out_write(out, chunk, n, err)) return false;
        at += n;
    }
    return true;
}

bool st_write_out(StWriter *w, OutFile *out, Error *err) {
    if (!settle(w, err)) return false;
    uint64_t data_bytes;
    JsonOut h = make_header(w, &data_bytes);
    uint64_t length = padded_length(&h);
    static const char spaces[ALIGN] =
        "                                                               ";
    bool ok = length <= ST_MAX_HEADER ||
              err_failed(err, "safetensors header: expected at most %llu bytes, found %llu",
                         (unsigned long long)ST_MAX_HEADER, (unsigned long long)length);
    ok = ok && out_write(out, &length, 8, err) && out_write(out, h.text, h.n, err) &&
         out_write(out, spaces, (size_t)length - h.n, err);
    json_out_free(&h);
    uint8_t *chunk = mem_new(NULL, CHUNK);
    for (int i = 0; i < w->entries.n && ok; i++)
        ok = write_entry(&w->entries.v[i], out, chunk, err);
    mem_free(chunk);
    return ok;
}

bool st_write(StWriter *w, const char *path, Error *err) {
    if (!settle(w, err)) return err_prefix(err, "%s", path);
    OutFile *out = out_open(NULL, path, err);
    if (!out) return false;
    if (st_write_out(w, out, err)) return out_commit(out, err);
    out_abort(out);
    return false;
}
