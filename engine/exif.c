// exif.c: see exif.h.
#include "engine/exif.h"

// A range of bytes in one of TIFF's two orders.
typedef struct Tiff { const uint8_t *p; size_t n; bool big; } Tiff;

static uint32_t number(const Tiff *t, size_t at, int bytes) {
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint32_t)t->p[at + (size_t)i] << 8 * (t->big ? bytes - 1 - i : i);
    return v;
}

// In the first directory: entries of 12 bytes (tag, type, count, value).
static int tiff_orientation(const uint8_t *p, size_t n) {
    enum { TAG = 0x0112, SHORT = 3 };
    if (n < 8 || (memcmp(p, "MM\0*", 4) && memcmp(p, "II*\0", 4))) return 1;
    Tiff t = {p, n, *p == 'M'};
    size_t at = number(&t, 4, 4);
    if (at > n - 2) return 1;
    uint32_t count = number(&t, at, 2);
    at += 2;
    for (uint32_t i = 0; i < count && n - at >= 12; i++, at += 12) {
        if (number(&t, at, 2) != TAG) continue;
        uint32_t value = number(&t, at + 8, 2);
        bool known = number(&t, at + 2, 2) == SHORT && number(&t, at + 4, 4) == 1;
        return known && value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

// Segments: 0xff, a marker, and from 0xe0 to 0xef a length of two bytes that counts itself.
static int jpeg_orientation(const uint8_t *p, size_t n) {
    for (size_t at = 2; n - at >= 4 && p[at] == 0xff;) {
        if (p[at + 1] == 0xff) { // filling
            at++;
            continue;
        }
        size_t size = (size_t)p[at + 2] << 8 | p[at + 3];
        if (p[at + 1] == 0xda || size < 2 || size > n - at - 2) return 1; // the pixels begin
        if (p[at + 1] == 0xe1 && size >= 8 && !memcmp(p + at + 4, "Exif\0\0", 6))
            return tiff_orientation(p + at + 10, size - 8);
        at += size + 2;
    }
    return 1;
}

static int png_orientation(const uint8_t *p, size_t n) {
    size_t size;
    const uint8_t *chunk = image_png_chunk(p, n, "eXIf", &size);
    return chunk ? tiff_orientation(chunk, size) : 1;
}

int exif_orientation(const uint8_t *file, size_t n) {
    ImageFormat format = image_format(file, n);
    if (format == IMAGE_JPEG) return jpeg_orientation(file, n);
    return format == IMAGE_PNG ? png_orientation(file, n) : 1;
}

Image *exif_turn(void *parent, const Image *image, int orientation, Error *err) {
    // Where a pixel comes from: x and y change places, then each may count from the other end.
    static const struct { bool x_back, y_back; } rule[9] = {
        [2] = {true, false}, [3] = {true, true}, [4] = {false, true}, [6] = {false, true},
        [7] = {true, true},  [8] = {true, false},
    };
    int w = image->width, h = image->height;
    bool swaps = exif_swaps(orientation);
    Image *out = image_new(parent, swaps ? h : w, swaps ? w : h, err);
    uint8_t *to = out ? out->rgb : NULL;
    for (int y = 0; out && y < out->height; y++)
        for (int x = 0; x < out->width; x++, to += 3) {
            int from_x = swaps ? y : x, from_y = swaps ? x : y;
            if (rule[orientation].x_back) from_x = w - 1 - from_x;
            if (rule[orientation].y_back) from_y = h - 1 - from_y;
            memcpy(to, image->rgb + ((size_t)from_y * (size_t)w + (size_t)from_x) * 3, 3);
        }
    return out;
}
