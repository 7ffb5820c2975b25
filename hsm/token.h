/* The parts of an open token, and how an operation is carried out on it: as one or more
 * steps, each of which does all its calls on one session and may be done over. Private to
 * token.c, key.c, scan.c and keyfile.c. */
#ifndef HSM_TOKEN_H
#define HSM_TOKEN_H

#include <stdatomic.h>

#include "hsm/cache.h"
#include "hsm/hints.h"
#include "hsm/hsm.h"
#include "hsm/keyfile.h"
#include "hsm/module.h"
#include "hsm/session.h"
#include "hsm/verify.h"

struct hsm_token {
    struct keyfile *keyfile; /* NULL = a token. Else `verify` is all of the rest that counts */
    struct module module;
    struct session_pool pool;
    struct cache cache;
    struct hints hints;
    struct verify verify;
    bool lenient;
    bool write_protected;
    bool doubtful[HSM_RSA_4096 + 1]; /* see hsm_token_info */
    atomic_bool random;              /* the token has made random numbers before */
    hsm_progress_fn *proves;         /* or NULL; see hsm_listen */
    /* The first template this token took: those before it need not be tried again. */
    _Atomic unsigned tier;
};

/* A signature in call->reply, not verified yet. */
struct signature {
    struct cache_value key; /* it was made with; the verifier is key_sign's to release */
    struct verify_signing signing;
};

/* One hsm_execute. */
struct call {
    struct hsm_token *token;
    const struct hsm_request *request;
    struct hsm_reply *reply;
    hsm_item_fn *item;
    void *item_context;
    struct signature *made; /* within key_sign */
};

typedef int op_fn(const struct call *call, struct fault *fault);
typedef int step_fn(const struct call *call, const struct session *session, struct fault *fault);

/* Does the step on a borrowed session. Where a fault has a cheap and certain remedy (a new
 * session, a new login, a fresh look for the key) that is applied, each once, and the step
 * done over. A step that must not be done over says FAULT_ABORTED. */
int token_step(const struct call *call, step_fn *step, struct fault *fault);

/* key.c */
op_fn key_generate;
op_fn key_prove;
op_fn key_sign;
op_fn key_destroy;

/* scan.c */
op_fn scan;

/* keyfile.c: the same on call->token->keyfile */
op_fn keyfile_scan;
op_fn keyfile_prove;
op_fn keyfile_sign;
op_fn keyfile_ping;
op_fn keyfile_refuse;

#endif
