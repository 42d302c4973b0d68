// plan.h: from a graph to a program: dead ops removed, lifetimes, one arena with fixed offsets,
// barriers, and the peak known before anything is allocated.
//
// A Run owns several plans for one device that share an arena (prompt stage, step stage, decode:
// only one runs at a time, so running one overwrites the inputs and outputs of the others).
#ifndef KILN_PLAN_H
#define KILN_PLAN_H

#include "engine/graph.h"

typedef struct Run Run;
typedef struct Plan Plan;

typedef struct RunOptions {
    bool no_alias;  // tests: every tensor gets memory of its own
    bool all_barriers; // tests: a barrier before every op
} RunOptions;

typedef struct RunMemory {
    uint64_t weights_bytes;  // all stores of run_add_store
    uint64_t arena_bytes;    // shared by the plans: their maximum
    uint64_t program_bytes;  // argument blocks of all plans
    uint64_t staging_bytes;  // the device's, for transfers
    uint64_t peak_bytes;     // the sum: what the device's allocator will see
    uint64_t driver_bytes;   // allowance for the driver, outside the peak
} RunMemory;

Run *run_new(void *parent, Device *dev, const RunOptions *options); // options may be NULL
void run_free(Run *run); // with its device memory (not the stores'); before dev_close
// Counts a store's bytes in the peak (committed already or not); not owned.
void run_add_store(Run *run, Store *store);
// Plans `g`; errors stuck in the graph surface here. Nothing is allocated. The graph must live as
// long as the run. `name` appears in messages ("step").
Plan *run_add_plan(Run *run, Graph *g, const char *name, Error *err);
RunMemory run_memory(const Run *run);
// Refuses where the peak is over the device's budget (the text gives the figure needed), commits
// stores not yet committed, allocates the arena, records the programs.
bool run_prepare(Run *run, Error *err);

// Tests: fills the arena with NaN; inputs are to be written again.
bool run_poison(Run *run, Error *err);

// Whole tensors. `t`: an input (write) or an output (read) of the plan's graph; the host's element
// type is converted. Sizes are those of t.
bool plan_write(Plan *plan, Tensor *t, DType from, const void *data, Error *err);
bool plan_read(Plan *plan, Tensor *t, DType to, void *data, Error *err);
// Runs and waits. Inputs stay as they are, so a plan may be run again with some of them changed.
bool plan_run(Plan *plan, const Cancel *cancel, Error *err);

typedef struct PlanStats {
    const char *name;
    int ops, ops_removed, barriers;
    uint64_t arena_bytes, arena_unaliased_bytes; // with and without sharing of memory
    double planning_ms;
    double flops, bytes; // of all ops; known after run_prepare
} PlanStats;
PlanStats plan_stats(const Plan *plan);

#endif
