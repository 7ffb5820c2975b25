/* Where the last SCAN saw our key pairs. So the PROVE of each at a start need not walk over the
 * token again: among a thousand other objects, these walks take most of a start's time. A hint is
 * used once, checked by reading label and id back, and void after a new login. */
#ifndef HSM_HINTS_H
#define HSM_HINTS_H

#include "hsm/object.h"

struct hint {
    struct hsm_key_name name;
    struct object_pair pair;
};

struct hints {
    pthread_mutex_t lock;
    struct hint *list; /* owned */
    size_t count;
    uint32_t logins;
};

void hints_open(struct hints *hints);
void hints_close(struct hints *hints);

/* Takes over `list`, which came from malloc; NULL and 0 forget all. */
void hints_replace(struct hints *hints, struct hint *list, size_t count, uint32_t logins);

bool hints_take(struct hints *hints, const struct hsm_key_name *name, uint32_t logins,
                struct object_pair *pair);

#endif
