/* Public keys as the members of a JSON Web Key (RFC 7517; RFC 7518, section 6; RFC 8037): EC P-256,
 * P-384, P-521, RSA, Ed25519, the types that the file's reader (go-jose) knows. Pure. */
#ifndef PLUGIN_BUNDLE_JWK_H
#define PLUGIN_BUNDLE_JWK_H

#include <jansson.h>
#include <openssl/evp.h>

#include "hsm/base/fault.h"

/* Adds kty and the key's own members to `jwk`. FAULT_INVALID_ARGUMENT for other kinds. */
int jwk_write(const EVP_PKEY *key, json_t *jwk, struct fault *fault);

/* The key that the members of `jwk` make: the caller's, to EVP_PKEY_free. NULL and
 * FAULT_INVALID_ARGUMENT when they make none (coordinates of the wrong width or off the
 * curve, numbers with leading zeros). */
EVP_PKEY *jwk_read(const json_t *jwk, struct fault *fault);

/* The algorithm SPIRE signs with when it has such a key (`alg`, RFC 7518, 3.1), or NULL: it has
 * none of the kind. */
const char *jwk_algorithm(const EVP_PKEY *key);

/* For OWNED locals. */
void jwk_free_key(EVP_PKEY **key);

#endif
