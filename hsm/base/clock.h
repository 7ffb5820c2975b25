/* Time for deadlines: nanoseconds of CLOCK_MONOTONIC, the same clock in every
 * process of this machine, never set back. */
#ifndef HSM_BASE_CLOCK_H
#define HSM_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define CLOCK_SECOND INT64_C(1000000000)
#define CLOCK_MILLISECOND INT64_C(1000000)
#define CLOCK_NEVER INT64_MAX

static inline int64_t clock_now(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * CLOCK_SECOND + now.tv_nsec;
}

/* Of two times. */
static inline int64_t clock_later(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t clock_sooner(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#endif
