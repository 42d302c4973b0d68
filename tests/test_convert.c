// test_convert.c: converted weights: every type from and to both formats against the types' own
// encoders, every layout of FLUX.1's parts by value, fp8's scales, and what is refused.
#include "tests/check.h"

#include <math.h>
#include <unistd.h>

#include "backend/quant.h"
#include "engine/pipeline_convert.h"
#include "engine/safetensors.h"
#include "models/clip.h"
#include "models/flux.h"
#include "models/t5.h"
#include "tests/scratch.h"

#define GOLDEN KILN_SOURCE_DIR "/tests/golden/"

typedef struct World { void *mem; char *dir; } World;
static World *world;

static int set_up(void **state) {
    (void)state;
    world = MEM_NEW(NULL, World);
    world->dir = scratch_new(world);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    scratch_remove(world->dir);
    mem_free(world);
    return 0;
}

static char *at(const char *name) { return os_path_join(world, world->dir, name); }

// ---- types --------------------------------------------------------------------------------------

typedef struct Made { const char *name; DType type; int ndim; int64_t shape[4]; } Made;
static const Made made[] = {
    {"wide.weight", DT_F32, 2, {300, 512}}, // more than one thread's worth
    {"kept.weight", DT_BF16, 2, {4, 512}},
    {"narrow.weight", DT_BF16, 2, {7, 96}}, // whole blocks of 32, not of 256
    {"odd.weight", DT_F16, 2, {5, 33}},
    {"conv.weight", DT_F16, 4, {4, 3, 3, 3}},
    {"matrix", DT_F32, 2, {2, 256}},
    {"small.weight", DT_F32, 2, {3, 256}},
    {"large.weight", DT_F32, 2, {3, 256}},
    {"wide.bias", DT_BF16, 1, {300}},
    {"zero.weight", DT_F32, 2, {2, 256}},
    {"one", DT_F32, 0, {0}},
    {"none.weight", DT_F32, 2, {0, 256}},
    {"ids", DT_I64, 1, {5}},
};
enum { MADE = COUNT_OF(made) };

static int64_t count_of(const Made *m) {
    int64_t n = 1;
    for (int i = 0; i < m->ndim; i++) n *= m->shape[i];
    return n;
}

// The numbers of a made tensor, as its own type holds them.
static float *values_of(const Made *m) {
    int64_t n = count_of(m);
    float *v = MEM_ARRAY(world, float, n + 1);
    uint8_t *stored = MEM_ARRAY(world, uint8_t, n * 8 + 8);
    uint64_t x = hash_bytes(7, m->name, strlen(m->name));
    for (int64_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        v[i] = (float)((double)(x >> 33) / (1u << 31) - 0.5) * (i % 97 ? 0.1f : 3);
        if (!strcmp(m->name, "zero.weight")) v[i] = 0;
        if (!strcmp(m->name, "small.weight")) v[i] *= 1e-2f;
        if (!strcmp(m->name, "large.weight")) v[i] = i ? v[i] * 4e4f : 60000;
    }
    dtype_convert(m->type, stored, DT_F32, v, (size_t)n);
    dtype_convert(DT_F32, v, m->type, stored, (size_t)n);
    return v;
}

static Weights *make_source(const char *name) {
    Error err = {0};
    StWriter *w = st_writer(world);
    for (int i = 0; i < MADE; i++) {
        int64_t n = count_of(&made[i]);
        uint8_t *data = MEM_ARRAY(world, uint8_t, n * 8 + 8);
        dtype_convert(made[i].type, data, DT_F32, values_of(&made[i]), (size_t)n);
        st_put(w, made[i].name, made[i].type, made[i].ndim, made[i].shape, data);
    }
    CHECK(st_write(w, at(name), &err));
    Weights *source = weights_open(world, at(name), &err);
    CHECK(source);
    return source;
}

static bool is_kept(const Made *m) { return !strcmp(m->name, "kept.weight"); }

static DType expected_type(const Made *m, DType asked, bool gguf) {
    if (m->type == DT_I64) return DT_I64;
    if (gguf && m->ndim < 2) return DT_F32;
    if (asked == DT_COUNT) return m->type;
    if (!dtype_is_packed(asked)) return asked;
    bool fp8 = dtype_block(asked) == 1;
    bool fits = m->ndim == 2 && m->shape[1] % dtype_block(asked) == 0 && !is_kept(m) &&
                (!fp8 || str_ends(m->name, ".weight"));
    return fits ? asked : m->type;
}

// All numbers of a tensor of a file as f32, its scale_weight applied.
static float *read_values(const Weights *w, const char *name) {
    Error err = {0};
    const WeightTensor *t = weights_find(w, name);
    assert_non_null(t);
    uint8_t *raw = MEM_ARRAY(world, uint8_t, t->bytes + 1);
    float *v = MEM_ARRAY(world, float, t->count + 1), scale = 1;
    CHECK(weights_read(w, t, 0, raw, t->bytes, &err));
    if (dtype_is_packed(t->dtype)) quant_decode(t->dtype, raw, v, (int64_t)t->count);
    else dtype_convert(DT_F32, v, t->dtype, raw, (size_t)t->count);
    if (str_ends(name, ".weight")) {
        int base = (int)strlen(name) - 7;
        const WeightTensor *s = weights_find(w, mem_printf(world, "%.*s.scale_weight", base, name));
        if (s) CHECK(weights_read(w, s, 0, &scale, 4, &err));
    }
    for (uint64_t i = 0; i < t->count; i++) v[i] *= scale;
    return v;
}

// Made so: "small" lies below e4m3's normal numbers, "large" above the largest of both.
static bool needs_scale(const Made *m, DType type) {
    bool small = !strcmp(m->name, "small.weight");
    return !strcmp(m->name, "large.weight") || (small && type == DT_F8_E4M3);
}

static void expect_tensor(const Weights *w, const Made *m, DType asked, bool gguf) {
    DType type = expected_type(m, asked, gguf);
    const WeightTensor *t = weights_find(w, m->name);
    assert_non_null(t);
    if (t->dtype != type)
        fail_msg("%s asked as %s: %s", m->name, dtype_name(asked), dtype_name(t->dtype));
    int64_t n = count_of(m);
    if (gguf && m->ndim == 0) {
        assert_int_equal(t->ndim, 1);
        assert_int_equal(t->shape[0], 1);
    } else {
        assert_int_equal(t->ndim, m->ndim);
        for (int d = 0; d < m->ndim; d++) assert_int_equal(t->shape[d], m->shape[d]);
    }
    float *want = values_of(m), scale = 1, largest = 0;
    uint8_t *bytes = MEM_ARRAY(world, uint8_t, n * 8 + 8);
    bool fp8 = type == DT_F8_E4M3 || type == DT_F8_E5M2;
    for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(want[i]));
    if (fp8 && needs_scale(m, type)) scale = largest / (type == DT_F8_E4M3 ? 448.0f : 57344.0f);
    float inverse = 1 / scale, *got = read_values(w, m->name);
    for (int64_t i = 0; i < n && fp8; i++) want[i] *= inverse;
    if (dtype_is_packed(type)) {
        quant_encode(type, want, bytes, n);
        quant_decode(type, bytes, want, n);
    } else {
        dtype_convert(type, bytes, DT_F32, want, (size_t)n);
        dtype_convert(DT_F32, want, type, bytes, (size_t)n);
    }
    for (int64_t i = 0; i < n; i++) {
        if (fp8) want[i] *= scale;
        if (want[i] != got[i])
            fail_msg("%s as %s: element %lld is %g, expected %g", m->name, dtype_name(type),
                     (long long)i, (double)got[i], (double)want[i]);
    }
}

static void every_type(void **state) {
    (void)state;
    Error err = {0};
    Weights *source = make_source("types.safetensors");
    for (int f = 0; f < 2; f++)
        for (int t = 0; t <= DT_COUNT; t++) {
            DType type = (DType)t;
            ConvertFormat format = f ? CONVERT_GGUF : CONVERT_SAFETENSORS;
            if (type != DT_COUNT && !dtype_is_float(type)) continue;
            if (!convert_check_type(format, type, NULL)) continue;
            char *path = at(f ? "types.gguf" : "types-out.safetensors");
            Conversion *c = conversion_new(world, format, type);
            for (int i = 0; i < MADE; i++) { // one by one, for the marks
                const WeightTensor *x = weights_find(source, made[i].name);
                if (x->dtype == DT_I64) {
                    CHECK(conversion_copy(c, x->name, source, x, &err));
                    continue;
                }
                BoundWeight b = {.source = source, .ndim = x->ndim, .scale = 1, .pieces = 1,
                                 .piece = {{x, 0, x->ndim ? x->shape[0] : 1, 1}}};
                memcpy(b.shape, x->shape, sizeof b.shape);
                const ConvertRules rules = {.type = type, .keep = is_kept(&made[i])};
                CHECK(conversion_add(c, x->name, &b, &rules, &err));
            }
            conversion_mark(c, "");
            ConvertReport report;
            CHECK(conversion_write(c, path, &(ConvertOptions){.threads = 3}, &report, &err));
            Weights *w = weights_open(world, path, &err);
            CHECK(w);
            bool fp8 = type == DT_F8_E4M3 || type == DT_F8_E5M2;
            assert_int_equal(report.tensors, MADE);
            // fp8: the marker, and scales of wide, narrow, odd, small, large, zero and none.
            assert_int_equal(weights_count(w), MADE + (fp8 ? 8 : 0));
            for (int i = 0; i < MADE; i++) expect_tensor(w, &made[i], type, format == CONVERT_GGUF);
            if (type != DT_COUNT && dtype_block(type) == 256) {
                assert_int_equal(report.odd, 2); // narrow, odd
                assert_string_equal(report.odd_name, "narrow.weight");
                assert_int_equal(report.odd_row, 96);
                assert_int_equal(report.kept, 2); // kept, conv
            }
            weights_close(w);
            mem_free(c);
        }
    weights_close(source);
}

static void metadata_of_gguf(void **state) {
    (void)state;
    Error err = {0};
    Weights *source = make_source("meta.safetensors");
    static const struct { DType type; const char *number; } files[] = {
        {DT_COUNT, "0"}, {DT_F16, "1"}, {DT_Q8_0, "7"}, {DT_Q4_K, "15"}, {DT_BF16, "32"}};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        Conversion *c = conversion_new(world, CONVERT_GGUF, files[i].type);
        conversion_architecture(c, "flux");
        CHECK(conversion_add_all(c, "", source, &(ConvertRules){.type = files[i].type}, &err));
        CHECK(conversion_write(c, at("meta.gguf"), &(ConvertOptions){0}, NULL, &err));
        Weights *w = weights_open(world, at("meta.gguf"), &err);
        CHECK(w);
        assert_string_equal(weights_meta(w, "general.architecture"), "flux");
        assert_string_equal(weights_meta(w, "general.quantization_version"), "2");
        assert_string_equal(weights_meta(w, "general.file_type"), files[i].number);
        weights_close(w);
    }
    weights_close(source);
}

// ---- layouts ------------------------------------------------------------------------------------

// Writes tensors [first, last) of `w` under their own names.
static void save(const char *path, const Weights *w, int first, int last) {
    Error err = {0};
    StWriter *out = st_writer(world);
    for (int i = first; i < last; i++) {
        const WeightTensor *t = weights_at(w, i);
        uint8_t *data = MEM_ARRAY(world, uint8_t, t->bytes + 1);
        CHECK(weights_read(w, t, 0, data, t->bytes, &err));
        st_put(out, t->name, t->dtype, t->ndim, t->shape, data);
    }
    CHECK(st_write(out, path, &err));
}

static void save_text(const char *path, const char *text) {
    Error err = {0};
    CHECK(os_write_file(path, text, strlen(text), &err));
}

static char *make_folder(const char *folder, const char *part) {
    Error err = {0};
    char *path = os_path_join(world, at(folder), part);
    CHECK(os_make_dirs(path, &err));
    return path;
}

// A diffusers folder of the golden model; the transformer in two shards.
static char *make_model(const char *name) {
    Error err = {0};
    char *folder = at(name);
    Weights *all = weights_open(world, GOLDEN "flux_a.safetensors", &err);
    Weights *vae = weights_open(world, GOLDEN "vae.safetensors", &err);
    CHECK(all && vae);
    Weights *t = weights_part(world, all, "transformer.");
    Weights *clip = weights_part(world, all, "clip.");
    Weights *t5 = weights_part(world, all, "t5.");
    char *dir = make_folder(name, "transformer");
    int n = weights_count(t);
    save(os_path_join(world, dir, "x-00001-of-00002.safetensors"), t, 0, n / 2);
    save(os_path_join(world, dir, "x-00002-of-00002.safetensors"), t, n / 2, n);
    char *index = mem_printf(world, "{\"weight_map\": {");
    for (int i = 0; i < n; i++)
        index = mem_printf(world, "%s%s\"%s\": \"x-0000%d-of-00002.safetensors\"", index,
                           i ? ", " : "", weights_at(t, i)->name, i < n / 2 ? 1 : 2);
    save_text(os_path_join(world, dir, "x.safetensors.index.json"),
              mem_printf(world, "%s}}", index));
    save_text(os_path_join(world, dir, "config.json"), weights_meta(all, "transformer"));
    const struct { const char *folder; const Weights *w; const char *config; } parts[] = {
        {"text_encoder", clip, weights_meta(all, "clip")},
        {"text_encoder_2", t5, weights_meta(all, "t5")}, {"vae", vae, NULL}};
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        dir = make_folder(name, parts[i].folder);
        save(os_path_join(world, dir, "model.safetensors"), parts[i].w, 0,
             weights_count(parts[i].w));
        if (parts[i].config) save_text(os_path_join(world, dir, "config.json"), parts[i].config);
    }
    save_text(os_path_join(world, folder, "model_index.json"),
              "{\"_class_name\": \"FluxPipeline\"}");
    Weights *open[] = {t5, clip, t, vae, all};
    for (size_t i = 0; i < COUNT_OF(open); i++) weights_close(open[i]);
    return folder;
}

static bool convert(const char *from, const char *to, PartId part, DType type,
                    ConvertReport *report, Error *err) {
    ConvertModelOptions o = {.paths = {.model = from}, .part = part, .type = type};
    if (!convert_format(to, &o.format, err)) return false;
    ConvertModel *m = convert_model_open(world, &o, err);
    const ConvertOptions how = {.threads = 2};
    bool ok = m && conversion_write(m->conversion, to, &how, report, err);
    convert_model_close(m);
    return ok;
}

// Every weight that a model wants, as f32.
typedef struct Bound { const BoundWeight *weight; int count; Weights *w; } Bound;

static Bound bind(PartId part, const char *path, const char *prefix) {
    Error err = {0};
    Bound b = {.w = weights_open(world, path, &err)};
    CHECK(b.w);
    const Weights *w = *prefix ? weights_part(world, b.w, prefix) : b.w;
    if (part == PART_TRANSFORMER) {
        const FluxModel *m = flux_open(world, w, NULL, DT_COUNT, &err);
        CHECK(m);
        b.weight = m->weight, b.count = m->count;
    } else if (part == PART_T5) {
        const T5Model *m = t5_open(world, w, NULL, DT_COUNT, &err);
        CHECK(m);
        b.weight = m->weight, b.count = m->count;
    } else {
        const ClipModel *m = clip_open(world, w, NULL, &err);
        CHECK(m);
        b.weight = m->weight, b.count = m->count;
    }
    return b;
}

static float *bound_values(const BoundWeight *b, uint64_t *n) {
    Error err = {0};
    *n = 1;
    for (int i = 0; i < b->ndim; i++) *n *= (uint64_t)b->shape[i];
    uint8_t *raw = MEM_ARRAY(world, uint8_t, b->bytes + 1);
    float *v = MEM_ARRAY(world, float, *n + 1);
    CHECK(bound_read(b, 0, raw, b->bytes, &err));
    if (dtype_is_packed(b->dtype)) quant_decode(b->dtype, raw, v, (int64_t)*n);
    else dtype_convert(DT_F32, v, b->dtype, raw, (size_t)*n);
    for (uint64_t i = 0; i < *n; i++) v[i] *= b->scale;
    return v;
}

// The worst error of a weight relative to its size; `limit` 0: equal.
static void expect_same(Bound a, Bound b, double limit) {
    assert_int_equal(a.count, b.count);
    for (int i = 0; i < a.count; i++) {
        uint64_t n, m;
        assert_string_equal(a.weight[i].name, b.weight[i].name);
        float *x = bound_values(&a.weight[i], &n), *y = bound_values(&b.weight[i], &m);
        assert_int_equal(n, m);
        double error = 0, size = 0;
        for (uint64_t k = 0; k < n; k++) {
            error += ((double)x[k] - (double)y[k]) * ((double)x[k] - (double)y[k]);
            size += (double)x[k] * (double)x[k];
        }
        if (sqrt(error) > limit * sqrt(size))
            fail_msg("%s: relative error %g", a.weight[i].name, sqrt(error / size));
    }
}

static void every_layout(void **state) {
    (void)state;
    Error err = {0};
    char *model = make_model("model"), *transformer = os_path_join(world, model, "transformer");
    Bound source = bind(PART_TRANSFORMER, transformer, "");
    // diffusers' shards -> single files under the original names -> and back through a checkpoint.
    CHECK(convert(transformer, at("flux.safetensors"), PART_COUNT, DT_COUNT, NULL, &err));
    CHECK(convert(model, at("flux.gguf"), PART_COUNT, DT_COUNT, NULL, &err));
    CHECK(convert(model, at("all.safetensors"), PART_COUNT, DT_COUNT, NULL, &err));
    CHECK(convert(at("all.safetensors"), at("back.gguf"), PART_TRANSFORMER, DT_COUNT, NULL, &err));
    const char *const files[] = {"flux.safetensors", "flux.gguf", "back.gguf"};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        Bound got = bind(PART_TRANSFORMER, at(files[i]), "");
        expect_same(source, got, 0);
        assert_int_equal(weights_count(got.w), got.count); // nothing else is in the file
        for (int k = 0; k < got.count; k++)
            assert_non_null(weights_find(got.w, got.weight[k].name));
        weights_close(got.w);
    }
    static const struct { PartId id; const char *folder, *prefix; } parts[] = {
        {PART_TRANSFORMER, "transformer", "model.diffusion_model."},
        {PART_CLIP_L, "text_encoder", "text_encoders.clip_l.transformer."},
        {PART_T5, "text_encoder_2", "text_encoders.t5xxl.transformer."}};
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        Bound a = bind(parts[i].id, os_path_join(world, model, parts[i].folder), "");
        Bound b = bind(parts[i].id, at("all.safetensors"), parts[i].prefix);
        expect_same(a, b, 0);
        weights_close(a.w);
        weights_close(b.w);
    }
    // The autoencoder keeps its names.
    Weights *all = weights_open(world, at("all.safetensors"), &err);
    Weights *vae = weights_open(world, os_path_join(world, model, "vae"), &err);
    CHECK(all && vae);
    Weights *part = weights_part(world, all, "vae.");
    for (int i = 0; i < weights_count(vae); i++) {
        const WeightTensor *a = weights_at(vae, i), *b = weights_find(part, a->name);
        assert_non_null(b);
        assert_int_equal(a->dtype, b->dtype);
        assert_memory_equal(weights_data(vae, a), weights_data(part, b), a->bytes);
    }
    Weights *open[] = {part, vae, all, source.w};
    for (size_t i = 0; i < COUNT_OF(open); i++) weights_close(open[i]);
}

static void text_encoders(void **state) {
    (void)state;
    Error err = {0};
    char *model = make_model("texts"), *t5 = os_path_join(world, model, "text_encoder_2");
    Bound source = bind(PART_T5, t5, "");
    CHECK(convert(t5, at("t5.gguf"), PART_COUNT, DT_COUNT, NULL, &err));
    CHECK(convert(at("t5.gguf"), at("t5.safetensors"), PART_COUNT, DT_COUNT, NULL, &err));
    CHECK(convert(model, at("t5-part.safetensors"), PART_T5, DT_COUNT, NULL, &err));
    Bound gguf = bind(PART_T5, at("t5.gguf"), "");
    assert_string_equal(weights_meta(gguf.w, "general.architecture"), "t5encoder");
    assert_non_null(weights_find(gguf.w, "enc.blk.1.ffn_gate.weight"));
    assert_non_null(weights_find(gguf.w, "token_embd.weight"));
    assert_null(weights_find(gguf.w, "shared.weight"));
    const char *const files[] = {"t5.gguf", "t5.safetensors", "t5-part.safetensors"};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        Bound got = bind(PART_T5, at(files[i]), "");
        expect_same(source, got, 0);
        weights_close(got.w);
    }
    char *clip = os_path_join(world, model, "text_encoder");
    CHECK(convert(clip, at("clip.gguf"), PART_COUNT, DT_F32, NULL, &err));
    Bound a = bind(PART_CLIP_L, clip, ""), b = bind(PART_CLIP_L, at("clip.gguf"), "");
    expect_same(a, b, 0);
    Weights *open[] = {a.w, b.w, gguf.w, source.w};
    for (size_t i = 0; i < COUNT_OF(open); i++) weights_close(open[i]);
}

// A checkpoint's type is the transformer's and T5's; embedders keep theirs.
static void types_in_layouts(void **state) {
    (void)state;
    Error err = {0};
    char *model = make_model("typed");
    ConvertReport report;
    CHECK(convert(model, at("fp8.safetensors"), PART_COUNT, DT_F8_E4M3, &report, &err));
    Weights *w = weights_open(world, at("fp8.safetensors"), &err);
    CHECK(w);
    static const struct { const char *name; DType type; } some[] = {
        {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight", DT_F8_E4M3},
        {"model.diffusion_model.double_blocks.0.img_attn.qkv.bias", DT_BF16},
        {"model.diffusion_model.img_in.weight", DT_BF16},
        {"model.diffusion_model.final_layer.linear.weight", DT_BF16},
        {"text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight",
         DT_F8_E4M3},
        {"text_encoders.t5xxl.transformer.shared.weight", DT_BF16},
        {"text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight", DT_BF16}};
    for (size_t i = 0; i < COUNT_OF(some); i++) {
        const WeightTensor *t = weights_find(w, some[i].name);
        if (!t || t->dtype != some[i].type) fail_msg("%s", some[i].name);
    }
    Bound a = bind(PART_TRANSFORMER, os_path_join(world, model, "transformer"), "");
    Bound b = bind(PART_TRANSFORMER, at("fp8.safetensors"), "model.diffusion_model.");
    expect_same(a, b, 0.04);
    assert_null(weights_find(w, "model.diffusion_model.scaled_fp8")); // no need of scales
    // Kept as they are; then as blocks.
    CHECK(convert(at("fp8.safetensors"), at("copy.safetensors"), PART_TRANSFORMER, DT_COUNT, NULL,
                  &err));
    CHECK(convert(at("fp8.safetensors"), at("q8.gguf"), PART_COUNT, DT_Q8_0, NULL, &err));
    Bound c = bind(PART_TRANSFORMER, at("copy.safetensors"), "");
    Bound d = bind(PART_TRANSFORMER, at("q8.gguf"), "");
    expect_same(b, c, 0);
    expect_same(b, d, 0.008);
    assert_int_equal(weights_find(d.w, "double_blocks.0.img_attn.qkv.weight")->dtype, DT_Q8_0);
    // Types that the new file has not.
    assert_false(convert(at("fp8.safetensors"), at("no.gguf"), PART_COUNT, DT_COUNT, NULL, &err));
    assert_non_null(strstr(err.text, "found fp8_e4m3; give --type q8_0"));
    assert_false(convert(at("q8.gguf"), at("no.safetensors"), PART_COUNT, DT_COUNT, NULL, &err));
    assert_non_null(strstr(err.text, "found q8_0; give --type f16"));
    assert_int_equal(os_path_kind(at("no.gguf")), PATH_NONE);
    Weights *open[] = {a.w, b.w, c.w, d.w, w};
    for (size_t i = 0; i < COUNT_OF(open); i++) weights_close(open[i]);
}

// On a device, what is asked for and what keeps its type are the same as in a file.
static void types_on_devices(void **state) {
    (void)state;
    Error err = {0};
    char *model = make_model("device");
    CHECK(convert(model, at("device.gguf"), PART_COUNT, DT_Q4_0, NULL, &err));
    Weights *source = weights_open(world, os_path_join(world, model, "transformer"), &err);
    Bound file = bind(PART_TRANSFORMER, at("device.gguf"), "");
    CHECK(source);
    const FluxModel *m = flux_open(world, source, NULL, DT_Q4_0, &err);
    CHECK(m);
    expect_same((Bound){m->weight, m->count, source}, file, 0);
    int blocks = 0;
    for (int i = 0; i < m->count; i++) {
        assert_int_equal(m->weight[i].dtype, file.weight[i].dtype);
        blocks += m->weight[i].dtype == DT_Q4_0;
    }
    assert_true(blocks > 5);
    weights_close(file.w);
    weights_close(source);
}

// A part whose fp8 has scales has them throughout; other parts are not concerned. Copies keep them.
static void scales_of_parts(void **state) {
    (void)state;
    Error err = {0};
    Weights *source = make_source("parts.safetensors");
    static const char *const names[] = {"a.small.weight", "a.wide.weight", "b.wide.weight"};
    Conversion *c = conversion_new(world, CONVERT_SAFETENSORS, DT_F8_E4M3);
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const WeightTensor *t = weights_find(source, names[i] + 2);
        BoundWeight b = {.source = source, .ndim = 2, .shape = {t->shape[0], t->shape[1]},
                         .scale = 1, .pieces = 1, .piece = {{t, 0, t->shape[0], 1}}};
        CHECK(conversion_add(c, names[i], &b, &(ConvertRules){.type = DT_F8_E4M3}, &err));
    }
    conversion_mark(c, "a.");
    conversion_mark(c, "b.");
    CHECK(conversion_write(c, at("two.safetensors"), &(ConvertOptions){0}, NULL, &err));
    CHECK(convert(at("two.safetensors"), at("again.safetensors"), PART_COUNT, DT_COUNT, NULL,
                  &err));
    Weights *two = weights_open(world, at("two.safetensors"), &err);
    Weights *again = weights_open(world, at("again.safetensors"), &err);
    CHECK(two && again);
    assert_int_equal(weights_count(two), 6);
    assert_non_null(weights_find(two, "a.scaled_fp8"));
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const WeightTensor *t = weights_find(two, names[i]);
        float *x = read_values(two, names[i]), *y = read_values(again, names[i]);
        assert_memory_equal(x, y, t->count * sizeof(float));
    }
    float one = 0;
    CHECK(weights_read(two, weights_find(two, "a.wide.scale_weight"), 0, &one, 4, &err));
    assert_true(one == 1);
    assert_non_null(weights_find(again, "a.small.scale_weight"));
    weights_close(again);
    weights_close(two);
    weights_close(source);
}

// Queries, keys and values with a scale each become one matrix with one scale.
static void scales_of_pieces(void **state) {
    (void)state;
    Error err = {0};
    char *dir = os_path_join(world, make_model("pieces"), "transformer");
    Weights *plain = weights_open(world, dir, &err);
    CHECK(plain);
    StWriter *out = st_writer(world);
    for (int i = 0; i < weights_count(plain); i++) {
        const WeightTensor *t = weights_at(plain, i);
        float *v = read_values(plain, t->name), *scale = MEM_NEW(world, float);
        uint8_t *data = MEM_ARRAY(world, uint8_t, t->bytes + t->count + 1);
        bool smaller = strstr(t->name, "attn.to_q.weight") || strstr(t->name, "attn.to_k.weight") ||
                       strstr(t->name, "attn.to_v.weight");
        *scale = strstr(t->name, "to_q") ? 0.01f : strstr(t->name, "to_k") ? 0.002f : 0.001f;
        for (uint64_t k = 0; k < t->count && smaller; k++) v[k] /= *scale;
        DType type = smaller ? DT_F8_E4M3 : t->dtype;
        if (smaller) quant_encode(type, v, data, (int64_t)t->count);
        else dtype_convert(type, data, DT_F32, v, (size_t)t->count);
        st_put(out, t->name, type, t->ndim, t->shape, data);
        if (!smaller) continue;
        int base = (int)strlen(t->name) - 7;
        st_put(out, mem_printf(world, "%.*s.scale_weight", base, t->name), DT_F32, 0, NULL, scale);
    }
    CHECK(st_write(out, at("scaled.safetensors"), &err));
    CHECK(convert(at("scaled.safetensors"), at("fused.safetensors"), PART_COUNT, DT_COUNT, NULL,
                  &err));
    Bound a = bind(PART_TRANSFORMER, at("scaled.safetensors"), "");
    Bound b = bind(PART_TRANSFORMER, at("fused.safetensors"), "");
    expect_same(a, b, 0.04); // rounded anew for the common scale
    assert_int_equal(weights_find(b.w, "double_blocks.0.img_attn.qkv.weight")->dtype, DT_F8_E4M3);
    assert_int_equal(weights_find(b.w, "single_blocks.0.linear1.weight")->dtype, DT_F32);
    weights_close(a.w);
    weights_close(b.w);
    weights_close(plain);
}

// ---- what is refused ----------------------------------------------------------------------------

static void names_and_types(void **state) {
    (void)state;
    ConvertFormat format;
    Error err = {0};
    assert_false(convert_format("model.pth", &format, &err));
    assert_int_equal(err.status, STATUS_USAGE);
    assert_true(convert_format("MODEL.GGUF", &format, &err) && format == CONVERT_GGUF);
    assert_false(convert_check_type(CONVERT_GGUF, DT_F8_E5M2, &err));
    assert_non_null(strstr(err.text, "found fp8_e5m2; take q8_0"));
    assert_false(convert_check_type(CONVERT_SAFETENSORS, DT_Q4_K, &err));
    assert_int_equal(err.status, STATUS_USAGE);
    assert_non_null(strstr(err.text, "--output FILE.gguf"));
}

static void expect_refused(const char *from, const char *to, DType type, const char *part) {
    Error err = {0};
    int before = scratch_count(world->dir);
    if (convert(from, to, PART_COUNT, type, NULL, &err)) fail_msg("expected \"%s\"", part);
    if (!strstr(err.text, part)) fail_msg("expected \"%s\" in: %s", part, err.text);
    assert_int_equal(scratch_count(world->dir), before); // no part of a file
}

static void save_numbers(const char *path, const char *key, const float *v, int64_t n) {
    Error err = {0};
    StWriter *w = st_writer(world);
    int64_t shape[] = {1, n};
    st_put(w, "x.weight", DT_F32, 2, shape, v);
    if (key) st_put_meta(w, key, "{}");
    CHECK(st_write(w, path, &err));
}

static void numbers_that_do_not_fit(void **state) {
    (void)state;
    Error err = {0};
    static float large[64] = {1, 65519, -1e6f}, bad[64];
    bad[40] = NAN;
    save_numbers(at("large.safetensors"), NULL, large, 64);
    save_numbers(at("bad.safetensors"), NULL, bad, 64);
    expect_refused(at("large.safetensors"), at("x.safetensors"), DT_F16, "f16 can hold, found -");
    expect_refused(at("large.safetensors"), at("x.gguf"), DT_Q8_0, "q8_0 can hold, found -");
    expect_refused(at("large.safetensors"), at("x.gguf"), DT_Q4_1, "q4_1 can hold, found -");
    expect_refused(at("bad.safetensors"), at("x.gguf"), DT_Q8_0, "found NaN");
    expect_refused(at("bad.safetensors"), at("x.safetensors"), DT_F8_E4M3, "found NaN");
    CHECK(convert(at("large.safetensors"), at("x.safetensors"), PART_COUNT, DT_BF16, NULL, &err));
    CHECK(convert(at("bad.safetensors"), at("x.gguf"), PART_COUNT, DT_COUNT, NULL, &err));
    CHECK(os_remove(at("x.gguf"), &err) && os_remove(at("x.safetensors"), &err));
}

static void files_that_are_wrong(void **state) {
    (void)state;
    Error err = {0};
    size_t n;
    expect_refused(at("nowhere.safetensors"), at("x.gguf"), DT_COUNT, "nowhere.safetensors");
    static const float v[64] = {1};
    save_numbers(at("fine.safetensors"), NULL, v, 64);
    uint8_t *bytes = os_read_file(world, at("fine.safetensors"), 1 << 16, &n, &err);
    CHECK(bytes && os_write_file(at("cut.safetensors"), bytes, n - 5, &err));
    expect_refused(at("cut.safetensors"), at("x.gguf"), DT_COUNT, "cut.safetensors");
    expect_refused(at("fine.safetensors"), at("no/such/x.gguf"), DT_COUNT, "no/such/x.gguf");
    CHECK(os_make_dirs(at("folder.gguf"), &err));
    expect_refused(at("fine.safetensors"), at("folder.gguf"), DT_COUNT, "folder");
    // Nano-Sora is read from plain safetensors only; a training checkpoint is no model.
    expect_refused(GOLDEN "nano_p4.safetensors", at("x.gguf"), DT_COUNT, "Nano-Sora");
    expect_refused(GOLDEN "nano_p4.safetensors", at("x.safetensors"), DT_F8_E4M3, "found fp8_e4m3");
    // Parts that are not there.
    ConvertModelOptions o = {.paths = {.model = at("fine.safetensors")}, .part = PART_VAE,
                             .type = DT_COUNT};
    assert_null(convert_model_open(world, &o, &err));
    assert_non_null(strstr(err.text, "part vae"));
}

static bool stop(void *user) { return --*(int *)user < 0; }

static void an_interrupt_leaves_nothing(void **state) {
    (void)state;
    Weights *source = make_source("stop.safetensors");
    int before = scratch_count(world->dir);
    for (int calls = 0; calls < 6; calls++) {
        Error err = {0};
        int left = calls;
        Conversion *c = conversion_new(world, CONVERT_SAFETENSORS, DT_F8_E4M3);
        CHECK(conversion_add_all(c, "", source, &(ConvertRules){.type = DT_F8_E4M3}, &err));
        const Cancel cancel = {stop, &left};
        const ConvertOptions options = {.cancel = &cancel};
        assert_false(conversion_write(c, at("stopped.safetensors"), &options, NULL, &err));
        assert_int_equal(err.status, STATUS_CANCELLED);
        assert_int_equal(scratch_count(world->dir), before);
        mem_free(c);
    }
    weights_close(source);
}

static void its_own_input(void **state) {
    (void)state;
    static const float v[64] = {1};
    char *file = at("own.safetensors"), *model = make_model("own");
    save_numbers(file, NULL, v, 64);
    assert_int_equal(symlink(file, at("soft.safetensors")), 0);
    assert_int_equal(link(file, at("hard.safetensors")), 0);
    const ModelPaths one = {.model = file}, folder = {.model = model},
                     part = {.part = {[PART_VAE] = file}};
    const ModelPaths index = {
        .model = mem_printf(world, "%s/transformer/x.safetensors.index.json", model)};
    const char *names[] = {"own.safetensors", "./own.safetensors", "soft.safetensors",
                           "hard.safetensors"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        assert_true(convert_is_source(&one, at(names[i])));
        assert_true(convert_is_source(&part, at(names[i])));
        assert_false(convert_is_source(&folder, at(names[i])));
    }
    assert_false(convert_is_source(&one, at("new.safetensors")));
    assert_true(convert_is_source(&folder, mem_printf(world, "%s/vae/model.safetensors", model)));
    char *shard = mem_printf(world, "%s/transformer/x-00002-of-00002.safetensors", model);
    assert_true(convert_is_source(&folder, shard));
    assert_true(convert_is_source(&index, shard));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type),
        cmocka_unit_test(metadata_of_gguf),
        cmocka_unit_test(every_layout),
        cmocka_unit_test(text_encoders),
        cmocka_unit_test(types_in_layouts),
        cmocka_unit_test(types_on_devices),
        cmocka_unit_test(scales_of_parts),
        cmocka_unit_test(scales_of_pieces),
        cmocka_unit_test(names_and_types),
        cmocka_unit_test(numbers_that_do_not_fit),
        cmocka_unit_test(files_that_are_wrong),
        cmocka_unit_test(an_interrupt_leaves_nothing),
        cmocka_unit_test(its_own_input),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
