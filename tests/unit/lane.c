/* The slow lane: in order, one at a time, and nobody waits for ever behind a stuck job. */
#include "plugin/service/lane.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hsm/base/clock.h"

enum { MANY = 70 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool gate_open;
    bool in_gate;
    size_t ran;
    int order[MANY];
    size_t given_up;
    char message[FAULT_MESSAGE_MAX];
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int numbers[MANY];

static void set(bool *flag, bool value)
{
    (void)pthread_mutex_lock(&seen.lock);
    *flag = value;
    (void)pthread_cond_broadcast(&seen.changed);
    (void)pthread_mutex_unlock(&seen.lock);
}

static void await(const bool *flag)
{
    (void)pthread_mutex_lock(&seen.lock);
    while (!*flag)
        (void)pthread_cond_wait(&seen.changed, &seen.lock);
    (void)pthread_mutex_unlock(&seen.lock);
}

static void await_ran(size_t count)
{
    (void)pthread_mutex_lock(&seen.lock);
    while (seen.ran < count)
        (void)pthread_cond_wait(&seen.changed, &seen.lock);
    (void)pthread_mutex_unlock(&seen.lock);
}

static void gate(void *context)
{
    (void)context;
    set(&seen.in_gate, true);
    await(&seen.gate_open);
}

static void job(void *context)
{
    (void)pthread_mutex_lock(&seen.lock);
    seen.order[seen.ran++] = *(int *)context;
    (void)pthread_cond_broadcast(&seen.changed);
    (void)pthread_mutex_unlock(&seen.lock);
}

static void give_up(void *context, const struct fault *fault)
{
    (void)context;
    assert_int_equal(fault->code, FAULT_UNAVAILABLE);
    (void)pthread_mutex_lock(&seen.lock);
    seen.given_up++;
    memcpy(seen.message, fault->message, sizeof seen.message);
    (void)pthread_mutex_unlock(&seen.lock);
}

static int open_lane(void **state)
{
    struct fault fault;

    (void)state;
    seen.gate_open = seen.in_gate = false;
    seen.ran = seen.given_up = 0;
    for (int i = 0; i < MANY; i++)
        numbers[i] = i;
    return lane_open(&fault);
}

static int close_lane(void **state)
{
    (void)state;
    set(&seen.gate_open, true);
    lane_close(60 * CLOCK_SECOND);
    return 0;
}

static void shut_gate(void)
{
    lane_submit("Configure", CLOCK_NEVER, gate, give_up, NULL);
    await(&seen.in_gate);
}

static void jobs_run_in_order(void **state)
{
    (void)state;
    for (size_t i = 0; i < 50; i++)
        lane_submit("job", CLOCK_NEVER, job, give_up, &numbers[i]);
    await_ran(50);
    for (int i = 0; i < 50; i++)
        assert_int_equal(seen.order[i], i);
    assert_int_equal(seen.given_up, 0);
}

static void a_job_behind_a_stuck_one_is_given_up(void **state)
{
    (void)state;
    shut_gate();
    lane_submit("Validate", 0, job, give_up, &numbers[1]);
    lane_submit("PublishBundle", CLOCK_NEVER, job, give_up, &numbers[2]);
    lane_tick();
    assert_int_equal(seen.given_up, 1);
    assert_string_equal(seen.message, "Validate waited too long behind Configure");
    set(&seen.gate_open, true);
    await_ran(1);
    assert_int_equal(seen.order[0], 2);
}

static void the_65th_job_is_refused_at_once(void **state)
{
    (void)state;
    shut_gate();
    for (size_t i = 0; i < 64; i++)
        lane_submit("job", CLOCK_NEVER, job, give_up, &numbers[i]);
    assert_int_equal(seen.given_up, 0);
    lane_submit("job", CLOCK_NEVER, job, give_up, &numbers[64]);
    assert_int_equal(seen.given_up, 1);
    assert_non_null(strstr(seen.message, "behind Configure"));
    set(&seen.gate_open, true);
    await_ran(64);
}

static void closing_gives_up_what_waits_and_does_not_hang(void **state)
{
    (void)state;
    shut_gate();
    lane_submit("job", CLOCK_NEVER, job, give_up, &numbers[0]);
    lane_close(CLOCK_MILLISECOND);
    assert_int_equal(seen.given_up, 1);
    lane_submit("job", CLOCK_NEVER, job, give_up, &numbers[1]);
    assert_int_equal(seen.given_up, 2);
    assert_non_null(strstr(seen.message, "stopping"));
    assert_int_equal(seen.ran, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(jobs_run_in_order, open_lane, close_lane),
        cmocka_unit_test_setup_teardown(a_job_behind_a_stuck_one_is_given_up, open_lane,
                                        close_lane),
        cmocka_unit_test_setup_teardown(the_65th_job_is_refused_at_once, open_lane, close_lane),
        cmocka_unit_test_setup_teardown(closing_gives_up_what_waits_and_does_not_hang, open_lane,
                                        close_lane),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
