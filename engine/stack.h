// stack.h: running a model that is a sequence of units (the blocks of a transformer) within a
// memory budget. A unit is what is resident together: its weights, and one graph recorded over them.
// Activations that pass from unit to unit live in a Store of state tensors.
//
// Residency: where the budget allows it every unit's weights stay on the device. Else the units that
// do not fit stream through a ring of two slots at fixed addresses: while one unit runs, a thread
// reads the next one's weights and uploads them. Units of the same kind and types share the programs
// recorded for a slot. All figures are known after stack_new, before anything is allocated.
//
// Thread-safety: a Stack belongs to its device's thread.
#ifndef KILN_ENGINE_STACK_H
#define KILN_ENGINE_STACK_H

#include "engine/bind.h"
#include "engine/plan.h"

typedef struct StackUnit {
    const char *name;          // "double_blocks.3": messages and progress
    int kind;                  // units of one kind record the same graph, given equal types
    int weights;
    const BoundWeight *weight; // [weights]; optional ones that are missing have pieces 0
    int index;                 // the model's own number for it
} StackUnit;

typedef struct StackSpec {
    const char *name; // of the stage: "transformer"
    int units;
    const StackUnit *unit;
    // Records one unit: w[i] is weight i (NULL: missing). Results go into state tensors
    // (g_param(g, state), given as an op's output or copied there).
    void (*record)(void *user, Graph *g, const StackUnit *unit, Param *const *w);
    void *user;
    Store *state; // not owned; committed by stack_prepare; its bytes count
} StackSpec;

typedef struct StackMemory {
    uint64_t resident_bytes; // weights that stay
    uint64_t streamed_bytes; // weights that do not (their size in the model)
    uint64_t slots_bytes;    // the ring
    uint64_t state_bytes, arena_bytes, program_bytes, staging_bytes;
    uint64_t peak_bytes;     // the sum of all but streamed_bytes: what the device's allocator will see
    uint64_t moved_bytes;    // uploaded per pass over all units
    uint64_t smallest_peak;  // the smallest budget that works (everything streamed)
    double planning_ms;
} StackMemory;

typedef struct Stack Stack;
// Plans within `budget` bytes (0: the device's budget). NULL with an error that gives the smallest
// budget that works.
Stack *stack_new(void *parent, Device *dev, const StackSpec *spec, uint64_t budget, Error *err);
void stack_free(Stack *s); // with its device memory (not the state store's)
StackMemory stack_memory(const Stack *s);
// Allocates, uploads what is resident, records all programs.
bool stack_prepare(Stack *s, Error *err);

typedef struct StackPass {
    int first, count;  // units; count 0: all from first
    const Cancel *cancel;
    // Before each unit; may be NULL. done counts units of this pass.
    void (*progress)(void *user, const char *unit, int done, int total);
    void *user;
} StackPass;
// One pass over the units in order (pass NULL: all). State tensors are read and written with
// param_read and param_write between passes.
bool stack_run(Stack *s, const StackPass *pass, Error *err);
uint64_t stack_moved(const Stack *s); // bytes uploaded by stack_run so far, as counted
// Seconds spent per unit in the last pass, and its work.
double stack_unit_seconds(const Stack *s, int unit);
Work stack_unit_work(const Stack *s, int unit);

#endif
