/* How a go-plugin host (protocol 1) and its plugin find each other: the host's wishes
 * come in environment variables, the plugin answers with one line on stdout that says
 * where it listens. Whatever cannot be met is refused before that line.
 *
 * Calling sequence: handshake_check, handshake_choose, (listen on that path),
 * handshake_share, handshake_announce. */
#ifndef PLUGIN_RPC_HANDSHAKE_H
#define PLUGIN_RPC_HANDSHAKE_H

#include "hsm/base/fault.h"
#include "plugin/rpc/rpc.h"

/* PLUGIN_CLIENT_CERT (mutual TLS) and PLUGIN_PROTOCOL_VERSIONS without 1 are refused
 * with FAULT_FAILED_PRECONDITION. */
int handshake_check(struct fault *fault);

/* An unpredictable socket path in $PLUGIN_UNIX_SOCKET_DIR, else $TMPDIR, else /tmp. */
int handshake_choose(char path[RPC_PATH_MAX], struct fault *fault);

/* Opens the socket to the group PLUGIN_UNIX_SOCKET_GROUP (name or number) if it is set. */
int handshake_share(const char *path, struct fault *fault);

/* Turns stdout into /dev/null, then prints the line where stdout was: the host reads it
 * line by line and stops at an overlong one, and PKCS#11 modules print. */
int handshake_announce(const char *path, struct fault *fault);

#endif
