/* Tokens that give misleading answers for a moment: a failed read, a search during a login, a
 * stale handle. None of them may make the product give up a key, or take another one for it. */
#include "tests/support/hsm_bent.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "hsm/wire/pubkey.h"
#include "hsm/wire/rv.h"

/* ---- scans ---- */

/* What a SCAN showed of the token. */
struct scan_result {
    unsigned complete;
    unsigned others; /* half, unfit */
    struct hsm_reply reply;
};

static void count_item(void *context, const struct hsm_item *item)
{
    struct scan_result *result = context;

    if (item->state == HSM_COMPLETE)
        result->complete++;
    else
        result->others++;
}

static struct scan_result scan_token(void)
{
    struct hsm_request request = {.op = HSM_SCAN, .prefix = "sp1-"};
    struct scan_result result = {.complete = 0};

    hsm_execute(token, &request, &result.reply, count_item, &result);
    return result;
}

/* An object of no use to us, as long as the token can tell what it is. */
static CK_OBJECT_HANDLE make_data(void)
{
    CK_OBJECT_CLASS class = CKO_DATA;
    CK_BBOOL yes = CK_TRUE;
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof class}, {CKA_TOKEN, &yes, sizeof yes}};
    CK_OBJECT_HANDLE handle = CK_INVALID_HANDLE;

    assert_int_equal(real->C_CreateObject(token->pool.anchor, template, 2, &handle), CKR_OK);
    return handle;
}

static CK_OBJECT_HANDLE broken;

static CK_RV reads_badly(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                         CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    if (object == broken || (broken == CK_INVALID_HANDLE && fails_now()))
        return plan.with;
    return real->C_GetAttributeValue(session, object, template, count);
}

/* CKR_FUNCTION_FAILED is also what a YubiHSM says when the network was away for a moment. */
static void keys_that_could_not_be_read_for_a_moment_are_not_missing(void **state)
{
    static const CK_RV codes[] = {CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED};

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    (void)room_generate(token, "b", HSM_EC_P256);
    broken = CK_INVALID_HANDLE;
    bent.C_GetAttributeValue = reads_badly;
    for (int times = 1; times <= 4; times++) {
        struct scan_result result;

        fail_next(times, codes[times % 2]);
        result = scan_token();
        assert_int_equal(result.reply.fault.code, FAULT_NONE);
        assert_int_equal(result.complete, 2);
        assert_int_equal(result.others + result.reply.nameless, 0);
    }
}

static void keys_that_cannot_be_read_at_all_are_not_missing_either(void **state)
{
    struct scan_result result;

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    broken = CK_INVALID_HANDLE;
    bent.C_GetAttributeValue = reads_badly;
    fail_next(1 << 20, CKR_FUNCTION_FAILED);
    result = scan_token();
    assert_int_equal(result.reply.fault.code, FAULT_UNAVAILABLE);
    assert_int_equal(result.reply.fault.ckr, CKR_FUNCTION_FAILED);
    assert_int_equal(result.complete + result.others, 0);
}

/* SoftHSM leaves such when it is killed in the middle of a write. */
static void an_object_that_is_broken_for_ever_does_not_stop_the_scan(void **state)
{
    struct scan_result result;

    (void)state;
    broken = make_data();
    bent.C_GetAttributeValue = reads_badly;
    plan.with = CKR_GENERAL_ERROR;
    result = scan_token(); /* on a token that has nothing else */
    assert_int_equal(result.reply.fault.code, FAULT_NONE);
    assert_int_equal(result.reply.nameless, 1);
    (void)room_generate(token, "a", HSM_EC_P256);
    result = scan_token();
    assert_int_equal(result.reply.fault.code, FAULT_NONE);
    assert_int_equal(result.reply.nameless, 1);
    assert_int_equal(result.complete, 1);
}

static CK_RV finds_badly(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR list, CK_ULONG most,
                         CK_ULONG_PTR count)
{
    return fails_now() ? plan.with : real->C_FindObjects(session, list, most, count);
}

/* At the start that would be final. */
static void no_memory_for_a_search_is_not_a_full_token(void **state)
{
    static const CK_RV codes[] = {CKR_DEVICE_MEMORY, 0x201 /* CKR_TOKEN_RESOURCE_EXCEEDED */};

    (void)state;
    bent.C_FindObjects = finds_badly;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        struct scan_result result;

        fail_next(1, codes[i]);
        result = scan_token();
        assert_int_equal(result.reply.fault.ckr, codes[i]);
        assert_int_equal(result.reply.fault.code, FAULT_UNAVAILABLE);
    }
}

/* What another thread does when the token has silently logged us out: the login is back, and
 * all handles are others. */
static void log_in_anew(void)
{
    struct fault fault;

    assert_int_equal(real->C_Logout(token->pool.anchor), CKR_OK);
    assert_int_equal(session_login(&token->pool, &fault), 0);
}

static CK_RV reads_after_a_new_login(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                     CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    if (fails_now())
        log_in_anew();
    return real->C_GetAttributeValue(session, object, template, count);
}

static void a_scan_across_a_new_login_is_done_over(void **state)
{
    struct scan_result result;

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    (void)room_generate(token, "b", HSM_EC_P256);
    bent.C_GetAttributeValue = reads_after_a_new_login;
    fail_next(1, 0);
    result = scan_token();
    assert_int_equal(result.reply.fault.code, FAULT_NONE);
    assert_int_equal(result.complete, 2);
    fail_next(1 << 20, 0);
    assert_int_equal(scan_token().reply.fault.code, FAULT_UNAVAILABLE);
}

/* Between C_FindObjectsInit, which finds no private key of one who is not logged in, and the
 * question whether we are. */
static CK_RV searches_while_logged_out(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR template,
                                       CK_ULONG count)
{
    struct fault fault;
    CK_RV rv;

    if (!fails_now())
        return real->C_FindObjectsInit(session, template, count);
    assert_int_equal(real->C_Logout(session), CKR_OK);
    rv = real->C_FindObjectsInit(session, template, count);
    assert_int_equal(session_login(&token->pool, &fault), 0);
    return rv;
}

static void a_key_is_not_absent_because_of_a_new_login(void **state)
{
    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    bent.C_FindObjectsInit = searches_while_logged_out;
    fail_next(2, 0);
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
}

/* ---- handles ---- */

static struct cache cache;
static const uint8_t fingerprint[HSM_FINGERPRINT] = {1};
static const struct hsm_key_name name = {.label = "a", .id = {1}, .id_length = 1};

static void *ask_after_a_new_login(void *context)
{
    const struct cache_key key = {&name, fingerprint, 2};
    struct cache_value value = {.verifier = NULL};
    struct fault fault;

    *(enum cache_answer *)context = cache_get(&cache, &key, &value, &fault);
    return NULL;
}

static bool someone_waits(void)
{
    bool waits = false;

    (void)pthread_mutex_lock(&cache.lock);
    for (size_t i = 0; i < CACHE_SIZE; i++)
        waits = waits || cache.entries[i].waiting > 0;
    (void)pthread_mutex_unlock(&cache.lock);
    return waits;
}

static void a_handle_found_before_a_login_is_no_answer_to_who_came_after_it(void **state)
{
    const struct cache_key key = {&name, fingerprint, 1};
    enum cache_answer answer = CACHE_HIT;
    struct cache_value value = {.handle = 7};
    struct fault fault;
    pthread_t thread;

    (void)state;
    cache_open(&cache);
    assert_int_equal(cache_get(&cache, &key, &value, &fault), CACHE_LOOK);
    assert_int_equal(pthread_create(&thread, NULL, ask_after_a_new_login, &answer), 0);
    while (!someone_waits())
        (void)usleep(1000);
    cache_found(&cache, &key, &value);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(answer, CACHE_LOOK);
    cache_close(&cache);
}

/* ---- keys ---- */

/* Without a login, as anybody can who may use the token at all. */
static void plant_public_key(const char *key_name)
{
    /* the generator of P-256 */
    static uint8_t point[67] = {
        0x04, 0x41, 0x04, 0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42, 0x47, 0xf8, 0xbc, 0xe6,
        0xe5, 0x63, 0xa4, 0x40, 0xf2, 0x77, 0x03, 0x7d, 0x81, 0x2d, 0xeb, 0x33, 0xa0, 0xf4,
        0xa1, 0x39, 0x45, 0xd8, 0x98, 0xc2, 0x96, 0x4f, 0xe3, 0x42, 0xe2, 0xfe, 0x1a, 0x7f,
        0x9b, 0x8e, 0xe7, 0xeb, 0x4a, 0x7c, 0x0f, 0x9e, 0x16, 0x2b, 0xce, 0x33, 0x57, 0x6b,
        0x31, 0x5e, 0xce, 0xcb, 0xb6, 0x40, 0x68, 0x37, 0xbf, 0x51, 0xf5};
    static uint8_t oid[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
    struct hsm_key_name copy = room_request(HSM_PROVE, key_name, HSM_KEY_NONE).key;
    CK_OBJECT_CLASS class = CKO_PUBLIC_KEY;
    CK_KEY_TYPE type = CKK_EC;
    CK_BBOOL yes = CK_TRUE;
    CK_BBOOL no = CK_FALSE;
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof class},
                               {CKA_KEY_TYPE, &type, sizeof type},
                               {CKA_TOKEN, &yes, sizeof yes},
                               {CKA_PRIVATE, &no, sizeof no},
                               {CKA_EC_PARAMS, oid, sizeof oid},
                               {CKA_EC_POINT, point, sizeof point},
                               {CKA_LABEL, copy.label, strlen(copy.label)},
                               {CKA_ID, copy.id, copy.id_length}};
    CK_OBJECT_HANDLE handle;
    struct fault fault;

    assert_int_equal(real->C_Logout(token->pool.anchor), CKR_OK);
    assert_int_equal(real->C_CreateObject(token->pool.anchor, template,
                                          sizeof template / sizeof template[0], &handle),
                     CKR_OK);
    assert_int_equal(session_login(&token->pool, &fault), 0);
}

static CK_RV finds_in_the_other_order(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR list,
                                      CK_ULONG most, CK_ULONG_PTR count)
{
    CK_RV rv = real->C_FindObjects(session, list, most, count);

    for (CK_ULONG i = 0; rv == CKR_OK && i < *count / 2; i++) {
        CK_OBJECT_HANDLE first = list[i];

        list[i] = list[*count - 1 - i];
        list[*count - 1 - i] = first;
    }
    return rv;
}

static void must_sign(const char *key_name, const struct hsm_public_key *key, enum hsm_hash hash)
{
    struct hsm_request request = room_signature(key_name, key, hash, 0);
    struct hsm_reply reply = room_must(token, &request);
    struct fault fault;

    if (pubkey_verify(key, &request, reply.signature, reply.signature_length, &fault) != 0)
        fail_msg("%s", fault.message);
}

static void a_public_key_planted_beside_ours_changes_nothing(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    plant_public_key("a");
    for (int order = 0; order < 2; order++) {
        log_in_anew(); /* no handle is remembered */
        must_sign("a", &a, HSM_SHA256);
        assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
        bent.C_FindObjects = finds_in_the_other_order;
    }
}

static CK_RV tells_no_point(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                            CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    return template->type == CKA_EC_POINT && fails_now()
               ? plan.with
               : real->C_GetAttributeValue(session, object, template, count);
}

/* Neither does it make another key of ours, nor one that is unfit. */
static void a_public_key_that_could_not_be_read_for_a_moment_is_no_verdict(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    const struct hsm_request requests[] = {room_signature("a", &a, HSM_SHA256, 0),
                                           room_request(HSM_PROVE, "a", HSM_KEY_NONE)};

    (void)state;
    plant_public_key("a");
    bent.C_GetAttributeValue = tells_no_point;
    for (size_t i = 0; i < 4; i++) {
        bent.C_FindObjects = i < 2 ? real->C_FindObjects : finds_in_the_other_order;
        log_in_anew();
        fail_next(1, CKR_DEVICE_ERROR);
        assert_int_equal(room_execute(token, &requests[i % 2]).fault.code, FAULT_UNAVAILABLE);
        (void)room_must(token, &requests[i % 2]);
    }
}

static CK_RV counts_searches(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR attributes, CK_ULONG count)
{
    plan.calls++;
    return real->C_FindObjectsInit(session, attributes, count);
}

static void a_key_is_searched_for_only_after_a_login(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    bent.C_FindObjectsInit = counts_searches;
    must_sign("a", &a, HSM_SHA256); /* PROVE has found it */
    assert_int_equal(plan.calls, 0);
    (void)scan_token();
    token->pool.logins++; /* what the scan saw may have other handles now */
    plan.calls = 0;
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
    assert_int_equal(plan.calls, 1);
}

/* FIPS 186-4 takes the digest for a number: zeros in front do not change it. */
static CK_RV signs_whole_orders(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG length,
                                CK_BYTE_PTR signature, CK_ULONG_PTR signature_length)
{
    CK_RV rv = real->C_Sign(session, data, length, signature, signature_length);

    return length == plan.most ? rv : CKR_DATA_LEN_RANGE;
}

static void a_token_that_wants_digests_as_long_as_the_order_gets_them(void **state)
{
    struct hsm_public_key a;
    struct hsm_public_key b;

    (void)state;
    bent.C_Sign = signs_whole_orders;
    plan.most = 48;
    a = room_generate(token, "a", HSM_EC_P384);
    must_sign("a", &a, HSM_SHA224);
    must_sign("a", &a, HSM_SHA256);
    must_sign("a", &a, HSM_SHA384);
    must_sign("a", &a, HSM_SHA512);
    plan.most = 32;
    b = room_generate(token, "b", HSM_EC_P256);
    must_sign("b", &b, HSM_SHA224);
    must_sign("b", &b, HSM_SHA512);
}

/* ---- sessions ---- */

/* A signature that waits for the module's lock behind a slow generation would be taken for one
 * that hangs. */
static void a_module_for_one_thread_at_a_time_is_given_one_session(void **state)
{
    struct hsm_settings settings = room_good();
    struct module_token found;
    struct session_pool pool;
    struct fault fault;

    (void)state;
    assert_int_equal(module_find_token(&token->module, &settings, &found, &fault), 0);
    assert_int_equal(session_pool_open(&pool, &token->module, &found, &settings, &fault), 0);
    assert_int_equal(pool.limit, settings.sessions);
    session_pool_close(&pool);
    token->module.one_at_a_time = true;
    assert_int_equal(session_pool_open(&pool, &token->module, &found, &settings, &fault), 0);
    assert_int_equal(pool.limit, 1);
    session_pool_close(&pool);
    token->module.one_at_a_time = false;
}

static atomic_uint waits_reported;

static void count_wait(void)
{
    waits_reported++;
}

static void *ping(void *context)
{
    const struct hsm_request request = {.op = HSM_PING};

    *(struct hsm_reply *)context = room_execute(token, &request);
    return NULL;
}

static void who_waits_for_a_session_says_so(void **state)
{
    struct session lent[HSM_SESSIONS_MAX];
    struct hsm_reply reply;
    struct fault fault;
    pthread_t thread;

    (void)state;
    hsm_listen(token, count_wait, NULL);
    for (uint32_t i = 0; i < token->pool.limit; i++)
        assert_int_equal(session_borrow(&token->pool, &lent[i], &fault), 0);
    assert_int_equal(waits_reported, 0);
    assert_int_equal(pthread_create(&thread, NULL, ping, &reply), 0);
    while (waits_reported < 3)
        (void)usleep(1000);
    for (uint32_t i = 0; i < token->pool.limit; i++)
        session_return(&token->pool, &lent[i]);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(reply.fault.code, FAULT_NONE);
}

/* ---- PINs ---- */

static void only_a_pin_that_was_refused_waits_for_its_source_to_change(void **state)
{
    (void)state;
    assert_true(hsm_refused_pin(CKR_PIN_INCORRECT));
    assert_true(hsm_refused_pin(CKR_PIN_LOCKED));
    assert_true(hsm_refused_pin(CKR_PIN_LEN_RANGE));
    assert_false(hsm_refused_pin(CKR_OK));
    assert_false(hsm_refused_pin(CKR_DEVICE_ERROR));
    /* for these a person goes to the token, and the file stays as it is */
    assert_false(hsm_refused_pin(CKR_PIN_EXPIRED));
    assert_false(hsm_refused_pin(CKR_USER_PIN_NOT_INITIALIZED));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(keys_that_could_not_be_read_for_a_moment_are_not_missing),
        TEST(keys_that_cannot_be_read_at_all_are_not_missing_either),
        TEST(an_object_that_is_broken_for_ever_does_not_stop_the_scan),
        TEST(no_memory_for_a_search_is_not_a_full_token),
        TEST(a_scan_across_a_new_login_is_done_over),
        TEST(a_key_is_not_absent_because_of_a_new_login),
        cmocka_unit_test(a_handle_found_before_a_login_is_no_answer_to_who_came_after_it),
        TEST(a_public_key_planted_beside_ours_changes_nothing),
        TEST(a_public_key_that_could_not_be_read_for_a_moment_is_no_verdict),
        TEST(a_key_is_searched_for_only_after_a_login),
        TEST(a_token_that_wants_digests_as_long_as_the_order_gets_them),
        TEST(a_module_for_one_thread_at_a_time_is_given_one_session),
        TEST(who_waits_for_a_session_says_so),
        cmocka_unit_test(only_a_pin_that_was_refused_waits_for_its_source_to_change),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
