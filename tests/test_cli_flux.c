// test_cli_flux.c: `kiln generate` with FLUX.1 from end to end: the pictures that diffusers makes
// of a tiny model (tests/golden/flux_tiny), on every device, from every layout of files and with
// every setting; what it writes beside them; and what it says to bad input.
#include "tests/cli.h"

#include "engine/npy.h"
#include "tests/flux_tiny.h"

typedef struct World {
    Tiny *tiny;
    Json *cases;
    char *folder, *checkpoint, *gguf;    // models
    char *distill, *base;                // a T5-Base with its projection, and without
    char *clip, *t5, *transformer, *vae; // split files
} World;
static World *world;

// The narrower T5 without the projection that makes it fit.
static void write_base(const char *path) {
    StWriter *w = st_writer(NULL);
    for (int i = 0; i < world->tiny->tensors; i++) {
        const TinyTensor *t = &world->tiny->tensor[i];
        if (!strcmp(t->part, "distill") && strncmp(t->name, "final_", 6))
            st_put(w, t->name, DT_F32, t->ndim, t->shape, tiny_values(w, t, DT_F32));
    }
    tiny_write(w, path);
}

static int set_up(void **state) {
    (void)state;
    if (!cli_open()) return 1;
    world = MEM_NEW(NULL, World);
    world->tiny = tiny_read(world);
    Error err = {0};
    world->cases = json_parse_file(FLUX_TINY "/cases.json", 0, &err);
    CHECK(world->cases);
    tiny_folder(world->tiny, world->folder = at("flux"));
    tiny_checkpoint(world->tiny, world->checkpoint = at("all.safetensors"));
    tiny_gguf(world->tiny, world->gguf = at("flux-q8_0.gguf"));
    tiny_part(world->tiny, "distill", world->distill = at("t5-base.safetensors"));
    write_base(world->base = at("base.safetensors"));
    tiny_part(world->tiny, "text_encoder", world->clip = at("clip_l.safetensors"));
    tiny_part(world->tiny, "text_encoder_2", world->t5 = at("t5xxl.safetensors"));
    tiny_original_part(world->tiny, "transformer", world->transformer = at("flux1.safetensors"));
    tiny_original_part(world->tiny, "vae", world->vae = at("ae.safetensors"));
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    json_free(world->cases);
    cli_close();
    mem_free(world);
    return 0;
}

// ---- running ------------------------------------------------------------------------------------

typedef struct Words {
    int n;
    char *v[MAX_ARGS + 1];
} Words; // words may hold blanks

static void put_words(void *scope, Words *w, const char *line) {
    char *save, *copy = mem_strdup(scope, line);
    for (char *x = strtok_r(copy, " ", &save); x; x = strtok_r(NULL, " ", &save)) {
        assert_true(w->n < MAX_ARGS);
        w->v[w->n++] = x;
    }
}

static Result run_words(void *scope, Words *w) {
    char *out = at("stdout"), *err = at("stderr");
    unlink(out), unlink(err);
    Result r = {.status = finish(start(&(Spawn){0}, w->v, out, err))};
    r.out = slurp(scope, out), r.err = slurp(scope, err);
    return r;
}

static const Json *case_of(const char *id) {
    const Json *c = json_first(json_get(world->cases, "cases"));
    while (c && strcmp(json_string(json_get(c, "id"), ""), id)) c = json_next(c);
    assert_non_null(c);
    return c;
}

// `kiln generate`, the words of `model`, the case's arguments, the words of `more`.
static Result generate(void *scope, const char *id, const char *model, const char *more) {
    Words w = {0};
    w.v[w.n++] = cli->program;
    put_words(scope, &w, "generate --precision f32");
    put_words(scope, &w, model);
    for (const Json *a = json_first(json_get(case_of(id), "arguments")); a; a = json_next(a)) {
        const char *text = json_string(a, "");
        bool golden = !strncmp(text, "golden:", 7);
        w.v[w.n++] = golden ? os_path_join(scope, FLUX_TINY, text + 7) : mem_strdup(scope, text);
    }
    put_words(scope, &w, more);
    return run_words(scope, &w);
}

// More than one level between two pictures fails.
static void want_same(const char *got, const char *want) {
    Error err = {0};
    Image *a = image_load(NULL, got, &err), *b = image_load(a, want, &err);
    CHECK(a && b);
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    for (int i = 0; i < a->width * a->height * 3; i++)
        if (abs(a->rgb[i] - b->rgb[i]) > 1)
            fail_msg("%s: expected %d at %d, found %d", want, b->rgb[i], i, a->rgb[i]);
    mem_free(a);
}

// Makes a case and compares its pictures with diffusers'.
static void want_case(const char *id, const char *model, const char *more) {
    void *scope = mem_new(NULL, 1);
    char *out = at("case%d.png");
    print_message("  %s %s\n", id, more);
    Result r = generate(scope, id, model, mem_printf(scope, "-o %s %s", out, more));
    WANT_STATUS(r, 0);
    int count = (int)number(case_of(id), NULL, "count");
    for (int k = 0; k < count; k++)
        want_same(mem_printf(scope, "%s/case%d.png", cli->dir, k),
                  count > 1 ? mem_printf(scope, FLUX_TINY "/%s-%d.png", id, k)
                            : mem_printf(scope, FLUX_TINY "/%s.png", id));
    mem_free(scope);
}

static char *model_of(const char *id) {
    if (json_bool(json_get(case_of(id), "distill"), false))
        return mem_printf(world, "-m %s --distill %s", world->folder, world->distill);
    return mem_printf(world, "-m %s", world->folder);
}

// ---- pictures -----------------------------------------------------------------------------------

static void every_case_on_the_cpu(void **state) {
    (void)state;
    for (const Json *c = json_first(json_get(world->cases, "cases")); c; c = json_next(c)) {
        const char *id = json_string(json_get(c, "id"), "");
        want_case(id, model_of(id), "--device cpu");
    }
}

static void reference_device(void **state) {
    (void)state;
    want_case("second", model_of("second"), "--device ref");
    want_case("distill", model_of("distill"), "--device ref");
}

static void vulkan_device(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    Result r = kiln(scope, "devices --json");
    WANT_STATUS(r, 0);
    bool present = strstr(r.out, "\"vulkan:0\"") != NULL;
    mem_free(scope);
    if (!present) {
        print_message("SKIP: no Vulkan device\n");
        skip();
    }
    want_case("wide", model_of("wide"), "--device vulkan");
    want_case("cfg", model_of("cfg"), "--device vulkan");
}

static void layouts_of_files(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    want_case("second", mem_printf(scope, "-m %s", world->checkpoint), "");
    want_case("second", mem_printf(scope, "-m %s --diffusion-model %s", world->folder, world->gguf),
              "");
    want_case("second",
              mem_printf(scope, "--diffusion-model %s --clip-l %s --t5xxl %s --vae %s",
                         world->transformer, world->clip, world->t5, world->vae),
              "");
    // In the smallest budget, which the refusal names: the same picture.
    char *model = mem_printf(scope, "-m %s", world->folder),
         *out = mem_printf(scope, "-o %s", at("x.png"));
    Result r = generate(scope, "second", model, mem_printf(scope, "%s --vram 1M", out));
    WANT_STATUS(r, 1);
    want_one_line(&r);
    const char *hint = strstr(r.err, "give --vram ");
    assert_non_null(hint);
    want_case("second", model,
              mem_printf(scope, "--vram %dM", atoi(hint + strlen("give --vram "))));
    mem_free(scope);
}

// ---- what is written ----------------------------------------------------------------------------

static float *dumped(void *scope, const char *name, int ndim, const int64_t *shape) {
    Error err = {0};
    float *v = npy_read_f32(scope, mem_printf(scope, "%s/dump/%s.npy", cli->dir, name), ndim, shape,
                            NULL, &err);
    CHECK(v);
    return v;
}

static char *settings(void *scope, const char *png) {
    size_t n;
    uint8_t *bytes = os_read_file(scope, png, 1 << 24, &n, NULL);
    char *text = image_png_text(scope, bytes, n, "parameters");
    assert_non_null(text);
    return text;
}

static void check_json(const char *text) {
    Json *json = json_of(text);
    assert_string_equal(json_string(json_get(json, "architecture"), ""), "flux");
    assert_string_equal(json_string(json_get(json, "model"), ""), world->folder);
    assert_string_equal(json_string(json_get(json, "device"), ""), "cpu");
    assert_int_equal(json_count(json_get(json, "images")), 1);
    assert_int_equal(number(json, NULL, "seed"), 5);
    assert_int_equal(number(json, NULL, "width"), 80);
    assert_int_equal(number(json, NULL, "height"), 48);
    assert_int_equal(number(json, NULL, "steps"), 5);
    double planned = number(json, "memory", "planned_bytes"),
           peak = number(json, "memory", "peak_bytes");
    assert_true(peak > 0 && peak <= planned);
    assert_true(number(json, "memory", "weights_bytes") > 0 &&
                number(json, "memory", "arena_bytes") > 0);
    assert_true(number(json, "memory", "driver_bytes") >= 0);
    static const char *const parts[] = {"load", "text", "denoise", "decode"};
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += number(json, "seconds", parts[i]);
    assert_true(sum > 0 && number(json, "seconds", "total") >= sum * 0.999);
    json_free(json);
}

// Image to image with everything that can be written: three steps of five are run.
static void files_beside_the_picture(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *png = at("all.png");
    Result r = generate(scope, "image", model_of("image"),
                        mem_printf(scope, "-o %s --json --dump %s --preview %s", png, at("dump"),
                                   at("preview.png")));
    WANT_STATUS(r, 0);
    check_json(r.out);
    static const int64_t latent[] = {1, 16, 6, 10}, image[] = {1, 3, 48, 80},
                         states[] = {1, 24, 32}, hidden[] = {1, 77, 24}, pooled[] = {1, 24},
                         points[] = {4};
    float *last = dumped(scope, "latent.2", 4, latent),
          *final = dumped(scope, "latent.final", 4, latent);
    assert_memory_equal(last, final, sizeof(float) * 16 * 6 * 10);
    assert_true(fabsf(last[0]) > 0);
    float *sigma = dumped(scope, "sigmas", 1, points), *x = dumped(scope, "image", 4, image);
    assert_true(sigma[0] < 1 && sigma[0] > sigma[1] && sigma[1] > sigma[2] && sigma[3] == 0);
    dumped(scope, "noise", 4, latent);
    dumped(scope, "text.t5xxl", 3, states);
    dumped(scope, "text.clip_l", 3, hidden);
    dumped(scope, "text.clip_l.pooled", 2, pooled);
    assert_int_equal(entries(at("dump")), 10); // no step that was not run
    Image *picture = image_load(scope, png, NULL),
          *again = image_from_floats(scope, x, 80, 48, NULL);
    assert_memory_equal(picture->rgb, again->rgb, 80 * 48 * 3);
    Image *preview = image_load(scope, at("preview.png"), NULL);
    assert_true(preview && preview->width == 10 && preview->height == 6);

    WANT_TEXT(
        settings(scope, png),
        "a red fox, \u00e9t\u00e9 \U0001f98a\nSteps: 5, Sampler: Euler, CFG scale: 1, Distilled "
        "CFG "
        "Scale: 3.5, Seed: 5, Size: 80x48, Model: flux, Denoising strength: 0.6, T5 tokens: 24, "
        "Precision: f32, RNG: CPU, Version: Kiln ");

    // The dumped noise gives the same picture in place of a seed, which still counts where more is
    // drawn; another shape is refused.
    char *noise = mem_printf(scope, "--noise %s/dump/noise.npy", cli->dir);
    WANT_STATUS(generate(scope, "wide", model_of("wide"),
                         mem_printf(scope, "-o %s --dump %s", png, at("dump"))),
                0);
    want_case("wide", model_of("wide"), mem_printf(scope, "%s -s 99", noise));
    assert_null(strstr(settings(scope, at("case0.png")), "Seed"));
    WANT_STATUS(
        generate(scope, "image", model_of("image"), mem_printf(scope, "-o %s %s", png, noise)), 0);
    WANT_TEXT(settings(scope, png), "Seed: 5");
    r = generate(scope, "second", model_of("second"), mem_printf(scope, "-o %s %s", png, noise));
    WANT_STATUS(r, 1);
    want_one_line(&r);
    char *line = mem_printf(scope, "generate -m %s -p x -W 16 -H 16 -s 1 --steps 5 --t5-tokens 16 -q -o %s "
                                    "--preview %s --preview-every 3", world->folder, png, at("preview.png"));
    assert_int_equal(times_written(cli->dir, "preview.png", line), 2);
    mem_free(scope);
}

// FLUX takes CLIP's text as it is: a file that has a projection too, of any width, gives the same.
static void projection_of_clip_is_not_used(void **state) {
    (void)state;
    StWriter *w = st_writer(NULL);
    const TinyTensor *norm = world->tiny->tensor;
    while (strcmp(norm->name, "text_model.final_layer_norm.weight")) norm++;
    const int64_t shape[] = {8, norm->shape[0]};
    tiny_put(world->tiny, w, "text_encoder", "", 0, 1);
    st_put(w, "text_projection.weight", DT_F32, 2, shape, MEM_ARRAY(w, float, 8 * norm->shape[0]));
    tiny_write(w, at("projected.safetensors"));
    want_case("second",
              mem_printf(world, "%s --clip-l %s", model_of("second"), at("projected.safetensors")),
              "");
}

// Without PATH both commands say which tensors are expected.
static void distilled_without_files(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    static const char *const lines[] = {"inspect %s --distill", "generate -p x -m %s --distill"};
    for (size_t i = 0; i < COUNT_OF(lines); i++) {
        Result r = kiln(scope, lines[i], world->folder);
        WANT_STATUS(r, 1);
        assert_string_equal(r.out, "");
        WANT_TEXT(r.err, "encoder.block.N.layer.*");
        WANT_TEXT(r.err, "final_projection.0.weight [");
        WANT_TEXT(r.err, "final_projection.3.weight [");
    }
    mem_free(scope);
}

// A T5-Base without projection is taken, with a warning; alone it is not.
static void distilled_without_projection(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    static const int64_t states[] = {1, 24, 32};
    Result r = generate(scope, "distill",
                        mem_printf(scope, "-m %s --distill %s", world->folder, world->base),
                        mem_printf(scope, "-o %s --dump %s", at("base.png"), at("dump")));
    WANT_STATUS(r, 0);
    WANT_TEXT(r.err, "final_projection");
    float *v = dumped(scope, "text.t5xxl", 3, states);
    for (int t = 0; t < 24; t++) {
        assert_true(v[t * 32] != 0); // 24 numbers, then zeros
        for (int i = 24; i < 32; i++) assert_true(v[t * 32 + i] == 0);
    }
    mem_free(scope);
}

static void thresholding_at_nothing_is_off(void **state) {
    (void)state;
    want_case("cfg", model_of("cfg"), "--threshold 0");
}

static void settings_in_the_picture(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *png = at("text.png"), *out = mem_printf(scope, "-o %s", png);
    WANT_STATUS(generate(scope, "ancestral", model_of("ancestral"), out), 0);
    WANT_TEXT(settings(scope, png),
              "Negative prompt: blurry: low quality\nSteps: 5, Sampler: Euler a, CFG scale: 6, ");
    WANT_TEXT(settings(scope, png),
              "Model: flux, Shift: 2.5, CFG schedule: cosine, CFG interval: 0.1-0.9, Dynamic "
              "threshold: 0.9, T5 tokens: 24, Precision: f32, RNG: CPU");
    WANT_STATUS(
        generate(scope, "second",
                 mem_printf(scope, "-m %s --diffusion-model %s --vae %s", world->folder,
                            world->gguf, world->vae),
                 mem_printf(scope, "%s --type f16 -W 592 -H 16 --vae-tiling on --steps 1", out)),
        0);
    WANT_TEXT(settings(scope, png), "Sampler: DPM++ 2M");
    WANT_TEXT(settings(scope, png),
              "Model: flux-q8_0, Module 1: ae, T5 tokens: 77, Weights: f16, Precision: f32, "
              "VAE tiling: 512x16");
    WANT_STATUS(generate(scope, "weights", model_of("weights"), mem_printf(scope, "%s --steps 1", out)), 0);
    WANT_TEXT(settings(scope, png), "Model: flux, Emphasis: No norm, T5 tokens: 24");
    // What would break the line into wrong parts is quoted, as A1111 does.
    char *odd = at("a,b.safetensors");
    assert_int_equal(symlink(world->checkpoint, odd), 0);
    WANT_STATUS(generate(scope, "second", mem_printf(scope, "-m %s --steps 1", odd), out), 0);
    WANT_TEXT(settings(scope, png), "Model: \"a,b\", ");
    // A sheet of a batch: the pictures stand side by side.
    WANT_STATUS(generate(scope, "pair", model_of("pair"), mem_printf(scope, "%s --grid", out)), 0);
    Image *sheet = image_load(scope, png, NULL),
          *first = image_load(scope, FLUX_TINY "/pair-0.png", NULL);
    assert_true(sheet && sheet->width == 2 * 48 + 6 && sheet->height == 32 + 4);
    for (int i = 0; i < 48 * 3; i++)
        assert_true(abs(sheet->rgb[(2 * 102 + 2) * 3 + i] - first->rgb[i]) <= 1);
    mem_free(scope);
}

// ---- prompts ------------------------------------------------------------------------------------

static char *text_file(const char *name, const void *bytes, size_t n) {
    Error err = {0};
    char *path = at(name);
    CHECK(os_write_file(path, bytes, n, &err));
    return path;
}

static Result prompted(void *scope, const char *prompt, const char *more) {
    return kiln(scope, "generate -m %s -p %s -W 16 -H 16 --steps 1 -s 1 --t5-tokens 16 -o %s %s",
                world->folder, prompt, at("p.png"), more);
}

static void prompts_from_files(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    static const char plain[] = "one_word", line[] = "one_word\n", windows[] = "one_word\r\n";
    WANT_STATUS(prompted(scope, plain, "-q"), 0);
    uint64_t want = pixels(at("p.png"));
    WANT_STATUS(
        prompted(scope, mem_printf(scope, "@%s", text_file("line", line, sizeof line - 1)), "-q"),
        0);
    assert_true(pixels(at("p.png")) == want);
    WANT_STATUS(prompted(scope,
                         mem_printf(scope, "@%s", text_file("dos", windows, sizeof windows - 1)),
                         "-q"),
                0);
    assert_true(pixels(at("p.png")) == want);
    Words w = {.n = 3,
               .v = {"/bin/sh", "-c",
                     mem_printf(scope,
                                "%s generate -m %s -p - -W 16 -H 16 --steps 1 -s 1 "
                                "--t5-tokens 16 -o %s -q < %s",
                                cli->program, world->folder, at("p.png"), at("line"))}};
    WANT_STATUS(run_words(scope, &w), 0);
    assert_true(pixels(at("p.png")) == want);
    WANT_STATUS(prompted(scope, "another", "-q"), 0);
    assert_true(pixels(at("p.png")) != want);

    // Brackets are text, but where weights are asked for.
    WANT_STATUS(prompted(scope, "(one_word:1.9)", "-q"), 0);
    uint64_t literal = pixels(at("p.png"));
    WANT_STATUS(prompted(scope, "(one_word:1.9)", "-q --raw-prompt"), 0);
    assert_true(pixels(at("p.png")) == literal && literal != want);
    WANT_STATUS(prompted(scope, "(one_word:1.9)", "-q --prompt-weights"), 0);
    assert_true(pixels(at("p.png")) != literal && pixels(at("p.png")) != want);
    WANT_STATUS(prompted(scope, "(one_word:1)", "-q --prompt-weights"), 0);
    assert_true(pixels(at("p.png")) == want);

    Result idle = prompted(scope, "x", "-n y");
    WANT_STATUS(idle, 0);
    WANT_TEXT(idle.err, "--negative-prompt: nothing reads it");

    size_t n = 1 << 20; // a megabyte is cut, and said so
    char *long_text = mem_new(scope, n + 1);
    for (size_t i = 0; i < n; i++) long_text[i] = i % 7 == 6 ? ' ' : (char)('a' + i * i % 26);
    Result r = prompted(scope, mem_printf(scope, "@%s", text_file("long", long_text, n)), "");
    WANT_STATUS(r, 0);
    WANT_TEXT(r.err, "cut to 77 tokens of CLIP");
    WANT_TEXT(r.err, "cut to 16 tokens of T5");

    static const char *const invalid[] = {"caf\xe9", "\xff", "a \xed\xa0\x80 b", "\xf0\x9f\xa6"};
    for (size_t i = 0; i < COUNT_OF(invalid); i++) {
        r = prompted(
            scope, mem_printf(scope, "@%s", text_file("bad", invalid[i], strlen(invalid[i]))), "");
        WANT_STATUS(r, 1);
        want_one_line(&r);
        WANT_TEXT(r.err, "UTF-8");
    }
    mem_free(scope);
}

static void start_pictures_of_other_shapes(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    const char *line = "generate -m %s -p x -s 1 --steps 2 --t5-tokens 16 --init-img " FLUX_TINY
                       "/wide.png -o %s %s";
    Result r = kiln(scope, line, world->folder, at("p.png"), "-W 16 -H 32");
    WANT_STATUS(r, 0);
    WANT_TEXT(r.err, "80 x 48 is cut to the shape of 16 x 32");
    r = kiln(scope, line, world->folder, at("p.png"), "-W 160 -H 96");
    WANT_STATUS(r, 0);
    assert_null(strstr(r.err, "cut"));
    mem_free(scope);
}

// ---- bad input ----------------------------------------------------------------------------------

static void refused(const char *line, int status, const char *wanted) {
    void *scope = mem_new(NULL, 1);
    char *out = at("never.png");
    Result r = kiln(scope, "generate -s 1 -o %s %s", out, line);
    if (r.status != status) print_message("kiln generate %s\n", line);
    WANT_STATUS(r, status);
    assert_string_equal(r.out, "");
    want_one_line(&r);
    WANT_TEXT(r.err, wanted);
    assert_false(exists(out));
    mem_free(scope);
}

static void requests_that_cannot_be(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    const char *m = mem_printf(scope, "-m %s", world->folder);
#define REFUSED(status, wanted, ...) refused(mem_printf(scope, __VA_ARGS__), status, wanted)
    REFUSED(1, "72; the nearest are 64 and 80", "%s -p x -W 72 -H 64", m);
    REFUSED(1, "8; the nearest are 16 and 32", "%s -p x -W 64 -H 8", m);
    REFUSED(1, "at most 8192", "%s -p x -W 8208 -H 64", m);
    REFUSED(2, "expected -p PROMPT", "%s -W 64", m);
    REFUSED(2, "--class", "%s -p x --class cat", m);
    REFUSED(2, "found both", "%s -p x --prompt-weights --raw-prompt", m);
    REFUSED(1, "negative prompt: expected weights of at most 10000, found 20000",
            "%s -p x -n (x:20000) --cfg-scale 2 --prompt-weights -W 64 -H 64", m);
    REFUSED(2, "--preview beside it", "%s -p x --preview-every 2", m);
    REFUSED(2, "--strength", "%s -p x --strength 0.5", m);
    REFUSED(2, "from 1 to 512", "%s -p x --t5-tokens 513", m);
    REFUSED(2, "LO:HI", "%s -p x --cfg-interval 0.5:0.5", m);
    REFUSED(2, "constant, triangle or cosine", "%s -p x --cfg-schedule ramp", m);
    REFUSED(2, "0 to 1", "%s -p x --threshold 1.5", m);
    REFUSED(1, "nowhere.txt", "%s -p @nowhere.txt -W 64 -H 64", m);
    REFUSED(1, "nowhere.png", "%s -p x --init-img nowhere.png -W 64 -H 64", m);
    REFUSED(1, "at least one step",
            "%s -p x --init-img " FLUX_TINY "/wide.png --strength 0 -W 64 -H 64", m);
    REFUSED(1, "final_projection.0.weight", "%s -p x -W 64 -H 64 --distill", m);
    REFUSED(1, "--distill", "%s --t5xxl %s -p x -W 64 -H 64", m, world->base);
    REFUSED(1, "give --vram", "--dummy --dummy-scale 1/4 -p x --vram 10M -W 256 -H 256");
    mem_free(scope);
}

static void write_marker(const char *path, const char *name) {
    static const float zero[64];
    StWriter *w = st_writer(NULL);
    st_put(w, name, DT_F32, 1, (const int64_t[]){64}, zero);
    tiny_write(w, path);
}

static void files_that_cannot_be(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    Error err = {0};
    const char *tail = "-p x -W 64 -H 64", *sdxl = at("sdxl.safetensors");
    write_marker(sdxl, "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight");
    REFUSED(1, "Stable Diffusion XL", "-m %s %s", sdxl, tail);
    REFUSED(1, "Stable Diffusion XL", "-m %s --diffusion-model %s %s", world->folder, sdxl, tail);
    REFUSED(1, "expected the autoencoder, found a CLIP text encoder", "-m %s --vae %s %s",
            world->folder, world->clip, tail);
    REFUSED(1, "--vae FILE", "--diffusion-model %s --clip-l %s --t5xxl %s %s", world->transformer,
            world->clip, world->t5, tail);
    REFUSED(1, "--t5xxl FILE", "-m %s %s", world->transformer, tail);
    REFUSED(1, "nowhere.safetensors", "-m %s --vae nowhere.safetensors %s", world->folder, tail);

    char *shard =
             os_path_join(scope, world->folder, "text_encoder_2/model-00002-of-00002.safetensors"),
         *kept = at("kept");
    size_t n;
    uint8_t *bytes = os_read_file(scope, shard, 1 << 26, &n, &err);
    CHECK(bytes && n > 100);
    CHECK(os_write_file(shard, bytes, n - 100, &err));
    REFUSED(1, "model-00002-of-00002.safetensors", "-m %s %s", world->folder, tail);
    CHECK(os_remove(shard, &err));
    REFUSED(1, "model-00002-of-00002.safetensors", "-m %s %s", world->folder, tail);
    CHECK(os_write_file(shard, bytes, n, &err));

    char *vae = os_path_join(scope, world->folder, "vae");
    assert_int_equal(rename(vae, kept), 0);
    REFUSED(1, "--vae FILE", "-m %s %s", world->folder, tail);
    assert_int_equal(rename(kept, vae), 0);
    want_case("second", model_of("second"), ""); // all is as it was
    mem_free(scope);
}

static void ends_when_interrupted(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char *out = at("slow.png"), *dump = fresh("slow");
    char *line =
        mem_printf(scope, "generate -m %s -p x -W 128 -H 128 --steps 10000 -s 1 -o %s --dump %s",
                   world->folder, out, dump);
    int status = interrupted(scope, line, os_path_join(scope, dump, "sigmas.npy"), 0, SIGINT);
    assert_int_equal(status, 130);
    assert_false(exists(out));
    mem_free(scope);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_case_on_the_cpu),
        cmocka_unit_test(reference_device),
        cmocka_unit_test(vulkan_device),
        cmocka_unit_test(layouts_of_files),
        cmocka_unit_test(files_beside_the_picture),
        cmocka_unit_test(projection_of_clip_is_not_used),
        cmocka_unit_test(distilled_without_files),
        cmocka_unit_test(distilled_without_projection),
        cmocka_unit_test(thresholding_at_nothing_is_off),
        cmocka_unit_test(settings_in_the_picture),
        cmocka_unit_test(prompts_from_files),
        cmocka_unit_test(start_pictures_of_other_shapes),
        cmocka_unit_test(requests_that_cannot_be),
        cmocka_unit_test(files_that_cannot_be),
        cmocka_unit_test(ends_when_interrupted),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
