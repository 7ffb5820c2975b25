#include "plugin/service/lane.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"

enum { JOBS_MAX = 64 };

struct lane_job {
    const char *what;
    int64_t limit; /* on clock_now()'s clock */
    lane_run *run;
    lane_give_up *give_up;
    void *context;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    struct lane_job jobs[JOBS_MAX]; /* the oldest first */
    size_t count;
    const char *running; /* what, or NULL */
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

static struct lane_job take(size_t index)
{
    struct lane_job job = lane.jobs[index];

    lane.count--;
    memmove(lane.jobs + index, lane.jobs + index + 1, (lane.count - index) * sizeof job);
    return job;
}

static void *lane_thread(void *unused)
{
    lock();
    while (!lane.closed) {
        struct lane_job job;

        if (lane.count == 0) {
            (void)pthread_cond_wait(&lane.changed, &lane.lock);
            continue;
        }
        job = take(0);
        lane.running = job.what;
        unlock();
        job.run(job.context);
        lock();
        lane.running = NULL;
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

static void give_up(const struct lane_job *job, const char *why, const char *busy)
{
    struct fault fault;

    (void)fault_set(&fault, FAULT_UNAVAILABLE, "%s %s%s", job->what, why, busy ? busy : "others");
    job->give_up(job->context, &fault);
}

/* Why a job cannot be queued, or NULL. */
static const char *refuse(void)
{
    if (lane.closed)
        return "was given up: the plugin is stopping";
    if (lane.count == JOBS_MAX)
        return "was refused: too much is waiting behind ";
    return NULL;
}

void lane_submit(const char *what, int64_t limit, lane_run *run, lane_give_up *give, void *context)
{
    struct lane_job job = {what, CLOCK_NEVER, run, give, context};
    const char *refusal;
    const char *busy;

    if (limit < CLOCK_NEVER - clock_now())
        job.limit = clock_now() + limit;
    lock();
    refusal = refuse();
    busy = lane.closed ? "" : lane.running;
    if (!refusal) {
        lane.jobs[lane.count++] = job;
        (void)pthread_cond_broadcast(&lane.changed);
    }
    unlock();
    if (refusal)
        give_up(&job, refusal, busy);
}

/* Takes one job that is past its limit (or, when closed, any). */
static bool take_late(int64_t now, struct lane_job *job, const char **busy)
{
    bool found = false;

    lock();
    for (size_t i = 0; i < lane.count && !found; i++)
        if (lane.closed || lane.jobs[i].limit <= now) {
            *job = take(i);
            found = true;
        }
    *busy = lane.running;
    unlock();
    return found;
}

void lane_tick(void)
{
    struct lane_job job;
    const char *busy;

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
    while (take_late(CLOCK_NEVER, &job, &busy))
        give_up(&job, refuse(), "");
    lock();
    wait_until(clock_now() + wait);
    ended = lane.ended;
    unlock();
    /* one that has ended but for its last step still owns memory (OpenSSL's, per thread) */
    if (ended)
        (void)pthread_join(lane.thread, NULL);
    else
        (void)pthread_detach(lane.thread);
}
