// pipeline.c: pipelines from kernel rows, compiled in parallel, and the driver's cache of them on
// disk. A pipeline is keyed by its pass, its operand types and the row's constants; never by a
// shape.
#include "backend/vulkan/vk.h"
#include "backend/vulkan/shaders.h"

#include <stdatomic.h>

enum { CACHE_LIMIT = 256 << 20, MAX_COMPILERS = 16 };
static const double save_every = 2; // seconds; the rest is saved when the device is closed

// What stands before the driver's data in a cache file. A driver may trust its own data blindly,
// so that a truncated or foreign file must be found out here.
typedef struct CacheHeader {
    char magic[8];
    uint32_t version, vendor, device, driver_version;
    uint8_t cache_uuid[VK_UUID_SIZE], driver_uuid[VK_UUID_SIZE];
    uint64_t size, hash; // of the data that follows
} CacheHeader;

// The header that the driver's data begins with (VkPipelineCacheHeaderVersionOne).
typedef struct DriverHeader {
    uint32_t size, version, vendor, device;
    uint8_t uuid[VK_UUID_SIZE];
} DriverHeader;

// ---- the cache on disk ------------------------------------------------------------------------

static CacheHeader cache_header(const VkState *s, const void *data, size_t size) {
    CacheHeader header = {.magic = "KILNPIPE",
                          .version = 1,
                          .vendor = s->physical.vendor,
                          .device = s->physical.device,
                          .driver_version = s->physical.driver_version,
                          .size = size,
                          .hash = hash_bytes(0, data, size)};
    memcpy(header.cache_uuid, s->physical.cache_uuid, VK_UUID_SIZE);
    memcpy(header.driver_uuid, s->physical.driver_uuid, VK_UUID_SIZE);
    return header;
}

static bool cache_valid(const VkState *s, const uint8_t *file, size_t size) {
    CacheHeader header;
    DriverHeader driver;
    if (size < sizeof header + sizeof driver) return false;
    memcpy(&header, file, sizeof header);
    memcpy(&driver, file + sizeof header, sizeof driver);
    CacheHeader expected = cache_header(s, file + sizeof header, size - sizeof header);
    return !memcmp(&header, &expected, sizeof header) && driver.size >= sizeof driver &&
           driver.version == VK_PIPELINE_CACHE_HEADER_VERSION_ONE &&
           driver.vendor == s->physical.vendor && driver.device == s->physical.device &&
           !memcmp(driver.uuid, s->physical.cache_uuid, VK_UUID_SIZE);
}

static char *cache_path(VkState *s) {
    const char *dir = s->dev->options.cache_dir;
    if (!dir) return NULL;
    char name[96];
    uint64_t key = hash_bytes(0, s->physical.cache_uuid, VK_UUID_SIZE);
    key = hash_bytes(key, s->physical.driver_uuid, VK_UUID_SIZE);
    snprintf(name, sizeof name, "vulkan-%04x-%04x-%016llx.bin", s->physical.vendor,
             s->physical.device, (unsigned long long)key);
    return os_path_join(s, dir, name);
}

// A cache that cannot be read or written costs time, never the run: only the log hears of it.
static void cache_save(VkState *s) {
    const Log *log = s->dev->options.log;
    s->cache_dirty = false;
    s->cache_saved = os_seconds();
    size_t size = 0;
    if (s->vk.vkGetPipelineCacheData(s->device, s->cache, &size, NULL) != VK_SUCCESS || !size ||
        size > CACHE_LIMIT)
        return;
    uint8_t *file = mem_new(NULL, sizeof(CacheHeader) + size);
    Error err = {0};
    if (s->vk.vkGetPipelineCacheData(s->device, s->cache, &size, file + sizeof(CacheHeader)) ==
        VK_SUCCESS) {
        CacheHeader header = cache_header(s, file + sizeof header, size);
        memcpy(file, &header, sizeof header);
        if (!os_make_dirs(s->dev->options.cache_dir, &err) ||
            !os_write_file(s->cache_path, file, sizeof header + size, &err))
            log_msg(log, LOG_INFO, "pipeline cache: %s", err.text);
    }
    mem_free(file);
}

bool pipelines_open(VkState *s, Error *err) {
    VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = 16};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &push};
    VkResult result = s->vk.vkCreatePipelineLayout(s->device, &layout, NULL, &s->layout);
    if (!vk_ok(s, result, "a pipeline layout", 0, err)) return false;
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    s->cache_path = cache_path(s);
    uint8_t *file = NULL;
    size_t size = 0;
    if (s->cache_path && os_path_kind(s->cache_path) == PATH_FILE) {
        file = os_read_file(s, s->cache_path, CACHE_LIMIT, &size, NULL);
        if (file && cache_valid(s, file, size)) {
            info.pInitialData = file + sizeof(CacheHeader);
            info.initialDataSize = size - sizeof(CacheHeader);
        } else {
            log_msg(s->dev->options.log, LOG_INFO,
                    "pipeline cache: %s is damaged or of another driver; made again",
                    s->cache_path);
        }
    }
    result = s->vk.vkCreatePipelineCache(s->device, &info, NULL, &s->cache);
    if (result != VK_SUCCESS && info.initialDataSize) { // the driver did not like it: begin anew
        info.initialDataSize = 0;
        result = s->vk.vkCreatePipelineCache(s->device, &info, NULL, &s->cache);
    }
    mem_free(file);
    return vk_ok(s, result, "a pipeline cache", 0, err);
}

void pipelines_close(VkState *s) {
    if (s->cache && s->cache_path && s->cache_dirty) cache_save(s);
    for (int i = 0; i < s->pipelines.n; i++)
        s->vk.vkDestroyPipeline(s->device, s->pipelines.v[i]->handle, NULL);
    s->pipelines.n = 0;
    if (s->cache) s->vk.vkDestroyPipelineCache(s->device, s->cache, NULL);
    if (s->layout) s->vk.vkDestroyPipelineLayout(s->device, s->layout, NULL);
}

// ---- one pipeline -----------------------------------------------------------------------------

static const KilnShader *find_shader(const char *name) {
    for (unsigned i = 0; i < kiln_shader_count; i++)
        if (!strcmp(kiln_shaders[i].name, name)) return &kiln_shaders[i];
    return NULL;
}

static void fill_constants(Pipeline *p, const KernelRow *row, const OpCall *call) {
    for (int i = 0; i < MAX_OPERANDS; i++)
        if (row->typed & OPERAND(i)) p->constants[i] = (uint32_t)call->t[i].dtype;
    for (int i = 0; i < MAX_CONSTANTS && p->pass->constants[i].id; i++) {
        const RowConstant *c = &p->pass->constants[i];
        p->constants[MAX_OPERANDS + i] = row_number(c->from, c->operand, c->value, call);
    }
}

enum { MAX_ENTRIES = 8 + MAX_OPERANDS + MAX_CONSTANTS };
typedef struct Specialisation {
    VkSpecializationMapEntry entries[MAX_ENTRIES];
    uint32_t values[MAX_ENTRIES], count;
} Specialisation;

static void specialise(Specialisation *sp, uint32_t id, uint32_t value) {
    sp->entries[sp->count] = (VkSpecializationMapEntry){id, 4 * sp->count, 4};
    sp->values[sp->count++] = value;
}

static VkResult compile(VkState *s, Pipeline *p) {
    const KilnShader *shader = find_shader(p->pass->module);
    if (!shader) return VK_ERROR_INITIALIZATION_FAILED; // pipelines_for has checked
    Specialisation sp = {.count = 0};
    for (uint32_t i = 0; i < MAX_DIMS; i++) specialise(&sp, i, p->pass->tile[i]);
    specialise(&sp, CONSTANT_THREADS, p->pass->threads);
    specialise(&sp, CONSTANT_FLAT, p->pass->flat);
    for (uint32_t i = 0; i < MAX_OPERANDS; i++)
        specialise(&sp, CONSTANT_TYPES + i, p->constants[i]);
    for (int i = 0; i < MAX_CONSTANTS && p->pass->constants[i].id; i++)
        specialise(&sp, p->pass->constants[i].id, p->constants[MAX_OPERANDS + i]);
    VkSpecializationInfo info = {sp.count, sp.entries, 4 * sp.count, sp.values};
    VkShaderModuleCreateInfo module = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                       .codeSize = 4 * shader->word_count,
                                       .pCode = shader->words};
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfoEXT size = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO_EXT,
        .requiredSubgroupSize = p->pass->subgroup};
    VkComputePipelineCreateInfo create = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .pNext = p->pass->subgroup ? &size : NULL,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .pName = "main",
                  .pSpecializationInfo = &info},
        .layout = s->layout};
    VkResult result = s->vk.vkCreateShaderModule(s->device, &module, NULL, &create.stage.module);
    if (result != VK_SUCCESS) return result;
    result = s->vk.vkCreateComputePipelines(s->device, s->cache, 1, &create, NULL, &p->handle);
    s->vk.vkDestroyShaderModule(s->device, create.stage.module, NULL);
    return result;
}

// ---- many, in parallel ------------------------------------------------------------------------

typedef struct Compile {
    VkState *s;
    Pipeline **todo;
    VkResult *results;
    int count;
    _Atomic int next;
    _Atomic bool cancelled;
    const Cancel *cancel; // asked by the calling thread only
} Compile;

static void compile_some(void *arg) {
    Compile *c = arg;
    for (int i; !c->cancelled && (i = atomic_fetch_add(&c->next, 1)) < c->count;)
        c->results[i] = compile(c->s, c->todo[i]);
}

// As compile_some, in the thread that waits for all of them.
static void compile_here(Compile *c) {
    const Cancel *cancel = c->cancel;
    for (;;) {
        c->cancelled = cancel && cancel->asked && cancel->asked(cancel->user);
        if (c->cancelled) return;
        int i = atomic_fetch_add(&c->next, 1);
        if (i >= c->count) return;
        c->results[i] = compile(c->s, c->todo[i]);
    }
}

static bool compile_all(VkState *s, Pipeline **todo, int count, Error *err) {
    if (!count) return true;
    Compile c = {.s = s, .todo = todo, .count = count, .cancel = s->dev->cancel};
    c.results = MEM_ARRAY(NULL, VkResult, count);
    Thread *threads[MAX_COMPILERS] = {0};
    int helpers = MIN(MIN(os_cpu_count(), count), MAX_COMPILERS) - 1; // this thread works too
    double start = os_seconds();
    for (int i = 0; i < helpers; i++) threads[i] = thread_start(NULL, compile_some, &c);
    compile_here(&c);
    for (int i = 0; i < helpers; i++)
        if (threads[i]) thread_join(threads[i]);
    log_msg(s->dev->options.log, LOG_DEBUG, "%s: %d pipelines compiled in %.2f s", s->dev->info.id,
            count, os_seconds() - start);
    bool ok = !c.cancelled || err_set(err, STATUS_CANCELLED, "cancelled");
    for (int i = 0; i < count && ok; i++) {
        char what[96];
        snprintf(what, sizeof what, "compiling kernel %s", todo[i]->pass->module);
        ok = vk_ok(s, c.results[i], what, 0, err);
    }
    mem_free(c.results);
    return ok;
}

static Pipeline *find_pipeline(const VkState *s, const Pipeline *key) {
    for (int i = 0; i < s->pipelines.n; i++) {
        Pipeline *p = s->pipelines.v[i];
        if (p->pass == key->pass && !memcmp(p->constants, key->constants, sizeof key->constants))
            return p;
    }
    return NULL;
}

bool pipelines_for(VkState *s, const BoundStep *steps, int count, Pipeline **out, Error *err) {
    int first_new = s->pipelines.n;
    bool ok = true;
    for (int i = 0; i < count * MAX_PASSES && ok; i++) {
        const OpCall *call = &steps[i / MAX_PASSES].call;
        const KernelRow *row = rows_get(call->op, steps[i / MAX_PASSES].row);
        Pipeline key = {.pass = &row->pass[i % MAX_PASSES]};
        out[i] = NULL;
        if (!key.pass->module) continue;
        if (!find_shader(key.pass->module)) {
            ok = err_failed(err,
                            "%s: kernel row %s: expected a shader module %s, found none; list it "
                            "in shaders/variants.txt",
                            s->dev->info.id, row->name, key.pass->module);
            break;
        }
        fill_constants(&key, row, call);
        out[i] = find_pipeline(s, &key);
        if (out[i]) continue;
        out[i] = MEM_NEW(s, Pipeline);
        *out[i] = key;
        ARR_PUSH(s, &s->pipelines, out[i]);
    }
    int made = s->pipelines.n - first_new;
    ok = ok && compile_all(s, s->pipelines.v + first_new, made, err) &&
         messages_check(&s->instance.messages, s->dev->info.id, err);
    if (!ok) { // forget those that were not made whole
        for (int i = first_new; i < s->pipelines.n; i++)
            s->vk.vkDestroyPipeline(s->device, s->pipelines.v[i]->handle, NULL);
        s->pipelines.n = first_new;
        return false;
    }
    if (made && s->cache_path) {
        s->cache_dirty = true;
        if (os_seconds() - s->cache_saved > save_every) cache_save(s);
    }
    return true;
}
