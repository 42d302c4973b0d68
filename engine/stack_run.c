// stack_run.c: memory and execution of a stack: uploads, the thread that feeds the ring. See stack.h.
#include "engine/stack_impl.h"

// ---- uploads ------------------------------------------------------------------------------------

static bool upload_scales(const Unit *u, UploadGoOn *go_on, void *user, Error *err) {
    bool ok = true;
    for (int i = 0; ok && i < u->spec->weights; i++) {
        const Param *scale = u->weight[i] ? u->weight[i]->scale : NULL;
        const float *value = &u->spec->weight[i].scale;
        ok = !scale || (dev_upload(scale->buffer, scale->offset, value, sizeof *value, err) &&
                        (go_on(user, sizeof *value) || err_set(err, STATUS_CANCELLED, "cancelled")));
    }
    return ok;
}

// ---- preparing ----------------------------------------------------------------------------------

static bool allocate(Stack *s, int blocks, const uint64_t *bytes, const char *what, Buffer ***out,
                     Error *err) {
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

static void list_items(Unit *u) {
    u->item = MEM_ARRAY(u, UploadItem, MAX(u->spec->weights, 1));
    for (int i = 0; i < u->spec->weights; i++) {
        const Param *p = u->weight[i];
        if (p) u->item[u->items++] = (UploadItem){&u->spec->weight[i], p->buffer, p->offset};
    }
}

static bool not_cancelled(void *user, uint64_t moved) {
    Stack *s = user;
    const Cancel *cancel = s->spec.cancel;
    s->loaded += moved;
    if (s->spec.loading) s->spec.loading(s->spec.loading_user, s->loaded, s->memory.resident_bytes);
    return !cancel || !cancel->asked(cancel->user);
}

// All that stays, as one list: the disk never waits between units.
static bool upload_resident(Stack *s, Error *err) {
    ARRAY(UploadItem) all = {0};
    void *scratch = mem_new(NULL, 1);
    bool ok = true;
    for (int i = 0; i < s->units; i++) {
        const Unit *u = s->unit[i];
        if (u->slot != RESIDENT) continue;
        for (int k = 0; k < u->items; k++) ARR_PUSH(scratch, &all, u->item[k]);
        ok = ok && upload_scales(u, not_cancelled, s, err);
    }
    ok = ok && upload_weights(all.v, all.n, not_cancelled, s, err);
    mem_free(scratch);
    return ok;
}

// The plans that another unit's stood for: they must take what it does.
static bool plan_rest(Stack *s, Error *err) {
    for (int i = 0; i < s->units; i++) {
        Unit *u = s->unit[i];
        const Unit *like = s->unit[u->like];
        if (u == like) continue;
        if (!stack_plan_unit(s, u, err)) return false;
        PlanStats found = plan_stats(u->plan), wanted = plan_stats(like->plan);
        if (found.ops != wanted.ops || found.arena_bytes != wanted.arena_bytes)
            return err_failed(err, "%s: expected %d ops and %llu bytes, as %s takes, found %d and %llu; "
                              "this is a defect", u->spec->name, wanted.ops,
                              (unsigned long long)wanted.arena_bytes, like->spec->name, found.ops,
                              (unsigned long long)found.arena_bytes);
    }
    return true;
}

static bool prepare(Stack *s, Error *err) {
    if (!plan_rest(s, err)) return false;
    if (!place_weights(s, err)) return false;
    for (int i = 0; i < s->units; i++) list_items(s->unit[i]);
    if (s->units) upload_soon(s->unit[0]->item, s->unit[0]->items); // while kernels are made
    return run_prepare(s->run, err) && upload_resident(s, err);
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

// Streamed units are loaded in the order in which they run, around the ring of all units, and numbered
// from the thread's start. A number goes into its slot when the one that lies there has run. Where the
// streamed units are odd in number the last and the first share a slot: there is less overlap there.
struct Feed {
    Stack *s;
    Thread *thread;
    int first; // the unit of number 0
    int next;  // the unit that the next pass has to begin with; the caller's
    Mutex *lock;
    Cond *changed;
    // Under the lock:
    int64_t loaded, done;  // how many are on the device, how many have run
    int64_t wanted;        // how many are to be loaded so far
    uint64_t moved;        // of the one being loaded
    uint64_t bytes[SLOTS]; // moved for what lies in each slot
    bool stop, failed;
    Error error;
};

// The first streamed unit from i on, around the ring. There is one.
static int streamed_from(const Stack *s, int i) {
    for (;; i++)
        if (s->unit[i % s->units]->slot != RESIDENT) return i % s->units;
}

static bool go_on(void *user, uint64_t moved) {
    Feed *f = user;
    mutex_lock(f->lock);
    f->moved += moved;
    bool stop = f->stop;
    cond_wake_all(f->changed); // who waits looks at `cancel`
    mutex_unlock(f->lock);
    return !stop;
}

// Waits until number k is wanted, and then until `done` have run; false: to stop.
static bool may_load(Feed *f, int64_t k, int64_t done) {
    mutex_lock(f->lock);
    while (!f->stop && (k >= f->wanted || f->done < done)) cond_wait(f->changed, f->lock);
    bool go = !f->stop;
    f->moved = 0;
    mutex_unlock(f->lock);
    return go;
}

static void feed(void *arg) {
    Feed *f = arg;
    int64_t in_slot[SLOTS] = {0}; // numbers from 1; 0: nothing yet
    bool ok = true;
    for (int64_t k = 0, i = f->first; ok; k++, i = streamed_from(f->s, (int)i + 1)) {
        const Unit *u = f->s->unit[i];
        if (!may_load(f, k, 0)) return;
        upload_soon(u->item, u->items);
        if (!may_load(f, k, in_slot[u->slot])) return;
        Error why = {0};
        ok = upload_weights(u->item, u->items, go_on, f, &why) && upload_scales(u, go_on, f, &why);
        mutex_lock(f->lock);
        if (ok) {
            f->bytes[u->slot] = f->moved;
            f->loaded = in_slot[u->slot] = k + 1;
        } else if (!f->stop) {
            f->failed = true;
            f->error = why;
            err_prefix(&f->error, "%s", u->spec->name);
        }
        cond_wake_all(f->changed);
        mutex_unlock(f->lock);
    }
}

void feed_stop(Stack *s) {
    Feed *f = s->feed;
    if (!f) return;
    mutex_lock(f->lock);
    f->stop = true;
    cond_wake_all(f->changed);
    mutex_unlock(f->lock);
    if (f->thread) thread_join(f->thread);
    mem_free(f);
    s->feed = NULL;
}

// Sees to it that the streamed units of a pass are being loaded.
static bool feed_pass(Stack *s, const StackPass *pass, int end, Error *err) {
    int streamed = 0;
    for (int i = pass->first; i < end; i++) streamed += s->unit[i]->slot != RESIDENT;
    if (!streamed) return true;
    int first = streamed_from(s, pass->first);
    if (s->feed && s->feed->next != first) feed_stop(s);
    if (!s->feed) {
        Feed *f = s->feed = MEM_NEW(s, Feed);
        *f = (Feed){.s = s, .first = first, .next = first, .lock = mutex_new(f), .changed = cond_new(f)};
        f->thread = thread_start(f, feed, f);
        if (!f->thread)
            return err_failed(err, "streaming: expected one more thread, found none; close other programs");
    }
    Feed *f = s->feed;
    mutex_lock(f->lock);
    f->wanted = f->done + streamed + (pass->more ? SLOTS : 0);
    cond_wake_all(f->changed);
    mutex_unlock(f->lock);
    return true;
}

static bool asked(const Cancel *cancel) { return cancel && cancel->asked(cancel->user); }

// Waits until the next streamed unit has been loaded.
static bool wait_loaded(Feed *f, const Cancel *cancel, Error *err) {
    bool cancelled = false;
    mutex_lock(f->lock);
    while (f->loaded <= f->done && !f->failed && !(cancelled = asked(cancel))) cond_wait(f->changed, f->lock);
    bool ok = f->loaded > f->done;
    if (!ok && f->failed && err) *err = f->error;
    mutex_unlock(f->lock);
    return ok || (cancelled ? err_set(err, STATUS_CANCELLED, "cancelled") : false);
}

static void has_run(Stack *s, int unit) {
    Feed *f = s->feed;
    mutex_lock(f->lock);
    s->moved += f->bytes[s->unit[unit]->slot];
    f->done++;
    cond_wake_all(f->changed);
    mutex_unlock(f->lock);
    f->next = streamed_from(s, unit + 1);
}

// ---- a pass -------------------------------------------------------------------------------------

static bool run_units(Stack *s, const StackPass *pass, int end, Error *err) {
    for (int i = pass->first; i < end; i++) {
        Unit *u = s->unit[i];
        if (pass->progress) pass->progress(pass->user, u->spec->name, i - pass->first, end - pass->first);
        if (u->slot != RESIDENT && !wait_loaded(s->feed, pass->cancel, err)) return false;
        double start = os_seconds();
        if (asked(pass->cancel)) return err_set(err, STATUS_CANCELLED, "cancelled");
        if (!plan_run(u->plan, pass->cancel, err))
            return (err && err->status == STATUS_CANCELLED) ? false : err_prefix(err, "%s", u->spec->name);
        u->seconds = os_seconds() - start;
        if (u->slot != RESIDENT) has_run(s, i);
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
    bool ok = feed_pass(s, pass, end, &why) && run_units(s, pass, end, &why);
    if (!ok) feed_stop(s); // the next pass begins anew
    if (!ok && why.status != STATUS_CANCELLED) err_prefix(&why, "%s", s->spec.name);
    if (!ok && err) *err = why;
    return ok;
}
