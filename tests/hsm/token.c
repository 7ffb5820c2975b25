/* Opening a token: which token, which PIN, and what is said when it is none
 * of them. */
#include "tests/support/hsm_room.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hsm/object.h"
#include "hsm/pin.h"
#include "hsm/token.h"

static void tells_what_the_token_is_and_can_do(void **state)
{
    struct hsm_settings settings = room_good();
    struct hsm_token *token = NULL;
    struct hsm_token_info info;
    struct fault fault;

    (void)state;
    assert_int_equal(hsm_open(&settings, &token, &info, &fault), 0);
    assert_string_equal(info.label, "spire");
    assert_string_equal(info.manufacturer, "SoftHSM project");
    assert_string_equal(info.model, "SoftHSM v2");
    assert_int_equal(strlen(info.serial), 16);
    assert_int_equal(info.sessions, 4);
    assert_false(info.write_protected);
    for (int type = HSM_EC_P256; type <= HSM_RSA_4096; type++)
        assert_true(info.can_generate[type]);
    hsm_close(token);
    hsm_close(NULL);
}

static void every_request_is_checked_before_the_token_is_asked(void **state)
{
    struct hsm_settings settings = room_good();
    struct hsm_token *token = room_open(&settings);
    struct hsm_request request = room_request((enum hsm_op)99, "a", HSM_EC_P256);

    (void)state;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_INVALID_ARGUMENT);
    request = room_request(HSM_GENERATE, "a", (enum hsm_key_type)9);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_INVALID_ARGUMENT);
    request = room_request(HSM_PROVE, "a", HSM_KEY_NONE);
    request.key.label[0] = '\0';
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_INVALID_ARGUMENT);
    request.key.id_length = 17;
    request.key.label[0] = 'x';
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_INVALID_ARGUMENT);
    memset(request.key.label, 'x', sizeof request.key.label);
    request.key.id_length = 16;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_INVALID_ARGUMENT);
    request = room_request(HSM_SCAN, "", HSM_KEY_NONE);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_INVALID_ARGUMENT);
    request = room_request(HSM_PING, "", HSM_KEY_NONE);
    (void)room_must(token, &request);
    hsm_close(token);
}

/* ---- the token ---- */

static void token_that_is_not_there_is_named_with_those_that_are(void **state)
{
    struct hsm_settings settings = room_settings("pkcs11:token=other");
    struct fault fault;

    (void)state;
    fault = room_refused(&settings, FAULT_UNAVAILABLE, "pkcs11:token=other is not there");
    assert_non_null(strstr(fault.message, "'spire' (serial "));
}

static void several_tokens_that_match_are_ambiguous(void **state)
{
    struct hsm_settings settings = room_settings("pkcs11:manufacturer=SoftHSM%20project");
    struct fault fault;

    (void)state;
    room_opens(&settings); /* the free slot's token does not count */
    softhsm_token("second");
    fault = room_refused(&settings, FAULT_FAILED_PRECONDITION, "ambiguous");
    assert_non_null(strstr(fault.message, "'spire'"));
    assert_non_null(strstr(fault.message, "'second'"));
    softhsm_token("spire");
    settings = room_good();
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "names 2 tokens");
}

static void of_several_the_one_that_was_open_before_is_opened(void **state)
{
    struct hsm_settings settings = room_good();
    struct hsm_token *token = NULL;
    struct hsm_token_info before;
    struct hsm_token_info info;
    struct fault fault;

    (void)state;
    assert_int_equal(hsm_open(&settings, &token, &before, &fault), 0);
    hsm_close(token);
    softhsm_token("spire");
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "names 2 tokens");
    (void)snprintf(settings.serial, sizeof settings.serial, "%s", before.serial);
    assert_int_equal(hsm_open(&settings, &token, &info, &fault), 0);
    assert_string_equal(info.serial, before.serial);
    hsm_close(token);
    (void)strcpy(settings.serial, "another");
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "names 2 tokens");
}

static void a_token_that_fits_alone_may_have_another_serial_number_than_before(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    (void)strcpy(settings.serial, "another");
    room_opens(&settings);
}

static void token_is_found_by_serial_number_and_by_slot(void **state)
{
    struct hsm_settings settings = room_good();
    struct hsm_token *token = NULL;
    struct hsm_token_info info;
    struct fault fault;

    (void)state;
    softhsm_token("spire");
    settings = room_settings("pkcs11:model=SoftHSM%20v2");
    fault = room_refused(&settings, FAULT_FAILED_PRECONDITION, "ambiguous");
    settings = room_settings("pkcs11:");
    (void)snprintf(settings.token, sizeof settings.token, "pkcs11:serial=%.16s",
                   strstr(fault.message, "(serial ") + strlen("(serial "));
    assert_int_equal(hsm_open(&settings, &token, &info, &fault), 0);
    hsm_close(token);
    (void)snprintf(settings.token, sizeof settings.token, "pkcs11:token=spire;slot-id=%lu",
                   (unsigned long)info.slot);
    room_opens(&settings);
    (void)snprintf(settings.token, sizeof settings.token, "pkcs11:token=spire;slot-id=12");
    (void)room_refused(&settings, FAULT_UNAVAILABLE, "is not there");
}

static void uninitialized_token_is_called_that(void **state)
{
    struct hsm_settings settings = room_settings("pkcs11:token=%20");

    (void)state;
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "has not been initialized");
}

static void bad_uri_is_refused_and_a_pin_in_it_never_repeated(void **state)
{
    static const struct {
        const char *uri;
        const char *words;
    } rows[] = {
        {"token=spire", "token: expected a URI"},
        {"", "token: expected a URI"},
        {"pkcs11:token=spire?pin-value=" SOFTHSM_PIN, "must not contain a PIN"},
        {"pkcs11:token=spire;pin-value=" SOFTHSM_PIN, "must not contain a PIN"},
        {"pkcs11:token=spire;object=key", "expected, separated by ';', some of token"},
        {"pkcs11:token=spire?pin-source=/etc/pin", "beside it"},
        {"pkcs11:token=%zz?pin-value=" SOFTHSM_PIN, "must not contain a PIN"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct hsm_settings settings = room_settings(rows[i].uri);

        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, rows[i].words);
    }
}

/* ---- the PIN ---- */

static void pin_comes_from_each_of_its_sources(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    settings.pin_kind = HSM_PIN_INLINE;
    (void)snprintf(settings.pin_text, sizeof settings.pin_text, "%s", SOFTHSM_PIN);
    room_opens(&settings);
    settings.pin_kind = HSM_PIN_ENV;
    (void)snprintf(settings.pin_text, sizeof settings.pin_text, "TEST_HSM_PIN");
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION,
                       "pin_env: the environment variable with this name is not set");
    assert_int_equal(setenv("TEST_HSM_PIN", SOFTHSM_PIN, 1), 0);
    room_opens(&settings);
    assert_int_equal(unsetenv("TEST_HSM_PIN"), 0);
    settings.pin_kind = HSM_PIN_NONE;
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "none is configured: pin_file");
    (void)snprintf(settings.token, sizeof settings.token, "pkcs11:token=spire?pin-source=file:%s",
                   softhsm.pin_file);
    room_opens(&settings);
    (void)snprintf(settings.token, sizeof settings.token, "pkcs11:token=spire?pin-source=%s",
                   softhsm.pin_file);
    room_opens(&settings);
    (void)snprintf(settings.token, sizeof settings.token,
                   "pkcs11:token=spire?pin-source=%%7Ccat%%20/etc/pin");
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "pin-source");
}

static void pin_file_that_others_can_reach_is_refused(void **state)
{
    static const mode_t bad[] = {0644, 0604, 0602, 0601, 0620, 0660, 0666};
    static const mode_t fine[] = {0600, 0400, 0440, 0640};
    struct hsm_settings settings = room_good();

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(chmod(softhsm.pin_file, bad[i]), 0);
        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, softhsm.pin_file);
    }
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++) {
        assert_int_equal(chmod(softhsm.pin_file, fine[i]), 0);
        room_opens(&settings);
    }
}

static void pin_file_of_another_user_is_refused(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    if (geteuid() != 0)
        skip();
    assert_int_equal(chown(softhsm.pin_file, 12345, 0), 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "belongs to user 12345");
}

/* Kubernetes mounts a secret as a link to a link. */
static void pin_file_may_be_a_link_but_not_a_folder_or_fifo(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    (void)snprintf(settings.pin_text, sizeof settings.pin_text, "%s/link", softhsm.folder);
    assert_int_equal(symlink(softhsm.pin_file, settings.pin_text), 0);
    room_opens(&settings);
    assert_int_equal(unlink(settings.pin_text), 0);
    assert_int_equal(mkfifo(settings.pin_text, 0600), 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "not a regular file");
    (void)snprintf(settings.pin_text, sizeof settings.pin_text, "%s", softhsm.folder);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "not a regular file");
}

static void missing_pin_file_is_worth_waiting_for(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    assert_int_equal(unlink(softhsm.pin_file), 0);
    (void)room_refused(&settings, FAULT_UNAVAILABLE, softhsm.pin_file);
    softhsm_write(softhsm.pin_file, SOFTHSM_PIN, 0600);
    room_opens(&settings);
}

static void empty_and_endless_pins_are_refused(void **state)
{
    struct hsm_settings settings = room_good();
    char text[HSM_PIN_MAX + 3];

    (void)state;
    softhsm_write(softhsm.pin_file, "", 0600);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "PIN file /");
    softhsm_write(softhsm.pin_file, "\n", 0600);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "is empty");
    memset(text, '7', sizeof text);
    text[HSM_PIN_MAX + 1] = '\0';
    softhsm_write(softhsm.pin_file, text, 0600);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "more than the 256 bytes");
}

static void a_pin_file_may_end_its_line_as_windows_does(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    softhsm_write(softhsm.pin_file, SOFTHSM_PIN "\r\n", 0600);
    room_opens(&settings);
}

static void wrong_pin_is_tried_once_until_its_file_changes(void **state)
{
    struct hsm_settings settings = room_good();
    struct fault fault;

    (void)state;
    softhsm_write(softhsm.pin_file, "9999\n", 0600);
    fault = room_refused(&settings, FAULT_FAILED_PRECONDITION, "C_Login: CKR_PIN_INCORRECT");
    assert_int_equal(fault.ckr, 0xa0);
    fault = room_refused(&settings, FAULT_FAILED_PRECONDITION, "the token said so before");
    assert_int_equal(fault.ckr, 0);
    assert_non_null(strstr(fault.message, settings.latch));
    softhsm_write(softhsm.pin_file, "8888\n", 0600);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "C_Login: CKR_PIN_INCORRECT");
    softhsm_write(softhsm.pin_file, SOFTHSM_PIN "\n", 0600);
    room_opens(&settings);
    assert_int_equal(access(settings.latch, F_OK), -1); /* forgiven */
}

static void refusal_is_remembered_without_the_pin(void **state)
{
    struct hsm_settings settings = room_good();
    char record[512] = "";
    FILE *file;
    struct stat about;

    (void)state;
    softhsm_write(softhsm.pin_file, "56789012\n", 0600);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_PIN_INCORRECT");
    assert_int_equal(stat(settings.latch, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0600);
    file = fopen(settings.latch, "r");
    assert_non_null(file);
    assert_true(fread(record, 1, sizeof record - 1, file) > 0);
    (void)fclose(file);
    assert_null(strstr(record, "56789012"));
    softhsm_write(settings.latch, "1 garbage\n", 0600); /* no record is no refusal */
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_PIN_INCORRECT");
}

static void refusal_that_cannot_be_written_down_says_so(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    (void)snprintf(settings.latch, sizeof settings.latch, "/nonexistent/folder/latch");
    softhsm_write(softhsm.pin_file, "9999\n", 0600);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION,
                       "cannot remember this (cannot open the directory /nonexistent/folder: ");
}

/* Or no key of a type could be made for the life of the process, for one lost answer; nor could
 * the token be opened if it never answers about a type that nobody asks for. */
static void a_mechanism_that_cannot_be_asked_about_is_no_verdict(void **state)
{
    static const char *const scripts[] = {
        "C_GetMechanismInfo 1 before CKR_DEVICE_ERROR",
        "C_GetMechanismInfo before CKR_GENERAL_ERROR",
        "C_GetMechanismInfo before CKR_ARGUMENTS_BAD",
        "C_GetMechanismInfo before CKR_FUNCTION_NOT_SUPPORTED",
    };
    struct hsm_settings settings;
    struct hsm_token_info info;
    struct hsm_token *token;
    struct fault fault;

    (void)state;
    for (size_t i = 0; i < sizeof scripts / sizeof scripts[0]; i++) {
        settings = room_faulty(scripts[i]);
        assert_int_equal(hsm_open(&settings, &token, &info, &fault), 0);
        for (enum hsm_key_type type = HSM_EC_P256; type <= HSM_RSA_4096; type++)
            assert_true(info.can_generate[type] && !info.doubtful[type]);
        hsm_close(token);
    }
    settings = room_faulty("C_GetMechanismInfo before CKR_MECHANISM_INVALID");
    assert_int_equal(hsm_open(&settings, &token, &info, &fault), 0);
    for (enum hsm_key_type type = HSM_EC_P256; type <= HSM_RSA_4096; type++)
        assert_true(info.can_generate[type] && info.doubtful[type]);
    hsm_close(token);
    softhsm_script("");
}

static void latch_knows_tokens_and_sources_apart(void **state)
{
    struct pin_latch latch = {.file = "", .set = false};
    struct pin pin = {.length = 4, .stamp = {.inode = 7, .changed = {1, 2}}};
    struct fault fault = {.code = FAULT_NONE};

    (void)state;
    assert_int_equal(pin_latch_check(&latch, "a", &pin, &fault), 0);
    pin_latch_set(&latch, "a", &pin, &fault);
    assert_int_equal(pin_latch_check(&latch, "a", &pin, &fault), -1);
    assert_int_equal(pin_latch_check(&latch, "b", &pin, &fault), 0);
    pin_latch_clear(&latch, "b");
    assert_int_equal(pin_latch_check(&latch, "a", &pin, &fault), -1);
    pin.stamp.changed[1]++;
    assert_int_equal(pin_latch_check(&latch, "a", &pin, &fault), 0);
    pin_latch_clear(&latch, "a");
    pin.stamp.changed[1]--;
    assert_int_equal(pin_latch_check(&latch, "a", &pin, &fault), 0);
}

static void wiped_settings_hold_nothing(void **state)
{
    struct hsm_settings settings = room_good();
    static const struct hsm_settings nothing;

    (void)state;
    (void)snprintf(settings.pin_text, sizeof settings.pin_text, "%s", SOFTHSM_PIN);
    hsm_settings_wipe(&settings);
    assert_memory_equal(settings.pin_text, nothing.pin_text, sizeof settings.pin_text);
}

static bool may_be_modified(struct hsm_token *token, const char *name)
{
    struct hsm_request request = room_request(HSM_PROVE, name, HSM_KEY_NONE);
    struct object_halves found;
    struct object_value value;
    struct session session;
    struct fault fault;

    assert_int_equal(session_borrow(&token->pool, &session, &fault), 0);
    assert_int_equal(object_find(&session, &request.key, &found, &fault), 0);
    assert_int_equal(found.private_keys.count, 1);
    assert_int_equal(
        object_read(&session, found.private_keys.handles[0], CKA_MODIFIABLE, &value, &fault), 0);
    session_return(&token->pool, &session);
    return value.bytes[0] != CK_FALSE;
}

static void least_template_is_asked_for_at_once(void **state)
{
    struct hsm_settings settings = room_good();
    struct hsm_token *token = room_open(&settings);

    (void)state;
    (void)room_generate(token, "full", HSM_EC_P256);
    if (softhsm_profile()[0] == '\0') /* who refuses it gets another template */
        assert_false(may_be_modified(token, "full"));
    hsm_close(token);
    settings.least = true;
    token = room_open(&settings);
    (void)room_generate(token, "least", HSM_EC_P256);
    assert_true(may_be_modified(token, "least"));
    hsm_close(token);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, room_setup, room_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(tells_what_the_token_is_and_can_do),
        TEST(least_template_is_asked_for_at_once),
        TEST(every_request_is_checked_before_the_token_is_asked),
        TEST(token_that_is_not_there_is_named_with_those_that_are),
        TEST(several_tokens_that_match_are_ambiguous),
        TEST(of_several_the_one_that_was_open_before_is_opened),
        TEST(a_token_that_fits_alone_may_have_another_serial_number_than_before),
        TEST(token_is_found_by_serial_number_and_by_slot),
        TEST(uninitialized_token_is_called_that),
        TEST(bad_uri_is_refused_and_a_pin_in_it_never_repeated),
        TEST(pin_comes_from_each_of_its_sources),
        TEST(pin_file_that_others_can_reach_is_refused),
        TEST(pin_file_of_another_user_is_refused),
        TEST(pin_file_may_be_a_link_but_not_a_folder_or_fifo),
        TEST(missing_pin_file_is_worth_waiting_for),
        TEST(empty_and_endless_pins_are_refused),
        TEST(a_pin_file_may_end_its_line_as_windows_does),
        TEST(wrong_pin_is_tried_once_until_its_file_changes),
        TEST(refusal_is_remembered_without_the_pin),
        TEST(refusal_that_cannot_be_written_down_says_so),
        TEST(a_mechanism_that_cannot_be_asked_about_is_no_verdict),
        TEST(latch_knows_tokens_and_sources_apart),
        TEST(wiped_settings_hold_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
