/* The requests to the worker: queued, paused, sent, asked again. Which of them may run beside
 * others is patience.c's. */
#include "plugin/worker/jobs.h"

#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/wire/frame.h"

enum { SLOT_BITS = 11 };

_Static_assert(SUPERVISOR_REQUESTS_MAX == 1 << SLOT_BITS, "a slot fits its bits");

static const struct {
    bool slow;
    bool repeat; /* may be sent again after its outcome was lost */
    bool look;   /* its caller looks at the token again by itself */
} operations[] = {
    [HSM_SCAN] = {.slow = true, .repeat = true, .look = true},
    [HSM_GENERATE] = {.slow = true},
    [HSM_PROVE] = {.repeat = true, .look = true},
    [HSM_SIGN] = {.repeat = true},
    [HSM_DESTROY] = {.slow = true, .repeat = true, .look = true},
    [HSM_PING] = {.repeat = true},
};

bool jobs_repeatable(enum hsm_op op)
{
    return operations[op].repeat;
}

void jobs_open(struct jobs *jobs)
{
    TAILQ_INIT(&jobs->quick);
    TAILQ_INIT(&jobs->slow);
    TAILQ_INIT(&jobs->at_worker);
    TAILQ_INIT(&jobs->free);
    jobs->wake = CLOCK_NEVER;
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

/* The caller frees it. NULL: out of memory. */
static uint8_t *encode(uint32_t number, const struct hsm_request *request, size_t *length)
{
    struct frame frame = {.kind = FRAME_REQUEST, .number = number, .request = *request};
    uint8_t bytes[FRAME_MAX];
    uint8_t *copy;

    *length = frame_encode(&frame, bytes);
    copy = malloc(*length);
    if (copy)
        memcpy(copy, bytes, *length);
    return copy;
}

/* FNV-1a */
static uint64_t subject_of(const struct hsm_request *request)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ request->op;

    for (const char *c = request->key.label; *c != '\0'; c++)
        hash = (hash ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
    return hash;
}

/* ---- room ---- */

static unsigned count_queued(struct jobs *jobs, enum hsm_op op, uint64_t subject)
{
    const struct job *job;
    unsigned count = 0;

    TAILQ_FOREACH (job, operations[op].slow ? &jobs->slow : &jobs->quick, link)
        count += job->subject == subject;
    return count;
}

static bool has_room(struct jobs *jobs, const struct hsm_request *request, struct fault *why)
{
    const struct suspect *suspect;
    uint64_t subject;

    if (jobs->patience.count == 0)
        return true;
    subject = subject_of(request);
    suspect = patience_find(&jobs->patience, subject);
    if (!suspect || count_queued(jobs, request->op, subject) < SUSPECT_QUEUED_MAX)
        return true;
    (void)fault_set(why, FAULT_UNAVAILABLE, "too many requests wait for this key: %s",
                    suspect->reason.message);
    return false;
}

static uint32_t next_number(const struct job *job)
{
    uint32_t number = job->number + SUPERVISOR_REQUESTS_MAX;

    /* numbers wrap around, and 0 means idle in the shared page */
    return number < SUPERVISOR_REQUESTS_MAX ? number + SUPERVISOR_REQUESTS_MAX : number;
}

struct job *jobs_add(struct jobs *jobs, const struct supervisor_request *request, int64_t now,
                     struct fault *why)
{
    struct job *job = TAILQ_FIRST(&jobs->free);
    uint8_t *frame;

    if (!job) {
        (void)fault_set(why, FAULT_UNAVAILABLE, "too many requests wait for the token");
        return NULL;
    }
    if (!has_room(jobs, request->request, why))
        return NULL;
    job->number = next_number(job);
    frame = encode(job->number, request->request, &job->length);
    if (!frame) {
        (void)fault_set(why, FAULT_UNAVAILABLE, "out of memory");
        return NULL;
    }
    TAILQ_REMOVE(&jobs->free, job, link);
    job->frame = frame;
    job->op = request->request->op;
    job->order = jobs->orders++;
    job->subject = subject_of(request->request);
    job->tries = 0;
    job->added = now;
    job->failed = 0;
    job->not_before = 0;
    job->deadline = request->deadline;
    job->done = request->done;
    job->item = request->item;
    job->context = request->context;
    enqueue(jobs, job);
    return job;
}

/* ---- who is next ---- */

static void count_out(struct jobs *jobs)
{
    const struct job *job;

    if (jobs->patience.count == 0)
        return;
    for (size_t i = 0; i < jobs->patience.count; i++)
        jobs->patience.suspects[i].out = 0;
    TAILQ_FOREACH (job, &jobs->at_worker, link) {
        struct suspect *suspect = patience_find(&jobs->patience, job->subject);

        if (suspect)
            suspect->out++;
    }
}

/* A paused job is looked at again when it is due. A job that waits for others is looked at when
 * they are back. */
static bool is_due(struct jobs *jobs, const struct job *job, const struct suspect *suspect,
                   int64_t now)
{
    int64_t due;

    if (!suspect && job->tries == 0)
        return true;
    due = patience_due(&jobs->patience, suspect, job->not_before, job->failed, job->deadline);
    if (due > now && due < jobs->wake)
        jobs->wake = due;
    return due <= now;
}

static struct job *probe_of(struct jobs *jobs, struct job *first, const struct suspect *suspect,
                            int64_t now)
{
    struct job *best = first;

    for (struct job *job = first; job; job = TAILQ_NEXT(job, link))
        if (job->subject == first->subject && job->tries < best->tries && job->deadline > now &&
            is_due(jobs, job, suspect, now))
            best = job;
    return best;
}

static struct job *first_of(struct jobs *jobs, struct job_queue *queue, unsigned threads,
                            int64_t now)
{
    struct job *job;

    TAILQ_FOREACH (job, queue, link) {
        const struct suspect *suspect = patience_find(&jobs->patience, job->subject);

        if (job->deadline <= now || !is_due(jobs, job, suspect, now))
            continue;
        if (!suspect)
            return job;
        if (patience_admits(&jobs->patience, suspect, threads))
            return probe_of(jobs, job, suspect, now);
    }
    return NULL;
}

struct job *jobs_next(struct jobs *jobs, unsigned threads, int64_t now)
{
    unsigned slow_max = threads > 1 ? threads / 2 : 1;
    struct job *job = NULL;

    jobs->wake = CLOCK_NEVER;
    if (jobs->sent >= 2 * threads)
        return NULL;
    count_out(jobs);
    if (jobs->slow_sent < slow_max)
        job = first_of(jobs, &jobs->slow, threads, now);
    return job ? job : first_of(jobs, &jobs->quick, threads, now);
}

void jobs_sent(struct jobs *jobs, struct job *job, int64_t now)
{
    TAILQ_REMOVE(queue_of(jobs, job), job, link);
    TAILQ_INSERT_TAIL(&jobs->at_worker, job, link);
    job->state = JOB_SENT;
    job->sent = now;
    jobs->sent++;
    if (operations[job->op].slow)
        jobs->slow_sent++;
}

/* Takes the job out of the list that it is in. */
static void take_out(struct jobs *jobs, struct job *job)
{
    if (job->state == JOB_QUEUED) {
        TAILQ_REMOVE(queue_of(jobs, job), job, link);
        return;
    }
    TAILQ_REMOVE(&jobs->at_worker, job, link);
    jobs->sent--;
    if (operations[job->op].slow)
        jobs->slow_sent--;
}

void jobs_requeue(struct jobs *jobs, struct job *job)
{
    take_out(jobs, job);
    enqueue(jobs, job);
}

/* ---- what became of them ---- */

void jobs_did_well(struct jobs *jobs, const struct job *job, int64_t now)
{
    if (job->op != HSM_PING) /* a token that answers a ping may still be unable to sign */
        patience_well(&jobs->patience, job->subject, now);
}

static void expire(struct jobs *jobs, struct job *probe, int64_t now)
{
    const struct suspect *suspect = patience_find(&jobs->patience, probe->subject);
    struct job *job;

    if (!suspect || !patience_is_over(&jobs->patience, suspect, now))
        return;
    probe->deadline = now;
    TAILQ_FOREACH (job, queue_of(jobs, probe), link)
        if (job->subject == probe->subject && job->added <= probe->sent)
            job->deadline = now;
}

int64_t jobs_due(struct jobs *jobs, const struct job *job)
{
    return patience_due(&jobs->patience, patience_find(&jobs->patience, job->subject),
                        job->not_before, job->failed, job->deadline);
}

void jobs_failed(struct jobs *jobs, struct job *job, const struct fault *fault, int64_t now)
{
    job->tries++;
    job->failed = now;
    job->not_before = now + patience_pause(job->tries);
    patience_fault(&jobs->patience, job->subject, job->sent, fault, now);
    expire(jobs, job, now);
}

void jobs_died(struct jobs *jobs, struct job *const *executing, size_t count, int64_t now)
{
    uint64_t subjects[HSM_SESSIONS_MAX] = {0};
    const struct suspect *suspect;
    size_t blamed = 0;

    for (size_t i = 0; i < count && blamed < HSM_SESSIONS_MAX; i++)
        if (operations[executing[i]->op]
                .repeat) /* a job that is not repeated can do no further harm */
            subjects[blamed++] = executing[i]->subject;
    patience_death(&jobs->patience, subjects, blamed, now);
    for (size_t i = 0; i < count; i++) {
        suspect = patience_find(&jobs->patience, executing[i]->subject);
        if (suspect && suspect->struck == now) {
            executing[i]->tries++;
            expire(jobs, executing[i], now);
        }
    }
}

void jobs_hung(struct jobs *jobs, struct job *job, int64_t now)
{
    job->tries++;
    patience_hang(&jobs->patience, job->subject, now);
    expire(jobs, job, now);
}

/* An internal error without a CKR means that the token did something wrong and may do it right the
 * next time: a signature that does not verify, or of a wrong length. */
bool jobs_may_pass(const struct job *job, const struct fault *fault)
{
    if (!operations[job->op].repeat || job->op == HSM_PING)
        return false;
    if (job->op != HSM_SIGN)
        return fault->code == FAULT_UNAVAILABLE;
    return fault->code == FAULT_UNAVAILABLE || fault->code == FAULT_NOT_FOUND ||
           fault->code == FAULT_RESOURCE_EXHAUSTED ||
           (fault->code == FAULT_INTERNAL && fault->ckr == 0);
}

bool jobs_is_hopeless(struct jobs *jobs, const struct job *job, bool one_caller)
{
    const struct suspect *suspect = patience_find(&jobs->patience, job->subject);

    if (job->tries < JOB_TRIES_MAX)
        return false;
    return one_caller ||
           (operations[job->op].look && suspect && patience_alone(&jobs->patience, suspect));
}

const struct fault *jobs_reason(struct jobs *jobs, const struct job *job)
{
    const struct suspect *suspect = patience_find(&jobs->patience, job->subject);

    return suspect ? &suspect->reason : NULL;
}

static const struct fault *trouble_in(struct jobs *jobs, const struct job_queue *queue)
{
    const struct job *job;

    TAILQ_FOREACH (job, queue, link)
        if (job->tries > 0 && jobs_reason(jobs, job))
            return jobs_reason(jobs, job);
    return NULL;
}

const struct fault *jobs_trouble(struct jobs *jobs)
{
    const struct fault *quick = trouble_in(jobs, &jobs->quick);
    const struct fault *slow = quick ? quick : trouble_in(jobs, &jobs->slow);

    return slow ? slow : trouble_in(jobs, &jobs->at_worker);
}

/* ---- the end ---- */

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
    return TAILQ_FIRST(&jobs->at_worker);
}

struct job *jobs_late(struct jobs *jobs, int64_t now, bool any)
{
    for (size_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++) {
        struct job *job = &jobs->table[i];
        bool waits = job->state == JOB_QUEUED || job->state == JOB_SENT;
        bool may_be_late = job->state == JOB_QUEUED || operations[job->op].repeat;

        if (waits && (any || (may_be_late && job->deadline <= now)))
            return job;
    }
    return NULL;
}

bool jobs_may_do_well(struct jobs *jobs)
{
    const struct job *job;

    TAILQ_FOREACH (job, &jobs->at_worker, link)
        if (!operations[job->op].slow && !patience_find(&jobs->patience, job->subject))
            return true;
    return false;
}

int64_t jobs_first_deadline(const struct jobs *jobs)
{
    int64_t first = CLOCK_NEVER;

    for (size_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++)
        if (jobs->table[i].state == JOB_QUEUED && jobs->table[i].deadline < first)
            first = jobs->table[i].deadline;
    return first;
}

bool jobs_idle(const struct jobs *jobs)
{
    return jobs->sent == 0 && TAILQ_EMPTY(&jobs->quick) && TAILQ_EMPTY(&jobs->slow);
}

unsigned jobs_queued(const struct jobs *jobs, int64_t now, int64_t *waited)
{
    const struct job_queue *const queues[] = {&jobs->quick, &jobs->slow};
    const struct job *job;
    unsigned count = 0;

    *waited = 0;
    for (size_t i = 0; i < sizeof queues / sizeof queues[0]; i++)
        TAILQ_FOREACH (job, queues[i], link) {
            count++;
            if (now - job->added > *waited)
                *waited = now - job->added;
        }
    return count;
}
