// check_device.h: the devices of tests that compare a model with another program's tensors.
#ifndef KILN_TESTS_CHECK_DEVICE_H
#define KILN_TESTS_CHECK_DEVICE_H

#include "backend/backend.h"
#include "tests/check.h"

#include <stdlib.h>

static const char *const check_devices[] = {"ref", "cpu", "vulkan"};

// NULL, after a line that says so, where this machine has no such device. KILN_TEST_VALIDATE=1 or 2
// opens Vulkan devices with their validation layers: the first message of theirs is an error.
static inline Device *check_open(void *parent, const char *device) {
    Error err = {0};
    const char *validate = getenv("KILN_TEST_VALIDATE");
    const DeviceOptions options = {.validate = validate ? atoi(validate) : 0};
    Device *dev = dev_open(parent, device, &options, &err);
    if (dev) return dev;
    if (strcmp(device, "vulkan") || !strstr(err.text, "device: expected"))
        fail_msg("%s: %s", device, err.text);
    print_message("SKIP: %s: %s\n", device, err.text);
    return NULL;
}

#endif
