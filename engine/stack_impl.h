// stack_impl.h: the inside of a stack, shared by stack.c (plans it) and stack_run.c (carries it out).
#ifndef KILN_STACK_IMPL_H
#define KILN_STACK_IMPL_H

#include "backend/os.h"
#include "engine/stack.h"

enum { SLOTS = 2, RESIDENT = -1 };

typedef struct Place { int block; uint64_t offset; } Place;

typedef struct Unit {
    const StackUnit *spec;
    Store *store;   // its weights' declarations; never committed: the stack places them
    Param **weight; // [spec->weights]; NULL: missing
    Plan *plan;
    Place *place;   // of the store's params, in order
    int blocks;
    uint64_t *block_bytes; // [blocks]
    uint64_t bytes;        // their sum: aligned
    uint64_t moved;        // bytes of an upload
    int slot;              // or RESIDENT
    Buffer **block;        // resident: its own; else the slot's
    double seconds, waited;
} Unit;

typedef struct Slot { int blocks; uint64_t *bytes; Buffer **block; } Slot;

struct Stack {
    Device *dev;
    StackSpec spec;
    Run *run;
    int units;
    Unit **unit;
    Slot slot[SLOTS];
    StackMemory memory;
    uint64_t row_bytes; // of the longest row
    uint8_t *chunk;     // host memory that uploads pass through
    uint64_t chunk_bytes;
    uint64_t moved;
    bool ready;
};

#endif
