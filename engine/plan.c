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
            if (node->t[k] && role_reads(op->operand[k].role)) wanted[node->t[k]->storage->id] = true;
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

// A tensor that has its place. Small and in one array, for the search below reads them all.
typedef struct Placed { uint64_t start, end; int first, last; } Placed;
typedef struct PlacedList { ARRAY(Placed) in_order; } PlacedList; // of start

// Time is cut into epochs. Most tensors live within one: they meet only those of their epoch and the
// wide ones, which live in several, so that plans take near-linear time. Wide ones meet all.
enum { EPOCHS = 64 };
typedef struct Places { PlacedList epoch[EPOCHS], wide, all, none; int length; } Places;

static int epoch_of(const Places *p, int time) { return MIN(MAX(time, 0) / p->length, EPOCHS - 1); }

static void insert(void *parent, PlacedList *list, Placed item) {
    int low = 0, high = list->in_order.n;
    while (low < high) {
        int middle = (low + high) / 2;
        if (list->in_order.v[middle].start <= item.start) low = middle + 1;
        else high = middle;
    }
    ARR_PUSH(parent, &list->in_order, item);
    Placed *v = list->in_order.v;
    memmove(&v[low + 1], &v[low], sizeof *v * (size_t)(list->in_order.n - 1 - low));
    v[low] = item;
}

// The lowest offset that is free from `first` to `last` among the tensors of two lists.
static uint64_t find_gap(const PlacedList *a, const PlacedList *b, uint64_t size, int first, int last,
                         uint64_t block) {
    uint64_t at = 0; // nothing below it is free
    for (int i = 0, j = 0; i < a->in_order.n || j < b->in_order.n;) {
        bool from_a = j == b->in_order.n ||
                      (i < a->in_order.n && a->in_order.v[i].start <= b->in_order.v[j].start);
        const Placed *p = from_a ? &a->in_order.v[i++] : &b->in_order.v[j++];
        if (p->end <= at || p->first > last || first > p->last) continue;
        at = within_block(at, size, block);
        if (at + size <= p->start) break;
        at = MAX(at, p->end);
    }
    return within_block(at, size, block);
}

// Greedy by size (Pisarchyk and Lee 2020): the largest first, each at the lowest offset that is
// free during its whole life. Returns the arena's size.
static uint64_t place(Life *lives, int n, int ops, uint64_t block, bool no_alias) {
    qsort(lives, (size_t)n, sizeof *lives, by_size);
    Places *places = MEM_NEW(NULL, Places);
    places->length = ops / EPOCHS + 1;
    uint64_t end = 0;
    for (int i = 0; i < n; i++) {
        Life *life = &lives[i];
        if (no_alias) life->first = -1, life->last = ops; // as if all were needed all the time
        int from = epoch_of(places, life->first), to = epoch_of(places, life->last);
        bool wide = from != to;
        life->offset = find_gap(wide ? &places->all : &places->epoch[from],
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
            ok = err_failed(err, "plan %s: expected every tensor within the device's largest buffer "
                            "(%llu bytes), found one of %llu; take a smaller picture or batch, or "
                            "--device cpu", plan->stats.name, (unsigned long long)block,
                            (unsigned long long)lives[i].size);
    }
    plan->block = block;
    if (ok) plan->stats.arena_bytes = place(lives, used, end, block, no_alias);
    for (int i = 0; ok && i < used; i++) plan->offset[lives[i].storage] = lives[i].offset;
    plan->stats.tensors = used;
    mem_free(lives);
    mem_free(index);
    return ok;
}

// ---- barriers ---------------------------------------------------------------------------------

typedef struct Access { const Param *param; uint64_t start, end; bool write; } Access;

static Access access_of(const Plan *plan, const Tensor *t, int role) {
    TensorRef ref = tensor_ref(t);
    Access a = {t->storage->param, dtype_bytes(t->dtype, (uint64_t)t->offset), 0, role_writes(role)};
    if (!a.param) a.start += plan->offset[t->storage->id];
    a.end = a.start + ref_extent(&ref);
    return a;
}

// A barrier stands before an op that touches what an op since the last barrier wrote, or writes
// what one read; ops between two barriers may run at the same time.
static void mark_barriers(Plan *plan, bool everywhere) {
    ARRAY(Access) since = {0};
    void *scratch = mem_new(NULL, 1);
    for (int i = 0; i < plan->g->nodes.n; i++) {
        if (!plan->alive[i]) continue;
        const Node *node = plan->g->nodes.v[i];
        const OpInfo *op = &op_info[node->op];
        Access mine[MAX_OPERANDS];
        int count = 0;
        for (int k = 0; k < op->operand_count; k++)
            if (node->t[k]) mine[count++] = access_of(plan, node->t[k], op->operand[k].role);
        bool hazard = everywhere && since.n;
        for (int k = 0; k < count && !hazard; k++)
            for (int j = 0; j < since.n && !hazard; j++) {
                const Access *a = &since.v[j], *b = &mine[k];
                hazard = (a->write || b->write) && a->param == b->param && a->start < b->end &&
                         b->start < a->end;
            }
        if (hazard) since.n = 0;
        plan->barrier[i] = hazard;
        plan->stats.barriers += hazard;
        for (int k = 0; k < count; k++) ARR_PUSH(scratch, &since, mine[k]);
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
