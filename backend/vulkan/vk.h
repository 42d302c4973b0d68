// vk.h: what the files of the Vulkan backend share. The only header that shows Vulkan types, and
// it never leaves this folder.
//
//   instance.c  the loader, instances, physical devices and their limits
//   device.c    one opened device: logical device, queue, results of calls; the backend's vtable
//   memory.c    buffers, staging, transfers
//   upload.c    uploads from any thread, beside the programs
//   pipeline.c  pipelines from kernel rows, and their cache on disk
//   program.c   recording, submissions, waiting
//   kernels.c   the rows
//
// One queue and one timeline semaphore for programs and transfers: each submission signals the next
// number, so "is it done?" is a comparison, and order is the order of submission. Uploads from other
// threads have a semaphore of their own, and a queue of their own where there is one.
#ifndef KILN_VULKAN_VK_H
#define KILN_VULKAN_VK_H

#define VK_NO_PROTOTYPES
#include <volk.h>

#include "backend/vulkan/kernels.h"

// Instance functions in a table of our own: volk keeps one global set, and instances live side by
// side here.
#define INSTANCE_FUNCTIONS(F)                                                                   \
    F(DestroyInstance) F(EnumeratePhysicalDevices) F(GetPhysicalDeviceProperties2)              \
    F(GetPhysicalDeviceFeatures2) F(GetPhysicalDeviceMemoryProperties2)                         \
    F(GetPhysicalDeviceQueueFamilyProperties) F(EnumerateDeviceExtensionProperties)             \
    F(CreateDevice) F(CreateDebugUtilsMessengerEXT) F(DestroyDebugUtilsMessengerEXT)

// What the validation layers said; filled from any thread.
typedef struct Messages {
    Mutex *lock;
    int count;
    char first[384];
    const Log *log;
} Messages;

typedef struct Instance {
    VkInstance handle;
#define F(name) PFN_vk##name name;
    INSTANCE_FUNCTIONS(F)
#undef F
    VkDebugUtilsMessengerEXT messenger;
    Messages messages;
} Instance;

// One physical device that meets the baseline, with all that is asked of it before opening.
typedef struct PhysicalDevice {
    VkPhysicalDevice handle;
    DeviceInfo info;
    uint32_t queue_family, timestamp_bits;
    uint32_t upload_family, upload_index;    // the queue for uploads; the same one: no other there
    float timestamp_period;                  // nanoseconds per tick
    VkDeviceSize atom;                       // nonCoherentAtomSize
    uint32_t max_groups, max_threads;        // per dispatch; per workgroup
    uint32_t caps;                           // CAP_*
    bool api13, memory_budget, subgroup_size, portability; // Vulkan 1.3; the extensions
    uint32_t vendor, device, driver_version;
    uint8_t cache_uuid[VK_UUID_SIZE], driver_uuid[VK_UUID_SIZE];
    uint64_t order; // sorts: best kind first, then by the place on the bus
} PhysicalDevice;

// instance.c
bool instance_open(Instance *instance, int validate, const Log *log, void *parent, Error *err);
void instance_close(Instance *instance);
// The devices that meet the baseline, best first, in an order that does not change between calls.
int instance_devices(const Instance *instance, PhysicalDevice *out, int max, const Log *log);
uint64_t instance_memory_free(const Instance *instance, const PhysicalDevice *physical);
bool messages_check(Messages *messages, const char *device, Error *err); // false: there was one

enum { STAGING_SLOTS = 4, UPLOAD_SLOTS = 4, IN_FLIGHT_MAX = 16, ROW_RATES = 256 };

// The queue, pool, slots and semaphore of dev_upload. Under its lock, except `done`.
typedef struct Uploads {
    Mutex *lock;
    VkQueue queue;
    VkCommandPool pool;
    VkSemaphore timeline;
    struct Slot *slots; // UPLOAD_SLOTS, the last ones of the staging buffer
    uint64_t submitted;
    int next_slot;
    _Atomic uint64_t done; // finished up to here
} Uploads;

// A part of the staging buffer with the command buffer that moves it.
typedef struct Slot {
    VkCommandBuffer cmd;
    uint64_t value; // timeline: free once reached
} Slot;

typedef struct Allocation {
    VkBuffer buffer;
    VkDeviceMemory memory;
    uint64_t size, address; // device address, 0 where none was asked for
    uint8_t *mapped;        // NULL: not mapped
    bool coherent;
} Allocation;

typedef struct Pipeline {
    const KernelPass *pass;
    uint32_t constants[MAX_OPERANDS + MAX_CONSTANTS]; // key: operand types, then the row's own
    VkPipeline handle;
    bool ran; // work that uses it has come to its end: the driver has nothing left to compile
    bool met; // while a program is cut: ran, or used by a part before
} Pipeline;

typedef struct InFlight {
    uint64_t value;
    double seconds; // estimated
} InFlight;

typedef struct VkState {
    Device *dev;
    Instance instance;
    PhysicalDevice physical;
    VkDevice device;
    struct VolkDeviceTable vk; // the device's functions
    VkPhysicalDeviceMemoryProperties heaps;
    VkQueue queue;
    Mutex *queue_lock; // around submissions: uploads may use the same queue
    VkCommandPool pool;
    VkSemaphore timeline;
    uint64_t submitted; // the last number given to a submission
    bool hung;          // a wait gave up: nothing may be destroyed, the queue may still run

    Allocation staging;
    uint64_t slot_bytes, staging_claimed;
    Slot slots[STAGING_SLOTS + UPLOAD_SLOTS];
    int next_slot;
    Uploads uploads;
    uint64_t uploads_seen; // the queue of programs has waited for uploads up to this number

    VkPipelineLayout layout;
    VkPipelineCache cache;
    char *cache_path; // NULL: not on disk
    bool cache_dirty;
    double cache_saved; // os_seconds of the last save
    ARRAY(Pipeline *) pipelines;

    InFlight in_flight[IN_FLIGHT_MAX]; // oldest first
    int in_flight_count;
    struct Pending { Program *prog; int segment; } *pending; // submitted by the user, not yet here
    int pending_count, pending_cap;
    ARRAY(Program *) timed; // ran since their timestamps were read
    ARRAY(Allocation *) allocations; // all that live, to be freed with the device
    ARRAY(Program *) programs;
    float row_rate[ROW_RATES]; // measured seconds per estimated second, by row; 0: not measured
} VkState;

static inline VkState *vk_state(const Device *dev) { return dev->state; }

// device.c
// Turns a result into an error: false unless VK_SUCCESS. `bytes`: for running out of memory.
bool vk_ok(VkState *s, VkResult result, const char *what, uint64_t bytes, Error *err);
const char *vk_result_name(VkResult result);
// Ends the recording of `cmd` and submits it; it signals the next number of the timeline.
bool vk_submit_cmd(VkState *s, VkCommandBuffer cmd, const char *what, Error *err);
// Submits to a queue; waits for `wait` to reach its value first (value 0: for nothing).
bool vk_queue_submit(VkState *s, VkQueue queue, VkCommandBuffer cmd, VkSemaphore wait,
                     uint64_t wait_value, VkSemaphore signal, uint64_t value, const char *what,
                     Error *err);
bool vk_begin(VkState *s, VkCommandBuffer cmd, VkCommandBufferUsageFlags flags, Error *err);
// Compute and transfers before against all of that after.
void vk_full_barrier(VkState *s, VkCommandBuffer cmd);

// memory.c
typedef enum { MEMORY_DEVICE, MEMORY_STAGING } MemoryUse;
bool memory_new(VkState *s, Allocation *a, uint64_t size, MemoryUse use, const char *what,
                Error *err);
void memory_free(VkState *s, Allocation *a); // an empty one is allowed
void memory_free_all(VkState *s);
bool staging_open(VkState *s, Error *err);
void staging_close(VkState *s);
bool vk_buf_init(Buffer *buf, Error *err);
void vk_buf_done(Buffer *buf);
bool vk_write(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err);
bool vk_read(Buffer *src, uint64_t offset, void *data, uint64_t size, Error *err);
bool vk_fill(Buffer *dst, uint64_t offset, uint64_t size, uint32_t pattern, Error *err);
// Host and device caches agree about a slot only after this, where staging is not coherent.
bool sync_slot(VkState *s, int slot, bool to_device, Error *err);
bool upload(VkState *s, VkBuffer dst, uint64_t offset, const void *data, uint64_t size, Error *err);

// upload.c
// A pool for the commands of one family of queues, and the semaphore that counts its submissions.
bool queue_objects(VkState *s, uint32_t family, VkCommandPool *commands, VkSemaphore *timeline,
                   Error *err);
bool uploads_open(VkState *s, Error *err); // after staging_open
void uploads_close(VkState *s);
bool vk_upload(Buffer *dst, uint64_t offset, const void *data, uint64_t size, Error *err);
void *vk_place(Buffer *dst, uint64_t offset);

// pipeline.c
bool pipelines_open(VkState *s, Error *err);
void pipelines_close(VkState *s); // saves the cache
// Makes the pipelines of all steps of a program, in parallel; out[step * MAX_PASSES + pass].
bool pipelines_for(VkState *s, const BoundStep *steps, int count, Pipeline **out, Error *err);

// program.c
bool vk_prog_init(Program *prog, Error *err);
void vk_prog_done(Program *prog);
void programs_free_all(VkState *s);
uint64_t vk_prog_bytes_for(const Device *dev, int count);
bool vk_submit(Program *prog, Error *err);
bool vk_wait(Device *dev, const Cancel *cancel, Error *err);
bool vk_drain(VkState *s, Error *err); // hands everything submitted to the queue
bool vk_wait_value(VkState *s, uint64_t value, const Cancel *cancel, Error *err);
void vk_idle(VkState *s); // waits for everything submitted, before something is freed

#endif
