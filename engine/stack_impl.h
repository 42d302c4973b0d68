// stack_impl.h: the inside of a stack, shared by stack.c (plans it) and stack_run.c (carries it out).
#ifndef KILN_STACK_IMPL_H
#define KILN_STACK_IMPL_H

#include "backend/os.h"
#include "engine/stack.h"
#include "engine/upload.h"

enum { SLOTS = 2, RESIDENT = -1 };

typedef struct Place { int block; uint64_t offset; } Place;

typedef struct Unit {
    const StackUnit *spec;
    Store *store;   // its weights' declarations; never committed: the stack places them
    Param **weight; // [spec->weights]; NULL: missing
    Plan *plan;     // NULL until the stack is prepared where `like` stands for it
    int like;       // the first unit whose plan takes what this one's does
    Place *place;   // of the store's params, in order
    int blocks;
    uint64_t *block_bytes; // [blocks]
    uint64_t bytes;        // their sum: aligned
    uint64_t moved;        // bytes of an upload
    int slot;              // or RESIDENT
    Buffer **block;        // resident: its own; else the slot's
    UploadItem *item;      // [items]: its weights, once they have buffers
    int items;
    double seconds; // of the last pass
} Unit;

typedef struct Slot { int blocks; uint64_t *bytes; Buffer **block; } Slot;

typedef struct Feed Feed; // stack_run.c

struct Stack {
    Device *dev;
    StackSpec spec;
    Run *run;
    int units;
    Unit **unit;
    Slot slot[SLOTS];
    StackMemory memory;
    Feed *feed;     // the thread that feeds the ring; NULL: none yet
    uint64_t moved; // uploaded for units that have run
    uint64_t loaded; // uploaded to stay
    bool ready;
};

bool stack_plan_unit(Stack *s, Unit *u, Error *err); // records it and makes its plan
void feed_stop(Stack *s); // ends the thread, where there is one

#endif
