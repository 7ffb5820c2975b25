/* A token whose module can be made to misbehave: a real one, with single functions of its
 * list replaced. */
#ifndef TESTS_HSM_BENT_H
#define TESTS_HSM_BENT_H

#include "tests/support/hsm_room.h"

#include "hsm/token.h"

static struct hsm_token *token;
static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST bent; /* the module as the token sees it */

/* What the misbehaving functions do, and how often they were asked. */
static struct {
    _Atomic int fails; /* so many calls fail, then all go well */
    CK_RV with;
    _Atomic int calls;
    CK_ULONG most; /* sessions, template attributes */
    _Atomic int open;
} plan;

static inline int setup(void **state)
{
    struct hsm_settings settings;

    (void)state;
    softhsm_make(&softhsm);
    softhsm_token("spire");
    settings = room_good();
    token = room_open(&settings);
    real = token->module.calls;
    bent = *real;
    token->module.calls = &bent;
    memset(&plan, 0, sizeof plan);
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    token->module.calls = real;
    hsm_close(token);
    softhsm_remove(&softhsm);
    return 0;
}

static inline bool fails_now(void)
{
    plan.calls++;
    return plan.fails-- > 0;
}

static inline void fail_next(int times, CK_RV with)
{
    plan.fails = times;
    plan.with = with;
    plan.calls = 0;
}

static inline CK_RV bad_sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG length,
                             CK_BYTE_PTR signature, CK_ULONG_PTR signature_length)
{
    return fails_now() ? plan.with
                       : real->C_Sign(session, data, length, signature, signature_length);
}

static inline CK_RV bad_sign_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                                  CK_OBJECT_HANDLE key)
{
    return fails_now() ? plan.with : real->C_SignInit(session, mechanism, key);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

#endif
