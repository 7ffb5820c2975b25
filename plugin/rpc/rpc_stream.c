/* A stream that the host holds open, on the same queue as the calls. */
#include "plugin/rpc/rpc_internal.h"

/* A stream has up to three operations under way: its end, its opening, its next message. The last
 * to come back frees it, whatever their order. */
static void operation_over(struct rpc_call *call)
{
    if (--call->pending == 0)
        rpc_free_call(call);
}

static void receive_message(struct rpc_call *call)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};

    op.data.recv_message.recv_message = &call->payload;
    rpc_start(call, &op, 1, &call->message);
}

static void step_over(struct rpc *rpc, struct rpc_call *call, bool ok)
{
    (void)rpc;
    (void)ok;
    operation_over(call);
}

/* No payload means that the peer sends no more. The stream goes on. */
static void step_message(struct rpc *rpc, struct rpc_call *call, bool ok)
{
    (void)rpc;
    if (!ok || !rpc_take_payload(call)) {
        operation_over(call);
        return;
    }
    if (call->method->handler)
        call->method->handler(call, GRPC_SLICE_START_PTR(call->request),
                              GRPC_SLICE_LENGTH(call->request));
    rpc_wipe_request(call);
    receive_message(call);
}

void rpc_stream_begin(struct rpc_call *call)
{
    grpc_op end = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    grpc_op open = {.op = GRPC_OP_SEND_INITIAL_METADATA};

    call->pending = 3;
    call->closed.step = step_over;
    call->answered.step = step_over;
    call->message.step = step_message;
    end.data.recv_close_on_server.cancelled = &call->cancelled;
    rpc_start(call, &end, 1, &call->closed);
    rpc_start(call, &open, 1, &call->answered);
    receive_message(call);
}
