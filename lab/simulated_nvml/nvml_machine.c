/* The library itself, the machine as a whole, and how devices are found. */
#include "simulation.h"

#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char DEFAULT_DESCRIPTION[] = "/etc/l40s-lab/gpus.conf";
static const char NVML_VERSION[] = "13.580.0-simulated";

static const struct {
    int code;
    const char *name;
    const char *text;
} ERRORS[] = {
    {0, "SUCCESS", "Success"},
    {1, "UNINITIALIZED", "Uninitialized"},
    {2, "INVALID_ARGUMENT", "Invalid Argument"},
    {3, "NOT_SUPPORTED", "Not Supported"},
    {4, "NO_PERMISSION", "Insufficient Permissions"},
    {6, "NOT_FOUND", "Not Found"},
    {7, "INSUFFICIENT_SIZE", "Insufficient Size"},
    {8, "INSUFFICIENT_POWER", "Insufficient External Power"},
    {9, "DRIVER_NOT_LOADED", "Driver Not Loaded"},
    {10, "TIMEOUT", "Timeout"},
    {11, "IRQ_ISSUE", "Interrupt Request Issue"},
    {12, "LIBRARY_NOT_FOUND", "NVML Shared Library Not Found"},
    {13, "FUNCTION_NOT_FOUND", "Function Not Found"},
    {14, "CORRUPTED_INFOROM", "Corrupted infoROM"},
    {15, "GPU_IS_LOST", "GPU is lost"},
    {16, "RESET_REQUIRED", "GPU requires reset"},
    {17, "OPERATING_SYSTEM", "The operating system has blocked the request"},
    {18, "LIB_RM_VERSION_MISMATCH", "RM has detected an NVML/RM version mismatch"},
    {19, "IN_USE", "In use by another client"},
    {20, "MEMORY", "Insufficient memory"},
    {21, "NO_DATA", "No data"},
    {23, "INSUFFICIENT_RESOURCES", "Insufficient resources"},
    {28, "GPU_NOT_FOUND", "GPU not found"},
    {999, "UNKNOWN", "Unknown Error"},
};

struct description simulated_machine;
static unsigned int init_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static nvml_return error_code(const char *name) {
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++) {
        if (strcmp(ERRORS[i].name, name) == 0) {
            return ERRORS[i].code;
        }
    }
    return NVML_ERROR_UNKNOWN;
}

static nvml_return fault(const struct section *section, const char *function) {
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "fail.%s", function);
    char *suffix = strrchr(key, '_');
    if (suffix != NULL && suffix[1] == 'v') {
        *suffix = '\0';
    }
    const char *name = section_text(section, key, section_text(section, "fail", ""));
    return *name == '\0' ? NVML_SUCCESS : error_code(name);
}

nvml_return machine_fault(const char *function) {
    return init_count == 0 ? NVML_ERROR_UNINITIALIZED : fault(&simulated_machine.machine, function);
}

nvml_return device_fault(const struct section *gpu, const char *function) {
    if (init_count == 0) {
        return NVML_ERROR_UNINITIALIZED;
    }
    if (gpu < simulated_machine.gpus || gpu >= simulated_machine.gpus + simulated_machine.gpu_count) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    return fault(gpu, function);
}

nvml_return copy_text(char *buffer, unsigned int size, const char *text) {
    if (strlen(text) >= size) {
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    strcpy(buffer, text);
    return NVML_SUCCESS;
}

EXPORT const char *l40sFleetSimulatedNvml(void) {
    return NVML_VERSION;
}

EXPORT nvml_return nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    nvml_return result = NVML_SUCCESS;
    if (init_count == 0) {
        const char *path = secure_getenv("L40S_LAB_GPUS");
        result = description_read(path == NULL ? DEFAULT_DESCRIPTION : path, &simulated_machine) == 0
                     ? fault(&simulated_machine.machine, "nvmlInit")
                     : NVML_ERROR_UNKNOWN;
    }
    init_count += result == NVML_SUCCESS;
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT nvml_return nvmlInit_v2(void) {
    return nvmlInitWithFlags(0);
}

EXPORT nvml_return nvmlInit(void) {
    return nvmlInitWithFlags(0);
}

EXPORT nvml_return nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    nvml_return result = init_count == 0 ? NVML_ERROR_UNINITIALIZED : NVML_SUCCESS;
    init_count -= result == NVML_SUCCESS;
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT const char *nvmlErrorString(nvml_return code) {
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++) {
        if (ERRORS[i].code == code) {
            return ERRORS[i].text;
        }
    }
    return "Unknown Error";
}

EXPORT nvml_return nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    MACHINE_CALL();
    return copy_text(version, length, section_text(&simulated_machine.machine, "driver_version", "0-simulated"));
}

EXPORT nvml_return nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    MACHINE_CALL();
    return copy_text(version, length, NVML_VERSION);
}

static nvml_return cuda_driver_version(int *version) {
    *version = (int)section_number(&simulated_machine.machine, "cuda_driver_version", 13000);
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlSystemGetCudaDriverVersion(int *version) {
    MACHINE_CALL();
    return cuda_driver_version(version);
}

EXPORT nvml_return nvmlSystemGetCudaDriverVersion_v2(int *version) {
    MACHINE_CALL();
    return cuda_driver_version(version);
}

EXPORT nvml_return nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
    MACHINE_CALL();
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return NVML_ERROR_NOT_FOUND;
    }
    size_t got = length > 0 ? fread(name, 1, length - 1, file) : 0;
    fclose(file);
    if (length > 0) {
        name[got] = '\0';
    }
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetCount_v2(unsigned int *count) {
    MACHINE_CALL();
    *count = simulated_machine.gpu_count;
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetCount(unsigned int *count) {
    return nvmlDeviceGetCount_v2(count);
}

EXPORT nvml_return nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvml_device *device) {
    MACHINE_CALL();
    if (index >= simulated_machine.gpu_count) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    RETURN_FAULT(device_fault(&simulated_machine.gpus[index], __func__));
    *device = &simulated_machine.gpus[index];
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetHandleByIndex(unsigned int index, nvml_device *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

static nvml_return handle_by(const char *key, const char *value, nvml_device *device) {
    for (unsigned int i = 0; i < simulated_machine.gpu_count; i++) {
        if (strcasecmp(section_text(&simulated_machine.gpus[i], key, ""), value) == 0) {
            return nvmlDeviceGetHandleByIndex_v2(i, device);
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvml_return nvmlDeviceGetHandleByUUID(const char *uuid, nvml_device *device) {
    MACHINE_CALL();
    return handle_by("uuid", uuid, device);
}

EXPORT nvml_return nvmlDeviceGetHandleBySerial(const char *serial, nvml_device *device) {
    MACHINE_CALL();
    return handle_by("serial", serial, device);
}

/* NVML writes the domain with eight digits and accepts the four of sysfs as well. */
EXPORT nvml_return nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvml_device *device) {
    MACHINE_CALL();
    char full[32];
    snprintf(full, sizeof full, strlen(bus_id) == strlen("0000:00:00.0") ? "0000%s" : "%s", bus_id);
    return handle_by("pci_bus_id", full, device);
}

EXPORT nvml_return nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvml_device *device) {
    return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}

EXPORT nvml_return nvmlDeviceGetIndex(nvml_device gpu, unsigned int *index) {
    DEVICE_CALL(gpu);
    *index = gpu->index;
    return NVML_SUCCESS;
}

