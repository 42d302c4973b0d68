// Pictures: round trips, damage, limits, shaping, numbers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "engine/exif.h"
#include "engine/image.h"
#include "engine/rng.h"
#include "tests/scratch.h"

#include <math.h>
#include <jpeglib.h>
#include <zlib.h>

static void *scope;
static int setup(void **state) { return (scope = mem_new(NULL, 1), *state = scope, 0); }
static int teardown(void **state) { return (mem_free(*state), 0); }

static Image *noise(int width, int height) {
    Image *image = image_new(scope, width, height, NULL);
    Rng rng;
    rng_seed(&rng, 7, 0);
    for (int i = 0; i < width * height * 3; i++) image->rgb[i] = (uint8_t)rng_below(&rng, 256);
    return image;
}

static Image *slope(int width, int height) { // smooth: what JPEG keeps
    Image *image = image_new(scope, width, height, NULL);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            uint8_t *p = image->rgb + (y * width + x) * 3;
            p[0] = (uint8_t)(255 * x / width);
            p[1] = (uint8_t)(255 * y / height);
            p[2] = 128;
        }
    return image;
}

static void assert_same(const Image *a, const Image *b) {
    assert_non_null(a);
    assert_non_null(b);
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    assert_memory_equal(a->rgb, b->rgb, (size_t)a->width * (size_t)a->height * 3);
}

static void test_png(void **state) {
    (void)state;
    Error err = {0};
    Image *image = noise(37, 19);
    ImageText texts[] = {{"parameters", "a cat\nSteps: 20, Seed: 1"},
                         {"note", "gr\xc3\xbc\xc3\x9f"}};
    uint8_t *bytes;
    size_t n;
    assert_true(image_encode_png(scope, image, texts, 2, &bytes, &n, &err));
    assert_int_equal(image_format(bytes, n), IMAGE_PNG);
    assert_same(image_decode(scope, bytes, n, &err), image);
    assert_string_equal(image_png_text(scope, bytes, n, "parameters"), texts[0].value);
    assert_string_equal(image_png_text(scope, bytes, n, "note"), texts[1].value);
    assert_null(image_png_text(scope, bytes, n, "other"));
    assert_null(image_png_text(scope, bytes, 40, "note"));
    int w, h;
    assert_true(image_probe(bytes, n, &w, &h, &err));
    assert_int_equal(w * 1000 + h, 37019);
}

static void test_jpeg(void **state) {
    (void)state;
    Error err = {0};
    Image *image = slope(50, 31);
    ImageText text = {"parameters", "a cat"};
    uint8_t *bytes;
    size_t n;
    for (int quality = 60; quality <= 100; quality += 20) {
        assert_true(image_encode_jpeg(scope, image, quality, &text, 1, &bytes, &n, &err));
        assert_int_equal(image_format(bytes, n), IMAGE_JPEG);
        Image *back = image_decode(scope, bytes, n, &err);
        assert_non_null(back);
        int worst = 0;
        for (int i = 0; i < 50 * 31 * 3; i++) worst = MAX(worst, abs(back->rgb[i] - image->rgb[i]));
        assert_in_range(worst, 0, quality == 100 ? 3 : 24);
    }
    int w, h;
    assert_true(image_probe(bytes, n, &w, &h, &err));
    assert_int_equal(w * 1000 + h, 50031);
}

// What cameras and print shops write: grey, progressive, inverted CMYK. Flat colour, so that only
// the rounding of JPEG is between the two.
static uint8_t *flat_jpeg(J_COLOR_SPACE space, int channels, const uint8_t *colour,
                          unsigned long *n) {
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr errors;
    uint8_t *bytes = NULL, row[40 * 4];
    c.err = jpeg_std_error(&errors);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &bytes, n);
    c.image_width = 40;
    c.image_height = 24;
    c.input_components = channels;
    c.in_color_space = space;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, 95, TRUE);
    jpeg_simple_progression(&c);
    jpeg_start_compress(&c, TRUE);
    for (int i = 0; i < 40 * channels; i++) row[i] = colour[i % channels];
    JSAMPROW rows[1] = {row};
    while (c.next_scanline < c.image_height) jpeg_write_scanlines(&c, rows, 1);
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    return bytes;
}

static void test_jpeg_kinds(void **state) {
    (void)state;
    static const struct {
        J_COLOR_SPACE space;
        int channels;
        uint8_t colour[4];
        int rgb[3];
    } kinds[] = {
        {JCS_GRAYSCALE, 1, {77}, {77, 77, 77}},
        {JCS_RGB, 3, {200, 30, 90}, {200, 30, 90}},
        {JCS_CMYK, 4, {255, 128, 0, 255}, {255, 128, 0}},
        {JCS_CMYK, 4, {255, 128, 64, 128}, {128, 64, 32}},
    };
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        unsigned long n = 0;
        uint8_t *bytes = flat_jpeg(kinds[k].space, kinds[k].channels, kinds[k].colour, &n);
        Image *image = image_decode(scope, bytes, n, NULL);
        assert_non_null(image);
        assert_int_equal(image->width * 100 + image->height, 4024);
        for (int i = 0; i < 40 * 24 * 3; i++)
            assert_true(abs(image->rgb[i] - kinds[k].rgb[i % 3]) <= 2);
        for (unsigned long cut = 0; cut < n; cut += 7)
            assert_null(image_decode(scope, bytes, cut, NULL));
        free(bytes);
    }
}

// Every proper beginning of a file is an error.
// So many pictures that their numbers do not fit are refused before memory is taken for them.
static void test_count(void **state) {
    (void)state;
    Error err = {0};
    assert_true(image_check_count(1, 512, 512, &err));
    assert_false(image_check_count(INT32_MAX, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE, &err)); // no overflow
    assert_int_equal(err.status, STATUS_FAILED);
    assert_non_null(strstr(err.text, "in one request"));
}

static void test_truncated(void **state) {
    (void)state;
    uint8_t *bytes;
    size_t n;
    for (int jpeg = 0; jpeg < 2; jpeg++) {
        Image *image = noise(13, 17);
        if (jpeg) assert_true(image_encode_jpeg(scope, image, 90, NULL, 0, &bytes, &n, NULL));
        else assert_true(image_encode_png(scope, image, NULL, 0, &bytes, &n, NULL));
        for (size_t k = 0; k < n; k++) {
            uint8_t *cut = malloc(k + 1); // a block of its own: reads past it are seen
            memcpy(cut, bytes, k);
            Error err = {0};
            assert_null(image_decode(scope, cut, k, &err));
            assert_int_equal(err.status, STATUS_FAILED);
            assert_non_null(strstr(err.text, "expected"));
            free(cut);
        }
    }
}

// A flipped bit in a PNG is always noticed; in a JPEG, which has no checksums, it may not be, but
// it never does harm.
static void test_flipped(void **state) {
    (void)state;
    uint8_t *bytes;
    size_t n;
    Image *image = noise(16, 16);
    assert_true(image_encode_png(scope, image, NULL, 0, &bytes, &n, NULL));
    for (size_t bit = 0; bit < n * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        Image *back = image_decode(scope, bytes, n, NULL);
        if (back) fail_msg("bit %zu of %zu was not noticed", bit, n * 8);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_true(image_encode_jpeg(scope, image, 90, NULL, 0, &bytes, &n, NULL));
    int noticed = 0;
    for (size_t bit = 0; bit < n * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        Image *back = image_decode(NULL, bytes, n, NULL);
        noticed += !back;
        mem_free(back);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_true(noticed > (int)n * 8 / 10);
}

static void put32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (24 - 8 * i));
}

// A header that claims a huge picture, its checksum in order.
static void test_bombs(void **state) {
    (void)state;
    uint8_t *bytes;
    size_t n;
    Error err = {0};
    assert_true(image_encode_png(scope, noise(4, 4), NULL, 0, &bytes, &n, NULL));
    static const uint32_t sides[][2] = {
        {100000, 100000}, {0x7fffffff, 1}, {32768, 32768}, {0, 4}, {8192, 8192}};
    for (size_t i = 0; i < COUNT_OF(sides); i++) {
        put32(bytes + 16, sides[i][0]);
        put32(bytes + 20, sides[i][1]);
        put32(bytes + 29, (uint32_t)crc32(0, bytes + 12, 17));
        assert_null(image_decode(scope, bytes, n, &err));
        assert_non_null(strstr(err.text, "expected"));
    }
    assert_true(image_encode_jpeg(scope, noise(4, 4), 90, NULL, 0, &bytes, &n, NULL));
    for (size_t i = 2; i + 9 < n; i++)
        if (bytes[i] == 0xff && bytes[i + 1] == 0xc0) memset(bytes + i + 5, 0x7f, 4);
    assert_null(image_decode(scope, bytes, n, &err));
    assert_non_null(strstr(err.text, "32639x32639"));
    assert_null(image_new(scope, 0, 5, &err));
    assert_null(image_new(scope, 5, -1, &err));
    assert_null(image_new(scope, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE, &err));
    assert_null(image_decode(scope, (const uint8_t *)"GIF89a", 6, &err));
    assert_null(image_decode(scope, NULL, 0, &err));
    assert_non_null(strstr(err.text, "an empty file"));
}

// ---- Exif ---------------------------------------------------------------------------------------

// A TIFF directory of one entry: the orientation, in one of the two orders of bytes.
static size_t tiff(uint8_t *p, bool big, int orientation) {
    static const uint8_t little_one[] = {'I', 'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0,
                                         1,   0,   0,  0, 0, 0, 0, 0, 0, 0, 0,    0};
    static const uint8_t big_one[] = {'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3,
                                      0,   0,   0, 1,  0, 0, 0, 0, 0, 0, 0, 0};
    memcpy(p, big ? big_one : little_one, sizeof big_one);
    p[big ? 19 : 18] = (uint8_t)orientation;
    return sizeof big_one;
}

// The file with the orientation in it: JPEG's first segment, or PNG's chunk behind IHDR.
static uint8_t *with_exif(const uint8_t *file, size_t n, bool big, int orientation, size_t *size) {
    uint8_t part[64], *out = mem_new(scope, n + sizeof part);
    bool png = image_format(file, n) == IMAGE_PNG;
    size_t at = png ? 33 : 2, head = png ? 8 : 10, used = head;
    used += tiff(part + head, big, orientation);
    if (png) {
        memcpy(part, (uint8_t[]){0, 0, 0, (uint8_t)(used - 8), 'e', 'X', 'I', 'f'}, 8);
        put32(part + used, (uint32_t)crc32(0, part + 4, (uInt)(used - 4)));
        used += 4;
    } else {
        memcpy(part, (uint8_t[]){0xff, 0xe1, 0, (uint8_t)(used - 2), 'E', 'x', 'i', 'f', 0, 0}, 10);
    }
    memcpy(out, file, at);
    memcpy(out + at, part, used);
    memcpy(out + at + used, file + at, n - at);
    *size = n + used;
    return out;
}

static const uint8_t *corner(const Image *image, const char *name) { // "TL": top left, ...
    int x = name[1] == 'L' ? 0 : image->width - 1, y = name[0] == 'T' ? 0 : image->height - 1;
    return image->rgb + (y * image->width + x) * 3;
}

static void test_exif(void **state) {
    (void)state;
    // Where the corners at the top of the pixels as they lie are to be seen (Exif 2.32, 4.6.4).
    static const struct { const char *left, *right; } seen[] = {
        {"TL", "TR"}, {"TL", "TR"}, {"TR", "TL"}, {"BR", "BL"}, {"BL", "BR"},
        {"TL", "BL"}, {"TR", "BR"}, {"BR", "TR"}, {"BL", "TL"}, {"TL", "TR"}, // 0 and 9 mean nothing
    };
    uint8_t *files[2];
    size_t sizes[2];
    Error err = {0};
    Image *image = noise(24, 16);
    assert_true(image_encode_png(scope, image, NULL, 0, &files[0], &sizes[0], &err));
    assert_true(image_encode_jpeg(scope, image, 95, NULL, 0, &files[1], &sizes[1], &err));
    for (int i = 0; i < 40; i++) {
        int orientation = i / 4, f = i % 2, width, height;
        size_t n;
        const uint8_t *file = with_exif(files[f], sizes[f], i & 2, orientation, &n);
        const Image *lying = image_decode(scope, files[f], sizes[f], &err);
        const Image *turned = image_decode(scope, file, n, &err);
        assert_non_null(turned);
        assert_memory_equal(corner(turned, seen[orientation].left), corner(lying, "TL"), 3);
        assert_memory_equal(corner(turned, seen[orientation].right), corner(lying, "TR"), 3);
        assert_int_equal(turned->width, orientation >= 5 && orientation < 9 ? 16 : 24);
        assert_true(image_probe(file, n, &width, &height, &err));
        assert_int_equal(width, turned->width);
        assert_int_equal(height, turned->height);
    }
    // Damaged: as it lies. A directory past the end, and a segment cut at every byte.
    uint8_t part[32];
    size_t n, all = tiff(part, false, 6);
    uint8_t *file = with_exif(files[1], sizes[1], false, 6, &n);
    for (size_t cut = 0; cut <= all + 12; cut++) {
        uint8_t *exact = malloc(cut + 1); // reads past it are seen under ASan
        memcpy(exact + 1, file, cut);
        assert_int_equal(exif_orientation(exact + 1, cut), cut < all + 12 ? 1 : 6);
        free(exact);
    }
    for (int i = 0; i < 8; i++) {
        file[2 + 10 + i] ^= 0xff;
        assert_int_equal(exif_orientation(file, n), 1);
        file[2 + 10 + i] ^= 0xff;
    }
    assert_int_equal(exif_orientation(file, n), 6);
}

static void test_files(void **state) {
    (void)state;
    Error err = {0};
    char *dir = scratch_new(scope), *png = os_path_join(scope, dir, "a.PNG");
    Image *image = noise(9, 9);
    assert_true(image_save(png, image, NULL, 0, &err));
    assert_same(image_load(scope, png, &err), image);
    char *jpg = os_path_join(scope, dir, "a.jpeg");
    assert_true(image_save(jpg, image, NULL, 0, &err));
    assert_non_null(image_load(scope, jpg, &err));
    assert_false(image_save(os_path_join(scope, dir, "a.gif"), image, NULL, 0, &err));
    assert_non_null(strstr(err.text, ".png, .jpg or .jpeg"));
    assert_false(image_can_save("a.webp"));
    assert_false(image_save(os_path_join(scope, dir, "no/a.png"), image, NULL, 0, &err));
    assert_null(image_load(scope, os_path_join(scope, dir, "none.png"), &err));
    char *bad = scratch_write(scope, dir, "bad.png", "\x89PNG\r\n\x1a\n----", 12);
    assert_null(image_load(scope, bad, &err));
    assert_non_null(strstr(err.text, "bad.png: PNG: expected"));
    assert_int_equal(scratch_count(dir), 3);
    scratch_remove(dir);
}

static void test_resize(void **state) {
    (void)state;
    Image *flat = image_new(scope, 61, 47, NULL);
    memset(flat->rgb, 201, 61 * 47 * 3);
    static const int sizes[][2] = {{1, 1}, {32, 32}, {61, 47}, {200, 3}, {7, 300}};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) { // weights sum to one exactly
        Image *out = image_resize(scope, flat, IMAGE_TRIANGLE, sizes[i][0], sizes[i][1], NULL);
        for (int k = 0; k < out->width * out->height * 3; k++) assert_int_equal(out->rgb[k], 201);
    }
    // Halving by the triangle filter: weights 1 3 3 1 over 8, ends cut off.
    Image *line = image_new(scope, 4, 1, NULL);
    static const uint8_t values[4] = {0, 80, 160, 240};
    for (int x = 0; x < 4; x++) memset(line->rgb + x * 3, values[x], 3);
    Image *half = image_resize(scope, line, IMAGE_TRIANGLE, 2, 1, NULL);
    assert_int_equal(half->rgb[0], (3 * 0 + 3 * 80 + 1 * 160 + 3) / 7);
    assert_int_equal(half->rgb[3], (1 * 80 + 3 * 160 + 3 * 240 + 3) / 7);
    // Doubling: 3/4 and 1/4 of the neighbours.
    Image *twice = image_resize(scope, line, IMAGE_TRIANGLE, 8, 1, NULL);
    assert_int_equal(twice->rgb[0], 0);
    assert_int_equal(twice->rgb[1 * 3], 20);
    assert_int_equal(twice->rgb[2 * 3], 60);
    assert_int_equal(twice->rgb[7 * 3], 240);
    assert_same(image_resize(scope, line, IMAGE_TRIANGLE, 4, 1, NULL), line);
    assert_null(image_resize(scope, line, IMAGE_TRIANGLE, 0, 1, NULL));
}

// Against PIL's Image.resize(size, LANCZOS) of the same numbers.
static void test_lanczos(void **state) {
    (void)state;
    static const uint8_t smaller[5 * 3] = {
        87, 125, 107, 139, 114, 132, 127, 131, 116, 106, 130, 138, 110, 113, 179};
    static const uint8_t larger[9 * 4] = {
        0, 0, 14, 45, 79, 111, 142, 158, 164, 23, 58, 117, 146, 90, 33, 62, 122, 159, 137, 145, 155, 148,
        116, 82, 76, 86, 93, 213, 164, 85, 49, 127, 205, 168, 90, 40};
    static const struct { int width, height, to_width, to_height; const uint8_t *want; } cases[] = {
        {13, 7, 5, 3, smaller}, {4, 3, 9, 4, larger}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Image *image = image_new(scope, cases[i].width, cases[i].height, NULL);
        for (int y = 0; y < image->height; y++)
            for (int x = 0; x < image->width; x++)
                memset(image->rgb + (y * image->width + x) * 3, (x * 53 + y * 91 + x * y % 7 * 40) % 256, 3);
        Image *out = image_resize(scope, image, IMAGE_LANCZOS, cases[i].to_width, cases[i].to_height, NULL);
        for (int k = 0; k < out->width * out->height * 3; k++)
            assert_int_equal(out->rgb[k], cases[i].want[k / 3]);
        assert_same(image_resize(scope, image, IMAGE_LANCZOS, image->width, image->height, NULL), image);
    }
}

static void test_fit(void **state) {
    (void)state;
    // Left third red, middle green, right blue: the centred square is green.
    Image *image = image_new(scope, 96, 32, NULL);
    for (int y = 0; y < 32; y++)
        for (int x = 0; x < 96; x++) image->rgb[(y * 96 + x) * 3 + x / 32] = 255;
    Image *fit = image_fit(scope, image, IMAGE_TRIANGLE, 16, 16, NULL);
    assert_int_equal(fit->width * 1000 + fit->height, 16016);
    for (int i = 0; i < 16 * 16; i++) {
        assert_int_equal(fit->rgb[i * 3], 0);
        assert_int_equal(fit->rgb[i * 3 + 1], 255);
        assert_int_equal(fit->rgb[i * 3 + 2], 0);
    }
    assert_same(image_fit(scope, image, IMAGE_TRIANGLE, 96, 32, NULL), image);
    Image *thin = image_new(scope, 1, 1000, NULL);
    assert_int_equal(image_fit(scope, thin, IMAGE_TRIANGLE, 32, 32, NULL)->height, 32);
    assert_null(image_fit(scope, image, IMAGE_TRIANGLE, 0, 0, NULL));
}

static void test_grid(void **state) {
    (void)state;
    Error err = {0};
    Image *a = noise(3, 2), *b = noise(2, 3);
    const Image *images[5] = {a, b, NULL, b, a};
    Image *grid = image_grid(scope, images, 5, 2, 1, 77, &err);
    assert_int_equal(grid->width, 2 * 3 + 3);
    assert_int_equal(grid->height, 3 * 3 + 4);
    assert_int_equal(grid->rgb[0], 77);
    assert_memory_equal(grid->rgb + (1 * 9 + 1) * 3, a->rgb, 9);
    assert_memory_equal(grid->rgb + (2 * 9 + 1) * 3, a->rgb + 9, 9);
    assert_memory_equal(grid->rgb + (1 * 9 + 5) * 3, b->rgb, 6);
    assert_int_equal(grid->rgb[(5 * 9 + 1) * 3], 77); // the empty cell
    assert_memory_equal(grid->rgb + (9 * 9 + 1) * 3, a->rgb, 9);
    Image *huge = image_new(scope, 30000, 2, NULL);
    const Image *wide[2] = {huge, huge};
    assert_null(image_grid(scope, wide, 2, 2, 0, 0, &err));
    assert_non_null(image_grid(scope, wide, 2, 1, 0, 0, &err));
}

static void test_numbers(void **state) {
    (void)state;
    for (int v = 0; v < 256; v++) {
        float f = image_to_float((uint8_t)v);
        assert_true(fabsf(f - ((float)v / 127.5f - 1)) < 1e-6f);
        assert_int_equal(image_from_float(f), v);
        assert_int_equal(image_from_float(f + 0.0035f), v); // less than half a step of 2 / 255
        assert_int_equal(image_from_float(f - 0.0035f), v);
    }
    assert_int_equal(image_from_float(-7.0f), 0);
    assert_int_equal(image_from_float(7.0f), 255);
    assert_int_equal(image_from_float(INFINITY), 255);
    assert_int_equal(image_from_float(-INFINITY), 0);
    assert_int_equal(image_from_float(NAN), 0);
    Image *image = noise(5, 7);
    uint8_t planes[3 * 35];
    float floats[3 * 35];
    image_to_planes(image, planes);
    image_to_floats(image, floats);
    assert_int_equal(planes[35 * 2 + 8], image->rgb[8 * 3 + 2]);
    assert_same(image_from_planes(scope, planes, 5, 7, NULL), image);
    assert_same(image_from_floats(scope, floats, 5, 7, NULL), image);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_png),     TEST(test_jpeg),  TEST(test_jpeg_kinds), TEST(test_truncated),
        TEST(test_count),   TEST(test_flipped), TEST(test_bombs), TEST(test_exif),
        TEST(test_files),   TEST(test_resize),  TEST(test_lanczos), TEST(test_fit),
        TEST(test_grid),    TEST(test_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
