/* Signing, apart from the token: which PKCS#11 mechanism and parameters a request becomes, and
 * how the token's raw answer becomes a signature that Go accepts. */
#include "hsm/sign.h"
#include "hsm/wire/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>

static const struct {
    enum hsm_hash hash;
    uint32_t length;
    const char *openssl;
    CK_MECHANISM_TYPE mechanism; /* numbers of pkcs11t.h, written out once more */
    CK_ULONG mgf;                /* 0 = PKCS#11 has none */
} hashes[] = {
    {HSM_SHA224, 28, "SHA224", 0x255, 5},        {HSM_SHA256, 32, "SHA256", 0x250, 2},
    {HSM_SHA384, 48, "SHA384", 0x260, 3},        {HSM_SHA512, 64, "SHA512", 0x270, 4},
    {HSM_SHA3_224, 28, "SHA3-224", 0x2b5, 6},    {HSM_SHA3_256, 32, "SHA3-256", 0x2b0, 7},
    {HSM_SHA3_384, 48, "SHA3-384", 0x2c0, 8},    {HSM_SHA3_512, 64, "SHA3-512", 0x2d0, 9},
    {HSM_SHA512_224, 28, "SHA512-224", 0x48, 0}, {HSM_SHA512_256, 32, "SHA512-256", 0x4c, 0},
};
enum { HASHES = sizeof hashes / sizeof hashes[0] };

static const struct {
    enum hsm_key_type type;
    uint32_t bytes;
    bool rsa;
} types[] = {
    {HSM_EC_P256, 32, false},
    {HSM_EC_P384, 48, false},
    {HSM_RSA_2048, 256, true},
    {HSM_RSA_4096, 512, true},
};
enum { TYPES = sizeof types / sizeof types[0] };

static struct hsm_request request_of(enum hsm_key_type type, enum hsm_hash hash)
{
    struct hsm_request request = {.op = HSM_SIGN, .type = type, .hash = hash};

    request.digest_length = (uint32_t)hsm_hash_length(hash);
    for (size_t i = 0; i < sizeof request.digest; i++)
        request.digest[i] = (uint8_t)(0xa0 + i);
    return request;
}

static void assert_refused(const struct hsm_request *request)
{
    struct fault fault = {.code = FAULT_NONE};
    struct sign_plan plan;
    struct sign_plan before;

    memset(&plan, 0x5a, sizeof plan);
    before = plan;
    assert_int_equal(sign_plan(request, &plan, &fault), -1);
    assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
    assert_true(fault.message[0] != '\0');
    assert_memory_equal(&plan, &before, sizeof plan);
}

static void key_types_and_hashes_have_names_and_lengths(void **state)
{
    (void)state;
    assert_string_equal(hsm_key_type_name(HSM_EC_P256), "ec-p256");
    assert_string_equal(hsm_key_type_name(HSM_EC_P384), "ec-p384");
    assert_string_equal(hsm_key_type_name(HSM_RSA_2048), "rsa-2048");
    assert_string_equal(hsm_key_type_name(HSM_RSA_4096), "rsa-4096");
    assert_string_equal(hsm_key_type_name(HSM_KEY_NONE), "unknown");
    assert_string_equal(hsm_key_type_name((enum hsm_key_type)99), "unknown");
    for (size_t i = 0; i < HASHES; i++)
        assert_int_equal(hsm_hash_length(hashes[i].hash), hashes[i].length);
    for (int number = -1; number < 40; number++) {
        bool ours = false;

        for (size_t i = 0; i < HASHES; i++)
            ours = ours || (int)hashes[i].hash == number;
        assert_int_equal(hsm_hash_length((enum hsm_hash)number) > 0, ours);
        assert_int_equal(hash_find((enum hsm_hash)number) != NULL, ours);
    }
}

static void openssl_knows_every_hash_by_our_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < HASHES; i++) {
        EVP_MD *md = EVP_MD_fetch(NULL, hash_find(hashes[i].hash)->name, NULL);

        assert_non_null(md);
        assert_int_equal(EVP_MD_get_size(md), hashes[i].length);
        assert_true(EVP_MD_is_a(md, hashes[i].openssl));
        EVP_MD_free(md);
    }
}

/* FIPS 186-4: of a digest longer than the curve's order the leftmost bits are signed. */
static void ecdsa_signs_any_digest_cut_to_the_curve(void **state)
{
    (void)state;
    for (size_t t = 0; t < TYPES; t++)
        for (size_t i = 0; i < HASHES && !types[t].rsa; i++) {
            struct hsm_request request = request_of(types[t].type, hashes[i].hash);
            uint32_t length = hashes[i].length;
            struct sign_plan plan;

            if (length > types[t].bytes)
                length = types[t].bytes;
            assert_int_equal(sign_plan(&request, &plan, NULL), 0);
            assert_int_equal(plan.mechanism.mechanism, CKM_ECDSA);
            assert_null(plan.mechanism.pParameter);
            assert_int_equal(plan.mechanism.ulParameterLen, 0);
            assert_int_equal(plan.input_length, length);
            assert_memory_equal(plan.input, request.digest, length);
            assert_int_equal(plan.signature_length, 2 * types[t].bytes);
            assert_false(sign_plan_shorter_salt(&request, &plan));
        }
}

/* OpenSSL pads our input as a token does for CKM_RSA_PKCS, then verifies with a
 * DigestInfo of its own making. */
static void pkcs1_input_is_the_digest_info_openssl_makes(void **state)
{
    EVP_PKEY *pkey = EVP_RSA_gen(2048);

    (void)state;
    assert_non_null(pkey);
    for (size_t i = 0; i < HASHES; i++) {
        struct hsm_request request = request_of(HSM_RSA_2048, hashes[i].hash);
        EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
        EVP_MD *md = EVP_MD_fetch(NULL, hashes[i].openssl, NULL);
        uint8_t signature[256];
        size_t length = sizeof signature;
        struct sign_plan plan;

        assert_int_equal(sign_plan(&request, &plan, NULL), 0);
        assert_int_equal(plan.mechanism.mechanism, CKM_RSA_PKCS);
        assert_int_equal(plan.signature_length, 256);
        assert_int_equal(plan.input_length, 19 + hashes[i].length);
        assert_int_equal(EVP_PKEY_sign_init(context), 1);
        assert_int_equal(EVP_PKEY_CTX_set_rsa_padding(context, RSA_PKCS1_PADDING), 1);
        assert_int_equal(EVP_PKEY_sign(context, signature, &length, plan.input, plan.input_length),
                         1);
        assert_int_equal(EVP_PKEY_verify_init(context), 1);
        assert_int_equal(EVP_PKEY_CTX_set_rsa_padding(context, RSA_PKCS1_PADDING), 1);
        assert_int_equal(EVP_PKEY_CTX_set_signature_md(context, md), 1);
        assert_int_equal(
            EVP_PKEY_verify(context, signature, length, request.digest, request.digest_length), 1);
        EVP_MD_free(md);
        EVP_PKEY_CTX_free(context);
    }
    EVP_PKEY_free(pkey);
}

static void sha256_digest_info_is_that_of_the_rfc(void **state)
{
    static const uint8_t prefix[] = {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01,
                                     0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20};
    struct hsm_request request = request_of(HSM_RSA_4096, HSM_SHA256);
    struct sign_plan plan;

    (void)state;
    assert_int_equal(sign_plan(&request, &plan, NULL), 0);
    assert_memory_equal(plan.input, prefix, sizeof prefix);
    assert_memory_equal(plan.input + sizeof prefix, request.digest, 32);
    assert_int_equal(plan.signature_length, 512);
}

static void pss_parameters_have_one_hash_throughout(void **state)
{
    (void)state;
    for (size_t t = 0; t < TYPES; t++)
        for (size_t i = 0; i < HASHES && types[t].rsa; i++) {
            struct hsm_request request = request_of(types[t].type, hashes[i].hash);
            struct sign_plan plan;

            request.scheme = HSM_PSS;
            request.salt_length = HSM_SALT_HASH;
            if (hashes[i].mgf == 0)
                continue;
            assert_int_equal(sign_plan(&request, &plan, NULL), 0);
            assert_int_equal(plan.mechanism.mechanism, CKM_RSA_PKCS_PSS);
            assert_ptr_equal(plan.mechanism.pParameter, &plan.pss);
            assert_int_equal(plan.mechanism.ulParameterLen, sizeof plan.pss);
            assert_int_equal(plan.pss.hashAlg, hashes[i].mechanism);
            assert_int_equal(plan.pss.mgf, hashes[i].mgf);
            assert_int_equal(plan.pss.sLen, hashes[i].length);
            assert_int_equal(plan.input_length, hashes[i].length);
            assert_memory_equal(plan.input, request.digest, hashes[i].length);
            assert_int_equal(plan.signature_length, types[t].bytes);
        }
}

/* That the padding verifies is shown with real keys, through the plugin's socket. */
static void pss_that_pkcs11_has_no_numbers_for_is_padded_here(void **state)
{
    (void)state;
    for (size_t t = 0; t < TYPES; t++)
        for (size_t i = 0; i < HASHES && types[t].rsa; i++) {
            struct hsm_request request = request_of(types[t].type, hashes[i].hash);
            struct sign_plan plan;

            request.scheme = HSM_PSS;
            request.salt_length = HSM_SALT_HASH;
            assert_int_equal(sign_plan(&request, &plan, NULL), 0);
            if (hashes[i].mgf != 0)
                assert_int_equal(sign_plan_padded(&request, &plan, NULL), 0);
            assert_int_equal(plan.mechanism.mechanism, CKM_RSA_X_509);
            assert_null(plan.mechanism.pParameter);
            assert_int_equal(plan.input_length, types[t].bytes);
            assert_int_equal(plan.input[0] & 0x80, 0);
            assert_int_equal(plan.input[types[t].bytes - 1], 0xbc);
        }
}

static void salt_lengths_mean_what_go_means_by_them(void **state)
{
    static const struct {
        int32_t asked;
        CK_ULONG planned;
    } good[] = {{-1, 32}, {0, 222}, {1, 1}, {20, 20}, {32, 32}, {222, 222}};
    static const int32_t bad[] = {-2, INT32_MIN, 223, 256, INT32_MAX};
    struct hsm_request request = request_of(HSM_RSA_2048, HSM_SHA256);
    struct sign_plan plan;

    (void)state;
    request.scheme = HSM_PSS;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        request.salt_length = good[i].asked;
        assert_int_equal(sign_plan(&request, &plan, NULL), 0);
        assert_int_equal(plan.pss.sLen, good[i].planned);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        request.salt_length = bad[i];
        assert_refused(&request);
    }
    request = request_of(HSM_RSA_4096, HSM_SHA512);
    request.scheme = HSM_PSS;
    request.salt_length = HSM_SALT_MAX;
    assert_int_equal(sign_plan(&request, &plan, NULL), 0);
    assert_int_equal(plan.pss.sLen, 446);
}

static void longest_salt_has_a_second_try_and_no_other_has(void **state)
{
    static const int32_t literal[] = {HSM_SALT_HASH, 1, 222};
    struct hsm_request request = request_of(HSM_RSA_2048, HSM_SHA256);
    struct sign_plan plan;

    (void)state;
    request.scheme = HSM_PSS;
    for (size_t i = 0; i < sizeof literal / sizeof literal[0]; i++) {
        request.salt_length = literal[i];
        assert_int_equal(sign_plan(&request, &plan, NULL), 0);
        assert_false(sign_plan_shorter_salt(&request, &plan));
    }
    request.salt_length = HSM_SALT_MAX;
    assert_int_equal(sign_plan(&request, &plan, NULL), 0);
    assert_true(sign_plan_shorter_salt(&request, &plan));
    assert_int_equal(plan.pss.sLen, 32);
    request.scheme = HSM_PLAIN;
    assert_int_equal(sign_plan(&request, &plan, NULL), 0);
    assert_false(sign_plan_shorter_salt(&request, &plan));
}

static void digest_of_another_length_is_refused(void **state)
{
    (void)state;
    for (size_t t = 0; t < TYPES; t++)
        for (size_t i = 0; i < HASHES; i++)
            for (uint32_t length = 0; length <= HSM_DIGEST_MAX; length++) {
                struct hsm_request request = request_of(types[t].type, hashes[i].hash);

                request.digest_length = length;
                if (length != hashes[i].length)
                    assert_refused(&request);
            }
}

static void nonsense_is_refused(void **state)
{
    struct hsm_request request;

    (void)state;
    request = request_of(HSM_KEY_NONE, HSM_SHA256);
    assert_refused(&request);
    request = request_of((enum hsm_key_type)5, HSM_SHA256);
    assert_refused(&request);
    request = request_of(HSM_EC_P256, HSM_HASH_NONE);
    assert_refused(&request);
    request = request_of(HSM_RSA_2048, (enum hsm_hash)8);
    assert_refused(&request);
    request = request_of(HSM_EC_P256, HSM_SHA256);
    request.scheme = HSM_PSS;
    assert_refused(&request);
    request = request_of(HSM_RSA_2048, HSM_SHA256);
    request.scheme = (enum hsm_scheme)2;
    assert_refused(&request);
}

/* The least DER there is: RFC 3279 2.2.3, X.690 8.3.2. */
static void ec_signatures_become_minimal_der(void **state)
{
    static const struct {
        uint8_t raw[64];
        uint8_t der[80];
        uint32_t length;
    } rows[] = {
        {{[31] = 1, [63] = 2}, {0x30, 6, 2, 1, 1, 2, 1, 2}, 8},
        {{[31] = 0x80, [63] = 0x7f}, {0x30, 7, 2, 2, 0, 0x80, 2, 1, 0x7f}, 9},
        {{[30] = 0x01, [31] = 0x00, [63] = 0xff},
         {0x30, 8, 2, 2, 0x01, 0x00, 2, 2, 0x00, 0xff},
         10},
        {{[0] = 0xff, [32] = 0x7f},
         {0x30, 0x45, 2, 0x21, 0x00, 0xff, [37] = 2, [38] = 0x20, [39] = 0x7f},
         71},
    };
    struct hsm_request request = request_of(HSM_EC_P256, HSM_SHA256);
    struct sign_plan plan;

    (void)state;
    assert_int_equal(sign_plan(&request, &plan, NULL), 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct hsm_reply reply = {0};

        assert_int_equal(sign_result(&request, &plan, rows[i].raw, 64, &reply, NULL), 0);
        assert_int_equal(reply.signature_length, rows[i].length);
        assert_memory_equal(reply.signature, rows[i].der, rows[i].length);
    }
}

static void longest_ec_signature_is_whole(void **state)
{
    struct hsm_request request = request_of(HSM_EC_P384, HSM_SHA384);
    struct hsm_reply reply = {0};
    const uint8_t *der = reply.signature;
    struct sign_plan plan;
    ECDSA_SIG *signature;
    uint8_t raw[96];

    (void)state;
    memset(raw, 0xff, sizeof raw);
    assert_int_equal(sign_plan(&request, &plan, NULL), 0);
    assert_int_equal(sign_result(&request, &plan, raw, sizeof raw, &reply, NULL), 0);
    assert_int_equal(reply.signature_length, 104);
    signature = d2i_ECDSA_SIG(NULL, &der, 104);
    assert_non_null(signature);
    assert_int_equal(BN_num_bits(ECDSA_SIG_get0_r(signature)), 384);
    ECDSA_SIG_free(signature);
}

static void rsa_signatures_go_out_as_they_are(void **state)
{
    (void)state;
    for (size_t t = 0; t < TYPES; t++) {
        struct hsm_request request = request_of(types[t].type, HSM_SHA256);
        struct hsm_reply reply = {0};
        struct sign_plan plan;
        uint8_t raw[512];

        if (!types[t].rsa)
            continue;
        for (size_t i = 0; i < sizeof raw; i++)
            raw[i] = (uint8_t)i; /* begins with 00, which counts */
        assert_int_equal(sign_plan(&request, &plan, NULL), 0);
        assert_int_equal(sign_result(&request, &plan, raw, types[t].bytes, &reply, NULL), 0);
        assert_int_equal(reply.signature_length, types[t].bytes);
        assert_memory_equal(reply.signature, raw, types[t].bytes);
    }
}

static void malformed_answers_of_a_token_are_refused(void **state)
{
    (void)state;
    for (size_t t = 0; t < TYPES; t++) {
        struct hsm_request request = request_of(types[t].type, HSM_SHA256);
        struct hsm_reply reply = {0};
        struct sign_plan plan;
        uint8_t raw[1024];

        memset(raw, 0x11, sizeof raw);
        assert_int_equal(sign_plan(&request, &plan, NULL), 0);
        for (CK_ULONG length = 0; length <= sizeof raw; length++) {
            struct fault fault = {.code = FAULT_NONE};

            if (length == plan.signature_length)
                continue;
            assert_int_equal(sign_result(&request, &plan, raw, length, &reply, &fault), -1);
            assert_int_equal(fault.code, FAULT_INTERNAL);
        }
        assert_int_equal(reply.signature_length, 0);
    }
}

static void zero_in_an_ec_signature_is_refused(void **state)
{
    struct hsm_request request = request_of(HSM_EC_P256, HSM_SHA256);
    struct hsm_reply reply = {0};
    struct fault fault = {.code = FAULT_NONE};
    struct sign_plan plan;
    uint8_t raw[64] = {[31] = 1};

    (void)state;
    assert_int_equal(sign_plan(&request, &plan, NULL), 0);
    assert_int_equal(sign_result(&request, &plan, raw, sizeof raw, &reply, &fault), -1);
    assert_int_equal(fault.code, FAULT_INTERNAL);
    raw[31] = 0;
    raw[63] = 1;
    assert_int_equal(sign_result(&request, &plan, raw, sizeof raw, &reply, &fault), -1);
    assert_int_equal(reply.signature_length, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(key_types_and_hashes_have_names_and_lengths),
        cmocka_unit_test(openssl_knows_every_hash_by_our_name),
        cmocka_unit_test(ecdsa_signs_any_digest_cut_to_the_curve),
        cmocka_unit_test(pkcs1_input_is_the_digest_info_openssl_makes),
        cmocka_unit_test(sha256_digest_info_is_that_of_the_rfc),
        cmocka_unit_test(pss_parameters_have_one_hash_throughout),
        cmocka_unit_test(pss_that_pkcs11_has_no_numbers_for_is_padded_here),
        cmocka_unit_test(salt_lengths_mean_what_go_means_by_them),
        cmocka_unit_test(longest_salt_has_a_second_try_and_no_other_has),
        cmocka_unit_test(digest_of_another_length_is_refused),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(ec_signatures_become_minimal_der),
        cmocka_unit_test(longest_ec_signature_is_whole),
        cmocka_unit_test(rsa_signatures_go_out_as_they_are),
        cmocka_unit_test(malformed_answers_of_a_token_are_refused),
        cmocka_unit_test(zero_in_an_ec_signature_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
