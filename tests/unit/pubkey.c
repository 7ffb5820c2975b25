/* Public keys as tokens spell them: every spelling of a key becomes the same key. Keys that
 * SPIRE has no use for, or that are malformed, are refused. OpenSSL makes the samples. */
#include "hsm/wire/pubkey.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/sha.h>
#include <openssl/x509.h>

static const uint8_t oid_256[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
static const uint8_t oid_384[] = {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22};
static const uint8_t oid_521[] = {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23};
static const uint8_t e65537[] = {0x01, 0x00, 0x01};

/* One key of each curve, as OpenSSL has it: what all spellings must come out as. */
struct curve {
    enum hsm_key_type type;
    const char *name;
    const uint8_t *oid;
    size_t oid_length;
    size_t n; /* bytes of a coordinate */
    EVP_PKEY *pkey;
    uint8_t point[97]; /* 04 X Y */
    struct hsm_public_key expected;
};

static struct curve curves[] = {
    {.type = HSM_EC_P256, .name = "P-256", .oid = oid_256, .oid_length = 10, .n = 32},
    {.type = HSM_EC_P384, .name = "P-384", .oid = oid_384, .oid_length = 7, .n = 48},
};
enum { CURVES = sizeof curves / sizeof curves[0] };

static void expect_of(EVP_PKEY *pkey, enum hsm_key_type type, struct hsm_public_key *expected)
{
    uint8_t *out = expected->pkix;
    int length = i2d_PUBKEY(pkey, &out);

    assert_in_range(length, 1, HSM_PKIX_MAX);
    expected->type = type;
    expected->pkix_length = (uint32_t)length;
    (void)SHA256(expected->pkix, expected->pkix_length, expected->fingerprint);
}

static int make_keys(void **state)
{
    (void)state;
    for (size_t i = 0; i < CURVES; i++) {
        struct curve *c = &curves[i];
        size_t length;

        c->pkey = EVP_EC_gen(c->name);
        assert_non_null(c->pkey);
        assert_int_equal(EVP_PKEY_get_octet_string_param(c->pkey, OSSL_PKEY_PARAM_PUB_KEY, c->point,
                                                         sizeof c->point, &length),
                         1);
        assert_int_equal(length, 2 * c->n + 1);
        expect_of(c->pkey, c->type, &c->expected);
    }
    return 0;
}

static int free_keys(void **state)
{
    (void)state;
    for (size_t i = 0; i < CURVES; i++)
        EVP_PKEY_free(curves[i].pkey);
    return 0;
}

static void assert_same(const struct hsm_public_key *got, const struct hsm_public_key *expected)
{
    assert_int_equal(got->type, expected->type);
    assert_int_equal(got->pkix_length, expected->pkix_length);
    assert_memory_equal(got->pkix, expected->pkix, expected->pkix_length);
    assert_memory_equal(got->fingerprint, expected->fingerprint, HSM_FINGERPRINT);
}

/* The arguments get blocks of just their size: a sanitizer sees one byte too far. */
static int from_ec(const void *params, size_t params_length, const void *point, size_t point_length,
                   struct hsm_public_key *key)
{
    struct fault fault = {.code = FAULT_NONE};
    uint8_t *a = malloc(params_length + 1); /* a block of 0 bytes may be NULL */
    uint8_t *b = malloc(point_length + 1);
    int done;

    assert_non_null(a);
    assert_non_null(b);
    memcpy(a + 1, params, params_length);
    memcpy(b + 1, point, point_length);
    done = pubkey_from_ec(a + 1, params_length, b + 1, point_length, key, &fault);
    free(a);
    free(b);
    assert_int_equal(fault.code, done == 0 ? FAULT_NONE : FAULT_INTERNAL);
    return done;
}

static void assert_point_read(const struct curve *c, const uint8_t *point, size_t length)
{
    struct hsm_public_key key;

    assert_int_equal(from_ec(c->oid, c->oid_length, point, length, &key), 0);
    assert_same(&key, &c->expected);
}

static void assert_point_refused(const struct curve *c, const uint8_t *point, size_t length)
{
    struct hsm_public_key key = {.type = HSM_KEY_NONE};

    assert_int_equal(from_ec(c->oid, c->oid_length, point, length, &key), -1);
    assert_int_equal(key.type, HSM_KEY_NONE);
}

/* `inner` bare, in an OCTET STRING and in a BIT STRING. */
static void assert_wrapped_read(const struct curve *c, const uint8_t *inner, size_t length)
{
    uint8_t octets[128] = {0x04, (uint8_t)length};
    uint8_t bits[128] = {0x03, (uint8_t)(length + 1), 0x00};

    memcpy(octets + 2, inner, length);
    memcpy(bits + 3, inner, length);
    assert_point_read(c, inner, length);
    assert_point_read(c, octets, length + 2);
    assert_point_read(c, bits, length + 3);
}

static void points_in_every_spelling_are_one_key(void **state)
{
    (void)state;
    for (size_t i = 0; i < CURVES; i++) {
        struct curve *c = &curves[i];
        uint8_t compressed[49];

        compressed[0] = (uint8_t)(0x02 + (c->point[2 * c->n] & 1));
        memcpy(compressed + 1, c->point + 1, c->n);
        assert_wrapped_read(c, c->point, 2 * c->n + 1);
        assert_wrapped_read(c, compressed, c->n + 1);
        assert_wrapped_read(c, c->point + 1, 2 * c->n);
    }
}

static void curves_in_every_spelling_are_one_key(void **state)
{
    static const struct {
        size_t curve;
        const char *name;
    } names[] = {
        {0, "prime256v1"},        {0, "secp256r1"},     {0, "P-256"},     {0, "\x13\x0aprime256v1"},
        {0, "\x13\x09secp256r1"}, {0, "\x13\x05P-256"}, {1, "secp384r1"}, {1, "P-384"},
        {1, "\x13\x09secp384r1"}, {1, "\x13\x05P-384"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct curve *c = &curves[names[i].curve];
        struct hsm_public_key key;

        assert_int_equal(
            from_ec(names[i].name, strlen(names[i].name), c->point, 2 * c->n + 1, &key), 0);
        assert_same(&key, &c->expected);
    }
}

/* All numbers of the curve instead of its name; with a compressed base point too. */
static void curves_spelt_out_are_one_key(void **state)
{
    static const char *const formats[] = {"uncompressed", "compressed"};

    (void)state;
    for (size_t i = 0; i < CURVES * 2; i++) {
        struct curve *c = &curves[i / 2];
        EVP_PKEY *pkey = EVP_PKEY_dup(c->pkey);
        struct hsm_public_key key;
        uint8_t *der = NULL;
        uint8_t longer[1024] = {0};
        int length;

        assert_int_equal(
            EVP_PKEY_set_utf8_string_param(pkey, OSSL_PKEY_PARAM_EC_ENCODING, "explicit"), 1);
        assert_int_equal(EVP_PKEY_set_utf8_string_param(
                             pkey, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT, formats[i % 2]),
                         1);
        length = i2d_KeyParams(pkey, &der);
        assert_true(length > 100);
        assert_int_equal(from_ec(der, (size_t)length, c->point, 2 * c->n + 1, &key), 0);
        assert_same(&key, &c->expected);
        for (int at = 0; at < length; at++) {
            der[at] ^= 0x01; /* another curve, or none: then never a key of ours */
            if (from_ec(der, (size_t)length, c->point, 2 * c->n + 1, &key) == 0)
                assert_same(&key, &c->expected);
            der[at] ^= 0x01;
        }
        memcpy(longer, der, (size_t)length);
        assert_int_equal(from_ec(longer, (size_t)length + 1, c->point, 2 * c->n + 1, &key), -1);
        assert_int_equal(from_ec(der, (size_t)length - 1, c->point, 2 * c->n + 1, &key), -1);
        OPENSSL_free(der);
        EVP_PKEY_free(pkey);
    }
}

static void curves_we_do_not_serve_are_refused(void **state)
{
    static const char *const names[] = {"secp521r1", "P-25", "P-2566",   "\x13\x0aP-256",
                                        "\x13",      "0",    "secp256k1"};
    const struct curve *c = &curves[0];
    struct hsm_public_key key;

    (void)state;
    assert_int_equal(from_ec(oid_521, sizeof oid_521, c->point, 65, &key), -1);
    assert_int_equal(from_ec(oid_256, sizeof oid_256 - 1, c->point, 65, &key), -1);
    assert_int_equal(from_ec("", 0, c->point, 65, &key), -1);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        assert_int_equal(from_ec(names[i], strlen(names[i]), c->point, 65, &key), -1);
    assert_int_equal(from_ec(oid_384, sizeof oid_384, c->point, 65, &key), -1);
}

static void points_off_the_curve_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < CURVES; i++) {
        const struct curve *c = &curves[i];
        uint8_t point[97] = {0x04};

        assert_point_refused(c, point, 2 * c->n + 1); /* 0, 0 */
        memset(point + 1, 0xff, 2 * c->n);
        assert_point_refused(c, point, 2 * c->n + 1); /* beyond the field */
        memcpy(point, c->point, 2 * c->n + 1);
        point[2 * c->n] ^= 0x01;
        assert_point_refused(c, point, 2 * c->n + 1);
        assert_point_refused(c, point + 1, 2 * c->n);
    }
}

static void points_of_wrong_size_or_head_are_refused(void **state)
{
    static const uint8_t heads[] = {0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0xff};

    (void)state;
    for (size_t i = 0; i < CURVES; i++) {
        const struct curve *c = &curves[i];
        uint8_t point[256] = {0};
        const size_t full = 2 * c->n + 1;

        memcpy(point, c->point, full);
        for (size_t length = 0; length <= sizeof point; length++)
            if (length != full)
                assert_point_refused(c, point, length);
        for (size_t h = 0; h < sizeof heads; h++) {
            point[0] = heads[h];
            assert_point_refused(c, point, full);
        }
        point[0] = 0x04; /* OCTET STRING of a wrong length, then BIT STRING with spare bits */
        point[1] = (uint8_t)(full - 1);
        memcpy(point + 2, c->point, full);
        assert_point_refused(c, point, full + 2);
        point[0] = 0x03;
        point[1] = (uint8_t)(full + 1);
        point[2] = 0x01;
        memcpy(point + 3, c->point, full);
        assert_point_refused(c, point, full + 3);
    }
}

/* ---- RSA ---- */

static void make_modulus(uint8_t *modulus, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        modulus[i] = (uint8_t)(0xc1 + 13 * i);
    modulus[bytes - 1] |= 1;
}

static void rsa_keys_are_read_whatever_zeros_lead(void **state)
{
    static const struct {
        enum hsm_key_type type;
        size_t bytes;
        uint32_t pkix;
    } sizes[] = {{HSM_RSA_2048, 256, 294}, {HSM_RSA_4096, 512, 550}};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint8_t modulus[4 + 512] = {0};
        uint8_t exponent[16] = {[13] = 1, [15] = 1};
        struct hsm_public_key key, again;

        make_modulus(modulus + 4, sizes[i].bytes);
        assert_int_equal(pubkey_from_rsa(modulus + 4, sizes[i].bytes, e65537, 3, &key, NULL), 0);
        assert_int_equal(key.type, sizes[i].type);
        assert_int_equal(key.pkix_length, sizes[i].pkix);
        assert_int_equal(
            pubkey_from_rsa(modulus, 4 + sizes[i].bytes, exponent, sizeof exponent, &again, NULL),
            0);
        assert_same(&again, &key);
        assert_int_equal(pubkey_from_pkix(key.pkix, key.pkix_length, &again, NULL), 0);
        assert_same(&again, &key);
    }
}

static void rsa_keys_of_wrong_size_are_refused(void **state)
{
    static const size_t sizes[] = {0, 1, 128, 255, 257, 384, 511, 513, 640, 4000};
    uint8_t modulus[4000];
    struct hsm_public_key key;

    (void)state;
    make_modulus(modulus, sizeof modulus);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct fault fault = {.code = FAULT_NONE};

        assert_int_equal(pubkey_from_rsa(modulus, sizes[i], e65537, 3, &key, &fault), -1);
        assert_int_equal(fault.code, FAULT_INTERNAL);
    }
    make_modulus(modulus, 256);
    modulus[0] = 0x7f; /* 2047 bits */
    assert_int_equal(pubkey_from_rsa(modulus, 256, e65537, 3, &key, NULL), -1);
    modulus[0] = 0xc1;
    modulus[255] &= 0xfe;
    assert_int_equal(pubkey_from_rsa(modulus, 256, e65537, 3, &key, NULL), -1);
}

static void weak_rsa_exponents_are_refused(void **state)
{
    static const struct {
        uint8_t bytes[9];
        size_t length;
        int done;
    } exponents[] = {
        {{0}, 0, -1},
        {{0}, 1, -1},
        {{1}, 1, -1},
        {{3}, 1, -1},
        {{17}, 1, -1},
        {{0xff, 0xff}, 2, -1},
        {{1, 0, 0}, 3, -1},
        {{1, 0, 2}, 3, -1},
        {{1, 0, 1}, 3, 0},
        {{1, 0, 3}, 3, 0},
        {{0, 0, 1, 0, 1}, 5, 0},
        {{1, 0, 0, 0, 0, 0, 0, 1}, 8, 0},
        {{1, 0, 0, 0, 0, 0, 0, 0, 1}, 9, -1},
    };
    uint8_t modulus[256];
    struct hsm_public_key key;

    (void)state;
    make_modulus(modulus, sizeof modulus);
    for (size_t i = 0; i < sizeof exponents / sizeof exponents[0]; i++)
        assert_int_equal(pubkey_from_rsa(modulus, sizeof modulus, exponents[i].bytes,
                                         exponents[i].length, &key, NULL),
                         exponents[i].done);
}

/* ---- SubjectPublicKeyInfo ---- */

static void public_key_info_in_every_spelling_is_one_key(void **state)
{
    (void)state;
    for (size_t i = 0; i < CURVES; i++) {
        struct curve *c = &curves[i];
        struct hsm_public_key key;
        EVP_PKEY *pkey = EVP_PKEY_dup(c->pkey);
        uint8_t *der = NULL;
        int length;

        assert_int_equal(pubkey_from_pkix(c->expected.pkix, c->expected.pkix_length, &key, NULL),
                         0);
        assert_same(&key, &c->expected);
        assert_int_equal(EVP_PKEY_set_utf8_string_param(
                             pkey, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT, "compressed"),
                         1);
        length = i2d_PUBKEY(pkey, &der);
        assert_true(length > 0 && (uint32_t)length < c->expected.pkix_length);
        assert_int_equal(pubkey_from_pkix(der, (size_t)length, &key, NULL), 0);
        assert_same(&key, &c->expected);
        OPENSSL_free(der);
        EVP_PKEY_free(pkey);
    }
}

static void assert_pkix_refused(EVP_PKEY *pkey)
{
    struct hsm_public_key key;
    uint8_t *der = NULL;
    int length = i2d_PUBKEY(pkey, &der);

    assert_true(length > 0);
    assert_int_equal(pubkey_from_pkix(der, (size_t)length, &key, NULL), -1);
    OPENSSL_free(der);
    EVP_PKEY_free(pkey);
}

static void public_key_info_of_other_keys_is_refused(void **state)
{
    const struct hsm_public_key *good = &curves[0].expected;
    struct hsm_public_key key;
    uint8_t longer[HSM_PKIX_MAX + 1] = {0};

    (void)state;
    assert_pkix_refused(EVP_EC_gen("P-521"));
    assert_pkix_refused(EVP_EC_gen("secp256k1"));
    assert_pkix_refused(EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"));
    assert_pkix_refused(EVP_RSA_gen(1024));
    for (uint32_t length = 0; length < good->pkix_length; length++)
        assert_int_equal(pubkey_from_pkix(good->pkix, length, &key, NULL), -1);
    memcpy(longer, good->pkix, good->pkix_length);
    assert_int_equal(pubkey_from_pkix(longer, good->pkix_length + 1, &key, NULL), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(points_in_every_spelling_are_one_key),
        cmocka_unit_test(curves_in_every_spelling_are_one_key),
        cmocka_unit_test(curves_spelt_out_are_one_key),
        cmocka_unit_test(curves_we_do_not_serve_are_refused),
        cmocka_unit_test(points_off_the_curve_are_refused),
        cmocka_unit_test(points_of_wrong_size_or_head_are_refused),
        cmocka_unit_test(rsa_keys_are_read_whatever_zeros_lead),
        cmocka_unit_test(rsa_keys_of_wrong_size_are_refused),
        cmocka_unit_test(weak_rsa_exponents_are_refused),
        cmocka_unit_test(public_key_info_in_every_spelling_is_one_key),
        cmocka_unit_test(public_key_info_of_other_keys_is_refused),
    };

    return cmocka_run_group_tests(tests, make_keys, free_keys);
}
