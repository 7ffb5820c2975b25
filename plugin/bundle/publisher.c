#include "plugin/bundle/publisher.h"

#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"

/* One delivery, as publish_file's questions see it. */
struct delivery {
    struct publisher *publisher;
    struct publisher_report report;
};

int publisher_accept(const struct publisher *publisher, const char *trust_domain,
                     struct fault *fault)
{
    if (strcmp(trust_domain, publisher->settings.trust_domain) == 0)
        return 0;
    return fault_set(fault, FAULT_INVALID_ARGUMENT,
                     "the bundle is of trust domain \"%s\", the configuration of \"%s\"",
                     trust_domain, publisher->settings.trust_domain);
}

/* The number of what is there: its own, or in formats that have none the one kept beside it, by
 * whichever process; or else the one that this process remembers. */
static uint64_t number_of_file(const struct publisher *publisher,
                               const struct bundle_summary *there, uint64_t kept)
{
    if (publisher->settings.format == BUNDLE_SPIFFE)
        return there->sequence;
    return kept != 0 ? kept : publisher->last;
}

static bool keep(void *context, const char *bytes, size_t length, uint64_t number)
{
    struct delivery *delivery = context;
    struct publisher *publisher = delivery->publisher;
    struct publisher_report *report = &delivery->report;
    const enum bundle_format format = publisher->settings.format;
    struct bundle_summary there;
    enum sequence_verdict verdict;

    if (bundle_read(bytes, length, format, &there, NULL) != 0)
        return false;
    report->file = number_of_file(publisher, &there, number);
    verdict = sequence_judge(&publisher->sequence, report->file, report->sequence, clock_now());
    report->restored = verdict == SEQUENCE_RESTORED;
    return verdict == SEQUENCE_HELD;
}

static int check(void *context, const char *bytes, size_t length, struct fault *fault)
{
    struct delivery *delivery = context;

    return bundle_read(bytes, length, delivery->publisher->settings.format,
                       &delivery->report.summary, fault);
}

static int encode(const struct publisher_settings *settings, const struct bundle *bundle,
                  char **bytes, size_t *length, struct fault *fault)
{
    struct bundle changed = *bundle;

    if (settings->refresh_hint > 0)
        changed.refresh_hint = settings->refresh_hint;
    return bundle_encode(&changed, settings->format, bytes, length, fault);
}

/* The file now holds what was delivered. */
static void settle(struct publisher *publisher, struct publisher_report *report)
{
    publisher->sequence = (struct sequence){0};
    publisher->last = report->sequence;
    report->without_jwt = report->outcome == PUBLISH_WRITTEN && report->summary.jwt == 0 &&
                          publisher->settings.format != BUNDLE_PEM;
}

int publisher_deliver(struct publisher *publisher, const struct bundle *bundle,
                      struct publisher_report *report, struct fault *fault)
{
    struct delivery delivery = {.publisher = publisher, .report.sequence = bundle->sequence};
    OWNED(scope_free) char *bytes = NULL;
    struct publish job = {.path = publisher->settings.path,
                          .mode = publisher->settings.mode,
                          .number = bundle->sequence,
                          .keep = keep,
                          .check = check,
                          .context = &delivery};

    if (encode(&publisher->settings, bundle, &bytes, &job.length, fault) != 0)
        return -1;
    job.bytes = bytes;
    if (publish_file(&job, &delivery.report.outcome, fault) != 0)
        return -1;
    delivery.report.length = job.length;
    if (delivery.report.outcome != PUBLISH_KEPT)
        settle(publisher, &delivery.report);
    *report = delivery.report;
    return 0;
}
