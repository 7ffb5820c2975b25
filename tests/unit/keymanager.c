/* The life of keys, with worker processes that die: this program started again, on a token
 * that is a page shared with the test. */
#include "plugin/keys/keymanager.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "plugin/worker/child.h"
#include "plugin/worker/program.h"
#include "tests/support/keymanager_token.h"

enum { DESTROYED_AGAIN_S = 7 }; /* a destruction that failed has been repeated by then */

/* ---- SPIRE ---- */

static struct config config;
static struct keymanager *keymanager;

struct answer {
    atomic_uint count;
    struct fault fault;
    char label[HSM_LABEL_MAX + 1];
    enum hsm_key_type type;
};

static void generated(void *context, const struct catalogue_key *key, const struct fault *fault)
{
    struct answer *answer = context;

    if (key) {
        memcpy(answer->label, key->name.label, sizeof answer->label);
        answer->type = key->public_key.type;
    } else {
        answer->fault = *fault;
    }
    atomic_fetch_add(&answer->count, 1);
}

static void was_signed(void *context, const struct catalogue_key *key,
                       const struct hsm_reply *reply)
{
    struct answer *answer = context;

    if (reply->fault.code == FAULT_NONE)
        memcpy(answer->label, key->name.label, sizeof answer->label);
    answer->fault = reply->fault;
    atomic_fetch_add(&answer->count, 1);
}

static void hear(struct answer *answer, enum fault_code code)
{
    int64_t until = clock_now() + PATIENCE_S * CLOCK_SECOND;

    while (answer->count == 0 && clock_now() < until)
        nap();
    assert_int_equal(answer->count, 1);
    if (answer->fault.code != code)
        print_error("%s\n", answer->fault.message);
    assert_int_equal(answer->fault.code, code);
}

static void ask_for(enum hsm_key_type type, struct answer *answer, int64_t patience)
{
    *answer = (struct answer){.count = 0};
    keymanager_generate(keymanager, "x509-CA-A", type, clock_now() + patience, generated, answer);
}

static void ask(struct answer *answer, int64_t patience)
{
    ask_for(HSM_EC_P256, answer, patience);
}

static struct answer make_key(void)
{
    struct answer answer;

    ask(&answer, PATIENCE_S * CLOCK_SECOND);
    hear(&answer, FAULT_NONE);
    return answer;
}

/* The label of the key that signs. */
static struct answer sign_once(void)
{
    const struct hsm_request request = {.scheme = HSM_PLAIN, .hash = HSM_SHA256};
    struct answer answer = {.count = 0};

    keymanager_sign(keymanager, "x509-CA-A", &request, clock_now() + PATIENCE_S * CLOCK_SECOND,
                    was_signed, &answer);
    hear(&answer, FAULT_NONE);
    return answer;
}

static void open_keymanager(void)
{
    const atomic_bool cancel = false;
    struct keymanager *before = keymanager;
    struct fault fault;

    if (keymanager_open(&config, before, &cancel, &keymanager, &fault) != 0)
        fail_msg("%s", fault.message);
    keymanager_succeed(keymanager, before);
    if (before)
        keymanager_release(before);
}

static void crash_and_restart(void)
{
    keymanager_abandon(keymanager);
    keymanager_release(keymanager);
    keymanager = NULL;
    open_keymanager();
}

static int start(void **state)
{
    (void)state;
    memset(token, 0, sizeof *token);
    config.keymanager.destroy_superseded = true;
    keymanager = NULL;
    open_keymanager();
    return 0;
}

static int end(void **state)
{
    (void)state;
    token->gate = true;
    keymanager_abandon(keymanager);
    keymanager_release(keymanager);
    while (waitpid(-1, NULL, 0) > 0)
        continue;
    return unlink(config.keymanager.key_identifier_file);
}

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
    config.keymanager.destroy_superseded = false;
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
    config.keymanager.operation_timeout = CLOCK_SECOND;
    crash_and_restart();
    token->misbehaviour = SCANS_SLOWLY;
    assert_left(make_key().label);
    crash_and_restart();
    assert_left(make_key().label);
    config.keymanager.operation_timeout = PATIENCE_S * CLOCK_SECOND;
}

static void assert_says(const struct answer *answer, const char *text)
{
    if (!strstr(answer->fault.message, text))
        fail_msg("\"%s\" does not say \"%s\"", answer->fault.message, text);
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

/* ---- loading ---- */

static void a_restart_serves_the_newest_key_and_clears_what_is_left_over(void **state)
{
    struct hsm_key_name name = {.id = {1}, .id_length = HSM_ID_MAX};
    struct answer served = make_key();
    struct label label;

    (void)state;
    assert_true(label_parse(served.label, &label));
    label.generation -= 2;
    label_format(&label, name.label);
    put(&name, HSM_EC_P256, WHOLE);
    label.generation--;
    label_format(&label, name.label);
    put(&name, HSM_EC_P256, HALF);
    crash_and_restart();
    assert_string_equal(sign_once().label, served.label);
    assert_left(served.label);
}

/* The start before did not see it, for the token did not show it, and SPIRE made another. */
static void a_key_that_was_superseded_within_the_day_stays_at_a_start(void **state)
{
    struct hsm_key_name old = {.id = {1}, .id_length = HSM_ID_MAX};
    struct answer served = make_key();
    struct label label;

    (void)state;
    config.keymanager.destroy_superseded_after = 24 * 3600 * CLOCK_SECOND;
    assert_true(label_parse(served.label, &label));
    label.generation -= 1000;
    label_format(&label, old.label);
    put(&old, HSM_EC_P256, WHOLE);
    crash_and_restart();
    assert_string_equal(sign_once().label, served.label);
    (void)make_key();
    while (objects() > 2) /* the one superseded now goes, and any leftover would have by then */
        nap();
    assert_int_equal(lookup(old.label)->there, WHOLE);
    config.keymanager.destroy_superseded_after = 0;
    crash_and_restart();
    assert_left(sign_once().label);
}

/* It may be a key whose private half does not show just now, and the one SPIRE signs with. */
static void a_half_newer_than_the_key_served_stays_until_there_is_a_newer_key(void **state)
{
    struct hsm_key_name half = {.id = {1}, .id_length = HSM_ID_MAX};
    struct answer served = make_key();
    struct label label;

    (void)state;
    assert_true(label_parse(served.label, &label));
    label.generation++; /* a crash half-way, later than the served key */
    label_format(&label, half.label);
    put(&half, HSM_EC_P256, HALF);
    crash_and_restart();
    assert_string_equal(sign_once().label, served.label);
    served = make_key();
    assert_non_null(lookup(half.label));
    crash_and_restart();
    assert_left(served.label);
}

static void a_token_that_shows_halves_alone_at_a_start_loses_none(void **state)
{
    struct hsm_key_name old = {.id = {1}, .id_length = HSM_ID_MAX};
    struct answer made = make_key();
    struct label label;

    (void)state;
    assert_true(label_parse(made.label, &label));
    label.generation -= 1000;
    label_format(&label, old.label);
    put(&old, HSM_EC_P256, HALF);
    lookup(made.label)->there = ABSENT;
    token->misbehaviour = HALVES_COMPLETE_LATER;
    crash_and_restart();
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
static void keys_of_a_second_server_with_our_identity_are_not_touched(void **state)
{
    struct hsm_key_name name = {.id = {9}, .id_length = HSM_ID_MAX};
    struct answer served = make_key();
    struct answer refused;
    struct label label;
    int64_t tried;

    (void)state;
    token->misbehaviour = NO_SESSION_LEFT;
    served = make_key();
    await(BEHAVES);
    tried = clock_now();
    assert_true(label_parse(served.label, &label));
    label.generation += 5;
    label_format(&label, name.label);
    put(&name, HSM_EC_P256, WHOLE);
    ask(&refused, PATIENCE_S * CLOCK_SECOND);
    hear(&refused, FAULT_FAILED_PRECONDITION);
    assert_non_null(strstr(refused.fault.message, "another process"));
    while (clock_now() < tried + DESTROYED_AGAIN_S * CLOCK_SECOND)
        assert_string_equal(sign_once().label, served.label);
    assert_int_equal(objects(), 3);
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

/* ---- */

static int prepare(void **state)
{
    static char path[] = "/tmp/unit-keymanager-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);
    int sized = ftruncate(fd, sizeof *token);

    (void)state;
    (void)close(fd);
    config = (struct config){.kind = CONFIG_KEYMANAGER, .trust_domain = "example.org"};
    config.keymanager = (struct config_keymanager){.max_sessions = 4,
                                                   .startup_wait = PATIENCE_S * CLOCK_SECOND,
                                                   .operation_timeout = PATIENCE_S * CLOCK_SECOND,
                                                   .generate_timeout = PATIENCE_S * CLOCK_SECOND,
                                                   .cka_id_length = HSM_ID_MAX};
    (void)snprintf(config.keymanager.key_identifier_file,
                   sizeof config.keymanager.key_identifier_file, "%s.id", path);
    if (sized != 0 || map_token(path) != 0 || setenv(token_variable, path, 1) != 0)
        return -1;
    program_is("/proc/self/exe", NULL); /* this program is its own worker */
    child_prepare();
    return 0;
}

static int clear_up(void **state)
{
    (void)state;
    return unlink(getenv(token_variable));
}

#define PLAY(test) cmocka_unit_test_setup_teardown(test, start, end)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        PLAY(a_new_key_takes_over_and_the_old_one_leaves_the_token),
        PLAY(superseded_keys_stay_where_the_role_may_not_destroy),
        PLAY(a_key_that_may_not_be_destroyed_is_left_alone),
        PLAY(a_worker_that_dies_while_generating_costs_nothing),
        PLAY(what_a_failed_generation_may_yet_show_is_looked_for_however_looking_fails),
        PLAY(a_slow_generation_outlives_its_caller_and_goes_to_the_next),
        PLAY(a_key_is_made_though_the_token_takes_long_to_search),
        PLAY(callers_who_give_up_at_once_each_hear_of_their_own_key),
        PLAY(a_token_that_was_write_protected_wants_a_restart),
        PLAY(callers_who_ask_at_once_get_one_key),
        PLAY(a_key_of_another_type_is_made_after_the_one_under_way),
        PLAY(a_restart_serves_the_newest_key_and_clears_what_is_left_over),
        PLAY(a_key_that_was_superseded_within_the_day_stays_at_a_start),
        PLAY(a_half_newer_than_the_key_served_stays_until_there_is_a_newer_key),
        PLAY(a_token_that_shows_halves_alone_at_a_start_loses_none),
        PLAY(a_fresh_key_of_which_half_shows_at_first_is_waited_for),
        PLAY(a_scan_that_fails_half_way_does_not_show_keys_twice),
        PLAY(keys_of_a_second_server_with_our_identity_are_not_touched),
        PLAY(a_reconfiguration_keeps_the_keys_and_hands_over_who_waits),
        PLAY(ending_answers_who_waits_for_a_key),
    };

    if (argc == 2 && strcmp(argv[1], "worker") == 0)
        return map_token(getenv(token_variable)) != 0 ? EXIT_FAILURE
                                                      : hsm_worker(WORKER_SOCKET, WORKER_PAGE);
    return cmocka_run_group_tests(tests, prepare, clear_up);
}
