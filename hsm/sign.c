/* What a token is asked to sign, by key type and scheme, and how its answer becomes the signature
 * that SPIRE expects. */
#include "hsm/sign.h"

#include <string.h>

#include <openssl/bn.h>
#include <openssl/ecdsa.h>
#include <openssl/rand.h>

#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/pss.h"
#include "hsm/wire/hash.h"
#include "hsm/wire/keytype.h"

/* RFC 8017 9.2 note 1: SEQUENCE { SEQUENCE { OID, NULL }, OCTET STRING }. Of the prefix
 * only three bytes differ between hashes of one family. */
static const uint8_t digest_info[] = {0x30, 0,    0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01,
                                      0x65, 0x03, 0x04, 0x02, 0,    0x05, 0x00, 0x04, 0};
enum { DIGEST_INFO_LENGTH = 1, DIGEST_INFO_OID = 14, DIGEST_INFO_DIGEST = 18 };

/* PKCS#1 v1.5 adds 11 bytes at least, which the smallest of our moduli has room for. */
_Static_assert(sizeof digest_info + HSM_DIGEST_MAX + 11 <= 256, "DigestInfo fits");
_Static_assert(sizeof digest_info + HSM_DIGEST_MAX <= sizeof((struct sign_plan *)0)->input,
               "DigestInfo fits");

/* FIPS 186-4 6.4: of a longer digest the leftmost bits count. Many tokens refuse to
 * cut it themselves. */
static void plan_ecdsa(const struct hsm_request *request, const struct keytype *kind,
                       struct sign_plan *plan)
{
    uint32_t length = request->digest_length;

    if (length > kind->bytes)
        length = kind->bytes;
    plan->mechanism.mechanism = CKM_ECDSA;
    memcpy(plan->input, request->digest, length);
    plan->input_length = length;
    plan->signature_length = (CK_ULONG)kind->bytes * 2;
}

/* CKM_SHA256_RSA_PKCS and the like would hash the digest again. */
static void plan_pkcs1(const struct hsm_request *request, const struct hash *hash,
                       struct sign_plan *plan)
{
    plan->mechanism.mechanism = CKM_RSA_PKCS;
    memcpy(plan->input, digest_info, sizeof digest_info);
    plan->input[DIGEST_INFO_LENGTH] = (uint8_t)(sizeof digest_info - 2 + hash->length);
    plan->input[DIGEST_INFO_OID] = hash->oid;
    plan->input[DIGEST_INFO_DIGEST] = hash->length;
    memcpy(plan->input + sizeof digest_info, request->digest, hash->length);
    plan->input_length = sizeof digest_info + hash->length;
}

/* RFC 8017 9.1.1: emLen >= hLen + sLen + 2. emLen is the modulus length, as our moduli
 * are whole bytes. */
static int pss_salt(const struct hsm_request *request, const struct hash *hash,
                    const struct keytype *kind, CK_ULONG *length, struct fault *fault)
{
    int32_t longest = kind->bytes - hash->length - 2;
    int32_t asked = request->salt_length;

    if (asked < HSM_SALT_HASH)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "PSS salt length %d does not exist", asked);
    if (asked > longest)
        return fault_set(fault, FAULT_INVALID_ARGUMENT,
                         "PSS salt length %d is too long for an %s key, %d is the most", asked,
                         kind->name, longest);
    if (asked == HSM_SALT_HASH)
        asked = hash->length;
    else if (asked == HSM_SALT_MAX)
        asked = longest;
    *length = (CK_ULONG)asked;
    return 0;
}

static void plan_pss(const struct hsm_request *request, const struct hash *hash, CK_ULONG salt,
                     struct sign_plan *plan)
{
    plan->mechanism.mechanism = CKM_RSA_PKCS_PSS;
    plan->mechanism.pParameter = &plan->pss;
    plan->mechanism.ulParameterLen = sizeof plan->pss;
    plan->pss.hashAlg = hash->mechanism;
    plan->pss.mgf = hash->mgf;
    plan->pss.sLen = salt;
    memcpy(plan->input, request->digest, hash->length);
    plan->input_length = hash->length;
}

/* Keeps the salt length of the plan before. */
int sign_plan_padded(const struct hsm_request *request, struct sign_plan *plan, struct fault *fault)
{
    if (pss_encode(request, plan->pss.sLen, plan->input, plan->signature_length, fault) != 0)
        return -1;
    plan->mechanism = (CK_MECHANISM){.mechanism = CKM_RSA_X_509};
    plan->input_length = plan->signature_length;
    return 0;
}

int sign_trial(enum hsm_key_type type, struct hsm_request *trial, struct fault *fault)
{
    memset(trial, 0, sizeof *trial);
    trial->op = HSM_SIGN;
    trial->type = type;
    trial->hash = type == HSM_EC_P384 ? HSM_SHA384 : HSM_SHA256; /* SPIRE uses the same */
    trial->digest_length = (uint32_t)hsm_hash_length(trial->hash);
    if (RAND_bytes(trial->digest, (int)trial->digest_length) != 1)
        return fault_set(fault, FAULT_INTERNAL, "no random numbers for a trial signature");
    return 0;
}

static int check_signing(const struct hsm_request *request, const struct hash *hash,
                         const struct keytype *kind, struct fault *fault)
{
    if (kind->bytes == 0)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "key type %d does not exist",
                         (int)request->type);
    if (request->scheme != HSM_PLAIN && request->scheme != HSM_PSS)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "signature scheme %d does not exist",
                         (int)request->scheme);
    if (request->scheme == HSM_PSS && !kind->rsa)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "RSA-PSS with an %s key", kind->name);
    if (request->digest_length != hash->length)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "digest is %u bytes long, %s makes %u",
                         request->digest_length, hash->name, hash->length);
    return 0;
}

int sign_plan(const struct hsm_request *request, struct sign_plan *plan, struct fault *fault)
{
    const struct hash *hash = hash_find(request->hash);
    const struct keytype *kind = keytype_find(request->type);
    CK_ULONG salt = 0;

    if (!hash)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "hash algorithm %d does not exist",
                         (int)request->hash);
    if (check_signing(request, hash, kind, fault) != 0)
        return -1;
    if (request->scheme == HSM_PSS && pss_salt(request, hash, kind, &salt, fault) != 0)
        return -1;
    memset(plan, 0, sizeof *plan);
    plan->signature_length = kind->bytes;
    if (!kind->rsa)
        plan_ecdsa(request, kind, plan);
    else if (request->scheme == HSM_PLAIN)
        plan_pkcs1(request, hash, plan);
    else
        plan_pss(request, hash, salt, plan);
    return request->scheme == HSM_PSS && hash->mgf == HASH_NO_MGF
               ? sign_plan_padded(request, plan, fault)
               : 0;
}

bool sign_plan_shorter_salt(const struct hsm_request *request, struct sign_plan *plan)
{
    if (plan->mechanism.mechanism != CKM_RSA_PKCS_PSS || request->salt_length != HSM_SALT_MAX)
        return false;
    plan->pss.sLen = hsm_hash_length(request->hash);
    return true;
}

/* Zeros go in front, because the digest stands for a number. */
bool sign_plan_longer_digest(const struct hsm_request *request, struct sign_plan *plan)
{
    const CK_ULONG order = keytype_find(request->type)->bytes;
    const CK_ULONG length = plan->input_length;

    if (plan->mechanism.mechanism != CKM_ECDSA || length >= order)
        return false;
    memmove(plan->input + order - length, plan->input, length);
    memset(plan->input, 0, order - length);
    plan->input_length = order;
    return true;
}

/* ECDSA_SIG_set0 takes over both numbers. Until then this function owns them. */
static ECDSA_SIG *signature_of(const uint8_t *raw, int half)
{
    ECDSA_SIG *signature = ECDSA_SIG_new();
    BIGNUM *r = BN_bin2bn(raw, half, NULL);
    BIGNUM *s = BN_bin2bn(raw + half, half, NULL);

    if (signature && r && s && ECDSA_SIG_set0(signature, r, s) == 1)
        return signature;
    BN_free(r);
    BN_free(s);
    ECDSA_SIG_free(signature);
    return NULL;
}

static int result_ecdsa(const uint8_t *raw, CK_ULONG length, struct hsm_reply *reply,
                        struct fault *fault)
{
    OWNED(ecdsa_sig_free) ECDSA_SIG *signature = signature_of(raw, (int)(length / 2));
    uint8_t *out = reply->signature;
    int written;

    if (!signature)
        return fault_set(fault, FAULT_INTERNAL, "no memory for a signature");
    if (BN_is_zero(ECDSA_SIG_get0_r(signature)) || BN_is_zero(ECDSA_SIG_get0_s(signature)))
        return fault_set(fault, FAULT_INTERNAL, "token made a signature with a zero in it");
    written = i2d_ECDSA_SIG(signature, &out);
    if (written <= 0)
        return fault_set(fault, FAULT_INTERNAL, "signature cannot be encoded");
    reply->signature_length = (uint32_t)written;
    return 0;
}

int sign_result(const struct hsm_request *request, const struct sign_plan *plan, const uint8_t *raw,
                CK_ULONG length, struct hsm_reply *reply, struct fault *fault)
{
    if (length != plan->signature_length || length > sizeof reply->signature)
        return fault_set(fault, FAULT_INTERNAL,
                         "token made a signature of %lu bytes where %lu are right", length,
                         plan->signature_length);
    if (!keytype_find(request->type)->rsa)
        return result_ecdsa(raw, length, reply, fault);
    memcpy(reply->signature, raw, length);
    reply->signature_length = (uint32_t)length;
    return 0;
}
