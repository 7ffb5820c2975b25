/* The supervisor's books, empty before each test, and requests to put in them. */
#ifndef TESTS_JOBS_BOOKS_H
#define TESTS_JOBS_BOOKS_H

#include "plugin/worker/jobs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hsm/base/clock.h"

enum { NOW = 1000, FOUR_THREADS = 4 };

static inline void unused_done(void *context, const struct hsm_reply *reply)
{
    (void)context;
    (void)reply;
}

static inline int open_books(void **state)
{
    struct jobs *jobs = calloc(1, sizeof *jobs);

    if (!jobs)
        return -1;
    jobs_open(jobs);
    *state = jobs;
    return 0;
}

static inline int close_books(void **state)
{
    struct jobs *jobs = *state;

    for (size_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++)
        if (jobs->table[i].state != JOB_FREE)
            jobs_release(jobs, &jobs->table[i]);
    assert_true(jobs_idle(jobs));
    assert_int_equal(jobs->sent + jobs->slow_sent + jobs->alone, 0);
    free(jobs);
    return 0;
}

static inline struct job *add_until(struct jobs *jobs, enum hsm_op op, int64_t deadline)
{
    const struct hsm_request request = {.op = op};

    return jobs_add(
        jobs, &(struct supervisor_request){
                  .request = &request, .deadline = deadline, .done = unused_done, .context = jobs});
}

static inline struct job *add(struct jobs *jobs, enum hsm_op op)
{
    struct job *job = add_until(jobs, op, CLOCK_NEVER);

    assert_non_null(job);
    return job;
}

/* What a worker of four threads is sent next, or NULL. */
static inline struct job *send_next(struct jobs *jobs)
{
    struct job *job = jobs_next(jobs, FOUR_THREADS, NOW);

    if (job)
        jobs_sent(jobs, job);
    return job;
}

static inline struct job *send_one(struct jobs *jobs, enum hsm_op op)
{
    struct job *job = add(jobs, op);

    jobs_sent(jobs, job);
    return job;
}

#define BOOKS(test) cmocka_unit_test_setup_teardown(test, open_books, close_books)

#endif
