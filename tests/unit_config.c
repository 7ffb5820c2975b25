/* With --markdown it prints the option tables as README.md must have them. */
#include "../plugin/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <p11-kit/uri.h>

#include <cmocka.h>

#include "../hsm/clock.h"
#include "../hsm/scope.h"

#define NEEDED "module = \"m\"\ntoken = \"pkcs11:\"\nkey_identifier_value = \"x\"\n"

static struct config config;
static struct config_notes notes;

static int read_text(enum config_kind kind, const char *text)
{
    return config_read(kind, "example.org", text, strlen(text), &config, &notes);
}

static void accepted(enum config_kind kind, const char *text)
{
    if (read_text(kind, text) != 0)
        fail_msg("refused: %s", notes.notes[0].text);
    assert_int_equal(notes.errors, 0);
}

/* One complaint, and this. */
static void refused(enum config_kind kind, const char *text, const char *message)
{
    if (read_text(kind, text) == 0)
        fail_msg("accepted: %s", text);
    assert_string_equal(notes.notes[0].text, message);
    assert_int_equal(notes.errors, 1);
    assert_true(notes.notes[0].error);
}

/* `text` behind what a KeyManager cannot do without, so it begins in line 4. */
static void keymanager_accepted(const char *text)
{
    char whole[4096];

    (void)snprintf(whole, sizeof whole, NEEDED "%s", text);
    accepted(CONFIG_KEYMANAGER, whole);
}

static void keymanager_refused(const char *text, const char *message)
{
    char whole[4096];

    (void)snprintf(whole, sizeof whole, NEEDED "%s", text);
    refused(CONFIG_KEYMANAGER, whole, message);
}

static void the_quick_start_is_valid_and_the_rest_has_defaults(void **state)
{
    const struct config_keymanager *c = &config.keymanager;

    (void)state;
    accepted(CONFIG_KEYMANAGER, "module = \"/usr/lib/softhsm/libsofthsm2.so\"\n"
                                "token = \"pkcs11:token=spire\"\n"
                                "pin_file = \"/etc/spire/hsm-pin\"\n"
                                "key_identifier_file = \"/var/lib/spire/server/hsm-id\"");
    assert_int_equal(notes.warnings, 0);
    assert_int_equal(config.kind, CONFIG_KEYMANAGER);
    assert_string_equal(config.trust_domain, "example.org");
    assert_string_equal(c->module, "/usr/lib/softhsm/libsofthsm2.so");
    assert_string_equal(c->token, "pkcs11:token=spire");
    assert_string_equal(c->pin_file, "/etc/spire/hsm-pin");
    assert_string_equal(c->pin_env, "");
    assert_string_equal(c->key_identifier_file, "/var/lib/spire/server/hsm-id");
    assert_int_equal(c->max_sessions, 4);
    assert_int_equal(c->startup_wait, 60 * CLOCK_SECOND);
    assert_int_equal(c->call_timeout, 25 * CLOCK_SECOND);
    assert_int_equal(c->operation_timeout, 10 * CLOCK_SECOND);
    assert_int_equal(c->generate_timeout, 300 * CLOCK_SECOND);
    assert_int_equal(c->keep_alive, 20 * CLOCK_SECOND);
    assert_true(c->destroy_superseded);
    assert_false(c->lenient);
    assert_int_equal(c->cka_id_length, 16);
    assert_int_equal(c->label_max, 0);
}

static void every_option_of_the_key_manager_arrives_in_its_place(void **state)
{
    const struct config_keymanager *c = &config.keymanager;

    (void)state;
    keymanager_accepted("pin_env = \"HSM_PIN\"\nmax_sessions = 64\nstartup_wait = \"0s\"\n"
                        "call_timeout = \"1.5s\"\noperation_timeout = \"1m\"\n"
                        "generate_timeout = \"29m60s\"\nkeep_alive = 0\n"
                        "destroy_superseded = false\nattribute_check = \"lenient\"\n"
                        "cka_id_length = 2\nlabel_max = 800\n");
    assert_string_equal(c->key_identifier_value, "x");
    assert_string_equal(c->pin_env, "HSM_PIN");
    assert_int_equal(c->max_sessions, 64);
    assert_int_equal(c->startup_wait, 0);
    assert_int_equal(c->call_timeout, 1500 * CLOCK_MILLISECOND);
    assert_int_equal(c->operation_timeout, 60 * CLOCK_SECOND);
    assert_int_equal(c->generate_timeout, 1800 * CLOCK_SECOND);
    assert_int_equal(c->keep_alive, 0);
    assert_false(c->destroy_superseded);
    assert_true(c->lenient);
    assert_int_equal(c->cka_id_length, 2);
    assert_int_equal(c->label_max, 800);
}

static void every_option_of_the_bundle_arrives_in_its_place(void **state)
{
    (void)state;
    accepted(CONFIG_PUBLISHER, "path = \"/run/b.json\"");
    assert_string_equal(config.bundle.path, "/run/b.json");
    assert_int_equal(config.bundle.format, BUNDLE_SPIFFE);
    assert_int_equal(config.bundle.refresh_hint, 0);
    assert_int_equal(config.bundle.mode, 0644);
    assert_false(config.bundle.required);
    accepted(CONFIG_NOTIFIER, "path = \"/b\"\nformat = \"PEM\"\nrefresh_hint = \"1h30m\"\n"
                              "mode = \"0600\"\nrequired = true\n");
    assert_int_equal(config.bundle.format, BUNDLE_PEM);
    assert_int_equal(config.bundle.refresh_hint, 5400 * CLOCK_SECOND);
    assert_int_equal(config.bundle.mode, 0600);
    assert_true(config.bundle.required);
}

static void the_same_is_read_from_json(void **state)
{
    (void)state;
    accepted(CONFIG_PUBLISHER, "{\"path\": \"/b\", \"mode\": 416, \"refresh_hint\": \"5m\"}");
    assert_int_equal(config.bundle.mode, 0640);
    refused(CONFIG_PUBLISHER, "{\"path\": \"/b\",\n\"mode\": true}",
            "line 2: mode: expected octal file mode, found true or false");
}

static void all_complaints_come_at_once_in_the_order_of_lines(void **state)
{
    struct fault fault;

    (void)state;
    assert_int_equal(read_text(CONFIG_KEYMANAGER, "pin_fil = \"/pin\"\n"
                                                  "max_sessions = 65\n"
                                                  "pin = \"1234\"\n"
                                                  "module = 7\n"
                                                  "module = \"m\"\n"),
                     -1);
    assert_int_equal(notes.errors, 6);
    assert_int_equal(notes.warnings, 1);
    assert_string_equal(notes.notes[0].text,
                        "line 1: unknown option \"pin_fil\" (did you mean pin_file?)");
    assert_string_equal(notes.notes[1].text, "line 2: max_sessions: expected integer from 1 to 64");
    assert_string_equal(notes.notes[2].text, "line 3: pin: a PIN in the configuration is for local "
                                             "tests only, use pin_file");
    assert_false(notes.notes[2].error);
    assert_string_equal(notes.notes[3].text,
                        "line 4: module: expected path or file name, found a bare number");
    assert_string_equal(notes.notes[4].text, "line 5: module is given twice, first in line 4");
    assert_memory_equal(notes.notes[5].text, "token is required: ", 19);
    assert_memory_equal(notes.notes[6].text,
                        "configuration requires a key identifier file or a key identifier value",
                        70);
    assert_int_equal(config_fault(&notes, &fault), -1);
    assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
    assert_memory_equal(fault.message, "6 mistakes in plugin_data: line 1: unknown option", 49);
    assert_null(strstr(fault.message, "local tests"));
}

static void complaints_that_do_not_fit_are_counted(void **state)
{
    char text[4096] = "path = \"/b\"\n";
    struct fault fault;

    (void)state;
    for (int i = 0; i < 40; i++)
        (void)snprintf(text + strlen(text), sizeof text - strlen(text), "unknown%d = 1\n", i);
    assert_int_equal(read_text(CONFIG_PUBLISHER, text), -1);
    assert_int_equal(notes.errors, 40);
    assert_string_equal(notes.notes[CONFIG_NOTES_MAX - 2].text,
                        "line 32: unknown option \"unknown30\"");
    assert_string_equal(notes.notes[CONFIG_NOTES_MAX - 1].text, "and 9 more");
    assert_true(notes.notes[CONFIG_NOTES_MAX - 1].error);
    (void)config_fault(&notes, &fault);
    assert_non_null(strstr(fault.message, "; and 29 more, see the log"));
    assert_true(strlen(fault.message) < FAULT_MESSAGE_MAX - 1);
}

static void a_configuration_that_is_wrong_leaves_the_old_one_alone(void **state)
{
    struct config before;

    (void)state;
    accepted(CONFIG_PUBLISHER, "path = \"/b\"");
    before = config;
    assert_int_equal(read_text(CONFIG_PUBLISHER, "path = \"/c\"\nmode = 0666"), -1);
    assert_memory_equal(&before, &config, sizeof config);
}

static void a_text_that_is_no_hcl_is_one_complaint(void **state)
{
    (void)state;
    refused(CONFIG_PUBLISHER, "path = \"/b\"\nmode = ${M}\n",
            "line 2: expected a string, a number, true or false");
    refused(CONFIG_PUBLISHER, "\"str\"", "line 1: expected '=' or '{'");
}

static void the_nearest_option_is_named(void **state)
{
    static const char *const rows[][2] = {
        {"key_identifier_valeu", "key_identifier_value"},
        {"Max_Sessions", "max_sessions"},
        {"max-sessions", "max_sessions"},
        {"cka_id_len", "cka_id_length"},
        {"pin_flie", "pin_file"},
        {"modul", "module"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[128];
        char message[256];

        (void)snprintf(text, sizeof text, "%s = 1", rows[i][0]);
        (void)snprintf(message, sizeof message, "line 4: unknown option \"%s\" (did you mean %s?)",
                       rows[i][0], rows[i][1]);
        keymanager_refused(text, message);
    }
    keymanager_refused("path = \"/b\"", "line 4: unknown option \"path\"");
    keymanager_refused("\"a\\n\\u001bb\" = 1", "line 4: unknown option \"a??b\"");
    refused(CONFIG_PUBLISHER, "path = \"/b\"\nrequired = true",
            "line 2: unknown option \"required\"");
}

static void what_is_missing_is_named_without_a_line(void **state)
{
    (void)state;
    refused(CONFIG_PUBLISHER, "",
            "path is required: the file; its folder must exist and be ours "
            "to write");
    assert_int_equal(read_text(CONFIG_KEYMANAGER, "# nothing"), -1);
    assert_int_equal(notes.errors, 3);
}

static void one_pin_source_and_one_identity_may_be_given(void **state)
{
    (void)state;
    keymanager_refused("pin_file = \"/p\"\npin_env = \"P\"",
                       "line 5: pin_env: there can be only one source of the PIN, and line 4 has "
                       "pin_file");
    refused(CONFIG_KEYMANAGER,
            "pin_file = \"/p\"\nmodule = \"m\"\ntoken = \"pkcs11:?pin-source=/q\"\n"
            "key_identifier_value = \"x\"",
            "line 3: the pin-source of token: there can be only one source of the PIN, and line 1 "
            "has pin_file");
    keymanager_refused("key_identifier_file = \"/i\"",
                       "line 4: key_identifier_file: configuration can't have a key identifier "
                       "file and a key identifier value at the same time, and line 3 has "
                       "key_identifier_value");
}

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
        {"max_sessions = 1.5", "max_sessions: expected integer from 1 to 64, found a bare number"},
        {"max_sessions = \"4x\"", "max_sessions: expected integer from 1 to 64"},
        {"max_sessions = 0", "max_sessions: expected integer from 1 to 64"},
        {"label_max = 39", "label_max: expected 0 or integer from 40 to 800"},
        {"label_max = -1", "label_max: expected 0 or integer from 40 to 800"},
        {"cka_id_length = 8", "cka_id_length: expected 16 or 2"},
        {"attribute_check = \"lax\"", "attribute_check: expected strict or lenient"},
        {"call_timeout = 25",
         "call_timeout: expected duration from 1s to 29s, found a bare number"},
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
        {"pin_file = \"/etc/\"", "pin_file: expected a file, this names a folder"},
        {"pin_file = \"\"", "pin_file: is empty (leave the option out instead)"},
        {"pin_env = \"1234\"", "pin_env: expected the name of an environment variable"},
        {"pin_env = \"A B\"", "pin_env: expected the name of an environment variable"},
        {"pin = \"12\\n34\"", "pin: there is a control character in it"},
        {"pin = \"12\\u0085\"", "pin: there is a control character in it"},
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

static const struct {
    const char *uri;
    const char *message; /* NULL = accepted */
} uris[] = {
    {"pkcs11:", NULL},
    {"pkcs11:token=spire", NULL},
    {"pkcs11:token=My%20Token;serial=01%2f;model=SoftHSM%20v2;manufacturer=a;slot-id=12", NULL},
    {"pkcs11:token=a?pin-source=/etc/pin", NULL},
    {"pkcs11:token=a?pin-source=file:/etc/pin", NULL},
    {"pkcs11:?pin-source=file:///etc/pin", NULL},
    {"pkcs11:token=a:[]@!$'()*+,=&b~._-", NULL},
    {"spire", "expected a URI that begins with pkcs11:"},
    {"PKCS11:token=a", "expected a URI that begins with pkcs11:"},
    {"pkcs11:token=a?pin-value=1234", "a PIN has no place in the URI, use pin_file"},
    {"pkcs11:token=a;pin-value=1234", "a PIN has no place in the URI, use pin_file"},
    {"pkcs11:token=a;object=k", "expected, separated by ';', some of token, serial, model, "
                                "manufacturer and slot-id, nothing else"},
    {"pkcs11:type=private", "expected, separated by ';', some of token, serial, model, "
                            "manufacturer and slot-id, nothing else"},
    {"pkcs11:token=a;", "expected, separated by ';', some of token, serial, model, manufacturer "
                        "and slot-id, nothing else"},
    {"pkcs11:1234", "expected, separated by ';', some of token, serial, model, manufacturer and "
                    "slot-id, nothing else"},
    {"pkcs11:token", "expected, separated by ';', some of token, serial, model, manufacturer and "
                     "slot-id, nothing else"},
    {"pkcs11:token=", "an attribute has no value"},
    {"pkcs11:token=a;token=b", "an attribute is there twice"},
    {"pkcs11:token=a b", "characters such as spaces must be percent-encoded (%20)"},
    {"pkcs11:token=\xc3\xa9", "characters such as spaces must be percent-encoded (%20)"},
    {"pkcs11:token=a%2", "there is a '%' without two hexadecimal digits behind it"},
    {"pkcs11:token=a%00", "there is a NUL in it"},
    {"pkcs11:slot-id=x", "slot-id must be a number"},
    {"pkcs11:model=seventeen-letters", "an attribute is longer than PKCS#11 allows"},
    {"pkcs11:token=a?module-path=/x", "expected nothing but pin-source behind '?'"},
    {"pkcs11:token=a?pin-source=pin", "pin-source must be an absolute path or file:/path"},
    {"pkcs11:token=a?pin-source=|cmd", "pin-source must be an absolute path or file:/path"},
    {"pkcs11:token=a?pin-source=file://host/pin",
     "pin-source must be an absolute path or file:/path"},
    {"pkcs11:?", "expected nothing but pin-source behind '?'"},
};

static void token_uris_are_checked_in_front_of_the_token(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof uris / sizeof uris[0]; i++) {
        char text[512];
        char message[256];

        (void)snprintf(text, sizeof text, "module=\"m\" token=\"%s\" key_identifier_value=\"x\"",
                       uris[i].uri);
        (void)snprintf(message, sizeof message, "line 1: token: %s",
                       uris[i].message ? uris[i].message : "");
        if (uris[i].message)
            refused(CONFIG_KEYMANAGER, text, message);
        else
            accepted(CONFIG_KEYMANAGER, text);
    }
}

/* Where a URI is used, p11-kit reads it. */
static void token_uris_that_pass_are_uris_for_p11_kit(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof uris / sizeof uris[0]; i++) {
        P11KitUri *uri = p11_kit_uri_new();

        if (!uris[i].message) {
            assert_int_equal(
                p11_kit_uri_parse(uris[i].uri, P11_KIT_URI_FOR_TOKEN | P11_KIT_URI_FOR_SLOT, uri),
                P11_KIT_URI_OK);
            assert_false(p11_kit_uri_any_unrecognized(uri));
            assert_null(p11_kit_uri_get_pin_value(uri));
        }
        p11_kit_uri_free(uri);
    }
}

static void what_is_odd_is_warned_about(void **state)
{
    (void)state;
    keymanager_accepted("pin = \"1234\"");
    assert_int_equal(notes.warnings, 1);
    assert_false(notes.notes[0].error);
    accepted(CONFIG_PUBLISHER, "path = \"/b\"\nformat = \"jwks\"\nrefresh_hint = \"24h\"");
    assert_int_equal(notes.warnings, 2);
    assert_string_equal(notes.notes[0].text, "line 2: format: the OIDC discovery provider cannot "
                                             "read this format, it needs spiffe");
    accepted(CONFIG_PUBLISHER, "path = \"/b\"\nrefresh_hint = \"59s\"");
    assert_int_equal(notes.warnings, 1);
    accepted(CONFIG_PUBLISHER, "path = \"/b\"\nrefresh_hint = \"1m\"\nformat = \"spiffe\"");
    assert_int_equal(notes.warnings, 0);
    refused(CONFIG_PUBLISHER, "path = \"/b\"\nrefresh_hint = \"60500ms\"",
            "line 2: refresh_hint: expected whole seconds");
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

static bool contains(const char *bytes, size_t size, const char *text)
{
    return memmem(bytes, size, text, strlen(text)) != NULL;
}

static void the_pin_is_never_repeated(void **state)
{
    static const char *const rows[] = {
        "pin = \"hunter2\\u0007\"",
        "pin = hunter2",
        "pin = \"hunter2",
        "pinn = \"hunter2\"",
        "pin \"hunter2\" {}",
        "pin = [\"hunter2\"]",
        "pin_file = \"hunter2\"",
        "pin_env = \"hunter2!\"",
        "pin = \"${hunter2}\"",
        "pin = \"hunter2\" hunter2",
        "pin = <<hunter2\n",
        "pin = \"hunter2\\q\"",
        "token = \"pkcs11:token=a?pin-value=hunter2\"",
        "token = \"hunter2\"",
        "token = \"pkcs11:hunter2=hunter2\"",
        "max_sessions = \"hunter2\"",
        "{\"pin\": \"hunter2\" \"hunter2\"}",
        "{\"pin\": hunter2}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fault fault;

        assert_int_equal(read_text(CONFIG_KEYMANAGER, rows[i]), -1);
        (void)config_fault(&notes, &fault);
        if (contains((const char *)&notes, sizeof notes, "hunter2") ||
            contains(fault.message, sizeof fault.message, "hunter2"))
            fail_msg("repeated in: %s", fault.message);
    }
}

static void the_pin_is_gone_after_wiping(void **state)
{
    (void)state;
    keymanager_accepted("pin = \"hunter2\"");
    assert_string_equal(config.keymanager.pin, "hunter2");
    config_wipe(&config);
    assert_false(contains((const char *)&config, sizeof config, "hunter2"));
}

/* ---- README.md ---- */

static const struct {
    enum config_kind kind;
    const char *mark;
} sections[] = {
    {CONFIG_KEYMANAGER, "<!-- options: keymanager -->\n"},
    {CONFIG_PUBLISHER, "<!-- options: publisher -->\n"},
    {CONFIG_NOTIFIER, "<!-- options: notifier -->\n"},
};

static char *markdown(enum config_kind kind)
{
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    config_markdown(kind, out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static char *read_readme(void)
{
    static const char *const places[] = {"README.md", "../README.md", "../../README.md"};
    const char *given = getenv("README");
    FILE *file = given ? fopen(given, "r") : NULL;
    char *text = calloc(1, 65536);

    for (size_t i = 0; !file && i < sizeof places / sizeof places[0]; i++)
        file = fopen(places[i], "r");
    assert_non_null(file);
    assert_non_null(text);
    assert_in_range(fread(text, 1, 65535, file), 1, 65534);
    (void)fclose(file);
    return text;
}

/* The table stands behind its mark, whole, and no row behind it or elsewhere. */
static void the_readme_has_the_option_tables_as_they_are(void **state)
{
    OWNED(scope_free) char *readme = read_readme();

    (void)state;
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        OWNED(scope_free) char *table = markdown(sections[i].kind);
        const char *at = strstr(readme, sections[i].mark);

        if (!at)
            fail_msg("README.md has no %s", sections[i].mark);
        at += strlen(sections[i].mark);
        if (strncmp(at, table, strlen(table)) != 0 || at[strlen(table)] == '|')
            fail_msg("the table in README.md behind %s must read (%s --markdown prints it)\n%s",
                     sections[i].mark, "build/tests/unit_config", table);
    }
}

static void help_and_markdown_have_every_option(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        OWNED(scope_free) char *table = markdown(sections[i].kind);
        char *help;
        size_t size;
        FILE *out = open_memstream(&help, &size);
        size_t count = 0;

        config_help(sections[i].kind, out);
        (void)fclose(out);
        for (const char *name; (name = config_option_name(sections[i].kind, count)); count++) {
            char row[64];

            (void)snprintf(row, sizeof row, "\n| `%s` | ", name);
            assert_non_null(strstr(table, row));
            assert_non_null(strstr(help, name));
        }
        assert_in_range(count, 4, 20);
        free(help);
    }
}

static int print_markdown(void)
{
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        (void)fputs(sections[i].mark, stdout);
        config_markdown(sections[i].kind, stdout);
        (void)putchar('\n');
    }
    return fflush(stdout) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_quick_start_is_valid_and_the_rest_has_defaults),
        cmocka_unit_test(every_option_of_the_key_manager_arrives_in_its_place),
        cmocka_unit_test(every_option_of_the_bundle_arrives_in_its_place),
        cmocka_unit_test(the_same_is_read_from_json),
        cmocka_unit_test(all_complaints_come_at_once_in_the_order_of_lines),
        cmocka_unit_test(complaints_that_do_not_fit_are_counted),
        cmocka_unit_test(a_configuration_that_is_wrong_leaves_the_old_one_alone),
        cmocka_unit_test(a_text_that_is_no_hcl_is_one_complaint),
        cmocka_unit_test(the_nearest_option_is_named),
        cmocka_unit_test(what_is_missing_is_named_without_a_line),
        cmocka_unit_test(one_pin_source_and_one_identity_may_be_given),
        cmocka_unit_test(types_are_strict_where_a_guess_could_be_wrong),
        cmocka_unit_test(durations_are_read_as_go_reads_them),
        cmocka_unit_test(modes_are_octal_however_they_are_written),
        cmocka_unit_test(strings_must_be_what_they_are_for),
        cmocka_unit_test(lengths_are_kept_to_the_byte),
        cmocka_unit_test(token_uris_are_checked_in_front_of_the_token),
        cmocka_unit_test(token_uris_that_pass_are_uris_for_p11_kit),
        cmocka_unit_test(what_is_odd_is_warned_about),
        cmocka_unit_test(trust_domains_are_as_spiffe_has_them),
        cmocka_unit_test(the_pin_is_never_repeated),
        cmocka_unit_test(the_pin_is_gone_after_wiping),
        cmocka_unit_test(the_readme_has_the_option_tables_as_they_are),
        cmocka_unit_test(help_and_markdown_have_every_option),
    };

    if (argc > 1 && strcmp(argv[1], "--markdown") == 0)
        return print_markdown();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
