/* The token of hsm_bent.h. */
#include "tests/support/hsm_bent.h"

#include <string.h>

struct hsm_token *token;
CK_FUNCTION_LIST *real;
CK_FUNCTION_LIST bent;
struct bent_plan plan;

int setup(void **state)
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

int teardown(void **state)
{
    (void)state;
    token->module.calls = real;
    hsm_close(token);
    softhsm_remove(&softhsm);
    return 0;
}

bool fails_now(void)
{
    plan.calls++;
    return plan.fails-- > 0;
}

void fail_next(int times, CK_RV with)
{
    plan.fails = times;
    plan.with = with;
    plan.calls = 0;
}

CK_RV bad_sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG length, CK_BYTE_PTR signature,
               CK_ULONG_PTR signature_length)
{
    return fails_now() ? plan.with
                       : real->C_Sign(session, data, length, signature, signature_length);
}

CK_RV bad_sign_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)
{
    return fails_now() ? plan.with : real->C_SignInit(session, mechanism, key);
}
