// flux_tiny.h: the tiny FLUX.1-dev of tests/golden/flux_tiny, whose weights are a formula, as files
// in the layouts that people have: a diffusers folder (T5 in two shards), one checkpoint, split
// files, GGUF. Made by tools/ref/make_flux_tiny.py, which says what tensors.txt holds. For tests
// alone.
#ifndef KILN_TESTS_FLUX_TINY_H
#define KILN_TESTS_FLUX_TINY_H

#include "backend/quant.h"
#include "engine/gguf.h"
#include "engine/safetensors.h"
#include "tests/check.h"

#include <math.h>

#ifndef KILN_SOURCE_DIR
#define KILN_SOURCE_DIR "."
#endif
#define FLUX_TINY KILN_SOURCE_DIR "/tests/golden/flux_tiny"

enum { TINY_TENSORS = 300, TINY_ORIGINALS = 300, TINY_PIECES = 4 };

typedef struct TinyTensor {
    const char *part, *name;
    int exponent, offset, ndim, number;
    int64_t shape[4], count;
} TinyTensor;

typedef struct TinyOriginal {
    const char *part, *name;
    bool swapped; // its halves
    int count, piece[TINY_PIECES];
} TinyOriginal;

typedef struct Tiny {
    int tensors, originals;
    TinyTensor tensor[TINY_TENSORS];
    TinyOriginal original[TINY_ORIGINALS];
} Tiny;

static inline void tiny_tensor_line(TinyTensor *t, char *line) {
    char *save, *word = strtok_r(line, " ", &save);
    t->part = word;
    t->name = strtok_r(NULL, " ", &save);
    t->exponent = atoi(strtok_r(NULL, " ", &save));
    t->offset = atoi(strtok_r(NULL, " ", &save));
    t->count = 1;
    while ((word = strtok_r(NULL, " ", &save))) t->count *= t->shape[t->ndim++] = atoi(word);
}

static inline void tiny_original_line(TinyOriginal *o, char *line) {
    char *save, *word;
    strtok_r(line, " ", &save); // "="
    o->part = strtok_r(NULL, " ", &save);
    o->name = strtok_r(NULL, " ", &save);
    while ((word = strtok_r(NULL, " ", &save))) {
        o->swapped |= *word == '~';
        o->piece[o->count++] = atoi(word + (*word == '~'));
    }
}

static inline Tiny *tiny_read(void *parent) {
    Error err = {0};
    size_t n;
    Tiny *tiny = MEM_NEW(parent, Tiny);
    char *text = (char *)os_read_file(tiny, FLUX_TINY "/tensors.txt", 1 << 20, &n, &err), *save;
    CHECK(text);
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (*line == '=') {
            tiny_original_line(&tiny->original[tiny->originals++], line);
        } else {
            tiny->tensor[tiny->tensors].number = tiny->tensors;
            tiny_tensor_line(&tiny->tensor[tiny->tensors++], line);
        }
    }
    return tiny;
}

// k of element i of tensor t, -127..127.
static inline int tiny_k(int t, int64_t i) {
    uint32_t x = (uint32_t)i * 0x9e3779b1u + (uint32_t)t * 0x85ebca77u;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return (int)((x ^ (x >> 16)) % 255) - 127;
}

// Its values as `type`: f32, bf16 or f16, which hold them exactly; q8_0 of matrices whose rows are
// whole blocks.
static inline void *tiny_values(void *parent, const TinyTensor *t, DType type) {
    uint8_t *out = mem_new(parent, (size_t)dtype_bytes(type, (uint64_t)t->count));
    float scale = (float)ldexp(1, t->exponent);
    if (type == DT_Q8_0) { // blocks of a scale (f16) and 32 bytes
        for (int64_t i = 0; i < t->count; i++) {
            uint8_t *block = out + i / 32 * 34;
            if (i % 32 == 0) dtype_convert(DT_F16, block, DT_F32, &scale, 1);
            block[2 + i % 32] = (uint8_t)(int8_t)tiny_k(t->number, i);
        }
        return out;
    }
    float *v = MEM_ARRAY(NULL, float, t->count);
    for (int64_t i = 0; i < t->count; i++)
        v[i] = (float)t->offset + (float)tiny_k(t->number, i) * scale;
    dtype_convert(type, out, DT_F32, v, (size_t)t->count);
    mem_free(v);
    return out;
}

// ---- in transformers' and diffusers' names -----------------------------------------------------

// Tensors of a part into `w`, every `step`-th from `first` on, behind `prefix`.
static inline void tiny_put(const Tiny *tiny, StWriter *w, const char *part, const char *prefix,
                            int first, int step) {
    int seen = 0;
    for (int i = 0; i < tiny->tensors; i++) {
        const TinyTensor *t = &tiny->tensor[i];
        if (strcmp(t->part, part) || seen++ % step != first) continue;
        DType type = t->ndim > 1 ? DT_BF16 : DT_F32;
        st_put(w, mem_printf(w, "%s%s", prefix, t->name), type, t->ndim, t->shape,
               tiny_values(w, t, type));
    }
}

static inline void tiny_write(StWriter *w, const char *path) {
    Error err = {0};
    char *folder = os_dir_name(w, path);
    CHECK(os_make_dirs(folder, &err));
    CHECK(st_write(w, path, &err));
    mem_free(w);
}

static inline void tiny_part(const Tiny *tiny, const char *part, const char *path) {
    StWriter *w = st_writer(NULL);
    tiny_put(tiny, w, part, "", 0, 1);
    tiny_write(w, path);
}

static inline void tiny_copy(const char *from, const char *to) {
    Error err = {0};
    size_t n;
    void *scope = mem_new(NULL, 1);
    uint8_t *bytes = os_read_file(scope, from, 1 << 26, &n, &err);
    CHECK(bytes);
    CHECK(os_make_dirs(os_dir_name(scope, to), &err));
    CHECK(os_write_file(to, bytes, n, &err));
    mem_free(scope);
}

// The folder of a pipeline; T5 is in two shards with an index.
static inline void tiny_folder(const Tiny *tiny, const char *folder) {
    static const char *const texts[] = {
        "model_index.json",           "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder_2/config.json", "transformer/config.json",         "vae/config.json"};
    static const char *const parts[][2] = {{"text_encoder", "model"},
                                           {"transformer", "diffusion_pytorch_model"},
                                           {"vae", "diffusion_pytorch_model"}};
    void *scope = mem_new(NULL, 1);
    Error err = {0};
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        tiny_copy(os_path_join(scope, FLUX_TINY, texts[i]), os_path_join(scope, folder, texts[i]));
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        tiny_part(tiny, parts[i][0],
                  mem_printf(scope, "%s/%s/%s.safetensors", folder, parts[i][0], parts[i][1]));
    char *index = mem_strdup(scope, "");
    int seen = 0;
    for (int k = 0; k < 2; k++) {
        StWriter *w = st_writer(NULL);
        tiny_put(tiny, w, "text_encoder_2", "", k, 2);
        tiny_write(w, mem_printf(scope, "%s/text_encoder_2/model-0000%d-of-00002.safetensors",
                                 folder, k + 1));
    }
    for (int i = 0; i < tiny->tensors; i++)
        if (!strcmp(tiny->tensor[i].part, "text_encoder_2")) {
            index = mem_printf(scope, "%s%s\"%s\":\"model-0000%d-of-00002.safetensors\"", index,
                               seen ? "," : "", tiny->tensor[i].name, seen % 2 + 1);
            seen++;
        }
    index = mem_printf(scope, "{\"metadata\":{\"total_size\":0},\"weight_map\":{%s}}", index);
    CHECK(os_write_file(mem_printf(scope, "%s/text_encoder_2/model.safetensors.index.json", folder),
                        index, strlen(index), &err));
    mem_free(scope);
}

// ---- in the original names ----------------------------------------------------------------------

// The pieces stacked; *shape and *ndim are those of the whole.
static inline uint8_t *tiny_stacked(void *parent, const Tiny *tiny, const TinyOriginal *o,
                                    DType type, int *ndim, int64_t *shape, size_t *bytes) {
    const TinyTensor *first = &tiny->tensor[o->piece[0]];
    int64_t count = 0, rows = 0;
    for (int i = 0; i < o->count; i++) {
        count += tiny->tensor[o->piece[i]].count;
        rows += tiny->tensor[o->piece[i]].shape[0];
    }
    *ndim = first->ndim;
    memcpy(shape, first->shape, sizeof first->shape);
    shape[0] = rows;
    // The original autoencoder's attention has convolutions of 1 x 1.
    if (strstr(o->name, "attn_1") && *ndim == 2) *ndim = 4, shape[2] = shape[3] = 1;
    *bytes = (size_t)dtype_bytes(type, (uint64_t)count);
    uint8_t *out = mem_new(parent, *bytes), *to = out;
    for (int i = 0; i < o->count; i++) {
        const TinyTensor *t = &tiny->tensor[o->piece[i]];
        size_t n = (size_t)dtype_bytes(type, (uint64_t)t->count), half = o->swapped ? n / 2 : 0;
        uint8_t *values = tiny_values(NULL, t, type);
        memcpy(to, values + half, n - half);
        memcpy(to + (n - half), values, half);
        mem_free(values);
        to += n;
    }
    return out;
}

static inline void tiny_put_original(const Tiny *tiny, StWriter *w, const char *part,
                                     const char *prefix) {
    for (int i = 0; i < tiny->originals; i++) {
        const TinyOriginal *o = &tiny->original[i];
        if (strcmp(o->part, part)) continue;
        DType type = tiny->tensor[o->piece[0]].ndim > 1 ? DT_BF16 : DT_F32;
        int ndim;
        int64_t shape[4];
        size_t bytes;
        uint8_t *data = tiny_stacked(w, tiny, o, type, &ndim, shape, &bytes);
        st_put(w, mem_printf(w, "%s%s", prefix, o->name), type, ndim, shape, data);
    }
}

// ComfyUI's checkpoint with everything in it.
static inline void tiny_checkpoint(const Tiny *tiny, const char *path) {
    StWriter *w = st_writer(NULL);
    tiny_put_original(tiny, w, "transformer", "model.diffusion_model.");
    tiny_put_original(tiny, w, "vae", "vae.");
    tiny_put(tiny, w, "text_encoder", "text_encoders.clip_l.transformer.", 0, 1);
    tiny_put(tiny, w, "text_encoder_2", "text_encoders.t5xxl.transformer.", 0, 1);
    tiny_write(w, path);
}

static inline void tiny_original_part(const Tiny *tiny, const char *part, const char *path) {
    StWriter *w = st_writer(NULL);
    tiny_put_original(tiny, w, part, "");
    tiny_write(w, path);
}

static inline bool tiny_bytes(void *user, uint64_t offset, void *out, size_t n, Error *err) {
    (void)err;
    memcpy(out, (const uint8_t *)user + offset, n);
    return true;
}

// The transformer as city96's converter writes it: vectors f32, matrices q8_0 (f16 where a row is
// not whole blocks).
static inline void tiny_gguf(const Tiny *tiny, const char *path) {
    Error err = {0};
    GgufWriter *w = gguf_writer(NULL);
    gguf_put_text(w, "general.architecture", "flux");
    for (int i = 0; i < tiny->originals; i++) {
        const TinyOriginal *o = &tiny->original[i];
        if (strcmp(o->part, "transformer")) continue;
        const TinyTensor *t = &tiny->tensor[o->piece[0]];
        DType type = t->ndim == 1 ? DT_F32 : t->shape[t->ndim - 1] % 32 ? DT_F16 : DT_Q8_0;
        int ndim;
        int64_t shape[4];
        size_t bytes;
        uint8_t *data = tiny_stacked(w, tiny, o, type, &ndim, shape, &bytes);
        gguf_put_tensor(w, o->name, type, ndim, shape, tiny_bytes, data);
    }
    CHECK(gguf_write(w, path, &err));
    mem_free(w);
}

#endif
