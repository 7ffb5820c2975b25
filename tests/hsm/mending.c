/* What is mended inside a call, and what is passed on. */
#include "tests/support/hsm_bent.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/wire/pubkey.h"

static struct fault sign_fault(const char *name, const struct hsm_public_key *key)
{
    struct hsm_request request = room_signature(name, key, HSM_SHA256, 0);
    struct hsm_reply reply = room_execute(token, &request);
    struct fault fault;

    if (reply.fault.code == FAULT_NONE &&
        pubkey_verify(key, &request, reply.signature, reply.signature_length, &fault) != 0)
        fail_msg("%s", fault.message);
    return reply.fault;
}

static void must_sign(const char *name, const struct hsm_public_key *key)
{
    struct fault fault = sign_fault(name, key);

    if (fault.code != FAULT_NONE)
        fail_msg("%s", fault.message);
}

/* ---- mended ---- */

static void lost_sessions_are_replaced_and_the_login_redone(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    must_sign("a", &a);
    assert_int_equal(real->C_CloseAllSessions(token->pool.slot), CKR_OK);
    must_sign("a", &a);
    assert_int_equal(real->C_CloseAllSessions(token->pool.slot), CKR_OK);
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
    assert_int_equal(real->C_CloseAllSessions(token->pool.slot), CKR_OK);
    (void)room_generate(token, "b", HSM_EC_P256);
}

static void lost_login_is_redone(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct hsm_request request = room_request(HSM_PING, "", HSM_KEY_NONE);

    (void)state;
    assert_int_equal(real->C_Logout(token->pool.anchor), CKR_OK);
    must_sign("a", &a);
    assert_int_equal(real->C_Logout(token->pool.anchor), CKR_OK);
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE); /* not ABSENT */
    assert_int_equal(real->C_Logout(token->pool.anchor), CKR_OK);
    (void)room_must(token, &request);
    assert_int_equal(real->C_Logout(token->pool.anchor), CKR_OK);
    (void)room_generate(token, "b", HSM_EC_P256);
}

static void pin_changed_under_us_is_tried_once(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    softhsm_write(softhsm.pin_file, "other-pin", 0600);
    assert_int_equal(real->C_Logout(token->pool.anchor), CKR_OK);
    assert_non_null(strstr(sign_fault("a", &a).message, "C_Login: CKR_PIN_INCORRECT"));
    assert_non_null(strstr(sign_fault("a", &a).message, "the token said so before"));
    softhsm_write(softhsm.pin_file, SOFTHSM_PIN, 0600);
    must_sign("a", &a);
}

static void each_mendable_code_is_mended_once(void **state)
{
    static const CK_RV codes[] = {CKR_SESSION_HANDLE_INVALID, CKR_SESSION_CLOSED,
                                  CKR_OPERATION_ACTIVE,       CKR_OPERATION_NOT_INITIALIZED,
                                  CKR_USER_NOT_LOGGED_IN,     CKR_KEY_HANDLE_INVALID,
                                  CKR_OBJECT_HANDLE_INVALID};
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    bent.C_Sign = bad_sign;
    bent.C_SignInit = bad_sign_init;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        fail_next(1, codes[i]);
        must_sign("a", &a);
        fail_next(2, codes[i]);
        assert_int_equal(sign_fault("a", &a).code, FAULT_UNAVAILABLE);
        must_sign("a", &a);
    }
}

static void other_codes_are_passed_on_at_once(void **state)
{
    static const struct {
        CK_RV code;
        enum fault_code fault;
    } rows[] = {
        {CKR_DEVICE_ERROR, FAULT_UNAVAILABLE},
        {CKR_GENERAL_ERROR, FAULT_UNAVAILABLE},
        {CKR_DEVICE_REMOVED, FAULT_UNAVAILABLE},
        {CKR_CRYPTOKI_NOT_INITIALIZED, FAULT_UNAVAILABLE},
        {0x80000123, FAULT_UNAVAILABLE},
        {0x7777, FAULT_UNAVAILABLE},
        {CKR_MECHANISM_INVALID, FAULT_INVALID_ARGUMENT},
        {CKR_ACTION_PROHIBITED, FAULT_PERMISSION_DENIED},
        {CKR_DEVICE_MEMORY, FAULT_UNAVAILABLE}, /* full is only who has to store something */
    };
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    bent.C_Sign = bad_sign;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fault fault;

        fail_next(1, rows[i].code);
        fault = sign_fault("a", &a);
        assert_int_equal(fault.code, rows[i].fault);
        assert_int_equal(fault.ckr, rows[i].code);
        assert_non_null(strstr(fault.message, hsm_rv_name(rows[i].code)));
        assert_int_equal(plan.calls, 1);
        must_sign("a", &a);
    }
}

static CK_RV bad_sign_long(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG length,
                           CK_BYTE_PTR signature, CK_ULONG_PTR signature_length)
{
    CK_RV rv = real->C_Sign(session, data, length, signature, signature_length);

    *signature_length = plan.most;
    return rv;
}

static void signature_of_a_wrong_length_is_refused(void **state)
{
    static const CK_ULONG lengths[] = {0, 63, 65, 512, 513, 1UL << 40, ~0UL};
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    bent.C_Sign = bad_sign_long;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        plan.most = lengths[i];
        assert_int_equal(sign_fault("a", &a).code, FAULT_UNAVAILABLE);
    }
}

/* ---- handles ---- */

static struct object_pair find_pair(const char *name)
{
    struct hsm_request request = room_request(HSM_PROVE, name, HSM_KEY_NONE);
    struct object_halves found;
    struct session session;
    struct fault fault;

    assert_int_equal(session_borrow(&token->pool, &session, &fault), 0);
    assert_int_equal(object_find(&session, &request.key, &found, &fault), 0);
    session_return(&token->pool, &session);
    assert_int_equal(found.private_keys.count, 1);
    assert_int_equal(found.public_keys.count, 1);
    return (struct object_pair){found.private_keys.handles[0], found.public_keys.handles[0]};
}

static void set_known_handles(CK_OBJECT_HANDLE handle)
{
    for (size_t i = 0; i < CACHE_SIZE; i++)
        token->cache.entries[i].value.handle = handle;
}

/* After a login the number of one key's handle may be another's. */
static void handle_from_before_a_login_is_not_used(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    (void)room_generate(token, "b", HSM_EC_P256);
    must_sign("a", &a);
    set_known_handles(find_pair("b").private_key);
    token->pool.logins++;
    must_sign("a", &a);
}

static CK_RV tells_no_curve(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                            CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    return template->type == CKA_EC_PARAMS && fails_now()
               ? plan.with
               : real->C_GetAttributeValue(session, object, template, count);
}

/* What its public half does not say, a token may say of the private one. */
static void key_without_a_public_half_is_not_judged_while_the_token_fails(void **state)
{
    struct hsm_request prove = room_request(HSM_PROVE, "a", HSM_KEY_NONE);

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    assert_int_equal(real->C_DestroyObject(token->pool.anchor, find_pair("a").public_key), CKR_OK);
    bent.C_GetAttributeValue = tells_no_curve;
    fail_next(1, CKR_DEVICE_ERROR);
    assert_int_equal(room_execute(token, &prove).fault.code, FAULT_UNAVAILABLE);
}

/* The handle of one key is another object's, and no login tells. */
static void known_handle_that_has_become_another_objects_is_looked_up_again(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    must_sign("a", &a);
    set_known_handles(find_pair("a").public_key); /* CKR_KEY_FUNCTION_NOT_PERMITTED */
    must_sign("a", &a);
}

/* Nor has a key that is gone a handle any more, whose number another key may get. */
static void handle_of_a_destroyed_key_is_not_used(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct hsm_request destroy = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);

    (void)state;
    (void)room_generate(token, "b", HSM_EC_P256);
    must_sign("a", &a);
    (void)room_must(token, &destroy);
    set_known_handles(find_pair("b").private_key);
    assert_int_equal(sign_fault("a", &a).code, FAULT_NOT_FOUND);
}

static CK_ULONG searches;

static CK_RV count_searches(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR attributes, CK_ULONG count)
{
    searches++;
    return real->C_FindObjectsInit(session, attributes, count);
}

/* What is said of a handle fresh from the token is true. */
static void key_that_does_not_fit_is_looked_for_once(void **state)
{
    static const struct {
        CK_RV code;
        enum fault_code fault;
    } rows[] = {
        {CKR_KEY_TYPE_INCONSISTENT, FAULT_INVALID_ARGUMENT},
        {CKR_KEY_FUNCTION_NOT_PERMITTED, FAULT_PERMISSION_DENIED},
        {CKR_KEY_SIZE_RANGE, FAULT_INVALID_ARGUMENT},
    };
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    bent.C_SignInit = bad_sign_init;
    bent.C_FindObjectsInit = count_searches;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fault fault;

        must_sign("a", &a);
        searches = 0;
        fail_next(1, rows[i].code);
        must_sign("a", &a);
        assert_int_equal(searches, 1);
        fail_next(100, rows[i].code);
        fault = sign_fault("a", &a);
        assert_int_equal(fault.code, rows[i].fault);
        assert_int_equal(fault.ckr, rows[i].code);
        assert_int_equal(plan.calls, 2);
        fail_next(0, CKR_OK);
    }
}

static void hint_at_another_key_is_not_believed(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct hsm_request request = room_request(HSM_PROVE, "a", HSM_KEY_NONE);
    struct hint *hint = calloc(1, sizeof *hint);
    struct hsm_reply reply;

    (void)state;
    (void)room_generate(token, "b", HSM_EC_P256);
    assert_non_null(hint);
    hint->name = request.key;
    hint->pair = find_pair("b");
    hints_replace(&token->hints, hint, 1, token->pool.logins);
    reply = room_must(token, &request);
    assert_int_equal(reply.state, HSM_COMPLETE);
    assert_memory_equal(reply.public_key.fingerprint, a.fingerprint, HSM_FINGERPRINT);
}

/* ---- sessions ---- */

static CK_RV few_sessions(CK_SLOT_ID slot, CK_FLAGS flags, void *context, CK_NOTIFY notify,
                          CK_SESSION_HANDLE_PTR session)
{
    plan.calls++;
    if (plan.open >= (int)plan.most)
        return CKR_SESSION_COUNT;
    plan.open++;
    return real->C_OpenSession(slot, flags, context, notify, session);
}

static const struct hsm_public_key *shared_key;

static void *sign_some(void *context)
{
    int *good = context;

    for (int i = 0; i < 20; i++) {
        struct hsm_request request = room_signature("a", shared_key, HSM_SHA256, (uint32_t)i);

        *good += room_execute(token, &request).fault.code == FAULT_NONE;
    }
    return NULL;
}

/* The pool would take four. */
static void fewer_sessions_than_wished_for_make_do(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    pthread_t threads[6];
    int good[6] = {0};

    (void)state;
    shared_key = &a;
    plan.most = 1; /* beside the anchor and one that is open already */
    bent.C_OpenSession = few_sessions;
    for (int i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, sign_some, &good[i]), 0);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(good[i], 20);
    }
    assert_true(plan.open <= 1);
    assert_true(plan.calls < 10); /* a token that is full is not asked over and over */
}

static void no_session_at_all_is_an_error_not_a_wait(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    assert_int_equal(real->C_CloseAllSessions(token->pool.slot), CKR_OK);
    plan.most = 0;
    bent.C_OpenSession = few_sessions;
    assert_int_equal(sign_fault("a", &a).ckr, CKR_SESSION_COUNT);
    plan.most = 64;
    must_sign("a", &a);
}

static CK_RV no_more_sessions(CK_SLOT_ID slot, CK_FLAGS flags, void *context, CK_NOTIFY notify,
                              CK_SESSION_HANDLE_PTR session)
{
    (void)slot, (void)flags, (void)context, (void)notify, (void)session;
    return CKR_ATTRIBUTE_SENSITIVE;
}

static void a_session_that_is_refused_is_no_verdict_on_the_key(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct fault fault;

    (void)state;
    assert_int_equal(real->C_CloseAllSessions(token->pool.slot), CKR_OK);
    bent.C_OpenSession = no_more_sessions;
    fault = sign_fault("a", &a);
    assert_int_equal(fault.ckr, CKR_ATTRIBUTE_SENSITIVE);
    assert_int_equal(fault.code, FAULT_UNAVAILABLE);
    bent.C_OpenSession = real->C_OpenSession;
    must_sign("a", &a);
}

/* ---- absence ---- */

static void ignore(void *context, const struct hsm_item *item)
{
    (void)context;
    (void)item;
}

static void token_that_went_away_is_not_an_empty_one(void **state)
{
    struct hsm_request request = room_request(HSM_PROVE, "a", HSM_KEY_NONE);
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct hsm_request signature = room_signature("b", &a, HSM_SHA256, 0);
    struct hsm_reply reply;
    char from[96];
    char to[96];

    (void)state;
    (void)snprintf(from, sizeof from, "%s/tokens", softhsm.folder);
    (void)snprintf(to, sizeof to, "%s/away", softhsm.folder);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_UNAVAILABLE);
    assert_int_equal(room_execute(token, &signature).fault.code, FAULT_UNAVAILABLE);
    request = (struct hsm_request){.op = HSM_SCAN, .prefix = "sp1-"};
    hsm_execute(token, &request, &reply, ignore, NULL);
    assert_int_equal(reply.fault.code, FAULT_UNAVAILABLE);
    request = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_UNAVAILABLE);
    assert_int_equal(rename(to, from), 0);
}

static CK_RV tells_of_another_token(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info)
{
    CK_RV rv = real->C_GetTokenInfo(slot, info);

    info->serialNumber[0] ^= 1;
    return rv;
}

static void token_in_the_place_of_another_is_not_an_empty_one(void **state)
{
    struct hsm_request prove = room_request(HSM_PROVE, "a", HSM_KEY_NONE);

    (void)state;
    bent.C_GetTokenInfo = tells_of_another_token;
    assert_int_equal(room_execute(token, &prove).fault.ckr, CKR_TOKEN_NOT_PRESENT);
}

static void empty_token_is_empty(void **state)
{
    struct hsm_request request = {.op = HSM_SCAN, .prefix = "sp1-"};
    struct hsm_reply reply;

    (void)state;
    hsm_execute(token, &request, &reply, ignore, NULL);
    assert_int_equal(reply.fault.code, FAULT_NONE);
    assert_int_equal(reply.items + reply.foreign + reply.nameless, 0);
}

static CK_RV finds_nothing(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR list, CK_ULONG most,
                           CK_ULONG_PTR count)
{
    (void)list;
    (void)most;
    *count = 0;
    if (fails_now())
        (void)real->C_Logout(session);
    return CKR_OK;
}

static void silent_logout_in_the_middle_of_a_search_is_noticed(void **state)
{
    struct hsm_request request = room_request(HSM_PROVE, "a", HSM_KEY_NONE);

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    bent.C_FindObjects = finds_nothing;
    fail_next(9, 0); /* and again after each login */
    assert_int_equal(room_execute(token, &request).fault.ckr, CKR_USER_NOT_LOGGED_IN);
}

static CK_RV finds_too_many(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR list, CK_ULONG most,
                            CK_ULONG_PTR count)
{
    CK_RV rv = real->C_FindObjects(session, list, most, count);

    *count = plan.calls++ < 3 ? most + 1000 : 0;
    return rv;
}

static void impossible_counts_are_refused(void **state)
{
    struct hsm_request request = {.op = HSM_SCAN, .prefix = "sp1-"};
    struct hsm_reply reply;

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    bent.C_FindObjects = finds_too_many;
    hsm_execute(token, &request, &reply, ignore, NULL);
    assert_int_equal(reply.fault.code, FAULT_INTERNAL);
    request = room_request(HSM_PROVE, "a", HSM_KEY_NONE);
    plan.calls = 0;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_INTERNAL);
    bent.C_FindObjects = real->C_FindObjects;
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(lost_sessions_are_replaced_and_the_login_redone),
        TEST(lost_login_is_redone),
        TEST(pin_changed_under_us_is_tried_once),
        TEST(each_mendable_code_is_mended_once),
        TEST(other_codes_are_passed_on_at_once),
        TEST(signature_of_a_wrong_length_is_refused),
        TEST(handle_from_before_a_login_is_not_used),
        TEST(handle_of_a_destroyed_key_is_not_used),
        TEST(key_without_a_public_half_is_not_judged_while_the_token_fails),
        TEST(known_handle_that_has_become_another_objects_is_looked_up_again),
        TEST(key_that_does_not_fit_is_looked_for_once),
        TEST(hint_at_another_key_is_not_believed),
        TEST(fewer_sessions_than_wished_for_make_do),
        TEST(no_session_at_all_is_an_error_not_a_wait),
        TEST(a_session_that_is_refused_is_no_verdict_on_the_key),
        TEST(token_that_went_away_is_not_an_empty_one),
        TEST(token_in_the_place_of_another_is_not_an_empty_one),
        TEST(empty_token_is_empty),
        TEST(silent_logout_in_the_middle_of_a_search_is_noticed),
        TEST(impossible_counts_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
