/* Figures of publishing: age, size and number of the bundle, per role and path. */
#include "plugin/service/svc_bundle_figures.h"

#include <pthread.h>
#include <stdio.h>

#include "hsm/base/clock.h"
#include "plugin/report/metrics.h"

static struct {
    pthread_mutex_t mutex;
    const char *role;
    char path[METRIC_LABEL_MAX]; /* "": not configured yet */
    int64_t delivered;           /* time of the last delivery, or of Configure */
} shown = {.mutex = PTHREAD_MUTEX_INITIALIZER, .role = ""};

static void lock(void)
{
    (void)pthread_mutex_lock(&shown.mutex);
}

static void unlock(void)
{
    (void)pthread_mutex_unlock(&shown.mutex);
}

void bundle_figures_begin(const char *role, const char *path)
{
    lock();
    shown.role = role;
    if (shown.delivered == 0)
        shown.delivered = clock_now();
    (void)snprintf(shown.path, sizeof shown.path, "%s", path);
    metrics_count(METRIC_BUNDLE_WRITTEN, shown.role, shown.path, 0);
    metrics_count(METRIC_BUNDLE_FAILED, shown.role, shown.path, 0);
    unlock();
}

void bundle_figures_delivered(const struct publisher_report *report)
{
    lock();
    shown.delivered = clock_now();
    metrics_set(METRIC_BUNDLE_SEQUENCE, shown.role, shown.path, (double)report->sequence);
    if (report->outcome == PUBLISH_WRITTEN) {
        metrics_set(METRIC_BUNDLE_BYTES, shown.role, shown.path, (double)report->length);
        metrics_count(METRIC_BUNDLE_WRITTEN, shown.role, shown.path, 1);
    }
    unlock();
}

void bundle_figures_failed(void)
{
    lock();
    if (shown.path[0] != '\0')
        metrics_count(METRIC_BUNDLE_FAILED, shown.role, shown.path, 1);
    unlock();
}

void bundle_figures_measure(void)
{
    lock();
    if (shown.path[0] != '\0')
        metrics_set(METRIC_BUNDLE_AGE, shown.role, shown.path,
                    (double)(clock_now() - shown.delivered) / (double)CLOCK_SECOND);
    unlock();
}
