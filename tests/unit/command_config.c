/* One syntax: the commands read plugin_data, or the server's configuration it stands in. */
#include "plugin/command/command_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define DATA "module = \"m\"\ntoken = \"pkcs11:token=t\"\nkey_identifier_value = \"x\"\n"
#define SERVER "server {\n trust_domain = \"example.org\"\n"

static char path[] = "/tmp/spire-hsm-command.XXXXXX";
static char data_path[] = "/tmp/spire-hsm-command.XXXXXX";
static struct command_config config;
static struct fault fault;

static int make_files(void **state)
{
    int one = mkstemp(path);
    int other = mkstemp(data_path);

    (void)state;
    return one < 0 || other < 0 || close(one) != 0 || close(other) != 0;
}

static int remove_files(void **state)
{
    (void)state;
    return unlink(path) + unlink(data_path);
}

static void write_file(const char *name, const char *text)
{
    FILE *file = fopen(name, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static int read_text(const char *text, struct command_options options)
{
    options.config = path;
    write_file(path, text);
    memset(&config, 0, sizeof config);
    memset(&fault, 0, sizeof fault);
    return command_read_config(&options, &config, &fault);
}

static void accepted(const char *text)
{
    if (read_text(text, (struct command_options){.config = path}) != 0)
        fail_msg("refused: %s", fault.message);
    assert_string_equal(config.config.keymanager.place.token, "pkcs11:token=t");
    assert_string_equal(config.config.trust_domain, "example.org");
}

static void refused(const char *text, const char *part)
{
    if (read_text(text, (struct command_options){.config = path}) == 0)
        fail_msg("accepted: %s", text);
    if (!strstr(fault.message, part))
        fail_msg("\"%s\" does not say \"%s\"", fault.message, part);
}

static void plugin_data_needs_a_trust_domain(void **state)
{
    struct command_options options = {.trust_domain = "spiffe://example.org"};

    (void)state;
    assert_int_equal(read_text(DATA, options), 0);
    assert_string_equal(config.config.trust_domain, "example.org");
    assert_true(config.needed[HSM_EC_P256]);
    assert_false(config.needed[HSM_RSA_2048]);
    refused(DATA, "--trust-domain");
}

static void plugin_data_is_found_in_the_configuration_of_a_server(void **state)
{
    (void)state;
    accepted(SERVER "}\nplugins { KeyManager \"p\" { plugin_cmd = \"/x/spire-hsm\"\n"
                    "plugin_data {" DATA "} } }");
    accepted("agent { trust_domain = \"example.org\" }\n"
             "plugins { KeyManager \"p\" { plugin_cmd = \"/x/renamed\"\n plugin_data {" DATA
             "} } }");
}

#define PLUGIN                                                                            \
    "{\"plugin_cmd\": \"/x/spire-hsm\", \"plugin_data\": {\"module\": \"m\", \"token\": " \
    "\"pkcs11:token=t\", \"key_identifier_value\": \"x\"}}"
#define JSON(plugins) "{\"server\": {\"trust_domain\": \"example.org\"}, \"plugins\": " plugins "}"

/* spire-server validate (1.14.5) finds the plugin in all of these. */
static void the_configuration_may_be_json(void **state)
{
    static const char *const texts[] = {
        JSON("{\"KeyManager\": [{\"pkcs11\": " PLUGIN "}]}"),
        JSON("{\"DataStore\": [{\"sql\": {\"plugin_data\": {\"ro\": [true, false]}}}],"
             " \"KeyManager\": {\"pkcs11\": " PLUGIN "}}"),
        JSON("[{\"DataStore\": {\"sql\": {}}}, {\"KeyManager\": {\"pkcs11\": " PLUGIN "}}]"),
        JSON("{\"KeyManager\": [{\"pkcs11\": [" PLUGIN "]}]}"),
        JSON("{\"KeyManager\": [{\"disk\": {\"plugin_data\": {\"keys_path\": \"/k\"}}},"
             " {\"pkcs11\": " PLUGIN "}]}"),
        "{\"server\": [{\"trust_domain\": \"example.org\"}],"
        " \"plugins\": {\"KeyManager\": [{\"pkcs11\": {\"plugin_data\": [{\"module\": \"m\","
        " \"token\": \"pkcs11:token=t\", \"key_identifier_value\": \"x\"}]}}]}}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        accepted(texts[i]);
    refused(JSON("{\"KeyManager\": [{\"a\": " PLUGIN ", \"b\": " PLUGIN "}]}"),
            "several KeyManager blocks");
    refused(JSON("{\"KeyManager\": [1, \"x\", {}]}"), "no KeyManager");
    refused(JSON("[[1]]"), "line 1: ");
    refused(JSON("[{}, 1]"), "no KeyManager");
}

static void ours_is_taken_among_several(void **state)
{
    (void)state;
    accepted(SERVER "}\nplugins {\n"
                    "KeyManager \"disk\" { plugin_data { keys_path = \"/k\" } }\n"
                    "KeyManager \"p\" { plugin_cmd = \"/x/spire-hsm\"\n plugin_data {" DATA "} }\n"
                    "KeyManager \"more\" { plugin_data { keys_path = \"/k\" } }\n}");
    refused(SERVER "}\nplugins {\n"
                   "KeyManager \"a\" { plugin_cmd = \"/x/spire-hsm\"\n plugin_data {" DATA "} }\n"
                   "KeyManager \"b\" { plugin_cmd = \"/x/spire-hsm\"\n plugin_data {" DATA "} }\n}",
            "several KeyManager blocks");
    refused(SERVER "}\nplugins {\nKeyManager \"a\" { plugin_data {" DATA "} }\n"
                   "KeyManager \"b\" { plugin_data {" DATA "} }\n}",
            "several KeyManager blocks");
    refused(SERVER "}\nplugins {\nNotifier \"a\" { plugin_data { path = \"/p\" } }\n}",
            "no KeyManager");
}

static void what_is_not_enabled_comes_second(void **state)
{
    (void)state;
    accepted(SERVER "}\nplugins {\n"
                    "KeyManager \"a\" { plugin_cmd = \"/x/spire-hsm\"\n enabled = false\n"
                    " plugin_data { module = \"old\" } }\n"
                    "KeyManager \"b\" { plugin_cmd = \"/x/spire-hsm\"\n enabled = true\n"
                    " plugin_data {" DATA "} }\n}");
    accepted(SERVER "}\nplugins {\nKeyManager \"a\" { plugin_data {" DATA "} }\n"
                    "KeyManager \"b\" { enabled = false\n plugin_data { keys_path = \"/k\" } }\n}");
    accepted(SERVER "}\nplugins {\nKeyManager \"disk\" { plugin_data { keys_path = \"/k\" } }\n"
                    "KeyManager \"p\" { plugin_cmd = \"/x/spire-hsm\"\n enabled = false\n"
                    " plugin_data {" DATA "} }\n}");
}

static void plugin_data_file_is_followed(void **state)
{
    char text[512];

    (void)state;
    write_file(data_path, DATA);
    (void)snprintf(text, sizeof text,
                   SERVER "}\nplugins { KeyManager \"p\" { plugin_data_file = \"%s\" } }",
                   data_path);
    accepted(text);
    (void)snprintf(text, sizeof text,
                   SERVER "}\nplugins { KeyManager \"p\" { plugin_data_file = \"%s-not\" } }",
                   data_path);
    refused(text, "plugin_data_file");
    (void)snprintf(text, sizeof text,
                   SERVER "}\nplugins { KeyManager \"p\" { plugin_data {}\n plugin_data_file = "
                          "\"%s\" } }",
                   data_path);
    refused(text, "only one of");
}

static void the_key_types_a_server_needs_are_known(void **state)
{
    (void)state;
    accepted(SERVER "ca_key_type = \"ec-p384\"\n jwt_key_type = \"rsa-2048\" }\n"
                    "plugins { KeyManager \"p\" { plugin_data {" DATA "} } }");
    assert_true(config.needed[HSM_EC_P384] && config.needed[HSM_RSA_2048]);
    assert_false(config.needed[HSM_EC_P256] || config.needed[HSM_RSA_4096]);
    accepted(SERVER "ca_key_type = \"rsa-4096\" }\n"
                    "plugins { KeyManager \"p\" { plugin_data {" DATA "} } }");
    assert_true(config.needed[HSM_RSA_4096]);
    assert_false(config.needed[HSM_EC_P256]);
    refused(SERVER "ca_key_type = \"ec-p512\" }\n"
                   "plugins { KeyManager \"p\" { plugin_data {" DATA "} } }",
            "ca_key_type \"ec-p512\" is no key type");
    refused(SERVER "jwt_key_type = \"rsa\" }\n"
                   "plugins { KeyManager \"p\" { plugin_data {" DATA "} } }",
            "jwt_key_type \"rsa\" is no key type");
}

static void variables_are_replaced_where_that_is_asked_for(void **state)
{
    struct command_options options = {.expand_env = true, .trust_domain = "example.org"};
    static const char text[] = "module = \"m\"\ntoken = \"pkcs11:token=${T_OKEN}\"\n"
                               "key_identifier_value = \"x\"\n";

    (void)state;
    assert_int_equal(setenv("T_OKEN", "t", 1), 0);
    assert_int_equal(read_text(text, options), 0);
    assert_string_equal(config.config.keymanager.place.token, "pkcs11:token=t");
    refused(text, "--expand-env");
}

/* As Go's os.Expand has it, which is what -expandEnv calls. */
static void variables_are_replaced_as_spire_does_it(void **state)
{
    static const struct {
        const char *text;
        const char *expanded;
        unsigned unset;
    } rows[] = {
        {"plain", "plain", 0}, {"$VAR.", "value.", 0}, {"${VAR}s", "values", 0},
        {"$VARs", "", 1},      {"${NOT}x", "x", 1},    {"$$", "$", 0},
        {"100$", "100$", 0},   {"$ x", "$ x", 0},      {"${}x", "x", 0},
        {"${VAR", "VAR", 0},   {"$1x", "x", 1},        {"$-VAR", "VAR", 1},
    };

    (void)state;
    assert_int_equal(setenv("VAR", "value", 1), 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        unsigned unset = 0;
        char *expanded = command_expand(rows[i].text, &unset);

        assert_string_equal(expanded, rows[i].expanded);
        assert_int_equal(unset, rows[i].unset);
        free(expanded);
    }
}

static void mistakes_do_not_repeat_a_pin(void **state)
{
    (void)state;
    refused(SERVER "}\nplugins { KeyManager \"p\" { plugin_data { " DATA
                   "pin = \"secret\"\npin_file = \"secret\"\n} } }",
            "plugin_data is not valid");
    assert_null(strstr(fault.message, "secret"));
}

static void what_is_not_about_us_is_passed_over_if_it_can_be_read(void **state)
{
    (void)state;
    accepted(SERVER "}\ntelemetry {\n DogStatsd = [ { address = \"localhost:8125\" } ]\n"
                    " M3 = [\n  { address = \"localhost:9000\" env = \"prod\" },\n ] }\n"
                    "plugins { KeyManager \"p\" { plugin_data {" DATA "} } }");
    refused(SERVER "}\nplugins { KeyManager \"p\" { plugin_data {" DATA
                   "max_sessions = [ { a = 1 } ]\n} } }",
            "plugin_data is not valid");
    refused("x = [ [ 1 ] ]\nplugins { KeyManager \"p\" { plugin_data {" DATA "} } }",
            "line 1: expected a string, a number, true or false; if that line is not about");
}

static void a_file_that_is_none_is_named(void **state)
{
    struct command_options options = {.config = "/"};

    (void)state;
    assert_int_not_equal(command_read_config(&options, &config, &fault), 0);
    assert_non_null(strstr(fault.message, "not a regular file"));
    options.config = NULL;
    assert_int_not_equal(command_read_config(&options, &config, &fault), 0);
    assert_non_null(strstr(fault.message, "--config"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plugin_data_needs_a_trust_domain),
        cmocka_unit_test(plugin_data_is_found_in_the_configuration_of_a_server),
        cmocka_unit_test(the_configuration_may_be_json),
        cmocka_unit_test(ours_is_taken_among_several),
        cmocka_unit_test(what_is_not_enabled_comes_second),
        cmocka_unit_test(plugin_data_file_is_followed),
        cmocka_unit_test(the_key_types_a_server_needs_are_known),
        cmocka_unit_test(variables_are_replaced_where_that_is_asked_for),
        cmocka_unit_test(variables_are_replaced_as_spire_does_it),
        cmocka_unit_test(mistakes_do_not_repeat_a_pin),
        cmocka_unit_test(what_is_not_about_us_is_passed_over_if_it_can_be_read),
        cmocka_unit_test(a_file_that_is_none_is_named),
    };

    return cmocka_run_group_tests(tests, make_files, remove_files);
}
