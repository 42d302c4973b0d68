// progress.h: one line on a terminal that says how far the work is: stage, step, seconds per step,
// time left, memory. Silent in a pipe and with --quiet; no colours with NO_COLOR.
//
// Thread-safety: one thread.
#ifndef KILN_TOOLS_PROGRESS_H
#define KILN_TOOLS_PROGRESS_H

#include "backend/base.h"

typedef struct Progress Progress;

Progress *progress_new(void *parent, bool quiet); // writes to standard error
bool progress_shown(const Progress *p);           // false: updates do nothing
// A new stage; `unit` is what is counted ("step", "picture"). Ends the stage before.
void progress_stage(Progress *p, const char *stage, const char *unit);
// `done` of `total` (0: unknown); `bytes` of device memory in use (0: not shown); `note` (may be
// NULL) is put at the end, for example a loss. Redraws at most ten times a second.
void progress_update(Progress *p, int64_t done, int64_t total, uint64_t bytes, const char *note);
// Of the step under way, for slow ones: `done` of `total` parts. Times are estimated from them too.
void progress_part(Progress *p, int64_t done, int64_t total);
void progress_clear(Progress *p); // takes the line away, before other output

#endif
