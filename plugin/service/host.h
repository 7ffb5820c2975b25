/* Our calls to the host's own services, brokered by go-plugin: its Metrics. SPIRE exports our
 * figures (plugin/report/metrics.h) with its own (Prometheus, statsd ..) as pkcs11.<name>. Its
 * IdentityProvider hands out the server's X.509 private key: it is never called. */
#ifndef PLUGIN_SERVICE_HOST_H
#define PLUGIN_SERVICE_HOST_H

#include <stdbool.h>

#include "plugin/rpc/rpc.h"
#include "plugin/service/role.h"

/* Whose figures they are. Before all else. */
void host_open(const struct role *role);

/* Init has said whether the host offers Metrics. */
void host_offers_metrics(bool offers);

/* Tells the host of every figure that has moved, one call behind the other, and every 5 s lets the
 * role set its gauges. About once a second, from the thread that also stops `rpc`; never blocks.
 * Figures that the host has not confirmed are told again. If only its answer is lost, they count
 * twice. */
void host_tick(struct rpc *rpc);

#endif
