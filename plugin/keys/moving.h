/* The start of a server that moves its keys to this token: the block `previous` and the record's
 * array of that name (previous.h has the rule). For loading.c, on the slow lane. */
#ifndef PLUGIN_KEYS_MOVING_H
#define PLUGIN_KEYS_MOVING_H

#include "plugin/keys/keymanager_private.h"

struct moving {
    bool adopts;  /* the record's array is new */
    bool without; /* the block is gone, and a key is needed that is served from there: a loss, until
                     it is accepted */
    bool forgets; /* the block is gone, and the array with it */
};

/* Reads `previous` and settles `record`, the start's copy. FAULT_FAILED_PRECONDITION: see
 * PREVIOUS_REFUSE; or it is damaged. FAULT_UNAVAILABLE: it is away, and was never read. One that is
 * away and known is no failure. */
int moving_begin(struct keymanager *keymanager, bool reconfigures, const atomic_bool *cancel,
                 struct record *record, struct moving *moving, struct fault *fault);

/* FAULT_FAILED_PRECONDITION: a start would adopt keys of `previous` without a record, and SPIRE may
 * need a key of the token instead. */
int moving_refuse_unrecorded(const struct keymanager *keymanager, const char *key_id,
                             const char *label, const char *code, struct fault *fault);

/* The operator has accepted that loss. */
void moving_accept(struct record *record, struct moving *moving);

/* Serves the keys that are left in `previous`, after all keys of the token. */
int moving_serve(struct keymanager *keymanager, struct record *record, struct fault *fault);

/* Puts the result into the scribe's record. -1: out of memory. */
int moving_write(const struct moving *moving, const struct record *from, struct record *record);

/* Logs that the key of an id was made on the token. */
void moving_tell(struct keymanager *keymanager, const struct catalogue_key *key);

#endif
