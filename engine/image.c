// image.c: pictures in memory. See image.h. PNG by libspng, JPEG by libjpeg-turbo's classic API.
#include "engine/image.h"

#include "backend/os.h"
#include "engine/exif.h"

#include <math.h>
#include <setjmp.h>
#include <spng.h>
#include <stdlib.h>
// jpeglib.h wants stdio.h before it.
#include <jpeglib.h>
#include <jerror.h>

enum { TEXT_LIMIT = 1 << 24, JPEG_MAX_SCANS = 500, JPEG_COMMENT = 65533 };

static bool check_size(uint64_t width, uint64_t height, Error *err) {
    if (width >= 1 && height >= 1 && width <= IMAGE_MAX_SIDE && height <= IMAGE_MAX_SIDE &&
        width * height <= IMAGE_MAX_PIXELS)
        return true;
    return err_failed(err,
                      "picture: expected sides of 1 to %d and at most %d pixels, found %llux%llu; "
                      "choose a smaller size",
                      IMAGE_MAX_SIDE, IMAGE_MAX_PIXELS, (unsigned long long)width,
                      (unsigned long long)height);
}

Image *image_new(void *parent, int width, int height, Error *err) {
    if (!check_size((uint64_t)MAX(width, 0), (uint64_t)MAX(height, 0), err)) return NULL;
    Image *image = MEM_NEW(parent, Image);
    image->width = width;
    image->height = height;
    image->rgb = mem_new(image, (size_t)width * (size_t)height * 3);
    return image;
}

ImageFormat image_format(const uint8_t *bytes, size_t n) {
    static const uint8_t png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    if (n >= 8 && !memcmp(bytes, png, 8)) return IMAGE_PNG;
    if (n >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff) return IMAGE_JPEG;
    return IMAGE_UNKNOWN;
}

// ---- PNG --------------------------------------------------------------------------------------

static bool fail_png(Error *err, int code) {
    return err_failed(err, "PNG: expected a whole file, found \"%s\"; the file is damaged",
                      spng_strerror(code));
}

// NULL after an error. Checksums of every chunk count: a flipped bit is an error.
static spng_ctx *png_open(const uint8_t *bytes, size_t n, struct spng_ihdr *head, Error *err) {
    spng_ctx *png = spng_ctx_new(0);
    int code = png ? 0 : SPNG_EMEM;
    if (!code) code = spng_set_crc_action(png, SPNG_CRC_ERROR, SPNG_CRC_ERROR);
    if (!code) code = spng_set_chunk_limits(png, TEXT_LIMIT, 2 * (size_t)TEXT_LIMIT);
    if (!code) code = spng_set_png_buffer(png, bytes, n);
    if (!code) code = spng_get_ihdr(png, head);
    if (code) fail_png(err, code);
    else if (check_size(head->width, head->height, err)) return png;
    spng_ctx_free(png);
    return NULL;
}

const uint8_t *image_png_chunk(const uint8_t *file, size_t n, const char *name, size_t *size) {
    for (size_t at = 8; n - at >= 12; at += *size + 12) {
        *size = (size_t)file[at] << 24 | (size_t)file[at + 1] << 16 | (size_t)file[at + 2] << 8 |
                file[at + 3];
        if (*size > n - at - 12) return NULL;
        if (!memcmp(file + at + 4, name, 4)) return file + at + 8;
    }
    return NULL;
}

// libspng stops reading at the last row, so that a file cut just behind it would pass: the chunks
// that follow the pixels are walked here, and IEND must be there. It also leaves the zlib stream's
// own end unchecked, which the chunk checksums cover.
static bool png_has_end(const uint8_t *bytes, size_t n) {
    size_t size;
    return image_png_chunk(bytes, n, "IEND", &size) && size == 0;
}

static Image *png_decode(void *parent, const uint8_t *bytes, size_t n, Error *err) {
    struct spng_ihdr head;
    spng_ctx *png = png_open(bytes, n, &head, err);
    if (!png) return NULL;
    Image *image = NULL;
    // Deflate packs at most 1032:1, so a larger claim cannot be met: no memory for it.
    if (!png_has_end(bytes, n) || (uint64_t)head.width * head.height / 8 > (uint64_t)n * 1100) {
        fail_png(err, SPNG_EIO);
    } else {
        image = image_new(parent, (int)head.width, (int)head.height, err);
        size_t size = (size_t)head.width * head.height * 3;
        int code = image ? spng_decode_image(png, image->rgb, size, SPNG_FMT_RGB8, 0) : 0;
        if (image && !code) code = spng_decode_chunks(png); // those behind the pixels, up to IEND
        if (code) {
            fail_png(err, code);
            mem_free(image);
            image = NULL;
        }
    }
    spng_ctx_free(png);
    return image;
}

char *image_png_text(void *parent, const uint8_t *bytes, size_t n, const char *key) {
    if (image_format(bytes, n) != IMAGE_PNG) return NULL;
    struct spng_ihdr head;
    spng_ctx *png = png_open(bytes, n, &head, NULL);
    if (!png) return NULL;
    char *value = NULL;
    uint32_t count = 0;
    if (spng_get_text(png, NULL, &count) == 0 && count > 0) {
        struct spng_text *texts = MEM_ARRAY(NULL, struct spng_text, count);
        if (spng_get_text(png, texts, &count) == 0)
            for (uint32_t i = 0; i < count && !value; i++)
                if (!strcmp(texts[i].keyword, key))
                    value = mem_strndup(parent, texts[i].text, texts[i].length);
        mem_free(texts);
    }
    spng_ctx_free(png);
    return value;
}

static bool is_ascii(const char *text) {
    for (const char *c = text; *c; c++)
        if ((unsigned char)*c >= 0x80) return false;
    return true;
}

bool image_encode_png(void *parent, const Image *image, const ImageText *texts, int count,
                      uint8_t **bytes, size_t *n, Error *err) {
    spng_ctx *png = spng_ctx_new(SPNG_CTX_ENCODER);
    struct spng_ihdr head = {.width = (uint32_t)image->width,
                             .height = (uint32_t)image->height,
                             .bit_depth = 8,
                             .color_type = SPNG_COLOR_TYPE_TRUECOLOR};
    struct spng_text *chunks = MEM_ARRAY(NULL, struct spng_text, MAX(count, 1));
    char none[1] = ""; // libspng does not promise const
    for (int i = 0; i < count; i++) {
        snprintf(chunks[i].keyword, sizeof chunks[i].keyword, "%s", texts[i].key);
        chunks[i].type = is_ascii(texts[i].value) ? SPNG_TEXT : SPNG_ITXT;
        chunks[i].text = mem_strdup(chunks, texts[i].value); // libspng's field is not const
        chunks[i].length = strlen(texts[i].value);
        chunks[i].language_tag = chunks[i].translated_keyword = none;
    }
    size_t size = (size_t)image->width * (size_t)image->height * 3;
    void *made = NULL;
    int code = png ? 0 : SPNG_EMEM;
    if (!code) code = spng_set_option(png, SPNG_ENCODE_TO_BUFFER, 1);
    if (!code) code = spng_set_ihdr(png, &head);
    if (!code && count) code = spng_set_text(png, chunks, (uint32_t)count);
    if (!code) code = spng_encode_image(png, image->rgb, size, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE);
    if (!code) made = spng_get_png_buffer(png, n, &code);
    if (made) {
        *bytes = mem_new(parent, *n);
        memcpy(*bytes, made, *n);
        free(made);
    } else {
        err_failed(err, "PNG: expected to encode it, found \"%s\"; report it", spng_strerror(code));
    }
    spng_ctx_free(png);
    mem_free(chunks);
    return made != NULL;
}

// ---- JPEG -------------------------------------------------------------------------------------
// libjpeg reports errors through a callback that must not return: setjmp stands at each entry.

typedef struct JpegState {
    union {
        struct jpeg_decompress_struct in;
        struct jpeg_compress_struct out;
    } c;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf failed;
    Error *err;
    Image *image;        // freed after a failure
    unsigned char *made; // the encoder's buffer, from malloc
    unsigned long made_size;
    uint8_t *row;
} JpegState;

static _Noreturn void jpeg_fail(j_common_ptr c) {
    JpegState *s = c->client_data;
    char text[JMSG_LENGTH_MAX];
    c->err->format_message(c, text);
    err_failed(s->err, "JPEG: expected a whole file, found \"%s\"; the file is damaged", text);
    longjmp(s->failed, 1);
}

// libjpeg calls lost or wrong data a warning and paints grey. Here it is an error; what remains
// harmless (odd version numbers, unknown markers) passes.
static void jpeg_message(j_common_ptr c, int level) {
    if (level >= 0) return;
    switch (c->err->msg_code) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_MUST_RESYNC:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_NOT_SEQUENTIAL:
    case JWRN_BOGUS_PROGRESSION:
    case JWRN_EXTRANEOUS_DATA: // a scan that lost its place ends early
        jpeg_fail(c);
    default:
        break;
    }
}

// A small progressive file may ask for thousands of passes over a large picture.
static void jpeg_progress(j_common_ptr c) {
    JpegState *s = c->client_data;
    if (!c->is_decompressor || s->c.in.input_scan_number <= JPEG_MAX_SCANS) return;
    err_failed(s->err, "JPEG: expected at most %d scans, found more; the file is hostile",
               JPEG_MAX_SCANS);
    longjmp(s->failed, 1);
}

static void jpeg_setup(JpegState *s, Error *err) {
    s->err = err;
    s->c.in.err = jpeg_std_error(&s->errors); // first field of both structs
    s->errors.error_exit = jpeg_fail;
    s->errors.emit_message = jpeg_message;
    s->progress.progress_monitor = jpeg_progress;
}

// Adobe stores CMYK inverted, and so does everybody: a channel is (its value x black) / 255.
static void cmyk_to_rgb(const uint8_t *cmyk, uint8_t *rgb, int width) {
    for (int x = 0; x < width; x++, cmyk += 4, rgb += 3)
        for (int c = 0; c < 3; c++) rgb[c] = (uint8_t)((cmyk[c] * cmyk[3] + 127) / 255);
}

// Everything between set-up and clean-up, below one setjmp. With `image` NULL: headers only.
static bool jpeg_read(JpegState *s, void *parent, const uint8_t *bytes, size_t n, int *width,
                      int *height, Image **image) {
    struct jpeg_decompress_struct *in = &s->c.in;
    if (setjmp(s->failed)) return false;
    jpeg_create_decompress(in);
    in->client_data = s;
    in->progress = &s->progress;
    jpeg_mem_src(in, bytes, (unsigned long)n);
    jpeg_read_header(in, TRUE);
    if (!check_size(in->image_width, in->image_height, s->err)) return false;
    *width = (int)in->image_width;
    *height = (int)in->image_height;
    if (!image) return true;
    bool is_cmyk = in->jpeg_color_space == JCS_CMYK || in->jpeg_color_space == JCS_YCCK;
    in->out_color_space = is_cmyk ? JCS_CMYK : JCS_RGB;
    in->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(in);
    s->image = image_new(parent, *width, *height, s->err);
    if (!s->image) return false;
    if (is_cmyk) s->row = mem_new(NULL, (size_t)*width * 4);
    while (in->output_scanline < in->output_height) {
        uint8_t *to = s->image->rgb + (size_t)in->output_scanline * (size_t)*width * 3;
        JSAMPROW row = is_cmyk ? s->row : to;
        jpeg_read_scanlines(in, &row, 1);
        if (is_cmyk) cmyk_to_rgb(s->row, to, *width);
    }
    jpeg_finish_decompress(in); // reads up to the end mark: a cut file fails here
    *image = s->image;
    s->image = NULL;
    return true;
}

static bool jpeg_run_reader(void *parent, const uint8_t *bytes, size_t n, int *width, int *height,
                            Image **image, Error *err) {
    JpegState *s = MEM_NEW(NULL, JpegState);
    jpeg_setup(s, err);
    s->c.in.client_data = s; // an error in jpeg_create_decompress comes before it is set again
    bool ok = jpeg_read(s, parent, bytes, n, width, height, image);
    jpeg_destroy_decompress(&s->c.in);
    mem_free(s->image);
    mem_free(s->row);
    mem_free(s);
    return ok;
}

static void jpeg_comment(struct jpeg_compress_struct *out, const ImageText *text) {
    char *line = mem_printf(NULL, "%s: %s", text->key, text->value);
    size_t n = MIN(strlen(line), (size_t)JPEG_COMMENT);
    // No error can leave here: the buffer grows by malloc, whose failure alone would lose `line`.
    jpeg_write_marker(out, JPEG_COM, (const JOCTET *)line, (unsigned)n);
    mem_free(line);
}

static bool jpeg_write(JpegState *s, const Image *image, int quality, const ImageText *texts,
                       int count) {
    struct jpeg_compress_struct *out = &s->c.out;
    if (setjmp(s->failed)) return false;
    jpeg_create_compress(out);
    out->client_data = s;
    jpeg_mem_dest(out, &s->made, &s->made_size);
    out->image_width = (JDIMENSION)image->width;
    out->image_height = (JDIMENSION)image->height;
    out->input_components = 3;
    out->in_color_space = JCS_RGB;
    jpeg_set_defaults(out);
    jpeg_set_quality(out, MIN(MAX(quality, 1), 100), TRUE);
    if (quality >= 90) out->comp_info[0].h_samp_factor = out->comp_info[0].v_samp_factor = 1;
    out->optimize_coding = TRUE;
    jpeg_start_compress(out, TRUE);
    for (int i = 0; i < count; i++) jpeg_comment(out, &texts[i]);
    while (out->next_scanline < out->image_height) {
        JSAMPROW row = image->rgb + (size_t)out->next_scanline * (size_t)image->width * 3;
        jpeg_write_scanlines(out, &row, 1);
    }
    jpeg_finish_compress(out);
    return true;
}

bool image_encode_jpeg(void *parent, const Image *image, int quality, const ImageText *texts,
                       int count, uint8_t **bytes, size_t *n, Error *err) {
    JpegState *s = MEM_NEW(NULL, JpegState);
    jpeg_setup(s, err);
    s->c.out.client_data = s;
    bool ok = jpeg_write(s, image, quality, texts, count);
    if (ok) {
        *n = s->made_size;
        *bytes = mem_new(parent, *n);
        memcpy(*bytes, s->made, *n);
    }
    jpeg_destroy_compress(&s->c.out);
    free(s->made);
    mem_free(s);
    return ok;
}

// ---- by content, by name ------------------------------------------------------------------------

static bool fail_format(const uint8_t *bytes, size_t n, Error *err) {
    (void)bytes;
    return err_failed(err, "picture: expected PNG or JPEG, found %s; convert it first",
                      n ? "something else" : "an empty file");
}

static bool probe_png(const uint8_t *bytes, size_t n, int *width, int *height, Error *err) {
    struct spng_ihdr head;
    spng_ctx *png = png_open(bytes, n, &head, err);
    if (!png) return false;
    *width = (int)head.width;
    *height = (int)head.height;
    spng_ctx_free(png);
    return true;
}

bool image_probe(const uint8_t *bytes, size_t n, int *width, int *height, Error *err) {
    ImageFormat format = image_format(bytes, n);
    bool ok = format == IMAGE_PNG    ? probe_png(bytes, n, width, height, err)
              : format == IMAGE_JPEG ? jpeg_run_reader(NULL, bytes, n, width, height, NULL, err)
                                     : fail_format(bytes, n, err);
    if (!ok || !exif_swaps(exif_orientation(bytes, n))) return ok;
    int lying = *width;
    *width = *height;
    *height = lying;
    return true;
}

Image *image_decode(void *parent, const uint8_t *bytes, size_t n, Error *err) {
    ImageFormat format = image_format(bytes, n);
    Image *image = NULL;
    int width, height, orientation = exif_orientation(bytes, n);
    if (format == IMAGE_PNG) image = png_decode(parent, bytes, n, err);
    else if (format == IMAGE_JPEG) jpeg_run_reader(parent, bytes, n, &width, &height, &image, err);
    else fail_format(bytes, n, err);
    if (!image || orientation == 1) return image;
    Image *turned = exif_turn(parent, image, orientation, err);
    mem_free(image);
    return turned;
}

Image *image_load(void *parent, const char *path, Error *err) {
    size_t n;
    uint8_t *bytes = os_read_file(NULL, path, IMAGE_MAX_FILE, &n, err);
    if (!bytes) return NULL;
    Image *image = image_decode(parent, bytes, n, err);
    if (!image) err_prefix(err, "%s", path);
    mem_free(bytes);
    return image;
}

static ImageFormat format_by_name(const char *path) {
    if (str_ends(path, ".png")) return IMAGE_PNG;
    return str_ends(path, ".jpg") || str_ends(path, ".jpeg") ? IMAGE_JPEG : IMAGE_UNKNOWN;
}

bool image_can_save(const char *path) { return format_by_name(path) != IMAGE_UNKNOWN; }

bool image_save(const char *path, const Image *image, const ImageText *texts, int count,
                Error *err) {
    uint8_t *bytes = NULL;
    size_t n = 0;
    ImageFormat format = format_by_name(path);
    bool ok;
    if (format == IMAGE_PNG) ok = image_encode_png(NULL, image, texts, count, &bytes, &n, err);
    else if (format == IMAGE_JPEG)
        ok = image_encode_jpeg(NULL, image, 95, texts, count, &bytes, &n, err);
    else
        return err_failed(err, "%s: expected a name that ends with .png, .jpg or .jpeg, found another", path);
    if (!ok) err_prefix(err, "%s", path);
    ok = ok && os_write_file(path, bytes, n, err);
    mem_free(bytes);
    return ok;
}

// ---- shaping ----------------------------------------------------------------------------------

// The inputs of one output along an axis: weight k, over `sum`, belongs to input first + k.
typedef struct Taps {
    int first, count;
    int64_t sum;
} Taps;

// The triangle filter. Output x covers input around (x + 1/2) src / dst; the weight of input i is
// 1 - |i + 1/2 - centre| / support with support max(1, src / dst). Times 2 dst support all of it is
// an integer: 2 max(src, dst) - |(2 i + 1) dst - (2 x + 1) src|.
static int64_t triangle_weight(int64_t i, int64_t x, int64_t src, int64_t dst) {
    int64_t d = (2 * i + 1) * dst - (2 * x + 1) * src;
    return MAX(2 * MAX(src, dst) - (d < 0 ? -d : d), 0);
}

static Taps triangle(int64_t x, int64_t src, int64_t dst, int64_t *weights) {
    int64_t reach = 2 * MAX(src, dst), centre = (2 * x + 1) * src;
    int64_t lo = (centre - reach) / (2 * dst) - 1, hi = (centre + reach) / (2 * dst) + 1;
    Taps taps = {.first = (int)MAX(lo, 0)};
    for (int64_t i = taps.first; i <= MIN(hi, src - 1); i++) {
        weights[taps.count] = triangle_weight(i, x, src, dst);
        taps.sum += weights[taps.count++];
    }
    return taps;
}

static double sinc(double x) {
    x *= 3.14159265358979323846;
    return x == 0 ? 1 : sin(x) / x;
}

static double lobes(double x) { return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0; }

// Lanczos' filter with three lobes, widened by the reduction. Range, order of operations and the 22
// bits of a weight are PIL's, so the bytes are too.
static Taps lanczos(int64_t x, int64_t src, int64_t dst, int64_t *weights) {
    double scale = (double)src / (double)dst, wide = MAX(scale, 1.0), sum = 0;
    double centre = ((double)x + 0.5) * scale, support = 3 * wide;
    int64_t first = MAX((int64_t)(centre - support + 0.5), 0);
    int64_t end = MIN((int64_t)(centre + support + 0.5), src);
    Taps taps = {.first = (int)first, .count = (int)(end - first), .sum = 1 << 22};
    for (int64_t i = first; i < end; i++) sum += lobes(((double)i - centre + 0.5) / wide);
    for (int64_t i = first; i < end; i++) {
        double w = lobes(((double)i - centre + 0.5) / wide) / sum * (double)taps.sum;
        weights[i - first] = (int64_t)(w + (w < 0 ? -0.5 : 0.5));
    }
    return taps;
}

typedef struct Filter {
    Taps (*taps)(int64_t x, int64_t src, int64_t dst, int64_t *weights);
    int unit; // of the numbers between the passes, which are up to 255 units
} Filter;
static const Filter filters[] = {[IMAGE_TRIANGLE] = {triangle, 256}, [IMAGE_LANCZOS] = {lanczos, 1}};

static int64_t bounded(int64_t v, int64_t most) { return MAX(MIN(v, most), 0); }

// Rows first, then columns.
static void resize_rows(const Image *src, const Filter *f, uint16_t *out, int width, int64_t *weights) {
    for (int x = 0; x < width; x++) {
        Taps taps = f->taps(x, src->width, width, weights);
        for (int y = 0; y < src->height; y++) {
            const uint8_t *in =
                src->rgb + ((size_t)y * (size_t)src->width + (size_t)taps.first) * 3;
            for (int c = 0; c < 3; c++) {
                int64_t acc = taps.sum / 2;
                for (int k = 0; k < taps.count; k++) acc += weights[k] * in[k * 3 + c] * f->unit;
                out[((size_t)y * (size_t)width + (size_t)x) * 3 + (size_t)c] =
                    (uint16_t)bounded(acc / taps.sum, 255 * f->unit);
            }
        }
    }
}

static void resize_columns(const uint16_t *in, const Filter *f, int src_height, Image *out,
                           int64_t *weights) {
    size_t stride = (size_t)out->width * 3;
    for (int y = 0; y < out->height; y++) {
        Taps taps = f->taps(y, src_height, out->height, weights);
        for (size_t x = 0; x < stride; x++) {
            int64_t acc = taps.sum * f->unit / 2;
            for (int k = 0; k < taps.count; k++)
                acc += weights[k] * in[(size_t)(taps.first + k) * stride + x];
            out->rgb[(size_t)y * stride + x] = (uint8_t)bounded(acc / (taps.sum * f->unit), 255);
        }
    }
}

static Image *copy_part(void *parent, const Image *image, int left, int top, int width, int height,
                        Error *err) {
    Image *part = image_new(parent, width, height, err);
    for (int y = 0; part && y < height; y++)
        memcpy(part->rgb + (size_t)y * (size_t)width * 3,
               image->rgb + ((size_t)(top + y) * (size_t)image->width + (size_t)left) * 3,
               (size_t)width * 3);
    return part;
}

Image *image_resize(void *parent, const Image *image, ImageFilter filter, int width, int height,
                    Error *err) {
    if (width == image->width && height == image->height)
        return copy_part(parent, image, 0, 0, width, height, err);
    Image *out = image_new(parent, width, height, err);
    if (!out) return NULL;
    int64_t *weights = MEM_ARRAY(NULL, int64_t, MAX(image->width, image->height) + 4);
    uint16_t *middle = MEM_ARRAY(weights, uint16_t, (size_t)width * (size_t)image->height * 3);
    resize_rows(image, &filters[filter], middle, width, weights);
    resize_columns(middle, &filters[filter], image->height, out, weights);
    mem_free(weights);
    return out;
}

Image *image_fit(void *parent, const Image *image, ImageFilter filter, int width, int height,
                 Error *err) {
    if (!check_size((uint64_t)MAX(width, 0), (uint64_t)MAX(height, 0), err)) return NULL;
    int64_t w = image->width, h = image->height;
    // The largest part of the wanted shape: one side stays whole.
    int64_t cut_w = MIN(w, MAX(1, h * width / height)), cut_h = MIN(h, MAX(1, w * height / width));
    Image *part = copy_part(parent, image, (int)((w - cut_w) / 2), (int)((h - cut_h) / 2),
                            (int)cut_w, (int)cut_h, err);
    if (!part || (part->width == width && part->height == height)) return part;
    Image *out = image_resize(parent, part, filter, width, height, err);
    mem_free(part);
    return out;
}

Image *image_grid(void *parent, const Image *const *images, int count, int columns, int gap,
                  uint8_t grey, Error *err) {
    int64_t cell_w = 1, cell_h = 1;
    columns = MAX(columns, 1);
    gap = MIN(MAX(gap, 0), IMAGE_MAX_SIDE);
    int64_t across = MIN(columns, MAX(count, 1)),
            down = ((int64_t)MAX(count, 1) + columns - 1) / columns;
    for (int i = 0; i < count; i++)
        if (images[i]) {
            cell_w = MAX(cell_w, images[i]->width);
            cell_h = MAX(cell_h, images[i]->height);
        }
    int64_t width = across * (cell_w + gap) + gap, height = down * (cell_h + gap) + gap;
    if (!check_size((uint64_t)width, (uint64_t)height, err)) return NULL;
    Image *sheet = image_new(parent, (int)width, (int)height, err);
    memset(sheet->rgb, grey, (size_t)width * (size_t)height * 3);
    for (int i = 0; i < count; i++) {
        const Image *image = images[i];
        if (!image) continue;
        size_t left = (size_t)(gap + i % columns * (cell_w + gap));
        size_t top = (size_t)(gap + i / columns * (cell_h + gap));
        for (size_t y = 0; y < (size_t)image->height; y++)
            memcpy(sheet->rgb + ((top + y) * (size_t)width + left) * 3,
                   image->rgb + y * (size_t)image->width * 3, (size_t)image->width * 3);
    }
    return sheet;
}

bool image_check_count(int count, int width, int height, Error *err) {
    uint64_t each = (uint64_t)3 * sizeof(float) * (uint64_t)width * (uint64_t)height;
    uint64_t bytes = each * (uint64_t)count, most = os_memory_total() / 4;
    if (!most || bytes <= most) return true;
    char found[32], limit[32];
    format_bytes(found, bytes), format_bytes(limit, most);
    return err_failed(err, "generate: expected pictures of %s at most in one request (a quarter of "
                      "this machine's memory), found %s; ask for %llu at a time", limit, found,
                      (unsigned long long)MAX(most / each, (uint64_t)1));
}

// ---- numbers ----------------------------------------------------------------------------------

uint8_t image_from_float(float v) {
    float unit = v * 0.5f + 0.5f; // the same steps as PyTorch pipelines take
    if (!(unit > 0.0f)) return 0; // NaN too
    return unit >= 1.0f ? 255 : (uint8_t)lrintf(unit * 255.0f);
}

void image_to_planes(const Image *image, uint8_t *planes) {
    size_t n = (size_t)image->width * (size_t)image->height;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < 3; c++) planes[c * n + i] = image->rgb[i * 3 + c];
}

void image_to_floats(const Image *image, float *planes) {
    size_t n = (size_t)image->width * (size_t)image->height;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < 3; c++) planes[c * n + i] = image_to_float(image->rgb[i * 3 + c]);
}

Image *image_from_planes(void *parent, const uint8_t *planes, int width, int height, Error *err) {
    Image *image = image_new(parent, width, height, err);
    size_t n = (size_t)MAX(width, 0) * (size_t)MAX(height, 0);
    for (size_t i = 0; image && i < n; i++)
        for (size_t c = 0; c < 3; c++) image->rgb[i * 3 + c] = planes[c * n + i];
    return image;
}

Image *image_from_floats(void *parent, const float *planes, int width, int height, Error *err) {
    Image *image = image_new(parent, width, height, err);
    size_t n = (size_t)MAX(width, 0) * (size_t)MAX(height, 0);
    for (size_t i = 0; image && i < n; i++)
        for (size_t c = 0; c < 3; c++) image->rgb[i * 3 + c] = image_from_float(planes[c * n + i]);
    return image;
}
