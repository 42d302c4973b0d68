// exif.h: which way up a picture is, as cameras and telephones note it (Exif 2.32, tag 0x0112).
// Pure functions on any bytes: what is damaged or missing means "as it lies".
#ifndef KILN_ENGINE_EXIF_H
#define KILN_ENGINE_EXIF_H

#include "engine/image.h"

// 1..8 of a whole PNG or JPEG file; 1: as it lies.
int exif_orientation(const uint8_t *file, size_t n);
// From 5 on width and height change places.
static inline bool exif_swaps(int orientation) { return orientation >= 5; }
// The picture as it is meant to be seen, below `parent`.
Image *exif_turn(void *parent, const Image *image, int orientation, Error *err);

#endif
