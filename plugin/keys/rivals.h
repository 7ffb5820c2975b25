/* A rival is another process that makes keys under our identity, by a copy of the file or a shared
 * value. It may be using keys of ours, so no key older than its newest one is destroyed.
 *
 * Rivals are found by a census: a walk over the token beside the calls, after a start, once an
 * hour, and before a destruction. It goes in slices with pauses between, so that it holds up
 * neither signatures nor new keys, however many objects of others there are. A stranger is a key of
 * our scope that the record does not know and that does not bear the mark of one of its makers. */
#ifndef PLUGIN_KEYS_RIVALS_H
#define PLUGIN_KEYS_RIVALS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "plugin/keys/inventory.h"
#include "plugin/keys/scribe.h"
#include "plugin/worker/supervisor.h"

struct rivals {
    pthread_mutex_t mutex;
    struct scribe *scribe; /* this and the next two: the keymanager's */
    struct supervisor *supervisor;
    const struct label_scope *scope;
    struct inventory found; /* by the census under way */
    struct hsm_place from;  /* its next slice; all zero = none is under way */
    unsigned ours;          /* private keys in it so far: ours, and those of others */
    unsigned others;
    bool out;        /* a slice is in flight */
    bool spoilt;     /* its finds are counted already, and will come again */
    bool wanted;     /* a destruction waits for a census */
    int64_t taken;   /* when the latest complete census began; 0 = there was none */
    int64_t next;    /* when the next census may begin */
    int64_t begun;   /* the census */
    uint32_t newest; /* generation of the newest stranger; 0 = there is none */
    uint32_t told;   /* generation of the newest stranger that was logged */
};

void rivals_open(struct rivals *rivals, const struct label_scope *scope);
void rivals_close(struct rivals *rivals);

/* Censuses may be taken from now on. */
void rivals_begin(struct rivals *rivals, struct supervisor *supervisor);

/* The result of a whole walk over the token. */
struct rivals_walk {
    const struct inventory *inventory; /* the keys of our scope */
    unsigned ours;                     /* private keys of this scope */
    unsigned others;                   /* and those that are not of it, or have no name */
    int64_t begun;                     /* when it began */
};

/* After a walk by other means than a census, such as a start's. */
void rivals_saw(struct rivals *rivals, const struct rivals_walk *walk);

/* May a key of that generation go, as far as rivals matter? Only if a census of the last hour saw
 * no stranger that is newer. false asks for a census. */
bool rivals_allow(struct rivals *rivals, uint32_t generation);

/* Takes a census when it is time, slice by slice. */
void rivals_tick(struct rivals *rivals);

#endif
