/* BundlePublisher and Notifier: turns requests into bundles for the publisher, its reports into log
 * lines, its faults into answers. */
#include "plugin/service/svc.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "plugin/bundle/publisher.h"
#include "plugin/report/log.h"
#include "plugin/rpc/message.h"
#include "plugin/service/lane.h"
#include "plugin/service/svc_bundle_figures.h"
#include "plugin/service/svc_bundle_view.h"
#include "proto/bundle.pb-c.h"

/* Used by the slow lane alone: both Configure and publishing run there. */
static struct {
    bool configured;
    char trust_domain[CONFIG_TRUST_DOMAIN_MAX + 1];
    struct config_bundle settings;
    struct publisher publisher;
} state;

/* May a Notifier hold up the start of the server? For any thread. */
static atomic_bool required;

/* ---- the requests ---- */

struct event {
    const char *what;
    const ProtobufCMessageDescriptor *type;
    /* Finds the bundle, which may be missing. Returns false for an event of another kind: newer
     * servers may send one, and it does not concern us. */
    bool (*find)(const void *message, const Bundle__Bundle **bundle);
    bool advises; /* a failure ends the server's start */
};

static bool find_published(const void *message, const Bundle__Bundle **bundle)
{
    const Bundle__PublishBundleRequest *request = message;

    *bundle = request->bundle;
    return true;
}

static bool find_updated(const void *message, const Bundle__Bundle **bundle)
{
    const Bundle__NotifyRequest *request = message;

    if (request->event_case != BUNDLE__NOTIFY_REQUEST__EVENT_BUNDLE_UPDATED)
        return false;
    *bundle = request->bundle_updated->bundle;
    return true;
}

static bool find_loaded(const void *message, const Bundle__Bundle **bundle)
{
    const Bundle__NotifyAndAdviseRequest *request = message;

    if (request->event_case != BUNDLE__NOTIFY_AND_ADVISE_REQUEST__EVENT_BUNDLE_LOADED)
        return false;
    *bundle = request->bundle_loaded->bundle;
    return true;
}

static const struct event publish_bundle = {
    "PublishBundle", &bundle__publish_bundle_request__descriptor, find_published, false};
static const struct event notify = {"Notify", &bundle__notify_request__descriptor, find_updated,
                                    false};
static const struct event notify_and_advise = {
    "NotifyAndAdvise", &bundle__notify_and_advise_request__descriptor, find_loaded, true};

/* ---- answers ---- */

static void reply(struct rpc_call *call)
{
    rpc_reply(call, (const uint8_t *)"", 0);
}

/* The call itself is valid, but publishing has failed. */
static void answer_failure(struct rpc_call *call, const struct event *event, struct fault fault)
{
    bundle_figures_failed();
    if (event->advises && !required) {
        log_fault(LOG_ERROR, &fault, "cannot publish the bundle", NULL);
        reply(call);
        return;
    }
    (void)fault_prefix(&fault, "cannot publish the bundle");
    rpc_fail(call, &fault);
}

/* ---- publishing ---- */

struct number {
    char text[24];
};

static struct number number(uint64_t value)
{
    struct number text;

    (void)snprintf(text.text, sizeof text.text, "%" PRIu64, value);
    return text;
}

static void log_held(const struct publisher_report *report)
{
    log_write(LOG_DEBUG, "bundle held back: the file is newer", "path", state.settings.path,
              "sequence_number", number(report->sequence).text, "file_sequence_number",
              number(report->file).text, NULL);
}

static void log_written(const struct publisher_report *report)
{
    if (report->restored)
        log_write(LOG_WARN,
                  "the datastore has gone back to a lower sequence number (restored?): the newer "
                  "file is replaced",
                  "path", state.settings.path, "sequence_number", number(report->sequence).text,
                  "file_sequence_number", number(report->file).text, NULL);
    log_write(LOG_INFO, "bundle published", "path", state.settings.path, "sequence_number",
              number(report->sequence).text, "x509_authorities", number(report->summary.x509).text,
              "jwt_authorities", number(report->summary.jwt).text, "bytes",
              number(report->length).text, NULL);
    if (report->without_jwt)
        log_write(LOG_WARN, "the published bundle has no JWT authority: no JWT-SVID verifies",
                  "path", state.settings.path, NULL);
}

static void tell(const struct publisher_report *report)
{
    if (report->outcome == PUBLISH_KEPT)
        log_held(report);
    if (report->document)
        log_write(LOG_INFO, "OIDC discovery document published", "path", state.settings.path,
                  "issuer", state.settings.issuer, NULL);
    if (report->outcome != PUBLISH_WRITTEN)
        return;
    log_written(report);
}

static int publish(const Bundle__Bundle *message, struct fault *fault)
{
    OWNED(bundle_free_view) struct bundle bundle = {0};
    struct publisher_report report;

    if (bundle_view(message, &bundle, fault) != 0 ||
        publisher_deliver(&state.publisher, &bundle, &report, fault) != 0)
        return -1;
    tell(&report);
    bundle_figures_delivered(&report);
    return 0;
}

/* ---- a call's way through the lane ---- */

struct request {
    const struct event *event;
    struct rpc_call *call;
    void *message;
    bool senseless; /* set by run: the request itself is wrong, not its publication */
};

/* *bundle NULL: there is nothing to do. */
static int find_bundle(const struct event *event, const void *message,
                       const Bundle__Bundle **bundle, struct fault *fault)
{
    *bundle = NULL;
    if (!state.configured)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "not configured");
    if (!event->find(message, bundle))
        return 0;
    if (!*bundle)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "missing bundle in request");
    return publisher_accept(&state.publisher, (*bundle)->trust_domain, fault);
}

static int run(void *context, struct fault *fault)
{
    struct request *request = context;
    const Bundle__Bundle *bundle;

    request->senseless = find_bundle(request->event, request->message, &bundle, fault) != 0;
    if (request->senseless)
        return -1;
    return bundle ? publish(bundle, fault) : 0;
}

static void answer_stuck(const struct request *request, const struct fault *stuck)
{
    struct fault fault;

    (void)fault_set(&fault, stuck->code, "%s: does the file system hang?", stuck->message);
    answer_failure(request->call, request->event, fault);
}

static void answer(void *context, enum lane_outcome outcome, const struct fault *fault)
{
    const struct request *request = context;

    if (!fault)
        reply(request->call);
    else if (outcome == LANE_STOPPED || (outcome == LANE_RAN && request->senseless))
        rpc_fail(request->call, fault);
    else if (outcome == LANE_STUCK)
        answer_stuck(request, fault);
    else
        answer_failure(request->call, request->event, *fault);
}

static void log_late(void *context, const struct fault *fault)
{
    (void)context;
    log_write(LOG_WARN, "publishing has ended after all", "path", state.settings.path, "error",
              fault ? fault->message : "", NULL);
}

static void release(void *context)
{
    struct request *request = context;

    message_free(request->message);
    free(request);
}

/* SPIRE sets no deadline for these calls. Until they return, it holds up all publishers, or the
 * rotation of its CA. So each gets this long in the queue and this long at work. */
static const struct lane_kind publication = {
    .queue_limit = 20 * CLOCK_SECOND,
    .run_limit = 20 * CLOCK_SECOND,
    .run = run,
    .answer = answer,
    .late = log_late,
    .release = release,
};

/* The message is parsed here, because the call's bytes may be gone before run ends. */
static void submit(const struct event *event, struct rpc_call *call, const uint8_t *bytes,
                   size_t length)
{
    struct fault fault;
    OWNED(message_scope_free)
    void *message = message_parse(event->type, bytes, length, &fault);
    struct request *request;

    if (!message) {
        rpc_fail(call, &fault);
        return;
    }
    request = malloc(sizeof *request);
    if (!request) {
        (void)fault_set(&fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
        answer_failure(call, event, fault);
        return;
    }
    *request = (struct request){.event = event, .call = call, .message = message};
    message = NULL;
    lane_submit(event->what, &publication, request);
}

static void on_publish_bundle(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    submit(&publish_bundle, call, bytes, length);
}

static void on_notify(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    submit(&notify, call, bytes, length);
}

static void on_notify_and_advise(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    submit(&notify_and_advise, call, bytes, length);
}

const struct rpc_method publisher_methods[] = {
    {"/spire.plugin.server.bundlepublisher.v1.BundlePublisher/PublishBundle", RPC_UNARY,
     on_publish_bundle},
    {0},
};

const struct rpc_method notifier_methods[] = {
    {"/spire.plugin.server.notifier.v1.Notifier/Notify", RPC_UNARY, on_notify},
    {"/spire.plugin.server.notifier.v1.Notifier/NotifyAndAdvise", RPC_UNARY, on_notify_and_advise},
    {0},
};

/* ---- the role ---- */

/* A missing folder is a mistake in the configuration. A disk that is read-only for now is none: a
 * server must start nevertheless, as it only informs the plugin. */
static bool may_wait(const struct config *config, const struct fault *fault)
{
    return fault->code == FAULT_UNAVAILABLE && config->kind == CONFIG_NOTIFIER &&
           !config->bundle.required;
}

/* The settings point into *bundle. */
static struct publisher_settings publisher_settings(const struct config_bundle *bundle)
{
    return (struct publisher_settings){
        .path = bundle->path,
        .issuer = bundle->issuer,
        .format = bundle->format,
        .mode = bundle->mode,
        .refresh_hint = bundle->refresh_hint / CLOCK_SECOND,
    };
}

static void take_settings(const struct config *config)
{
    memset(&state, 0, sizeof state);
    state.configured = true;
    state.settings = config->bundle;
    (void)snprintf(state.trust_domain, sizeof state.trust_domain, "%s", config->trust_domain);
    state.publisher.settings = publisher_settings(&state.settings);
    state.publisher.settings.trust_domain = state.trust_domain;
    required = config->bundle.required;
    bundle_figures_begin(config->kind == CONFIG_NOTIFIER ? "Notifier" : "BundlePublisher",
                         state.settings.path);
}

int bundle_configure(const struct config *config, struct fault *fault)
{
    const struct publisher_settings settings = publisher_settings(&config->bundle);
    struct fault found;

    if (publisher_check(&settings, &found) != 0) {
        if (!may_wait(config, &found)) {
            *fault = found;
            return -1;
        }
        log_fault(LOG_WARN, &found, "cannot publish the bundle for now", NULL);
    }
    take_settings(config);
    return 0;
}
