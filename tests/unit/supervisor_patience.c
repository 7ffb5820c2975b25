/* Trouble that lasts: with one key, with several, with the whole token. It costs slow answers; a
 * call that has time left when the trouble is over does not fail. */
#include "plugin/worker/supervisor.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "hsm/base/clock.h"
#include "tests/support/supervisor_stage.h"

enum { CALLERS = 8, ENOUGH = 1000000, ROUNDS_MAX = 4096 };

static int64_t began;

static void start_hasty(void)
{
    struct supervisor_options options = usual();

    options.operation_limit = CLOCK_SECOND / 2;
    began = clock_now();
    start_with(&options);
    await_token();
}

/* However it went: three workers at once, and then one a second. */
static void finish_within_bounds(void)
{
    int64_t seconds = (clock_now() - began) / CLOCK_SECOND;

    print_message("%u workers in %d s\n", script->starts, (int)seconds);
    assert_in_range(script->starts, 1, 3 + seconds);
    finish();
}

/* How long the calls of a healthy key take, one after the other. */
struct latencies {
    int64_t took[ROUNDS_MAX];
    size_t count;
};

static void call_healthy(struct latencies *latencies)
{
    struct call call;
    int64_t begun = clock_now();

    ask(&call, HSM_SIGN, "echo");
    assert_done(&call);
    if (latencies->count < ROUNDS_MAX)
        latencies->took[latencies->count++] = clock_now() - begun;
    nap();
}

static int by_length(const void *a, const void *b)
{
    const int64_t *x = a;
    const int64_t *y = b;

    return (*x > *y) - (*x < *y);
}

static double milliseconds_of(int64_t nanoseconds)
{
    return (double)nanoseconds / 1e6;
}

/* The first to be told of is what the others are compared with: nothing is beside it. They are to
 * have a quarter of its rate at least; one that is starved has next to nothing. */
static void tell(const char *beside, struct latencies *latencies, int64_t milliseconds)
{
    static double alone;
    static double alone_rate;
    const int64_t *took = latencies->took;
    size_t count = latencies->count;
    double rate = (double)count / (double)milliseconds;
    double p99;

    qsort(latencies->took, count, sizeof latencies->took[0], by_length);
    p99 = milliseconds_of(took[count * 99 / 100]);
    alone = alone > 0 ? alone : p99;
    alone_rate = alone_rate > 0 ? alone_rate : rate;
    print_message("healthy key beside %s: %zu calls, p50 %.2f ms, p99 %.2f ms (%.1f x alone), "
                  "worst %.0f ms\n",
                  beside, count, milliseconds_of(took[count / 2]), p99, p99 / alone,
                  milliseconds_of(took[count - 1]));
    assert_true(rate > alone_rate / 4);
}

/* So long the labels do what they say, while a healthy key is in use. */
static void suffer(const char *trouble, int64_t milliseconds)
{
    static struct latencies latencies;
    int64_t end = clock_now() + milliseconds * CLOCK_MILLISECOND;

    latencies.count = 0;
    while (clock_now() < end)
        call_healthy(&latencies);
    script->faults_left = 0;
    tell(trouble, &latencies, milliseconds);
}

/* ---- trouble that ends in time ---- */

static void three_crashes_in_a_row_cost_no_call(void **state)
{
    struct call call;

    (void)state;
    start_hasty();
    script->faults_left = 3;
    ask(&call, HSM_SIGN, "die");
    assert_done(&call);
    finish_within_bounds();
}

static void survives(const char *trouble, int64_t milliseconds)
{
    struct call calls[CALLERS];

    start_hasty();
    script->faults_left = ENOUGH;
    for (size_t i = 0; i < CALLERS; i++)
        ask_within(&calls[i], HSM_SIGN, trouble, milliseconds + 1000 + 6000);
    suffer(trouble, milliseconds);
    for (size_t i = 0; i < CALLERS; i++)
        assert_done(&calls[i]);
    finish_within_bounds();
}

static void half_a_second_of_errors_of_one_key_fails_nothing(void **state)
{
    (void)state;
    survives("fail", 500);
}

static void three_seconds_of_errors_of_one_key_fail_nothing(void **state)
{
    (void)state;
    survives("fail", 3000);
}

static void three_seconds_of_not_found_of_a_served_key_fail_nothing(void **state)
{
    (void)state;
    survives("miss", 3000);
}

static void three_seconds_of_crashes_of_one_key_fail_nothing(void **state)
{
    (void)state;
    survives("die", 3000);
}

static void three_seconds_of_hangs_of_one_key_fail_nothing(void **state)
{
    (void)state;
    survives("hang", 3000);
}

static void three_seconds_of_errors_of_the_whole_token_fail_nothing(void **state)
{
    struct call calls[CALLERS];

    (void)state;
    start_hasty();
    script->faults_left = ENOUGH;
    for (size_t i = 0; i < CALLERS; i++)
        ask_within(&calls[i], HSM_SIGN, (const char *[]){"fail1", "fail2"}[i % 2], 10000);
    (void)nanosleep(&(struct timespec){.tv_sec = 3}, NULL); /* how long it lasts */
    script->faults_left = 0;
    for (size_t i = 0; i < CALLERS; i++)
        assert_done(&calls[i]);
    finish_within_bounds();
}

/* What was tried last long ago, and would be only when it is too late, is tried once more. */
static void a_call_is_tried_once_more_before_its_deadline(void **state)
{
    static const char *const troubles[] = {"fail", "die"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct call call;
        int64_t left;

        assert_int_equal(begin_test(NULL), 0);
        start_hasty();
        script->faults_left = ENOUGH;
        ask_within(&call, HSM_SIGN, troubles[i], 6000);
        left = call.deadline - 1400 * CLOCK_MILLISECOND - clock_now();
        (void)nanosleep(&(struct timespec){left / CLOCK_SECOND, left % CLOCK_SECOND}, NULL);
        script->faults_left = 0;
        assert_done(&call);
        finish_within_bounds();
    }
}

/* ---- trouble that does not end ---- */

static void ends_at_its_deadline(const char *trouble, const char *why)
{
    struct call calls[CALLERS];
    struct call *call;

    start_hasty();
    script->faults_left = ENOUGH;
    for (call = calls; call < calls + CALLERS; call++)
        ask_within(call, HSM_SIGN, trouble, 4000);
    suffer(trouble, 4300);
    for (call = calls; call < calls + CALLERS; call++) {
        hear(call);
        assert_true(call->reply.fault.code != FAULT_NONE);
        if (call->reply.fault.code != FAULT_DEADLINE_EXCEEDED)
            assert_fails(call, FAULT_UNAVAILABLE, why);
    }
    finish_within_bounds();
}

static void a_key_that_always_fails_is_answered_with_the_tokens_reason(void **state)
{
    (void)state;
    ends_at_its_deadline("fail", "CKR_DEVICE_ERROR");
}

static void a_key_that_always_ends_workers_is_answered_with_that(void **state)
{
    (void)state;
    ends_at_its_deadline("die", "PKCS#11 worker");
}

static void a_key_that_always_hangs_is_answered_with_that(void **state)
{
    (void)state;
    ends_at_its_deadline("hang", "hangs");
}

static void a_call_is_not_answered_before_its_deadline(void **state)
{
    struct call call;

    (void)state;
    start_hasty();
    script->faults_left = ENOUGH;
    ask_within(&call, HSM_SIGN, "fail", 3000);
    while (answers_of(&call) == 0) {
        assert_done_at_once();
        nap();
    }
    assert_true(clock_now() > call.deadline - 200 * CLOCK_MILLISECOND);
    assert_fails(&call, FAULT_UNAVAILABLE, "CKR_DEVICE_ERROR");
    finish_within_bounds();
}

static void keys_that_hang_do_not_starve_the_others(void **state)
{
    struct call calls[3 * CALLERS];

    (void)state;
    start_hasty();
    script->faults_left = ENOUGH;
    for (size_t i = 0; i < 3 * CALLERS; i++)
        ask_within(&calls[i], HSM_SIGN, (const char *[]){"hang1", "hang2", "hang3"}[i % 3], 12000);
    suffer("three keys that hang", 6000);
    for (size_t i = 0; i < 3 * CALLERS; i++)
        assert_done(&calls[i]);
    finish_within_bounds();
}

/* Who looks looks again. */
static void a_look_that_fails_beside_others_is_answered_soon(void **state)
{
    struct call call;

    (void)state;
    start_hasty();
    script->faults_left = ENOUGH;
    ask(&call, HSM_PROVE, "fail");
    while (answers_of(&call) == 0)
        assert_done_at_once();
    assert_fails(&call, FAULT_UNAVAILABLE, "CKR_DEVICE_ERROR");
    finish_within_bounds();
}

static void a_command_is_answered_after_three_tries(void **state)
{
    static const char *const troubles[] = {"fail", "die"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct supervisor_options options = usual();
        struct call call;

        assert_int_equal(begin_test(NULL), 0);
        options.one_caller = true;
        start_with(&options);
        await_token();
        script->faults_left = ENOUGH;
        ask(&call, HSM_PROVE, troubles[i]);
        hear(&call);
        assert_int_equal(call.reply.fault.code, FAULT_UNAVAILABLE);
        /* a try may be cut short by a fresh worker: then it does not count */
        assert_in_range(ENOUGH - script->faults_left, 3, 5);
        finish();
    }
}

static void alone(void **state)
{
    (void)state;
    start_hasty();
    suffer("nothing", 2000);
    finish_within_bounds();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        PLAY(alone),
        PLAY(three_crashes_in_a_row_cost_no_call),
        PLAY(half_a_second_of_errors_of_one_key_fails_nothing),
        PLAY(three_seconds_of_errors_of_one_key_fail_nothing),
        PLAY(three_seconds_of_not_found_of_a_served_key_fail_nothing),
        PLAY(three_seconds_of_crashes_of_one_key_fail_nothing),
        PLAY(three_seconds_of_hangs_of_one_key_fail_nothing),
        PLAY(three_seconds_of_errors_of_the_whole_token_fail_nothing),
        PLAY(a_call_is_tried_once_more_before_its_deadline),
        PLAY(a_key_that_always_fails_is_answered_with_the_tokens_reason),
        PLAY(a_key_that_always_ends_workers_is_answered_with_that),
        PLAY(a_key_that_always_hangs_is_answered_with_that),
        PLAY(a_call_is_not_answered_before_its_deadline),
        PLAY(keys_that_hang_do_not_starve_the_others),
        PLAY(a_look_that_fails_beside_others_is_answered_soon),
        PLAY(a_command_is_answered_after_three_tries),
    };

    if (argc == 2 && strcmp(argv[1], "worker") == 0)
        return become_worker();
    return cmocka_run_group_tests(tests, make_script, remove_script);
}
