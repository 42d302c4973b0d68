// backend.c: the front of all backends: validation, memory accounting, kernel dispatch.
#include "backend/impl.h"

#include <stdlib.h>

static const DeviceImpl *const impls[] = {
    &cpu_impl,
    &ref_impl,
#ifdef KILN_VULKAN
    &vulkan_impl,
#endif
};

enum { MAX_DEVICES = 16 }; // per backend

// ---- devices ----------------------------------------------------------------------------------

// Whether `spec` may name a device of that backend: "auto" and NULL any, "vulkan:1" Vulkan's.
static bool may_name(const char *spec, const char *backend) {
    size_t n = spec ? strcspn(spec, ":") : 0;
    return !spec || !strcmp(spec, "auto") || (strlen(backend) == n && !strncmp(spec, backend, n));
}

// Looking at a backend costs time (Vulkan loads its drivers): only those that `spec` may name.
// A backend without devices is news to those who named it, not to those who take what is there.
static DeviceInfo *list_named(void *parent, const char *spec, int *count, const Log *log) {
    DeviceInfo *infos = MEM_ARRAY(parent, DeviceInfo, MAX_DEVICES * COUNT_OF(impls));
    if (spec && !strcmp(spec, "auto") && log && log->level < LOG_DEBUG) log = NULL;
    *count = 0;
    for (size_t i = 0; i < COUNT_OF(impls); i++) {
        if (!may_name(spec, impls[i]->backend)) continue;
        DeviceInfo found[MAX_DEVICES] = {0};
        int n = impls[i]->list(found, MAX_DEVICES, log);
        for (int j = 0; j < n; j++) {
            snprintf(found[j].backend, sizeof found[j].backend, "%s", impls[i]->backend);
            infos[(*count)++] = found[j];
        }
    }
    return infos;
}

DeviceInfo *dev_list(void *parent, int *count, const Log *log) {
    return list_named(parent, NULL, count, log);
}

// Which kind a general name prefers: discrete, integrated, then (where it may) software.
static int kind_rank(DeviceKind kind) {
    static const int rank[] = {[DEV_DISCRETE] = 0, [DEV_INTEGRATED] = 1, [DEV_CPU] = 2,
                               [DEV_SOFTWARE] = 3};
    return rank[kind];
}

// Finds the device that `spec` names; -1: none.
static int find_device(const DeviceInfo *infos, int count, const char *spec) {
    int best = -1;
    for (int i = 0; i < count; i++) {
        if (!strcmp(spec, infos[i].id)) return i;
        bool automatic = !strcmp(spec, "auto");
        if (automatic && (infos[i].kind == DEV_SOFTWARE || !strcmp(infos[i].backend, "ref"))) continue;
        if (!automatic && strcmp(spec, infos[i].backend)) continue;
        if (best < 0 || kind_rank(infos[i].kind) < kind_rank(infos[best].kind)) best = i;
    }
    return best;
}

static bool err_no_device(const char *spec, Error *err) {
    char names[256] = "";
    int count;
    DeviceInfo *infos = dev_list(NULL, &count, NULL); // dev_open has told what is wrong
    for (int i = 0; i < count; i++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", infos[i].id);
    }
    mem_free(infos);
    return err_failed(err, "device: expected auto or one of %s, found %s; `kiln devices` lists them",
                      names, spec);
}

Device *dev_open(void *parent, const char *spec, const DeviceOptions *options, Error *err) {
    static const DeviceOptions defaults = {0};
    if (!options) options = &defaults;
    int count;
    DeviceInfo *infos = list_named(parent, spec, &count, options->log);
    int chosen = find_device(infos, count, spec);
    if (chosen < 0) {
        mem_free(infos);
        err_no_device(spec, err);
        return NULL;
    }
    Device *dev = MEM_NEW(parent, Device);
    dev->info = infos[chosen];
    dev->options = *options;
    if (options->cache_dir) dev->options.cache_dir = mem_strdup(dev, options->cache_dir);
    dev->memory_lock = mutex_new(dev);
    if (!(dev->options.max_submit > 0)) dev->options.max_submit = 0.1;
    dev->memory.budget = options->budget ? options->budget
                         : dev->info.memory_free ? dev->info.memory_free / 10 * 9 : UINT64_MAX;
    int index = 0; // among the devices of its backend
    for (int i = 0; i < chosen; i++) index += !strcmp(infos[i].backend, infos[chosen].backend);
    mem_free(infos);
    for (size_t i = 0; i < COUNT_OF(impls); i++)
        if (!strcmp(impls[i]->backend, dev->info.backend)) dev->impl = impls[i];
    if (!dev->impl->open(dev, index, err)) {
        mem_free(dev);
        return NULL;
    }
    if (options->max_buffer) dev->info.max_buffer = MIN(dev->info.max_buffer, options->max_buffer);
    return dev;
}

void dev_close(Device *dev) {
    if (!dev) return;
    dev->impl->close(dev);
    mem_free(dev);
}

const DeviceInfo *dev_info(const Device *dev) { return &dev->info; }

int dev_threads(const Device *dev) {
    return dev->options.threads > 0 ? dev->options.threads : os_cpu_count();
}

// ---- memory -----------------------------------------------------------------------------------

MemoryStats dev_memory(const Device *dev) {
    mutex_lock(dev->memory_lock);
    MemoryStats stats = dev->memory;
    mutex_unlock(dev->memory_lock);
    return stats;
}

void dev_reset_peak(Device *dev) {
    mutex_lock(dev->memory_lock);
    dev->memory.peak = dev->memory.used;
    mutex_unlock(dev->memory_lock);
}

bool err_device_memory(const Device *dev, uint64_t bytes, const char *what, Error *err) {
    char size[32], used[32];
    format_bytes(size, bytes);
    format_bytes(used, dev->memory.used);
    return err_failed(err, "%s: memory for %s: expected %s free, found less (%s in use by this run); "
                      "close other programs or take a smaller picture, batch or model", dev->info.id,
                      what, size, used);
}

bool dev_claim(Device *dev, uint64_t bytes, const char *what, Error *err) {
    mutex_lock(dev->memory_lock);
    MemoryStats *m = &dev->memory;
    bool inject = ++dev->allocations == dev->options.fail_allocation;
    bool fits = bytes <= m->budget && m->used <= m->budget - bytes;
    if (fits && !inject) {
        m->used += bytes;
        m->peak = MAX(m->peak, m->used);
    }
    MemoryStats now = *m;
    mutex_unlock(dev->memory_lock);
    if (inject) return err_device_memory(dev, bytes, what, err);
    if (fits) return true;
    char need[32], budget[32];
    format_bytes(need, now.used + bytes);
    format_bytes(budget, now.budget);
    return err_failed(err, "%s: memory for %s: expected a budget of at least %s, found %s; give a "
                      "larger --vram or a smaller picture, batch or model", dev->info.id, what, need,
                      budget);
}

void dev_release(Device *dev, uint64_t bytes) {
    mutex_lock(dev->memory_lock);
    dev->memory.used -= bytes;
    mutex_unlock(dev->memory_lock);
}

bool err_device_lost(Device *dev, const char *during, Error *err) {
    dev->lost = true;
    return err_failed(err, "%s: expected %s to finish, found that the device was lost (driver reset); "
                      "run again, and update the driver if it happens again", dev->info.id, during);
}

static bool check_alive(const Device *dev, Error *err) {
    if (!dev->lost) return true;
    return err_failed(err, "%s: expected a working device, found one lost earlier; open it again",
                      dev->info.id);
}

// ---- buffers ----------------------------------------------------------------------------------

Buffer *buf_new(Device *dev, uint64_t size, const char *name, Error *err) {
    if (!check_alive(dev, err)) return NULL;
    if (size == 0 || size > dev->info.max_buffer) {
        err_failed(err, "%s: buffer %s: expected 1 to %llu bytes, found %llu; this is a defect",
                   dev->info.id, name, (unsigned long long)dev->info.max_buffer,
                   (unsigned long long)size);
        return NULL;
    }
    if (!dev_claim(dev, size, name, err)) return NULL;
    Buffer *buf = MEM_NEW(dev, Buffer);
    buf->dev = dev;
    buf->size = size;
    buf->name = mem_strdup(buf, name);
    if (dev->impl->buf_init(buf, err)) return buf;
    dev_release(dev, size);
    mem_free(buf);
    return NULL;
}

void buf_free(Buffer *buf) {
    if (!buf) return;
    Device *dev = buf->dev;
    dev->impl->buf_done(buf);
    dev_release(dev, buf->size);
    mem_free(buf);
}

uint64_t buf_size(const Buffer *buf) { return buf->size; }
Device *buf_device(const Buffer *buf) { return buf->dev; }

static bool check_range(const Buffer *buf, uint64_t offset, uint64_t size, Error *err) {
    if (!check_alive(buf->dev, err)) return false;
    if (offset <= buf->size && size <= buf->size - offset) return true;
    return err_failed(
        err, "buffer %s: expected a range inside %llu bytes, found %llu at %llu; this is a defect",
        buf->name, (unsigned long long)buf->size, (unsigned long long)size,
        (unsigned long long)offset);
}

bool dev_write(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err) {
    if (!check_range(dst, offset, size, err)) return false;
    return size == 0 || dst->dev->impl->write(dst, offset, data, size, err);
}

bool dev_read(Buffer *src, uint64_t offset, void *data, uint64_t size, Error *err) {
    if (!check_range(src, offset, size, err)) return false;
    return size == 0 || src->dev->impl->read(src, offset, data, size, err);
}

bool dev_upload(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err) {
    if (!check_range(dst, offset, size, err)) return false;
    return size == 0 || dst->dev->impl->upload(dst, offset, data, size, err);
}

void *dev_upload_place(Buffer *dst, uint64_t offset, uint64_t size) {
    return check_range(dst, offset, size, NULL) ? dst->dev->impl->place(dst, offset) : NULL;
}

bool dev_fill(Buffer *dst, uint64_t offset, uint64_t size, uint32_t pattern, Error *err) {
    if (!check_range(dst, offset, size, err)) return false;
    if (offset % 4 || size % 4)
        return err_failed(err, "buffer %s: expected a fill in multiples of 4 bytes; this is a defect",
                          dst->name);
    return size == 0 || dst->dev->impl->fill(dst, offset, size, pattern, err);
}

// ---- kernel rows ------------------------------------------------------------------------------

int dev_row_count(const Device *dev, OpId op) { return dev->impl->row_count(dev, op); }

const char *dev_row_name(const Device *dev, OpId op, int row) {
    return dev->impl->row_name(dev, op, row);
}

bool dev_row_fits(const Device *dev, int row, const OpCall *call, char *why) {
    char text[128];
    return dev->impl->row_fits(dev, row, call, why ? why : text);
}

int dev_row_for(const Device *dev, const OpCall *call, char *why) {
    char text[128];
    if (!why) why = text;
    snprintf(why, 128, "no kernel row");
    int count = dev_row_count(dev, call->op);
    for (int row = 0; row < count; row++) {
        if (call->row && strcmp(call->row, dev_row_name(dev, call->op, row))) continue;
        if (dev_row_fits(dev, row, call, why)) return row;
    }
    return -1;
}

// ---- programs ---------------------------------------------------------------------------------

static bool bind_step(Device *dev, const ProgramStep *step, BoundStep *bound, Error *err) {
    const OpCall *call = &step->call;
    if (!op_check(call, err)) return false;
    char why[128];
    int row = dev_row_for(dev, call, why);
    if (row < 0)
        return err_failed(err, "%s: %s%s%s: expected a kernel for these types and shapes, found none "
                          "(%s); use --device cpu", dev->info.id, op_info[call->op].name,
                          call->label ? " " : "", call->label ? call->label : "", why);
    *bound = (BoundStep){.call = *call, .row = row, .barrier = step->barrier,
                         .internal = step->internal};
    return true;
}

Program *prog_new(Device *dev, const ProgramStep *steps, int count, Error *err) {
    if (!check_alive(dev, err)) return NULL;
    Program *prog = MEM_NEW(dev, Program);
    prog->dev = dev;
    prog->count = count;
    prog->steps = MEM_ARRAY(prog, BoundStep, count);
    for (int i = 0; i < count; i++) {
        if (bind_step(dev, &steps[i], &prog->steps[i], err)) continue;
        mem_free(prog);
        return NULL;
    }
    uint64_t bytes = dev->impl->prog_bytes_for(dev, count);
    if (!dev_claim(dev, bytes, "program arguments", err)) {
        mem_free(prog);
        return NULL;
    }
    prog->bytes = bytes;
    if (dev->impl->prog_init(prog, err)) return prog;
    dev_release(dev, bytes);
    mem_free(prog);
    return NULL;
}

void prog_free(Program *prog) {
    if (!prog) return;
    prog->dev->impl->prog_done(prog);
    dev_release(prog->dev, prog->bytes);
    mem_free(prog);
}

uint64_t prog_bytes(const Program *prog) { return prog->bytes; }
uint64_t prog_bytes_for(const Device *dev, int count) { return dev->impl->prog_bytes_for(dev, count); }

bool prog_submit(Program *prog, Error *err) {
    Device *dev = prog->dev;
    if (!check_alive(dev, err)) return false;
    if (++dev->submits == dev->options.lose_at_submit)
        return err_device_lost(dev, "a submission", err);
    return dev->impl->submit(prog, err);
}

bool dev_wait(Device *dev, const Cancel *cancel, Error *err) {
    return check_alive(dev, err) && dev->impl->wait(dev, cancel, err);
}

bool prog_run(Program *prog, const Cancel *cancel, Error *err) {
    return prog_submit(prog, err) && dev_wait(prog->dev, cancel, err);
}

void dev_set_cancel(Device *dev, const Cancel *cancel) { dev->cancel = cancel; }

double prog_step_seconds(const Program *prog, int i) {
    return i >= 0 && i < prog->count ? prog->steps[i].seconds : 0;
}

