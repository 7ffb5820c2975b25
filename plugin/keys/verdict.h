/* The verdict on each key that a look at the token has found: which one of an id is served, and
 * which may ever be destroyed. The riskiest rule of the product, on one page. Pure.
 *
 * With a record (record.h), of one key id:
 *
 *   served is the first of these that there is
 *     1. the newest whole one above the SERVED one that the record attempted, or that bears the
 *        mark of this place: a process ended before it wrote down that it serves it, and SPIRE may
 *        know it. At the first start in a place the marks of earlier places count as well
 *     2. a MISSING one that is whole again, if it has no successor. A CA key (or an agent's) that
 *        was in use also if its successor never was: SPIRE finds its journal of that time again
 *     3. the SERVED one; VERDICT_LIST where it is not proven whole
 *
 *   and of the others
 *     CONDEMNED in the record, or SERVED till now       VERDICT_CONDEMNED: superseded
 *       and made by us
 *     ATTEMPTED here, older than the proven served one  CONDEMNED if it is whole: it was served if
 *                                                       the disk lost what was written down then.
 *                                                       STRAY if it is not: nobody was served it
 *     not of the record, our mark, and older than       CONDEMNED if it is whole, STRAY if it is
 *       the proven served one                           not and was made here: a lost attempt
 *     not of the record, whole, no mark of ours, and    VERDICT_STRANGER: another process has our
 *       newer than the served one                       identity
 *     anything else                                     VERDICT_WAITS
 *
 * Without one (the first start of an identity, another server's keys), of one key id:
 *
 *   the newest whole one                 VERDICT_SERVE, if it is proven
 *   half, unfit or unproven, and newer   VERDICT_WAITS: it may be the key in use, as a token that
 *     than that, or there is no such one   does not show all it has looks just so
 *   older than that one                  VERDICT_OLDER, or VERDICT_HALF if it is a public half
 *
 * Two of one generation are nobody's to choose between, see inventory.h: only a record tells them
 * apart. The caller decides when a superseded key may be destroyed. */
#ifndef PLUGIN_KEYS_VERDICT_H
#define PLUGIN_KEYS_VERDICT_H

#include "plugin/keys/inventory.h"
#include "plugin/keys/record.h"

enum verdict {
    VERDICT_SERVE,
    VERDICT_LIST, /* served from the record: it is there, or cannot be looked at, but not proven */
    VERDICT_OLDER,
    VERDICT_HALF,
    VERDICT_WAITS,
    VERDICT_CONDEMNED,
    VERDICT_STRAY,
    VERDICT_STRANGER,
};

/* The item to serve of an id, or NULL. `first` is the newest of the id in a sorted inventory, in
 * which the record's SERVED, MISSING and ATTEMPTED keys are, and those and every candidate are
 * proven as far as that was possible. `record` NULL: there is none. */
struct inventory_item *verdict_served(struct record *record, struct inventory *inventory,
                                      struct inventory_item *first);

enum verdict verdict_of(struct record *record, struct inventory *inventory,
                        struct inventory_item *first, const struct inventory_item *item);

/* Is the key of the record not there: by a proof the token shows nothing under its name, or a key
 * that is another one? */
bool verdict_is_gone(const struct record_key *key, const struct inventory_item *item);

/* A public key of which a proof has found no private one. */
bool verdict_is_public_half(const struct inventory_item *item);

/* A key whose two halves a proof could not find together. */
bool verdict_is_half(const struct inventory_item *item);

#endif
