/* The supervisor's books: every request that has not been answered, where it stands
 * (queued, or at the worker) and in which order. No locks, no I/O: the supervisor holds
 * its mutex around every call. */
#ifndef PLUGIN_WORKER_JOBS_H
#define PLUGIN_WORKER_JOBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "plugin/worker/supervisor.h"

/* A request executing at so many deaths is given up. Before the last of them it is tried
 * alone, so that it does not take with it what happens to be executing beside it. */
enum { JOB_DEATHS_MAX = 3 };

/* What has failed so often while others did well is hopeless: a request, or all that ask for the
 * same. So many of the latter are kept in mind. */
enum { JOB_FAILURES_MAX = 3, FAILINGS_MAX = 16 };

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
    bool alone;              /* at the worker, with no other quick one beside it */
    uint32_t number;         /* slot, and above it the count of the slot's uses: a late reply cannot
                                meet a new request. Never 0 */
    uint64_t order;          /* of submission: a repeated job goes back where it stood */
    uint64_t subject;        /* hash of operation and label */
    unsigned deaths;         /* workers that ended while executing it */
    unsigned failures;       /* FAULT_UNAVAILABLE answers from workers that had the token open */
    uint64_t successes_seen; /* by others, before the first failure */
    int64_t deadline;
    uint8_t *frame;
    size_t length;
    supervisor_done *done;
    hsm_item_fn *item;
    void *context;
};

TAILQ_HEAD(job_queue, job);

/* An operation on a key that has failed, or was executing when a worker ended, and not done well
 * since, whichever jobs asked for it. Two subjects of one hash are only given up together. */
struct failing {
    uint64_t subject;
    unsigned failures;
    unsigned deaths;         /* workers, however many jobs of the subject they took along */
    uint64_t successes_seen; /* as a job's */
    int64_t since;           /* the first of these; 0 = a free place */
    int64_t died;            /* the latest worker */
    bool hopeless;
    bool deadly;
};

struct jobs {
    uint64_t orders;
    unsigned sent;      /* at the worker, JOB_ABANDONED included */
    unsigned slow_sent; /* those of them that may take at most half of the threads */
    unsigned alone;     /* 1: the one at the worker has it to itself */
    struct job_queue quick;
    struct job_queue slow;
    struct job_queue free;
    struct failing failing[FAILINGS_MAX];
    struct job table[SUPERVISOR_REQUESTS_MAX];
};

void jobs_open(struct jobs *jobs);

/* Books and encodes a request, JOB_QUEUED. NULL: no room. */
struct job *jobs_add(struct jobs *jobs, const struct supervisor_request *request);

/* The job to send next to a worker of so many threads, or NULL. Slow operations get at
 * most half of the threads, all together at most two jobs a thread; jobs past their
 * deadline, and those that are deadly, are passed over. A quick job that may be what ends
 * workers (executing at all but the last of so many deaths, or of a subject that has ended one,
 * or that fails and is not known to be hopeless) is sent when there is no other quick one at the
 * worker, and none is sent beside it. */
struct job *jobs_next(struct jobs *jobs, unsigned threads, int64_t now);

/* JOB_QUEUED -> JOB_SENT, and back to where it stood. Where failures are the reason it goes
 * behind all others: they show whether it is the only one to fail. */
void jobs_sent(struct jobs *jobs, struct job *job);
void jobs_requeue(struct jobs *jobs, struct job *job);

/* One more failure of a job and of its subject, whose count begins anew after a success, and
 * 30 s after its first: what waits to ask for the same goes behind all others. `successes`
 * counts those that show that workers are well. */
const struct failing *jobs_failed(struct jobs *jobs, struct job *job, uint64_t successes,
                                  int64_t now);
bool jobs_hopeless(const struct job *job, uint64_t successes);
void jobs_did_well(struct jobs *jobs, const struct job *job);

/* The same of a worker that ended while executing the job. A subject that ended JOB_DEATHS_MAX
 * of them while others did well is deadly for 30 s: what is queued of it is late. */
void jobs_died(struct jobs *jobs, struct job *job, uint64_t successes, int64_t now);
bool jobs_deadly(struct jobs *jobs, const struct job *job, int64_t now);

/* JOB_SENT -> JOB_ABANDONED; queued ones are released. */
void jobs_abandon(struct jobs *jobs, struct job *job);

/* Any state -> JOB_FREE. */
void jobs_release(struct jobs *jobs, struct job *job);

/* Looks: by number among those at the worker; any at the worker; any unanswered that is
 * past its deadline or deadly (or simply any). One that cannot be repeated has a deadline only
 * until it is sent: then its outcome matters. NULL if there is none. */
struct job *jobs_numbered(struct jobs *jobs, uint32_t number);
struct job *jobs_at_worker(struct jobs *jobs);
struct job *jobs_late(struct jobs *jobs, int64_t now, bool any);
bool jobs_idle(const struct jobs *jobs);

/* May the operation be asked again after its outcome was lost? */
bool jobs_repeatable(enum hsm_op op);

#endif
