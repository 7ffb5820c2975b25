/* What SPIRE and its log are told of publishing: the two services without gRPC, on a clock
 * of the test's own. */
#include "plugin/service/svc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "plugin/bundle/bundle.h"
#include "plugin/report/log.h"
#include "plugin/rpc/rpc.h"
#include "plugin/service/lane.h"
#include "proto/bundle.pb-c.h"
#include "tests/support/authority.h"
#include "tests/support/clock_ahead.h"
#include "tests/support/published.h"

/* ---- the rooms around it ---- */

struct rpc_call {
    uint8_t *bytes; /* gone with the answer */
    size_t length;
    int answers;
    bool ok;
    struct fault fault;
};

static char logged[4096];
static enum lane_outcome lane_comes_to;

static void end_call(struct rpc_call *call, bool ok)
{
    memset(call->bytes, 0xff, call->length);
    call->ok = ok;
    call->answers++;
}

void rpc_reply(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    (void)bytes;
    assert_int_equal(length, 0);
    end_call(call, true);
}

void rpc_fail(struct rpc_call *call, const struct fault *fault)
{
    call->fault = *fault;
    end_call(call, false);
}

/* An answer that comes while the job runs comes here before it runs: nothing of the call is
 * left to it. */
static void answer_early(const char *what, const struct lane_kind *kind, void *context)
{
    struct fault fault;

    if (lane_comes_to == LANE_REFUSED)
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "%s waited too long", what);
    else if (lane_comes_to == LANE_STUCK)
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "it has not ended after %d s",
                        (int)(kind->run_limit / CLOCK_SECOND));
    else
        (void)fault_set(&fault, FAULT_UNAVAILABLE, "the plugin is stopping");
    kind->answer(context, lane_comes_to, &fault);
}

static void run_job(const struct lane_kind *kind, void *context)
{
    struct fault fault;
    const struct fault *result = kind->run(context, &fault) == 0 ? NULL : &fault;

    if (lane_comes_to == LANE_RAN)
        kind->answer(context, LANE_RAN, result);
    else if (lane_comes_to == LANE_STUCK)
        kind->late(context, result);
}

void lane_submit(const char *what, const struct lane_kind *kind, void *context)
{
    assert_true(kind->queue_limit < 30 * CLOCK_SECOND);
    if (lane_comes_to != LANE_RAN)
        answer_early(what, kind, context);
    if (lane_comes_to != LANE_REFUSED)
        run_job(kind, context);
    kind->release(context);
}

static void note(enum log_level level, const char *message)
{
    static const char *const names[] = {"TRACE", "DEBUG", "INFO", "WARN", "ERROR"};
    size_t used = strlen(logged);

    (void)snprintf(logged + used, sizeof logged - used, "%s %s", names[level], message);
}

static void note_fields(va_list fields)
{
    const char *name;

    while ((name = va_arg(fields, const char *))) {
        size_t used = strlen(logged);

        (void)snprintf(logged + used, sizeof logged - used, " %s=%s", name,
                       va_arg(fields, const char *));
    }
    (void)strncat(logged, "\n", sizeof logged - strlen(logged) - 1);
}

void log_write(enum log_level level, const char *message, ...)
{
    va_list fields;

    note(level, message);
    va_start(fields, message);
    note_fields(fields);
    va_end(fields);
}

void log_fault(enum log_level level, const struct fault *fault, const char *message, ...)
{
    va_list fields;

    note(level, message);
    (void)strncat(logged, ": ", sizeof logged - strlen(logged) - 1);
    (void)strncat(logged, fault->message, sizeof logged - strlen(logged) - 1);
    va_start(fields, message);
    note_fields(fields);
    va_end(fields);
}

/* ---- scenes ---- */

static char directory[64];
static char path[96];
static struct config config;
static struct authority certificate;
static struct authority key;

static int open_scene(void **state)
{
    (void)state;
    (void)snprintf(directory, sizeof directory, "/tmp/svc-bundle-XXXXXX");
    if (!mkdtemp(directory))
        return -1;
    (void)snprintf(path, sizeof path, "%s/bundle.json", directory);
    config = (struct config){.kind = CONFIG_NOTIFIER, .trust_domain = "example.org"};
    config.bundle.mode = 0644;
    (void)snprintf(config.bundle.path, sizeof config.bundle.path, "%s", path);
    if (certificate.length == 0) {
        certificate = authority_new_certificate("P-256", 1);
        key = authority_new_pkix("P-256");
    }
    *logged = '\0';
    lane_comes_to = LANE_RAN;
    clock_ahead = 0;
    return bundle_configure(&config, NULL);
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

static void configure(void)
{
    struct fault fault;

    if (bundle_configure(&config, &fault) != 0)
        fail_msg("not configured: %s", fault.message);
}

static void assert_logged(const char *line)
{
    if (!strstr(logged, line))
        fail_msg("the log does not say \"%s\":\n%s", line, logged);
}

/* ---- calls ---- */

struct message {
    uint64_t sequence;
    const char *trust_domain; /* NULL = example.org */
    bool without_bundle;
    bool without_jwt;
    bool without_any;
};

enum door { PUBLISH, NOTIFY, NOTIFY_AND_ADVISE };

static size_t pack(enum door door, struct message what, uint8_t *bytes)
{
    Bundle__X509Certificate authority = BUNDLE__X509_CERTIFICATE__INIT;
    Bundle__X509Certificate *authorities[] = {&authority};
    Bundle__JWTKey jwt;
    Bundle__JWTKey *keys[] = {&jwt};
    Bundle__Bundle bundle;
    Bundle__PublishBundleRequest publish = BUNDLE__PUBLISH_BUNDLE_REQUEST__INIT;
    Bundle__BundleUpdated updated = BUNDLE__BUNDLE_UPDATED__INIT;
    Bundle__BundleLoaded loaded = BUNDLE__BUNDLE_LOADED__INIT;
    Bundle__NotifyRequest notify = BUNDLE__NOTIFY_REQUEST__INIT;
    Bundle__NotifyAndAdviseRequest advise = BUNDLE__NOTIFY_AND_ADVISE_REQUEST__INIT;
    char id[] = "kid";
    char trust_domain[64];

    bundle__jwtkey__init(&jwt);
    bundle__bundle__init(&bundle);
    (void)snprintf(trust_domain, sizeof trust_domain, "%s",
                   what.trust_domain ? what.trust_domain : "example.org");
    authority.asn1 = (ProtobufCBinaryData){certificate.length, certificate.bytes};
    jwt.public_key = (ProtobufCBinaryData){key.length, key.bytes};
    jwt.key_id = id;
    bundle.trust_domain = trust_domain;
    bundle.sequence_number = what.sequence;
    bundle.x509_authorities = authorities;
    bundle.n_x509_authorities = what.without_any ? 0 : 1;
    bundle.jwt_authorities = keys;
    bundle.n_jwt_authorities = what.without_any || what.without_jwt ? 0 : 1;
    publish.bundle = updated.bundle = loaded.bundle = what.without_bundle ? NULL : &bundle;
    notify.event_case = BUNDLE__NOTIFY_REQUEST__EVENT_BUNDLE_UPDATED;
    notify.bundle_updated = &updated;
    advise.event_case = BUNDLE__NOTIFY_AND_ADVISE_REQUEST__EVENT_BUNDLE_LOADED;
    advise.bundle_loaded = &loaded;
    if (door == PUBLISH)
        return bundle__publish_bundle_request__pack(&publish, bytes);
    if (door == NOTIFY)
        return bundle__notify_request__pack(&notify, bytes);
    return bundle__notify_and_advise_request__pack(&advise, bytes);
}

static void hand_in(enum door door, uint8_t *bytes, size_t length, struct rpc_call *call)
{
    static const struct rpc_method *const methods[] = {
        [PUBLISH] = &publisher_methods[0],
        [NOTIFY] = &notifier_methods[0],
        [NOTIFY_AND_ADVISE] = &notifier_methods[1],
    };

    *call = (struct rpc_call){.bytes = bytes, .length = length};
    *logged = '\0';
    methods[door]->handler(call, bytes, length);
    assert_int_equal(call->answers, 1);
}

static struct rpc_call deliver(enum door door, struct message what)
{
    uint8_t bytes[8192];
    struct rpc_call call;

    hand_in(door, bytes, pack(door, what, bytes), &call);
    return call;
}

static void assert_delivered(enum door door, uint64_t sequence)
{
    struct rpc_call call = deliver(door, (struct message){.sequence = sequence});

    if (!call.ok)
        fail_msg("answered %s", call.fault.message);
}

static void assert_refused(enum door door, struct message what, enum fault_code code,
                           const char *why)
{
    struct rpc_call call = deliver(door, what);

    assert_false(call.ok);
    assert_int_equal(call.fault.code, code);
    if (!strstr(call.fault.message, why))
        fail_msg("\"%s\" does not say \"%s\"", call.fault.message, why);
}

/* ---- tests ---- */

/* The first: before any configuration. */
static void without_configuration_all_is_refused(void **state)
{
    (void)state;
    for (enum door door = PUBLISH; door <= NOTIFY_AND_ADVISE; door++)
        assert_refused(door, (struct message){.sequence = 1}, FAULT_FAILED_PRECONDITION,
                       "not configured");
}

static void every_door_writes_the_file(void **state)
{
    (void)state;
    for (enum door door = PUBLISH; door <= NOTIFY_AND_ADVISE; door++) {
        char bytes[32];

        assert_delivered(door, 5 + door);
        assert_published_sequence(path, 5 + door);
        assert_logged("INFO bundle published path=");
        (void)snprintf(bytes, sizeof bytes, "sequence_number=%d", 5 + (int)door);
        assert_logged(bytes);
        assert_logged("x509_authorities=1 jwt_authorities=1 bytes=");
    }
}

static void an_unchanged_bundle_is_not_logged(void **state)
{
    (void)state;
    assert_delivered(PUBLISH, 5);
    assert_delivered(PUBLISH, 5);
    assert_string_equal(logged, "");
}

static void requests_that_make_no_sense_are_refused(void **state)
{
    struct rpc_call call;

    (void)state;
    for (enum door door = PUBLISH; door <= NOTIFY_AND_ADVISE; door++) {
        assert_refused(door, (struct message){.without_bundle = true}, FAULT_INVALID_ARGUMENT,
                       "missing bundle in request");
        assert_refused(door, (struct message){.trust_domain = "other.org"}, FAULT_INVALID_ARGUMENT,
                       "trust domain \"other.org\"");
        hand_in(door, (uint8_t[]){0x0a, 0xff}, 2, &call);
        assert_false(call.ok);
        assert_int_equal(call.fault.code, FAULT_INVALID_ARGUMENT);
    }
    assert_int_equal(access(path, F_OK), -1);
}

static void events_of_other_kinds_are_passed_over(void **state)
{
    struct rpc_call call;

    (void)state;
    for (enum door door = NOTIFY; door <= NOTIFY_AND_ADVISE; door++) {
        hand_in(door, (uint8_t[]){0x7a, 0x00}, 2, &call);
        assert_true(call.ok);
    }
    assert_int_equal(access(path, F_OK), -1);
}

static void no_authorities_leave_the_file_alone(void **state)
{
    (void)state;
    assert_delivered(PUBLISH, 5);
    assert_refused(PUBLISH, (struct message){.sequence = 6, .without_any = true},
                   FAULT_INVALID_ARGUMENT,
                   "cannot publish the bundle: the bundle has no authorities");
    assert_published_sequence(path, 5);
}

static void no_jwt_authorities_are_published_with_a_warning(void **state)
{
    (void)state;
    assert_true(deliver(PUBLISH, (struct message){.sequence = 6, .without_jwt = true}).ok);
    assert_published_sequence(path, 6);
    assert_logged("WARN the published bundle has no JWT authority");
}

static void a_late_bundle_is_held_back_and_logged(void **state)
{
    (void)state;
    assert_delivered(PUBLISH, 8);
    assert_delivered(PUBLISH, 7);
    assert_published_sequence(path, 8);
    assert_logged("DEBUG bundle held back");
    assert_logged("sequence_number=7 file_sequence_number=8");
}

static void a_restored_datastore_gets_its_way_with_a_warning(void **state)
{
    (void)state;
    assert_delivered(PUBLISH, 100);
    assert_delivered(PUBLISH, 7);
    pass(25);
    assert_delivered(PUBLISH, 7);
    assert_published_sequence(path, 7);
    assert_logged("WARN the datastore has gone back");
    assert_logged("sequence_number=7 file_sequence_number=100");
    assert_logged("INFO bundle published");
}

static void format_and_mode_are_the_configured_ones(void **state)
{
    struct stat file;
    char text[8192];

    (void)state;
    config.bundle.format = BUNDLE_PEM;
    config.bundle.mode = 0640;
    configure();
    assert_delivered(PUBLISH, 5);
    (void)read_published(path, text, sizeof text);
    assert_non_null(strstr(text, "-----BEGIN CERTIFICATE-----"));
    assert_int_equal(stat(path, &file), 0);
    assert_int_equal(file.st_mode & 07777, 0640);
}

static void a_configured_refresh_hint_replaces_the_bundles(void **state)
{
    char text[8192];

    (void)state;
    config.bundle.refresh_hint = 90 * CLOCK_SECOND + 5;
    configure();
    assert_delivered(PUBLISH, 5);
    (void)read_published(path, text, sizeof text);
    assert_non_null(strstr(text, "\"spiffe_refresh_hint\": 90\n"));
}

static void failures_end_the_server_only_when_asked_to(void **state)
{
    (void)state;
    assert_int_equal(mkdir(path, 0755), 0);
    assert_refused(PUBLISH, (struct message){.sequence = 5}, FAULT_FAILED_PRECONDITION,
                   "is a directory");
    assert_refused(NOTIFY, (struct message){.sequence = 5}, FAULT_FAILED_PRECONDITION,
                   "is a directory");
    assert_delivered(NOTIFY_AND_ADVISE, 5);
    assert_logged("ERROR cannot publish the bundle: path ");
    assert_int_equal(rmdir(path), 0);
    config.bundle.required = true;
    configure();
    assert_int_equal(mkdir(path, 0755), 0);
    assert_refused(NOTIFY_AND_ADVISE, (struct message){.sequence = 5}, FAULT_FAILED_PRECONDITION,
                   "is a directory");
}

static void a_call_that_waited_too_long_is_answered(void **state)
{
    (void)state;
    lane_comes_to = LANE_REFUSED;
    assert_refused(PUBLISH, (struct message){.sequence = 5}, FAULT_UNAVAILABLE, "too long");
    assert_delivered(NOTIFY_AND_ADVISE, 5);
    assert_logged("ERROR cannot publish the bundle: NotifyAndAdvise waited too long");
}

static void a_wrong_path_is_a_mistake_of_the_configuration(void **state)
{
    struct config wrong = config;
    struct fault fault;

    (void)state;
    (void)snprintf(wrong.bundle.path, sizeof wrong.bundle.path, "%s/gone/b", directory);
    for (int kind = CONFIG_PUBLISHER; kind <= CONFIG_NOTIFIER; kind++) {
        wrong.kind = (enum config_kind)kind;
        assert_int_equal(bundle_configure(&wrong, &fault), -1);
        assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
        assert_non_null(strstr(fault.message, "/gone"));
    }
    /* the old one stays in force */
    assert_delivered(PUBLISH, 5);
    assert_published_sequence(path, 5);
}

static void a_publication_without_end_is_answered_and_goes_on(void **state)
{
    struct rpc_call call;

    (void)state;
    lane_comes_to = LANE_STUCK;
    call = deliver(PUBLISH, (struct message){.sequence = 5});
    assert_false(call.ok);
    assert_int_equal(call.fault.code, FAULT_UNAVAILABLE);
    assert_string_equal(call.fault.message,
                        "cannot publish the bundle: it has not ended after 20 s: "
                        "does the file system hang?");
    assert_logged("WARN publishing has ended after all path=");
    assert_logged("error=\n");
    assert_published_sequence(path, 5);
    assert_delivered(NOTIFY_AND_ADVISE, 6);
    assert_logged("ERROR cannot publish the bundle: it has not ended after 20 s");
}

static void how_a_late_publication_failed_is_logged(void **state)
{
    (void)state;
    assert_int_equal(mkdir(path, 0755), 0);
    lane_comes_to = LANE_STUCK;
    assert_refused(PUBLISH, (struct message){.sequence = 5}, FAULT_UNAVAILABLE, "it has not ended");
    assert_logged("WARN publishing has ended after all path=");
    assert_logged("is a directory");
}

static void a_stop_is_told_to_the_call_at_work(void **state)
{
    (void)state;
    lane_comes_to = LANE_STOPPED;
    for (enum door door = PUBLISH; door <= NOTIFY_AND_ADVISE; door++) {
        struct rpc_call call = deliver(door, (struct message){.sequence = 5});

        assert_false(call.ok);
        assert_int_equal(call.fault.code, FAULT_UNAVAILABLE);
        assert_string_equal(call.fault.message, "the plugin is stopping");
        assert_null(strstr(logged, "WARN"));
    }
}

#define SCENE(test) cmocka_unit_test_setup_teardown(test, open_scene, close_scene)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_configuration_all_is_refused), /* before the others configure */
        SCENE(every_door_writes_the_file),
        SCENE(an_unchanged_bundle_is_not_logged),
        SCENE(requests_that_make_no_sense_are_refused),
        SCENE(events_of_other_kinds_are_passed_over),
        SCENE(no_authorities_leave_the_file_alone),
        SCENE(no_jwt_authorities_are_published_with_a_warning),
        SCENE(a_late_bundle_is_held_back_and_logged),
        SCENE(a_restored_datastore_gets_its_way_with_a_warning),
        SCENE(format_and_mode_are_the_configured_ones),
        SCENE(a_configured_refresh_hint_replaces_the_bundles),
        SCENE(failures_end_the_server_only_when_asked_to),
        SCENE(a_call_that_waited_too_long_is_answered),
        SCENE(a_wrong_path_is_a_mistake_of_the_configuration),
        SCENE(a_publication_without_end_is_answered_and_goes_on),
        SCENE(how_a_late_publication_failed_is_logged),
        SCENE(a_stop_is_told_to_the_call_at_work),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
