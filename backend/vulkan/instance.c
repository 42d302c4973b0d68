// instance.c: the loader, instances (with the validation layers where asked), physical devices and
// their limits.
#define VOLK_IMPLEMENTATION
#include "backend/vulkan/vk.h"

#include <stdatomic.h>
#include <stdlib.h>

static const char validation_layer[] = "VK_LAYER_KHRONOS_validation";

// ---- the loader -------------------------------------------------------------------------------

// volk keeps the loader's entry points in globals: set once per process, by whoever comes first.
static bool loader_ready(void) {
    static _Atomic int state; // 0 nobody yet, 1 being loaded, 2 there, 3 no loader on this system
    int expected = 0;
    if (atomic_compare_exchange_strong(&state, &expected, 1))
        atomic_store(&state, volkInitialize() == VK_SUCCESS ? 2 : 3);
    while (atomic_load(&state) == 1) os_sleep(0.001);
    return atomic_load(&state) == 2;
}

// volkLoadDeviceTable asks through the global vkGetDeviceProcAddr. The loader's is the same for
// every instance; it is set once.
static void loader_device_lookup(const Instance *instance) {
    static _Atomic int state;
    int expected = 0;
    if (atomic_compare_exchange_strong(&state, &expected, 1)) {
        vkGetDeviceProcAddr = (PFN_vkGetDeviceProcAddr)vkGetInstanceProcAddr(instance->handle,
                                                                             "vkGetDeviceProcAddr");
        atomic_store(&state, 2);
    }
    while (atomic_load(&state) == 1) os_sleep(0.001);
}

// ---- validation messages ----------------------------------------------------------------------

static VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                 VkDebugUtilsMessageTypeFlagsEXT types,
                                                 const VkDebugUtilsMessengerCallbackDataEXT *data,
                                                 void *user) {
    Messages *m = user;
    (void)severity, (void)types;
    const char *id = data->pMessageIdName ? data->pMessageIdName : "";
    // What the layers say about their own set-up is no finding about Kiln.
    static const char *const set_up[] = {"GPU-Assisted Validation", "GPU-Assisted-Validation",
                                         "WARNING-Setting", "VALIDATION-SETTINGS", "BestPractices"};
    bool about_layer = false;
    for (size_t i = 0; i < COUNT_OF(set_up); i++) about_layer |= strstr(id, set_up[i]) != NULL;
    mutex_lock(m->lock);
    if (about_layer) {
        log_msg(m->log, LOG_DEBUG, "validation: %s", data->pMessage);
    } else {
        if (m->count++ == 0) snprintf(m->first, sizeof m->first, "%s", data->pMessage);
        log_msg(m->log, LOG_WARN, "validation: %s", data->pMessage);
    }
    mutex_unlock(m->lock);
    return VK_FALSE;
}

bool messages_check(Messages *m, const char *device, Error *err) {
    if (!m->lock) return true;
    mutex_lock(m->lock);
    int count = m->count;
    char first[sizeof m->first];
    memcpy(first, m->first, sizeof first);
    m->count = 0;
    mutex_unlock(m->lock);
    if (!count) return true;
    return err_failed(err, "%s: expected no message of the validation layers, found %d: %s", device,
                      count, first);
}

// ---- instances --------------------------------------------------------------------------------

static bool has_extension(const VkExtensionProperties *list, uint32_t n, const char *name) {
    for (uint32_t i = 0; i < n; i++)
        if (!strcmp(list[i].extensionName, name)) return true;
    return false;
}

static bool layer_present(void) {
    uint32_t n = 0;
    vkEnumerateInstanceLayerProperties(&n, NULL);
    VkLayerProperties *layers = MEM_ARRAY(NULL, VkLayerProperties, n + 1);
    bool found = false;
    if (vkEnumerateInstanceLayerProperties(&n, layers) == VK_SUCCESS)
        for (uint32_t i = 0; i < n; i++) found |= !strcmp(layers[i].layerName, validation_layer);
    mem_free(layers);
    return found;
}

static bool has_instance_extension(const char *layer, const char *name) {
    uint32_t n = 0;
    vkEnumerateInstanceExtensionProperties(layer, &n, NULL);
    VkExtensionProperties *list = MEM_ARRAY(NULL, VkExtensionProperties, n + 1);
    bool found = vkEnumerateInstanceExtensionProperties(layer, &n, list) == VK_SUCCESS &&
                 has_extension(list, n, name);
    mem_free(list);
    return found;
}

static void load_functions(Instance *instance) {
#define F(name) \
    instance->name = (PFN_vk##name)vkGetInstanceProcAddr(instance->handle, "vk" #name);
    INSTANCE_FUNCTIONS(F)
#undef F
    loader_device_lookup(instance);
}

static VkDebugUtilsMessengerCreateInfoEXT messenger_info(Messages *messages) {
    return (VkDebugUtilsMessengerCreateInfoEXT){
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT |
                           VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,
        .pfnUserCallback = on_message,
        .pUserData = messages,
    };
}

bool instance_open(Instance *instance, int validate, const Log *log, void *parent, Error *err) {
    *instance = (Instance){0};
    if (!loader_ready())
        return err_failed(err, "vulkan: expected a Vulkan loader, found none; install libvulkan1");
    if (volkGetInstanceVersion() < VK_API_VERSION_1_2)
        return err_failed(err,
                          "vulkan: expected a loader of version 1.2 or newer; update libvulkan1");
    if (validate && !layer_present())
        return err_failed(err, "vulkan: expected the layer %s, found none; install "
                          "vulkan-validationlayers", validation_layer);
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                             .pApplicationName = "kiln",
                             .pEngineName = "kiln",
                             .apiVersion = VK_API_VERSION_1_3};
    const char *extensions[4];
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                 .pApplicationInfo = &app,
                                 .ppEnabledExtensionNames = extensions};
    // Drivers that are not fully conformant (MoltenVK) are only listed when asked for.
    if (has_instance_extension(NULL, "VK_KHR_portability_enumeration")) {
        extensions[info.enabledExtensionCount++] = "VK_KHR_portability_enumeration";
        info.flags |= 1; // VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR, not in old headers
    }
    static const VkValidationFeatureEnableEXT enables[] = {
        VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT,
        VK_VALIDATION_FEATURE_ENABLE_GPU_ASSISTED_EXT,
    };
    instance->messages.log = log;
    VkDebugUtilsMessengerCreateInfoEXT messenger = messenger_info(&instance->messages);
    VkValidationFeaturesEXT features = {.sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
                                        .pNext = &messenger,
                                        .enabledValidationFeatureCount = validate > 1 ? 2 : 1,
                                        .pEnabledValidationFeatures = enables};
    const char *layers[] = {validation_layer};
    if (validate) {
        instance->messages.lock = mutex_new(parent);
        extensions[info.enabledExtensionCount++] = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
        if (has_instance_extension(validation_layer, VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME)) {
            extensions[info.enabledExtensionCount++] = VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME;
            info.pNext = &features;
        }
        info.enabledLayerCount = 1;
        info.ppEnabledLayerNames = layers;
    }
    VkResult result = vkCreateInstance(&info, NULL, &instance->handle);
    if (result != VK_SUCCESS)
        return err_failed(err, "vulkan: expected an instance, found %s; check that a driver is "
                          "installed (vulkaninfo)", vk_result_name(result));
    load_functions(instance);
    if (validate)
        instance->CreateDebugUtilsMessengerEXT(instance->handle, &messenger, NULL,
                                               &instance->messenger);
    return true;
}

void instance_close(Instance *instance) {
    if (!instance->handle) return;
    if (instance->messenger)
        instance->DestroyDebugUtilsMessengerEXT(instance->handle, instance->messenger, NULL);
    instance->DestroyInstance(instance->handle, NULL);
    *instance = (Instance){0};
}

// ---- physical devices -------------------------------------------------------------------------

static DeviceKind kind_of(VkPhysicalDeviceType type) {
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return DEV_SOFTWARE;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return DEV_INTEGRATED;
    default: return DEV_DISCRETE; // virtual GPUs stand for discrete ones
    }
}

// A family for compute, if possible one without graphics: it then runs beside the desktop.
static bool choose_family(const Instance *instance, PhysicalDevice *p) {
    VkQueueFamilyProperties families[32];
    uint32_t n = COUNT_OF(families);
    instance->GetPhysicalDeviceQueueFamilyProperties(p->handle, &n, families);
    int best = -1;
    for (uint32_t i = 0; i < n; i++) {
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) || !families[i].queueCount) continue;
        bool alone = !(families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT);
        if (best < 0 || (alone && families[best].queueFlags & VK_QUEUE_GRAPHICS_BIT)) best = (int)i;
    }
    if (best < 0) return false;
    p->queue_family = (uint32_t)best;
    p->timestamp_bits = families[best].timestampValidBits;
    // Uploads: a family that does nothing else (a copy engine), else a second queue of this one.
    p->upload_family = p->queue_family;
    p->upload_index = families[best].queueCount > 1;
    const VkQueueFlags video = 0x20 | 0x40 | 0x100; // decode, encode, optical flow (newer headers)
    const VkQueueFlags busy = VK_QUEUE_COMPUTE_BIT | VK_QUEUE_GRAPHICS_BIT | video;
    for (uint32_t i = 0; i < n && p->upload_family == p->queue_family; i++) {
        VkQueueFlags flags = families[i].queueFlags;
        if (!(flags & VK_QUEUE_TRANSFER_BIT) || flags & (busy | VK_QUEUE_PROTECTED_BIT) ||
            families[i].queueCount == 0)
            continue;
        p->upload_family = i;
        p->upload_index = 0;
    }
    return true;
}

static void read_extensions(const Instance *instance, PhysicalDevice *p) {
    uint32_t n = 0;
    instance->EnumerateDeviceExtensionProperties(p->handle, NULL, &n, NULL);
    VkExtensionProperties *list = MEM_ARRAY(NULL, VkExtensionProperties, n + 1);
    if (instance->EnumerateDeviceExtensionProperties(p->handle, NULL, &n, list) != VK_SUCCESS)
        n = 0;
    p->memory_budget = has_extension(list, n, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    p->subgroup_size = p->api13 || // part of Vulkan itself since then
                       has_extension(list, n, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME);
    p->portability = has_extension(list, n, "VK_KHR_portability_subset");
    mem_free(list);
}

static uint64_t device_heap(const VkPhysicalDeviceMemoryProperties *memory, uint32_t *index) {
    uint64_t best = 0;
    for (uint32_t i = 0; i < memory->memoryHeapCount; i++) {
        const VkMemoryHeap *heap = &memory->memoryHeaps[i];
        if (!(heap->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) || heap->size <= best) continue;
        best = heap->size;
        *index = i;
    }
    return best;
}

uint64_t instance_memory_free(const Instance *instance, const PhysicalDevice *p) {
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 memory = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
        .pNext = p->memory_budget ? &budget : NULL};
    instance->GetPhysicalDeviceMemoryProperties2(p->handle, &memory);
    uint32_t heap = 0;
    uint64_t free_bytes = device_heap(&memory.memoryProperties, &heap);
    if (p->memory_budget) {
        uint64_t used = budget.heapUsage[heap];
        free_bytes = budget.heapBudget[heap] > used ? budget.heapBudget[heap] - used : 0;
    }
    uint64_t ram = os_memory_free(); // these devices share it with everything else
    if (ram && p->info.kind != DEV_DISCRETE) free_bytes = MIN(free_bytes, ram);
    return free_bytes;
}

// The features that every device must have; NULL, or the name of the first one missing.
static const char *read_features(const Instance *instance, PhysicalDevice *p) {
    VkPhysicalDeviceSubgroupSizeControlFeaturesEXT size = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT};
    VkPhysicalDeviceVulkan12Features v12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
        .pNext = p->subgroup_size ? &size : NULL};
    VkPhysicalDeviceVulkan11Features v11 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES, .pNext = &v12};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &v11};
    instance->GetPhysicalDeviceFeatures2(p->handle, &features);
    if (!v12.bufferDeviceAddress) return "bufferDeviceAddress";
    if (!v12.timelineSemaphore) return "timelineSemaphore";
    if (!v12.storageBuffer8BitAccess) return "storageBuffer8BitAccess";
    if (!v11.storageBuffer16BitAccess) return "storageBuffer16BitAccess";
    if (!v12.scalarBlockLayout) return "scalarBlockLayout";
    p->subgroup_size = size.subgroupSizeControl;
    p->info.f16_arithmetic = v12.shaderFloat16;
    if (v12.shaderFloat16) p->caps |= CAP_F16;
    return NULL;
}

// As read_features: NULL, or what is missing.
static const char *read_properties(const Instance *instance, PhysicalDevice *p) {
    VkPhysicalDeviceSubgroupSizeControlPropertiesEXT size = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES_EXT};
    VkPhysicalDeviceMaintenance4Properties m4 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_PROPERTIES};
    VkPhysicalDeviceVulkan12Properties v12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES};
    VkPhysicalDeviceVulkan11Properties v11 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES, .pNext = &v12};
    VkPhysicalDeviceProperties2 props = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                         .pNext = &v11};
    if (p->subgroup_size || p->api13) v12.pNext = &size;
    if (p->api13) size.pNext = &m4;
    instance->GetPhysicalDeviceProperties2(p->handle, &props);
    const VkPhysicalDeviceLimits *limits = &props.properties.limits;
    DeviceInfo *info = &p->info;
    snprintf(info->name, sizeof info->name, "%s", props.properties.deviceName);
    snprintf(info->driver, sizeof info->driver, "%.127s %.127s", v12.driverName, v12.driverInfo);
    info->max_buffer = v11.maxMemoryAllocationSize;
    if (p->api13 && m4.maxBufferSize) info->max_buffer = MIN(info->max_buffer, m4.maxBufferSize);
    info->max_buffer -= info->max_buffer % (64u << 10); // memory for a buffer is rounded up
    info->subgroup_min = size.minSubgroupSize ? size.minSubgroupSize : v11.subgroupSize;
    info->subgroup_max = size.maxSubgroupSize ? size.maxSubgroupSize : v11.subgroupSize;
    if (!(size.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT)) p->subgroup_size = false;
    info->shared_memory = limits->maxComputeSharedMemorySize;
    const VkSubgroupFeatureFlags shuffles = VK_SUBGROUP_FEATURE_SHUFFLE_BIT |
                                            VK_SUBGROUP_FEATURE_BALLOT_BIT;
    if ((v11.subgroupSupportedOperations & shuffles) == shuffles && info->subgroup_min >= 4)
        p->caps |= CAP_SUBGROUP_OPS; // four neighbours share a query of attention
    if (props.properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU) p->caps |= CAP_CPU;
    p->timestamp_period = limits->timestampPeriod;
    p->atom = limits->nonCoherentAtomSize;
    p->max_groups = limits->maxComputeWorkGroupCount[0];
    p->max_threads =
        MIN(limits->maxComputeWorkGroupInvocations, limits->maxComputeWorkGroupSize[0]);
    p->vendor = props.properties.vendorID;
    p->device = props.properties.deviceID;
    p->driver_version = props.properties.driverVersion;
    memcpy(p->cache_uuid, props.properties.pipelineCacheUUID, VK_UUID_SIZE);
    memcpy(p->driver_uuid, v11.driverUUID, VK_UUID_SIZE);
    // The device UUID keeps the order of equal cards from run to run.
    p->order = hash_bytes(0, v11.deviceUUID, VK_UUID_SIZE) >> 8;
    bool sums = v11.subgroupSupportedOperations & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT &&
                v11.subgroupSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT;
    return sums ? NULL : "sums over subgroups";
}

// Fills *p; false with a log line where the device misses the baseline.
static bool read_device(const Instance *instance, VkPhysicalDevice handle, PhysicalDevice *p,
                        const Log *log) {
    *p = (PhysicalDevice){.handle = handle};
    VkPhysicalDeviceProperties2 props = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    instance->GetPhysicalDeviceProperties2(handle, &props);
    const char *name = props.properties.deviceName, *missing = NULL;
    p->api13 = props.properties.apiVersion >= VK_API_VERSION_1_3;
    p->info.kind = kind_of(props.properties.deviceType);
    if (props.properties.apiVersion < VK_API_VERSION_1_2) missing = "Vulkan 1.2";
    else if (!choose_family(instance, p)) missing = "a compute queue";
    if (!missing) {
        read_extensions(instance, p);
        missing = read_features(instance, p);
    }
    if (!missing) missing = read_properties(instance, p);
    if (missing) {
        log_msg(log, LOG_WARN, "vulkan: %s: expected %s, found none; not used", name, missing);
        return false;
    }
    VkPhysicalDeviceMemoryProperties2 memory = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
    instance->GetPhysicalDeviceMemoryProperties2(handle, &memory);
    uint32_t heap = 0;
    DeviceInfo *info = &p->info;
    info->memory_total = device_heap(&memory.memoryProperties, &heap);
    info->memory_free = instance_memory_free(instance, p);
    info->max_buffer = MIN(info->max_buffer, info->memory_total);
    info->staging_bytes = 16u << 20;
    // Pipelines, command buffers and the driver's own pools; an allowance, not yet a measurement.
    info->driver_bytes = info->kind == DEV_DISCRETE ? 256u << 20 : 64u << 20;
    info->buffer_align = 128; // a cache line, and enough for every vector load
    info->deterministic = true;
    static const uint64_t rank[] = {[DEV_DISCRETE] = 0, [DEV_INTEGRATED] = 1, [DEV_CPU] = 2,
                                    [DEV_SOFTWARE] = 3};
    p->order |= rank[info->kind] << 60;
    return true;
}

static int by_order(const void *a, const void *b) {
    const PhysicalDevice *x = a, *y = b;
    return x->order < y->order ? -1 : x->order > y->order;
}

int instance_devices(const Instance *instance, PhysicalDevice *out, int max, const Log *log) {
    VkPhysicalDevice handles[32];
    uint32_t n = COUNT_OF(handles);
    VkResult result = instance->EnumeratePhysicalDevices(instance->handle, &n, handles);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE) return 0;
    int count = 0;
    for (uint32_t i = 0; i < n && count < max; i++)
        count += read_device(instance, handles[i], &out[count], log);
    qsort(out, (size_t)count, sizeof *out, by_order);
    for (int i = 0; i < count; i++)
        snprintf(out[i].info.id, sizeof out[i].info.id, "vulkan:%d", i);
    return count;
}
