/* SPIRE's Init service: the host learns which services this process offers, and tells which it
 * offers itself. */
#include "plugin/service/svc.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "plugin/rpc/message.h"
#include "plugin/service/host.h"
#include "proto/spire.pb-c.h"

static const char metrics_service[] = "spire.hostservice.common.metrics.v1.Metrics";

static const struct role *role;

void init_open(const struct role *of_this_process)
{
    role = of_this_process;
}

static bool offers(const Spire__InitRequest *request, const char *service)
{
    for (size_t i = 0; i < request->n_host_service_names; i++)
        if (strcmp(request->host_service_names[i], service) == 0)
            return true;
    return false;
}

/* Server and agent start their key managers with the same cookie. Only the host services that they
 * offer differ: any service of the server's name space means a server. (SPIRE has IdentityProvider
 * for notifiers, and is about to drop it.) If the wrong host is told of a service, it logs a
 * warning. */
static bool host_is_agent(const Spire__InitRequest *request)
{
    static const char of_a_server[] = "spire.hostservice.server.";

    for (size_t i = 0; i < request->n_host_service_names; i++)
        if (strncmp(request->host_service_names[i], of_a_server, strlen(of_a_server)) == 0)
            return false;
    return offers(request, metrics_service);
}

static void init(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    static char config_service[] = "spire.service.common.config.v1.Config";
    char service[128];
    char *names[] = {service, config_service};
    Spire__InitResponse response = SPIRE__INIT_RESPONSE__INIT;
    struct fault fault;
    OWNED(message_scope_free)
    Spire__InitRequest *request =
        message_parse(&spire__init_request__descriptor, bytes, length, &fault);
    bool agent;

    if (!request) {
        rpc_fail(call, &fault);
        return;
    }
    host_offers_metrics(offers(request, metrics_service));
    agent = role->agent_service && host_is_agent(request);
    (void)snprintf(service, sizeof service, "%s", agent ? role->agent_service : role->service);
    response.plugin_service_names = names;
    response.n_plugin_service_names = sizeof names / sizeof names[0];
    message_reply(call, &response.base);
}

/* Shutdown follows at once and does the work. */
static void deinit(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    (void)bytes;
    (void)length;
    rpc_reply(call, (const uint8_t *)"", 0);
}

const struct rpc_method init_methods[] = {
    {"/spire.service.private.init.v1.Init/Init", RPC_UNARY, init},
    {"/spire.service.private.init.v1.Init/Deinit", RPC_UNARY, deinit},
    {0},
};
