// schedule.h: the times at which a sampler calls the model. One table of kinds; nothing here
// depends on a model.
#ifndef KILN_ENGINE_SCHEDULE_H
#define KILN_ENGINE_SCHEDULE_H

#include "backend/base.h"

typedef struct Schedule {
    int steps;
    double *time; // steps + 1 points, from the first to the end
} Schedule;

enum { SCHEDULE_MAX_STEPS = 10000 };

// Fills points[0..steps].
typedef struct ScheduleKind {
    const char *name, *help;
    void (*fill)(double *points, int steps);
} ScheduleKind;

const ScheduleKind *schedule_find(const char *name); // NULL: unknown
const ScheduleKind *schedule_at(int i);              // NULL: past the last
// steps 1..SCHEDULE_MAX_STEPS. The result hangs on `parent`.
Schedule *schedule_new(void *parent, const ScheduleKind *kind, int steps, Error *err);

#endif
