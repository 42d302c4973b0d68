// bench_load.c: `kiln bench --load`: how fast weights come from a file (or anything that `inspect` takes
// as one set) onto the device, as a model's do: bound, converted, uploaded, in units of some hundred MB
// that stay or stream as the budget says. tools/bench_load.py holds it to the disk.
#include "tools/bench.h"

#include "backend/os.h"
#include "engine/stack.h"

#define UNIT_BYTES (UINT64_C(256) << 20)
enum { PASSES = 3 };

typedef struct Load {
    Param *x, *y;
    StackUnit *unit;
    int units;
} Load;

// The weights are not read: the time is that of loading alone.
static void record(void *user, Graph *g, const StackUnit *unit, Param *const *w) {
    const Load *l = user;
    (void)unit, (void)w;
    g_copy(g, COPY(.x = g_param(g, l->x), .y = g_param(g, l->y)));
}

static void cut_units(Load *l, void *parent, const BoundWeight *bound, int count) {
    l->unit = MEM_ARRAY(parent, StackUnit, MAX(count, 1));
    uint64_t bytes = UNIT_BYTES;
    for (int i = 0; i < count; i++) {
        if (bytes >= UNIT_BYTES) {
            l->unit[l->units] = (StackUnit){.name = bound[i].name, .weight = &bound[i]};
            l->units++, bytes = 0;
        }
        l->unit[l->units - 1].weights++;
        bytes += bound[i].bytes;
    }
}

static bool report(Bench *b, uint64_t stored, const Stack *s, double load, double pass, Error *err) {
    StackMemory m = stack_memory(s);
    uint64_t peak = dev_memory(b->dev).peak;
    // What is loaded before the first pass, in bytes of the file as far as its types stay.
    uint64_t all = MAX(m.resident_bytes + m.streamed_bytes, 1);
    double first = (double)stored * (double)m.resident_bytes / (double)all;
    if (!b->cmd->common->json) {
        char size[32], streamed[32];
        format_bytes(size, stored);
        format_bytes(streamed, m.streamed_bytes);
        return cmd_print(err, "%s: %s loaded in %.3f s (%.2f GB/s of the file)", dev_info(b->dev)->id, size,
                         load, m.resident_bytes ? first / load * 1e-9 : 0) &&
               cmd_print(err, m.moved_bytes ? "; %s stream, %.3f s per pass (%.2f GB/s)\n" : "\n", streamed,
                         pass, (double)m.moved_bytes / pass * 1e-9);
    }
    JsonOut w = {0};
    const struct { const char *name; uint64_t v; } counts[] = {
        {"stored_bytes", stored}, {"resident_bytes", m.resident_bytes},
        {"streamed_bytes", m.streamed_bytes}, {"moved_bytes_per_pass", m.moved_bytes},
        {"device_peak_bytes", peak},
    };
    json_open(&w, '{');
    json_key(&w, "device");
    json_put_string(&w, dev_info(b->dev)->id);
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        json_key(&w, counts[i].name);
        json_put_uint(&w, counts[i].v);
    }
    json_key(&w, "seconds");
    json_put_number(&w, load);
    json_key(&w, "seconds_per_pass");
    json_put_number(&w, pass);
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

static bool load_all(Bench *b, uint64_t stored, const StackSpec *spec, Error *err) {
    Stack *s = stack_new(b->mem, b->dev, spec, 0, err);
    if (!s) return false;
    dev_reset_peak(b->dev);
    double start = os_seconds(), passes = 0;
    bool ok = stack_prepare(s, err);
    double load = os_seconds() - start;
    for (int i = 0; i < PASSES && ok && stack_memory(s).moved_bytes; i++) {
        start = os_seconds();
        ok = stack_run(s, &(StackPass){.more = i < PASSES - 1, .cancel = &b->cmd->cancel}, err);
        passes += os_seconds() - start;
    }
    ok = ok && report(b, stored, s, load, passes / PASSES, err);
    stack_free(s);
    return ok;
}

bool bench_load(Bench *b, const char *path, DType type, Error *err) {
    Weights *w = weights_open(b->mem, path, err);
    if (!w) return false;
    int count = weights_count(w);
    uint64_t stored = 0;
    BindWant *want = MEM_ARRAY(b->mem, BindWant, MAX(count, 1));
    for (int i = 0; i < count; i++) {
        const WeightTensor *t = weights_at(w, i);
        want[i] = (BindWant){.name = t->name, .ndim = t->ndim};
        memcpy(want[i].shape, t->shape, sizeof want[i].shape);
        stored += t->bytes;
    }
    BoundWeight *bound = bind_weights(b->mem, w, want, count, &(BindOptions){.type = type}, err);
    Store *state = store_new(b->mem, b->dev);
    Load l = {.x = store_add(state, "x", DT_F32, DIMS(16)), .y = store_add(state, "y", DT_F32, DIMS(16))};
    if (bound) cut_units(&l, b->mem, bound, count);
    StackSpec spec = {.name = "load", .units = l.units, .unit = l.unit, .record = record, .user = &l,
                      .state = state, .cancel = &b->cmd->cancel};
    bool ok = bound && load_all(b, stored, &spec, err);
    store_free(state);
    weights_close(w);
    return ok;
}
