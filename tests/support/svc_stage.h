/* The rooms around svc_bundle.c, played by the test: calls that note their answer, a lane
 * that runs its job at once or gives it up, a log to read, a clock to set. */
#ifndef TESTS_SVC_STAGE_H
#define TESTS_SVC_STAGE_H

#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "plugin/report/log.h"
#include "plugin/rpc/rpc.h"
#include "plugin/service/lane.h"

struct rpc_call {
    atomic_int answers;
    bool ok;
    struct fault fault;
};

static char logged[4096];
static atomic_llong clock_ahead; /* ns */
static bool lane_gives_up;
static pthread_mutex_t log_hangs = PTHREAD_MUTEX_INITIALIZER; /* while it is locked */
static sem_t in_log;                                          /* posted at each line */
static sem_t answered;                                        /* posted at each failure */

int clock_gettime(clockid_t id, struct timespec *now)
{
    int64_t time;

    if (syscall(SYS_clock_gettime, id, now) != 0)
        return -1;
    time = now->tv_sec * CLOCK_SECOND + now->tv_nsec + clock_ahead;
    *now = (struct timespec){.tv_sec = time / CLOCK_SECOND, .tv_nsec = time % CLOCK_SECOND};
    return 0;
}

void rpc_reply(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    (void)bytes;
    assert_int_equal(length, 0);
    call->ok = true;
    call->answers++;
}

void rpc_fail(struct rpc_call *call, const struct fault *fault)
{
    call->fault = *fault;
    call->answers++;
    (void)sem_post(&answered);
}

void lane_submit(const char *what, int64_t limit, lane_run *run, lane_give_up *give_up,
                 void *context)
{
    struct fault fault;

    assert_true(limit < 30 * CLOCK_SECOND);
    if (!lane_gives_up) {
        run(context);
        return;
    }
    (void)fault_set(&fault, FAULT_UNAVAILABLE, "%s waited too long", what);
    give_up(context, &fault);
}

static void note(enum log_level level, const char *message)
{
    static const char *const names[] = {"TRACE", "DEBUG", "INFO", "WARN", "ERROR"};
    size_t used = strlen(logged);

    (void)snprintf(logged + used, sizeof logged - used, "%s %s", names[level], message);
}

static void note_fields(va_list fields)
{
    const char *name;

    while ((name = va_arg(fields, const char *))) {
        size_t used = strlen(logged);

        (void)snprintf(logged + used, sizeof logged - used, " %s=%s", name,
                       va_arg(fields, const char *));
    }
    (void)strncat(logged, "\n", sizeof logged - strlen(logged) - 1);
}

void log_write(enum log_level level, const char *message, ...)
{
    va_list fields;

    (void)sem_post(&in_log);
    (void)pthread_mutex_lock(&log_hangs);
    (void)pthread_mutex_unlock(&log_hangs);
    note(level, message);
    va_start(fields, message);
    note_fields(fields);
    va_end(fields);
}

void log_fault(enum log_level level, const struct fault *fault, const char *message, ...)
{
    va_list fields;

    note(level, message);
    (void)strncat(logged, ": ", sizeof logged - strlen(logged) - 1);
    (void)strncat(logged, fault->message, sizeof logged - strlen(logged) - 1);
    va_start(fields, message);
    note_fields(fields);
    va_end(fields);
}

#endif
