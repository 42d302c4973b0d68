// test_cli_files.c: what `kiln` says of a model's files that contradict each other, and of names that
// nothing can be written to. Every line names its file whole, and nothing is written.
#include "tests/cli.h"
#include "tests/flux_tiny.h"

#include "engine/weights.h"

static struct { void *scope; Tiny *tiny; char *folder; } world;

// `kiln LINE` fails in one line with the parts.
static void refused(const char *line, const char *a, const char *b) {
    void *scope = mem_new(NULL, 1);
    Result r = kiln(scope, "%s", line);
    if (r.status != 1) print_message("kiln %s\n", line);
    WANT_STATUS(r, 1);
    want_one_line(&r);
    WANT_TEXT(r.err, a);
    WANT_TEXT(r.err, b);
    mem_free(scope);
}

static char *model_line(void) {
    return mem_printf(world.scope, "generate -m %s -p x -W 64 -H 64 --steps 1 -o %s", world.folder,
                      at("no.png"));
}

// ---- files of a model that contradict each other --------------------------------------------------

static void files_are_named_whole(void **state) {
    (void)state;
    static const struct { const char *file, *text, *says; } wrong[] = {
        {"scheduler/scheduler_config.json", "{\"_class_name\": \"DDIMScheduler\"}",
         "found \"DDIMScheduler\""},
        {"scheduler/scheduler_config.json", "{", "JSON"},
        {"transformer/config.json", "{\"patch_size\": 2}", "`patch_size` 1"},
        {"transformer/config.json", "{\"num_layers\": true}", "`num_layers`"},
        {"text_encoder/config.json", "{\"hidden_size\": 768}", "found 768"},
        {"text_encoder_2/config.json", "{\"d_ff\": 10240}", "found 10240"},
        {"vae/config.json", "{\"_class_name\": \"AutoencoderKL\", \"latent_channels\": 4}", "found 4"},
        {"model_index.json", "[", "JSON"},
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        void *scope = mem_new(NULL, 1);
        Error err = {0};
        size_t n;
        char *path = os_path_join(scope, world.folder, wrong[i].file);
        uint8_t *sound = os_read_file(scope, path, 1 << 20, &n, &err);
        CHECK(sound);
        CHECK(os_write_file(path, wrong[i].text, strlen(wrong[i].text), &err));
        refused(model_line(), mem_printf(scope, "kiln: %s: ", path), wrong[i].says);
        CHECK(os_write_file(path, sound, n, &err));
        mem_free(scope);
    }
}

static void tokenizers_that_do_not_fit(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    Error err = {0};
    char *folder = os_path_join(scope, world.folder, "tokenizer");
    // A token more than the text encoder has embeddings.
    ARRAY(char) text = {0};
    for (int i = 0; i <= 49408; i++) {
        char token[40];
        int n = i == 0   ? snprintf(token, sizeof token, "{\"<|endoftext|>\":0,\"<|startoftext|>\":1")
                : i == 1 ? 0 : snprintf(token, sizeof token, ",\"t%d\":%d", i, i);
        for (int k = 0; k < n; k++) ARR_PUSH(scope, &text, token[k]);
    }
    ARR_PUSH(scope, &text, '}');
    CHECK(os_make_dirs(folder, &err));
    CHECK(os_write_file(os_path_join(scope, folder, "vocab.json"), text.v, (size_t)text.n, &err));
    CHECK(os_write_file(os_path_join(scope, folder, "merges.txt"), "#version: 0.2\n", 14, &err));
    refused(model_line(), mem_printf(scope, "kiln: %s: expected at most 49408 tokens", folder),
            "found 49409");
    scratch_remove(folder);
    // Another T5: the width is told first, with the file.
    refused(mem_printf(scope, "%s --t5xxl %s/tests/golden/flux_a.safetensors", model_line(), KILN_SOURCE_DIR),
            "flux_a.safetensors: expected ", "found ");
    mem_free(scope);
}

// A weight that is no number spoils a run: the error says which, not only that.
static void weights_that_are_no_numbers(void **state) {
    (void)state;
    static const struct { const char *folder, *file, *blamed; } parts[] = {
        {"transformer", "diffusion_pytorch_model.safetensors", "double_blocks.0.img_mlp.2.weight"},
        {"text_encoder", "model.safetensors", "text_model.encoder.layers.0.mlp.fc2.weight"},
        {"vae", "diffusion_pytorch_model.safetensors", "decoder.mid_block.resnets.0.conv1.weight"},
    };
    static const char *const names[] = {"transformer_blocks.0.ff.net.2.weight",
                                        "text_model.encoder.layers.0.mlp.fc2.weight",
                                        "decoder.mid_block.resnets.0.conv1.weight"};
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        void *scope = mem_new(NULL, 1);
        Error err = {0};
        size_t n;
        char *folder = os_path_join(scope, world.folder, parts[i].folder),
             *path = os_path_join(scope, folder, parts[i].file);
        Weights *w = weights_open(scope, path, &err);
        CHECK(w);
        const WeightTensor *t = weights_find(w, names[i]);
        assert_non_null(t);
        uint64_t at = t->at + t->count / 2 * 2;
        assert_int_equal(t->dtype, DT_BF16);
        weights_close(w);
        uint8_t *sound = os_read_file(scope, path, 1 << 26, &n, &err);
        CHECK(sound);
        uint8_t *spoilt = mem_new(scope, n);
        memcpy(spoilt, sound, n);
        memcpy(spoilt + at, i ? "\x80\x7f" : "\xc0\x7f", 2);
        CHECK(os_write_file(path, spoilt, n, &err));
        const char *line = mem_printf(scope, "kiln: %s: tensor %s: expected finite", folder, parts[i].blamed);
        refused(model_line(), line, i ? "found infinity" : "found NaN");
        CHECK(os_write_file(path, sound, n, &err));
        mem_free(scope);
    }
}

// ---- names that nothing can be written to ---------------------------------------------------------

static void outputs_are_checked_first(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    char name[300 + 1] = {0}, *nowhere = at("nowhere"), *npy = at("latents.npy");
    memset(name, 'n', sizeof name - 1);
    Error err = {0};
    CHECK(os_write_file(npy, "", 0, &err));
    // The inputs are no good either: outputs are looked at before they are read.
    const char *const lines[] = {
        mem_printf(scope, "generate -m %s -p x -W 64 -H 64 --steps 1 -o %%s.png", world.folder),
        mem_printf(scope, "generate -m %s -p x -W 64 -H 64 --steps 1 -b 2 -o %%s.png", world.folder),
        mem_printf(scope, "generate -m %s -p x -W 64 -H 64 --steps 1 -o %s --preview %%s.png", world.folder,
                   at("no.png")),
        mem_printf(scope, "generate -m %s -p x -W 64 -H 64 --steps 1 -o %s --dump %%s/d", world.folder,
                   at("no.png")),
        "generate -m nano -o %s.png",
        "convert -m no-such-model -o %s.gguf",
        mem_printf(scope, "vae --vae no-such-vae --decode %s -o %%s.png", npy),
        "vae --vae no-such-vae -i no.png --encode %s.npy",
        "dataset preview no-such-data -o %s.png",
    };
    for (size_t i = 0; i < COUNT_OF(lines); i++) {
        const char *end = strstr(lines[i], "%s");
        int before = (int)(end - lines[i]);
        refused(mem_printf(scope, "%.*s%s/%s%s", before, lines[i], cli->dir, name, end + 2), name,
                "expected a ");
        if (strstr(lines[i], "--dump")) continue; // makes its folders
        refused(mem_printf(scope, "%.*s%s/x%s", before, lines[i], nowhere, end + 2), nowhere,
                "expected a folder that can be written");
    }
    assert_false(exists(at("no.png")));
    mem_free(scope);
}

// What a killed conversion left goes with the next one.
static void leavings_are_cleared(void **state) {
    (void)state;
    void *scope = mem_new(NULL, 1);
    Error err = {0};
    char *dir = fresh("converted"), *left = os_path_join(scope, dir, ".x.gguf.kiln-tmp-0123abcd");
    CHECK(os_write_file(left, "x", 1, &err));
    Result r = kiln(scope, "convert -m %s/transformer -o %s/y.gguf", world.folder, dir);
    WANT_STATUS(r, 0);
    assert_false(exists(left));
    assert_int_equal(entries(dir), 1);
    mem_free(scope);
}

static int set_up(void **state) {
    (void)state;
    if (!cli_open()) return -1;
    world.scope = mem_new(NULL, 1);
    world.tiny = tiny_read(world.scope);
    world.folder = at("model");
    tiny_folder(world.tiny, world.folder);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    mem_free(world.scope);
    cli_close();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_are_named_whole),
        cmocka_unit_test(tokenizers_that_do_not_fit),
        cmocka_unit_test(weights_that_are_no_numbers),
        cmocka_unit_test(outputs_are_checked_first),
        cmocka_unit_test(leavings_are_cleared),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
