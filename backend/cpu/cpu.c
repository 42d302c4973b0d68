// cpu.c: two devices on host memory. `ref` runs the oracle of each op in the caller's thread;
// `cpu` has the rows of kernels.def in front of it. Submit queues a program; wait (or the next
// transfer) runs it, so that cancel is polled: between steps, between the parts of a row's work
// (pool_watch) and between rows of an oracle's result.
#include "backend/cpu/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const CpuRow fast_rows[] = {
#define ROW(op, name, need, fits, run) {OP_##op, name, need, fits, run},
#include "backend/cpu/kernels.def"
#undef ROW
    {OP_COUNT, NULL, 0, NULL, NULL},
};

static void (*const oracle[OP_COUNT])(const OpCall *call) = {
#define OP(name, NAME, Name) [OP_##NAME] = ref_##name,
#include "backend/ops.def"
#undef OP
};

enum { ROWS_MAX = 16 }; // per op

typedef struct CpuState {
    Cpu cpu;
    // The rows this processor can run; the oracle stands after them.
    const CpuRow *rows[OP_COUNT][ROWS_MAX];
    int row_count[OP_COUNT];
    ARRAY(Program *) queue; // submitted, not run yet
} CpuState;

// ---- the processor ----------------------------------------------------------------------------
int cpu_features(void) {
    int have = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) have |= NEED_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        have |= NEED_AVX512;
    unsigned a = 0, b, c, d;
    if ((have & NEED_AVX512) && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 5))
        have |= NEED_AVX512_BF16;
    if ((have & NEED_AVX512_BF16) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1 << 22) &&
        (d & 1 << 24) && os_enable_tiles())
        have |= NEED_AMX_BF16;
#endif
    return have;
}

static void processor_name(char *out, size_t n) {
    snprintf(out, n, "host processor");
#if defined(__x86_64__)
    unsigned r[12];
    for (unsigned i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002 + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3]))
            return;
    snprintf(out, n, "%.48s", (const char *)r);
#endif
}

static void describe(DeviceInfo *info, const char *id) {
    *info = (DeviceInfo){.kind = DEV_CPU, .memory_total = os_memory_total(),
                         .memory_free = os_memory_free(), .max_buffer = UINT64_C(1) << 46,
                         .buffer_align = 64, .deterministic = true};
    int have = cpu_features();
    snprintf(info->id, sizeof info->id, "%s", id);
    snprintf(info->backend, sizeof info->backend, "%s", id);
    processor_name(info->name, sizeof info->name);
    bool ref = !strcmp(id, "ref");
    info->bf16_arithmetic = !ref && (have & NEED_AVX512_BF16);
    snprintf(info->driver, sizeof info->driver, "%s",
             ref                        ? "reference kernels, f64"
             : have & NEED_AMX_BF16    ? "AVX-512, AMX bf16"
             : have & NEED_AVX512_BF16 ? "AVX-512, bf16"
             : have & NEED_AVX512      ? "AVX-512"
             : have & NEED_AVX2        ? "AVX2"
                                       : "portable C");
}

static int cpu_list(DeviceInfo *infos, int max, const Log *log) {
    (void)log;
    if (max > 0) describe(&infos[0], "cpu");
    return 1;
}

static int ref_list(DeviceInfo *infos, int max, const Log *log) {
    (void)log;
    if (max > 0) describe(&infos[0], "ref");
    return 1;
}

// ---- devices ----------------------------------------------------------------------------------
static bool ref_open(Device *dev, int index, Error *err) {
    (void)index, (void)err;
    dev->state = MEM_NEW(dev, CpuState);
    return true;
}

static bool cpu_open(Device *dev, int index, Error *err) {
    ref_open(dev, index, err);
    CpuState *s = dev->state;
    s->cpu.features = cpu_features();
    s->cpu.pool = pool_new(NULL, dev_threads(dev));
    for (const CpuRow *row = fast_rows; row->name; row++)
        if (!(row->need & ~s->cpu.features)) s->rows[row->op][s->row_count[row->op]++] = row;
    // Untouched pages cost nothing; most kernels use a small part.
    s->cpu.scratch = os_block_new((uint64_t)pool_threads(s->cpu.pool) * SCRATCH_BYTES);
    if (!s->cpu.scratch)
        return err_device_memory(dev, SCRATCH_BYTES, "scratch of the threads", err);
    return true;
}

static void cpu_close(Device *dev) {
    CpuState *s = dev->state;
    if (!s) return;
#if HAVE_ONEDNN
    onednn_close(&s->cpu);
#endif
    pool_free(s->cpu.pool);
    os_block_free(s->cpu.scratch);
    os_block_free(s->cpu.pack);
    mem_free(s);
    dev->state = NULL;
}

// ---- programs ---------------------------------------------------------------------------------
static void run_step(CpuState *s, BoundStep *step, const Fused *fused, const Cancel *cancel) {
    double start = os_seconds();
    step->seconds = 0;
    if (fused && fused->skip) return;
    s->cpu.packed = fused && fused->packed.data ? &fused->packed : NULL;
    OpId op = step->call.op;
    step->call.cancel = cancel;
    if (step->row < s->row_count[op])
        s->rows[op][step->row]->run(&s->cpu, &step->call);
    else
        oracle[op](&step->call);
    step->call.cancel = NULL;
    step->seconds = os_seconds() - start;
}

// Runs all that is queued. After a cancel the rest is dropped: its results are undefined.
static bool flush(Device *dev, const Cancel *cancel, Error *err) {
    CpuState *s = dev->state;
    bool ok = true, watched = cancel && cancel->asked;
    if (!watched) cancel = NULL;
    if (watched && s->cpu.pool) pool_watch(s->cpu.pool, cancel->asked, cancel->user);
    for (int q = 0; q < s->queue.n && ok; q++)
        for (int i = 0; i < s->queue.v[q]->count && ok; i++) {
            const Fused *fused = s->queue.v[q]->state;
            run_step(s, &s->queue.v[q]->steps[i], fused ? &fused[i] : NULL, cancel);
            // A part left undone counts, whatever is answered now.
            if (watched && ((s->cpu.pool && pool_stopped(s->cpu.pool)) || cancel->asked(cancel->user)))
                ok = err_set(err, STATUS_CANCELLED, "cancelled");
        }
    if (watched && s->cpu.pool) pool_watch(s->cpu.pool, NULL, NULL);
    s->queue.n = 0;
    return ok;
}

static bool prog_init(Program *prog, Error *err) {
    (void)prog, (void)err;
#if HAVE_AVX512_BF16
    CpuState *s = prog->dev->state;
    bool *packs = MEM_ARRAY(NULL, bool, MAX(prog->count, 1));
    for (int i = 0; i < prog->count; i++) {
        const BoundStep *step = &prog->steps[i];
        packs[i] = step->call.op == OP_GEMM && step->row < s->row_count[OP_GEMM] &&
                   s->rows[OP_GEMM][step->row]->run == gemm_amx && gemm_amx_packs(&s->cpu, &step->call);
    }
    prog->state = fuse_dequant(prog, packs);
    mem_free(packs);
#endif
    return true;
}
static bool prog_init_plain(Program *prog, Error *err) { (void)prog, (void)err; return true; }
static void prog_done(Program *prog) { flush(prog->dev, NULL, NULL); }
static uint64_t no_bytes(const Device *dev, int count) { (void)dev, (void)count; return 0; }

static bool submit(Program *prog, Error *err) {
    (void)err;
    CpuState *s = prog->dev->state;
    ARR_PUSH(s, &s->queue, prog);
    return true;
}

// ---- buffers ----------------------------------------------------------------------------------
static bool buf_init(Buffer *buf, Error *err) {
    buf->state = os_block_new(buf->size);
    if (!buf->state) return err_device_memory(buf->dev, buf->size, buf->name, err);
    buf->address = (uintptr_t)buf->state;
    return true;
}

static void buf_done(Buffer *buf) {
    flush(buf->dev, NULL, NULL);
    os_block_free(buf->state);
    buf->state = NULL;
}

static char *host(const Buffer *buf, uint64_t offset) {
    return (char *)(uintptr_t)buf->address + offset;
}

static bool buf_write(Buffer *dst, uint64_t offset, const void *data, uint64_t n, Error *err) {
    if (!flush(dst->dev, NULL, err)) return false;
    if (n) memcpy(host(dst, offset), data, (size_t)n);
    return true;
}

static bool buf_read(Buffer *src, uint64_t offset, void *data, uint64_t n, Error *err) {
    if (!flush(src->dev, NULL, err)) return false;
    if (n) memcpy(data, host(src, offset), (size_t)n);
    return true;
}

static void *buf_place(Buffer *dst, uint64_t offset) { return host(dst, offset); }

// Not ordered against programs, so that it may come from any thread.
static bool buf_upload(Buffer *dst, uint64_t offset, const void *data, uint64_t n, Error *err) {
    (void)err;
    memcpy(host(dst, offset), data, (size_t)n);
    return true;
}

static bool buf_fill(Buffer *dst, uint64_t offset, uint64_t n, uint32_t pattern, Error *err) {
    if (!flush(dst->dev, NULL, err)) return false;
    char *to = host(dst, offset);
    for (uint64_t i = 0; i + 4 <= n; i += 4) memcpy(to + i, &pattern, 4);
    memcpy(to + n / 4 * 4, &pattern, n % 4);
    return true;
}

// ---- rows -------------------------------------------------------------------------------------
static int row_count(const Device *dev, OpId op) {
    return ((const CpuState *)dev->state)->row_count[op] + 1;
}

static const char *row_name(const Device *dev, OpId op, int row) {
    const CpuState *s = dev->state;
    return row < s->row_count[op] ? s->rows[op][row]->name : "ref";
}

static bool row_fits(const Device *dev, int row, const OpCall *call, char why[128]) {
    const CpuState *s = dev->state;
    why[0] = 0;
    return row >= s->row_count[call->op] || s->rows[call->op][row]->fits(call, why);
}

const DeviceImpl cpu_impl = {
    .backend = "cpu", .list = cpu_list, .open = cpu_open, .close = cpu_close,
    .buf_init = buf_init, .buf_done = buf_done, .write = buf_write, .read = buf_read,
    .upload = buf_upload, .place = buf_place, .fill = buf_fill,
    .prog_init = prog_init, .prog_done = prog_done,
    .prog_bytes_for = no_bytes, .submit = submit, .wait = flush,
    .row_count = row_count, .row_name = row_name, .row_fits = row_fits,
};

const DeviceImpl ref_impl = {
    .backend = "ref", .list = ref_list, .open = ref_open, .close = cpu_close,
    .buf_init = buf_init, .buf_done = buf_done, .write = buf_write, .read = buf_read,
    .upload = buf_upload, .place = buf_place, .fill = buf_fill,
    .prog_init = prog_init_plain, .prog_done = prog_done,
    .prog_bytes_for = no_bytes, .submit = submit, .wait = flush,
    .row_count = row_count, .row_name = row_name, .row_fits = row_fits,
};
