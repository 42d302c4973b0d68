// tar.c: tar archives. See tar.h. The format: POSIX.1-2017, pax, "ustar Interchange Format".
#include "engine/tar.h"

#include "engine/gzip.h"

enum { BLOCK = 512, NAME_LIMIT = 4096, PAX_LIMIT = 1 << 20 };

// A header block, field by field; all characters.
typedef struct TarHeader {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
    char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], pad[12];
} TarHeader;
_Static_assert(sizeof(TarHeader) == BLOCK, "a tar header is one block");

static unsigned checksum_of(const TarHeader *h) {
    const uint8_t *bytes = (const uint8_t *)h;
    size_t lo = offsetof(TarHeader, checksum), hi = lo + sizeof h->checksum;
    unsigned sum = 0;
    for (size_t i = 0; i < BLOCK; i++) sum += i >= lo && i < hi ? ' ' : bytes[i];
    return sum;
}

// ---- reading ----------------------------------------------------------------------------------

TarReader tar_reader(void *parent, const uint8_t *data, size_t size) {
    return (TarReader){.data = data, .size = size, .parent = parent};
}

// Octal digits with spaces or zero bytes around them, or GNU's base 256 (first bit set).
static bool read_number(const char *field, size_t n, uint64_t *out) {
    const uint8_t *c = (const uint8_t *)field;
    uint64_t value = 0;
    if (c[0] & 0x80) {
        if (c[0] & 0x40) return false; // negative
        for (size_t i = 0; i < n; i++) {
            if (value >> 55) return false;
            value = value << 8 | (i ? c[i] : c[0] & 0x3f);
        }
        *out = value;
        return true;
    }
    size_t i = 0;
    while (i < n && c[i] == ' ') i++;
    for (; i < n && c[i] >= '0' && c[i] <= '7'; i++) value = value << 3 | (uint64_t)(c[i] - '0');
    *out = value;
    while (i < n && (c[i] == ' ' || c[i] == 0)) i++;
    return i == n;
}

static bool header_is_sound(const TarHeader *h) {
    uint64_t told;
    return read_number(h->checksum, sizeof h->checksum, &told) && told == checksum_of(h);
}

static bool block_is_zero(const uint8_t *block) {
    for (size_t i = 0; i < BLOCK; i++)
        if (block[i]) return false;
    return true;
}

// After a bad header nobody knows how long its data is: go on at the next block that is a header.
static void resync(TarReader *tar) {
    for (tar->at += BLOCK; tar->size - tar->at >= BLOCK; tar->at += BLOCK) {
        const TarHeader *h = (const TarHeader *)(tar->data + tar->at);
        if (!memcmp(h->magic, "ustar", 5) && header_is_sound(h)) return;
    }
    tar->ended = true;
}

static void set_name(TarReader *tar, const char *text, size_t n) {
    mem_free(tar->name);
    tar->name = mem_strndup(tar->parent, text, strnlen(text, n));
}

static void set_header_name(TarReader *tar, const TarHeader *h) {
    size_t n = strnlen(h->name, sizeof h->name), p = strnlen(h->prefix, sizeof h->prefix);
    // GNU's old format keeps other things where ustar has the prefix.
    if (memcmp(h->magic, "ustar\0", 6) || !p) {
        set_name(tar, h->name, n);
        return;
    }
    mem_free(tar->name);
    tar->name = mem_printf(tar->parent, "%.*s/%.*s", (int)p, h->prefix, (int)n, h->name);
}

// What long-name and pax headers say about the member behind them.
typedef struct TarExtra {
    const char *name;
    size_t name_size;
    bool has_size;
    uint64_t size;
} TarExtra;

// Records "LENGTH KEY=VALUE\n", LENGTH counting all of it.
static bool read_pax(const char *text, size_t n, TarExtra *extra) {
    while (n) {
        size_t length = 0, i = 0;
        for (; i < n && i < 8 && text[i] >= '0' && text[i] <= '9'; i++)
            length = length * 10 + (size_t)(text[i] - '0');
        if (!i || i >= n || text[i] != ' ' || length > n || length < i + 4) return false;
        const char *key = text + i + 1, *end = text + length - 1;
        const char *equals = memchr(key, '=', (size_t)(end - key));
        if (*end != '\n' || !equals) return false;
        const char *value = equals + 1;
        size_t key_size = (size_t)(equals - key), value_size = (size_t)(end - value);
        if (key_size == 4 && !memcmp(key, "path", 4)) {
            extra->name = value;
            extra->name_size = value_size;
        } else if (key_size == 4 && !memcmp(key, "size", 4)) {
            extra->has_size = true;
            extra->size = 0;
            if (!value_size || value_size > 18) return false;
            for (size_t k = 0; k < value_size; k++) {
                if (value[k] < '0' || value[k] > '9') return false;
                extra->size = extra->size * 10 + (uint64_t)(value[k] - '0');
            }
        } else if (key_size > 10 && !memcmp(key, "GNU.sparse", 10)) {
            return false; // its data is not the file's data
        }
        text += length;
        n -= length;
    }
    return true;
}

static TarResult damaged(size_t at, const char *what, Error *err) {
    err_failed(err, "tar: expected a sound member at byte %zu, found %s; the archive is damaged",
               at, what);
    return TAR_DAMAGED;
}

static bool keep_extra(char type, const uint8_t *data, uint64_t size, TarExtra *extra) {
    if (type == 'x') return size <= PAX_LIMIT && read_pax((const char *)data, (size_t)size, extra);
    if (type != 'L') return true; // global headers and long link names do not concern us
    extra->name = (const char *)data;
    extra->name_size = strnlen((const char *)data, (size_t)size);
    return extra->name_size <= NAME_LIMIT;
}

TarResult tar_next(TarReader *tar, TarMember *member, Error *err) {
    TarExtra extra = {0};
    while (!tar->ended) {
        size_t start = tar->at;
        if (tar->size - start < BLOCK) {
            tar->ended = true;
            return damaged(start, "its end without an end mark", err);
        }
        const TarHeader *h = (const TarHeader *)(tar->data + start);
        if (block_is_zero(tar->data + start)) { // two of them by the book; one is common
            tar->ended = true;
            return extra.name || extra.has_size ? damaged(start, "a name without a member", err)
                                                : TAR_END;
        }
        uint64_t size;
        if (!header_is_sound(h)) {
            resync(tar);
            return damaged(start, "a wrong header checksum", err);
        }
        if (!read_number(h->size, sizeof h->size, &size)) {
            resync(tar);
            return damaged(start, "a wrong size", err);
        }
        bool is_extra = h->type == 'x' || h->type == 'g' || h->type == 'L' || h->type == 'K';
        bool is_file = h->type == '0' || h->type == 0 || h->type == '7';
        if (!is_extra && extra.has_size) size = extra.size;
        if (!is_extra && !is_file && h->type >= '1' && h->type <= '6') size = 0; // by the book
        if (!is_extra) {
            if (extra.name) set_name(tar, extra.name, extra.name_size);
            else set_header_name(tar, h);
        }
        if (size > tar->size - start - BLOCK) {
            char text[128];
            snprintf(text, sizeof text, "%.60s cut short", is_extra ? "a long name" : tar->name);
            resync(tar);
            return damaged(start, text, err);
        }
        const uint8_t *data = tar->data + start + BLOCK;
        // The last member's padding may be missing; the missing end mark is told then.
        tar->at = (size_t)MIN(align_up(start + BLOCK + size, BLOCK), tar->size);
        if (is_extra) {
            if (!keep_extra(h->type, data, size, &extra))
                return damaged(start, "a broken extended header", err);
            continue;
        }
        if (h->type == 'S') return damaged(start, "a sparse member", err);
        *member = (TarMember){.name = tar->name,
                              .data = data,
                              .size = is_file ? (size_t)size : 0,
                              .is_file = is_file};
        size_t n = strlen(tar->name); // before POSIX a folder was a file named "x/"
        if (n && tar->name[n - 1] == '/') member->is_file = false;
        return TAR_MEMBER;
    }
    return TAR_END;
}

bool tar_name_is_safe(const char *name) {
    if (!*name || *name == '/' || (name[0] && name[1] == ':')) return false;
    for (const char *c = name; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f || *c == '\\') return false;
        bool at_start = c == name || c[-1] == '/';
        if (at_start && c[0] == '.' && c[1] == '.' && (c[2] == '/' || c[2] == 0)) return false;
    }
    return true;
}

// ---- writing ----------------------------------------------------------------------------------

struct TarWriter {
    OutFile *out;
    GzipWriter *gz; // NULL: plain
    uint64_t size;
};

TarWriter *tar_open(void *parent, const char *path, bool gzip, Error *err) {
    OutFile *out = out_open(NULL, path, err);
    if (!out) return NULL;
    TarWriter *tar = MEM_NEW(parent, TarWriter);
    tar->out = out;
    if (gzip && !(tar->gz = gzip_open(NULL, out, err))) {
        tar_abort(tar);
        return NULL;
    }
    return tar;
}

uint64_t tar_size(const TarWriter *tar) { return tar->size; }

static bool put(TarWriter *tar, const void *data, size_t n, Error *err) {
    tar->size += n;
    return tar->gz ? gzip_write(tar->gz, data, n, err) : out_write(tar->out, data, n, err);
}

static bool put_padded(TarWriter *tar, const void *data, size_t n, Error *err) {
    static const uint8_t zeros[BLOCK];
    return put(tar, data, n, err) && put(tar, zeros, (BLOCK - n % BLOCK) % BLOCK, err);
}

static bool put_header(TarWriter *tar, char type, const char *name, size_t size, Error *err) {
    TarHeader h = {.type = type, .magic = "ustar", .version = {'0', '0'}};
    snprintf(h.name, sizeof h.name, "%s", name);
    snprintf(h.mode, sizeof h.mode, "0000644");
    snprintf(h.uid, sizeof h.uid, "0000000");
    snprintf(h.gid, sizeof h.gid, "0000000");
    snprintf(h.size, sizeof h.size, "%011llo", (unsigned long long)size);
    snprintf(h.mtime, sizeof h.mtime, "00000000000");
    snprintf(h.checksum, sizeof h.checksum, "%06o", checksum_of(&h));
    h.checksum[7] = ' '; // six digits, zero, space: what every tar writes
    return put(tar, &h, BLOCK, err);
}

// A pax record counts its own length, digits included.
static char *pax_path(const char *name) {
    size_t body = strlen(" path=\n") + strlen(name), n = body + 1;
    while (true) {
        char digits[24];
        size_t total = body + (size_t)snprintf(digits, sizeof digits, "%zu", n);
        if (total == n) break;
        n = total;
    }
    return mem_printf(NULL, "%zu path=%s\n", n, name);
}

bool tar_add(TarWriter *tar, const char *name, const void *data, size_t size, Error *err) {
    if (size >> 33) // eleven octal digits
        return err_failed(err,
                          "tar: expected members under 8 GiB, found a larger one; leave it out");
    if (strlen(name) >= sizeof((TarHeader *)0)->name) {
        char *record = pax_path(name);
        size_t n = strlen(record);
        bool ok = put_header(tar, 'x', "pax", n, err) && put_padded(tar, record, n, err);
        mem_free(record);
        if (!ok) return false;
    }
    return put_header(tar, '0', name, size, err) && put_padded(tar, data, size, err);
}

bool tar_finish(TarWriter *tar, Error *err) {
    static const uint8_t end[2 * BLOCK];
    bool ok = put(tar, end, sizeof end, err);
    if (tar->gz) {
        if (ok) ok = gzip_finish(tar->gz, err);
        else gzip_abort(tar->gz);
        tar->gz = NULL;
    }
    OutFile *out = tar->out;
    mem_free(tar);
    if (ok) return out_commit(out, err);
    out_abort(out);
    return false;
}

void tar_abort(TarWriter *tar) {
    if (!tar) return;
    gzip_abort(tar->gz);
    out_abort(tar->out);
    mem_free(tar);
}
