/* The supervisor's books: every request that has not been answered, where it stands
 * (queued, or at the worker) and in which order. No locks, no I/O: the supervisor holds
 * its mutex around every call. */
#ifndef PLUGIN_WORKER_JOBS_H
#define PLUGIN_WORKER_JOBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "plugin/worker/patience.h"
#include "plugin/worker/supervisor.h"

/* If other requests succeed, a look at the token is answered after this many failed tries: its
 * caller looks again by itself. */
enum { JOB_TRIES_MAX = 3 };

/* The requests of one suspect may fill this much of the table. */
enum { SUSPECT_QUEUED_MAX = SUPERVISOR_REQUESTS_MAX / 4 };

enum job_state {
    JOB_FREE,
    JOB_QUEUED,
    JOB_SENT,
    JOB_ABANDONED, /* answered already; its number stays taken until the worker lets go */
};

struct job {
    TAILQ_ENTRY(job) link;
    enum job_state state;
    enum hsm_op op;
    uint32_t number;  /* slot, and above it the count of the slot's uses: a late reply cannot meet
                         a new request. Never 0 */
    uint64_t order;   /* of submission: a repeated job goes back where it stood */
    uint64_t subject; /* hash of operation and label */
    unsigned tries;   /* that failed, or at which a worker ended or hung */
    int64_t added;
    int64_t sent;       /* the latest time */
    int64_t failed;     /* the same, of its failures */
    int64_t not_before; /* it pauses after a failure */
    int64_t deadline;
    uint8_t *frame;
    size_t length;
    supervisor_done *done;
    hsm_item_fn *item;
    void *context;
};

TAILQ_HEAD(job_queue, job);

struct jobs {
    uint64_t orders;
    unsigned sent;      /* at the worker, JOB_ABANDONED included */
    unsigned slow_sent; /* those of them that may take at most half of the threads */
    int64_t wake;       /* when the next paused job is due */
    struct job_queue quick;
    struct job_queue slow;
    struct job_queue at_worker;
    struct job_queue free;
    struct patience patience;
    struct job table[SUPERVISOR_REQUESTS_MAX];
};

void jobs_open(struct jobs *jobs);

/* Books and encodes a request, JOB_QUEUED. NULL, and why: no room, or none for a suspect. */
struct job *jobs_add(struct jobs *jobs, const struct supervisor_request *request, int64_t now,
                     struct fault *why);

/* The job to send next to a worker of so many threads, or NULL. Slow operations get at
 * most half of the threads, all together at most two jobs a thread; jobs past their
 * deadline, those that pause, and those of a suspect that must wait are passed over. Of a suspect's
 * jobs the one that failed least is its probe, so that one that always fails does not keep
 * those behind it from showing that their key is well. */
struct job *jobs_next(struct jobs *jobs, unsigned threads, int64_t now);

/* JOB_QUEUED -> JOB_SENT, and back to where it stood. */
void jobs_sent(struct jobs *jobs, struct job *job, int64_t now);
void jobs_requeue(struct jobs *jobs, struct job *job);

/* What became of a job at the worker, put down to its subject (patience.h). jobs_failed: by a fault
 * that may pass. jobs_died: a worker ended while executing these; the tries of those that are to
 * blame are counted. If a subject has failed for a minute while others succeeded, its requests from
 * before this try count as late: a dead key must not fill the table. */
void jobs_did_well(struct jobs *jobs, const struct job *job, int64_t now);
void jobs_failed(struct jobs *jobs, struct job *job, const struct fault *fault, int64_t now);
void jobs_died(struct jobs *jobs, struct job *const *executing, size_t count, int64_t now);
void jobs_hung(struct jobs *jobs, struct job *job, int64_t now);

/* May the fault of a job pass, so that it is asked again? */
bool jobs_may_pass(const struct job *job, const struct fault *fault);

/* Is a job that failed to be answered, though its deadline is not over? If it is a look, or
 * nobody but its asker is there (one_caller), after JOB_TRIES_MAX tries. */
bool jobs_is_hopeless(struct jobs *jobs, const struct job *job, bool one_caller);

/* When a job that failed is due again. */
int64_t jobs_due(struct jobs *jobs, const struct job *job);

/* Why a job's subject fails; NULL: it does not. */
const struct fault *jobs_reason(struct jobs *jobs, const struct job *job);

/* The same of the first that has failed and is not answered yet; NULL: none has. */
const struct fault *jobs_trouble(struct jobs *jobs);

/* JOB_SENT -> JOB_ABANDONED; queued ones are released. */
void jobs_abandon(struct jobs *jobs, struct job *job);

/* Any state -> JOB_FREE. */
void jobs_release(struct jobs *jobs, struct job *job);

/* Looks: by number among those at the worker; any at the worker; any unanswered that is
 * past its deadline (or simply any). One that cannot be repeated has a deadline only
 * until it is sent: then its outcome matters. NULL if there is none. */
struct job *jobs_numbered(struct jobs *jobs, uint32_t number);
struct job *jobs_at_worker(struct jobs *jobs);
struct job *jobs_late(struct jobs *jobs, int64_t now, bool any);

/* Does the worker execute another request that may still succeed? Long operations do not count. */
bool jobs_may_do_well(struct jobs *jobs);

/* The first deadline among those that wait, or CLOCK_NEVER. */
int64_t jobs_first_deadline(const struct jobs *jobs);
bool jobs_idle(const struct jobs *jobs);

/* How many wait to be sent, and for how long the one has that has waited longest; 0 = none waits.
 */
unsigned jobs_queued(const struct jobs *jobs, int64_t now, int64_t *waited);

/* May the operation be asked again after its outcome was lost? */
bool jobs_repeatable(enum hsm_op op);

#endif
