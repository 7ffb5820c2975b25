/* The life of keys, with worker processes that die: this program started again, on a token
 * that is a page shared with the test. */
#include "plugin/keys/keymanager.h"

#include <string.h>

#include "hsm/base/clock.h"
#include "tests/support/keymanager_spire.h"

/* ---- rotation ---- */

static void a_new_key_takes_over_and_the_old_one_leaves_the_token(void **state)
{
    struct answer first = make_key();
    struct answer second;

    (void)state;
    assert_string_equal(sign_once().label, first.label);
    second = make_key();
    assert_true(strcmp(first.label, second.label) < 0);
    assert_string_equal(sign_once().label, second.label);
    assert_left(second.label);
}

static void superseded_keys_stay_where_the_role_may_not_destroy(void **state)
{
    struct answer impatient;
    struct answer first;

    (void)state;
    settings.keymanager.destroy_superseded = false;
    open_keymanager();
    first = make_key();
    (void)make_key();
    crash_and_restart();
    (void)make_key();
    /* by the time this gives up, what is to be destroyed would be */
    token->misbehaviour = GENERATES_SLOWLY;
    ask(&impatient, CLOCK_SECOND);
    hear(&impatient, FAULT_DEADLINE_EXCEEDED);
    assert_int_equal(objects(), 3);
    assert_non_null(lookup(first.label));
}

static void a_key_that_may_not_be_destroyed_is_left_alone(void **state)
{
    struct answer first = make_key();
    struct answer third;

    (void)state;
    token->misbehaviour = REFUSES_TO_DESTROY;
    (void)make_key();
    while (token->refused == 0)
        nap();
    token->misbehaviour = BEHAVES;
    third = make_key();
    while (objects() > 2) /* the second one goes */
        nap();
    assert_int_equal(token->refused, 1);
    assert_non_null(lookup(first.label));
    assert_non_null(lookup(third.label));
    crash_and_restart(); /* with a role that may, by now */
    assert_left(third.label);
}

static void a_worker_that_dies_while_generating_costs_nothing(void **state)
{
    static const enum misbehaviour ways[] = {DIES_BEFORE_GENERATING, DIES_WITH_HALF_A_KEY,
                                             DIES_AFTER_GENERATING};

    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        struct answer answer;

        token->misbehaviour = ways[i];
        answer = make_key();
        assert_int_equal(token->misbehaviour, BEHAVES);
        assert_string_equal(sign_once().label, answer.label);
        assert_left(answer.label);
    }
    assert_int_equal(token->generated, 3);
}

static void what_a_failed_generation_may_yet_show_is_looked_for_however_looking_fails(void **state)
{
    int64_t until = clock_now() + PATIENCE_S * CLOCK_SECOND;

    (void)state;
    token->misbehaviour = DIES_HOLDING_SESSIONS;
    (void)make_key();
    while (token->destroyed_in_vain < 2 && clock_now() < until)
        nap();
    assert_int_equal(token->destroyed_in_vain, 2);
}

static void a_slow_generation_outlives_its_caller_and_goes_to_the_next(void **state)
{
    struct answer impatient;
    struct answer next;

    (void)state;
    token->misbehaviour = GENERATES_SLOWLY;
    ask(&impatient, CLOCK_SECOND / 2);
    hear(&impatient, FAULT_DEADLINE_EXCEEDED);
    token->gate = true;
    while (token->generated == 0)
        nap();
    next = make_key();
    assert_int_equal(token->generated, 1);
    assert_left(next.label);
    (void)make_key(); /* and only to one */
    assert_int_equal(token->generated, 2);
}

/* Searched through in a second: what a search took at the start, or has taken since, counts. */
static void a_key_is_made_though_the_token_takes_long_to_search(void **state)
{
    (void)state;
    settings.keymanager.operation_timeout = CLOCK_SECOND;
    crash_and_restart();
    token->misbehaviour = SCANS_SLOWLY;
    assert_left(make_key().label);
    crash_and_restart();
    assert_left(make_key().label);
    settings.keymanager.operation_timeout = PATIENCE_S * CLOCK_SECOND;
}

static void assert_says(const struct answer *answer, const char *text)
{
    if (!strstr(answer->fault.message, text))
        fail_msg("\"%s\" does not say \"%s\"", answer->fault.message, text);
}

/* Each new key is tried twice. After the third the pause has grown to 4 s and would end with the
 * deadline. */
static void a_token_that_signs_wrongly_is_tried_once_more_before_the_deadline(void **state)
{
    struct answer answer;

    (void)state;
    token->misbehaviour = SIGNS_WRONGLY;
    ask(&answer, 6 * CLOCK_SECOND);
    while (token->missigned < 2 * 3)
        nap();
    token->misbehaviour = BEHAVES;
    while (answer.count == 0)
        nap();
    assert_int_equal(token->generated, 4);
    assert_left(make_key().label);
}

static void who_waits_until_the_end_hears_why_no_key_was_made(void **state)
{
    struct answer answer;

    (void)state;
    token->misbehaviour = SIGNS_WRONGLY;
    ask(&answer, 3 * CLOCK_SECOND);
    hear(&answer, FAULT_UNAVAILABLE);
    assert_says(&answer, "failed to generate key \"x509-CA-A\" (ec-p256)");
    assert_says(&answer, "signature does not verify");
    token->misbehaviour = BEHAVES;
    assert_left(make_key().label);
}

static void callers_who_give_up_at_once_each_hear_of_their_own_key(void **state)
{
    int64_t deadline = clock_now() + 2 * CLOCK_SECOND;
    struct answer failing = {.count = 0};
    struct answer slow = {.count = 0};

    (void)state;
    token->misbehaviour = CA_KEYS_FAIL_REST_SLOW;
    keymanager_generate(keymanager, "x509-CA-A", HSM_EC_P256, deadline, generated, &failing);
    keymanager_generate(keymanager, "JWT-Signer-A", HSM_EC_P384, deadline, generated, &slow);
    hear(&failing, FAULT_UNAVAILABLE);
    assert_says(&failing, "failed to generate key \"x509-CA-A\" (ec-p256)");
    assert_says(&failing, "CKR_DEVICE_ERROR");
    hear(&slow, FAULT_DEADLINE_EXCEEDED);
    assert_says(&slow, "failed to generate key \"JWT-Signer-A\" (ec-p384)");
    assert_says(&slow, "needs longer");
    token->misbehaviour = BEHAVES;
    token->gate = true;
    deadline = clock_now() + PATIENCE_S * CLOCK_SECOND;
    failing = slow = (struct answer){.count = 0};
    keymanager_generate(keymanager, "x509-CA-A", HSM_EC_P256, deadline, generated, &failing);
    keymanager_generate(keymanager, "JWT-Signer-A", HSM_EC_P384, deadline, generated, &slow);
    hear(&failing, FAULT_NONE);
    hear(&slow, FAULT_NONE);
}

static void a_token_that_was_write_protected_wants_a_restart(void **state)
{
    struct answer refused;
    struct answer served = make_key();

    (void)state;
    token->misbehaviour = WRITE_PROTECTED;
    crash_and_restart();
    ask(&refused, CLOCK_SECOND);
    hear(&refused, FAULT_FAILED_PRECONDITION);
    assert_non_null(strstr(refused.fault.message, "restart"));
    assert_string_equal(sign_once().label, served.label);
    token->misbehaviour = BEHAVES;
    crash_and_restart();
    assert_string_not_equal(make_key().label, served.label);
}

static void callers_who_ask_at_once_get_one_key(void **state)
{
    struct answer answers[8];

    (void)state;
    token->misbehaviour = GENERATES_SLOWLY;
    for (size_t i = 0; i < 8; i++)
        ask(&answers[i], PATIENCE_S * CLOCK_SECOND);
    token->gate = true;
    for (size_t i = 0; i < 8; i++) {
        hear(&answers[i], FAULT_NONE);
        assert_string_equal(answers[i].label, answers[0].label);
    }
    assert_int_equal(token->generated, 1);
}

static void a_key_of_another_type_is_made_after_the_one_under_way(void **state)
{
    static const enum hsm_key_type types[] = {HSM_EC_P256, HSM_RSA_2048, HSM_EC_P256, HSM_EC_P384};
    struct answer answers[4];

    (void)state;
    token->misbehaviour = GENERATES_SLOWLY;
    for (size_t i = 0; i < 4; i++)
        ask_for(types[i], &answers[i], PATIENCE_S * CLOCK_SECOND);
    token->gate = true;
    for (size_t i = 0; i < 4; i++) {
        hear(&answers[i], FAULT_NONE);
        assert_int_equal(answers[i].type, types[i]);
    }
    assert_string_equal(answers[0].label, answers[2].label);
    assert_int_equal(token->generated, 3);
    assert_left(sign_once().label);
}

/* ---- reconfiguring, ending ---- */

static void a_reconfiguration_keeps_the_keys_and_hands_over_who_waits(void **state)
{
    struct answer first = make_key();
    struct answer second;

    (void)state;
    token->misbehaviour = CA_KEYS_FAIL_REST_SLOW;
    ask(&second, PATIENCE_S * CLOCK_SECOND);
    while (token->refused == 0)
        nap();
    open_keymanager();
    assert_string_equal(sign_once().label, first.label);
    token->misbehaviour = BEHAVES;
    hear(&second, FAULT_NONE);
    assert_left(second.label);
}

static void ending_answers_who_waits_for_a_key(void **state)
{
    struct answer answer;

    (void)state;
    token->misbehaviour = GENERATES_SLOWLY;
    ask(&answer, PATIENCE_S * CLOCK_SECOND);
    keymanager_abandon(keymanager);
    hear(&answer, FAULT_UNAVAILABLE);
    token->gate = true;
    keymanager_release(keymanager);
    keymanager = NULL;
    open_keymanager();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        PLAY(a_new_key_takes_over_and_the_old_one_leaves_the_token),
        PLAY(superseded_keys_stay_where_the_role_may_not_destroy),
        PLAY(a_key_that_may_not_be_destroyed_is_left_alone),
        PLAY(a_worker_that_dies_while_generating_costs_nothing),
        PLAY(what_a_failed_generation_may_yet_show_is_looked_for_however_looking_fails),
        PLAY(a_slow_generation_outlives_its_caller_and_goes_to_the_next),
        PLAY(a_token_that_signs_wrongly_is_tried_once_more_before_the_deadline),
        PLAY(who_waits_until_the_end_hears_why_no_key_was_made),
        PLAY(a_key_is_made_though_the_token_takes_long_to_search),
        PLAY(callers_who_give_up_at_once_each_hear_of_their_own_key),
        PLAY(a_token_that_was_write_protected_wants_a_restart),
        PLAY(callers_who_ask_at_once_get_one_key),
        PLAY(a_key_of_another_type_is_made_after_the_one_under_way),
        PLAY(a_reconfiguration_keeps_the_keys_and_hands_over_who_waits),
        PLAY(ending_answers_who_waits_for_a_key),
    };

    return keymanager_main(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
