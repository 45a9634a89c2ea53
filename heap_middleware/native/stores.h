/* CPython's free lists, kept out of the way of the records.
 *
 * CPython keeps dead dicts, lists, tuples, contexts and small dict tables and makes new ones of them, and no allocator
 * hears of it.
 * A record would outlive its object and name the request that once allocated the block, not the one that keeps it: of
 * two routes in turn, one that keeps a dict a request and one that keeps nothing, the second was charged 1.0 a request.
 */
#ifndef HM_STORES_H
#define HM_STORES_H

/* From here on, the blocks of dead dicts, lists and tuples go back to the allocator: all of them while the tracker is
 * exact, and those with a record always. 0, or -1 with an exception. */
int hs_install(void);
void hs_uninstall(void);

/* Give back what the free lists hold. Makes and drops objects; no other code can run meanwhile. */
void hs_drain(void);

/* The same for tables of dicts alone, at each request while the tracker is exact. */
void hs_drain_tables(void);

#endif
