/* What follows from a success, a fault, a death and a hang, and when workers are started. */
#include "plugin/worker/patience.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#include "hsm/base/clock.h"

enum { KEY = 1, OTHER = 2, THREADS = 4 };

#define START (100 * CLOCK_SECOND)
#define MS CLOCK_MILLISECOND

enum outcome { OK, FAULT, DEATH, HANG };

/* Who is executing beside it, or has just done well. */
enum company { ALONE, BESIDE_WELL, BESIDE_SUSPECT };

static const char *const outcomes[] = {"ok", "fault", "death", "hang"};
static const char *const companies[] = {"alone", "beside well", "beside a suspect"};

static void happen(struct patience *p, enum outcome outcome, enum company company, int64_t now)
{
    const struct fault fault = {.code = FAULT_UNAVAILABLE, .message = "CKR_DEVICE_ERROR"};
    const uint64_t executing[] = {KEY, OTHER};

    if (outcome == OK)
        patience_well(p, KEY, now);
    else if (outcome == FAULT)
        patience_fault(p, KEY, now - 1, &fault, now);
    else if (outcome == DEATH)
        patience_death(p, executing, company == ALONE ? 1 : 2, now);
    else
        patience_hang(p, KEY, now);
}

/* A worker was born, and others did well by it, just now. The suspect has ended one before. */
static void set_scene(struct patience *p, enum company company, int64_t now)
{
    const uint64_t suspect = OTHER;

    *p = (struct patience){.count = 0};
    patience_born(p, now - CLOCK_SECOND);
    if (company != ALONE)
        patience_well(p, OTHER, now - 1);
    if (company == BESIDE_SUSPECT)
        patience_death(p, &suspect, 1, now - 1);
}

struct row {
    enum outcome outcome;
    enum company company;
    unsigned strikes;    /* of the key */
    int64_t pause;       /* ms, of the key */
    unsigned theirs;     /* strikes of the other */
    bool fresh;          /* a worker is wanted in place of this one */
    bool beside_deadly;  /* may the key be probed beside one that ends workers */
    bool beside_hanging; /* .. beside two that hang */
};

static const struct row rows[] = {
    {OK, ALONE, 0, 0, 0, false, true, true},
    {OK, BESIDE_WELL, 0, 0, 0, false, true, true},
    {OK, BESIDE_SUSPECT, 0, 0, 1, false, true, true},
    {FAULT, ALONE, 1, 50, 0, true, true, true},
    {FAULT, BESIDE_WELL, 1, 50, 0, false, true, true},
    {FAULT, BESIDE_SUSPECT, 1, 50, 1, false, true, true},
    {DEATH, ALONE, 1, 0, 0, false, false, true},
    {DEATH, BESIDE_WELL, 1, 0, 1, false, false, true},
    {DEATH, BESIDE_SUSPECT, 0, 0, 2, false, true, true},
    {HANG, ALONE, 1, 1000, 0, false, true, false},
    {HANG, BESIDE_WELL, 1, 1000, 0, false, true, false},
    {HANG, BESIDE_SUSPECT, 1, 1000, 1, false, true, false},
};

static bool admitted_beside(const struct patience *p, struct suspect beside)
{
    struct patience more = *p;
    const struct suspect *suspect = patience_find(&more, KEY);

    more.suspects[more.count++] = beside;
    return !suspect || patience_admits(&more, suspect, THREADS);
}

static void every_outcome_in_every_company(void **state)
{
    const struct suspect deadly = {.subject = 3, .strikes = 1, .deaths = 1, .out = 1};
    const struct suspect hanging = {.subject = 3, .strikes = 1, .hangs = 1, .out = 2};

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct row *row = &rows[i];
        const struct suspect *key;
        const struct suspect *other;
        struct patience p;

        print_message("%s, %s\n", outcomes[row->outcome], companies[row->company]);
        set_scene(&p, row->company, START);
        happen(&p, row->outcome, row->company, START);
        key = patience_find(&p, KEY);
        other = patience_find(&p, OTHER);
        assert_int_equal(key ? key->strikes : 0, row->strikes);
        assert_int_equal(key ? key->not_before - START : 0, row->pause * MS);
        assert_int_equal(other ? other->strikes : 0, row->theirs);
        assert_int_equal(p.fresh, row->fresh);
        assert_int_equal(admitted_beside(&p, deadly), row->beside_deadly);
        assert_int_equal(admitted_beside(&p, hanging), row->beside_hanging);
    }
}

/* ---- pauses ---- */

static void the_same_again_pauses_longer_each_time(void **state)
{
    static const struct {
        enum outcome outcome;
        int64_t pauses[8]; /* ms */
    } ladders[] = {
        {FAULT, {50, 100, 200, 400, 800, 1600, 2000, 2000}},
        {DEATH, {0, 500, 1000, 2000, 4000, 4000, 4000, 4000}},
        {HANG, {1000, 2000, 4000, 8000, 8000, 8000, 8000, 8000}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof ladders / sizeof ladders[0]; i++) {
        struct patience p = {.count = 0};
        int64_t now = START;

        for (size_t j = 0; j < 8; j++) {
            happen(&p, ladders[i].outcome, ALONE, now);
            assert_int_equal(patience_find(&p, KEY)->not_before - now, ladders[i].pauses[j] * MS);
            now = patience_find(&p, KEY)->not_before + MS;
        }
        patience_well(&p, KEY, now);
        assert_null(patience_find(&p, KEY));
    }
}

static void what_was_out_already_when_it_failed_says_nothing_new(void **state)
{
    const struct fault fault = {.code = FAULT_UNAVAILABLE};
    struct patience p = {.count = 0};

    (void)state;
    patience_fault(&p, KEY, START - 3, &fault, START);
    patience_fault(&p, KEY, START - 2, &fault, START + 5);
    patience_fault(&p, KEY, START, &fault, START + 6);
    assert_int_equal(patience_find(&p, KEY)->strikes, 1);
    patience_fault(&p, KEY, START + 7, &fault, START + 8);
    assert_int_equal(patience_find(&p, KEY)->strikes, 2);
}

static void a_subject_that_stands_there_twice_is_struck_once(void **state)
{
    const uint64_t executing[] = {KEY, KEY, KEY};
    struct patience p = {.count = 0};

    (void)state;
    patience_death(&p, executing, 3, START);
    patience_hang(&p, OTHER, START);
    patience_hang(&p, OTHER, START);
    assert_int_equal(patience_find(&p, KEY)->strikes, 1);
    assert_int_equal(patience_find(&p, OTHER)->strikes, 1);
}

static void a_deadline_that_is_near_ends_the_pause(void **state)
{
    const struct suspect failing = {.strikes = 6, .struck = START, .not_before = START + 2000 * MS};
    struct suspect deadly = failing;
    struct suspect hanging = failing;
    const struct patience p = {.count = 0};

    (void)state;
    deadly.deaths = 6;
    hanging.hangs = 6;
    assert_int_equal(patience_due(&p, &failing, 0, 0, CLOCK_NEVER), START + 2000 * MS);
    assert_int_equal(patience_due(&p, &failing, 0, 0, START + 1500 * MS), START + 600 * MS);
    assert_int_equal(patience_due(&p, &failing, 0, 0, START + 950 * MS), START + 100 * MS);
    assert_int_equal(patience_due(&p, &deadly, 0, 0, START + 950 * MS), START + 1000 * MS);
    assert_int_equal(patience_due(&p, &hanging, 0, 0, START + 950 * MS), START + 2000 * MS);
    assert_int_equal(patience_due(&p, NULL, START + 700 * MS, START, START + 1500 * MS),
                     START + 600 * MS);
}

static void what_ends_workers_waits_until_one_may_be_started_in_its_place(void **state)
{
    const struct suspect deadly = {.strikes = 1, .deaths = 1, .struck = START, .not_before = START};
    const struct suspect failing = {.strikes = 1, .struck = START, .not_before = START};
    const struct patience p = {.spare = START + 800 * MS};

    (void)state;
    assert_int_equal(patience_due(&p, &deadly, 0, 0, CLOCK_NEVER), START + 800 * MS);
    assert_int_equal(patience_due(&p, &deadly, 0, 0, START + 1200 * MS), START + 300 * MS);
    assert_int_equal(patience_due(&p, &failing, 0, 0, CLOCK_NEVER), START);
}

/* ---- who is beside ---- */

static void a_suspect_is_probed_by_one_request_at_a_time(void **state)
{
    struct patience p = {.count = 0};

    (void)state;
    happen(&p, FAULT, ALONE, START);
    assert_true(patience_admits(&p, patience_find(&p, KEY), THREADS));
    patience_find(&p, KEY)->out = 1;
    assert_false(patience_admits(&p, patience_find(&p, KEY), THREADS));
}

static void hanging_ones_get_half_of_the_threads_and_of_one_thread_that_one(void **state)
{
    static const unsigned most[] = {[1] = 1, [2] = 1, [3] = 1, [4] = 2, [8] = 4};
    struct patience p = {.count = 0};

    (void)state;
    happen(&p, HANG, ALONE, START);
    patience_hang(&p, OTHER, START);
    for (unsigned threads = 1; threads <= 8; threads++)
        for (unsigned out = 0; most[threads] > 0 && out <= 8; out++) {
            patience_find(&p, OTHER)->out = out;
            assert_int_equal(patience_admits(&p, patience_find(&p, KEY), threads),
                             out < most[threads]);
        }
}

static void who_failed_longest_ago_is_forgotten_when_there_are_too_many(void **state)
{
    const struct fault fault = {.code = FAULT_UNAVAILABLE};
    struct patience p = {.count = 0};

    (void)state;
    for (uint64_t i = 0; i <= SUSPECTS_MAX; i++)
        patience_fault(&p, i, START, &fault, START + 1 + (int64_t)i);
    assert_null(patience_find(&p, 0));
    for (uint64_t i = 1; i <= SUSPECTS_MAX; i++)
        assert_non_null(patience_find(&p, i));
}

/* ---- another worker ---- */

static bool wanted_at(struct patience *p, int64_t now)
{
    const struct fault fault = {.code = FAULT_UNAVAILABLE};

    p->fresh = false;
    p->for_one = false;
    patience_well(p, OTHER, now - 1);
    patience_fault(p, KEY, now - 1, &fault, now);
    return p->fresh;
}

static void a_key_that_fails_alone_gets_a_fresh_worker_less_and_less_often(void **state)
{
    struct patience p = {.count = 0};
    int64_t wanted = 0;

    (void)state;
    patience_born(&p, START - CLOCK_SECOND);
    for (int64_t t = 0; t < 600; t++)
        wanted += wanted_at(&p, START + t * CLOCK_SECOND);
    assert_in_range(wanted, 10, 16);
}

static void a_worker_by_which_nobody_has_done_well_for_a_second_is_replaced(void **state)
{
    struct patience p = {.count = 0};

    (void)state;
    patience_born(&p, START);
    patience_well(&p, OTHER, START + 1);
    happen(&p, FAULT, ALONE, START + 999 * MS);
    assert_false(p.fresh);
    happen(&p, FAULT, ALONE, START + 1001 * MS);
    assert_true(p.fresh);
    patience_born(&p, START + 1002 * MS);
    assert_false(p.fresh);
}

static void a_success_beside_it_makes_the_wish_void(void **state)
{
    struct patience p = {.count = 0};

    (void)state;
    patience_born(&p, START);
    happen(&p, FAULT, ALONE, START + 1);
    assert_true(p.fresh);
    patience_well(&p, OTHER, START + 2);
    assert_false(p.fresh);
    patience_wish(&p, START + 3); /* for one key */
    patience_well(&p, OTHER, START + 4);
    assert_true(p.fresh);
}

static void a_key_is_dead_that_has_failed_for_a_minute_while_others_do_well(void **state)
{
    struct patience p = {.count = 0};
    struct suspect *key;

    (void)state;
    happen(&p, FAULT, ALONE, START);
    key = patience_find(&p, KEY);
    assert_false(patience_is_over(&p, key, START + 61 * CLOCK_SECOND));
    patience_well(&p, OTHER, START + 1);
    assert_true(patience_alone(&p, key));
    assert_false(patience_is_over(&p, key, START + 59 * CLOCK_SECOND));
    assert_true(patience_is_over(&p, key, START + 61 * CLOCK_SECOND));
}

/* ---- starts ---- */

static const struct starts_wait nobody = {.deadline = CLOCK_NEVER};

static void workers_are_started_three_at_once_and_then_one_a_second(void **state)
{
    struct starts starts = {.fruitless = 0};
    int64_t now = START;
    int64_t count = 0;

    (void)state;
    for (; now < START + 20 * CLOCK_SECOND; now += MS)
        if (starts_next(&starts, &nobody) <= now) {
            starts_begun(&starts, 0, now);
            starts.fruitless = 0; /* it does well, and dies */
            starts_ended(&starts, now);
            count++;
            assert_true(count <= 3 + (now - START) / CLOCK_SECOND);
        }
    assert_int_equal(count, 3 + 19);
}

/* In ms, between starts that come to nothing; without the dice three quarters of it. */
static int64_t pause_after(unsigned fruitless, struct starts_wait wait)
{
    struct starts starts = {.fruitless = fruitless, .from = START};

    if (wait.deadline == 0)
        wait.deadline = CLOCK_NEVER;
    return (starts_next(&starts, &wait) - START) / MS;
}

static void a_start_waits_longer_after_each_that_came_to_nothing(void **state)
{
    static const int64_t passing[] = {0, 0, 75, 150, 300, 600, 1200, 2400, 3750, 3750};
    static const int64_t definite[] = {0, 0, 750, 1500, 3000, 6000, 12000, 22500, 22500, 22500};

    (void)state;
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(pause_after(i, (struct starts_wait){.definite = false}), passing[i]);
        assert_int_equal(pause_after(i, (struct starts_wait){.definite = true}), definite[i]);
    }
}

static void a_definite_reason_is_asked_again_within_5_s_while_requests_wait(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 20; i++) {
        assert_true(pause_after(i, (struct starts_wait){.definite = true, .waiting = true}) <=
                    5000);
        assert_int_equal(pause_after(20, (struct starts_wait){.definite = true}), 22500);
    }
}

static void an_opening_follows_what_the_first_one_took(void **state)
{
    static const struct {
        unsigned fruitless;
        int64_t operation_limit, startup_left, took; /* s */
        int64_t limit;
    } openings[] = {
        {1, 10, 50, 0, 60}, /* the first: what is left, and a minute at least */
        {1, 10, 590, 0, 590},  {5, 10, 200, 0, 200}, {5, 10, -40, 0, 60},
        {1, 10, -40, 1, 20}, /* it was open before */
        {2, 10, -40, 1, 30},   {1, 1, -40, 1, 2},    {4, 1, 590, 1, 5},
        {9, 10, -40, 1, 60},   {1, 100, -40, 1, 60}, {1, 10, -40, 65, 130}, /* and took its time */
        {9, 10, -40, 65, 130},
    };

    (void)state;
    for (size_t i = 0; i < sizeof openings / sizeof openings[0]; i++) {
        const struct starts starts = {.fruitless = openings[i].fruitless};
        const struct starts_opening opening = {
            .operation_limit = openings[i].operation_limit * CLOCK_SECOND,
            .startup_left = openings[i].startup_left * CLOCK_SECOND,
            .took = openings[i].took * CLOCK_SECOND,
        };

        print_message("fruitless %u, operation %d s, startup %d s, took %d s: %d s\n",
                      openings[i].fruitless, (int)openings[i].operation_limit,
                      (int)openings[i].startup_left, (int)openings[i].took, (int)openings[i].limit);
        assert_int_equal(starts_limit(&starts, &opening), openings[i].limit * CLOCK_SECOND);
    }
}

static void a_start_comes_before_the_deadline_of_who_waits(void **state)
{
    (void)state;
    assert_int_equal(
        pause_after(9, (struct starts_wait){.waiting = true, .deadline = START + 2000 * MS}), 1100);
    assert_int_equal(
        pause_after(9, (struct starts_wait){.waiting = true, .deadline = START + 10 * MS}), 0);
    assert_int_equal(
        pause_after(9, (struct starts_wait){.waiting = true, .deadline = START + 9000 * MS}), 3750);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_outcome_in_every_company),
        cmocka_unit_test(the_same_again_pauses_longer_each_time),
        cmocka_unit_test(what_was_out_already_when_it_failed_says_nothing_new),
        cmocka_unit_test(a_subject_that_stands_there_twice_is_struck_once),
        cmocka_unit_test(a_deadline_that_is_near_ends_the_pause),
        cmocka_unit_test(what_ends_workers_waits_until_one_may_be_started_in_its_place),
        cmocka_unit_test(a_suspect_is_probed_by_one_request_at_a_time),
        cmocka_unit_test(hanging_ones_get_half_of_the_threads_and_of_one_thread_that_one),
        cmocka_unit_test(who_failed_longest_ago_is_forgotten_when_there_are_too_many),
        cmocka_unit_test(a_key_that_fails_alone_gets_a_fresh_worker_less_and_less_often),
        cmocka_unit_test(a_worker_by_which_nobody_has_done_well_for_a_second_is_replaced),
        cmocka_unit_test(a_success_beside_it_makes_the_wish_void),
        cmocka_unit_test(a_key_is_dead_that_has_failed_for_a_minute_while_others_do_well),
        cmocka_unit_test(workers_are_started_three_at_once_and_then_one_a_second),
        cmocka_unit_test(a_start_waits_longer_after_each_that_came_to_nothing),
        cmocka_unit_test(a_definite_reason_is_asked_again_within_5_s_while_requests_wait),
        cmocka_unit_test(an_opening_follows_what_the_first_one_took),
        cmocka_unit_test(a_start_comes_before_the_deadline_of_who_waits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
