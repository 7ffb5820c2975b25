/* The slow lane: one thread for jobs that may take long (Configure, Validate, publishing), so that
 * the gRPC thread never blocks. Jobs run one at a time, in order.
 *
 * Each job is answered exactly once: with the result of its run or, if that takes too long, with a
 * fault. A run that hangs (in a file system, say) cannot be ended. It keeps the thread, its result
 * is dropped, and the jobs behind it are answered at their own limits.
 *
 * The job owns its context: from lane_submit until release, which the lane calls once, when
 * both run and answer have returned. So an early answer frees nothing that run still uses,
 * but what belongs to the caller who was answered (the bytes of a gRPC call) is gone. */
#ifndef PLUGIN_SERVICE_LANE_H
#define PLUGIN_SERVICE_LANE_H

#include <stdint.h>

#include "hsm/base/fault.h"

/* The reason for an answer. The last three come with FAULT_UNAVAILABLE. */
enum lane_outcome {
    LANE_RAN,     /* run has returned: fault is its own, or NULL for success */
    LANE_REFUSED, /* run will never be called; the fault says what the lane is busy with */
    LANE_STUCK,   /* run goes on, past its limit: "no end of it after 20 s" */
    LANE_STOPPED, /* run goes on, but the lane closes: "the plugin is stopping" */
};

/* A kind of jobs: its functions and its time limits. Strings and kinds that are passed in must
 * outlive the job. */
struct lane_kind {
    int64_t queue_limit; /* ns until run begins */
    int64_t run_limit;   /* ns from then on; CLOCK_NEVER: answered at its end alone */

    /* On the lane's thread, at most once. With a run_limit it must not touch what an
     * answer ends. */
    int (*run)(void *context, struct fault *fault);

    /* On any thread, once. LANE_STUCK and LANE_STOPPED come while run is at work: then it
     * may only read what run does not write. Must not block. */
    void (*answer)(void *context, enum lane_outcome outcome, const struct fault *fault);

    /* After LANE_STUCK, on the lane's thread: run has returned after all, with this fault or
     * NULL. Not called once the lane is closed. May be NULL. */
    void (*late)(void *context, const struct fault *fault);

    void (*release)(void *context); /* on any thread, the last */
};

/* Starts the thread. */
int lane_open(struct fault *fault);

/* Queues a job, called `what` in faults. It is refused when its queue_limit has passed, and
 * at once when the queue is full (64) or the lane closed. */
void lane_submit(const char *what, const struct lane_kind *kind, void *context);

/* Answers the jobs whose limit has passed. Called about every second, from one thread. */
void lane_tick(void);

/* Answers the running job (if it has a run_limit) and all queued ones, then waits at most
 * `wait` ns for the running one to return. From lane_tick's thread. */
void lane_close(int64_t wait);

#endif
