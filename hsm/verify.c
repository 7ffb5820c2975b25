/* Which signatures are verified before they leave the worker, and the verification. RSA always, as
 * a faulty RSA signature can reveal the key. EC depends on its cost. */
#include "hsm/verify.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>

#include "hsm/base/clock.h"
#include "hsm/wire/keytype.h"
#include "hsm/wire/pubkey.h"
#include "hsm/wire/rv.h"

enum {
    SLOW = 10,       /* if signing takes this many verifications, one more is cheap */
    UNVERIFIED = 63, /* the most in a row */
    CONTEXTS = 4,
};

static const int64_t alarm_time = 60 * CLOCK_SECOND;

struct verifier {
    _Atomic unsigned shares;
    enum hsm_key_type type;
    EVP_PKEY *key;
    EVP_PKEY_CTX *_Atomic idle[CONTEXTS]; /* NULL: a free place. Making one is dear */

    int64_t proven_at; /* the last right signature; verify->lock guards this and the next two */
    uint32_t opened;
    uint32_t unverified; /* since proven_at */
};

void verify_open(struct verify *verify, bool always)
{
    memset(verify, 0, sizeof *verify);
    (void)pthread_mutex_init(&verify->lock, NULL);
    verify->always = always;
}

void verify_close(struct verify *verify)
{
    (void)pthread_mutex_destroy(&verify->lock);
}

/* ---- sharing ---- */

struct verifier *verifier_make(const struct hsm_public_key *key, struct fault *fault)
{
    struct verifier *made = calloc(1, sizeof *made);

    if (!made) {
        (void)rv_fault(CKR_HOST_MEMORY, "verifier", fault);
        return NULL;
    }
    made->shares = 1;
    made->type = key->type;
    if (pubkey_load(key, &made->key, fault) != 0)
        verifier_release(&made);
    return made;
}

struct verifier *verifier_share(struct verifier *verifier)
{
    if (verifier)
        verifier->shares++;
    return verifier;
}

void verifier_release(struct verifier **held)
{
    struct verifier *verifier = *held;

    *held = NULL;
    if (!verifier || --verifier->shares > 0)
        return;
    for (size_t i = 0; i < CONTEXTS; i++)
        EVP_PKEY_CTX_free(verifier->idle[i]);
    EVP_PKEY_free(verifier->key);
    free(verifier);
}

/* ---- which ---- */

static void note(struct verify_spans *spans, int64_t span)
{
    spans->spans[spans->count++ % VERIFY_SPANS] = span;
}

/* The shortest span counts, because each of the others may include a wait for a processor. On a
 * busy host a slow token looked fast without this. */
static int64_t shortest(const struct verify_spans *spans)
{
    int64_t least = INT64_MAX;

    for (uint32_t i = 0; i < spans->count && i < VERIFY_SPANS; i++)
        if (spans->spans[i] < least)
            least = spans->spans[i];
    return least;
}

/* True until enough was measured. */
static bool is_slow(const struct verify *verify, enum hsm_key_type type)
{
    return verify->verifying[type].count < VERIFY_SPANS ||
           shortest(&verify->signing[type]) / SLOW >= shortest(&verify->verifying[type]);
}

static bool is_due(const struct verify *verify, const struct verifier *verifier, uint32_t opened)
{
    int64_t now = clock_now();

    return verify->always || keytype_find(verifier->type)->rsa || verifier->opened != opened ||
           verifier->unverified >= UNVERIFIED || now - verifier->proven_at >= CLOCK_SECOND ||
           now < verify->alarmed_until || is_slow(verify, verifier->type);
}

bool verify_is_due(struct verify *verify, struct verifier *verifier,
                   const struct verify_signing *signing)
{
    bool due;

    (void)pthread_mutex_lock(&verify->lock);
    note(&verify->signing[verifier->type], signing->took);
    due = is_due(verify, verifier, signing->opened);
    if (!due)
        verifier->unverified++;
    (void)pthread_mutex_unlock(&verify->lock);
    return due;
}

/* ---- verifying ---- */

static EVP_PKEY_CTX *take_context(struct verifier *verifier, struct fault *fault)
{
    EVP_PKEY_CTX *context = NULL;

    for (size_t i = 0; i < CONTEXTS && !context; i++)
        context = atomic_exchange(&verifier->idle[i], NULL);
    if (!context)
        (void)pubkey_verifier(verifier->key, &context, fault);
    return context;
}

/* If no place is free, the context is freed. */
static void put_context(struct verifier *verifier, EVP_PKEY_CTX *context)
{
    for (size_t i = 0; i < CONTEXTS && context; i++)
        context = atomic_exchange(&verifier->idle[i], context);
    EVP_PKEY_CTX_free(context);
}

static void judge(struct verify *verify, struct verifier *verifier, uint32_t opened, bool right)
{
    int64_t now = clock_now();

    if (!right)
        verify->alarmed_until = now + alarm_time;
    else
        verifier->proven_at = now;
    if (right && opened > verifier->opened)
        verifier->opened = opened;
    verifier->unverified = 0;
}

int verify_signature(struct verify *verify, struct verifier *verifier,
                     const struct verify_signing *signing, const struct hsm_request *request,
                     const struct hsm_reply *reply, struct fault *fault)
{
    int64_t start = clock_now();
    EVP_PKEY_CTX *context = take_context(verifier, fault);
    int done;

    if (!context)
        return -1;
    done = pubkey_check(context, request, reply->signature, reply->signature_length, fault);
    put_context(verifier, context);
    if (done != 0 && fault->ckr != CKR_OK)
        return -1;
    (void)pthread_mutex_lock(&verify->lock);
    note(&verify->verifying[verifier->type], clock_now() - start);
    judge(verify, verifier, signing->opened, done == 0);
    (void)pthread_mutex_unlock(&verify->lock);
    return done;
}
