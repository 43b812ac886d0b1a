#include "processes.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ENVIRONMENT_SIZE = 131072 };

static const char VARIABLE[] = "CUDA_VISIBLE_DEVICES=";

/* One item of the list names the GPU by its UUID or by the beginning of it, as CUDA allows. */
static int list_names(const char *list, const char *uuid) {
    while (*list != '\0') {
        size_t length = strcspn(list, ",");
        if (length > strlen("GPU-") && strncmp(list, uuid, length) == 0) {
            return 1;
        }
        list += length;
        list += *list == ',';
    }
    return 0;
}

static int uses_gpu(const char *pid, const char *uuid, char *environment) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%.16s/environ", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return 0; /* gone, or of another user: a driver would tell, the lab's probe runs as root */
    }
    size_t size = 0;
    ssize_t got;
    while (size < ENVIRONMENT_SIZE - 1 && (got = read(file, environment + size, ENVIRONMENT_SIZE - 1 - size)) > 0) {
        size += (size_t)got;
    }
    close(file);
    environment[size] = '\0';
    for (const char *text = environment; text < environment + size; text += strlen(text) + 1) {
        if (strncmp(text, VARIABLE, sizeof VARIABLE - 1) == 0) {
            return list_names(text + sizeof VARIABLE - 1, uuid);
        }
    }
    return 0;
}

static unsigned long long resident_bytes(const char *pid) {
    char path[64];
    unsigned long long size_pages;
    unsigned long long resident_pages = 0;
    snprintf(path, sizeof path, "/proc/%.16s/statm", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return 0;
    }
    if (fscanf(file, "%llu %llu", &size_pages, &resident_pages) != 2) {
        resident_pages = 0;
    }
    fclose(file);
    return resident_pages * (unsigned long long)sysconf(_SC_PAGESIZE);
}

unsigned int gpu_processes(const char *uuid, struct gpu_process *processes, unsigned int capacity) {
    char *environment = malloc(ENVIRONMENT_SIZE);
    DIR *proc = opendir("/proc");
    unsigned int count = 0;
    struct dirent *item;
    while (proc != NULL && environment != NULL && (item = readdir(proc)) != NULL) {
        if (!isdigit((unsigned char)item->d_name[0]) || !uses_gpu(item->d_name, uuid, environment)) {
            continue;
        }
        if (count < capacity) {
            processes[count].pid = (unsigned int)strtoul(item->d_name, NULL, 10);
            processes[count].used_bytes = resident_bytes(item->d_name);
        }
        count++;
    }
    if (proc != NULL) {
        closedir(proc);
    }
    free(environment);
    return count;
}
