// loader.c: shuffled batches read ahead by background threads. See loader.h.
//
// A ring of slots. Under the mutex a worker takes the next batch of the stream (its place and
// sample numbers) and the ring's next slot; it fills the pictures without the mutex. The consumer
// takes slots in stream order, so threads never change what comes out.
#include "engine/loader.h"

#include "backend/os.h"
#include "engine/rng.h"

enum { MAX_BATCH = 65536, MAX_THREADS = 64, SLOTS_PER_THREAD = 2, EXTRA_SLOTS = 2, NEAREST = 1000 };

// Streams of the seed from here on are the loader's: one per epoch ("load" in front).
static const uint64_t ORDER_STREAM = 0x6c6f616400000000u;

typedef enum { SLOT_FREE, SLOT_TAKEN, SLOT_READY } SlotState;

typedef struct Slot {
    SlotState state;
    LoaderBatch batch;
    uint8_t *pixels;
    float *floats;
    int32_t *labels, *samples;
    bool failed;
    Error err;
} Slot;

struct Loader {
    const Dataset *set;
    LoaderOptions o;
    int count; // samples in the set
    Mutex *mutex;
    Cond *changed;
    Thread *threads[MAX_THREADS];
    int started;
    // Under the mutex:
    bool stop;
    Slot *slots;
    int slot_count;
    int64_t made, given; // batches handed to workers, to the consumer
    bool holds;          // the consumer still reads slot given - 1
    int64_t epoch, position;
    uint32_t *order; // [count] of `order_epoch`
    int64_t order_epoch;
    int64_t replaced;
};

// ---- the stream ---------------------------------------------------------------------------------

static void make_order(Loader *l) {
    if (l->order_epoch == l->epoch) return;
    l->order_epoch = l->epoch;
    for (int i = 0; i < l->count; i++) l->order[i] = (uint32_t)i;
    if (!l->o.shuffle) return;
    Rng rng;
    rng_seed(&rng, l->o.seed, ORDER_STREAM + (uint64_t)l->epoch);
    rng_shuffle(&rng, l->order, (size_t)l->count);
}

static bool is_flipped(const Loader *l, int64_t epoch, int64_t place) {
    if (!l->o.flip) return false;
    // splitmix64's finish (G. Steele et al., 2014) over the three numbers.
    uint64_t h = l->o.seed + 0x9e3779b97f4a7c15u * (uint64_t)(epoch + 1);
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u + (uint64_t)place;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    return (h ^ (h >> 31)) & 1;
}

// How many pictures the batch at `position` has; 0: the epoch is over there.
static int batch_at(const Loader *l, int64_t position) {
    int64_t left = l->count - position;
    if (left >= l->o.batch) return l->o.batch;
    return l->o.drop_last || left < 0 ? 0 : (int)left;
}

// Moves (epoch, position) to the start of the next batch, over the end of an epoch if need be.
static void settle(const Loader *l, int64_t *epoch, int64_t *position) {
    if (batch_at(l, *position)) return;
    ++*epoch;
    *position = 0;
}

// Describes the next batch of the stream in `slot` and moves on. Under the mutex.
static void take_batch(Loader *l, Slot *slot) {
    settle(l, &l->epoch, &l->position);
    slot->failed = false;
    slot->batch = (LoaderBatch){.epoch = l->epoch, .position = l->position};
    LoaderBatch *b = &slot->batch;
    if (!l->o.epochs || l->epoch < l->o.epochs) {
        make_order(l);
        b->count = batch_at(l, l->position);
        for (int k = 0; k < b->count; k++) slot->samples[k] = (int32_t)l->order[l->position + k];
        l->position += b->count;
        settle(l, &l->epoch, &l->position);
    }
    b->next_epoch = l->epoch;
    b->next_position = l->position;
}

// ---- filling ------------------------------------------------------------------------------------

static void mirror(uint8_t *planes, int size) {
    for (int row = 0; row < 3 * size; row++) {
        uint8_t *p = planes + (size_t)row * (size_t)size;
        for (int x = 0; x < size / 2; x++) {
            uint8_t kept = p[x];
            p[x] = p[size - 1 - x];
            p[size - 1 - x] = kept;
        }
    }
}

// Sample `*i`, or (unless the caller wants none of that) the next sound one behind it.
static bool read_sound(Loader *l, int32_t *i, bool strict, uint8_t *planes, int *replaced,
                       Error *err) {
    for (int tries = 0; tries < MIN(l->count, (int)NEAREST); tries++) {
        if (dataset_read(l->set, *i, l->o.size, planes, err)) return true;
        if (strict) return false;
        *i = (*i + 1) % l->count;
        ++*replaced;
    }
    return false;
}

static void fill(Loader *l, Slot *slot, int *replaced) {
    size_t n = 3 * (size_t)l->o.size * (size_t)l->o.size;
    bool strict = dataset_is_strict(l->set);
    for (int k = 0; k < slot->batch.count && !slot->failed; k++) {
        uint8_t *planes = slot->pixels + (l->o.floats ? 0 : (size_t)k * n);
        slot->failed = !read_sound(l, &slot->samples[k], strict, planes, replaced, &slot->err);
        if (slot->failed) break;
        if (is_flipped(l, slot->batch.epoch, slot->batch.position + k)) mirror(planes, l->o.size);
        slot->labels[k] = dataset_label(l->set, slot->samples[k]);
        if (!l->o.floats) continue;
        float *to = slot->floats + (size_t)k * n;
        for (size_t p = 0; p < n; p++) to[p] = image_to_float(planes[p]);
    }
}

static void worker(void *arg) {
    Loader *l = arg;
    mutex_lock(l->mutex);
    while (!l->stop) {
        Slot *slot = &l->slots[l->made % l->slot_count];
        if (slot->state != SLOT_FREE) {
            cond_wait(l->changed, l->mutex);
            continue;
        }
        slot->state = SLOT_TAKEN;
        l->made++;
        take_batch(l, slot);
        mutex_unlock(l->mutex);
        int replaced = 0;
        fill(l, slot, &replaced);
        mutex_lock(l->mutex);
        l->replaced += replaced;
        slot->state = SLOT_READY;
        cond_wake_all(l->changed);
    }
    mutex_unlock(l->mutex);
}

// ---- the public part ----------------------------------------------------------------------------

static bool check_options(const Dataset *set, const LoaderOptions *o, Error *err) {
    const char *path = dataset_path(set);
    int count = dataset_count(set);
    if (o->batch < 1 || o->batch > MAX_BATCH)
        return err_failed(err, "batch: expected 1 to %d, found %d; change it", MAX_BATCH, o->batch);
    if (o->drop_last && count < o->batch)
        return err_failed(
            err, "%s: expected at least one batch of %d pictures, found %d; lower the batch", path,
            o->batch, count);
    if (o->epoch < 0 || o->position < 0 || o->position > count)
        return err_failed(
            err,
            "%s: expected a place of 0 to %d in the data, found epoch %lld, place %lld; "
            "is it the data of the checkpoint?",
            path, count, (long long)o->epoch, (long long)o->position);
    return true;
}

static void make_slots(Loader *l, int threads) {
    size_t pixels = 3 * (size_t)l->o.size * (size_t)l->o.size, batch = (size_t)l->o.batch;
    l->slot_count = threads * SLOTS_PER_THREAD + EXTRA_SLOTS;
    l->slots = MEM_ARRAY(l, Slot, l->slot_count);
    for (int i = 0; i < l->slot_count; i++) {
        Slot *s = &l->slots[i];
        s->pixels =
            mem_new(l->slots, mem_mul(pixels, l->o.floats ? 1 : batch)); // floats: one, as scratch
        s->floats = l->o.floats ? MEM_ARRAY(l->slots, float, mem_mul(pixels, batch)) : NULL;
        s->labels = MEM_ARRAY(l->slots, int32_t, batch);
        s->samples = MEM_ARRAY(l->slots, int32_t, batch);
    }
}

Loader *loader_open(void *parent, Dataset *set, const LoaderOptions *options, Error *err) {
    DatasetLoad load = {.size = options->size,
                        .cache_limit = options->cache_limit,
                        .progress = options->progress,
                        .user = options->user};
    if (!dataset_load(set, &load, err) || !check_options(set, options, err)) return NULL;
    Loader *l = MEM_NEW(parent, Loader);
    l->set = set;
    l->o = *options;
    l->count = dataset_count(set);
    l->epoch = options->epoch;
    l->position = options->position;
    l->order = MEM_ARRAY(l, uint32_t, l->count);
    l->order_epoch = -1;
    l->mutex = mutex_new(l);
    l->changed = cond_new(l);
    int threads = MIN(MAX(options->threads, 1), (int)MAX_THREADS);
    make_slots(l, threads);
    while (l->started < threads && (l->threads[l->started] = thread_start(NULL, worker, l)))
        l->started++;
    if (l->started) return l;
    err_failed(err,
               "loader: expected a thread for reading ahead, found none; close other programs");
    loader_close(l);
    return NULL;
}

bool loader_next(Loader *l, LoaderBatch *batch, Error *err) {
    mutex_lock(l->mutex);
    if (l->holds) {
        l->slots[l->given % l->slot_count].state = SLOT_FREE;
        l->holds = false;
        l->given++;
        cond_wake_all(l->changed);
    }
    Slot *slot = &l->slots[l->given % l->slot_count];
    while (slot->state != SLOT_READY) cond_wait(l->changed, l->mutex);
    // After a failure or the end the slot stays: asking again gives the same answer.
    l->holds = !slot->failed && slot->batch.count;
    mutex_unlock(l->mutex);
    *batch = slot->batch;
    batch->pixels = l->o.floats ? NULL : slot->pixels;
    batch->floats = slot->floats;
    batch->labels = slot->labels;
    batch->samples = slot->samples;
    if (!slot->failed) return true;
    batch->count = 0;
    if (err) *err = slot->err;
    return false;
}

int loader_batches_per_epoch(const Loader *l) {
    return l->o.drop_last ? l->count / l->o.batch : (l->count + l->o.batch - 1) / l->o.batch;
}

int64_t loader_replaced(Loader *l) {
    mutex_lock(l->mutex);
    int64_t replaced = l->replaced;
    mutex_unlock(l->mutex);
    return replaced;
}

void loader_close(Loader *l) {
    if (!l) return;
    mutex_lock(l->mutex);
    l->stop = true;
    cond_wake_all(l->changed);
    mutex_unlock(l->mutex);
    for (int i = 0; i < l->started; i++) thread_join(l->threads[i]);
    mem_free(l);
}
