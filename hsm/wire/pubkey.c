/* Public keys: from the attributes in which tokens spell them differently, to the one encoding
 * (PKIX, DER) that SPIRE compares. */
#include "hsm/wire/pubkey.h"

#include <string.h>
#include <strings.h>

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/objects.h>
#include <openssl/param_build.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <openssl/x509.h>

#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/wire/hash.h"
#include "hsm/wire/keytype.h"
#include "hsm/wire/rv.h"

enum {
    COORDINATE_MAX = 48,
    POINT_MAX = 1 + 2 * COORDINATE_MAX,
    EXPONENT_MAX = 8, /* OpenSSL does not verify with a longer one */
};

static const enum hsm_key_type curves[] = {HSM_EC_P256, HSM_EC_P384};

enum { CURVES = sizeof curves / sizeof curves[0] };

/* The fault says nothing about the key, like all faults that carry a CK_RV. */
static int no_memory(struct fault *fault)
{
    ERR_clear_error();
    return rv_fault(CKR_HOST_MEMORY, "OpenSSL", fault);
}

/* OpenSSL's reasons for a refusal stay in its queue, so the queue is emptied here. Lack of memory
 * is fatal in that queue. */
static int refuse_and_clear(struct fault *fault, const char *why)
{
    unsigned long error;

    while ((error = ERR_get_error()) != 0)
        if (ERR_FATAL_ERROR(error))
            return no_memory(fault);
    return fault_set(fault, FAULT_INTERNAL, "%s", why);
}

/* For refusals that come from OpenSSL alone: it has a reason, unless its memory ran out. */
static int refuse_with_reason(struct fault *fault, const char *why)
{
    return ERR_peek_error() == 0 ? no_memory(fault) : refuse_and_clear(fault, why);
}

/* ---- making ---- */

static EVP_PKEY *make_pkey(const char *kind, OSSL_PARAM_BLD *builder)
{
    OWNED(params_free) OSSL_PARAM *params = OSSL_PARAM_BLD_to_param(builder);
    OWNED(pkey_ctx_free) EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, kind, NULL);
    EVP_PKEY *pkey = NULL;

    if (!params || !context || EVP_PKEY_fromdata_init(context) != 1 ||
        EVP_PKEY_fromdata(context, &pkey, EVP_PKEY_PUBLIC_KEY, params) != 1)
        return NULL;
    return pkey;
}

static int encode_rsa(EVP_PKEY *pkey, enum hsm_key_type type, struct hsm_public_key *key,
                      struct fault *fault)
{
    struct hsm_public_key made = {.type = type};
    uint8_t *out = made.pkix;
    int length = i2d_PUBKEY(pkey, NULL);

    if (length <= 0 || (size_t)length > sizeof made.pkix || i2d_PUBKEY(pkey, &out) != length)
        return no_memory(fault);
    made.pkix_length = (uint32_t)length;
    (void)SHA256(made.pkix, made.pkix_length, made.fingerprint);
    *key = made;
    return 0;
}

/* RFC 5480: SEQUENCE { SEQUENCE { id-ecPublicKey, curve }, BIT STRING point }, up to the point.
 * These bytes are written here: an OpenSSL provider may spell out the curve's numbers or compress
 * the point, and SPIRE refuses both. */
static const struct prefix {
    enum hsm_key_type type;
    uint8_t length;
    uint8_t bytes[26];
} prefixes[] = {
    {HSM_EC_P256, 26, {0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48,
                       0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
                       0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00}},
    {HSM_EC_P384, 23, {0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02,
                       0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00}},
};

/* The point's numbers come from OpenSSL, which has checked that it is on the curve. */
static int encode_ec(EVP_PKEY *pkey, const struct keytype *curve, struct hsm_public_key *key,
                     struct fault *fault)
{
    const struct prefix *prefix = &prefixes[curve->type == HSM_EC_P384];
    struct hsm_public_key made = {.type = curve->type};
    OWNED(bn_free) BIGNUM *x = NULL;
    OWNED(bn_free) BIGNUM *y = NULL;
    uint8_t *point = made.pkix + prefix->length;
    const int bytes = curve->bytes;

    if (EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_EC_PUB_X, &x) != 1 ||
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_EC_PUB_Y, &y) != 1 ||
        BN_bn2binpad(x, point + 1, bytes) != bytes ||
        BN_bn2binpad(y, point + 1 + bytes, bytes) != bytes)
        return no_memory(fault);
    memcpy(made.pkix, prefix->bytes, prefix->length);
    point[0] = 0x04; /* uncompressed */
    made.pkix_length = prefix->length + 1U + 2U * curve->bytes;
    (void)SHA256(made.pkix, made.pkix_length, made.fingerprint);
    *key = made;
    return 0;
}

/* `point` is in the form of SEC 1 2.3.3, compressed or not. OpenSSL refuses a point that is not on
 * the curve. */
static int from_point(const struct keytype *curve, const uint8_t *point, size_t length,
                      struct hsm_public_key *key, struct fault *fault)
{
    OWNED(params_builder_free) OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    OWNED(pkey_free) EVP_PKEY *pkey = NULL;

    if (!builder ||
        !OSSL_PARAM_BLD_push_utf8_string(builder, OSSL_PKEY_PARAM_GROUP_NAME, curve->group, 0) ||
        !OSSL_PARAM_BLD_push_octet_string(builder, OSSL_PKEY_PARAM_PUB_KEY, point, length))
        return no_memory(fault);
    pkey = make_pkey("EC", builder);
    if (!pkey)
        return refuse_with_reason(fault, "EC point is not on its curve");
    return encode_ec(pkey, curve, key, fault);
}

static int from_numbers(const BIGNUM *modulus, const BIGNUM *exponent, struct hsm_public_key *key,
                        struct fault *fault)
{
    OWNED(params_builder_free) OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    OWNED(pkey_free) EVP_PKEY *pkey = NULL;
    int bits = BN_num_bits(modulus);

    if ((bits != 2048 && bits != 4096) || !BN_is_odd(modulus))
        return refuse_and_clear(fault, "RSA modulus is not one of 2048 or 4096 bits");
    if (!BN_is_odd(exponent) || BN_num_bits(exponent) < 17 || BN_num_bytes(exponent) > EXPONENT_MAX)
        return refuse_and_clear(fault, "RSA public exponent is even, below 65537 or over 64 bits");
    if (!builder || !OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_RSA_N, modulus) ||
        !OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_RSA_E, exponent))
        return no_memory(fault);
    pkey = make_pkey("RSA", builder);
    if (!pkey)
        return refuse_with_reason(fault, "RSA public key is refused");
    return encode_rsa(pkey, bits == 2048 ? HSM_RSA_2048 : HSM_RSA_4096, key, fault);
}

/* ---- CKA_EC_PARAMS ---- */

static const struct keytype *curve_of_nid(int nid)
{
    for (size_t i = 0; i < CURVES; i++)
        if (nid != NID_undef && OBJ_sn2nid(keytype_find(curves[i])->group) == nid)
            return keytype_find(curves[i]);
    return NULL;
}

static const struct keytype *curve_of_oid(const uint8_t *der, size_t length)
{
    for (size_t i = 0; i < CURVES; i++) {
        const struct keytype *curve = keytype_find(curves[i]);

        if (length == curve->parameters_length && memcmp(der, curve->parameters, length) == 0)
            return curve;
    }
    return NULL;
}

static bool is_name(const char *one, const char *name, size_t length)
{
    return strlen(one) == length && strncasecmp(one, name, length) == 0;
}

static bool is_named(const struct keytype *curve, const char *name, size_t length)
{
    return is_name(curve->group, name, length) || is_name(curve->other_names[0], name, length) ||
           is_name(curve->other_names[1], name, length);
}

/* The curveName alternative of PKCS#11 3.0 (a PrintableString), or the bare name. */
static const struct keytype *curve_of_name(const uint8_t *text, size_t length)
{
    if (length > 2 && text[0] == 0x13 && text[1] == length - 2) {
        text += 2;
        length -= 2;
    }
    for (size_t i = 0; i < CURVES; i++)
        if (is_named(keytype_find(curves[i]), (const char *)text, length))
            return keytype_find(curves[i]);
    return NULL;
}

/* All numbers of a curve spelt out (X9.62 ECParameters): the curve is known if all of them
 * match. */
static const struct keytype *curve_of_numbers(const uint8_t *der, size_t length)
{
    const uint8_t *end = der;
    OWNED(ec_group_free) EC_GROUP *group = NULL;

    if (length == 0 || length > 1024 || der[0] != 0x30)
        return NULL;
    group = d2i_ECPKParameters(NULL, &end, (long)length);
    if (!group || end != der + length)
        return NULL;
    return curve_of_nid(EC_GROUP_check_named_curve(group, 0, NULL));
}

static const struct keytype *curve_of(const uint8_t *params, size_t length)
{
    const struct keytype *curve = curve_of_oid(params, length);

    if (!curve)
        curve = curve_of_name(params, length);
    if (!curve)
        curve = curve_of_numbers(params, length);
    return curve;
}

/* ---- CKA_EC_POINT ---- */

/* Is `point` an encoding of `inner` bytes: bare, an OCTET STRING (as the spec demands) or a BIT
 * STRING? Both a bare point and an OCTET STRING begin with 04, so only the whole length tells them
 * apart. */
static bool holds(const uint8_t *point, size_t length, size_t inner)
{
    if (length == inner)
        return true;
    if (length == inner + 2)
        return point[0] == 0x04 && point[1] == inner;
    if (length == inner + 3)
        return point[0] == 0x03 && point[1] == inner + 1 && point[2] == 0x00;
    return false;
}

/* Writes the point inside `point` and returns its length, 0 if there is none. */
static size_t unwrap(const struct keytype *curve, const uint8_t *point, size_t length,
                     uint8_t bare[POINT_MAX])
{
    const size_t full = 1 + (size_t)2 * curve->bytes;
    const size_t compressed = (size_t)1 + curve->bytes;
    const size_t headless = (size_t)2 * curve->bytes; /* X and Y alone */

    if (holds(point, length, full)) {
        memcpy(bare, point + length - full, full);
        return bare[0] == 0x04 ? full : 0;
    }
    if (holds(point, length, compressed)) {
        memcpy(bare, point + length - compressed, compressed);
        return bare[0] == 0x02 || bare[0] == 0x03 ? compressed : 0;
    }
    if (holds(point, length, headless)) {
        bare[0] = 0x04;
        memcpy(bare + 1, point + length - headless, headless);
        return full;
    }
    return 0;
}

/* ---- the doors ---- */

int pubkey_from_ec(const uint8_t *params, size_t params_length, const uint8_t *point,
                   size_t point_length, struct hsm_public_key *key, struct fault *fault)
{
    const struct keytype *curve = curve_of(params, params_length);
    uint8_t bare[POINT_MAX];
    size_t length;

    if (!curve)
        return refuse_and_clear(fault, "EC parameters are neither P-256 nor P-384");
    length = unwrap(curve, point, point_length, bare);
    if (length == 0)
        return refuse_and_clear(fault, "EC point has no known encoding");
    return from_point(curve, bare, length, key, fault);
}

int pubkey_from_rsa(const uint8_t *modulus, size_t modulus_length, const uint8_t *exponent,
                    size_t exponent_length, struct hsm_public_key *key, struct fault *fault)
{
    OWNED(bn_free) BIGNUM *n = NULL;
    OWNED(bn_free) BIGNUM *e = NULL;

    if (modulus_length > HSM_PKIX_MAX || exponent_length > HSM_PKIX_MAX)
        return refuse_and_clear(fault, "RSA modulus or public exponent is too long");
    n = BN_bin2bn(modulus, (int)modulus_length, NULL);
    e = BN_bin2bn(exponent, (int)exponent_length, NULL);
    if (!n || !e)
        return no_memory(fault);
    return from_numbers(n, e, key, fault);
}

static int from_ec_pkey(EVP_PKEY *pkey, struct hsm_public_key *key, struct fault *fault)
{
    OWNED(bn_free) BIGNUM *x = NULL;
    OWNED(bn_free) BIGNUM *y = NULL;
    const struct keytype *curve;
    uint8_t point[POINT_MAX] = {0x04};
    char name[64];
    int size;

    if (EVP_PKEY_get_group_name(pkey, name, sizeof name, NULL) != 1)
        return refuse_and_clear(fault, "EC public key is on an unknown curve");
    curve = curve_of_name((const uint8_t *)name, strlen(name));
    if (!curve)
        return refuse_and_clear(fault, "EC public key is neither on P-256 nor on P-384");
    size = (int)curve->bytes;
    if (EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_EC_PUB_X, &x) != 1 ||
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_EC_PUB_Y, &y) != 1 ||
        BN_bn2binpad(x, point + 1, size) != size ||
        BN_bn2binpad(y, point + 1 + curve->bytes, size) != size)
        return refuse_and_clear(fault, "EC public key has no point");
    return from_point(curve, point, 1 + (size_t)2 * curve->bytes, key, fault);
}

static int from_rsa_pkey(EVP_PKEY *pkey, struct hsm_public_key *key, struct fault *fault)
{
    OWNED(bn_free) BIGNUM *n = NULL;
    OWNED(bn_free) BIGNUM *e = NULL;

    if (EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_N, &n) != 1 ||
        EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_E, &e) != 1)
        return refuse_and_clear(fault, "RSA public key has no numbers");
    return from_numbers(n, e, key, fault);
}

/* Decodes and encodes again, so that one key has one encoding and one fingerprint however the token
 * spells it. */
int pubkey_from_pkix(const uint8_t *pkix, size_t length, struct hsm_public_key *key,
                     struct fault *fault)
{
    const uint8_t *end = pkix;
    OWNED(pkey_free) EVP_PKEY *pkey = NULL;

    if (length == 0 || length > 2 * (size_t)HSM_PKIX_MAX)
        return refuse_and_clear(fault, "public key is empty or too long");
    pkey = d2i_PUBKEY(NULL, &end, (long)length);
    if (!pkey || end != pkix + length)
        return refuse_and_clear(fault, "public key is not a SubjectPublicKeyInfo");
    if (EVP_PKEY_is_a(pkey, "EC"))
        return from_ec_pkey(pkey, key, fault);
    if (EVP_PKEY_is_a(pkey, "RSA"))
        return from_rsa_pkey(pkey, key, fault);
    return refuse_and_clear(fault, "public key is neither EC nor RSA");
}

/* ---- verifying ---- */

/* If the token refused the longest salt, it was asked for one as long as the hash. HSM_SALT_MAX
 * accepts any length. */
static int pss_salt(int32_t asked)
{
    if (asked == HSM_SALT_MAX)
        return RSA_PSS_SALTLEN_AUTO;
    return asked == HSM_SALT_HASH ? RSA_PSS_SALTLEN_DIGEST : asked;
}

static bool prepare_rsa(EVP_PKEY_CTX *context, const struct hsm_request *request)
{
    const struct hash *row = hash_find(request->hash);
    OWNED(md_free) EVP_MD *hash = row ? EVP_MD_fetch(NULL, row->name, NULL) : NULL;
    bool pss = request->scheme == HSM_PSS;

    if (!hash)
        return false;
    if (EVP_PKEY_CTX_set_rsa_padding(context, pss ? RSA_PKCS1_PSS_PADDING : RSA_PKCS1_PADDING) != 1)
        return false;
    if (EVP_PKEY_CTX_set_signature_md(context, hash) != 1)
        return false;
    return !pss || EVP_PKEY_CTX_set_rsa_pss_saltlen(context, pss_salt(request->salt_length)) == 1;
}

/* The encoding is our own, so only memory can be short. */
int pubkey_load(const struct hsm_public_key *key, EVP_PKEY **pkey, struct fault *fault)
{
    const uint8_t *end = key->pkix;

    *pkey = d2i_PUBKEY(NULL, &end, (long)key->pkix_length);
    return *pkey ? 0 : no_memory(fault);
}

int pubkey_verifier(EVP_PKEY *pkey, EVP_PKEY_CTX **context, struct fault *fault)
{
    OWNED(pkey_ctx_free) EVP_PKEY_CTX *made = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);

    if (!made || EVP_PKEY_verify_init(made) != 1)
        return no_memory(fault);
    *context = made;
    made = NULL;
    return 0;
}

int pubkey_check(EVP_PKEY_CTX *context, const struct hsm_request *request, const uint8_t *signature,
                 size_t length, struct fault *fault)
{
    if (EVP_PKEY_is_a(EVP_PKEY_CTX_get0_pkey(context), "RSA") && !prepare_rsa(context, request))
        return refuse_and_clear(fault,
                                "signature cannot be verified: hash or scheme is not usable");
    if (EVP_PKEY_verify(context, signature, length, request->digest, request->digest_length) != 1)
        return refuse_and_clear(fault, "signature does not verify with the public key");
    return 0;
}

int pubkey_verify(const struct hsm_public_key *key, const struct hsm_request *request,
                  const uint8_t *signature, size_t length, struct fault *fault)
{
    OWNED(pkey_free) EVP_PKEY *pkey = NULL;
    OWNED(pkey_ctx_free) EVP_PKEY_CTX *context = NULL;

    if (pubkey_load(key, &pkey, fault) != 0 || pubkey_verifier(pkey, &context, fault) != 0)
        return -1;
    return pubkey_check(context, request, signature, length, fault);
}
