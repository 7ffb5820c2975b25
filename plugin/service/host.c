#include "plugin/service/host.h"

#include <stdatomic.h>
#include <string.h>

#include "plugin/report/metrics.h"
#include "plugin/rpc/goplugin.h"
#include "proto/spire.pb-c.h"

enum {
    HOST_SERVICES = 1, /* SPIRE's broker id of all of them */
    REQUEST_MAX = 128,
};

static const char *const names[METRICS] = {
    [METRIC_WORKER_ENDED] = "worker_ended",
    [METRIC_KEY_MADE] = "key_made",
    [METRIC_KEY_DESTROYED] = "key_destroyed",
    [METRIC_BUNDLE_WRITTEN] = "bundle_written",
};

static atomic_bool offered;

void host_offers_metrics(bool offers)
{
    offered = offers;
}

/* What is on its way to the host. */
static struct {
    atomic_bool out;
    enum metric metric;
    unsigned count;
} news;

static void told(bool heard)
{
    if (heard)
        metrics_take(news.metric, news.count);
    news.out = false;
}

static bool tell(struct rpc *rpc, const char *socket)
{
    Spire__IncrCounterRequest request = SPIRE__INCR_COUNTER_REQUEST__INIT;
    char prefix[] = "pkcs11";
    char name[32] = "";
    char *key[] = {prefix, name};
    uint8_t bytes[REQUEST_MAX];

    strncat(name, names[news.metric], sizeof name - 1);
    request.key = key;
    request.n_key = sizeof key / sizeof key[0];
    request.val = (float)news.count;
    return rpc_tell(rpc, socket, "/spire.hostservice.common.metrics.v1.Metrics/IncrCounter", bytes,
                    spire__incr_counter_request__pack(&request, bytes), told);
}

void host_tick(struct rpc *rpc)
{
    unsigned metric = 0;
    char socket[108];

    while (metric < METRICS && metrics_pending((enum metric)metric) == 0)
        metric++;
    if (metric == METRICS || !offered || news.out ||
        !goplugin_host_address(HOST_SERVICES, socket, sizeof socket))
        return;
    news.metric = (enum metric)metric;
    news.count = metrics_pending(news.metric);
    news.out = true;
    if (!tell(rpc, socket))
        news.out = false;
}
