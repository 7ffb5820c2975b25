/* Condition variables on clock_now()'s clock: pthread's own default is the wall clock, which
 * can be set back. */
#ifndef HSM_BASE_CONDITION_H
#define HSM_BASE_CONDITION_H

#include <pthread.h>

#include "hsm/base/clock.h"

static inline void condition_open(pthread_cond_t *condition)
{
    pthread_condattr_t monotonic;

    (void)pthread_condattr_init(&monotonic);
    (void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    (void)pthread_cond_init(condition, &monotonic);
    (void)pthread_condattr_destroy(&monotonic);
}

/* Until it is signalled, or `until`; as ever, it may wake for no reason. */
static inline void condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t until)
{
    const struct timespec time = {.tv_sec = until / CLOCK_SECOND, .tv_nsec = until % CLOCK_SECOND};

    (void)pthread_cond_timedwait(condition, mutex, &time);
}

#endif
