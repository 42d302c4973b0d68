// Autoencoders against diffusers: tests/golden/vae.safetensors holds what diffusers makes of small
// inputs; weights and inputs are computed from names, here as in tools/ref/make_vae_golden.py.
#include "tests/check_device.h"

#include "backend/os.h"
#include "engine/image.h"
#include "engine/json.h"
#include "engine/safetensors.h"
#include "engine/vae.h"
#include "models/autoencoder_kl.h"

#include <math.h>

#define GOLDEN "tests/golden/vae.safetensors"

typedef struct State { Device *cpu, *ref, *vulkan; StFile *golden; } State; // vulkan: NULL where none

// ---- numbers from names -----------------------------------------------------------------------

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void numbers(const char *name, uint64_t first, size_t n, float low, float high, float *out) {
    uint64_t h = hash_bytes(0, name, strlen(name));
    for (size_t i = 0; i < n; i++) {
        uint64_t z = mix(h + (first + i + 1) * 0x9e3779b97f4a7c15u);
        out[i] = low + (float)(z >> 40) * 0x1p-24f * (high - low);
    }
}

static float *inputs(void *mem, const char *name, size_t n, float low, float high) {
    float *v = MEM_ARRAY(mem, float, n);
    numbers(name, 0, n, low, high, v);
    return v;
}

// ---- synthetic files --------------------------------------------------------------------------

typedef struct File { // what the reading of tensor i computes it from
    const char **name;
    const WeightTensor *tensor;
} File;

static bool read_numbers(void *user, int i, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    (void)err;
    const File *f = user;
    const WeightTensor *t = &f->tensor[i];
    uint64_t n = 1;
    for (int d = 0; d < t->ndim; d++) n *= (uint64_t)t->shape[d];
    float low = -0.25f, high = 0.25f;
    if (t->ndim >= 2) {
        high = (float)sqrt(3.0 / (double)(n / (uint64_t)t->shape[0]));
        low = -high;
    } else if (str_ends(f->name[i], "weight")) {
        low = 0.5f, high = 1.5f;
    }
    numbers(f->name[i], offset / 4, bytes / 4, low, high, out);
    return true;
}

// A file of the wanted tensors. `names`: what each is called in the file (NULL: as wanted).
static Weights *file_of(void *mem, const BindWant *wants, int count, BindNames *names, void *user,
                        const char *prefix) {
    File *f = MEM_NEW(mem, File);
    WeightTensor *t = MEM_ARRAY(mem, WeightTensor, count);
    f->name = MEM_ARRAY(mem, const char *, count);
    f->tensor = t;
    for (int i = 0; i < count; i++) {
        const char *theirs[BIND_MAX_PIECES] = {wants[i].name};
        if (names) assert_int_equal(names(user, wants[i].name, theirs, mem), 1);
        t[i] = (WeightTensor){.name = mem_printf(mem, "%s%s", prefix, theirs[0]), .dtype = DT_F32,
                              .ndim = wants[i].ndim};
        memcpy(t[i].shape, wants[i].shape, sizeof wants[i].shape);
        f->name[i] = wants[i].name;
    }
    return weights_synthetic(mem, "synthetic", t, count, read_numbers, f);
}

// ---- comparing --------------------------------------------------------------------------------

static double relative(const float *a, const float *b, size_t n) {
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        s += (double)b[i] * b[i];
    }
    return sqrt(d / s);
}

static float *golden(const State *s, void *mem, const char *name, const StTensor **tensor) {
    Error err = {0};
    const StTensor *t = st_get(s->golden, name, &err);
    CHECK(t);
    float *v = MEM_ARRAY(mem, float, t->count);
    st_to_f32(t, v);
    if (tensor) *tensor = t;
    return v;
}

typedef struct Case {
    const char *name, *prefix;
    KlNames names;
    bool on_ref; // else on cpu and, where there is one, vulkan
    int bands;
    double limit;
    DType compute;
} Case;

static VaeRun *plan(void *mem, Device *dev, const Vae *vae, VaePass pass, int w, int h, const Case *c) {
    Error err = {0};
    VaeSpec spec = {.pass = pass, .width = w, .height = h, .tiling = VAE_TILING_OFF, .bands = c->bands,
                    .compute = c->compute};
    VaeRun *run = vae_plan(mem, dev, vae, &spec, &err);
    CHECK(run);
    CHECK(vae_prepare(run, &err));
    assert_int_equal(vae_memory(run).bands, MAX(c->bands, 1));
    return run;
}

// Both halves of one configuration against diffusers.
static void check_case(const State *s, const Case *c, Device *dev) {
    Error err = {0};
    void *mem = mem_new(NULL, 1);
    const char *config = st_meta(s->golden, c->name);
    Json *root = json_parse(config, strlen(config), c->name, &err);
    CHECK(root);
    KlConfig kl = {.names = c->names, .encoder = true, .decoder = true};
    kl.quant = json_bool(json_get(root, "use_quant_conv"), true);
    kl.post_quant = json_bool(json_get(root, "use_post_quant_conv"), true);
    kl.attention = json_bool(json_get(root, "mid_block_add_attention"), true);
    kl.channels = (int)json_int(json_get(root, "latent_channels"), 0);
    kl.layers = (int)json_int(json_get(root, "layers_per_block"), 0);
    for (const Json *v = json_first(json_get(root, "block_out_channels")); v; v = json_next(v))
        kl.width[kl.levels++] = (int)json_int(v, 0);
    int h = (int)json_int(json_get(root, "h"), 0), w = (int)json_int(json_get(root, "w"), 0), count, encoder;
    int f = kl_factor(&kl);
    BindWant *wants = kl_wants(mem, &kl, &count, &encoder);
    Weights *file = file_of(mem, wants, count, kl_names, &kl, c->prefix);
    Vae *vae = vae_open(mem, file, &(ConfigFile){c->name, config}, &err);
    CHECK(vae);
    VaeInfo info = vae_info(vae);
    assert_int_equal(info.channels, kl.channels);
    assert_int_equal(info.factor, f);

    size_t n = (size_t)kl.channels * (size_t)h * (size_t)w, pixels = 3 * (size_t)(h * f) * (size_t)(w * f);
    char name[64];
    snprintf(name, sizeof name, "%s.latents", c->name);
    float *z = inputs(mem, name, n, -2, 2), *out = MEM_ARRAY(mem, float, pixels);
    VaeRun *run = plan(mem, dev, vae, VAE_DECODE, w * f, h * f, c);
    CHECK(vae_decode(run, z, out, NULL, &err));
    vae_run_free(run);
    snprintf(name, sizeof name, "%s.decoded", c->name);
    double e = relative(out, golden(s, mem, name, NULL), pixels);
    if (e > c->limit) fail_msg("%s %s: decoded: relative error %g, limit %g", dev_info(dev)->id, c->name, e,
                               c->limit);

    snprintf(name, sizeof name, "%s.picture", c->name);
    float *picture = inputs(mem, name, pixels, -1, 1), *mean = MEM_ARRAY(mem, float, n);
    float *sample = MEM_ARRAY(mem, float, n), *noise = inputs(mem, "noise", n, -1, 1);
    run = plan(mem, dev, vae, VAE_ENCODE, w * f, h * f, c);
    CHECK(vae_encode(run, picture, NULL, mean, NULL, &err));
    CHECK(vae_encode(run, picture, noise, sample, NULL, &err));
    vae_run_free(run);
    snprintf(name, sizeof name, "%s.moments", c->name);
    float *moments = golden(s, mem, name, NULL), *other = moments + n;
    for (size_t i = 0; i < n; i++) {
        noise[i] = (float)((moments[i] + noise[i] * exp(0.5 * other[i]) - info.shift) * info.scale);
        moments[i] = (float)((moments[i] - info.shift) * info.scale);
    }
    e = MAX(relative(mean, moments, n), relative(sample, noise, n));
    if (e > c->limit) fail_msg("%s %s: encoded: relative error %g, limit %g", dev_info(dev)->id, c->name, e,
                               c->limit);
    json_free(root);
    vae_close(vae);
    weights_close(file);
    mem_free(mem);
}

static void check_cases(const State *s, const Case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        check_case(s, &cases[i], cases[i].on_ref ? s->ref : s->cpu);
        if (s->vulkan && !cases[i].on_ref) check_case(s, &cases[i], s->vulkan);
    }
}

static void test_kl(void **state) {
    static const Case cases[] = {
        {"flux", "", KL_DIFFUSERS, false, 0, 2e-5, DT_F32},
        {"flux", "vae.", KL_ORIGINAL, false, 0, 2e-5, DT_F32},
        {"flux", "", KL_DIFFUSERS, false, 0, 0.05, DT_BF16},
        {"sd", "", KL_DIFFUSERS_OLD, false, 0, 2e-5, DT_F32},
        {"sd", "first_stage_model.", KL_ORIGINAL, true, 0, 2e-5, DT_F32},
        {"wide", "", KL_DIFFUSERS, false, 0, 2e-5, DT_F32},
        {"plain", "", KL_ORIGINAL, false, 0, 2e-5, DT_F32},
        {"level", "", KL_DIFFUSERS, false, 0, 2e-5, DT_F32},
    };
    check_cases(*state, cases, COUNT_OF(cases));
}

static void test_bands(void **state) {
    static const Case cases[] = {
        {"flux", "", KL_DIFFUSERS, false, 5, 2e-5, DT_F32},
        {"sd", "", KL_DIFFUSERS, false, 3, 2e-5, DT_F32},
        {"plain", "", KL_DIFFUSERS, false, 7, 2e-5, DT_F32},
    };
    check_cases(*state, cases, COUNT_OF(cases));
}

// The names that the original files have, independent of how kl_names makes them.
static void test_original_names(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {"decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"},
        {"decoder.up_blocks.3.resnets.0.conv_shortcut.bias", "decoder.up.0.block.0.nin_shortcut.bias"},
        {"decoder.up_blocks.1.upsamplers.0.conv.weight", "decoder.up.2.upsample.conv.weight"},
        {"encoder.down_blocks.2.downsamplers.0.conv.bias", "encoder.down.2.downsample.conv.bias"},
        {"encoder.down_blocks.1.resnets.1.norm2.weight", "encoder.down.1.block.1.norm2.weight"},
        {"encoder.mid_block.resnets.1.conv2.weight", "encoder.mid.block_2.conv2.weight"},
        {"decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"},
        {"decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid.attn_1.norm.bias"},
        {"decoder.conv_norm_out.weight", "decoder.norm_out.weight"},
        {"decoder.conv_in.weight", "decoder.conv_in.weight"},
        {"post_quant_conv.bias", "post_quant_conv.bias"},
    };
    KlConfig c = {.names = KL_ORIGINAL, .levels = 4};
    void *mem = mem_new(NULL, 1);
    for (size_t i = 0; i < COUNT_OF(pairs); i++) {
        const char *out[BIND_MAX_PIECES];
        assert_int_equal(kl_names(&c, pairs[i][0], out, mem), 1);
        assert_string_equal(out[0], pairs[i][1]);
    }
    mem_free(mem);
}

// ---- tiny autoencoders ------------------------------------------------------------------------

static void add(void *mem, BindWant **v, int *n, const char *name, int ndim, const int64_t *shape) {
    *v = mem_resize(mem, *v, sizeof **v * (size_t)(*n + 1));
    BindWant *w = &(*v)[(*n)++];
    *w = (BindWant){.name = name, .ndim = ndim};
    memcpy(w->shape, shape, sizeof(int64_t) * (size_t)ndim);
}

// Layers as letters: c convolution with bias, d without, b block, p block with a normed branch,
// "." one without weights. Halves differ in channels at the ends only.
static void add_layers(void *mem, BindWant **v, int *n, const char *prefix, const char *layers, int in,
                       int out) {
    for (int i = 0, width = 16; layers[i]; i++) {
        bool last = !layers[i + 1], first = i == (layers[0] == '.');
        int a = first ? in : width, b = last ? out : width;
        char kind = layers[i];
        if (kind == 'c' || kind == 'd') {
            add(mem, v, n, mem_printf(mem, "%s%d.weight", prefix, i), DIMS(b, a, 3, 3));
            if (kind == 'c') add(mem, v, n, mem_printf(mem, "%s%d.bias", prefix, i), DIMS(b));
        }
        for (int k = 0; (kind == 'b' || kind == 'p') && k < 6; k += 2) {
            add(mem, v, n, mem_printf(mem, "%s%d.conv.%d.weight", prefix, i, k), DIMS(width, width, 3, 3));
            add(mem, v, n, mem_printf(mem, "%s%d.conv.%d.bias", prefix, i, k), DIMS(width));
        }
        if (kind != 'p') continue;
        add(mem, v, n, mem_printf(mem, "%s%d.pool.0.weight", prefix, i), DIMS(4 * width, width, 1, 1));
        add(mem, v, n, mem_printf(mem, "%s%d.pool.1.weight", prefix, i), DIMS(4 * width));
        add(mem, v, n, mem_printf(mem, "%s%d.pool.1.bias", prefix, i), DIMS(4 * width));
        add(mem, v, n, mem_printf(mem, "%s%d.pool.3.weight", prefix, i), DIMS(width, 4 * width, 1, 1));
    }
}

static void check_tiny_on(Device *dev, const State *s, void *mem, const Vae *vae, const char *name,
                          int w, int h, int bands) {
    Error err = {0};
    VaeInfo info = vae_info(vae);
    Case c = {.bands = bands, .compute = DT_F32};
    size_t n = (size_t)info.channels * (size_t)h * (size_t)w;
    size_t pixels = 3 * (size_t)h * (size_t)w * (size_t)info.factor * (size_t)info.factor;
    float *z = inputs(mem, mem_printf(mem, "%s.latents", name), n, -4, 4);
    float *out = MEM_ARRAY(mem, float, pixels);
    VaeRun *run = plan(mem, dev, vae, VAE_DECODE, w * info.factor, h * info.factor, &c);
    CHECK(vae_decode(run, z, out, NULL, &err));
    vae_run_free(run);
    assert_true(relative(out, golden(s, mem, mem_printf(mem, "%s.decoded", name), NULL), pixels) < 2e-5);
    float *picture = inputs(mem, mem_printf(mem, "%s.picture", name), pixels, -1, 1);
    run = plan(mem, dev, vae, VAE_ENCODE, w * info.factor, h * info.factor, &c);
    CHECK(vae_encode(run, picture, NULL, z, NULL, &err));
    vae_run_free(run);
    assert_true(relative(z, golden(s, mem, mem_printf(mem, "%s.latents", name), NULL), n) < 2e-5);
}

static void check_tiny(const State *s, void *mem, const Vae *vae, const char *name, int w, int h,
                       int bands) {
    check_tiny_on(s->cpu, s, mem, vae, name, w, h, bands);
    if (s->vulkan) check_tiny_on(s->vulkan, s, mem, vae, name, w, h, bands);
}

static void test_tiny(void **state) {
    const State *s = *state;
    Error err = {0};
    void *mem = mem_new(NULL, 1);
    BindWant *v = NULL;
    int n = 0;
    add_layers(mem, &v, &n, "encoder.layers.", "cbdbbdbc", 3, 4);
    add_layers(mem, &v, &n, "decoder.layers.", "c.bb.db.dbc", 4, 3);
    Weights *file = file_of(mem, v, n, NULL, NULL, "");
    Vae *vae = vae_open(mem, file, NULL, &err);
    CHECK(vae);
    assert_int_equal(vae_info(vae).factor, 4);
    for (int bands = 0; bands <= 3; bands += 3) check_tiny(s, mem, vae, "tiny", 5, 7, bands);
    vae_close(vae);

    BindWant *half[2] = {NULL, NULL};
    int count[2] = {0};
    add_layers(mem, &half[0], &count[0], "", "cbdpc", 3, 6);
    add_layers(mem, &half[1], &count[1], "", ".c.p.dbc", 6, 3);
    Weights *files[2] = {file_of(mem, half[0], count[0], NULL, NULL, ""),
                         file_of(mem, half[1], count[1], NULL, NULL, "")};
    vae = vae_open_pair(mem, files[0], files[1], &err);
    CHECK(vae);
    assert_int_equal(vae_info(vae).kind, VAE_TINY);
    check_tiny(s, mem, vae, "pool", 5, 7, 0);
    vae_close(vae);
    assert_null(vae_open_pair(mem, files[1], files[0], &err)); // the wrong way round
    assert_non_null(strstr(err.text, "expected the encoder"));
    mem_free(mem);
}

// ---- tiles, budgets ---------------------------------------------------------------------------

// A smooth autoencoder's tiles differ little from the whole; with a wrong blend they differ much.
static Vae *flux_vae(void *mem) {
    Error err = {0};
    KlConfig kl = {.encoder = true, .decoder = true, .attention = true, .channels = 16, .layers = 1,
                   .levels = 3, .width = {16, 16, 32}};
    int count, encoder;
    BindWant *wants = kl_wants(mem, &kl, &count, &encoder);
    Weights *file = file_of(mem, wants, count, NULL, NULL, "");
    ConfigFile config = {"config.json", "{\"norm_num_groups\": 8, \"scaling_factor\": 0.5}"};
    Vae *vae = vae_open(mem, file, &config, &err);
    CHECK(vae);
    return vae;
}

// config.json may leave members out, but what it says of sizes must be so.
static void test_configuration(void **state) {
    (void)state;
    static const struct { const char *json, *text; } wrong[] = {
        {"{\"latent_channels\": 4}",
         "dir/config.json: expected `latent_channels` 16, as the tensors have it, found 4"},
        {"{\"in_channels\": 4}", "`in_channels` 3"},
        {"{\"layers_per_block\": 2}", "`layers_per_block` 1"},
        {"{\"use_quant_conv\": true}", "`use_quant_conv` false, as the tensors have it, found true"},
        {"{\"use_post_quant_conv\": true}", "`use_post_quant_conv` false"},
        {"{\"mid_block_add_attention\": false}", "`mid_block_add_attention` true"},
        {"{\"block_out_channels\": [16, 16]}",
         "`block_out_channels` of 3 numbers, as the tensors have it, found 2"},
        {"{\"block_out_channels\": [16, 16, 32, 32]}", "found 4"},
        {"{\"block_out_channels\": [16, 32, 32]}",
         "`block_out_channels` with 16 at 1, as the tensors have it, found 32"},
        {"{\"block_out_channels\": 16}", "of 3 numbers"},
        {"{\"norm_num_groups\": 8.5}", "`norm_num_groups`"},
        {"{\"norm_num_groups\": 3}", "groups (3)"},
        {"{\"shift_factor\": 1e300}", "`shift_factor` to be a number from -1e+06 to 1e+06, found 1e+300"},
        {"{\"act_fn\": 1}", "`act_fn` to be a text"},
        {"{\"_class_name\": 1}", "`_class_name` to be a text"},
        {"{\"scaling_factor\": 0}", "dir/config.json: expected a scaling_factor"},
        {"{\"_class_name\": \"AutoencoderDC\"}", "dir/config.json: expected an AutoencoderKL or"},
    };
    void *mem = mem_new(NULL, 1);
    Error err = {0};
    KlConfig kl = {.encoder = true, .decoder = true, .attention = true, .channels = 16, .layers = 1,
                   .levels = 3, .width = {16, 16, 32}};
    int count, encoder;
    BindWant *wants = kl_wants(mem, &kl, &count, &encoder);
    Weights *file = file_of(mem, wants, count, NULL, NULL, "");
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        const ConfigFile config = {"dir/config.json", wrong[i].json};
        err = (Error){0};
        assert_null(vae_open(mem, file, &config, &err));
        if (!strstr(err.text, wrong[i].text)) fail_msg("%s: %s", wrong[i].json, err.text);
    }
    const ConfigFile sound = {"dir/config.json",
        "{\"_class_name\": \"AutoencoderKL\", \"latent_channels\": 16, "
        "\"block_out_channels\": [16, 16, 32], \"layers_per_block\": 1, "
        "\"use_quant_conv\": false, \"norm_num_groups\": 8, \"shift_factor\": null}"};
    Vae *vae = vae_open(mem, file, &sound, &err);
    CHECK(vae);
    vae_close(vae);
    // diffusers' fuse_qkv_projections leaves stacked projections beside the pieces.
    BindWant *fused = MEM_ARRAY(mem, BindWant, count + 1);
    memcpy(fused, wants, sizeof *wants * (size_t)count);
    fused[count] = (BindWant){.name = "decoder.mid_block.attentions.0.to_qkv.weight", .ndim = 2,
                              .shape = {96, 32}};
    vae = vae_open(mem, file_of(mem, fused, count + 1, NULL, NULL, ""), &sound, &err);
    CHECK(vae);
    vae_close(vae);
    mem_free(mem);
}

static void test_configuration_that_is_not_whole(void **state) {
    (void)state;
    void *mem = mem_new(NULL, 1);
    Error err = {0};
    Vae *vae;
    BindWant *wants;
    int count, encoder;
    // Without one: FLUX's scale and shift for 16 channels, Stable Diffusion's for 4.
    for (int channels = 4; channels <= 16; channels += 12) {
        KlConfig bare = {.decoder = true, .channels = channels, .layers = 1, .levels = 1, .width = {32}};
        wants = kl_wants(mem, &bare, &count, &encoder);
        vae = vae_open(mem, file_of(mem, wants, count, NULL, NULL, ""), NULL, &err);
        CHECK(vae);
        VaeInfo info = vae_info(vae);
        assert_true(info.scale == (channels == 4 ? 0.18215 : 0.3611));
        assert_true(info.shift == (channels == 4 ? 0 : 0.1159));
        vae_close(vae);
    }
    // Of half an autoencoder the other half's members say nothing.
    KlConfig kl = {.decoder = true, .post_quant = true, .channels = 16, .layers = 1, .levels = 1,
                   .width = {16}};
    wants = kl_wants(mem, &kl, &count, &encoder);
    Weights *half = file_of(mem, wants, count, NULL, NULL, "");
    const ConfigFile both = {"dir/config.json", "{\"use_quant_conv\": true, \"use_post_quant_conv\": true, "
                                                "\"norm_num_groups\": 8}"};
    vae = vae_open(mem, half, &both, &err);
    CHECK(vae);
    vae_close(vae);
    // A tiny one.
    BindWant *v = NULL;
    int n = 0;
    add_layers(mem, &v, &n, "decoder.layers.", "c.bb.db.dbc", 4, 3);
    Weights *tiny = file_of(mem, v, n, NULL, NULL, "");
    const ConfigFile four = {"dir/config.json", "{\"latent_channels\": 4}"},
                     many = {"dir/config.json", "{\"latent_channels\": 16}"};
    vae = vae_open(mem, tiny, &four, &err);
    CHECK(vae);
    vae_close(vae);
    assert_null(vae_open(mem, tiny, &many, &err));
    assert_non_null(strstr(err.text, "dir/config.json: expected `latent_channels` 4"));
    mem_free(mem);
}

static void test_budget(void **state) {
    const State *s = *state;
    Error err = {0};
    void *mem = mem_new(NULL, 1);
    Vae *vae = flux_vae(mem);
    VaeSpec spec = {.pass = VAE_DECODE, .width = 320, .height = 256, .compute = DT_F32};
    VaeRun *run = vae_plan(mem, s->cpu, vae, &spec, &err);
    CHECK(run);
    VaeMemory whole = vae_memory(run);
    assert_int_equal(whole.tiles_x * whole.tiles_y, 1);
    vae_run_free(run);
    spec.budget = whole.peak_bytes - 1; // a byte too little: tiles, within it
    CHECK((run = vae_plan(mem, s->cpu, vae, &spec, &err)));
    VaeMemory tiled = vae_memory(run);
    assert_true(tiled.tiles_x * tiled.tiles_y > 1 && tiled.peak_bytes <= spec.budget);
    vae_run_free(run);
    spec.tiling = VAE_TILING_OFF;
    assert_null(vae_plan(mem, s->cpu, vae, &spec, &err));
    char need[32];
    snprintf(need, sizeof need, "%llu bytes", (unsigned long long)whole.peak_bytes);
    assert_non_null(strstr(err.text, need));
    spec.tiling = VAE_TILING_AUTO;
    spec.budget = 1000;
    assert_null(vae_plan(mem, s->cpu, vae, &spec, &err));
    assert_non_null(strstr(err.text, "smallest tiles"));
    spec.width = 321;
    assert_null(vae_plan(mem, s->cpu, vae, &spec, &err));
    assert_non_null(strstr(err.text, "multiples of 4, found 321; try 320"));

    // The allocator sees what the plan says.
    spec = (VaeSpec){.pass = VAE_DECODE, .width = 64, .height = 64, .compute = DT_F32};
    CHECK((run = vae_plan(mem, s->cpu, vae, &spec, &err)));
    uint64_t before = dev_memory(s->cpu).used;
    CHECK(vae_prepare(run, &err));
    VaeMemory m = vae_memory(run);
    assert_int_equal(dev_memory(s->cpu).used - before, m.peak_bytes - m.staging_bytes);
    vae_run_free(run);
    assert_int_equal(dev_memory(s->cpu).used, before);
    vae_close(vae);
    mem_free(mem);
}

// A device with small buffers: bands on their own account, and the same picture.
static void test_small_buffers(void **state) {
    const State *s = *state;
    Error err = {0};
    void *mem = mem_new(NULL, 1);
    Vae *vae = flux_vae(mem);
    Device *small = dev_open(mem, "cpu", &(DeviceOptions){.max_buffer = 180000}, &err);
    CHECK(small);
    float *z = inputs(mem, "small.latents", 16 * 20 * 16, -2, 2);
    float *out[2] = {MEM_ARRAY(mem, float, 3 * 80 * 64), MEM_ARRAY(mem, float, 3 * 80 * 64)};
    VaeSpec spec = {.pass = VAE_DECODE, .width = 64, .height = 80, .compute = DT_F32};
    for (int i = 0; i < 2; i++) {
        VaeRun *run = vae_plan(mem, i ? small : s->cpu, vae, &spec, &err);
        CHECK(run);
        if (i) assert_true(vae_memory(run).bands > 1);
        CHECK(vae_decode(run, z, out[i], NULL, &err));
        vae_run_free(run);
    }
    assert_true(relative(out[1], out[0], 3 * 80 * 64) < 1e-5);
    dev_close(small);
    vae_close(vae);
    mem_free(mem);
}

typedef struct Tiles { int told, total; } Tiles;

static void count_tiles(void *user, int done, int total) {
    Tiles *t = user;
    assert_int_equal(done, t->told++);
    t->total = total;
}

// Several samples of a picture are what as many calls give, and the encoder runs once for all of them,
// whole or in tiles; the noise may lie where the samples go.
static void test_samples(void **state) {
    const State *s = *state;
    enum { PICTURES = 2, SAMPLES = 3, SIDE = 48, EACH = 16 * (SIDE / 4) * (SIDE / 4),
           PIXELS = 3 * SIDE * SIDE };
    Error err = {0};
    void *mem = mem_new(NULL, 1);
    Vae *vae = flux_vae(mem);
    float *picture = inputs(mem, "samples.picture", PICTURES * PIXELS, -1, 1);
    float *noise = inputs(mem, "samples.noise", PICTURES * SAMPLES * EACH, -2, 2);
    float *one = MEM_ARRAY(mem, float, EACH), *all = MEM_ARRAY(mem, float, PICTURES * SAMPLES * EACH);
    for (int tile = 0; tile <= 32; tile += 32) {
        VaeSpec spec = {.pass = VAE_ENCODE, .width = SIDE, .height = SIDE, .compute = DT_F32, .tile = tile,
                        .tiling = tile ? VAE_TILING_ON : VAE_TILING_OFF};
        VaeRun *run = vae_plan(mem, s->cpu, vae, &spec, &err);
        CHECK(run);
        int tiles = vae_memory(run).tiles_x * vae_memory(run).tiles_y;
        assert_true((tiles > 1) == (tile > 0));
        Tiles seen = {0};
        VaeCall call = {.batch = PICTURES, .samples = SAMPLES, .progress = count_tiles, .user = &seen};
        memcpy(all, noise, sizeof(float) * PICTURES * SAMPLES * EACH);
        CHECK(vae_encode(run, picture, all, all, &call, &err));
        assert_int_equal(seen.told, PICTURES * tiles);
        assert_int_equal(seen.total, PICTURES * tiles);
        for (int i = 0; i < PICTURES * SAMPLES; i++) {
            CHECK(vae_encode(run, picture + i / SAMPLES * PIXELS, noise + i * EACH, one, NULL, &err));
            assert_memory_equal(one, all + i * EACH, EACH * sizeof(float));
            if (i) assert_memory_not_equal(one, all, EACH * sizeof(float));
        }
        vae_run_free(run);
    }
    vae_close(vae);
    mem_free(mem);
}

// ---- the real tiny autoencoder and a photograph -----------------------------------------------

#define TAEF2 "../shared/reference-data/taef2"
enum { SIDE = 192 };

static float *photograph(void *mem) { // part of the left picture
    Error err = {0};
    Image *all = image_load(mem, TAEF2 "/reconstruction_example.jpg", &err);
    CHECK(all);
    float *planes = MEM_ARRAY(mem, float, 3 * SIDE * SIDE);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < SIDE; y++)
            for (int x = 0; x < SIDE; x++)
                planes[(c * SIDE + y) * SIDE + x] = image_to_float(
                    all->rgb[3 * ((size_t)(y + 224) * (size_t)all->width + (size_t)(x + 224)) + (size_t)c]);
    return planes;
}

static double error_of(const float *a, const float *b) { // mean square, 0..1
    double sum = 0;
    for (int i = 0; i < 3 * SIDE * SIDE; i++) sum += (a[i] - b[i]) * (double)(a[i] - b[i]) / 4;
    return sum / (3 * SIDE * SIDE);
}

static void test_photograph(void **state) {
    const State *s = *state;
    Error err = {0};
    if (os_path_kind(TAEF2) != PATH_DIR) {
        fprintf(stderr, "SKIP: %s is not there\n", TAEF2);
        skip();
    }
    void *mem = mem_new(NULL, 1);
    Vae *vae = vae_open_path(mem, TAEF2, &err);
    CHECK(vae);
    assert_int_equal(vae_info(vae).channels, 32);
    float *x = photograph(mem), *z = MEM_ARRAY(mem, float, 32 * SIDE * SIDE / 64);
    float *whole = MEM_ARRAY(mem, float, 3 * SIDE * SIDE), *tiled = MEM_ARRAY(mem, float, 3 * SIDE * SIDE);
    VaeSpec spec = {.pass = VAE_ENCODE, .width = SIDE, .height = SIDE, .compute = DT_F32,
                    .tiling = VAE_TILING_OFF};
    VaeRun *run = vae_plan(mem, s->cpu, vae, &spec, &err);
    CHECK(run);
    CHECK(vae_encode(run, x, NULL, z, NULL, &err));
    vae_run_free(run);
    spec.pass = VAE_DECODE;
    CHECK((run = vae_plan(mem, s->cpu, vae, &spec, &err)));
    CHECK(vae_decode(run, z, whole, NULL, &err));
    vae_run_free(run);
    double mse = error_of(whole, x);
    if (!(mse < 0.002)) fail_msg("round trip: mean square error %g, limit 0.002", mse);

    spec.tiling = VAE_TILING_ON;
    spec.tile = 128;
    CHECK((run = vae_plan(mem, s->cpu, vae, &spec, &err)));
    assert_int_equal(vae_memory(run).tiles_x * vae_memory(run).tiles_y, 4);
    CHECK(vae_decode(run, z, tiled, NULL, &err));
    vae_run_free(run);
    double seam = error_of(tiled, whole), worst = 0;
    for (int i = 0; i < 3 * SIDE * SIDE; i++) worst = MAX(worst, fabs(tiled[i] - whole[i]) / 2);
    printf("round trip %.6f; tiles against the whole: mean square %.2e, worst %.4f\n", mse, seam, worst);
    assert_true(seam < 1e-3 && worst < 0.25);
    vae_close(vae);
    mem_free(mem);
}

// ---- set-up -----------------------------------------------------------------------------------

static int set_up(void **state) {
    Error err = {0};
    State *s = MEM_NEW(NULL, State);
    s->cpu = dev_open(s, "cpu", &(DeviceOptions){0}, &err);
    s->ref = dev_open(s, "ref", &(DeviceOptions){0}, &err);
    s->vulkan = check_open(s, "vulkan");
    s->golden = st_open(s, GOLDEN, &err);
    if (!s->cpu || !s->ref || !s->golden) err_print(&err, stderr);
    *state = s;
    return !s->cpu || !s->ref || !s->golden;
}

static int tear_down(void **state) {
    State *s = *state;
    st_close(s->golden);
    dev_close(s->cpu);
    dev_close(s->ref);
    dev_close(s->vulkan);
    mem_free(s);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_original_names), cmocka_unit_test(test_kl), cmocka_unit_test(test_bands),
        cmocka_unit_test(test_tiny), cmocka_unit_test(test_configuration),
        cmocka_unit_test(test_configuration_that_is_not_whole),
        cmocka_unit_test(test_budget), cmocka_unit_test(test_small_buffers),
        cmocka_unit_test(test_samples), cmocka_unit_test(test_photograph),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
