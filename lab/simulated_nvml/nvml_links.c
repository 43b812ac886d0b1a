/* Where a device sits: PCI, links, topology, affinity. */
#include "simulation.h"
#include "processes.h"

#include <stdio.h>
#include <string.h>

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
    for (unsigned int i = 0; i < simulated_machine.gpu_count; i++) {
        if (&simulated_machine.gpus[i] != gpu && common_ancestor(gpu, &simulated_machine.gpus[i]) <= level) {
            if (devices != NULL && found < *count) {
                devices[found] = &simulated_machine.gpus[i];
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
