/* The check of a signature with its public key: it accepts what OpenSSL signs, with that key and
 * that padding only. */
#include "hsm/wire/pubkey.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

static struct hsm_public_key key_of(EVP_PKEY *pkey)
{
    struct hsm_public_key key;
    uint8_t *der = NULL;
    int length = i2d_PUBKEY(pkey, &der);

    assert_true(length > 0);
    assert_int_equal(pubkey_from_pkix(der, (size_t)length, &key, NULL), 0);
    OPENSSL_free(der);
    return key;
}

static struct hsm_request request_of(enum hsm_key_type type, enum hsm_scheme scheme,
                                     int32_t salt_length)
{
    struct hsm_request request = {.op = HSM_SIGN,
                                  .type = type,
                                  .scheme = scheme,
                                  .hash = HSM_SHA256,
                                  .salt_length = salt_length,
                                  .digest_length = 32};

    for (size_t i = 0; i < 32; i++)
        request.digest[i] = (uint8_t)(i * 5);
    return request;
}

static size_t sign(EVP_PKEY *pkey, const struct hsm_request *request, int salt, uint8_t *signature,
                   size_t room)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
    bool pss = request->scheme == HSM_PSS;
    size_t length = room;

    assert_int_equal(EVP_PKEY_sign_init(context), 1);
    if (EVP_PKEY_is_a(pkey, "RSA")) {
        assert_int_equal(
            EVP_PKEY_CTX_set_rsa_padding(context, pss ? RSA_PKCS1_PSS_PADDING : RSA_PKCS1_PADDING),
            1);
        assert_int_equal(EVP_PKEY_CTX_set_signature_md(context, EVP_sha256()), 1);
    }
    if (pss)
        assert_int_equal(EVP_PKEY_CTX_set_rsa_pss_saltlen(context, salt), 1);
    assert_int_equal(
        EVP_PKEY_sign(context, signature, &length, request->digest, request->digest_length), 1);
    EVP_PKEY_CTX_free(context);
    return length;
}

static void assert_verifies(const struct hsm_public_key *key, const struct hsm_request *request,
                            uint8_t *signature, size_t length)
{
    struct hsm_request other = *request;
    struct fault fault = {.code = FAULT_NONE};

    assert_int_equal(pubkey_verify(key, request, signature, length, &fault), 0);
    assert_int_equal(fault.code, FAULT_NONE);
    other.digest[0] ^= 1;
    assert_int_equal(pubkey_verify(key, &other, signature, length, &fault), -1);
    assert_int_equal(fault.code, FAULT_INTERNAL);
    assert_int_equal(pubkey_verify(key, request, signature, length - 1, &fault), -1);
    assert_int_equal(pubkey_verify(key, request, signature, 0, &fault), -1);
    signature[length - 1] ^= 1;
    assert_int_equal(pubkey_verify(key, request, signature, length, &fault), -1);
    signature[length - 1] ^= 1;
}

static void ecdsa_signatures_verify_with_their_key_only(void **state)
{
    static const struct {
        enum hsm_key_type type;
        const char *name;
    } curves[] = {{HSM_EC_P256, "P-256"}, {HSM_EC_P384, "P-384"}};

    (void)state;
    for (size_t i = 0; i < sizeof curves / sizeof curves[0]; i++) {
        EVP_PKEY *pkey = EVP_EC_gen(curves[i].name);
        EVP_PKEY *stranger = EVP_EC_gen(curves[i].name);
        struct hsm_request request = request_of(curves[i].type, HSM_PLAIN, 0);
        struct hsm_public_key key = key_of(pkey);
        struct hsm_public_key other = key_of(stranger);
        uint8_t signature[HSM_SIGNATURE_MAX];
        size_t length = sign(pkey, &request, 0, signature, sizeof signature);

        assert_verifies(&key, &request, signature, length);
        assert_int_equal(pubkey_verify(&other, &request, signature, length, NULL), -1);
        EVP_PKEY_free(pkey);
        EVP_PKEY_free(stranger);
    }
}

static void rsa_signatures_verify_with_their_padding_only(void **state)
{
    EVP_PKEY *pkey = EVP_RSA_gen(2048);
    struct hsm_public_key key = key_of(pkey);
    uint8_t signature[HSM_SIGNATURE_MAX];
    struct hsm_request plain = request_of(HSM_RSA_2048, HSM_PLAIN, 0);
    struct hsm_request pss = request_of(HSM_RSA_2048, HSM_PSS, HSM_SALT_HASH);
    size_t length;

    (void)state;
    length = sign(pkey, &plain, 0, signature, sizeof signature);
    assert_verifies(&key, &plain, signature, length);
    assert_int_equal(pubkey_verify(&key, &pss, signature, length, NULL), -1);
    length = sign(pkey, &pss, 32, signature, sizeof signature);
    assert_verifies(&key, &pss, signature, length);
    assert_int_equal(pubkey_verify(&key, &plain, signature, length, NULL), -1);
    plain.hash = HSM_HASH_NONE;
    assert_int_equal(pubkey_verify(&key, &plain, signature, length, NULL), -1);
    EVP_PKEY_free(pkey);
}

/* With HSM_SALT_MAX a token may have been talked down to a salt like the hash. */
static void pss_salt_is_checked_where_it_was_given(void **state)
{
    static const struct {
        int32_t asked;
        int made;
        int done;
    } salts[] = {{HSM_SALT_HASH, 32, 0}, {HSM_SALT_HASH, 20, -1}, {20, 20, 0},   {20, 32, -1},
                 {HSM_SALT_MAX, 222, 0}, {HSM_SALT_MAX, 32, 0},   {222, 222, 0}, {222, 32, -1}};
    EVP_PKEY *pkey = EVP_RSA_gen(2048);
    struct hsm_public_key key = key_of(pkey);

    (void)state;
    for (size_t i = 0; i < sizeof salts / sizeof salts[0]; i++) {
        struct hsm_request request = request_of(HSM_RSA_2048, HSM_PSS, salts[i].asked);
        uint8_t signature[HSM_SIGNATURE_MAX];
        size_t length = sign(pkey, &request, salts[i].made, signature, sizeof signature);

        assert_int_equal(pubkey_verify(&key, &request, signature, length, NULL), salts[i].done);
    }
    EVP_PKEY_free(pkey);
}

/* One context for one signature after the other, also behind a wrong one: nothing of an earlier
 * request may count. */
static void a_kept_context_knows_nothing_of_earlier_requests(void **state)
{
    static const struct {
        enum hsm_scheme scheme;
        int32_t salt;
        int made;
    } turns[] = {{HSM_PLAIN, 0, 0}, {HSM_PSS, HSM_SALT_HASH, 32}, {HSM_PLAIN, 0, 0},
                 {HSM_PSS, 20, 20}, {HSM_PSS, HSM_SALT_MAX, 222}, {HSM_PSS, HSM_SALT_HASH, 32}};
    EVP_PKEY *pkey = EVP_RSA_gen(2048);
    struct hsm_public_key key = key_of(pkey);
    struct hsm_request other_hash = request_of(HSM_RSA_2048, HSM_PLAIN, 0);
    EVP_PKEY_CTX *context;
    EVP_PKEY *loaded;

    (void)state;
    assert_int_equal(pubkey_load(&key, &loaded, NULL), 0);
    assert_int_equal(pubkey_verifier(loaded, &context, NULL), 0);
    other_hash.hash = HSM_SHA512;
    other_hash.digest_length = 64;
    for (size_t i = 0; i < sizeof turns / sizeof turns[0]; i++) {
        struct hsm_request request = request_of(HSM_RSA_2048, turns[i].scheme, turns[i].salt);
        uint8_t signature[HSM_SIGNATURE_MAX];
        size_t length = sign(pkey, &request, turns[i].made, signature, sizeof signature);

        assert_int_equal(pubkey_check(context, &request, signature, length, NULL), 0);
        signature[9] ^= 1;
        assert_int_equal(pubkey_check(context, &request, signature, length, NULL), -1);
        signature[9] ^= 1;
        assert_int_equal(pubkey_check(context, &other_hash, signature, length, NULL), -1);
        assert_int_equal(pubkey_check(context, &request, signature, length, NULL), 0);
    }
    EVP_PKEY_CTX_free(context);
    EVP_PKEY_free(loaded);
    EVP_PKEY_free(pkey);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ecdsa_signatures_verify_with_their_key_only),
        cmocka_unit_test(rsa_signatures_verify_with_their_padding_only),
        cmocka_unit_test(a_kept_context_knows_nothing_of_earlier_requests),
        cmocka_unit_test(pss_salt_is_checked_where_it_was_given),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
