/* PINs: one rule for all places they come from. What is plainly none is not tried, and a refused
 * one is remembered over restarts, of which there may be many, without anything that tells it. */
#include "tests/support/hsm_room.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "hsm/base/hex.h"

#define WRONG "56789012"

/* ---- sources ---- */

static void put_in_file(struct hsm_settings *settings, const char *pin)
{
    settings->pin_kind = HSM_PIN_FILE;
    (void)snprintf(settings->pin_text, sizeof settings->pin_text, "%s", softhsm.pin_file);
    softhsm_write(softhsm.pin_file, pin, 0600);
}

static void put_in_uri(struct hsm_settings *settings, const char *pin)
{
    settings->pin_kind = HSM_PIN_NONE;
    (void)snprintf(settings->token, sizeof settings->token, "pkcs11:token=spire?pin-source=file:%s",
                   softhsm.pin_file);
    softhsm_write(softhsm.pin_file, pin, 0600);
}

static void put_in_environment(struct hsm_settings *settings, const char *pin)
{
    settings->pin_kind = HSM_PIN_ENV;
    (void)snprintf(settings->pin_text, sizeof settings->pin_text, "%s", "PINS_TEST");
    assert_int_equal(setenv("PINS_TEST", pin, 1), 0);
}

static void put_in_option(struct hsm_settings *settings, const char *pin)
{
    settings->pin_kind = HSM_PIN_INLINE;
    (void)snprintf(settings->pin_text, sizeof settings->pin_text, "%s", pin);
}

static const struct source {
    const char *name;
    void (*put)(struct hsm_settings *settings, const char *pin);
} sources[] = {
    {"pin_file", put_in_file},
    {"pin-source", put_in_uri},
    {"pin_env", put_in_environment},
    {"pin", put_in_option},
};
enum { SOURCES = sizeof sources / sizeof sources[0] };

/* Whoever tries is told that the device is broken. */
static struct hsm_settings settings_that_must_not_try(const struct source *source, const char *pin)
{
    struct hsm_settings settings = room_faulty("C_Login before CKR_DEVICE_ERROR");

    source->put(&settings, pin);
    return settings;
}

/* ---- tests ---- */

static void one_newline_at_the_end_is_no_part_of_it(void **state)
{
    static const char *const pins[] = {SOFTHSM_PIN, SOFTHSM_PIN "\n", SOFTHSM_PIN "\r\n"};

    (void)state;
    for (size_t i = 0; i < SOURCES; i++)
        for (size_t p = 0; p < sizeof pins / sizeof pins[0]; p++) {
            struct hsm_settings settings = room_good();

            sources[i].put(&settings, pins[p]);
            room_opens(&settings);
        }
}

static void what_is_plainly_no_pin_is_not_tried(void **state)
{
    static const struct {
        const char *pin;
        const char *words;
    } rows[] = {
        {SOFTHSM_PIN "\n\n", "has more than one line"},
        {"\n" SOFTHSM_PIN, "has more than one line"},
        {SOFTHSM_PIN "\rx", "has more than one line"},
        {"\xef\xbb\xbf" SOFTHSM_PIN, "begins with a byte order mark"},
        {"\xff\xfe" SOFTHSM_PIN, "begins with a byte order mark"},
        {"\xfe\xff" SOFTHSM_PIN, "begins with a byte order mark"},
        {" " SOFTHSM_PIN, "begins or ends with a blank"},
        {SOFTHSM_PIN " ", "begins or ends with a blank"},
        {SOFTHSM_PIN "\t\n", "begins or ends with a blank"},
        {"", "is empty"},
        {"\n", "is empty"},
    };

    (void)state;
    for (size_t i = 0; i < SOURCES; i++)
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            struct hsm_settings settings = settings_that_must_not_try(&sources[i], rows[r].pin);

            print_message("%s: %s\n", sources[i].name, rows[r].words);
            (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, rows[r].words);
        }
}

static void a_pin_with_a_nul_is_not_tried(void **state)
{
    struct hsm_settings settings = settings_that_must_not_try(&sources[0], "12");
    FILE *file = fopen(softhsm.pin_file, "a");

    (void)state;
    assert_non_null(file);
    assert_int_equal(fwrite("\0"
                            "34",
                            1, 3, file),
                     3);
    assert_int_equal(fclose(file), 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "has a NUL in it");
}

/* Blanks within it are its own business, and so is everything else. */
static void a_pin_that_may_be_one_is_tried(void **state)
{
    (void)state;
    for (size_t i = 0; i < SOURCES; i++) {
        struct hsm_settings settings = room_good();

        (void)unlink(settings.latch);
        sources[i].put(&settings, "user: p\xc3\xa4ss word!");
        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_PIN_INCORRECT");
    }
}

static void a_refused_pin_is_tried_once_over_restarts(void **state)
{
    (void)state;
    for (size_t i = 0; i < SOURCES; i++) {
        struct hsm_settings settings = room_good();

        print_message("%s\n", sources[i].name);
        sources[i].put(&settings, WRONG);
        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "C_Login: CKR_PIN_INCORRECT");
        settings = room_faulty("C_Login before CKR_DEVICE_ERROR");
        if (sources[i].put == put_in_uri)
            (void)snprintf(settings.token, sizeof settings.token,
                           "pkcs11:token=spire?pin-source=file:%s", softhsm.pin_file);
        if (sources[i].put == put_in_uri)
            settings.pin_kind = HSM_PIN_NONE;
        else if (sources[i].put != put_in_file)
            sources[i].put(&settings, WRONG "\n"); /* the same, as far as a token sees it */
        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "the token said so before");
        softhsm_script("");
        sources[i].put(&settings, SOFTHSM_PIN);
        room_opens(&settings);
        assert_int_equal(access(settings.latch, F_OK), -1); /* forgiven */
    }
}

/* It stands on a disk that may be stolen, and is often one letter from the right one. */
static void read_memory(const struct hsm_settings *settings, char text[512])
{
    FILE *file = fopen(settings->latch, "r");
    size_t length;

    assert_non_null(file);
    length = fread(text, 1, 511, file);
    text[length] = '\0';
    (void)fclose(file);
}

static void assert_no_fast_hash(const char *record)
{
    static const char *const hashes[] = {"MD5", "SHA1", "SHA256", "SHA512"};
    uint8_t digest[EVP_MAX_MD_SIZE];
    char hex[2 * EVP_MAX_MD_SIZE + 1];
    unsigned length = 0;

    for (size_t i = 0; i < sizeof hashes / sizeof hashes[0]; i++) {
        assert_int_equal(EVP_Digest(WRONG, sizeof WRONG - 1, digest, &length,
                                    EVP_get_digestbyname(hashes[i]), NULL),
                         1);
        hex_encode(digest, 16, hex);
        assert_null(strstr(record, hex));
    }
}

static void what_is_remembered_of_it_is_slow_and_salted(void **state)
{
    struct hsm_settings settings = room_good();
    char records[2][512];
    struct stat about;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        (void)unlink(settings.latch);
        put_in_environment(&settings, WRONG);
        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_PIN_INCORRECT");
        read_memory(&settings, records[i]);
        assert_null(strstr(records[i], WRONG));
        assert_no_fast_hash(records[i]);
    }
    assert_string_not_equal(records[0], records[1]);
    assert_int_equal(stat(settings.latch, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0600);
}

static void nothing_is_kept_of_an_accepted_pin(void **state)
{
    (void)state;
    for (size_t i = 0; i < SOURCES; i++) {
        struct hsm_settings settings = room_good();

        sources[i].put(&settings, SOFTHSM_PIN);
        room_opens(&settings);
        assert_int_equal(access(settings.latch, F_OK), -1);
    }
}

static void another_token_or_another_pin_is_tried(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    softhsm_token("other");
    put_in_environment(&settings, WRONG);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_PIN_INCORRECT");
    put_in_environment(&settings, WRONG "3");
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_PIN_INCORRECT");
    (void)snprintf(settings.token, sizeof settings.token, "pkcs11:token=other");
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_PIN_INCORRECT");
}

/* Others can write in /dev/shm, where it is for a server without a disk. */
static void the_memory_of_somebody_else_is_none(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    if (geteuid() != 0)
        skip();
    put_in_environment(&settings, WRONG);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_PIN_INCORRECT");
    assert_int_equal(chown(settings.latch, 12345, (gid_t)-1), 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_PIN_INCORRECT");
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, room_setup, room_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(one_newline_at_the_end_is_no_part_of_it),
        TEST(what_is_plainly_no_pin_is_not_tried),
        TEST(a_pin_with_a_nul_is_not_tried),
        TEST(a_pin_that_may_be_one_is_tried),
        TEST(a_refused_pin_is_tried_once_over_restarts),
        TEST(what_is_remembered_of_it_is_slow_and_salted),
        TEST(nothing_is_kept_of_an_accepted_pin),
        TEST(another_token_or_another_pin_is_tried),
        TEST(the_memory_of_somebody_else_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
