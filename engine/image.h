// image.h: pictures in memory: 8-bit RGB. Reading and writing PNG and JPEG, sheets, resizing,
// floats.
//
// Every function may run on any thread: nothing is shared, all state is in the arguments. (A parent
// is not safe to use from two threads at once; workers pass their own, or NULL.)
#ifndef KILN_ENGINE_IMAGE_H
#define KILN_ENGINE_IMAGE_H

#include "backend/base.h"

// Larger pictures are refused before memory is taken for them.
enum { IMAGE_MAX_SIDE = 32768, IMAGE_MAX_PIXELS = 1 << 26, IMAGE_MAX_FILE = 1 << 28 };

typedef struct Image {
    int width, height; // 1..IMAGE_MAX_SIDE
    uint8_t *rgb;      // [height, width, 3], rows from the top, no padding; belongs to this block
} Image;

typedef enum { IMAGE_UNKNOWN, IMAGE_PNG, IMAGE_JPEG } ImageFormat;

// A zeroed (black) picture; NULL when a side is out of range. mem_free frees it with its pixels.
Image *image_new(void *parent, int width, int height, Error *err);

// ---- reading ----------------------------------------------------------------------------------
ImageFormat image_format(const uint8_t *bytes, size_t n); // by content, not by name
// Width and height (of the picture turned upright) from the headers alone; a truncated or damaged
// body is not noticed.
bool image_probe(const uint8_t *bytes, size_t n, int *width, int *height, Error *err);
// PNG (every type; 16 bits become 8, alpha is dropped as the field's tools do) or JPEG (grey,
// YCbCr, CMYK; baseline and progressive). A file that is truncated, or whose checksums or codes are
// wrong, is an error, never part of a picture. Turned upright where Exif says how the camera lay.
Image *image_decode(void *parent, const uint8_t *bytes, size_t n, Error *err);
Image *image_load(void *parent, const char *path, Error *err); // the same from a file; names it
// The value of a PNG's text chunk (tEXt, zTXt, iTXt), NULL when there is none or it is damaged.
char *image_png_text(void *parent, const uint8_t *bytes, size_t n, const char *key);

// The data, of *size bytes, of a PNG's first chunk of this name; NULL when there is none before the
// file ends or is cut. Its checksum is not looked at.
const uint8_t *image_png_chunk(const uint8_t *file, size_t n, const char *name, size_t *size);

// ---- writing ----------------------------------------------------------------------------------
typedef struct ImageText {
    const char *key;   // 1..79 characters of ASCII, for example "parameters"
    const char *value; // UTF-8: plain ASCII becomes tEXt, anything else iTXt
} ImageText;

// Encoded into memory below `parent`. `texts` may be NULL with count 0.
bool image_encode_png(void *parent, const Image *image, const ImageText *texts, int count,
                      uint8_t **bytes, size_t *n, Error *err);
// quality 1..100, no chroma subsampling from 90 on. Texts become comments "key: value".
bool image_encode_jpeg(void *parent, const Image *image, int quality, const ImageText *texts,
                       int count, uint8_t **bytes, size_t *n, Error *err);
// By the name's ending: .png, or .jpg/.jpeg (quality 95); anything else is refused
// (`image_can_save` tells beforehand). The file appears whole or not at all.
bool image_can_save(const char *path);
bool image_save(const char *path, const Image *image, const ImageText *texts, int count,
                Error *err);

// ---- shaping ----------------------------------------------------------------------------------
// TRIANGLE  support grows with the reduction (PIL's BILINEAR: bilinear when enlarging, area-weighted
//           when reducing), in integers: the same bytes on every machine
// LANCZOS   three lobes; PIL's bytes, and so what diffusers' pipelines make of a given picture
typedef enum ImageFilter { IMAGE_TRIANGLE, IMAGE_LANCZOS } ImageFilter;
Image *image_resize(void *parent, const Image *image, ImageFilter filter, int width, int height,
                    Error *err);
// The largest centred part with the shape width:height, resized to it. Unchanged if it fits
// already.
Image *image_fit(void *parent, const Image *image, ImageFilter filter, int width, int height,
                 Error *err);
// A contact sheet, left to right and top to bottom, `columns` in a row, `gap` pixels of `grey`
// between and around; cells are as large as the largest picture. NULL entries leave a cell empty.
Image *image_grid(void *parent, const Image *const *images, int count, int columns, int gap,
                  uint8_t grey, Error *err);

// Whether `count` pictures of a request may be kept at once: an error where their numbers alone
// (floats [3, height, width] each) would take over a quarter of the machine's memory.
bool image_check_count(int count, int width, int height, Error *err);

// ---- numbers ----------------------------------------------------------------------------------
// u8 0..255 <-> float -1..1. To u8: clamped, rounded to nearest (ties to even, as PyTorch); NaN: 0.
static inline float image_to_float(uint8_t v) { return (float)(2 * (int)v - 255) / 255.0f; }
uint8_t image_from_float(float v);
void image_to_planes(const Image *image, uint8_t *planes); // planes [3, height, width]
void image_to_floats(const Image *image, float *planes);   // planes [3, height, width], -1..1
Image *image_from_planes(void *parent, const uint8_t *planes, int width, int height, Error *err);
Image *image_from_floats(void *parent, const float *planes, int width, int height, Error *err);

#endif
