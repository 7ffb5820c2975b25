/* How a token is asked for each kind of signature, and how its answer is read: the table of
 * mechanisms, the DigestInfo and PSS parameters, raw r||s into DER. Pure but for random numbers. */
#ifndef HSM_SIGN_H
#define HSM_SIGN_H

#include <p11-kit/pkcs11.h>

#include "hsm/wire/types.h"

/* The arguments of C_SignInit and C_Sign. `mechanism` points into the plan itself: a plan is not
 * copied. */
struct sign_plan {
    CK_MECHANISM mechanism;
    CK_RSA_PKCS_PSS_PARAMS pss;
    uint8_t input[HSM_SIGNATURE_MAX];
    CK_ULONG input_length;
    CK_ULONG signature_length; /* of a well-formed raw answer */
};

/* A request for a trial signature with a key of this type, of a random digest. */
int sign_trial(enum hsm_key_type type, struct hsm_request *trial, struct fault *fault);

/* FAULT_INVALID_ARGUMENT: a hash, digest length, salt length or scheme that does not
 * exist or does not fit request->type. */
int sign_plan(const struct hsm_request *request, struct sign_plan *plan, struct fault *fault);

/* The same with the salt as long as the hash, for tokens that refuse the longest one.
 * false: the request did not ask for HSM_SALT_MAX, there is nothing else to try. */
bool sign_plan_shorter_salt(const struct hsm_request *request, struct sign_plan *plan);

/* The same with a digest as long as the order of the curve, for tokens that take no shorter
 * one. false: it is no shorter. */
bool sign_plan_longer_digest(const struct hsm_request *request, struct sign_plan *plan);

/* Turns an RSA-PSS plan into one whose padding is done here, for tokens (and PKCS#11
 * itself) that do not know PSS with this hash: the token only exponentiates. */
int sign_plan_padded(const struct hsm_request *request, struct sign_plan *plan,
                     struct fault *fault);

/* Puts the token's raw answer into reply->signature: EC r||s as minimal DER
 * (ECDSA-Sig-Value, RFC 3279 2.2.3), RSA as it is. FAULT_INTERNAL when it is not
 * plan->signature_length bytes long, or r or s is zero. */
int sign_result(const struct hsm_request *request, const struct sign_plan *plan, const uint8_t *raw,
                CK_ULONG length, struct hsm_reply *reply, struct fault *fault);

#endif
