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

static int by_offset(const void *a, const void *b) {
    const Life *const *x = a, *const *y = b;
    return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

// Moves `at` to where `size` bytes do not cross from one block into the next.
static uint64_t within_block(uint64_t at, uint64_t size, uint64_t block) {
    return at / block == (at + size - 1) / block ? at : align_up(at, block);
}

// Greedy by size (Pisarchyk and Lee 2020): the largest first, each at the lowest offset that is
// free during its whole life. Returns the arena's size.
static uint64_t place(Life *lives, int n, uint64_t block, bool no_alias) {
    qsort(lives, (size_t)n, sizeof *lives, by_size);
    Life **busy = MEM_ARRAY(NULL, Life *, MAX(n, 1)); // placed ones that overlap in time
    uint64_t end = 0;
    for (int i = 0; i < n; i++) {
        int count = 0;
        for (int j = 0; j < i; j++)
            if (no_alias || (lives[j].first <= lives[i].last && lives[i].first <= lives[j].last))
                busy[count++] = &lives[j];
        qsort(busy, (size_t)count, sizeof *busy, by_offset);
        uint64_t at = 0;
        for (int j = 0; j < count; j++) {
            at = within_block(at, lives[i].size, block);
            if (at + lives[i].size <= busy[j]->offset) break;
            at = MAX(at, busy[j]->offset + busy[j]->size);
        }
        lives[i].offset = within_block(at, lives[i].size, block);
        end = MAX(end, lives[i].offset + lives[i].size);
    }
    mem_free(busy);
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
    if (ok) plan->stats.arena_bytes = place(lives, used, block, no_alias);
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
