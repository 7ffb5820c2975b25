/* What becomes of each key that a look at the token has found: which one of an id is served,
 * and which may ever be destroyed. The riskiest rule of the product, on one page. Pure.
 *
 *   of one key id, newest first              verdict
 *   half, unfit or unproven, and no          VERDICT_WAITS   it may be the key in use
 *     served key below or above it
 *   half, unfit or unproven, newer than      VERDICT_WAITS   likewise: a token that does not
 *     the served one                                         show all it has looks just so
 *   the newest whole one                     VERDICT_SERVE
 *   anything older than that one             VERDICT_OLDER   it was superseded
 *   a public half older than that one        VERDICT_HALF    the same, and without a key
 *
 * Two of one generation are nobody's to choose between: neither is served, see inventory.h.
 * Whose a key is, and for how long it has been superseded, is for the caller to ask: only OLDER
 * and HALF may go at all. */
#ifndef PLUGIN_KEYS_VERDICT_H
#define PLUGIN_KEYS_VERDICT_H

#include "plugin/keys/inventory.h"

enum verdict {
    VERDICT_SERVE,
    VERDICT_OLDER,
    VERDICT_HALF,
    VERDICT_WAITS,
};

/* `first` is the newest of the key id of `item`, in a sorted inventory in which every candidate
 * was proven, as far as that was possible. */
enum verdict verdict_of(struct inventory *inventory, struct inventory_item *first,
                        const struct inventory_item *item);

/* A public key of which a proof has found no private one. */
bool verdict_is_public_half(const struct inventory_item *item);

#endif
