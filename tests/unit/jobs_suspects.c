/* The supervisor's books: who is sent while some fail, end workers or hang. */
#include "tests/support/jobs_books.h"

#include <stdio.h>
#include <string.h>

static const struct fault device_error = {.code = FAULT_UNAVAILABLE, .message = "CKR_DEVICE_ERROR"};

static struct job *add_for(struct jobs *jobs, enum hsm_op op, const char *label, int64_t deadline)
{
    struct hsm_request request = {.op = op};

    (void)snprintf(request.key.label, sizeof request.key.label, "%s", label);
    return jobs_add(jobs,
                    &(struct supervisor_request){
                        .request = &request, .deadline = deadline, .done = unused_done},
                    NOW, NULL);
}

static struct job *add_named(struct jobs *jobs, const char *label)
{
    return add_for(jobs, HSM_SIGN, label, CLOCK_NEVER);
}

/* One that failed so often is back in the queue. */
static struct job *add_failed(struct jobs *jobs, const char *label, unsigned failures)
{
    struct job *job = add_named(jobs, label);

    for (unsigned i = 0; i < failures; i++) {
        jobs_sent(jobs, job, NOW + i);
        jobs_failed(jobs, job, &device_error, NOW + i + 1);
        jobs_requeue(jobs, job);
    }
    return job;
}

/* A worker ended, or was ended, while executing it. */
static void end_worker(struct jobs *jobs, struct job *job, int64_t now)
{
    jobs_sent(jobs, job, now);
    jobs_died(jobs, &job, 1, now);
    jobs_requeue(jobs, job);
}

static void hang_worker(struct jobs *jobs, struct job *job, int64_t now)
{
    jobs_sent(jobs, job, now);
    jobs_hung(jobs, job, now);
    jobs_requeue(jobs, job);
}

static struct job *send_at(struct jobs *jobs, int64_t now)
{
    struct job *job = jobs_next(jobs, FOUR_THREADS, now);

    if (job)
        jobs_sent(jobs, job, now);
    return job;
}

static void one_that_pauses_is_passed_over_until_it_is_due(void **state)
{
    struct jobs *jobs = *state;
    struct job *failed = add_failed(jobs, "a", 1);
    struct job *other = add_named(jobs, "b");
    int64_t due = NOW + 1 + 50 * CLOCK_MILLISECOND;

    assert_ptr_equal(send_at(jobs, NOW + 1), other);
    assert_null(send_at(jobs, due - 1));
    assert_int_equal(jobs->wake, due);
    assert_ptr_equal(send_at(jobs, due), failed);
}

static void one_probe_is_sent_and_the_others_when_it_has_done_well(void **state)
{
    struct jobs *jobs = *state;
    struct job *probe = add_failed(jobs, "a", 1);
    struct job *second = add_named(jobs, "a");
    struct job *third = add_named(jobs, "a");
    int64_t later = NOW + CLOCK_SECOND;

    assert_ptr_equal(send_at(jobs, later), second); /* it has not failed yet */
    assert_null(send_at(jobs, later));
    jobs_did_well(jobs, second, later);
    jobs_release(jobs, second);
    assert_ptr_equal(send_at(jobs, later), probe);
    assert_ptr_equal(send_at(jobs, later), third);
}

static void a_request_that_fails_does_not_keep_its_key_from_signing_for_others(void **state)
{
    struct jobs *jobs = *state;
    struct job *poison = add_failed(jobs, "a", 3);

    for (unsigned i = 0; i < 10; i++) {
        struct job *good = add_named(jobs, "a");

        assert_ptr_equal(send_at(jobs, NOW + CLOCK_SECOND + i), good);
        jobs_did_well(jobs, good, NOW + CLOCK_SECOND + i);
        jobs_release(jobs, good);
        assert_ptr_equal(send_at(jobs, NOW + CLOCK_SECOND + i), poison);
        jobs_requeue(jobs, poison);
        jobs_sent(jobs, poison, NOW + CLOCK_SECOND + i);
        jobs_failed(jobs, poison, &device_error, NOW + CLOCK_SECOND + i);
        jobs_requeue(jobs, poison);
        poison->not_before = 0; /* its own pause is over, say */
        jobs->patience.suspects[0].not_before = 0;
    }
}

static void those_that_end_workers_are_sent_one_at_a_time(void **state)
{
    struct jobs *jobs = *state;
    struct job *first = add_named(jobs, "a");
    struct job *second = add_named(jobs, "b");
    struct job *well;

    end_worker(jobs, first, NOW);
    end_worker(jobs, second, NOW + 1);
    well = add_named(jobs, "c");
    assert_ptr_equal(send_at(jobs, NOW + 1), first);
    assert_ptr_equal(send_at(jobs, NOW + 1), well);
    assert_null(send_at(jobs, NOW + 1));
    jobs_release(jobs, first);
    assert_ptr_equal(send_at(jobs, NOW + 1), second);
}

static void three_that_hang_leave_half_of_the_threads_to_others(void **state)
{
    struct jobs *jobs = *state;
    int64_t later = NOW + CLOCK_SECOND;
    struct job *hanging[3];
    struct job *well;

    for (size_t i = 0; i < 3; i++) {
        hanging[i] = add_named(jobs, (const char *[]){"a", "b", "c"}[i]);
        hang_worker(jobs, hanging[i], NOW);
    }
    assert_ptr_equal(send_at(jobs, later), hanging[0]);
    assert_ptr_equal(send_at(jobs, later), hanging[1]);
    assert_null(send_at(jobs, later));
    well = add_named(jobs, "d");
    assert_ptr_equal(send_at(jobs, later), well);
    jobs_release(jobs, hanging[0]);
    assert_ptr_equal(send_at(jobs, later), hanging[2]);
}

/* Its thread is taken, whoever has given up waiting. */
static void an_abandoned_one_still_counts(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = add_named(jobs, "a");
    struct job *next;

    hang_worker(jobs, job, NOW);
    next = add_named(jobs, "a");
    assert_ptr_equal(send_at(jobs, NOW + CLOCK_SECOND), next);
    jobs_abandon(jobs, next);
    assert_null(send_at(jobs, NOW + CLOCK_SECOND));
}

static void a_request_starts_without_the_failures_of_the_one_before_it(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = add_failed(jobs, "a", 3);

    jobs_did_well(jobs, job, NOW + 5);
    jobs_release(jobs, job);
    assert_ptr_equal(add_named(jobs, "a"), job);
    assert_int_equal(job->tries, 0);
    assert_ptr_equal(send_at(jobs, NOW + 5), job);
}

static void no_signature_is_given_up_before_its_deadline(void **state)
{
    struct jobs *jobs = *state;
    struct job *job = add_failed(jobs, "a", 20);

    patience_well(&jobs->patience, 7, NOW + 100);
    assert_false(jobs_is_hopeless(jobs, job, false));
    assert_null(jobs_late(jobs, CLOCK_NEVER - 1, false));
}

static void a_look_is_answered_after_three_tries_where_others_do_well(void **state)
{
    static const enum hsm_op looks[] = {HSM_SCAN, HSM_PROVE, HSM_DESTROY};
    struct jobs *jobs = *state;

    for (size_t i = 0; i < 3; i++) {
        struct job *job = add_for(jobs, looks[i], "a", CLOCK_NEVER);

        jobs->patience.well_at = 0;
        for (unsigned tries = 1; tries <= 3; tries++) {
            int64_t now = NOW + 10 * ((int64_t)i * 3 + tries);

            jobs_sent(jobs, job, now - 1);
            jobs_failed(jobs, job, &device_error, now);
            jobs_requeue(jobs, job);
            assert_false(jobs_is_hopeless(jobs, job, false));
            assert_int_equal(jobs_is_hopeless(jobs, job, true), tries == 3);
        }
        patience_well(&jobs->patience, 7, NOW + 1000 * (int64_t)(i + 1));
        assert_true(jobs_is_hopeless(jobs, job, false));
    }
}

static void a_dead_key_does_not_fill_the_table(void **state)
{
    struct jobs *jobs = *state;
    struct fault why;

    (void)add_failed(jobs, "dead", 1);
    for (size_t i = 1; i < SUSPECT_QUEUED_MAX; i++)
        assert_non_null(add_named(jobs, "dead"));
    assert_null(jobs_add(jobs,
                         &(struct supervisor_request){
                             .request = &(struct hsm_request){.op = HSM_SIGN, .key.label = "dead"},
                             .deadline = CLOCK_NEVER,
                             .done = unused_done},
                         NOW, &why));
    assert_int_equal(why.code, FAULT_UNAVAILABLE);
    assert_non_null(strstr(why.message, "CKR_DEVICE_ERROR"));
    assert_non_null(add_named(jobs, "well"));
}

static void a_minute_on_what_asks_for_a_dead_key_waits_for_one_try(void **state)
{
    struct jobs *jobs = *state;
    struct job *probe = add_failed(jobs, "dead", 1);
    struct job *waiting = add_named(jobs, "dead");
    int64_t now = NOW + 62 * CLOCK_SECOND;
    struct job *later;

    patience_well(&jobs->patience, 7, NOW + 2);
    jobs_sent(jobs, probe, now);
    later = add_named(jobs, "dead");
    later->added = now + 1;
    jobs_failed(jobs, probe, &device_error, now + 2);
    jobs_requeue(jobs, probe);
    assert_int_equal(probe->deadline, now + 2);
    assert_int_equal(waiting->deadline, now + 2);
    assert_int_equal(later->deadline, CLOCK_NEVER);
    assert_string_equal(jobs_reason(jobs, waiting)->message, "CKR_DEVICE_ERROR");
}

static void what_may_pass_is_asked_again(void **state)
{
    static const struct {
        enum hsm_op op;
        struct fault fault;
        bool may_pass;
    } rows[] = {
        {HSM_SIGN, {.code = FAULT_UNAVAILABLE}, true},
        {HSM_SIGN, {.code = FAULT_NOT_FOUND}, true}, /* a key that was served */
        {HSM_SIGN, {.code = FAULT_RESOURCE_EXHAUSTED}, true},
        {HSM_SIGN, {.code = FAULT_INTERNAL}, true}, /* a wrong signature */
        {HSM_SIGN, {.code = FAULT_INTERNAL, .ckr = 7}, false},
        {HSM_SIGN, {.code = FAULT_INVALID_ARGUMENT}, false},
        {HSM_SIGN, {.code = FAULT_FAILED_PRECONDITION}, false},
        {HSM_SIGN, {.code = FAULT_PERMISSION_DENIED}, false},
        {HSM_PROVE, {.code = FAULT_UNAVAILABLE}, true},
        {HSM_PROVE, {.code = FAULT_NOT_FOUND}, false},
        {HSM_SCAN, {.code = FAULT_UNAVAILABLE}, true},
        {HSM_DESTROY, {.code = FAULT_UNAVAILABLE}, true},
        {HSM_GENERATE, {.code = FAULT_UNAVAILABLE}, false},
        {HSM_PING, {.code = FAULT_UNAVAILABLE}, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(jobs_may_pass(&(struct job){.op = rows[i].op}, &rows[i].fault),
                         rows[i].may_pass);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOOKS(one_that_pauses_is_passed_over_until_it_is_due),
        BOOKS(one_probe_is_sent_and_the_others_when_it_has_done_well),
        BOOKS(a_request_that_fails_does_not_keep_its_key_from_signing_for_others),
        BOOKS(those_that_end_workers_are_sent_one_at_a_time),
        BOOKS(three_that_hang_leave_half_of_the_threads_to_others),
        BOOKS(an_abandoned_one_still_counts),
        BOOKS(a_request_starts_without_the_failures_of_the_one_before_it),
        BOOKS(no_signature_is_given_up_before_its_deadline),
        BOOKS(a_look_is_answered_after_three_tries_where_others_do_well),
        BOOKS(a_dead_key_does_not_fill_the_table),
        BOOKS(a_minute_on_what_asks_for_a_dead_key_waits_for_one_try),
        BOOKS(what_may_pass_is_asked_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
