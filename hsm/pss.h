/* EMSA-PSS (RFC 8017, 9.1.1) in software, for hashes that PKCS#11 or a token has no
 * CKM_RSA_PKCS_PSS parameters for: the token then only does the private operation
 * (CKM_RSA_X_509). Pure but for the random salt. */
#ifndef HSM_PSS_H
#define HSM_PSS_H

#include "hsm/wire/types.h"

/* Encodes request->digest with a salt of `salt` bytes into `length` bytes, the length of
 * the modulus, whose bits are all significant. The lengths fit (sign_plan has checked). */
int pss_encode(const struct hsm_request *request, size_t salt, uint8_t *encoded, size_t length,
               struct fault *fault);

#endif
