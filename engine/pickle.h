// pickle.h: Python's pickles as plain trees: https://docs.python.org/3/library/pickletools.html.
// Nothing is ever executed: a call is a node that holds its name and arguments, and names that the
// caller has not allowed are refused.
//
// Memory is bounded by the size of the pickle, PICKLE_MAX_VALUES and PICKLE_MAX_ITEMS. A tree may
// share nodes and, in a hostile file, hold itself: walkers bound their depth and the number of
// nodes they visit. Thread-safety: a tree that was read is never changed.
#ifndef KILN_ENGINE_PICKLE_H
#define KILN_ENGINE_PICKLE_H

#include "backend/base.h"

enum { PICKLE_MAX_VALUES = 1000000, PICKLE_MAX_ITEMS = 2000000 };
#define PICKLE_MAX_BYTES ((size_t)32 << 20)

typedef enum {
    PICKLE_NONE, PICKLE_BOOL, PICKLE_INT, PICKLE_FLOAT, PICKLE_TEXT,
    PICKLE_TUPLE, PICKLE_LIST, // item [n]
    PICKLE_DICT,               // item [n]: keys and values in turn
    PICKLE_GLOBAL,             // text: "torch._utils._rebuild_tensor_v2"
    PICKLE_CALL,               // item[0] the global, item[1] its arguments; then as PICKLE_DICT
    PICKLE_PERSISTENT,         // item[0] the identifier
} PickleKind;

typedef struct PickleValue PickleValue;
struct PickleValue {
    PickleKind kind;
    int n, cap;
    union {
        int64_t i; // and bool
        double f;
        struct { const char *text; size_t bytes; }; // not zero-terminated, any bytes
        PickleValue **item;
    };
};

// The value of a pickle (protocols 2 to 5) in memory, which must outlive the tree. `allowed`
// decides about names ("module.name", zero-terminated). NULL with an error that begins with `what`.
PickleValue *pickle_read(void *parent, const char *what, const uint8_t *data, size_t size,
                         bool (*allowed)(const char *name), Error *err);
bool pickle_is(const PickleValue *v, PickleKind kind, const char *text); // text of TEXT and GLOBAL

#endif
