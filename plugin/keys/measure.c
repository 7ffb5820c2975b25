/* The key manager's gauges: its state between two calls, for operators. */
#include <stdlib.h>

#include "plugin/keys/keymanager_private.h"
#include "plugin/keys/previous.h"
#include "plugin/report/metrics.h"

static double seconds(int64_t ns)
{
    return (double)ns / (double)CLOCK_SECOND;
}

static void measure_token(struct supervisor *supervisor)
{
    struct supervisor_figures figures;

    supervisor_measure(supervisor, &figures);
    metrics_set(METRIC_TOKEN_UP, NULL, NULL, figures.away == 0 ? 1 : 0);
    metrics_set(METRIC_TOKEN_AWAY, NULL, NULL, seconds(figures.away));
    metrics_set(METRIC_TOKEN_SILENT, NULL, NULL, seconds(figures.silent));
    metrics_set(METRIC_QUEUE_LENGTH, NULL, NULL, figures.queued);
    metrics_set(METRIC_QUEUE_WAIT, NULL, NULL, seconds(figures.waited));
    metrics_set(METRIC_SESSIONS_BUSY, NULL, NULL, figures.busy);
    metrics_set(METRIC_SESSIONS_LIMIT, NULL, NULL, figures.sessions);
}

/* A key that has not failed yet is shown with 0 failures, so that an alarm sees the first failure
 * as a change. */
static void measure_keys(struct keymanager *keymanager)
{
    size_t count = 0;
    struct catalogue_key **keys = catalogue_list(&keymanager->catalogue, &count);
    int64_t now = clock_now();

    for (size_t i = 0; keys && i < count; i++) {
        if (!keys[i]->previous)
            metrics_set(METRIC_KEY_AGE, keys[i]->key_id, NULL, seconds(now - keys[i]->begun));
        metrics_count(METRIC_SIGNATURES, keys[i]->key_id, metric_code(FAULT_NONE), 0);
        keymanager_drop(keymanager, keys[i]);
    }
    free(keys);
}

static void measure_record(struct scribe *scribe)
{
    static const char *const states[] = {
        [RECORD_SERVED] = "served",       [RECORD_MISSING] = "missing",
        [RECORD_CONDEMNED] = "condemned", [RECORD_ATTEMPTED] = "attempted",
        [RECORD_FOUND] = "found",
    };
    unsigned counts[sizeof states / sizeof states[0]] = {0};
    const struct record *record = scribe_edit(scribe);

    for (size_t i = 0; i < record->count; i++)
        counts[record->keys[i].state]++;
    metrics_set(METRIC_KEYS, "previous", NULL, (double)previous_left(record));
    scribe_leave(scribe);
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++)
        metrics_set(METRIC_KEYS, states[i], NULL, counts[i]);
}

void keymanager_measure(struct keymanager *keymanager)
{
    measure_token(keymanager->supervisor);
    measure_keys(keymanager);
    measure_record(keymanager->scribe);
}
