/* Late deliveries never replace a newer bundle; a restored datastore's does in the end.
 *
 * Two processes of ours on one file are played through: both remember for themselves. */
#include "plugin/bundle/sequence.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static int64_t at(int64_t seconds)
{
    return 1000 * CLOCK_SECOND + seconds * CLOCK_SECOND;
}

static void newer_and_same_are_written(void **state)
{
    struct sequence sequence = {0};

    (void)state;
    assert_int_equal(sequence_judge(&sequence, 0, 0, at(0)), SEQUENCE_NEWER);
    assert_int_equal(sequence_judge(&sequence, 7, 7, at(0)), SEQUENCE_NEWER);
    assert_int_equal(sequence_judge(&sequence, 7, 8, at(0)), SEQUENCE_NEWER);
    assert_int_equal(sequence_judge(&sequence, UINT64_MAX - 1, UINT64_MAX, at(0)), SEQUENCE_NEWER);
}

static void a_late_one_is_held_back(void **state)
{
    struct sequence sequence = {0};

    (void)state;
    assert_int_equal(sequence_judge(&sequence, 8, 7, at(0)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 8, 8, at(30)), SEQUENCE_NEWER);
    assert_int_equal(sequence_judge(&sequence, 9, 8, at(60)), SEQUENCE_HELD);
}

static void the_same_again_soon_is_still_late(void **state)
{
    struct sequence sequence = {0};

    (void)state;
    assert_int_equal(sequence_judge(&sequence, 8, 7, at(0)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 8, 7, at(1)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 8, 7, at(25) - 1), SEQUENCE_HELD);
}

static void the_same_again_after_25_s_is_a_restored_datastore(void **state)
{
    struct sequence sequence = {0};

    (void)state;
    assert_int_equal(sequence_judge(&sequence, 100, 7, at(0)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 100, 7, at(25)), SEQUENCE_RESTORED);
    /* writing failed: the next call tries again at once */
    assert_int_equal(sequence_judge(&sequence, 100, 7, at(26)), SEQUENCE_RESTORED);
}

static void a_restored_datastore_may_move_on_meanwhile(void **state)
{
    struct sequence sequence = {0};

    (void)state;
    assert_int_equal(sequence_judge(&sequence, 100, 5, at(0)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 100, 6, at(10)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 100, 7, at(25)), SEQUENCE_RESTORED);
}

static void going_lower_still_starts_the_wait_anew(void **state)
{
    struct sequence sequence = {0};

    (void)state;
    assert_int_equal(sequence_judge(&sequence, 100, 9, at(0)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 100, 5, at(30)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 100, 5, at(54)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 100, 5, at(55)), SEQUENCE_RESTORED);
}

/* The notifier was late once; the publisher went on writing newer ones; hours later the
 * notifier is late again. Nothing was restored. */
static void late_twice_while_others_write_is_late(void **state)
{
    struct sequence notifier = {0};

    (void)state;
    assert_int_equal(sequence_judge(&notifier, 7, 5, at(0)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&notifier, 9, 8, at(7200)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&notifier, 9, 9, at(7230)), SEQUENCE_NEWER);
}

/* Late, on time, late: a datastore that was on time in between was not restored. */
static void one_on_time_in_between_ends_the_wait(void **state)
{
    struct sequence sequence = {0};

    (void)state;
    assert_int_equal(sequence_judge(&sequence, 8, 7, at(0)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&sequence, 8, 8, at(10)), SEQUENCE_NEWER);
    assert_int_equal(sequence_judge(&sequence, 8, 7, at(30)), SEQUENCE_HELD);
}

/* After a restore the publisher's second tick settles it; the notifier, which heard of it
 * first, follows at its next event without a wait. */
static void after_a_restore_both_processes_go_on(void **state)
{
    struct sequence notifier = {0};
    struct sequence publisher = {0};

    (void)state;
    assert_int_equal(sequence_judge(&notifier, 100, 5, at(0)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&publisher, 100, 5, at(30)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&publisher, 100, 5, at(60)), SEQUENCE_RESTORED);
    publisher = (struct sequence){0};
    assert_int_equal(sequence_judge(&notifier, 5, 6, at(70)), SEQUENCE_NEWER);
    assert_int_equal(sequence_judge(&publisher, 6, 6, at(90)), SEQUENCE_NEWER);
}

/* Alone, a notifier is called at rotations only. */
static void a_notifier_alone_settles_it_at_the_next_event(void **state)
{
    struct sequence notifier = {0};

    (void)state;
    assert_int_equal(sequence_judge(&notifier, 100, 5, at(0)), SEQUENCE_HELD);
    assert_int_equal(sequence_judge(&notifier, 100, 6, at(43200)), SEQUENCE_RESTORED);
}

/* One process's deliveries in time order, each reading a datastore that only grows, at
 * some moment before it is judged: whatever the delays, no file ever goes back. */
static void a_growing_datastore_never_takes_a_file_back(void **state)
{
    unsigned seed = 42;

    (void)state;
    for (int run = 0; run < 2000; run++) {
        struct sequence sequences[2] = {{0}, {0}};
        uint64_t file = 0;
        uint64_t datastore = 1;
        uint64_t read[2] = {0, 0}; /* what the call under way carries; 0 = none is */
        int64_t now = 0;

        for (int step = 0; step < 60; step++) {
            size_t who = (size_t)rand_r(&seed) % 2;
            enum sequence_verdict verdict;

            now += rand_r(&seed) % 40;
            datastore += (uint64_t)rand_r(&seed) % 2;
            if (read[who] == 0) {
                read[who] = datastore;
                continue;
            }
            verdict = sequence_judge(&sequences[who], file, read[who], at(now));
            assert_int_not_equal(verdict, SEQUENCE_RESTORED);
            if (verdict == SEQUENCE_NEWER) {
                assert_true(read[who] >= file);
                file = read[who];
                sequences[who] = (struct sequence){0};
            }
            read[who] = 0;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(newer_and_same_are_written),
        cmocka_unit_test(a_late_one_is_held_back),
        cmocka_unit_test(the_same_again_soon_is_still_late),
        cmocka_unit_test(the_same_again_after_25_s_is_a_restored_datastore),
        cmocka_unit_test(a_restored_datastore_may_move_on_meanwhile),
        cmocka_unit_test(going_lower_still_starts_the_wait_anew),
        cmocka_unit_test(late_twice_while_others_write_is_late),
        cmocka_unit_test(one_on_time_in_between_ends_the_wait),
        cmocka_unit_test(after_a_restore_both_processes_go_on),
        cmocka_unit_test(a_notifier_alone_settles_it_at_the_next_event),
        cmocka_unit_test(a_growing_datastore_never_takes_a_file_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
