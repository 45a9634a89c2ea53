/* Memory for a walk's tables: pages of the system's, all zero at first.
 *
 * Not malloc's, because a forked child may not use it: another thread may have held malloc's lock at the fork.
 */
#ifndef HM_PAGES_H
#define HM_PAGES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h> /* first: it asks the system's headers for MAP_ANONYMOUS */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

/* NULL if there is no memory. */
static inline void *hc_pages(size_t size)
{
    void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static inline void hc_release(void *pages, size_t size)
{
    if (pages != NULL) {
        munmap(pages, size);
    }
}

/* Twice the room for `size` bytes of content; the content moves. 0, or -1 if there is no memory. */
static inline int hc_double(void **pages, size_t size)
{
    void *larger = hc_pages(size * 2);
    if (larger == NULL) {
        return -1;
    }
    memcpy(larger, *pages, size);
    hc_release(*pages, size);
    *pages = larger;
    return 0;
}

/* Where in a table a pointer is looked for first: cut it to the room, a power of two. */
static inline size_t hc_hash(const void *pointer)
{
    return (size_t)(((uintptr_t)pointer >> 4) * 0x9E3779B97F4A7C15u >> 24);
}

#endif
