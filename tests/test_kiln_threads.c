// Contexts side by side, one per thread (engine/kiln.h): each makes what it would make alone. Runs
// under the thread sanitizer too, so the device is the reference, whose code it sees whole.
#include "engine/kiln.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifndef KILN_SOURCE_DIR
#define KILN_SOURCE_DIR "."
#endif

enum { THREADS = 3, BYTES = 3 * 32 * 32 };

typedef struct Worker {
    pthread_t thread;
    int threads; // of the context
    uint64_t seed, peak;
    bool ok;
    char error[3072];
    uint8_t rgb[BYTES];
} Worker;

static void *work(void *user) {
    Worker *w = user;
    KilnError err = {0};
    KilnDevice devices[4];
    kiln_devices(devices, 4);
    KilnOptions options = {.threads = w->threads, .no_cache = true};
    KilnContext *ctx = kiln_open("ref", &options, &err);
    KilnModel *model = NULL;
    KilnImages *images = NULL;
    if (ctx)
        model =
            kiln_model_open(ctx, KILN_SOURCE_DIR "/tests/golden/nano_p4.safetensors", NULL, &err);
    if (model) {
        KilnRequest r = kiln_request(model);
        r.seed = w->seed, r.steps = 1, r.class_name = "ship";
        images = kiln_generate(model, &r, &err);
        w->peak = kiln_memory(ctx).peak;
    }
    if (images) memcpy(w->rgb, kiln_image(images, 0).rgb, BYTES);
    w->ok = images != NULL;
    memcpy(w->error, err.text, sizeof w->error);
    kiln_model_close(model);
    kiln_close(ctx);
    kiln_images_free(images);
    return NULL;
}

static void contexts_side_by_side(void **state) {
    (void)state;
    static Worker alone[THREADS], together[THREADS];
    for (int i = 0; i < THREADS; i++) {
        alone[i].threads = together[i].threads = 1 + i % 2;
        alone[i].seed = together[i].seed = (uint64_t)i;
        work(&alone[i]);
        if (!alone[i].ok) fail_msg("%s", alone[i].error);
    }
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&together[i].thread, NULL, work, &together[i]), 0);
    for (int i = 0; i < THREADS; i++) pthread_join(together[i].thread, NULL);
    for (int i = 0; i < THREADS; i++) {
        if (!together[i].ok) fail_msg("%s", together[i].error);
        assert_memory_equal(together[i].rgb, alone[i].rgb, BYTES);
        assert_int_equal(together[i].peak, alone[i].peak);
    }
    assert_true(memcmp(alone[0].rgb, alone[1].rgb, BYTES) != 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(contexts_side_by_side)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
