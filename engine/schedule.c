// schedule.c: see schedule.h.
#include "engine/schedule.h"

// Rectified flow from noise (0) to picture (1) in equal steps.
static void fill_uniform(double *points, int steps) {
    for (int i = 0; i <= steps; i++) points[i] = (double)i / steps;
}

static const ScheduleKind kinds[] = {
    {"uniform", "equal steps of the flow's time from 0 to 1", fill_uniform},
};

const ScheduleKind *schedule_at(int i) {
    return i >= 0 && i < (int)COUNT_OF(kinds) ? &kinds[i] : NULL;
}

const ScheduleKind *schedule_find(const char *name) {
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (!strcmp(kinds[i].name, name)) return &kinds[i];
    return NULL;
}

Schedule *schedule_new(void *parent, const ScheduleKind *kind, int steps, Error *err) {
    if (steps < 1 || steps > SCHEDULE_MAX_STEPS) {
        err_failed(err, "steps: expected 1 to %d, found %d", SCHEDULE_MAX_STEPS, steps);
        return NULL;
    }
    Schedule *s = MEM_NEW(parent, Schedule);
    s->steps = steps;
    s->time = MEM_ARRAY(s, double, steps + 1);
    kind->fill(s->time, steps);
    return s;
}
