/* A stand-in for NVIDIA's management library that plays what a state file says, as it is at every call.
 *
 * It is to cost little by itself, as benchmarks run over it: whoever writes the file says so (stub_changed), each thread
 * then reads it once, and looks lines up in a table.
 *
 * Built as libnvidia-ml.so.1 by the tests (see __init__.py, which also says what the file may hold). A value that the
 * file does not hold is "not supported" on that device. Shapes and numbers are those of NVIDIA's public nvml.h.
 */

#define _GNU_SOURCE

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
};

#define SLOTS_MAX 64
#define MIGS_MAX 8
#define STATE_SIZE_MAX (1 << 18)
#define PLACES (1 << 14) /* for lines; a power of two */
#define VALUE_SIZE_MAX 512
#define PATH_SIZE_MAX 4096
#define FUNCTIONS_MAX 128
#define EVENT_SETS_MAX 256

typedef struct {
    int slot;
    int mig; /* -1: the whole GPU */
} device_t;

typedef struct {
    int is_used;
    int slot;
    unsigned long long last_sequence;
} event_set_t;

typedef struct {
    char text[STATE_SIZE_MAX];
    char path[PATH_SIZE_MAX];
    unsigned long change; /* the last that it was read after */
    int lines[PLACES]; /* where in the text a line begins, plus one; 0: nothing. By the hash of its key. */
} state_t;

static atomic_ulong changes = 1;
static device_t devices[SLOTS_MAX][MIGS_MAX + 1];
static event_set_t event_sets[EVENT_SETS_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users = 0;
static long initialized_generation = 0;
static uint32_t random_state = 2463534242u;

static struct {
    const char *name;
    unsigned long calls;
} counters[FUNCTIONS_MAX];

/* ---- the state file ---- */

static uint32_t hash_of(const char *key, size_t length)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)key[i]) * 16777619u;
    return hash;
}

/* Returns the place of a key, or the free one where it belongs. */
static int *place_of(state_t *state, const char *key, size_t length)
{
    for (uint32_t hash = hash_of(key, length);; hash++) {
        int *place = &state->lines[hash & (PLACES - 1)];
        if (*place == 0)
            return place;
        const char *line = state->text + *place - 1;
        if (strncmp(line, key, length) == 0 && line[length] == ' ')
            return place;
    }
}

/* Of lines with the same key the first counts. */
static void enter_lines(state_t *state)
{
    memset(state->lines, 0, sizeof state->lines);
    int entered = 0;
    for (const char *line = state->text; *line && entered < PLACES / 2;) {
        const char *end = strchr(line, '\n');
        if (!end)
            end = line + strlen(line);
        const char *space = memchr(line, ' ', (size_t)(end - line));
        if (space) {
            int *place = place_of(state, line, (size_t)(space - line));
            if (*place == 0) {
                *place = (int)(line - state->text) + 1;
                entered++;
            }
        }
        line = *end ? end + 1 : end;
    }
}

/* Reads the file, unless it is as this thread knows it. */
static void read_state(state_t *state)
{
    const char *path = getenv("EXO_NVML_STUB_STATE");
    unsigned long change = atomic_load(&changes);
    if (!path)
        path = "";
    if (change == state->change && strcmp(path, state->path) == 0)
        return;
    state->change = change;
    snprintf(state->path, sizeof state->path, "%s", path);
    FILE *file = fopen(path, "rb");
    size_t size = 0;
    if (file) {
        size = fread(state->text, 1, STATE_SIZE_MAX - 1, file);
        fclose(file);
    }
    state->text[size] = '\0';
    enter_lines(state);
}

/* Lines are "key value". */
static int look_up(state_t *state, const char *key, char *value)
{
    size_t length = strlen(key);
    const int *place = place_of(state, key, length);
    if (*place == 0)
        return 0;
    const char *begin = state->text + *place + length; /* behind the space */
    const char *end = strchrnul(begin, '\n');
    size_t size = (size_t)(end - begin);
    if (size >= VALUE_SIZE_MAX)
        size = VALUE_SIZE_MAX - 1;
    memcpy(value, begin, size);
    value[size] = '\0';
    return 1;
}

static int look_up_of(state_t *state, const device_t *device, const char *key, char *value)
{
    char full[128];
    if (device && device->mig >= 0) {
        snprintf(full, sizeof full, "%d.mig.%d.%s", device->slot, device->mig, key);
        return look_up(state, full, value);
    }
    if (device) {
        snprintf(full, sizeof full, "%d.%s", device->slot, key);
        return look_up(state, full, value);
    }
    return look_up(state, key, value);
}

static long number(state_t *state, const char *key, long otherwise)
{
    char value[VALUE_SIZE_MAX];
    return look_up(state, key, value) ? strtol(value, NULL, 10) : otherwise;
}

static int is_there(state_t *state, int slot, int mig)
{
    char key[64], value[VALUE_SIZE_MAX];
    if (mig >= 0)
        snprintf(key, sizeof key, "%d.mig.%d.uuid", slot, mig);
    else
        snprintf(key, sizeof key, "%d.uuid", slot);
    return look_up(state, key, value);
}

/* ---- what every call begins with ---- */

static void sleep_us(long us)
{
    struct timespec span = {us / 1000000, (us % 1000000) * 1000};
    nanosleep(&span, NULL);
}

static void count_call(const char *name)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < FUNCTIONS_MAX; i++) {
        if (!counters[i].name)
            counters[i].name = name;
        if (strcmp(counters[i].name, name) == 0) {
            counters[i].calls++;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

static uint32_t next_random(void)
{
    pthread_mutex_lock(&lock);
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    uint32_t result = random_state;
    pthread_mutex_unlock(&lock);
    return result;
}

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000L + now.tv_nsec / 1000000L;
}

static int hang_ms(state_t *state, const device_t *device, const char *function)
{
    char key[96], value[VALUE_SIZE_MAX];
    snprintf(key, sizeof key, "hang.%s", function);
    if (look_up_of(state, device, key, value) || (device && look_up(state, key, value)))
        return strcmp(value, "forever") == 0 ? -1 : (int)strtol(value, NULL, 10);
    return 0;
}

/* Returns once the file no longer tells this call to hang, or its time is over. */
static void hang(state_t *state, const device_t *device, const char *function)
{
    long begin = now_ms();
    for (;;) {
        int span = hang_ms(state, device, function);
        if (span == 0 || (span > 0 && now_ms() - begin >= span))
            return;
        sleep_us(1000);
        read_state(state);
    }
}

static void latency(state_t *state, const device_t *device)
{
    char value[VALUE_SIZE_MAX];
    if (!look_up_of(state, device, "latency_us", value) && !look_up(state, "latency_us", value))
        return;
    char *rest;
    long low = strtol(value, &rest, 10);
    long high = strtol(rest, NULL, 10);
    if (high > low)
        low += (long)(next_random() % (uint32_t)(high - low + 1));
    sleep_us(low);
}

static int begin(state_t *state, const device_t *device, const char *function)
{
    char key[96], value[VALUE_SIZE_MAX];
    count_call(function);
    read_state(state);
    latency(state, device);
    hang(state, device, function);
    if (users == 0 || initialized_generation != number(state, "generation", 1))
        return UNINITIALIZED;
    snprintf(key, sizeof key, "error.%s", function);
    if (look_up_of(state, device, key, value) || look_up(state, key, value))
        return (int)strtol(value, NULL, 10);
    if (device && look_up_of(state, device, "error", value))
        return (int)strtol(value, NULL, 10);
    if (device && !is_there(state, device->slot, device->mig))
        return device->mig >= 0 && is_there(state, device->slot, -1) ? INVALID_ARGUMENT : GPU_IS_LOST;
    return SUCCESS;
}

/* One for each thread, as a call that hangs must not hold up the others. */
static __thread state_t state;

#define BEGIN(device)                                   \
    int code = begin(&state, (device), __func__);       \
    if (code != SUCCESS)                                \
        return code;

static int number_of(state_t *state, const device_t *device, const char *key, long long *result)
{
    char value[VALUE_SIZE_MAX];
    if (!look_up_of(state, device, key, value))
        return NOT_SUPPORTED;
    *result = strtoll(value, NULL, 0);
    return SUCCESS;
}

static int give_unsigned(state_t *state, const device_t *device, const char *key, unsigned int *result)
{
    long long value;
    int code = number_of(state, device, key, &value);
    if (code == SUCCESS)
        *result = (unsigned int)value;
    return code;
}

static int give_text(state_t *state, const device_t *device, const char *key, char *text, unsigned int size)
{
    char value[VALUE_SIZE_MAX];
    if (!look_up_of(state, device, key, value))
        return NOT_SUPPORTED;
    if (strlen(value) + 1 > size)
        return INSUFFICIENT_SIZE;
    strcpy(text, value);
    return SUCCESS;
}

/* ---- for the tests themselves ---- */

unsigned long stub_calls(const char *function)
{
    unsigned long result = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < FUNCTIONS_MAX && counters[i].name; i++)
        if (strcmp(counters[i].name, function) == 0)
            result = counters[i].calls;
    pthread_mutex_unlock(&lock);
    return result;
}

/* To be called when the file is another one. */
void stub_changed(void) { atomic_fetch_add(&changes, 1); }

void stub_reset(void)
{
    pthread_mutex_lock(&lock);
    memset(counters, 0, sizeof counters);
    memset(event_sets, 0, sizeof event_sets);
    users = 0;
    pthread_mutex_unlock(&lock);
}

int stub_users(void) { return users; }

/* ---- the library and the system ---- */

int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    char value[VALUE_SIZE_MAX];
    count_call(__func__);
    read_state(&state);
    latency(&state, NULL);
    hang(&state, NULL, __func__);
    if (look_up(&state, "error.nvmlInitWithFlags", value))
        return (int)strtol(value, NULL, 10);
    pthread_mutex_lock(&lock);
    for (int slot = 0; slot < SLOTS_MAX; slot++)
        for (int mig = -1; mig < MIGS_MAX; mig++)
            devices[slot][mig + 1] = (device_t){slot, mig};
    initialized_generation = number(&state, "generation", 1);
    users++;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int nvmlShutdown(void)
{
    count_call(__func__);
    pthread_mutex_lock(&lock);
    int code = users > 0 ? SUCCESS : UNINITIALIZED;
    if (users > 0)
        users--;
    pthread_mutex_unlock(&lock);
    return code;
}

const char *nvmlErrorString(int code)
{
    (void)code;
    return "an error of the stub";
}

int nvmlSystemGetDriverVersion(char *version, unsigned int size)
{
    BEGIN(NULL)
    return give_text(&state, NULL, "driver", version, size);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    BEGIN(NULL)
    long long value;
    code = number_of(&state, NULL, "cuda", &value);
    if (code == SUCCESS)
        *version = (int)value;
    return code;
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    BEGIN(NULL)
    *count = 0;
    for (int slot = 0; slot < SLOTS_MAX; slot++)
        *count += is_there(&state, slot, -1) ? 1 : 0;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t **device)
{
    BEGIN(NULL)
    for (int slot = 0; slot < SLOTS_MAX; slot++)
        if (is_there(&state, slot, -1) && index-- == 0) {
            char value[VALUE_SIZE_MAX];
            *device = &devices[slot][0];
            if (look_up_of(&state, *device, "error.nvmlDeviceGetHandleByIndex_v2", value))
                return (int)strtol(value, NULL, 10);
            return SUCCESS;
        }
    return INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **device)
{
    BEGIN(NULL)
    char value[VALUE_SIZE_MAX];
    for (int slot = 0; slot < SLOTS_MAX; slot++)
        for (int mig = -1; mig < MIGS_MAX; mig++) {
            device_t one = {slot, mig};
            if (look_up_of(&state, &one, "uuid", value) && strcmp(value, uuid) == 0) {
                *device = &devices[slot][mig + 1];
                return SUCCESS;
            }
        }
    return NOT_FOUND;
}

/* ---- one device ---- */

int nvmlDeviceGetName(device_t *device, char *name, unsigned int size)
{
    BEGIN(device)
    return give_text(&state, device, "name", name, size);
}

int nvmlDeviceGetUUID(device_t *device, char *uuid, unsigned int size)
{
    BEGIN(device)
    return give_text(&state, device, "uuid", uuid, size);
}

typedef struct {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_t;

int nvmlDeviceGetPciInfo_v3(device_t *device, pci_t *pci)
{
    BEGIN(device)
    memset(pci, 0, sizeof *pci);
    return give_text(&state, device, "pci", pci->bus_id, sizeof pci->bus_id);
}

int nvmlDeviceGetCudaComputeCapability(device_t *device, int *major, int *minor)
{
    BEGIN(device)
    char value[VALUE_SIZE_MAX];
    if (!look_up_of(&state, device, "capability", value))
        return NOT_SUPPORTED;
    return sscanf(value, "%d.%d", major, minor) == 2 ? SUCCESS : INVALID_ARGUMENT;
}

typedef struct {
    unsigned long long total, free, used;
} memory_t;

int nvmlDeviceGetMemoryInfo(device_t *device, memory_t *memory)
{
    BEGIN(device)
    long long total, used, reserved = 0;
    if ((code = number_of(&state, device, "memory_total", &total)) != SUCCESS)
        return code;
    if ((code = number_of(&state, device, "memory_used", &used)) != SUCCESS)
        return code;
    number_of(&state, device, "memory_reserved", &reserved);
    memory->total = (unsigned long long)total;
    memory->used = (unsigned long long)(used + reserved);
    memory->free = (unsigned long long)(total - used - reserved);
    return SUCCESS;
}

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} memory_v2_t;

int nvmlDeviceGetMemoryInfo_v2(device_t *device, memory_v2_t *memory)
{
    BEGIN(device)
    long long total, used, reserved = 0;
    if ((code = number_of(&state, device, "memory_total", &total)) != SUCCESS)
        return code;
    if ((code = number_of(&state, device, "memory_used", &used)) != SUCCESS)
        return code;
    number_of(&state, device, "memory_reserved", &reserved);
    memory->total = (unsigned long long)total;
    memory->reserved = (unsigned long long)reserved;
    memory->used = (unsigned long long)used;
    memory->free = (unsigned long long)(total - used - reserved);
    return SUCCESS;
}

typedef struct {
    unsigned int gpu, memory;
} utilization_t;

int nvmlDeviceGetUtilizationRates(device_t *device, utilization_t *utilization)
{
    BEGIN(device)
    utilization->memory = 0;
    return give_unsigned(&state, device, "utilization", &utilization->gpu);
}

int nvmlDeviceGetTemperature(device_t *device, int sensor, unsigned int *temperature)
{
    BEGIN(device)
    return sensor == 0 ? give_unsigned(&state, device, "temperature", temperature) : INVALID_ARGUMENT;
}

int nvmlDeviceGetTemperatureThreshold(device_t *device, int kind, unsigned int *temperature)
{
    BEGIN(device)
    if (kind == 1)
        return give_unsigned(&state, device, "threshold_slowdown", temperature);
    return kind == 3 ? give_unsigned(&state, device, "threshold_gpu_max", temperature) : NOT_SUPPORTED;
}

typedef struct {
    unsigned int version;
    int margin;
} margin_t;

int nvmlDeviceGetMarginTemperature(device_t *device, margin_t *margin)
{
    BEGIN(device)
    long long value;
    code = number_of(&state, device, "temperature_margin", &value);
    if (code == SUCCESS)
        margin->margin = (int)value;
    return code;
}

int nvmlDeviceGetPowerUsage(device_t *device, unsigned int *milliwatts)
{
    BEGIN(device)
    return give_unsigned(&state, device, "power_mw", milliwatts);
}

int nvmlDeviceGetTotalEnergyConsumption(device_t *device, unsigned long long *millijoules)
{
    BEGIN(device)
    long long value;
    code = number_of(&state, device, "energy_mj", &value);
    if (code == SUCCESS)
        *millijoules = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetEnforcedPowerLimit(device_t *device, unsigned int *milliwatts)
{
    BEGIN(device)
    return give_unsigned(&state, device, "power_limit_mw", milliwatts);
}

static const char *clock_name(int kind) { return kind == 1 ? "sm" : kind == 2 ? "memory" : "graphics"; }

int nvmlDeviceGetClockInfo(device_t *device, int kind, unsigned int *mhz)
{
    BEGIN(device)
    char key[32];
    snprintf(key, sizeof key, "clock_%s", clock_name(kind));
    return give_unsigned(&state, device, key, mhz);
}

int nvmlDeviceGetMaxClockInfo(device_t *device, int kind, unsigned int *mhz)
{
    BEGIN(device)
    char key[32];
    snprintf(key, sizeof key, "clock_max_%s", clock_name(kind));
    return give_unsigned(&state, device, key, mhz);
}

int nvmlDeviceGetMemoryBusWidth(device_t *device, unsigned int *bits)
{
    BEGIN(device)
    return give_unsigned(&state, device, "bus_width", bits);
}

static int reasons_of(state_t *state, const device_t *device, unsigned long long *reasons)
{
    long long value;
    int code = number_of(state, device, "throttle", &value);
    if (code == SUCCESS)
        *reasons = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t *device, unsigned long long *reasons)
{
    BEGIN(device)
    return reasons_of(&state, device, reasons);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *device, unsigned long long *reasons)
{
    BEGIN(device)
    return reasons_of(&state, device, reasons);
}

int nvmlDeviceGetTotalEccErrors(device_t *device, int kind, int counter, unsigned long long *count)
{
    BEGIN(device)
    char key[32];
    long long value;
    snprintf(key, sizeof key, "ecc_%s%s", kind == 0 ? "corrected" : "uncorrected", counter == 0 ? "" : "_aggregate");
    code = number_of(&state, device, key, &value);
    if (code == SUCCESS)
        *count = (unsigned long long)value;
    return code;
}

/* "corrected uncorrected pending failed" */
int nvmlDeviceGetRemappedRows(device_t *device, unsigned int *corrected, unsigned int *uncorrected,
                              unsigned int *is_pending, unsigned int *is_failed)
{
    BEGIN(device)
    char value[VALUE_SIZE_MAX];
    if (!look_up_of(&state, device, "remapped_rows", value))
        return NOT_SUPPORTED;
    return sscanf(value, "%u %u %u %u", corrected, uncorrected, is_pending, is_failed) == 4 ? SUCCESS : 999;
}

typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} process_t;

/* "pid:bytes pid:bytes"; bytes of -1: not available */
int nvmlDeviceGetComputeRunningProcesses_v3(device_t *device, unsigned int *count, process_t *processes)
{
    BEGIN(device)
    char value[VALUE_SIZE_MAX];
    if (!look_up_of(&state, device, "processes", value))
        return NOT_SUPPORTED;
    unsigned int found = 0, room = *count;
    const char *rest = value;
    unsigned int pid;
    long long used;
    int size;
    while (sscanf(rest, " %u:%lld%n", &pid, &used, &size) == 2) {
        if (processes && found < room)
            processes[found] = (process_t){pid, (unsigned long long)used, 0xFFFFFFFFu, 0xFFFFFFFFu};
        found++;
        rest += size;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

typedef struct {
    unsigned int multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    unsigned long long memory_mb;
} attributes_t;

int nvmlDeviceGetAttributes_v2(device_t *device, attributes_t *attributes)
{
    BEGIN(device)
    memset(attributes, 0, sizeof *attributes);
    return give_unsigned(&state, device, "multiprocessors", &attributes->multiprocessors);
}

/* ---- parts of a GPU (MIG) ---- */

int nvmlDeviceGetMigMode(device_t *device, unsigned int *current, unsigned int *pending)
{
    BEGIN(device)
    code = give_unsigned(&state, device, "mig_mode", current);
    *pending = *current;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *device, unsigned int *count)
{
    BEGIN(device)
    *count = MIGS_MAX - 1;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, unsigned int index, device_t **mig)
{
    BEGIN(device)
    if (index >= MIGS_MAX)
        return INVALID_ARGUMENT;
    if (!is_there(&state, device->slot, (int)index))
        return NOT_FOUND;
    *mig = &devices[device->slot][index + 1];
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(device_t *device, unsigned int *id)
{
    BEGIN(device)
    return give_unsigned(&state, device, "gpu_instance", id);
}

/* ---- events: "xids" holds "sequence:code[:instance] ..." with growing sequences ---- */

static int next_xid(state_t *state, const event_set_t *set, unsigned long long *sequence,
                    unsigned long long *xid, unsigned int *instance)
{
    char value[VALUE_SIZE_MAX];
    device_t device = {set->slot, -1};
    if (!look_up_of(state, &device, "xids", value))
        return 0;
    const char *rest = value;
    int size;
    while (sscanf(rest, " %llu:%llu%n", sequence, xid, &size) == 2) {
        rest += size;
        *instance = 0xFFFFFFFFu;
        if (*rest == ':' && sscanf(rest, ":%u%n", instance, &size) == 1)
            rest += size;
        if (*sequence > set->last_sequence)
            return 1;
    }
    return 0;
}

int nvmlEventSetCreate(event_set_t **set)
{
    BEGIN(NULL)
    code = 23;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < EVENT_SETS_MAX && code != SUCCESS; i++)
        if (!event_sets[i].is_used) {
            event_sets[i] = (event_set_t){1, -1, 0};
            *set = &event_sets[i];
            code = SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    return code;
}

int nvmlEventSetFree(event_set_t *set)
{
    BEGIN(NULL)
    set->is_used = 0;
    return SUCCESS;
}

int nvmlDeviceGetSupportedEventTypes(device_t *device, unsigned long long *types)
{
    BEGIN(device)
    long long value;
    code = number_of(&state, device, "event_types", &value);
    if (code == SUCCESS)
        *types = (unsigned long long)value;
    return code;
}

int nvmlDeviceRegisterEvents(device_t *device, unsigned long long types, event_set_t *set)
{
    BEGIN(device)
    unsigned long long sequence, xid;
    unsigned int instance;
    long long supported;
    if (number_of(&state, device, "event_types", &supported) != SUCCESS || (types & ~(unsigned long long)supported))
        return NOT_SUPPORTED;
    set->slot = device->slot;
    while (next_xid(&state, set, &sequence, &xid, &instance))
        set->last_sequence = sequence;
    return SUCCESS;
}

typedef struct {
    device_t *device;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance;
} event_t;

int nvmlEventSetWait_v2(event_set_t *set, event_t *event, unsigned int timeout_ms)
{
    unsigned long long sequence, xid;
    unsigned int instance;
    BEGIN(set->slot >= 0 ? &devices[set->slot][0] : NULL)
    long begun_ms = now_ms();
    while (!next_xid(&state, set, &sequence, &xid, &instance)) {
        if (now_ms() - begun_ms >= (long)timeout_ms)
            return TIMEOUT;
        sleep_us(1000);
        read_state(&state);
    }
    set->last_sequence = sequence;
    *event = (event_t){&devices[set->slot][0], 8, xid, instance, 0xFFFFFFFFu};
    return SUCCESS;
}
