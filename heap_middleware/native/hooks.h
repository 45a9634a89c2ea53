/* The allocator hooks.
 *
 * They wrap CPython's "obj" and "mem" domains, whoever has them, never raise, never make a Python object, take no lock,
 * and use plain malloc only. Their common path is a counter (allocations) or one look at the filter (frees).
 */
#ifndef HM_HOOKS_H
#define HM_HOOKS_H

#include "home.h"

/* Blocks of this size and more are always recorded, with weight 1: few, and where the bytes are. */
#define HM_LARGE 4096

/* Put the hooks in, where none of them is reached. */
void hm_install_hooks(void);

/* Take them out, where nobody chained after them; elsewhere they stay and pass everything on. */
void hm_remove_hooks(void);

/* Whether allocations still reach them: tracemalloc, stopped when it had been started before us, puts back what was there
 * before it, and that is not us. */
int hm_hooks_reached(void);

/* What the hooks call, tracker.c: an allocation that is large or whose turn may have come, or one that failed; a free
 * that the filter could not rule out. */
void hm_allocated(PyMemAllocatorDomain domain, void *block, size_t size);
void hm_freed(void *block);

#endif
