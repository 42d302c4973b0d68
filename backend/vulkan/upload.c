// upload.c: dev_upload: data into device memory from any thread, while programs run.
//
// Where the host sees the memory of tensors, the upload is a copy by the processor: the next
// submission to the queue makes it visible. Elsewhere it passes through UPLOAD_SLOTS parts of the
// staging buffer, by a queue, a command pool and a timeline semaphore that nothing else uses
// (devices with a single queue share it, under its lock).
#include "backend/vulkan/vk.h"

#include <stdatomic.h>

bool uploads_open(VkState *s, Error *err) {
    Uploads *u = &s->uploads;
    u->lock = mutex_new(s);
    u->slots = s->slots + STAGING_SLOTS;
    if (!queue_objects(s, s->physical.upload_family, &u->pool, &u->timeline, err)) return false;
    VkCommandBuffer cmds[UPLOAD_SLOTS];
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = u->pool,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = UPLOAD_SLOTS};
    VkResult result = s->vk.vkAllocateCommandBuffers(s->device, &info, cmds);
    if (!vk_ok(s, result, "uploads", 0, err)) return false;
    for (int i = 0; i < UPLOAD_SLOTS; i++) u->slots[i].cmd = cmds[i];
    return true;
}

void uploads_close(VkState *s) {
    Uploads *u = &s->uploads;
    if (u->timeline) s->vk.vkDestroySemaphore(s->device, u->timeline, NULL);
    if (u->pool) s->vk.vkDestroyCommandPool(s->device, u->pool, NULL);
}

// On a queue that programs use too, an upload waits behind those submitted before.
static bool wait_for(VkState *s, uint64_t value, Error *err) {
    Uploads *u = &s->uploads;
    const double patience = s->physical.info.kind == DEV_SOFTWARE ? 900 : 60;
    double start = os_seconds();
    VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                .semaphoreCount = 1,
                                .pSemaphores = &u->timeline,
                                .pValues = &value};
    while (value > atomic_load(&u->done)) {
        VkResult result = s->vk.vkWaitSemaphores(s->device, &info, 100 * 1000 * 1000);
        if (result == VK_SUCCESS) {
            atomic_store(&u->done, value);
        } else if (result != VK_TIMEOUT) {
            return vk_ok(s, result, "an upload", 0, err);
        } else if (s->dev->lost || os_seconds() - start > patience) {
            return err_device_lost(s->dev, "an upload", err);
        }
    }
    return true;
}

static bool send(VkState *s, VkBuffer dst, uint64_t offset, const void *data, uint64_t size,
                 Error *err) {
    Uploads *u = &s->uploads;
    int i = u->next_slot;
    Slot *slot = &u->slots[i];
    u->next_slot = (i + 1) % UPLOAD_SLOTS;
    if (!wait_for(s, slot->value, err) ||
        !vk_begin(s, slot->cmd, VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT, err))
        return false;
    VkBufferCopy copy = {.srcOffset = (uint64_t)(STAGING_SLOTS + i) * s->slot_bytes,
                         .dstOffset = offset,
                         .size = size};
    memcpy(s->staging.mapped + copy.srcOffset, data, size);
    if (!sync_slot(s, STAGING_SLOTS + i, true, err)) return false;
    s->vk.vkCmdCopyBuffer(slot->cmd, s->staging.buffer, dst, 1, &copy);
    if (!vk_ok(s, s->vk.vkEndCommandBuffer(slot->cmd), "an upload", 0, err) ||
        !vk_queue_submit(s, u->queue, slot->cmd, VK_NULL_HANDLE, 0, u->timeline, u->submitted + 1,
                         "an upload", err))
        return false;
    slot->value = ++u->submitted;
    return true;
}

void *vk_place(Buffer *dst, uint64_t offset) {
    const Allocation *a = dst->state;
    return a->mapped ? a->mapped + offset : NULL;
}

bool vk_upload(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err) {
    VkState *s = vk_state(dst->dev);
    const Allocation *a = dst->state;
    if (a->mapped) {
        memcpy(a->mapped + offset, data, size);
        return true;
    }
    Uploads *u = &s->uploads;
    mutex_lock(u->lock);
    bool ok = true;
    for (uint64_t done = 0; done < size && ok;) {
        uint64_t part = MIN(size - done, s->slot_bytes);
        ok = send(s, a->buffer, offset + done, (const uint8_t *)data + done, part, err);
        done += part;
    }
    ok = ok && wait_for(s, u->submitted, err);
    mutex_unlock(u->lock);
    return ok && messages_check(&s->instance.messages, dst->dev->info.id, err);
}
