/* What becomes of a delivered bundle: encoded, compared with the file by sequence number,
 * published; for OIDC with its document. */
#include "plugin/bundle/publisher.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "hsm/base/file.h"
#include "hsm/base/scope.h"
#include "plugin/bundle/oidc.h"

/* One delivery, as the callbacks of publish_file see it. */
struct delivery {
    struct publisher *publisher;
    struct publisher_report report;
};

/* ---- OIDC's folder ---- */

struct path {
    char text[PATH_MAX];
};

/* A path that is too long becomes one that cannot be opened. */
static struct path join(const char *folder, const char *name)
{
    struct path path;

    (void)snprintf(path.text, sizeof path.text, "%.*s/%s",
                   (int)(sizeof path.text - sizeof "/" OIDC_DOCUMENT), folder, name);
    return path;
}

/* The file with the authorities. */
static struct path bundle_path(const struct publisher_settings *settings)
{
    struct path path;

    if (settings->format == BUNDLE_OIDC)
        return join(settings->path, OIDC_KEYS);
    (void)snprintf(path.text, sizeof path.text, "%s", settings->path);
    return path;
}

/* Readers of the document must be able to enter the folder, whatever the umask is, and even if we
 * were killed half-way. */
static int make_document_folder(const struct publisher_settings *settings, struct fault *fault)
{
    const struct path folder = join(settings->path, OIDC_DOCUMENT_FOLDER);
    const mode_t wanted = (mode_t)(0700 | settings->mode | (settings->mode & 0444) >> 2);
    struct stat status;

    if (mkdir(folder.text, wanted) != 0 && errno != EEXIST)
        return file_fault(fault, errno, "cannot make the folder", folder.text);
    if (stat(folder.text, &status) != 0)
        return file_fault(fault, errno, "cannot look at the folder", folder.text);
    if (status.st_uid == geteuid() && (status.st_mode & wanted) != wanted &&
        chmod(folder.text, (status.st_mode & 07777) | wanted) != 0)
        return file_fault(fault, errno, "cannot change the mode of the folder", folder.text);
    return 0;
}

/* After the key set, because the document names it. */
static int publish_document(const struct publisher_settings *settings, bool *written,
                            struct fault *fault)
{
    const struct path path = join(settings->path, OIDC_DOCUMENT);
    OWNED(scope_free) char *bytes = NULL;
    struct publish job = {.path = path.text, .mode = settings->mode};
    enum publish_outcome outcome;

    if (make_document_folder(settings, fault) != 0 ||
        oidc_document(settings->issuer, &bytes, &job.length, fault) != 0)
        return -1;
    job.bytes = bytes;
    if (publish_file(&job, &outcome, fault) != 0)
        return -1;
    *written = outcome == PUBLISH_WRITTEN;
    return 0;
}

int publisher_check(const struct publisher_settings *settings, struct fault *fault)
{
    const struct path bundle = bundle_path(settings);
    const struct path folder = join(settings->path, OIDC_DOCUMENT_FOLDER);
    const struct path document = join(settings->path, OIDC_DOCUMENT);
    struct stat status;

    if (publish_check(bundle.text, fault) != 0)
        return -1;
    if (settings->format != BUNDLE_OIDC || stat(folder.text, &status) != 0)
        return 0;
    return publish_check(document.text, fault);
}

/* ---- a delivery ---- */

int publisher_accept(const struct publisher *publisher, const char *trust_domain,
                     struct fault *fault)
{
    if (strcmp(trust_domain, publisher->settings.trust_domain) == 0)
        return 0;
    return fault_set(fault, FAULT_INVALID_ARGUMENT,
                     "the bundle is for trust domain \"%s\", but the configuration for \"%s\"",
                     trust_domain, publisher->settings.trust_domain);
}

/* The sequence number of the file: its own or, in formats without one, the number kept beside it by
 * any process. Otherwise the number that this process remembers. */
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

/* The file now holds the delivered bundle. */
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
    const struct publisher_settings *settings = &publisher->settings;
    const struct path path = bundle_path(settings);
    OWNED(scope_free) char *bytes = NULL;
    struct publish job = {.path = path.text,
                          .mode = settings->mode,
                          .number = bundle->sequence,
                          .keep = keep,
                          .check = check,
                          .context = &delivery};

    if (encode(settings, bundle, &bytes, &job.length, fault) != 0)
        return -1;
    job.bytes = bytes;
    if (publish_file(&job, &delivery.report.outcome, fault) != 0)
        return -1;
    delivery.report.length = job.length;
    if (delivery.report.outcome != PUBLISH_KEPT)
        settle(publisher, &delivery.report);
    if (settings->format == BUNDLE_OIDC &&
        publish_document(settings, &delivery.report.document, fault) != 0)
        return -1;
    *report = delivery.report;
    return 0;
}
