/* The life of a worker: starting, opening the token, leaving, and who is blamed for its end. */
#include "plugin/worker/supervisor_private.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "hsm/base/clock.h"
#include "plugin/report/log.h"
#include "plugin/report/metrics.h"

static const int64_t leave_limit = 2 * CLOCK_SECOND;
static const int64_t leave_limit_generating = 10 * CLOCK_SECOND;
static const int64_t kill_limit = 3 * CLOCK_SECOND;

static void set_worker(struct supervisor *s, enum worker_state worker)
{
    s->since = clock_now();
    if (s->worker == WORKER_READY)
        s->away_since = s->since;
    s->worker = worker;
    (void)pthread_cond_broadcast(&s->changed);
}

/* ---- the end of a worker ---- */

/* The slot where the worker executes this job; NULL if it does not. */
static const struct frame_slot *executing(const struct supervisor *s, const struct job *job)
{
    for (size_t i = 0; i < HSM_SESSIONS_MAX; i++) {
        const struct frame_slot *slot = &s->child.page->slots[i];
        int64_t started = atomic_load(&slot->started);

        if (atomic_load(&slot->number) == job->number && started > 0 && started <= s->since)
            return slot;
    }
    return NULL;
}

/* The time that was forgiven does not count. */
static bool hangs(const struct supervisor *s, const struct frame_slot *slot)
{
    int64_t started = clock_later(atomic_load(&slot->started), s->forgiven);

    return s->since - started > supervisor_limit(s, slot);
}

/* With the mutex held. */
static void blame(struct supervisor *s, enum leaving why)
{
    struct job *guilty[HSM_SESSIONS_MAX];
    size_t count = 0;
    struct job *job;

    TAILQ_FOREACH (job, &s->jobs.at_worker, link) {
        const struct frame_slot *slot = executing(s, job);

        if (why == LEAVING_HUNG && slot && hangs(s, slot))
            jobs_hung(&s->jobs, job, s->since);
        else if (why == LEAVING_DIED && slot && count < HSM_SESSIONS_MAX)
            guilty[count++] = job;
    }
    jobs_died(&s->jobs, guilty, count, s->since);
}

/* With the mutex held. How long the worker may take to leave before it is killed. HSM_GENERATE gets
 * more, as a half-written key is worse than a late exit. The worker counts HSM_DESTROY as a write
 * too, but here it gets the usual time: if it is cut short, its caller asks again, and that
 * destroys what is left. */
static int64_t time_to_leave(struct supervisor *s)
{
    const struct job *job;

    TAILQ_FOREACH (job, &s->jobs.at_worker, link)
        if (job->op == HSM_GENERATE && executing(s, job))
            return leave_limit_generating;
    return leave_limit;
}

/* Its jobs are dealt with when the process has ended, so that nothing it still does can meet its
 * successor's work. */
void supervisor_worker_leave(struct supervisor *s, enum leaving why)
{
    supervisor_lock(s);
    if (!s->explained)
        (void)fault_set(&s->reason, FAULT_UNAVAILABLE, "the PKCS#11 worker ended");
    set_worker(s, WORKER_LEAVING);
    s->why = why;
    blame(s, why);
    s->leave_until = s->since + time_to_leave(s);
    child_hang_up(&s->child);
    supervisor_unlock(s);
}

/* With the mutex held, which it releases while it calls back. */
static void bury_job(struct supervisor *s, struct job *job)
{
    struct hsm_reply reply = {0};

    if (job->state == JOB_ABANDONED) {
        jobs_release(&s->jobs, job);
    } else if (!jobs_repeatable(job->op)) {
        (void)fault_set(&reply.fault, FAULT_ABORTED,
                        "the PKCS#11 worker ended in the middle of it");
        supervisor_finish(s, job, &reply);
    } else if (jobs_is_hopeless(&s->jobs, job, s->options.one_caller)) {
        const struct fault *reason = jobs_reason(&s->jobs, job);

        reply.fault = reason ? *reason : s->reason;
        supervisor_finish(s, job, &reply);
    } else {
        metrics_count(METRIC_ASKED_AGAIN, "worker", NULL, 1);
        supervisor_repeat(s, job);
    }
}

/* A worker that could not open the token, and said why, has not failed by ending. */
static const char *ending(const struct supervisor *s)
{
    static const char *const leavings[] = {
        [LEAVING_DIED] = "died", [LEAVING_HUNG] = "hung", [LEAVING_REPLACED] = "replaced"};

    return s->why == LEAVING_DIED && s->explained ? "refused" : leavings[s->why];
}

static void bury(struct supervisor *s, const char *how)
{
    char in_flight[16];
    struct job *job;

    (void)snprintf(in_flight, sizeof in_flight, "%u", s->jobs.sent);
    supervisor_lock(s);
    if (!s->explained)
        (void)fault_set(&s->reason, FAULT_UNAVAILABLE, "the PKCS#11 worker ended: %s", how);
    s->tried = true;
    set_worker(s, WORKER_NONE);
    supervisor_unlock(s);
    if (!s->retired && !s->abandoned && s->info.sessions > 0 && !s->unchanged) {
        log_write(LOG_WARN, "PKCS#11 worker ended; starting another", "how", how, "in_flight",
                  in_flight, "reason", s->reason.message, NULL);
        metrics_count(METRIC_WORKER_ENDED, ending(s), NULL, 1);
    }
    supervisor_lock(s);
    while ((job = jobs_at_worker(&s->jobs)) != NULL)
        bury_job(s, job);
    supervisor_unlock(s);
    if (s->why != LEAVING_REPLACED)
        starts_ended(&s->starts, clock_now());
}

/* A system call that a vendor's driver or a dead disk keeps in the kernel delays SIGKILL. After it
 * nothing of the worker runs, so it cannot disturb its successor. If that one gets stuck as well, a
 * third would too: then the supervisor waits for the kernel. */
static void leave_behind(struct supervisor *s)
{
    char pid[16];

    (void)snprintf(pid, sizeof pid, "%d", (int)s->child.pid);
    log_write(LOG_WARN, "PKCS#11 worker is stuck in the kernel and was left behind", "pid", pid,
              NULL);
    supervisor_lock(s);
    s->left_behind = s->child;
    s->child = (struct child){.socket = -1, .err = -1, .process = -1};
    supervisor_unlock(s);
    bury(s, "killed, but stuck in the kernel");
}

void supervisor_worker_reap(struct supervisor *s, int patience_ms)
{
    char how[64];

    if (s->left_behind.pid > 0 && child_reap(&s->left_behind, patience_ms, how, sizeof how))
        log_write(LOG_INFO, "PKCS#11 worker that was left behind has ended", "how", how, NULL);
}

static void await_end(struct supervisor *s)
{
    int64_t now = clock_now();
    char how[64];

    if (now >= s->leave_until)
        child_kill(&s->child);
    if (child_reap(&s->child, SUPERVISOR_TICK_MS, how, sizeof how))
        bury(s, how);
    else if (now >= s->leave_until + kill_limit && s->left_behind.pid == 0)
        leave_behind(s);
}

/* ---- the beginning of a worker ---- */

/* After a refused PIN no worker tries it again until its source has changed: HSMs count the tries
 * and lock. A worker looks whether a file has changed. */
static bool pin_is_still_wrong(const struct supervisor *s)
{
    return s->pin_refused && !hsm_pin_is_filed(&s->options.settings);
}

void supervisor_worker_refused(struct supervisor *s, const struct fault *fault)
{
    supervisor_lock(s);
    s->reason = *fault;
    s->explained = true;
    s->tried = true;
    (void)pthread_cond_broadcast(&s->changed);
    supervisor_unlock(s);
}

void supervisor_worker_unopened(struct supervisor *s, const struct fault *fault)
{
    const struct frame_page *page = s->child.page;

    if (page->refused) { /* the token's earlier answer is still the reason */
        s->explained = true;
        s->unchanged = true;
        return;
    }
    s->pin_refused = hsm_refused_pin(fault->ckr);
    if (s->pin_refused)
        metrics_count(METRIC_PIN_REFUSED, NULL, NULL, 1);
    s->pin = page->pin;
    supervisor_worker_refused(s, fault);
}

static void send_open(struct supervisor *s)
{
    struct frame frame = {.kind = FRAME_OPEN, .settings = s->options.settings};
    uint8_t bytes[FRAME_MAX];
    size_t length = frame_encode(&frame, bytes);

    (void)send(s->child.socket, bytes, length, MSG_NOSIGNAL);
    explicit_bzero(bytes, sizeof bytes);
    hsm_settings_wipe(&frame.settings);
}

/* During a Configure its answer tells the operator. Later the log tells it once, and each call's
 * answer does. */
static void cannot_start(struct supervisor *s, const struct fault *fault)
{
    if (s->info.sessions > 0 && strcmp(s->reason.message, fault->message) != 0)
        log_fault(LOG_ERROR, fault, "cannot start a PKCS#11 worker", NULL);
    supervisor_worker_refused(s, fault);
}

static unsigned throw_dice(void)
{
    uint16_t dice = 0;

    return getrandom(&dice, sizeof dice, 0) < 0 ? UINT16_MAX / 2 : dice;
}

static void begin(struct supervisor *s)
{
    struct child child;
    struct fault fault;

    starts_begun(&s->starts, throw_dice(), clock_now());
    if (child_spawn(s->options.lock, SUPERVISOR_TICK_MS, &child, &fault) != 0) {
        cannot_start(s, &fault);
        return;
    }
    s->unchanged = false;
    child.page->refused = s->pin_refused;
    child.page->pin = s->pin;
    supervisor_lock(s);
    s->child = child;
    s->explained = false;
    set_worker(s, WORKER_OPENING);
    supervisor_unlock(s);
    if (s->info.sessions > 0)
        s->restarts++;
    send_open(s);
}

int64_t supervisor_next_start(struct supervisor *s)
{
    struct starts_wait wait;

    supervisor_lock(s);
    wait = (struct starts_wait){
        .definite = s->reason.code != FAULT_UNAVAILABLE && s->reason.code != FAULT_NONE,
        .waiting = !jobs_idle(&s->jobs),
        .deadline = jobs_first_deadline(&s->jobs),
    };
    supervisor_unlock(s);
    return starts_next(&s->starts, &wait);
}

static void await_start(struct supervisor *s)
{
    const int64_t tick = SUPERVISOR_TICK_MS * CLOCK_MILLISECOND;
    int64_t left = supervisor_next_start(s) - clock_now();
    struct timespec nap = {.tv_nsec = left > 0 && left < tick ? left : tick};

    if (left <= 0 && !pin_is_still_wrong(s))
        begin(s);
    else
        (void)nanosleep(&nap, NULL);
}

void supervisor_worker_ready(struct supervisor *s, const struct hsm_token_info *info)
{
    int64_t now = clock_now();

    if (s->info.sessions > 0 && s->starts.fruitless > 1)
        log_write(LOG_INFO, "token is back", "token", info->label, "serial", info->serial, NULL);
    s->pin_refused = false;
    if (s->info.sessions == 0)
        s->first_took = now - s->since;
    (void)snprintf(s->options.settings.serial, sizeof s->options.settings.serial, "%s",
                   info->serial);
    supervisor_lock(s);
    s->info = *info;
    s->reason = (struct fault){.code = FAULT_NONE};
    s->last_activity = now;
    patience_born(&s->jobs.patience, now);
    s->jobs.patience.spare = starts_spare(&s->starts);
    set_worker(s, WORKER_READY);
    supervisor_pump(s);
    supervisor_unlock(s);
}

void supervisor_worker_step(struct supervisor *s)
{
    if (s->worker == WORKER_NONE)
        await_start(s);
    else
        await_end(s);
}
