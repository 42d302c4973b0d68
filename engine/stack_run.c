// stack_run.c: memory and execution of a stack: uploads, the thread that feeds the ring. See stack.h.
#include "engine/stack_impl.h"

// Weights pass to the device in parts of this size: what is between two looks at `cancel`.
#define CHUNK_BYTES (UINT64_C(4) << 20)

// ---- uploads ------------------------------------------------------------------------------------

// Called between parts with the bytes moved so far; false stops the upload.
typedef struct Watch { bool (*go_on)(void *user, uint64_t moved); void *user; } Watch;

static bool upload_weight(Stack *s, const BoundWeight *b, const Param *p, const Watch *watch, Error *err) {
    uint64_t row = bound_row_bytes(b), most = MAX(s->chunk_bytes / row, 1) * row;
    for (uint64_t at = 0, n; at < b->bytes; at += n) {
        n = MIN(most, b->bytes - at);
        const void *data = bound_data(b, at, &n);
        if (!data) {
            if (!bound_read(b, at, s->chunk, n, err)) return err_prefix(err, "%s", b->name);
            data = s->chunk;
        }
        if (!dev_upload(p->buffer, p->offset + at, data, n, err)) return false;
        if (!watch->go_on(watch->user, n)) return err_set(err, STATUS_CANCELLED, "cancelled");
    }
    return true;
}

static bool upload_unit(Stack *s, const Unit *u, const Watch *watch, Error *err) {
    for (int i = 0, next = 0; i < u->spec->weights; i++) {
        const BoundWeight *b = &u->spec->weight[i];
        if (!b->pieces) continue;
        if (!upload_weight(s, b, store_at(u->store, next++), watch, err)) return false;
        if (b->scale == 1) continue;
        const Param *scale = store_at(u->store, next++);
        if (!dev_upload(scale->buffer, scale->offset, &b->scale, sizeof b->scale, err)) return false;
        if (!watch->go_on(watch->user, sizeof b->scale)) return err_set(err, STATUS_CANCELLED, "cancelled");
    }
    return true;
}

// ---- preparing ----------------------------------------------------------------------------------

static bool allocate(Stack *s, int blocks, const uint64_t *bytes, const char *what, Buffer ***out, Error *err) {
    *out = MEM_ARRAY(s, Buffer *, MAX(blocks, 1));
    for (int i = 0; i < blocks; i++)
        if (!((*out)[i] = buf_new(s->dev, bytes[i], what, err))) return false;
    return true;
}

static bool place_weights(Stack *s, Error *err) {
    for (int i = 0; i < SLOTS; i++)
        if (!allocate(s, s->slot[i].blocks, s->slot[i].bytes, "slot for weights", &s->slot[i].block, err))
            return false;
    for (int i = 0; i < s->units; i++) {
        Unit *u = s->unit[i];
        if (u->slot != RESIDENT) u->block = s->slot[u->slot].block;
        else if (!allocate(s, u->blocks, u->block_bytes, "weights", &u->block, err)) return false;
        for (int k = 0; k < store_count(u->store); k++) {
            Param *p = store_at(u->store, k);
            p->buffer = u->block[u->place[k].block];
            p->offset = u->place[k].offset;
        }
    }
    return true;
}

static bool not_cancelled(void *user, uint64_t moved) {
    (void)moved;
    const Cancel *cancel = ((const Stack *)user)->spec.cancel;
    return !cancel || !cancel->asked(cancel->user);
}

static bool prepare(Stack *s, Error *err) {
    s->chunk_bytes = MAX(CHUNK_BYTES, s->row_bytes);
    s->chunk = os_block_new(s->chunk_bytes);
    if (!s->chunk)
        return err_failed(err, "host memory: expected %llu bytes, found less; close other programs",
                          (unsigned long long)s->chunk_bytes);
    if (!place_weights(s, err) || !run_prepare(s->run, err)) return false;
    Watch watch = {not_cancelled, s};
    for (int i = 0; i < s->units; i++)
        if (s->unit[i]->slot == RESIDENT && !upload_unit(s, s->unit[i], &watch, err))
            return err->status != STATUS_CANCELLED && err_prefix(err, "%s", s->unit[i]->spec->name);
    return true;
}

bool stack_prepare(Stack *s, Error *err) {
    Error why = {0};
    if (s->ready) return true;
    s->ready = prepare(s, &why);
    if (s->ready) return true;
    if (why.status != STATUS_CANCELLED) err_prefix(&why, "%s", s->spec.name);
    if (err) *err = why;
    return false;
}

// ---- the thread that feeds the ring ---------------------------------------------------------------

// Streamed units are loaded in the order of the pass. Number k goes into its slot when number
// k - SLOTS has run.
typedef struct Feed {
    Stack *s;
    int first, end; // units of the pass
    Mutex *lock;
    Cond *changed;
    int loaded, done; // how many streamed units are on the device, and how many have run
    bool stop, failed;
    Error error;
} Feed;

static bool go_on(void *user, uint64_t moved) {
    Feed *f = user;
    mutex_lock(f->lock);
    f->s->moved += moved;
    bool stop = f->stop;
    cond_wake_all(f->changed); // who waits looks at `cancel`
    mutex_unlock(f->lock);
    return !stop;
}

static void feed(void *arg) {
    Feed *f = arg;
    Watch watch = {go_on, f};
    bool ok = true;
    for (int i = f->first, k = 0; ok && i < f->end; i++) {
        const Unit *u = f->s->unit[i];
        if (u->slot == RESIDENT) continue;
        mutex_lock(f->lock);
        while (!f->stop && k - f->done >= SLOTS) cond_wait(f->changed, f->lock);
        ok = !f->stop;
        mutex_unlock(f->lock);
        Error why = {0};
        ok = ok && upload_unit(f->s, u, &watch, &why);
        mutex_lock(f->lock);
        if (ok) {
            f->loaded = ++k;
        } else if (!f->stop) {
            f->failed = true;
            f->error = why;
            err_prefix(&f->error, "%s", u->spec->name);
        }
        cond_wake_all(f->changed);
        mutex_unlock(f->lock);
    }
}

static bool asked(const Cancel *cancel) { return cancel && cancel->asked(cancel->user); }

// Waits until `number` streamed units have been loaded.
static bool wait_loaded(Feed *f, int number, const Cancel *cancel, Error *err) {
    bool cancelled = false;
    mutex_lock(f->lock);
    while (f->loaded < number && !f->failed && !(cancelled = asked(cancel))) cond_wait(f->changed, f->lock);
    bool ok = f->loaded >= number;
    if (f->failed && err) *err = f->error;
    mutex_unlock(f->lock);
    return ok || (cancelled ? err_set(err, STATUS_CANCELLED, "cancelled") : false);
}

static void mark(Feed *f, int done, bool stop) {
    mutex_lock(f->lock);
    f->done = done;
    f->stop |= stop;
    cond_wake_all(f->changed);
    mutex_unlock(f->lock);
}

// ---- a pass -------------------------------------------------------------------------------------

static bool run_units(Stack *s, Feed *f, const StackPass *pass, Error *err) {
    int streamed = 0; // those that have run
    for (int i = f->first; i < f->end; i++) {
        Unit *u = s->unit[i];
        if (pass->progress) pass->progress(pass->user, u->spec->name, i - f->first, f->end - f->first);
        double start = os_seconds();
        if (u->slot != RESIDENT && !wait_loaded(f, streamed + 1, pass->cancel, err)) return false;
        double ready = os_seconds();
        if (asked(pass->cancel)) return err_set(err, STATUS_CANCELLED, "cancelled");
        if (!plan_run(u->plan, pass->cancel, err))
            return (err && err->status == STATUS_CANCELLED) ? false : err_prefix(err, "%s", u->spec->name);
        u->waited = ready - start;
        u->seconds = os_seconds() - ready;
        if (u->slot != RESIDENT) mark(f, ++streamed, false);
    }
    return true;
}

bool stack_run(Stack *s, const StackPass *pass, Error *err) {
    static const StackPass all = {0};
    if (!pass) pass = &all;
    Error why = {0};
    int end = pass->count ? pass->first + pass->count : s->units;
    if (!s->ready || pass->first < 0 || end > s->units)
        return err_failed(err, "%s: expected a prepared stack and units within %d, found %d to %d; this is a "
                          "defect", s->spec.name, s->units, pass->first, end);
    Feed *f = MEM_NEW(NULL, Feed);
    *f = (Feed){.s = s, .first = pass->first, .end = end, .lock = mutex_new(f), .changed = cond_new(f)};
    bool streams = false;
    for (int i = f->first; i < f->end; i++) streams |= s->unit[i]->slot != RESIDENT;
    Thread *thread = streams ? thread_start(f, feed, f) : NULL;
    bool ok = !streams || thread ||
              err_failed(&why, "streaming: expected one more thread, found none; close other programs");
    ok = ok && run_units(s, f, pass, &why);
    mark(f, f->done, true);
    if (thread) thread_join(thread);
    mem_free(f);
    if (!ok && why.status != STATUS_CANCELLED) err_prefix(&why, "%s", s->spec.name);
    if (!ok && err) *err = why;
    return ok;
}
