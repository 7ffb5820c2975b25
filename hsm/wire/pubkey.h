/* Public keys as tokens hand them out, in all their spellings, and as the rest of the
 * world wants them: PKIX and its SHA-256. Pure; every byte from a token is distrusted.
 * FAULT_INTERNAL is a verdict about the key or signature; when memory runs out, there is none:
 * FAULT_UNAVAILABLE, CKR_HOST_MEMORY. */
#ifndef HSM_WIRE_PUBKEY_H
#define HSM_WIRE_PUBKEY_H

#include <openssl/types.h>

#include "hsm/wire/types.h"

/* From CKA_EC_PARAMS (OID, or the names and explicit forms some tokens return) and
 * CKA_EC_POINT (DER OCTET STRING, raw, without 04, BIT STRING, compressed: told apart
 * by total length). P-256 and P-384 only; the point must be on the curve. */
int pubkey_from_ec(const uint8_t *params, size_t params_length, const uint8_t *point,
                   size_t point_length, struct hsm_public_key *key, struct fault *fault);

/* From CKA_MODULUS and CKA_PUBLIC_EXPONENT (leading zeros allowed). 2048 and 4096
 * bits, odd exponent of at least 65537. */
int pubkey_from_rsa(const uint8_t *modulus, size_t modulus_length, const uint8_t *exponent,
                    size_t exponent_length, struct hsm_public_key *key, struct fault *fault);

/* From CKA_PUBLIC_KEY_INFO (PKCS#11 3.0). OpenSSL's decoder fails alike for want of memory
 * and at a bad key: both are a verdict here. */
int pubkey_from_pkix(const uint8_t *pkix, size_t length, struct hsm_public_key *key,
                     struct fault *fault);

/* Does this signature (as sign_result makes them) over request->digest verify in
 * software? FAULT_INTERNAL if not. */
int pubkey_verify(const struct hsm_public_key *key, const struct hsm_request *request,
                  const uint8_t *signature, size_t length, struct fault *fault);

/* The same in three steps, for callers that verify often: the first two take twice as long as the
 * last. *pkey and *context are the caller's, to be released with EVP_PKEY_free and
 * EVP_PKEY_CTX_free. Any number of threads may use one pkey at a time, one thread a context. */
int pubkey_load(const struct hsm_public_key *key, EVP_PKEY **pkey, struct fault *fault);
int pubkey_verifier(EVP_PKEY *pkey, EVP_PKEY_CTX **context, struct fault *fault);
int pubkey_check(EVP_PKEY_CTX *context, const struct hsm_request *request, const uint8_t *signature,
                 size_t length, struct fault *fault);

#endif
