// npy.c: see npy.h.
#include "engine/npy.h"

#include <math.h>

#include "backend/os.h"
#include "engine/safetensors.h"

enum { MAX_HEADER = 1 << 16, ALIGN = 64 };
static const char MAGIC[6] = {'\x93', 'N', 'U', 'M', 'P', 'Y'};

static const struct {
    DType dtype;
    const char *descr;
} TYPES[] = {
    {DT_F32, "<f4"}, {DT_F16, "<f2"}, {DT_F64, "<f8"}, {DT_I32, "<i4"},  {DT_I64, "<i8"},
    {DT_I16, "<i2"}, {DT_I8, "|i1"},  {DT_U8, "|u1"},  {DT_BOOL, "|b1"},
};

// ---- the header: a Python dict ----------------------------------------------------------------
// {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }

typedef struct Cursor {
    const char *at, *end;
} Cursor;

static char peek(Cursor *c) {
    while (c->at < c->end && strchr(" \t\r\n", *c->at) && *c->at) c->at++;
    return c->at < c->end ? *c->at : 0;
}

static bool take(Cursor *c, char want) {
    if (peek(c) != want || !want) return false;
    c->at++;
    return true;
}

static bool take_word(Cursor *c, const char *word) {
    size_t n = strlen(word);
    peek(c);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, word, n)) return false;
    c->at += n;
    return true;
}

// A quoted string without escapes, cut to fit.
static bool take_string(Cursor *c, char *text, size_t size) {
    char quote = peek(c);
    if (quote != '\'' && quote != '"') return false;
    const char *start = ++c->at;
    while (c->at < c->end && *c->at != quote)
        if (*c->at++ == '\\') return false;
    if (c->at == c->end) return false;
    snprintf(text, size, "%.*s", (int)MIN((size_t)(c->at - start), size - 1), start);
    c->at++;
    return true;
}

static bool take_size(Cursor *c, int64_t *size) {
    if (peek(c) < '0' || peek(c) > '9') return false;
    uint64_t v = 0;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9')
        if (!mul_size(v, 10, &v) || !add_size(v, (uint64_t)(*c->at++ - '0'), &v) || v > INT64_MAX)
            return false;
    *size = (int64_t)v;
    return true;
}

static bool take_shape(Cursor *c, NpyArray *a, const char *path, Error *err) {
    bool ok = take(c, '(');
    while (ok && peek(c) != ')') {
        if (a->ndim == NPY_MAX_DIMS)
            return err_failed(err, "%s: expected at most %d dimensions, found more", path,
                              NPY_MAX_DIMS);
        ok = take_size(c, &a->shape[a->ndim++]) && (take(c, ',') || peek(c) == ')');
    }
    if (ok && take(c, ')')) return true;
    return err_failed(err, "%s: expected a shape such as (1, 4, 64, 64), found something else",
                      path);
}

static bool take_descr(Cursor *c, NpyArray *a, const char *path, Error *err) {
    char descr[16];
    if (!take_string(c, descr, sizeof descr))
        return err_failed(err, "%s: expected an array of plain numbers, found a structured one",
                          path);
    for (size_t i = 0; i < COUNT_OF(TYPES); i++)
        if (!strcmp(descr, TYPES[i].descr)) {
            a->dtype = TYPES[i].dtype;
            return true;
        }
    return err_failed(err,
                      "%s: expected little-endian numbers such as '<f4', found '%s'; save it "
                      "with astype(numpy.float32)",
                      path, descr);
}

static bool parse_dict(Cursor *c, NpyArray *a, const char *path, Error *err) {
    bool has_descr = false, has_order = false, has_shape = false, ok = take(c, '{');
    while (ok && peek(c) != '}') {
        char key[16];
        ok = take_string(c, key, sizeof key) && take(c, ':');
        if (!ok) break;
        if (!strcmp(key, "descr") && !has_descr) {
            has_descr = true;
            if (!take_descr(c, a, path, err)) return false;
        } else if (!strcmp(key, "fortran_order") && !has_order) {
            has_order = true;
            if (take_word(c, "True"))
                return err_failed(err,
                                  "%s: expected C order, found Fortran order; save "
                                  "numpy.ascontiguousarray(x)",
                                  path);
            ok = take_word(c, "False");
        } else if (!strcmp(key, "shape") && !has_shape) {
            has_shape = true;
            if (!take_shape(c, a, path, err)) return false;
        } else ok = false;
        ok = ok && (take(c, ',') || peek(c) == '}');
    }
    ok = ok && take(c, '}') && !peek(c) && c->at == c->end && has_descr && has_order && has_shape;
    return ok || err_failed(err,
                            "%s: expected an .npy header with descr, fortran_order and shape, "
                            "found something else; the file is damaged",
                            path);
}

// ---- reading ----------------------------------------------------------------------------------

bool npy_parse(void *parent, const char *path, const void *file, size_t size, NpyArray *out,
               Error *err) {
    const uint8_t *data = file;
    *out = (NpyArray){0};
    if (size < 10 || memcmp(data, MAGIC, 6))
        return err_failed(err, "%s: expected a NumPy .npy file, found something else", path);
    int major = data[6];
    size_t start = major == 1 ? 10 : 12;
    if (major < 1 || major > 3 || data[7] || size < start)
        return err_failed(err, "%s: expected .npy version 1.0 to 3.0, found %d.%d", path, major,
                          data[7]);
    uint32_t length = (uint32_t)data[8] | (uint32_t)data[9] << 8;
    if (major > 1) length |= (uint32_t)data[10] << 16 | (uint32_t)data[11] << 24;
    if (length > MAX_HEADER || length > size - start)
        return err_failed(err,
                          "%s: expected an .npy header of at most %zu bytes, found %u; the file "
                          "is cut or damaged",
                          path, MIN((size_t)MAX_HEADER, size - start), length);
    Cursor c = {(const char *)data + start, (const char *)data + start + length};
    NpyArray a = {.count = 1};
    if (!parse_dict(&c, &a, path, err)) return false;
    bool fits = true;
    for (int i = 0; i < a.ndim; i++)
        fits = fits && mul_size(a.count, (uint64_t)a.shape[i], &a.count);
    fits = fits && mul_size(a.count, (uint64_t)dtype_size(a.dtype), &a.bytes);
    uint64_t found = size - start - length;
    if (!fits)
        return err_failed(err, "%s: expected a shape that fits in memory, found a larger one",
                          path);
    if (a.bytes != found)
        return err_failed(err,
                          "%s: expected %llu bytes for its shape, found %llu; the file is cut or "
                          "damaged",
                          path, (unsigned long long)a.bytes, (unsigned long long)found);
    a.data = mem_new(parent, (size_t)a.bytes);
    memcpy(a.data, data + start + length, (size_t)a.bytes);
    *out = a;
    return true;
}

bool npy_read(void *parent, const char *path, NpyArray *out, Error *err) {
    FileMap map;
    *out = (NpyArray){0};
    if (!os_map(&map, path, err)) return false;
    bool ok = npy_parse(parent, path, map.data, map.size, out, err);
    os_unmap(&map);
    return ok;
}

float *npy_read_f32(void *parent, const char *path, int ndim, const int64_t *shape, NpyArray *out,
                    Error *err) {
    NpyArray a;
    if (!npy_read(parent, path, &a, err)) return NULL;
    bool fits = ndim < 0 || ndim == a.ndim;
    for (int i = 0; i < ndim && fits; i++) fits = shape[i] < 0 || shape[i] == a.shape[i];
    if (!fits) {
        char want[128], found[128];
        err_failed(err, "%s: expected an array of shape %s, found %s", path,
                   st_shape_text(want, ndim, shape), st_shape_text(found, a.ndim, a.shape));
        mem_free(a.data);
        return NULL;
    }
    if (a.dtype != DT_F32) {
        float *values = MEM_ARRAY(parent, float, a.count);
        dtype_convert(DT_F32, values, a.dtype, a.data, (size_t)a.count);
        mem_free(a.data);
        a.dtype = DT_F32;
        a.bytes = a.count * sizeof(float);
        a.data = values;
    }
    for (int64_t i = 0; i < (int64_t)a.count; i++) {
        double v = ((const float *)a.data)[i];
        if (isfinite(v)) continue;
        err_failed(err, "%s: expected finite numbers, found %g at element %lld", path, v, (long long)i);
        mem_free(a.data);
        return NULL;
    }
    if (out) *out = a;
    return a.data;
}

// ---- writing ----------------------------------------------------------------------------------

bool npy_write(const char *path, DType dtype, int ndim, const int64_t *shape, const void *data,
               Error *err) {
    const char *descr = NULL;
    for (size_t i = 0; i < COUNT_OF(TYPES); i++)
        if (TYPES[i].dtype == dtype) descr = TYPES[i].descr;
    if (!descr)
        return err_failed(err, "%s: expected a type that NumPy knows, found %s; convert to f32",
                          path, dtype_name(dtype));
    if (ndim < 0 || ndim > NPY_MAX_DIMS)
        return err_failed(err, "%s: expected at most %d dimensions, found %d", path, NPY_MAX_DIMS,
                          ndim);
    uint64_t bytes = (uint64_t)dtype_size(dtype);
    char dims[NPY_MAX_DIMS * 24 + 8] = "";
    size_t used = 0;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0 || !mul_size(bytes, (uint64_t)shape[i], &bytes))
            return err_failed(err, "%s: expected a shape that fits in memory, found a larger one",
                              path);
        used += (size_t)snprintf(dims + used, sizeof dims - used, "%s%lld%s", i ? ", " : "",
                                 (long long)shape[i], ndim == 1 ? "," : "");
    }
    char head[512];
    int n = snprintf(head, sizeof head,
                     "xxxxxxxxxx{'descr': '%s', 'fortran_order': False, "
                     "'shape': (%s), }",
                     descr, dims);
    size_t total =
        (size_t)align_up((uint64_t)n + 1, ALIGN); // padded with spaces, ends in a newline
    memset(head + n, ' ', total - (size_t)n);
    head[total - 1] = '\n';
    memcpy(head, MAGIC, 6);
    head[6] = 1;
    head[7] = 0;
    head[8] = (char)((total - 10) & 255);
    head[9] = (char)((total - 10) >> 8);
    OutFile *out = out_open(NULL, path, err);
    if (!out) return false;
    bool ok =
        out_write(out, head, total, err) && (!bytes || out_write(out, data, (size_t)bytes, err));
    if (ok) return out_commit(out, err);
    out_abort(out);
    return false;
}
