/* Shared by rpc.c (the server, unary calls), rpc_stream.c (streams), rpc_host.c (calls to the
 * host) and rpc_call.c (what all calls need); nobody else sees gRPC.
 *
 * Everything but answering and host_call belongs to the one thread in rpc_run, so little
 * here is counted atomically. What keeps the server alive is `live`: a completion queue that is
 * shut while a call can still start an operation aborts the process. */
#ifndef PLUGIN_RPC_RPC_INTERNAL_H
#define PLUGIN_RPC_RPC_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <grpc/grpc.h>

#include "plugin/rpc/rpc.h"

enum {
    RPC_TAG_MAGIC = 0x5250c7a6,
    RPC_TARGET_MAX = 512, /* a socket's path, each byte escaped */
};

/* C-core hands back a void *: this is what it points to. */
struct rpc_tag {
    uint32_t magic;
    void (*step)(struct rpc *rpc, struct rpc_call *call, bool ok);
    struct rpc_call *call; /* NULL for the server's own */
};

struct rpc {
    grpc_server *server;
    grpc_completion_queue *queue;
    pthread_t runner;     /* the thread in rpc_run */
    _Atomic size_t live;  /* armed slots and calls not yet freed, and 1 for the server */
    _Atomic size_t unary; /* calls not yet answered to the end */
    bool cancelled;
    bool drained;
    struct rpc_tag shut;
    struct rpc_tag handed; /* `answers` is not empty any more */

    pthread_mutex_t gate; /* the rest: rpc_stop comes from any thread */
    bool stopping;
    int64_t grace_end;
    grpc_channel *host;             /* once rpc_call_host has needed it */
    _Atomic(grpc_call *) host_call; /* the call of rpc_call_host under way */
    struct rpc_call *answers;       /* given by other threads, for rpc_run's to send */
    struct rpc_call **answers_end;
};

/* First an armed slot waiting for a call of its method, then that call. */
struct rpc_call {
    struct rpc *rpc;
    const struct rpc_method *method; /* NULL: the slot of all unknown methods */
    void *registered;
    grpc_call *call;
    gpr_timespec deadline;
    int64_t came; /* unary: its request, on clock_now()'s clock */
    grpc_metadata_array metadata;
    grpc_call_details details; /* unknown methods only */
    grpc_byte_buffer *payload;
    grpc_byte_buffer *answer;
    grpc_slice request;
    grpc_status_code status; /* of the answer, with `why` and `answer` */
    grpc_slice why;
    struct rpc_call *next; /* in rpc->answers */
    int cancelled;
    unsigned pending; /* streams: operations that have not come back */
    struct rpc_tag arrived;
    struct rpc_tag answered;
    struct rpc_tag message;
    struct rpc_tag closed;
};

/* ---- rpc_call.c ---- */

/* C-core is not instrumented: tell the thread sanitizer that what was done before an
 * operation was started has happened before its tag comes back. */
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define TAG_STARTS(tag) __tsan_release(tag)
#define TAG_RETURNS(tag) __tsan_acquire(tag)
#else
#define TAG_STARTS(tag) ((void)(tag))
#define TAG_RETURNS(tag) ((void)(tag))
#endif

/* What gRPC calls the unix socket of that path. */
void rpc_target(const char *path, char target[RPC_TARGET_MAX]);

/* Starts operations of a call; `tag` comes back when they are done. */
void rpc_start(struct rpc_call *call, const grpc_op *ops, size_t count, struct rpc_tag *tag);

/* Takes the bytes out of call->payload into call->request; false if there are none. */
bool rpc_take_payload(struct rpc_call *call);

/* Clears the request: a PIN may have been in it. */
void rpc_wipe_request(struct rpc_call *call);

void rpc_free_call(struct rpc_call *call);

/* ---- rpc_stream.c ---- */

/* Takes over a call of an RPC_STREAM method. */
void rpc_stream_begin(struct rpc_call *call);

#endif
