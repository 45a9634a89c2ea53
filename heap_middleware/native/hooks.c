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

static void *hm_malloc(void *context, size_t size)
{
    const hm_chain *chain = context;
    return LIKELY(hm_pass(size)) ? chain->next.malloc(chain->next.ctx, size) : hm_malloc_seen(chain, size);
}

static void *hm_calloc(void *context, size_t count, size_t size)
{
    const hm_chain *chain = context;
    size_t all = size == 0 || count <= SIZE_MAX / size ? count * size : SIZE_MAX;
    return LIKELY(hm_pass(all)) ? chain->next.calloc(chain->next.ctx, count, size)
                                : hm_calloc_seen(chain, count, size, all);
}

static void *hm_realloc(void *context, void *block, size_t size)
{
    const hm_chain *chain = context;
    int pass = hm_pass(size);
    return LIKELY(pass && hm_unknown(block)) ? chain->next.realloc(chain->next.ctx, block, size)
                                             : hm_realloc_seen(chain, block, size, pass);
}

static void hm_free(void *context, void *block)
{
    const hm_chain *chain = context;
    if (UNLIKELY(!hm_unknown(block))) {
        hm_free_seen(chain, block);
        return;
    }
    chain->next.free(chain->next.ctx, block);
}

static void hm_install(hm_chain *chain)
{
    PyMemAllocatorEx ours = {chain, hm_malloc, hm_calloc, hm_realloc, hm_free};
    PyMem_GetAllocator(chain->domain, &chain->next);
    PyMem_SetAllocator(chain->domain, &ours);
    chain->installed = 1;
}

static void hm_uninstall(hm_chain *chain)
{
    PyMemAllocatorEx top;
    PyMem_GetAllocator(chain->domain, &top);
    if (chain->installed && top.malloc == hm_malloc && top.ctx == chain) {
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
            hm_install(&hm_chains[at]);
        }
    }
}

void hm_remove_hooks(void)
{
    for (int at = 0; at < 2; at++) {
        hm_uninstall(&hm_chains[at]);
    }
}
