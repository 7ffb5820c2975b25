/* The one error value. Every function of ours that can fail returns 0 or -1 and,
 * with -1, fills the fault its caller handed in and leaves every other output
 * untouched. With 0, the functions at a room's door (hsm_execute, config_read ..)
 * leave the fault untouched; functions inside the room need not: a fault that was
 * recovered from may still be in it. Foreign error domains (CK_RV, errno, OpenSSL's
 * queue) become a fault on the line after the call and travel no further.
 *
 * The codes are gRPC's own numbers (checked where gRPC is seen, plugin/rpc/rpc.c),
 * so a fault is answered to SPIRE as it stands. The message is one sentence for
 * an operator: it names the setting, key id, token or CKR concerned, and never a
 * PIN, key material or raw request bytes. */
#ifndef HSM_BASE_FAULT_H
#define HSM_BASE_FAULT_H

#include <stdint.h>

enum fault_code {
    FAULT_NONE = 0,
    FAULT_CANCELLED = 1,
    FAULT_INVALID_ARGUMENT = 3, /* the caller asked for something that cannot be */
    FAULT_DEADLINE_EXCEEDED = 4,
    FAULT_NOT_FOUND = 5,           /* only after a complete look at a reachable token */
    FAULT_PERMISSION_DENIED = 7,   /* the token's role may not do this; final */
    FAULT_RESOURCE_EXHAUSTED = 8,  /* token full, no sessions left */
    FAULT_FAILED_PRECONDITION = 9, /* wrong setting, PIN refused: a person must act */
    FAULT_ABORTED = 10,            /* outcome unknown: look before trying again */
    FAULT_UNIMPLEMENTED = 12,
    FAULT_INTERNAL = 13,
    FAULT_UNAVAILABLE = 14, /* may work later without anyone's help */
};

enum { FAULT_MESSAGE_MAX = 512 };

struct fault {
    enum fault_code code;
    uint64_t ckr; /* the CK_RV behind it, 0 (CKR_OK) if there is none */
    char message[FAULT_MESSAGE_MAX];
};

/* Fills *fault and returns -1, so that `return fault_set(...)` is the usual form. A message
 * that does not fit is cut at a UTF-8 boundary. fault may be NULL if the caller only needs
 * the result. */
int fault_set(struct fault *fault, enum fault_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same with ": " and the text of `error` (an errno value) behind it. */
int fault_errno(struct fault *fault, enum fault_code code, int error, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "context: " in front of a fault on its way up. Returns -1. */
int fault_prefix(struct fault *fault, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
