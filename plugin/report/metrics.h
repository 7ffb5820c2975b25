/* Counters for the host's telemetry: what happened that an operator may want to see in a
 * graph or raise an alarm for. host.c tells the host. Any thread; never blocks. */
#ifndef PLUGIN_REPORT_METRICS_H
#define PLUGIN_REPORT_METRICS_H

enum metric {
    METRIC_WORKER_ENDED, /* a PKCS#11 worker crashed, hung or was killed, and is replaced */
    METRIC_KEY_MADE,
    METRIC_KEY_DESTROYED,
    METRIC_BUNDLE_WRITTEN,
    METRICS,
};

void metrics_count(enum metric metric);

/* What was counted and not yet taken; taking it. */
unsigned metrics_pending(enum metric metric);
void metrics_take(enum metric metric, unsigned count);

#endif
