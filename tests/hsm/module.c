/* Which file is loaded as a module, which is not, and what is said then. */
#include "hsm/module.h"

#include "tests/support/hsm_room.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void module_that_is_none_is_refused_by_name(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    (void)snprintf(settings.module, sizeof settings.module, "%s/none.so", softhsm.folder);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "module: ");
    softhsm_write(settings.module, "not a library", 0644);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "is not a PKCS#11 module");
    (void)snprintf(settings.module, sizeof settings.module, "%s", softhsm.folder);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "is not a regular file");
    (void)snprintf(settings.module, sizeof settings.module, "relative/path.so");
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "neither an absolute path");
    (void)snprintf(settings.module, sizeof settings.module, "no-such-module.so");
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "/no-such-module.so");
    settings.module[0] = '\0';
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "no module is named");
}

static void library_that_is_no_pkcs11_module_is_refused(void **state)
{
    static const char *const libraries[] = {"/lib/x86_64-linux-gnu/libz.so.1",
                                            "/lib/x86_64-linux-gnu/libm.so.6"};
    struct hsm_settings settings = room_good();

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        if (access(libraries[i], R_OK) != 0)
            continue;
        (void)snprintf(settings.module, sizeof settings.module, "%s", libraries[i]);
        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "is not a PKCS#11 module");
    }
}

static void module_that_others_may_write_is_not_loaded(void **state)
{
    struct hsm_settings settings = room_good();
    const char *const copy[] = {"cp", softhsm_library(), settings.module, NULL};

    (void)state;
    (void)snprintf(settings.module, sizeof settings.module, "%s/copy.so", softhsm.folder);
    softhsm_run(copy);
    assert_int_equal(chmod(settings.module, 0757), 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "can be written by");
    assert_int_equal(chmod(settings.module, 0775), 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "can be written by");
    assert_int_equal(chmod(settings.module, 0755), 0);
    room_opens(&settings);
}

/* The folder is what decides which file has the module's name. */
static void module_in_a_folder_that_others_may_write_is_not_loaded(void **state)
{
    struct hsm_settings settings = room_good();
    const char *const copy[] = {"cp", softhsm_library(), settings.module, NULL};
    char folder[96];
    char inner[128];

    (void)state;
    (void)snprintf(folder, sizeof folder, "%s/lib", softhsm.folder);
    (void)snprintf(inner, sizeof inner, "%s/softhsm", folder);
    assert_int_equal(mkdir(folder, 0755), 0);
    assert_int_equal(mkdir(inner, 0755), 0);
    (void)snprintf(settings.module, sizeof settings.module, "%s/copy.so", inner);
    softhsm_run(copy);
    for (unsigned i = 0; i < 2; i++) {
        const char *bad = i == 0 ? inner : folder;

        assert_int_equal(chmod(bad, 0775), 0);
        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "can be written by its group");
        assert_int_equal(chmod(bad, 0757), 0);
        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "another library");
        assert_int_equal(chmod(bad, 01777), 0);
        room_opens(&settings); /* sticky, as /tmp is */
        assert_int_equal(chmod(bad, 0755), 0);
    }
}

/* A link leads there all the same, and is no way around the checks. */
static void module_is_checked_where_its_link_leads(void **state)
{
    struct hsm_settings settings = room_good();
    char folder[96];
    char copied[128];
    const char *const copy[] = {"cp", softhsm_library(), copied, NULL};

    (void)state;
    (void)snprintf(folder, sizeof folder, "%s/lib", softhsm.folder);
    (void)snprintf(copied, sizeof copied, "%s/copy.so", folder);
    (void)snprintf(settings.module, sizeof settings.module, "%s/link.so", softhsm.folder);
    assert_int_equal(mkdir(folder, 0755), 0);
    softhsm_run(copy);
    assert_int_equal(symlink(copied, settings.module), 0);
    room_opens(&settings);
    assert_int_equal(chmod(folder, 0777), 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "another library");
    assert_int_equal(chmod(folder, 0755), 0);
    assert_int_equal(chmod(copied, 0666), 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "can be written by");
}

/* Its daemon is not there, but the module is found and loaded. */
static void bare_file_name_is_looked_for_in_p11_kits_folder(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    (void)snprintf(settings.module, sizeof settings.module, "p11-kit-client.so");
    if (access("/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so", R_OK) != 0)
        skip();
    assert_int_equal(setenv("P11_KIT_SERVER_ADDRESS", "unix:path=/nonexistent/socket", 1), 0);
    (void)room_refused(&settings, FAULT_UNAVAILABLE, "tokens seen: none");
}

/* It would load every module of the host into the process that has the PIN. */
static void all_modules_at_once_are_no_module(void **state)
{
    /* Debian has it beside p11-kit's folder of modules, other systems have it elsewhere. */
    static const char *const names[] = {"/usr/lib/x86_64-linux-gnu/p11-kit-proxy.so",
                                        "/nonexistent/p11-kit-proxy.so", "p11-kit-proxy.so"};
    struct hsm_settings settings = room_good();
    char link[96];

    (void)state;
    (void)snprintf(settings.module, sizeof settings.module,
                   "/usr/lib/x86_64-linux-gnu/libp11-kit.so.0");
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "name the token's own library");
    (void)snprintf(link, sizeof link, "%s/proxy.so", softhsm.folder);
    assert_int_equal(symlink(settings.module, link), 0);
    (void)snprintf(settings.module, sizeof settings.module, "%s", link);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "p11-kit list-modules");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        (void)snprintf(settings.module, sizeof settings.module, "%s", names[i]);
        (void)room_refused(&settings, FAULT_FAILED_PRECONDITION,
                           "p11-kit-proxy.so is p11-kit's proxy");
    }
}

/* A daemon or a directory that is not there yet is waited for: this must say so. */
static void module_that_cannot_start_may_do_so_later(void **state)
{
    struct hsm_settings settings = room_good();
    char *conf = strdup(getenv("SOFTHSM2_CONF"));
    char *real = realpath(settings.module, NULL);
    char words[HSM_PATH_MAX + 64];

    (void)state;
    assert_int_equal(setenv("SOFTHSM2_CONF", "/nonexistent/softhsm2.conf", 1), 0);
    (void)snprintf(words, sizeof words, "module: %s: C_Initialize: CKR_GENERAL_ERROR", real);
    (void)room_refused(&settings, FAULT_UNAVAILABLE, words);
    assert_int_equal(setenv("SOFTHSM2_CONF", conf, 1), 0);
    free(conf);
    free(real);
    room_opens(&settings);
}

static void texts_of_a_token_are_made_fit_to_be_shown(void **state)
{
    static const struct {
        const char *padded;
        const char *text;
    } rows[] = {
        {"spire   ", "spire"},
        {"  two words\n  ", "  two words?"},
        {"", ""},
        {"        ", ""},
        {"Schl\xc3\xbcssel \xf0\x9f\x94\x91 ", "Schl\xc3\xbcssel \xf0\x9f\x94\x91"},
        {"cut off \xe2\x82", "cut off ??"},
        {"\xc0\x80 overlong", "?? overlong"},
        {"\xed\xa0\x80 surrogate", "??? surrogate"},
        {"\xf5\x80\x80\x80 beyond", "???? beyond"},
        {"\x7f\xff", "??"},
    };
    char text[64];

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        module_text((const uint8_t *)rows[i].padded, strlen(rows[i].padded), text);
        assert_string_equal(text, rows[i].text);
    }
    module_text((const uint8_t *)"a\0b\0\0", 5, text);
    assert_string_equal(text, "a?b");
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, room_setup, room_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(module_that_is_none_is_refused_by_name),
        TEST(library_that_is_no_pkcs11_module_is_refused),
        TEST(module_that_others_may_write_is_not_loaded),
        TEST(module_in_a_folder_that_others_may_write_is_not_loaded),
        TEST(module_is_checked_where_its_link_leads),
        TEST(bare_file_name_is_looked_for_in_p11_kits_folder),
        TEST(all_modules_at_once_are_no_module),
        TEST(module_that_cannot_start_may_do_so_later),
        cmocka_unit_test(texts_of_a_token_are_made_fit_to_be_shown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
