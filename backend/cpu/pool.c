// pool.c: see pool.h. One atomic word says which job is open and how many workers are inside it;
// workers that come late find the job closed, so the caller never waits for a sleeping thread.
#include "backend/cpu/pool.h"

#include <stdatomic.h>

enum { SPINS = 2000, MAX_THREADS = 512 };
#define INSIDE UINT64_C(0xffff) // workers inside the job
#define CLOSED UINT64_C(0x10000)
#define JOB UINT64_C(0x20000)   // one job number

typedef struct Worker {
    Pool *pool;
    Thread *thread;
    int index;
} Worker;

struct Pool {
    _Atomic uint64_t state;
    _Atomic int sleepers, stop;
    Mutex *lock;
    Cond *work, *done;
    int workers;
    Worker *worker;
    // The open job: written while no worker is inside.
    void (*run)(void *arg, int64_t part, int thread);
    void *arg;
    int64_t parts;
    _Atomic int64_t next;
    bool (*asked)(void *user); // see pool_watch
    void *user;
    _Atomic bool stopped;
};

static void pause_thread(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool stop(Pool *p, int thread) {
    if (!thread && p->asked && p->asked(p->user)) atomic_store(&p->stopped, true);
    return atomic_load_explicit(&p->stopped, memory_order_relaxed);
}

static void claim(Pool *p, int thread) {
    while (!stop(p, thread)) {
        int64_t part = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (part >= p->parts) return;
        p->run(p->arg, part, thread);
    }
}

// Is there a job that this worker has not been in?
static bool open_job(uint64_t state, uint64_t last) {
    return !(state & CLOSED) && state / JOB != last;
}

static void work(void *arg) {
    Worker *w = arg;
    Pool *p = w->pool;
    uint64_t last = UINT64_MAX, state;
    for (;;) {
        for (int i = 0; i < SPINS && !open_job(atomic_load(&p->state), last); i++) {
            if (atomic_load_explicit(&p->stop, memory_order_relaxed)) return;
            pause_thread();
        }
        if (!open_job(atomic_load(&p->state), last)) {
            mutex_lock(p->lock);
            atomic_fetch_add(&p->sleepers, 1);
            while (!open_job(atomic_load(&p->state), last) && !atomic_load(&p->stop))
                cond_wait(p->work, p->lock);
            atomic_fetch_sub(&p->sleepers, 1);
            mutex_unlock(p->lock);
            if (atomic_load(&p->stop)) return;
        }
        state = atomic_load(&p->state);
        if (!open_job(state, last) || !atomic_compare_exchange_strong(&p->state, &state, state + 1))
            continue;
        last = state / JOB;
        claim(p, w->index);
        state = atomic_fetch_sub(&p->state, 1) - 1;
        if ((state & CLOSED) && !(state & INSIDE)) { // the caller may be asleep
            mutex_lock(p->lock);
            cond_wake_all(p->done);
            mutex_unlock(p->lock);
        }
    }
}

Pool *pool_new(void *parent, int threads) {
    Pool *p = MEM_NEW(parent, Pool);
    p->lock = mutex_new(p);
    p->work = cond_new(p);
    p->done = cond_new(p);
    atomic_store(&p->state, CLOSED);
    int n = MAX(0, MIN(threads, MAX_THREADS) - 1);
    p->worker = MEM_ARRAY(p, Worker, n);
    for (int i = 0; i < n; i++) {
        Worker *w = &p->worker[p->workers];
        *w = (Worker){.pool = p, .index = p->workers + 1};
        w->thread = thread_start(p, work, w);
        if (!w->thread) break;
        p->workers++;
    }
    return p;
}

void pool_free(Pool *p) {
    if (!p) return;
    mutex_lock(p->lock);
    atomic_store(&p->stop, 1);
    cond_wake_all(p->work);
    mutex_unlock(p->lock);
    for (int i = 0; i < p->workers; i++) thread_join(p->worker[i].thread);
    mem_free(p);
}

void pool_watch(Pool *p, bool (*asked)(void *user), void *user) {
    p->asked = asked;
    p->user = user;
    atomic_store(&p->stopped, false);
}

bool pool_stopped(const Pool *p) { return atomic_load(&p->stopped); }

int pool_threads(const Pool *p) { return p->workers + 1; }

void pool_run(Pool *p, int64_t parts, void (*run)(void *arg, int64_t part, int thread), void *arg) {
    if (p->workers == 0 || parts <= 1) {
        for (int64_t i = 0; i < parts && !stop(p, 0); i++) run(arg, i, 0);
        return;
    }
    p->run = run;
    p->arg = arg;
    p->parts = parts;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    uint64_t job = atomic_load(&p->state) / JOB + 1;
    atomic_store(&p->state, job * JOB); // opens the job
    if (atomic_load(&p->sleepers)) {
        mutex_lock(p->lock);
        cond_wake_all(p->work);
        mutex_unlock(p->lock);
    }
    claim(p, 0);
    atomic_fetch_or(&p->state, CLOSED);
    for (int i = 0; i < SPINS && (atomic_load(&p->state) & INSIDE); i++) pause_thread();
    if (atomic_load(&p->state) & INSIDE) {
        mutex_lock(p->lock);
        while (atomic_load(&p->state) & INSIDE) cond_wait(p->done, p->lock);
        mutex_unlock(p->lock);
    }
}
