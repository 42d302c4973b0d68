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
            sound_index = mem_printf(scope, "%s%s\"%s\": \"%s\"", sound_index, i ? ", " : "",
                                     f.t[i].name, name);
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

static const Weights *part[PART_COUNT]; // sound

static bool use_index(Error *err) {
    char *path = mem_printf(NULL, "%s/%s/%s", root, FILES[0].folder, FILES[0].name);
    Weights *w = weights_open(path, path, err);
    bool ok = w && flux_open(path, w, NULL, DT_COUNT, err);
    if (w) use_tensors(w);
    weights_close(w);
    mem_free(path);
    return ok;
}

static bool use_pipeline(Error *err) {
    const ModelPaths paths = {.model = root};
    ModelParts *parts = model_parts_open(NULL, &paths, err);
    model_parts_close(parts);
    return parts != NULL;
}

// What configuration `file` describes, opened with it.
static bool use_config(int file, const char *text, Error *err) {
    void *scratch = mem_new(NULL, 1);
    const ConfigFile config = {FILES[file].name, text};
    FlowShift shift = FLOW_SHIFT_FLUX_DEV;
    Vae *vae = NULL;
    bool ok = false;
    switch (file) {
    case 2: ok = flux_open(scratch, part[PART_TRANSFORMER], &config, DT_COUNT, err); break;
    case 3: ok = clip_open(scratch, part[PART_CLIP_L], &config, err); break;
    case 4: ok = t5_open(scratch, part[PART_T5], &config, DT_COUNT, err); break;
    case 5: ok = vae = vae_open(scratch, part[PART_VAE], &config, err); break;
    case 6: ok = flow_shift_parse(&config, &shift, err); break;
    }
    vae_close(vae);
    mem_free(scratch);
    return ok;
}

static bool use_file(int i, const char *text, Error *err) {
    return i == 0 ? use_index(err) : i == 1 ? use_pipeline(err) : use_config(i, text, err);
}

static void start(void) {
    static const char *const folders[PART_COUNT] = {"transformer", "text_encoder", "text_encoder_2", "vae"};
    Error err = {0};
    scope = mem_new(NULL, 1);
    root = scratch_new(scope);
    write_model();
    for (int i = 0; i < PART_COUNT; i++) {
        part[i] = weights_open(scope, os_path_join(scope, root, folders[i]), &err);
        assert(part[i]);
    }
    for (int i = 0; i < (int)COUNT_OF(FILES); i++)
        if (!use_file(i, FILES[i].sound, &err)) {
            err_print(&err, stderr);
            abort();
        }
    atexit(finish);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!root) start();
    if (!size) return -1;
    int i = data[0] % (int)COUNT_OF(FILES);
    if (i >= 2 && memchr(data + 1, 0, size - 1)) return -1; // refused while reading
    char *text = malloc(size); // of exactly its size
    memcpy(text, data + 1, size - 1);
    text[size - 1] = 0;
    if (i < 2) put_file(i, data + 1, size - 1);
    Error err = {0};
    if (!use_file(i, text, &err)) use_refusal(&err);
    if (i < 2) put_file(i, FILES[i].sound ? FILES[i].sound : sound_index,
                        strlen(FILES[i].sound ? FILES[i].sound : sound_index));
    free(text);
    return 0;
}
