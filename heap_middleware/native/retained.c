/* What each endpoint retains, of each type: see retained.h.
 *
 * The rules of this file:
 * - Those of census.c.
 * - A live record of the tracker is counted at the first object found in its block, and marked.
 *
 * None of CPython's internals is used here: types are told apart by their address.
 */
#include "retained.h"

#include "pages.h"

static hc_row *hc_row_place(const hc_retained *retained, uint32_t endpoint, PyTypeObject *type)
{
    hc_row *rows = retained->rows;
    size_t place = (hc_hash(type) + endpoint * 0x9E3779B1u) & (retained->room - 1);
    while (rows[place].endpoint != HM_NO_ENDPOINT && (rows[place].endpoint != endpoint || rows[place].type != type)) {
        place = (place + 1) & (retained->room - 1);
    }
    return &rows[place];
}

static int hc_more_rows(hc_retained *retained)
{
    hc_retained more = *retained;
    more.room *= 2;
    more.rows = hc_pages(more.room * sizeof(hc_row));
    if (more.rows == NULL) {
        return -1;
    }
    for (size_t at = 0; at < retained->room; at++) {
        const hc_row *row = &retained->rows[at];
        if (row->endpoint != HM_NO_ENDPOINT) {
            *hc_row_place(&more, row->endpoint, row->type) = *row;
        }
    }
    hc_release(retained->rows, retained->room * sizeof(hc_row));
    *retained = more;
    return 0;
}

static int hc_add_record(hc_retained *retained, const hm_found *record, PyTypeObject *type)
{
    hc_row *row = hc_row_place(retained, record->endpoint, type);
    if (row->endpoint == HM_NO_ENDPOINT) {
        if (retained->count >= retained->room / 2) {
            if (hc_more_rows(retained) < 0) {
                return -1;
            }
            row = hc_row_place(retained, record->endpoint, type);
        }
        *row = (hc_row){.endpoint = record->endpoint, .type = type};
        retained->count++;
    }
    row->objects += record->weight;
    row->bytes += record->weight * record->size;
    return 0;
}

/* Whether it was marked before. */
static int hc_mark(hc_retained *retained, uint64_t place)
{
    uint8_t bit = (uint8_t)(1 << place % 8);
    int marked = retained->marked[place / 8] & bit;
    retained->marked[place / 8] |= bit;
    return marked;
}

int hc_retain(hc_retained *retained, const hm_found *record, PyTypeObject *type)
{
    if (record->endpoint == HM_NO_ENDPOINT || hc_mark(retained, record->place)) {
        return 0;
    }
    return hc_add_record(retained, record, type);
}

int hc_retain_rest(hc_retained *retained)
{
    hm_found record;
    for (uint64_t place = 0; retained->marked != NULL && place < hm_places(); place++) {
        if (hm_record_at(place, &record) && hc_retain(retained, &record, NULL) < 0) {
            return -1;
        }
    }
    return 0;
}
