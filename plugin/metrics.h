/* Counters for the host's telemetry, through its Metrics service: what happened that an
 * operator may want to see in a graph or raise an alarm for. SPIRE exports them with its
 * own (Prometheus, statsd ..), as pkcs11.<name>.
 *
 * Counting is for any thread and never blocks; what was counted is told once a second, one
 * counter at a time, and kept while the host cannot be told. Says nothing to a host that
 * has no such service. */
#ifndef PLUGIN_METRICS_H
#define PLUGIN_METRICS_H

#include <stdbool.h>

#include "rpc.h"

enum metric {
    METRIC_WORKER_ENDED, /* a PKCS#11 worker crashed, hung or was killed, and is replaced */
    METRIC_KEY_MADE,
    METRIC_KEY_DESTROYED,
    METRIC_BUNDLE_WRITTEN,
    METRICS,
};

void metrics_count(enum metric metric);

/* Init has said whether the host offers the service. */
void metrics_offered(bool offered);

/* About once a second, from the thread that also stops `rpc`. */
void metrics_tick(struct rpc *rpc);

#endif
