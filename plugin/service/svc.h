/* The services' method tables for rpc_open and, for the three roles' own services, the functions in
 * role.c's table. Each table ends with a row without path. */
#ifndef PLUGIN_SERVICE_SVC_H
#define PLUGIN_SERVICE_SVC_H

#include "hsm/base/fault.h"
#include "plugin/config/config.h"
#include "plugin/rpc/rpc.h"
#include "plugin/service/role.h"

/* spire.service.private.init.v1 and spire.service.common.config.v1, in every role. */
extern const struct rpc_method init_methods[];
extern const struct rpc_method config_methods[];

/* The role that Init announces and Configure configures. Before the first call. */
void init_open(const struct role *role);
void config_open(const struct role *role);

extern const struct rpc_method keymanager_methods[];
extern const struct rpc_method keymanager_agent_methods[];
int keymanager_configure(const struct config *config, struct fault *fault);
void keymanager_close(void);
void keymanager_gauge(void);

/* BundlePublisher and Notifier */
extern const struct rpc_method publisher_methods[];
extern const struct rpc_method notifier_methods[];
int bundle_configure(const struct config *config, struct fault *fault);

#endif
