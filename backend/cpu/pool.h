// pool.h: a thread pool for parallel loops with low latency: workers spin for some microseconds
// after a job, then sleep.
//
// Parts are claimed by whichever thread is free, so results may not depend on the thread: work is
// cut into parts by shape alone and each part writes its own output. Then the same bits come out
// for any number of threads.
#ifndef KILN_CPU_POOL_H
#define KILN_CPU_POOL_H

#include "backend/os.h"

typedef struct Pool Pool;

// `threads` counts the caller; fewer where the system gives no more. Freed by pool_free only.
Pool *pool_new(void *parent, int threads);
void pool_free(Pool *pool); // NULL is allowed
int pool_threads(const Pool *pool);
// Calls run(arg, part, thread) for each part in 0..parts-1 and returns when all are done; thread is
// in 0..pool_threads-1 and names a scratch space that no other running part uses. Not reentrant;
// one caller at a time.
void pool_run(Pool *pool, int64_t parts, void (*run)(void *arg, int64_t part, int thread),
              void *arg);
// From now on the caller's thread asks this before each of its parts (NULL: never). Once it answers
// true no further part begins, in this pool_run or later ones, until pool_watch is called again.
void pool_watch(Pool *pool, bool (*asked)(void *user), void *user);
bool pool_stopped(const Pool *pool);

#endif
