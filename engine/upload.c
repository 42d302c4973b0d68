// upload.c: see upload.h. Weights are cut into parts of whole rows; threads take the next part each,
// and point the system to the part that is AHEAD_BYTES further on.
#include "engine/upload.h"

#include <stdatomic.h>

#include "backend/os.h"

#define PART_BYTES (UINT64_C(2) << 20)
#define AHEAD_BYTES (UINT64_C(128) << 20)
#define THREAD_BYTES (UINT64_C(8) << 20) // another thread for each of these
enum { MAX_THREADS = 8 }; // and no more than the device may have of the host's

Param *store_add_bound(Store *store, const BoundWeight *b) {
    Param *p = store_add(store, b->name, b->dtype, b->ndim, b->shape);
    if (b->scale != 1) store_add_scale(p);
    return p;
}

typedef struct Place { int item; uint64_t at; } Place;
typedef struct Part { const UploadItem *item; uint64_t at, bytes; } Part;

typedef struct Job {
    const UploadItem *item;
    int count;
    UploadGoOn *go_on;
    void *user;
    Mutex *lock;
    // Under the lock:
    Place next, ahead;
    uint64_t taken, asked; // bytes before these places
    uint64_t moved;        // and not reported yet
    Error error;           // the first
    _Atomic bool stop;
} Job;

static bool next_part(const Job *j, Place *p, Part *out) {
    while (p->item < j->count && p->at == j->item[p->item].weight->bytes) *p = (Place){p->item + 1, 0};
    if (p->item == j->count) return false;
    const UploadItem *item = &j->item[p->item];
    uint64_t row = bound_row_bytes(item->weight), most = MAX(PART_BYTES / row, 1) * row;
    *out = (Part){item, p->at, MIN(most, item->weight->bytes - p->at)};
    p->at += out->bytes;
    return true;
}

// The next part to move, and up to two that are further on: the distance grows at first.
static bool take(Job *j, Part *part, Part ahead[2], int *aheads) {
    mutex_lock(j->lock);
    bool any = !j->stop && next_part(j, &j->next, part);
    *aheads = 0;
    if (any) j->taken += part->bytes;
    while (any && *aheads < 2 && j->asked < j->taken + AHEAD_BYTES &&
           next_part(j, &j->ahead, &ahead[*aheads]))
        j->asked += ahead[(*aheads)++].bytes;
    mutex_unlock(j->lock);
    return any;
}

static bool move_part(const Part *p, uint8_t **chunk, uint64_t chunk_bytes, Error *err) {
    const BoundWeight *b = p->item->weight;
    uint64_t to = p->item->offset + p->at;
    void *place = dev_upload_place(p->item->buffer, to, p->bytes);
    if (!place && !*chunk && !(*chunk = os_block_new(chunk_bytes)))
        return err_failed(err, "host memory: expected %llu bytes, found less; close other programs",
                          (unsigned long long)chunk_bytes);
    if (!bound_read(b, p->at, place ? place : *chunk, p->bytes, err)) return err_prefix(err, "%s", b->name);
    bound_advise(b, p->at, p->bytes, MAP_DONE);
    return place || dev_upload(p->item->buffer, to, *chunk, p->bytes, err);
}

static void fail(Job *j, const Error *why) {
    mutex_lock(j->lock);
    if (!j->stop) j->error = *why;
    j->stop = true;
    mutex_unlock(j->lock);
}

static bool report(Job *j) {
    mutex_lock(j->lock);
    uint64_t moved = j->moved;
    j->moved = 0;
    mutex_unlock(j->lock);
    return !j->go_on || j->go_on(j->user, moved);
}

static void work(Job *j, bool caller) {
    uint64_t chunk_bytes = PART_BYTES;
    for (int i = 0; i < j->count; i++) chunk_bytes = MAX(chunk_bytes, bound_row_bytes(j->item[i].weight));
    uint8_t *chunk = NULL;
    Part part, ahead[2];
    int aheads;
    while (take(j, &part, ahead, &aheads)) {
        Error why = {0};
        for (int i = 0; i < aheads; i++)
            bound_advise(ahead[i].item->weight, ahead[i].at, ahead[i].bytes, MAP_SOON);
        bool ok = move_part(&part, &chunk, chunk_bytes, &why);
        if (ok) {
            mutex_lock(j->lock);
            j->moved += part.bytes;
            mutex_unlock(j->lock);
            ok = !caller || report(j) || err_set(&why, STATUS_CANCELLED, "cancelled");
        }
        if (!ok) fail(j, &why);
    }
    os_block_free(chunk);
}

static void helper(void *job) { work(job, false); }

bool upload_weights(const UploadItem *item, int count, UploadGoOn *go_on, void *user, Error *err) {
    Job *j = MEM_NEW(NULL, Job);
    *j = (Job){.item = item, .count = count, .go_on = go_on, .user = user, .lock = mutex_new(j)};
    uint64_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += item[i].weight->bytes;
    Thread *thread[MAX_THREADS];
    int threads = 0, allowed = count ? MIN(dev_threads(buf_device(item[0].buffer)), MAX_THREADS) : 1;
    int most = (int)MIN(bytes / THREAD_BYTES, (uint64_t)allowed);
    while (threads < most - 1 && (thread[threads] = thread_start(j, helper, j))) threads++;
    work(j, true);
    for (int i = 0; i < threads; i++) thread_join(thread[i]);
    bool ok = !j->stop && (report(j) || err_set(&j->error, STATUS_CANCELLED, "cancelled"));
    if (!ok && err) *err = j->error;
    mem_free(j);
    return ok;
}

void upload_soon(const UploadItem *item, int count) {
    for (uint64_t asked = 0; count-- > 0 && asked < AHEAD_BYTES; item++) {
        uint64_t row = bound_row_bytes(item->weight);
        uint64_t n = MIN(item->weight->bytes, MAX((AHEAD_BYTES - asked) / row, 1) * row);
        bound_advise(item->weight, 0, n, MAP_SOON);
        asked += n;
    }
}
