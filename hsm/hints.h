/* Where the last SCAN saw the pairs of ours, so that the PROVE of each that follows at
 * start need not walk the token again: with keys of ours among a thousand others that is
 * most of the time a start takes. A hint is taken once, checked by reading label and id
 * back, and worth nothing after a new login. */
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
