// unicode.h: what tokenizers need of Unicode: UTF-8, letters and numbers, lower case, canonical
// composition (NFC, Unicode Annex 15), grapheme clusters (Annex 29).
//
// The tables follow the `tokenizers` package, whose parts are of different Unicode versions:
// tools/ref/make_unicode_tables.py makes engine/data/unicode.gz. Immutable once opened.
#ifndef KILN_ENGINE_UNICODE_H
#define KILN_ENGINE_UNICODE_H

#include "backend/base.h"

// ---- UTF-8 ------------------------------------------------------------------------------------
// The length of the sequence at s (n > 0 bytes left), 0 when it is invalid: overlong, a surrogate,
// past U+10FFFF, or cut short.
size_t utf8_length(const char *s, size_t n);
bool utf8_valid(const char *s, size_t n, size_t *bad); // bad: offset of the first invalid byte
size_t utf8_get(const char *s, uint32_t *code);        // of valid text; returns its length
size_t utf8_put(char out[4], uint32_t code);           // returns the length

// Text that grows.
typedef struct Text {
    void *parent; // owns v; may be NULL
    char *v;      // n bytes; no final zero
    size_t n, cap;
} Text;
void text_add(Text *t, const char *s, size_t n);
void text_add_code(Text *t, uint32_t code);

// ---- tables -----------------------------------------------------------------------------------
typedef struct Unicode Unicode;
Unicode *unicode_open(void *parent, Error *err); // the built-in tables
// From the tables' file, unpacked; every length and order is checked.
Unicode *unicode_read(void *parent, const uint8_t *data, size_t n, Error *err);

enum { UNICODE_LETTER = 1, UNICODE_NUMBER = 2, UNICODE_SPACE = 4 };
unsigned unicode_class(const Unicode *u, uint32_t code); // some of these bits
// Lower case of one character, whatever stands around it: 1 to 3 code points, their count.
int unicode_lower(const Unicode *u, uint32_t code, uint32_t out[3]);
// Appends text[n] (valid UTF-8) in composed form. Linear in n.
void unicode_nfc(const Unicode *u, const char *text, size_t n, Text *out);
// Bytes of the extended grapheme cluster that text[n] (valid, n > 0) begins with.
size_t unicode_grapheme(const Unicode *u, const char *text, size_t n);

#endif
