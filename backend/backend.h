// backend.h: the contract between what records work and what executes it: devices, buffers,
// programs. One Device per physical device and user; several may live side by side.
//
// Thread-safety: a Device and all that belongs to it is used by one thread at a time, except
// dev_memory and dev_upload, which any thread may call.
#ifndef KILN_BACKEND_H
#define KILN_BACKEND_H

#include "backend/ops.h"

typedef struct Device Device;
typedef struct Program Program;

typedef enum { DEV_CPU, DEV_INTEGRATED, DEV_DISCRETE, DEV_SOFTWARE } DeviceKind;

enum { STAGING_STEPS = 3 };
typedef struct DeviceInfo {
    char id[32];         // what --device takes: "cpu", "ref", "vulkan:0"
    char backend[16];    // "cpu", "ref", "vulkan"
    char name[256];      // as the driver calls it
    char driver[256];    // driver and version
    DeviceKind kind;
    uint64_t memory_total, memory_free; // bytes, of the heap that tensors live in
    uint64_t max_buffer;                // largest buffer, bytes
    uint64_t staging_bytes;             // what uploads and downloads hold, part of the peak
    // staging_bytes by budget: of the last step whose budget is not above it; zeros: none. So that
    // the smallest budget that a plan needs can be told while another is set.
    struct { uint64_t budget, bytes; } staging_step[STAGING_STEPS];
    uint64_t driver_bytes;              // allowance for the driver, outside the budget's other figures
    uint32_t buffer_align;              // offsets of tensors inside a buffer are multiples of it
    uint32_t subgroup_min, subgroup_max, shared_memory; // 0 where it means nothing
    bool f16_arithmetic, bf16_arithmetic, cooperative_matrix, int_dot;
    bool deterministic; // bit-identical from run to run (always true so far)
} DeviceInfo;

typedef struct DeviceOptions {
    uint64_t budget;        // bytes that buffers may take, staging included; 0: 90 % of free memory
    int threads;            // of the host: CPU devices' work, uploads; 0: all cores of this process
    double max_submit;      // seconds a single submission may take; 0: 0.1
    // Vulkan: 1: validation layers on (core, synchronisation), their messages are errors; 2: every
    // address that a shader uses is checked too (compiling takes some hundred times longer).
    int validate;
    const char *cache_dir;  // pipeline cache; NULL: none on disk
    const Log *log;         // may be NULL
    // Tests: fail the n-th allocation (1 = first; 0 = none), lose the device at the n-th submission.
    int fail_allocation, lose_at_submit;
    uint64_t max_buffer; // tests: pretend that the largest buffer is this small; 0: as it is
    bool staged_uploads; // tests: dev_upload goes through staging also where the host sees the memory
} DeviceOptions;

typedef struct MemoryStats {
    uint64_t used, peak; // bytes of live buffers and staging, as the device's allocator counted them
    uint64_t budget;
} MemoryStats;

// All devices of all backends built in, in the order cpu, ref, vulkan:0, ... A backend that cannot
// start (no driver) contributes none and a line to the log. Owned by `parent`.
DeviceInfo *dev_list(void *parent, int *count, const Log *log);
// `spec`: "auto", "ref", "cpu", "vulkan", "vulkan:N". End with dev_close, after its buffers
// and programs are freed.
Device *dev_open(void *parent, const char *spec, const DeviceOptions *options, Error *err);
void dev_close(Device *dev);
const DeviceInfo *dev_info(const Device *dev);
int dev_threads(const Device *dev); // of the host that may work for it at a time, 1 or more
MemoryStats dev_memory(const Device *dev);
void dev_reset_peak(Device *dev);

// ---- buffers ----------------------------------------------------------------------------------
// Device-local memory; the host reads and writes it only through the calls below (also on the CPU,
// so that nothing grows to depend on more). Contents are undefined at first.
Buffer *buf_new(Device *dev, uint64_t size, const char *name, Error *err); // over budget: refused
void buf_free(Buffer *buf); // NULL is allowed; waits for work that uses it
uint64_t buf_size(const Buffer *buf);
Device *buf_device(const Buffer *buf);
// Ordered after all programs submitted before. dev_write returns once `data` may be reused,
// dev_read once `data` is filled. Large transfers pass through the bounded staging buffer.
bool dev_write(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err);
bool dev_read(Buffer *src, uint64_t offset, void *data, uint64_t size, Error *err);
bool dev_fill(Buffer *dst, uint64_t offset, uint64_t size, uint32_t pattern, Error *err); // by 4 bytes
// From any thread, beside programs that run: not ordered against them nor against dev_write. The
// caller guarantees that no program under way touches the range, and that the buffer stays. Returns
// when the data is there, for programs submitted from then on. Vulkan: straight into memory that the
// host sees, else by a transfer queue of its own (or the one queue, in turn) through bounded staging
// that dev_info counts in staging_bytes; several uploads at once take turns.
bool dev_upload(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err);
// Where dev_upload would copy to, if that is all it does, for what need not be made elsewhere first.
// The same conditions; reading there may be slow. NULL: no such place, dev_upload takes or refuses it.
void *dev_upload_place(Buffer *dst, uint64_t offset, uint64_t size);

// ---- programs ---------------------------------------------------------------------------------
// A program is a fixed list of op calls, checked, bound to kernels and recorded once (Vulkan:
// command buffers; CUDA: a captured graph), then run any number of times.
typedef struct ProgramStep {
    OpCall call;
    bool barrier; // wait for all steps before: set where data truly depends
    // What it writes is read by later steps of this program alone, before another writes there: a
    // backend may leave it unwritten where it computes those steps' results without it.
    bool internal;
} ProgramStep;
// Copies what it needs of `steps`. Fails where a call is not valid or no kernel row supports it.
Program *prog_new(Device *dev, const ProgramStep *steps, int count, Error *err);
void prog_free(Program *prog);
// Device memory the recording itself holds (argument blocks); counted in dev_memory.
uint64_t prog_bytes(const Program *prog);
// What prog_new would take for `count` steps, for the plan's figure.
uint64_t prog_bytes_for(const Device *dev, int count);

// Asynchronous: starts the program and returns; results are visible to later dev_read,
// prog_submit and dev_write calls. Long programs are cut into submissions of about `max_submit`
// seconds; dev_wait feeds the rest, so that `cancel` is obeyed between them.
bool prog_submit(Program *prog, Error *err);
typedef struct Cancel { bool (*asked)(void *user); void *user; } Cancel;
// Waits for everything submitted. With `cancel` asked: stops soon (results undefined),
// STATUS_CANCELLED. Device loss and hangs are one clear error; the device then only closes.
bool dev_wait(Device *dev, const Cancel *cancel, Error *err);
bool prog_run(Program *prog, const Cancel *cancel, Error *err); // submit and wait
// Asked by prog_new between the kernels that it compiles, in the thread that called it: it then fails
// with STATUS_CANCELLED. Must stay valid until the next call here; NULL (as at first): never asked.
void dev_set_cancel(Device *dev, const Cancel *cancel);
// Seconds the device itself measured for step i in the last finished run; 0: not measured.
double prog_step_seconds(const Program *prog, int i);

// ---- kernel rows ------------------------------------------------------------------------------
// Per op an ordered list; dispatch takes the first that fits. Names are unique within op + device.
int dev_row_count(const Device *dev, OpId op);
const char *dev_row_name(const Device *dev, OpId op, int row);
// Can this row run this call? `why` (128 bytes, may be NULL) says what is missing otherwise.
bool dev_row_fits(const Device *dev, int row, const OpCall *call, char *why);
// The row dispatch takes (call->row where set), or -1 with the reason in `why`.
int dev_row_for(const Device *dev, const OpCall *call, char *why);

#endif
