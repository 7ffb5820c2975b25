/* The keys of one server that a scan found, in the order in which they are judged: by key id,
 * newest generation first. Pure. */
#ifndef PLUGIN_KEYS_INVENTORY_H
#define PLUGIN_KEYS_INVENTORY_H

#include <stdbool.h>
#include <stddef.h>

#include "plugin/keys/label.h"

/* No token has so many keys (hsm/scan.c gives up before); a broken worker may report more. */
enum { INVENTORY_MAX = 1 << 16 };

struct inventory_item {
    struct label label;
    struct hsm_key_name name;
    enum hsm_state state; /* as scanned, then as proven */
    bool proven;          /* HSM_PROVE has answered */
    struct hsm_public_key public_key;
    char why[HSM_WHY_MAX];
};

struct inventory {
    struct inventory_item *items;
    size_t count;
    size_t room;
    size_t expected;    /* number of expected items, which come first until they are sorted */
    bool out_of_memory; /* or of INVENTORY_MAX: something is missing */
};

/* inventory_is_half: the token shows only one half of the key. inventory_may_be_late: the token
 * shows no half or only one, but a cluster that lags may still show the whole key. */
bool inventory_is_half(enum hsm_state state);
bool inventory_may_be_late(enum hsm_state state);

/* Takes in a key that should be there: HSM_ABSENT until it is seen. Before all others. */
void inventory_expect(struct inventory *inventory, const struct label *label,
                      const struct hsm_key_name *name);

/* Takes the item in if its label is format 1 and of this scope. One that was expected, and is
 * whole by a proof, stays so; if it is not, it is as was seen, and to be proven anew. */
void inventory_add(struct inventory *inventory, const struct label_scope *scope,
                   const struct hsm_item *item);

/* Forgets the added items and keeps the expected ones. */
void inventory_forget_seen(struct inventory *inventory);
void inventory_sort(struct inventory *inventory);
void inventory_clear(struct inventory *inventory);

/* Walking a sorted inventory: the newest item of the first key id, of the next key id,
 * and the next older item of the same key id. NULL at the end. Items stay the
 * inventory's. */
struct inventory_item *inventory_first(struct inventory *inventory);
struct inventory_item *inventory_next_id(struct inventory *inventory, struct inventory_item *item);
struct inventory_item *inventory_next_generation(struct inventory *inventory,
                                                 struct inventory_item *item);

/* The generation to serve, or to prove next: the newest of first's key id that is, as far
 * as known, complete. (A half counts until it was proven to be one.) Two pairs of one generation
 * are nobody's to choose between: both are passed over. */
struct inventory_item *inventory_candidate(struct inventory *inventory,
                                           struct inventory_item *first);

/* Is there another of this one's key id and generation? `first` is the newest of the id. */
bool inventory_is_twin(struct inventory *inventory, const struct inventory_item *first,
                       struct inventory_item *item);

uint32_t inventory_highest(const struct inventory *inventory);

#endif
