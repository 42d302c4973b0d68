// device.c: one opened device: logical device, queue, the results of Vulkan calls, the vtable.
#include "backend/vulkan/vk.h"

#include <stdatomic.h>

// ---- results ----------------------------------------------------------------------------------

const char *vk_result_name(VkResult result) {
    switch (result) {
#define NAME(r) case r: return #r;
        NAME(VK_SUCCESS) NAME(VK_NOT_READY) NAME(VK_TIMEOUT) NAME(VK_INCOMPLETE)
        NAME(VK_ERROR_OUT_OF_HOST_MEMORY) NAME(VK_ERROR_OUT_OF_DEVICE_MEMORY)
        NAME(VK_ERROR_INITIALIZATION_FAILED) NAME(VK_ERROR_DEVICE_LOST)
        NAME(VK_ERROR_MEMORY_MAP_FAILED) NAME(VK_ERROR_LAYER_NOT_PRESENT)
        NAME(VK_ERROR_EXTENSION_NOT_PRESENT) NAME(VK_ERROR_FEATURE_NOT_PRESENT)
        NAME(VK_ERROR_INCOMPATIBLE_DRIVER) NAME(VK_ERROR_TOO_MANY_OBJECTS)
        NAME(VK_ERROR_FRAGMENTED_POOL) NAME(VK_ERROR_OUT_OF_POOL_MEMORY)
        NAME(VK_ERROR_INVALID_SHADER_NV)
#undef NAME
    default: return "an unknown Vulkan error";
    }
}

bool vk_ok(VkState *s, VkResult result, const char *what, uint64_t bytes, Error *err) {
    switch (result) {
    case VK_SUCCESS: return true;
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_TOO_MANY_OBJECTS: return err_device_memory(s->dev, bytes, what, err);
    case VK_ERROR_DEVICE_LOST: return err_device_lost(s->dev, what, err);
    default:
        return err_failed(err, "%s: %s: expected success, found %s; update the driver",
                          s->dev->info.id, what, vk_result_name(result));
    }
}

// ---- submission -------------------------------------------------------------------------------

bool vk_begin(VkState *s, VkCommandBuffer cmd, VkCommandBufferUsageFlags flags, Error *err) {
    VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                     .flags = flags};
    return vk_ok(s, s->vk.vkBeginCommandBuffer(cmd, &info), "recording", 0, err);
}

void vk_full_barrier(VkState *s, VkCommandBuffer cmd) {
    const VkAccessFlags writes = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    const VkPipelineStageFlags stages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT |
                                        VK_PIPELINE_STAGE_TRANSFER_BIT;
    VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = writes,
                               .dstAccessMask = writes | VK_ACCESS_SHADER_READ_BIT |
                                                VK_ACCESS_TRANSFER_READ_BIT};
    s->vk.vkCmdPipelineBarrier(cmd, stages, stages, 0, 1, &barrier, 0, NULL, 0, NULL);
}

bool vk_queue_submit(VkState *s, VkQueue queue, VkCommandBuffer cmd, VkSemaphore wait,
                     uint64_t wait_value, VkSemaphore signal, uint64_t value, const char *what,
                     Error *err) {
    const VkPipelineStageFlags stages = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
    VkTimelineSemaphoreSubmitInfo timeline = {
        .sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
        .waitSemaphoreValueCount = wait_value > 0,
        .pWaitSemaphoreValues = &wait_value,
        .signalSemaphoreValueCount = 1,
        .pSignalSemaphoreValues = &value};
    VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                           .pNext = &timeline,
                           .waitSemaphoreCount = wait_value > 0,
                           .pWaitSemaphores = &wait,
                           .pWaitDstStageMask = &stages,
                           .commandBufferCount = 1,
                           .pCommandBuffers = &cmd,
                           .signalSemaphoreCount = 1,
                           .pSignalSemaphores = &signal};
    mutex_lock(s->queue_lock);
    VkResult result = s->vk.vkQueueSubmit(queue, 1, &submit, VK_NULL_HANDLE);
    mutex_unlock(s->queue_lock);
    return vk_ok(s, result, what, 0, err);
}

bool vk_submit_cmd(VkState *s, VkCommandBuffer cmd, const char *what, Error *err) {
    // What was uploaded is made visible to this queue by a wait, though it has long ended.
    uint64_t uploaded = atomic_load(&s->uploads.done);
    if (!vk_queue_submit(s, s->queue, cmd, s->uploads.timeline,
                         uploaded > s->uploads_seen ? uploaded : 0, s->timeline, s->submitted + 1,
                         what, err))
        return false;
    s->uploads_seen = uploaded;
    s->submitted++;
    return true;
}

// ---- opening and closing ----------------------------------------------------------------------

static bool create_device(VkState *s, Error *err) {
    const PhysicalDevice *p = &s->physical;
    const float priority[2] = {1, 1};
    bool apart = p->upload_family != p->queue_family;
    VkDeviceQueueCreateInfo queues[2] = {
        {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
         .queueFamilyIndex = p->queue_family,
         .queueCount = apart ? 1 : 1 + p->upload_index,
         .pQueuePriorities = priority},
        {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
         .queueFamilyIndex = p->upload_family,
         .queueCount = 1,
         .pQueuePriorities = priority},
    };
    VkPhysicalDeviceSubgroupSizeControlFeaturesEXT size = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT,
        .subgroupSizeControl = VK_TRUE};
    VkPhysicalDeviceVulkan12Features v12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
        .pNext = p->subgroup_size ? &size : NULL,
        .bufferDeviceAddress = VK_TRUE,
        .timelineSemaphore = VK_TRUE,
        .storageBuffer8BitAccess = VK_TRUE,
        .scalarBlockLayout = VK_TRUE,
        .shaderFloat16 = p->info.f16_arithmetic};
    VkPhysicalDeviceVulkan11Features v11 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
        .pNext = &v12,
        .storageBuffer16BitAccess = VK_TRUE};
    const char *extensions[2];
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &v11,
                               .queueCreateInfoCount = apart ? 2 : 1,
                               .pQueueCreateInfos = queues,
                               .ppEnabledExtensionNames = extensions};
    if (p->subgroup_size && !p->api13) // part of Vulkan itself since 1.3
        extensions[info.enabledExtensionCount++] = VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME;
    if (p->portability) // must be enabled where it is offered
        extensions[info.enabledExtensionCount++] = "VK_KHR_portability_subset";
    VkResult result = s->instance.CreateDevice(p->handle, &info, NULL, &s->device);
    if (!vk_ok(s, result, "opening the device", 0, err)) return false;
    volkLoadDeviceTable(&s->vk, s->device);
    s->vk.vkGetDeviceQueue(s->device, p->queue_family, 0, &s->queue);
    s->vk.vkGetDeviceQueue(s->device, p->upload_family, p->upload_index, &s->uploads.queue);
    return true;
}

bool queue_objects(VkState *s, uint32_t family, VkCommandPool *commands, VkSemaphore *timeline,
                   Error *err) {
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = family};
    VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                      .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO,
                                       .pNext = &type};
    return vk_ok(s, s->vk.vkCreateCommandPool(s->device, &pool, NULL, commands), "a command pool", 0,
                 err) &&
           vk_ok(s, s->vk.vkCreateSemaphore(s->device, &semaphore, NULL, timeline), "a semaphore", 0,
                 err);
}

static bool create_objects(VkState *s, Error *err) {
    VkPhysicalDeviceMemoryProperties2 memory = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
    s->instance.GetPhysicalDeviceMemoryProperties2(s->physical.handle, &memory);
    s->heaps = memory.memoryProperties;
    return queue_objects(s, s->physical.queue_family, &s->pool, &s->timeline, err) &&
           pipelines_open(s, err) && staging_open(s, err) && uploads_open(s, err);
}

static void device_close(Device *dev) {
    VkState *s = dev->state;
    if (!s) return;
    if (s->hung) { // the queue still runs: destroying what it uses would crash the program
        log_msg(dev->options.log, LOG_WARN, "%s: left open, it did not answer", dev->info.id);
        return;
    }
    if (s->device) {
        s->pending_count = 0;
        s->vk.vkDeviceWaitIdle(s->device);
        programs_free_all(s);
        uploads_close(s);
        staging_close(s);
        memory_free_all(s); // buffers that their owner left to the device
        pipelines_close(s);
        if (s->timeline) s->vk.vkDestroySemaphore(s->device, s->timeline, NULL);
        if (s->pool) s->vk.vkDestroyCommandPool(s->device, s->pool, NULL);
        s->vk.vkDestroyDevice(s->device, NULL);
    }
    instance_close(&s->instance);
    dev->state = NULL;
}

static bool device_open(Device *dev, int index, Error *err) {
    VkState *s = MEM_NEW(dev, VkState);
    dev->state = s;
    s->dev = dev;
    s->queue_lock = mutex_new(s);
    PhysicalDevice found[16];
    bool ok = instance_open(&s->instance, dev->options.validate, dev->options.log, s, err);
    if (ok) {
        int count = instance_devices(&s->instance, found, COUNT_OF(found), NULL);
        ok = index < count || err_failed(err, "%s: expected the device that was listed, found %d "
                                         "devices; try again", dev->info.id, count);
    }
    if (ok) {
        s->physical = found[index];
        ok = create_device(s, err) && create_objects(s, err) &&
             messages_check(&s->instance.messages, dev->info.id, err);
    }
    if (!ok) device_close(dev);
    return ok;
}

static int device_list(DeviceInfo *infos, int max, const Log *log) {
    Instance instance;
    Error err = {0};
    void *parent = mem_new(NULL, 1);
    PhysicalDevice found[16];
    int count = 0;
    if (instance_open(&instance, 0, log, parent, &err)) {
        count = instance_devices(&instance, found, MIN(max, (int)COUNT_OF(found)), log);
        instance_close(&instance);
        if (!count) log_msg(log, LOG_INFO, "vulkan: no device of Vulkan 1.2 with buffer addresses");
    } else {
        log_msg(log, LOG_INFO, "%s", err.text);
    }
    for (int i = 0; i < count; i++) infos[i] = found[i].info;
    mem_free(parent);
    return count;
}

// ---- rows -------------------------------------------------------------------------------------

static int row_count(const Device *dev, OpId op) {
    (void)dev;
    return rows_count(op);
}

static const char *row_name(const Device *dev, OpId op, int row) {
    (void)dev;
    const KernelRow *r = rows_get(op, row);
    return r ? r->name : NULL;
}

static bool row_fits(const Device *dev, int row, const OpCall *call, char why[128]) {
    const PhysicalDevice *p = &vk_state(dev)->physical;
    const KernelRow *r = rows_get(call->op, row);
    RowLimits limits = {.caps = p->caps,
                        .shared = p->info.shared_memory,
                        .threads = p->max_threads,
                        .choose_subgroup = p->subgroup_size,
                        .subgroup_min = p->info.subgroup_min,
                        .subgroup_max = p->info.subgroup_max};
    return r && row_takes(r, call, &limits, why);
}

const DeviceImpl vulkan_impl = {
    .backend = "vulkan",
    .list = device_list,
    .open = device_open,
    .close = device_close,
    .buf_init = vk_buf_init,
    .buf_done = vk_buf_done,
    .write = vk_write,
    .read = vk_read,
    .fill = vk_fill,
    .upload = vk_upload, .place = vk_place,
    .prog_init = vk_prog_init,
    .prog_done = vk_prog_done,
    .prog_bytes_for = vk_prog_bytes_for,
    .submit = vk_submit,
    .wait = vk_wait,
    .row_count = row_count,
    .row_name = row_name,
    .row_fits = row_fits,
};
