/* The slow lane: in order, one at a time, and nobody waits for ever for a stuck job or behind
 * one. */
#include "plugin/service/lane.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "tests/support/clock_ahead.h"

enum { MANY = 70 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t gates_entered;
    size_t gates_opened;
    bool answer_gate_open;
    bool in_answer_gate;
    size_t ran;
    int order[MANY];
    size_t answers[LANE_STOPPED + 1]; /* of each outcome */
    size_t late;
    size_t released;
    char message[FAULT_MESSAGE_MAX]; /* of the last fault that was an answer, or came late */
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

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

static void count(size_t *counter)
{
    (void)pthread_mutex_lock(&seen.lock);
    ++*counter;
    (void)pthread_cond_broadcast(&seen.changed);
    (void)pthread_mutex_unlock(&seen.lock);
}

static void await_count(const size_t *counter, size_t target)
{
    (void)pthread_mutex_lock(&seen.lock);
    while (*counter < target)
        (void)pthread_cond_wait(&seen.changed, &seen.lock);
    (void)pthread_mutex_unlock(&seen.lock);
}

static void assert_count(const size_t *counter, size_t expected)
{
    size_t value;

    (void)pthread_mutex_lock(&seen.lock);
    value = *counter;
    (void)pthread_mutex_unlock(&seen.lock);
    assert_int_equal(value, expected);
}

/* ---- jobs; the context is a number in memory of its own, as a real job's is ---- */

/* Each goes through a gate of its own, that of 1 with a failure. */
static int run_gate(void *context, struct fault *fault)
{
    count(&seen.gates_entered);
    await_count(&seen.gates_opened, seen.gates_entered);
    return *(int *)context == 0 ? 0 : fault_set(fault, FAULT_INTERNAL, "the gate is broken");
}

static int run_number(void *context, struct fault *fault)
{
    (void)fault;
    (void)pthread_mutex_lock(&seen.lock);
    seen.order[seen.ran++] = *(int *)context;
    (void)pthread_cond_broadcast(&seen.changed);
    (void)pthread_mutex_unlock(&seen.lock);
    return 0;
}

static int run_failing(void *context, struct fault *fault)
{
    return fault_set(fault, FAULT_INTERNAL, "job %d is broken", *(int *)context);
}

static void note(const struct fault *fault)
{
    (void)pthread_mutex_lock(&seen.lock);
    memcpy(seen.message, fault ? fault->message : "", fault ? sizeof seen.message : 1);
    (void)pthread_mutex_unlock(&seen.lock);
}

static void answer(void *context, enum lane_outcome outcome, const struct fault *fault)
{
    assert_in_range(*(int *)context, 0, MANY);
    if (outcome != LANE_RAN)
        assert_int_equal(fault->code, FAULT_UNAVAILABLE);
    note(fault);
    count(&seen.answers[outcome]);
}

static void answer_slowly(void *context, enum lane_outcome outcome, const struct fault *fault)
{
    set(&seen.in_answer_gate, true);
    await(&seen.answer_gate_open);
    answer(context, outcome, fault);
}

static void late(void *context, const struct fault *fault)
{
    assert_in_range(*(int *)context, 0, MANY);
    note(fault);
    count(&seen.late);
}

static void release(void *context)
{
    free(context);
    count(&seen.released);
}

#define KIND(queue, work, run_it, answer_it)          \
    {                                                 \
        queue, work, run_it, answer_it, late, release \
    }

static const struct lane_kind endless_gate = KIND(CLOCK_NEVER, CLOCK_NEVER, run_gate, answer);
static const struct lane_kind limited_gate = KIND(CLOCK_NEVER, 20 * CLOCK_SECOND, run_gate, answer);
static const struct lane_kind limited_gate_answered_slowly =
    KIND(CLOCK_NEVER, 20 * CLOCK_SECOND, run_gate, answer_slowly);
static const struct lane_kind patient = KIND(CLOCK_NEVER, CLOCK_NEVER, run_number, answer);
static const struct lane_kind impatient = KIND(0, CLOCK_NEVER, run_number, answer);
static const struct lane_kind failing = KIND(CLOCK_NEVER, CLOCK_NEVER, run_failing, answer);

static void submit(const char *what, const struct lane_kind *kind, int number)
{
    int *context = malloc(sizeof *context);

    assert_non_null(context);
    *context = number;
    lane_submit(what, kind, context);
}

static void shut_gate(const struct lane_kind *kind)
{
    submit("Configure", kind, 0);
    await_count(&seen.gates_entered, 1);
}

/* ---- scenes ---- */

/* Conditions wait on the real clock. */
static void close_within(int64_t wait)
{
    clock_ahead = 0;
    lane_close(wait);
}

static int open_lane(void **state)
{
    struct fault fault;

    (void)state;
    seen.answer_gate_open = seen.in_answer_gate = false;
    seen.gates_entered = seen.gates_opened = seen.ran = seen.late = seen.released = 0;
    memset(seen.answers, 0, sizeof seen.answers);
    clock_ahead = 0;
    return lane_open(&fault);
}

static int close_lane(void **state)
{
    (void)state;
    (void)pthread_mutex_lock(&seen.lock);
    seen.gates_opened = MANY;
    (void)pthread_cond_broadcast(&seen.changed);
    (void)pthread_mutex_unlock(&seen.lock);
    set(&seen.answer_gate_open, true);
    close_within(60 * CLOCK_SECOND);
    return 0;
}

/* ---- tests ---- */

static void jobs_run_in_order(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++)
        submit("job", &patient, i);
    await_count(&seen.released, 50);
    for (int i = 0; i < 50; i++)
        assert_int_equal(seen.order[i], i);
    assert_count(&seen.answers[LANE_RAN], 50);
}

static void a_job_is_answered_with_what_it_came_to(void **state)
{
    (void)state;
    submit("job", &failing, 7);
    await_count(&seen.released, 1);
    assert_count(&seen.answers[LANE_RAN], 1);
    assert_string_equal(seen.message, "job 7 is broken");
    submit("job", &patient, 8);
    await_count(&seen.released, 2);
    assert_count(&seen.answers[LANE_RAN], 2);
    assert_string_equal(seen.message, "");
    assert_count(&seen.late, 0);
}

static void a_job_behind_a_stuck_one_is_given_up(void **state)
{
    (void)state;
    shut_gate(&endless_gate);
    submit("Validate", &impatient, 1);
    submit("PublishBundle", &patient, 2);
    lane_tick();
    assert_count(&seen.answers[LANE_REFUSED], 1);
    assert_count(&seen.released, 1);
    assert_string_equal(seen.message, "Validate waited too long behind Configure");
    count(&seen.gates_opened);
    await_count(&seen.released, 3);
    assert_int_equal(seen.order[0], 2);
}

static void the_65th_job_is_refused_at_once(void **state)
{
    (void)state;
    shut_gate(&endless_gate);
    for (int i = 0; i < 64; i++)
        submit("job", &patient, i);
    assert_count(&seen.answers[LANE_REFUSED], 0);
    submit("job", &patient, 64);
    assert_count(&seen.answers[LANE_REFUSED], 1);
    assert_count(&seen.released, 1);
    assert_non_null(strstr(seen.message, "behind Configure"));
    count(&seen.gates_opened);
    await_count(&seen.ran, 64);
}

static void a_running_job_is_answered_at_its_limit(void **state)
{
    (void)state;
    shut_gate(&limited_gate);
    pass(19);
    lane_tick();
    assert_count(&seen.answers[LANE_STUCK], 0);
    pass(1);
    lane_tick();
    assert_count(&seen.answers[LANE_STUCK], 1);
    assert_string_equal(seen.message, "it has not ended after 20 s");
    assert_count(&seen.released, 0);
}

static void the_time_in_the_queue_is_no_time_at_work(void **state)
{
    (void)state;
    shut_gate(&endless_gate);
    submit("PublishBundle", &limited_gate, 0);
    pass(15);
    count(&seen.gates_opened);
    await_count(&seen.gates_entered, 2);
    pass(15);
    lane_tick();
    assert_count(&seen.answers[LANE_STUCK], 0);
}

static void a_stuck_job_is_answered_once_and_its_late_result_is_dropped(void **state)
{
    (void)state;
    submit("PublishBundle", &limited_gate, 1);
    await_count(&seen.gates_entered, 1);
    pass(20);
    lane_tick();
    pass(20);
    lane_tick();
    assert_count(&seen.answers[LANE_STUCK], 1);
    assert_count(&seen.late, 0);
    count(&seen.gates_opened);
    await_count(&seen.released, 1);
    assert_count(&seen.answers[LANE_RAN], 0);
    assert_count(&seen.late, 1);
    assert_string_equal(seen.message, "the gate is broken");
}

/* The one that is stuck is named to those behind it, answered or not. */
static void jobs_behind_an_answered_one_wait_and_are_then_served(void **state)
{
    (void)state;
    shut_gate(&limited_gate);
    pass(20);
    lane_tick();
    assert_count(&seen.answers[LANE_STUCK], 1);
    submit("Validate", &impatient, 1);
    submit("PublishBundle", &patient, 2);
    lane_tick();
    assert_count(&seen.answers[LANE_REFUSED], 1);
    assert_string_equal(seen.message, "Validate waited too long behind Configure");
    assert_count(&seen.ran, 0);
    count(&seen.gates_opened);
    await_count(&seen.released, 3);
    assert_count(&seen.answers[LANE_RAN], 1);
    assert_int_equal(seen.order[0], 2);
}

static void *tick(void *unused)
{
    lane_tick();
    return unused;
}

/* Run returns while another thread is in the early answer, which uses the context. */
static void a_job_is_released_after_its_early_answer(void **state)
{
    pthread_t ticking;

    (void)state;
    shut_gate(&limited_gate_answered_slowly);
    submit("PublishBundle", &patient, 2);
    pass(20);
    assert_int_equal(pthread_create(&ticking, NULL, tick, NULL), 0);
    await(&seen.in_answer_gate);
    count(&seen.gates_opened);
    (void)usleep(20000);
    assert_count(&seen.released, 0);
    set(&seen.answer_gate_open, true);
    assert_int_equal(pthread_join(ticking, NULL), 0);
    await_count(&seen.released, 2);
    assert_count(&seen.answers[LANE_STUCK], 1);
    assert_count(&seen.late, 1);
}

static void a_job_without_a_limit_is_never_answered_early(void **state)
{
    (void)state;
    shut_gate(&endless_gate);
    pass(1000000);
    lane_tick();
    close_within(CLOCK_MILLISECOND);
    assert_count(&seen.answers[LANE_STUCK], 0);
    assert_count(&seen.answers[LANE_STOPPED], 0);
    count(&seen.gates_opened);
    await_count(&seen.released, 1);
    assert_count(&seen.answers[LANE_RAN], 1);
}

static void closing_gives_up_what_waits_and_does_not_hang(void **state)
{
    (void)state;
    shut_gate(&endless_gate);
    submit("job", &patient, 0);
    close_within(CLOCK_MILLISECOND);
    assert_count(&seen.answers[LANE_REFUSED], 1);
    submit("job", &patient, 1);
    assert_count(&seen.answers[LANE_REFUSED], 2);
    assert_count(&seen.released, 2);
    assert_string_equal(seen.message, "job was abandoned: the plugin is stopping");
    assert_count(&seen.ran, 0);
}

static void closing_answers_the_running_job(void **state)
{
    (void)state;
    shut_gate(&limited_gate);
    close_within(CLOCK_MILLISECOND);
    assert_count(&seen.answers[LANE_STOPPED], 1);
    assert_string_equal(seen.message, "the plugin is stopping");
    assert_count(&seen.released, 0);
    count(&seen.gates_opened);
    await_count(&seen.released, 1);
    assert_count(&seen.answers[LANE_RAN], 0);
    assert_count(&seen.late, 0);
}

/* It has been answered already, and nobody asks for its end any more. */
static void closing_while_stuck_says_no_more(void **state)
{
    (void)state;
    shut_gate(&limited_gate);
    pass(20);
    lane_tick();
    close_within(CLOCK_MILLISECOND);
    count(&seen.gates_opened);
    await_count(&seen.released, 1);
    assert_count(&seen.answers[LANE_STUCK], 1);
    assert_count(&seen.answers[LANE_STOPPED], 0);
    assert_count(&seen.late, 0);
}

#define SCENE(test) cmocka_unit_test_setup_teardown(test, open_lane, close_lane)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCENE(jobs_run_in_order),
        SCENE(a_job_is_answered_with_what_it_came_to),
        SCENE(a_job_behind_a_stuck_one_is_given_up),
        SCENE(the_65th_job_is_refused_at_once),
        SCENE(a_running_job_is_answered_at_its_limit),
        SCENE(the_time_in_the_queue_is_no_time_at_work),
        SCENE(a_stuck_job_is_answered_once_and_its_late_result_is_dropped),
        SCENE(jobs_behind_an_answered_one_wait_and_are_then_served),
        SCENE(a_job_is_released_after_its_early_answer),
        SCENE(a_job_without_a_limit_is_never_answered_early),
        SCENE(closing_gives_up_what_waits_and_does_not_hang),
        SCENE(closing_answers_the_running_job),
        SCENE(closing_while_stuck_says_no_more),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
