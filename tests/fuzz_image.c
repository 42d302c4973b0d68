// fuzz_image.c: any bytes as a picture. PNG chunks get right checksums, or nothing would come past
// them.
#include <assert.h>
#include <stdlib.h>
#include <zlib.h>

#include "engine/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SIDE_LIMIT = 2048 }; // larger ones are sound too, but slow

static void fix_checksums(uint8_t *png, size_t n) {
    for (size_t at = 8; n > at && n - at >= 12;) {
        size_t size = (size_t)png[at] << 24 | (size_t)png[at + 1] << 16 | (size_t)png[at + 2] << 8 |
                      png[at + 3];
        if (size > n - at - 12) return;
        uint32_t sum = (uint32_t)crc32(0, png + at + 4, (uInt)size + 4);
        for (int i = 0; i < 4; i++) png[at + 8 + size + (size_t)i] = (uint8_t)(sum >> (24 - 8 * i));
        at += size + 12;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err = {0};
    int width, height;
    uint8_t *copy = malloc(size + 1);
    memcpy(copy, data, size);
    if (image_format(data, size) == IMAGE_PNG) fix_checksums(copy, size);
    mem_free(image_png_text(NULL, copy, size, "parameters"));
    bool known = image_probe(copy, size, &width, &height, &err);
    if (!known) assert(err.status == STATUS_FAILED && err.text[0]);
    if (known && width <= SIDE_LIMIT && height <= SIDE_LIMIT) {
        Image *image = image_decode(NULL, copy, size, &err);
        if (image) {
            assert(image->width == width && image->height == height);
            Image *fitted = image_fit(NULL, image, IMAGE_LANCZOS, 32, 32, &err);
            assert(fitted);
            mem_free(fitted);
        } else {
            assert(err.status == STATUS_FAILED && err.text[0]);
        }
        mem_free(image);
    } else if (!known) {
        assert(!image_decode(NULL, copy, size, &err));
    }
    free(copy);
    return 0;
}
