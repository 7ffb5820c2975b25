/* Shared by supervisor.c (requests, replies, clock) and supervisor_worker.c (the worker's life).
 * Only they include it. */
#ifndef PLUGIN_WORKER_SUPERVISOR_PRIVATE_H
#define PLUGIN_WORKER_SUPERVISOR_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "hsm/wire/frame.h"
#include "plugin/worker/child.h"
#include "plugin/worker/jobs.h"
#include "plugin/worker/supervisor.h"

enum { SUPERVISOR_TICK_MS = 200 };

enum worker_state { WORKER_NONE, WORKER_OPENING, WORKER_READY, WORKER_LEAVING };

/* Why a worker is to answer no more, and whom that is put down to: it ended by itself (those it
 * was executing), it hangs (those it was executing for too long), it is in the way (nobody). */
enum leaving { LEAVING_DIED, LEAVING_HUNG, LEAVING_REPLACED };

/* The thread alone changes `worker` and `child`, and does so with the mutex held;
 * submitters read them with it held, to send. So the thread itself reads without. */
struct supervisor {
    struct supervisor_options options;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* worker, reason */
    enum worker_state worker;
    struct child child;
    int64_t away_since;         /* when the latest worker that had the token open ceased to */
    struct hsm_token_info info; /* sessions is 0 until the token was first opened */
    struct fault reason;        /* why there is no worker with an open token */
    bool explained;             /* reason is about the latest worker */
    bool tried;                 /* a worker has said why, or died */
    struct jobs jobs;
    bool signed_once;
    int64_t last_activity;
    atomic_bool retired;
    atomic_bool abandoned;
    atomic_bool renew; /* supervisor_renew was called */
    bool ended;        /* the thread has */
    atomic_uint restarts;
    /* the thread's own */
    int64_t since; /* when `worker` took its value */
    struct starts starts;
    int64_t begun;      /* the supervisor */
    int64_t first_took; /* ns the first opening of the token took, here or before; 0 = not known */
    enum leaving why;   /* the worker leaves, or left */
    int64_t leave_until;
    int64_t last_tick;
    int64_t forgiven; /* limits count from here: this process itself stood still until then */
    int64_t heard;    /* when something last came from the worker */
    bool pin_refused; /* and the stamp of its file then: no worker may try it again */
    struct file_stamp pin;
    bool unchanged;           /* the latest worker only saw that this is still so */
    struct child left_behind; /* pid 0 = none */
};

static inline void supervisor_lock(struct supervisor *s)
{
    (void)pthread_mutex_lock(&s->mutex);
}

static inline void supervisor_unlock(struct supervisor *s)
{
    (void)pthread_mutex_unlock(&s->mutex);
}

/* supervisor.c. With the mutex held. pump sends the worker as much as it may have. The others
 * release the mutex while they call back: finish answers a job and frees its slot, repeat queues it
 * again (a scan forgets what it has found). */
void supervisor_pump(struct supervisor *s);
void supervisor_finish(struct supervisor *s, struct job *job, const struct hsm_reply *reply);
void supervisor_repeat(struct supervisor *s, struct job *job);

/* How long a worker may execute the request in this slot, ns. */
int64_t supervisor_limit(const struct supervisor *s, const struct frame_slot *slot);

/* supervisor_worker.c; all on the supervisor's thread, without the mutex.
 * step: start, or see to the end of, a worker that is not there to be read from.
 * next_start: when the next one may be started. refused: why the token is not open; unopened: the
 * worker says so. reap: see whether one that was left behind has ended. */
void supervisor_worker_step(struct supervisor *s);
int64_t supervisor_next_start(struct supervisor *s);
void supervisor_worker_ready(struct supervisor *s, const struct hsm_token_info *info);
void supervisor_worker_refused(struct supervisor *s, const struct fault *fault);
void supervisor_worker_unopened(struct supervisor *s, const struct fault *fault);
void supervisor_worker_leave(struct supervisor *s, enum leaving why);
void supervisor_worker_reap(struct supervisor *s, int patience_ms);

#endif
