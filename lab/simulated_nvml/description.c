#include "description.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *trimmed(char *text) {
    while (isspace((unsigned char)*text)) {
        text++;
    }
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1])) {
        end--;
    }
    *end = '\0';
    return text;
}

static int wrong(const char *path, int line, const char *problem) {
    fprintf(stderr, "simulated NVML: %s:%d: %s\n", path, line, problem);
    return -1;
}

static int add_entry(struct section *section, const char *key, const char *value) {
    if (section->count == MAX_KEYS || strlen(key) >= KEY_SIZE || strlen(value) >= VALUE_SIZE) {
        return -1;
    }
    struct entry *entry = &section->entries[section->count++];
    strcpy(entry->key, key);
    strcpy(entry->value, value);
    return 0;
}

int description_read(const char *path, struct description *description) {
    memset(description, 0, sizeof *description);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        fprintf(stderr, "simulated NVML: %s: cannot be opened\n", path);
        return -1;
    }
    struct section *section = &description->machine;
    char buffer[KEY_SIZE + VALUE_SIZE + 64];
    int result = 0;
    for (int line = 1; result == 0 && fgets(buffer, sizeof buffer, file) != NULL; line++) {
        buffer[strcspn(buffer, "#\n")] = '\0';
        char *text = trimmed(buffer);
        if (*text == '\0') {
            continue;
        }
        if (strcmp(text, "[gpu]") == 0) {
            if (description->gpu_count == MAX_GPUS) {
                result = wrong(path, line, "too many GPUs");
                break;
            }
            section = &description->gpus[description->gpu_count];
            section->index = description->gpu_count++;
            continue;
        }
        char *equals = strchr(text, '=');
        if (equals == NULL) {
            result = wrong(path, line, "expected \"key = value\" or \"[gpu]\"");
            break;
        }
        *equals = '\0';
        if (add_entry(section, trimmed(text), trimmed(equals + 1)) != 0) {
            result = wrong(path, line, "too long, or too many keys");
        }
    }
    fclose(file);
    return result;
}

/* The last line with a key wins, so that a fault can be appended to a file. */
const char *section_text(const struct section *section, const char *key, const char *fallback) {
    for (int i = section->count - 1; i >= 0; i--) {
        if (strcmp(section->entries[i].key, key) == 0) {
            return section->entries[i].value;
        }
    }
    return fallback;
}

unsigned long long section_number(const struct section *section, const char *key, unsigned long long fallback) {
    const char *text = section_text(section, key, NULL);
    return text == NULL || *text == '\0' ? fallback : strtoull(text, NULL, 0);
}

int section_has(const struct section *section, const char *key) {
    return *section_text(section, key, "") != '\0';
}
