/* The supervisor's books: requests at which workers die, and keys that fail. */
#include "tests/support/jobs_books.h"

#include <stdio.h>

/* ---- what kills workers ---- */

static struct job *with_deaths(struct job *job, unsigned deaths)
{
    job->deaths = deaths;
    return job;
}

static void a_suspect_is_tried_with_no_other_signature_beside_it(void **state)
{
    struct jobs *jobs = *state;
    struct job *suspect = with_deaths(add(jobs, HSM_SIGN), JOB_DEATHS_MAX - 1);
    struct job *other = add(jobs, HSM_SIGN);

    assert_ptr_equal(send_next(jobs), suspect);
    assert_null(send_next(jobs));
    jobs_release(jobs, suspect);
    assert_ptr_equal(send_next(jobs), other);
}

static void a_suspect_waits_for_the_signatures_at_the_worker(void **state)
{
    struct jobs *jobs = *state;
    struct job *busy = send_one(jobs, HSM_SIGN);
    struct job *suspect = with_deaths(add(jobs, HSM_SIGN), JOB_DEATHS_MAX - 1);

    (void)add(jobs, HSM_SIGN);
    assert_null(send_next(jobs));
    jobs_release(jobs, busy);
    assert_ptr_equal(send_next(jobs), suspect);
}

static void a_suspect_does_not_wait_for_a_slow_generation(void **state)
{
    struct jobs *jobs = *state;
    struct job *suspect;

    (void)send_one(jobs, HSM_GENERATE);
    suspect = with_deaths(add(jobs, HSM_SIGN), JOB_DEATHS_MAX - 1);
    assert_ptr_equal(send_next(jobs), suspect);
}

static void a_suspect_that_goes_back_sets_the_worker_free(void **state)
{
    struct jobs *jobs = *state;
    struct job *suspect = with_deaths(add(jobs, HSM_SIGN), JOB_DEATHS_MAX - 1);
    struct job *other = add(jobs, HSM_SIGN);

    assert_ptr_equal(send_next(jobs), suspect);
    suspect->deaths = JOB_DEATHS_MAX;
    jobs_release(jobs, suspect);
    assert_ptr_equal(send_next(jobs), other);
    assert_int_equal(jobs->alone, 0);
}

static void a_request_starts_without_the_deaths_and_failures_of_the_one_before_it(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = with_deaths(add(jobs, HSM_SIGN), JOB_DEATHS_MAX - 1);

    (void)jobs_failed(jobs, job, 5, NOW);
    jobs_did_well(jobs, job);
    jobs_release(jobs, job);
    assert_ptr_equal(add(jobs, HSM_SIGN), job);
    assert_int_equal(job->deaths, 0);
    assert_int_equal(job->failures, 0);
}

/* ---- what fails ---- */

static struct job *add_named(struct jobs *jobs, enum hsm_op op, const char *label)
{
    struct hsm_request request = {.op = op};

    (void)snprintf(request.key.label, sizeof request.key.label, "%s", label);
    return jobs_add(jobs, &(struct supervisor_request){
                              .request = &request, .deadline = CLOCK_NEVER, .done = unused_done});
}

static void failures_are_counted_for_an_operation_on_a_key(void **state)
{
    struct jobs *jobs = *state;
    struct job *first = add_named(jobs, HSM_SIGN, "a");
    struct job *second = add_named(jobs, HSM_SIGN, "a");

    assert_int_equal(jobs_failed(jobs, first, 5, NOW)->failures, 1);
    assert_int_equal(jobs_failed(jobs, second, 6, NOW)->failures, 2);
    assert_int_equal(jobs_failed(jobs, add_named(jobs, HSM_SIGN, "b"), 7, NOW)->failures, 1);
    assert_int_equal(jobs_failed(jobs, add_named(jobs, HSM_PROVE, "a"), 7, NOW)->failures, 1);
    assert_int_equal(jobs_failed(jobs, first, 8, NOW)->failures, 3);
    assert_int_equal(jobs_failed(jobs, first, 8, NOW)->successes_seen, 5);
    assert_int_equal(first->failures, 3);
    assert_int_equal(second->failures, 1);
    assert_int_equal(second->successes_seen, 6);
}

static void what_asks_for_the_same_as_one_that_failed_goes_behind_and_is_tried_alone(void **state)
{
    struct jobs *jobs = *state;
    struct job *first = add_named(jobs, HSM_SIGN, "a");
    struct job *second = add_named(jobs, HSM_SIGN, "a");
    struct job *other = add_named(jobs, HSM_SIGN, "b");

    jobs_sent(jobs, first);
    (void)jobs_failed(jobs, first, 5, NOW);
    jobs_requeue(jobs, first);
    assert_ptr_equal(send_next(jobs), other);
    assert_null(send_next(jobs));
    jobs_release(jobs, other);
    assert_ptr_equal(send_next(jobs), second);
    assert_null(send_next(jobs));
    jobs_did_well(jobs, second);
    jobs_release(jobs, second);
    assert_ptr_equal(send_next(jobs), first);
}

/* Alone each time it is asked for, it would keep all others waiting. */
static void a_key_past_hope_is_not_tried_alone(void **state)
{
    struct jobs *jobs = *state;
    struct job *job;

    for (uint64_t successes = 0; successes < JOB_FAILURES_MAX; successes++) {
        job = add_named(jobs, HSM_SIGN, "broken");
        (void)jobs_failed(jobs, job, successes, NOW);
        jobs_release(jobs, job);
    }
    (void)send_one(jobs, HSM_SIGN);
    job = add_named(jobs, HSM_SIGN, "broken");
    assert_ptr_equal(send_next(jobs), job);
}

static void failures_are_counted_anew_after_a_success_and_after_30_s(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = add_named(jobs, HSM_SIGN, "a");

    (void)jobs_failed(jobs, job, 5, NOW);
    jobs_did_well(jobs, add_named(jobs, HSM_SIGN, "b"));
    assert_int_equal(jobs_failed(jobs, job, 6, NOW)->failures, 2);
    jobs_did_well(jobs, add_named(jobs, HSM_SIGN, "a"));
    assert_int_equal(jobs_failed(jobs, job, 7, NOW)->failures, 1);
    assert_int_equal(jobs_failed(jobs, job, 8, NOW + 30 * CLOCK_SECOND)->failures, 2);
    assert_int_equal(jobs_failed(jobs, job, 9, NOW + 30 * CLOCK_SECOND + 1)->failures, 1);
    assert_int_equal(jobs_failed(jobs, job, 9, NOW + 40 * CLOCK_SECOND)->successes_seen, 9);
}

static void the_failures_longest_ago_make_room_for_others(void **state)
{
    struct jobs *jobs = *state;
    char label[] = "a";
    struct job *job[FAILINGS_MAX + 1];

    for (size_t i = 0; i <= FAILINGS_MAX; i++, label[0]++) {
        job[i] = add_named(jobs, HSM_SIGN, label);
        (void)jobs_failed(jobs, job[i], 5, NOW + (int64_t)i);
    }
    for (size_t i = FAILINGS_MAX; i > 0; i--)
        assert_int_equal(jobs_failed(jobs, job[i], 5, NOW + 20)->failures, 2);
    assert_int_equal(jobs_failed(jobs, job[0], 5, NOW + 20)->failures, 1);
}

static void a_subject_that_ends_worker_after_worker_while_others_do_well_is_not_tried_for_30_s(
    void **state)
{
    struct jobs *jobs = *state;
    struct job *first = add_named(jobs, HSM_SIGN, "a");
    struct job *second = add_named(jobs, HSM_SIGN, "a");

    jobs_sent(jobs, first);
    jobs_died(jobs, first, 5, NOW);
    jobs_died(jobs, second, 5, NOW); /* one worker, whoever was there */
    jobs_died(jobs, first, 6, NOW + 1);
    assert_false(jobs_deadly(jobs, second, NOW + 1));
    jobs_requeue(jobs, first);
    assert_ptr_equal(send_next(jobs), second);
    assert_null(send_next(jobs)); /* it is tried alone */
    jobs_died(jobs, second, 6, NOW + 2);
    jobs_requeue(jobs, second);
    assert_null(send_next(jobs));
    assert_ptr_equal(jobs_late(jobs, NOW + 2, false), first);
    assert_null(jobs_next(jobs, FOUR_THREADS, NOW + 2 + 30 * CLOCK_SECOND));
    assert_ptr_equal(jobs_next(jobs, FOUR_THREADS, NOW + 3 + 30 * CLOCK_SECOND), first);
    jobs_died(jobs, first, 9, NOW + 3 + 30 * CLOCK_SECOND);
    assert_false(jobs_deadly(jobs, first, NOW + 3 + 30 * CLOCK_SECOND));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOOKS(a_suspect_is_tried_with_no_other_signature_beside_it),
        BOOKS(a_suspect_waits_for_the_signatures_at_the_worker),
        BOOKS(a_suspect_does_not_wait_for_a_slow_generation),
        BOOKS(a_suspect_that_goes_back_sets_the_worker_free),
        BOOKS(a_request_starts_without_the_deaths_and_failures_of_the_one_before_it),
        BOOKS(failures_are_counted_for_an_operation_on_a_key),
        BOOKS(what_asks_for_the_same_as_one_that_failed_goes_behind_and_is_tried_alone),
        BOOKS(a_key_past_hope_is_not_tried_alone),
        BOOKS(failures_are_counted_anew_after_a_success_and_after_30_s),
        BOOKS(the_failures_longest_ago_make_room_for_others),
        BOOKS(a_subject_that_ends_worker_after_worker_while_others_do_well_is_not_tried_for_30_s),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
