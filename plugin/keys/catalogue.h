/* The front's map from key id to the key it serves: label, CKA_ID, type, public key. A
 * key in here was proven: its attributes read back, a signature of it verified.
 *
 * Keys are immutable and counted. A signature in flight holds its key; when a key was
 * superseded and the last holder lets go, it may leave the token. */
#ifndef PLUGIN_KEYS_CATALOGUE_H
#define PLUGIN_KEYS_CATALOGUE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/wire/types.h"
#include "plugin/keys/label.h"

enum { CATALOGUE_AUTHORITY_ID = 2 * 20 + 1 }; /* SHA-1 in hexadecimal, and its NUL */

struct catalogue_key {
    char key_id[LABEL_KEY_ID_MAX + 1];
    uint32_t generation;
    struct hsm_key_name name;
    struct hsm_public_key public_key;
    char fingerprint[2 * HSM_FINGERPRINT + 1]; /* hex, as SPIRE's PublicKey carries it */
    char authority_id[CATALOGUE_AUTHORITY_ID]; /* hex SHA-1 of the key bits (RFC 5280 4.2.1.2):
                                                  SPIRE's local_authority_id */
    atomic_uint holders;
    atomic_bool superseded;
    bool made; /* made by this server: once superseded, it may be destroyed. This and the next two
                  are set before it is served */
    bool unproven;      /* served because of the record, although it could not be proven */
    bool previous;      /* it lies in `previous`, and is signed with there. Generation 0 */
    int64_t begun;      /* when it was made, as far as clock_now()'s clock can tell */
    atomic_bool in_use; /* it has signed when it was more than a minute old */
    bool unclaimed;     /* its callers gave up before it was made: the next request for it takes it.
                           Guarded by the rotation's mutex */
};

struct catalogue {
    pthread_mutex_t mutex;
    struct catalogue_key **keys; /* sorted by key_id */
    size_t count;
    size_t room;
};

void catalogue_open(struct catalogue *catalogue);
void catalogue_close(struct catalogue *catalogue);

/* A key with one holder, the caller; NULL when out of memory. */
struct catalogue_key *catalogue_key_new(const struct label *label, const struct hsm_key_name *name,
                                        const struct hsm_public_key *public_key);

/* Another holder; and one less. drop returns true when that was the last: the key is
 * then the caller's to look at once more and free(). */
struct catalogue_key *catalogue_hold(struct catalogue_key *key);
bool catalogue_drop(struct catalogue_key *key);

/* The key served for an id, held for the caller; NULL if there is none. */
struct catalogue_key *catalogue_find(struct catalogue *catalogue, const char *key_id);

/* Serves `key` from now on and takes the caller's hold. The key served before, marked
 * superseded, is handed out with the catalogue's hold on it in *old (NULL if none).
 * -1: out of memory, nothing changed. */
int catalogue_serve(struct catalogue *catalogue, struct catalogue_key *key,
                    struct catalogue_key **old);

/* All keys by id, each held for the caller, in a malloc'd array; *count of them. NULL
 * only when out of memory. */
struct catalogue_key **catalogue_list(struct catalogue *catalogue, size_t *count);

#endif
