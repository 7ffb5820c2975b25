/* Single values of plugin_data: what is read, what is refused and in which words. */
#include "plugin/config/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "tests/support/config_reading.h"

static void types_are_strict_where_a_guess_could_be_wrong(void **state)
{
    static const char *const rows[][2] = {
        {"pin_file = 5", "pin_file: expected absolute path, found a bare number"},
        {"pin = 1234", "pin: expected string, found a bare number"},
        {"pin_env = [\"A\"]", "pin_env: expected variable name, found a list"},
        {"pin_file \"x\" {}", "pin_file: expected absolute path, found a block"},
        {"destroy_superseded = \"true\"",
         "destroy_superseded: expected true or false, found text in quotes"},
        {"destroy_superseded = 1",
         "destroy_superseded: expected true or false, found a bare number"},
        {"max_sessions = true", "max_sessions: expected integer from 1 to 64, found true or false"},
        {"max_sessions = 1.5", "max_sessions: expected integer from 1 to 64, found a fraction"},
        {"max_sessions = \"4x\"", "max_sessions: expected integer from 1 to 64"},
        {"max_sessions = 0", "max_sessions: expected integer from 1 to 64"},
        {"label_max = 39", "label_max: expected 0 or integer from 40 to 800"},
        {"label_max = -1", "label_max: expected 0 or integer from 40 to 800"},
        {"cka_id_length = 8", "cka_id_length: expected 16 or 2"},
        {"attribute_check = \"lax\"", "attribute_check: expected strict or lenient"},
        {"verify_signatures = \"never\"", "verify_signatures: expected auto or always"},
        {"call_timeout = 25",
         "call_timeout: expected duration from 1s to 29s, found a number without a unit"},
        {"call_timeout = \"25\"",
         "call_timeout: expected duration from 1s to 29s, found a number without a unit"},
        {"startup_wait = 1.5", "startup_wait: expected duration from 0s to 10m, found a fraction"},
        {"call_timeout = \"30s\"", "call_timeout: expected duration from 1s to 29s"},
        {"keep_alive = \"999ms\"", "keep_alive: expected 0 or duration from 1s to 10m"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char message[256];

        (void)snprintf(message, sizeof message, "line 4: %s", rows[i][1]);
        keymanager_refused(rows[i][0], message);
    }
    keymanager_accepted("max_sessions = \"0x10\"");
    assert_int_equal(config.keymanager.max_sessions, 16);
    keymanager_accepted("cka_id_length = \"2\"");
    assert_int_equal(config.keymanager.cka_id_length, 2);
}

static void durations_are_read_as_go_reads_them(void **state)
{
    static const struct {
        const char *text;
        int64_t value;
    } rows[] = {
        {"0", 0},
        {"+5s", 5 * CLOCK_SECOND},
        {"1m0.5s", 60500 * CLOCK_MILLISECOND},
        {".5s", 500 * CLOCK_MILLISECOND},
        {"1.s", CLOCK_SECOND},
        {"300ms200us", 300200000},
        {"1h", -1},
        {"0.15h", 540 * CLOCK_SECOND},
        {"5", -1},
        {"s", -1},
        {"", -1},
        {"+", -1},
        {"-1s", -1},
        {"1s ", -1},
        {"1 s", -1},
        {"1d", -1},
        {"1S", -1},
        {".s", -1},
        {"9223372036854775808ns", -1},
        {"2562048h", -1},
        {"1\xc2\xb5s", 1000},
        {"0.3333333333333333333h", -1},
        {"0.1000000000000000000m", 6 * CLOCK_SECOND},
        {"1s1", -1},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[512];
        int result;

        (void)snprintf(text, sizeof text, NEEDED "startup_wait = \"%s\"", rows[i].text);
        result = read_text(CONFIG_KEYMANAGER, text);
        if ((result == 0) != (rows[i].value >= 0))
            fail_msg("\"%s\" was %s", rows[i].text, result == 0 ? "accepted" : "refused");
        if (result == 0)
            assert_int_equal(config.keymanager.startup_wait, rows[i].value);
    }
}

static void modes_are_octal_however_they_are_written(void **state)
{
    static const struct {
        const char *text;
        uint32_t mode; /* 0 = refused */
    } rows[] = {
        {"0644", 0644},
        {"\"0644\"", 0644},
        {"\"644\"", 0644},
        {"\"00640\"", 0640},
        {"420", 0644},
        {"0600", 0600},
        {"0775", 0775},
        {"644", 0},
        {"0666", 0},
        {"04644", 0},
        {"0444", 0},
        {"0200", 0},
        {"\"0o644\"", 0},
        {"\"rw\"", 0},
        {"-1", 0},
        {"\"0999\"", 0},
        {"\"\"", 0},
        {"\" 644\"", 0},
        {"\"7777777777777777777777\"", 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[128];
        int result;

        (void)snprintf(text, sizeof text, "path = \"/b\"\nmode = %s", rows[i].text);
        result = read_text(CONFIG_PUBLISHER, text);
        if ((result == 0) != (rows[i].mode != 0))
            fail_msg("%s was %s", rows[i].text, result == 0 ? "accepted" : "refused");
        if (result == 0)
            assert_int_equal(config.bundle.mode, rows[i].mode);
    }
    refused(CONFIG_PUBLISHER, "path = \"/b\"\nmode = 644",
            "line 2: mode: only the nine permission bits may be set (a number needs a leading 0: "
            "0644)");
}

static void strings_must_be_what_they_are_for(void **state)
{
    static const char *const rows[][2] = {
        {"pin_file = \"hsm-pin\"", "pin_file: expected an absolute path"},
        {"pin_file = \"/etc/\"", "pin_file: expected a file, but this names a folder"},
        {"pin_file = \"\"", "pin_file: is empty (leave out the option instead)"},
        {"pin_env = \"1234\"", "pin_env: expected the name of an environment variable"},
        {"pin_env = \"A B\"", "pin_env: expected the name of an environment variable"},
        {"pin = \"12\\n34\"", "pin: the text contains a control character"},
        {"pin = \"12\\u0085\"", "pin: the text contains a control character"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char message[256];

        (void)snprintf(message, sizeof message, "line 4: %s", rows[i][1]);
        keymanager_refused(rows[i][0], message);
    }
    refused(CONFIG_KEYMANAGER,
            "module = \"lib/x.so\"\ntoken = \"pkcs11:\"\nkey_identifier_value = \"x\"",
            "line 1: module: expected an absolute path, or a file name without '/'");
    refused(CONFIG_PUBLISHER, "path = \"\"", "line 1: path: is empty");
}

static void lengths_are_kept_to_the_byte(void **state)
{
    static const struct {
        const char *option;
        size_t most;
        const char *first;
    } rows[] = {
        {"key_identifier_value", CONFIG_IDENTITY_MAX, "x"},
        {"key_identifier_file", HSM_PATH_MAX - 1, "/"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (size_t length = rows[i].most; length <= rows[i].most + 1; length++) {
            char value[2048];
            char text[4096];
            int result;

            memset(value, 'x', length);
            value[0] = rows[i].first[0];
            value[length] = '\0';
            (void)snprintf(text, sizeof text, "module=\"m\" token=\"pkcs11:\" %s=\"%s\"",
                           rows[i].option, value);
            result = read_text(CONFIG_KEYMANAGER, text);
            assert_int_equal(result, length > rows[i].most ? -1 : 0);
        }
    assert_string_equal(notes.notes[0].text,
                        "line 1: key_identifier_file: is longer than 1023 bytes");
}

/* What is wrong with a URI is for uri.c. */
static void a_token_is_named_by_a_uri(void **state)
{
    (void)state;
    accepted(CONFIG_KEYMANAGER,
             "module=\"m\" token=\"pkcs11:token=a%20b\" key_identifier_value=\"x\"");
    refused(CONFIG_KEYMANAGER, "module=\"m\" token=\"pkcs11:token=a b\" key_identifier_value=\"x\"",
            "line 1: token: characters such as spaces must be percent-encoded (%20)");
    refused(CONFIG_KEYMANAGER,
            "module=\"m\" token=\"pkcs11:token=a?pin-value=1234\" key_identifier_value=\"x\"",
            "line 1: token: the URI must not contain a PIN: use pin_file");
}

static void trust_domains_are_as_spiffe_has_them(void **state)
{
    static const struct {
        const char *given;
        const char *read; /* NULL = refused */
    } rows[] = {
        {"example.org", "example.org"},
        {"spiffe://example.org", "example.org"},
        {"a_b-c.1", "a_b-c.1"},
        {"", NULL},
        {"spiffe://", NULL},
        {"Example.org", NULL},
        {"a/b", NULL},
        {"a b", NULL},
    };
    char longest[CONFIG_TRUST_DOMAIN_MAX + 2];

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int result =
            config_read(CONFIG_PUBLISHER, rows[i].given, "path=\"/b\"", 9, &config, &notes);

        assert_int_equal(result, rows[i].read ? 0 : -1);
        if (rows[i].read)
            assert_string_equal(config.trust_domain, rows[i].read);
    }
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(config_read(CONFIG_PUBLISHER, longest, "path=\"/b\"", 9, &config, &notes), -1);
    assert_int_equal(config_read(CONFIG_PUBLISHER, longest + 1, "path=\"/b\"", 9, &config, &notes),
                     0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_are_strict_where_a_guess_could_be_wrong),
        cmocka_unit_test(durations_are_read_as_go_reads_them),
        cmocka_unit_test(modes_are_octal_however_they_are_written),
        cmocka_unit_test(strings_must_be_what_they_are_for),
        cmocka_unit_test(lengths_are_kept_to_the_byte),
        cmocka_unit_test(a_token_is_named_by_a_uri),
        cmocka_unit_test(trust_domains_are_as_spiffe_has_them),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
