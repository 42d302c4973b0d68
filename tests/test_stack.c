// test_stack.c: a small model as a stack of units: what streams gives the same bits as what stays,
// on every device; budgets are met or refused with the figure that works; moved bytes and peaks are
// as planned; cancel and failures at any point leave nothing behind.
#include "tests/check.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "backend/os.h"
#include "engine/dummy.h"
#include "engine/stack.h"

// ---- the model: x <- x + W2 gelu(W1 x + b), after a first unit that is a large table's product ------

enum { BLOCKS = 9, WIDTH = 64, HIDDEN = 192, TOKENS = 10, PER_BLOCK = 3, TABLE = 700 };

typedef struct Toy {
    Device *dev;
    Store *state;
    Param *x, *y;
    BindWant wants[BLOCKS * PER_BLOCK + 1];
    Weights *weights;
    BoundWeight *bound;
    StackUnit unit[BLOCKS + 1];
    StackSpec spec;
    DType compute;
} Toy;

static void record(void *user, Graph *g, const StackUnit *unit, Param *const *w) {
    Toy *toy = user;
    Tensor *x = g_param(g, toy->x);
    if (unit->kind == 1) {
        Tensor *h = g_gemm(g, GEMM(.x = x, .w = g_weight(g, w[0], toy->compute)));
        g_copy(g, COPY(.x = g_slice(h, 1, 3, WIDTH), .y = g_param(g, toy->y)));
        return;
    }
    Tensor *up = g_weight(g, w[unit->kind == 2 ? 2 : 0], toy->compute); // 2: a defect
    Tensor *h = g_gemm(g, GEMM(.x = g_cast(x, toy->compute), .w = up, .bias = g_param(g, w[1]),
                               .act = ACT_GELU, .dtype = toy->compute));
    Tensor *down = g_weight(g, w[2], toy->compute);
    Tensor *sum = g_gemm(g, GEMM(.x = h, .w = down, .residual = x));
    if (unit->kind == 3 && unit->index % 2) // 3: a defect, units of one kind that are not alike
        sum = g_ewise(g, EWISE(.kind = EW_ADD, .x = sum, .y = sum));
    g_copy(g, COPY(.x = sum, .y = x));
}

static BindWant want2(void *parent, int block, const char *name, int64_t rows, int64_t columns) {
    return (BindWant){.name = mem_printf(parent, "blocks.%d.%s", block, name), .ndim = columns ? 2 : 1,
                      .shape = {rows, columns}};
}

static Toy *toy_new(const char *device, const DeviceOptions *options, DType type, DType compute) {
    Error err = {0};
    Device *dev = dev_open(NULL, device, options, &err);
    if (!dev && !strncmp(device, "vulkan", 6)) return NULL;
    CHECK(dev);
    Toy *toy = MEM_NEW(NULL, Toy);
    toy->dev = dev;
    toy->compute = compute;
    int n = 0;
    for (int b = 0; b < BLOCKS; b++) {
        toy->wants[n++] = want2(toy, b, "up.weight", HIDDEN, WIDTH);
        toy->wants[n++] = want2(toy, b, "up.bias", HIDDEN, 0);
        toy->wants[n++] = want2(toy, b, "down.weight", WIDTH, HIDDEN);
    }
    toy->wants[n++] = want2(toy, BLOCKS, "table.weight", TABLE, WIDTH);
    toy->weights = dummy_weights(toy, "toy", toy->wants, n, type, 3);
    toy->bound = bind_weights(toy, toy->weights, toy->wants, n, NULL, &err);
    CHECK(toy->bound);
    for (int b = 0; b < BLOCKS && dtype_is_packed(type); b++) toy->bound[b * PER_BLOCK].scale = 0.5f;
    for (int b = 0; b <= BLOCKS; b++)
        toy->unit[b] = (StackUnit){.name = mem_printf(toy, "blocks.%d", b), .kind = b == BLOCKS,
                                   .weights = b == BLOCKS ? 1 : PER_BLOCK,
                                   .weight = &toy->bound[b * PER_BLOCK], .index = b};
    toy->state = store_new(toy, dev);
    toy->x = store_add(toy->state, "x", DT_F32, DIMS(TOKENS, WIDTH));
    toy->y = store_add(toy->state, "y", DT_F32, DIMS(TOKENS, WIDTH));
    toy->spec = (StackSpec){.name = "toy", .units = BLOCKS + 1, .unit = toy->unit, .record = record,
                            .user = toy, .state = toy->state};
    return toy;
}

static void toy_free(Toy *toy) {
    store_free(toy->state);
    assert_int_equal(dev_memory(toy->dev).used, dev_info(toy->dev)->staging_bytes); // nothing is left
    dev_close(toy->dev);
    mem_free(toy);
}

typedef struct Out { float x[TOKENS * WIDTH], y[TOKENS * WIDTH]; } Out;

static void start(Toy *toy) {
    Error err = {0};
    float x[TOKENS * WIDTH];
    for (int i = 0; i < TOKENS * WIDTH; i++) x[i] = (float)(i * 37 % 64) / 32 - 1;
    CHECK(param_write(toy->x, DT_F32, x, &err));
}

static void finish(Toy *toy, Out *out) {
    Error err = {0};
    CHECK(param_read(toy->x, DT_F32, out->x, &err));
    CHECK(param_read(toy->y, DT_F32, out->y, &err));
    for (int i = 0; i < TOKENS * WIDTH; i++) assert_true(isfinite(out->x[i]) && isfinite(out->y[i]));
}

// Two passes within `budget`; checks all figures against what the device counted.
static StackMemory run_toy(const char *device, const DeviceOptions *options, DType type, DType compute,
                           uint64_t budget, Out *out) {
    Error err = {0};
    Toy *toy = toy_new(device, options, type, compute);
    if (!toy) return (StackMemory){0};
    Stack *s = stack_new(toy, toy->dev, &toy->spec, budget, &err);
    CHECK(s);
    StackMemory m = stack_memory(s);
    assert_int_equal(dev_memory(toy->dev).used, dev_info(toy->dev)->staging_bytes); // planned only
    dev_reset_peak(toy->dev);
    CHECK(stack_prepare(s, &err));
    for (int pass = 0; pass < 2; pass++) {
        start(toy);
        CHECK(stack_run(s, &(StackPass){.more = pass == 0}, &err));
        assert_int_equal(stack_moved(s), m.moved_bytes * (uint64_t)(pass + 1));
    }
    finish(toy, out);
    uint64_t peak = dev_memory(toy->dev).peak;
    if (budget) assert_true(m.peak_bytes <= budget);
    assert_true(peak <= m.peak_bytes && (double)peak >= 0.9 * (double)m.peak_bytes);
    assert_int_equal(m.peak_bytes, m.resident_bytes + m.slots_bytes + m.state_bytes + m.arena_bytes +
                                       m.program_bytes + m.staging_bytes);
    assert_true(m.smallest_peak <= m.peak_bytes);
    assert_true(stack_unit_work(s, 0).flops >= 4.0 * TOKENS * WIDTH * HIDDEN);
    for (int i = 0; i <= BLOCKS; i++) assert_true(stack_unit_seconds(s, i) > 0);
    stack_free(s);
    toy_free(toy);
    return m;
}

static const struct { const char *device; DType type, compute; bool staged; } setups[] = {
    {"ref", DT_F32, DT_F32, false},     {"cpu", DT_F32, DT_F32, false},
    {"cpu", DT_BF16, DT_BF16, false},   {"cpu", DT_Q8_0, DT_F32, false},
    {"cpu", DT_F8_E4M3, DT_BF16, false}, {"vulkan", DT_F32, DT_F32, false},
    {"vulkan", DT_F32, DT_F32, true},   {"vulkan", DT_BF16, DT_BF16, false},
    {"vulkan", DT_Q8_0, DT_F32, false},
};

static void test_streamed_is_resident(void **state) {
    (void)state;
    for (size_t k = 0; k < COUNT_OF(setups); k++) {
        const char *device = setups[k].device;
        DType type = setups[k].type, compute = setups[k].compute;
        DeviceOptions options = {.staged_uploads = setups[k].staged};
        Out resident, out;
        StackMemory all = run_toy(device, &options, type, compute, 0, &resident);
        if (!all.peak_bytes) {
            print_message("SKIP: no Vulkan device\n");
            continue;
        }
        assert_int_equal(all.moved_bytes, 0);
        assert_int_equal(all.streamed_bytes, 0);
        assert_int_equal(all.slots_bytes, 0);
        uint64_t least = all.smallest_peak, most = all.peak_bytes;
        assert_true(least < most);
        uint64_t moved = UINT64_MAX;
        for (int step = 0; step <= 6; step++) {
            uint64_t budget = least + (most - least) * (uint64_t)step / 6;
            StackMemory m = run_toy(device, &options, type, compute, budget, &out);
            assert_memory_equal(&out, &resident, sizeof out);
            assert_true(m.moved_bytes <= moved); // a larger budget never moves more
            assert_true((m.moved_bytes == 0) == (step == 6));
            assert_int_equal(m.resident_bytes + m.streamed_bytes, all.resident_bytes);
            moved = m.moved_bytes;
        }
        // Blocks smaller than a unit: its weights lie in several.
        uint64_t block = align_up(dtype_bytes(type, TABLE * WIDTH), 4096);
        uint64_t arena = align_up(dtype_bytes(compute, TABLE * WIDTH), 4096); // the table's product
        options.max_buffer = MAX(block, arena);
        StackMemory m = run_toy(device, &options, type, compute, 0, &out);
        assert_memory_equal(&out, &resident, sizeof out);
        run_toy(device, &options, type, compute, m.smallest_peak, &out);
        assert_memory_equal(&out, &resident, sizeof out);
    }
}

// The smallest budget works, one byte less is refused, and the text says which would.
static void test_budgets(void **state) {
    (void)state;
    Error err = {0};
    Toy *toy = toy_new("cpu", NULL, DT_BF16, DT_F32);
    Stack *s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    CHECK(s);
    uint64_t least = stack_memory(s).smallest_peak;
    stack_free(s);
    assert_null(stack_new(toy, toy->dev, &toy->spec, least - 1, &err));
    char number[32];
    snprintf(number, sizeof number, "(%llu bytes", (unsigned long long)least);
    assert_non_null(strstr(err.text, "toy: memory: expected a budget of at least"));
    assert_non_null(strstr(err.text, number));
    assert_null(stack_new(toy, toy->dev, &toy->spec, 1000, &err));
    assert_non_null(strstr(err.text, number));
    // What others hold counts.
    Buffer *other = buf_new(toy->dev, 5000, "other", &err);
    assert_null(stack_new(toy, toy->dev, &toy->spec, least + 4999, &err));
    snprintf(number, sizeof number, "(%llu bytes", (unsigned long long)(least + 5000));
    assert_non_null(strstr(err.text, number));
    s = stack_new(toy, toy->dev, &toy->spec, least + 5000, &err);
    CHECK(s);
    CHECK(stack_prepare(s, &err));
    stack_free(s);
    buf_free(other);
    toy_free(toy);
    // The device's own budget holds too, and its allocator never refuses what the plan allowed.
    toy = toy_new("cpu", &(DeviceOptions){.budget = least}, DT_BF16, DT_F32);
    s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    CHECK(s);
    CHECK(stack_prepare(s, &err));
    start(toy);
    CHECK(stack_run(s, NULL, &err));
    stack_free(s);
    toy_free(toy);
}

// ---- parts of a pass, progress, cancel ------------------------------------------------------------

typedef struct Seen { int calls, total; char last[32]; int cancel_at, polls; } Seen;

static void see(void *user, const char *unit, int done, int total) {
    Seen *seen = user;
    assert_int_equal(done, seen->calls++);
    seen->total = total;
    snprintf(seen->last, sizeof seen->last, "%s", unit);
}

static bool asked(void *user) {
    Seen *seen = user;
    return ++seen->polls >= seen->cancel_at;
}

static void test_parts_of_a_pass(void **state) {
    (void)state;
    Error err = {0};
    Out whole, parts;
    run_toy("cpu", NULL, DT_F32, DT_F32, 0, &whole);
    Toy *toy = toy_new("cpu", NULL, DT_F32, DT_F32);
    Stack *s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    uint64_t least = stack_memory(s).smallest_peak;
    stack_free(s);
    s = stack_new(toy, toy->dev, &toy->spec, least, &err);
    CHECK(s);
    CHECK(stack_prepare(s, &err));
    for (int more = 0; more < 2; more++) {
        start(toy);
        for (int first = 0; first <= BLOCKS; first += 3) { // 3, 3, 3, 1 units: slots meet in any order
            Seen seen = {0};
            StackPass pass = {.first = first, .count = MIN(3, BLOCKS + 1 - first), .more = more,
                              .progress = see, .user = &seen};
            CHECK(stack_run(s, &pass, &err));
            assert_int_equal(seen.calls, pass.count);
            assert_int_equal(seen.total, pass.count);
            assert_string_equal(seen.last, toy->unit[first + pass.count - 1].name);
        }
        finish(toy, &parts);
        assert_memory_equal(&parts, &whole, sizeof whole);
        assert_int_equal(stack_moved(s), stack_memory(s).moved_bytes * (uint64_t)(more + 1));
    }
    // What comes is not what was announced: other units, whose weights are the right ones.
    uint64_t moved = stack_moved(s);
    for (int first = 6; first >= 2; first -= 2) {
        CHECK(stack_run(s, &(StackPass){.first = first, .count = 2, .more = true}, &err));
        for (int i = first; i < first + 2; i++)
            moved += stack_unit_resident(s, i) ? 0 : stack_unit_bytes(s, i);
        assert_int_equal(stack_moved(s), moved);
    }
    start(toy);
    CHECK(stack_run(s, &(StackPass){.more = true}, &err));
    finish(toy, &parts);
    assert_memory_equal(&parts, &whole, sizeof whole);
    assert_false(stack_run(s, &(StackPass){.first = 5, .count = 6}, &err));
    assert_non_null(strstr(err.text, "this is a defect"));
    stack_free(s);
    toy_free(toy);
}

// Cancelled at any poll, then run whole: as if nothing had been.
static void test_cancel(void **state) {
    (void)state;
    Error err = {0};
    Out whole, after;
    run_toy("cpu", NULL, DT_F32, DT_F32, 0, &whole);
    Toy *toy = toy_new("cpu", NULL, DT_F32, DT_F32);
    Stack *s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    uint64_t least = stack_memory(s).smallest_peak;
    stack_free(s);
    for (int streamed = 0; streamed < 2; streamed++) {
        s = stack_new(toy, toy->dev, &toy->spec, streamed ? least : 0, &err);
        CHECK(s);
        CHECK(stack_prepare(s, &err));
        int cancelled = 0;
        for (int at = 1; at < 40; at++) {
            Seen seen = {.cancel_at = at};
            StackPass pass = {.cancel = &(Cancel){asked, &seen}, .more = at % 2};
            start(toy);
            Error why = {0};
            if (stack_run(s, &pass, &why)) continue;
            assert_int_equal(why.status, STATUS_CANCELLED);
            cancelled++;
        }
        assert_true(cancelled > 10);
        start(toy);
        CHECK(stack_run(s, NULL, &err));
        finish(toy, &after);
        assert_memory_equal(&after, &whole, sizeof whole);
        stack_free(s);
    }
    Seen seen = {.cancel_at = 3}; // while loading
    toy->spec.cancel = &(Cancel){asked, &seen};
    s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    CHECK(s);
    assert_false(stack_prepare(s, &err));
    assert_int_equal(err.status, STATUS_CANCELLED);
    stack_free(s);
    toy_free(toy);
}

// ---- failures -----------------------------------------------------------------------------------

// Every allocation fails in turn: one line, nothing kept.
static void test_failing_allocations(void **state) {
    (void)state;
    Out out;
    uint64_t least = run_toy("cpu", NULL, DT_F32, DT_F32, 0, &out).smallest_peak;
    for (int streamed = 0; streamed < 2; streamed++) {
        int failures = 0;
        for (int n = 1; n < 100; n++) {
            Error err = {0};
            Toy *toy = toy_new("cpu", &(DeviceOptions){.fail_allocation = n}, DT_F32, DT_F32);
            Stack *s = stack_new(toy, toy->dev, &toy->spec, streamed ? least : 0, &err);
            CHECK(s);
            bool ok = stack_prepare(s, &err);
            if (!ok) {
                assert_non_null(strstr(err.text, "toy: "));
                assert_non_null(strstr(err.text, "memory for"));
                failures++;
            } else {
                n = 100;
            }
            stack_free(s);
            toy_free(toy);
        }
        assert_true(failures >= 3);
    }
}

// A device lost at any submission, and a source that fails at any read, end the run with their words.
typedef struct Faulty {
    const Weights *from;
    const WeightTensor **tensor;
    atomic_int reads, fail_at;
} Faulty;

static bool read_faulty(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    Faulty *f = user;
    if (atomic_fetch_add(&f->reads, 1) + 1 == f->fail_at)
        return err_failed(err, "disk: expected data, found a bad sector; replace it");
    return weights_read(f->from, f->tensor[index], offset, out, bytes, err);
}

// Gives the toy weights that count their reads, and fail where asked to.
static Faulty *make_faulty(Toy *toy) {
    Error err = {0};
    int n = weights_count(toy->weights);
    Faulty *f = MEM_NEW(toy, Faulty);
    f->from = toy->weights;
    f->tensor = MEM_ARRAY(toy, const WeightTensor *, n);
    WeightTensor *tensors = MEM_ARRAY(toy, WeightTensor, n);
    for (int i = 0; i < n; i++) f->tensor[i] = weights_at(toy->weights, i), tensors[i] = *f->tensor[i];
    Weights *w = weights_synthetic(toy, "faulty", tensors, n, read_faulty, f);
    BoundWeight *bound = bind_weights(toy, w, toy->wants, n, NULL, &err);
    CHECK(bound);
    for (int b = 0; b <= BLOCKS; b++) toy->unit[b].weight = &bound[b * PER_BLOCK];
    return f;
}

static Stack *smallest_stack(Toy *toy) {
    Error err = {0};
    Stack *s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    CHECK(s);
    uint64_t least = stack_memory(s).smallest_peak;
    stack_free(s);
    s = stack_new(toy, toy->dev, &toy->spec, least, &err);
    CHECK(s);
    CHECK(stack_prepare(s, &err));
    return s;
}

static void test_failing_reads(void **state) {
    (void)state;
    Error err = {0};
    Toy *toy = toy_new("cpu", NULL, DT_F32, DT_F32);
    Faulty *f = make_faulty(toy);
    Stack *s = smallest_stack(toy);
    for (int more = 0; more < 2; more++) {
        int failed = 0;
        for (int at = 1; at < 60; at++) {
            start(toy);
            f->reads = 0;
            f->fail_at = at;
            Error why = {0};
            bool ok = stack_run(s, &(StackPass){.more = more}, &why);
            if (ok && more) ok = stack_run(s, NULL, &why); // one of those read ahead
            if (ok) continue;
            assert_non_null(strstr(why.text, "toy: blocks."));
            assert_non_null(strstr(why.text, "bad sector"));
            failed++;
        }
        assert_true(failed >= (more ? 2 * BLOCKS - 4 : BLOCKS) * PER_BLOCK);
    }
    f->fail_at = 0; // and it still works
    start(toy);
    CHECK(stack_run(s, NULL, &err));
    stack_free(s);
    f->reads = 0;
    f->fail_at = 5;
    s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    CHECK(s);
    assert_false(stack_prepare(s, &err));
    assert_non_null(strstr(err.text, "bad sector"));
    stack_free(s);
    toy_free(toy);
}

// With `more` the ring is filled for the next pass before it is asked for; without, nothing is read.
static void test_reads_ahead(void **state) {
    (void)state;
    Error err = {0};
    Toy *toy = toy_new("cpu", NULL, DT_F32, DT_F32);
    Faulty *f = make_faulty(toy);
    Stack *s = smallest_stack(toy);
    f->reads = 0;
    start(toy);
    CHECK(stack_run(s, NULL, &err));
    os_sleep(0.02);
    int pass = f->reads;
    int streamed = 0;
    for (int i = 0; i <= BLOCKS; i++) streamed += !stack_unit_resident(s, i);
    assert_true(streamed > 2 && pass >= streamed);
    CHECK(stack_run(s, &(StackPass){.more = true}, &err));
    for (int i = 0; i < 6000 && f->reads < 2 * pass + 2 * PER_BLOCK; i++) os_sleep(0.01);
    assert_int_equal(f->reads, 2 * pass + 2 * PER_BLOCK); // the two slots, and no more
    os_sleep(0.02);
    assert_int_equal(f->reads, 2 * pass + 2 * PER_BLOCK);
    assert_int_equal(stack_moved(s), 2 * stack_memory(s).moved_bytes);
    CHECK(stack_run(s, NULL, &err));
    assert_int_equal(f->reads, 3 * pass); // what was read ahead is used
    stack_free(s);
    toy_free(toy);
}

// ---- overlap ------------------------------------------------------------------------------------

// Streamed units, numbered in the order in which they run, over all passes. The upload of number n waits
// before its last weight until number n - 1 is in the midst of its work, which waits there until the
// upload of number n has come so far: a pass ends only where both are under way at the same time.
typedef struct Meeting {
    const Weights *from;
    const WeightTensor **tensor;
    int position[BLOCKS + 1]; // of each unit among those that stream; -1: it stays
    int streamed, total;      // of a pass; of all passes
    int reads[BLOCKS + 1];    // the feeding thread's
    atomic_int begun, loading, working; // the last number whose upload began, came or work came to its midst
    atomic_bool missed;
    int next, number, polls;  // the unit at work: its number (-1: it stays); how often `asked` was called
    int met;
} Meeting;

static void meet(Meeting *m, atomic_int *other, int number) {
    for (int i = 0; i < 6000 && *other < number && !m->missed; i++) os_sleep(0.01);
    if (*other < number) m->missed = true;
}

// Where the streamed units are odd in number the first of a pass goes where the last of the one before lies.
static bool may_overlap(const Meeting *m, int number) {
    return number > 0 && number < m->total && (m->streamed % 2 == 0 || number % m->streamed);
}

static bool read_meeting(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    Meeting *m = user;
    const char *name = m->tensor[index]->name;
    int unit = atoi(name + strlen("blocks.")), each = unit == BLOCKS ? 1 : PER_BLOCK;
    if (m->position[unit] >= 0) {
        int load = m->reads[unit]++, number = load / each * m->streamed + m->position[unit];
        m->begun = number;
        if (load % each == each - 1 && may_overlap(m, number)) {
            m->loading = number;
            meet(m, &m->working, number - 1);
        }
    }
    return weights_read(m->from, m->tensor[index], offset, out, bytes, err);
}

// A unit begins. Once the upload of the next one has begun, its own is over: from then on `asked` is called
// when it starts, and during its work.
static void begin_unit(void *user, const char *unit, int done, int total) {
    Meeting *m = user;
    (void)unit, (void)total;
    m->polls = 0;
    m->number = m->position[done] >= 0 ? m->next++ : -1;
    if (m->number >= 0 && may_overlap(m, m->number + 1)) meet(m, &m->begun, m->number + 1);
}

static bool during_work(void *user) {
    Meeting *m = user;
    if (m->number < 0 || ++m->polls != 2) return false;
    m->working = m->number;
    if (may_overlap(m, m->number + 1)) meet(m, &m->loading, m->number + 1), m->met++;
    return false;
}

static Meeting *make_meeting(Toy *toy) {
    Error err = {0};
    int n = weights_count(toy->weights);
    Meeting *m = MEM_NEW(toy, Meeting);
    m->from = toy->weights;
    m->tensor = MEM_ARRAY(toy, const WeightTensor *, n);
    WeightTensor *tensors = MEM_ARRAY(toy, WeightTensor, n);
    for (int i = 0; i < n; i++) m->tensor[i] = weights_at(toy->weights, i), tensors[i] = *m->tensor[i];
    BoundWeight *bound = bind_weights(toy, weights_synthetic(toy, "met", tensors, n, read_meeting, m),
                                      toy->wants, n, NULL, &err);
    CHECK(bound);
    for (int b = 0; b <= BLOCKS; b++) {
        toy->unit[b].weight = &bound[b * PER_BLOCK];
        m->position[b] = -1;
    }
    return m;
}

static void overlap(const char *device, const DeviceOptions *options, uint64_t room, bool *even, bool *odd) {
    enum { PASSES = 4 };
    Error err = {0};
    Toy *toy = toy_new(device, options, DT_F32, DT_F32);
    if (!toy) return;
    Meeting *m = make_meeting(toy);
    Stack *s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    CHECK(s);
    uint64_t least = stack_memory(s).smallest_peak;
    stack_free(s);
    CHECK(s = stack_new(toy, toy->dev, &toy->spec, least + room, &err));
    CHECK(stack_prepare(s, &err)); // loads what stays
    for (int i = 0; i <= BLOCKS; i++)
        if (!stack_unit_resident(s, i)) m->position[i] = m->streamed++;
    m->total = PASSES * m->streamed;
    start(toy);
    for (int pass = 0; pass < PASSES; pass++)
        CHECK(stack_run(s, &(StackPass){.more = pass < PASSES - 1, .cancel = &(Cancel){during_work, m},
                                        .progress = begin_unit, .user = m}, &err));
    int expected = 0;
    for (int i = 1; i < m->total; i++) expected += may_overlap(m, i);
    print_message("    %s: %d of %d units stream, %d of %d uploads overlap\n", device, m->streamed,
                  BLOCKS + 1, m->met, m->total - 1);
    assert_false(m->missed);
    assert_int_equal(m->met, expected);
    assert_int_equal(m->loading, m->total - 1);
    *even |= m->streamed % 2 == 0, *odd |= m->streamed % 2;
    stack_free(s);
    toy_free(toy);
}

// The next streamed unit is uploaded while one is at work, in a pass and from pass to pass.
static void test_uploads_overlap_work(void **state) {
    (void)state;
    // Submissions of one tile each, so that `asked` is called between them.
    static const struct { const char *device; DeviceOptions options; } devices[] = {
        {.device = "ref"}, {.device = "cpu"}, {.device = "vulkan", .options = {.max_submit = 1e-9}},
        {.device = "vulkan", .options = {.max_submit = 1e-9, .staged_uploads = true}}};
    const uint64_t unit = (2 * WIDTH + 1) * HIDDEN * sizeof(float);
    for (size_t i = 0; i < COUNT_OF(devices); i++) {
        bool even = false, odd = false;
        for (uint64_t more = 0; more < 2; more++) // all stream, and all but one
            overlap(devices[i].device, &devices[i].options, more * align_up(unit, 4096), &even, &odd);
        if (!even && !odd) print_message("SKIP: no Vulkan device\n");
        else assert_true(even && odd);
    }
}

static void test_lost_device(void **state) {
    (void)state;
    Out out;
    uint64_t least = run_toy("cpu", NULL, DT_F32, DT_F32, 0, &out).smallest_peak;
    for (int n = 1; n <= BLOCKS + 1; n++) {
        Error err = {0};
        Toy *toy = toy_new("cpu", &(DeviceOptions){.lose_at_submit = n}, DT_F32, DT_F32);
        Stack *s = stack_new(toy, toy->dev, &toy->spec, least, &err);
        CHECK(s);
        CHECK(stack_prepare(s, &err));
        start(toy);
        assert_false(stack_run(s, NULL, &err));
        assert_non_null(strstr(err.text, "the device was lost"));
        assert_false(stack_run(s, NULL, &err));
        stack_free(s);
        toy_free(toy);
    }
}

// Blocks of one kind with weights of two types, as files of mixed quantisation have them: planned apart.
static void test_mixed_types(void **state) {
    (void)state;
    static const char *const devices[] = {"ref", "cpu", "vulkan:0"};
    for (size_t d = 0; d < COUNT_OF(devices); d++) {
        Out out[2];
        for (int streamed = 0; streamed < 2; streamed++) {
            Error err = {0};
            Toy *toy = toy_new(devices[d], NULL, DT_F32, DT_F32);
            if (!toy) break;
            int n = BLOCKS * PER_BLOCK;
            const Weights *small = dummy_weights(toy, "toy", toy->wants, n, DT_Q8_0, 3);
            const BoundWeight *packed = bind_weights(toy, small, toy->wants, n, NULL, &err);
            CHECK(packed);
            for (int i = 0; i < n; i++)
                if (i / PER_BLOCK % 3 == 1) toy->bound[i] = packed[i];
            Stack *all = stack_new(toy, toy->dev, &toy->spec, 0, &err);
            CHECK(all);
            uint64_t budget = streamed ? stack_memory(all).smallest_peak : 0;
            stack_free(all);
            Stack *s = stack_new(toy, toy->dev, &toy->spec, budget, &err);
            CHECK(s);
            CHECK(stack_prepare(s, &err));
            start(toy);
            CHECK(stack_run(s, NULL, &err));
            finish(toy, &out[streamed]);
            StackMemory m = stack_memory(s);
            assert_true((m.moved_bytes > 0) == streamed && dev_memory(toy->dev).peak <= m.peak_bytes);
            stack_free(s);
            toy_free(toy);
        }
        assert_memory_equal(out[0].x, out[1].x, sizeof out[0].x);
    }
}

// One unit is planned for all that are alike; where a model records them otherwise, it is found out.
static void test_unlike_units(void **state) {
    (void)state;
    Error err = {0};
    Toy *toy = toy_new("cpu", NULL, DT_F32, DT_F32);
    for (int b = 0; b < BLOCKS; b++) toy->unit[b].kind = 3;
    Stack *s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    CHECK(s);
    assert_false(stack_prepare(s, &err));
    assert_non_null(strstr(err.text, "toy: blocks.1: expected 3 ops"));
    stack_free(s);
    toy_free(toy);
}

static void test_bad_graphs(void **state) {
    (void)state;
    Error err = {0};
    Toy *toy = toy_new("cpu", NULL, DT_F32, DT_F32);
    toy->unit[4].kind = 2; // takes a weight of another shape
    assert_null(stack_new(toy, toy->dev, &toy->spec, 0, &err));
    assert_non_null(strstr(err.text, "toy: plan blocks.4"));
    toy_free(toy);
}

// The table's product with its scale at `scale`: y alone; whether it streamed.
static bool scaled_product(float scale, bool streamed, Out *out) {
    Error err = {0};
    Toy *toy = toy_new("cpu", NULL, DT_F8_E4M3, DT_F32);
    toy->bound[BLOCKS * PER_BLOCK].scale = scale;
    Stack *s = stack_new(toy, toy->dev, &toy->spec, 0, &err);
    uint64_t least = stack_memory(s).smallest_peak;
    stack_free(s);
    s = stack_new(toy, toy->dev, &toy->spec, streamed ? least : 0, &err);
    CHECK(s);
    CHECK(stack_prepare(s, &err));
    start(toy);
    CHECK(stack_run(s, &(StackPass){.first = BLOCKS, .count = 1}, &err));
    finish(toy, out);
    bool resident = stack_unit_resident(s, BLOCKS);
    stack_free(s);
    toy_free(toy);
    return !resident;
}

static void test_scales(void **state) {
    (void)state;
    Out plain, scaled;
    assert_false(scaled_product(1, false, &plain));
    for (int streamed = 0; streamed < 2; streamed++) {
        assert_int_equal(scaled_product(0.25f, streamed, &scaled), streamed);
        for (int i = 0; i < TOKENS * WIDTH; i++) assert_true(scaled.y[i] == 0.25f * plain.y[i]); // exact
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streamed_is_resident), cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_parts_of_a_pass),      cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_failing_allocations),  cmocka_unit_test(test_failing_reads),
        cmocka_unit_test(test_lost_device),          cmocka_unit_test(test_bad_graphs),
        cmocka_unit_test(test_reads_ahead),          cmocka_unit_test(test_uploads_overlap_work),
        cmocka_unit_test(test_scales),               cmocka_unit_test(test_mixed_types),
        cmocka_unit_test(test_unlike_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
