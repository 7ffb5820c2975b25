/* The handle under which each private key was last found, with the verifier of its signatures. It
 * only saves time: every handle in here was checked to belong to the key with this label, id and
 * fingerprint.
 *
 * Looking a key up can take a token long (SoftHSM walks all its objects), so if many threads miss
 * the same key, one searches and the others wait for its result. */
#ifndef HSM_CACHE_H
#define HSM_CACHE_H

#include <pthread.h>

#include "hsm/module.h"
#include "hsm/verify.h"
#include "hsm/wire/types.h"

enum { CACHE_SIZE = 64 };

struct cache_key {
    const struct hsm_key_name *name;
    const uint8_t *fingerprint;
    uint32_t logins; /* the session pool's count of logins before the handle was found */
};

/* The cache and its callers share the verifier: each releases its own share. */
struct cache_value {
    CK_OBJECT_HANDLE handle;
    struct verifier *verifier;
};

struct cache_entry {
    enum cache_state {
        CACHE_EMPTY,
        CACHE_SEARCHING, /* one thread looks */
        CACHE_KNOWN,
        CACHE_FAILED, /* it found nothing; the threads waiting are about to be told */
    } state;
    uint32_t waiting;
    uint32_t logins;
    uint64_t used;
    struct cache_value value; /* of an entry that is KNOWN, or was */
    struct hsm_key_name name;
    uint8_t fingerprint[HSM_FINGERPRINT];
    struct fault fault;
};

struct cache {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t clock;
    struct cache_entry entries[CACHE_SIZE];
};

enum cache_answer {
    CACHE_HIT,   /* *value */
    CACHE_LOOK,  /* look yourself, then call cache_found or cache_failed */
    CACHE_FAULT, /* another thread has just searched and failed with *fault */
};

void cache_open(struct cache *cache);
void cache_close(struct cache *cache);

enum cache_answer cache_get(struct cache *cache, const struct cache_key *key,
                            struct cache_value *value, struct fault *fault);

/* May also be called without CACHE_LOOK before it, for a handle from another source than a
 * search. */
void cache_found(struct cache *cache, const struct cache_key *key, const struct cache_value *value);
void cache_failed(struct cache *cache, const struct cache_key *key, const struct fault *fault);

/* Forgets this handle of the key. If another thread has found a new handle meanwhile, that one
 * stays. HANDLE_NONE: forgets the key's handle whatever it is. */
void cache_forget(struct cache *cache, const struct hsm_key_name *name, CK_OBJECT_HANDLE handle);

#endif
