// program.c: a program's argument blocks, its recording into command buffers, and the queue of
// submissions.
//
// A program is cut into segments, one command buffer and one submission each, of about
// options.max_submit seconds by the estimate at hand: what this program's steps took when they last
// ran, else what the same kernel row took for other calls, else a guess for the kind of device. A
// segment may end inside an op: its tiles are numbered, and a dispatch begins at any of them.
// Segments are recorded once and submitted again for every run; only where the estimate proves
// wrong is a program cut and recorded anew. Cutting never changes a result.
//
// A driver on the CPU compiles a kernel when it first runs (0.1 to 2 s), and no estimate knows:
// there each kernel that never ran begins a segment, which is handed over only once the queue is
// empty, so that a cancel waits for one of them and not for all.
#include "backend/vulkan/vk.h"

enum { MAX_SEGMENTS = 4096 };
static const int max_recordings = 4; // of one program: timings vary, recording must settle
// A timestamp makes a fast device wait for what was before it, so that steps shorter than this
// share one, in seconds; what it measures is then divided among them as they were estimated.
static const double stamp_every = 50e-6;

// Some tiles of one pass of one step.
typedef struct Part {
    int step, pass;
    uint32_t base, count;
    double seconds; // estimated
    bool stamp;     // a timestamp follows
} Part;

typedef struct Segment {
    VkCommandBuffer cmd;
    int first, count;     // its parts
    uint32_t first_query; // the timestamp before its first part; those after parts follow
    double seconds;       // estimated
    bool cold;            // begins with a kernel that the driver may have to compile first
} Segment;

typedef struct ProgState {
    Allocation blocks;    // BLOCK_BYTES per step
    Pipeline **pipelines; // [step * MAX_PASSES + pass]
    double *cost;         // seconds per step, as estimated or measured
    ARRAY(Part) parts;
    ARRAY(Segment) segments;
    VkQueryPool queries;
    uint32_t query_count;
    uint64_t last_value; // timeline number of its last submission
    int recordings;
    bool stale, timed; // record again before the next run; ran since timestamps were read
} ProgState;

// ---- estimates --------------------------------------------------------------------------------

static float *row_rate(VkState *s, const BoundStep *step) {
    size_t i = (size_t)(rows_get(step->call.op, step->row) - kernel_rows);
    return &s->row_rate[i % ROW_RATES];
}

// Before anything is measured: slow enough that a first submission stays short on slow devices.
static double guess(const VkState *s, const BoundStep *step) {
    static const struct { double flops, bytes; } rates[] = {
        [DEV_CPU] = {3e9, 2e9},
        [DEV_SOFTWARE] = {3e9, 2e9},
        [DEV_INTEGRATED] = {1e11, 2e10},
        [DEV_DISCRETE] = {1e12, 1e11},
    };
    Work work = op_info[step->call.op].work(&step->call);
    DeviceKind kind = s->physical.info.kind;
    return 2e-6 + MAX(work.flops / rates[kind].flops, work.bytes / rates[kind].bytes);
}

static double estimate(VkState *s, const BoundStep *step) {
    float rate = *row_rate(s, step);
    return guess(s, step) * (rate > 0 ? rate : 1);
}

// ---- cutting ----------------------------------------------------------------------------------

static void new_segment(Program *prog, ProgState *p, bool cold) {
    Segment segment = {.first = p->parts.n, .cold = cold};
    ARR_PUSH(prog, &p->segments, segment);
}

static void add_part(Program *prog, ProgState *p, Part part) {
    ARR_PUSH(prog, &p->parts, part);
    Segment *segment = &p->segments.v[p->segments.n - 1];
    segment->count++;
    segment->seconds += part.seconds;
}

// On a driver that compiles kernels as they run: ends the segment where this one never ran before.
static void cut_cold(Program *prog, ProgState *p, int step, int pass) {
    VkState *s = vk_state(prog->dev);
    Pipeline *pipeline = p->pipelines[step * MAX_PASSES + pass];
    if (s->physical.info.kind != DEV_SOFTWARE || pipeline->met) return;
    pipeline->met = true;
    Segment *segment = &p->segments.v[p->segments.n - 1];
    if (segment->count) new_segment(prog, p, true);
    else segment->cold = true;
}

// Adds the tiles of one pass, ending segments at `target` seconds.
static void cut_pass(Program *prog, ProgState *p, int step, int pass, uint64_t tiles,
                     double seconds, double target) {
    double each = seconds / (double)tiles;
    for (uint64_t base = 0; base < tiles;) {
        Segment *segment = &p->segments.v[p->segments.n - 1];
        uint64_t left = tiles - base;
        double room = target - segment->seconds;
        // What fits; where that is little and the rest would fit a segment of its own, it gets one.
        uint64_t fits = room > 0 ? (uint64_t)MIN(room / each, 4e9) : 0;
        if (segment->count && (fits == 0 || (fits < left && (double)left * each <= target))) {
            new_segment(prog, p, false);
            continue;
        }
        uint64_t count = MIN(MAX(fits, 1), left);
        Part part = {step, pass, (uint32_t)base, (uint32_t)count, (double)count * each, false};
        add_part(prog, p, part);
        base += count;
    }
}

static void cut(Program *prog, ProgState *p) {
    VkState *s = vk_state(prog->dev);
    double total = 0;
    for (int i = 0; i < prog->count; i++) total += p->cost[i];
    double target = MAX(s->dev->options.max_submit, total / MAX_SEGMENTS);
    p->parts.n = p->segments.n = 0;
    new_segment(prog, p, false);
    for (int i = 0; i < s->pipelines.n; i++) s->pipelines.v[i]->met = s->pipelines.v[i]->ran;
    for (int i = 0; i < prog->count; i++) {
        const BoundStep *step = &prog->steps[i];
        const KernelRow *row = rows_get(step->call.op, step->row);
        int passes = 0;
        for (int j = 0; j < MAX_PASSES && row->pass[j].module; j++)
            passes += pass_tiles(&row->pass[j], &step->call) > 0;
        for (int j = 0; j < MAX_PASSES && row->pass[j].module; j++) {
            uint64_t tiles = pass_tiles(&row->pass[j], &step->call);
            if (!tiles) continue;
            cut_cold(prog, p, i, j);
            cut_pass(prog, p, i, j, tiles, p->cost[i] / passes, target);
        }
    }
}

// ---- recording --------------------------------------------------------------------------------

static void compute_barrier(VkState *s, VkCommandBuffer cmd) {
    VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                               .dstAccessMask = VK_ACCESS_SHADER_READ_BIT |
                                                VK_ACCESS_SHADER_WRITE_BIT};
    s->vk.vkCmdPipelineBarrier(cmd, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                               VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1, &barrier, 0, NULL, 0,
                               NULL);
}

static void record_part(VkState *s, ProgState *p, VkCommandBuffer cmd, const Part *part) {
    const Pipeline *pipeline = p->pipelines[part->step * MAX_PASSES + part->pass];
    s->vk.vkCmdBindPipeline(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline->handle);
    uint64_t block = p->blocks.address + (uint64_t)part->step * BLOCK_BYTES;
    for (uint32_t done = 0; done < part->count;) {
        uint32_t count = MIN(part->count - done, s->physical.max_groups);
        uint32_t push[4] = {(uint32_t)block, (uint32_t)(block >> 32), part->base + done, 0};
        s->vk.vkCmdPushConstants(cmd, s->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof push, push);
        s->vk.vkCmdDispatch(cmd, count, 1, 1);
        done += count;
    }
}

// Must the tiles of `part` wait for those of `before`, recorded just before it?
static bool needs_barrier(const Program *prog, const Part *before, const Part *part) {
    for (int i = before->step + 1; i <= part->step; i++) // steps without tiles are not recorded
        if (prog->steps[i].barrier) return true;
    if (part->step != before->step || part->pass == before->pass) return false;
    const BoundStep *step = &prog->steps[part->step];
    const KernelRow *row = rows_get(step->call.op, step->row);
    for (int i = before->pass + 1; i <= part->pass; i++)
        if (row->pass[i].barrier) return true;
    return false;
}

// Timestamps of a segment: one before its first part, then one after each that is marked.
static uint32_t stamps(const ProgState *p, const Segment *segment) {
    uint32_t n = 1;
    for (int i = 0; i < segment->count; i++) n += p->parts.v[segment->first + i].stamp;
    return n;
}

// Marks the parts that a timestamp follows: always the last one of a segment.
static void place_stamps(ProgState *p, const Segment *segment) {
    double since = 0;
    for (int i = 0; i < segment->count; i++) {
        Part *part = &p->parts.v[segment->first + i];
        since += part->seconds;
        part->stamp = i + 1 == segment->count || since >= stamp_every;
        if (part->stamp) since = 0;
    }
}

static bool record_segment(VkState *s, Program *prog, ProgState *p, Segment *segment, Error *err) {
    VkCommandBuffer cmd = segment->cmd;
    if (!vk_begin(s, cmd, VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT, err)) return false;
    vk_full_barrier(s, cmd); // after all that was submitted before
    uint32_t query = segment->first_query;
    if (p->queries) {
        s->vk.vkCmdResetQueryPool(cmd, p->queries, query, stamps(p, segment));
        s->vk.vkCmdWriteTimestamp(cmd, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, p->queries, query++);
    }
    for (int i = segment->first; i < segment->first + segment->count; i++) {
        const Part *part = &p->parts.v[i];
        if (i > segment->first && needs_barrier(prog, part - 1, part)) compute_barrier(s, cmd);
        record_part(s, p, cmd, part);
        if (p->queries && part->stamp)
            s->vk.vkCmdWriteTimestamp(cmd, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, p->queries,
                                      query++);
    }
    return vk_ok(s, s->vk.vkEndCommandBuffer(cmd), "recording", 0, err);
}

static void free_recording(VkState *s, ProgState *p) {
    for (int i = 0; i < p->segments.n; i++)
        if (p->segments.v[i].cmd)
            s->vk.vkFreeCommandBuffers(s->device, s->pool, 1, &p->segments.v[i].cmd);
    p->segments.n = 0;
    if (p->queries) s->vk.vkDestroyQueryPool(s->device, p->queries, NULL);
    p->queries = VK_NULL_HANDLE;
}

static bool make_queries(VkState *s, ProgState *p, Error *err) {
    p->query_count = 0;
    for (int i = 0; i < p->segments.n; i++) {
        place_stamps(p, &p->segments.v[i]);
        p->segments.v[i].first_query = p->query_count;
        p->query_count += stamps(p, &p->segments.v[i]);
    }
    if (!s->physical.timestamp_bits) return true; // this queue measures nothing
    VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                  .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                  .queryCount = p->query_count};
    return vk_ok(s, s->vk.vkCreateQueryPool(s->device, &info, NULL, &p->queries), "timestamps", 0,
                 err);
}

static bool record(VkState *s, Program *prog, ProgState *p, Error *err) {
    free_recording(s, p);
    cut(prog, p);
    p->recordings++;
    p->stale = false;
    if (!make_queries(s, p, err)) return false;
    for (int i = 0; i < p->segments.n; i++) {
        Segment *segment = &p->segments.v[i];
        VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                            .commandPool = s->pool,
                                            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                            .commandBufferCount = 1};
        VkResult result = s->vk.vkAllocateCommandBuffers(s->device, &info, &segment->cmd);
        if (!vk_ok(s, result, "a recording", 0, err) || !record_segment(s, prog, p, segment, err))
            return false;
    }
    return true;
}

// ---- making and freeing -----------------------------------------------------------------------

uint64_t vk_prog_bytes_for(const Device *dev, int count) {
    (void)dev;
    return (uint64_t)count * BLOCK_BYTES;
}

// The block of a step as kiln.glsl reads it: its operands in their order, then its parameters.
static void fill_block(uint8_t *block, const BoundStep *step) {
    const OpInfo *op = &op_info[step->call.op];
    TensorArg args[MAX_OPERANDS];
    row_arguments(rows_get(step->call.op, step->row), &step->call, args);
    size_t bytes = (size_t)op->operand_count * sizeof *args;
    memcpy(block, args, bytes);
    memcpy(block + bytes, &step->call.params, op->params_size);
}

static bool upload_blocks(VkState *s, Program *prog, ProgState *p, Error *err) {
    if (!memory_new(s, &p->blocks, prog->bytes, MEMORY_DEVICE, "program arguments", err))
        return false;
    uint8_t *blocks = mem_new(NULL, prog->bytes);
    for (int i = 0; i < prog->count; i++)
        fill_block(blocks + (size_t)i * BLOCK_BYTES, &prog->steps[i]);
    bool ok = upload(s, p->blocks.buffer, 0, blocks, prog->bytes, err);
    mem_free(blocks);
    return ok;
}

static void release(VkState *s, ProgState *p) {
    if (s->hung) return;
    free_recording(s, p);
    memory_free(s, &p->blocks);
}

bool vk_prog_init(Program *prog, Error *err) {
    VkState *s = vk_state(prog->dev);
    ProgState *p = MEM_NEW(prog, ProgState);
    prog->state = p;
    if (!prog->count) return true;
    p->pipelines = MEM_ARRAY(prog, Pipeline *, prog->count * MAX_PASSES);
    p->cost = MEM_ARRAY(prog, double, prog->count);
    for (int i = 0; i < prog->count; i++) p->cost[i] = estimate(s, &prog->steps[i]);
    bool ok = pipelines_for(s, prog->steps, prog->count, p->pipelines, err) &&
              upload_blocks(s, prog, p, err) && record(s, prog, p, err) &&
              messages_check(&s->instance.messages, prog->dev->info.id, err);
    if (!ok) {
        vk_idle(s); // the upload may be under way
        release(s, p);
        return false;
    }
    ARR_PUSH(s, &s->programs, prog);
    return true;
}

static void forget_timing(VkState *s, const Program *prog) {
    for (int i = s->timed.n - 1; i >= 0; i--)
        if (s->timed.v[i] == prog) s->timed.v[i] = s->timed.v[--s->timed.n];
}

void vk_prog_done(Program *prog) {
    VkState *s = vk_state(prog->dev);
    vk_idle(s);
    forget_timing(s, prog);
    for (int i = s->programs.n - 1; i >= 0; i--)
        if (s->programs.v[i] == prog) s->programs.v[i] = s->programs.v[--s->programs.n];
    release(s, prog->state);
}

void programs_free_all(VkState *s) {
    while (s->programs.n) vk_prog_done(s->programs.v[s->programs.n - 1]);
}

// ---- what the timestamps say ------------------------------------------------------------------

static void learn(VkState *s, Program *prog, ProgState *p) {
    double target = s->dev->options.max_submit, total = 0;
    for (int i = 0; i < prog->count; i++) {
        BoundStep *step = &prog->steps[i];
        total += step->seconds;
        if (!(step->seconds > 0)) continue;
        p->cost[i] = step->seconds;
        float *rate = row_rate(s, step), now = (float)(step->seconds / guess(s, step));
        if (step->seconds > 1e-4) *rate = *rate > 0 ? 0.5f * (*rate + now) : now;
    }
    // Cut anew where a submission took much longer than it may, or all are needlessly short.
    bool is_long = false;
    for (int i = 0; i < p->segments.n; i++) {
        const Segment *segment = &p->segments.v[i];
        bool divisible = segment->count > 1 || p->parts.v[segment->first].count > 1;
        is_long |= divisible && segment->seconds > 1.5 * target;
    }
    bool is_short = p->segments.n > 1 && total < 0.3 * target * p->segments.n;
    p->stale = (is_long || is_short) && p->recordings < max_recordings;
}

// Gives the parts first..last the seconds that one timestamp measured for them all.
static void share_out(Program *prog, ProgState *p, int first, int last, double seconds) {
    double estimated = 0;
    for (int i = first; i <= last; i++) estimated += p->parts.v[i].seconds;
    for (int i = first; i <= last; i++) {
        Part *part = &p->parts.v[i];
        part->seconds *= seconds / estimated;
        prog->steps[part->step].seconds += part->seconds;
        // Never 0, or a later, slower run could not be shared out.
        part->seconds = MAX(part->seconds, 1e-9);
    }
}

static void use_timestamps(VkState *s, Program *prog, const uint64_t *ticks) {
    ProgState *p = prog->state;
    uint32_t bits = s->physical.timestamp_bits;
    uint64_t mask = bits < 64 ? (1ull << bits) - 1 : ~0ull;
    for (int i = 0; i < prog->count; i++) prog->steps[i].seconds = 0;
    for (int i = 0; i < p->segments.n; i++) {
        Segment *segment = &p->segments.v[i];
        const uint64_t *t = &ticks[segment->first_query];
        int first = segment->first;
        segment->seconds = 0;
        for (int j = first; j < segment->first + segment->count; j++) {
            if (!p->parts.v[j].stamp) continue;
            double seconds = (double)((t[1] - t[0]) & mask) * s->physical.timestamp_period * 1e-9;
            share_out(prog, p, first, j, seconds);
            segment->seconds += seconds;
            first = j + 1;
            t++;
        }
    }
    learn(s, prog, p);
}

static void read_timestamps(VkState *s, Program *prog) {
    ProgState *p = prog->state;
    p->timed = false;
    for (int i = 0; i < prog->count * MAX_PASSES; i++)
        if (p->pipelines[i]) p->pipelines[i]->ran = true;
    if (!p->queries) return;
    uint64_t *ticks = MEM_ARRAY(NULL, uint64_t, p->query_count);
    VkResult result = s->vk.vkGetQueryPoolResults(s->device, p->queries, 0, p->query_count,
                                                  p->query_count * sizeof *ticks, ticks,
                                                  sizeof *ticks, VK_QUERY_RESULT_64_BIT);
    if (result == VK_SUCCESS) use_timestamps(s, prog, ticks);
    mem_free(ticks);
}

// ---- submitting -------------------------------------------------------------------------------

static bool completed(VkState *s, uint64_t *value, Error *err) {
    VkResult result = s->vk.vkGetSemaphoreCounterValue(s->device, s->timeline, value);
    if (!vk_ok(s, result, "the work submitted", 0, err)) return false;
    int done = 0;
    while (done < s->in_flight_count && s->in_flight[done].value <= *value) done++;
    s->in_flight_count -= done;
    memmove(s->in_flight, s->in_flight + done, sizeof *s->in_flight * (size_t)s->in_flight_count);
    return true;
}

static double seconds_in_flight(const VkState *s) {
    double seconds = 0;
    for (int i = 0; i < s->in_flight_count; i++) seconds += s->in_flight[i].seconds;
    return seconds;
}

// Hands over segments while the queue holds less than two submissions' time: enough that it never
// runs dry, little enough that a cancel is obeyed soon.
static bool feed(VkState *s, Error *err) {
    uint64_t value;
    if (!completed(s, &value, err)) return false;
    while (s->pending_count && s->in_flight_count < IN_FLIGHT_MAX) {
        Program *prog = s->pending[0].prog;
        ProgState *p = prog->state;
        Segment *segment = &p->segments.v[s->pending[0].segment];
        double seconds = seconds_in_flight(s) + segment->seconds;
        if (s->in_flight_count >= 2 && seconds > 2 * s->dev->options.max_submit) break;
        if (s->in_flight_count && segment->cold) break;
        if (!vk_submit_cmd(s, segment->cmd, "a submission", err)) return false;
        p->last_value = s->submitted;
        s->in_flight[s->in_flight_count++] = (InFlight){s->submitted, segment->seconds};
        if (++s->pending[0].segment < p->segments.n) continue;
        if (!p->timed) ARR_PUSH(s, &s->timed, prog);
        p->timed = true;
        s->pending_count--;
        memmove(s->pending, s->pending + 1, sizeof *s->pending * (size_t)s->pending_count);
    }
    return true;
}

static bool is_pending(const VkState *s, const Program *prog) {
    for (int i = 0; i < s->pending_count; i++)
        if (s->pending[i].prog == prog) return true;
    return false;
}

bool vk_submit(Program *prog, Error *err) {
    VkState *s = vk_state(prog->dev);
    ProgState *p = prog->state;
    if (!prog->count) return true;
    uint64_t value;
    if (!completed(s, &value, err)) return false;
    if (p->stale && p->last_value <= value && !is_pending(s, prog)) {
        // No run of it is under way: its command buffers may be replaced.
        forget_timing(s, prog);
        p->timed = false;
        if (!record(s, prog, p, err)) return false;
    }
    struct Pending next = {prog, 0};
    arr_grow(s, (void **)&s->pending, s->pending_count, &s->pending_cap, sizeof next);
    s->pending[s->pending_count++] = next;
    return feed(s, err);
}

// ---- waiting ----------------------------------------------------------------------------------

static bool err_hang(VkState *s, double seconds, Error *err) {
    s->hung = true;
    s->dev->lost = true;
    return err_failed(
        err,
        "%s: expected a submission of about %.1f s to finish, found it still "
        "running after %.0f s; close other programs that use the device, or update its "
        "driver",
        s->dev->info.id, seconds_in_flight(s), seconds);
}

// Asked only while work is left: what is done is not cancelled any more.
static bool check_cancel(const Cancel *cancel, Error *err) {
    if (!cancel || !cancel->asked || !cancel->asked(cancel->user)) return true;
    return err_set(err, STATUS_CANCELLED, "cancelled");
}

bool vk_wait_value(VkState *s, uint64_t value, const Cancel *cancel, Error *err) {
    // Far beyond any estimate: a driver that never answers must not hold the program for ever. A
    // driver on the CPU compiles its kernels when they first run, perhaps on a busy machine.
    const double patience = s->physical.info.kind == DEV_SOFTWARE ? 900 : 60;
    uint64_t done, last = 0;
    double since = os_seconds();
    for (;;) {
        if (!completed(s, &done, err)) return false;
        if (done >= value) return true;
        if (!check_cancel(cancel, err)) return false;
        double now = os_seconds();
        if (done != last) since = now;
        last = done;
        if (now - since > patience + 20 * seconds_in_flight(s))
            return err_hang(s, now - since, err);
        VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                    .semaphoreCount = 1,
                                    .pSemaphores = &s->timeline,
                                    .pValues = &value};
        VkResult result = s->vk.vkWaitSemaphores(s->device, &info, 10 * 1000 * 1000);
        if (result != VK_TIMEOUT && !vk_ok(s, result, "the work submitted", 0, err)) return false;
        if (s->pending_count && !feed(s, err)) return false;
    }
}

bool vk_drain(VkState *s, Error *err) {
    while (s->pending_count) {
        if (!feed(s, err)) return false;
        if (s->pending_count && !vk_wait_value(s, s->in_flight[0].value, NULL, err)) return false;
    }
    return true;
}

bool vk_wait(Device *dev, const Cancel *cancel, Error *err) {
    VkState *s = vk_state(dev);
    Error problem = {0};
    bool ok = feed(s, &problem);
    while (ok && s->pending_count)
        ok = check_cancel(cancel, &problem) &&
             vk_wait_value(s, s->in_flight[0].value, cancel, &problem) && feed(s, &problem);
    ok = ok && vk_wait_value(s, s->submitted, cancel, &problem);
    if (!ok && problem.status == STATUS_CANCELLED) {
        s->pending_count = 0; // what is in the queue still runs to its end
        Error lost = {0};
        if (!vk_wait_value(s, s->submitted, NULL, &lost)) problem = lost;
    }
    if (!ok) {
        if (err) *err = problem;
        return false;
    }
    for (int i = 0; i < s->timed.n; i++) read_timestamps(s, s->timed.v[i]);
    s->timed.n = 0;
    return messages_check(&s->instance.messages, dev->info.id, err);
}

void vk_idle(VkState *s) {
    if (s->hung) return;
    if (s->dev->lost) {
        s->pending_count = 0;
        s->vk.vkDeviceWaitIdle(s->device);
        return;
    }
    Error ignored = {0}; // the next call on the device reports it
    if (!vk_drain(s, &ignored) || !vk_wait_value(s, s->submitted, NULL, &ignored))
        s->pending_count = 0;
}
