/* The gRPC server on C-core: one thread takes each event from the queue and answers, or hands the
 * call on. */
#include "plugin/rpc/rpc.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>

#include "hsm/base/clock.h"
#include "hsm/base/utf8.h"
#include "plugin/report/log.h"
#include "plugin/rpc/rpc_internal.h"

#define SAME_CODE(name) \
    _Static_assert((int)FAULT_##name == (int)GRPC_STATUS_##name, "fault.h has gRPC's numbers")
_Static_assert((int)FAULT_NONE == (int)GRPC_STATUS_OK, "fault.h has gRPC's numbers");
SAME_CODE(CANCELLED);
SAME_CODE(INVALID_ARGUMENT);
SAME_CODE(DEADLINE_EXCEEDED);
SAME_CODE(NOT_FOUND);
SAME_CODE(PERMISSION_DENIED);
SAME_CODE(RESOURCE_EXHAUSTED);
SAME_CODE(FAILED_PRECONDITION);
SAME_CODE(ABORTED);
SAME_CODE(UNIMPLEMENTED);
SAME_CODE(INTERNAL);
SAME_CODE(UNAVAILABLE);

/* Peers refuse headers of more than 8 KiB, and percent-encoding can triple a message. */
_Static_assert(FAULT_MESSAGE_MAX <= 2048, "a status message fits into gRPC's headers");

enum {
    RECEIVE_MAX = 4 << 20,
    STREAMS_MAX = 1024,
    HANDSHAKE_MS = 10000,
    FEW_CALLS = 2,
    CORE_MESSAGE_MAX = 256,
};

static void step_arrived(struct rpc *rpc, struct rpc_call *call, bool ok);

/* Lets C-core deliver the next call of a method. One slot is enough: it is armed again before the
 * delivered call is handled. */
static void arm(struct rpc *rpc, const struct rpc_method *method, void *registered)
{
    struct rpc_call *call = calloc(1, sizeof *call);
    grpc_call_error error;

    if (!call) { /* C-core ends likewise: without a slot the method would never be served again */
        log_write(LOG_ERROR, "out of memory: the plugin ends", NULL);
        abort();
    }
    call->rpc = rpc;
    call->method = method;
    call->registered = registered;
    call->request = grpc_empty_slice();
    call->why = grpc_empty_slice();
    call->arrived = (struct rpc_tag){RPC_TAG_MAGIC, step_arrived, call};
    call->answered = call->message = call->closed = (struct rpc_tag){RPC_TAG_MAGIC, NULL, call};
    grpc_metadata_array_init(&call->metadata);
    grpc_call_details_init(&call->details);
    rpc->live++;
    TAG_STARTS(&call->arrived);
    if (method)
        error = grpc_server_request_registered_call(
            rpc->server, registered, &call->call, &call->deadline, &call->metadata,
            method->kind == RPC_UNARY ? &call->payload : NULL, rpc->queue, rpc->queue,
            &call->arrived);
    else
        error = grpc_server_request_call(rpc->server, &call->call, &call->details, &call->metadata,
                                         rpc->queue, rpc->queue, &call->arrived);
    if (error != GRPC_CALL_OK)
        rpc_free_call(call);
}

static void step_answered(struct rpc *rpc, struct rpc_call *call, bool ok)
{
    (void)ok; /* false: the client has left */
    rpc->unary--;
    rpc_free_call(call);
}

static void unknown_method(struct rpc_call *call)
{
    struct fault fault;
    char path[256];
    char *name = grpc_slice_to_c_string(call->details.method);

    utf8_clean(name, false, path, sizeof path);
    gpr_free(name);
    (void)fault_set(&fault, FAULT_UNIMPLEMENTED, "unknown method %s", path);
    rpc_fail(call, &fault);
}

static void unary_begin(struct rpc_call *call)
{
    struct fault fault;

    call->answered.step = step_answered;
    call->came = clock_now();
    call->rpc->unary++;
    if (!call->method) {
        unknown_method(call);
    } else if (!rpc_take_payload(call)) {
        (void)fault_set(&fault, FAULT_INTERNAL, "the request has no message");
        rpc_fail(call, &fault);
    } else {
        call->method->handler(call, GRPC_SLICE_START_PTR(call->request),
                              GRPC_SLICE_LENGTH(call->request));
    }
}

static void step_arrived(struct rpc *rpc, struct rpc_call *call, bool ok)
{
    if (!ok) { /* failed: the server is stopping */
        rpc_free_call(call);
        return;
    }
    arm(rpc, call->method, call->registered);
    if (call->method && call->method->kind == RPC_STREAM)
        rpc_stream_begin(call);
    else
        unary_begin(call);
}

/* The call may be freed by rpc_run's thread before rpc_start returns. */
static void send_answer(struct rpc_call *call)
{
    grpc_op ops[4] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_CLOSE_ON_SERVER},
        {.op = GRPC_OP_SEND_STATUS_FROM_SERVER},
        {.op = GRPC_OP_SEND_MESSAGE},
    };

    ops[1].data.recv_close_on_server.cancelled = &call->cancelled;
    ops[2].data.send_status_from_server.status = call->status;
    ops[2].data.send_status_from_server.status_details =
        GRPC_SLICE_LENGTH(call->why) > 0 ? &call->why : NULL;
    ops[3].data.send_message.send_message = call->answer;
    rpc_start(call, ops, call->answer ? 4 : 3, &call->answered);
}

/* Nothing wakes C-core's queue by hand. But a batch without operations is done at once, and its tag
 * comes out of the queue. */
static void hand_over(struct rpc_call *call)
{
    struct rpc *rpc = call->rpc;
    bool first;

    (void)pthread_mutex_lock(&rpc->gate);
    first = !rpc->answers;
    *rpc->answers_end = call;
    rpc->answers_end = &call->next;
    if (first)
        rpc_start(call, NULL, 0, &rpc->handed);
    (void)pthread_mutex_unlock(&rpc->gate);
}

static void step_handed(struct rpc *rpc, struct rpc_call *none, bool ok)
{
    struct rpc_call *next;

    (void)none;
    (void)ok;
    (void)pthread_mutex_lock(&rpc->gate);
    next = rpc->answers;
    rpc->answers = NULL;
    rpc->answers_end = &rpc->answers;
    (void)pthread_mutex_unlock(&rpc->gate);
    while (next) {
        struct rpc_call *call = next;

        next = call->next;
        send_answer(call);
    }
}

/* With few calls, the current thread answers, which spares a wake-up. With many, two threads block
 * each other at one connection: C-core then moves the work of the second to a third one, and the
 * wake-up costs more than the work. */
static void answer(struct rpc_call *call, grpc_status_code status, const char *why)
{
    struct rpc *rpc = call->rpc;

    call->status = status;
    call->why = grpc_slice_from_copied_string(why);
    if (rpc->unary <= FEW_CALLS || pthread_equal(rpc->runner, pthread_self()))
        send_answer(call);
    else
        hand_over(call);
}

void rpc_reply(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    grpc_slice slice = grpc_slice_from_copied_buffer((const char *)bytes, length);

    call->answer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    answer(call, GRPC_STATUS_OK, "");
}

void rpc_fail(struct rpc_call *call, const struct fault *fault)
{
    char message[FAULT_MESSAGE_MAX];

    assert(fault->code != FAULT_NONE);
    utf8_clean(fault->message, true, message, sizeof message);
    answer(call, (grpc_status_code)fault->code, message);
}

int64_t rpc_arrived(const struct rpc_call *call)
{
    return call->came;
}

int64_t rpc_deadline(const struct rpc_call *call)
{
    gpr_timespec deadline = gpr_convert_clock_type(call->deadline, GPR_CLOCK_MONOTONIC);
    gpr_timespec rest;

    if (gpr_time_cmp(deadline, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0)
        return CLOCK_NEVER;
    rest = gpr_time_sub(deadline, gpr_now(GPR_CLOCK_MONOTONIC));
    if (rest.tv_sec > CLOCK_NEVER / CLOCK_SECOND / 2)
        return CLOCK_NEVER;
    return clock_now() + rest.tv_sec * CLOCK_SECOND + rest.tv_nsec;
}

/* C-core's errors quote the bytes that a peer sent, so they are for debugging. A failed assertion
 * ends the process. */
static void log_core(gpr_log_func_args *args)
{
    enum log_level level =
        strncmp(args->message, "assertion failed", 16) == 0 ? LOG_ERROR : LOG_DEBUG;
    char message[CORE_MESSAGE_MAX];

    utf8_clean(args->message, false, message, sizeof message);
    log_write(level, "grpc", "message", message, NULL);
}

static grpc_server *create_server(void)
{
    static char receive_max[] = GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH;
    static char streams_max[] = GRPC_ARG_MAX_CONCURRENT_STREAMS;
    static char handshake_ms[] = GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS;
    static char algorithms[] = GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET;
    grpc_arg args[] = {
        {GRPC_ARG_INTEGER, receive_max, {.integer = RECEIVE_MAX}},
        {GRPC_ARG_INTEGER, streams_max, {.integer = STREAMS_MAX}},
        {GRPC_ARG_INTEGER, handshake_ms, {.integer = HANDSHAKE_MS}},
        /* identity only: the size limit is checked before decompressing */
        {GRPC_ARG_INTEGER, algorithms, {.integer = 1}},
    };
    const grpc_channel_args all = {sizeof args / sizeof args[0], args};

    return grpc_server_create(&all, NULL);
}

static int listen_on(struct rpc *rpc, const char *path, struct fault *fault)
{
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    char target[RPC_TARGET_MAX];
    int bound;

    rpc_target(path, target);
    bound = grpc_server_add_http2_port(rpc->server, target, credentials);
    grpc_server_credentials_release(credentials);
    if (!bound)
        return fault_set(fault, FAULT_INTERNAL, "cannot listen on %s", target);
    return 0;
}

static void step_shut(struct rpc *rpc, struct rpc_call *call, bool ok)
{
    (void)call;
    (void)ok;
    rpc->live--;
}

static void arm_all(struct rpc *rpc, const struct rpc_method *const tables[], void *registered[])
{
    size_t row = 0;

    arm(rpc, NULL, NULL);
    for (size_t t = 0; tables[t]; t++)
        for (const struct rpc_method *method = tables[t]; method->path; method++)
            arm(rpc, method, registered[row++]);
}

static int start_server(struct rpc *rpc, const struct rpc_method *const tables[],
                        struct fault *fault)
{
    void *registered[64];
    size_t row = 0;

    for (size_t t = 0; tables[t]; t++)
        for (const struct rpc_method *method = tables[t]; method->path; method++) {
            if (row == sizeof registered / sizeof registered[0])
                return fault_set(fault, FAULT_INTERNAL, "too many gRPC methods");
            registered[row] = grpc_server_register_method(
                rpc->server, method->path, NULL,
                method->kind == RPC_UNARY ? GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER
                                          : GRPC_SRM_PAYLOAD_NONE,
                0);
            if (!registered[row++])
                return fault_set(fault, FAULT_INTERNAL, "gRPC method %s is there twice",
                                 method->path);
        }
    grpc_server_start(rpc->server);
    arm_all(rpc, tables, registered);
    return 0;
}

int rpc_open(const char *path, const struct rpc_method *const tables[], struct rpc **result,
             struct fault *fault)
{
    struct rpc *rpc = calloc(1, sizeof *rpc);

    if (!rpc)
        return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
    gpr_set_log_function(log_core);
    grpc_init();
    (void)pthread_mutex_init(&rpc->gate, NULL);
    rpc->shut = (struct rpc_tag){RPC_TAG_MAGIC, step_shut, NULL};
    rpc->handed = (struct rpc_tag){RPC_TAG_MAGIC, step_handed, NULL};
    rpc->answers_end = &rpc->answers;
    rpc->live = 1;
    rpc->queue = grpc_completion_queue_create_for_next(NULL);
    rpc->server = create_server();
    grpc_server_register_completion_queue(rpc->server, rpc->queue, NULL);
    if (listen_on(rpc, path, fault) != 0 || start_server(rpc, tables, fault) != 0) {
        rpc_stop(rpc, 0);
        rpc_run(rpc);
        rpc_close(rpc);
        return -1;
    }
    *result = rpc;
    return 0;
}

/* When nobody waits for an answer any more, only streams and idle or stalled connections hold up
 * the stop. They are cut at once. */
static gpr_timespec advance_stop(struct rpc *rpc)
{
    gpr_timespec wake = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    int64_t rest;

    (void)pthread_mutex_lock(&rpc->gate);
    rest = rpc->grace_end - clock_now();
    if (rpc->stopping && !rpc->cancelled && rpc->unary > 0 && rest > 0) {
        wake = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(rest, GPR_TIMESPAN));
    } else if (rpc->stopping && !rpc->cancelled) {
        rpc->cancelled = true;
        grpc_server_cancel_all_calls(rpc->server);
        if (rpc->host_call)
            (void)grpc_call_cancel(rpc->host_call, NULL);
    }
    if (rpc->stopping && rpc->live == 0 && !rpc->drained) {
        rpc->drained = true;
        grpc_completion_queue_shutdown(rpc->queue);
    }
    (void)pthread_mutex_unlock(&rpc->gate);
    return wake;
}

void rpc_run(struct rpc *rpc)
{
    rpc->runner = pthread_self();
    for (;;) {
        gpr_timespec wake = advance_stop(rpc);
        grpc_event event = grpc_completion_queue_next(rpc->queue, wake, NULL);
        struct rpc_tag *tag = event.tag;

        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return;
        if (event.type == GRPC_QUEUE_TIMEOUT)
            continue;
        TAG_RETURNS(tag);
        assert(tag->magic == RPC_TAG_MAGIC);
        tag->step(rpc, tag->call, event.success != 0);
    }
}

/* The gate stays closed until C-core knows of the stop. The failed slots wake rpc_run's thread,
 * which must find `stopping` set, as nothing would wake it again. */
void rpc_stop(struct rpc *rpc, unsigned grace_ms)
{
    int64_t grace_end = clock_now() + (int64_t)grace_ms * CLOCK_MILLISECOND;

    (void)pthread_mutex_lock(&rpc->gate);
    if (!rpc->stopping) {
        TAG_STARTS(&rpc->shut);
        grpc_server_shutdown_and_notify(rpc->server, rpc->queue, &rpc->shut);
        rpc->grace_end = grace_end;
        rpc->stopping = true;
    } else if (grace_end < rpc->grace_end) {
        rpc->grace_end = grace_end;
    }
    (void)pthread_mutex_unlock(&rpc->gate);
}

void rpc_close(struct rpc *rpc)
{
    if (rpc->host)
        grpc_channel_destroy(rpc->host);
    grpc_server_destroy(rpc->server);
    grpc_completion_queue_destroy(rpc->queue);
    grpc_shutdown_blocking();
    (void)pthread_mutex_destroy(&rpc->gate);
    free(rpc);
}
