#include "plugin/worker/jobs.h"

#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/wire/frame.h"

enum { SLOT_BITS = 11 };

static const int64_t failing_for = 30 * CLOCK_SECOND;

_Static_assert(SUPERVISOR_REQUESTS_MAX == 1 << SLOT_BITS, "a slot fits its bits");

static const struct {
    bool slow;
    bool repeat;
} operations[] = {
    [HSM_SCAN] = {.slow = true, .repeat = true},
    [HSM_GENERATE] = {.slow = true, .repeat = false},
    [HSM_PROVE] = {.slow = false, .repeat = true},
    [HSM_SIGN] = {.slow = false, .repeat = true},
    [HSM_DESTROY] = {.slow = true, .repeat = true},
    [HSM_PING] = {.slow = false, .repeat = true},
};

bool jobs_repeatable(enum hsm_op op)
{
    return operations[op].repeat;
}

void jobs_open(struct jobs *jobs)
{
    TAILQ_INIT(&jobs->quick);
    TAILQ_INIT(&jobs->slow);
    TAILQ_INIT(&jobs->free);
    for (uint32_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++) {
        jobs->table[i].number = i;
        TAILQ_INSERT_TAIL(&jobs->free, &jobs->table[i], link);
    }
}

static struct job_queue *queue_of(struct jobs *jobs, const struct job *job)
{
    return operations[job->op].slow ? &jobs->slow : &jobs->quick;
}

static void enqueue(struct jobs *jobs, struct job *job)
{
    struct job_queue *queue = queue_of(jobs, job);
    struct job *before = TAILQ_LAST(queue, job_queue);

    job->state = JOB_QUEUED;
    while (before && before->order > job->order)
        before = TAILQ_PREV(before, job_queue, link);
    if (before)
        TAILQ_INSERT_AFTER(queue, before, job, link);
    else
        TAILQ_INSERT_HEAD(queue, job, link);
}

static bool encode(struct job *job, const struct hsm_request *request)
{
    struct frame frame = {.kind = FRAME_REQUEST, .number = job->number, .request = *request};
    uint8_t bytes[FRAME_MAX];

    job->length = frame_encode(&frame, bytes);
    job->frame = malloc(job->length);
    if (job->frame)
        memcpy(job->frame, bytes, job->length);
    return job->frame != NULL;
}

/* FNV-1a */
static uint64_t subject_of(const struct hsm_request *request)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ request->op;

    for (const char *c = request->key.label; *c != '\0'; c++)
        hash = (hash ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
    return hash;
}

struct job *jobs_add(struct jobs *jobs, const struct supervisor_request *request)
{
    struct job *job = TAILQ_FIRST(&jobs->free);
    uint32_t number;

    if (!job)
        return NULL;
    number = job->number + SUPERVISOR_REQUESTS_MAX;
    if (number < SUPERVISOR_REQUESTS_MAX) /* wrapped: 0 means idle in the shared page */
        number += SUPERVISOR_REQUESTS_MAX;
    job->number = number;
    if (!encode(job, request->request))
        return NULL;
    TAILQ_REMOVE(&jobs->free, job, link);
    job->op = request->request->op;
    job->order = jobs->orders++;
    job->subject = subject_of(request->request);
    job->deaths = 0;
    job->failures = 0;
    job->deadline = request->deadline;
    job->done = request->done;
    job->item = request->item;
    job->context = request->context;
    enqueue(jobs, job);
    return job;
}

static struct failing *failing_of(struct jobs *jobs, const struct job *job)
{
    for (size_t i = 0; i < FAILINGS_MAX; i++)
        if (jobs->failing[i].since > 0 && jobs->failing[i].subject == job->subject)
            return &jobs->failing[i];
    return NULL;
}

bool jobs_deadly(struct jobs *jobs, const struct job *job, int64_t now)
{
    const struct failing *failing = failing_of(jobs, job);

    return failing && failing->deadly && now - failing->died <= failing_for;
}

static struct job *first_alive(struct jobs *jobs, struct job_queue *queue, int64_t now)
{
    struct job *job;

    TAILQ_FOREACH (job, queue, link)
        if (job->deadline > now && !jobs_deadly(jobs, job, now))
            return job;
    return NULL;
}

/* Scans and the like take too long to keep all others waiting. */
static bool is_suspect(struct jobs *jobs, const struct job *job)
{
    const struct failing *failing = failing_of(jobs, job);

    return (job->deaths >= JOB_DEATHS_MAX - 1 || job->failures > 0 ||
            (failing && (failing->deaths > 0 || !failing->hopeless))) &&
           !operations[job->op].slow;
}

struct job *jobs_next(struct jobs *jobs, unsigned threads, int64_t now)
{
    unsigned slow_max = threads > 1 ? threads / 2 : 1;
    struct job *job = NULL;

    if (jobs->sent >= 2 * threads || jobs->alone > 0)
        return NULL;
    if (jobs->slow_sent < slow_max)
        job = first_alive(jobs, &jobs->slow, now);
    if (!job)
        job = first_alive(jobs, &jobs->quick, now);
    return job && is_suspect(jobs, job) && jobs->sent > jobs->slow_sent ? NULL : job;
}

void jobs_sent(struct jobs *jobs, struct job *job)
{
    TAILQ_REMOVE(queue_of(jobs, job), job, link);
    job->state = JOB_SENT;
    job->alone = is_suspect(jobs, job);
    jobs->sent++;
    jobs->alone += job->alone;
    if (operations[job->op].slow)
        jobs->slow_sent++;
}

/* Out of whatever it is in. */
static void take_out(struct jobs *jobs, struct job *job)
{
    if (job->state == JOB_QUEUED) {
        TAILQ_REMOVE(queue_of(jobs, job), job, link);
        return;
    }
    jobs->sent--;
    jobs->alone -= job->alone;
    job->alone = false;
    if (operations[job->op].slow)
        jobs->slow_sent--;
}

void jobs_requeue(struct jobs *jobs, struct job *job)
{
    take_out(jobs, job);
    if (job->failures > 0 || failing_of(jobs, job))
        job->order = jobs->orders++;
    enqueue(jobs, job);
}

/* A free place has been one since 0. */
static struct failing *oldest_failing(struct jobs *jobs)
{
    struct failing *oldest = &jobs->failing[0];

    for (size_t i = 1; i < FAILINGS_MAX; i++)
        if (jobs->failing[i].since < oldest->since)
            oldest = &jobs->failing[i];
    return oldest;
}

static void move_behind(struct jobs *jobs, const struct job *failed)
{
    struct job_queue *queue = queue_of(jobs, failed);
    struct job *job = TAILQ_FIRST(queue);
    uint64_t end = jobs->orders;
    struct job *next;

    for (; job && job->order < end; job = next) {
        next = TAILQ_NEXT(job, link);
        if (job->subject != failed->subject)
            continue;
        TAILQ_REMOVE(queue, job, link);
        job->order = jobs->orders++;
        TAILQ_INSERT_TAIL(queue, job, link);
    }
}

static struct failing *remember(struct jobs *jobs, const struct job *job, uint64_t successes,
                                int64_t now)
{
    struct failing *failing = failing_of(jobs, job);

    if (!failing || now - failing->since > failing_for) {
        failing = failing ? failing : oldest_failing(jobs);
        *failing =
            (struct failing){.subject = job->subject, .successes_seen = successes, .since = now};
    }
    move_behind(jobs, job);
    return failing;
}

const struct failing *jobs_failed(struct jobs *jobs, struct job *job, uint64_t successes,
                                  int64_t now)
{
    struct failing *failing = remember(jobs, job, successes, now);

    if (job->failures++ == 0)
        job->successes_seen = successes;
    failing->failures++;
    failing->hopeless =
        failing->failures >= JOB_FAILURES_MAX && successes != failing->successes_seen;
    return failing;
}

/* What cannot be repeated is not asked for again. */
void jobs_died(struct jobs *jobs, struct job *job, uint64_t successes, int64_t now)
{
    struct failing *failing;

    job->deaths++;
    if (!operations[job->op].repeat)
        return;
    failing = remember(jobs, job, successes, now);
    if (failing->died == now) /* with this worker, counted for another job */
        return;
    failing->died = now;
    failing->deaths++;
    failing->deadly = failing->deaths >= JOB_DEATHS_MAX && successes != failing->successes_seen;
}

bool jobs_hopeless(const struct job *job, uint64_t successes)
{
    return job->failures >= JOB_FAILURES_MAX &&
           (successes != job->successes_seen || job->deadline == CLOCK_NEVER);
}

void jobs_did_well(struct jobs *jobs, const struct job *job)
{
    struct failing *failing = failing_of(jobs, job);

    if (failing)
        *failing = (struct failing){.since = 0};
}

void jobs_abandon(struct jobs *jobs, struct job *job)
{
    if (job->state != JOB_SENT) {
        jobs_release(jobs, job);
        return;
    }
    free(job->frame); /* it will not be sent again */
    job->frame = NULL;
    job->state = JOB_ABANDONED;
}

void jobs_release(struct jobs *jobs, struct job *job)
{
    take_out(jobs, job);
    free(job->frame);
    job->frame = NULL;
    job->state = JOB_FREE;
    TAILQ_INSERT_HEAD(&jobs->free, job, link);
}

struct job *jobs_numbered(struct jobs *jobs, uint32_t number)
{
    struct job *job = &jobs->table[number & (SUPERVISOR_REQUESTS_MAX - 1)];
    bool at_worker = job->state == JOB_SENT || job->state == JOB_ABANDONED;

    return at_worker && job->number == number ? job : NULL;
}

struct job *jobs_at_worker(struct jobs *jobs)
{
    for (size_t i = 0; jobs->sent > 0 && i < SUPERVISOR_REQUESTS_MAX; i++)
        if (jobs->table[i].state == JOB_SENT || jobs->table[i].state == JOB_ABANDONED)
            return &jobs->table[i];
    return NULL;
}

struct job *jobs_late(struct jobs *jobs, int64_t now, bool any)
{
    for (size_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++) {
        struct job *job = &jobs->table[i];
        bool waits = job->state == JOB_QUEUED || job->state == JOB_SENT;
        bool may_be_late = job->state == JOB_QUEUED || operations[job->op].repeat;

        if (waits && (any || (may_be_late && job->deadline <= now) ||
                      (job->state == JOB_QUEUED && jobs_deadly(jobs, job, now))))
            return job;
    }
    return NULL;
}

bool jobs_idle(const struct jobs *jobs)
{
    return jobs->sent == 0 && TAILQ_EMPTY(&jobs->quick) && TAILQ_EMPTY(&jobs->slow);
}
