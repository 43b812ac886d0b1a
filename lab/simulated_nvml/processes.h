/* The processes that use a GPU: those that really run and whose environment gives them the GPU.
 *
 * A real driver knows who opened a device. The engines of the lab run on the CPU, so what stands for it is
 * CUDA_VISIBLE_DEVICES in /proc/PID/environ, and the resident memory of the process for its GPU memory. A GPU that is
 * given to two services is therefore seen with the processes of both.
 */
#ifndef L40S_FLEET_PROCESSES_H
#define L40S_FLEET_PROCESSES_H

struct gpu_process {
    unsigned int pid;
    unsigned long long used_bytes;
};

/* Fills at most `capacity` entries and returns how many processes use the GPU, which may be more. */
unsigned int gpu_processes(const char *uuid, struct gpu_process *processes, unsigned int capacity);

#endif
