// impl.h: what a backend implements. Never included outside backend/.
//
// All validation stands in front, in backend.c; an implementation is only called with valid
// arguments and counts nothing itself, except what it allocates for its own use (dev_claim).
#ifndef KILN_IMPL_H
#define KILN_IMPL_H

#include "backend/backend.h"
#include "backend/os.h"

typedef struct DeviceImpl {
    const char *backend; // "cpu"
    // Fills up to `max` infos, returns how many devices there are (0: none, with a log line).
    int (*list)(DeviceInfo *infos, int max, const Log *log);
    // dev->info and dev->options are set; fills dev->state (a mem_ child of dev).
    bool (*open)(Device *dev, int index, Error *err);
    void (*close)(Device *dev);
    // buf->size is set; fills buf->state (or host), buf->address. The budget was checked.
    bool (*buf_init)(Buffer *buf, Error *err);
    void (*buf_done)(Buffer *buf);
    bool (*write)(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err);
    bool (*read)(Buffer *src, uint64_t offset, void *data, uint64_t size, Error *err);
    // Called from any thread, at any time between open and close.
    bool (*upload)(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err);
    void *(*place)(Buffer *dst, uint64_t offset); // as upload; NULL where the host writes nothing itself
    bool (*fill)(Buffer *dst, uint64_t offset, uint64_t size, uint32_t pattern, Error *err);
    // prog->steps (calls, barriers, chosen rows) are set; fills prog->state.
    bool (*prog_init)(Program *prog, Error *err);
    void (*prog_done)(Program *prog);
    uint64_t (*prog_bytes_for)(const Device *dev, int count);
    bool (*submit)(Program *prog, Error *err);
    bool (*wait)(Device *dev, const Cancel *cancel, Error *err);
    int (*row_count)(const Device *dev, OpId op);
    const char *(*row_name)(const Device *dev, OpId op, int row);
    bool (*row_fits)(const Device *dev, int row, const OpCall *call, char why[128]);
} DeviceImpl;

struct Device {
    const DeviceImpl *impl;
    DeviceInfo info;
    DeviceOptions options;
    MemoryStats memory;
    Mutex *memory_lock;
    int allocations, submits; // counted for the injected failures
    const Cancel *cancel;     // for prog_new; NULL: none
    _Atomic bool lost;        // after device loss everything but closing fails; set by any thread
    void *state;
};

struct Buffer {
    Device *dev;
    uint64_t size;
    uint64_t address; // device address (CPU: the pointer)
    const char *name;
    void *state;
};

typedef struct BoundStep { OpCall call; int row; bool barrier, internal; double seconds; } BoundStep;

struct Program {
    Device *dev;
    BoundStep *steps;
    int count;
    uint64_t bytes; // device memory claimed by the recording
    void *state;
};

// A backend's own device memory (staging, argument blocks): counted and bounded by the budget like
// any buffer. dev_claim fails with the budget's message, or as the tests' injected failure.
bool dev_claim(Device *dev, uint64_t bytes, const char *what, Error *err);
void dev_release(Device *dev, uint64_t bytes);
// The standard text for a device's own refusal to allocate, or its loss.
bool err_device_memory(const Device *dev, uint64_t bytes, const char *what, Error *err);
bool err_device_lost(Device *dev, const char *during, Error *err); // also sets dev->lost

extern const DeviceImpl cpu_impl, ref_impl;
#ifdef KILN_VULKAN
extern const DeviceImpl vulkan_impl;
#endif

#endif
