/* No wrong signature leaves: which ones are verified in software, and with what.
 *
 * A handle that a library has given to another key signs without a complaint, and a faulty CRT
 * computation in an RSA signature gives the key away. So RSA is always verified. EC is always
 * verified where signing takes ten times as long, as with a real HSM. On a faster token these are
 * verified: all until one was right on this handle, the first after a session was opened, the
 * first in each second, every 64th, and all for a minute after a wrong one. Whether a token is
 * slow is known after nine signatures with keys of a type. */
#ifndef HSM_VERIFY_H
#define HSM_VERIFY_H

#include <pthread.h>

#include "hsm/wire/types.h"

enum { VERIFY_SPANS = 9, VERIFY_TYPES = HSM_RSA_4096 + 1 };

/* How long something took lately, in nanoseconds. */
struct verify_spans {
    int64_t spans[VERIFY_SPANS];
    uint32_t count; /* how many there were in all */
};

/* Of one token. Any thread may call what takes it. */
struct verify {
    pthread_mutex_t lock; /* guards all below and the pace of every verifier */
    bool always;
    int64_t alarmed_until;
    struct verify_spans signing[VERIFY_TYPES];
    struct verify_spans verifying[VERIFY_TYPES];
};

/* Verifies the signatures of one key, found once under one handle. Counted: each caller of
 * verifier_make or verifier_share releases its share. */
struct verifier;

/* One signature of the token's. */
struct verify_signing {
    int64_t took;    /* C_SignInit and C_Sign, in ns */
    uint32_t opened; /* sessions that the pool had opened before it began */
};

void verify_open(struct verify *verify, bool always);
void verify_close(struct verify *verify);

/* NULL: no memory, FAULT_UNAVAILABLE. */
struct verifier *verifier_make(const struct hsm_public_key *key, struct fault *fault);
struct verifier *verifier_share(struct verifier *verifier);

/* Sets *verifier to NULL; takes NULL in it too. */
void verifier_release(struct verifier **verifier);

/* Counts a signature, and says whether it is one of those that are verified. */
bool verify_is_due(struct verify *verify, struct verifier *verifier,
                   const struct verify_signing *signing);

/* Verifies the reply's signature. FAULT_INTERNAL: it is wrong, and for a minute from now all
 * signatures of this token are verified. FAULT_UNAVAILABLE with a CKR: no memory to verify it. */
int verify_signature(struct verify *verify, struct verifier *verifier,
                     const struct verify_signing *signing, const struct hsm_request *request,
                     const struct hsm_reply *reply, struct fault *fault);

#endif
