/* gRPC, and the only place that sees it (rpc*.c): a server on one unix socket. A
 * method table goes in; requests come out as bytes and answers go back as bytes or
 * a fault. What the bytes mean is the business of svc_*.c and goplugin.c.
 *
 * One thread runs everything: it takes events from C-core's completion queue and
 * calls handlers, which must not block (no file, no token, no lock held for long).
 * A handler answers at once, or keeps the call and has any thread answer later;
 * every call is answered exactly once. A call that its client has given up is
 * answered all the same; the answer goes nowhere.
 *
 * Calling sequence: rpc_open, rpc_run (returns after rpc_stop has been called and
 * every call has been answered or cancelled), rpc_close. */
#ifndef PLUGIN_RPC_RPC_H
#define PLUGIN_RPC_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/base/fault.h"

enum { RPC_PATH_MAX = 108 }; /* a unix socket's path with its NUL: sizeof sun_path */

struct rpc;
struct rpc_call;

/* A request; `request` is the caller's to read until it answers the call. */
typedef void rpc_handler(struct rpc_call *call, const uint8_t *request, size_t length);

enum rpc_kind {
    RPC_UNARY,  /* handler is called once and answers with rpc_reply or rpc_fail */
    RPC_STREAM, /* held open until the peer or the server ends it; handler, if any,
                   is called for each message that comes in and must not answer */
};

struct rpc_method {
    const char *path; /* "/package.Service/Method", a string constant */
    enum rpc_kind kind;
    rpc_handler *handler; /* NULL for a stream whose messages do not matter */
};

/* Listens on unix socket `path` (which must not exist) and serves the rows of the
 * NULL-terminated `tables`; every other method is answered UNIMPLEMENTED. Tables
 * must live as long as the server. */
int rpc_open(const char *path, const struct rpc_method *const tables[], struct rpc **rpc,
             struct fault *fault);

void rpc_run(struct rpc *rpc);

/* From any thread and from handlers, any number of times: no new calls; those at
 * work may end within `grace_ms`, then they and all streams are cancelled. */
void rpc_stop(struct rpc *rpc, unsigned grace_ms);

void rpc_close(struct rpc *rpc);

/* Answers, from any thread. The call is gone afterwards. `bytes` stays the caller's. */
void rpc_reply(struct rpc_call *call, const uint8_t *bytes, size_t length);
void rpc_fail(struct rpc_call *call, const struct fault *fault);

/* How a call of rpc_call_host has ended: has the host answered OK? From rpc_run's thread. */
typedef void rpc_host_answered(bool heard);

/* Calls `method` (a string constant) of the host, which listens on unix socket `socket`: with
 * news the host may like to have. Never blocks. false: not sent, and `answered` is not called, as
 * the one before is still on its way or the server is stopping. The first socket named is the
 * one for good. */
bool rpc_call_host(struct rpc *rpc, const char *socket, const char *method, const uint8_t *bytes,
                   size_t length, rpc_host_answered *answered);

/* When the request came, on clock_now()'s clock. */
int64_t rpc_arrived(const struct rpc_call *call);

/* When the client stops waiting, on clock_now()'s clock; CLOCK_NEVER if it never does. */
int64_t rpc_deadline(const struct rpc_call *call);

#endif
