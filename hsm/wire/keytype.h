/* The key types that SPIRE asks for: one row for all that anybody needs to know of each.
 * PKCS#11's numbers are plain numbers here, so that the front can do without its headers.
 * Pure. */
#ifndef HSM_WIRE_KEYTYPE_H
#define HSM_WIRE_KEYTYPE_H

#include "hsm/wire/types.h"

enum { KEYTYPE_PARAMETERS_MAX = 10 };

struct keytype {
    enum hsm_key_type type;
    const char *name; /* "ec-p256" .., for logs and messages */
    bool rsa;
    uint16_t bits;              /* of the curve's order, or of the modulus; 0 = no key type */
    uint16_t bytes;             /* the same in bytes */
    unsigned long key_type;     /* CKK_EC, CKK_RSA */
    unsigned long generate;     /* CKM_..._KEY_PAIR_GEN */
    unsigned long sign;         /* the one mechanism that a token must have for this type */
    const char *group;          /* OpenSSL's name of the curve */
    const char *other_names[2]; /* that tokens have for it */
    uint8_t parameters[KEYTYPE_PARAMETERS_MAX]; /* DER OID of the curve; public exponent */
    uint8_t parameters_length;
};

/* Never NULL: the row of HSM_KEY_NONE, "unknown", for a number that is no key type. The row
 * is static. */
const struct keytype *keytype_find(enum hsm_key_type type);

#endif
