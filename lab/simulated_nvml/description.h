/* The machine that the simulated NVML shows: a text file, read at every nvmlInit.
 *
 * Lines are "key = value"; "#" starts a comment. Lines before the first "[gpu]" describe the machine, each "[gpu]"
 * opens one GPU. Keys are looked up by name when a function needs them, so a new fault needs no new parser.
 */
#ifndef L40S_FLEET_DESCRIPTION_H
#define L40S_FLEET_DESCRIPTION_H

enum { MAX_GPUS = 16, MAX_KEYS = 96, KEY_SIZE = 64, VALUE_SIZE = 160 };

struct entry {
    char key[KEY_SIZE];
    char value[VALUE_SIZE];
};

/* The machine itself, or one GPU: an NVML device handle is a pointer to its section. */
struct section {
    unsigned int index;
    int count;
    struct entry entries[MAX_KEYS];
};

struct description {
    struct section machine;
    unsigned int gpu_count;
    struct section gpus[MAX_GPUS];
};

/* Reads the file; 0, or -1 with a line on stderr saying what is wrong with it. */
int description_read(const char *path, struct description *description);

/* The value of a key, or the fallback. */
const char *section_text(const struct section *section, const char *key, const char *fallback);
unsigned long long section_number(const struct section *section, const char *key, unsigned long long fallback);

/* True where a key is given with a value other than an empty one. */
int section_has(const struct section *section, const char *key);

#endif
