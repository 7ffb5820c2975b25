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
static const int64_t waited_for_pause = 5 * CLOCK_SECOND;

static void set_worker(struct supervisor *s, enum worker_state worker)
{
    s->worker = worker;
    s->since = clock_now();
    (void)pthread_cond_broadcast(&s->changed);
}

/* ---- the end of a worker ---- */

/* How long, ns; -1 = it is not being executed. */
static int64_t executing(const struct supervisor *s, const struct job *job, int64_t now)
{
    for (size_t i = 0; i < HSM_SESSIONS_MAX; i++) {
        const struct frame_slot *slot = &s->child.page->slots[i];
        int64_t started = atomic_load(&slot->started);

        if (atomic_load(&slot->number) == job->number && started > 0 && started <= now)
            return now - started;
    }
    return -1;
}

/* With the mutex held: counts a death for every job to blame. How long the worker may
 * take to leave: a key half written is worse than a late exit. */
static int64_t count_deaths(struct supervisor *s, int64_t blame)
{
    int64_t limit = leave_limit;

    for (size_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++) {
        struct job *job = &s->jobs.table[i];
        bool at_worker = job->state == JOB_SENT || job->state == JOB_ABANDONED;
        int64_t time = at_worker ? executing(s, job, s->since) : -1;

        if (time >= blame)
            jobs_died(&s->jobs, job, supervisor_signs_of_health(s, job->op), s->since);
        if (time >= 0 && job->op == HSM_GENERATE)
            limit = leave_limit_generating;
    }
    return limit;
}

/* The jobs are seen to when it has ended, so that nothing it still does can meet its
 * successor. */
void supervisor_worker_leave(struct supervisor *s, int64_t blame)
{
    supervisor_lock(s);
    if (!s->explained)
        (void)fault_set(&s->reason, FAULT_UNAVAILABLE, "the PKCS#11 worker ended");
    set_worker(s, WORKER_LEAVING);
    s->leave_until = s->since + count_deaths(s, blame);
    child_hang_up(&s->child);
    supervisor_unlock(s);
}

/* Another start after a failed one waits 0.1 s, doubled each time up to 5 s; 1 s up to
 * 30 s where only a person can help. A quarter more or less, so that many servers on
 * one HSM do not come back in step. */
static int64_t pause_before_start(const struct supervisor *s)
{
    bool definite = s->reason.code != FAULT_UNAVAILABLE;
    int64_t pause = definite ? CLOCK_SECOND : CLOCK_SECOND / 10;
    int64_t most = definite ? 30 * CLOCK_SECOND : 5 * CLOCK_SECOND;
    uint16_t dice = 0;

    if (s->failures == 0)
        return 0;
    for (unsigned i = 1; i < s->failures && pause < most; i++)
        pause *= 2;
    pause = pause < most ? pause : most;
    if (getrandom(&dice, sizeof dice, 0) < 0)
        dice = UINT16_MAX / 2;
    return pause * 3 / 4 + pause / 2 * dice / UINT16_MAX;
}

/* With the mutex held; gives it up while it calls back. */
static void bury_job(struct supervisor *s, struct job *job)
{
    struct hsm_reply reply = {0};

    if (job->state == JOB_ABANDONED) {
        jobs_release(&s->jobs, job);
    } else if (!jobs_repeatable(job->op)) {
        (void)fault_set(&reply.fault, FAULT_ABORTED,
                        "the PKCS#11 worker ended in the middle of it");
        supervisor_finish(s, job, &reply);
    } else if (job->deaths >= JOB_DEATHS_MAX) {
        (void)fault_set(&reply.fault, FAULT_UNAVAILABLE,
                        "given up: %d PKCS#11 workers in a row ended while executing it",
                        JOB_DEATHS_MAX);
        supervisor_finish(s, job, &reply);
    } else {
        supervisor_repeat(s, job);
    }
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
    if (!s->retired && !s->abandoned && s->info.sessions > 0) {
        log_write(LOG_WARN, "PKCS#11 worker ended; starting another", "how", how, "in_flight",
                  in_flight, "reason", s->reason.message, NULL);
        metrics_count(METRIC_WORKER_ENDED);
    }
    supervisor_lock(s);
    while ((job = jobs_at_worker(&s->jobs)) != NULL)
        bury_job(s, job);
    supervisor_unlock(s);
    s->next_start = clock_now() + pause_before_start(s);
    s->failures++;
}

/* SIGKILL waits for a system call that a vendor's driver or a dead disk keeps in the kernel.
 * After that nothing of the worker runs any more, so it cannot meet its successor. Where
 * another one comes to the same end, a third would too: then the kernel is waited for. */
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

/* A refused PIN is not tried again, by any worker, until its source has changed: HSMs count
 * the tries and lock. */
static bool pin_is_still_wrong(const struct supervisor *s)
{
    struct file_stamp stamp;

    if (!s->pin_refused)
        return false;
    hsm_pin_stamp(&s->options.settings, &stamp);
    return file_stamp_untouched(&stamp, &s->pin_stamp);
}

void supervisor_worker_refused(struct supervisor *s, const struct fault *fault)
{
    s->pin_refused = hsm_refused_pin(fault->ckr);
    supervisor_lock(s);
    s->reason = *fault;
    s->explained = true;
    s->tried = true;
    (void)pthread_cond_broadcast(&s->changed);
    supervisor_unlock(s);
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

/* Who configures us is told by that call's answer; a running server by the log, once, and by
 * what its calls are answered. */
static void cannot_start(struct supervisor *s, const struct fault *fault)
{
    if (s->info.sessions > 0 && strcmp(s->reason.message, fault->message) != 0)
        log_fault(LOG_ERROR, fault, "cannot start a PKCS#11 worker", NULL);
    supervisor_worker_refused(s, fault);
    s->failures++;
    s->next_start = clock_now() + pause_before_start(s);
}

static void begin(struct supervisor *s)
{
    struct child child;
    struct fault fault;

    hsm_pin_stamp(&s->options.settings, &s->pin_stamp);
    if (child_spawn(s->options.lock, SUPERVISOR_TICK_MS, &child, &fault) != 0) {
        cannot_start(s, &fault);
        return;
    }
    supervisor_lock(s);
    s->child = child;
    s->explained = false;
    set_worker(s, WORKER_OPENING);
    supervisor_unlock(s);
    if (s->info.sessions > 0)
        s->restarts++;
    send_open(s);
}

/* Even a reason for a person to act may pass without one: an upgrade puts the module's file
 * back. Who waits meanwhile is not made to wait for long. */
static void hurry(struct supervisor *s)
{
    int64_t soon = clock_now() + waited_for_pause;
    bool idle;

    supervisor_lock(s);
    idle = jobs_idle(&s->jobs);
    supervisor_unlock(s);
    if (!idle && s->next_start > soon)
        s->next_start = soon;
}

static void await_start(struct supervisor *s)
{
    const int64_t tick = SUPERVISOR_TICK_MS * CLOCK_MILLISECOND;
    struct timespec nap = {.tv_nsec = 0};
    int64_t left;

    hurry(s);
    left = s->next_start - clock_now();
    nap.tv_nsec = left < tick ? left : tick;
    if (left <= 0 && pin_is_still_wrong(s))
        s->next_start = clock_now() + CLOCK_SECOND;
    else if (left <= 0)
        begin(s);
    else
        (void)nanosleep(&nap, NULL);
}

void supervisor_worker_ready(struct supervisor *s, const struct hsm_token_info *info)
{
    if (s->info.sessions > 0 && s->failures > 1)
        log_write(LOG_INFO, "token is back", "token", info->label, "serial", info->serial, NULL);
    s->pin_refused = false;
    supervisor_lock(s);
    s->info = *info;
    s->reason = (struct fault){.code = FAULT_NONE};
    s->last_activity = clock_now();
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
