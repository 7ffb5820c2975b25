/* The supervisor: sends jobs to its worker, reads the replies, and ends a worker that hangs.
 * Starting and burying workers is supervisor_worker.c's. */
#include "plugin/worker/supervisor.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "hsm/base/clock.h"
#include "hsm/base/condition.h"
#include "plugin/report/log.h"
#include "plugin/report/metrics.h"
#include "plugin/worker/supervisor_private.h"

static const int64_t wait_log_interval = 10 * CLOCK_SECOND;

/* ---- requests ---- */

/* A failed send needs no handling here: the reading side will see the end of the worker, and the
 * job is still in its queue. */
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
        jobs_sent(&s->jobs, job, now);
        s->last_activity = now;
    }
}

void supervisor_submit(struct supervisor *s, const struct supervisor_request *request)
{
    struct hsm_reply refusal = {0};

    supervisor_lock(s);
    if (s->abandoned)
        (void)fault_set(&refusal.fault, FAULT_UNAVAILABLE, "the plugin is shutting down");
    else if (jobs_add(&s->jobs, request, clock_now(), &refusal.fault))
        supervisor_pump(s);
    supervisor_unlock(s);
    if (refusal.fault.code != FAULT_NONE)
        request->done(request->context, &refusal);
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

static void explain_late(struct supervisor *s, const struct job *job, struct fault *fault)
{
    const struct fault *reason = jobs_reason(&s->jobs, job);

    if (s->abandoned)
        (void)fault_set(fault, FAULT_UNAVAILABLE, "the plugin is shutting down");
    else if (job->state == JOB_SENT)
        (void)fault_set(fault, FAULT_DEADLINE_EXCEEDED, "the token has not answered in time");
    else if (s->worker != WORKER_READY)
        (void)fault_set(fault, FAULT_UNAVAILABLE, "the token is away: %s", s->reason.message);
    else if (reason)
        *fault = *reason;
    else
        (void)fault_set(fault, FAULT_UNAVAILABLE, "the token is busy: no session became free");
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

        explain_late(s, job, &reply.fault);
        jobs_abandon(&s->jobs, job);
        supervisor_unlock(s);
        done(context, &reply);
        supervisor_lock(s);
    }
    supervisor_unlock(s);
}

/* ---- replies ---- */

/* With the mutex held. Is the job to be sent again? A destruction is repeated only once, and only
 * if nothing was signed yet: a token that can only be read (a SoftHSM on a read-only disk) would
 * not sign with the fresh worker that a repetition can bring. A job is not repeated if its pause
 * would outlast its deadline. */
static bool is_worth_another_try(struct supervisor *s, struct job *job, const struct fault *fault,
                                 int64_t now)
{
    if (!jobs_may_pass(job, fault) ||
        (job->op == HSM_DESTROY && (job->tries > 0 || s->signed_once)))
        return false;
    jobs_failed(&s->jobs, job, fault, now);
    if (s->options.one_caller) /* its other requests prove nothing about this one */
        patience_wish(&s->jobs.patience, now);
    return !jobs_is_hopeless(&s->jobs, job, s->options.one_caller) &&
           jobs_due(&s->jobs, job) < job->deadline;
}

static void measure(const struct job *job, const struct hsm_reply *reply)
{
    const char *call = job->op == HSM_SIGN ? "sign" : "generate";

    if (job->op != HSM_SIGN && job->op != HSM_GENERATE)
        return;
    metrics_took(call, "wait", job->sent - job->added);
    metrics_took(call, "token", (int64_t)reply->microseconds * 1000);
}

/* With the mutex held, which it releases while it calls back. */
static void settle(struct supervisor *s, struct job *job, const struct hsm_reply *reply,
                   int64_t now)
{
    if (reply->fault.code == FAULT_NONE) {
        jobs_did_well(&s->jobs, job, now);
        measure(job, reply);
        s->signed_once = s->signed_once || job->op == HSM_SIGN;
        s->starts.fruitless = 0;
    }
    if (job->state == JOB_ABANDONED) {
        jobs_release(&s->jobs, job);
    } else if (is_worth_another_try(s, job, &reply->fault, now)) {
        (void)fault_set(&s->reason, FAULT_UNAVAILABLE, "%s", reply->fault.message);
        metrics_count(METRIC_ASKED_AGAIN, "fault", NULL, 1);
        supervisor_repeat(s, job);
    } else {
        supervisor_finish(s, job, reply);
    }
}

static void take_reply(struct supervisor *s, const struct frame *frame)
{
    struct job *job;

    supervisor_lock(s);
    job = jobs_numbered(&s->jobs, frame->number);
    if (job)
        settle(s, job, &frame->reply, clock_now());
    supervisor_pump(s);
    supervisor_unlock(s);
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
        supervisor_worker_unopened(s, &frame->reply.fault);
    else if (s->worker == WORKER_READY && frame->kind == FRAME_REPLY)
        take_reply(s, frame);
    else if (s->worker == WORKER_READY && frame->kind == FRAME_ITEM)
        take_item(s, frame);
}

/* How many ns until a paused job is due; CLOCK_NEVER if none is paused. */
static int64_t pausing(struct supervisor *s)
{
    int64_t wake;

    supervisor_lock(s);
    wake = s->jobs.wake;
    supervisor_unlock(s);
    return wake == CLOCK_NEVER ? wake : wake - clock_now();
}

/* recv() alone waits for a whole tick, which may be too long for a paused job. */
static bool has_come(struct supervisor *s)
{
    struct pollfd come = {.fd = s->child.socket, .events = POLLIN};
    int64_t left = pausing(s);

    if (left >= SUPERVISOR_TICK_MS * CLOCK_MILLISECOND)
        return true;
    return poll(&come, 1, left > 0 ? (int)(left / CLOCK_MILLISECOND) + 1 : 0) > 0;
}

static void resume(struct supervisor *s)
{
    supervisor_lock(s);
    if (s->jobs.wake <= clock_now())
        supervisor_pump(s);
    supervisor_unlock(s);
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
        supervisor_worker_leave(s, LEAVING_DIED);
    } else if (frame_decode(bytes, (size_t)got, &frame, &fault) == 0) {
        take_frame(s, &frame);
    } else {
        supervisor_worker_refused(s, &fault);
        supervisor_worker_leave(s, LEAVING_DIED);
        child_kill(&s->child);
    }
}

/* ---- the clock ---- */

int64_t supervisor_limit(const struct supervisor *s, const struct frame_slot *slot)
{
    uint32_t op = atomic_load(&slot->op);

    return op == HSM_GENERATE || op == HSM_SCAN ? s->options.generate_limit
                                                : s->options.operation_limit;
}

/* If the job is unknown, it has been answered, and the thread is about to say so. The slot is read
 * twice, as the thread may have gone on to its next request in between. */
static bool is_overdue(struct supervisor *s, const struct frame_slot *slot, int64_t now)
{
    uint32_t number = atomic_load(&slot->number);
    int64_t limit = supervisor_limit(s, slot);
    int64_t started = clock_later(atomic_load(&slot->started), s->forgiven);

    return number != 0 && now - started > limit && jobs_numbered(&s->jobs, number) &&
           number == atomic_load(&slot->number);
}

static int64_t opening_limit(const struct supervisor *s)
{
    const struct starts_opening opening = {
        .operation_limit = s->options.operation_limit,
        .startup_left = s->begun + s->options.startup_wait - s->since,
        .took = s->first_took,
    };

    return starts_limit(&s->starts, &opening);
}

/* With the mutex held. Does an idle worker leave its requests unread? Then it was stopped, or has
 * no threads left. */
static bool is_deaf(const struct supervisor *s, int64_t now)
{
    int64_t since = clock_later(clock_later(s->heard, s->last_activity), s->forgiven);

    for (size_t i = 0; i < HSM_SESSIONS_MAX; i++)
        if (atomic_load(&s->child.page->slots[i].number) != 0)
            return false;
    return s->jobs.sent > 0 && now - since > s->options.operation_limit;
}

/* Looking at a file gets the usual time, however slowly the token opens. */
static bool hangs_at_file(const struct supervisor *s, int64_t now)
{
    int64_t since = atomic_load(&s->child.page->looking);

    return since > 0 && now - clock_later(since, s->forgiven) > s->options.operation_limit;
}

static bool overdue(struct supervisor *s, int64_t now)
{
    bool overdue =
        s->worker == WORKER_OPENING &&
        (hangs_at_file(s, now) || now - clock_later(s->since, s->forgiven) > opening_limit(s));

    supervisor_lock(s);
    overdue = overdue || (s->worker == WORKER_READY && is_deaf(s, now));
    for (size_t i = 0; s->worker == WORKER_READY && i < HSM_SESSIONS_MAX; i++)
        overdue = overdue || is_overdue(s, &s->child.page->slots[i], now);
    supervisor_unlock(s);
    return overdue;
}

static const char *what_hangs(const struct supervisor *s, int64_t now)
{
    bool has_keys = s->options.settings.keys_file[0] != '\0';

    if (s->worker != WORKER_OPENING || !hangs_at_file(s, now))
        return has_keys ? "the worker of previous: keys_file hangs" : "the PKCS#11 module hangs";
    return has_keys ? "previous: keys_file does not answer, as its file system hangs"
                    : "the PIN file does not answer, as its file system hangs";
}

static void end_overdue(struct supervisor *s, int64_t now)
{
    struct fault fault;

    if (!overdue(s, now))
        return;
    (void)fault_set(&fault, FAULT_UNAVAILABLE, "%s; its worker was ended", what_hangs(s, now));
    supervisor_worker_refused(s, &fault);
    supervisor_worker_leave(s, LEAVING_HUNG);
    child_kill(&s->child);
}

static void renew(struct supervisor *s)
{
    struct fault fault;

    if (!s->renew || s->worker != WORKER_READY)
        return;
    s->renew = false;
    (void)fault_set(&fault, FAULT_UNAVAILABLE, "a new PKCS#11 worker tries it again");
    supervisor_worker_refused(s, &fault);
    supervisor_worker_leave(s, LEAVING_REPLACED);
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

/* With the mutex held. A signature in progress beside the failed one is worth waiting for. */
static bool is_worth_waiting(struct supervisor *s, int64_t now)
{
    return now - s->jobs.patience.wished < CLOCK_SECOND && jobs_may_do_well(&s->jobs);
}

/* Another worker can be started, and may do better than this one. */
static void replace(struct supervisor *s)
{
    int64_t now = clock_now();
    bool due;

    if (s->worker != WORKER_READY || !s->jobs.patience.fresh)
        return;
    supervisor_lock(s);
    due = !is_worth_waiting(s, now);
    supervisor_unlock(s);
    if (!due || supervisor_next_start(s) > now)
        return;
    s->explained = true;
    supervisor_worker_leave(s, LEAVING_REPLACED);
}

/* If the front itself stood still (a paused machine, a frozen cgroup), it cannot tell whether the
 * worker did. So the worker's limits begin anew. Deadlines stay, as they belong to the callers. */
static void forgive(struct supervisor *s, int64_t now)
{
    int64_t late = now - s->last_tick - SUPERVISOR_TICK_MS * CLOCK_MILLISECOND;

    if (s->last_tick == 0 || late <= CLOCK_SECOND)
        return;
    s->forgiven = now;
    s->leave_until += late;
}

static void tick(struct supervisor *s)
{
    int64_t now = clock_now();

    if (now - s->last_tick < SUPERVISOR_TICK_MS * CLOCK_MILLISECOND)
        return;
    forgive(s, now);
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
        supervisor_worker_leave(s, LEAVING_REPLACED);
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
        if (s->worker != WORKER_OPENING && s->worker != WORKER_READY)
            supervisor_worker_step(s);
        else if (has_come(s))
            receive(s);
        resume(s);
        replace(s);
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
    s->begun = clock_now();
    s->first_took = options->opened_in;
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

bool supervisor_trouble(struct supervisor *s, struct fault *fault)
{
    const struct fault *reason;

    if (supervisor_away(s, fault))
        return true;
    supervisor_lock(s);
    reason = jobs_trouble(&s->jobs);
    if (reason)
        *fault = *reason;
    supervisor_unlock(s);
    return reason != NULL;
}

unsigned supervisor_restarts(const struct supervisor *s)
{
    return s->restarts;
}
