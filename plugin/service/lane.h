/* The slow lane: one thread for what may take long (Configure, Validate, publishing), so
 * that the gRPC thread never blocks. Jobs run one at a time, in order.
 *
 * A job that does not come to an end cannot be ended (it may sit in a file system that
 * hangs), but the calls behind it need not wait with it: whoever owns the job hands over
 * what to do when it has waited too long, and lane_tick sees to that. */
#ifndef PLUGIN_SERVICE_LANE_H
#define PLUGIN_SERVICE_LANE_H

#include <stdint.h>

#include "hsm/base/fault.h"

typedef void lane_run(void *context);
typedef void lane_give_up(void *context, const struct fault *fault);

/* Starts the thread. */
int lane_open(struct fault *fault);

/* Queues a job; exactly one of run (on the lane's thread) and give_up (on any thread)
 * will be called with `context`. A job that has not begun `limit` ns from now is given
 * up with FAULT_UNAVAILABLE naming what the lane is busy with; so is every job when the
 * queue is full (64) or the lane closed. */
void lane_submit(const char *what, int64_t limit, lane_run *run, lane_give_up *give_up,
                 void *context);

/* Gives up the jobs whose limit has passed. Called about every second, from one thread. */
void lane_tick(void);

/* Gives up all queued jobs and waits at most `wait` ns for the running one. */
void lane_close(int64_t wait);

#endif
