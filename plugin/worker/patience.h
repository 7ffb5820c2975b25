/* When a request is sent again: the consequences of a success, a fault, a worker's death and a
 * hang. Pure: no locks, no I/O, and the time is an argument.
 *
 * A subject is an operation on a key. Most are unknown here. One that failed and has not succeeded
 * since is a suspect. A suspect is slowed down and never refused: it pauses, longer each time, and
 * then one request probes it while others go on beside.
 *
 *                pauses              beside it
 *   fault        0.05 s .. 2 s       everybody
 *   death        0, 0.5 s .. 4 s     everybody but another that ended a worker
 *   hang         1 s .. 8 s          everybody; hanging ones take half of the threads at most
 *   success      forgotten
 *
 * A pause ends early for a request whose deadline is near: it must not fail untried. */
#ifndef PLUGIN_WORKER_PATIENCE_H
#define PLUGIN_WORKER_PATIENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/base/fault.h"

enum { SUSPECTS_MAX = 64 /* then the one that failed longest ago is forgotten */ };

struct suspect {
    uint64_t subject;
    unsigned strikes; /* faults, deaths and hangs in a row */
    unsigned deaths;
    unsigned hangs;
    unsigned out;        /* its requests at the worker: the caller's to count */
    int64_t since;       /* the first strike */
    int64_t struck;      /* the latest */
    int64_t not_before;  /* of the next probe */
    int64_t fresh_after; /* ns since the first strike: it asks for a fresh worker */
    struct fault reason; /* of the latest strike */
};

struct patience {
    struct suspect suspects[SUSPECTS_MAX];
    size_t count;
    int64_t born;    /* the worker */
    int64_t well_at; /* anybody's latest success */
    bool fresh;      /* another worker may do better than this one .. */
    bool for_one;    /* .. for one key, while others do well by this one */
    int64_t wished;  /* since when */
    int64_t spare; /* from then on another worker may be started. Requests that end workers wait for
                      this moment, so that others need not */
};

/* NULL: nothing is held against it. Valid until the next call that may forget one. */
struct suspect *patience_find(struct patience *patience, uint64_t subject);

/* ---- what happened ---- */

/* A worker has opened the token. */
void patience_born(struct patience *patience, int64_t now);

/* A fresh worker is wanted for one key. patience_fault wishes for one by itself. */
void patience_wish(struct patience *patience, int64_t now);

void patience_well(struct patience *patience, uint64_t subject, int64_t now);

/* A fault that may pass, of a request sent at `sent`. Those that were out already when the subject
 * was struck say nothing new. A fresh worker is wanted if nobody has done well by this one, or
 * for a second; and of a key that fails alone now and then, less and less often. */
void patience_fault(struct patience *patience, uint64_t subject, int64_t sent,
                    const struct fault *fault, int64_t now);

/* A worker ended while executing these: the suspects among them did it, or if there are none each
 * of them may have. A subject may stand there more than once. */
void patience_death(struct patience *patience, const uint64_t *subjects, size_t count, int64_t now);

/* A worker was ended because it hung in this. */
void patience_hang(struct patience *patience, uint64_t subject, int64_t now);

/* ---- what follows ---- */

/* ns that a request pauses after so many faults of its own. */
int64_t patience_pause(unsigned faults);

/* From when on a request may be sent: its own pause is over, and its subject's (NULL = none),
 * or its deadline is near and the latest failure of either is not. */
int64_t patience_due(const struct patience *patience, const struct suspect *suspect,
                     int64_t not_before, int64_t failed, int64_t deadline);

/* May a request of this suspect be sent beside those in flight? */
bool patience_admits(const struct patience *patience, const struct suspect *suspect,
                     unsigned threads);

/* Others have done well since it began to fail; and that for a minute. */
bool patience_alone(const struct patience *patience, const struct suspect *suspect);
bool patience_is_over(const struct patience *patience, const struct suspect *suspect, int64_t now);

/* ---- when workers are started ---- */

/* Three at once and then one a second, so that no error rate makes for more logins. Within that a
 * start after one that came to nothing waits 0.1 s, doubled up to 5 s; 1 s up to 30 s where a
 * person has to act. */
struct starts {
    unsigned fruitless; /* starts since anything was done well */
    int64_t due;        /* of the next, if all were a second apart */
    int64_t from;       /* the pause before the next one counts from here */
    unsigned dice;      /* 0 .. 65535: a pause is a quarter more or less, so that many servers on
                           one HSM do not come back in step */
};

struct starts_wait {
    bool definite;    /* the reason does not pass without a person. It may: an upgrade puts the
                         module's file back */
    bool waiting;     /* requests wait: 5 s at most */
    int64_t deadline; /* the first of theirs, or CLOCK_NEVER: some time is left to them */
};

void starts_begun(struct starts *starts, unsigned dice, int64_t now);

/* The worker ended; not one that was ended to make room for a fresh one, whose pause is over. */
void starts_ended(struct starts *starts, int64_t now);

int64_t starts_next(const struct starts *starts, const struct starts_wait *wait);

/* From when on one may be started, were there no pause. */
int64_t starts_spare(const struct starts *starts);

struct starts_opening {
    int64_t operation_limit; /* ns, of anything else */
    int64_t startup_left;    /* ns of startup_wait when this one began; may be over */
    int64_t took;            /* ns, the first that came to its end; 0 = none has */
};

/* How long the latest worker may take to open the token, ns. The first opening gets the rest of
 * startup_wait, and at least 60 s. A token that was open before should open as fast as its other
 * calls, up to 60 s, or as fast as it did then. Each further try gets more time, so that a slow
 * token can open at last. The time less than doubles, so that a waiting call sees several tries. */
int64_t starts_limit(const struct starts *starts, const struct starts_opening *opening);

#endif
