/* See records.h. */
#include "records.h"

#include <stdlib.h>
#include <string.h>

hm_table hm_records;
uint16_t hm_filter[HM_FILTER_SIZE];

int hm_make_room(uint64_t max)
{
    uint64_t places = 64;
    while (places < max * 2) {
        places *= 2;
    }
    if (hm_records.places == NULL || hm_records.mask + 1 != places) {
        hm_record *made = calloc(places, sizeof(hm_record));
        if (made == NULL) {
            return -1;
        }
        free(hm_records.places);
        hm_records.places = made;
        hm_records.mask = places - 1;
        hm_forget_records();
    }
    hm_records.max = max;
    return 0;
}

void hm_forget_records(void)
{
    if (hm_records.count > 0) {
        memset(hm_records.places, 0, (hm_records.mask + 1) * sizeof(hm_record));
    }
    memset(hm_filter, 0, sizeof(hm_filter));
    hm_records.count = 0;
}
