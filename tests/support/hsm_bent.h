/* A token whose module can be made to misbehave: SoftHSM, with single functions of its list
 * replaced by the test's own.
 *
 * Register tests with TEST(): `token` is then open. To replace a function, write it with
 * PKCS#11's parameters and set it in `bent`, as `bent.C_Sign = bad_sign`. The replacement
 * asks fails_now() whether it is to fail, and calls `real` if not. fail_next() says how
 * often it is. Every test begins with the functions as they were. */
#ifndef TESTS_HSM_BENT_H
#define TESTS_HSM_BENT_H

#include <stdatomic.h>
#include <stdbool.h>

#include "hsm/token.h"
#include "tests/support/hsm_room.h"

extern struct hsm_token *token;
extern CK_FUNCTION_LIST *real;
extern CK_FUNCTION_LIST bent; /* the module as the token sees it */

/* What the replaced functions do, and how often they were called. */
extern struct bent_plan {
    _Atomic int fails; /* so many calls fail, the later ones succeed */
    CK_RV with;
    _Atomic int calls;
    CK_ULONG most; /* sessions, template attributes */
    _Atomic int open;
} plan;

#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
int setup(void **state);
int teardown(void **state);

/* The next `times` calls fail with `with`; counts calls from 0. */
void fail_next(int times, CK_RV with);

/* Counts a call, and says whether it is one of those. */
bool fails_now(void);

/* C_Sign and C_SignInit that do as planned. */
CK_RV bad_sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG length, CK_BYTE_PTR signature,
               CK_ULONG_PTR signature_length);
CK_RV bad_sign_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key);

#endif
