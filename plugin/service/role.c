/* Which services a plugin type offers to SPIRE. */
#include "plugin/service/role.h"

#include <stdlib.h>
#include <string.h>

#include "plugin/service/svc.h"
#include "plugin/service/svc_bundle_figures.h"

static const struct role roles[] = {
    {
        .type = "KeyManager",
        .kind = CONFIG_KEYMANAGER,
        .service = "spire.plugin.server.keymanager.v1.KeyManager",
        .agent_service = "spire.plugin.agent.keymanager.v1.KeyManager",
        .methods = keymanager_methods,
        .agent_methods = keymanager_agent_methods,
        .configure = keymanager_configure,
        .close = keymanager_close,
        .measure = keymanager_gauge,
    },
    {
        .type = "BundlePublisher",
        .kind = CONFIG_PUBLISHER,
        .service = "spire.plugin.server.bundlepublisher.v1.BundlePublisher",
        .methods = publisher_methods,
        .configure = bundle_configure,
        .measure = bundle_figures_measure,
    },
    {
        .type = "Notifier",
        .kind = CONFIG_NOTIFIER,
        .service = "spire.plugin.server.notifier.v1.Notifier",
        .methods = notifier_methods,
        .configure = bundle_configure,
        .measure = bundle_figures_measure,
    },
};

const struct role *role_from_environment(void)
{
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        const char *cookie = getenv(roles[i].type);

        if (cookie && strcmp(cookie, roles[i].type) == 0)
            return &roles[i];
    }
    return NULL;
}
