// pipeline_flux_plan.c: the memory of a run, and how many pictures go through it at once. See
// pipeline_flux.h.
#include "engine/pipeline_flux_impl.h"

#define PLENTY ((uint64_t)1 << 50) // a budget that refuses nothing

// ---- groups of pictures -------------------------------------------------------------------------

// A group goes through the transformer in one pass, unit by unit, so weights that stream move once for all
// of it; nothing else is gained (models/flux_stages.c records a unit picture by picture). Where all weights
// stay, pictures go one by one: the least memory, and the first picture soonest. Where some stream, what
// more pictures take is taken from the weights that could stay, so the split is chosen by the bytes that
// the whole run moves to the device.
enum { MAX_GROUP = 16 }; // more would save little, and make steps long

int flux_group_size(Groups g, int i) {
    return i < g.groups ? g.count / g.groups + (i < g.count % g.groups) : 0;
}

// Bytes that the passes over groups of `size` pictures move: to stay, and per step. False: they do not fit.
static bool group_traffic(FluxPipeline *p, const Shape *shape, int size, uint64_t budget, double *stay,
                          double *step) {
    Stage s = {0};
    Error ignored = {0};
    Shape group = *shape;
    group.batch = size;
    if (!flux_stage_open(&s, p, STAGE_STEP, &group, budget, &ignored)) return false;
    StackMemory m = stack_memory(s.stack);
    *stay = (double)m.resident_bytes;
    *step = (double)m.moved_bytes;
    flux_stage_close(&s);
    return true;
}

// Of all groups of a split; negative: they do not fit.
static double split_traffic(FluxPipeline *p, const Shape *shape, Groups g, uint64_t budget) {
    int rest = g.count % g.groups ? g.groups - g.count % g.groups : 0; // groups of one picture less
    const struct { int groups, size; } kinds[] = {{g.groups - rest, flux_group_size(g, 0)},
                                                  {rest, flux_group_size(g, g.groups - 1)}};
    double total = 0, stay, step;
    for (size_t i = 0; i < COUNT_OF(kinds) && kinds[i].groups; i++) {
        if (!group_traffic(p, shape, kinds[i].size, budget, &stay, &step)) return -1;
        total += stay + step * kinds[i].groups * shape->steps * shape->prompts;
    }
    return total;
}

// The split that a run within `budget` bytes takes; one picture at a time where nothing fits.
static Groups find_groups(FluxPipeline *p, const FluxRequest *r, const Shape *shape, uint64_t budget) {
    Groups best = {r->count, r->count};
    double stay, step, least = -1;
    if (r->count == 1 || !group_traffic(p, shape, 1, budget, &stay, &step) || step == 0) return best;
    double each = step * shape->steps * shape->prompts; // that a group moves at least: more take more room
    for (int size = MIN(r->count, r->group ? r->group : MAX_GROUP); size > 0; size--) {
        Groups g = {r->count, (r->count + size - 1) / size};
        if (least >= 0 && each * g.groups > least) break; // nor does any split into more
        size = flux_group_size(g, 0); // as even groups
        double bytes = split_traffic(p, shape, g, budget);
        if (bytes < 0 || (least >= 0 && bytes > least)) continue;
        best = g, least = bytes;
    }
    return best;
}

// ---- the plan -----------------------------------------------------------------------------------

static void plan_add(FluxPlan *plan, FluxStagePlan stage) {
    plan->stage[plan->stages++] = stage;
    if (stage.peak_bytes > plan->peak_bytes) {
        plan->peak_bytes = stage.peak_bytes;
        plan->peak_stage = plan->stages - 1;
    }
}

static bool plan_stack(FluxPipeline *p, StageId id, const Shape *shape, uint64_t budget, FluxPlan *plan,
                       Error *err) {
    Stage s = {0};
    if (!flux_stage_open(&s, p, id, shape, budget, err)) return false;
    StackMemory m = stack_memory(s.stack);
    plan_add(plan, (FluxStagePlan){
        .name = flux_stage_name(id), .resident_bytes = m.resident_bytes, .streamed_bytes = m.streamed_bytes,
        .arena_bytes = m.arena_bytes + m.state_bytes, .peak_bytes = m.peak_bytes,
        .moved_bytes_per_step = m.moved_bytes, .weights_bytes = m.resident_bytes + m.slots_bytes,
    });
    FluxStagePlan *stage = &plan->stage[plan->stages - 1];
    for (; stage->units < stack_units(s.stack); stage->units++)
        stage->streamed_units += !stack_unit_resident(s.stack, stage->units);
    flux_stage_close(&s);
    return true;
}

static bool plan_vae(FluxPipeline *p, VaePass pass, const FluxRequest *r, uint64_t budget, FluxPlan *plan,
                     Error *err) {
    VaeRun *run = flux_vae_stage(p, pass, r, budget, err);
    if (!run) return false;
    VaeMemory m = vae_memory(run);
    plan_add(plan, (FluxStagePlan){
        .name = pass == VAE_DECODE ? "decode" : "encode", .resident_bytes = m.weights_bytes,
        .arena_bytes = m.arena_bytes, .peak_bytes = m.peak_bytes, .weights_bytes = m.weights_bytes,
    });
    if (m.tiles_x * m.tiles_y > 1) plan->tile_width = m.tile_width, plan->tile_height = m.tile_height;
    vae_run_free(run);
    return true;
}

// The transformer's passes over the groups of pictures, the smaller ones of which have a plan of their own.
static bool plan_steps(FluxPipeline *p, const FluxRequest *r, const Shape *shape, uint64_t budget,
                       FluxPlan *plan, Error *err) {
    Groups g = find_groups(p, r, shape, budget);
    Shape group = *shape;
    plan->groups = g.groups;
    for (int i = 0; i < 2; i++) {
        int size = flux_group_size(g, i ? g.groups - 1 : 0);
        if (i && size == group.batch) break;
        group.batch = size;
        if (!plan_stack(p, i ? STAGE_REST : STAGE_STEP, &group, budget, plan, err)) return false;
        plan->stage[plan->stages - 1].pictures = size;
    }
    return true;
}

static bool plan_all(FluxPipeline *p, const FluxRequest *r, const Shape *shape, uint64_t budget,
                     FluxPlan *plan, Error *err) {
    return plan_stack(p, STAGE_CLIP, shape, budget, plan, err) &&
           plan_stack(p, STAGE_T5, shape, budget, plan, err) &&
           (!r->init || plan_vae(p, VAE_ENCODE, r, budget, plan, err)) &&
           plan_stack(p, STAGE_SCHEDULE, shape, budget, plan, err) &&
           plan_steps(p, r, shape, budget, plan, err) &&
           plan_vae(p, VAE_DECODE, r, budget, plan, err);
}

// What was planned with this device's staging, with that of the budget itself, which may be another.
static uint64_t with_its_staging(const DeviceInfo *info, uint64_t need) {
    uint64_t rest = need - MIN(info->staging_bytes, need), budget = rest;
    for (int i = 0; i < STAGING_STEPS && (i == 0 || budget >= info->staging_step[i].budget); i++)
        budget = rest + info->staging_step[i].bytes;
    return budget;
}

// The smallest budget in which every stage can be planned; 0: none.
static uint64_t smallest_budget(FluxPipeline *p, const FluxRequest *r, const Shape *shape) {
    uint64_t need = 0;
    for (int pass = VAE_DECODE; pass <= (r->init ? VAE_ENCODE : VAE_DECODE); pass++) {
        VaeSpec spec = flux_vae_spec(p, (VaePass)pass, r);
        uint64_t least = vae_smallest(p->dev, p->vae, &spec, NULL);
        if (!least) return 0;
        need = MAX(need, least);
    }
    for (int id = 0; id < STAGE_REST; id++) {
        Stage s = {0};
        Error ignored = {0};
        if (!flux_stage_open(&s, p, (StageId)id, shape, PLENTY, &ignored)) return 0;
        need = MAX(need, stack_memory(s.stack).smallest_peak);
        flux_stage_close(&s);
    }
    return with_its_staging(dev_info(p->dev), need);
}

static bool over_budget(FluxPipeline *p, const FluxRequest *r, const Shape *shape, uint64_t budget,
                        Error *err) {
    uint64_t need = smallest_budget(p, r, shape);
    if (!need || need <= budget) return false; // it failed for another reason, which err says
    char text[32], have[32];
    format_bytes(text, need);
    format_bytes(have, budget);
    return err_failed(err, "memory: expected a budget of at least %s (%llu bytes) for all stages, found %s; "
                      "give --vram %lluM or more, or a smaller picture", text, (unsigned long long)need, have,
                      (unsigned long long)((need + (1 << 20) - 1) >> 20));
}

uint64_t flux_pipeline_smallest(FluxPipeline *p, const FluxRequest *r) {
    Error ignored = {0};
    Schedule *schedule = flux_request_schedule(p, p, r, &ignored);
    if (!schedule) return 0;
    Shape shape = flux_shape(r, schedule->steps);
    mem_free(schedule);
    return smallest_budget(p, r, &shape);
}

bool flux_pipeline_plan(FluxPipeline *p, const FluxRequest *r, uint64_t budget, FluxPlan *plan, Error *err) {
    double start = os_seconds();
    *plan = (FluxPlan){.budget = budget, .driver_bytes = dev_info(p->dev)->driver_bytes};
    Schedule *schedule = flux_request_schedule(p, p, r, err);
    if (!schedule) return false;
    plan->steps = schedule->steps;
    Shape shape = flux_shape(r, schedule->steps);
    plan->prompts = shape.prompts;
    mem_free(schedule);
    bool ok = plan_all(p, r, &shape, budget, plan, err);
    plan->planning_ms = (os_seconds() - start) * 1e3;
    if (!ok) over_budget(p, r, &shape, budget ? budget : dev_memory(p->dev).budget, err);
    return ok;
}

