/* Shared by keymanager.c, attempt.c, rotation.c, measure.c and what a start is made of: loading.c,
 * settling.c and moving.c. Only they include it. */
#ifndef PLUGIN_KEYS_KEYMANAGER_PRIVATE_H
#define PLUGIN_KEYS_KEYMANAGER_PRIVATE_H

#include <sys/queue.h>

#include "hsm/base/clock.h"
#include "plugin/keys/disposal.h"
#include "plugin/keys/generations.h"
#include "plugin/keys/identity.h"
#include "plugin/keys/keymanager.h"
#include "plugin/keys/rivals.h"
#include "plugin/keys/scribe.h"
#include "plugin/keys/source.h"
#include "plugin/worker/supervisor.h"

struct attempt;
struct waiter;
LIST_HEAD(attempts, attempt);
TAILQ_HEAD(waiters, waiter);

struct keymanager {
    struct config_keymanager config;
    struct identity identity;
    struct scribe *scribe; /* held; shared with the one we succeed, of the same record */
    bool recorded;         /* there was a record of this scope before */
    struct supervisor *supervisor;
    struct source *source; /* signs with keys of `previous`; NULL: none is served from there */
    struct hsm_token_info info;
    struct catalogue catalogue;
    struct generations generations;
    struct rivals rivals;
    struct disposals disposals;
    atomic_uint holders;
    _Atomic int64_t patience; /* ns for one step of an attempt; grows if the token needs longer */

    pthread_mutex_t mutex;  /* guards all below, which is rotation.c's */
    pthread_cond_t drained; /* attempts is empty */
    bool gate;              /* new generations wait in `gated` for a reconfiguration */
    bool closing;           /* rotation_abandon was called */
    struct waiters gated;
    struct attempts attempts;     /* one per key id at most */
    struct keymanager *successor; /* held: takes the requests that still come in here */
};

/* A caller that waits for a key. */
struct waiter {
    TAILQ_ENTRY(waiter) link;
    char key_id[LABEL_KEY_ID_MAX + 1];
    enum hsm_key_type type;
    int64_t deadline;
    keymanager_generated *done;
    void *context;
};

/* The making of one key, for all callers that ask for its id meanwhile. */
struct attempt {
    LIST_ENTRY(attempt) link; /* this and the next two: rotation.c's */
    struct waiters waiters;
    struct keymanager *keymanager; /* held */
    struct label label;
    enum hsm_key_type type;
    struct hsm_key_name name;
    unsigned generations;
    unsigned vain;       /* tries that the token could not begin, or that made nothing */
    unsigned late_looks; /* used up while the token says that it has made the key */
    struct fault doubt;  /* the token's answer to the last generation */
    struct fault reason; /* why it stalled; code FAULT_NONE = it has not. This and the next two:
                            rotation.c's */
    struct catalogue_key *made; /* held, as the next: the new key, served and being written down */
    struct catalogue_key *old;  /* the key it supersedes, or NULL */
    void (*step)(struct attempt *); /* the step to run at resume_at; NULL: a request is in flight */
    int64_t resume_at;
};

/* A signature with a key that is older than this shows that SPIRE has activated it. */
#define KEYMANAGER_IN_USE_AGE (60 * CLOCK_SECOND)

/* loading.c: looks at the token until its answer can be believed, then serves the keys. */
int loading_run(struct keymanager *keymanager, struct keymanager *before, int64_t deadline,
                const atomic_bool *cancel, struct fault *fault);

/* rotation.c: expired waiters are answered, stalled attempts go on; close the gate and let
 * the attempts come to an end; open it again, sending those who waited to `successor` (or
 * back to us); answer everybody with FAULT_UNAVAILABLE, now and from now on. */
void rotation_tick(struct keymanager *keymanager);
int rotation_drain(struct keymanager *keymanager, int64_t deadline, const atomic_bool *cancel,
                   struct fault *fault);
void rotation_open_gate(struct keymanager *keymanager, struct keymanager *successor);
void rotation_abandon(struct keymanager *keymanager);
bool rotation_is_busy(struct keymanager *keymanager);

/* attempt.c: makes a key and has it served, ending in rotation_conclude (key or fault), which
 * puts the key id before the fault, answers the waiters and frees the attempt. */
void attempt_begin(struct attempt *attempt);
void rotation_conclude(struct attempt *attempt, struct catalogue_key *key,
                       const struct fault *fault);

/* Does anybody wait for its key? And until when may its next step be tried: as long as the token
 * has shown to need, but not beyond their deadline, so that the last try comes before that. */
bool rotation_is_awaited(struct attempt *attempt);
int64_t rotation_deadline(struct attempt *attempt);

/* The attempt can go on with `step` at resume_at, from the tick, and once more just before the
 * deadline of a waiting caller. If the keymanager is closing, it fails with its reason. If a
 * reconfiguration waits, its callers wait behind the gate. */
void rotation_stall(struct attempt *attempt, void (*step)(struct attempt *), int64_t pause,
                    const struct fault *reason);

/* The reason for which it stalled is gone: a fresh generation begins. */
void rotation_go_on(struct attempt *attempt);

/* One line per key event, with the columns an operator can match with `keys` and with
 * SPIRE's own logs. keymanager.c */
void keymanager_log_event(const struct keymanager *keymanager, const char *event,
                          const struct catalogue_key *key);

#endif
