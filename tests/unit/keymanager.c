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
#include "plugin/keys/loss.h"
#include "plugin/worker/child.h"
#include "plugin/worker/program.h"
#include "tests/support/keymanager_token.h"

enum { KEPT = 4 };
static const int64_t DAY = 24 * 3600 * CLOCK_SECOND;

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

/* Of each test's own: the scribe of the one before may be at its last write. */
static unsigned tests_begun;

static void name_files(unsigned test)
{
    const char *path = getenv(token_variable);

    (void)snprintf(config.keymanager.key_identifier_file,
                   sizeof config.keymanager.key_identifier_file, "%s.%u.id", path, test);
    (void)snprintf(config.keymanager.record_file, sizeof config.keymanager.record_file,
                   "%s.%u.keys", path, test);
}

static int start(void **state)
{
    (void)state;
    memset(token, 0, sizeof *token);
    name_files(++tests_begun);
    config.keymanager.destroy_superseded = true;
    config.keymanager.destroy_superseded_after = 0;
    keymanager = NULL;
    open_keymanager();
    return 0;
}

static void remove_beside(const char *suffix)
{
    char path[HSM_PATH_MAX];

    (void)snprintf(path, sizeof path, "%.1000s%s", config.keymanager.record_file, suffix);
    (void)unlink(path);
}

static void remove_files(void)
{
    remove_beside("");
    remove_beside("~");
    remove_beside(".accept");
    (void)unlink(config.keymanager.key_identifier_file);
}

static int end(void **state)
{
    (void)state;
    token->gate = true;
    keymanager_abandon(keymanager);
    keymanager_release(keymanager);
    while (waitpid(-1, NULL, 0) > 0)
        continue;
    remove_files();
    return 0;
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

static void a_restart_goes_on_with_what_was_condemned(void **state)
{
    struct answer first = make_key();
    struct answer second;

    (void)state;
    config.keymanager.destroy_superseded_after = DAY;
    open_keymanager();
    second = make_key();
    crash_and_restart();
    assert_string_equal(sign_once().label, second.label);
    assert_int_equal(lookup(first.label)->there, WHOLE);
    config.keymanager.destroy_superseded_after = 0;
    crash_and_restart();
    assert_left(second.label);
}

/* A token restored, a server that shares the identity: whatever it is, it is a person's to see to.
 */
static void what_the_record_does_not_know_stays_at_a_start(void **state)
{
    struct hsm_key_name name = {.id = {1}, .id_length = HSM_ID_MAX};
    struct answer served = make_key();
    struct label label;

    (void)state;
    assert_true(label_parse(served.label, &label));
    label.generation -= 2;
    label_format(&label, name.label);
    put(&name, HSM_EC_P256, WHOLE);
    label.generation += 5;
    label_format(&label, name.label);
    put(&name, HSM_EC_P256, HALF);
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
    config.keymanager.destroy_superseded_after = DAY;
    open_keymanager();
    for (unsigned i = 0; i < KEPT + 3; i++)
        last = make_key();
    while (objects() > KEPT + 1)
        nap();
    crash_and_restart();
    assert_string_equal(sign_once().label, last.label);
    assert_int_equal(objects(), KEPT + 1);
}

static void on_a_full_token_the_key_condemned_first_goes_before_its_day(void **state)
{
    struct answer made[5];

    (void)state;
    config.keymanager.destroy_superseded_after = DAY;
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
    config.keymanager.startup_wait = CLOCK_SECOND;
    assert_int_equal(keymanager_open(&config, NULL, &cancel, &keymanager, fault), -1);
    config.keymanager.startup_wait = PATIENCE_S * CLOCK_SECOND;
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
    (void)snprintf(config.keymanager.accept_loss, sizeof config.keymanager.accept_loss, "%s", code);
    open_keymanager();
    assert_false(is_served("x509-CA-A"));
    next = make_key();
    crash_and_restart();
    assert_string_equal(sign_once().label, next.label);
    hidden = hide(next.label); /* another loss has another code */
    fails_to_open(FAULT_FAILED_PRECONDITION, next.label, &fault);
    hidden->there = WHOLE;
    config.keymanager.accept_loss[0] = '\0';
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
    assert_int_equal(loss_accept(config.keymanager.record_file, "00000000", &fault), 0);
    fails_to_open(FAULT_FAILED_PRECONDITION, made.label, &fault);
    assert_int_equal(loss_accept(config.keymanager.record_file, code, &fault), 0);
    open_keymanager();
    assert_false(is_served("x509-CA-A"));
}

static void missing_keys_are_replaced_where_that_is_said(void **state)
{
    struct answer made = make_key();

    (void)state;
    lookup(made.label)->there = ABSENT;
    config.keymanager.replace_missing = true;
    crash_and_restart();
    config.keymanager.replace_missing = false;
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
    config.keymanager.startup_wait = CLOCK_SECOND;
    crash_and_restart();
    assert_string_equal(sign_once().label, kept.label);
    assert_false(is_served("JWT-Signer-A"));
    hidden->there = WHOLE;
    crash_and_restart();
    config.keymanager.startup_wait = PATIENCE_S * CLOCK_SECOND;
    assert_true(is_served("JWT-Signer-A"));
}

static void a_key_of_which_half_shows_is_served_from_the_record(void **state)
{
    struct answer made = make_key();

    (void)state;
    lookup(made.label)->there = HALF;
    config.keymanager.startup_wait = CLOCK_SECOND;
    crash_and_restart();
    config.keymanager.startup_wait = PATIENCE_S * CLOCK_SECOND;
    assert_true(is_served("x509-CA-A"));
    lookup(made.label)->there = WHOLE;
    assert_string_equal(sign_once().label, made.label);
}

static void a_damaged_record_is_no_reason_to_begin_anew(void **state)
{
    struct answer made = make_key();
    char copy[HSM_PATH_MAX];
    struct fault fault;

    (void)state;
    crash_and_restart();
    (void)snprintf(copy, sizeof copy, "%.1000s~", config.keymanager.record_file);
    assert_int_equal(truncate(config.keymanager.record_file, 100), 0);
    assert_int_equal(truncate(copy, 100), 0);
    fails_to_open(FAULT_FAILED_PRECONDITION, "record_file", &fault);
    assert_int_equal(unlink(config.keymanager.record_file), 0);
    assert_int_equal(unlink(copy), 0);
    open_keymanager(); /* by the token */
    assert_string_equal(sign_once().label, made.label);
}

static void damage_record(void)
{
    char copy[HSM_PATH_MAX];

    crash_and_restart(); /* which writes it a second time */
    (void)snprintf(copy, sizeof copy, "%.1000s~", config.keymanager.record_file);
    assert_int_equal(truncate(config.keymanager.record_file, 100), 0);
    assert_int_equal(truncate(copy, 50), 0);
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
    memcpy(config.keymanager.accept_loss, "00000000", sizeof code);
    fails_to_open(FAULT_FAILED_PRECONDITION, code, &fault);
    memcpy(config.keymanager.accept_loss, code, sizeof code);
    open_keymanager();
    assert_string_equal(sign_once().label, made.label);
    made = make_key();
    crash_and_restart(); /* it was written again, and is believed */
    assert_string_equal(sign_once().label, made.label);
    assert_int_equal(truncate(config.keymanager.record_file, 99), 0);
    remove_beside("~");
    fails_to_open(FAULT_FAILED_PRECONDITION, "record_file", &fault); /* another one */
    config.keymanager.accept_loss[0] = '\0';
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
    assert_int_equal(loss_accept(config.keymanager.record_file, code, &fault), 0);
    open_keymanager();
    assert_string_equal(sign_once().label, made.label);
    crash_and_restart();
    assert_string_equal(sign_once().label, made.label);
}

/* ---- without a record ---- */

static void forget_record(void)
{
    char copy[HSM_PATH_MAX];

    keymanager_abandon(keymanager);
    keymanager_release(keymanager);
    keymanager = NULL;
    (void)snprintf(copy, sizeof copy, "%.1000s~", config.keymanager.record_file);
    (void)unlink(config.keymanager.record_file);
    (void)unlink(copy);
}

static void without_a_record_the_newest_key_is_served_and_nothing_goes(void **state)
{
    struct hsm_key_name half = {.id = {1}, .id_length = HSM_ID_MAX};
    struct answer served;
    struct label label;

    (void)state;
    (void)make_key();
    config.keymanager.destroy_superseded = false;
    open_keymanager();
    served = make_key();
    config.keymanager.destroy_superseded = true;
    assert_true(label_parse(served.label, &label));
    label.generation++;
    label_format(&label, half.label);
    put(&half, HSM_EC_P256, HALF);
    forget_record();
    open_keymanager();
    assert_string_equal(sign_once().label, served.label);
    served = make_key();
    assert_string_equal(sign_once().label, served.label);
    open_keymanager();
    assert_int_equal(objects(), 4);
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
    struct hsm_key_name name = {.id = {9}, .id_length = HSM_ID_MAX};
    struct answer served = make_key();
    struct label label;

    (void)state;
    assert_true(label_parse(served.label, &label));
    label.generation += 1000;
    label_format(&label, name.label);
    put(&name, HSM_EC_P256, WHOLE);
    config.keymanager.destroy_superseded_after = CLOCK_SECOND;
    crash_and_restart();
    assert_string_equal(sign_once().label, served.label);
    served = make_key(); /* a CA that cannot rotate expires */
    for (int64_t until = clock_now() + 3 * CLOCK_SECOND; clock_now() < until; nap())
        assert_int_equal(objects(), 3);
    lookup(name.label)->there = ABSENT; /* the other one has gone, and a person seen to its keys */
    crash_and_restart();
    assert_left(served.label);
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
                                                   .cka_id_length = HSM_ID_MAX,
                                                   .keep_condemned = KEPT};
    if (sized != 0 || map_token(path) != 0 || setenv(token_variable, path, 1) != 0)
        return -1;
    program_is("/proc/self/exe", NULL); /* this program is its own worker */
    child_prepare();
    return 0;
}

static int clear_up(void **state)
{
    (void)state;
    for (unsigned test = 1; test <= tests_begun; test++) {
        name_files(test);
        remove_files();
    }
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
        PLAY(a_restart_goes_on_with_what_was_condemned),
        PLAY(what_the_record_does_not_know_stays_at_a_start),
        PLAY(of_one_key_id_no_more_are_kept_than_are_to_be),
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
        PLAY(a_reconfiguration_keeps_the_keys_and_hands_over_who_waits),
        PLAY(ending_answers_who_waits_for_a_key),
    };

    if (argc == 2 && strcmp(argv[1], "worker") == 0)
        return map_token(getenv(token_variable)) != 0 ? EXIT_FAILURE
                                                      : hsm_worker(WORKER_SOCKET, WORKER_PAGE);
    return cmocka_run_group_tests(tests, prepare, clear_up);
}
