/* The three calls of macOS' C library that the Metal driver makes, answering what the environment says. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const char THERMAL[] = "com.apple.system.thermalpressurelevel";
static const char MEMORY[] = "kern.memorystatus_vm_pressure_level";

int notify_register_check(const char *name, int *token)
{
    if (strcmp(name, THERMAL) != 0 || !getenv("EXO_FAKE_THERMAL"))
        return 7;
    *token = 42;
    return 0;
}

int notify_get_state(int token, uint64_t *state)
{
    const char *value = getenv("EXO_FAKE_THERMAL");
    if (token != 42 || !value)
        return 2;
    *state = strtoull(value, NULL, 10);
    return 0;
}

int sysctlbyname(const char *name, void *old, size_t *old_size, void *new_value, size_t new_size)
{
    const char *value = getenv("EXO_FAKE_MEMORY");
    if (strcmp(name, MEMORY) != 0 || !value || *old_size != sizeof(int) || new_value || new_size)
        return -1;
    *(int *)old = atoi(value);
    return 0;
}
