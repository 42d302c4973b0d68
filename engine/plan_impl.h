// plan_impl.h: the inside of a plan, shared by plan.c (computes it) and run.c (carries it out).
#ifndef KILN_PLAN_IMPL_H
#define KILN_PLAN_IMPL_H

#include "backend/os.h"
#include "engine/graph_impl.h"
#include "engine/plan.h"

struct Plan {
    Run *run;
    Graph *g;
    PlanStats stats;
    // By node:
    bool *alive, *barrier;
    // By storage: bytes from the start of the arena, and the size of the arena's blocks.
    uint64_t *offset, block;
    Program *program;
    uint64_t looked; // tests: how many things planning looked at in its searches
};

TensorRef tensor_ref(const Tensor *t); // without buffer and offset
bool plan_make(Plan *plan, const DeviceInfo *info, const RunOptions *options, Error *err);

#endif
