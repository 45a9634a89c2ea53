/* See sites.h.
 *
 * The rules of this file:
 * - It runs inside the allocator's hooks: plain malloc only, no object is made, no reference taken, nothing raised.
 * - No code object is kept alive. What is remembered of one is found by its address, and is forgotten when it dies; its
 *   names are copied when it is first met.
 * - Lines that hold nothing give up their place, all at once, when there is no room for another one: most lines allocate
 *   what is freed at once, and they must not crowd out the few that leak.
 *
 * The common path is a walk over the frames (kinds.c), and one look-up of the site.
 */
#include "sites.h"

#include <stdlib.h>
#include <string.h>

#include "frames.h"
#include "kinds.h"
#include "text.h"

#define HL_CACHED 8192   /* sites by their instructions, two to a place: what many routes run through; 192 KiB */
#define HL_LONGEST 300   /* characters of a file's or function's name; of a file's, the last ones */
#define HL_LATER 16384   /* sites that find no room before room is looked for again */

typedef struct {
    PyCodeObject *code; /* not kept alive; NULL once it has died */
    int used;           /* by a site, while sweeping */
    char *file, *name;
} hl_function;

typedef struct {
    uint16_t inner, app; /* functions; 0: none */
    int inner_line, app_line;
} hl_site;

typedef struct {
    const char *inner, *app; /* instructions */
    uint32_t site;
} hl_cached;

typedef struct {
    uint16_t *ids; /* 0: an empty place */
    uint32_t mask;
} hl_index;

static struct {
    uint32_t most; /* sites, and functions */
    hl_site *sites;
    hl_function *functions;
    uint16_t *free_sites, *free_functions; /* stacks */
    uint32_t free_site_count, free_function_count;
    hl_index site_index, function_index;
    uint32_t later;
    int pinned;
    uint64_t text; /* bytes */
} hl;

uint32_t *hl_records_of;

static hl_cached hl_cache[HL_CACHED];

static inline uint64_t hl_mix(uint64_t a, uint64_t b)
{
    return (a ^ (b << 29 | b >> 35)) * 0x9E3779B97F4A7C15u;
}

/* ---- tables -------------------------------------------------------------------------------------------------------- */

static uint64_t hl_hash_function(const PyCodeObject *code)
{
    return hl_mix((uintptr_t)code >> 4, 0) >> 32;
}

static uint64_t hl_hash_site(const hl_site *site)
{
    uint64_t functions = (uint64_t)site->inner << 16 | site->app;
    return hl_mix(functions, (uint64_t)(uint32_t)site->inner_line << 32 | (uint32_t)site->app_line) >> 32;
}

static void hl_index_add(hl_index *index, uint64_t hash, uint32_t id)
{
    uint64_t place = hash & index->mask;
    while (index->ids[place] != 0) {
        place = (place + 1) & index->mask;
    }
    index->ids[place] = (uint16_t)id;
}

static void hl_drop_function(hl_function *function)
{
    hl.text -= function->file == NULL ? 0 : strlen(function->file) + strlen(function->name) + 2;
    free(function->file); /* its name is in the same block */
    *function = (hl_function){.code = NULL};
}

/* The sites without a record give up their places, and the functions without a site. */
static void hl_sweep(void)
{
    memset(hl_cache, 0, sizeof(hl_cache));
    hl_forget_kinds();
    memset(hl.site_index.ids, 0, (hl.site_index.mask + 1) * sizeof(uint16_t));
    memset(hl.function_index.ids, 0, (hl.function_index.mask + 1) * sizeof(uint16_t));
    hl.free_site_count = hl.free_function_count = 0;
    for (uint32_t id = hl.most; id > 0; id--) {
        hl_site *site = &hl.sites[id];
        if (hl_records_of[id] == 0) {
            *site = (hl_site){.inner = 0};
            hl.free_sites[hl.free_site_count++] = (uint16_t)id;
            continue;
        }
        hl_index_add(&hl.site_index, hl_hash_site(site), id);
        hl.functions[site->inner].used = hl.functions[site->app].used = 1;
    }
    for (uint32_t id = hl.most; id > 0; id--) {
        hl_function *function = &hl.functions[id];
        if (!function->used) {
            hl_drop_function(function);
            hl.free_functions[hl.free_function_count++] = (uint16_t)id;
            continue;
        }
        function->used = 0;
        if (function->code != NULL) {
            hl_index_add(&hl.function_index, hl_hash_function(function->code), id);
        }
    }
}

/* ---- what is new --------------------------------------------------------------------------------------------------- */

static size_t hl_copy(char *to, PyObject *text)
{
    size_t length = 0;
    if (text != NULL && PyUnicode_Check(text)) {
        Py_ssize_t most = PyUnicode_GET_LENGTH(text) - HL_LONGEST;
        length = hm_encode_all(text, most > 0 ? most : 0, (unsigned char *)to);
    }
    to[length] = '\0';
    return length + 1;
}

/* The number of a function that was met, or 0. */
static uint32_t hl_find_function(const PyCodeObject *code)
{
    for (uint64_t place = hl_hash_function(code) & hl.function_index.mask; hl.function_index.ids[place] != 0;
         place = (place + 1) & hl.function_index.mask) {
        if (hl.functions[hl.function_index.ids[place]].code == code) {
            return hl.function_index.ids[place];
        }
    }
    return 0;
}

/* The number of a function, or 0: there is no room. */
static uint32_t hl_function_of(PyCodeObject *code)
{
    char text[2 * (HL_LONGEST * HM_UTF8_MOST + 1)];
    uint32_t found = hl_find_function(code);
    if (found != 0 || hl.free_function_count == 0) {
        return found;
    }
    size_t file_size = hl_copy(text, code->co_filename), size = file_size + hl_copy(text + file_size, code->co_qualname);
    char *kept = malloc(size);
    if (kept == NULL) {
        return 0;
    }
    memcpy(kept, text, size);
    uint32_t id = hl.free_functions[--hl.free_function_count];
    hl.functions[id] = (hl_function){.code = code, .file = kept, .name = kept + file_size};
    hl.text += size;
    hl_index_add(&hl.function_index, hl_hash_function(code), id);
    return id;
}

/* Another code object may lie there soon. */
static void hl_code_dies(PyCodeObject *code)
{
    hl_forget_kind(code);
    uint32_t id = hl.most == 0 ? 0 : hl_find_function(code);
    if (id == 0) {
        return;
    }
    hl.functions[id].code = NULL;
    const char *from = (const char *)code, *to = from + _PyObject_VAR_SIZE(&PyCode_Type, Py_SIZE(code));
    for (size_t at = 0; at < HL_CACHED; at++) {
        const hl_cached *cached = &hl_cache[at];
        if ((cached->inner >= from && cached->inner < to) || (cached->app >= from && cached->app < to)) {
            hl_cache[at] = (hl_cached){.inner = NULL};
        }
    }
}

static uint32_t hl_site_of(const hl_site *wanted)
{
    uint64_t hash = hl_hash_site(wanted);
    for (uint64_t place = hash & hl.site_index.mask; hl.site_index.ids[place] != 0;
         place = (place + 1) & hl.site_index.mask) {
        const hl_site *known = &hl.sites[hl.site_index.ids[place]];
        if (known->inner == wanted->inner && known->app == wanted->app && known->inner_line == wanted->inner_line &&
            known->app_line == wanted->app_line) {
            return hl.site_index.ids[place];
        }
    }
    if (hl.free_site_count == 0) {
        return HL_OTHER;
    }
    uint32_t id = hl.free_sites[--hl.free_site_count];
    hl.sites[id] = *wanted;
    hl_index_add(&hl.site_index, hash, id);
    return id;
}

static int hl_has_room(void)
{
    if (LIKELY(hl.free_site_count > 0 && hl.free_function_count > 1)) {
        return 1;
    }
    if (hl.pinned || (hl.later > 0 && --hl.later > 0)) {
        return 0;
    }
    hl_sweep();
    if (hl.free_site_count < hl.most / 16 || hl.free_function_count < hl.most / 16) {
        hl.later = HL_LATER; /* nearly all of them hold something: to sweep for each new one would take all the time */
    }
    return hl.free_site_count > 0 && hl.free_function_count > 1;
}

NOINLINE static uint32_t hl_new(const hl_cached *wanted, PyCodeObject *inner, PyCodeObject *app)
{
    hl_site site = {.inner = 0};
    if (!hl_has_room()) {
        return HL_OTHER;
    }
    site.inner = (uint16_t)hl_function_of(inner);
    site.inner_line = hl_line_at(inner, wanted->inner);
    if (app != NULL) {
        site.app = (uint16_t)hl_function_of(app);
        site.app_line = hl_line_at(app, wanted->app);
    }
    if (site.inner == 0 || (app != NULL && site.app == 0)) {
        return HL_OTHER;
    }
    return hl_site_of(&site);
}

/* ---- the common path ----------------------------------------------------------------------------------------------- */

static inline int hl_same(const hl_cached *one, const hl_cached *other)
{
    return one->inner == other->inner && one->app == other->app;
}

static inline uint32_t hl_look_up(hl_frame *inner, hl_frame *app)
{
    hl_cached wanted = {
        .inner = hl_at(inner),
        .app = app == NULL ? NULL : hl_at(app),
    };
    uint64_t place = hl_mix((uintptr_t)wanted.inner, (uintptr_t)wanted.app) >> 40 & (HL_CACHED - 1);
    hl_cached *known = &hl_cache[place];
    if (LIKELY(hl_same(known, &wanted))) {
        return known->site;
    }
    hl_cached *second = &hl_cache[place ^ 1];
    if (hl_same(second, &wanted)) {
        return second->site;
    }
    wanted.site = hl_new(&wanted, (PyCodeObject *)hl_executable(inner),
                         app == NULL ? NULL : (PyCodeObject *)hl_executable(app));
    if (wanted.site != HL_OTHER) { /* or it is not remembered: there may be room soon */
        *second = *known;
        *known = wanted;
    }
    return wanted.site;
}

uint32_t hl_look(PyThreadState *thread)
{
    hl_frame *inner = hl_innermost_written(thread);
    return inner == NULL ? HL_OTHER : hl_look_up(inner, hl_application_of(inner));
}

/* ---- the interface ------------------------------------------------------------------------------------------------- */

#if PY_VERSION_HEX >= 0x030C0000

static int hl_watch(PyCodeEvent event, PyCodeObject *code)
{
    if (event == PY_CODE_EVENT_DESTROY) {
        hl_code_dies(code);
    }
    return 0;
}

int hl_prepare(void)
{
    static int watcher = -1;
    watcher = watcher < 0 ? PyCode_AddWatcher(hl_watch) : watcher;
    return watcher < 0 ? -1 : 0;
}

#else /* no watchers: the deallocator is wrapped */

static destructor hl_code_dealloc;

static void hl_dealloc(PyObject *code)
{
    hl_code_dies((PyCodeObject *)code);
    hl_code_dealloc(code);
}

int hl_prepare(void)
{
    if (PyCode_Type.tp_dealloc != hl_dealloc) {
        hl_code_dealloc = PyCode_Type.tp_dealloc;
        PyCode_Type.tp_dealloc = hl_dealloc;
    }
    return 0;
}

#endif

static void hl_free_all(void)
{
    for (uint32_t id = 1; hl.functions != NULL && id <= hl.most; id++) {
        hl_drop_function(&hl.functions[id]);
    }
    void *tables[] = {hl.sites, hl.functions, hl.free_sites, hl.free_functions, hl.site_index.ids,
                      hl.function_index.ids, hl_records_of};
    for (size_t at = 0; at < sizeof(tables) / sizeof(tables[0]); at++) {
        free(tables[at]);
    }
    memset(&hl, 0, sizeof(hl));
    hl_records_of = NULL;
}

static int hl_make_tables(uint32_t most)
{
    uint32_t places = 64;
    while (places < most * 2) {
        places *= 2;
    }
    hl.sites = calloc(most + 1, sizeof(hl_site));
    hl.functions = calloc(most + 1, sizeof(hl_function));
    hl.free_sites = calloc(most, sizeof(uint16_t));
    hl.free_functions = calloc(most, sizeof(uint16_t));
    hl.site_index = (hl_index){.ids = calloc(places, sizeof(uint16_t)), .mask = places - 1};
    hl.function_index = (hl_index){.ids = calloc(places, sizeof(uint16_t)), .mask = places - 1};
    hl_records_of = calloc(most + 1, sizeof(uint32_t));
    return hl.sites == NULL || hl.functions == NULL || hl.free_sites == NULL || hl.free_functions == NULL ||
                   hl.site_index.ids == NULL || hl.function_index.ids == NULL || hl_records_of == NULL
               ? -1
               : 0;
}

int hl_locate(uint32_t most, hl_root *roots, size_t count)
{
    hl_free_all();
    hl_set_roots(roots, count);
    if (most > 0 && hl_make_tables(most) < 0) {
        hl_free_all();
        return -1;
    }
    hl.most = most;
    if (most > 0) {
        hl_sweep();
    }
    return 0;
}

void hl_forget(void)
{
    if (hl.most > 0) {
        memset(hl_records_of, 0, (hl.most + 1) * sizeof(uint32_t));
    }
}

void hl_pin(int pinned)
{
    hl.pinned = pinned;
}

void hl_lines(uint32_t site, hl_line *innermost, hl_line *application)
{
    const hl_site *found = &hl.sites[site];
    const hl_function *inner = &hl.functions[found->inner], *app = &hl.functions[found->app];
    *innermost = (hl_line){.file = inner->file, .function = inner->name, .line = found->inner_line};
    *application = (hl_line){.file = app->file, .function = app->name, .line = found->app_line};
}

uint64_t hl_memory(void)
{
    uint64_t each = sizeof(hl_site) + sizeof(hl_function) + 2 * sizeof(uint16_t) + sizeof(uint32_t);
    uint64_t places = hl.most == 0 ? 0 : 2 * (hl.site_index.mask + 1);
    return hl.most * each + places * sizeof(uint16_t) + hl.text + sizeof(hl_cache);
}
