#include "hsm/sign.h"

#include <string.h>

#include <openssl/bn.h>
#include <openssl/ecdsa.h>

#include "hsm/base/scope.h"
#include "hsm/pss.h"

/* p11-kit 0.24 stops at PKCS#11 2.40. These are from PKCS#11 3.0, pkcs11t.h. */
#ifndef CKM_SHA3_256
#define CKM_SHA3_256 0x2b0UL
#define CKM_SHA3_224 0x2b5UL
#define CKM_SHA3_384 0x2c0UL
#define CKM_SHA3_512 0x2d0UL
#endif
#ifndef CKG_MGF1_SHA3_224
#define CKG_MGF1_SHA3_224 0x6UL
#define CKG_MGF1_SHA3_256 0x7UL
#define CKG_MGF1_SHA3_384 0x8UL
#define CKG_MGF1_SHA3_512 0x9UL
#endif

/* No PKCS#11 up to 3.1 numbers MGF1 with a truncated SHA-512. */
#define NO_MGF 0UL

static const struct hash {
    enum hsm_hash number;
    const char *name;
    uint8_t length;
    uint8_t oid; /* last byte of 2.16.840.1.101.3.4.2.n, NIST's hash algorithms */
    CK_MECHANISM_TYPE mechanism;
    CK_ULONG mgf;
} hashes[] = {
    {HSM_SHA224, "SHA2-224", 28, 4, CKM_SHA224, CKG_MGF1_SHA224},
    {HSM_SHA256, "SHA2-256", 32, 1, CKM_SHA256, CKG_MGF1_SHA256},
    {HSM_SHA384, "SHA2-384", 48, 2, CKM_SHA384, CKG_MGF1_SHA384},
    {HSM_SHA512, "SHA2-512", 64, 3, CKM_SHA512, CKG_MGF1_SHA512},
    {HSM_SHA3_224, "SHA3-224", 28, 7, CKM_SHA3_224, CKG_MGF1_SHA3_224},
    {HSM_SHA3_256, "SHA3-256", 32, 8, CKM_SHA3_256, CKG_MGF1_SHA3_256},
    {HSM_SHA3_384, "SHA3-384", 48, 9, CKM_SHA3_384, CKG_MGF1_SHA3_384},
    {HSM_SHA3_512, "SHA3-512", 64, 10, CKM_SHA3_512, CKG_MGF1_SHA3_512},
    {HSM_SHA512_224, "SHA2-512/224", 28, 5, CKM_SHA512_224, NO_MGF},
    {HSM_SHA512_256, "SHA2-512/256", 32, 6, CKM_SHA512_256, NO_MGF},
};

/* `bytes` is the length of the curve's order, or of the modulus. */
static const struct kind {
    const char *name;
    bool rsa;
    uint16_t bytes;
} kinds[] = {
    [HSM_KEY_NONE] = {"unknown", false, 0},   [HSM_EC_P256] = {"ec-p256", false, 32},
    [HSM_EC_P384] = {"ec-p384", false, 48},   [HSM_RSA_2048] = {"rsa-2048", true, 256},
    [HSM_RSA_4096] = {"rsa-4096", true, 512},
};

/* RFC 8017 9.2 note 1: SEQUENCE { SEQUENCE { OID, NULL }, OCTET STRING }. Of the prefix
 * only three bytes differ between hashes of one family. */
static const uint8_t digest_info[] = {0x30, 0,    0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01,
                                      0x65, 0x03, 0x04, 0x02, 0,    0x05, 0x00, 0x04, 0};
enum { DIGEST_INFO_LENGTH = 1, DIGEST_INFO_OID = 14, DIGEST_INFO_DIGEST = 18 };

/* PKCS#1 v1.5 adds 11 bytes at least, which the smallest of our moduli has room for. */
_Static_assert(sizeof digest_info + HSM_DIGEST_MAX + 11 <= 256, "DigestInfo fits");
_Static_assert(sizeof digest_info + HSM_DIGEST_MAX <= sizeof((struct sign_plan *)0)->input,
               "DigestInfo fits");

static const struct hash *hash_of(enum hsm_hash number)
{
    for (size_t i = 0; i < sizeof hashes / sizeof hashes[0]; i++)
        if (hashes[i].number == number)
            return &hashes[i];
    return NULL;
}

static const struct kind *kind_of(enum hsm_key_type type)
{
    size_t i = (size_t)type;

    return &kinds[i < sizeof kinds / sizeof kinds[0] ? i : HSM_KEY_NONE];
}

const char *hsm_key_type_name(enum hsm_key_type type)
{
    return kind_of(type)->name;
}

size_t hsm_hash_length(enum hsm_hash hash)
{
    const struct hash *row = hash_of(hash);

    return row ? row->length : 0;
}

const char *sign_hash_name(enum hsm_hash hash)
{
    const struct hash *row = hash_of(hash);

    return row ? row->name : NULL;
}

/* FIPS 186-4 6.4: of a longer digest the leftmost bits count. Many tokens refuse to
 * cut it themselves. */
static void plan_ecdsa(const struct hsm_request *request, const struct kind *kind,
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

/* Not CKM_SHA256_RSA_PKCS and its kin: they would hash the digest again. */
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
                    const struct kind *kind, CK_ULONG *length, struct fault *fault)
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

/* The salt length of the plan before counts. */
int sign_plan_padded(const struct hsm_request *request, struct sign_plan *plan, struct fault *fault)
{
    if (pss_encode(request, plan->pss.sLen, plan->input, plan->signature_length, fault) != 0)
        return -1;
    plan->mechanism = (CK_MECHANISM){.mechanism = CKM_RSA_X_509};
    plan->input_length = plan->signature_length;
    return 0;
}

static int check(const struct hsm_request *request, const struct hash *hash,
                 const struct kind *kind, struct fault *fault)
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
    const struct hash *hash = hash_of(request->hash);
    const struct kind *kind = kind_of(request->type);
    CK_ULONG salt = 0;

    if (!hash)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "hash algorithm %d does not exist",
                         (int)request->hash);
    if (check(request, hash, kind, fault) != 0)
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
    return request->scheme == HSM_PSS && hash->mgf == NO_MGF
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

/* Zeros in front: the digest stands for a number. */
bool sign_plan_longer_digest(const struct hsm_request *request, struct sign_plan *plan)
{
    const CK_ULONG order = kind_of(request->type)->bytes;
    const CK_ULONG length = plan->input_length;

    if (plan->mechanism.mechanism != CKM_ECDSA || length >= order)
        return false;
    memmove(plan->input + order - length, plan->input, length);
    memset(plan->input, 0, order - length);
    plan->input_length = order;
    return true;
}

static void release_signature(ECDSA_SIG **signature)
{
    ECDSA_SIG_free(*signature);
}

/* ECDSA_SIG_set0 gives both numbers away; until then they are ours. */
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
    OWNED(release_signature) ECDSA_SIG *signature = signature_of(raw, (int)(length / 2));
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
    if (!kind_of(request->type)->rsa)
        return result_ecdsa(raw, length, reply, fault);
    memcpy(reply->signature, raw, length);
    reply->signature_length = (uint32_t)length;
    return 0;
}
