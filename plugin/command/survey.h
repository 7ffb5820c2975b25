/* All keys of format 1 on a token, whoever they belong to, and what may be said of each: for
 * the operators' commands. Pure. */
#ifndef PLUGIN_COMMAND_SURVEY_H
#define PLUGIN_COMMAND_SURVEY_H

#include "plugin/keys/inventory.h"

struct survey {
    struct inventory found; /* sorted by trust domain, server, key id; newest first */
    uint32_t foreign;       /* key objects with other labels */
    uint32_t nameless;      /* key objects with neither label nor id: a write that was cut off */
};

void survey_add(struct survey *survey, const struct hsm_item *item);
void survey_sort(struct survey *survey);
void survey_clear(struct survey *survey);

/* The first server (`server` all zero before), the next one; false behind the last. `server`
 * is a view: its items are the survey's, and it is not cleared. */
bool survey_next(const struct survey *survey, struct inventory *server);

enum survey_state {
    SURVEY_UNKNOWN,   /* could not be looked at closely */
    SURVEY_CURRENT,   /* the one that is served */
    SURVEY_OLDER,     /* a newer one is served */
    SURVEY_HALF,      /* half a key pair */
    SURVEY_UNFIT,     /* not a key that may be served */
    SURVEY_DUPLICATE, /* there are two of this name, or of this generation */
};

const char *survey_state_name(enum survey_state state);

/* `item` is one of `server`, whose items were proven as far as that was possible. */
enum survey_state survey_state(struct inventory *server, struct inventory_item *item);

/* ---- what may be pruned ---- */

enum survey_target {
    SURVEY_OWN,    /* leftovers of our own: superseded generations, halves */
    SURVEY_OTHERS, /* all keys of other servers that have made none for long */
    SURVEY_NAMED,  /* all keys of one such server */
};

struct survey_rule {
    enum survey_target target;
    struct label_scope own;
    char named[LABEL_HASH + 1]; /* server hash, for SURVEY_NAMED */
    uint32_t now;               /* as a generation */
    uint32_t floor;             /* seconds; see survey_prunes */
};

/* Is the item to go? Never one of another trust domain, never the newest whole generation of
 * our own (nor a newer one, nor anything in its place that was not proven). What is ours goes
 * when it was superseded, or for a public half alone, made, `floor` seconds ago: a private half
 * may be the key in use. A key's age says nothing about
 * whether it is in use, so what is another's goes when that server has made no key at all for
 * `floor` seconds. If we are the one named, what is ours counts as ours. */
bool survey_prunes(const struct survey_rule *rule, struct inventory *server,
                   struct inventory_item *item);

/* Will survey_prunes want to know what a proof says of this server's items? */
bool survey_needs_proof(const struct survey_rule *rule, const struct inventory *server);

#endif
