/* What an L40S does not have. */
#include "simulation.h"

/* "mig_current" and "mig_pending" show another card, one that can be partitioned. */
EXPORT nvml_return nvmlDeviceGetMigMode(nvml_device gpu, unsigned int *current, unsigned int *pending) {
    DEVICE_CALL(gpu);
    if (!section_has(gpu, "mig_current")) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *current = (unsigned int)section_number(gpu, "mig_current", 0);
    *pending = (unsigned int)section_number(gpu, "mig_pending", *current);
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetMaxMigDeviceCount(nvml_device gpu, unsigned int *count) {
    DEVICE_CALL(gpu);
    *count = section_has(gpu, "mig_current") ? 7 : 0;
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceIsMigDeviceHandle(nvml_device gpu, unsigned int *is_mig) {
    DEVICE_CALL(gpu);
    *is_mig = 0;
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetMigDeviceHandleByIndex(nvml_device gpu, unsigned int index, nvml_device *device) {
    DEVICE_CALL(gpu);
    (void)index;
    (void)device;
    return section_has(gpu, "mig_current") ? NVML_ERROR_NOT_FOUND : NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvml_return nvmlDeviceGetNvLinkState(nvml_device gpu, unsigned int link, unsigned int *is_active) {
    DEVICE_CALL(gpu);
    (void)link;
    (void)is_active;
    return NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvml_return nvmlDeviceGetRetiredPages(nvml_device gpu, unsigned int cause, unsigned int *count,
                                             unsigned long long *addresses) {
    DEVICE_CALL(gpu);
    (void)cause;
    (void)count;
    (void)addresses;
    return NVML_ERROR_NOT_SUPPORTED; /* Ada remaps rows instead */
}

EXPORT nvml_return nvmlDeviceGetFanSpeed(nvml_device gpu, unsigned int *percent) {
    DEVICE_CALL(gpu);
    (void)percent;
    return NVML_ERROR_NOT_SUPPORTED; /* the card is cooled by its host */
}
