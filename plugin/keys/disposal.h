/* Keys to destroy on the token: beside the requests, and repeated until a search shows that they
 * are gone. The record keeps those that are left when the process ends, and the next start goes on
 * with them. */
#ifndef PLUGIN_KEYS_DISPOSAL_H
#define PLUGIN_KEYS_DISPOSAL_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "plugin/config/config.h"
#include "plugin/keys/rivals.h"
#include "plugin/keys/scribe.h"
#include "plugin/worker/supervisor.h"

/* Why an object is to leave the token. */
enum disposal_kind {
    DISPOSE_SUPERSEDED, /* condemned in the record: destroyed after a time, unless a rival may be
                           using it */
    DISPOSE_LEFTOVER,   /* found at a start without a record: an older generation of our mark */
    DISPOSE_HALF,       /* likewise: a public half older than the key served */
    DISPOSE_STRAY, /* a key that a failed generation may have left; HSM clusters show it late, so it
                      is searched for several times */
};

struct disposal;

/* Its owner fills in the members above the mutex: supervisor and scribe before disposals_allow, all
 * else before disposals_open. The rest is disposal.c's. */
struct disposals {
    const struct config_keymanager *config;
    struct supervisor *supervisor;
    struct scribe *scribe;
    struct rivals *rivals;
    /* Are keys being made? SoftHSM shows only some of its objects while others come and go. */
    bool (*is_busy)(void *context);
    void *context;

    pthread_mutex_t mutex;
    LIST_HEAD(, disposal) list;
    bool out;     /* a request is in flight */
    bool allowed; /* destroying may begin */
    bool silent;  /* the process is ending: log nothing more */
};

void disposals_open(struct disposals *disposals);
void disposals_close(struct disposals *disposals);

/* A key that is listed already is not listed again. Destroys only the key with that public key, or
 * a half of it; NULL if the public key is unknown, as it always is for a STRAY or a HALF. `since`:
 * the record's running time when it was condemned (0 for other kinds). */
void disposals_add(struct disposals *disposals, enum disposal_kind kind, const struct label *label,
                   const struct hsm_key_name *name, const struct hsm_public_key *public_key,
                   int64_t since);

/* They may begin, or may not any more. */
void disposals_allow(struct disposals *disposals, bool allowed);

/* At the end of the process: further failures are not logged. */
void disposals_hush(struct disposals *disposals);

/* The token is full: the key that was condemned first goes now, one at a time. false: there is none
 * that may. */
bool disposals_make_room(struct disposals *disposals);

void disposals_tick(struct disposals *disposals);

#endif
