/* EMSA-PSS (RFC 8017) in software, for tokens that can only do raw RSA. */
#include "hsm/pss.h"

#include <string.h>

#include <openssl/evp.h>
#include <openssl/rand.h>

#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/wire/hash.h"

enum {
    PREFIX = 8, /* zero bytes in front of digest and salt */
    TRAILER = 0xbc,
    MODULUS_MAX = 512,
};

/* hash(first || second) */
static bool hash_both(const EVP_MD *hash, const uint8_t *first, size_t first_length,
                      const uint8_t *second, size_t second_length, uint8_t *digest)
{
    OWNED(md_ctx_free) EVP_MD_CTX *context = EVP_MD_CTX_new();

    return context && EVP_DigestInit_ex(context, hash, NULL) == 1 &&
           EVP_DigestUpdate(context, first, first_length) == 1 &&
           EVP_DigestUpdate(context, second, second_length) == 1 &&
           EVP_DigestFinal_ex(context, digest, NULL) == 1;
}

/* RFC 8017 B.2.1: `bytes` is masked with MGF1 of the seed. */
static bool mask(const EVP_MD *hash, const uint8_t *seed, size_t seed_length, uint8_t *bytes,
                 size_t length)
{
    uint8_t block[EVP_MAX_MD_SIZE];
    size_t step = seed_length; /* the seed is a hash itself */

    for (size_t at = 0, counter = 0; at < length; at += step, counter++) {
        const uint8_t count[4] = {0, 0, (uint8_t)(counter >> 8), (uint8_t)counter};

        if (!hash_both(hash, seed, seed_length, count, sizeof count, block))
            return false;
        for (size_t i = 0; i < step && at + i < length; i++)
            bytes[at + i] ^= block[i];
    }
    return true;
}

/* EM = maskedDB || H || bc, where DB = 00 .. 00 01 salt and H = hash(00*8 || digest || salt). */
static bool encode(const EVP_MD *hash, const struct hsm_request *request, const uint8_t *salt,
                   size_t salt_length, uint8_t *encoded, size_t length)
{
    uint8_t start[PREFIX + HSM_DIGEST_MAX] = {0};
    size_t hash_length = request->digest_length;
    size_t db_length = length - hash_length - 1;
    uint8_t *digest = encoded + db_length;

    memcpy(start + PREFIX, request->digest, hash_length);
    if (!hash_both(hash, start, PREFIX + hash_length, salt, salt_length, digest))
        return false;
    memset(encoded, 0, db_length);
    encoded[db_length - salt_length - 1] = 1;
    memcpy(encoded + db_length - salt_length, salt, salt_length);
    if (!mask(hash, digest, hash_length, encoded, db_length))
        return false;
    encoded[0] &= 0x7f; /* one bit less than the modulus, so that EM is the smaller number */
    encoded[length - 1] = TRAILER;
    return true;
}

int pss_encode(const struct hsm_request *request, size_t salt, uint8_t *encoded, size_t length,
               struct fault *fault)
{
    OWNED(md_free) EVP_MD *hash = EVP_MD_fetch(NULL, hash_find(request->hash)->name, NULL);
    uint8_t random[MODULUS_MAX];

    if (!hash || salt > sizeof random || RAND_bytes(random, (int)salt) != 1 ||
        !encode(hash, request, random, salt, encoded, length))
        return fault_set(fault, FAULT_INTERNAL, "cannot encode an RSA-PSS signature");
    return 0;
}
