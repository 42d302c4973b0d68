// run.c: memory and execution of plans. See plan.h.
#include "engine/plan_impl.h"

struct Run {
    Device *dev;
    RunOptions options;
    ARRAY(Store *) stores;
    ARRAY(Plan *) plans;
    ARRAY(Buffer *) blocks; // the arena
    bool ready;
};

Run *run_new(void *parent, Device *dev, const RunOptions *options) {
    Run *run = MEM_NEW(parent, Run);
    run->dev = dev;
    if (options) run->options = *options;
    return run;
}

void run_free(Run *run) {
    if (!run) return;
    for (int i = 0; i < run->plans.n; i++) prog_free(run->plans.v[i]->program);
    for (int i = 0; i < run->blocks.n; i++) buf_free(run->blocks.v[i]);
    mem_free(run);
}

void run_add_store(Run *run, Store *store) { ARR_PUSH(run, &run->stores, store); }

Plan *run_add_plan(Run *run, Graph *g, const char *name, Error *err) {
    Plan *plan = MEM_NEW(run, Plan);
    plan->run = run;
    plan->g = g;
    plan->stats.name = mem_strdup(plan, name);
    if (!plan_make(plan, dev_info(run->dev), &run->options, err)) {
        mem_free(plan);
        return NULL;
    }
    ARR_PUSH(run, &run->plans, plan);
    return plan;
}

RunMemory run_memory(const Run *run) {
    const DeviceInfo *info = dev_info(run->dev);
    RunMemory m = {.staging_bytes = info->staging_bytes, .driver_bytes = info->driver_bytes};
    for (int i = 0; i < run->stores.n; i++) m.weights_bytes += store_bytes(run->stores.v[i]);
    for (int i = 0; i < run->plans.n; i++) {
        m.arena_bytes = MAX(m.arena_bytes, run->plans.v[i]->stats.arena_bytes);
        m.program_bytes += prog_bytes_for(run->dev, run->plans.v[i]->stats.ops);
    }
    m.peak_bytes = m.weights_bytes + m.arena_bytes + m.program_bytes + m.staging_bytes;
    return m;
}

// ---- preparing --------------------------------------------------------------------------------

static bool check_budget(const Run *run, Error *err) {
    RunMemory m = run_memory(run);
    MemoryStats now = dev_memory(run->dev);
    uint64_t held = m.staging_bytes; // of the plan's figure, what is allocated already
    for (int i = 0; i < run->stores.n; i++)
        if (store_committed(run->stores.v[i])) held += store_bytes(run->stores.v[i]);
    held = MIN(held, now.used);
    uint64_t total = now.used - held + m.peak_bytes; // others' use of the device comes on top
    if (total <= now.budget) return true;
    char need[32], have[32], weights[32], arena[32];
    format_bytes(need, total);
    format_bytes(have, now.budget);
    format_bytes(weights, m.weights_bytes);
    format_bytes(arena, m.arena_bytes);
    return err_failed(err, "memory: expected a budget of at least %s (%llu bytes: weights %s, arena %s, "
                      "the rest for programs and staging), found %s; give --vram %lluM or more, or a "
                      "smaller batch, picture or model", need, (unsigned long long)total, weights, arena,
                      have, (unsigned long long)((total + (1 << 20) - 1) >> 20));
}

static bool allocate_arena(Run *run, Error *err) {
    uint64_t left = run_memory(run).arena_bytes;
    uint64_t block = dev_info(run->dev)->max_buffer / 4096 * 4096;
    while (left) {
        Buffer *b = buf_new(run->dev, MIN(left, block), "arena", err);
        if (!b) return false;
        ARR_PUSH(run, &run->blocks, b);
        left -= MIN(left, block);
    }
    return true;
}

// Where a tensor starts, now that buffers exist.
static TensorRef locate(const Plan *plan, const Tensor *t) {
    TensorRef ref = tensor_ref(t);
    const Storage *s = t->storage;
    uint64_t inside = dtype_bytes(t->dtype, (uint64_t)t->offset);
    if (s->param) {
        ref.buffer = s->param->buffer;
        ref.offset = s->param->offset + inside;
    } else {
        uint64_t at = plan->offset[s->id];
        ref.buffer = plan->run->blocks.v[at / plan->block];
        ref.offset = at % plan->block + inside;
    }
    return ref;
}

static bool record_program(Plan *plan, Error *err) {
    const Graph *g = plan->g;
    ProgramStep *steps = MEM_ARRAY(NULL, ProgramStep, MAX(plan->stats.ops, 1));
    int count = 0;
    for (int i = 0; i < g->nodes.n; i++) {
        if (!plan->alive[i]) continue;
        const Node *node = g->nodes.v[i];
        ProgramStep *step = &steps[count++];
        step->call.op = node->op;
        step->call.params = node->params;
        step->call.label = node->label;
        step->barrier = plan->barrier[i];
        step->internal = true;
        for (int k = 0; k < op_info[node->op].operand_count; k++) {
            if (!node->t[k]) continue;
            const Storage *s = node->t[k]->storage;
            step->call.t[k] = locate(plan, node->t[k]);
            if (role_writes(op_info[node->op].operand[k].role))
                step->internal = step->internal && !s->param && !s->output;
        }
        Work work = op_info[node->op].work(&step->call);
        plan->stats.flops += work.flops;
        plan->stats.bytes += work.bytes;
    }
    plan->program = prog_new(plan->run->dev, steps, count, err);
    mem_free(steps);
    return plan->program || err_prefix(err, "plan %s", plan->stats.name);
}

bool run_prepare(Run *run, Error *err) {
    if (run->ready) return true;
    if (!check_budget(run, err)) return false;
    for (int i = 0; i < run->stores.n; i++)
        if (!store_commit(run->stores.v[i], err)) return false;
    if (!allocate_arena(run, err)) return false;
    for (int i = 0; i < run->plans.n; i++)
        if (!record_program(run->plans.v[i], err)) return false;
    return run->ready = true;
}

bool run_poison(Run *run, Error *err) {
    for (int i = 0; i < run->blocks.n; i++)
        if (!dev_fill(run->blocks.v[i], 0, buf_size(run->blocks.v[i]) / 4 * 4, 0x7fc07fc0u, err))
            return false;
    return true;
}

// ---- running ----------------------------------------------------------------------------------

static bool check_whole(const Plan *plan, const Tensor *t, Error *err) {
    if (t->g == plan->g && tensor_contiguous(t) && t->offset == 0) return true;
    return err_failed(err, "plan %s: expected a whole tensor of its graph, found another; this is a defect",
                      plan->stats.name);
}

bool plan_write(Plan *plan, Tensor *t, DType from, const void *data, Error *err) {
    if (!check_whole(plan, t, err)) return false;
    TensorRef ref = locate(plan, t);
    return tensor_write(ref.buffer, ref.offset, t->dtype, tensor_count(t), from, data, err);
}

bool plan_read(Plan *plan, Tensor *t, DType to, void *data, Error *err) {
    if (!check_whole(plan, t, err)) return false;
    TensorRef ref = locate(plan, t);
    return tensor_read(ref.buffer, ref.offset, t->dtype, tensor_count(t), to, data, err);
}

bool plan_run(Plan *plan, const Cancel *cancel, Error *err) {
    return prog_run(plan->program, cancel, err);
}

PlanStats plan_stats(const Plan *plan) { return plan->stats; }
