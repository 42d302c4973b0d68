// plan.c: dead ops, lifetimes, arena offsets, barriers. Pure computation on a graph; run.c
// allocates and executes. See plan.h.
#include "engine/plan_impl.h"

#include <stdlib.h>

// ---- dead ops ---------------------------------------------------------------------------------

// A node is alive when it writes a parameter, an output, or what a live node reads. Walking
// backwards sees every reader before its writers.
static void mark_alive(const Graph *g, bool *alive) {
    bool *wanted = MEM_ARRAY(NULL, bool, MAX(g->storages.n, 1));
    for (int i = 0; i < g->storages.n; i++) {
        const Storage *s = g->storages.v[i];
        wanted[i] = s->output || s->kind == STORAGE_PARAM;
    }
    for (int i = g->nodes.n - 1; i >= 0; i--) {
        const Node *node = g->nodes.v[i];
        const OpInfo *op = &op_info[node->op];
        for (int k = 0; k < op->operand_count; k++)
            if (node->t[k] && role_writes(op->operand[k].role))
                alive[i] |= wanted[node->t[k]->storage->id];
        for (int k = 0; alive[i] && k < op->operand_count; k++)
            if (node->t[k] && role_reads(op->operand[k].role))
                wanted[node->t[k]->storage->id] = true;
    }
    mem_free(wanted);
}

// ---- arena ------------------------------------------------------------------------------------

typedef struct Life { int storage, first, last; uint64_t size, offset; } Life;

static int by_size(const void *a, const void *b) {
    const Life *x = a, *y = b;
    if (x->size != y->size) return x->size < y->size ? 1 : -1;
    return x->storage - y->storage; // one order everywhere
}

// Moves `at` to where `size` bytes do not cross from one block into the next.
static uint64_t within_block(uint64_t at, uint64_t size, uint64_t block) {
    return at / block == (at + size - 1) / block ? at : align_up(at, block);
}

// A tensor that has its place. Small and side by side, for the search below reads many of them.
typedef struct Placed { uint64_t start, end; int first, last; } Placed;

// Neighbours in memory, in order of start, with what the search needs to pass them as one.
enum { CHUNK = 64 };
typedef struct Chunk {
    int n;
    int first_min, first_max, last_min, last_max; // of their lives
    uint64_t end, gap; // the highest end; the widest hole between them
    Placed v[CHUNK];
} Chunk;
typedef struct PlacedList { ARRAY(Chunk *) chunks; } PlacedList; // in order of start

// Time is cut into epochs. Most tensors live within one: they meet only those of their epoch and
// the wide ones, which live in several. Wide ones meet all, mostly by whole chunks: so plans take
// near-linear time.
enum { EPOCHS = 64 };
typedef struct Places {
    PlacedList epoch[EPOCHS], wide, all, none;
    int length;       // of an epoch
    uint64_t *looked; // tensors and chunks that searches looked at
} Places;

static int epoch_of(const Places *p, int time) { return MIN(MAX(time, 0) / p->length, EPOCHS - 1); }

static void sum_up(Chunk *c) {
    c->first_min = c->last_min = INT32_MAX;
    c->first_max = c->last_max = INT32_MIN;
    c->end = c->v[0].end, c->gap = 0;
    for (int i = 0; i < c->n; i++) {
        const Placed *p = &c->v[i];
        if (p->start > c->end) c->gap = MAX(c->gap, p->start - c->end);
        c->end = MAX(c->end, p->end);
        c->first_min = MIN(c->first_min, p->first), c->first_max = MAX(c->first_max, p->first);
        c->last_min = MIN(c->last_min, p->last), c->last_max = MAX(c->last_max, p->last);
    }
}

// Puts an empty chunk at position `at` of the list.
static Chunk *add_chunk(void *parent, PlacedList *list, int at) {
    Chunk *c = MEM_NEW(parent, Chunk);
    ARR_PUSH(parent, &list->chunks, c);
    Chunk **v = list->chunks.v;
    memmove(&v[at + 1], &v[at], sizeof *v * (size_t)(list->chunks.n - 1 - at));
    return v[at] = c;
}

static void insert(void *parent, PlacedList *list, Placed item) {
    if (!list->chunks.n) add_chunk(parent, list, 0);
    int low = 0, high = list->chunks.n - 1; // the last chunk that begins at or below the item
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (list->chunks.v[middle]->v[0].start <= item.start) low = middle;
        else high = middle - 1;
    }
    Chunk *c = list->chunks.v[low];
    int at = c->n;
    while (at > 0 && c->v[at - 1].start > item.start) at--;
    if (c->n == CHUNK) { // halves
        Chunk *upper = add_chunk(parent, list, low + 1);
        c->n = upper->n = CHUNK / 2;
        memcpy(upper->v, &c->v[CHUNK / 2], sizeof upper->v / 2);
        sum_up(at > CHUNK / 2 ? c : upper);
        if (at > CHUNK / 2) c = upper, at -= CHUNK / 2;
    }
    memmove(&c->v[at + 1], &c->v[at], sizeof *c->v * (size_t)(c->n - at));
    c->v[at] = item;
    c->n++;
    sum_up(c);
}

typedef struct Cursor { const PlacedList *list; int chunk, i; } Cursor;

static const Placed *at_cursor(const Cursor *c) {
    return c->chunk < c->list->chunks.n ? &c->list->chunks.v[c->chunk]->v[c->i] : NULL;
}

// Can the search pass the chunk as a whole? Either nothing in it matters, or all of it lives at the
// time, with no hole that is large enough before or within it; then *at moves behind it.
static bool pass_chunk(const Chunk *c, uint64_t *at, uint64_t size, int first, int last) {
    if (c->end <= *at || c->first_min > last || c->last_max < first) return true;
    if (c->first_max > last || c->last_min < first || c->gap >= size || c->v[0].start >= *at + size)
        return false;
    *at = c->end;
    return true;
}

// The lowest offset that is free from `first` to `last` among the tensors of two lists.
static uint64_t find_gap(const Places *places, const PlacedList *a, const PlacedList *b,
                         uint64_t size, int first, int last, uint64_t block) {
    uint64_t at = 0; // nothing below it is free
    Cursor cursor[2] = {{a, 0, 0}, {b, 0, 0}};
    for (;; ++*places->looked) {
        const Placed *p = at_cursor(&cursor[0]), *q = at_cursor(&cursor[1]);
        if (!p && !q) break;
        Cursor *c = !q || (p && p->start <= q->start) ? &cursor[0] : &cursor[1];
        if (c == &cursor[1]) p = q;
        const Chunk *chunk = c->list->chunks.v[c->chunk];
        if (c->i == 0 && pass_chunk(chunk, &at, size, first, last)) {
            c->chunk++;
            continue;
        }
        if (++c->i == chunk->n) c->chunk++, c->i = 0;
        if (p->end <= at || p->first > last || first > p->last) continue;
        at = within_block(at, size, block);
        if (at + size <= p->start) break;
        at = MAX(at, p->end);
    }
    return within_block(at, size, block);
}

// Greedy by size (Pisarchyk and Lee 2020): the largest first, each at the lowest offset that is
// free during its whole life. Returns the arena's size.
static uint64_t place(Life *lives, int n, int ops, uint64_t block, bool no_alias,
                      uint64_t *looked) {
    qsort(lives, (size_t)n, sizeof *lives, by_size);
    Places *places = MEM_NEW(NULL, Places);
    places->length = ops / EPOCHS + 1;
    places->looked = looked;
    uint64_t end = 0;
    for (int i = 0; i < n; i++) {
        Life *life = &lives[i];
        if (no_alias) life->first = -1, life->last = ops; // as if all were needed all the time
        int from = epoch_of(places, life->first), to = epoch_of(places, life->last);
        bool wide = from != to;
        life->offset = find_gap(places, wide ? &places->all : &places->epoch[from],
                                wide ? &places->none : &places->wide, life->size, life->first,
                                life->last, block);
        Placed item = {life->offset, life->offset + life->size, life->first, life->last};
        insert(places, wide ? &places->wide : &places->epoch[from], item);
        insert(places, &places->all, item);
        end = MAX(end, item.end);
    }
    mem_free(places);
    return end;
}

static bool assign_arena(Plan *plan, const DeviceInfo *info, bool no_alias, Error *err) {
    const Graph *g = plan->g;
    Life *lives = MEM_ARRAY(NULL, Life, MAX(g->storages.n, 1));
    int *index = MEM_ARRAY(NULL, int, MAX(g->storages.n, 1));
    int n = 0, end = g->nodes.n;
    for (int i = 0; i < g->storages.n; i++) {
        const Storage *s = g->storages.v[i];
        index[i] = -1;
        if (s->kind == STORAGE_PARAM) continue;
        bool input = s->kind == STORAGE_INPUT;
        index[i] = n;
        lives[n++] = (Life){.storage = i, .first = input ? -1 : INT32_MAX,
                            .last = input || s->output ? end : -1,
                            .size = align_up(s->bytes, info->buffer_align)};
    }
    for (int i = 0; i < g->nodes.n; i++) {
        const Node *node = g->nodes.v[i];
        for (int k = 0; plan->alive[i] && k < op_info[node->op].operand_count; k++) {
            if (!node->t[k] || index[node->t[k]->storage->id] < 0) continue;
            Life *life = &lives[index[node->t[k]->storage->id]];
            life->first = MIN(life->first, i);
            life->last = MAX(life->last, i);
        }
    }
    bool ok = true;
    int used = 0; // storages that only dead ops touch need no memory
    for (int i = 0; i < n; i++)
        if (lives[i].first <= lives[i].last) lives[used++] = lives[i];
    uint64_t block = info->max_buffer / 4096 * 4096;
    for (int i = 0; i < used; i++) {
        plan->stats.arena_unaliased_bytes += lives[i].size;
        if (lives[i].size > block && ok)
            ok = err_failed(err,
                            "plan %s: expected every tensor within the device's largest buffer "
                            "(%llu bytes), found one of %llu; take a smaller picture or batch, or "
                            "--device cpu",
                            plan->stats.name, (unsigned long long)block,
                            (unsigned long long)lives[i].size);
    }
    plan->block = block;
    if (ok) plan->stats.arena_bytes = place(lives, used, end, block, no_alias, &plan->looked);
    for (int i = 0; ok && i < used; i++) plan->offset[lives[i].storage] = lives[i].offset;
    mem_free(lives);
    mem_free(index);
    return ok;
}

// ---- barriers ---------------------------------------------------------------------------------

typedef struct Span { uint64_t start, end; } Span;
typedef struct SpanSet { ARRAY(Span) in_order; } SpanSet; // apart from each other, in order

// The number of the first span that ends above `start`.
static int first_above(const SpanSet *set, uint64_t start, uint64_t *looked) {
    int low = 0, high = set->in_order.n;
    for (; low < high; ++*looked) {
        int middle = (low + high) / 2;
        if (set->in_order.v[middle].end > start) high = middle;
        else low = middle + 1;
    }
    return low;
}

static bool meets(const SpanSet *set, Span s, uint64_t *looked) {
    int i = first_above(set, s.start, looked);
    return i < set->in_order.n && set->in_order.v[i].start < s.end;
}

// Adds a span, which becomes one with those that it meets.
static void cover(void *parent, SpanSet *set, Span s, uint64_t *looked) {
    int n = set->in_order.n, from = first_above(set, s.start, looked), to = from;
    for (; to < n && set->in_order.v[to].start < s.end; to++, ++*looked) {
        s.start = MIN(s.start, set->in_order.v[to].start);
        s.end = MAX(s.end, set->in_order.v[to].end);
    }
    ARR_PUSH(parent, &set->in_order, s);
    Span *v = set->in_order.v;
    memmove(&v[from + 1], &v[to], sizeof *v * (size_t)(n - to));
    v[from] = s;
    set->in_order.n = n - (to - from) + 1;
}

// By storage: where it begins in one space of addresses: the arena, then the parameters.
static uint64_t *all_addresses(void *parent, const Plan *plan) {
    const Graph *g = plan->g;
    uint64_t *base = MEM_ARRAY(parent, uint64_t, MAX(g->storages.n, 1)),
             end = plan->stats.arena_bytes;
    for (int i = 0; i < g->storages.n; i++) {
        bool param = g->storages.v[i]->kind == STORAGE_PARAM;
        base[i] = param ? end : plan->offset[i];
        if (param) end += g->storages.v[i]->bytes;
    }
    return base;
}

// A barrier stands before an op that touches what an op since the last barrier wrote, or writes
// what one read; ops between two barriers may run at the same time.
static void mark_barriers(Plan *plan, bool everywhere) {
    void *scratch = mem_new(NULL, 1);
    const uint64_t *base = all_addresses(scratch, plan);
    SpanSet read = {0}, written = {0}; // since the last barrier
    for (int i = 0; i < plan->g->nodes.n; i++) {
        if (!plan->alive[i]) continue;
        const Node *node = plan->g->nodes.v[i];
        const OpInfo *op = &op_info[node->op];
        Span span[MAX_OPERANDS];
        bool hazard = everywhere && (read.in_order.n || written.in_order.n);
        for (int k = 0; k < op->operand_count; k++) {
            const Tensor *t = node->t[k];
            if (!t) continue;
            TensorRef ref = tensor_ref(t);
            span[k].start = base[t->storage->id] + dtype_bytes(t->dtype, (uint64_t)t->offset);
            span[k].end = span[k].start + ref_extent(&ref);
            hazard = hazard || meets(&written, span[k], &plan->looked) ||
                     (role_writes(op->operand[k].role) && meets(&read, span[k], &plan->looked));
        }
        if (hazard) read.in_order.n = written.in_order.n = 0;
        plan->barrier[i] = hazard;
        plan->stats.barriers += hazard;
        for (int k = 0; k < op->operand_count; k++)
            if (node->t[k])
                cover(scratch, role_writes(op->operand[k].role) ? &written : &read, span[k],
                      &plan->looked);
    }
    mem_free(scratch);
}

// ---- a plan -----------------------------------------------------------------------------------

TensorRef tensor_ref(const Tensor *t) {
    TensorRef ref = {.dtype = t->dtype, .ndim = t->ndim};
    memcpy(ref.shape, t->shape, sizeof ref.shape);
    memcpy(ref.stride, t->stride, sizeof ref.stride);
    return ref;
}

bool plan_make(Plan *plan, const DeviceInfo *info, const RunOptions *options, Error *err) {
    double start = os_seconds();
    const Graph *g = plan->g;
    if (g_error(g, err)) return err_prefix(err, "plan %s", plan->stats.name);
    plan->alive = MEM_ARRAY(plan, bool, MAX(g->nodes.n, 1));
    plan->barrier = MEM_ARRAY(plan, bool, MAX(g->nodes.n, 1));
    plan->offset = MEM_ARRAY(plan, uint64_t, MAX(g->storages.n, 1));
    mark_alive(g, plan->alive);
    if (!assign_arena(plan, info, options->no_alias, err)) return false;
    mark_barriers(plan, options->all_barriers);
    for (int i = 0; i < g->nodes.n; i++) plan->stats.ops += plan->alive[i];
    plan->stats.ops_removed = g->nodes.n - plan->stats.ops;
    plan->stats.planning_ms = (os_seconds() - start) * 1000;
    return true;
}
