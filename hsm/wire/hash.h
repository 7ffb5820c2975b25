/* The hash functions that a signature may ask for: one table for all that anybody needs to
 * know of them. Mechanism numbers are plain numbers here, so that the front can do without
 * PKCS#11's headers. Pure. */
#ifndef HSM_WIRE_HASH_H
#define HSM_WIRE_HASH_H

#include "hsm/wire/types.h"

/* No PKCS#11 up to 3.1 numbers MGF1 with a truncated SHA-512. */
enum { HASH_NO_MGF = 0 };

struct hash {
    enum hsm_hash number;
    const char *name;        /* OpenSSL's: "SHA2-256" .. */
    uint8_t length;          /* bytes of a digest */
    uint8_t oid;             /* last byte of 2.16.840.1.101.3.4.2.n, NIST's hash algorithms */
    unsigned long mechanism; /* CKM_SHA256 .. */
    unsigned long mgf;       /* CKG_MGF1_SHA256 .., or HASH_NO_MGF */
};

/* NULL for a number that is no hash of ours. The row is static. */
const struct hash *hash_find(enum hsm_hash number);

#endif
