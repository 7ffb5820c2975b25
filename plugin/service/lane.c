/* The slow lane: one thread for jobs that may wait for a disk or a token, each with a limit in the
 * queue and one at work. */
#include "plugin/service/lane.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"

enum { JOBS_MAX = 64 };

struct lane_job {
    const char *what;
    const struct lane_kind *kind;
    void *context;
    int64_t limit; /* on clock_now()'s clock: first for the queue, then for the work */
};

/* The state of the running job's answer. The thread that moves it on from ANSWER_DUE gives the
 * answer. */
enum answer { ANSWER_DUE, ANSWER_UNDER_WAY, ANSWER_GIVEN };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    struct lane_job jobs[JOBS_MAX]; /* the oldest first */
    size_t count;
    struct lane_job running; /* all zero: no job is running */
    enum answer answer;
    bool closed;
    bool ended;
} lane = {.lock = PTHREAD_MUTEX_INITIALIZER, .closed = true, .ended = true};

static void lock(void)
{
    (void)pthread_mutex_lock(&lane.lock);
}

static void unlock(void)
{
    (void)pthread_mutex_unlock(&lane.lock);
}

static int64_t from_now(int64_t limit)
{
    const int64_t now = clock_now();

    return limit < CLOCK_NEVER - now ? now + limit : CLOCK_NEVER;
}

static struct lane_job take(size_t index)
{
    struct lane_job job = lane.jobs[index];

    lane.count--;
    memmove(lane.jobs + index, lane.jobs + index + 1, (lane.count - index) * sizeof job);
    return job;
}

/* ---- the lane's thread ---- */

/* The job has returned. Is its result still the answer? If another thread is answering just now, it
 * uses the context, so this waits until it is through. */
static bool take_answer(bool *closed)
{
    bool due;

    lock();
    while (lane.answer == ANSWER_UNDER_WAY)
        (void)pthread_cond_wait(&lane.changed, &lane.lock);
    due = lane.answer == ANSWER_DUE;
    lane.answer = ANSWER_GIVEN;
    *closed = lane.closed;
    unlock();
    return due;
}

static void conclude(const struct lane_job *job, const struct fault *fault)
{
    bool closed;

    if (take_answer(&closed))
        job->kind->answer(job->context, LANE_RAN, fault);
    else if (!closed && job->kind->late)
        job->kind->late(job->context, fault);
    job->kind->release(job->context);
}

/* Enters and returns with the lock held. */
static void serve(struct lane_job job)
{
    struct fault fault;
    int result;

    job.limit = from_now(job.kind->run_limit);
    lane.running = job;
    lane.answer = ANSWER_DUE;
    unlock();
    result = job.kind->run(job.context, &fault);
    conclude(&job, result == 0 ? NULL : &fault);
    lock();
    lane.running = (struct lane_job){0};
}

static void *lane_thread(void *unused)
{
    lock();
    while (!lane.closed) {
        if (lane.count == 0)
            (void)pthread_cond_wait(&lane.changed, &lane.lock);
        else
            serve(take(0));
    }
    lane.ended = true;
    (void)pthread_cond_broadcast(&lane.changed);
    unlock();
    return unused;
}

int lane_open(struct fault *fault)
{
    int error;

    condition_open(&lane.changed);
    lane.closed = false;
    lane.ended = false;
    error = pthread_create(&lane.thread, NULL, lane_thread, NULL);
    if (error != 0) {
        lane.closed = true;
        lane.ended = true;
        return fault_errno(fault, FAULT_RESOURCE_EXHAUSTED, error, "cannot start a thread");
    }
    return 0;
}

/* ---- queued jobs ---- */

/* `busy`: the running job's name; NULL between two jobs. */
static void give_up(const struct lane_job *job, const char *why, const char *busy)
{
    struct fault fault;

    (void)fault_set(&fault, FAULT_UNAVAILABLE, "%s %s%s", job->what, why, busy ? busy : "others");
    job->kind->answer(job->context, LANE_REFUSED, &fault);
    job->kind->release(job->context);
}

/* Returns why no job can be queued, or NULL. */
static const char *refuse(void)
{
    if (lane.closed)
        return "was abandoned: the plugin is stopping";
    if (lane.count == JOBS_MAX)
        return "was refused: too many calls wait behind ";
    return NULL;
}

void lane_submit(const char *what, const struct lane_kind *kind, void *context)
{
    const struct lane_job job = {what, kind, context, from_now(kind->queue_limit)};
    const char *refusal;
    const char *busy;

    lock();
    refusal = refuse();
    busy = lane.closed ? "" : lane.running.what;
    if (!refusal) {
        lane.jobs[lane.count++] = job;
        (void)pthread_cond_broadcast(&lane.changed);
    }
    unlock();
    if (refusal)
        give_up(&job, refusal, busy);
}

/* Takes a job that is past its limit or, when the lane is closed, any job. */
static bool take_late(int64_t now, struct lane_job *job, const char **busy)
{
    bool found = false;

    lock();
    for (size_t i = 0; i < lane.count && !found; i++)
        if (lane.closed || lane.jobs[i].limit <= now) {
            *job = take(i);
            found = true;
        }
    *busy = lane.running.what;
    unlock();
    return found;
}

/* ---- the running job ---- */

/* Takes over the running job's answer if it is past its limit. A job without a limit is not late
 * even at CLOCK_NEVER. */
static bool take_stuck(int64_t now, struct lane_job *job)
{
    const struct lane_job *running = &lane.running;
    bool found;

    lock();
    found = running->what && lane.answer == ANSWER_DUE && running->limit != CLOCK_NEVER &&
            running->limit <= now;
    if (found) {
        lane.answer = ANSWER_UNDER_WAY;
        *job = *running;
    }
    unlock();
    return found;
}

static void answer_stuck(const struct lane_job *job, enum lane_outcome outcome)
{
    struct fault fault;

    if (outcome == LANE_STOPPED)
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "the plugin is stopping");
    else
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "it has not ended after %d s",
                        (int)(job->kind->run_limit / CLOCK_SECOND));
    job->kind->answer(job->context, outcome, &fault);
    lock();
    lane.answer = ANSWER_GIVEN;
    (void)pthread_cond_broadcast(&lane.changed);
    unlock();
}

/* ---- limits ---- */

void lane_tick(void)
{
    struct lane_job job;
    const char *busy;

    if (take_stuck(clock_now(), &job))
        answer_stuck(&job, LANE_STUCK);
    while (take_late(clock_now(), &job, &busy))
        give_up(&job, "waited too long behind ", busy);
}

static void wait_until(int64_t end)
{
    while (!lane.ended && clock_now() < end)
        condition_wait(&lane.changed, &lane.lock, end);
}

void lane_close(int64_t wait)
{
    struct lane_job job;
    const char *busy;
    bool ended;

    lock();
    lane.closed = true;
    (void)pthread_cond_broadcast(&lane.changed);
    unlock();
    if (take_stuck(CLOCK_NEVER, &job))
        answer_stuck(&job, LANE_STOPPED);
    while (take_late(CLOCK_NEVER, &job, &busy))
        give_up(&job, refuse(), "");
    lock();
    wait_until(clock_now() + wait);
    ended = lane.ended;
    unlock();
    /* an ended thread still owns memory until it is joined (OpenSSL's) */
    if (ended)
        (void)pthread_join(lane.thread, NULL);
    else
        (void)pthread_detach(lane.thread);
}
