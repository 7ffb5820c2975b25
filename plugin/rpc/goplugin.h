/* The services that go-plugin itself demands of a plugin: health, the broker stream, shutdown, and
 * a stream for stdout and stderr that stays silent (our log goes through the stderr pipe, our
 * stdout is closed). */
#ifndef PLUGIN_RPC_GOPLUGIN_H
#define PLUGIN_RPC_GOPLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "plugin/rpc/rpc.h"

extern const struct rpc_method goplugin_methods[];

/* `shutdown` is called, on the gRPC thread, when the host asks the plugin to end; it
 * must not block. Before the first call. */
void goplugin_open(void (*shutdown)(void));

/* Where the host offers its brokered service `id`, as a unix socket path. false: it has
 * not said so (yet): the stream that says so may come after Init. Any thread. */
bool goplugin_host_address(uint32_t id, char *path, size_t size);

#endif
