// unicode.c: see unicode.h.
#include "engine/unicode.h"

#include "engine/gzip.h"

extern const unsigned char kiln_data_unicode[];
extern const size_t kiln_data_unicode_size;

enum { CODES = 0x110000, MAX_TABLE = 1 << 20, MAX_MAPPED = 4 };

// ---- UTF-8 ------------------------------------------------------------------------------------

size_t utf8_length(const char *text, size_t n) {
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) return 1;
    size_t len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n < len) return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (s[0] == 0xe0 && s[1] < 0xa0) return 0; // overlong
    if (s[0] == 0xed && s[1] > 0x9f) return 0; // surrogates
    if (s[0] == 0xf0 && s[1] < 0x90) return 0; // overlong
    if (s[0] == 0xf4 && s[1] > 0x8f) return 0; // past the end
    return len;
}

bool utf8_valid(const char *s, size_t n, size_t *bad) {
    for (size_t i = 0, len; i < n; i += len) {
        len = utf8_length(s + i, n - i);
        if (!len) {
            *bad = i;
            return false;
        }
    }
    return true;
}

size_t utf8_get(const char *text, uint32_t *code) {
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) {
        *code = s[0];
        return 1;
    }
    size_t len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    uint32_t c = s[0] & (0xffu >> (len + 1));
    for (size_t i = 1; i < len; i++) c = c << 6 | (s[i] & 0x3fu);
    *code = c;
    return len;
}

size_t utf8_put(char out[4], uint32_t c) {
    static const uint8_t LEAD[] = {0, 0, 0xc0, 0xe0, 0xf0};
    size_t len = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = len; i-- > 1; c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(LEAD[len == 1 ? 0 : len] | c);
    return len;
}

void text_add(Text *t, const char *s, size_t n) {
    if (t->cap - t->n < n) {
        t->cap = MAX(t->n + n, t->cap + t->cap / 2 + 64);
        t->v = mem_resize(t->parent, t->v, t->cap);
    }
    if (n) memcpy(t->v + t->n, s, n);
    t->n += n;
}

void text_add_code(Text *t, uint32_t code) {
    char bytes[4];
    text_add(t, bytes, utf8_put(bytes, code));
}

// ---- the tables -------------------------------------------------------------------------------

typedef struct Run { uint32_t first; uint8_t value; } Run;
typedef struct Runs { Run *v; uint32_t n; } Runs; // the first begins at 0
typedef struct Mapped { uint32_t from, to[MAX_MAPPED]; uint8_t n; } Mapped;
typedef struct Map { Mapped *v; uint32_t n; } Map; // sorted
typedef struct Pair { uint32_t a, b, composed; } Pair;

struct Unicode {
    Runs kind, combining, grapheme;
    Map lower, decomposed;
    Pair *pair; // sorted by a, b
    uint32_t pairs;
};

typedef struct Reader { const uint8_t *at, *end; bool ok; } Reader;

static uint32_t read_u32(Reader *r) {
    if (r->end - r->at < 4) return r->ok = false, 0;
    const uint8_t *p = r->at;
    r->at += 4;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint8_t read_u8(Reader *r) {
    if (r->at == r->end) return r->ok = false, (uint8_t)0;
    return *r->at++;
}

// A count of entries of at least `size` bytes each: never more than the data can hold.
static uint32_t read_count(Reader *r, size_t size) {
    uint32_t n = read_u32(r);
    if (n > (size_t)(r->end - r->at) / size) return r->ok = false, 0;
    return n;
}

static uint32_t read_code(Reader *r) {
    uint32_t c = read_u32(r);
    if (c >= CODES || (c >= 0xd800 && c < 0xe000)) r->ok = false;
    return c;
}

static void read_runs(void *parent, Reader *r, Runs *out) {
    out->n = read_count(r, 5);
    out->v = MEM_ARRAY(parent, Run, out->n + 1u);
    for (uint32_t i = 0; i < out->n && r->ok; i++) {
        out->v[i] = (Run){.first = read_u32(r), .value = read_u8(r)};
        if (i ? out->v[i].first <= out->v[i - 1].first : out->v[i].first != 0) r->ok = false;
    }
    if (!out->n) r->ok = false;
}

static void read_map(void *parent, Reader *r, Map *out, int longest) {
    out->n = read_count(r, 9);
    out->v = MEM_ARRAY(parent, Mapped, out->n + 1u);
    for (uint32_t i = 0; i < out->n && r->ok; i++) {
        Mapped *m = &out->v[i];
        m->from = read_code(r);
        m->n = read_u8(r);
        if (!m->n || m->n > longest || (i && m->from <= out->v[i - 1].from)) {
            r->ok = false;
            return;
        }
        for (int k = 0; k < m->n; k++) m->to[k] = read_code(r);
    }
}

Unicode *unicode_read(void *parent, const uint8_t *data, size_t n, Error *err) {
    Unicode *u = MEM_NEW(parent, Unicode);
    Reader r = {data, data + n, true};
    read_runs(u, &r, &u->kind);
    read_runs(u, &r, &u->combining);
    read_runs(u, &r, &u->grapheme);
    read_map(u, &r, &u->lower, 3);
    read_map(u, &r, &u->decomposed, MAX_MAPPED);
    u->pairs = read_count(&r, 12);
    u->pair = MEM_ARRAY(u, Pair, u->pairs + 1u);
    for (uint32_t i = 0; i < u->pairs && r.ok; i++) {
        Pair *p = &u->pair[i];
        *p = (Pair){.a = read_code(&r)};
        p->b = read_code(&r);
        p->composed = read_code(&r);
        if (i && (p->a < p[-1].a || (p->a == p[-1].a && p->b <= p[-1].b))) r.ok = false;
    }
    if (r.ok && r.at == r.end) return u;
    err_failed(err, "Unicode tables: expected whole, sorted tables, found %zu bytes of something "
                    "else; build Kiln again", n);
    mem_free(u);
    return NULL;
}

Unicode *unicode_open(void *parent, Error *err) {
    size_t n = 0;
    uint8_t *data = gzip_unpack(NULL, kiln_data_unicode, kiln_data_unicode_size, MAX_TABLE, &n,
                                err);
    Unicode *u = data ? unicode_read(parent, data, n, err) : NULL;
    mem_free(data);
    return u;
}

static uint8_t run_value(const Runs *runs, uint32_t code) {
    uint32_t lo = 0, hi = runs->n; // v[lo].first <= code < v[hi].first
    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (runs->v[mid].first <= code)
            lo = mid;
        else
            hi = mid;
    }
    return runs->v[lo].value;
}

static const Mapped *map_find(const Map *map, uint32_t code) {
    uint32_t lo = 0, hi = map->n;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (map->v[mid].from == code) return &map->v[mid];
        if (map->v[mid].from < code)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

unsigned unicode_class(const Unicode *u, uint32_t code) { return run_value(&u->kind, code); }

int unicode_lower(const Unicode *u, uint32_t code, uint32_t out[3]) {
    if (code < 0x80) {
        out[0] = code >= 'A' && code <= 'Z' ? code + 32 : code;
        return 1;
    }
    const Mapped *m = map_find(&u->lower, code);
    out[0] = code;
    if (!m) return 1;
    memcpy(out, m->to, m->n * sizeof *out);
    return m->n;
}

// ---- composition ------------------------------------------------------------------------------

// Hangul syllables are composed by arithmetic (the Unicode Standard, section 3.12).
enum { SYLLABLE = 0xac00, LEAD = 0x1100, VOWEL = 0x1161, TAIL = 0x11a7 };
enum { LEADS = 19, VOWELS = 21, TAILS = 28, SYLLABLES = LEADS * VOWELS * TAILS };

typedef struct Code { uint32_t c; uint8_t combining; } Code;
typedef ARRAY(Code) Codes;

static void push_code(const Unicode *u, Codes *codes, uint32_t c) {
    Code code = {c, c < 0x300 ? 0 : run_value(&u->combining, c)};
    ARR_PUSH(NULL, codes, code);
}

static void decompose(const Unicode *u, Codes *codes, uint32_t c) {
    if (c >= SYLLABLE && c < SYLLABLE + SYLLABLES) {
        uint32_t i = c - SYLLABLE, tail = i % TAILS;
        push_code(u, codes, LEAD + i / (VOWELS * TAILS));
        push_code(u, codes, VOWEL + i / TAILS % VOWELS);
        if (tail) push_code(u, codes, TAIL + tail);
        return;
    }
    const Mapped *m = c < 0xc0 ? NULL : map_find(&u->decomposed, c);
    for (int i = 0; m && i < m->n; i++) push_code(u, codes, m->to[i]);
    if (!m) push_code(u, codes, c);
}

// Sorts each run of combining marks by class, equals in order: by counting, so that a megabyte of
// marks costs no more than one of letters. `scratch` has room for all.
static void order_marks(Code *v, int n, Code *scratch) {
    for (int i = 0, end; i < n; i = end) {
        end = i + 1;
        if (!v[i].combining) continue;
        int at[257] = {[0] = i};
        bool sorted = true;
        at[v[i].combining + 1]++;
        for (; end < n && v[end].combining; end++) {
            at[v[end].combining + 1]++;
            if (v[end].combining < v[end - 1].combining) sorted = false;
        }
        if (sorted) continue;
        for (int k = 1; k < 257; k++) at[k] += at[k - 1];
        for (int k = i; k < end; k++) scratch[at[v[k].combining]++] = v[k];
        memcpy(v + i, scratch + i, (size_t)(end - i) * sizeof *v);
    }
}

// The character that two make, 0 when they make none.
static uint32_t compose_pair(const Unicode *u, uint32_t a, uint32_t b) {
    if (a >= LEAD && a < LEAD + LEADS && b >= VOWEL && b < VOWEL + VOWELS)
        return SYLLABLE + ((a - LEAD) * VOWELS + (b - VOWEL)) * TAILS;
    if (a >= SYLLABLE && a < SYLLABLE + SYLLABLES && (a - SYLLABLE) % TAILS == 0 && b > TAIL &&
        b < TAIL + TAILS)
        return a + (b - TAIL);
    uint32_t lo = 0, hi = u->pairs;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        const Pair *p = &u->pair[mid];
        if (p->a == a && p->b == b) return p->composed;
        if (p->a < a || (p->a == a && p->b < b))
            lo = mid + 1;
        else
            hi = mid;
    }
    return 0;
}

static int compose(const Unicode *u, Code *v, int n) {
    int out = 0, starter = -1;
    int last = -1; // class of the mark just kept behind the starter, -1 when there is none
    for (int i = 0; i < n; i++) {
        Code c = v[i];
        uint32_t made = starter >= 0 && last < c.combining ? compose_pair(u, v[starter].c, c.c) : 0;
        if (made) {
            v[starter].c = made;
            continue;
        }
        if (!c.combining) starter = out;
        last = c.combining ? c.combining : -1;
        v[out++] = c;
    }
    return out;
}

void unicode_nfc(const Unicode *u, const char *text, size_t n, Text *out) {
    size_t plain = 0; // below U+0300 nothing combines, and all is composed already
    while (plain < n && (uint8_t)text[plain] < 0xcc) plain++;
    if (plain == n) {
        text_add(out, text, n);
        return;
    }
    Codes codes = {0};
    uint32_t c;
    for (size_t i = 0; i < n;) {
        i += utf8_get(text + i, &c);
        decompose(u, &codes, c);
    }
    Code *scratch = MEM_ARRAY(NULL, Code, codes.n);
    order_marks(codes.v, codes.n, scratch);
    mem_free(scratch);
    codes.n = compose(u, codes.v, codes.n);
    for (int i = 0; i < codes.n; i++) text_add_code(out, codes.v[i].c);
    mem_free(codes.v);
}

// ---- grapheme clusters ------------------------------------------------------------------------

enum { // as tools/ref/make_unicode_tables.py numbers them
    G_OTHER, G_CR, G_LF, G_CONTROL, G_EXTEND, G_ZWJ, G_REGIONAL, G_PREPEND, G_SPACING,
    G_L, G_V, G_T, G_LV, G_LVT, G_PICTURE
};

// True when no boundary stands between two neighbours (Annex 29, GB3 to GB9b).
static bool g_joined(int a, int b) {
    if (a == G_CR) return b == G_LF;
    if (a == G_LF || a == G_CONTROL || b == G_CR || b == G_LF || b == G_CONTROL) return false;
    if (b == G_EXTEND || b == G_ZWJ || b == G_SPACING || a == G_PREPEND) return true;
    if (a == G_L) return b == G_L || b == G_V || b == G_LV || b == G_LVT;
    if (a == G_LV || a == G_V) return b == G_V || b == G_T;
    return (a == G_LVT || a == G_T) && b == G_T;
}

size_t unicode_grapheme(const Unicode *u, const char *text, size_t n) {
    uint32_t c;
    size_t i = utf8_get(text, &c);
    int last = c < 0x80 && c >= 0x20 && c != 0x7f ? G_OTHER : run_value(&u->grapheme, c);
    bool flag = last == G_REGIONAL;   // an odd number of regional indicators: one more joins
    bool picture = last == G_PICTURE; // a picture and marks only: one more joins behind a joiner
    while (i < n) {
        size_t len = utf8_get(text + i, &c);
        int next = c < 0x80 && c >= 0x20 && c != 0x7f ? G_OTHER : run_value(&u->grapheme, c);
        bool joins = g_joined(last, next) || (flag && last == G_REGIONAL && next == G_REGIONAL) ||
                     (picture && last == G_ZWJ && next == G_PICTURE);
        if (!joins) break;
        flag = next == G_REGIONAL && !(flag && last == G_REGIONAL);
        picture = next == G_PICTURE || (picture && (next == G_EXTEND || next == G_ZWJ));
        last = next;
        i += len;
    }
    return i;
}
