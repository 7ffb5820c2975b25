/* The books of jobs_books.h. */
#include "tests/support/jobs_books.h"

#include <stdlib.h>

void unused_done(void *context, const struct hsm_reply *reply)
{
    (void)context;
    (void)reply;
}

int open_books(void **state)
{
    struct jobs *jobs = calloc(1, sizeof *jobs);

    if (!jobs)
        return -1;
    jobs_open(jobs);
    *state = jobs;
    return 0;
}

int close_books(void **state)
{
    struct jobs *jobs = *state;

    for (size_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++)
        if (jobs->table[i].state != JOB_FREE)
            jobs_release(jobs, &jobs->table[i]);
    assert_true(jobs_idle(jobs));
    assert_int_equal(jobs->sent + jobs->slow_sent, 0);
    free(jobs);
    return 0;
}

struct job *add_until(struct jobs *jobs, enum hsm_op op, int64_t deadline)
{
    const struct hsm_request request = {.op = op};

    return jobs_add(
        jobs,
        &(struct supervisor_request){
            .request = &request, .deadline = deadline, .done = unused_done, .context = jobs},
        NOW, NULL);
}

struct job *add(struct jobs *jobs, enum hsm_op op)
{
    struct job *job = add_until(jobs, op, CLOCK_NEVER);

    assert_non_null(job);
    return job;
}

struct job *send_next(struct jobs *jobs)
{
    struct job *job = jobs_next(jobs, FOUR_THREADS, NOW);

    if (job)
        jobs_sent(jobs, job, NOW);
    return job;
}

struct job *send_one(struct jobs *jobs, enum hsm_op op)
{
    struct job *job = add(jobs, op);

    jobs_sent(jobs, job, NOW);
    return job;
}
