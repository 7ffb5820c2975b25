/* The supervisor's books: who is sent next, and what a number stands for. */
#include "tests/support/jobs_books.h"

#include <string.h>

#include "hsm/wire/frame.h"

/* ---- order ---- */

static void requests_are_sent_in_the_order_they_came(void **state)
{
    struct jobs *jobs = *state;
    struct job *first = add(jobs, HSM_SIGN);
    struct job *second = add(jobs, HSM_PROVE);
    struct job *third = add(jobs, HSM_PING);

    assert_ptr_equal(send_next(jobs), first);
    assert_ptr_equal(send_next(jobs), second);
    assert_ptr_equal(send_next(jobs), third);
    assert_null(send_next(jobs));
}

static void repeated_requests_go_back_where_they_stood(void **state)
{
    struct jobs *jobs = *state;
    struct job *job[5];

    for (size_t i = 0; i < 4; i++)
        job[i] = send_one(jobs, HSM_SIGN);
    job[4] = add(jobs, HSM_SIGN);
    jobs_requeue(jobs, job[2]);
    jobs_requeue(jobs, job[0]);
    jobs_requeue(jobs, job[3]);
    jobs_requeue(jobs, job[1]);
    for (size_t i = 0; i < 5; i++)
        assert_ptr_equal(send_next(jobs), job[i]);
}

static void a_request_past_its_deadline_is_passed_over(void **state)
{
    struct jobs *jobs = *state;
    struct job *late = add_until(jobs, HSM_SIGN, NOW);
    struct job *alive = add_until(jobs, HSM_SIGN, NOW + 1);

    assert_ptr_equal(send_next(jobs), alive);
    assert_null(send_next(jobs));
    assert_ptr_equal(jobs_late(jobs, NOW, false), late);
}

static void of_those_that_wait_the_longest_wait_is_told(void **state)
{
    struct jobs *jobs = *state;
    int64_t waited = 1;

    assert_int_equal(jobs_queued(jobs, NOW + 9, &waited), 0);
    assert_int_equal(waited, 0);
    add(jobs, HSM_SIGN)->added = NOW + 1;
    add(jobs, HSM_SIGN)->added = NOW + 2;
    add(jobs, HSM_SCAN)->added = NOW - 5;
    assert_int_equal(jobs_queued(jobs, NOW + 9, &waited), 3);
    assert_int_equal(waited, 14);
    assert_int_equal(send_next(jobs)->op, HSM_SCAN);
    assert_int_equal(jobs_queued(jobs, NOW + 9, &waited), 2);
    assert_int_equal(waited, 8);
}

/* ---- limits ---- */

static void a_worker_is_sent_two_requests_a_thread(void **state)
{
    struct jobs *jobs = *state;
    struct job *sent[2 * FOUR_THREADS];

    for (size_t i = 0; i < 2 * FOUR_THREADS + 3; i++)
        (void)add(jobs, HSM_SIGN);
    for (size_t i = 0; i < 2 * FOUR_THREADS; i++)
        assert_non_null(sent[i] = send_next(jobs));
    assert_null(send_next(jobs));
    jobs_release(jobs, sent[3]);
    assert_non_null(send_next(jobs));
    assert_null(send_next(jobs));
}

static void slow_operations_leave_half_of_the_threads_to_signing(void **state)
{
    struct jobs *jobs = *state;
    struct job *slow[4];
    struct job *sign;

    for (size_t i = 0; i < 4; i++)
        slow[i] = add(jobs, i % 2 ? HSM_GENERATE : HSM_DESTROY);
    sign = add(jobs, HSM_SIGN);
    assert_ptr_equal(send_next(jobs), slow[0]);
    assert_ptr_equal(send_next(jobs), slow[1]);
    assert_ptr_equal(send_next(jobs), sign);
    assert_null(send_next(jobs));
    jobs_release(jobs, slow[1]);
    assert_ptr_equal(send_next(jobs), slow[2]);
    assert_null(send_next(jobs));
}

static void one_session_generates_too(void **state)
{
    struct jobs *jobs = *state;
    struct job *scan = add(jobs, HSM_SCAN);

    (void)add(jobs, HSM_GENERATE);
    assert_ptr_equal(jobs_next(jobs, 1, NOW), scan);
    jobs_sent(jobs, scan, NOW);
    assert_null(jobs_next(jobs, 1, NOW));
}

static void a_steady_stream_of_generations_does_not_keep_signatures_out(void **state)
{
    struct jobs *jobs = *state;
    struct job *sign = NULL;

    for (size_t i = 0; i < 100; i++)
        (void)add(jobs, HSM_GENERATE);
    sign = add(jobs, HSM_SIGN);
    for (size_t i = 0; i < FOUR_THREADS / 2; i++)
        assert_int_equal(send_next(jobs)->op, HSM_GENERATE);
    assert_ptr_equal(send_next(jobs), sign);
}

/* ---- numbers ---- */

static void a_number_is_never_given_twice(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = send_one(jobs, HSM_SIGN);
    uint32_t number = job->number;
    struct job *again;

    assert_ptr_equal(jobs_numbered(jobs, number), job);
    jobs_release(jobs, job);
    again = send_one(jobs, HSM_SIGN);
    assert_ptr_equal(again, job); /* the slot is the same, or this shows nothing */
    assert_null(jobs_numbered(jobs, number));
    assert_ptr_equal(jobs_numbered(jobs, again->number), again);
}

static void numbers_go_round_without_being_zero(void **state)
{
    struct jobs *jobs = *state;

    for (uint32_t slot = 0; slot < SUPERVISOR_REQUESTS_MAX; slot++)
        jobs->table[slot].number = UINT32_MAX - (SUPERVISOR_REQUESTS_MAX - 1) + slot;
    for (uint32_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++) {
        struct job *job = add(jobs, HSM_PING);

        assert_in_range(job->number, SUPERVISOR_REQUESTS_MAX, 2 * SUPERVISOR_REQUESTS_MAX - 1);
        jobs_sent(jobs, job, NOW);
        assert_ptr_equal(jobs_numbered(jobs, job->number), job);
    }
}

static void a_queued_request_is_not_found_by_number(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = add(jobs, HSM_SIGN);

    assert_null(jobs_numbered(jobs, job->number));
    jobs_sent(jobs, job, NOW);
    assert_ptr_equal(jobs_numbered(jobs, job->number), job);
    jobs_requeue(jobs, job);
    assert_null(jobs_numbered(jobs, job->number));
}

static void the_frame_is_the_request_under_its_number(void **state)
{
    struct jobs *jobs = *state;
    struct hsm_request request = {.op = HSM_SIGN, .key.label = "label", .digest_length = 32};
    struct frame frame;
    struct job *job;

    memset(request.digest, 7, sizeof request.digest);
    job =
        jobs_add(jobs, &(struct supervisor_request){.request = &request, .deadline = 1}, NOW, NULL);
    assert_non_null(job);
    assert_int_equal(frame_decode(job->frame, job->length, &frame, NULL), 0);
    assert_int_equal(frame.kind, FRAME_REQUEST);
    assert_int_equal(frame.number, job->number);
    assert_string_equal(frame.request.key.label, "label");
    assert_memory_equal(frame.request.digest, request.digest, 32);
}

/* ---- the end of requests ---- */

static void two_thousand_and_forty_eight_requests_are_enough(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = add(jobs, HSM_SIGN);

    for (size_t i = 1; i < SUPERVISOR_REQUESTS_MAX; i++)
        (void)add(jobs, HSM_SIGN);
    assert_null(add_until(jobs, HSM_SIGN, CLOCK_NEVER));
    jobs_release(jobs, job);
    (void)add(jobs, HSM_SIGN);
}

static void an_abandoned_request_keeps_its_number_and_its_place(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = send_one(jobs, HSM_GENERATE);

    jobs_abandon(jobs, job);
    assert_int_equal(job->state, JOB_ABANDONED);
    assert_int_equal(jobs->slow_sent, 1);
    assert_false(jobs_idle(jobs));
    assert_ptr_equal(jobs_numbered(jobs, job->number), job);
    assert_ptr_equal(jobs_at_worker(jobs), job);
    assert_null(jobs_late(jobs, CLOCK_NEVER, true)); /* it was answered */
    jobs_release(jobs, job);
    assert_true(jobs_idle(jobs));
}

static void a_queued_request_that_is_abandoned_is_gone(void **state)
{
    struct jobs *jobs = *state;

    jobs_abandon(jobs, add(jobs, HSM_SIGN));
    assert_true(jobs_idle(jobs));
    assert_null(jobs_next(jobs, FOUR_THREADS, NOW));
}

static void late_is_what_has_not_been_answered_by_its_deadline(void **state)
{
    struct jobs *jobs = *state;
    struct job *queued = add_until(jobs, HSM_SIGN, NOW + 5);
    struct job *sent = add_until(jobs, HSM_SIGN, NOW + 2);

    jobs_sent(jobs, sent, NOW);
    assert_null(jobs_late(jobs, NOW + 1, false));
    assert_ptr_equal(jobs_late(jobs, NOW + 2, false), sent);
    jobs_abandon(jobs, sent);
    assert_null(jobs_late(jobs, NOW + 2, false));
    assert_ptr_equal(jobs_late(jobs, NOW + 5, false), queued);
    assert_ptr_equal(jobs_late(jobs, NOW, true), queued);
}

/* Who asked for it may give up, but it is not known before the token has answered. */
static void a_generation_that_was_begun_is_never_late(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = add_until(jobs, HSM_GENERATE, NOW + 2);

    assert_ptr_equal(jobs_late(jobs, NOW + 2, false), job);
    jobs_sent(jobs, job, NOW);
    assert_null(jobs_late(jobs, NOW + 2, false));
    assert_ptr_equal(jobs_late(jobs, NOW, true), job);
}

static void a_request_without_deadline_is_never_late(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = add(jobs, HSM_GENERATE);

    assert_null(jobs_late(jobs, CLOCK_NEVER - 1, false));
    assert_ptr_equal(jobs_late(jobs, NOW, true), job);
}

static void only_generating_must_not_be_asked_twice(void **state)
{
    (void)state;
    for (enum hsm_op op = HSM_SCAN; op <= HSM_PING; op++)
        assert_int_equal(jobs_repeatable(op), op != HSM_GENERATE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOOKS(requests_are_sent_in_the_order_they_came),
        BOOKS(repeated_requests_go_back_where_they_stood),
        BOOKS(a_request_past_its_deadline_is_passed_over),
        BOOKS(of_those_that_wait_the_longest_wait_is_told),
        BOOKS(a_worker_is_sent_two_requests_a_thread),
        BOOKS(slow_operations_leave_half_of_the_threads_to_signing),
        BOOKS(one_session_generates_too),
        BOOKS(a_steady_stream_of_generations_does_not_keep_signatures_out),
        BOOKS(a_number_is_never_given_twice),
        BOOKS(numbers_go_round_without_being_zero),
        BOOKS(a_queued_request_is_not_found_by_number),
        BOOKS(the_frame_is_the_request_under_its_number),
        BOOKS(two_thousand_and_forty_eight_requests_are_enough),
        BOOKS(an_abandoned_request_keeps_its_number_and_its_place),
        BOOKS(a_queued_request_that_is_abandoned_is_gone),
        BOOKS(late_is_what_has_not_been_answered_by_its_deadline),
        BOOKS(a_generation_that_was_begun_is_never_late),
        BOOKS(a_request_without_deadline_is_never_late),
        BOOKS(only_generating_must_not_be_asked_twice),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
