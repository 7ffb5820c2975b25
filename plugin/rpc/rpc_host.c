/* Calls to the host, one at a time, on the server's own queue. */
#include <stdlib.h>

#include <grpc/byte_buffer.h>
#include <grpc/grpc_security.h>

#include "plugin/rpc/rpc_internal.h"

enum { ANSWER_SECONDS = 2 };

/* A call to the host: made of the same parts as a call from it, and on the same queue. */
struct host_call {
    struct rpc_call call; /* first: what rpc_free_call frees */
    grpc_metadata_array trailing;
    grpc_status_code status;
    grpc_slice details;
    rpc_host_answered *answered;
};

static void step_answered(struct rpc *rpc, struct rpc_call *call, bool ok)
{
    struct host_call *host = (struct host_call *)call;

    rpc->host_call = NULL;
    host->answered(ok && host->status == GRPC_STATUS_OK);
    grpc_metadata_array_destroy(&host->trailing);
    grpc_slice_unref(host->details);
    rpc_free_call(call);
}

static grpc_channel *connect_to(const char *socket)
{
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    char target[RPC_TARGET_MAX];
    grpc_channel *channel;

    rpc_target(socket, target);
    channel = grpc_channel_create(target, plain, NULL);
    grpc_channel_credentials_release(plain);
    return channel;
}

static void start_host_call(struct host_call *host)
{
    grpc_op ops[6] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},  {.op = GRPC_OP_SEND_MESSAGE},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}, {.op = GRPC_OP_RECV_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_MESSAGE},           {.op = GRPC_OP_RECV_STATUS_ON_CLIENT},
    };

    ops[1].data.send_message.send_message = host->call.answer;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &host->call.metadata;
    ops[4].data.recv_message.recv_message = &host->call.payload;
    ops[5].data.recv_status_on_client.trailing_metadata = &host->trailing;
    ops[5].data.recv_status_on_client.status = &host->status;
    ops[5].data.recv_status_on_client.status_details = &host->details;
    rpc_start(&host->call, ops, sizeof ops / sizeof ops[0], &host->call.answered);
}

static struct host_call *new_call(struct rpc *rpc, const char *method, const uint8_t *bytes,
                                  size_t length, rpc_host_answered *answered)
{
    gpr_timespec deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                         gpr_time_from_seconds(ANSWER_SECONDS, GPR_TIMESPAN));
    struct host_call *host = calloc(1, sizeof *host);
    grpc_slice slice;

    if (!host)
        return NULL;
    host->call.rpc = rpc;
    host->answered = answered;
    host->call.request = grpc_empty_slice();
    host->call.why = grpc_empty_slice();
    host->details = grpc_empty_slice();
    host->call.answered = (struct rpc_tag){RPC_TAG_MAGIC, step_answered, &host->call};
    grpc_metadata_array_init(&host->call.metadata);
    grpc_metadata_array_init(&host->trailing);
    grpc_call_details_init(&host->call.details);
    slice = grpc_slice_from_copied_buffer((const char *)bytes, length);
    host->call.answer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    slice = grpc_slice_from_static_string(method);
    host->call.call = grpc_channel_create_call(rpc->host, NULL, GRPC_PROPAGATE_DEFAULTS, rpc->queue,
                                               slice, NULL, deadline, NULL);
    return host;
}

bool rpc_call_host(struct rpc *rpc, const char *socket, const char *method, const uint8_t *bytes,
                   size_t length, rpc_host_answered *answered)
{
    struct host_call *host = NULL;

    (void)pthread_mutex_lock(&rpc->gate);
    if (!rpc->stopping && !rpc->host_call) {
        if (!rpc->host)
            rpc->host = connect_to(socket);
        host = new_call(rpc, method, bytes, length, answered);
    }
    if (host) {
        rpc->live++;
        rpc->host_call = host->call.call;
        start_host_call(host);
    }
    (void)pthread_mutex_unlock(&rpc->gate);
    return host != NULL;
}
