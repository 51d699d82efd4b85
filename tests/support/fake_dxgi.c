/* A stand-in for DXGI: COM objects whose tables hold the functions in the places that Windows gives them.
 *
 * EXO_FAKE_DXGI holds one adapter a line: "vendor dedicated shared flags name". The kernel's calls know adapter N at
 * bus N + 1, and nothing of the last adapter.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOT_FOUND ((int32_t)0x887A0002)
#define BAD_POINTER ((int32_t)0x80004003)
#define ADAPTERS_MAX 8

typedef struct {
    void **table;
    int ordinal;
    int references;
} object_t;

typedef struct {
    uint16_t description[128];
    uint32_t vendor, device, subsystem, revision;
    size_t dedicated_video, dedicated_system, shared_system;
    uint32_t luid[2];
    uint32_t flags;
} description_t;

static void *factory_table[14], *adapter_table[11];
static object_t factory, adapters[ADAPTERS_MAX];
static int wrong_calls, opened;

static const char *line_of(int ordinal)
{
    const char *line = getenv("EXO_FAKE_DXGI");
    while (line && *line && ordinal-- > 0) {
        line = strchr(line, '\n');
        line = line ? line + 1 : NULL;
    }
    return line && *line ? line : NULL;
}

static int32_t wrong_place(void *self)
{
    (void)self;
    wrong_calls++;
    return BAD_POINTER;
}

static uint32_t release(object_t *self) { return (uint32_t)--self->references; }

static int32_t enumerate(object_t *self, uint32_t ordinal, object_t **adapter)
{
    (void)self;
    if (ordinal >= ADAPTERS_MAX || !line_of((int)ordinal))
        return NOT_FOUND;
    adapters[ordinal].table = adapter_table;
    adapters[ordinal].ordinal = (int)ordinal;
    adapters[ordinal].references++;
    *adapter = &adapters[ordinal];
    return 0;
}

static int32_t describe(object_t *self, description_t *description)
{
    char name[128] = "";
    unsigned vendor, flags;
    unsigned long long dedicated, shared;
    memset(description, 0, sizeof *description);
    if (sscanf(line_of(self->ordinal), "%x %llu %llu %u %127[^\n]", &vendor, &dedicated, &shared, &flags, name) < 4)
        return BAD_POINTER;
    for (int i = 0; name[i]; i++)
        description->description[i] = (uint16_t)(unsigned char)name[i];
    description->vendor = vendor;
    description->luid[0] = 0x1000u + (uint32_t)self->ordinal;
    description->dedicated_video = dedicated;
    description->shared_system = shared;
    description->flags = flags;
    return 0;
}

int32_t CreateDXGIFactory1(const uint8_t *wanted, void **made)
{
    static const uint8_t factory1[16] = {0x78, 0xae, 0x0a, 0x77, 0x6f, 0xf2, 0xba, 0x4d,
                                         0xa8, 0x29, 0x25, 0x3c, 0x83, 0xd1, 0xb3, 0x87};
    if (memcmp(wanted, factory1, sizeof factory1) != 0 || getenv("EXO_FAKE_DXGI_FAILS"))
        return (int32_t)0x80004002;
    for (int i = 0; i < 14; i++)
        factory_table[i] = (void *)wrong_place;
    for (int i = 0; i < 11; i++)
        adapter_table[i] = (void *)wrong_place;
    factory_table[2] = adapter_table[2] = (void *)release;
    factory_table[12] = (void *)enumerate;
    adapter_table[10] = (void *)describe;
    factory.table = factory_table;
    factory.references++;
    *made = &factory;
    return 0;
}

typedef struct {
    uint32_t luid[2], handle;
} open_t;

typedef struct {
    uint32_t handle, kind;
    void *answer;
    uint32_t size;
} question_t;

int32_t D3DKMTOpenAdapterFromLuid(open_t *open)
{
    if (open->luid[0] < 0x1000u || open->luid[1] != 0)
        return (int32_t)0xC000000D;
    open->handle = open->luid[0] + 1;
    opened++;
    return 0;
}

int32_t D3DKMTQueryAdapterInfo(question_t *question)
{
    uint32_t *place = question->answer;
    if (question->kind != 6 || question->size != 12 || !line_of((int)(question->handle - 0x1000u)))
        return (int32_t)0xC000000D;
    place[0] = question->handle - 0x1000u;
    place[1] = place[2] = 0;
    return 0;
}

int32_t D3DKMTCloseAdapter(const uint32_t *handle)
{
    opened -= *handle > 0x1000u ? 1 : 0;
    return 0;
}

/* What was not given back, and calls into other places of the tables. */
int stub_mistakes(void)
{
    int mistakes = wrong_calls + opened + factory.references;
    for (int i = 0; i < ADAPTERS_MAX; i++)
        mistakes += adapters[i].references;
    return mistakes;
}
