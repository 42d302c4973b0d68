// weights_use.h: what the fuzzers of weight files do with a file that was accepted: reads every byte,
// asks what it is, and opens it as every model. Nothing is uploaded.
#ifndef KILN_TESTS_WEIGHTS_USE_H
#define KILN_TESTS_WEIGHTS_USE_H

#include <assert.h>
#include <stdlib.h>

#include "engine/model_parts.h"
#include "engine/vae.h"
#include "models/clip.h"
#include "models/flux.h"
#include "models/t5.h"

static inline void use_refusal(const Error *err) { // one line that says what is wrong
    assert(err->status == STATUS_FAILED && err->text[0] && !strchr(err->text, '\n'));
}

static inline void use_tensors(const Weights *w) {
    static uint8_t buffer[4096];
    for (int i = 0; i < weights_count(w); i++) {
        const WeightTensor *t = weights_at(w, i);
        Error err = {0};
        assert(weights_find(w, t->name) == t);
        const uint8_t *data = weights_data(w, t);
        for (uint64_t at = 0; at < t->bytes; at += sizeof buffer) {
            uint64_t n = MIN(t->bytes - at, sizeof buffer);
            bool ok = weights_read(w, t, at, buffer, n, &err);
            assert(ok && (!data || !memcmp(buffer, data + at, n)));
        }
        assert(!weights_read(w, t, t->bytes, buffer, 1, &err));
    }
    for (int i = 0; i < weights_meta_count(w); i++) {
        const char *value, *key = weights_meta_at(w, i, &value);
        assert(key && value && weights_meta(w, key));
    }
}

static inline void use_models(const Weights *w) {
    Error err[4] = {0};
    const char *prefix = NULL, *kind = weights_architecture(w, &prefix);
    assert(!kind || (prefix && architecture_title(kind)));
    void *scope = mem_new(NULL, 1);
    if (!flux_open(scope, w, NULL, DT_COUNT, &err[0])) use_refusal(&err[0]);
    if (!clip_open(scope, w, NULL, &err[1])) use_refusal(&err[1]);
    if (!t5_open(scope, w, NULL, DT_BF16, &err[2])) use_refusal(&err[2]);
    Vae *vae = vae_open(scope, w, NULL, &err[3]);
    if (!vae) use_refusal(&err[3]);
    vae_close(vae);
    mem_free(scope);
}

#endif
