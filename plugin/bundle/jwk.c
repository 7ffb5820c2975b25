/* Public keys as JWKs (RFC 7517, 7518), as go-jose reads them, and back. */
#include "plugin/bundle/jwk.h"

#include <string.h>

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/objects.h>
#include <openssl/param_build.h>
#include <openssl/rsa.h>

#include "hsm/base/base64.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"

enum {
    COORDINATE_MAX = 66,
    ED25519_LENGTH = 32,
    MODULUS_MAX = OPENSSL_RSA_MAX_MODULUS_BITS / 8,
    EXPONENT_BITS_MAX = 31,  /* Go does not read a key with a longer exponent */
    RSA_BITS_TOO_FEW = 2040, /* for 256 bytes, which SPIRE asks for, full or not */
};

static const struct curve {
    const char *crv;
    const char *group; /* OpenSSL's name */
    int width;         /* length of a coordinate in bytes */
    const char *alg;   /* NULL: SPIRE does not sign with this curve */
} curves[] = {
    {"P-256", SN_X9_62_prime256v1, 32, "ES256"},
    {"P-384", SN_secp384r1, 48, "ES384"},
    {"P-521", SN_secp521r1, 66, NULL},
};

void jwk_free_key(EVP_PKEY **key)
{
    EVP_PKEY_free(*key);
}

static int bad_key(struct fault *fault, const char *what)
{
    ERR_clear_error();
    return fault_set(fault, FAULT_INVALID_ARGUMENT, "%s", what);
}

static int set_text(json_t *jwk, const char *name, const char *value, struct fault *fault)
{
    if (json_object_set_new(jwk, name, json_string(value)) == 0)
        return 0;
    return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
}

static int set_bytes(json_t *jwk, const char *name, const uint8_t *bytes, size_t length,
                     struct fault *fault)
{
    OWNED(scope_free) char *text = base64_encode(BASE64_URL, bytes, length);

    if (!text)
        return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
    return set_text(jwk, name, text, fault);
}

/* ---- writing ---- */

struct member {
    const char *param; /* OpenSSL's name */
    const char *name;  /* the member of the JWK */
    int width;         /* exactly this many bytes (RFC 7518, 6.2.1.2); 0 = as few as possible */
};

static int write_number(const EVP_PKEY *key, struct member member, json_t *jwk, struct fault *fault)
{
    OWNED(bn_free) BIGNUM *number = NULL;
    uint8_t bytes[MODULUS_MAX];
    int width;

    if (!EVP_PKEY_get_bn_param(key, member.param, &number))
        return bad_key(fault, "not a complete public key");
    width = member.width > 0 ? member.width : BN_num_bytes(number);
    if (width > MODULUS_MAX || BN_bn2binpad(number, bytes, width) != width)
        return bad_key(fault, "the key is too large for the file's readers");
    return set_bytes(jwk, member.name, bytes, (size_t)width, fault);
}

static const struct curve *curve_of(const EVP_PKEY *key)
{
    char group[64] = "";

    (void)EVP_PKEY_get_group_name(key, group, sizeof group, NULL);
    for (size_t i = 0; i < sizeof curves / sizeof curves[0]; i++)
        if (strcmp(curves[i].group, group) == 0)
            return &curves[i];
    return NULL;
}

static int write_ec(const EVP_PKEY *key, json_t *jwk, struct fault *fault)
{
    const struct curve *curve = curve_of(key);

    if (!curve)
        return bad_key(fault, "EC key is on none of the curves P-256, P-384 and P-521");
    if (set_text(jwk, "kty", "EC", fault) != 0 || set_text(jwk, "crv", curve->crv, fault) != 0)
        return -1;
    if (write_number(key, (struct member){OSSL_PKEY_PARAM_EC_PUB_X, "x", curve->width}, jwk,
                     fault) != 0)
        return -1;
    return write_number(key, (struct member){OSSL_PKEY_PARAM_EC_PUB_Y, "y", curve->width}, jwk,
                        fault);
}

static int write_rsa(const EVP_PKEY *key, json_t *jwk, struct fault *fault)
{
    if (set_text(jwk, "kty", "RSA", fault) != 0 ||
        write_number(key, (struct member){OSSL_PKEY_PARAM_RSA_N, "n", 0}, jwk, fault) != 0)
        return -1;
    return write_number(key, (struct member){OSSL_PKEY_PARAM_RSA_E, "e", 0}, jwk, fault);
}

static int write_ed25519(const EVP_PKEY *key, json_t *jwk, struct fault *fault)
{
    uint8_t bytes[ED25519_LENGTH];
    size_t length = sizeof bytes;

    if (!EVP_PKEY_get_raw_public_key(key, bytes, &length))
        return bad_key(fault, "not a complete public key");
    if (set_text(jwk, "kty", "OKP", fault) != 0 || set_text(jwk, "crv", "Ed25519", fault) != 0)
        return -1;
    return set_bytes(jwk, "x", bytes, length, fault);
}

/* ---- reading ---- */

struct piece {
    uint8_t bytes[MODULUS_MAX];
    size_t length;
};

static int read_piece(const json_t *jwk, const char *name, struct piece *piece, struct fault *fault)
{
    const char *text = json_string_value(json_object_get(jwk, name));
    size_t length = 0;
    OWNED(scope_free) uint8_t *bytes = text ? base64_decode(BASE64_URL, text, &length) : NULL;

    if (!bytes || length == 0 || length > sizeof piece->bytes)
        return fault_set(fault, FAULT_INVALID_ARGUMENT, "\"%s\" is missing or not base64url", name);
    memcpy(piece->bytes, bytes, length);
    piece->length = length;
    return 0;
}

static EVP_PKEY *build(const char *type, OSSL_PARAM_BLD *builder, struct fault *fault)
{
    OWNED(params_free) OSSL_PARAM *params = OSSL_PARAM_BLD_to_param(builder);
    OWNED(pkey_ctx_free) EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, type, NULL);
    EVP_PKEY *key = NULL;

    if (params && context && EVP_PKEY_fromdata_init(context) == 1 &&
        EVP_PKEY_fromdata(context, &key, EVP_PKEY_PUBLIC_KEY, params) == 1)
        return key;
    (void)bad_key(fault, "its members do not form a key");
    return NULL;
}

static const struct curve *read_curve(const json_t *jwk)
{
    const char *crv = json_string_value(json_object_get(jwk, "crv"));

    for (size_t i = 0; crv && i < sizeof curves / sizeof curves[0]; i++)
        if (strcmp(curves[i].crv, crv) == 0)
            return &curves[i];
    return NULL;
}

static EVP_PKEY *read_ec(const json_t *jwk, struct fault *fault)
{
    const struct curve *curve = read_curve(jwk);
    OWNED(params_builder_free) OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    uint8_t point[1 + 2 * COORDINATE_MAX] = {POINT_CONVERSION_UNCOMPRESSED};
    struct piece x;
    struct piece y;
    size_t width;

    if (!curve) {
        (void)bad_key(fault, "EC key is on none of the curves P-256, P-384 and P-521");
        return NULL;
    }
    width = (size_t)curve->width;
    if (read_piece(jwk, "x", &x, fault) != 0 || read_piece(jwk, "y", &y, fault) != 0)
        return NULL;
    if (!builder || x.length != width || y.length != width) {
        (void)bad_key(fault, "coordinates of the wrong width");
        return NULL;
    }
    memcpy(point + 1, x.bytes, width);
    memcpy(point + 1 + width, y.bytes, width);
    (void)OSSL_PARAM_BLD_push_utf8_string(builder, OSSL_PKEY_PARAM_GROUP_NAME, curve->group, 0);
    (void)OSSL_PARAM_BLD_push_octet_string(builder, OSSL_PKEY_PARAM_PUB_KEY, point, 1 + 2 * width);
    return build("EC", builder, fault);
}

static BIGNUM *read_number(const json_t *jwk, const char *name, struct fault *fault)
{
    struct piece piece;

    if (read_piece(jwk, name, &piece, fault) != 0)
        return NULL;
    if (piece.bytes[0] == 0) {
        (void)fault_set(fault, FAULT_INVALID_ARGUMENT, "leading zeros in \"%s\"", name);
        return NULL;
    }
    return BN_bin2bn(piece.bytes, (int)piece.length, NULL);
}

static EVP_PKEY *read_rsa(const json_t *jwk, struct fault *fault)
{
    OWNED(bn_free) BIGNUM *n = read_number(jwk, "n", fault);
    OWNED(bn_free) BIGNUM *e = n ? read_number(jwk, "e", fault) : NULL;
    OWNED(params_builder_free) OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();

    if (!n || !e)
        return NULL;
    if (!builder || BN_num_bits(e) > EXPONENT_BITS_MAX) {
        (void)bad_key(fault, "RSA key has too large an exponent");
        return NULL;
    }
    (void)OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_RSA_N, n);
    (void)OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_RSA_E, e);
    return build("RSA", builder, fault);
}

static EVP_PKEY *read_ed25519(const json_t *jwk, struct fault *fault)
{
    const char *crv = json_string_value(json_object_get(jwk, "crv"));
    EVP_PKEY *key = NULL;
    struct piece x;

    if (read_piece(jwk, "x", &x, fault) != 0)
        return NULL;
    if (crv && strcmp(crv, "Ed25519") == 0)
        key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, x.bytes, x.length);
    if (!key)
        (void)bad_key(fault, "OKP key is not Ed25519");
    return key;
}

/* ---- the kinds ---- */

static const struct kind {
    const char *type; /* OpenSSL's name */
    const char *kty;
    int (*write)(const EVP_PKEY *key, json_t *jwk, struct fault *fault);
    EVP_PKEY *(*read)(const json_t *jwk, struct fault *fault);
} kinds[] = {
    {"EC", "EC", write_ec, read_ec},
    {"RSA", "RSA", write_rsa, read_rsa},
    {"ED25519", "OKP", write_ed25519, read_ed25519},
};

int jwk_write(const EVP_PKEY *key, json_t *jwk, struct fault *fault)
{
    const char *type = EVP_PKEY_get0_type_name(key);

    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (EVP_PKEY_is_a(key, kinds[i].type))
            return kinds[i].write(key, jwk, fault);
    return fault_set(fault, FAULT_INVALID_ARGUMENT,
                     "key of type %s, which the file's readers do not know",
                     type ? type : "unknown");
}

EVP_PKEY *jwk_read(const json_t *jwk, struct fault *fault)
{
    const char *kty = json_string_value(json_object_get(jwk, "kty"));

    for (size_t i = 0; kty && i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(kinds[i].kty, kty) == 0)
            return kinds[i].read(jwk, fault);
    (void)fault_set(fault, FAULT_INVALID_ARGUMENT, "key type is unknown");
    return NULL;
}

const char *jwk_algorithm(const EVP_PKEY *key)
{
    const struct curve *curve;

    if (EVP_PKEY_is_a(key, "RSA"))
        return EVP_PKEY_get_bits(key) > RSA_BITS_TOO_FEW ? "RS256" : NULL;
    curve = EVP_PKEY_is_a(key, "EC") ? curve_of(key) : NULL;
    return curve ? curve->alg : NULL;
}
