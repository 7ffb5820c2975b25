/* The parts that calls in both directions share: starting operations, payload, end, and the
 * address. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>

#include "plugin/rpc/rpc_internal.h"

/* The address is a URI, so a '%' or '?' in a folder's name must be escaped. */
void rpc_target(const char *path, char target[RPC_TARGET_MAX])
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-";
    size_t used = (size_t)snprintf(target, RPC_TARGET_MAX, "unix:");

    for (; *path && used + 4 < RPC_TARGET_MAX; path++)
        used += (size_t)snprintf(target + used, 4, strchr(plain, *path) ? "%c" : "%%%02X",
                                 (unsigned char)*path);
}

void rpc_start(struct rpc_call *call, const grpc_op *ops, size_t count, struct rpc_tag *tag)
{
    grpc_call *core = call->call; /* where the tag comes out, the call may be freed at once */
    grpc_call_error error;

    TAG_STARTS(tag);
    error = grpc_call_start_batch(core, ops, count, tag, NULL);
    assert(error == GRPC_CALL_OK);
    (void)error;
}

bool rpc_take_payload(struct rpc_call *call)
{
    grpc_byte_buffer_reader reader;

    if (!call->payload || !grpc_byte_buffer_reader_init(&reader, call->payload))
        return false;
    call->request = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(call->payload);
    call->payload = NULL;
    return true;
}

void rpc_wipe_request(struct rpc_call *call)
{
    explicit_bzero(GRPC_SLICE_START_PTR(call->request), GRPC_SLICE_LENGTH(call->request));
    grpc_slice_unref(call->request);
    call->request = grpc_empty_slice();
}

void rpc_free_call(struct rpc_call *call)
{
    rpc_wipe_request(call);
    grpc_slice_unref(call->why);
    grpc_byte_buffer_destroy(call->payload);
    grpc_byte_buffer_destroy(call->answer);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_details_destroy(&call->details);
    if (call->call)
        grpc_call_unref(call->call);
    call->rpc->live--;
    free(call);
}
