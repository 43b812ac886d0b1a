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
#include "description.h"
#include "processes.h"

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define EXPORT __attribute__((visibility("default")))

static const char DEFAULT_DESCRIPTION[] = "/etc/l40s-lab/gpus.conf";
static const char NVML_VERSION[] = "13.580.0-simulated";
static const unsigned long long MIB = 1048576;

enum { PROCESS_CAPACITY = 256 };

typedef int nvml_return;
typedef struct section *nvml_device;

enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_UNKNOWN = 999,
};

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

static struct description machine;
static unsigned int init_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* --- faults ------------------------------------------------------------------------------------------------------ */

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

static nvml_return machine_fault(const char *function) {
    return init_count == 0 ? NVML_ERROR_UNINITIALIZED : fault(&machine.machine, function);
}

static nvml_return device_fault(const struct section *gpu, const char *function) {
    if (init_count == 0) {
        return NVML_ERROR_UNINITIALIZED;
    }
    if (gpu < machine.gpus || gpu >= machine.gpus + machine.gpu_count) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    return fault(gpu, function);
}

#define RETURN_FAULT(expression)                \
    do {                                        \
        nvml_return fault_found = (expression); \
        if (fault_found != NVML_SUCCESS) {      \
            return fault_found;                 \
        }                                       \
    } while (0)

#define MACHINE_CALL() RETURN_FAULT(machine_fault(__func__))
#define DEVICE_CALL(gpu) RETURN_FAULT(device_fault(gpu, __func__))

static nvml_return copy_text(char *buffer, unsigned int size, const char *text) {
    if (strlen(text) >= size) {
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    strcpy(buffer, text);
    return NVML_SUCCESS;
}

/* --- the library and the machine --------------------------------------------------------------------------------- */

EXPORT const char *l40sFleetSimulatedNvml(void) {
    return NVML_VERSION;
}

EXPORT nvml_return nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    nvml_return result = NVML_SUCCESS;
    if (init_count == 0) {
        const char *path = secure_getenv("L40S_LAB_GPUS");
        result = description_read(path == NULL ? DEFAULT_DESCRIPTION : path, &machine) == 0
                     ? fault(&machine.machine, "nvmlInit")
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
    return copy_text(version, length, section_text(&machine.machine, "driver_version", "0-simulated"));
}

EXPORT nvml_return nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    MACHINE_CALL();
    return copy_text(version, length, NVML_VERSION);
}

static nvml_return cuda_driver_version(int *version) {
    *version = (int)section_number(&machine.machine, "cuda_driver_version", 13000);
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

/* --- finding devices --------------------------------------------------------------------------------------------- */

EXPORT nvml_return nvmlDeviceGetCount_v2(unsigned int *count) {
    MACHINE_CALL();
    *count = machine.gpu_count;
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetCount(unsigned int *count) {
    return nvmlDeviceGetCount_v2(count);
}

EXPORT nvml_return nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvml_device *device) {
    MACHINE_CALL();
    if (index >= machine.gpu_count) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    RETURN_FAULT(device_fault(&machine.gpus[index], __func__));
    *device = &machine.gpus[index];
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetHandleByIndex(unsigned int index, nvml_device *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

static nvml_return handle_by(const char *key, const char *value, nvml_device *device) {
    for (unsigned int i = 0; i < machine.gpu_count; i++) {
        if (strcasecmp(section_text(&machine.gpus[i], key, ""), value) == 0) {
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

/* --- properties that are one text or one number ------------------------------------------------------------------ */

#define TEXT(function, key, fallback)                                               \
    EXPORT nvml_return function(nvml_device gpu, char *buffer, unsigned int size) { \
        DEVICE_CALL(gpu);                                                           \
        return copy_text(buffer, size, section_text(gpu, key, fallback));           \
    }

TEXT(nvmlDeviceGetName, "name", "NVIDIA L40S")
TEXT(nvmlDeviceGetUUID, "uuid", "")
TEXT(nvmlDeviceGetSerial, "serial", "0000000000000")
TEXT(nvmlDeviceGetVbiosVersion, "vbios_version", "95.02.66.00.02")
TEXT(nvmlDeviceGetBoardPartNumber, "board_part_number", "900-2G133-0080-000")
TEXT(nvmlDeviceGetInforomImageVersion, "inforom_version", "G133.0242.00.03")

#define NUMBER(function, type, key, fallback)                  \
    EXPORT nvml_return function(nvml_device gpu, type *value) { \
        DEVICE_CALL(gpu);                                       \
        *value = (type)section_number(gpu, key, fallback);      \
        return NVML_SUCCESS;                                    \
    }

NUMBER(nvmlDeviceGetBrand, unsigned int, "brand", 14)
NUMBER(nvmlDeviceGetArchitecture, unsigned int, "architecture", 8)
NUMBER(nvmlDeviceGetMinorNumber, unsigned int, "minor_number", gpu->index)
NUMBER(nvmlDeviceGetModuleId, unsigned int, "module_id", gpu->index)
NUMBER(nvmlDeviceGetNumaNodeId, unsigned int, "numa_node", 0)
NUMBER(nvmlDeviceGetNumGpuCores, unsigned int, "cores", 18176)
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned int, "memory_bus_width", 384)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, "link_generation_max", 4)
NUMBER(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned int, "link_generation_gpu_max", 4)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, "link_width_max", 16)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, "link_width", 16)
NUMBER(nvmlDeviceGetPcieReplayCounter, unsigned int, "pcie_replay_counter", 0)
NUMBER(nvmlDeviceGetPowerUsage, unsigned int, "power_mw", 36000)
NUMBER(nvmlDeviceGetPowerManagementMode, unsigned int, "power_management_mode", 1)
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned int, "power_limit_mw", 350000)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, "power_limit_default_mw", 350000)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, "power_limit_mw", 350000)
NUMBER(nvmlDeviceGetPersistenceMode, unsigned int, "persistence_mode", 1)
NUMBER(nvmlDeviceGetComputeMode, unsigned int, "compute_mode", 0)
NUMBER(nvmlDeviceGetDisplayMode, unsigned int, "display_mode", 0)
NUMBER(nvmlDeviceGetDisplayActive, unsigned int, "display_active", 0)
NUMBER(nvmlDeviceGetDefaultEccMode, unsigned int, "ecc_default", 1)
NUMBER(nvmlDeviceGetPerformanceState, unsigned int, "performance_state", 8)
NUMBER(nvmlDeviceGetVirtualizationMode, unsigned int, "virtualization_mode", 0)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "throttle_reasons", 1)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "throttle_reasons", 1)
NUMBER(nvmlDeviceGetSupportedClocksThrottleReasons, unsigned long long, "throttle_reasons_supported", 0x1ff)
NUMBER(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long, "throttle_reasons_supported", 0x1ff)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned int, "retired_pages_pending", 0)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, "energy_mj", 0)

#define NUMBER_PAIR(function, key_first, fallback_first, key_second, fallback_second)                      \
    EXPORT nvml_return function(nvml_device gpu, unsigned int *first, unsigned int *second) {              \
        DEVICE_CALL(gpu);                                                                                  \
        *first = (unsigned int)section_number(gpu, key_first, fallback_first);                             \
        *second = (unsigned int)section_number(gpu, key_second, fallback_second);                          \
        return NVML_SUCCESS;                                                                               \
    }

NUMBER_PAIR(nvmlDeviceGetCudaComputeCapability, "compute_capability_major", 8, "compute_capability_minor", 9)
NUMBER_PAIR(nvmlDeviceGetPowerManagementLimitConstraints, "power_limit_min_mw", 100000, "power_limit_max_mw", 350000)
NUMBER_PAIR(nvmlDeviceGetEccMode, "ecc_current", 1, "ecc_pending", 1)
NUMBER_PAIR(nvmlDeviceGetGspFirmwareMode, "gsp_enabled", 1, "gsp_default", 1)

EXPORT nvml_return nvmlDeviceGetGspFirmwareVersion(nvml_device gpu, char *version) {
    DEVICE_CALL(gpu);
    return copy_text(version, 64, section_text(&machine.machine, "driver_version", "0-simulated"));
}

/* --- PCI and links ----------------------------------------------------------------------------------------------- */

struct pci_info {
    char bus_id_legacy[16];
    unsigned int domain;
    unsigned int bus;
    unsigned int device;
    unsigned int pci_device_id;
    unsigned int pci_sub_system_id;
    char bus_id[32];
};

EXPORT nvml_return nvmlDeviceGetPciInfo_v3(nvml_device gpu, struct pci_info *info) {
    DEVICE_CALL(gpu);
    memset(info, 0, sizeof *info);
    const char *bus_id = section_text(gpu, "pci_bus_id", "");
    if (sscanf(bus_id, "%x:%x:%x.", &info->domain, &info->bus, &info->device) != 3) {
        return NVML_ERROR_UNKNOWN;
    }
    snprintf(info->bus_id, sizeof info->bus_id, "%s", bus_id);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.0", info->domain & 0xffff,
             info->bus & 0xff, info->device & 0xff);
    info->pci_device_id = (unsigned int)section_number(gpu, "pci_device_id", 0x26b910de);
    info->pci_sub_system_id = (unsigned int)section_number(gpu, "pci_subsystem_id", 0x185110de);
    return NVML_SUCCESS;
}

/* An idle GPU lowers the generation of its link: link_generation_idle, where given, is shown while nothing runs on it. */
static unsigned int link_generation(nvml_device gpu) {
    if (section_has(gpu, "link_generation_idle") && gpu_processes(section_text(gpu, "uuid", ""), NULL, 0) == 0) {
        return (unsigned int)section_number(gpu, "link_generation_idle", 1);
    }
    return (unsigned int)section_number(gpu, "link_generation", 4);
}

EXPORT nvml_return nvmlDeviceGetCurrPcieLinkGeneration(nvml_device gpu, unsigned int *generation) {
    DEVICE_CALL(gpu);
    *generation = link_generation(gpu);
    return NVML_SUCCESS;
}

static unsigned int megabits_per_s(unsigned int generation) {
    static const unsigned int RATES[] = {0, 2500, 5000, 8000, 16000, 32000, 64000};
    return generation < sizeof RATES / sizeof *RATES ? RATES[generation] : 0;
}

EXPORT nvml_return nvmlDeviceGetPcieSpeed(nvml_device gpu, unsigned int *speed) {
    DEVICE_CALL(gpu);
    *speed = megabits_per_s(link_generation(gpu));
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetPcieLinkMaxSpeed(nvml_device gpu, unsigned int *speed) {
    DEVICE_CALL(gpu);
    *speed = (unsigned int)section_number(gpu, "link_generation_max", 4);
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetPcieThroughput(nvml_device gpu, unsigned int counter, unsigned int *kilobytes_per_s) {
    DEVICE_CALL(gpu);
    *kilobytes_per_s = (unsigned int)section_number(gpu, counter == 0 ? "pcie_tx_kbps" : "pcie_rx_kbps", 0);
    return NVML_SUCCESS;
}

static const struct {
    const char *name;
    unsigned int level;
} TOPOLOGY[] = {{"PIX", 10}, {"PXB", 20}, {"PHB", 30}, {"NODE", 40}, {"SYS", 50}};

/* "path.<index of the other GPU>" says it outright; else GPUs share a switch, a NUMA node, or nothing. */
static unsigned int common_ancestor(nvml_device a, nvml_device b) {
    if (a == b) {
        return 0;
    }
    char to_b[KEY_SIZE];
    char to_a[KEY_SIZE];
    snprintf(to_b, sizeof to_b, "path.%u", b->index);
    snprintf(to_a, sizeof to_a, "path.%u", a->index);
    const char *path = section_text(a, to_b, section_text(b, to_a, ""));
    for (size_t i = 0; i < sizeof TOPOLOGY / sizeof *TOPOLOGY; i++) {
        if (strcmp(TOPOLOGY[i].name, path) == 0) {
            return TOPOLOGY[i].level;
        }
    }
    if (section_has(a, "pci_switch") &&
        strcmp(section_text(a, "pci_switch", ""), section_text(b, "pci_switch", "")) == 0) {
        return 10;
    }
    return section_number(a, "numa_node", 0) == section_number(b, "numa_node", 0) ? 40 : 50;
}

EXPORT nvml_return nvmlDeviceGetTopologyCommonAncestor(nvml_device a, nvml_device b, unsigned int *level) {
    DEVICE_CALL(a);
    DEVICE_CALL(b);
    *level = common_ancestor(a, b);
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetTopologyNearestGpus(nvml_device gpu, unsigned int level, unsigned int *count,
                                                    nvml_device *devices) {
    DEVICE_CALL(gpu);
    unsigned int found = 0;
    for (unsigned int i = 0; i < machine.gpu_count; i++) {
        if (&machine.gpus[i] != gpu && common_ancestor(gpu, &machine.gpus[i]) <= level) {
            if (devices != NULL && found < *count) {
                devices[found] = &machine.gpus[i];
            }
            found++;
        }
    }
    *count = found;
    return NVML_SUCCESS;
}

/* "p2p" of either GPU, or "p2p.<index of the other>", is the status of every capability but NVLink, which no L40S has. */
EXPORT nvml_return nvmlDeviceGetP2PStatus(nvml_device a, nvml_device b, unsigned int capability, unsigned int *status) {
    DEVICE_CALL(a);
    DEVICE_CALL(b);
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "p2p.%u", b->index);
    unsigned long long own = section_number(a, key, section_number(a, "p2p", 0));
    *status = capability == 2 ? 5 : (unsigned int)(own != 0 ? own : section_number(b, "p2p", 0));
    return NVML_SUCCESS;
}

static void set_range(unsigned long long *bits, unsigned int words, unsigned long long first, unsigned long long last) {
    memset(bits, 0, words * sizeof *bits);
    for (unsigned long long bit = first; bit <= last && bit < words * 64ULL; bit++) {
        bits[bit / 64] |= 1ULL << (bit % 64);
    }
}

/* "cpu_set = first-last" */
static nvml_return cpu_affinity(nvml_device gpu, unsigned int words, unsigned long long *bits) {
    unsigned long long first = 0;
    unsigned long long last = 0;
    if (sscanf(section_text(gpu, "cpu_set", "0-0"), "%llu-%llu", &first, &last) != 2) {
        return NVML_ERROR_UNKNOWN;
    }
    set_range(bits, words, first, last);
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetCpuAffinity(nvml_device gpu, unsigned int words, unsigned long long *bits) {
    DEVICE_CALL(gpu);
    return cpu_affinity(gpu, words, bits);
}

EXPORT nvml_return nvmlDeviceGetCpuAffinityWithinScope(nvml_device gpu, unsigned int words, unsigned long long *bits,
                                                       unsigned int scope) {
    DEVICE_CALL(gpu);
    (void)scope;
    return cpu_affinity(gpu, words, bits);
}

EXPORT nvml_return nvmlDeviceGetMemoryAffinity(nvml_device gpu, unsigned int words, unsigned long long *bits,
                                               unsigned int scope) {
    DEVICE_CALL(gpu);
    (void)scope;
    unsigned long long node = section_number(gpu, "numa_node", 0);
    set_range(bits, words, node, node);
    return NVML_SUCCESS;
}

/* --- memory and processes ---------------------------------------------------------------------------------------- */

struct memory {
    unsigned long long total;
    unsigned long long free;
    unsigned long long used;
};

struct memory_v2 {
    unsigned int version;
    unsigned long long total;
    unsigned long long reserved;
    unsigned long long free;
    unsigned long long used;
};

static unsigned long long process_bytes(nvml_device gpu) {
    struct gpu_process processes[PROCESS_CAPACITY];
    unsigned int count = gpu_processes(section_text(gpu, "uuid", ""), processes, PROCESS_CAPACITY);
    unsigned long long sum = 0;
    for (unsigned int i = 0; i < count && i < PROCESS_CAPACITY; i++) {
        sum += processes[i].used_bytes;
    }
    return sum;
}

static void read_memory(nvml_device gpu, struct memory_v2 *memory) {
    memory->total = section_number(gpu, "memory_total_mib", 46068) * MIB;
    memory->reserved = section_number(gpu, "memory_reserved_mib", 541) * MIB;
    unsigned long long usable = memory->total - memory->reserved;
    memory->used = section_number(gpu, "memory_used_mib", 0) * MIB + process_bytes(gpu);
    if (memory->used > usable) {
        memory->used = usable;
    }
    memory->free = usable - memory->used;
}

EXPORT nvml_return nvmlDeviceGetMemoryInfo_v2(nvml_device gpu, struct memory_v2 *memory) {
    DEVICE_CALL(gpu);
    if (memory->version != (sizeof *memory | 2U << 24)) {
        return 25; /* NVML_ERROR_ARGUMENT_VERSION_MISMATCH */
    }
    read_memory(gpu, memory);
    return NVML_SUCCESS;
}

/* The first version of the call counts what is reserved as used. */
EXPORT nvml_return nvmlDeviceGetMemoryInfo(nvml_device gpu, struct memory *memory) {
    DEVICE_CALL(gpu);
    struct memory_v2 full;
    read_memory(gpu, &full);
    memory->total = full.total;
    memory->free = full.free;
    memory->used = full.total - full.free;
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetBAR1MemoryInfo(nvml_device gpu, struct memory *memory) {
    DEVICE_CALL(gpu);
    memory->total = section_number(gpu, "bar1_total_mib", 65536) * MIB;
    memory->used = section_number(gpu, "bar1_used_mib", 1) * MIB;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

struct process_info {
    unsigned int pid;
    unsigned long long used_gpu_memory;
    unsigned int gpu_instance_id;
    unsigned int compute_instance_id;
};

static nvml_return running_processes(nvml_device gpu, unsigned int *count, struct process_info *infos) {
    struct gpu_process processes[PROCESS_CAPACITY];
    unsigned int found = gpu_processes(section_text(gpu, "uuid", ""), processes, PROCESS_CAPACITY);
    found = found < PROCESS_CAPACITY ? found : PROCESS_CAPACITY;
    unsigned int capacity = *count;
    *count = found;
    if (found > capacity) {
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    for (unsigned int i = 0; i < found; i++) {
        infos[i] = (struct process_info){processes[i].pid, processes[i].used_bytes, 0xffffffffU, 0xffffffffU};
    }
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetComputeRunningProcesses_v3(nvml_device gpu, unsigned int *count,
                                                           struct process_info *infos) {
    DEVICE_CALL(gpu);
    return running_processes(gpu, count, infos);
}

EXPORT nvml_return nvmlDeviceGetComputeRunningProcesses_v2(nvml_device gpu, unsigned int *count,
                                                           struct process_info *infos) {
    DEVICE_CALL(gpu);
    return running_processes(gpu, count, infos);
}

static nvml_return no_processes(nvml_device gpu, unsigned int *count, const char *function) {
    RETURN_FAULT(device_fault(gpu, function));
    *count = 0;
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetGraphicsRunningProcesses_v3(nvml_device gpu, unsigned int *count,
                                                            struct process_info *infos) {
    (void)infos;
    return no_processes(gpu, count, __func__);
}

EXPORT nvml_return nvmlDeviceGetMPSComputeRunningProcesses_v3(nvml_device gpu, unsigned int *count,
                                                              struct process_info *infos) {
    (void)infos;
    return no_processes(gpu, count, __func__);
}

struct utilization {
    unsigned int gpu;
    unsigned int memory;
};

EXPORT nvml_return nvmlDeviceGetUtilizationRates(nvml_device gpu, struct utilization *utilization) {
    DEVICE_CALL(gpu);
    utilization->gpu = (unsigned int)section_number(gpu, "utilization_gpu", 0);
    utilization->memory = (unsigned int)section_number(gpu, "utilization_memory", 0);
    return NVML_SUCCESS;
}

/* --- temperature and clocks -------------------------------------------------------------------------------------- */

struct temperature {
    unsigned int version;
    unsigned int sensor;
    int celsius;
};

EXPORT nvml_return nvmlDeviceGetTemperature(nvml_device gpu, unsigned int sensor, unsigned int *celsius) {
    DEVICE_CALL(gpu);
    if (sensor != 0) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *celsius = (unsigned int)section_number(gpu, "temperature_c", 34);
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetTemperatureV(nvml_device gpu, struct temperature *temperature) {
    DEVICE_CALL(gpu);
    if (temperature->sensor != 0) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    temperature->celsius = (int)section_number(gpu, "temperature_c", 34);
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetTemperatureThreshold(nvml_device gpu, unsigned int threshold, unsigned int *celsius) {
    DEVICE_CALL(gpu);
    static const char *const KEYS[] = {"temperature_shutdown_c", "temperature_slowdown_c", NULL, "temperature_max_c"};
    static const unsigned int FALLBACKS[] = {98, 95, 0, 88};
    if (threshold >= sizeof KEYS / sizeof *KEYS || KEYS[threshold] == NULL) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *celsius = (unsigned int)section_number(gpu, KEYS[threshold], FALLBACKS[threshold]);
    return NVML_SUCCESS;
}

static nvml_return clock_mhz(nvml_device gpu, unsigned int clock, const char *const keys[], const unsigned int fallbacks[],
                             unsigned int *mhz) {
    if (clock > 3) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *mhz = (unsigned int)section_number(gpu, keys[clock], fallbacks[clock]);
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetClockInfo(nvml_device gpu, unsigned int clock, unsigned int *mhz) {
    DEVICE_CALL(gpu);
    static const char *const KEYS[] = {"clock_graphics_mhz", "clock_sm_mhz", "clock_memory_mhz", "clock_video_mhz"};
    static const unsigned int FALLBACKS[] = {210, 210, 405, 1185};
    return clock_mhz(gpu, clock, KEYS, FALLBACKS, mhz);
}

EXPORT nvml_return nvmlDeviceGetMaxClockInfo(nvml_device gpu, unsigned int clock, unsigned int *mhz) {
    DEVICE_CALL(gpu);
    static const char *const KEYS[] = {"clock_graphics_max_mhz", "clock_sm_max_mhz", "clock_memory_max_mhz",
                                       "clock_video_max_mhz"};
    static const unsigned int FALLBACKS[] = {2520, 2520, 9001, 1965};
    return clock_mhz(gpu, clock, KEYS, FALLBACKS, mhz);
}

/* --- errors of memory -------------------------------------------------------------------------------------------- */

static unsigned long long ecc_errors(nvml_device gpu, unsigned int kind, unsigned int counter) {
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "ecc_%s_%s", kind == 0 ? "corrected" : "uncorrected", counter == 0 ? "volatile" : "aggregate");
    return section_number(gpu, key, 0);
}

EXPORT nvml_return nvmlDeviceGetTotalEccErrors(nvml_device gpu, unsigned int kind, unsigned int counter,
                                               unsigned long long *count) {
    DEVICE_CALL(gpu);
    if (section_number(gpu, "ecc_current", 1) == 0) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *count = ecc_errors(gpu, kind, counter);
    return NVML_SUCCESS;
}

/* All errors of the description are errors of the device memory (location 2). */
EXPORT nvml_return nvmlDeviceGetMemoryErrorCounter(nvml_device gpu, unsigned int kind, unsigned int counter,
                                                   unsigned int location, unsigned long long *count) {
    DEVICE_CALL(gpu);
    if (section_number(gpu, "ecc_current", 1) == 0) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *count = location == 2 ? ecc_errors(gpu, kind, counter) : 0;
    return NVML_SUCCESS;
}

EXPORT nvml_return nvmlDeviceGetRemappedRows(nvml_device gpu, unsigned int *corrected, unsigned int *uncorrected,
                                             unsigned int *pending, unsigned int *failure) {
    DEVICE_CALL(gpu);
    *corrected = (unsigned int)section_number(gpu, "remapped_rows_corrected", 0);
    *uncorrected = (unsigned int)section_number(gpu, "remapped_rows_uncorrected", 0);
    *pending = (unsigned int)section_number(gpu, "remapped_rows_pending", 0);
    *failure = (unsigned int)section_number(gpu, "remapped_rows_failure", 0);
    return NVML_SUCCESS;
}

struct row_remapper_histogram {
    unsigned int max;
    unsigned int high;
    unsigned int partial;
    unsigned int low;
    unsigned int none;
};

EXPORT nvml_return nvmlDeviceGetRowRemapperHistogram(nvml_device gpu, struct row_remapper_histogram *histogram) {
    DEVICE_CALL(gpu);
    histogram->max = (unsigned int)section_number(gpu, "remapper_banks_max", 192);
    histogram->high = (unsigned int)section_number(gpu, "remapper_banks_high", 0);
    histogram->partial = (unsigned int)section_number(gpu, "remapper_banks_partial", 0);
    histogram->low = (unsigned int)section_number(gpu, "remapper_banks_low", 0);
    histogram->none = (unsigned int)section_number(gpu, "remapper_banks_none", 0);
    return NVML_SUCCESS;
}

struct repair_status {
    unsigned int version;
    unsigned int channel_repair_pending;
    unsigned int tpc_repair_pending;
};

EXPORT nvml_return nvmlDeviceGetRepairStatus(nvml_device gpu, struct repair_status *status) {
    DEVICE_CALL(gpu);
    status->channel_repair_pending = (unsigned int)section_number(gpu, "channel_repair_pending", 0);
    status->tpc_repair_pending = (unsigned int)section_number(gpu, "tpc_repair_pending", 0);
    return NVML_SUCCESS;
}

/* --- field values ------------------------------------------------------------------------------------------------ */

struct field_value {
    uint32_t field_id;
    uint32_t scope_id;
    int64_t timestamp;
    int64_t latency_us;
    unsigned int value_type;
    nvml_return result;
    union {
        double number;
        unsigned long long integer;
    } value;
};

static const struct {
    uint32_t field_id;
    const char *key;
    unsigned long long fallback;
} FIELDS[] = {
    {1, "ecc_current", 1},
    {2, "ecc_pending", 1},
    {3, "ecc_corrected_volatile", 0},
    {4, "ecc_uncorrected_volatile", 0},
    {5, "ecc_corrected_aggregate", 0},
    {6, "ecc_uncorrected_aggregate", 0},
    {83, "energy_mj", 0},
    {94, "pcie_replay_counter", 0},
    {95, "pcie_replay_rollover_counter", 0},
    {142, "remapped_rows_corrected", 0},
    {143, "remapped_rows_uncorrected", 0},
    {144, "remapped_rows_pending", 0},
    {145, "remapped_rows_failure", 0},
    {169, "pcie_recovery_counter", 0},
    {173, "pcie_correctable_errors", 0},
    {179, "pcie_non_fatal_errors", 0},
    {180, "pcie_fatal_errors", 0},
    {186, "power_mw", 36000},
    {187, "power_limit_min_mw", 100000},
    {188, "power_limit_max_mw", 350000},
    {189, "power_limit_default_mw", 350000},
    {190, "power_limit_mw", 350000},
};

EXPORT nvml_return nvmlDeviceGetFieldValues(nvml_device gpu, int count, struct field_value *values) {
    DEVICE_CALL(gpu);
    for (int i = 0; i < count; i++) {
        values[i].value_type = 3; /* unsigned long long */
        values[i].result = NVML_ERROR_NOT_SUPPORTED;
        for (size_t field = 0; field < sizeof FIELDS / sizeof *FIELDS; field++) {
            if (FIELDS[field].field_id == values[i].field_id) {
                values[i].result = NVML_SUCCESS;
                values[i].value.integer = section_number(gpu, FIELDS[field].key, FIELDS[field].fallback);
            }
        }
    }
    return NVML_SUCCESS;
}

/* --- what an L40S does not have ---------------------------------------------------------------------------------- */

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
