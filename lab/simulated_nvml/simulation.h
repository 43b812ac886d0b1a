/* A simulated libnvidia-ml.so.1 for machines without a GPU.
 *
 * It exports the functions of NVML that a read-only look at a host needs, with NVML's own binary interface, so that the
 * real nvidia-ml-py runs against it unchanged. What it shows comes from a text file (see description.h); the processes
 * on a GPU are those that really run (see processes.h). It never pretends to be a driver: it exports
 * l40sFleetSimulatedNvml, and the driver version of the lab's files ends in "-simulated".
 *
 * Faults: "fail = GPU_IS_LOST" in a [gpu] makes every call with its handle fail; "fail.nvmlDeviceGetRemappedRows =
 * NOT_SUPPORTED" one call (suffixes such as _v2 are left out); the same keys before the first [gpu] reach the calls
 * without a handle, for example "fail.nvmlInit = DRIVER_NOT_LOADED".
 */
#ifndef L40S_FLEET_SIMULATION_H
#define L40S_FLEET_SIMULATION_H

#include "description.h"

#define EXPORT __attribute__((visibility("default")))
#define MIB 1048576ULL

typedef int nvml_return;
typedef struct section *nvml_device;

enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999,
};

/* What the description shows, valid between nvmlInit and nvmlShutdown. */
extern struct description simulated_machine;

/* The fault that is described for a function, or that its handle is none of ours. */
nvml_return machine_fault(const char *function);
nvml_return device_fault(const struct section *gpu, const char *function);

nvml_return copy_text(char *buffer, unsigned int size, const char *text);

#define RETURN_FAULT(expression)                \
    do {                                        \
        nvml_return fault_found = (expression); \
        if (fault_found != NVML_SUCCESS) {      \
            return fault_found;                 \
        }                                       \
    } while (0)

/* The first line of every exported function. */
#define MACHINE_CALL() RETURN_FAULT(machine_fault(__func__))
#define DEVICE_CALL(gpu) RETURN_FAULT(device_fault(gpu, __func__))

#endif
