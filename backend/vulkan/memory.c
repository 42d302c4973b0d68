// memory.c: buffers with a device address, and the bounded staging buffer through which the host
// reads and writes them.
#include "backend/vulkan/vk.h"

// ---- allocation -------------------------------------------------------------------------------

// The first memory type that has all of `want`, as the driver orders them; -1: none.
static int memory_type(const VkState *s, uint32_t allowed, VkMemoryPropertyFlags want,
                       VkMemoryPropertyFlags avoid) {
    // What needs an extension to use, or is protected, is never ours.
    avoid |= VK_MEMORY_PROPERTY_PROTECTED_BIT | VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT |
             VK_MEMORY_PROPERTY_DEVICE_COHERENT_BIT_AMD |
             VK_MEMORY_PROPERTY_DEVICE_UNCACHED_BIT_AMD;
    for (uint32_t i = 0; i < s->heaps.memoryTypeCount; i++) {
        VkMemoryPropertyFlags flags = s->heaps.memoryTypes[i].propertyFlags;
        if (allowed >> i & 1 && (flags & want) == want && !(flags & avoid)) return (int)i;
    }
    return -1;
}

static int choose_type(const VkState *s, uint32_t allowed, MemoryUse use) {
    const VkMemoryPropertyFlags local = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
                                visible = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT,
                                coherent = VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
                                cached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
    // Tensors: device memory that the host does not see leaves the small visible window of a card
    // free. Staging: cached memory of the host, because reading uncached memory takes ten times
    // longer; beside the card rather than on it.
    const VkMemoryPropertyFlags device[][2] = {{local, visible}, {local, 0}, {0, 0}};
    const VkMemoryPropertyFlags staging[][2] = {{visible | coherent | cached, local},
                                                {visible | coherent | cached, 0},
                                                {visible | cached, 0},
                                                {visible | coherent, 0}};
    int found = -1;
    if (use == MEMORY_DEVICE) {
        for (size_t i = 0; i < COUNT_OF(device) && found < 0; i++)
            found = memory_type(s, allowed, device[i][0], device[i][1]);
    } else {
        for (size_t i = 0; i < COUNT_OF(staging) && found < 0; i++)
            found = memory_type(s, allowed, staging[i][0], staging[i][1]);
    }
    return found;
}

static bool allocate(VkState *s, Allocation *a, MemoryUse use, const char *what, Error *err) {
    VkMemoryRequirements need;
    s->vk.vkGetBufferMemoryRequirements(s->device, a->buffer, &need);
    int type = choose_type(s, need.memoryTypeBits, use);
    if (type < 0)
        return err_failed(err, "%s: memory for %s: expected a suitable memory type, found none; "
                          "update the driver", s->dev->info.id, what);
    VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                       .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                 .pNext = use == MEMORY_DEVICE ? &flags : NULL,
                                 .allocationSize = need.size,
                                 .memoryTypeIndex = (uint32_t)type};
    if (!vk_ok(s, s->vk.vkAllocateMemory(s->device, &info, NULL, &a->memory), what, a->size, err) ||
        !vk_ok(s, s->vk.vkBindBufferMemory(s->device, a->buffer, a->memory, 0), what, a->size, err))
        return false;
    const VkMemoryPropertyFlags coherent = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                           VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    a->coherent = (s->heaps.memoryTypes[type].propertyFlags & coherent) == coherent;
    if (use == MEMORY_STAGING)
        return vk_ok(s, s->vk.vkMapMemory(s->device, a->memory, 0, VK_WHOLE_SIZE, 0,
                                          (void **)&a->mapped), what, a->size, err);
    VkBufferDeviceAddressInfo address = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
                                         .buffer = a->buffer};
    a->address = s->vk.vkGetBufferDeviceAddress(s->device, &address);
    // Where the host sees tensors anyway (integrated devices, drivers on the CPU), uploads write
    // them in place.
    if (!a->coherent || s->dev->options.staged_uploads) return true;
    return vk_ok(s, s->vk.vkMapMemory(s->device, a->memory, 0, VK_WHOLE_SIZE, 0,
                                      (void **)&a->mapped), what, a->size, err);
}

bool memory_new(VkState *s, Allocation *a, uint64_t size, MemoryUse use, const char *what,
                Error *err) {
    *a = (Allocation){.size = size};
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .size = size,
                               .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                        VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    // Shared by both families, where uploads have their own: an exclusive buffer would have to be
    // handed over for each upload.
    const uint32_t families[] = {s->physical.queue_family, s->physical.upload_family};
    if (families[0] != families[1]) {
        info.sharingMode = VK_SHARING_MODE_CONCURRENT;
        info.queueFamilyIndexCount = 2;
        info.pQueueFamilyIndices = families;
    }
    if (use == MEMORY_DEVICE)
        info.usage |=
            VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;
    if (!vk_ok(s, s->vk.vkCreateBuffer(s->device, &info, NULL, &a->buffer), what, size, err))
        return false;
    ARR_PUSH(s, &s->allocations, a);
    if (allocate(s, a, use, what, err)) return true;
    memory_free(s, a);
    return false;
}

void memory_free(VkState *s, Allocation *a) {
    if (s->hung) return;
    for (int i = s->allocations.n - 1; i >= 0; i--)
        if (s->allocations.v[i] == a) s->allocations.v[i] = s->allocations.v[--s->allocations.n];
    if (a->buffer) s->vk.vkDestroyBuffer(s->device, a->buffer, NULL);
    if (a->memory) s->vk.vkFreeMemory(s->device, a->memory, NULL); // unmaps too
    *a = (Allocation){0};
}

void memory_free_all(VkState *s) {
    while (s->allocations.n) memory_free(s, s->allocations.v[s->allocations.n - 1]);
}

bool vk_buf_init(Buffer *buf, Error *err) {
    VkState *s = vk_state(buf->dev);
    Allocation *a = MEM_NEW(buf, Allocation);
    if (!memory_new(s, a, buf->size, MEMORY_DEVICE, buf->name, err)) return false;
    buf->state = a;
    buf->address = a->address;
    return true;
}

void vk_buf_done(Buffer *buf) {
    VkState *s = vk_state(buf->dev);
    vk_idle(s);
    memory_free(s, buf->state);
}

// ---- staging ----------------------------------------------------------------------------------

// A small budget still has room for tensors. Steps, not a share of the budget: the figure that a
// refused plan names would otherwise grow when the budget is raised to it.
static const uint64_t staging_steps[STAGING_STEPS] = {0, 4u << 20, 256u << 20}; // budgets
static const uint64_t staging_sizes[STAGING_STEPS] = {32u << 10, 512u << 10, 16u << 20};

static uint64_t slot_size(const VkState *s, uint64_t staging) {
    const uint64_t page = 4096;
    return align_up(MAX(staging / (STAGING_SLOTS + UPLOAD_SLOTS) / page, 1) * page, MAX(s->physical.atom, 1));
}

bool staging_open(VkState *s, Error *err) {
    DeviceInfo *info = &s->dev->info;
    for (int i = 0; i < STAGING_STEPS; i++) {
        uint64_t slot = slot_size(s, staging_sizes[i]);
        info->staging_step[i].budget = staging_steps[i];
        info->staging_step[i].bytes = slot * (STAGING_SLOTS + UPLOAD_SLOTS);
        if (s->dev->memory.budget >= staging_steps[i]) s->slot_bytes = slot;
    }
    uint64_t bytes = s->slot_bytes * (STAGING_SLOTS + UPLOAD_SLOTS);
    if (!dev_claim(s->dev, bytes, "staging", err)) return false;
    s->staging_claimed = bytes;
    info->staging_bytes = bytes;
    if (!memory_new(s, &s->staging, bytes, MEMORY_STAGING, "staging", err)) return false;
    VkCommandBuffer cmds[STAGING_SLOTS];
    VkCommandBufferAllocateInfo wanted = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                          .commandPool = s->pool,
                                          .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                          .commandBufferCount = STAGING_SLOTS};
    if (!vk_ok(s, s->vk.vkAllocateCommandBuffers(s->device, &wanted, cmds), "staging", 0, err))
        return false;
    for (int i = 0; i < STAGING_SLOTS; i++) s->slots[i].cmd = cmds[i];
    return true;
}

void staging_close(VkState *s) {
    memory_free(s, &s->staging); // the command buffers go with their pool
    dev_release(s->dev, s->staging_claimed);
    s->staging_claimed = 0;
}

bool sync_slot(VkState *s, int slot, bool to_device, Error *err) {
    if (s->staging.coherent) return true;
    VkMappedMemoryRange range = {.sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE,
                                 .memory = s->staging.memory,
                                 .offset = (uint64_t)slot * s->slot_bytes,
                                 .size = s->slot_bytes};
    VkResult result = to_device ? s->vk.vkFlushMappedMemoryRanges(s->device, 1, &range)
                                : s->vk.vkInvalidateMappedMemoryRanges(s->device, 1, &range);
    return vk_ok(s, result, "a transfer", 0, err);
}

// The next slot, free of earlier work, its command buffer recording after all work before; -1.
static int take_slot(VkState *s, Error *err) {
    int i = s->next_slot;
    s->next_slot = (i + 1) % STAGING_SLOTS;
    if (!vk_wait_value(s, s->slots[i].value, NULL, err) ||
        !vk_begin(s, s->slots[i].cmd, VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT, err))
        return -1;
    vk_full_barrier(s, s->slots[i].cmd);
    return i;
}

static bool submit_slot(VkState *s, int slot, const char *what, Error *err) {
    VkCommandBuffer cmd = s->slots[slot].cmd;
    if (!vk_ok(s, s->vk.vkEndCommandBuffer(cmd), what, 0, err) || !vk_submit_cmd(s, cmd, what, err))
        return false;
    s->slots[slot].value = s->submitted;
    return true;
}

bool upload(VkState *s, VkBuffer dst, uint64_t offset, const void *data, uint64_t size,
            Error *err) {
    if (!vk_drain(s, err)) return false;
    for (uint64_t done = 0; done < size;) {
        int slot = take_slot(s, err);
        if (slot < 0) return false;
        VkBufferCopy copy = {.srcOffset = (uint64_t)slot * s->slot_bytes,
                             .dstOffset = offset + done,
                             .size = MIN(size - done, s->slot_bytes)};
        memcpy(s->staging.mapped + copy.srcOffset, (const uint8_t *)data + done, copy.size);
        if (!sync_slot(s, slot, true, err)) return false;
        s->vk.vkCmdCopyBuffer(s->slots[slot].cmd, s->staging.buffer, dst, 1, &copy);
        if (!submit_slot(s, slot, "an upload", err)) return false;
        done += copy.size;
    }
    return true;
}

// Starts copying a part into a slot, -1 on failure.
static int start_download(VkState *s, VkBuffer src, uint64_t offset, uint64_t size, Error *err) {
    int slot = take_slot(s, err);
    if (slot < 0) return -1;
    VkCommandBuffer cmd = s->slots[slot].cmd;
    VkBufferCopy copy = {.srcOffset = offset,
                         .dstOffset = (uint64_t)slot * s->slot_bytes,
                         .size = size};
    s->vk.vkCmdCopyBuffer(cmd, src, s->staging.buffer, 1, &copy);
    VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                               .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
    s->vk.vkCmdPipelineBarrier(cmd, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0,
                               1, &barrier, 0, NULL, 0, NULL);
    return submit_slot(s, slot, "a download", err) ? slot : -1;
}

// Up to STAGING_SLOTS parts are under way while the oldest is copied out.
static bool download(VkState *s, VkBuffer src, uint64_t offset, uint8_t *data, uint64_t size,
                     Error *err) {
    if (!vk_drain(s, err)) return false;
    int slots[STAGING_SLOTS], first = 0, under_way = 0;
    uint64_t asked = 0, done = 0;
    while (done < size) {
        if (asked < size && under_way < STAGING_SLOTS) {
            uint64_t part = MIN(size - asked, s->slot_bytes);
            int slot = start_download(s, src, offset + asked, part, err);
            if (slot < 0) return false;
            slots[(first + under_way++) % STAGING_SLOTS] = slot;
            asked += part;
            continue;
        }
        int slot = slots[first];
        first = (first + 1) % STAGING_SLOTS;
        under_way--;
        uint64_t part = MIN(size - done, s->slot_bytes);
        if (!vk_wait_value(s, s->slots[slot].value, NULL, err) ||
            !sync_slot(s, slot, false, err))
            return false;
        memcpy(data + done, s->staging.mapped + (uint64_t)slot * s->slot_bytes, part);
        done += part;
    }
    return true;
}

bool vk_write(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err) {
    VkState *s = vk_state(dst->dev);
    return upload(s, ((Allocation *)dst->state)->buffer, offset, data, size, err) &&
           messages_check(&s->instance.messages, dst->dev->info.id, err);
}

bool vk_read(Buffer *src, uint64_t offset, void *data, uint64_t size, Error *err) {
    VkState *s = vk_state(src->dev);
    return download(s, ((Allocation *)src->state)->buffer, offset, data, size, err) &&
           messages_check(&s->instance.messages, src->dev->info.id, err);
}

bool vk_fill(Buffer *dst, uint64_t offset, uint64_t size, uint32_t pattern, Error *err) {
    VkState *s = vk_state(dst->dev);
    if (!vk_drain(s, err)) return false;
    int slot = take_slot(s, err);
    if (slot < 0) return false;
    s->vk.vkCmdFillBuffer(s->slots[slot].cmd, ((Allocation *)dst->state)->buffer, offset, size,
                          pattern);
    return submit_slot(s, slot, "a fill", err) &&
           messages_check(&s->instance.messages, dst->dev->info.id, err);
}
