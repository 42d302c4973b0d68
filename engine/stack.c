// stack.c: planning and residency of a stack of units; stack_run.c runs it. See stack.h.
#include "engine/stack_impl.h"

#include <stdlib.h>

// ---- the weights of a unit ----------------------------------------------------------------------

// Declares the weights of a unit and lays them out in blocks no larger than the device allows.
static bool declare_weights(Stack *s, Unit *u, Error *err) {
    const DeviceInfo *info = dev_info(s->dev);
    u->store = store_new(u, s->dev);
    u->weight = MEM_ARRAY(u, Param *, MAX(u->spec->weights, 1));
    for (int i = 0; i < u->spec->weights; i++)
        if (u->spec->weight[i].pieces) u->weight[i] = store_add_bound(u->store, &u->spec->weight[i]);
    int count = store_count(u->store);
    u->place = MEM_ARRAY(u, Place, MAX(count, 1));
    u->block_bytes = MEM_ARRAY(u, uint64_t, MAX(count, 1));
    for (int i = 0; i < count; i++) {
        uint64_t bytes = param_bytes(store_at(u->store, i)), size = align_up(bytes, info->buffer_align);
        u->moved += bytes;
        if (size > info->max_buffer)
            return err_failed(err, "%s: %s: expected a tensor within the device's largest buffer (%llu "
                              "bytes), found %llu; use --device cpu", s->spec.name,
                              store_at(u->store, i)->name, (unsigned long long)info->max_buffer,
                              (unsigned long long)size);
        if (u->blocks == 0 || u->block_bytes[u->blocks - 1] > info->max_buffer - size) u->blocks++;
        u->place[i] = (Place){u->blocks - 1, u->block_bytes[u->blocks - 1]};
        u->block_bytes[u->blocks - 1] += size;
        u->bytes += size;
    }
    return true;
}

static bool same_param(const Param *a, const Param *b) {
    return a == b || (a && b && a->dtype == b->dtype && a->ndim == b->ndim && !a->scale == !b->scale &&
                      !memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof *a->shape));
}

// Units of a kind are recorded alike: with weights of the same types and shapes their plans take the same.
static bool alike(const Unit *a, const Unit *b) {
    bool same = a->spec->kind == b->spec->kind && a->spec->weights == b->spec->weights;
    for (int i = 0; same && i < a->spec->weights; i++) same = same_param(a->weight[i], b->weight[i]);
    return same;
}

static int find_like(const Stack *s, int unit) {
    for (int i = 0; i < unit; i++)
        if (s->unit[i]->like == i && alike(s->unit[i], s->unit[unit])) return i;
    return unit;
}

bool stack_plan_unit(Stack *s, Unit *u, Error *err) {
    Graph *g = g_new(s);
    g_scope(g, u->spec->name);
    s->spec.record(s->spec.user, g, u->spec, u->weight);
    u->plan = run_add_plan(s->run, g, u->spec->name, err);
    return u->plan != NULL;
}

// ---- residency ----------------------------------------------------------------------------------

// What the two slots take at most when units of at most `size` bytes stream: the largest such unit
// lies in one of them, so the other holds no more than the second largest.
static uint64_t ring_bytes(const Stack *s, uint64_t size) {
    uint64_t total = 0;
    for (int j = 0;; j++) {
        uint64_t first = 0, second = 0; // the largest blocks number j
        for (int i = 0; i < s->units; i++) {
            const Unit *u = s->unit[i];
            if (u->bytes > size || j >= u->blocks) continue;
            uint64_t block = u->block_bytes[j];
            second = MAX(second, MIN(first, block));
            first = MAX(first, block);
        }
        if (!first) return total;
        total += first + second;
    }
}

static int larger_first(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x > y ? -1 : x < y;
}

// The sizes of units, each once, the largest first, and how many units have each.
typedef struct Class { uint64_t size; int units, resident; } Class;

static int find_classes(const Stack *s, Class *out) {
    uint64_t *sizes = MEM_ARRAY(NULL, uint64_t, MAX(s->units, 1));
    for (int i = 0; i < s->units; i++) sizes[i] = s->unit[i]->bytes;
    qsort(sizes, (size_t)s->units, sizeof *sizes, larger_first);
    int n = 0;
    for (int i = 0; i < s->units; i++) {
        if (n == 0 || out[n - 1].size != sizes[i]) out[n++] = (Class){.size = sizes[i]};
        out[n - 1].units++;
    }
    mem_free(sizes);
    return n;
}

// Streaming only units of class `largest` and smaller ones: fills `resident` of each class within
// `room` bytes. Returns the bytes that stay, or -1 where it does not fit; *least receives what fits.
static int64_t try_ring(const Stack *s, Class *c, int n, int largest, uint64_t room, uint64_t *least) {
    uint64_t forced = ring_bytes(s, c[largest].size), stay = 0;
    for (int i = 0; i < largest; i++) {
        c[i].resident = c[i].units;
        stay += c[i].size * (uint64_t)c[i].units;
    }
    *least = forced + stay;
    if (*least > room) return -1;
    uint64_t left = room - *least;
    for (int i = largest; i < n; i++) {
        c[i].resident = c[i].size ? (int)MIN((uint64_t)c[i].units, left / c[i].size) : c[i].units;
        left -= c[i].size * (uint64_t)c[i].resident;
        stay += c[i].size * (uint64_t)c[i].resident;
    }
    return (int64_t)stay;
}

// Of each class the streamed ones are spread evenly; the first stays, where any does.
static void spread(Stack *s, const Class *c, int n) {
    int streamed = 0;
    int *seen = MEM_ARRAY(NULL, int, MAX(n, 1));
    for (int i = 0; i < s->units; i++) {
        Unit *u = s->unit[i];
        int k = 0;
        while (c[k].size != u->bytes) k++;
        int64_t move = c[k].units - c[k].resident, at = seen[k]++;
        bool moves = (at + 1) * move / c[k].units > at * move / c[k].units;
        u->slot = moves ? streamed++ % SLOTS : RESIDENT;
    }
    mem_free(seen);
}

static void size_slots(Stack *s) {
    for (int i = 0; i < s->units; i++) {
        const Unit *u = s->unit[i];
        if (u->slot == RESIDENT) continue;
        Slot *slot = &s->slot[u->slot];
        if (u->blocks > slot->blocks) {
            slot->bytes = mem_resize(s, slot->bytes, sizeof *slot->bytes * (size_t)u->blocks);
            slot->blocks = u->blocks;
        }
        for (int j = 0; j < u->blocks; j++) slot->bytes[j] = MAX(slot->bytes[j], u->block_bytes[j]);
    }
}

// Chooses what stays within `room` bytes; false: nothing fits. *least: the smallest room that works.
static bool choose_residency(Stack *s, uint64_t room, uint64_t *least) {
    Class *c = MEM_ARRAY(NULL, Class, MAX(s->units, 1));
    int n = find_classes(s, c), best = -1;
    uint64_t total = 0, need;
    for (int i = 0; i < s->units; i++) total += s->unit[i]->bytes;
    *least = total;
    bool fits = total <= room;
    int64_t most = -1;
    for (int i = 0; i < n; i++) {
        int64_t stay = try_ring(s, c, n, i, room, &need);
        *least = MIN(*least, need);
        if (stay > most) most = stay, best = i;
    }
    if (fits)
        for (int i = 0; i < n; i++) c[i].resident = c[i].units;
    else if (best >= 0)
        try_ring(s, c, n, best, room, &need);
    if (fits || best >= 0) {
        spread(s, c, n);
        size_slots(s);
    }
    mem_free(c);
    return fits || best >= 0;
}

static bool err_budget(const Stack *s, uint64_t limit, uint64_t need, Error *err) {
    char needed[32], found[32], arena[32], state[32];
    format_bytes(needed, need);
    format_bytes(found, limit);
    format_bytes(arena, s->memory.arena_bytes);
    format_bytes(state, s->memory.state_bytes);
    return err_failed(err, "%s: memory: expected a budget of at least %s (%llu bytes, with weights streamed; "
                      "%s of them for work, %s for state), found %s; give --vram %lluM or more, or a smaller "
                      "picture or batch", s->spec.name, needed, (unsigned long long)need, arena, state,
                      found, (unsigned long long)((need + (1 << 20) - 1) >> 20));
}

static bool plan_memory(Stack *s, uint64_t budget, Error *err) {
    RunMemory run = run_memory(s->run);
    for (int i = 0; i < s->units; i++) { // the plans that are not made yet
        const Unit *u = s->unit[i];
        uint64_t bytes = u->plan ? 0 : prog_bytes_for(s->dev, plan_stats(s->unit[u->like]->plan).ops);
        run.program_bytes += bytes, run.peak_bytes += bytes;
    }
    MemoryStats now = dev_memory(s->dev);
    StackMemory *m = &s->memory;
    *m = (StackMemory){.state_bytes = run.weights_bytes, .arena_bytes = run.arena_bytes,
                       .program_bytes = run.program_bytes, .staging_bytes = run.staging_bytes};
    uint64_t held = run.staging_bytes; // counted below already: the rest of what is in use is others'
    if (s->spec.state && store_committed(s->spec.state)) held += run.weights_bytes;
    uint64_t others = now.used - MIN(held, now.used);
    uint64_t limit = budget ? budget : now.budget, least;
    uint64_t fixed = run.peak_bytes, taken = fixed + others;
    bool fits = choose_residency(s, limit > taken ? limit - taken : 0, &least);
    m->smallest_peak = fixed + least;
    if (!fits || taken > limit) return err_budget(s, limit, m->smallest_peak + others, err);
    for (int i = 0; i < s->units; i++) {
        const Unit *u = s->unit[i];
        *(u->slot == RESIDENT ? &m->resident_bytes : &m->streamed_bytes) += u->bytes;
        if (u->slot != RESIDENT) m->moved_bytes += u->moved;
    }
    for (int i = 0; i < SLOTS; i++)
        for (int j = 0; j < s->slot[i].blocks; j++) m->slots_bytes += s->slot[i].bytes[j];
    m->peak_bytes = fixed + m->resident_bytes + m->slots_bytes;
    return true;
}

// ---- life ---------------------------------------------------------------------------------------

Stack *stack_new(void *parent, Device *dev, const StackSpec *spec, uint64_t budget, Error *err) {
    double start = os_seconds();
    Stack *s = MEM_NEW(parent, Stack);
    s->dev = dev;
    s->spec = *spec;
    s->run = run_new(s, dev, NULL);
    if (spec->state) run_add_store(s->run, spec->state);
    s->unit = MEM_ARRAY(s, Unit *, MAX(spec->units, 1));
    bool ok = true;
    for (int i = 0; ok && i < spec->units; i++) {
        Unit *u = s->unit[s->units++] = MEM_NEW(s, Unit);
        u->spec = &spec->unit[i];
        ok = declare_weights(s, u, err);
        u->like = ok ? find_like(s, i) : i;
        if (ok && u->like == i) ok = stack_plan_unit(s, u, err) || err_prefix(err, "%s", spec->name);
    }
    if (!ok || !plan_memory(s, budget, err)) {
        stack_free(s);
        return NULL;
    }
    s->memory.planning_ms = (os_seconds() - start) * 1000;
    return s;
}

void stack_free(Stack *s) {
    if (!s) return;
    feed_stop(s);
    run_free(s->run); // programs refer to the buffers: they go first
    for (int i = 0; i < s->units; i++)
        for (int j = 0; s->unit[i]->slot == RESIDENT && j < s->unit[i]->blocks; j++)
            if (s->unit[i]->block) buf_free(s->unit[i]->block[j]);
    for (int i = 0; i < SLOTS; i++)
        for (int j = 0; s->slot[i].block && j < s->slot[i].blocks; j++) buf_free(s->slot[i].block[j]);
    mem_free(s);
}

StackMemory stack_memory(const Stack *s) { return s->memory; }
uint64_t stack_moved(const Stack *s) { return s->moved; }
int stack_units(const Stack *s) { return s->units; }
bool stack_unit_resident(const Stack *s, int unit) { return s->unit[unit]->slot == RESIDENT; }
uint64_t stack_unit_bytes(const Stack *s, int unit) { return s->unit[unit]->moved; }
double stack_unit_seconds(const Stack *s, int unit) { return s->unit[unit]->seconds; }

Work stack_unit_work(const Stack *s, int unit) {
    PlanStats stats = plan_stats(s->unit[unit]->plan);
    return (Work){stats.flops, stats.bytes};
}
