/* Where recorded blocks were allocated: which line of the application, and which line of whatever that called.
 *
 * A site is a number of 16 bits in a record. It stands for two lines: that of the innermost Python frame, and that of the
 * innermost frame of the application itself. 0 is every line there is no room for.
 */
#ifndef HM_SITES_H
#define HM_SITES_H

#include "home.h"
#include "kinds.h"

#include <stddef.h>
#include <stdint.h>

#define HL_OTHER 0
#define HL_MOST 65535 /* sites, of 16 bits */

/* Learn which code dies, from here on. 0, or -1 with an exception. */
int hl_prepare(void);

/* Where files are: those below a root are of its kind, the longest root decides. Others are the application's, or the
 * libraries' if there is a root of the application. Takes the roots, whose texts were made with malloc.
 * `most` sites; 0: none are looked for. 0, or -1 without memory. */
int hl_locate(uint32_t most, hl_root *roots, size_t count);

/* Live records of each site; NULL: no sites are looked for. */
extern uint32_t *hl_records_of;

/* The site of what this thread runs now. Makes no object, takes no reference. */
uint32_t hl_look(PyThreadState *thread);

static inline uint32_t hl_here(PyThreadState *thread)
{
    return hl_records_of == NULL ? HL_OTHER : hl_look(thread);
}

static inline void hl_hold(uint32_t site)
{
    if (site != HL_OTHER) {
        hl_records_of[site]++;
    }
}

static inline void hl_let_go(uint32_t site)
{
    if (site != HL_OTHER) {
        hl_records_of[site]--;
    }
}

/* All records are gone. */
void hl_forget(void);

typedef struct {
    const char *file, *function; /* UTF-8; NULL: there is no such frame */
    int line;
} hl_line;

/* What a site stands for; while pinned, none is given up for another. */
void hl_pin(int pinned);
void hl_lines(uint32_t site, hl_line *innermost, hl_line *application);

/* Bytes of the tables. */
uint64_t hl_memory(void);

#endif
