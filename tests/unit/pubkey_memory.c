/* Memory that runs out while OpenSSL looks at a key says nothing about the key. */
#include "hsm/wire/pubkey.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

/* ---- OpenSSL's memory ---- */

static long left = -1; /* allocations until one fails; -1 = none does */
static bool for_good;  /* and all that follow */

static bool is_out(void)
{
    if (left < 0)
        return false;
    if (left > 0) {
        left--;
        return false;
    }
    if (!for_good)
        left = -1;
    return true;
}

static void *allocate(size_t size, const char *file, int line)
{
    (void)file;
    (void)line;
    return is_out() ? NULL : malloc(size);
}

static void *enlarge(void *memory, size_t size, const char *file, int line)
{
    (void)file;
    (void)line;
    return is_out() ? NULL : realloc(memory, size);
}

static void release(void *memory, const char *file, int line)
{
    (void)file;
    (void)line;
    free(memory);
}

/* ---- what is asked ---- */

static struct hsm_public_key key;
static struct hsm_request request = {.hash = HSM_SHA256, .digest_length = 32};
static uint8_t point[65];
static uint8_t modulus[256];
static uint8_t signature[HSM_SIGNATURE_MAX];
static size_t signature_length = sizeof signature;

static int read_ec(struct hsm_public_key *made, struct fault *fault)
{
    static const uint8_t oid[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};

    return pubkey_from_ec(oid, sizeof oid, point, sizeof point, made, fault);
}

static int read_rsa(struct hsm_public_key *made, struct fault *fault)
{
    static const uint8_t exponent[] = {1, 0, 1};

    return pubkey_from_rsa(modulus, sizeof modulus, exponent, sizeof exponent, made, fault);
}

static int verify(struct hsm_public_key *unused, struct fault *fault)
{
    (void)unused;
    return pubkey_verify(&key, &request, signature, signature_length, fault);
}

static void make_ec(void)
{
    EVP_PKEY *pkey = EVP_EC_gen("P-256");
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);

    assert_int_equal(
        EVP_PKEY_get_octet_string_param(pkey, OSSL_PKEY_PARAM_PUB_KEY, point, sizeof point, NULL),
        1);
    assert_int_equal(read_ec(&key, NULL), 0);
    assert_int_equal(EVP_PKEY_sign_init(context), 1);
    assert_int_equal(EVP_PKEY_sign(context, signature, &signature_length, request.digest, 32), 1);
    EVP_PKEY_CTX_free(context);
    EVP_PKEY_free(pkey);
}

static void make_rsa(void)
{
    EVP_PKEY *pkey = EVP_RSA_gen(2048);
    BIGNUM *n = NULL;

    assert_int_equal(EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_N, &n), 1);
    assert_int_equal(BN_bn2binpad(n, modulus, sizeof modulus), sizeof modulus);
    BN_free(n);
    EVP_PKEY_free(pkey);
}

/* ---- */

/* Every allocation in turn; the first round finds OpenSSL's own caches filled. */
static void without_memory(int (*ask)(struct hsm_public_key *made, struct fault *fault))
{
    struct hsm_public_key made;
    struct fault fault;
    unsigned faults = 0;
    long n = 0;
    bool failed;

    assert_int_equal(ask(&made, &fault), 0);
    do {
        left = n++;
        failed = ask(&made, &fault) != 0;
        if (failed && fault.code != FAULT_UNAVAILABLE)
            fail_msg("allocation %ld: %s", n, fault.message);
        if (failed)
            assert_string_equal(fault.message, "OpenSSL: CKR_HOST_MEMORY");
        faults += failed;
        failed = for_good ? failed : left < 0;
        left = -1;
    } while (failed);
    assert_true(faults > 3);
    assert_int_equal(ask(&made, &fault), 0);
}

static void no_memory_is_no_verdict_about_a_key(void **state)
{
    (void)state;
    make_ec();
    make_rsa();
    for (int all = 0; all < 2; all++) {
        for_good = all;
        without_memory(read_ec);
        without_memory(read_rsa);
        without_memory(verify);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_memory_is_no_verdict_about_a_key),
    };

    if (CRYPTO_set_mem_functions(allocate, enlarge, release) != 1)
        return EXIT_FAILURE;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
