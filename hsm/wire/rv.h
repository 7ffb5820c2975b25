/* CK_RV, PKCS#11's error domain: each code's name, what it means to the caller, and how to recover.
 * A CK_RV travels no further than the line after the call: rv_fault turns it into a fault, and
 * rv_class tells from fault.ckr how to recover. */
#ifndef HSM_WIRE_RV_H
#define HSM_WIRE_RV_H

#include <stdbool.h>

#include <p11-kit/pkcs11.h>

#include "hsm/base/fault.h"

/* By remedy, not by cause: tokens disagree about causes. */
enum rv_class {
    RV_SESSION,   /* another session will do */
    RV_LOGIN,     /* log in again */
    RV_HANDLE,    /* find the object again */
    RV_DEVICE,    /* a fresh process may do better, nothing else will */
    RV_ABSENT,    /* the token is not there */
    RV_FULL,      /* no room, or no session left */
    RV_TEMPLATE,  /* refused before anything was done; ask for less */
    RV_PIN,       /* a person must act */
    RV_PERMANENT, /* the same question will have the same answer */
};

/* RV_DEVICE for a code nobody has heard of: vendors' own codes are mostly transport. */
enum rv_class rv_class(uint64_t ckr);

/* An answer about an attribute (unknown, hidden, too long), not a failure of the call. */
bool rv_is_about_attribute(CK_RV rv);

/* Fills *fault with the code, the sentence "<call>: <name>" and rv. Returns -1. */
int rv_fault(CK_RV rv, const char *call, struct fault *fault);

#endif
