// fuzz_index.c: any text as one of the small files beside the weights of a model: the index of
// shards, a pipeline's model_index.json, a part's configuration. The first byte says which. The rest
// of the model is sound: a tiny FLUX whose sizes the shapes tell.
#include "tests/weights_use.h"

#include "engine/safetensors.h"
#include "engine/schedule.h"
#include "models/autoencoder_kl.h"
#include "tests/scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct { const char *folder, *name, *sound; } FILES[] = {
    {"transformer", "diffusion_pytorch_model.safetensors.index.json", NULL},
    {"", "model_index.json", "{\"_class_name\": \"FluxPipeline\"}"},
    {"transformer", "config.json", "{}"},
    {"text_encoder", "config.json", "{}"},
    {"text_encoder_2", "config.json", "{}"},
    {"vae", "config.json", "{\"norm_num_groups\": 4}"},
    {"scheduler", "scheduler_config.json", "{\"_class_name\": \"FlowMatchEulerDiscreteScheduler\"}"},
};
enum { SHARDS = 2 };

static void *scope; // for the whole run
static char *root;

static void finish(void) {
    scratch_remove(root);
    mem_free(scope);
}

static void put_file(int i, const void *data, size_t n) { // at once: no care for what stood there
    char *path = mem_printf(NULL, "%s/%s/%s", root, FILES[i].folder, FILES[i].name);
    FILE *f = fopen(path, "wb");
    assert(f);
    fwrite(data, 1, n, f);
    fclose(f);
    mem_free(path);
}

static void write_tensors(const char *folder, const char *name, const WeightTensor *t, int from, int to) {
    Error err = {0};
    StWriter *w = st_writer(NULL);
    static const uint8_t zeros[1 << 22];
    for (int i = from; i < to; i++) {
        assert(t[i].bytes <= sizeof zeros);
        st_put(w, t[i].name, t[i].dtype, t[i].ndim, t[i].shape, zeros);
    }
    char *path = mem_printf(w, "%s/%s", root, folder);
    bool ok = os_make_dirs(path, &err) && st_write(w, os_path_join(w, path, name), &err);
    assert(ok);
    mem_free(w);
}

static char *sound_index; // of the transformer's shards

static void write_model(void) {
    int n;
    FluxConfig f = {.in_channels = 16, .out_channels = 16, .heads = 1, .head_dim = 32, .dim = 32, .mlp = 16,
                    .doubles = 1, .singles = 1, .text_dim = 8, .pooled_dim = 8, .guidance = true};
    WeightTensor *t = flux_tensors(scope, &f, DT_F16, &n);
    const int cut[SHARDS + 1] = {0, n / 2, n};
    sound_index = mem_strdup(scope, "{\"weight_map\": {");
    for (int k = 0; k < SHARDS; k++) {
        char *name = mem_printf(scope, "m-%05d-of-%05d.safetensors", k + 1, SHARDS);
        write_tensors("transformer", name, t, cut[k], cut[k + 1]);
        for (int i = cut[k]; i < cut[k + 1]; i++)
            sound_index = mem_printf(scope, "%s%s\"%s\": \"%s\"", sound_index, i ? ", " : "", t[i].name, name);
    }
    sound_index = mem_printf(scope, "%s}}", sound_index);
    ClipConfig c = {.vocab = 16, .positions = 77, .dim = 12, .heads = 1, .layers = 1, .ff = 8};
    t = clip_tensors(scope, &c, DT_F16, &n);
    write_tensors("text_encoder", "model.safetensors", t, 0, n);
    T5Config t5 = {.vocab = 16, .dim = 8, .heads = 1, .head_dim = 8, .layers = 1, .ff = 8, .gated = true,
                   .buckets = 32};
    t = t5_tensors(scope, &t5, DT_F16, &n);
    write_tensors("text_encoder_2", "model.safetensors", t, 0, n);
    KlConfig kl = {.names = KL_DIFFUSERS, .encoder = true, .decoder = true, .attention = true, .channels = 4,
                   .levels = 4, .layers = 1, .groups = 4, .scale = 1, .width = {4, 4, 4, 4}};
    BindWant *wants = kl_wants(scope, &kl, &n, &(int){0});
    t = MEM_ARRAY(scope, WeightTensor, n);
    for (int i = 0; i < n; i++) {
        t[i] = (WeightTensor){.name = wants[i].name, .dtype = DT_F32, .ndim = wants[i].ndim, .bytes = 4};
        memcpy(t[i].shape, wants[i].shape, sizeof t[i].shape);
        for (int d = 0; d < t[i].ndim; d++) t[i].bytes *= (uint64_t)t[i].shape[d];
    }
    write_tensors("vae", "diffusion_pytorch_model.safetensors", t, 0, n);
    char *scheduler = os_path_join(scope, root, "scheduler");
    bool ok = os_make_dirs(scheduler, NULL);
    assert(ok);
    for (int i = 0; i < (int)COUNT_OF(FILES); i++)
        put_file(i, FILES[i].sound ? FILES[i].sound : sound_index,
                 strlen(FILES[i].sound ? FILES[i].sound : sound_index));
}

// Opens every part as a pipeline does, but for the vocabularies, which take long.
static bool opens(Error *err) {
    const ModelPaths paths = {.model = root};
    ModelParts *parts = model_parts_open(NULL, &paths, err);
    if (!parts) return false;
    const ModelPart *part = parts->part;
    for (int i = 0; i < PART_COUNT; i++) use_tensors(part[i].weights);
    void *models = mem_new(NULL, 1);
    FlowShift shift = FLOW_SHIFT_FLUX_DEV;
    bool ok = flux_open(models, part[PART_TRANSFORMER].weights, part[PART_TRANSFORMER].config, DT_COUNT, err) &&
              clip_open(models, part[PART_CLIP_L].weights, part[PART_CLIP_L].config, err) &&
              t5_open(models, part[PART_T5].weights, part[PART_T5].config, DT_COUNT, err);
    Vae *vae = ok ? vae_open(models, part[PART_VAE].weights, part[PART_VAE].config, err) : NULL;
    ok = vae && (!parts->scheduler ||
                 flow_shift_parse(parts->scheduler, strlen(parts->scheduler), "scheduler", &shift, err));
    vae_close(vae);
    mem_free(models);
    model_parts_close(parts);
    return ok;
}

static void start(void) {
    Error err = {0};
    scope = mem_new(NULL, 1);
    root = scratch_new(scope);
    write_model();
    if (!opens(&err)) {
        err_print(&err, stderr);
        abort();
    }
    atexit(finish);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!root) start();
    if (!size) return -1;
    int i = data[0] % (int)COUNT_OF(FILES);
    put_file(i, data + 1, size - 1);
    Error err = {0};
    if (!opens(&err)) use_refusal(&err);
    put_file(i, FILES[i].sound ? FILES[i].sound : sound_index,
             strlen(FILES[i].sound ? FILES[i].sound : sound_index));
    return 0;
}
