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

/* The counter on its way to the host. */
static struct {
    atomic_bool out;
    enum metric metric;
    unsigned count;
} pending;

static void answered(bool heard)
{
    if (heard)
        metrics_take(pending.metric, pending.count);
    pending.out = false;
}

static bool send_pending(struct rpc *rpc, const char *socket)
{
    Spire__IncrCounterRequest request = SPIRE__INCR_COUNTER_REQUEST__INIT;
    char prefix[] = "pkcs11";
    char name[32] = "";
    char *key[] = {prefix, name};
    uint8_t bytes[REQUEST_MAX];

    strncat(name, names[pending.metric], sizeof name - 1);
    request.key = key;
    request.n_key = sizeof key / sizeof key[0];
    request.val = (float)pending.count;
    return rpc_call_host(rpc, socket, "/spire.hostservice.common.metrics.v1.Metrics/IncrCounter",
                         bytes, spire__incr_counter_request__pack(&request, bytes), answered);
}

void host_tick(struct rpc *rpc)
{
    unsigned metric = 0;
    char socket[RPC_PATH_MAX];

    while (metric < METRICS && metrics_pending((enum metric)metric) == 0)
        metric++;
    if (metric == METRICS || !offered || pending.out ||
        !goplugin_host_address(HOST_SERVICES, socket, sizeof socket))
        return;
    pending.metric = (enum metric)metric;
    pending.count = metrics_pending(pending.metric);
    pending.out = true;
    if (!send_pending(rpc, socket))
        pending.out = false;
}
