// fuzz_index.c: any text as one of the small files beside the weights of a model: the index of
// shards, a pipeline's model_index.json, a part's configuration. The first byte says which. The rest
// of the model is sound: a tiny FLUX whose sizes the shapes tell.
#include "tests/weights_use.h"

#include "engine/schedule.h"
#include "tests/tiny_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct { const char *folder, *name, *sound; } FILES[] = {
    {"transformer", "diffusion_pytorch_model.safetensors.index.json", NULL},
    {"", "model_index.json", "{\"_class_name\": \"FluxPipeline\"}"},
    {"transformer", "config.json", "{}"},
    {"text_encoder", "config.json", "{}"},
    {"text_encoder_2", "config.json", "{}"},
    {"vae", "config.json", "{}"},
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

static char *sound_index; // of the transformer's shards

static void write_part(PartId id, const char *name) {
    TinyPart p = tiny_part(scope, id);
    tiny_write(os_path_join(scope, root, name), p.t, 0, p.n);
}

static void write_model(void) {
    TinyPart f = tiny_part(scope, PART_TRANSFORMER);
    const int cut[SHARDS + 1] = {0, f.n / 2, f.n};
    sound_index = mem_strdup(scope, "{\"weight_map\": {");
    for (int k = 0; k < SHARDS; k++) {
        char *name = mem_printf(scope, "m-%05d-of-%05d.safetensors", k + 1, SHARDS);
        tiny_write(mem_printf(scope, "%s/transformer/%s", root, name), f.t, cut[k], cut[k + 1]);
        for (int i = cut[k]; i < cut[k + 1]; i++)
            sound_index = mem_printf(scope, "%s%s\"%s\": \"%s\"", sound_index, i ? ", " : "", f.t[i].name, name);
    }
    sound_index = mem_printf(scope, "%s}}", sound_index);
    write_part(PART_CLIP_L, "text_encoder/model.safetensors");
    write_part(PART_T5, "text_encoder_2/model.safetensors");
    write_part(PART_VAE, "vae/diffusion_pytorch_model.safetensors");
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
