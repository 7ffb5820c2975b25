/* plugin_data as a whole: which options each plugin type has, needs and refuses, and how several
 * mistakes are reported at once. Single values are in unit/config_values.c.
 *
 * With --markdown the program prints the option tables instead. A test compares them with
 * docs/options.md, another one compares the manual page packaging/man/spire-hsm.conf.5. */
#include "plugin/config/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "tests/support/config_reading.h"

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
    assert_string_equal(c->place.module, "/usr/lib/softhsm/libsofthsm2.so");
    assert_string_equal(c->place.module_args, "");
    assert_string_equal(c->place.token, "pkcs11:token=spire");
    assert_string_equal(c->place.pin_file, "/etc/spire/hsm-pin");
    assert_string_equal(c->place.pin_env, "");
    assert_string_equal(c->place.key_identifier_file, "/var/lib/spire/server/hsm-id");
    assert_int_equal(c->max_sessions, 4);
    assert_int_equal(c->startup_wait, 60 * CLOCK_SECOND);
    assert_int_equal(c->call_timeout, 25 * CLOCK_SECOND);
    assert_int_equal(c->operation_timeout, 10 * CLOCK_SECOND);
    assert_int_equal(c->generate_timeout, 300 * CLOCK_SECOND);
    assert_int_equal(c->keep_alive, 20 * CLOCK_SECOND);
    assert_true(c->destroy_superseded);
    assert_int_equal(c->destroy_superseded_after, 24 * 3600 * CLOCK_SECOND);
    assert_false(c->lenient);
    assert_false(c->least);
    assert_false(c->verify_always);
    assert_int_equal(c->cka_id_length, 16);
    assert_int_equal(c->label_max, 0);
}

static void every_option_of_the_key_manager_arrives_in_its_place(void **state)
{
    const struct config_keymanager *c = &config.keymanager;

    (void)state;
    keymanager_accepted(
        "module_args = \"configdir='sql:/nss'\"\npin_env = "
        "\"HSM_PIN\"\nmax_sessions = 64\nstartup_wait = \"0s\"\n"
        "call_timeout = \"1.5s\"\noperation_timeout = \"1m\"\n"
        "generate_timeout = \"29m60s\"\nkeep_alive = 0\n"
        "destroy_superseded = false\ndestroy_superseded_after = 0\nattribute_check = \"lenient\"\n"
        "key_template = \"least\"\nverify_signatures = \"always\"\n"
        "cka_id_length = 2\nlabel_max = 800\n");
    assert_string_equal(c->place.key_identifier_value, "x");
    assert_string_equal(c->place.module_args, "configdir='sql:/nss'");
    assert_string_equal(c->place.pin_env, "HSM_PIN");
    assert_int_equal(c->max_sessions, 64);
    assert_int_equal(c->startup_wait, 0);
    assert_int_equal(c->call_timeout, 1500 * CLOCK_MILLISECOND);
    assert_int_equal(c->operation_timeout, 60 * CLOCK_SECOND);
    assert_int_equal(c->generate_timeout, 1800 * CLOCK_SECOND);
    assert_int_equal(c->keep_alive, 0);
    assert_false(c->destroy_superseded);
    assert_int_equal(c->destroy_superseded_after, 0);
    assert_true(c->lenient);
    assert_true(c->least);
    assert_true(c->verify_always);
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
    accepted(CONFIG_PUBLISHER, "path = \"/srv/oidc\"\nformat = \"oidc\"\n"
                               "issuer = \"https://oidc.example.org\"\n");
    assert_int_equal(config.bundle.format, BUNDLE_OIDC);
    assert_string_equal(config.bundle.issuer, "https://oidc.example.org");
    assert_int_equal(notes.warnings, 0);
}

static void an_issuer_belongs_to_oidc(void **state)
{
    (void)state;
    refused(CONFIG_PUBLISHER, "path = \"/srv/oidc\"\nformat = \"oidc\"",
            "issuer is required: with format oidc: jwt_issuer of server.conf; a web server serves "
            "the folder at this URL");
    refused(CONFIG_NOTIFIER, "path = \"/b\"\nissuer = \"https://a.example\"",
            "line 2: issuer: expected with format = \"oidc\" only");
    refused(CONFIG_PUBLISHER,
            "path = \"/srv/oidc/\"\nformat = \"oidc\"\nissuer = \"https://a.example\"",
            "line 1: path: expected no / at the end");
    refused(CONFIG_PUBLISHER,
            "path = \"/srv/oidc\"\nformat = \"oidc\"\nissuer = \"https://a.example/\"",
            "line 3: issuer: the URL must not end with / (here and in jwt_issuer of server.conf)");
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
    assert_string_equal(
        notes.notes[2].text,
        "line 3: pin: a PIN in the configuration is for local tests only: use pin_file");
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
    char rest[64];
    struct fault fault;
    int shown = 0;

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
    for (const char *at = fault.message; (at = strstr(at, "unknown option")); at++)
        shown++;
    (void)snprintf(rest, sizeof rest, "\"; and %d more, see the log", 40 - shown);
    assert_in_range(shown, 8, 14);
    assert_string_equal(fault.message + strlen(fault.message) - strlen(rest), rest);
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
            "path is required: the file that gets the bundle, or with format oidc a folder; the "
            "folder must exist, and "
            "the server's user must be able to write to it");
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

static void what_is_odd_is_warned_about(void **state)
{
    (void)state;
    keymanager_accepted("pin = \"1234\"");
    assert_int_equal(notes.warnings, 1);
    assert_false(notes.notes[0].error);
    accepted(CONFIG_PUBLISHER, "path = \"/b\"\nformat = \"jwks\"\nrefresh_hint = \"24h\"");
    assert_int_equal(notes.warnings, 2);
    assert_string_equal(
        notes.notes[0].text,
        "line 2: format: the OIDC discovery provider cannot read this format; it needs spiffe");
    accepted(CONFIG_PUBLISHER, "path = \"/b\"\nrefresh_hint = \"59s\"");
    assert_int_equal(notes.warnings, 1);
    accepted(CONFIG_PUBLISHER, "path = \"/b\"\nrefresh_hint = \"1m\"\nformat = \"spiffe\"");
    assert_int_equal(notes.warnings, 0);
    refused(CONFIG_PUBLISHER, "path = \"/b\"\nrefresh_hint = \"60500ms\"",
            "line 2: refresh_hint: expected whole seconds");
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
        "key_template = \"hunter2\"",
        "attribute_check = \"hunter2\"",
        "missing_keys = \"hunter2\"",
        "verify_signatures = \"hunter2\"",
        "startup_wait = \"hunter2\"",
        "destroy_superseded = \"hunter2\"",
        "previous \"hunter2\" {}",
        "previous { pinn = \"hunter2\" }",
        "previous { pin = hunter2 }",
        "previous { keys_file = \"hunter2\" }",
        "previous = \"hunter2\"",
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

/* Every identity has a place for it: restarts must not cost a try each. */
static void a_refused_pin_is_remembered_beside_the_identity(void **state)
{
    static const struct {
        const char *identity;
        const char *place;
    } rows[] = {
        {"key_identifier_file = \"/d/hsm-id\"", "/d/hsm-id.pin-refused"},
        {"key_identifier_file = \"/d/hsm-id\"\nrecord_file = \"/r/keys\"", "/d/hsm-id.pin-refused"},
        {"key_identifier_value = \"x\"\nrecord_file = \"/r/keys\"", "/r/keys.pin-refused"},
        {"key_identifier_value = \"x\"", "/dev/shm/spire-hsm-2d711642b726b0440162.pin-refused"},
    };
    struct hsm_settings settings;

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[256];

        (void)snprintf(text, sizeof text, "module = \"/m.so\"\ntoken = \"pkcs11:token=t\"\n%s",
                       rows[i].identity);
        accepted(CONFIG_KEYMANAGER, text);
        config_settings(&config.keymanager, &settings);
        assert_string_equal(settings.latch, rows[i].place);
        hsm_settings_wipe(&settings);
    }
}

static void the_pin_is_gone_after_wiping(void **state)
{
    (void)state;
    keymanager_accepted("pin = \"hunter2\"");
    assert_string_equal(config.keymanager.place.pin, "hunter2");
    config_wipe(&config);
    assert_false(contains((const char *)&config, sizeof config, "hunter2"));
}

/* ---- the block previous ---- */

#define RECORD "record_file = \"/r\"\n"

static void previous_is_a_file_or_another_token(void **state)
{
    static const char disk[] = RECORD "previous { keys_file = \"/data/keys.json\" }";
    static const char token[] =
        RECORD "previous {\n module = \"/lib/a.so\"\n token = \"pkcs11:token=a\"\n"
               " pin = \"hunter2\"\n key_identifier_value = \"then\"\n}";
    struct config previous;

    (void)state;
    keymanager_accepted("");
    assert_false(config_previous(&config, &previous));
    keymanager_accepted(disk);
    assert_true(config_previous(&config, &previous));
    assert_string_equal(previous.keymanager.place.keys_file, "/data/keys.json");
    assert_string_equal(previous.keymanager.place.token, "");
    assert_string_equal(previous.keymanager.record_file, "");
    keymanager_accepted(token);
    assert_true(config_previous(&config, &previous));
    assert_string_equal(previous.keymanager.place.keys_file, "");
    assert_string_equal(previous.keymanager.place.module, "/lib/a.so");
    assert_string_equal(previous.keymanager.place.key_identifier_file, "");
    assert_string_equal(previous.keymanager.place.key_identifier_value, "then");
    config_wipe(&previous);
    config_wipe(&config);
    assert_false(contains((const char *)&config, sizeof config, "hunter2"));
    assert_false(contains((const char *)&previous, sizeof previous, "hunter2"));
}

static void previous_is_the_same_in_json(void **state)
{
    (void)state;
    accepted(
        CONFIG_KEYMANAGER,
        "{\"module\": \"/m.so\", \"token\": \"pkcs11:token=a\", \"key_identifier_value\": \"x\", "
        "\"record_file\": \"/r\", \"previous\": {\"keys_file\": \"/data/keys.json\"}}");
    assert_string_equal(config.keymanager.previous.keys_file, "/data/keys.json");
}

static void a_wrong_block_previous_is_one_clear_error(void **state)
{
    static const struct {
        const char *text;
        const char *message;
    } rows[] = {
        {"previous { }",
         "line 4: previous: expected keys_file, or module and token: where the keys are"},
        {"previous = \"/data/keys.json\"", "line 4: previous: expected a block without a label"},
        {"previous \"disk\" { keys_file = \"/k\" }",
         "line 4: previous: expected a block without a label"},
        {"previous { keys_file = \"/k\" }\nprevious { keys_file = \"/l\" }",
         "line 5: previous is given twice, first in line 4"},
        {"previous {\n keys_fil = \"/k\"\n}",
         "line 5: previous: unknown option \"keys_fil\" (did you mean keys_file?)"},
        {"previous { keys_file = \"keys.json\" }",
         "line 4: previous: keys_file: expected an absolute path"},
        {"previous { keys_file = \"/k\" module = \"/m.so\" }",
         "line 4: previous: keys_file and module: keys come from a file or from a token, give one"},
        {"previous {\n module = \"/m.so\"\n key_identifier_value = \"x\"\n}",
         "line 4: previous: token is required, beside module"},
        {"previous { keys_file = \"/k\" }",
         "previous: record_file is required beside key_identifier_value: what has moved is written "
         "down there"},
        {"previous {\n module = \"m\"\n token = \"pkcs11:\"\n key_identifier_value = \"x\"\n}",
         "previous: it is this token and key identifier itself, and there is nothing to move"},
        {"previous { module = \"/m.so\" token = \"pkcs11:token=a\" }",
         "line 4: previous: key_identifier_file or key_identifier_value is required: whose keys on "
         "that token they are"},
        {"previous {\n module = \"/m.so\"\n token = \"pkcs11:token=a\"\n pin_file = \"/p\"\n "
         "pin_env = \"P\"\n key_identifier_value = \"x\"\n}",
         "line 8: previous: pin_env: there can be only one source of the PIN, and line 7 has "
         "pin_file"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        keymanager_refused(rows[i].text, rows[i].message);
}

/* ---- docs/options.md ---- */

static const struct {
    enum config_kind kind;
    const char *heading;
} sections[] = {
    {CONFIG_KEYMANAGER, "\n### KeyManager\n"},
    {CONFIG_PREVIOUS, "\n### previous\n"},
    {CONFIG_PUBLISHER, "\n### BundlePublisher\n"},
    {CONFIG_NOTIFIER, "\n### Notifier\n"},
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

/* A file of the source, wherever below it this runs. */
static char *read_source(const char *path)
{
    static const char *const roots[] = {".", "..", "../.."};
    FILE *file = NULL;
    char *text = calloc(1, 65536);
    char full[256];

    for (size_t i = 0; !file && i < sizeof roots / sizeof roots[0]; i++) {
        (void)snprintf(full, sizeof full, "%s/%s", roots[i], path);
        file = fopen(full, "r");
    }
    assert_non_null(file);
    assert_non_null(text);
    assert_in_range(fread(text, 1, 65535, file), 1, 65534);
    (void)fclose(file);
    return text;
}

/* The rows under a heading are these, all of them, in this order, and no others. */
static void the_page_has_the_option_tables_as_they_are(void **state)
{
    OWNED(scope_free) char *page = read_source("docs/options.md");

    (void)state;
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        OWNED(scope_free) char *table = markdown(sections[i].kind);
        char *section = strstr(page, sections[i].heading);
        char *rows = section ? strstr(section, "\n|") : NULL;
        char *end = section ? strstr(section + 1, "\n#") : NULL;

        if (!rows || !end || strncmp(rows + 1, table, strlen(table)) != 0 ||
            memmem(rows + strlen(table), (size_t)(end - rows) - strlen(table), "\n|", 2))
            fail_msg(
                "docs/options.md must have this table, as unit/config --markdown prints it:%s%s",
                sections[i].heading, table);
    }
}

/* Lines may end anywhere in a manual page. */
static void unwrap(char *text)
{
    for (; *text != '\0'; text++)
        if (*text == '\n')
            *text = ' ';
}

/* A row, "| `name` | type | default | meaning |" (a default in backticks, "required" without,
 * or none), as an item: ".It Ic name (type, default 1) meaning". The row is cut up. */
static void as_item(char *row, char *item, size_t size)
{
    char *cells[6];
    size_t count = 0;
    char *bare;

    for (char *cell; count < 6 && (cell = strsep(&row, "|")) != NULL; count++) {
        cells[count] = cell + strspn(cell, " `");
        for (size_t end = strlen(cells[count]); end > 0 && strchr(" `", cells[count][end - 1]);
             end--)
            cells[count][end - 1] = '\0';
    }
    assert_int_equal(count, 6);
    bare = cells[3];
    (void)snprintf(item, size, " .It Ic %s (%s%s%s) %s ", cells[1], cells[2],
                   *bare == '\0'                   ? ""
                   : strcmp(bare, "required") == 0 ? ", "
                                                   : ", default ",
                   bare, cells[4]);
}

static void the_manual_page_has_the_options_as_they_are(void **state)
{
    static const char *const headings[] = {" .Ss KeyManager ", " .Ss previous ",
                                           " .Ss BundlePublisher ", " .Ss Notifier "};
    OWNED(scope_free) char *page = read_source("packaging/man/spire-hsm.conf.5");

    (void)state;
    unwrap(page);
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        OWNED(scope_free) char *table = markdown(sections[i].kind);
        char *rows = strstr(table, "\n| `");
        char *place = strstr(page, headings[i]);
        char item[512];

        assert_non_null(rows);
        rows++;
        for (char *row; place && (row = strsep(&rows, "\n")) != NULL && *row != '\0';) {
            as_item(row, item, sizeof item);
            place = strstr(place, " .It Ic ");
            if (!place || strncmp(place, item, strlen(item)) != 0)
                fail_msg("spire-hsm.conf.5 must have, as the next item of its list:%s", item);
            place += strlen(item) - 1;
        }
        assert_non_null(place);
        assert_int_equal(strncmp(place, " .El ", 5), 0);
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
        assert_in_range(count, 4, 32);
        free(help);
    }
}

static int print_markdown(void)
{
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        (void)printf("%s\n", sections[i].heading);
        config_markdown(sections[i].kind, stdout);
    }
    return fflush(stdout) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_quick_start_is_valid_and_the_rest_has_defaults),
        cmocka_unit_test(every_option_of_the_key_manager_arrives_in_its_place),
        cmocka_unit_test(every_option_of_the_bundle_arrives_in_its_place),
        cmocka_unit_test(an_issuer_belongs_to_oidc),
        cmocka_unit_test(the_same_is_read_from_json),
        cmocka_unit_test(all_complaints_come_at_once_in_the_order_of_lines),
        cmocka_unit_test(complaints_that_do_not_fit_are_counted),
        cmocka_unit_test(a_configuration_that_is_wrong_leaves_the_old_one_alone),
        cmocka_unit_test(a_text_that_is_no_hcl_is_one_complaint),
        cmocka_unit_test(the_nearest_option_is_named),
        cmocka_unit_test(what_is_missing_is_named_without_a_line),
        cmocka_unit_test(one_pin_source_and_one_identity_may_be_given),
        cmocka_unit_test(what_is_odd_is_warned_about),
        cmocka_unit_test(the_pin_is_never_repeated),
        cmocka_unit_test(a_refused_pin_is_remembered_beside_the_identity),
        cmocka_unit_test(the_pin_is_gone_after_wiping),
        cmocka_unit_test(previous_is_a_file_or_another_token),
        cmocka_unit_test(previous_is_the_same_in_json),
        cmocka_unit_test(a_wrong_block_previous_is_one_clear_error),
        cmocka_unit_test(the_page_has_the_option_tables_as_they_are),
        cmocka_unit_test(the_manual_page_has_the_options_as_they_are),
        cmocka_unit_test(help_and_markdown_have_every_option),
    };

    if (argc > 1 && strcmp(argv[1], "--markdown") == 0)
        return print_markdown();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
