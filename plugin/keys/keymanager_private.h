/* What keymanager.c, attempt.c, rotation.c, loading.c and disposal.c share. Nobody else
 * includes it. */
#ifndef PLUGIN_KEYS_KEYMANAGER_PRIVATE_H
#define PLUGIN_KEYS_KEYMANAGER_PRIVATE_H

#include <sys/queue.h>

#include "plugin/keys/identity.h"
#include "plugin/keys/inventory.h"
#include "plugin/keys/keymanager.h"
#include "plugin/worker/supervisor.h"

/* Why an object is to leave the token. */
enum disposal_kind {
    DISPOSE_SUPERSEDED, /* a key of ours that a newer one replaced */
    DISPOSE_LEFTOVER,   /* found at Configure: an older generation */
    DISPOSE_HALF,       /* found at Configure: a public half older than the key served */
    DISPOSE_STRAY,      /* what a failed generation may have left, or may yet show (HSM
                           clusters lag): looked for several times */
};

enum { MADE_MAX = 256 };

/* A generation this process tried to make. */
struct made {
    uint32_t generation;
    uint8_t id[HSM_ID_MAX];
};

struct disposal;
struct attempt;
struct waiter;
LIST_HEAD(disposals, disposal);
LIST_HEAD(attempts, attempt);
TAILQ_HEAD(waiters, waiter);

struct keymanager {
    struct config_keymanager config;
    struct identity identity;
    struct supervisor *supervisor;
    struct hsm_token_info info;
    struct catalogue catalogue;
    unsigned older; /* keys of ours, found at Configure, that are not needed and stay */
    atomic_uint holders;
    _Atomic int64_t patience; /* ns, of one step of an attempt: as the token has shown to need */

    pthread_mutex_t mutex;      /* guards all below */
    pthread_cond_t drained;     /* attempts is empty */
    uint32_t highest;           /* generation ever seen in our scope */
    uint32_t ours_up_to;        /* generations that were there when we came, or are so old */
    struct made made[MADE_MAX]; /* newer ones that we tried to make, the latest */
    size_t made_count;
    bool gate; /* new generations wait in `gated` for a reconfiguration */
    struct waiters gated;
    struct attempts attempts; /* one per key id at most */
    struct disposals disposals;
    bool disposing; /* a request is out */
    bool cleaning;  /* disposals may begin */
    bool rivalry;   /* another process makes keys in our name: nothing is destroyed or made */
    bool closing;   /* rotation_abandon was called */
    struct keymanager *successor; /* held: takes the requests that still come in here */
};

/* Somebody who asked for a key and waits. */
struct waiter {
    TAILQ_ENTRY(waiter) link;
    char key_id[LABEL_KEY_ID_MAX + 1];
    enum hsm_key_type type;
    int64_t deadline;
    keymanager_generated *done;
    void *context;
};

/* The making of one key, for all who ask for its id meanwhile. */
struct attempt {
    LIST_ENTRY(attempt) link;
    struct keymanager *keymanager; /* held */
    struct label label;
    enum hsm_key_type type;
    struct hsm_key_name name;
    struct waiters waiters;
    int64_t begun; /* when the check for rivals began */
    unsigned generations;
    unsigned late_looks;            /* worth it: the token says it has made the key */
    struct fault doubt;             /* what the token said of the last generation */
    struct inventory inventory;     /* of the check for rivals */
    struct fault reason;            /* why it stalled; code FAULT_NONE = it has not */
    void (*step)(struct attempt *); /* to go on with at resume_at; NULL: a request is out */
    int64_t resume_at;
};

/* loading.c: scan, prove, serve; leftovers become disposals. FAULT_UNAVAILABLE when a key that
 * `before` (or NULL) serves on the same token does not show. */
int loading_run(struct keymanager *keymanager, struct keymanager *before, int64_t deadline,
                const atomic_bool *cancel, struct fault *fault);

/* disposal.c: destroys only the key of that public key, or what is left of it; NULL where it
 * is not known, which a STRAY's and a HALF's never is. */
void disposal_add(struct keymanager *keymanager, enum disposal_kind kind, const char *key_id,
                  const struct hsm_key_name *name, const struct hsm_public_key *public_key);
void disposal_tick(struct keymanager *keymanager);
void disposal_free_all(struct keymanager *keymanager);

/* rotation.c: expired waiters are answered, stalled attempts go on; close the gate and let
 * the attempts come to an end; open it again, sending those who waited to `successor` (or
 * back to us); answer everybody with FAULT_UNAVAILABLE, now and from now on. */
void rotation_tick(struct keymanager *keymanager);
int rotation_drain(struct keymanager *keymanager, int64_t deadline, const atomic_bool *cancel,
                   struct fault *fault);
void rotation_open_gate(struct keymanager *keymanager, struct keymanager *successor);
void rotation_abandon(struct keymanager *keymanager);

/* attempt.c: makes a key and has it served, ending in rotation_conclude (key or fault), which
 * answers the waiters and frees the attempt. */
void attempt_begin(struct attempt *attempt);
void rotation_conclude(struct attempt *attempt, struct catalogue_key *key,
                       const struct fault *fault);

/* Ends an attempt that has come to nothing while the gate is closed; who waits goes on behind
 * the gate. */
void rotation_hand_over(struct attempt *attempt);

/* The token was searched through, from `begun` until now: keymanager->patience follows. */
void keymanager_searched(struct keymanager *keymanager, int64_t begun);

/* One line per key event, with the columns an operator can match with `keys` and with
 * SPIRE's own logs. keymanager.c */
void keymanager_log_event(const struct keymanager *keymanager, const char *event,
                          const struct catalogue_key *key);

/* With the mutex held, or before it matters: did this process make it, or another one here
 * that has ended since? */
bool keymanager_made(const struct keymanager *keymanager, const struct label *label,
                     const struct hsm_key_name *name);

void keymanager_cka_id(const struct hsm_key_name *name, char text[2 * HSM_ID_MAX + 1]);

#endif
