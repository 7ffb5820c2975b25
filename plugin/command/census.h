/* All keys of format 1 on a token, of all servers, each with its state: for the operators'
 * commands. Pure. */
#ifndef PLUGIN_COMMAND_CENSUS_H
#define PLUGIN_COMMAND_CENSUS_H

#include "plugin/keys/inventory.h"
#include "plugin/keys/record.h"

struct census {
    struct inventory found; /* sorted by trust domain, server, key id; newest first */
    uint32_t foreign;       /* key objects with other labels */
    uint32_t nameless;      /* key objects with neither label nor id: a write that was cut off */
};

void census_add(struct census *census, const struct hsm_item *item);
void census_sort(struct census *census);
void census_clear(struct census *census);

/* The first server (`server` all zero before), the next one; false behind the last. `server`
 * is a view: its items are the census's, and it is not cleared. */
bool census_next(const struct census *census, struct inventory *server);

enum census_state {
    CENSUS_UNKNOWN,   /* the command could not examine it */
    CENSUS_CURRENT,   /* it is served */
    CENSUS_OLDER,     /* a newer one is served */
    CENSUS_HALF,      /* half a key pair */
    CENSUS_UNFIT,     /* not a key that may be served */
    CENSUS_DUPLICATE, /* two keys have this name, or this generation */
    CENSUS_UNSERVED,  /* newer than the one that is served: the record does not say that it is ours,
                         or it was there before the record */
};

const char *census_state_name(enum census_state state);

/* `item` is one of `server`, whose items were proven as far as that was possible. `record` is that
 * server's, or NULL; it says which keys a start serves, if the token has them. */
enum census_state census_state(struct record *record, struct inventory *server,
                               struct inventory_item *item);

/* ---- what may be pruned ---- */

enum census_target {
    CENSUS_OWN,    /* leftovers of our own: superseded generations, halves */
    CENSUS_OTHERS, /* all keys of other servers that have made none for long */
    CENSUS_NAMED,  /* all keys of one such server */
};

struct census_rule {
    enum census_target target;
    struct label_scope own;
    char named[LABEL_HASH + 1]; /* server hash, for CENSUS_NAMED */
    struct record *record;      /* record of this server, or NULL; the caller owns it */
    uint32_t now;               /* as a generation */
    uint32_t floor;             /* seconds; see census_prunes */
};

/* Is the item to go?
 *
 *   another trust domain's   never.
 *   our server's             what is older than the key served, proven, and was replaced by a
 *                            newer generation `floor` seconds ago. All else stays: what is newer
 *                            than the key served, a half too, may be the key in use; and what the
 *                            record says is served, or missing, comes back.
 *   another server's         everything, once that server has made no key for `floor` seconds:
 *                            the age of one key does not tell whether it is in use.
 *
 * CENSUS_NAMED with our own name follows the rule for our server. */
bool census_prunes(const struct census_rule *rule, struct inventory *server,
                   struct inventory_item *item);

/* Does census_prunes need this server's items proven? */
bool census_needs_proof(const struct census_rule *rule, const struct inventory *server);

#endif
