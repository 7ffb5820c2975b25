#include "plugin/worker/supervisor.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "plugin/report/log.h"
#include "plugin/worker/supervisor_private.h"

static const int64_t open_limit = 60 * CLOCK_SECOND;
static const int64_t wait_log_interval = 10 * CLOCK_SECOND;

/* ---- requests ---- */

/* A send that fails is the reading side's business: it will see
 * the end of the worker, and the job is still in its queue. */
void supervisor_pump(struct supervisor *s)
{
    struct job *job;
    int64_t now;

    if (s->worker != WORKER_READY)
        return;
    now = clock_now();
    while ((job = jobs_next(&s->jobs, s->info.sessions, now)) != NULL) {
        if (send(s->child.socket, job->frame, job->length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            return;
        jobs_sent(&s->jobs, job);
        s->last_activity = now;
    }
}

static void refuse(const struct supervisor_request *request, const char *why)
{
    struct hsm_reply reply = {0};

    (void)fault_set(&reply.fault, FAULT_UNAVAILABLE, "%s", why);
    request->done(request->context, &reply);
}

void supervisor_submit(struct supervisor *s, const struct supervisor_request *request)
{
    const char *why = NULL;

    supervisor_lock(s);
    if (s->abandoned)
        why = "the plugin is shutting down";
    else if (!jobs_add(&s->jobs, request))
        why = "too many requests wait for the token";
    else
        supervisor_pump(s);
    supervisor_unlock(s);
    if (why)
        refuse(request, why);
}

void supervisor_finish(struct supervisor *s, struct job *job, const struct hsm_reply *reply)
{
    supervisor_done *done = job->done;
    void *context = job->context;

    jobs_release(&s->jobs, job);
    supervisor_unlock(s);
    done(context, reply);
    supervisor_lock(s);
}

void supervisor_repeat(struct supervisor *s, struct job *job)
{
    hsm_item_fn *item = job->item;
    void *context = job->context;

    jobs_requeue(&s->jobs, job);
    supervisor_unlock(s);
    if (item)
        item(context, NULL);
    supervisor_lock(s);
}

static void explain_late(struct supervisor *s, const struct job *job, int64_t now,
                         struct fault *fault)
{
    if (s->abandoned)
        (void)fault_set(fault, FAULT_UNAVAILABLE, "the plugin is shutting down");
    else if (job->state == JOB_SENT)
        (void)fault_set(fault, FAULT_DEADLINE_EXCEEDED, "the token has not answered in time");
    else if (jobs_deadly(&s->jobs, job, now))
        (void)fault_set(fault, FAULT_UNAVAILABLE,
                        "given up: %d PKCS#11 workers in a row ended while executing the like; "
                        "it is not tried for 30 s",
                        JOB_DEATHS_MAX);
    else if (s->worker == WORKER_READY)
        (void)fault_set(fault, FAULT_UNAVAILABLE, "the token is busy: no session became free");
    else
        (void)fault_set(fault, FAULT_UNAVAILABLE, "the token is away: %s", s->reason.message);
}

static void answer_late(struct supervisor *s)
{
    int64_t now = clock_now();
    struct job *job;

    supervisor_lock(s);
    while ((job = jobs_late(&s->jobs, now, s->abandoned)) != NULL) {
        struct hsm_reply reply = {0};
        supervisor_done *done = job->done;
        void *context = job->context;

        explain_late(s, job, now, &reply.fault);
        jobs_abandon(&s->jobs, job);
        supervisor_unlock(s);
        done(context, &reply);
        supervisor_lock(s);
    }
    supervisor_unlock(s);
}

/* ---- replies ---- */

/* What shows that workers are well, to a request of this operation: others of its kind, and
 * signatures, which every fresh worker delays. */
uint64_t supervisor_signs_of_health(const struct supervisor *s, enum hsm_op op)
{
    return s->successes[op] + (op == HSM_SIGN ? 0 : s->successes[HSM_SIGN]);
}

/* With the mutex held. A fresh process may do better: worth another try, unless the request
 * is hopeless, or what it asks for is: a key that is broken must not cost the other keys a
 * worker or more for each request, only now and then. A key that is not found although it was
 * served gets one fresh look. What is to be destroyed gets one if nothing was signed yet: it
 * has time, and from a token that can only be read (a SoftHSM on a read-only disk) no fresh
 * worker comes back to sign. */
static bool worth_another_try(struct supervisor *s, struct job *job, const struct fault *fault)
{
    bool key_gone = fault->code == FAULT_NOT_FOUND && job->op == HSM_SIGN;
    uint64_t successes = supervisor_signs_of_health(s, job->op);
    int64_t now = clock_now();
    const struct failing *failing;

    if (!jobs_repeatable(job->op) || job->op == HSM_PING || job->deadline <= now ||
        (fault->code != FAULT_UNAVAILABLE && !key_gone))
        return false;
    failing = jobs_failed(&s->jobs, job, successes, now);
    if (key_gone)
        return failing->failures == 1;
    if (job->op == HSM_DESTROY)
        return job->failures == 1 && s->successes[HSM_SIGN] == 0;
    if (s->options.one_caller && job->failures >= JOB_FAILURES_MAX)
        return false;
    return !failing->hopeless && !jobs_hopeless(job, successes);
}

/* With the mutex held, which it gives up to call back. True: a fresh worker is wanted. */
static bool settle(struct supervisor *s, struct job *job, const struct hsm_reply *reply)
{
    if (job->state == JOB_ABANDONED) {
        jobs_release(&s->jobs, job);
    } else if (worth_another_try(s, job, &reply->fault)) {
        (void)fault_set(&s->reason, FAULT_UNAVAILABLE, "%s", reply->fault.message);
        s->explained = true;
        supervisor_repeat(s, job);
        return true;
    } else {
        supervisor_finish(s, job, reply);
    }
    return false;
}

static void take_reply(struct supervisor *s, const struct frame *frame)
{
    bool fresh = false;
    struct job *job;

    supervisor_lock(s);
    job = jobs_numbered(&s->jobs, frame->number);
    if (frame->reply.fault.code == FAULT_NONE) {
        if (job) {
            s->successes[job->op]++;
            jobs_did_well(&s->jobs, job);
        }
        s->failures = 0;
    }
    if (job)
        fresh = settle(s, job, &frame->reply);
    if (!fresh)
        supervisor_pump(s);
    supervisor_unlock(s);
    if (fresh)
        supervisor_worker_leave(s, CLOCK_NEVER);
}

static void take_item(struct supervisor *s, const struct frame *frame)
{
    hsm_item_fn *item = NULL;
    void *context = NULL;
    struct job *job;

    supervisor_lock(s);
    job = jobs_numbered(&s->jobs, frame->number);
    if (job && job->state == JOB_SENT) {
        item = job->item;
        context = job->context;
    }
    supervisor_unlock(s);
    if (item)
        item(context, &frame->item);
}

static void take_frame(struct supervisor *s, const struct frame *frame)
{
    if (s->worker == WORKER_OPENING && frame->kind == FRAME_READY)
        supervisor_worker_ready(s, &frame->info);
    else if (s->worker == WORKER_OPENING && frame->kind == FRAME_REPLY)
        supervisor_worker_refused(s, &frame->reply.fault);
    else if (s->worker == WORKER_READY && frame->kind == FRAME_REPLY)
        take_reply(s, frame);
    else if (s->worker == WORKER_READY && frame->kind == FRAME_ITEM)
        take_item(s, frame);
}

static void receive(struct supervisor *s)
{
    uint8_t bytes[FRAME_MAX];
    struct frame frame;
    struct fault fault;
    ssize_t got = recv(s->child.socket, bytes, sizeof bytes, 0);
    bool silent = got < 0 && (errno == EAGAIN || errno == EINTR);

    if (silent && !child_ended(&s->child, 0))
        return;
    s->heard = clock_now();
    if (got <= 0) {
        supervisor_worker_leave(s, 0);
    } else if (frame_decode(bytes, (size_t)got, &frame, &fault) == 0) {
        take_frame(s, &frame);
    } else {
        supervisor_worker_refused(s, &fault);
        supervisor_worker_leave(s, 0);
        child_kill(&s->child);
    }
}

/* ---- the clock ---- */

/* A job that is not known any more has been answered: the thread is about to say so. */
static int64_t execution_limit(struct supervisor *s, uint32_t number)
{
    const struct job *job = jobs_numbered(&s->jobs, number);

    if (!job)
        return CLOCK_NEVER;
    if (job->op == HSM_GENERATE || job->op == HSM_SCAN)
        return s->options.generate_limit;
    return s->options.operation_limit;
}

/* A token that was open before should open as fast as it does anything else; each further
 * try may take longer, so that a slow one is not kept from opening for ever. */
static int64_t opening_limit(const struct supervisor *s)
{
    int64_t limit = s->options.operation_limit;

    if (s->info.sessions == 0)
        return open_limit;
    for (unsigned i = 0; i < s->failures && limit < open_limit; i++)
        limit *= 2;
    return limit < open_limit ? limit : open_limit;
}

/* With the mutex held: has a worker that executes nothing left lying what it was sent? It was
 * stopped, or has no threads any more. */
static bool is_deaf(const struct supervisor *s, int64_t now)
{
    int64_t latest = s->heard > s->last_activity ? s->heard : s->last_activity;

    for (size_t i = 0; i < HSM_SESSIONS_MAX; i++)
        if (atomic_load(&s->child.page->slots[i].number) != 0)
            return false;
    return s->jobs.sent > 0 && now - latest > s->options.operation_limit;
}

static bool overdue(struct supervisor *s, int64_t now)
{
    bool overdue = s->worker == WORKER_OPENING && now - s->since > opening_limit(s);

    supervisor_lock(s);
    overdue = overdue || (s->worker == WORKER_READY && is_deaf(s, now));
    for (size_t i = 0; s->worker == WORKER_READY && i < HSM_SESSIONS_MAX; i++) {
        struct frame_slot *slot = &s->child.page->slots[i];
        uint32_t number = atomic_load(&slot->number);
        int64_t started = atomic_load(&slot->started);

        /* read again: the thread may have gone on to its next request in between */
        if (number != 0 && started < now - execution_limit(s, number) &&
            number == atomic_load(&slot->number))
            overdue = true;
    }
    supervisor_unlock(s);
    return overdue;
}

static void end_overdue(struct supervisor *s, int64_t now)
{
    struct fault fault;

    if (!overdue(s, now))
        return;
    (void)fault_set(&fault, FAULT_UNAVAILABLE, "the PKCS#11 module hangs; its worker was ended");
    supervisor_worker_refused(s, &fault);
    supervisor_worker_leave(s, s->options.operation_limit);
    child_kill(&s->child);
}

static void renew(struct supervisor *s)
{
    struct fault fault;

    if (!s->renew || s->worker != WORKER_READY)
        return;
    s->renew = false;
    (void)fault_set(&fault, FAULT_UNAVAILABLE, "a fresh PKCS#11 worker is asked for its opinion");
    supervisor_worker_refused(s, &fault);
    supervisor_worker_leave(s, CLOCK_NEVER);
}

static void ping_done(void *context, const struct hsm_reply *reply)
{
    (void)context;
    (void)reply;
}

static void keep_alive(struct supervisor *s, int64_t now)
{
    const struct hsm_request ping = {.op = HSM_PING};
    const struct supervisor_request request = {
        .request = &ping, .deadline = now + 10 * CLOCK_SECOND, .done = ping_done};
    bool due;

    supervisor_lock(s);
    due = s->options.keep_alive > 0 && s->worker == WORKER_READY && s->jobs.sent == 0 &&
          now - s->last_activity > s->options.keep_alive;
    supervisor_unlock(s);
    if (due)
        supervisor_submit(s, &request);
}

static void tick(struct supervisor *s)
{
    int64_t now = clock_now();

    if (now - s->last_tick < SUPERVISOR_TICK_MS * CLOCK_MILLISECOND)
        return;
    s->last_tick = now;
    if (s->worker != WORKER_NONE)
        child_log_stderr(&s->child);
    supervisor_worker_reap(s, 0);
    end_overdue(s, now);
    renew(s);
    answer_late(s);
    keep_alive(s, now);
    if (s->options.tick)
        s->options.tick(s->options.context);
}

/* ---- life ---- */

static bool wanted(struct supervisor *s)
{
    bool idle;

    if (s->abandoned)
        return false;
    supervisor_lock(s);
    idle = jobs_idle(&s->jobs);
    supervisor_unlock(s);
    if (!s->retired || !idle)
        return true;
    if (s->worker == WORKER_OPENING || s->worker == WORKER_READY)
        supervisor_worker_leave(s, CLOCK_NEVER);
    return s->worker != WORKER_NONE;
}

static void destroy(struct supervisor *s)
{
    void (*ended)(void *) = s->options.ended;
    void *context = s->options.context;

    hsm_settings_wipe(&s->options.settings);
    (void)pthread_cond_destroy(&s->changed);
    (void)pthread_mutex_destroy(&s->mutex);
    free(s);
    if (ended)
        ended(context);
}

static void *supervise(void *context)
{
    struct supervisor *s = context;
    bool retired;

    while (wanted(s)) {
        if (s->worker == WORKER_OPENING || s->worker == WORKER_READY)
            receive(s);
        else
            supervisor_worker_step(s);
        tick(s);
    }
    while (s->left_behind.pid > 0 && !s->abandoned)
        supervisor_worker_reap(s, SUPERVISOR_TICK_MS);
    supervisor_lock(s);
    if (s->worker != WORKER_NONE)
        child_hang_up(&s->child);
    s->ended = true;
    retired = s->retired;
    supervisor_unlock(s);
    if (retired) {
        (void)pthread_detach(pthread_self());
        destroy(s);
    }
    return NULL;
}

int supervisor_start(const struct supervisor_options *options, struct supervisor **supervisor,
                     struct fault *fault)
{
    struct supervisor *s = calloc(1, sizeof *s);

    if (!s)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    s->options = *options;
    (void)pthread_mutex_init(&s->mutex, NULL);
    condition_open(&s->changed);
    jobs_open(&s->jobs);
    (void)fault_set(&s->reason, FAULT_UNAVAILABLE, "the PKCS#11 module is still being loaded");
    if (pthread_create(&s->thread, NULL, supervise, s) != 0) {
        hsm_settings_wipe(&s->options.settings);
        free(s);
        return fault_set(fault, FAULT_UNAVAILABLE, "cannot start the supervisor's thread");
    }
    *supervisor = s;
    return 0;
}

int supervisor_wait(struct supervisor *s, int64_t deadline, const atomic_bool *cancel,
                    struct hsm_token_info *info, struct fault *fault)
{
    int64_t log_at = clock_now() + wait_log_interval;
    int result = 0;

    supervisor_lock(s);
    while (s->worker != WORKER_READY && s->reason.code == FAULT_UNAVAILABLE && !*cancel &&
           (!s->tried || clock_now() < deadline)) {
        if (clock_now() >= log_at) {
            log_fault(LOG_WARN, &s->reason, "waiting for the token", NULL);
            log_at += wait_log_interval;
        }
        condition_wait(&s->changed, &s->mutex,
                       clock_now() + SUPERVISOR_TICK_MS * CLOCK_MILLISECOND);
    }
    if (s->worker == WORKER_READY)
        *info = s->info;
    else
        result = fault_set(fault, s->reason.code, "%s", s->reason.message);
    supervisor_unlock(s);
    return result;
}

void supervisor_renew(struct supervisor *s)
{
    s->renew = true;
}

void supervisor_retire(struct supervisor *s)
{
    bool ended;

    supervisor_lock(s);
    s->retired = true;
    ended = s->ended;
    supervisor_unlock(s);
    if (ended)
        destroy(s);
}

void supervisor_abandon(struct supervisor *s)
{
    s->abandoned = true;
    (void)pthread_join(s->thread, NULL);
    answer_late(s);
}

void supervisor_info(struct supervisor *s, struct hsm_token_info *info)
{
    supervisor_lock(s);
    *info = s->info;
    supervisor_unlock(s);
}

bool supervisor_away(struct supervisor *s, struct fault *fault)
{
    bool away;

    supervisor_lock(s);
    away = s->worker != WORKER_READY && s->reason.code != FAULT_NONE;
    if (away)
        *fault = s->reason;
    supervisor_unlock(s);
    return away;
}

unsigned supervisor_restarts(const struct supervisor *s)
{
    return s->restarts;
}
