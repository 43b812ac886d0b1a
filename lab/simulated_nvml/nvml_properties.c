/* Properties of a device: texts, numbers, temperature, clocks, field values. */
#include "simulation.h"

#include <stddef.h>
#include <stdint.h>

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
    return copy_text(version, 64, section_text(&simulated_machine.machine, "driver_version", "0-simulated"));
}

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
