/* One binary, three plugin types. SPIRE starts one process per plugin block and sets
 * an environment variable named like the type to the type itself (go-plugin's magic
 * cookie); that picks the row of the table in role.c. */
#ifndef PLUGIN_SERVICE_ROLE_H
#define PLUGIN_SERVICE_ROLE_H

#include "hsm/base/fault.h"
#include "plugin/config/config.h"
#include "plugin/rpc/rpc.h"

struct role {
    const char *type;                 /* "KeyManager", "BundlePublisher", "Notifier" */
    enum config_kind kind;            /* of its plugin_data */
    const char *service;              /* announced by Init to a spire-server */
    const char *agent_service;        /* to a spire-agent; NULL where agents have no such plugin */
    const struct rpc_method *methods; /* of service */
    const struct rpc_method *agent_methods; /* of agent_service, or NULL */

    /* Makes `config` the one in force, or leaves the old one serving and says why.
     * On the slow lane, one at a time. May take as long as startup_wait. The config
     * and the fault are the caller's. */
    int (*configure)(const struct config *config, struct fault *fault);

    /* From any thread, once: cut short whatever configure is waiting for, then end.
     * Calls still unanswered are failed. Returns within a second. NULL where the role keeps
     * nothing outside the slow lane. */
    void (*close)(void);

    /* Sets the gauges of its metrics (plugin/report/metrics.h), from the thread that ticks, whether
     * it is configured or not. Neither blocks nor asks the token. */
    void (*measure)(void);
};

/* The row whose cookie is in the environment, or NULL. */
const struct role *role_from_environment(void);

#endif
