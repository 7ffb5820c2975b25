/* The hashes that SPIRE asks for: lengths, mechanisms and OpenSSL's names. */
#include "hsm/wire/hash.h"

#include <p11-kit/pkcs11.h>

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

static const struct hash hashes[] = {
    {HSM_SHA224, "SHA2-224", 28, 4, CKM_SHA224, CKG_MGF1_SHA224},
    {HSM_SHA256, "SHA2-256", 32, 1, CKM_SHA256, CKG_MGF1_SHA256},
    {HSM_SHA384, "SHA2-384", 48, 2, CKM_SHA384, CKG_MGF1_SHA384},
    {HSM_SHA512, "SHA2-512", 64, 3, CKM_SHA512, CKG_MGF1_SHA512},
    {HSM_SHA3_224, "SHA3-224", 28, 7, CKM_SHA3_224, CKG_MGF1_SHA3_224},
    {HSM_SHA3_256, "SHA3-256", 32, 8, CKM_SHA3_256, CKG_MGF1_SHA3_256},
    {HSM_SHA3_384, "SHA3-384", 48, 9, CKM_SHA3_384, CKG_MGF1_SHA3_384},
    {HSM_SHA3_512, "SHA3-512", 64, 10, CKM_SHA3_512, CKG_MGF1_SHA3_512},
    {HSM_SHA512_224, "SHA2-512/224", 28, 5, CKM_SHA512_224, HASH_NO_MGF},
    {HSM_SHA512_256, "SHA2-512/256", 32, 6, CKM_SHA512_256, HASH_NO_MGF},
};

const struct hash *hash_find(enum hsm_hash number)
{
    for (size_t i = 0; i < sizeof hashes / sizeof hashes[0]; i++)
        if (hashes[i].number == number)
            return &hashes[i];
    return NULL;
}

size_t hsm_hash_length(enum hsm_hash hash)
{
    const struct hash *row = hash_find(hash);

    return row ? row->length : 0;
}
