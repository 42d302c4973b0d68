// pickle.c: see pickle.h.
#include "engine/pickle.h"

enum { VALUES_PER_CHUNK = 512, SLOTS_PER_CHUNK = 4096 };

typedef struct Machine {
    void *parent; // of the tree
    void *scratch;
    const char *what;
    const uint8_t *data;
    size_t size, at;
    bool (*allowed)(const char *name);
    Error *err;
    PickleValue *free_values; // of the current chunk
    int left, values, items;
    PickleValue **free_slots; // of the current chunk of items
    int slots;
    ARRAY(const char *) names; // each allowed one once
    ARRAY(PickleValue *) stack;
    ARRAY(PickleValue *) memo;
    ARRAY(int) marks; // heights of the stack
} Machine;

static bool damaged(Machine *m, const char *what) {
    return err_failed(m->err, "%s: expected a pickle of tensors, found %s at byte %zu; the file is "
                      "damaged or hostile", m->what, what, m->at);
}

static PickleValue *new_value(Machine *m, PickleKind kind) {
    if (m->values++ == PICKLE_MAX_VALUES) {
        damaged(m, "more values than any model has");
        return NULL;
    }
    if (!m->left) {
        m->free_values = MEM_ARRAY(m->parent, PickleValue, VALUES_PER_CHUNK);
        m->left = VALUES_PER_CHUNK;
    }
    PickleValue *v = m->free_values++;
    m->left--;
    v->kind = kind;
    return v;
}

static bool push(Machine *m, PickleValue *v) {
    if (!v) return false;
    if (m->stack.n == PICKLE_MAX_ITEMS) return damaged(m, "a stack without bounds");
    ARR_PUSH(m->scratch, &m->stack, v);
    return true;
}

// The newest value above the last mark; NULL after an error.
static PickleValue *pop(Machine *m) {
    int floor = m->marks.n ? m->marks.v[m->marks.n - 1] : 0;
    if (m->stack.n > floor) return m->stack.v[--m->stack.n];
    damaged(m, "an empty stack");
    return NULL;
}

static PickleValue *top(Machine *m) {
    PickleValue *v = pop(m);
    if (v) m->stack.n++;
    return v;
}

static PickleValue **new_slots(Machine *m, int count) {
    if (count > SLOTS_PER_CHUNK / 4) return MEM_ARRAY(m->parent, PickleValue *, count);
    if (count > m->slots) {
        m->free_slots = MEM_ARRAY(m->parent, PickleValue *, SLOTS_PER_CHUNK);
        m->slots = SLOTS_PER_CHUNK;
    }
    m->slots -= count;
    m->free_slots += count;
    return m->free_slots - count;
}

static bool add_item(Machine *m, PickleValue *to, PickleValue *item) {
    if (m->items++ == PICKLE_MAX_ITEMS) return damaged(m, "containers without bounds");
    if (to->n == to->cap) { // slots come from chunks: a block for each small tuple would be large
        int cap = MAX(2 * to->cap, 2);
        PickleValue **more = new_slots(m, cap);
        if (to->n) memcpy(more, to->item, sizeof *more * (size_t)to->n);
        to->item = more;
        to->cap = cap;
    }
    to->item[to->n++] = item;
    return true;
}

static bool push_items(Machine *m, PickleKind kind, int from) { // takes the stack above `from`
    PickleValue *v = new_value(m, kind);
    if (!v) return false;
    for (int i = from; i < m->stack.n; i++)
        if (!add_item(m, v, m->stack.v[i])) return false;
    m->stack.n = from;
    return push(m, v);
}

static bool push_last(Machine *m, PickleKind kind, int count) {
    int floor = m->marks.n ? m->marks.v[m->marks.n - 1] : 0;
    if (m->stack.n - count < floor) return damaged(m, "an empty stack");
    return push_items(m, kind, m->stack.n - count);
}

static bool push_mark(Machine *m) {
    if (m->marks.n == PICKLE_MAX_ITEMS) return damaged(m, "marks without bounds");
    ARR_PUSH(m->scratch, &m->marks, m->stack.n);
    return true;
}

static bool pop_mark(Machine *m, int *height) {
    if (!m->marks.n) return damaged(m, "a missing mark");
    *height = m->marks.v[--m->marks.n];
    return true;
}

// Adds the stack above `from` to the container below it.
static bool extend(Machine *m, int from, bool pairs) {
    int floor = m->marks.n ? m->marks.v[m->marks.n - 1] : 0;
    if (from <= floor) return damaged(m, "an empty stack");
    PickleValue *to = m->stack.v[from - 1];
    bool fits = to->kind == PICKLE_CALL || to->kind == (pairs ? PICKLE_DICT : PICKLE_LIST);
    if (!fits || (pairs && (m->stack.n - from) % 2)) return damaged(m, "items without a container");
    if (to->kind == PICKLE_CALL && !pairs) return damaged(m, "items added to an object");
    for (int i = from; i < m->stack.n; i++)
        if (!add_item(m, to, m->stack.v[i])) return false;
    m->stack.n = from;
    return true;
}

// ---- reading operands ---------------------------------------------------------------------------

static bool take_number(Machine *m, int bytes, uint64_t *v) {
    if (m->size - m->at < (size_t)bytes) return damaged(m, "its end");
    *v = 0;
    for (int i = bytes - 1; i >= 0; i--) *v = *v << 8 | m->data[m->at + (size_t)i];
    m->at += (size_t)bytes;
    return true;
}

static bool push_int(Machine *m, int bytes, bool is_signed) { // little endian
    uint64_t u = 0;
    if (!take_number(m, bytes, &u)) return false;
    if (is_signed && bytes && bytes < 8 && u >> (8 * bytes - 1)) u |= ~(uint64_t)0 << 8 * bytes;
    PickleValue *v = new_value(m, PICKLE_INT);
    if (v) v->i = (int64_t)u;
    return push(m, v);
}

static bool push_long(Machine *m) {
    uint64_t bytes = 0;
    if (!take_number(m, 1, &bytes)) return false;
    if (bytes > 8) return damaged(m, "a number of more than 64 bits");
    return push_int(m, (int)bytes, true);
}

static bool push_float(Machine *m) { // big endian
    uint64_t u = 0, big = 0;
    if (!take_number(m, 8, &u)) return false;
    for (int i = 0; i < 8; i++) big = big << 8 | (u >> (8 * i) & 255);
    PickleValue *v = new_value(m, PICKLE_FLOAT);
    if (v) memcpy(&v->f, &big, 8);
    return push(m, v);
}

static bool push_text(Machine *m, int length_bytes) {
    uint64_t n = 0;
    if (!take_number(m, length_bytes, &n)) return false;
    if (n > m->size - m->at) return damaged(m, "its end");
    PickleValue *v = new_value(m, PICKLE_TEXT);
    if (!v) return false;
    v->text = (const char *)m->data + m->at;
    v->bytes = (size_t)n;
    m->at += (size_t)n;
    return push(m, v);
}

static bool push_bool(Machine *m, bool b) {
    PickleValue *v = new_value(m, PICKLE_BOOL);
    if (v) v->i = b;
    return push(m, v);
}

static bool push_global(Machine *m, const char *module, size_t a, const char *name, size_t b) {
    if (a > 200 || b > 200) return damaged(m, "a name of more than 200 bytes");
    PickleValue *v = new_value(m, PICKLE_GLOBAL);
    if (!v) return false;
    char text[402];
    snprintf(text, sizeof text, "%.*s.%.*s", (int)a, module, (int)b, name);
    if (!m->allowed(text))
        return err_failed(m->err, "%s: expected tensors only, found a use of Python's %.200s; nothing "
                          "was run: take a safetensors file, or save only the state_dict", m->what,
                          text);
    int i = 0;
    while (i < m->names.n && strcmp(m->names.v[i], text)) i++;
    if (i == m->names.n) ARR_PUSH(m->scratch, &m->names, mem_strdup(m->parent, text));
    v->text = m->names.v[i];
    v->bytes = strlen(text);
    return push(m, v);
}

static bool take_line(Machine *m, const char **line, size_t *n) {
    const uint8_t *start = m->data + m->at, *end = memchr(start, '\n', m->size - m->at);
    if (!end) return damaged(m, "its end");
    *line = (const char *)start;
    *n = (size_t)(end - start);
    m->at += *n + 1;
    return true;
}

static bool op_global(Machine *m) {
    const char *module = NULL, *name = NULL;
    size_t a = 0, b = 0;
    return take_line(m, &module, &a) && take_line(m, &name, &b) && push_global(m, module, a, name, b);
}

static bool op_stack_global(Machine *m) {
    PickleValue *name = pop(m), *module = name ? pop(m) : NULL;
    if (!module) return false;
    if (name->kind != PICKLE_TEXT || module->kind != PICKLE_TEXT) return damaged(m, "a name that is no text");
    return push_global(m, module->text, module->bytes, name->text, name->bytes);
}

// ---- memo, calls ----------------------------------------------------------------------------------

static bool memo_put(Machine *m, uint64_t index) {
    PickleValue *v = top(m);
    if (!v) return false;
    if (index >= m->size || index >= PICKLE_MAX_ITEMS) return damaged(m, "a memo index past its size");
    while ((uint64_t)m->memo.n <= index) ARR_PUSH(m->scratch, &m->memo, NULL);
    m->memo.v[index] = v;
    return true;
}

static bool op_put(Machine *m, int bytes) {
    uint64_t index = 0;
    return take_number(m, bytes, &index) && memo_put(m, index);
}

static bool op_get(Machine *m, int bytes) {
    uint64_t index = 0;
    if (!take_number(m, bytes, &index)) return false;
    if (index >= (uint64_t)m->memo.n || !m->memo.v[index]) return damaged(m, "an empty memo entry");
    return push(m, m->memo.v[index]);
}

static bool op_call(Machine *m) {
    if (!push_last(m, PICKLE_CALL, 2)) return false;
    const PickleValue *call = m->stack.v[m->stack.n - 1];
    if (call->item[0]->kind != PICKLE_GLOBAL || call->item[1]->kind != PICKLE_TUPLE)
        return damaged(m, "a call of something that is no name");
    return true;
}

static bool op_marked(Machine *m, uint8_t op) { // those that use the last mark
    int from = 0;
    if (!pop_mark(m, &from)) return false;
    switch (op) {
    case '1': m->stack.n = from; return true; // POP_MARK
    case 't': return push_items(m, PICKLE_TUPLE, from);
    case 'l': return push_items(m, PICKLE_LIST, from);
    case 'd':
        if ((m->stack.n - from) % 2) return damaged(m, "a key without a value");
        return push_items(m, PICKLE_DICT, from);
    case 'e': return extend(m, from, false);
    default: return extend(m, from, true); // 'u'
    }
}

static bool step(Machine *m, uint8_t op) {
    uint64_t skipped;
    switch (op) {
    case 0x80: return take_number(m, 1, &skipped);                              // PROTO
    case 0x95: return take_number(m, 8, &skipped);                              // FRAME
    case '(': return push_mark(m);                                              // MARK
    case '0': return pop(m) != NULL;                                            // POP
    case '2': return push(m, top(m));                                           // DUP
    case '1': case 't': case 'l': case 'd': case 'e': case 'u': return op_marked(m, op);
    case 'N': return push(m, new_value(m, PICKLE_NONE));
    case 0x88: return push_bool(m, true);
    case 0x89: return push_bool(m, false);
    case 'J': return push_int(m, 4, true);
    case 'K': return push_int(m, 1, false);
    case 'M': return push_int(m, 2, false);
    case 0x8a: return push_long(m);
    case 'G': return push_float(m);
    case 'X': case 'T': case 'B': return push_text(m, 4);                       // text and bytes
    case 0x8c: case 'U': case 'C': return push_text(m, 1);
    case 0x8d: case 0x8e: return push_text(m, 8);
    case ']': return push(m, new_value(m, PICKLE_LIST));
    case '}': return push(m, new_value(m, PICKLE_DICT));
    case ')': return push(m, new_value(m, PICKLE_TUPLE));
    case 0x85: case 0x86: case 0x87: return push_last(m, PICKLE_TUPLE, op - 0x84);
    case 'a': return extend(m, m->stack.n - 1, false);                          // APPEND
    case 's': return extend(m, m->stack.n - 2, true);                           // SETITEM
    case 'q': return op_put(m, 1);
    case 'r': return op_put(m, 4);
    case 0x94: return memo_put(m, (uint64_t)m->memo.n);                         // MEMOIZE
    case 'h': return op_get(m, 1);
    case 'j': return op_get(m, 4);
    case 'c': return op_global(m);
    case 0x93: return op_stack_global(m);
    case 'R': case 0x81: return op_call(m);                                     // REDUCE, NEWOBJ
    case 'b': return pop(m) && top(m);                                          // BUILD: state is dropped
    case 'Q': return push_last(m, PICKLE_PERSISTENT, 1);                        // BINPERSID
    default:
        return err_failed(m->err, "%s: expected a pickle of tensors, found opcode 0x%02x at byte %zu; "
                          "save only the state_dict, with PyTorch 1.6 or newer", m->what, op, m->at - 1);
    }
}

PickleValue *pickle_read(void *parent, const char *what, const uint8_t *data, size_t size,
                         bool (*allowed)(const char *name), Error *err) {
    Machine m = {.parent = parent, .what = what, .data = data, .size = size, .allowed = allowed,
                 .err = err};
    if (size > PICKLE_MAX_BYTES) {
        err_failed(err, "%s: expected a pickle of at most %zu MiB, found %zu bytes", what,
                   PICKLE_MAX_BYTES >> 20, size);
        return NULL;
    }
    m.scratch = mem_new(NULL, 1);
    PickleValue *result = NULL;
    for (;;) {
        if (m.at == size) {
            damaged(&m, "its end");
            break;
        }
        uint8_t op = data[m.at++];
        if (op == '.') { // STOP
            result = pop(&m);
            break;
        }
        if (!step(&m, op)) break;
    }
    mem_free(m.scratch);
    return result;
}

bool pickle_is(const PickleValue *v, PickleKind kind, const char *text) {
    return v->kind == kind && (kind == PICKLE_TEXT || kind == PICKLE_GLOBAL) &&
           v->bytes == strlen(text) && !memcmp(v->text, text, v->bytes);
}
