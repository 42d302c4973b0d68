// zip.c: see zip.h.
#include "engine/zip.h"

#include <stdlib.h>

#include <zlib.h>

static uint64_t get(const uint8_t *b, int n) { // little endian
    uint64_t v = 0;
    for (int i = n - 1; i >= 0; i--) v = v << 8 | b[i];
    return v;
}

enum {
    LOCAL = 0x04034b50, CENTRAL = 0x02014b50, END = 0x06054b50, END64 = 0x06064b50,
    LOCATOR64 = 0x07064b50,
    MAX_MEMBERS = 200000,
    LOCAL_BYTES = 30, CENTRAL_BYTES = 46, END_BYTES = 22, END64_BYTES = 56, LOCATOR64_BYTES = 20,
};

typedef struct Directory { uint64_t entries, at, bytes; } Directory;

static bool bad(const char *path, const char *what, Error *err) {
    return err_failed(err, "%s: expected a whole zip archive, found %s; the file is cut or damaged",
                      path, what);
}

// The end record stands last, before a comment of up to 64 KiB.
static bool find_directory(const char *path, const uint8_t *data, uint64_t size, Directory *d,
                           Error *err) {
    uint64_t at = size < END_BYTES ? 0 : size - END_BYTES, least = at > 65535 ? at - 65535 : 0;
    if (size < END_BYTES) return bad(path, "too few bytes", err);
    while (get(data + at, 4) != END) {
        if (at == least) return bad(path, "no directory at its end", err);
        at--;
    }
    *d = (Directory){get(data + at + 10, 2), get(data + at + 16, 4), get(data + at + 12, 4)};
    uint64_t end = at;
    if (d->entries == 0xffff || d->at == 0xffffffff || d->bytes == 0xffffffff) {
        if (at < LOCATOR64_BYTES || get(data + at - LOCATOR64_BYTES, 4) != LOCATOR64)
            return bad(path, "no 64-bit directory", err);
        end = get(data + at - LOCATOR64_BYTES + 8, 8);
        if (end > size - END64_BYTES || size < END64_BYTES || get(data + end, 4) != END64)
            return bad(path, "no 64-bit directory", err);
        *d = (Directory){get(data + end + 32, 8), get(data + end + 48, 8), get(data + end + 40, 8)};
    }
    if (d->at > end || d->bytes > end - d->at || d->entries > d->bytes / CENTRAL_BYTES)
        return bad(path, "a directory outside the file", err);
    return true;
}

// Names are looked up, never opened; still, an archive with such names is no checkpoint.
static bool safe_name(const char *name, size_t n) {
    if (n == 0 || n > 4096 || name[0] == '/' || memchr(name, 0, n) || memchr(name, '\\', n) ||
        memchr(name, ':', n))
        return false;
    for (size_t i = 0; i < n;) {
        const char *slash = memchr(name + i, '/', n - i);
        size_t part = (slash ? (size_t)(slash - name) : n) - i;
        if (part == 2 && name[i] == '.' && name[i + 1] == '.') return false;
        i += part + 1;
    }
    return true;
}

// 64-bit values stand in an extra field, in this order, for those that are all ones before.
static bool read_extra64(const uint8_t *e, uint64_t n, uint64_t *size, uint64_t *packed,
                         uint64_t *offset) {
    uint64_t *wanted[3] = {size, packed, offset};
    bool need = *size == 0xffffffff || *packed == 0xffffffff || *offset == 0xffffffff;
    while (need && n >= 4) {
        uint64_t id = get(e, 2), length = get(e + 2, 2);
        if (length > n - 4) return false;
        if (id == 1) {
            uint64_t at = 0;
            for (int i = 0; i < 3; i++) {
                if (*wanted[i] != 0xffffffff) continue;
                if (length - at < 8) return false;
                *wanted[i] = get(e + 4 + at, 8);
                at += 8;
            }
            return true;
        }
        e += 4 + length;
        n -= 4 + length;
    }
    return !need;
}

// One entry of the directory at *at; checks its local header.
static bool read_member(void *parent, const char *path, const uint8_t *data, uint64_t end,
                        uint64_t *at, ZipMember *m, Error *err) {
    const uint8_t *c = data + *at;
    if (end - *at < CENTRAL_BYTES || get(c, 4) != CENTRAL)
        return bad(path, "a directory with fewer entries than it says", err);
    uint64_t name_bytes = get(c + 28, 2), extra = get(c + 30, 2), comment = get(c + 32, 2);
    uint64_t packed = get(c + 20, 4), offset = get(c + 42, 4);
    m->size = get(c + 24, 4);
    m->crc = (uint32_t)get(c + 16, 4);
    if (end - *at - CENTRAL_BYTES < name_bytes + extra + comment)
        return bad(path, "an entry that reaches past the directory", err);
    const char *name = (const char *)c + CENTRAL_BYTES;
    if (!safe_name(name, (size_t)name_bytes))
        return err_failed(err, "%s: expected member names inside the archive, found \"%.*s\"; the file "
                          "is no PyTorch checkpoint", path, (int)MIN(name_bytes, 80), name);
    m->name = mem_strndup(parent, name, (size_t)name_bytes);
    if (!read_extra64(c + CENTRAL_BYTES + name_bytes, extra, &m->size, &packed, &offset))
        return bad(path, "a member without its 64-bit size", err);
    if (get(c + 8, 2) & 1 || get(c + 10, 2) != 0 || packed != m->size)
        return err_failed(err, "%s: %.100s: expected a stored member, found a compressed or encrypted "
                          "one; PyTorch writes none: save the checkpoint anew", path, m->name);
    // Members stand before the directory: `end` bounds them too.
    if (offset > end || end - offset < LOCAL_BYTES || get(data + offset, 4) != LOCAL)
        return bad(path, "a member outside the file", err);
    const uint8_t *l = data + offset;
    uint64_t start = offset + LOCAL_BYTES + get(l + 26, 2) + get(l + 28, 2);
    if (get(l + 26, 2) != name_bytes || end - offset - LOCAL_BYTES < name_bytes ||
        memcmp(l + LOCAL_BYTES, name, (size_t)name_bytes))
        return bad(path, "a member whose two names differ", err);
    if (start > end || m->size > end - start) return bad(path, "a member that reaches past the end", err);
    m->data = data + start;
    *at += CENTRAL_BYTES + name_bytes + extra + comment;
    return true;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const ZipMember *)a)->name, ((const ZipMember *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const ZipMember *x = *(const ZipMember *const *)a, *y = *(const ZipMember *const *)b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->size < y->size ? -1 : x->size > y->size;
}

static bool check_members(const char *path, const Zip *zip, Error *err) {
    for (int i = 1; i < zip->n; i++)
        if (!strcmp(zip->members[i - 1].name, zip->members[i].name))
            return err_failed(err, "%s: expected each member once, found %.100s twice; the file is "
                              "damaged", path, zip->members[i].name);
    const ZipMember **order = MEM_ARRAY(NULL, const ZipMember *, MAX(zip->n, 1));
    for (int i = 0; i < zip->n; i++) order[i] = &zip->members[i];
    if (zip->n) qsort(order, (size_t)zip->n, sizeof *order, by_place);
    bool ok = true;
    for (int i = 1; ok && i < zip->n; i++)
        if (order[i - 1]->data + order[i - 1]->size > order[i]->data)
            ok = bad(path, "members that overlap", err);
    mem_free(order);
    return ok;
}

bool zip_read(void *parent, const char *path, const uint8_t *data, size_t size, Zip *out, Error *err) {
    Directory d = {0};
    if (!find_directory(path, data, size, &d, err)) return false;
    if (d.entries > MAX_MEMBERS)
        return err_failed(err, "%s: expected at most %d members, found %llu; the file is damaged or hostile",
                          path, MAX_MEMBERS, (unsigned long long)d.entries);
    *out = (Zip){MEM_ARRAY(parent, ZipMember, MAX(d.entries, 1)), 0};
    uint64_t at = d.at;
    for (uint64_t i = 0; i < d.entries; i++, out->n++)
        if (!read_member(parent, path, data, d.at + d.bytes, &at, &out->members[i], err)) return false;
    if (out->n) qsort(out->members, (size_t)out->n, sizeof *out->members, by_name);
    return check_members(path, out, err);
}

bool zip_check(const char *path, const ZipMember *m, Error *err) {
    uLong crc = crc32(0, NULL, 0);
    for (uint64_t at = 0; m->crc && at < m->size;) {
        uInt n = (uInt)MIN(m->size - at, 1u << 30);
        crc = crc32(crc, m->data + at, n);
        at += n;
    }
    return !m->crc || crc == m->crc ||
           err_failed(err, "%s: %.100s: expected data with the checksum %08x, found %08x; the file is "
                      "damaged, download it again", path, m->name, (unsigned)m->crc, (unsigned)crc);
}

const ZipMember *zip_find(const Zip *zip, const char *name) {
    ZipMember key = {.name = name};
    return zip->n ? bsearch(&key, zip->members, (size_t)zip->n, sizeof key, by_name) : NULL;
}
