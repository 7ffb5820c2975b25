/* SPIRE's KeyManager service: translates its four calls to keymanager.h and back. */
#include "plugin/service/svc.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"
#include "plugin/keys/keymanager.h"
#include "plugin/report/log.h"
#include "plugin/report/metrics.h"
#include "plugin/rpc/message.h"
#include "proto/keymanager.pb-c.h"

_Static_assert((int)HSM_EC_P256 == KEYMANAGER__KEY_TYPE__EC_P256, "SPIRE's number");
_Static_assert((int)HSM_EC_P384 == KEYMANAGER__KEY_TYPE__EC_P384, "SPIRE's number");
_Static_assert((int)HSM_RSA_2048 == KEYMANAGER__KEY_TYPE__RSA_2048, "SPIRE's number");
_Static_assert((int)HSM_RSA_4096 == KEYMANAGER__KEY_TYPE__RSA_4096, "SPIRE's number");
_Static_assert((int)HSM_SHA224 == KEYMANAGER__HASH_ALGORITHM__SHA224, "SPIRE's number");
_Static_assert((int)HSM_SHA256 == KEYMANAGER__HASH_ALGORITHM__SHA256, "SPIRE's number");
_Static_assert((int)HSM_SHA384 == KEYMANAGER__HASH_ALGORITHM__SHA384, "SPIRE's number");
_Static_assert((int)HSM_SHA512 == KEYMANAGER__HASH_ALGORITHM__SHA512, "SPIRE's number");
_Static_assert((int)HSM_SHA3_224 == KEYMANAGER__HASH_ALGORITHM__SHA3_224, "SPIRE's number");
_Static_assert((int)HSM_SHA512_256 == KEYMANAGER__HASH_ALGORITHM__SHA512_256, "SPIRE's number");

/* Kept back from the client's deadline, so that our answer with its reason comes before the
 * client's own "deadline exceeded". */
static const int64_t answer_margin = CLOCK_SECOND / 2;

static struct {
    pthread_mutex_t mutex;
    struct keymanager *keymanager; /* the one in force; this file holds it */
    atomic_bool closing;
} current = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- configuration ---- */

static struct keymanager *current_hold(void)
{
    struct keymanager *keymanager;

    (void)pthread_mutex_lock(&current.mutex);
    keymanager = current.keymanager ? keymanager_hold(current.keymanager) : NULL;
    (void)pthread_mutex_unlock(&current.mutex);
    return keymanager;
}

static void release(struct keymanager **keymanager)
{
    if (*keymanager)
        keymanager_release(*keymanager);
}

/* Some libraries have a debug variable that makes them write down all they are given, PINs too.
 * Most write to standard error, which is our log. */
static void warn_of_talkers(void)
{
    static const char *const variables[] = {"PKCS11SPY", "YUBIHSM_PKCS11_DBG", "CKNFAST_DEBUG"};

    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
        if (getenv(variables[i]))
            log_write(LOG_WARN,
                      "an environment variable makes PKCS#11 libraries log all calls, including "
                      "the PIN: unset it in production",
                      "variable", variables[i], NULL);
}

int keymanager_configure(const struct config *config, struct fault *fault)
{
    OWNED(release) struct keymanager *before = current_hold();
    struct keymanager *made;

    warn_of_talkers();
    if (keymanager_open(config, before, &current.closing, &made, fault) != 0)
        return -1;
    (void)pthread_mutex_lock(&current.mutex);
    current.keymanager = made;
    (void)pthread_mutex_unlock(&current.mutex);
    keymanager_succeed(made, before);
    if (before)
        keymanager_release(before);
    return 0;
}

void keymanager_close(void)
{
    OWNED(release) struct keymanager *keymanager = NULL;

    current.closing = true;
    keymanager = current_hold();
    if (keymanager)
        keymanager_abandon(keymanager);
}

void keymanager_gauge(void)
{
    OWNED(release) struct keymanager *keymanager = current_hold();

    if (keymanager)
        keymanager_measure(keymanager);
}

/* ---- what all four calls share ---- */

static void refuse_call(struct rpc_call *call, enum fault_code code, const char *sentence)
{
    struct fault fault;

    (void)fault_set(&fault, code, "%s", sentence);
    rpc_fail(call, &fault);
}

/* Returns the keymanager in force, held for the caller; or NULL, after it has refused the call. */
static struct keymanager *require_configured(struct rpc_call *call)
{
    struct keymanager *keymanager = current_hold();

    if (!keymanager)
        refuse_call(call, FAULT_FAILED_PRECONDITION, "not configured");
    return keymanager;
}

static int64_t deadline_of(const struct rpc_call *call, const struct keymanager *keymanager)
{
    int64_t now = clock_now();
    int64_t theirs = rpc_deadline(call);
    int64_t ours = now + keymanager_call_timeout(keymanager);
    int64_t quarter = theirs > now ? (theirs - now) / 4 : 0;

    if (theirs != CLOCK_NEVER) /* at most a quarter of the client's time */
        theirs -= quarter < answer_margin ? quarter : answer_margin;
    return theirs < ours ? theirs : ours;
}

/* SPIRE's message as a view of the key. It points into the key and does not change it, though its
 * type would allow that. */
static void view(const struct catalogue_key *key, Keymanager__PublicKey *message)
{
    union {
        const void *from;
        void *to;
    } id = {key->key_id}, fingerprint = {key->fingerprint}, pkix = {key->public_key.pkix};

    keymanager__public_key__init(message);
    message->id = id.to;
    message->type = (Keymanager__KeyType)key->public_key.type;
    message->pkix_data.data = pkix.to;
    message->pkix_data.len = key->public_key.pkix_length;
    message->fingerprint = fingerprint.to;
}

/* ---- GenerateKey ---- */

static void generate_done(void *context, const struct catalogue_key *key, const struct fault *fault)
{
    Keymanager__GenerateKeyResponse response = KEYMANAGER__GENERATE_KEY_RESPONSE__INIT;
    Keymanager__PublicKey message;
    struct rpc_call *call = context;

    if (!key) {
        rpc_fail(call, fault);
        return;
    }
    metrics_took("generate", "all", clock_now() - rpc_arrived(call));
    view(key, &message);
    response.public_key = &message;
    message_reply(call, &response.base);
}

static int check_key_type(Keymanager__KeyType type, struct fault *fault)
{
    if (type == KEYMANAGER__KEY_TYPE__UNSPECIFIED_KEY_TYPE)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "key type is required");
    if ((int)type < HSM_EC_P256 || (int)type > HSM_RSA_4096)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "unknown key type %d", (int)type);
    return 0;
}

static void generate_key(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    OWNED(release) struct keymanager *keymanager = NULL;
    OWNED(message_scope_free) Keymanager__GenerateKeyRequest *request = NULL;
    struct fault fault;

    request = message_parse(&keymanager__generate_key_request__descriptor, bytes, length, &fault);
    if (!request) {
        rpc_fail(call, &fault);
    } else if (request->key_id[0] == '\0') {
        refuse_call(call, FAULT_INVALID_ARGUMENT, "key id is required");
    } else if (check_key_type(request->key_type, &fault) != 0) {
        rpc_fail(call, &fault);
    } else if ((keymanager = require_configured(call)) != NULL) {
        keymanager_generate(keymanager, request->key_id, (enum hsm_key_type)request->key_type,
                            deadline_of(call, keymanager), generate_done, call);
    }
}

/* ---- GetPublicKey, GetPublicKeys: from the catalogue, the token is not asked ---- */

static void reply_public_key(struct rpc_call *call, struct keymanager *keymanager,
                             const char *key_id)
{
    Keymanager__GetPublicKeyResponse response = KEYMANAGER__GET_PUBLIC_KEY_RESPONSE__INIT;
    struct catalogue_key *key = catalogue_find(keymanager_catalogue(keymanager), key_id);
    Keymanager__PublicKey message;
    struct fault fault;

    if (!key) {
        (void)fault_set(&fault, FAULT_NOT_FOUND, "key \"%s\" not found", key_id);
        rpc_fail(call, &fault);
        return;
    }
    view(key, &message);
    response.public_key = &message;
    message_reply(call, &response.base);
    keymanager_drop(keymanager, key);
}

static void get_public_key(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    OWNED(release) struct keymanager *keymanager = NULL;
    OWNED(message_scope_free) Keymanager__GetPublicKeyRequest *request = NULL;
    struct fault fault;

    request = message_parse(&keymanager__get_public_key_request__descriptor, bytes, length, &fault);
    if (!request)
        rpc_fail(call, &fault);
    else if (request->key_id[0] == '\0')
        refuse_call(call, FAULT_INVALID_ARGUMENT, "key id is required");
    else if ((keymanager = require_configured(call)) != NULL)
        reply_public_key(call, keymanager, request->key_id);
}

static void reply_public_keys(struct rpc_call *call, struct catalogue_key *const *keys,
                              size_t count)
{
    Keymanager__GetPublicKeysResponse response = KEYMANAGER__GET_PUBLIC_KEYS_RESPONSE__INIT;
    OWNED(scope_free) Keymanager__PublicKey *messages = calloc(count + 1, sizeof *messages);
    OWNED(scope_free)
    Keymanager__PublicKey **pointers = calloc(count + 1, sizeof(Keymanager__PublicKey *));

    if (!messages || !pointers) {
        refuse_call(call, FAULT_UNAVAILABLE, "out of memory");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        view(keys[i], &messages[i]);
        pointers[i] = &messages[i];
    }
    response.public_keys = pointers;
    response.n_public_keys = count;
    message_reply(call, &response.base);
}

static void get_public_keys(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    OWNED(release) struct keymanager *keymanager = NULL;
    OWNED(message_scope_free) Keymanager__GetPublicKeysRequest *request = NULL;
    OWNED(scope_free) struct catalogue_key **keys = NULL;
    struct fault fault;
    size_t count = 0;

    request =
        message_parse(&keymanager__get_public_keys_request__descriptor, bytes, length, &fault);
    if (!request) {
        rpc_fail(call, &fault);
        return;
    }
    keymanager = require_configured(call);
    if (!keymanager)
        return;
    keys = catalogue_list(keymanager_catalogue(keymanager), &count);
    if (!keys) {
        refuse_call(call, FAULT_UNAVAILABLE, "out of memory");
        return;
    }
    reply_public_keys(call, keys, count);
    for (size_t i = 0; i < count; i++)
        keymanager_drop(keymanager, keys[i]);
}

/* ---- SignData ---- */

static void measure_signature(const struct rpc_call *call, const struct catalogue_key *key,
                              enum fault_code code)
{
    metrics_count(METRIC_SIGNATURES, key ? key->key_id : "", metric_code(code), 1);
    if (code == FAULT_NONE)
        metrics_took("sign", "all", clock_now() - rpc_arrived(call));
    else
        metrics_count(METRIC_SIGNATURES_FAILED, NULL, NULL, 1);
}

static void sign_done(void *context, const struct catalogue_key *key, const struct hsm_reply *reply)
{
    Keymanager__SignDataResponse response;
    struct rpc_call *call = context;
    struct hsm_reply signature;
    char fingerprint[sizeof key->fingerprint];
    struct fault fault;

    measure_signature(call, key, reply->fault.code);
    if (reply->fault.code != FAULT_NONE) {
        fault = reply->fault;
        if (key)
            (void)fault_prefix(&fault, "failed to sign with key \"%s\"", key->key_id);
        rpc_fail(call, &fault);
        return;
    }
    keymanager__sign_data_response__init(&response);
    memcpy(signature.signature, reply->signature, reply->signature_length);
    memcpy(fingerprint, key->fingerprint, sizeof fingerprint);
    response.signature.data = signature.signature;
    response.signature.len = reply->signature_length;
    response.key_fingerprint = fingerprint;
    message_reply(call, &response.base);
}

static int read_pss(const Keymanager__SignDataRequest__PSSOptions *options,
                    struct hsm_request *sign, struct fault *fault)
{
    if (options->hash_algorithm == KEYMANAGER__HASH_ALGORITHM__UNSPECIFIED_HASH_ALGORITHM)
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "hash algorithm in PSS options is required");
    sign->scheme = HSM_PSS;
    sign->hash = (enum hsm_hash)options->hash_algorithm;
    sign->salt_length = options->salt_length;
    return 0;
}

static int read_options(const Keymanager__SignDataRequest *request, struct hsm_request *sign,
                        struct fault *fault)
{
    switch (request->signer_opts_case) {
    case KEYMANAGER__SIGN_DATA_REQUEST__SIGNER_OPTS_HASH_ALGORITHM:
        if (request->hash_algorithm == KEYMANAGER__HASH_ALGORITHM__UNSPECIFIED_HASH_ALGORITHM)
            return fault_set(fault, FAULT_INVALID_ARGUMENT, "hash algorithm is required");
        sign->scheme = HSM_PLAIN;
        sign->hash = (enum hsm_hash)request->hash_algorithm;
        return 0;
    case KEYMANAGER__SIGN_DATA_REQUEST__SIGNER_OPTS_PSS_OPTIONS:
        return read_pss(request->pss_options, sign, fault);
    default:
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "signer opts is required");
    }
}

static int read_sign_request(const Keymanager__SignDataRequest *request, struct hsm_request *sign,
                             struct fault *fault)
{
    size_t expected;

    if (request->key_id[0] == '\0')
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "key id is required");
    if (read_options(request, sign, fault) != 0)
        return -1;
    expected = hsm_hash_length(sign->hash);
    if (expected == 0)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "unknown hash algorithm %d",
                         (int)sign->hash);
    if (request->data.len != expected)
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "data has %zu bytes, but a digest of this hash algorithm has %zu",
                         request->data.len, expected);
    memcpy(sign->digest, request->data.data, expected);
    sign->digest_length = (uint32_t)expected;
    return 0;
}

static void sign_data(struct rpc_call *call, const uint8_t *bytes, size_t length)
{
    OWNED(release) struct keymanager *keymanager = NULL;
    OWNED(message_scope_free) Keymanager__SignDataRequest *request = NULL;
    struct hsm_request sign = {.op = HSM_SIGN};
    struct fault fault;

    request = message_parse(&keymanager__sign_data_request__descriptor, bytes, length, &fault);
    if (!request || read_sign_request(request, &sign, &fault) != 0) {
        rpc_fail(call, &fault);
        return;
    }
    keymanager = require_configured(call);
    if (keymanager)
        keymanager_sign(keymanager, request->key_id, &sign, deadline_of(call, keymanager),
                        sign_done, call);
}

const struct rpc_method keymanager_methods[] = {
    {"/spire.plugin.server.keymanager.v1.KeyManager/GenerateKey", RPC_UNARY, generate_key},
    {"/spire.plugin.server.keymanager.v1.KeyManager/GetPublicKey", RPC_UNARY, get_public_key},
    {"/spire.plugin.server.keymanager.v1.KeyManager/GetPublicKeys", RPC_UNARY, get_public_keys},
    {"/spire.plugin.server.keymanager.v1.KeyManager/SignData", RPC_UNARY, sign_data},
    {NULL, RPC_UNARY, NULL},
};

const struct rpc_method keymanager_agent_methods[] = {
    {"/spire.plugin.agent.keymanager.v1.KeyManager/GenerateKey", RPC_UNARY, generate_key},
    {"/spire.plugin.agent.keymanager.v1.KeyManager/GetPublicKey", RPC_UNARY, get_public_key},
    {"/spire.plugin.agent.keymanager.v1.KeyManager/GetPublicKeys", RPC_UNARY, get_public_keys},
    {"/spire.plugin.agent.keymanager.v1.KeyManager/SignData", RPC_UNARY, sign_data},
    {NULL, RPC_UNARY, NULL},
};
