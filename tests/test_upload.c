// test_upload.c: weights on their way to a device: the bytes that bound_read gives, whatever the threads,
// types and layouts; counted, stopped when asked, failing with one error; and what has been moved leaves
// the mapping, while memory that only looks like one is left alone.
#include "tests/check.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "backend/os.h"
#include "engine/safetensors.h"
#include "engine/upload.h"
#include "tests/scratch.h"

enum { LARGE = 40, COUNT = 6 }; // MiB of the largest tensor

typedef struct World {
    char *dir, *path;
    Device *dev;
    Weights *w;
    BindWant want[COUNT];
} World;

static const struct { const char *name; int ndim; int64_t shape[4]; BindLayout layout; } tensors[COUNT] = {
    {"a.large", 2, {LARGE * 256, 2048}, BIND_PLAIN}, {"b.bias", 1, {777}, BIND_PLAIN},
    {"c.conv", 4, {96, 64, 3, 3}, BIND_CONV},        {"d.row", 2, {1, 4096}, BIND_PLAIN},
    {"e.long", 2, {3, 1 << 20}, BIND_PLAIN},         {"f.middle", 2, {1234, 992}, BIND_PLAIN},
};

static bool fill(void *user, uint64_t offset, void *out, size_t n, Error *err) {
    (void)user, (void)err;
    uint16_t *v = out;
    for (size_t i = 0; i < n / 2; i++) // small bf16 numbers, another in every place
        v[i] = (uint16_t)(0x3c00 | ((offset / 2 + i) * 2654435761u >> 13 & 0x81ff));
    return true;
}

static World *world_new(void) {
    Error err = {0};
    World *x = MEM_NEW(NULL, World);
    x->dir = scratch_new(x);
    x->path = os_path_join(x, x->dir, "w.safetensors");
    StWriter *st = st_writer(x);
    for (int i = 0; i < COUNT; i++) {
        st_put_fill(st, tensors[i].name, DT_BF16, tensors[i].ndim, tensors[i].shape, fill, NULL);
        x->want[i] = (BindWant){
            .name = tensors[i].name, .ndim = tensors[i].ndim, .layout = tensors[i].layout};
        memcpy(x->want[i].shape, tensors[i].shape, sizeof tensors[i].shape);
    }
    CHECK(st_write(st, x->path, &err));
    x->w = weights_open(x, x->path, &err);
    CHECK(x->w);
    x->dev = dev_open(NULL, "cpu", NULL, &err);
    CHECK(x->dev);
    return x;
}

static void world_free(World *x) {
    weights_close(x->w);
    dev_close(x->dev);
    scratch_remove(x->dir);
    mem_free(x);
}

// Buffers with some room before each tensor.
static UploadItem *items_new(World *x, const BoundWeight *bound) {
    Error err = {0};
    UploadItem *item = MEM_ARRAY(x, UploadItem, COUNT);
    for (int i = 0; i < COUNT; i++) {
        item[i] = (UploadItem){&bound[i], buf_new(x->dev, bound[i].bytes + 64, "weights", &err), 64};
        CHECK(item[i].buffer);
    }
    return item;
}

static void items_free(UploadItem *item) {
    for (int i = 0; i < COUNT; i++) buf_free(item[i].buffer);
    mem_free(item);
}

static void check_items(const UploadItem *item) {
    Error err = {0};
    for (int i = 0; i < COUNT; i++) {
        const BoundWeight *b = item[i].weight;
        uint8_t *want = malloc(b->bytes), *got = malloc(b->bytes);
        CHECK(bound_read(b, 0, want, b->bytes, &err));
        CHECK(dev_read(item[i].buffer, item[i].offset, got, b->bytes, &err));
        assert_memory_equal(got, want, b->bytes);
        free(want), free(got);
    }
}

// What of this process is in memory: of files that are mapped, and its own; 0: the system does not say.
typedef struct Held { uint64_t files, own; } Held;

static Held held(void) {
    unsigned long long all, resident = 0, files = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return (Held){0};
    if (fscanf(f, "%llu %llu %llu", &all, &resident, &files) != 3) resident = files = 0;
    fclose(f);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (Held){files * page, (resident - files) * page};
}

typedef struct Watch { uint64_t moved; Held most; } Watch;

static bool watch(void *user, uint64_t moved) {
    Watch *w = user;
    Held now = held();
    w->moved += moved;
    w->most.files = MAX(w->most.files, now.files);
    w->most.own = MAX(w->most.own, now.own);
    return true;
}

// All of it there, so that only what an upload itself takes comes on top.
static void touch(const UploadItem *item) {
    Error err = {0};
    for (int i = 0; i < COUNT; i++)
        CHECK(dev_fill(item[i].buffer, 0, buf_size(item[i].buffer) / 4 * 4, 0, &err));
}

static void test_types(void **state) {
    (void)state;
    static const DType types[] = {DT_COUNT, DT_F32, DT_F16, DT_Q8_0};
    for (size_t k = 0; k < COUNT_OF(types); k++) {
        Error err = {0};
        World *x = world_new(); // whose file no one has read
        BoundWeight *bound = bind_weights(x, x->w, x->want, COUNT, &(BindOptions){.type = types[k]}, &err);
        CHECK(bound);
        UploadItem *item = items_new(x, bound);
        touch(item);
        Watch seen = {0};
        Held before = held();
        uint64_t bytes = 0, each = UINT64_C(6) << 20; // of a thread, 2 MiB and less at a time
        for (int i = 0; i < COUNT; i++) bytes += bound[i].bytes;
        upload_soon(item, COUNT);
        CHECK(upload_weights(item, COUNT, watch, &seen, &err));
        assert_int_equal(seen.moved, bytes);
        uint64_t room = each * (uint64_t)MIN(dev_threads(x->dev), 6);
        if (!before.files) print_message("SKIP: what is in memory is not known here\n");
        else if (seen.most.files > before.files + room)
            fail_msg("%d MiB were mapped at a time", (int)((seen.most.files - before.files) >> 20));
        else if (held().files > before.files + (4 << 20))
            fail_msg("%d MiB stay mapped", (int)((held().files - before.files) >> 20));
        print_message("    %s: %.1f MiB of the file, %.1f MiB beside\n", dtype_name(bound[0].dtype),
                      (double)(int64_t)(seen.most.files - before.files) / (1 << 20),
                      (double)(int64_t)(seen.most.own - before.own) / (1 << 20));
#ifndef __SANITIZE_ADDRESS__
        if (before.own && seen.most.own > before.own + room)
            fail_msg("%d MiB beside the device's", (int)((seen.most.own - before.own) >> 20));
#endif
        check_items(item);
        items_free(item);
        world_free(x);
    }
}

// A file in memory of the caller's looks like a mapping: it must not be given away.
static void test_borrowed(void **state) {
    (void)state;
    Error err = {0};
    World *x = world_new();
    size_t n;
    uint8_t *copy = os_read_file(x, x->path, (size_t)1 << 30, &n, &err);
    CHECK(copy);
    Weights *w = weights_parse(x, x->path, copy, n, &err);
    CHECK(w);
    BoundWeight *bound = bind_weights(x, w, x->want, COUNT, NULL, &err);
    CHECK(bound);
    UploadItem *item = items_new(x, bound);
    for (int i = 0; i < 2; i++) CHECK(upload_weights(item, COUNT, NULL, NULL, &err));
    const BoundWeight *same = bind_weights(x, x->w, x->want, COUNT, NULL, &err);
    CHECK(same);
    for (int i = 0; i < COUNT; i++) item[i].weight = &same[i]; // the file's own bytes
    check_items(item);
    items_free(item);
    weights_close(w);
    world_free(x);
}

typedef struct Stop { int calls, at; } Stop;
static bool stop(void *user, uint64_t moved) {
    (void)moved;
    Stop *s = user;
    return ++s->calls < s->at;
}

static void test_stopping(void **state) {
    (void)state;
    World *x = world_new();
    Error err = {0};
    BoundWeight *bound = bind_weights(x, x->w, x->want, COUNT, &(BindOptions){.type = DT_F32}, &err);
    CHECK(bound);
    UploadItem *item = items_new(x, bound);
    for (int at = 1; at <= 4; at++) {
        Error why = {0};
        Stop s = {.at = at};
        // Asked once for each part that the caller moves: now and then the others leave it too few.
        for (int tries = 0; tries < 100 && upload_weights(item, COUNT, stop, &s, &why); tries++) {
            assert_in_range(s.calls, 1, at - 1);
            s.calls = 0;
        }
        assert_int_equal(why.status, STATUS_CANCELLED);
        assert_int_equal(s.calls, at); // not asked again
    }
    CHECK(upload_weights(item, COUNT, NULL, NULL, &err));
    check_items(item);
    items_free(item);
    world_free(x);
}

// ---- sources that fail ----------------------------------------------------------------------------

typedef struct Faulty { const Weights *from; atomic_int reads; int fail_at; } Faulty;

static bool read_faulty(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    Faulty *f = user;
    if (atomic_fetch_add(&f->reads, 1) >= f->fail_at)
        return err_failed(err, "disk: expected data, found a bad sector; replace it");
    return weights_read(f->from, weights_at(f->from, index), offset, out, bytes, err);
}

static void test_failing(void **state) {
    (void)state;
    Error err = {0};
    World *x = world_new();
    WeightTensor t[COUNT];
    for (int i = 0; i < COUNT; i++) t[i] = *weights_at(x->w, i);
    Faulty f = {.from = x->w};
    Weights *w = weights_synthetic(x, "faulty", t, COUNT, read_faulty, &f);
    BoundWeight *bound = bind_weights(x, w, x->want, COUNT, NULL, &err);
    CHECK(bound);
    UploadItem *item = items_new(x, bound);
    for (int at = 0; at < 24; at += 6) {
        Error why = {0};
        f.reads = 0;
        f.fail_at = at;
        assert_false(upload_weights(item, COUNT, NULL, NULL, &why));
        assert_non_null(strstr(why.text, "bad sector"));
        assert_true(f.reads <= at + 8); // at most one more per thread
    }
    f.fail_at = INT32_MAX;
    CHECK(upload_weights(item, COUNT, NULL, NULL, &err));
    check_items(item);
    items_free(item);
    world_free(x);
}

// ---- how many threads -----------------------------------------------------------------------------

typedef struct Busy { const Weights *from; atomic_int now, most; } Busy;

static bool read_slowly(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    Busy *b = user;
    int now = atomic_fetch_add(&b->now, 1) + 1, most = b->most;
    while (now > most && !atomic_compare_exchange_weak(&b->most, &most, now)) continue;
    if (offset % (1 << 20) == 0) os_sleep(0.002);
    bool ok = weights_read(b->from, weights_at(b->from, index), offset, out, bytes, err);
    atomic_fetch_sub(&b->now, 1);
    return ok;
}

static void test_threads(void **state) {
    (void)state;
    static const DType types[] = {DT_COUNT, DT_Q8_0};
    World *x = world_new();
    WeightTensor t[COUNT];
    for (int i = 0; i < COUNT; i++) t[i] = *weights_at(x->w, i);
    Busy busy = {.from = x->w};
    Weights *w = weights_synthetic(x, "slow", t, COUNT, read_slowly, &busy);
    for (size_t k = 0; k < COUNT_OF(types); k++)
        for (int threads = 1; threads <= 3; threads++) {
            Error err = {0};
            dev_close(x->dev);
            x->dev = dev_open(NULL, "cpu", &(DeviceOptions){.threads = threads}, &err);
            CHECK(x->dev);
            assert_int_equal(dev_threads(x->dev), threads);
            BoundWeight *bound =
                bind_weights(x, w, x->want, COUNT, &(BindOptions){.type = types[k]}, &err);
            CHECK(bound);
            UploadItem *item = items_new(x, bound);
            busy.most = 0;
            CHECK(upload_weights(item, COUNT, NULL, NULL, &err));
            assert_in_range(busy.most, MIN(threads, 2), threads);
            check_items(item);
            items_free(item);
        }
    world_free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types), cmocka_unit_test(test_borrowed), cmocka_unit_test(test_stopping),
        cmocka_unit_test(test_failing), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
