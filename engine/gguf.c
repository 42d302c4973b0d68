// gguf.c: see gguf.h and weights_impl.h.
#include "engine/gguf.h"

#include <inttypes.h>
#include <stdlib.h>

#include "engine/json.h"
#include "engine/weights_impl.h"

// ggml's numbers of types.
static const struct { int id; DType dtype; } types[] = {
    {0, DT_F32},    {1, DT_F16},   {2, DT_Q4_0},    {3, DT_Q4_1},    {6, DT_Q5_0},  {7, DT_Q5_1},
    {8, DT_Q8_0},   {10, DT_Q2_K}, {11, DT_Q3_K},   {12, DT_Q4_K},   {13, DT_Q5_K}, {14, DT_Q6_K},
    {20, DT_IQ4_NL}, {23, DT_IQ4_XS}, {24, DT_I8}, {25, DT_I16},    {26, DT_I32},  {27, DT_I64},
    {28, DT_F64},   {30, DT_BF16},
};

int gguf_type(DType t) {
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (types[i].dtype == t) return types[i].id;
    return -1;
}

// Types of metadata values, by number.
typedef enum { KV_TEXT = 8, KV_ARRAY = 9, KV_COUNT = 13, KV_U32 = 4 } KvType;
static const uint8_t kv_bytes[KV_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

// ---- reading ----------------------------------------------------------------------------------

typedef struct Reader {
    void *parent;
    const char *path;
    const uint8_t *data;
    size_t size, at;
    Error *err;
    uint64_t alignment;
} Reader;

enum { MAX_NAME = 65535, MAX_LISTED = 16, MAX_META = 100000, MAX_HEADER = 48 << 20 };

static bool cut(Reader *r) {
    if (r->size == MAX_HEADER)
        return err_failed(r->err,
                          "%s: expected a GGUF header of at most %d MiB, found more; the file is "
                          "damaged or hostile", r->path, MAX_HEADER >> 20);
    return err_failed(r->err, "%s: expected more of the GGUF header at byte %zu, found the end; the "
                      "file is cut or damaged", r->path, r->at);
}

static bool take(Reader *r, void *out, size_t n) {
    if (r->size - r->at < n) return cut(r);
    if (out) memcpy(out, r->data + r->at, n);
    r->at += n;
    return true;
}

static bool take_u32(Reader *r, uint32_t *v) { return take(r, v, 4); }
static bool take_u64(Reader *r, uint64_t *v) { return take(r, v, 8); }

// Points at a string of the file.
static bool take_text(Reader *r, const char **text, uint64_t *n) {
    if (!take_u64(r, n)) return false;
    if (*n > r->size - r->at) return cut(r);
    *text = (const char *)r->data + r->at;
    r->at += (size_t)*n;
    return true;
}

// A key or a tensor's name: short, valid text.
static bool take_name(Reader *r, const char *what, const char **name) {
    const char *text = NULL;
    uint64_t n = 0;
    if (!take_text(r, &text, &n)) return false;
    if (n == 0 || n > MAX_NAME || memchr(text, 0, (size_t)n))
        return err_failed(r->err, "%s: expected a %s of 1 to %d bytes, found %" PRIu64 " bytes or a "
                          "zero byte; the file is damaged", r->path, what, MAX_NAME, n);
    char *copy = mem_strndup(r->parent, text, (size_t)n);
    if (!json_is_utf8(copy))
        return err_failed(r->err, "%s: expected a %s in UTF-8, found \"%.60s\"; the file is damaged",
                          r->path, what, copy);
    *name = copy;
    return true;
}

// A number as text.
static void number_text(char out[40], KvType type, const uint8_t *b) {
    int64_t i = 0;
    uint64_t u = 0;
    float f;
    double d;
    memcpy(&u, b, kv_bytes[type]); // little endian
    switch ((int)type) {
    case 1: i = (int8_t)u; break;
    case 3: i = (int16_t)u; break;
    case 5: i = (int32_t)u; break;
    case 11: i = (int64_t)u; break;
    case 6:
        memcpy(&f, b, 4);
        snprintf(out, 40, "%.9g", (double)f);
        return;
    case 12:
        memcpy(&d, b, 8);
        snprintf(out, 40, "%.17g", d);
        return;
    case 7: snprintf(out, 40, "%s", u ? "true" : "false"); return;
    default: snprintf(out, 40, "%" PRIu64, u); return;
    }
    snprintf(out, 40, "%" PRId64, i);
}

// Text of a value; arrays show their first elements: "[1, 2, ...] (1000)".
static bool take_array(Reader *r, const char **value) {
    uint32_t type = 0;
    uint64_t n = 0;
    if (!take_u32(r, &type) || !take_u64(r, &n)) return false;
    if (type >= KV_COUNT || type == KV_ARRAY)
        return err_failed(r->err, "%s: expected arrays of numbers or texts in the metadata, found "
                          "type %u; the file is damaged", r->path, type);
    if (n > (r->size - r->at) / (type == KV_TEXT ? 8 : kv_bytes[type])) return cut(r);
    char *text = mem_strdup(r->parent, "[");
    for (uint64_t i = 0; i < n; i++) {
        char number[40] = "";
        const char *item = number;
        uint64_t length = 0;
        if (type == KV_TEXT) {
            if (!take_text(r, &item, &length)) return false;
        } else {
            if (i < MAX_LISTED) number_text(number, (KvType)type, r->data + r->at);
            length = strlen(number);
            r->at += kv_bytes[type];
        }
        if (i >= MAX_LISTED) continue;
        char *longer = mem_printf(r->parent, "%s%s%.*s", text, i ? ", " : "", (int)MIN(length, 200),
                                  item);
        mem_free(text);
        text = longer;
    }
    *value = n > MAX_LISTED ? mem_printf(r->parent, "%s, ...] (%" PRIu64 ")", text, n)
                            : mem_printf(r->parent, "%s]", text);
    mem_free(text);
    return true;
}

static bool take_value(Reader *r, const char *key, const char **value) {
    uint32_t type = 0;
    if (!take_u32(r, &type)) return false;
    if (type >= KV_COUNT)
        return err_failed(r->err, "%s: %.100s: expected a metadata type below %d, found %u; the file "
                          "is damaged or newer than this program", r->path, key, KV_COUNT, type);
    if (type == KV_ARRAY) return take_array(r, value);
    if (type == KV_TEXT) {
        const char *text = NULL;
        uint64_t n = 0;
        if (!take_text(r, &text, &n)) return false;
        *value = mem_strndup(r->parent, text, (size_t)MIN(n, 1u << 20));
        return true;
    }
    uint8_t bytes[8] = {0};
    char text[40];
    if (!take(r, bytes, kv_bytes[type])) return false;
    number_text(text, (KvType)type, bytes);
    *value = mem_strdup(r->parent, text);
    if (!strcmp(key, "general.alignment")) {
        uint32_t a;
        memcpy(&a, bytes, 4);
        if (type != KV_U32 || a < 8 || a > 1 << 20 || a & (a - 1))
            return err_failed(r->err, "%s: general.alignment: expected a power of two from 8 to 2^20, "
                              "found %s; the file is damaged", r->path, text);
        r->alignment = a;
    }
    return true;
}

static int compare_meta(const void *a, const void *b) {
    return strcmp(((const WeightMeta *)a)->key, ((const WeightMeta *)b)->key);
}

static bool take_meta(Reader *r, uint64_t n, WeightList *out) {
    for (uint64_t i = 0; i < n; i++) {
        WeightMeta m;
        if (!take_name(r, "metadata key", &m.key) || !take_value(r, m.key, &m.value)) return false;
        ARR_PUSH(r->parent, &out->meta, m);
    }
    if (out->meta.n) qsort(out->meta.v, (size_t)out->meta.n, sizeof *out->meta.v, compare_meta);
    for (int i = 1; i < out->meta.n; i++)
        if (!compare_meta(&out->meta.v[i - 1], &out->meta.v[i]))
            return err_failed(r->err, "%s: expected each metadata key once, found %.100s twice; the "
                              "file is damaged", r->path, out->meta.v[i].key);
    return true;
}

static bool take_tensor(Reader *r, WeightTensor *t) {
    *t = (WeightTensor){0};
    uint32_t ndim = 0, type = 0;
    if (!take_name(r, "tensor name", &t->name) || !take_u32(r, &ndim)) return false;
    if (ndim > GGUF_MAX_DIMS)
        return err_failed(r->err, "%s: tensor %.100s: expected at most %d dimensions, found %u; the "
                          "file is damaged", r->path, t->name, GGUF_MAX_DIMS, ndim);
    t->ndim = (int)ndim;
    for (int i = t->ndim - 1; i >= 0; i--) { // innermost first in the file
        uint64_t size = 0;
        if (!take_u64(r, &size)) return false;
        if (size > INT64_MAX)
            return err_failed(r->err, "%s: tensor %.100s: expected sizes below 2^63, found %" PRIu64
                              "; the file is damaged", r->path, t->name, size);
        t->shape[i] = (int64_t)size;
    }
    if (!take_u32(r, &type) || !take_u64(r, &t->at)) return false;
    size_t k = 0;
    while (k < COUNT_OF(types) && types[k].id != (int)type) k++;
    if (k == COUNT_OF(types))
        return err_failed(r->err, "%s: tensor %.100s: expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, "
                          "Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL or IQ4_XS, found GGUF type %u; take a "
                          "file in one of these types", r->path, t->name, type);
    t->dtype = types[k].dtype;
    if (t->at % r->alignment)
        return err_failed(r->err, "%s: tensor %.100s: expected an offset that is a multiple of %"
                          PRIu64 ", found %" PRIu64 "; the file is damaged", r->path, t->name,
                          r->alignment, t->at);
    return weight_measure(r->path, t, r->err);
}

// city96's converter flattens tensors whose rows are not whole blocks and keeps their shape as
// metadata ("comfy.gguf.orig_shape.NAME": an array). It is restored where rows stay whole.
static bool restore_shape(Reader *r, const WeightList *list, WeightTensor *t) {
    char *key = mem_printf(NULL, "comfy.gguf.orig_shape.%s", t->name);
    WeightMeta want = {key, NULL}, *m = NULL;
    if (list->meta.n)
        m = bsearch(&want, list->meta.v, (size_t)list->meta.n, sizeof want, compare_meta);
    mem_free(key);
    if (!m || m->value[0] != '[') return true;
    WeightTensor as = *t;
    uint64_t count = t->count;
    as.ndim = 0;
    for (const char *p = m->value + 1; *p && *p != ']';) {
        char *end;
        long long v = strtoll(p, &end, 10);
        if (end == p || v < 0 || as.ndim == MAX_DIMS)
            return err_failed(r->err, "%s: tensor %.100s: expected a shape of up to %d sizes in its "
                              "orig_shape, found %.60s", r->path, t->name, MAX_DIMS, m->value);
        as.shape[as.ndim++] = v;
        p = end + strspn(end, ", ");
    }
    if (as.ndim && as.shape[as.ndim - 1] % dtype_block(t->dtype)) return true;
    if (!weight_measure(r->path, &as, r->err)) return false;
    if (as.count != count)
        return err_failed(r->err, "%s: tensor %.100s: expected an orig_shape of %" PRIu64
                          " elements, found %.60s", r->path, t->name, count, m->value);
    *t = as;
    return true;
}

bool gguf_read(void *parent, const char *path, const uint8_t *data, size_t size, WeightList *out,
               Error *err) {
    Reader r = {parent, path, data, MIN(size, (size_t)MAX_HEADER), 4, err, GGUF_ALIGNMENT};
    uint32_t version = 0;
    uint64_t tensors = 0, meta = 0;
    if (size < 24 || memcmp(data, "GGUF", 4))
        return err_failed(err, "%s: expected a GGUF file, found %zu bytes of something else", path, size);
    take_u32(&r, &version);
    if (version != 2 && version != 3) {
        bool big = version && !(version & 0xffff); // the bytes of a small number, turned round
        return err_failed(err, "%s: expected GGUF version 2 or 3, little endian, found %s %u; %s", path,
                          big ? "a big-endian file, version" : "version", big ? version >> 24 : version,
                          big || version < 2 ? "convert it anew with its own tools"
                                             : "this program is older than the file");
    }
    take_u64(&r, &tensors);
    take_u64(&r, &meta);
    // The least that each takes in the file: counts cannot claim memory that the file does not fill.
    if (meta > (size - r.at) / 13 || tensors > (size - r.at) / 25)
        return err_failed(err, "%s: expected counts that fit the file's %zu bytes, found %" PRIu64
                          " tensors and %" PRIu64 " metadata entries; the file is cut or damaged",
                          path, size, tensors, meta);
    if (!weight_list_room(path, tensors, err)) return false;
    if (meta > MAX_META)
        return err_failed(err, "%s: expected at most %d metadata entries, found %" PRIu64 "; the file is "
                          "damaged or hostile", path, MAX_META, meta);
    if (!take_meta(&r, meta, out)) return false;
    for (uint64_t i = 0; i < tensors; i++) {
        WeightTensor t;
        if (!take_tensor(&r, &t) || !restore_shape(&r, out, &t)) return false;
        ARR_PUSH(parent, &out->tensors, t);
    }
    uint64_t start = align_up(r.at, r.alignment);
    for (int i = 0; i < out->tensors.n; i++) {
        WeightTensor *t = &out->tensors.v[i];
        if (!add_size(t->at, start, &t->at)) t->at = UINT64_MAX; // refused by the list's check
    }
    return weight_list_check(path, out, size, true, err);
}

// ---- writing ----------------------------------------------------------------------------------

typedef struct Entry {
    const char *name;
    DType dtype;
    int ndim;
    int64_t shape[GGUF_MAX_DIMS];
    uint64_t bytes;
    GgufFill *fill;
    void *user;
} Entry;

typedef struct Pair { const char *key, *text; uint32_t number; } Pair; // text NULL: a number

struct GgufWriter {
    ARRAY(Pair) meta;
    ARRAY(Entry) entries;
    Error bad; // the first thing that was wrong
};

GgufWriter *gguf_writer(void *parent) { return MEM_NEW(parent, GgufWriter); }

static void put_pair(GgufWriter *w, Pair p) {
    for (int i = 0; i < w->meta.n; i++)
        if (!strcmp(w->meta.v[i].key, p.key) && !w->bad.status)
            err_failed(&w->bad, "GGUF: expected each metadata key once, found %.100s twice", p.key);
    ARR_PUSH(w, &w->meta, p);
}

void gguf_put_text(GgufWriter *w, const char *key, const char *value) {
    put_pair(w, (Pair){mem_strdup(w, key), mem_strdup(w, value), 0});
}

void gguf_put_u32(GgufWriter *w, const char *key, uint32_t value) {
    put_pair(w, (Pair){mem_strdup(w, key), NULL, value});
}

void gguf_put_tensor(GgufWriter *w, const char *name, DType dtype, int ndim, const int64_t *shape,
                     GgufFill *fill, void *user) {
    Entry e = {mem_strdup(w, name), dtype, MIN(ndim, GGUF_MAX_DIMS), {0}, 0, fill, user};
    uint64_t count = 1;
    bool ok = ndim <= GGUF_MAX_DIMS && gguf_type(dtype) >= 0;
    for (int i = 0; i < e.ndim; i++) {
        e.shape[i] = shape[i];
        ok = ok && shape[i] >= 0 && mul_size(count, (uint64_t)shape[i], &count);
    }
    ok = ok && dtype_bytes_checked(dtype, count, &e.bytes) &&
         (e.ndim ? e.shape[e.ndim - 1] : 1) % dtype_block(dtype) == 0;
    if (!ok && !w->bad.status)
        err_failed(&w->bad, "tensor %.100s: expected at most %d dimensions, rows of whole blocks and "
                   "a type that GGUF has, found %s with %d dimensions", name, GGUF_MAX_DIMS,
                   dtype_name(dtype), ndim);
    ARR_PUSH(w, &w->entries, e);
}

typedef struct Bytes { uint8_t *v; int n, cap; } Bytes;

static void put(GgufWriter *w, Bytes *b, const void *data, size_t n) {
    const uint8_t *v = data;
    for (size_t i = 0; i < n; i++) ARR_PUSH(w, b, v[i]);
}
static void put_u32(GgufWriter *w, Bytes *b, uint32_t v) { put(w, b, &v, 4); }
static void put_u64(GgufWriter *w, Bytes *b, uint64_t v) { put(w, b, &v, 8); }
static void put_text(GgufWriter *w, Bytes *b, const char *text) {
    put_u64(w, b, strlen(text));
    put(w, b, text, strlen(text));
}

static Bytes make_header(GgufWriter *w) {
    Bytes b = {0};
    put(w, &b, "GGUF", 4);
    put_u32(w, &b, 3);
    put_u64(w, &b, (uint64_t)w->entries.n);
    put_u64(w, &b, (uint64_t)w->meta.n);
    for (int i = 0; i < w->meta.n; i++) {
        const Pair *p = &w->meta.v[i];
        put_text(w, &b, p->key);
        put_u32(w, &b, p->text ? KV_TEXT : KV_U32);
        if (p->text) put_text(w, &b, p->text);
        else put_u32(w, &b, p->number);
    }
    uint64_t at = 0;
    for (int i = 0; i < w->entries.n; i++) {
        const Entry *e = &w->entries.v[i];
        put_text(w, &b, e->name);
        put_u32(w, &b, (uint32_t)e->ndim);
        for (int d = e->ndim - 1; d >= 0; d--) put_u64(w, &b, (uint64_t)e->shape[d]);
        put_u32(w, &b, (uint32_t)gguf_type(e->dtype));
        put_u64(w, &b, at);
        at = align_up(at + e->bytes, GGUF_ALIGNMENT);
    }
    return b;
}

static bool write_padding(OutFile *out, uint64_t at, Error *err) {
    static const uint8_t zero[GGUF_ALIGNMENT];
    return out_write(out, zero, (size_t)(align_up(at, GGUF_ALIGNMENT) - at), err);
}

static bool write_tensor(OutFile *out, const Entry *e, uint8_t *chunk, Error *err) {
    size_t block = (size_t)dtype_size(e->dtype), most = GGUF_CHUNK / block * block;
    for (uint64_t at = 0; at < e->bytes;) {
        size_t n = (size_t)MIN(e->bytes - at, (uint64_t)most);
        if (!e->fill(e->user, at, chunk, n, err) || !out_write(out, chunk, n, err)) return false;
        at += n;
    }
    return write_padding(out, e->bytes, err);
}

static int compare_entries(const void *a, const void *b) {
    return strcmp((*(const Entry *const *)a)->name, (*(const Entry *const *)b)->name);
}

static bool check_names(GgufWriter *w, Error *err) {
    const Entry **order = MEM_ARRAY(NULL, const Entry *, MAX(w->entries.n, 1));
    for (int i = 0; i < w->entries.n; i++) order[i] = &w->entries.v[i];
    if (w->entries.n) qsort(order, (size_t)w->entries.n, sizeof *order, compare_entries);
    bool ok = true;
    for (int i = 1; ok && i < w->entries.n; i++)
        if (!strcmp(order[i - 1]->name, order[i]->name))
            ok = err_failed(err, "expected each tensor once, found %.100s twice", order[i]->name);
    mem_free(order);
    return ok;
}

bool gguf_write(GgufWriter *w, const char *path, Error *err) {
    if (w->bad.status) {
        if (err) *err = w->bad;
        return err_prefix(err, "%s", path);
    }
    if (!check_names(w, err)) return err_prefix(err, "%s", path);
    OutFile *out = out_open(NULL, path, err);
    if (!out) return false;
    Bytes header = make_header(w);
    uint8_t *chunk = mem_new(NULL, GGUF_CHUNK);
    bool ok = out_write(out, header.v, (size_t)header.n, err) &&
              write_padding(out, (uint64_t)header.n, err);
    for (int i = 0; ok && i < w->entries.n; i++) ok = write_tensor(out, &w->entries.v[i], chunk, err);
    mem_free(chunk);
    mem_free(header.v);
    if (ok) return out_commit(out, err);
    out_abort(out);
    return false;
}
