/* See hooks.h. */
#include "hooks.h"

#include "records.h"
#include "sampling.h"

typedef struct {
    PyMemAllocatorDomain domain;
    PyMemAllocatorEx next;
    int installed;
} hm_chain;

static hm_chain hm_chains[2] = {{.domain = PYMEM_DOMAIN_OBJ}, {.domain = PYMEM_DOMAIN_MEM}};

/* Whether this allocation is none to look at. It is then passed on by a jump: what is not common is in functions of its
 * own, so that the common path saves no register. */
static inline int hm_pass(size_t size)
{
    int64_t left = LOAD(hm_countdown) - 1;
    STORE(hm_countdown, left);
    return left > 0 && size < HM_LARGE;
}

static inline int hm_unknown(const void *block)
{
    return block == NULL || !hm_may_be_recorded(block);
}

NOINLINE static void *hm_malloc_seen(const hm_chain *chain, size_t size)
{
    void *block = chain->next.malloc(chain->next.ctx, size);
    hm_allocated(chain->domain, block, size);
    return block;
}

NOINLINE static void *hm_calloc_seen(const hm_chain *chain, size_t count, size_t size, size_t all)
{
    void *block = chain->next.calloc(chain->next.ctx, count, size);
    hm_allocated(chain->domain, block, all);
    return block;
}

NOINLINE static void *hm_realloc_seen(const hm_chain *chain, void *block, size_t size, int pass)
{
    int unknown = hm_unknown(block);
    void *moved = chain->next.realloc(chain->next.ctx, block, size);
    if (moved != NULL && !unknown) {
        /* Only now, since a realloc that fails leaves the old block. Nobody took its address in between: we have the
         * lock, and other interpreters' blocks are never recorded. */
        hm_freed(block);
    }
    if (!pass) {
        hm_allocated(chain->domain, moved, size);
    }
    return moved;
}

NOINLINE static void hm_free_seen(const hm_chain *chain, void *block)
{
    hm_freed(block);
    chain->next.free(chain->next.ctx, block);
}

static inline void *hm_malloc(const hm_chain *chain, size_t size)
{
    return LIKELY(hm_pass(size)) ? chain->next.malloc(chain->next.ctx, size) : hm_malloc_seen(chain, size);
}

static inline void *hm_calloc(const hm_chain *chain, size_t count, size_t size)
{
    size_t all = size == 0 || count <= SIZE_MAX / size ? count * size : SIZE_MAX;
    return LIKELY(hm_pass(all)) ? chain->next.calloc(chain->next.ctx, count, size)
                                : hm_calloc_seen(chain, count, size, all);
}

static inline void *hm_realloc(const hm_chain *chain, void *block, size_t size)
{
    int pass = hm_pass(size);
    return LIKELY(pass && hm_unknown(block)) ? chain->next.realloc(chain->next.ctx, block, size)
                                             : hm_realloc_seen(chain, block, size, pass);
}

static inline void hm_free(const hm_chain *chain, void *block)
{
    if (UNLIKELY(!hm_unknown(block))) {
        hm_free_seen(chain, block);
        return;
    }
    chain->next.free(chain->next.ctx, block);
}

/* A set of hooks for each domain, which do without their context: they may be put in while another interpreter allocates,
 * and that one may see our function with the context of the one before. */
#define HM_HOOKS(domain, at)                                                                                           \
    static void *hm_malloc_##domain(void *Py_UNUSED(context), size_t size)                                             \
    {                                                                                                                  \
        return hm_malloc(&hm_chains[at], size);                                                                        \
    }                                                                                                                  \
    static void *hm_calloc_##domain(void *Py_UNUSED(context), size_t count, size_t size)                               \
    {                                                                                                                  \
        return hm_calloc(&hm_chains[at], count, size);                                                                 \
    }                                                                                                                  \
    static void *hm_realloc_##domain(void *Py_UNUSED(context), void *block, size_t size)                               \
    {                                                                                                                  \
        return hm_realloc(&hm_chains[at], block, size);                                                                \
    }                                                                                                                  \
    static void hm_free_##domain(void *Py_UNUSED(context), void *block)                                                \
    {                                                                                                                  \
        hm_free(&hm_chains[at], block);                                                                                \
    }

HM_HOOKS(obj, 0)
HM_HOOKS(mem, 1)

static const PyMemAllocatorEx hm_hooks[2] = {
    {&hm_chains[0], hm_malloc_obj, hm_calloc_obj, hm_realloc_obj, hm_free_obj},
    {&hm_chains[1], hm_malloc_mem, hm_calloc_mem, hm_realloc_mem, hm_free_mem},
};

static void hm_install(int at)
{
    hm_chain *chain = &hm_chains[at];
    PyMemAllocatorEx ours = hm_hooks[at], next;
    PyMem_GetAllocator(chain->domain, &next);
    if (next.malloc != ours.malloc) {
        chain->next = next;
    }
    PyMem_SetAllocator(chain->domain, &ours);
    chain->installed = 1;
}

static void hm_uninstall(int at)
{
    hm_chain *chain = &hm_chains[at];
    PyMemAllocatorEx top;
    PyMem_GetAllocator(chain->domain, &top);
    if (chain->installed && top.malloc == hm_hooks[at].malloc) {
        PyMem_SetAllocator(chain->domain, &chain->next);
        chain->installed = 0;
    }
}

static int hm_reached(PyMemAllocatorDomain domain)
{
    int64_t countdown = hm_countdown;
    STORE(hm_countdown, HM_IDLE);
    void *block = domain == PYMEM_DOMAIN_OBJ ? PyObject_Malloc(1) : PyMem_Malloc(1);
    int reached = block == NULL || hm_countdown != HM_IDLE;
    domain == PYMEM_DOMAIN_OBJ ? PyObject_Free(block) : PyMem_Free(block);
    STORE(hm_countdown, countdown);
    return reached;
}

int hm_hooks_reached(void)
{
    return hm_reached(PYMEM_DOMAIN_OBJ) && hm_reached(PYMEM_DOMAIN_MEM);
}

void hm_install_hooks(void)
{
    for (int at = 0; at < 2; at++) {
        if (!hm_chains[at].installed || !hm_reached(hm_chains[at].domain)) {
            hm_install(at);
        }
    }
}

void hm_remove_hooks(void)
{
    for (int at = 0; at < 2; at++) {
        hm_uninstall(at);
    }
}
