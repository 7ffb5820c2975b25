/* The operations on one key, each as steps on a session: signing, proving, generating,
 * destroying. */
#include "hsm/token.h"

#include <stdio.h>
#include <string.h>

#include <openssl/rand.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "hsm/object.h"
#include "hsm/sign.h"
#include "hsm/wire/pubkey.h"
#include "hsm/wire/rv.h"

enum { DESTROY_ROUNDS = 3, NAME_LOOKS = 11 };

/* ---- finding ---- */

/* "Not there" is said only of a token that was there and knew us, before and after the search. A
 * key that was found needs no such proof: a SoftHSM on a read-only disk cannot describe itself any
 * more, and still signs. */
static int find_pair(const struct call *call, const struct session *session,
                     struct object_halves *found, struct object_pair *pair, struct fault *fault)
{
    struct session_pool *pool = &call->token->pool;
    uint32_t logins = pool->logins;

    if (object_find(session, &call->request->key, found, fault) != 0)
        return -1;
    if (found->private_keys.count == 0 &&
        (session_check(pool, session, fault) != 0 ||
         object_find(session, &call->request->key, found, fault) != 0))
        return -1;
    if (found->private_keys.count == 0 && session_check_since(pool, session, logins, fault) != 0)
        return -1;
    pair->private_key =
        found->private_keys.count > 0 ? found->private_keys.handles[0] : HANDLE_NONE;
    pair->public_key = found->public_keys.count > 0 ? found->public_keys.handles[0] : HANDLE_NONE;
    return 0;
}

/* Puts the next public key of this name into the pair. A token may hold several, as on many tokens
 * anybody can make one without a PIN. Returns false after the last. */
static bool next_public_key(const struct object_halves *found, uint32_t *index,
                            struct object_pair *pair)
{
    if (*index + 1 >= found->public_keys.count)
        return false;
    pair->public_key = found->public_keys.handles[++*index];
    return true;
}

/* ---- signing ---- */

static int sign_raw(const struct session *session, CK_OBJECT_HANDLE handle, struct sign_plan *plan,
                    uint8_t raw[HSM_SIGNATURE_MAX], CK_ULONG *length, struct fault *fault)
{
    CK_RV rv = MODULE_CALL(session->module, C_SignInit, session->handle, &plan->mechanism, handle);

    if (rv != CKR_OK)
        return rv_fault(rv, "C_SignInit", fault);
    *length = HSM_SIGNATURE_MAX;
    rv = MODULE_CALL(session->module, C_Sign, session->handle, plan->input, plan->input_length, raw,
                     length);
    return rv == CKR_OK ? 0 : rv_fault(rv, "C_Sign", fault);
}

/* Codes that refuse a mechanism or its parameters. SoftHSM answers an unknown hash in PSS with "bad
 * arguments". */
static bool is_about_mechanism(uint64_t ckr)
{
    return ckr == CKR_MECHANISM_PARAM_INVALID || ckr == CKR_MECHANISM_INVALID ||
           ckr == CKR_ARGUMENTS_BAD;
}

/* FIPS modes take no salt longer than the hash. If a token cannot do PSS, the worker pads. Some
 * tokens refuse a digest shorter than the curve. Some leave out leading zeros of r and s, so that
 * one signature in 128 is too short to be read; the next one is most likely whole. */
static int sign_with(const struct session *session, CK_OBJECT_HANDLE handle,
                     const struct hsm_request *request, struct hsm_reply *reply,
                     struct fault *fault)
{
    uint8_t raw[HSM_SIGNATURE_MAX];
    struct sign_plan plan;
    CK_ULONG length = 0;
    int done;

    if (sign_plan(request, &plan, fault) != 0)
        return -1;
    done = sign_raw(session, handle, &plan, raw, &length, fault);
    if (done != 0 && fault->ckr == CKR_DATA_LEN_RANGE && sign_plan_longer_digest(request, &plan))
        done = sign_raw(session, handle, &plan, raw, &length, fault);
    if (done != 0 && fault->ckr == CKR_MECHANISM_PARAM_INVALID &&
        sign_plan_shorter_salt(request, &plan))
        done = sign_raw(session, handle, &plan, raw, &length, fault);
    if (done != 0 && request->scheme == HSM_PSS && is_about_mechanism(fault->ckr) &&
        sign_plan_padded(request, &plan, fault) == 0)
        done = sign_raw(session, handle, &plan, raw, &length, fault);
    if (done != 0 || sign_result(request, &plan, raw, length, reply, fault) == 0)
        return done;
    if (sign_raw(session, handle, &plan, raw, &length, fault) != 0)
        return -1;
    return sign_result(request, &plan, raw, length, reply, fault);
}

static bool is_wanted(const struct hsm_request *request, const struct hsm_public_key *key)
{
    return memcmp(key->fingerprint, request->fingerprint, sizeof key->fingerprint) == 0;
}

static int look_up(const struct call *call, const struct session *session,
                   struct cache_value *value, struct fault *fault)
{
    const struct hsm_request *request = call->request;
    const char *label = request->key.label;
    struct object_halves found;
    struct object_pair pair;
    struct hsm_public_key key;
    uint32_t next = 0;

    if (find_pair(call, session, &found, &pair, fault) != 0)
        return -1;
    if (found.private_keys.count == 0)
        return fault_set(fault, FAULT_NOT_FOUND, "the token has no private key %s", label);
    if (found.private_keys.count > 1)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the token has more than one private key %s", label);
    do {
        if (object_public_key(session, &pair, &key, fault) != 0) {
            if (fault->ckr != CKR_OK || next + 1 >= found.public_keys.count)
                return -1;
        } else if (is_wanted(request, &key)) {
            value->handle = pair.private_key;
            value->verifier = verifier_make(&key, fault);
            return value->verifier ? 0 : -1;
        }
    } while (next_public_key(&found, &next, &pair));
    return fault_set(fault, FAULT_NOT_FOUND, "the token has another key in the place of %s", label);
}

/* Errors that a key of ours never gives. The cached handle then names another object, for example
 * after a failover in a cluster. */
static bool is_about_key(uint64_t ckr)
{
    return ckr == CKR_KEY_TYPE_INCONSISTENT || ckr == CKR_KEY_FUNCTION_NOT_PERMITTED ||
           ckr == CKR_KEY_SIZE_RANGE;
}

/* Was the token's signature twice unreadable, rather than refused? Another key's signature may be
 * too long, too. */
static bool is_malformed(const struct fault *fault)
{
    return fault->code == FAULT_INTERNAL && fault->ckr == CKR_OK;
}

/* Takes the handle from the cache, or searches for it and puts it there. */
static int get_key(const struct call *call, const struct session *session, bool *cached,
                   struct cache_value *value, struct fault *fault)
{
    struct cache *cache = &call->token->cache;
    const struct hsm_request *request = call->request;
    struct cache_key key = {&request->key, request->fingerprint, call->token->pool.logins};
    enum cache_answer answer;

    verifier_release(&value->verifier);
    answer = cache_get(cache, &key, value, fault);
    *cached = answer == CACHE_HIT;
    if (answer != CACHE_LOOK)
        return answer == CACHE_HIT ? 0 : -1;
    if (look_up(call, session, value, fault) != 0) {
        cache_failed(cache, &key, fault);
        return -1;
    }
    cache_found(cache, &key, value);
    return 0;
}

/* *known: the handle came from an earlier call. It may be wrong, so it is forgotten now. */
static int sign_once(const struct call *call, const struct session *session, bool *known,
                     struct fault *fault)
{
    struct hsm_token *token = call->token;
    const struct hsm_request *request = call->request;
    struct signature *made = call->made;
    int64_t start;
    bool cached;

    *known = false;
    made->signing.opened = token->pool.opened;
    if (get_key(call, session, &cached, &made->key, fault) != 0)
        return -1;
    start = clock_now();
    if (sign_with(session, made->key.handle, request, call->reply, fault) == 0) {
        made->signing.took = clock_now() - start;
        return 0;
    }
    *known = cached && (is_about_key(fault->ckr) || is_malformed(fault));
    if (*known || rv_class(fault->ckr) == RV_HANDLE)
        cache_forget(&token->cache, &request->key, made->key.handle);
    if (is_malformed(fault)) {
        fault->code = FAULT_UNAVAILABLE;
        (void)fault_prefix(fault, "key %s:", request->key.label);
    }
    return -1;
}

static int sign_step(const struct call *call, const struct session *session, struct fault *fault)
{
    bool known;

    if (sign_once(call, session, &known, fault) == 0)
        return 0;
    return known ? sign_once(call, session, &known, fault) : -1;
}

/* The session is back in the pool before the signature is verified, so that others can sign
 * meanwhile. */
static int verify(const struct call *call, const struct signature *made, bool *wrong,
                  struct fault *fault)
{
    struct hsm_token *token = call->token;

    if (!verify_is_due(&token->verify, made->key.verifier, &made->signing) ||
        verify_signature(&token->verify, made->key.verifier, &made->signing, call->request,
                         call->reply, fault) == 0)
        return 0;
    *wrong = fault->ckr == CKR_OK;
    explicit_bzero(call->reply->signature, sizeof call->reply->signature);
    call->reply->signature_length = 0;
    if (*wrong)
        cache_forget(&token->cache, &call->request->key, made->key.handle);
    return -1;
}

static int sign_and_verify(const struct call *call, bool *wrong, struct fault *fault)
{
    struct signature made = {.key = {.verifier = NULL}};
    struct call signing = *call;
    int done;

    *wrong = false;
    signing.made = &made;
    done = token_step(&signing, sign_step, fault);
    if (done == 0)
        done = verify(call, &made, wrong, fault);
    verifier_release(&made.key.verifier);
    return done;
}

/* The cached handle may be another key's, so after one wrong signature the key is looked up anew.
 * After a second one the front may ask another worker. */
int key_sign(const struct call *call, struct fault *fault)
{
    bool wrong;
    int done = sign_and_verify(call, &wrong, fault);

    if (done != 0 && wrong)
        done = sign_and_verify(call, &wrong, fault);
    if (done == 0 || !wrong)
        return done;
    fault->code = FAULT_UNAVAILABLE;
    return fault_prefix(fault, "key %s: the token signed wrongly twice:", call->request->key.label);
}

/* ---- proving ---- */

/* An unusable key has no public key to hand out: only COMPLETE fills that in. */
static int verdict(const struct call *call, enum hsm_state state, const char *why)
{
    call->reply->state = state;
    (void)snprintf(call->reply->why, sizeof call->reply->why, "%.*s",
                   (int)sizeof call->reply->why - 1, why);
    return 0;
}

/* The token signs a random digest, and OpenSSL verifies the signature. A fault that carries a CK_RV
 * is no verdict about the key. */
static int try_signature(const struct session *session, CK_OBJECT_HANDLE handle,
                         const struct hsm_public_key *key, struct fault *fault)
{
    struct hsm_reply made = {.signature_length = 0};
    struct hsm_request trial;

    if (sign_trial(key->type, &trial, fault) != 0 ||
        sign_with(session, handle, &trial, &made, fault) != 0)
        return -1;
    return pubkey_verify(key, &trial, made.signature, made.signature_length, fault);
}

static int prove_whole(const struct call *call, const struct session *session,
                       const struct object_pair *pair, struct fault *fault)
{
    struct hsm_token *token = call->token;
    enum hsm_key_type wanted = call->request->type;
    enum hsm_state without = pair->public_key == HANDLE_NONE ? HSM_BARE : HSM_UNFIT;
    struct cache_key cached = {&call->request->key, NULL, token->pool.logins};
    OWNED(verifier_release) struct verifier *verifier = NULL;
    struct hsm_public_key key;
    char why[sizeof call->reply->why];

    if (object_public_key(session, pair, &key, fault) != 0)
        return fault->ckr != CKR_OK ? -1 : verdict(call, without, fault->message);
    if (wanted != HSM_KEY_NONE && key.type != wanted)
        return verdict(call, HSM_UNFIT, "it is of another type");
    if (object_check(session, pair->private_key, token->lenient, why, fault) != 0)
        return -1;
    if (why[0] != '\0')
        return verdict(call, HSM_UNFIT, why);
    if (try_signature(session, pair->private_key, &key, fault) != 0)
        return fault->ckr != CKR_OK ? -1 : verdict(call, HSM_MISSIGNED, fault->message);
    verifier = verifier_make(&key, fault);
    if (!verifier)
        return -1;
    cached.fingerprint = key.fingerprint;
    cache_found(&token->cache, &cached, &(struct cache_value){pair->private_key, verifier});
    call->reply->public_key = key;
    return verdict(call, HSM_COMPLETE, "");
}

/* Is the pair still where the last SCAN saw it? */
static bool find_by_hint(const struct call *call, const struct session *session,
                         struct object_pair *pair)
{
    struct hsm_token *token = call->token;
    const struct hsm_key_name *name = &call->request->key;
    enum object_naming naming[2] = {OBJECT_UNREADABLE, OBJECT_UNREADABLE};

    return hints_take(&token->hints, name, token->pool.logins, pair) &&
           object_naming(session, pair->private_key, name, &naming[0], NULL) == 0 &&
           object_naming(session, pair->public_key, name, &naming[1], NULL) == 0 &&
           naming[0] == OBJECT_NAMED && naming[1] == OBJECT_NAMED;
}

static int prove_step(const struct call *call, const struct session *session, struct fault *fault)
{
    struct object_halves found;
    struct object_pair pair;
    uint32_t next = 0;

    if (find_by_hint(call, session, &pair))
        return prove_whole(call, session, &pair, fault);
    if (find_pair(call, session, &found, &pair, fault) != 0)
        return -1;
    if (found.private_keys.count > 1)
        return verdict(call, HSM_DUPLICATE, "more than one private key has this label");
    if (found.private_keys.count == 0)
        return found.public_keys.count == 0 ? verdict(call, HSM_ABSENT, "")
                                            : verdict(call, HSM_HALF, "there is no private key");
    do
        if (prove_whole(call, session, &pair, fault) != 0)
            return -1;
    while (call->reply->state != HSM_COMPLETE && next_public_key(&found, &next, &pair));
    return 0;
}

int key_prove(const struct call *call, struct fault *fault)
{
    return token_step(call, prove_step, fault);
}

/* ---- generating ---- */

/* May the token have made a key although it reported a failure? Only codes that it returns before
 * any work rule this out. */
static bool may_have_made_key(uint64_t ckr)
{
    switch (rv_class(ckr)) {
    case RV_TEMPLATE:
    case RV_PERMANENT:
    case RV_LOGIN:
    case RV_PIN:
        return false;
    case RV_SESSION:
        return ckr == CKR_SESSION_CLOSED; /* "during the call", says the standard */
    default:
        return true;
    }
}

static int outcome_unknown(struct fault *fault)
{
    fault->code = FAULT_ABORTED;
    return -1;
}

/* A full token, or one without this mechanism, may have made one half. Its answer is final only
 * when a search shows that no half is left. */
static int when_nothing_is_left(const struct call *call, const struct session *session,
                                struct fault *fault)
{
    struct object_halves left;
    struct object_pair pair;
    struct fault unused;

    if (find_pair(call, session, &left, &pair, &unused) != 0 ||
        object_destroy_halves(session, &left, NULL) != 0 ||
        find_pair(call, session, &left, &pair, &unused) != 0 ||
        left.private_keys.count + left.public_keys.count > 0)
        return outcome_unknown(fault);
    return -1;
}

/* The token says that it cannot make such keys. This is the answer, unless the search for what the
 * try left behind fails. */
static int when_it_cannot(const struct call *call, const struct session *session,
                          struct fault *fault)
{
    if (may_have_made_key(fault->ckr))
        (void)when_nothing_is_left(call, session, fault);
    if (fault->code == FAULT_ABORTED)
        return -1;
    fault->code = FAULT_INVALID_ARGUMENT;
    return fault_prefix(fault, "the token says that it cannot make %s keys",
                        hsm_key_type_name(call->request->type));
}

static bool is_about_ability(uint64_t ckr)
{
    return rv_class(ckr) == RV_TEMPLATE || rv_class(ckr) == RV_PERMANENT ||
           rv_class(ckr) == RV_DEVICE;
}

static int read_names(const struct session *session, const CK_OBJECT_HANDLE halves[2],
                      const struct hsm_key_name *name, enum object_naming naming[2],
                      struct fault *fault)
{
    for (size_t i = 0; i < 2; i++) {
        naming[i] = OBJECT_NAMED;
        if (halves[i] != HANDLE_NONE &&
            object_naming(session, halves[i], name, &naming[i], fault) != 0)
            return -1;
    }
    return 0;
}

static bool is_either(const enum object_naming naming[2], enum object_naming which)
{
    return naming[0] == which || naming[1] == which;
}

/* Some tokens cut long labels or ids in silence. Nobody could find such a pair again, so it is
 * destroyed now. A pair whose name cannot be read stays, and one look is not enough: for a moment,
 * SoftHSM shows an object that was just touched without attributes. A handle with another name is
 * another key's: tpm2-pkcs11 gives a handle away a second time, once the first of its objects was
 * destroyed. That key must live. */
static int check_names(const struct call *call, const struct session *session,
                       const struct object_pair *pair, struct fault *fault)
{
    static const struct timespec moment = {.tv_nsec = 100 * CLOCK_MILLISECOND};
    const struct hsm_key_name *name = &call->request->key;
    const CK_OBJECT_HANDLE halves[] = {pair->private_key, pair->public_key};
    enum object_naming naming[2];

    for (int look = 0; look < NAME_LOOKS; look++) {
        if (look > 0)
            (void)nanosleep(&moment, NULL);
        if (read_names(session, halves, name, naming, fault) != 0)
            return outcome_unknown(fault);
        if (naming[0] == OBJECT_NAMED && naming[1] == OBJECT_NAMED)
            return 0;
        if (is_either(naming, OBJECT_UNREADABLE)) {
            (void)fault_set(fault, FAULT_UNAVAILABLE,
                            "the token does not report the new key's name");
            return outcome_unknown(fault);
        }
    }
    if (is_either(naming, OBJECT_OTHERWISE)) {
        (void)fault_set(fault, FAULT_UNAVAILABLE,
                        "the token gave the new key the handle of another key");
        fault->ckr = CKR_OBJECT_HANDLE_INVALID;
        return outcome_unknown(fault);
    }
    for (size_t i = 0; i < 2; i++)
        if (halves[i] != HANDLE_NONE && object_destroy(session, halves[i], fault) != 0)
            return outcome_unknown(fault);
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "the token changes labels or ids (of %zu and %u bytes); the key it made "
                     "under another name was destroyed",
                     strlen(name->label), name->id_length);
}

static int generate_step(const struct call *call, const struct session *session,
                         struct fault *fault)
{
    struct hsm_token *token = call->token;
    const struct hsm_request *request = call->request;
    unsigned tier = token->tier;
    struct object_pair pair;

    if (session_check(&token->pool, session, fault) != 0)
        return -1;
    while (object_generate(session, request->type, &request->key, tier, &pair, fault) != 0) {
        if (rv_class(fault->ckr) == RV_FULL)
            return when_nothing_is_left(call, session, fault);
        if (rv_class(fault->ckr) == RV_TEMPLATE && ++tier < OBJECT_TEMPLATE_TIERS)
            continue;
        if (token->doubtful[request->type] && is_about_ability(fault->ckr))
            return when_it_cannot(call, session, fault);
        return may_have_made_key(fault->ckr) ? outcome_unknown(fault) : -1;
    }
    token->tier = tier;
    return check_names(call, session, &pair, fault);
}

/* Once the token may have made the pair, every fault leaves the outcome unknown: PROVE tells
 * whether the key is good. */
int key_generate(const struct call *call, struct fault *fault)
{
    enum hsm_key_type type = call->request->type;

    if (type < HSM_EC_P256 || type > HSM_RSA_4096)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "there is no key type %d", (int)type);
    if (call->token->write_protected)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "the token is write-protected");
    if (token_step(call, generate_step, fault) != 0)
        return -1;
    if (call->token->proves)
        call->token->proves();
    if (token_step(call, prove_step, fault) != 0) {
        (void)fault_prefix(fault, "the key was made, but");
        return outcome_unknown(fault);
    }
    return 0;
}

/* ---- destroying ---- */

/* Does one of the readable public keys belong to the key that is meant? An unreadable one proves
 * nothing: half of a key may be gone already. */
static int check_key(const struct call *call, const struct session *session,
                     const struct object_halves *found, struct object_pair pair,
                     struct fault *fault)
{
    struct hsm_public_key key;
    uint32_t next = 0;
    bool other = false;

    do {
        if (object_public_key(session, &pair, &key, fault) == 0) {
            if (is_wanted(call->request, &key))
                return 0;
            other = true;
        } else if (fault->ckr != CKR_OK) {
            return -1;
        }
    } while (next_public_key(found, &next, &pair));
    if (!other)
        return 0;
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "under label %s the token has another key than the one to destroy; it stays",
                     call->request->key.label);
}

/* A private key may be hidden for a moment. That must not cost its public half, nor a private key
 * that shows again by the time this half is destroyed. */
static int check_half(const struct call *call, const struct session *session,
                      struct object_halves *found, struct object_pair *pair, struct fault *fault)
{
    static const struct timespec moment = {.tv_nsec = 200 * CLOCK_MILLISECOND};

    if (found->private_keys.count == 0) {
        (void)nanosleep(&moment, NULL);
        if (find_pair(call, session, found, pair, fault) != 0)
            return -1;
    }
    if (found->private_keys.count == 0)
        return 0;
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "label %s seemed to be half a key, but has a private key; it stays",
                     call->request->key.label);
}

static int check_expected(const struct call *call, const struct session *session,
                          struct object_halves *found, struct object_pair *pair,
                          struct fault *fault)
{
    switch (call->request->expect) {
    case HSM_EXPECT_KEY:
        return check_key(call, session, found, *pair, fault);
    case HSM_EXPECT_HALF:
        return check_half(call, session, found, pair, fault);
    case HSM_EXPECT_ANY:
        break;
    }
    return 0;
}

static int destroy_step(const struct call *call, const struct session *session, struct fault *fault)
{
    struct object_halves left;
    struct object_pair pair;

    call->reply->items = 0;
    for (int round = 0; round < DESTROY_ROUNDS; round++) {
        if (find_pair(call, session, &left, &pair, fault) != 0)
            return -1;
        if (left.private_keys.count + left.public_keys.count == 0)
            return verdict(call, HSM_ABSENT, "");
        if (check_expected(call, session, &left, &pair, fault) != 0 ||
            object_destroy_halves(session, &left, fault) != 0)
            return -1;
        call->reply->items += left.private_keys.count + left.public_keys.count;
    }
    return fault_set(fault, FAULT_UNAVAILABLE,
                     "%s was destroyed %d times and is still on the token",
                     call->request->key.label, DESTROY_ROUNDS);
}

int key_destroy(const struct call *call, struct fault *fault)
{
    cache_forget(&call->token->cache, &call->request->key, HANDLE_NONE);
    return token_step(call, destroy_step, fault);
}
