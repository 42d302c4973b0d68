// test_cli_vae.c: `kiln vae` as scripts see it: round trips and halves, what they report, tiles,
// memory, errors. With a synthetic autoencoder; and the real tiny one of ../shared/reference-data
// on a photograph, where it is there.
#include "tests/cli.h"

#include "engine/dummy.h"
#include "engine/npy.h"
#include "engine/safetensors.h"
#include "models/autoencoder_kl.h"

#include <math.h>

#define TAEF2 "../shared/reference-data/taef2"
enum { WIDTH = 84, HEIGHT = 61, LARGE_WIDTH = 256, LARGE_HEIGHT = 192 };

static char *vae, *photo, *large; // files

// An AutoencoderKL with FLUX's latents and few channels. `half`: names begin with it; NULL: all.
static char *write_vae(const char *name, const char *half) {
    Error err = {0};
    int count, encoder;
    KlConfig c = kl_preset(16);
    const BindWant *wants = kl_wants(cli, &c, &count, &encoder);
    Weights *w = dummy_weights(cli, "vae", wants, count, DT_BF16, 5);
    StWriter *out = st_writer(cli);
    for (int i = 0; i < weights_count(w); i++) {
        const WeightTensor *t = weights_at(w, i);
        void *data = mem_new(out, (size_t)t->bytes);
        if (half && strncmp(t->name, half, strlen(half))) continue;
        assert_true(weights_read(w, t, 0, data, t->bytes, &err));
        st_put(out, t->name, t->dtype, t->ndim, t->shape, data);
    }
    char *path = at(name);
    assert_true(st_write(out, path, &err));
    weights_close(w);
    mem_free(out);
    return path;
}

// Smooth, with an edge.
static char *write_picture(const char *name, int width, int height) {
    Image *image = image_new(NULL, width, height, NULL);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            uint8_t *p = image->rgb + 3 * ((size_t)y * (size_t)width + (size_t)x);
            p[0] = (uint8_t)(x * 255 / width), p[1] = (uint8_t)(y * 255 / height);
            p[2] = x > y ? 200 : 40;
        }
    char *path = at(name);
    assert_true(image_save(path, image, NULL, 0, NULL));
    mem_free(image);
    return path;
}

static int set_up(void **state) {
    (void)state;
    if (!cli_open()) return 1;
    vae = write_vae("vae.safetensors", NULL);
    photo = write_picture("photo.png", WIDTH, HEIGHT);
    large = write_picture("large.png", LARGE_WIDTH, LARGE_HEIGHT);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    cli_close();
    return 0;
}

static Image *load(void *scope, const char *path) {
    Error err = {0};
    Image *image = image_load(scope, path, &err);
    if (!image) fail_msg("%s", err.text);
    return image;
}

// Mean square of the difference, pixels being 0..1; the largest difference into *worst (may be
// NULL).
static double error_of(const Image *a, const Image *b, double *worst) {
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    double sum = 0, most = 0, n = 3.0 * a->width * a->height;
    for (int i = 0; i < 3 * a->width * a->height; i++) {
        double d = (a->rgb[i] - b->rgb[i]) / 255.0;
        sum += d * d, most = fmax(most, fabs(d));
    }
    if (worst) *worst = most;
    return sum / n;
}

static Json *vae_json(void *scope, const char *format, ...) {
    char line[2000];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    Result r = kiln(scope, "vae %s --json", line);
    WANT_STATUS(r, 0);
    return json_of(r.out);
}

// ---- round trips and halves ---------------------------------------------------------------------

static void test_round_trip(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *back = at("back.png");
    Json *r = vae_json(scope, "--vae %s -i %s -o %s", vae, photo, back);
    const Image *before = load(scope, photo), *after = load(scope, back);
    double mse = error_of(before, after, NULL);
    assert_true(mse > 0 && fabs(number(r, NULL, "mse") - mse) < 1e-12);
    assert_true(fabs(number(r, NULL, "psnr") + 10 * log10(mse)) < 1e-9);
    assert_int_equal(number(r, NULL, "width"), WIDTH); // not the latents' multiple of 8
    assert_int_equal(number(r, NULL, "height"), HEIGHT);
    assert_int_equal(number(r, NULL, "channels"), 16);
    assert_int_equal(number(r, NULL, "tiles"), 1);
    assert_string_equal(json_string(json_get(r, "architecture"), ""), "AutoencoderKL");
    double planned = number(r, "memory", "planned_bytes"), peak = number(r, "memory", "peak_bytes");
    assert_true(peak <= planned && peak >= 0.9 * planned);
    double halves = number(r, NULL, "encode_seconds") + number(r, NULL, "decode_seconds");
    assert_true(number(r, NULL, "seconds") >= halves * 0.999 && halves > 0);
    json_free(r);
    uint64_t first = pixels(back);
    Result text = kiln(scope, "vae --vae %s -i %s -o %s", vae, photo, back);
    WANT_STATUS(text, 0);
    assert_true(pixels(back) == first); // the same bits again
    char figure[32];
    snprintf(figure, sizeof figure, "mse %.6f, PSNR", mse);
    WANT_TEXT(text.out, figure);
    text = kiln(scope, "vae --vae %s -i %s -o %s -q", vae, photo, back);
    assert_string_equal(text.out, "");
    mem_free(scope);
}

static void test_halves(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    Error err = {0};
    char *latents = at("latents.npy"), *one = at("one.png"), *two = at("two.png");
    json_free(vae_json(scope, "--vae %s -i %s -o %s --encode %s", vae, large, one, latents));
    const int64_t shape[] = {1, 16, LARGE_HEIGHT / 8, LARGE_WIDTH / 8};
    const float *z = npy_read_f32(scope, latents, COUNT_OF(shape), shape, NULL, &err);
    if (!z) fail_msg("%s", err.text);
    Json *r = vae_json(scope, "--vae %s --decode %s -o %s", vae, latents, two);
    assert_null(json_get(r, "mse")); // nothing to compare with
    assert_int_equal(number(r, NULL, "width"), LARGE_WIDTH);
    json_free(r);
    assert_true(pixels(one) == pixels(two));
    // Halves in files of their own; what the other one is asked for is refused.
    char *decoder = write_vae("decoder.safetensors", "decoder.");
    char *encoder = write_vae("encoder.safetensors", "encoder.");
    json_free(vae_json(scope, "--vae %s --decode %s -o %s", decoder, latents, two));
    assert_true(pixels(one) == pixels(two));
    char *again = at("again.npy");
    json_free(vae_json(scope, "--vae %s -i %s --encode %s", encoder, large, again));
    const float *same = npy_read_f32(scope, again, COUNT_OF(shape), shape, NULL, &err);
    assert_memory_equal(same, z, sizeof *z * 16 * (LARGE_HEIGHT / 8) * (LARGE_WIDTH / 8));
    char *none = at("none.png");
    const char *const lines[] = {
        mem_printf(scope, "--vae %s -i %s -o %s", decoder, large, none),
        mem_printf(scope, "--vae %s --decode %s -o %s", encoder, latents, none)};
    for (size_t i = 0; i < COUNT_OF(lines); i++) {
        Result failed = kiln(scope, "vae %s", lines[i]);
        WANT_STATUS(failed, 1);
        want_one_line(&failed);
        WANT_TEXT(failed.err, i ? "can decode" : "can encode");
        assert_false(exists(none));
    }
    mem_free(scope);
}

// ---- tiles and memory ---------------------------------------------------------------------------

static void test_tiles(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *off = at("off.png"), *on = at("on.png"), *automatic = at("auto.png");
    Json *whole = vae_json(scope, "--vae %s -i %s -o %s --vae-tiling off", vae, large, off);
    Json *tiled =
        vae_json(scope, "--vae %s -i %s -o %s --vae-tiling on --tile 100", vae, large, on);
    assert_int_equal(number(whole, NULL, "tiles"), 1);
    assert_true(number(tiled, NULL, "tiles") >= 6);
    assert_int_equal(number(tiled, NULL, "tile_width"), 96); // whole latents
    assert_true(pixels(on) != pixels(off)); // how near they are says a photograph, below
    // auto is off where it fits, and tiles in less memory; off is refused there.
    json_free(vae_json(scope, "--vae %s -i %s -o %s", vae, large, automatic));
    assert_true(pixels(automatic) == pixels(off));
    uint64_t budget = (uint64_t)(number(whole, "memory", "planned_bytes") * 0.6);
    Json *less = vae_json(scope, "--vae %s -i %s -o %s --vram %llu", vae, large, automatic,
                          (unsigned long long)budget);
    assert_true(number(less, NULL, "tiles") > 1);
    assert_true(number(less, "memory", "peak_bytes") <= (double)budget);
    json_free(whole), json_free(tiled), json_free(less);
    char *none = at("none.png");
    Result r = kiln(scope, "vae --vae %s -i %s -o %s --vae-tiling off --vram %llu", vae, large,
                    none, (unsigned long long)budget);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    WANT_TEXT(r.err, "--vram");
    r = kiln(scope, "vae --vae %s -i %s -o %s --vram 100K", vae, large, none);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    assert_false(exists(none));
    mem_free(scope);
}

// ---- errors -------------------------------------------------------------------------------------

static void test_usage(void **state) {
    (void)state;
    static const struct { const char *line, *wanted; } bad[] = {
        {"vae", "--vae PATH"},
        {"vae --vae x", "-i PICTURE"},
        {"vae --vae x -i a.png", "-o PICTURE"},
        {"vae --vae x -i a.png -o b.bmp", ".png, .jpg or .jpeg"},
        {"vae --vae x -i a.png --decode z.npy -o b.png", "both"},
        {"vae --vae x --decode z.npy --encode y.npy", "both"},
        {"vae --vae x --decode z.npy", "-o PICTURE"},
        {"vae --vae x -i a.png -o b.png --tile 63", "from 64 to 8192"},
        {"vae --vae x -i a.png -o b.png --vae-tiling maybe", "auto, on or off"},
        {"vae --vae x -i a.png -o b.png --vram 0", "512M or 8G"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        void *scope = mem_new(NULL, 1);
        Result r = kiln(scope, "%s", bad[i].line);
        if (r.status != 2) print_message("kiln %s\n", bad[i].line);
        WANT_STATUS(r, 2);
        want_one_line(&r);
        WANT_TEXT(r.err, bad[i].wanted);
        mem_free(scope);
    }
}

static char *write_latents(const char *name, int channels, int rows, int columns) {
    Error err = {0};
    const int64_t shape[] = {1, channels, rows, columns};
    char *path = at(name);
    float *zeros = MEM_ARRAY(NULL, float, channels * rows * columns + 1);
    assert_true(npy_write(path, DT_F32, COUNT_OF(shape), shape, zeros, &err));
    mem_free(zeros);
    return path;
}

static void test_bad_input(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *text = scratch_write(scope, cli->dir, "text.png", "no picture", 10);
    size_t n;
    uint8_t *png = os_read_file(scope, photo, 1 << 20, &n, NULL);
    char *cut = scratch_write(scope, cli->dir, "cut.png", png, n / 2);
    char *narrow = write_latents("narrow.npy", 4, 8, 8),
         *empty = write_latents("empty.npy", 16, 0, 8);
    char *tall = write_latents("tall.npy", 16, 5000, 1), *folder = fresh("folder"),
         *none = at("none.png");
    const struct { const char *line, *wanted;
    } bad[] = {
        {mem_printf(scope, "--vae %s -i missing.png -o %s", vae, none), "missing.png"},
        {mem_printf(scope, "--vae missing.safetensors -i %s -o %s", photo, none),
         "missing.safetensors"},
        {mem_printf(scope, "--vae %s -i %s -o %s", vae, text, none), "text.png"},
        {mem_printf(scope, "--vae %s -i %s -o %s", vae, cut, none), "cut.png"},
        {mem_printf(scope, "--vae %s -i %s -o %s", photo, photo, none), "photo.png"},
        {mem_printf(scope, "--vae %s -i %s -o %s", folder, photo, none), "folder"},
        {mem_printf(scope, "--vae nano -i %s -o %s", photo, none), "nano"},
        {mem_printf(scope, "--vae %s --decode %s -o %s", vae, narrow, none), "16"},
        {mem_printf(scope, "--vae %s --decode %s -o %s", vae, empty, none), "found 0 x 8"},
        {mem_printf(scope, "--vae %s --decode %s -o %s", vae, tall, none), "found 5000 x 1"},
        {mem_printf(scope, "--vae %s --decode %s -o %s", vae, photo, none), "photo.png"},
        {mem_printf(scope, "--vae %s -i %s -o %s/no/x.png", vae, photo, folder), "no/x.png"},
        {mem_printf(scope, "--vae %s -i %s --encode %s/no/x.npy", vae, photo, folder), "no/x.npy"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        Result r = kiln(scope, "vae %s", bad[i].line);
        if (r.status != 1) print_message("kiln vae %s\n", bad[i].line);
        WANT_STATUS(r, 1);
        want_one_line(&r);
        WANT_TEXT(r.err, "expected");
        WANT_TEXT(r.err, bad[i].wanted);
        assert_false(exists(none));
    }
    assert_int_equal(entries(folder), 0);
    char *dot = write_picture("dot.png", 1, 1); // edges are repeated up to one latent
    Json *r = vae_json(scope, "--vae %s -i %s -o %s", vae, dot, at("dot2.png"));
    assert_int_equal(number(r, NULL, "width"), 1);
    json_free(r);
    mem_free(scope);
}

// ---- the real tiny autoencoder ------------------------------------------------------------------

static void test_photograph(void **state) {
    (void)state;
    enum { SIDE = 512, EDGE = 64 };
    if (os_path_kind(TAEF2) != PATH_DIR) {
        print_message("SKIP: %s is not there\n", TAEF2);
        skip();
    }
    void *scope = mem_new(NULL, 1);
    const Image *all = load(scope, TAEF2 "/reconstruction_example.jpg");
    Image *crop = image_new(scope, SIDE, SIDE, NULL);
    for (int y = 0; y < SIDE; y++)
        memcpy(crop->rgb + 3 * SIDE * y,
               all->rgb + 3 * ((size_t)(y + EDGE) * (size_t)all->width + EDGE), 3 * SIDE);
    char *in = at("crop.png"), *whole = at("whole.png"), *tiled = at("tiled.png");
    assert_true(image_save(in, crop, NULL, 0, NULL));
    Json *r = vae_json(scope, "--vae " TAEF2 " -i %s -o %s --precision f32", in, whole);
    double mse = number(r, NULL, "mse");
    json_free(r);
    char *latents = at("crop.npy"), *halves = at("halves.png"); // each half by its own file
    json_free(vae_json(scope, "--vae " TAEF2 "/taef2_encoder.pth -i %s --encode %s --precision f32", in,
                       latents));
    json_free(vae_json(scope, "--vae " TAEF2 "/taef2_decoder.pth --decode %s -o %s --precision f32", latents,
                       halves));
    assert_true(pixels(halves) == pixels(whole));
    json_free(vae_json(scope,
                       "--vae " TAEF2 " -i %s -o %s --precision f32 --vae-tiling on --tile 256", in,
                       tiled));
    double worst, seam = error_of(load(scope, whole), load(scope, tiled), &worst);
    print_message("    round trip: mse %.6f; tiles of 256: mean square %.2e, worst %.3f\n", mse,
                  seam, worst);
    assert_true(mse > 0.0005 && mse < 0.0009);
    assert_true(seam < 1e-3 && worst < 0.25);
    mem_free(scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_halves),
        cmocka_unit_test(test_tiles),      cmocka_unit_test(test_usage),
        cmocka_unit_test(test_bad_input),  cmocka_unit_test(test_photograph),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
