#include <stdlib.h>

#include <grpc/byte_buffer.h>
#include <grpc/grpc_security.h>

#include "plugin/rpc/rpc_internal.h"

enum { TELL_SECONDS = 2 };

/* A call outwards: the other way round, but with the same parts and on the same queue. */
struct tell {
    struct rpc_call call; /* first: what rpc_free_call frees */
    grpc_metadata_array trailing;
    grpc_status_code status;
    grpc_slice details;
    rpc_told *told;
};

static void step_told(struct rpc *rpc, struct rpc_call *call, bool ok)
{
    struct tell *tell = (struct tell *)call;

    rpc->telling = NULL;
    tell->told(ok && tell->status == GRPC_STATUS_OK);
    grpc_metadata_array_destroy(&tell->trailing);
    grpc_slice_unref(tell->details);
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

static void start(struct tell *tell)
{
    grpc_op ops[6] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},  {.op = GRPC_OP_SEND_MESSAGE},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}, {.op = GRPC_OP_RECV_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_MESSAGE},           {.op = GRPC_OP_RECV_STATUS_ON_CLIENT},
    };

    ops[1].data.send_message.send_message = tell->call.answer;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &tell->call.metadata;
    ops[4].data.recv_message.recv_message = &tell->call.payload;
    ops[5].data.recv_status_on_client.trailing_metadata = &tell->trailing;
    ops[5].data.recv_status_on_client.status = &tell->status;
    ops[5].data.recv_status_on_client.status_details = &tell->details;
    rpc_start(&tell->call, ops, sizeof ops / sizeof ops[0], &tell->call.answered);
}

static struct tell *new_tell(struct rpc *rpc, const char *method, const uint8_t *bytes,
                             size_t length, rpc_told *told)
{
    gpr_timespec deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                         gpr_time_from_seconds(TELL_SECONDS, GPR_TIMESPAN));
    struct tell *tell = calloc(1, sizeof *tell);
    grpc_slice slice;

    if (!tell)
        return NULL;
    tell->call.rpc = rpc;
    tell->told = told;
    tell->call.request = grpc_empty_slice();
    tell->call.why = grpc_empty_slice();
    tell->details = grpc_empty_slice();
    tell->call.answered = (struct rpc_tag){RPC_TAG_MAGIC, step_told, &tell->call};
    grpc_metadata_array_init(&tell->call.metadata);
    grpc_metadata_array_init(&tell->trailing);
    grpc_call_details_init(&tell->call.details);
    slice = grpc_slice_from_copied_buffer((const char *)bytes, length);
    tell->call.answer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    slice = grpc_slice_from_static_string(method);
    tell->call.call = grpc_channel_create_call(rpc->host, NULL, GRPC_PROPAGATE_DEFAULTS, rpc->queue,
                                               slice, NULL, deadline, NULL);
    return tell;
}

bool rpc_tell(struct rpc *rpc, const char *socket, const char *method, const uint8_t *bytes,
              size_t length, rpc_told *told)
{
    struct tell *tell = NULL;

    (void)pthread_mutex_lock(&rpc->gate);
    if (!rpc->stopping && !rpc->telling) {
        if (!rpc->host)
            rpc->host = connect_to(socket);
        tell = new_tell(rpc, method, bytes, length, told);
    }
    if (tell) {
        rpc->live++;
        rpc->telling = tell->call.call;
        start(tell);
    }
    (void)pthread_mutex_unlock(&rpc->gate);
    return tell != NULL;
}
