/* Memory of a device: what is used and by whom, and its errors. */
#include "simulation.h"
#include "processes.h"

#include <stdio.h>

enum { PROCESS_CAPACITY = 256 };

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
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
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
