/* A private key in memory, signed with by OpenSSL: the keys of keys_file. */
#include "hsm/softkey.h"

#include <stdio.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/sign.h"
#include "hsm/wire/keytype.h"
#include "hsm/wire/pubkey.h"
#include "hsm/wire/rv.h"

/* OpenSSL's reasons hold nothing secret, and nothing that helps an operator. */
static int refuse(struct fault *fault, enum fault_code code, const char *why)
{
    ERR_clear_error();
    return fault_set(fault, code, "%s", why);
}

/* ---- reading ---- */

enum { TYPE_NAME_MAX = 64 };

/* "RSA-3072", "EC secp521r1", "ED25519". */
static void name_type(EVP_PKEY *pkey, char name[TYPE_NAME_MAX])
{
    const char *type = EVP_PKEY_get0_type_name(pkey);
    char group[TYPE_NAME_MAX / 2] = "of an unknown curve";

    if (EVP_PKEY_is_a(pkey, "RSA")) {
        (void)snprintf(name, TYPE_NAME_MAX, "RSA-%d", EVP_PKEY_get_bits(pkey));
    } else if (EVP_PKEY_is_a(pkey, "EC")) {
        (void)EVP_PKEY_get_group_name(pkey, group, sizeof group, NULL);
        (void)snprintf(name, TYPE_NAME_MAX, "EC %s", group);
    } else {
        (void)snprintf(name, TYPE_NAME_MAX, "%s", type ? type : "unknown");
    }
}

static int decode(const uint8_t *der, size_t length, EVP_PKEY **pkey, struct fault *fault)
{
    const uint8_t *end = der;
    OWNED(pkcs8_free) PKCS8_PRIV_KEY_INFO *info = d2i_PKCS8_PRIV_KEY_INFO(NULL, &end, (long)length);

    if (!info || end != der + length)
        return refuse(fault, FAULT_FAILED_PRECONDITION, "is not a private key in PKCS #8");
    *pkey = EVP_PKCS82PKEY(info);
    return *pkey ? 0
                 : refuse(fault, FAULT_FAILED_PRECONDITION, "is damaged, or of an unknown type");
}

/* Takes the public key from its encoding, so that it has the same spelling as a token's. */
static int take_public(struct softkey *key, struct fault *fault)
{
    OWNED(der_free) uint8_t *der = NULL;
    int length = i2d_PUBKEY(key->pkey, &der);
    char type[TYPE_NAME_MAX];
    struct fault why;

    if (length <= 0)
        return refuse(fault, FAULT_FAILED_PRECONDITION, "has no public key");
    if (pubkey_from_pkix(der, (size_t)length, &key->public_key, &why) == 0)
        return 0;
    if (why.code == FAULT_UNAVAILABLE)
        return refuse(fault, FAULT_UNAVAILABLE, "cannot be read for want of memory");
    name_type(key->pkey, type);
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "is of type %s, but only ec-p256, ec-p384, rsa-2048 and rsa-4096 can be "
                     "signed with here (%s)",
                     type, why.message);
}

int softkey_read(const uint8_t *der, size_t length, struct softkey *key, struct fault *fault)
{
    struct fault why;

    memset(key, 0, sizeof *key);
    if (decode(der, length, &key->pkey, fault) != 0 || take_public(key, fault) != 0)
        return -1;
    key->verifier = verifier_make(&key->public_key, &why);
    if (!key->verifier)
        return refuse(fault, FAULT_UNAVAILABLE, "cannot be read for want of memory");
    if (softkey_try(key, &why) == 0)
        return 0;
    if (why.code == FAULT_UNAVAILABLE)
        return refuse(fault, FAULT_UNAVAILABLE, "cannot be tried for want of memory");
    return refuse(fault, FAULT_FAILED_PRECONDITION,
                  "is damaged: what it signs does not verify with its public key");
}

void softkey_clear(struct softkey *key)
{
    EVP_PKEY_free(key->pkey);
    verifier_release(&key->verifier);
    explicit_bzero(key, sizeof *key);
}

/* ---- signing ---- */

static int no_memory(struct fault *fault)
{
    ERR_clear_error();
    return rv_fault(CKR_HOST_MEMORY, "signing in software", fault);
}

/* OpenSSL's padding for what a token's mechanism does to the input. */
static int padding_of(CK_MECHANISM_TYPE mechanism)
{
    return mechanism == CKM_RSA_PKCS ? RSA_PKCS1_PADDING : RSA_NO_PADDING;
}

static EVP_PKEY_CTX *signer_of(const struct softkey *key, const struct sign_plan *plan)
{
    OWNED(pkey_ctx_free) EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, key->pkey, NULL);
    EVP_PKEY_CTX *made = context;

    if (!context || EVP_PKEY_sign_init(context) != 1)
        return NULL;
    if (keytype_find(key->public_key.type)->rsa &&
        EVP_PKEY_CTX_set_rsa_padding(context, padding_of(plan->mechanism.mechanism)) != 1)
        return NULL;
    context = NULL;
    return made;
}

/* The worker pads PSS itself, as for a token without PSS. OpenSSL does what CKM_ECDSA, CKM_RSA_PKCS
 * and CKM_RSA_X_509 stand for. It encodes an EC signature by itself. */
static int make_plan(const struct softkey *key, const struct hsm_request *request,
                     struct sign_plan *plan, struct fault *fault)
{
    if (request->type != key->public_key.type)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "the key is of type %s, not %s",
                         hsm_key_type_name(key->public_key.type), hsm_key_type_name(request->type));
    if (sign_plan(request, plan, fault) != 0)
        return -1;
    return plan->mechanism.mechanism == CKM_RSA_PKCS_PSS ? sign_plan_padded(request, plan, fault)
                                                         : 0;
}

int softkey_sign(const struct softkey *key, const struct hsm_request *request,
                 struct hsm_reply *reply, struct fault *fault)
{
    OWNED(pkey_ctx_free) EVP_PKEY_CTX *context = NULL;
    size_t length = sizeof reply->signature;
    struct sign_plan plan;

    if (make_plan(key, request, &plan, fault) != 0)
        return -1;
    context = signer_of(key, &plan);
    if (!context)
        return no_memory(fault);
    if (EVP_PKEY_sign(context, reply->signature, &length, plan.input, plan.input_length) != 1)
        return refuse(fault, FAULT_INTERNAL, "OpenSSL cannot sign with it");
    reply->signature_length = (uint32_t)length;
    return 0;
}

int softkey_try(const struct softkey *key, struct fault *fault)
{
    struct hsm_reply made = {.signature_length = 0};
    struct hsm_request trial;

    if (sign_trial(key->public_key.type, &trial, fault) != 0 ||
        softkey_sign(key, &trial, &made, fault) != 0)
        return -1;
    return pubkey_verify(&key->public_key, &trial, made.signature, made.signature_length, fault);
}
