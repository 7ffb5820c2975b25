/* A bundle that SPIRE delivers is encoded, its sequence number is compared with the file's, and it
 * is written if necessary. A file that is missing, damaged or of another format is replaced
 * whatever the numbers; a newer one stays, until the datastore turns out to have gone back
 * (sequence.h).
 *
 * With BUNDLE_OIDC there are two files in a folder: the key set, for which the above holds, and
 * then the document that names it (oidc.h).
 *
 * A publisher has one path and is used by one thread at a time. It writes no log: it returns a
 * report or a fault. */
#ifndef PLUGIN_BUNDLE_PUBLISHER_H
#define PLUGIN_BUNDLE_PUBLISHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "plugin/bundle/bundle.h"
#include "plugin/bundle/publish.h"
#include "plugin/bundle/sequence.h"

struct publisher_settings {
    const char *trust_domain; /* this and the next two: the caller's, and outlive the publisher */
    const char *path;         /* absolute; of a file, with BUNDLE_OIDC of a folder */
    const char *issuer;       /* with BUNDLE_OIDC: a URL that oidc_issuer_wrong lets pass */
    enum bundle_format format;
    uint32_t mode;
    int64_t refresh_hint; /* seconds; 0 = each bundle's own */
};

/* All zero but for the settings: one that has published nothing yet. */
struct publisher {
    struct publisher_settings settings;
    struct sequence sequence;
    uint64_t last; /* the sequence number it published last; 0 = none */
};

struct publisher_report {
    enum publish_outcome outcome;
    uint64_t sequence; /* of the bundle that was delivered */
    uint64_t file;     /* of the newer file: when it was kept, and when `restored` */
    bool restored;     /* the datastore has gone back, so the newer file was replaced */
    bool document;     /* OIDC's document was written; the rest speaks of the key set */

    /* these three only with PUBLISH_WRITTEN */
    struct bundle_summary summary;
    size_t length;    /* bytes */
    bool without_jwt; /* no JWT-SVID verifies with it, in a format that has such keys */
};

/* Is a bundle of this trust domain the publisher's to deliver? 0, or -1 with
 * FAULT_INVALID_ARGUMENT. */
int publisher_accept(const struct publisher *publisher, const char *trust_domain,
                     struct fault *fault);

/* Could it publish there, by all that can be seen without writing? The faults of publish_check. */
int publisher_check(const struct publisher_settings *settings, struct fault *fault);

/* Publishes a bundle that was accepted. The faults are those of bundle_encode and of
 * publish_file; after one of them the same bundle may be delivered again. */
int publisher_deliver(struct publisher *publisher, const struct bundle *bundle,
                      struct publisher_report *report, struct fault *fault);

#endif
