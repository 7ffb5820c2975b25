/* Figures for the host's telemetry, sent one at a time: a slow host slows down nothing else. */
#include "plugin/service/host.h"

#include <stdatomic.h>
#include <stdio.h>

#include "hsm/base/clock.h"
#include "plugin/report/metrics.h"
#include "plugin/rpc/goplugin.h"
#include "proto/spire.pb-c.h"

enum {
    HOST_SERVICES = 1, /* SPIRE's broker id for all of its services */
    NAME_MAX_BYTES = 32,
    REQUEST_MAX = 64 + 2 * (METRIC_LABEL_MAX + NAME_MAX_BYTES + 16),
};

static const int64_t measure_interval = 5 * CLOCK_SECOND;

static atomic_bool offered;

/* `out` says who owns the other members: the ticking thread, or the thread that hears the host's
 * answer. */
static struct {
    const struct role *role;
    int64_t measured;
    atomic_bool out;
    struct rpc *rpc;
    char socket[RPC_PATH_MAX];
    size_t series;
    struct metric_news news;
} tell;

void host_open(const struct role *role)
{
    tell.role = role;
    metrics_open(role->kind == CONFIG_KEYMANAGER ? METRIC_KEYMANAGERS : METRIC_PUBLISHERS);
}

void host_offers_metrics(bool offers)
{
    offered = offers;
}

/* ---- one figure at a time ---- */

static const char *method(enum metric_kind kind)
{
    static const char *const methods[] = {
        [METRIC_COUNTER] = "/spire.hostservice.common.metrics.v1.Metrics/IncrCounter",
        [METRIC_GAUGE] = "/spire.hostservice.common.metrics.v1.Metrics/SetGauge",
        [METRIC_SAMPLE] = "/spire.hostservice.common.metrics.v1.Metrics/AddSample",
    };

    return methods[kind];
}

/* protobuf-c only reads these texts, but its type is not const. */
struct label_text {
    Spire__MetricLabel message;
    char name[NAME_MAX_BYTES];
};

static size_t view_labels(struct metric_news *news, struct label_text texts[METRIC_LABELS],
                          Spire__MetricLabel *labels[METRIC_LABELS])
{
    size_t count = 0;

    for (size_t i = 0; i < METRIC_LABELS && metric_table[news->metric].labels[i].name; i++) {
        struct label_text *text = &texts[count];

        spire__metric_label__init(&text->message);
        (void)snprintf(text->name, sizeof text->name, "%s",
                       metric_table[news->metric].labels[i].name);
        text->message.name = text->name;
        text->message.value = news->labels[i];
        labels[count++] = &text->message;
    }
    return count;
}

static void host_answered(bool heard);

static bool send(struct metric_news *news)
{
    const struct metric_row *row = &metric_table[news->metric];
    Spire__MetricRequest request = SPIRE__METRIC_REQUEST__INIT;
    char prefix[] = "pkcs11";
    char name[NAME_MAX_BYTES];
    char *key[] = {prefix, name};
    struct label_text texts[METRIC_LABELS];
    Spire__MetricLabel *labels[METRIC_LABELS];
    uint8_t bytes[REQUEST_MAX];

    (void)snprintf(name, sizeof name, "%s", row->name);
    request.key = key;
    request.n_key = sizeof key / sizeof key[0];
    request.val = news->value;
    request.labels = labels;
    request.n_labels = view_labels(news, texts, labels);
    return rpc_call_host(tell.rpc, tell.socket, method(row->kind), bytes,
                         spire__metric_request__pack(&request, bytes), host_answered);
}

/* Returns false if there is nothing left to tell, or the plugin is stopping. */
static bool send_next(void)
{
    if (metrics_next(&tell.series, &tell.news))
        return send(&tell.news);
    tell.series = 0;
    return false;
}

/* After a failure the host is tried again at the next tick, beginning with the next figure. */
static void host_answered(bool heard)
{
    if (heard)
        metrics_told(&tell.news);
    if (!heard || !send_next())
        tell.out = false;
}

/* ---- the tick ---- */

static void measure(void)
{
    int64_t now = clock_now();

    if (tell.measured != 0 && now - tell.measured < measure_interval)
        return;
    tell.measured = now;
    metrics_count(METRIC_HEARTBEAT, tell.role->type, NULL, 1);
    tell.role->measure();
}

void host_tick(struct rpc *rpc)
{
    if (!offered)
        return;
    measure();
    if (tell.out || !goplugin_host_address(HOST_SERVICES, tell.socket, sizeof tell.socket))
        return;
    tell.rpc = rpc;
    tell.out = true;
    if (!send_next())
        tell.out = false;
}
