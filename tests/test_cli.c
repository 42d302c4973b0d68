// test_cli.c: the `kiln` command as scripts see it: exit statuses, usage errors, JSON, files
// that are written whole or not at all, interrupts. Runs the program named by KILN
// (build/kiln by default).
#include "tests/cli.h"

#include "engine/npy.h"

enum { SIDE = 16, CLASSES = 3, PER_CLASS = 6 };
static const char *const class_names[CLASSES] = {"blue", "green", "red"};

typedef struct World { char *data, *model; } World;
static World *world;

// ---- set-up: pictures of three colours, and a tiny model trained on them ----------------------

static void make_pictures(void) {
    for (int c = 0; c < CLASSES; c++) {
        char *folder = mem_printf(world, "%s/%s", world->data, class_names[c]);
        assert_true(os_make_dirs(folder, NULL));
        for (int k = 0; k < PER_CLASS; k++) {
            Image *image = image_new(NULL, SIDE, SIDE, NULL);
            for (int i = 0; i < SIDE * SIDE; i++) {
                image->rgb[3 * i + 2 - c] = 200;
                image->rgb[3 * i + c % 2] |= (uint8_t)(i * (k + 1) % 50);
            }
            char *path = mem_printf(image, "%s/%d.png", folder, k);
            assert_true(image_save(path, image, NULL, 0, NULL));
            mem_free(image);
        }
    }
}

#define TINY "--patch 4 --dim 32 --depth 1 --heads 2 --size 16 --batch 4 --device cpu --seed 3"

static int set_up(void **state) {
    (void)state;
    if (!cli_open()) return 1;
    world = MEM_NEW(cli, World);
    world->data = at("data");
    world->model = at("model");
    make_pictures();
    void *scope = mem_new(NULL, 1);
    Result r = kiln(scope, "train nano --data %s --out %s --limit-steps 2 " TINY, world->data,
                    world->model);
    WANT_STATUS(r, 0);
    mem_free(scope);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    cli_close();
    return 0;
}

// ---- the command line -------------------------------------------------------------------------

static void test_top_level(void **state) {
    void *scope = mem_new(NULL, 1);
    (void)state;
    Result r = kiln(scope, "");
    WANT_STATUS(r, 2);
    want_one_line(&r);
    WANT_STATUS(kiln(scope, "help"), 0);
    WANT_STATUS(kiln(scope, "--help"), 0);
    WANT_STATUS(kiln(scope, "--version"), 0);
    r = kiln(scope, "generat");
    WANT_STATUS(r, 2);
    WANT_TEXT(r.err, "generate");
    WANT_STATUS(kiln(scope, "help nothing"), 2);
    WANT_STATUS(kiln(scope, "generate"), 2);
    WANT_STATUS(kiln(scope, "train"), 2);
    WANT_STATUS(kiln(scope, "dataset"), 2);
    WANT_STATUS(kiln(scope, "inspect"), 2);
    mem_free(scope);
}

static const struct { const char *line, *wanted; } usage_errors[] = {
    {"generate -m nano -W abc", "from 8 to 16384, found \"abc\""},
    {"generate -m nano -W 0", "from 8 to 16384, found \"0\""},
    {"generate -m nano -W 1000000", "from 8 to 16384, found \"1000000\""},
    {"generate -m nano -W 99999999999999999999", "from 8 to 16384"},
    {"generate -m nano -H -32", "from 8 to 16384, found \"-32\""},
    {"generate -m nano -W 32x", "found \"32x\""},
    {"generate -m nano -W ''", "found \"\""},
    {"generate -m nano -W +32", "found \"+32\""},
    {"generate -m nano -W 0x20", "found \"0x20\""},
    {"generate -m nano --steps 1e9", "from 1 to 10000, found \"1e9\""},
    {"generate -m nano --steps 0", "from 1 to 10000, found \"0\""},
    {"generate -m nano --steps 2.5", "found \"2.5\""},
    {"generate -m nano --cfg-scale nan", "from 0 to 100, found \"nan\""},
    {"generate -m nano --cfg-scale inf", "from 0 to 100"},
    {"generate -m nano --cfg-scale -1", "from 0 to 100"},
    {"generate -m nano --cfg-scale 101", "from 0 to 100"},
    {"generate -m nano --cfg-scale 0x1p3", "from 0 to 100"},
    {"generate -m nano --cfg-scale 3,5", "from 0 to 100"},
    {"generate -m nano --cfg-scale 1e400", "from 0 to 100"},
    {"generate -m nano --seed -1", "from 0 to 18446744073709551615, found \"-1\""},
    {"generate -m nano --seed 18446744073709551616", "from 0 to 18446744073709551615"},
    {"generate -m nano --seed random", "from 0 to 18446744073709551615"},
    {"generate -m nano -b 0", "from 1 to 10000"},
    {"generate -m nano -b 10001", "from 1 to 10000"},
    {"generate -m nano -t 0", "from 1 to 1024"},
    {"generate -m nano --vram 0", "512M or 8G"},
    {"generate -m nano --vram lots", "512M or 8G"},
    {"generate -m nano --vram 8X", "512M or 8G"},
    {"generate -m nano --vram 8GG", "512M or 8G"},
    {"generate -m nano --vram -8G", "512M or 8G"},
    {"generate -m nano --vram 1e30", "512M or 8G"},
    {"generate -m nano --device gpu", "auto, ref, cpu, vulkan[:N] or cuda[:N]"},
    {"generate -m nano --device vulkan:x", "vulkan[:N]"},
    {"generate -m nano --device vulkan:", "vulkan[:N]"},
    {"generate -m nano --sampler heun9", "euler"},
    {"generate -m nano --sampling-method nothing", "euler"},
    {"generate -m nano --rng mt", "torch or cuda"},
    {"generate -m nano --precision f64", "auto or f32"},
    {"generate -m nano --stpes 4", "did you mean --steps?"},
    {"generate -m nano --nothing-like-it", "unknown option --nothing-like-it"},
    {"generate -m nano -Z", "unknown option -Z"},
    {"generate -m nano --json=yes", "expected no value"},
    {"generate -m nano extra", "found \"extra\""},
    {"generate -m", "-m: expected PATH after it, found nothing"},
    {"generate -m nano --steps", "after it, found nothing"},
    {"generate -m nano --output --json", "found the option --json"},
    {"generate -m nano -o picture.bmp", ".png, .jpg or .jpeg"},
    {"generate -m nano -o picture", ".png, .jpg or .jpeg"},
    {"conform --op nothing", "gemm"},
    {"conform --device cpu --seed -1", "from 0 to 18446744073709551615"},
    {"conform --precision f32 --type bf16", "--type"},
    {"bench --op nothing", "gemm"},
    {"bench -W 64", "--model"},
    {"bench --op gemm -H 64", "--model"},
    {"bench --op gemm --precision f32 --type f16", "--type f32"},
    {"train nano", "--data"},
    {"train nano --data x", "--out"},
    {"train flux --data x --out y", "nano"},
    {"train nano --data x --out y --batch 0", "from 1 to 4096"},
    {"train nano --data x --out y --lr 0", "from 1e-08 to 1"},
    {"train nano --data x --out y --lr nan", "from 1e-08 to 1"},
    {"train nano --data x --out y --precision f64", "f32, fp16 or bf16"},
    {"train nano --data x --out y --dim 50", "multiple of 8"},
    {"train nano --data x --out y --patch 5", "divisor of --size"},
    {"train nano --data x --out y --epochs 1000001", "from 1 to 1000000"},
    {"dataset burn x", "import, info or preview"},
    {"dataset import x", "SRC and DST"},
    {"dataset info x --gzip", "--gzip with import only"},
    {"dataset preview x", "-o FILE"},
    {"dataset import x y --shard-size 1", "from 64K"},
    {"inspect nano -b 4", "--plan"},
    {"devices --device nothing", "vulkan[:N]"},
    {"help --man train", "no subcommand"},
};

static void test_usage_errors(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(usage_errors); i++) {
        void *scope = mem_new(NULL, 1);
        Result r = kiln(scope, "%s", usage_errors[i].line);
        if (r.status != 2) print_message("kiln %s\n", usage_errors[i].line);
        WANT_STATUS(r, 2);
        assert_string_equal(r.out, "");
        want_one_line(&r);
        WANT_TEXT(r.err, usage_errors[i].wanted);
        mem_free(scope);
    }
}

// Known spellings of later versions are refused, never ignored; with their values or without.
static void test_later_is_refused(void **state) {
    (void)state;
    static const char *const lines[] = {
        "generate --clip-g x", "generate --llm x", "generate -m nano --lora x",
        "generate -m nano --mask x.png", "generate -m nano --clip-skip 2", "serve", "serve --port 80",
    };
    for (size_t i = 0; i < COUNT_OF(lines); i++) {
        void *scope = mem_new(NULL, 1);
        Result r = kiln(scope, "%s", lines[i]);
        if (r.status != 2) print_message("kiln %s\n", lines[i]);
        WANT_STATUS(r, 2);
        want_one_line(&r);
        WANT_TEXT(r.err, "not available in this version");
        mem_free(scope);
    }
}

// Options of text models say nothing to nano, and the other way round: refused, never ignored.
static void test_options_of_other_models(void **state) {
    (void)state;
    static const char *const lines[] = {
        "generate -m nano -p cat", "generate -m nano --prompt cat", "generate -m nano -n dog",
        "generate -m nano --raw-prompt", "generate -m nano --prompt-weights",
        "generate -m nano --t5-tokens 64",
        "generate -m nano --init-img x.png", "generate -m nano --guidance 3.5",
        "generate -m nano --cfg-interval 0:1", "generate -m nano --cfg-schedule constant",
        "generate -m nano --threshold 0.9", "generate -m nano --shift 3",
        "generate -m nano --type q8_0", "generate -m nano --vae-tiling on",
        "generate -m nano --strength 0.5", "generate -m nano --dummy",
        "generate --dummy --class cat", "generate --dummy=sdxl", "generate --dummy --dummy-scale 2",
        "generate -m nano --dummy-scale 1/16", "inspect nano --type f16", "inspect --dummy=sdxl",
        "inspect nano --dummy", "generate --dummy --type q9_9", "generate --dummy --cfg-interval 1:0",
    };
    for (size_t i = 0; i < COUNT_OF(lines); i++) {
        void *scope = mem_new(NULL, 1);
        Result r = kiln(scope, "%s", lines[i]);
        if (r.status != 2) print_message("kiln %s\n", lines[i]);
        WANT_STATUS(r, 2);
        want_one_line(&r);
        WANT_TEXT(r.err, "expected");
        mem_free(scope);
    }
}

// A copy in which runs of white space are one blank.
static char *one_line(char *text) {
    char *copy = mem_strdup(text, text), *to = copy;
    for (const char *c = text; *c; c++) {
        bool blank = *c == ' ' || *c == '\n';
        if (!blank) *to++ = *c;
        else if (to > copy && to[-1] != ' ') *to++ = ' ';
    }
    *to = 0;
    return copy;
}

static void test_help(void **state) {
    (void)state;
    static const char *const subcommands[] = {"generate", "train", "dataset", "vae", "inspect",
                                              "convert",
                                              "devices", "conform", "bench", "serve", "help"};
    void *scope = mem_new(NULL, 1);
    char *all = kiln(scope, "help").out, *man = kiln(scope, "help --man").out;
    WANT_TEXT(man, ".TH KILN 1");
    for (size_t i = 0; i < COUNT_OF(subcommands); i++) {
        Result r = kiln(scope, "help %s", subcommands[i]);
        Result same = kiln(scope, "%s --help", subcommands[i]);
        WANT_STATUS(r, 0);
        assert_string_equal(r.err, "");
        WANT_TEXT(r.out, subcommands[i]);
        assert_string_equal(r.out, same.out);
        WANT_TEXT(all, subcommands[i]);
        WANT_TEXT(man, subcommands[i]);
    }
    // Ranges and defaults come from the table that parses; lines are folded.
    Result r = kiln(scope, "help generate");
    char *flat = one_line(r.out);
    WANT_TEXT(flat, "from 1 to 10000. Default: the model's");
    WANT_TEXT(flat, "--lora");
    for (char *l = strtok(r.out, "\n"); l; l = strtok(NULL, "\n")) assert_true(strlen(l) <= 80);
    WANT_TEXT(man, "from 1 to 10000. Default: the model's");
    mem_free(scope);
}

// ---- generate ---------------------------------------------------------------------------------

static void test_generate_json(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *png = at("one.png");
    Result r = kiln(scope,
                    "generate -m %s --class red -s 18446744073709551615 --steps 3 -o %s --json",
                    world->model, png);
    WANT_STATUS(r, 0);
    assert_null(strchr(r.err, '\r')); // no progress line in a pipe
    Json *json = json_of(r.out);
    assert_string_equal(json_string(json_first(json_get(json, "images")), ""), png);
    assert_int_equal(json_count(json_get(json, "images")), 1);
    assert_string_equal(json_string(json_get(json, "architecture"), ""), "nano");
    assert_string_equal(json_string(json_get(json, "model"), ""), world->model);
    assert_string_equal(json_string(json_get(json, "device"), ""), "cpu");
    WANT_TEXT(r.out, "\"seed\":18446744073709551615");
    assert_int_equal(number(json, NULL, "width"), SIDE);
    assert_int_equal(number(json, NULL, "height"), SIDE);
    assert_int_equal(number(json, NULL, "steps"), 3);
    double planned = number(json, "memory", "planned_bytes");
    double peak = number(json, "memory", "peak_bytes");
    assert_true(peak <= planned && peak >= 0.9 * planned);
    double arena = number(json, "memory", "arena_bytes");
    assert_true(number(json, "memory", "weights_bytes") + arena <= planned);
    assert_true(number(json, "memory", "driver_bytes") >= 0);
    static const char *const parts[] = {"load", "text", "denoise", "decode", "total"};
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += number(json, "seconds", parts[i]);
    assert_true(number(json, "seconds", "total") >= sum * 0.999);
    json_free(json);

    size_t n;
    uint8_t *bytes = os_read_file(scope, png, 1 << 20, &n, NULL);
    char *version = kiln(scope, "--version").out; // "kiln 0.1.0\n"
    version[strcspn(version, "\n")] = 0;
    char *wanted = mem_printf(scope, "red\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: "
                              "18446744073709551615, Size: 16x16, Model: model, RNG: CPU, "
                              "Version: Kiln %s", version + 5);
    assert_string_equal(image_png_text(scope, bytes, n, "parameters"), wanted);
    mem_free(scope);
}

static void test_seeds(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *dir = fresh("seeds");
    const char *m = world->model;
    WANT_STATUS(kiln(scope, "generate -m %s --class red -s 7 --steps 2 -o %s/a.png -q", m, dir), 0);
    WANT_STATUS(kiln(scope, "generate -m %s --class red -s 7 --steps 2 -o %s/b.png -q", m, dir), 0);
    WANT_STATUS(kiln(scope, "generate -m %s --class red -s 5 -b 4 --steps 2 -o %s/c%%02d.png -q", m,
                     dir), 0);
    WANT_STATUS(kiln(scope, "generate -m %s --class red -s 7 --steps 2 --rng cuda -o %s/d.png -q",
                     m, dir), 0);
    WANT_STATUS(kiln(scope, "generate -m %s --class blue -s 7 --steps 2 -o %s/e.png -q", m, dir),
                0);
    uint64_t a = pixels(mem_printf(scope, "%s/a.png", dir));
    assert_true(a == pixels(mem_printf(scope, "%s/b.png", dir)));
    assert_true(a == pixels(mem_printf(scope, "%s/c02.png", dir))); // picture k uses seed + k
    assert_true(a != pixels(mem_printf(scope, "%s/c03.png", dir)));
    assert_true(a != pixels(mem_printf(scope, "%s/d.png", dir)));
    Result r = kiln(scope, "generate -m %s --class red --steps 1 -o %s/f.png --json", m, dir);
    Result s = kiln(scope, "generate -m %s --class red --steps 1 -o %s/f.png --json", m, dir);
    Json *first = json_of(r.out), *second = json_of(s.out);
    assert_true(number(first, NULL, "seed") != number(second, NULL, "seed")); // random, and printed
    json_free(first), json_free(second);
    WANT_TEXT(r.err, "seed ");
    mem_free(scope);
}

static void test_names_and_grid(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *dir = fresh("names");
    Result r = kiln(scope,
                    "generate -m %s --class red --class 0 -b 2 -s 1 --steps 1 -o %s/x.png --json",
                    world->model, dir);
    WANT_STATUS(r, 0);
    Json *json = json_of(r.out);
    int count = 0;
    for (const Json *p = json_first(json_get(json, "images")); p; p = json_next(p)) {
        assert_string_equal(json_string(p, ""), mem_printf(scope, "%s/x-%d.png", dir, count++));
        assert_true(exists(json_string(p, "")));
    }
    assert_int_equal(count, 4);
    json_free(json);
    WANT_STATUS(kiln(scope, "generate -m %s --grid -s 1 --steps 1 -o %s/sheet.jpg -q", world->model,
                     dir), 0);
    Image *sheet = image_load(scope, mem_printf(scope, "%s/sheet.jpg", dir), NULL);
    assert_non_null(sheet); // 8 in a row, one row per class
    assert_true(sheet->width > 8 * SIDE && sheet->width < 9 * SIDE + 20);
    assert_true(sheet->height > CLASSES * SIDE && sheet->height < (CLASSES + 1) * SIDE);
    WANT_STATUS(kiln(scope,
                     "generate -m %s --class red -s 1 --steps 3 -o %s/y.png --preview %s/p.png -q",
                     world->model, dir, dir), 0);
    assert_true(pixels(mem_printf(scope, "%s/p.png", dir)) ==
                pixels(mem_printf(scope, "%s/y.png", dir)));
    assert_int_equal(entries(dir), 7);
    char *line = mem_printf(scope, "generate -m %s --class red -s 1 --steps 5 -o %s/y.png "
                                    "--preview %s/p.png -q", world->model, dir, dir);
    assert_int_equal(times_written(dir, "p.png", line), 5);
    line = mem_printf(scope, "%s --preview-every 2", line); // and the last
    assert_int_equal(times_written(dir, "p.png", line), 3);
    mem_free(scope);
}

static void test_dump_and_noise(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *dir = fresh("dump");
    const char *m = world->model;
    WANT_STATUS(kiln(scope,
                     "generate -m %s --class red -b 2 -s 9 --steps 3 -o %s/a%%d.png --dump %s/d -q",
                         m,
                     dir, dir), 0);
    const int64_t shape[] = {2, 3, SIDE, SIDE};
    float *v[4];
    static const char *const names[] = {"noise", "latent.2", "latent.final", "image"};
    for (int i = 0; i < 4; i++) {
        Error err = {0};
        v[i] = npy_read_f32(scope, mem_printf(scope, "%s/d/%s.npy", dir, names[i]), 4, shape, NULL,
                            &err);
        if (!v[i]) print_message("%s\n", err.text);
        assert_non_null(v[i]);
    }
    size_t n = 2 * 3 * SIDE * SIDE;
    assert_memory_equal(v[1], v[2], n * sizeof(float));
    Image *image = image_load(scope, mem_printf(scope, "%s/a1.png", dir), NULL);
    Image *again = image_from_floats(scope, v[3] + n / 2, SIDE, SIDE, NULL);
    assert_memory_equal(image->rgb, again->rgb, 3 * SIDE * SIDE);
    float *sigmas = npy_read_f32(scope, mem_printf(scope, "%s/d/sigmas.npy", dir), 1,
                                 (const int64_t[]){4}, NULL, NULL);
    assert_non_null(sigmas);
    assert_true(sigmas[0] == 1 && sigmas[3] == 0);

    WANT_STATUS(kiln(scope,
                     "generate -m %s --class red -b 2 --steps 3 -o %s/b%%d.png --noise "
                     "%s/d/noise.npy -q",
                     m, dir, dir), 0);
    assert_true(pixels(mem_printf(scope, "%s/a1.png", dir)) ==
                pixels(mem_printf(scope, "%s/b1.png", dir)));
    Result r = kiln(scope,
                    "generate -m %s --class red -b 3 --steps 3 -o %s/c.png --noise %s/d/noise.npy",
                        m,
                    dir, dir);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    WANT_TEXT(r.err, "[3, 3, 16, 16]");
    r = kiln(scope, "generate -m %s --class red --noise %s/a0.png -o %s/c.png", m, dir, dir);
    WANT_STATUS(r, 1);
    assert_false(exists(mem_printf(scope, "%s/c.png", dir)));
    mem_free(scope);
}

static void test_bad_requests(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *dir = fresh("bad"), *model = mem_printf(scope, "%s/model.safetensors", world->model);
    const char *m = world->model;
    Result r = kiln(scope, "generate -m %s --class rad -o %s/x.png", m, dir);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    for (int i = 0; i < CLASSES; i++) WANT_TEXT(r.err, class_names[i]);
    r = kiln(scope, "generate -m %s --class red -W 32 -o %s/x.png", m, dir);
    WANT_STATUS(r, 1);
    WANT_TEXT(r.err, "16 x 16");
    r = kiln(scope, "generate -m %s/nowhere -o %s/x.png", dir, dir);
    WANT_STATUS(r, 1);
    r = kiln(scope, "generate -m %s -o %s/x.png", dir, dir);
    WANT_STATUS(r, 1);
    WANT_TEXT(r.err, "model.safetensors");
    r = kiln(scope, "generate -m no-such-name -o %s/x.png", dir);
    WANT_STATUS(r, 1);
    WANT_TEXT(r.err, "KILN_MODELS");
    // A file cut short, one that is no weight file, and a training checkpoint.
    size_t n;
    uint8_t *bytes = os_read_file(scope, model, 1 << 26, &n, NULL);
    char *other = fresh("damaged"), *cut = mem_printf(scope, "%s/cut.safetensors", other);
    assert_true(os_write_file(cut, bytes, n - 100, NULL));
    r = kiln(scope, "generate -m %s -o %s/x.png", cut, dir);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    WANT_TEXT(r.err, "cut.safetensors");
    WANT_STATUS(kiln(scope, "generate -m %s/stderr -o %s/x.png", cli->dir, dir), 1);
    r = kiln(scope, "generate -m %s/checkpoint-2.safetensors -o %s/x.png", m, dir);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    // A sheet that no picture file could hold is refused before it is computed.
    r = kiln(scope, "generate -m %s --grid -b 3000 --steps 10000 -o %s/x.png", m, dir);
    WANT_STATUS(r, 1);
    WANT_TEXT(r.err, "--grid");
    // Devices and memory.
    r = kiln(scope, "generate -m %s --device vulkan:99 -o %s/x.png", m, dir);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    WANT_STATUS(kiln(scope, "generate -m %s --device cuda:3 -o %s/x.png", m, dir), 1);
    r = kiln(scope, "generate -m %s --vram 20K -o %s/x.png", m, dir);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    WANT_TEXT(r.err, "at least");
    r = run_with(scope, &(Spawn){.env = {"KILN_DEVICE=abacus"}}, "inspect nano --plan");
    WANT_STATUS(r, 1);
    WANT_TEXT(r.err, "KILN_DEVICE");
    assert_int_equal(entries(dir), 0); // nothing half-written
    mem_free(scope);
}

static void test_model_lookup(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *env = mem_printf(scope, "KILN_MODELS=%s", cli->dir), *out = at("lookup.png");
    Spawn s = {.env = {env}};
    WANT_STATUS(run_with(scope, &s, mem_printf(scope,
                                               "generate -m model --class red --steps 1 -q -o %s",
                                                   out)), 0);
    WANT_STATUS(run_with(scope, &s, "inspect model"), 0);
    WANT_STATUS(run_with(scope, &s, mem_printf(scope, "inspect %s/model.safetensors",
                                               world->model)), 0);
    mem_free(scope);
}

// ---- outputs that fail ------------------------------------------------------------------------

static void test_outputs_fail(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *dir = fresh("fail");
    const char *m = world->model;
    char *line = mem_printf(scope, "generate -m %s --class red --steps 1 -s 1 -o %s/x.png", m, dir);
    // A disk that is full: by a limit on the size of files, and by a device.
    Result r = run_with(scope, &(Spawn){.file_limit = 256}, line);
    WANT_STATUS(r, 1);
    assert_int_equal(entries(dir), 0);
    assert_int_equal(symlink("/dev/full", mem_printf(scope, "%s/full.png", dir)), 0);
    r = kiln(scope, "generate -m %s --class red --steps 1 -o %s/full.png", m, dir);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    // No folder, a file in its place, a folder in the file's place.
    WANT_STATUS(kiln(scope, "generate -m %s --class red -o %s/no/x.png", m, dir), 1);
    WANT_STATUS(kiln(scope, "generate -m %s --class red -o %s/model.safetensors/x.png", m, m), 1);
    assert_true(os_make_dirs(mem_printf(scope, "%s/dir.png", dir), NULL));
    WANT_STATUS(kiln(scope, "generate -m %s --class red -o %s/dir.png", m, dir), 1);
    if (geteuid() != 0) { // root may write anywhere
        assert_int_equal(chmod(dir, 0500), 0);
        WANT_STATUS(run_with(scope, &(Spawn){0}, line), 1);
        assert_int_equal(chmod(dir, 0700), 0);
    }
    // An old picture stays as it was.
    WANT_STATUS(run_with(scope, &(Spawn){0}, line), 0);
    uint64_t before = pixels(mem_printf(scope, "%s/x.png", dir));
    line = mem_printf(scope, "generate -m %s --class red --steps 1 -s 2 -o %s/x.png", m, dir);
    WANT_STATUS(run_with(scope, &(Spawn){.file_limit = 256}, line), 1);
    assert_true(before == pixels(mem_printf(scope, "%s/x.png", dir)));
    // Standard output that is full or closed.
    WANT_STATUS(run_with(scope, &(Spawn){.stdout_to = "/dev/full"}, "help train"), 1);
    WANT_STATUS(run_with(scope, &(Spawn){.stdout_to = "/dev/full"}, "devices --json --device cpu"),
                1);
    WANT_STATUS(run_with(scope, &(Spawn){.close_stdout = true}, "help train"), 1);
    mem_free(scope);
}

// ---- interrupts -------------------------------------------------------------------------------

static void test_interrupt(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *dir = fresh("interrupt"), *preview = mem_printf(scope, "%s/p.png", dir);
    char *line = mem_printf(scope, "generate -m %s -b 20 --steps 10000 -o %s/x%%d.png --preview %s",
                            world->model, dir, preview);
    assert_int_equal(interrupted(scope, line, preview, 0, SIGINT), 130);
    assert_int_equal(entries(dir), 1); // the preview alone, and whole
    pixels(preview);
    unlink(preview);
    assert_int_equal(interrupted(scope, line, preview, 0, SIGTERM), 130);
    assert_int_equal(entries(dir), 1);

    // Conformance stops between cases, and tells how far it came.
    char *totals = at("stdout");
    assert_int_equal(interrupted(scope, "conform --device ref -v", totals, 0, SIGINT), 130);
    WANT_TEXT(slurp(scope, totals), " passed, ");

    // Training writes a checkpoint, and goes on from it.
    char *run = at("run"), *log = mem_printf(scope, "%s/log.jsonl", run);
    line = mem_printf(scope, "train nano --data %s --out %s --epochs 100000 --no-samples " TINY,
                      world->data, run);
    assert_int_equal(interrupted(scope, line, log, 500, SIGINT), 130);
    assert_true(exists(mem_printf(scope, "%s/model.safetensors", run)));
    Result r = run_with(scope, &(Spawn){0}, line);
    WANT_STATUS(r, 1);
    WANT_TEXT(r.err, "--resume");
    size_t before = file_size(log);
    line = mem_printf(scope, "%s --resume", line);
    assert_int_equal(interrupted(scope, line, log, before + 200, SIGTERM), 130);
    // Every line of the log is whole, and steps count up by one.
    char *text = slurp(scope, log);
    int64_t last = 0;
    for (char *at_line = strtok(text, "\n"); at_line; at_line = strtok(NULL, "\n")) {
        Json *json = json_of(at_line);
        int64_t step = json_int(json_get(json, "step"), -1);
        assert_true(step == last + 1);
        assert_true(json_is_number(json_get(json, "loss")) && json_is_number(json_get(json, "lr")));
        last = step;
        json_free(json);
    }
    assert_true(last > 2);
    mem_free(scope);
}

// ---- the other subcommands --------------------------------------------------------------------

static void test_train_report(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *run = at("report");
    Result r = kiln(scope, "train nano --data %s --out %s --limit-steps 3 --json " TINY,
                    world->data, run);
    WANT_STATUS(r, 0);
    Json *json = json_of(r.out);
    assert_int_equal(number(json, NULL, "step"), 3);
    assert_true(number(json, "memory", "peak_bytes") <= number(json, "memory", "planned_bytes"));
    json_free(json);
    static const char *const files[] = {"log.jsonl", "checkpoint-3.safetensors",
                                        "model.safetensors",
                                        "samples-3.png", "loss.svg"};
    for (size_t i = 0; i < COUNT_OF(files); i++)
        assert_true(exists(os_path_join(scope, run, files[i])));
    assert_int_equal(entries(run), COUNT_OF(files));
    WANT_STATUS(kiln(scope, "train nano --data %s/nowhere --out %s/x " TINY, run, run), 1);
    WANT_STATUS(kiln(scope, "train nano --data %s --out %s/log.jsonl/x " TINY, world->data, run),
                1);
    r = kiln(scope, "train nano --data %s --out %s/tight --vram 64K " TINY, world->data, run);
    WANT_STATUS(r, 1);
    WANT_TEXT(r.err, "at least");
    mem_free(scope);
}

static void test_dataset(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *dir = fresh("dataset");
    WANT_STATUS(kiln(scope, "dataset import %s %s/shards --gzip -q", world->data, dir), 0);
    const char *const paths[] = {world->data, mem_printf(scope, "%s/shards", dir)};
    for (int i = 0; i < 2; i++) {
        Result r = kiln(scope, "dataset info %s --json", paths[i]);
        WANT_STATUS(r, 0);
        Json *json = json_of(r.out);
        assert_int_equal(number(json, NULL, "count"), CLASSES * PER_CLASS);
        assert_int_equal(number(json, NULL, "damaged"), 0);
        const Json *c = json_first(json_get(json, "classes"));
        for (int k = 0; k < CLASSES; k++, c = json_next(c)) {
            assert_string_equal(json_string(json_get(c, "name"), ""), class_names[k]);
            assert_int_equal(number(c, NULL, "count"), PER_CLASS);
        }
        json_free(json);
    }
    WANT_STATUS(kiln(scope, "dataset preview %s -o %s/sheet.png -q", paths[1], dir), 0);
    pixels(mem_printf(scope, "%s/sheet.png", dir));
    WANT_STATUS(kiln(scope, "dataset import %s %s/shards", world->data, dir), 1); // not empty
    // A damaged picture: named and left out, or refused.
    char *bad = mem_printf(scope, "%s/copy/red", dir);
    assert_true(os_make_dirs(bad, NULL));
    size_t n;
    uint8_t *bytes = os_read_file(scope, mem_printf(scope, "%s/red/0.png", world->data), 1 << 20,
                                  &n, NULL);
    assert_true(os_write_file(mem_printf(scope, "%s/good.png", bad), bytes, n, NULL));
    assert_true(os_write_file(mem_printf(scope, "%s/torn.png", bad), bytes, n / 2, NULL));
    Result r = kiln(scope, "dataset info %s/copy", dir);
    WANT_STATUS(r, 0);
    WANT_TEXT(r.out, "1 damaged");
    WANT_TEXT(r.err, "torn.png");
    r = kiln(scope, "dataset import %s/copy %s/strict --strict", dir, dir);
    WANT_STATUS(r, 1);
    WANT_TEXT(r.err, "torn.png");
    assert_false(exists(mem_printf(scope, "%s/strict/000000.tar", dir)));
    mem_free(scope);
}

static void test_inspect_and_devices(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    Result r = kiln(scope, "inspect %s --json --tensors --plan -b 4", world->model);
    WANT_STATUS(r, 0);
    Json *json = json_of(r.out);
    assert_string_equal(json_string(json_get(json, "architecture"), ""), "nano");
    assert_int_equal(number(json, NULL, "tensors"), json_count(json_get(json, "tensor_list")));
    const Json *stage = json_first(json_get(json, "stages"));
    assert_true(number(json, NULL, "peak_bytes") == number(stage, NULL, "peak_bytes"));
    assert_true(number(json, NULL, "planning_ms") < 1000);
    double planned = number(json, NULL, "peak_bytes");
    json_free(json);
    // What was planned is what a run takes.
    r = kiln(scope, "generate -m %s --class red -b 4 --steps 1 --grid -o %s/plan.png --json",
             world->model,
             cli->dir);
    json = json_of(r.out);
    assert_true(number(json, "memory", "planned_bytes") == planned);
    json_free(json);
    r = kiln(scope, "inspect %s --json --plan --vram 20K", world->model);
    WANT_STATUS(r, 1);
    WANT_TEXT(r.err, "at least");
    json_free(json_of(r.out));
    WANT_STATUS(kiln(scope, "inspect %s/data", cli->dir), 1);

    r = kiln(scope, "devices --json -v --device cpu");
    WANT_STATUS(r, 0);
    json = json_of(r.out);
    const Json *d = json_first(json_get(json, "devices"));
    assert_string_equal(json_string(json_get(d, "id"), ""), "cpu");
    assert_string_equal(json_string(json_get(d, "kind"), ""), "cpu");
    assert_true(number(d, "memory", "total_bytes") > 0);
    int rows = 0;
    for (const Json *row = json_first(json_get(d, "rows")); row; row = json_next(row), rows++)
        assert_true(json_is_string(json_get(row, "row"))); // every op and type has a kernel
    assert_true(rows >= 11);
    json_free(json);
    WANT_STATUS(kiln(scope, "devices --device vulkan:99"), 1);
    WANT_STATUS(kiln(scope, "devices"), 0);
    mem_free(scope);
}

// ---- the progress line ------------------------------------------------------------------------

static void test_progress(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *line = mem_printf(scope, "generate -m %s --class red --steps 300 -o %s/t.png",
                            world->model, cli->dir);
    char *text = on_terminal(scope, NULL, line);
    WANT_TEXT(text, "sampling");
    WANT_TEXT(text, "step 300/300 (100%)");
    WANT_TEXT(text, "/step");
    WANT_TEXT(text, " left");
    WANT_TEXT(text, "iB");
    WANT_TEXT(text, "\033[1m");
    text = on_terminal(scope, "NO_COLOR=1", line);
    WANT_TEXT(text, "step 300/300");
    assert_null(strstr(text, "\033[1m"));
    text = on_terminal(scope, NULL, mem_printf(scope, "%s -q", line));
    assert_string_equal(text, "");
    Result r = kiln(scope, "%s -q", line);
    assert_string_equal(r.err, "");
    assert_string_equal(r.out, "");
    mem_free(scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_top_level),        cmocka_unit_test(test_usage_errors),
        cmocka_unit_test(test_later_is_refused),
        cmocka_unit_test(test_options_of_other_models), cmocka_unit_test(test_help),
        cmocka_unit_test(test_generate_json),    cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_names_and_grid),   cmocka_unit_test(test_dump_and_noise),
        cmocka_unit_test(test_bad_requests),     cmocka_unit_test(test_model_lookup),
        cmocka_unit_test(test_outputs_fail),     cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_train_report),     cmocka_unit_test(test_dataset),
        cmocka_unit_test(test_inspect_and_devices), cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
