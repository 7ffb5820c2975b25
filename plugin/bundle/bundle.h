/* A trust bundle as a file's bytes. Pure: the same bundle and options give the same
 * bytes, so "unchanged" can be decided by comparing files.
 *
 * Formats: SPIFFE trust bundle (SPIFFE Trust Domain and Bundle, section 4: a JWK set with
 * spiffe_sequence, spiffe_refresh_hint and a `use` per key; SPIRE's OIDC discovery provider reads
 * it), plain JWKS (RFC 7517, no `use`), PEM (X.509 authorities only), OIDC (JWT authorities only:
 * the key set that the discovery provider serves, with an `alg` per key). */
#ifndef PLUGIN_BUNDLE_BUNDLE_H
#define PLUGIN_BUNDLE_BUNDLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/base/fault.h"

enum bundle_format { BUNDLE_SPIFFE, BUNDLE_JWKS, BUNDLE_PEM, BUNDLE_OIDC };

struct bundle_bytes {
    const uint8_t *bytes;
    size_t length;
};

struct bundle_jwt_key {
    struct bundle_bytes pkix; /* DER SubjectPublicKeyInfo */
    const char *key_id;
};

/* A view: everything it points to stays its maker's. */
struct bundle {
    const char *trust_domain;
    const struct bundle_bytes *x509; /* one DER certificate each */
    size_t x509_count;
    const struct bundle_jwt_key *jwt;
    size_t jwt_count;
    int64_t refresh_hint; /* seconds, 0 = none */
    uint64_t sequence;
};

/* Encodes into malloc'd *bytes (the caller's to free; NUL-terminated behind *length).
 * FAULT_INVALID_ARGUMENT: no authority at all, a certificate or key that does not parse,
 * an empty or repeated key id, a key type the discovery provider would choke on (other
 * than RSA, EC P-256/P-384/P-521 and Ed25519): one bad entry would make it reject the
 * whole file; no JWT authority for OIDC, no X.509 authority for PEM. An X.509 authority that
 * is there twice is written once. */
int bundle_encode(const struct bundle *bundle, enum bundle_format format, char **bytes,
                  size_t *length, struct fault *fault);

/* Reads encoded bytes back and says how many authorities they hold and which sequence
 * number (0 in formats without one). FAULT_INVALID_ARGUMENT when they are not a whole,
 * valid file of that format; FAULT_NOT_FOUND when there is no authority in a file that is. */
struct bundle_summary {
    size_t x509;
    size_t jwt;
    size_t others; /* keys of another use, which readers of the SPIFFE format pass over */
    uint64_t sequence;
};
int bundle_read(const char *bytes, size_t length, enum bundle_format format,
                struct bundle_summary *summary, struct fault *fault);

/* Do readers of the SPIFFE format pass over a key of this `use` (NULL: of none)? */
bool bundle_passes_over(const char *use);

#endif
