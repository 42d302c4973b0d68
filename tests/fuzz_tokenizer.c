// fuzz_tokenizer.c: any bytes as a tokenizer's file. The first byte says which; the text that an
// opened one then encodes stands behind the last zero byte. Ids stay in the vocabulary, and a limit
// gives the begin of what no limit gives.
#include <assert.h>
#include <stdlib.h>

#include "backend/os.h"
#include "engine/tokenizer.h"
#include "engine/unicode.h"
#include "tests/scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct { TokenizerKind kind; const char *name, *with, *text; } FILES[] = {
    {TOKENIZER_T5, "spiece.model", NULL, NULL},
    {TOKENIZER_T5, "tokenizer.json", NULL, NULL},
    {TOKENIZER_CLIP, "tokenizer.json", NULL, NULL},
    {TOKENIZER_CLIP, "vocab.json", "merges.txt", "a b</w>\n"},
    {TOKENIZER_CLIP, "merges.txt", "vocab.json",
     "{\"a\":0,\"b\":1,\"ab\":2,\"b</w>\":3,\"ab</w>\":4,\"<|startoftext|>\":5,"
     "\"<|endoftext|>\":6}"},
    {TOKENIZER_T5, "tokenizer_config.json", "tokenizer.json",
     "{\"model\":{\"unk_id\":2,\"vocab\":[[\"<pad>\",0],[\"</s>\",0],[\"<unk>\",0],[\"a\",-1]]}}"},
};

static void encode(const Tokenizer *t, const char *text, size_t n) {
    Error err = {0};
    Tokens all, some;
    size_t bad;
    bool ok = tokenizer_encode(t, text, n, 0, false, NULL, &all, &err);
    assert(ok == utf8_valid(text, n, &bad));
    if (!ok) return;
    for (int i = 0; i < all.count; i++) assert(tokenizer_piece(t, all.ids[i]));
    ok = tokenizer_encode(t, text, n, 5, true, NULL, &some, &err);
    assert(ok && some.count == 5 && some.used == MIN(all.used, 5));
    assert(some.truncated == (all.used > 5));
    assert(!memcmp(some.ids, all.ids, (size_t)(some.used - 1) * sizeof *all.ids));
    mem_free(all.ids);
    mem_free(some.ids);
}

static const char *dir; // one folder for the whole run

static void remove_dir(void) { scratch_remove(dir); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!dir) {
        dir = scratch_new(NULL);
        atexit(remove_dir);
    }
    if (!size) return 0;
    size_t which = data[0] % COUNT_OF(FILES), text = size;
    while (text > 1 && data[text - 1]) text--;
    size_t end = text > 1 ? text - 1 : size; // the file: up to that zero
    void *scope = mem_new(NULL, 1);
    Error err = {0};
    const char *folder = mem_printf(scope, "%s/%zu", dir, which);
    bool ok = os_make_dirs(folder, &err) &&
              os_write_file(os_path_join(scope, folder, FILES[which].name), data + 1, end - 1, &err);
    if (ok && FILES[which].with)
        ok = os_write_file(os_path_join(scope, folder, FILES[which].with), FILES[which].text,
                           strlen(FILES[which].text), &err);
    assert(ok);
    Tokenizer *t = tokenizer_open(NULL, FILES[which].kind, folder, &err);
    assert(t || (err.status == STATUS_FAILED && err.text[0]));
    if (t) {
        encode(t, (const char *)data + text, size - text);
        encode(t, "<|endoftext|> ab </s>\xe2\x96\x81" "aB\xcc\x81 \xef\xac\x81", 33);
        mem_free(t);
    }
    mem_free(scope);
    return 0;
}
