// stack.h: running a model that is a sequence of units (the blocks of a transformer) within a
// memory budget. A unit is what is resident together: its weights, and one graph recorded over them.
// Activations that pass from unit to unit live in a Store of state tensors.
//
// Residency: where the budget allows it every unit's weights stay on the device. Else the units that
// do not fit stream through a ring of two slots at fixed addresses: while one unit runs, a thread
// reads the next one's weights and uploads them, on into the next pass where the caller says that one
// follows. Which units stay is chosen so that the fewest bytes move, and spread evenly, so that uploads
// overlap the work of units that stay. Every unit has programs of its own (it always streams through the
// same slot), recorded once, by stack_prepare. The results are the same bits whatever is resident. All
// figures are known after stack_new, before anything is allocated.
//
// Thread-safety: a Stack belongs to its device's thread.
#ifndef KILN_ENGINE_STACK_H
#define KILN_ENGINE_STACK_H

#include "engine/bind.h"
#include "engine/plan.h"

typedef struct StackUnit {
    const char *name;          // "double_blocks.3": messages and progress
    int kind;                  // the model's own; units of a kind whose weights have the same types and
                               // shapes are recorded alike, so one of them is planned for all
    int weights;
    const BoundWeight *weight; // [weights]; optional ones that are missing have pieces 0
    int index;                 // the model's own number for it
} StackUnit;

// What it points to lives as long as the stack.
typedef struct StackSpec {
    const char *name; // of the stage: "transformer"
    int units;
    const StackUnit *unit;
    // Records one unit: w[i] is weight i (NULL: missing). Results go into state tensors
    // (g_param(g, state), given as an op's output or copied there).
    void (*record)(void *user, Graph *g, const StackUnit *unit, Param *const *w);
    void *user;
    Store *state; // not owned; committed by stack_prepare (if it is not yet); its bytes count. May be NULL
    const Cancel *cancel; // asked while stack_prepare uploads, in its thread; may be NULL
    // Told there too, of the bytes that stay; may be NULL.
    void (*loading)(void *user, uint64_t done, uint64_t total);
    void *loading_user;
} StackSpec;

typedef struct StackMemory {
    uint64_t resident_bytes; // weights that stay
    uint64_t streamed_bytes; // weights that do not (their size in the model)
    uint64_t slots_bytes;    // the ring
    uint64_t state_bytes, arena_bytes, program_bytes, staging_bytes;
    uint64_t peak_bytes;     // the sum of all but streamed_bytes: what the device's allocator will see
    uint64_t moved_bytes;    // uploaded per pass over all units
    uint64_t smallest_peak;  // the smallest budget that works
    double planning_ms;
} StackMemory;

typedef struct Stack Stack;
// Plans within `budget` bytes (0: the device's budget; another may be larger, to see a plan that
// this device could not hold), of which what others hold on the device now is taken off. NULL with
// an error that gives the smallest budget that works. Graph i records unit i.
Stack *stack_new(void *parent, Device *dev, const StackSpec *spec, uint64_t budget, Error *err);
void stack_free(Stack *s); // with its device memory (not the state store's)
StackMemory stack_memory(const Stack *s);
// Allocates, records all programs, uploads what is resident. After a failure only stack_free is left.
bool stack_prepare(Stack *s, Error *err);

typedef struct StackPass {
    int first, count;  // units; count 0: all from first
    // Another pass follows, from the unit after these (after the last one the first): the ring is
    // filled for it while this one ends. A pass that begins elsewhere is right too, only slower.
    bool more;
    const Cancel *cancel;
    // Before each unit; may be NULL. done counts units of this pass.
    void (*progress)(void *user, const char *unit, int done, int total);
    void *user;
} StackPass;
// One pass over the units in order (pass NULL: all). State tensors are read and written with
// param_read and param_write between passes.
bool stack_run(Stack *s, const StackPass *pass, Error *err);
// Bytes uploaded for the streamed units that have run so far, as counted while they were moved.
uint64_t stack_moved(const Stack *s);
int stack_units(const Stack *s);
bool stack_unit_resident(const Stack *s, int unit);
uint64_t stack_unit_bytes(const Stack *s, int unit); // of its weights
// Seconds the device spent on a unit in the last pass; its work (after stack_prepare).
double stack_unit_seconds(const Stack *s, int unit);
Work stack_unit_work(const Stack *s, int unit);

#endif
