/* Which of the bundles that are delivered get into the file, on a clock of the test's own. */
#include "plugin/bundle/publisher.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/authority.h"
#include "tests/support/clock_ahead.h"
#include "tests/support/published.h"

/* ---- scenes ---- */

static char directory[64];
static char path[96];
static struct publisher publisher;
static struct authority certificate;
static struct authority key;

/* One that has published nothing yet, as in a new process. */
static struct publisher publisher_of(enum bundle_format format)
{
    return (struct publisher){
        .settings = {.trust_domain = "example.org", .path = path, .format = format, .mode = 0644}};
}

static int open_scene(void **state)
{
    (void)state;
    (void)snprintf(directory, sizeof directory, "/tmp/publisher-XXXXXX");
    if (!mkdtemp(directory))
        return -1;
    (void)snprintf(path, sizeof path, "%s/bundle.json", directory);
    publisher = publisher_of(BUNDLE_SPIFFE);
    if (certificate.length == 0) {
        certificate = authority_new_certificate("P-256", 1);
        key = authority_new_pkix("P-256");
    }
    clock_ahead = 0;
    return 0;
}

static int close_scene(void **state)
{
    char lock[96];

    (void)state;
    (void)snprintf(lock, sizeof lock, "%s/.bundle.json.lock", directory);
    (void)unlink(lock);
    (void)unlink(path);
    (void)rmdir(path);
    return rmdir(directory);
}

/* ---- bundles ---- */

enum contents { WHOLE, WITHOUT_JWT, WITHOUT_ANY };

static int try_to_deliver(uint64_t sequence, enum contents contents,
                          struct publisher_report *report, struct fault *fault)
{
    const struct bundle_bytes x509 = {certificate.bytes, certificate.length};
    const struct bundle_jwt_key jwt = {{key.bytes, key.length}, "kid"};
    const struct bundle bundle = {
        .trust_domain = "example.org",
        .x509 = &x509,
        .x509_count = contents != WITHOUT_ANY,
        .jwt = &jwt,
        .jwt_count = contents == WHOLE,
        .refresh_hint = 300,
        .sequence = sequence,
    };

    return publisher_deliver(&publisher, &bundle, report, fault);
}

static struct publisher_report deliver_without(uint64_t sequence, enum contents contents)
{
    struct publisher_report report;
    struct fault fault;

    if (try_to_deliver(sequence, contents, &report, &fault) != 0)
        fail_msg("not delivered: %s", fault.message);
    assert_int_equal(report.sequence, sequence);
    return report;
}

static struct publisher_report deliver(uint64_t sequence)
{
    return deliver_without(sequence, WHOLE);
}

static void assert_refused(uint64_t sequence, enum contents contents, enum fault_code code,
                           const char *why)
{
    struct publisher_report report;
    struct fault fault;

    assert_int_equal(try_to_deliver(sequence, contents, &report, &fault), -1);
    assert_int_equal(fault.code, code);
    if (!strstr(fault.message, why))
        fail_msg("\"%s\" does not say \"%s\"", fault.message, why);
}

static void assert_written(uint64_t sequence)
{
    const struct publisher_report report = deliver(sequence);

    assert_int_equal(report.outcome, PUBLISH_WRITTEN);
    assert_false(report.restored);
}

static void assert_kept(uint64_t sequence, uint64_t file)
{
    const struct publisher_report report = deliver(sequence);

    assert_int_equal(report.outcome, PUBLISH_KEPT);
    assert_int_equal(report.file, file);
}

static void assert_restored(uint64_t sequence, uint64_t file)
{
    const struct publisher_report report = deliver(sequence);

    assert_int_equal(report.outcome, PUBLISH_WRITTEN);
    assert_true(report.restored);
    assert_int_equal(report.file, file);
}

/* ---- tests ---- */

static void only_bundles_of_its_trust_domain_are_accepted(void **state)
{
    struct fault fault;

    (void)state;
    assert_int_equal(publisher_accept(&publisher, "example.org", NULL), 0);
    assert_int_equal(publisher_accept(&publisher, "other.org", &fault), -1);
    assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
    assert_string_equal(fault.message, "the bundle is for trust domain \"other.org\", but "
                                       "the configuration for \"example.org\"");
}

static void what_is_written_is_reported(void **state)
{
    struct publisher_report report;
    struct stat file;

    (void)state;
    report = deliver(5);
    assert_int_equal(report.outcome, PUBLISH_WRITTEN);
    assert_int_equal(report.summary.x509, 1);
    assert_int_equal(report.summary.jwt, 1);
    assert_false(report.without_jwt);
    assert_int_equal(stat(path, &file), 0);
    assert_int_equal(report.length, file.st_size);
    assert_published_sequence(path, 5);
}

static void an_unchanged_bundle_is_not_written(void **state)
{
    struct stat before;
    struct stat after;

    (void)state;
    assert_written(5);
    assert_int_equal(stat(path, &before), 0);
    assert_int_equal(deliver(5).outcome, PUBLISH_UNCHANGED);
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
}

static void a_deleted_or_damaged_file_is_repaired(void **state)
{
    (void)state;
    assert_written(5);
    assert_int_equal(unlink(path), 0);
    assert_written(5);
    assert_published_sequence(path, 5);
    assert_int_equal(truncate(path, 100), 0);
    assert_written(4);
    assert_published_sequence(path, 4);
}

static void no_authorities_leave_the_file_alone(void **state)
{
    (void)state;
    assert_written(5);
    assert_refused(6, WITHOUT_ANY, FAULT_INVALID_ARGUMENT, "the bundle has no authorities");
    assert_published_sequence(path, 5);
}

static void no_jwt_authorities_are_published_and_reported(void **state)
{
    struct publisher_report report;

    (void)state;
    report = deliver_without(6, WITHOUT_JWT);
    assert_int_equal(report.outcome, PUBLISH_WRITTEN);
    assert_true(report.without_jwt);
    assert_published_sequence(path, 6);
    assert_false(deliver_without(6, WITHOUT_JWT).without_jwt);
    assert_int_equal(unlink(path), 0);
    publisher = publisher_of(BUNDLE_PEM);
    assert_false(deliver_without(6, WITHOUT_JWT).without_jwt);
}

static void a_late_bundle_is_held_back(void **state)
{
    (void)state;
    assert_written(8);
    assert_kept(7, 8);
    assert_published_sequence(path, 8);
    pass(30);
    assert_int_equal(deliver(8).outcome, PUBLISH_UNCHANGED);
    pass(30);
    assert_kept(7, 8);
    assert_published_sequence(path, 8);
}

static void a_restored_datastore_gets_its_way(void **state)
{
    (void)state;
    assert_written(100);
    assert_kept(7, 100);
    pass(24);
    assert_kept(7, 100);
    assert_published_sequence(path, 100);
    pass(1);
    assert_restored(7, 100);
    assert_published_sequence(path, 7);
    assert_kept(6, 7);
    assert_published_sequence(path, 7);
}

/* A directory in the target's place is what fails here. */
static void a_delivery_that_failed_is_made_again(void **state)
{
    (void)state;
    assert_int_equal(mkdir(path, 0755), 0);
    assert_refused(5, WHOLE, FAULT_FAILED_PRECONDITION, "is a directory");
    assert_int_equal(rmdir(path), 0);
    assert_written(5);
    assert_published_sequence(path, 5);
}

/* The file on disk counts, whoever wrote it and whenever. */
static void a_new_process_respects_the_newer_file(void **state)
{
    (void)state;
    assert_written(8);
    publisher = publisher_of(BUNDLE_SPIFFE);
    assert_kept(7, 8);
    assert_published_sequence(path, 8);
}

static void formats_without_a_number_remember_the_last_one(void **state)
{
    struct publisher_report report;

    (void)state;
    publisher = publisher_of(BUNDLE_JWKS);
    assert_written(8);
    report = deliver_without(7, WITHOUT_JWT);
    assert_int_equal(report.outcome, PUBLISH_KEPT);
    assert_int_equal(report.file, 8);
    assert_int_equal(deliver_without(9, WITHOUT_JWT).outcome, PUBLISH_WRITTEN);
}

static const enum bundle_format without_number[] = {BUNDLE_JWKS, BUNDLE_PEM};

/* Another process's, or this one's before a restart: PEM knows no JWT keys, but certificates. */
static struct publisher_report deliver_other(uint64_t sequence)
{
    const struct authority before = certificate;
    struct publisher_report report;

    certificate = authority_new_certificate("P-256", 2);
    report = deliver(sequence);
    certificate = before;
    return report;
}

static void a_new_process_respects_a_newer_file_without_a_number(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct publisher_report late;

        publisher = publisher_of(without_number[i]);
        assert_int_equal(deliver(8).outcome, PUBLISH_WRITTEN);
        publisher = publisher_of(without_number[i]);
        late = deliver_other(7);
        assert_int_equal(late.outcome, PUBLISH_KEPT);
        assert_int_equal(late.file, 8);
        assert_int_equal(deliver(8).outcome, PUBLISH_UNCHANGED);
        assert_int_equal(deliver_other(9).outcome, PUBLISH_WRITTEN);
        assert_int_equal(unlink(path), 0);
    }
}

static void a_restored_datastore_gets_its_way_in_every_process(void **state)
{
    struct publisher other;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        publisher = publisher_of(without_number[i]);
        assert_int_equal(deliver(100).outcome, PUBLISH_WRITTEN);
        other = publisher;
        publisher = publisher_of(without_number[i]);
        assert_int_equal(deliver_other(7).outcome, PUBLISH_KEPT);
        pass(25);
        assert_true(deliver_other(7).restored);
        publisher = other; /* which has written 100 itself */
        assert_int_equal(deliver(8).outcome, PUBLISH_WRITTEN);
        assert_int_equal(unlink(path), 0);
    }
}

/* Somebody tidy takes the memory away: then each process goes by its own. */
static void without_the_lock_file_the_process_remembers(void **state)
{
    char lock[96];

    (void)state;
    publisher = publisher_of(BUNDLE_JWKS);
    assert_written(8);
    (void)snprintf(lock, sizeof lock, "%s/.bundle.json.lock", directory);
    assert_int_equal(unlink(lock), 0);
    assert_int_equal(deliver_other(7).outcome, PUBLISH_KEPT);
}

/* The number counts that was delivered last, even where nothing had to be written. */
static void an_unchanged_file_counts_as_published(void **state)
{
    (void)state;
    publisher = publisher_of(BUNDLE_JWKS);
    assert_written(8);
    assert_int_equal(deliver(9).outcome, PUBLISH_UNCHANGED);
    assert_int_equal(deliver_without(8, WITHOUT_JWT).outcome, PUBLISH_KEPT);
}

static void a_configured_refresh_hint_replaces_the_bundles(void **state)
{
    char text[8192];

    (void)state;
    assert_written(5);
    (void)read_published(path, text, sizeof text);
    assert_non_null(strstr(text, "\"spiffe_refresh_hint\": 300\n"));
    publisher.settings.refresh_hint = 90;
    assert_written(5);
    (void)read_published(path, text, sizeof text);
    assert_non_null(strstr(text, "\"spiffe_refresh_hint\": 90\n"));
}

/* ---- OIDC's folder ---- */

static char keys_path[128];
static char document_path[160];

static int open_folder(void **state)
{
    if (open_scene(state) != 0)
        return -1;
    (void)snprintf(keys_path, sizeof keys_path, "%s/keys", path);
    (void)snprintf(document_path, sizeof document_path, "%s/.well-known/openid-configuration",
                   path);
    publisher = publisher_of(BUNDLE_OIDC);
    publisher.settings.issuer = "https://oidc.example.org";
    return mkdir(path, 0755);
}

static int close_folder(void **state)
{
    static const char *const names[] = {".well-known/openid-configuration",
                                        ".well-known/.openid-configuration.lock", "keys",
                                        ".keys.lock"};
    char at[160];

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        (void)snprintf(at, sizeof at, "%s/%s", path, names[i]);
        (void)unlink(at);
    }
    (void)snprintf(at, sizeof at, "%s/.well-known", path);
    (void)rmdir(at);
    return close_scene(state);
}

static void assert_has(const char *file, const char *text)
{
    char content[8192];

    (void)read_published(file, content, sizeof content);
    if (!strstr(content, text))
        fail_msg("%s has no %s: %s", file, text, content);
}

static unsigned mode_of(const char *file)
{
    struct stat status;

    if (stat(file, &status) != 0)
        fail_msg("%s is not there", file);
    return status.st_mode & 07777;
}

static void oidc_makes_the_keys_and_what_names_them(void **state)
{
    struct publisher_report report;
    struct fault fault;
    const mode_t mask = umask(077);
    char folder[160];

    (void)state;
    publisher.settings.mode = 0640;
    assert_int_equal(publisher_check(&publisher.settings, &fault), 0);
    report = deliver(5);
    (void)umask(mask);
    assert_int_equal(report.outcome, PUBLISH_WRITTEN);
    assert_true(report.document);
    assert_int_equal(report.summary.jwt, 1);
    assert_false(report.without_jwt);
    assert_has(keys_path, "\"kid\": \"kid\"");
    assert_has(keys_path, "\"alg\": \"ES256\"");
    assert_has(document_path, "\"jwks_uri\": \"https://oidc.example.org/keys\"");
    assert_int_equal(mode_of(keys_path), 0640);
    assert_int_equal(mode_of(document_path), 0640);
    (void)snprintf(folder, sizeof folder, "%s/.well-known", path);
    assert_int_equal(mode_of(folder), 0750);
    assert_int_equal(publisher_check(&publisher.settings, &fault), 0);
    report = deliver(6);
    assert_int_equal(report.outcome, PUBLISH_UNCHANGED);
    assert_false(report.document);
}

static void oidc_repairs_either_file(void **state)
{
    struct publisher_report report;
    char folder[160];

    (void)state;
    assert_written(5);
    assert_int_equal(unlink(document_path), 0);
    report = deliver(5);
    assert_true(report.document);
    assert_int_equal(report.outcome, PUBLISH_UNCHANGED);
    assert_int_equal(truncate(keys_path, 20), 0);
    assert_int_equal(truncate(document_path, 20), 0);
    (void)snprintf(folder, sizeof folder, "%s/.well-known", path);
    assert_int_equal(chmod(folder, 0700), 0);
    assert_true(deliver(5).document);
    assert_has(keys_path, "\"kid\"");
    assert_has(document_path, "ES384");
    assert_int_equal(mode_of(folder), 0755);
}

/* A directory in the place of the keys is what fails here. */
static void oidc_names_no_keys_that_are_not_there(void **state)
{
    struct publisher_report report;

    (void)state;
    assert_int_equal(mkdir(keys_path, 0755), 0);
    assert_refused(5, WHOLE, FAULT_FAILED_PRECONDITION, "is a directory");
    assert_int_equal(access(document_path, F_OK), -1);
    assert_int_equal(rmdir(keys_path), 0);
    report = deliver(5);
    assert_true(report.document);
}

static void oidc_never_has_an_empty_key_set(void **state)
{
    (void)state;
    assert_refused(5, WITHOUT_JWT, FAULT_INVALID_ARGUMENT, "no JWT authorities");
    assert_int_equal(access(keys_path, F_OK), -1);
    assert_int_equal(access(document_path, F_OK), -1);
    assert_written(5);
    assert_refused(6, WITHOUT_JWT, FAULT_INVALID_ARGUMENT, "no JWT authorities");
    assert_has(keys_path, "\"kid\"");
}

static void oidc_wants_a_folder(void **state)
{
    struct fault fault;

    (void)state;
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(publisher_check(&publisher.settings, &fault), -1);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    assert_non_null(strstr(fault.message, "cannot open the directory"));
    assert_refused(5, WHOLE, FAULT_FAILED_PRECONDITION, "cannot open the directory");
}

#define FOLDER(test) cmocka_unit_test_setup_teardown(test, open_folder, close_folder)
#define SCENE(test) cmocka_unit_test_setup_teardown(test, open_scene, close_scene)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCENE(only_bundles_of_its_trust_domain_are_accepted),
        SCENE(what_is_written_is_reported),
        SCENE(an_unchanged_bundle_is_not_written),
        SCENE(a_deleted_or_damaged_file_is_repaired),
        SCENE(no_authorities_leave_the_file_alone),
        SCENE(no_jwt_authorities_are_published_and_reported),
        SCENE(a_late_bundle_is_held_back),
        SCENE(a_restored_datastore_gets_its_way),
        SCENE(a_delivery_that_failed_is_made_again),
        SCENE(a_new_process_respects_the_newer_file),
        SCENE(formats_without_a_number_remember_the_last_one),
        SCENE(a_new_process_respects_a_newer_file_without_a_number),
        SCENE(a_restored_datastore_gets_its_way_in_every_process),
        SCENE(without_the_lock_file_the_process_remembers),
        SCENE(an_unchanged_file_counts_as_published),
        SCENE(a_configured_refresh_hint_replaces_the_bundles),
        FOLDER(oidc_makes_the_keys_and_what_names_them),
        FOLDER(oidc_repairs_either_file),
        FOLDER(oidc_names_no_keys_that_are_not_there),
        FOLDER(oidc_never_has_an_empty_key_set),
        FOLDER(oidc_wants_a_folder),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
