// gzip.c: gzip through zlib. See gzip.h.
#include "engine/gzip.h"

#include <zlib.h>

enum { GZIP_WINDOW = 15 + 16, GZIP_LEVEL = 6, GZIP_CHUNK = 1 << 16, GZIP_MAX_RATIO = 1032 };

bool gzip_is(const uint8_t *bytes, size_t n) {
    return n >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b;
}

// ---- unpacking --------------------------------------------------------------------------------

typedef struct Unpacked {
    void *parent;
    uint8_t *data; // room for cap bytes and a zero
    size_t n, cap, limit;
} Unpacked;

static bool fail_gzip(Error *err, const char *found) {
    return err_failed(err, "gzip: expected a whole file, found %s; the file is damaged", found);
}

static bool fail_limit(Error *err, size_t limit) {
    char text[32];
    format_bytes(text, limit);
    return err_failed(
        err, "gzip: expected at most %s unpacked, found more; unpack it to a file first", text);
}

// Makes room for at least one more byte: one past the limit too, so that passing it is seen.
static void make_room(Unpacked *u, size_t guess) {
    if (u->n < u->cap) return;
    size_t cap = MIN(MAX(u->cap + u->cap / 2, MAX(guess, (size_t)GZIP_CHUNK)), u->limit + 1);
    u->data = mem_resize(u->parent, u->data, cap + 1);
    u->cap = cap;
}

// One member, up to its end.
static bool unpack_member(z_stream *z, const uint8_t **at, size_t *left, Unpacked *u, Error *err) {
    for (;;) {
        make_room(u, 0);
        uInt give = (uInt)MIN(*left, (size_t)1 << 30);
        uInt room = (uInt)MIN(u->cap - u->n, (size_t)1 << 30);
        z->next_in = (Bytef *)(uintptr_t)*at; // zlib's field is not const; it only reads
        z->avail_in = give;
        z->next_out = u->data + u->n;
        z->avail_out = room;
        int code = inflate(z, Z_NO_FLUSH);
        *at += give - z->avail_in;
        *left -= give - z->avail_in;
        u->n += room - z->avail_out;
        if (u->n > u->limit) return fail_limit(err, u->limit);
        if (code == Z_STREAM_END) return true; // checksum and length were right
        if (code == Z_BUF_ERROR || (code == Z_OK && !*left && z->avail_out))
            return fail_gzip(err, "an early end");
        if (code == Z_NEED_DICT) return fail_gzip(err, "a preset dictionary");
        if (code != Z_OK) {
            char text[128];
            snprintf(text, sizeof text, "\"%s\"", z->msg ? z->msg : zError(code));
            return fail_gzip(err, text);
        }
    }
}

uint8_t *gzip_unpack(void *parent, const uint8_t *bytes, size_t n, size_t limit, size_t *size,
                     Error *err) {
    *size = 0;
    if (!gzip_is(bytes, n)) {
        err_failed(err, "gzip: expected a gzip file, found something else; check the name");
        return NULL;
    }
    Unpacked u = {.parent = parent, .limit = MIN(limit, SIZE_MAX / 4)};
    // The trailer tells the length (of the last member, modulo 2^32): a guess, believed only as far
    // as deflate could reach from a file of this size.
    const uint8_t *tail = bytes + n - MIN(n, (size_t)4);
    size_t told = n < 18 ? 0
                         : (size_t)tail[0] | (size_t)tail[1] << 8 | (size_t)tail[2] << 16 |
                               (size_t)tail[3] << 24;
    make_room(&u, told / GZIP_MAX_RATIO < n ? told + 1 : 0);
    z_stream z = {0};
    bool ok = inflateInit2(&z, GZIP_WINDOW) == Z_OK || fail_gzip(err, "no memory to unpack it");
    bool started = ok;
    while (ok) {
        ok = unpack_member(&z, &bytes, &n, &u, err);
        if (!ok || !n) break;
        bool padding = true; // tapes pad with zeros
        for (size_t i = 0; i < n && padding; i++) padding = bytes[i] == 0;
        if (padding) break;
        ok = (gzip_is(bytes, n) && inflateReset(&z) == Z_OK) ||
             fail_gzip(err, "other data behind its end");
    }
    if (started) inflateEnd(&z);
    if (ok) {
        u.data[u.n] = 0;
        *size = u.n;
        return u.data;
    }
    mem_free(u.data);
    return NULL;
}

// ---- packing ----------------------------------------------------------------------------------

struct GzipWriter {
    z_stream z;
    OutFile *out;
    uint8_t buffer[GZIP_CHUNK];
};

GzipWriter *gzip_open(void *parent, OutFile *out, Error *err) {
    GzipWriter *gz = MEM_NEW(parent, GzipWriter);
    gz->out = out;
    if (deflateInit2(&gz->z, GZIP_LEVEL, Z_DEFLATED, GZIP_WINDOW, 8, Z_DEFAULT_STRATEGY) == Z_OK)
        return gz;
    err_failed(err, "gzip: expected memory to pack, found none; close other programs");
    mem_free(gz);
    return NULL;
}

static bool pump(GzipWriter *gz, int flush, Error *err) {
    int code;
    do {
        gz->z.next_out = gz->buffer;
        gz->z.avail_out = GZIP_CHUNK;
        code = deflate(&gz->z, flush);
        if (code == Z_STREAM_ERROR)
            return err_failed(err, "gzip: expected to pack, found an error");
        if (!out_write(gz->out, gz->buffer, GZIP_CHUNK - gz->z.avail_out, err)) return false;
    } while (flush == Z_FINISH ? code != Z_STREAM_END : gz->z.avail_out == 0);
    return true;
}

bool gzip_write(GzipWriter *gz, const void *data, size_t n, Error *err) {
    const uint8_t *at = data;
    while (n) {
        gz->z.next_in = (Bytef *)(uintptr_t)at;
        gz->z.avail_in = (uInt)MIN(n, (size_t)1 << 30);
        at += gz->z.avail_in;
        n -= gz->z.avail_in;
        if (!pump(gz, Z_NO_FLUSH, err)) return false;
    }
    return true;
}

bool gzip_finish(GzipWriter *gz, Error *err) {
    gz->z.avail_in = 0;
    bool ok = pump(gz, Z_FINISH, err);
    gzip_abort(gz);
    return ok;
}

void gzip_abort(GzipWriter *gz) {
    if (!gz) return;
    deflateEnd(&gz->z);
    mem_free(gz);
}
