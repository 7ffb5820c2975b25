/* Between wire bytes and protobuf-c structs, with the checks protobuf-c leaves out. */
#ifndef PLUGIN_RPC_MESSAGE_H
#define PLUGIN_RPC_MESSAGE_H

#include <protobuf-c/protobuf-c.h>

#include "plugin/rpc/rpc.h"

/* Parses a request; NULL and FAULT_INVALID_ARGUMENT when it is not one, or when a
 * string in it (at any depth) holds a NUL or is not UTF-8. Free the result with
 * message_free. */
void *message_parse(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t length,
                    struct fault *fault);
void message_free(void *message);

/* For OWNED(message_scope_free) locals of any message type. */
void message_scope_free(void *message);

/* Packs `message` and answers the call with it. The message stays the caller's. */
void message_reply(struct rpc_call *call, const ProtobufCMessage *message);

#endif
