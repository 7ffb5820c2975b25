/* What a start serves of what it finds on the token, with a record, with a damaged one and with
 * none. Token and workers are those of keymanager.c. */
#include "plugin/keys/keymanager.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "plugin/keys/loss.h"
#include "tests/support/keymanager_spire.h"

static const int64_t DAY = 24 * 3600 * CLOCK_SECOND;

/* A stand-in for time(2), by which keys are young or old. Nothing waits by it. */
static time_t wall_ahead;

time_t time(time_t *result)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec += wall_ahead;
    if (result)
        *result = now.tv_sec;
    return now.tv_sec;
}

/* ---- what was condemned ---- */

static void a_restart_goes_on_with_what_was_condemned(void **state)
{
    struct answer first = make_key();
    struct answer second;

    (void)state;
    settings.keymanager.destroy_superseded_after = DAY;
    open_keymanager();
    second = make_key();
    crash_and_restart();
    assert_string_equal(sign_once().label, second.label);
    assert_int_equal(lookup(first.label)->there, WHOLE);
    settings.keymanager.destroy_superseded_after = 0;
    crash_and_restart();
    assert_left(second.label);
}

/* An object of our scope and key id that this server did not make: so many generations later. */
static struct hsm_key_name put_beside(const struct answer *key, int generations,
                                      enum presence there)
{
    struct hsm_key_name name = {.id = {1}, .id_length = HSM_ID_MAX};
    struct label label;

    assert_true(label_parse(key->label, &label));
    label.generation += (uint32_t)generations;
    label_format(&label, name.label);
    put(&name, HSM_EC_P256, there);
    return name;
}

/* A token restored, a server that shares the identity: whatever it is, it is a person's to see to.
 */
static void what_the_record_does_not_know_stays_at_a_start(void **state)
{
    struct answer served = make_key();

    (void)state;
    (void)put_beside(&served, -2, WHOLE);
    (void)put_beside(&served, 3, HALF);
    crash_and_restart();
    assert_string_equal(sign_once().label, served.label);
    served = make_key();
    assert_string_equal(sign_once().label, served.label);
    while (objects() > 3) /* the one superseded now goes, and any other would have by then */
        nap();
    assert_int_equal(objects(), 3);
}

static void of_one_key_id_no_more_are_kept_than_are_to_be(void **state)
{
    struct answer last = {.count = 0};

    (void)state;
    settings.keymanager.destroy_superseded_after = DAY;
    open_keymanager();
    for (unsigned i = 0; i < KEPT + 3; i++)
        last = make_key();
    while (objects() > KEPT + 1)
        nap();
    crash_and_restart();
    assert_string_equal(sign_once().label, last.label);
    assert_int_equal(objects(), KEPT + 1);
}

/* Whether it may show again is looked at twice more, after some seconds. That has time. */
static void what_is_to_go_goes_before_what_has_gone_is_looked_for(void **state)
{
    struct answer last = {.count = 0};

    (void)state;
    settings.keymanager.destroy_superseded_after = DAY;
    settings.keymanager.keep_condemned = OBJECTS;
    open_keymanager();
    for (unsigned i = 0; i < OBJECTS - 2; i++)
        last = make_key();
    token->misbehaviour = DESTROYS_SLOWLY;
    settings.keymanager.destroy_superseded_after = 0;
    crash_and_restart();
    assert_left(last.label);
    assert_int_equal(token->destroyed_in_vain, 0);
}

static void on_a_full_token_the_key_condemned_first_goes_before_its_day(void **state)
{
    struct answer made[5];

    (void)state;
    settings.keymanager.destroy_superseded_after = DAY;
    open_keymanager();
    for (size_t i = 0; i < 3; i++)
        made[i] = make_key();
    token->room = 3;
    for (size_t i = 3; i < 5; i++) {
        made[i] = make_key();
        assert_string_equal(sign_once().label, made[i].label);
        assert_null(lookup(made[i - 3].label));
        assert_non_null(lookup(made[i - 2].label));
        assert_non_null(lookup(made[i - 1].label));
    }
    assert_int_equal(objects(), 3);
}

static void a_full_token_with_nothing_condemned_says_so(void **state)
{
    struct answer only = make_key();
    struct answer refused;

    (void)state;
    token->room = 1;
    ask(&refused, PATIENCE_S * CLOCK_SECOND);
    hear(&refused, FAULT_RESOURCE_EXHAUSTED);
    assert_string_equal(sign_once().label, only.label);
    assert_left(only.label);
    token->room = 0;
    assert_left(make_key().label);
}

/* ---- losses ---- */

static void fails_to_open(enum fault_code code, const char *text, struct fault *fault)
{
    const atomic_bool cancel = false;

    if (keymanager) {
        keymanager_abandon(keymanager);
        keymanager_release(keymanager);
    }
    keymanager = NULL;
    settings.keymanager.startup_wait = CLOCK_SECOND;
    assert_int_equal(keymanager_open(&settings, NULL, &cancel, &keymanager, fault), -1);
    settings.keymanager.startup_wait = PATIENCE_S * CLOCK_SECOND;
    assert_int_equal(fault->code, code);
    if (!strstr(fault->message, text))
        fail_msg("%s", fault->message);
}

static void code_in(const struct fault *fault, char code[RECORD_CODE + 1])
{
    const char *found = strstr(fault->message, "spire-hsm accept ");

    assert_non_null(found);
    (void)snprintf(code, RECORD_CODE + 1, "%s", found + strlen("spire-hsm accept "));
}

/* Not even gone: hidden. */
static struct object *hide(const char *label)
{
    struct object *object = lookup(label);

    assert_non_null(object);
    object->there = ABSENT;
    return object;
}

static bool is_served(const char *key_id)
{
    struct catalogue_key *key = catalogue_find(keymanager_catalogue(keymanager), key_id);

    if (key)
        keymanager_drop(keymanager, key);
    return key != NULL;
}

static void a_start_without_a_key_that_is_needed_is_refused(void **state)
{
    struct answer made = make_key();
    struct object *hidden = hide(made.label);
    struct fault fault;

    (void)state;
    fails_to_open(FAULT_FAILED_PRECONDITION, made.label, &fault);
    hidden->there = WHOLE; /* the token is back */
    open_keymanager();
    assert_string_equal(sign_once().label, made.label);
}

static void a_loss_is_accepted_once_by_its_code(void **state)
{
    struct answer made = make_key();
    char code[RECORD_CODE + 1];
    struct fault fault;
    struct answer next;
    struct object *hidden;

    (void)state;
    (void)hide(made.label);
    fails_to_open(FAULT_FAILED_PRECONDITION, made.label, &fault);
    code_in(&fault, code);
    (void)snprintf(settings.keymanager.accept_loss, sizeof settings.keymanager.accept_loss, "%s",
                   code);
    open_keymanager();
    assert_false(is_served("x509-CA-A"));
    next = make_key();
    crash_and_restart();
    assert_string_equal(sign_once().label, next.label);
    hidden = hide(next.label); /* another loss has another code */
    fails_to_open(FAULT_FAILED_PRECONDITION, next.label, &fault);
    hidden->there = WHOLE;
    settings.keymanager.accept_loss[0] = '\0';
    open_keymanager();
}

static void a_loss_is_accepted_by_a_file_beside_the_record(void **state)
{
    struct answer made = make_key();
    char code[RECORD_CODE + 1];
    struct fault fault;

    (void)state;
    lookup(made.label)->there = ABSENT;
    fails_to_open(FAULT_FAILED_PRECONDITION, made.label, &fault);
    code_in(&fault, code);
    assert_int_equal(loss_accept(settings.keymanager.record_file, "00000000", &fault), 0);
    fails_to_open(FAULT_FAILED_PRECONDITION, made.label, &fault);
    assert_int_equal(loss_accept(settings.keymanager.record_file, code, &fault), 0);
    open_keymanager();
    assert_false(is_served("x509-CA-A"));
}

static void missing_keys_are_replaced_where_that_is_said(void **state)
{
    struct answer made = make_key();

    (void)state;
    lookup(made.label)->there = ABSENT;
    settings.keymanager.replace_missing = true;
    crash_and_restart();
    settings.keymanager.replace_missing = false;
    assert_false(is_served("x509-CA-A"));
}

/* SPIRE makes another JWT key in its place, and nobody notices. */
static void a_start_without_another_key_goes_on(void **state)
{
    struct answer kept = make_key();
    struct answer other = {.count = 0};
    struct object *hidden;

    (void)state;
    keymanager_generate(keymanager, "JWT-Signer-A", HSM_EC_P256,
                        clock_now() + PATIENCE_S * CLOCK_SECOND, generated, &other);
    hear(&other, FAULT_NONE);
    hidden = hide(other.label);
    settings.keymanager.startup_wait = CLOCK_SECOND;
    crash_and_restart();
    assert_string_equal(sign_once().label, kept.label);
    assert_false(is_served("JWT-Signer-A"));
    hidden->there = WHOLE;
    crash_and_restart();
    settings.keymanager.startup_wait = PATIENCE_S * CLOCK_SECOND;
    assert_true(is_served("JWT-Signer-A"));
}

static void a_key_of_which_half_shows_is_served_from_the_record(void **state)
{
    struct answer made = make_key();

    (void)state;
    lookup(made.label)->there = HALF;
    settings.keymanager.startup_wait = CLOCK_SECOND;
    crash_and_restart();
    settings.keymanager.startup_wait = PATIENCE_S * CLOCK_SECOND;
    assert_true(is_served("x509-CA-A"));
    lookup(made.label)->there = WHOLE;
    assert_string_equal(sign_once().label, made.label);
}

static void remove_record(void)
{
    remove_beside("");
    remove_beside("~");
}

static void damage_record(void)
{
    char copy[HSM_PATH_MAX];

    crash_and_restart(); /* which writes it a second time */
    (void)snprintf(copy, sizeof copy, "%.1000s~", settings.keymanager.record_file);
    assert_int_equal(truncate(settings.keymanager.record_file, 100), 0);
    assert_int_equal(truncate(copy, 50), 0);
}

static void a_damaged_record_is_no_reason_to_begin_anew(void **state)
{
    struct answer made = make_key();
    struct fault fault;

    (void)state;
    damage_record();
    fails_to_open(FAULT_FAILED_PRECONDITION, "record_file", &fault);
    remove_record();
    open_keymanager(); /* by the token */
    assert_string_equal(sign_once().label, made.label);
}

static void the_loss_of_the_record_is_accepted_once_by_its_code(void **state)
{
    struct answer made = make_key();
    char code[RECORD_CODE + 1];
    struct fault fault;

    (void)state;
    damage_record();
    fails_to_open(FAULT_FAILED_PRECONDITION, "record_file", &fault);
    code_in(&fault, code);
    memcpy(settings.keymanager.accept_loss, "00000000", sizeof code);
    fails_to_open(FAULT_FAILED_PRECONDITION, code, &fault);
    memcpy(settings.keymanager.accept_loss, code, sizeof code);
    open_keymanager();
    assert_string_equal(sign_once().label, made.label);
    made = make_key();
    crash_and_restart(); /* it was written again, and is believed */
    assert_string_equal(sign_once().label, made.label);
    assert_int_equal(truncate(settings.keymanager.record_file, 99), 0);
    remove_beside("~");
    fails_to_open(FAULT_FAILED_PRECONDITION, "record_file", &fault); /* another one */
    settings.keymanager.accept_loss[0] = '\0';
    remove_beside("");
    open_keymanager();
}

static void the_loss_of_the_record_is_accepted_by_a_file_beside_it(void **state)
{
    struct answer made = make_key();
    char code[RECORD_CODE + 1];
    struct fault fault;

    (void)state;
    damage_record();
    fails_to_open(FAULT_FAILED_PRECONDITION, "record_file", &fault);
    code_in(&fault, code);
    assert_int_equal(loss_accept(settings.keymanager.record_file, code, &fault), 0);
    open_keymanager();
    assert_string_equal(sign_once().label, made.label);
    crash_and_restart();
    assert_string_equal(sign_once().label, made.label);
}

/* ---- without a record ---- */

static void forget_record(void)
{
    keymanager_abandon(keymanager);
    keymanager_release(keymanager);
    keymanager = NULL;
    remove_record();
}

static void without_a_record_the_newest_key_is_served_and_nothing_goes(void **state)
{
    struct answer served;

    (void)state;
    (void)make_key();
    settings.keymanager.destroy_superseded = false;
    open_keymanager();
    served = make_key();
    settings.keymanager.destroy_superseded = true;
    (void)put_beside(&served, 1, HALF);
    forget_record();
    wall_ahead = 31; /* until then the other half might be on its way */
    open_keymanager();
    assert_string_equal(sign_once().label, served.label);
    served = make_key();
    assert_string_equal(sign_once().label, served.label);
    open_keymanager();
    wall_ahead = 0;
    assert_int_equal(objects(), 4);
}

static void a_token_that_shows_halves_alone_at_a_start_loses_none(void **state)
{
    struct answer made = make_key();
    struct hsm_key_name old = put_beside(&made, -1000, HALF);

    (void)state;
    lookup(made.label)->there = ABSENT;
    token->misbehaviour = HALVES_COMPLETE_LATER;
    forget_record();
    open_keymanager();
    assert_string_equal(sign_once().label, old.label);
    assert_left(old.label);
}

static void a_fresh_key_of_which_half_shows_at_first_is_waited_for(void **state)
{
    struct answer served = make_key();

    (void)state;
    lookup(served.label)->there = HALF;
    token->misbehaviour = HALVES_COMPLETE_LATER;
    crash_and_restart();
    assert_string_equal(sign_once().label, served.label);
    assert_left(served.label);
}

static void a_scan_that_fails_half_way_does_not_show_keys_twice(void **state)
{
    struct answer served = make_key();

    (void)state;
    token->misbehaviour = SCAN_FAILS_AT_ITS_END;
    open_keymanager();
    assert_int_equal(token->misbehaviour, BEHAVES);
    assert_string_equal(sign_once().label, served.label);
}

/* What waits to be destroyed by then may be what the other one serves. */
static void while_a_second_server_has_our_identity_nothing_old_goes(void **state)
{
    struct answer served = make_key();
    struct hsm_key_name name = put_beside(&served, 1000, WHOLE);

    (void)state;
    settings.keymanager.destroy_superseded_after = CLOCK_SECOND;
    crash_and_restart();
    assert_string_equal(sign_once().label, served.label);
    served = make_key(); /* a CA that cannot rotate expires */
    for (int64_t until = clock_now() + 3 * CLOCK_SECOND; clock_now() < until; nap())
        assert_int_equal(objects(), 3);
    lookup(name.label)->there = ABSENT; /* the other one has gone, and a person seen to its keys */
    crash_and_restart();
    assert_left(served.label);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        PLAY(a_restart_goes_on_with_what_was_condemned),
        PLAY(what_the_record_does_not_know_stays_at_a_start),
        PLAY(of_one_key_id_no_more_are_kept_than_are_to_be),
        PLAY(what_is_to_go_goes_before_what_has_gone_is_looked_for),
        PLAY(on_a_full_token_the_key_condemned_first_goes_before_its_day),
        PLAY(a_full_token_with_nothing_condemned_says_so),
        PLAY(a_start_without_a_key_that_is_needed_is_refused),
        PLAY(a_loss_is_accepted_once_by_its_code),
        PLAY(a_loss_is_accepted_by_a_file_beside_the_record),
        PLAY(missing_keys_are_replaced_where_that_is_said),
        PLAY(a_start_without_another_key_goes_on),
        PLAY(a_key_of_which_half_shows_is_served_from_the_record),
        PLAY(a_damaged_record_is_no_reason_to_begin_anew),
        PLAY(the_loss_of_the_record_is_accepted_once_by_its_code),
        PLAY(the_loss_of_the_record_is_accepted_by_a_file_beside_it),
        PLAY(without_a_record_the_newest_key_is_served_and_nothing_goes),
        PLAY(a_token_that_shows_halves_alone_at_a_start_loses_none),
        PLAY(a_fresh_key_of_which_half_shows_at_first_is_waited_for),
        PLAY(a_scan_that_fails_half_way_does_not_show_keys_twice),
        PLAY(while_a_second_server_has_our_identity_nothing_old_goes),
    };

    return keymanager_main(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
