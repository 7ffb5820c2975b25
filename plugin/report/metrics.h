/* Figures for the host's telemetry: for an operator's graphs and alarms. metrics_table.c has each
 * with its meaning; host.c tells the host. The host adds its prefix: "token_up" is
 * spire_server_pkcs11_token_up in a server's Prometheus.
 *
 * All processes of one host share its name space, and its series never expire. So a figure that two
 * roles have carries `role`; ages are told in place of times, as the host keeps 32-bit floats; and
 * counters for alarms are told as 0 before they first move.
 *
 * Any thread; never blocks on more than a mutex that is held for a moment. Beyond
 * METRIC_SERIES_MAX a new combination of labels is not told. */
#ifndef PLUGIN_REPORT_METRICS_H
#define PLUGIN_REPORT_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/base/fault.h"

enum metric {
    METRIC_HEARTBEAT,
    METRIC_TOKEN_UP,
    METRIC_TOKEN_AWAY,
    METRIC_TOKEN_SILENT,
    METRIC_SIGNATURES,
    METRIC_SIGNATURES_FAILED,
    METRIC_KEY_MADE,
    METRIC_KEY_NOT_MADE,
    METRIC_KEY_DESTROYED,
    METRIC_CALLS,
    METRIC_CALL_TIME,
    METRIC_CALL_SLOWEST,
    METRIC_QUEUE_LENGTH,
    METRIC_QUEUE_WAIT,
    METRIC_SESSIONS_BUSY,
    METRIC_SESSIONS_LIMIT,
    METRIC_ASKED_AGAIN,
    METRIC_WORKER_ENDED,
    METRIC_PIN_REFUSED,
    METRIC_KEYS,
    METRIC_KEY_AGE,
    METRIC_OBJECTS,
    METRIC_BUNDLE_AGE,
    METRIC_BUNDLE_SEQUENCE,
    METRIC_BUNDLE_BYTES,
    METRIC_BUNDLE_WRITTEN,
    METRIC_BUNDLE_FAILED,
    METRICS,
};

enum {
    METRIC_LABELS = 2,
    METRIC_LABEL_MAX = 96, /* bytes of a label's value with its NUL; a longer one is cut */
    METRIC_SERIES_MAX = 256,
};

enum metric_kind {
    METRIC_COUNTER, /* the increase since the last time */
    METRIC_GAUGE,   /* the latest value */
    METRIC_SAMPLE,  /* the greatest value of about a second */
};

/* Which processes have it. */
enum metric_owner { METRIC_EVERYBODYS, METRIC_KEYMANAGERS, METRIC_PUBLISHERS };

struct metric_label {
    const char *name;   /* NULL: there is none */
    const char *values; /* all there may be, a comma between two; NULL: any text */
};

struct metric_row {
    const char *name; /* [a-z_]: the host passes it on as it is */
    enum metric_kind kind;
    enum metric_owner owner;
    const struct metric_label *labels; /* METRIC_LABELS of them */
    const char *meaning;
};

extern const struct metric_row metric_table[METRICS];

/* The kinds' names for people: "counter" .. */
const char *metric_kind_name(enum metric_kind kind);

/* A label's value for a fault's code, as gRPC and SPIRE write it: "OK", "UNAVAILABLE" .. */
const char *metric_code(enum fault_code code);

/* Tells the counters that are known beforehand as 0: of everybody and of the owner, those whose
 * labels have their values in the table. */
void metrics_open(enum metric_owner owner);

/* The labels in the table's order; NULL or "" where there is none. Counting 0 makes a series that
 * is told. metrics_set: the latest value. */
void metrics_count(enum metric metric, const char *first, const char *second, double by);
void metrics_set(enum metric metric, const char *first, const char *second, double value);

/* One `part` of a call took so long, ns: METRIC_CALLS, METRIC_CALL_TIME, METRIC_CALL_SLOWEST. */
void metrics_took(const char *call, const char *part, int64_t ns);

/* ---- telling the host: one caller at a time ---- */

struct metric_news {
    size_t series; /* of the store */
    enum metric metric;
    char labels[METRIC_LABELS][METRIC_LABEL_MAX];
    float value;
};

/* The first series from *series on that has news; *series is then the one behind it. Starts with 0.
 * false: there is none left. */
bool metrics_next(size_t *series, struct metric_news *news);

/* The host has confirmed this news. The store subtracts its value from a counter; what has changed
 * since is told next time. Until then metrics_next returns the news again. */
void metrics_told(const struct metric_news *news);

#endif
