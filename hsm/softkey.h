/* A private key in this process's memory, and signatures by OpenSSL: in the place of a token. */
#ifndef HSM_SOFTKEY_H
#define HSM_SOFTKEY_H

#include <openssl/types.h>

#include "hsm/verify.h"
#include "hsm/wire/types.h"

struct softkey {
    EVP_PKEY *pkey;
    struct hsm_public_key public_key;
    struct verifier *verifier;
};

/* From DER of PKCS #8 (RFC 5208). *key is the caller's to clear, also after a failure. A fault's
 * message is a clause about the key, as "is of type RSA-3072 ..", with nothing secret in it;
 * FAULT_FAILED_PRECONDITION: it is no key, or none of ours. FAULT_UNAVAILABLE: no memory. */
int softkey_read(const uint8_t *der, size_t length, struct softkey *key, struct fault *fault);

/* Wipes. All zero is fine. */
void softkey_clear(struct softkey *key);

/* Fills reply->signature. FAULT_INVALID_ARGUMENT as sign_plan has it, or a request for another
 * type. Any number of threads. */
int softkey_sign(const struct softkey *key, const struct hsm_request *request,
                 struct hsm_reply *reply, struct fault *fault);

/* A trial signature that verifies. FAULT_INTERNAL: it does not, the key is damaged. */
int softkey_try(const struct softkey *key, struct fault *fault);

#endif
