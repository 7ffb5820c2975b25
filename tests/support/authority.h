/* Authorities for tests of the bundle: keys and certificates, made on the spot.
 *
 * KIND is "P-256", "P-384", "P-521", "P-224", "secp256k1", "RSA-2048", "RSA-4096", "ED25519"
 * or "X25519". Nothing here fails: what OpenSSL cannot make ends the program.
 *
 * The DER bytes are inside the struct. A key from authority_key() is the caller's, who ends
 * it with EVP_PKEY_free(). */
#ifndef TESTS_AUTHORITY_H
#define TESTS_AUTHORITY_H

#include <stddef.h>
#include <stdint.h>

#include <openssl/evp.h>

struct authority {
    uint8_t bytes[4096];
    size_t length;
};

/* The usual two: a fresh key as SubjectPublicKeyInfo, and a certificate of a fresh key. */
struct authority authority_new_pkix(const char *kind);
struct authority authority_new_certificate(const char *kind, long serial);

/* The same for a key that the test keeps, or has changed. The certificate is signed with
 * another key: no reader of a bundle checks the signature. */
EVP_PKEY *authority_key(const char *kind);
struct authority authority_pkix(const EVP_PKEY *key);
struct authority authority_certificate(EVP_PKEY *key, long serial);

#endif
