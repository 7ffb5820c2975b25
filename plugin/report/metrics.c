/* Figures kept until the host is told: counters add up, gauges keep their last value. No caller
 * ever waits for the host. */
#include "plugin/report/metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/utf8.h"

struct series {
    enum metric metric;
    char labels[METRIC_LABELS][METRIC_LABEL_MAX];
    double value; /* of a counter: the part that was not told yet */
    bool due;
    unsigned short next; /* number of the next series of the same metric; 0 = this is the last */
};

/* Number 0 is never used. */
static struct {
    pthread_mutex_t mutex;
    size_t count;
    unsigned short first[METRICS];
    struct series series[METRIC_SERIES_MAX + 1];
} store = {.mutex = PTHREAD_MUTEX_INITIALIZER};

const char *metric_kind_name(enum metric_kind kind)
{
    static const char *const names[] = {
        [METRIC_COUNTER] = "counter", [METRIC_GAUGE] = "gauge", [METRIC_SAMPLE] = "sample"};

    return names[kind];
}

const char *metric_code(enum fault_code code)
{
    static const char *const names[] = {
        [FAULT_NONE] = "OK",
        [FAULT_CANCELLED] = "CANCELLED",
        [FAULT_INVALID_ARGUMENT] = "INVALID_ARGUMENT",
        [FAULT_DEADLINE_EXCEEDED] = "DEADLINE_EXCEEDED",
        [FAULT_NOT_FOUND] = "NOT_FOUND",
        [FAULT_PERMISSION_DENIED] = "PERMISSION_DENIED",
        [FAULT_RESOURCE_EXHAUSTED] = "RESOURCE_EXHAUSTED",
        [FAULT_FAILED_PRECONDITION] = "FAILED_PRECONDITION",
        [FAULT_ABORTED] = "ABORTED",
        [FAULT_UNIMPLEMENTED] = "UNIMPLEMENTED",
        [FAULT_INTERNAL] = "INTERNAL",
        [FAULT_UNAVAILABLE] = "UNAVAILABLE",
    };

    return (size_t)code < sizeof names / sizeof names[0] && names[code] ? names[code] : "UNKNOWN";
}

/* ---- series; the mutex is held ---- */

static struct series *find(enum metric metric, const char *first, const char *second)
{
    unsigned short number = store.first[metric];

    while (number != 0) {
        struct series *series = &store.series[number];

        if (strcmp(series->labels[0], first) == 0 && strcmp(series->labels[1], second) == 0)
            return series;
        number = series->next;
    }
    return NULL;
}

static struct series *add(enum metric metric, const char *first, const char *second)
{
    struct series *series;

    if (store.count == METRIC_SERIES_MAX)
        return NULL;
    series = &store.series[++store.count];
    series->metric = metric;
    series->due = true;
    series->next = store.first[metric];
    store.first[metric] = (unsigned short)store.count;
    (void)snprintf(series->labels[0], METRIC_LABEL_MAX, "%s", first);
    (void)snprintf(series->labels[1], METRIC_LABEL_MAX, "%s", second);
    return series;
}

/* A label that is too long, or no text, is looked up in the form in which it is kept. */
static struct series *series_of(enum metric metric, const char *first, const char *second)
{
    struct series *series;
    char kept[METRIC_LABELS][METRIC_LABEL_MAX];

    first = first ? first : "";
    second = second ? second : "";
    series = find(metric, first, second);
    if (series)
        return series;
    utf8_clean(first, false, kept[0], METRIC_LABEL_MAX);
    utf8_clean(second, false, kept[1], METRIC_LABEL_MAX);
    series = find(metric, kept[0], kept[1]);
    return series ? series : add(metric, kept[0], kept[1]);
}

static void lock(void)
{
    (void)pthread_mutex_lock(&store.mutex);
}

static void unlock(void)
{
    (void)pthread_mutex_unlock(&store.mutex);
}

/* ---- counting ---- */

static void count(enum metric metric, const char *first, const char *second, double by)
{
    struct series *series = series_of(metric, first, second);

    if (!series)
        return;
    series->value += by;
    series->due = series->due || by != 0;
}

void metrics_count(enum metric metric, const char *first, const char *second, double by)
{
    lock();
    count(metric, first, second, by);
    unlock();
}

void metrics_set(enum metric metric, const char *first, const char *second, double value)
{
    struct series *series;

    lock();
    series = series_of(metric, first, second);
    if (series) {
        series->value = value;
        series->due = true;
    }
    unlock();
}

/* With the mutex held. */
static void sample(enum metric metric, const char *first, const char *second, double value)
{
    struct series *series = series_of(metric, first, second);

    if (!series)
        return;
    if (!series->due || value > series->value)
        series->value = value;
    series->due = true;
}

void metrics_took(const char *call, const char *part, int64_t ns)
{
    double ms = (double)ns / (double)CLOCK_MILLISECOND;

    lock();
    count(METRIC_CALLS, call, part, 1);
    count(METRIC_CALL_TIME, call, part, ms);
    sample(METRIC_CALL_SLOWEST, call, part, ms);
    unlock();
}

/* ---- what is known beforehand ---- */

/* Takes the value at *list, which then begins behind it. */
static const char *take_value(const char **list, char value[METRIC_LABEL_MAX])
{
    size_t length = strcspn(*list, ",");

    (void)snprintf(value, METRIC_LABEL_MAX, "%.*s", (int)length, *list);
    *list += length + ((*list)[length] == ',');
    return value;
}

static void open_pairs(enum metric metric, const char *first)
{
    const char *list = metric_table[metric].labels[1].values;
    char second[METRIC_LABEL_MAX];

    if (!metric_table[metric].labels[1].name)
        metrics_count(metric, first, NULL, 0);
    while (list && *list)
        metrics_count(metric, first, take_value(&list, second), 0);
}

static void open_row(enum metric metric)
{
    const char *list = metric_table[metric].labels[0].values;
    char first[METRIC_LABEL_MAX];

    if (!metric_table[metric].labels[0].name)
        open_pairs(metric, "");
    while (list && *list)
        open_pairs(metric, take_value(&list, first));
}

void metrics_open(enum metric_owner owner)
{
    for (unsigned metric = 0; metric < METRICS; metric++)
        if (metric_table[metric].kind == METRIC_COUNTER && metric_table[metric].owner == owner)
            open_row((enum metric)metric);
}

/* ---- telling the host ---- */

bool metrics_next(size_t *number, struct metric_news *news)
{
    bool found = false;

    lock();
    for (; !found && *number < store.count; ++*number) {
        const struct series *series = &store.series[*number + 1];

        found = series->due;
        if (!found)
            continue;
        *news = (struct metric_news){
            .series = *number + 1, .metric = series->metric, .value = (float)series->value};
        memcpy(news->labels, series->labels, sizeof news->labels);
    }
    unlock();
    return found;
}

/* Changes that came meanwhile are told the next time. */
void metrics_told(const struct metric_news *news)
{
    struct series *series = &store.series[news->series];

    lock();
    if (metric_table[news->metric].kind == METRIC_COUNTER) {
        series->value -= (double)news->value;
        series->due = series->value >= 0.001;
    } else {
        series->due = (float)series->value != news->value;
    }
    unlock();
}
