/* No wrong signature leaves the room: which ones are verified, and what is done about a wrong one.
 */
#include "tests/support/hsm_bent.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "hsm/object.h"
#include "hsm/wire/pubkey.h"

static struct hsm_reply sign(const char *name, const struct hsm_public_key *key)
{
    struct hsm_request request = room_signature(name, key, HSM_SHA256, 0);

    return room_execute(token, &request);
}

static bool is_right(const char *name, const struct hsm_public_key *key,
                     const struct hsm_reply *reply)
{
    struct hsm_request request = room_signature(name, key, HSM_SHA256, 0);

    return pubkey_verify(key, &request, reply->signature, reply->signature_length, NULL) == 0;
}

/* A right signature, without an error. */
static void must_sign(const char *name, const struct hsm_public_key *key)
{
    struct hsm_reply reply = sign(name, key);

    if (reply.fault.code != FAULT_NONE)
        fail_msg("%s", reply.fault.message);
    assert_true(is_right(name, key, &reply));
}

/* An error that names the key, and nothing else. */
static void must_refuse(const char *name, const struct hsm_public_key *key, const char *words)
{
    static const uint8_t nothing[HSM_SIGNATURE_MAX];
    struct hsm_reply reply = sign(name, key);

    assert_int_equal(reply.fault.code, FAULT_UNAVAILABLE);
    assert_int_equal(reply.fault.ckr, CKR_OK);
    assert_non_null(strstr(reply.fault.message, ROOM_LABEL));
    assert_non_null(strstr(reply.fault.message, words));
    assert_int_equal(reply.signature_length, 0);
    assert_memory_equal(reply.signature, nothing, sizeof nothing);
}

/* From now on the known handle of every key is that of `name`, as after a library has renumbered
 * its objects. */
static void renumber(const char *name)
{
    struct hsm_request request = room_request(HSM_PROVE, name, HSM_KEY_NONE);
    struct object_halves found;
    struct session session;
    struct fault fault;

    assert_int_equal(session_borrow(&token->pool, &session, &fault), 0);
    assert_int_equal(object_find(&session, &request.key, &found, &fault), 0);
    session_return(&token->pool, &session);
    assert_int_equal(found.private_keys.count, 1);
    for (size_t i = 0; i < CACHE_SIZE; i++)
        token->cache.entries[i].value.handle = found.private_keys.handles[0];
}

static CK_RV bends(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG length,
                   CK_BYTE_PTR signature, CK_ULONG_PTR signature_length)
{
    CK_RV rv = real->C_Sign(session, data, length, signature, signature_length);

    if (rv == CKR_OK && fails_now())
        signature[*signature_length - 1] ^= 1;
    return rv;
}

/* As a token that leaves leading zeros out does once in 128 times. */
static CK_RV shortens(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG length,
                      CK_BYTE_PTR signature, CK_ULONG_PTR signature_length)
{
    CK_RV rv = real->C_Sign(session, data, length, signature, signature_length);

    if (rv == CKR_OK && fails_now())
        *signature_length -= 2;
    return rv;
}

static CK_RV takes_its_time(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG length,
                            CK_BYTE_PTR signature, CK_ULONG_PTR signature_length)
{
    static const struct timespec long_time = {.tv_nsec = 20000000};

    (void)nanosleep(&long_time, NULL);
    return real->C_Sign(session, data, length, signature, signature_length);
}

/* ---- which are verified ---- */

static const enum hsm_key_type all_types[] = {HSM_EC_P256, HSM_EC_P384, HSM_RSA_2048};

enum { TYPES = sizeof all_types / sizeof all_types[0] };

/* So many that it is known how long signing and verifying take. */
static void warm_up(const char *name, const struct hsm_public_key *key)
{
    for (int i = 0; i < VERIFY_SPANS + 3; i++)
        must_sign(name, key);
}

static void renumbered_handle_gives_no_wrong_signature_when_all_are_verified(void **state)
{
    (void)state;
    token->verify.always = true;
    for (size_t i = 0; i < TYPES; i++) {
        struct hsm_public_key a = room_generate(token, "a", all_types[i]);
        struct hsm_request destroy = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);

        (void)room_generate(token, "b", all_types[i]);
        warm_up("a", &a);
        renumber("b");
        must_sign("a", &a);
        (void)room_must(token, &destroy);
        destroy = room_request(HSM_DESTROY, "b", HSM_KEY_NONE);
        (void)room_must(token, &destroy);
    }
}

static void renumbered_rsa_handle_never_gives_a_wrong_signature(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_RSA_2048);

    (void)state;
    (void)room_generate(token, "b", HSM_RSA_2048);
    for (int i = 0; i < 3; i++) {
        must_sign("a", &a);
        must_sign("a", &a);
        renumber("b");
    }
}

static void slow_token_never_gives_a_wrong_signature(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    (void)room_generate(token, "b", HSM_EC_P256);
    bent.C_Sign = takes_its_time;
    for (int i = 0; i < VERIFY_SPANS; i++)
        must_sign("a", &a);
    for (int i = 0; i < 3; i++) {
        renumber("b");
        must_sign("a", &a);
        must_sign("a", &a);
    }
}

/* A look-up gets a new handle, a login or a new session perhaps another token behind it. */
static void first_signature_after_a_look_up_a_new_session_or_a_second_is_verified(void **state)
{
    static const struct timespec a_second = {.tv_sec = 1, .tv_nsec = 1000000};
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    (void)room_generate(token, "b", HSM_EC_P256);
    warm_up("a", &a);
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE); /* looks it up */
    renumber("b");
    must_sign("a", &a);
    token->verify.alarmed_until = 0;
    (void)nanosleep(&a_second, NULL);
    renumber("b");
    must_sign("a", &a);
    token->verify.alarmed_until = 0;
    bent.C_Sign = bad_sign;
    fail_next(1, CKR_DEVICE_ERROR);
    assert_int_equal(sign("a", &a).fault.code, FAULT_UNAVAILABLE); /* costs the session */
    renumber("b");
    must_sign("a", &a);
}

static void one_signature_in_64_of_a_fast_token_is_verified(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    int wrong = 0;

    (void)state;
    (void)room_generate(token, "b", HSM_EC_P256);
    warm_up("a", &a);
    renumber("b");
    for (int i = 0; i < 64; i++) {
        struct hsm_reply reply = sign("a", &a);

        assert_int_equal(reply.fault.code, FAULT_NONE);
        wrong += !is_right("a", &a, &reply);
    }
    assert_in_range(wrong, 0, 63);
    for (int i = 0; i < 3; i++) { /* all are verified now, for a minute */
        must_sign("a", &a);
        renumber("b");
    }
}

/* ---- what is done about it ---- */

static void wrong_signature_is_made_anew(void **state)
{
    (void)state;
    bent.C_Sign = bends;
    token->verify.always = true;
    for (size_t i = 0; i < TYPES; i++) {
        char name[] = {(char)('a' + i), '\0'};
        struct hsm_public_key key = room_generate(token, name, all_types[i]);

        must_sign(name, &key);
        fail_next(1, CKR_OK);
        must_sign(name, &key);
        assert_int_equal(plan.calls, 2);
    }
}

static void second_wrong_signature_is_an_error_that_names_the_key(void **state)
{
    (void)state;
    bent.C_Sign = bends;
    token->verify.always = true;
    for (size_t i = 0; i < TYPES; i++) {
        char name[] = {(char)('a' + i), '\0'};
        struct hsm_public_key key = room_generate(token, name, all_types[i]);

        fail_next(2, CKR_OK);
        must_refuse(name, &key, "signed wrongly twice");
        assert_int_equal(plan.calls, 2);
        must_sign(name, &key);
    }
}

/* One such signature is enough to work the private key out. */
static void faulty_rsa_signature_never_leaves(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_RSA_2048);

    (void)state;
    bent.C_Sign = bends;
    for (int i = 0; i < 8; i++) {
        fail_next(i % 3, CKR_OK);
        if (i % 3 == 2)
            must_refuse("a", &a, "signed wrongly twice");
        must_sign("a", &a);
    }
    fail_next(1000, CKR_OK);
    must_refuse("a", &a, "signed wrongly twice");
}

static void short_signature_is_made_anew(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct hsm_request request = room_signature("a", &a, HSM_SHA256, 0);

    (void)state;
    must_sign("a", &a);
    bent.C_Sign = shortens;
    for (int known = 1; known >= 0; known--) {
        fail_next(1, CKR_OK);
        must_sign("a", &a);
        assert_int_equal(plan.calls, 2);
        cache_forget(&token->cache, &request.key, HANDLE_NONE);
    }
    fail_next(1000, CKR_OK);
    must_refuse("a", &a, "62 bytes where 64 are right");
}

/* That of a longer key is too long. */
static void handle_of_a_key_of_another_type_is_looked_up_again(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);

    (void)state;
    (void)room_generate(token, "b", HSM_EC_P384);
    must_sign("a", &a);
    renumber("b");
    must_sign("a", &a);
}

/* ---- trial signatures ---- */

static void must_prove(struct hsm_request *request, enum hsm_state state, const char *why)
{
    struct hsm_reply reply = room_execute(token, request);

    assert_int_equal(reply.fault.code, FAULT_NONE);
    assert_int_equal(reply.state, state);
    if (state == HSM_COMPLETE)
        return;
    assert_non_null(strstr(reply.why, why));
    assert_int_equal(reply.public_key.pkix_length, 0);
}

/* It says so of the signature and not of the key, and nothing of it is kept. */
static void key_whose_trial_signature_is_wrong_may_be_proven_next_time(void **state)
{
    static const struct {
        CK_RV (*sign)(CK_SESSION_HANDLE, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG_PTR);
        const char *why;
        int tries; /* in place */
    } troubles[] = {{bends, "does not verify", 1}, {shortens, "62 bytes where 64 are right", 2}};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char name[] = {(char)('a' + i), '\0'};
        struct hsm_request make = room_request(HSM_GENERATE, name, HSM_EC_P256);
        struct hsm_request look = room_request(HSM_PROVE, name, HSM_EC_P256);

        bent.C_Sign = troubles[i].sign;
        fail_next(2 * troubles[i].tries, CKR_OK);
        must_prove(&make, HSM_MISSIGNED, troubles[i].why);
        must_prove(&look, HSM_MISSIGNED, troubles[i].why);
        must_prove(&look, HSM_COMPLETE, "");
    }
}

/* ---- sharing ---- */

static struct hsm_public_key shared_key;

static void *sign_many(void *context)
{
    int *right = context;

    for (int i = 0; i < 40; i++) {
        struct hsm_reply reply = sign("a", &shared_key);

        *right += reply.fault.code == FAULT_NONE && is_right("a", &shared_key, &reply);
    }
    return NULL;
}

static void many_threads_verify_with_one_key(void **state)
{
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    int right[THREADS] = {0};

    (void)state;
    shared_key = room_generate(token, "a", HSM_RSA_2048);
    bent.C_Sign = bends;
    fail_next(1, CKR_OK);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, sign_many, &right[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(right[i], 40);
    }
}

/* Seen by the address sanitizer, if not. */
static void a_key_that_the_cache_has_no_room_for_leaves_nothing_behind(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct cache_value taken = {.verifier = NULL};
    struct hsm_key_name name = {.id_length = 0};
    struct cache_key key = {&name, a.fingerprint, 0};
    struct fault fault;
    struct cache cache;

    (void)state;
    cache_open(&cache);
    for (int i = 0; i < 2 * CACHE_SIZE; i++) {
        struct cache_value value = {7, verifier_make(&a, &fault)};

        assert_non_null(value.verifier);
        (void)snprintf(name.label, sizeof name.label, "%d", i);
        cache_found(&cache, &key, &value);
        verifier_release(&value.verifier);
    }
    assert_int_equal(cache_get(&cache, &key, &taken, &fault), CACHE_HIT);
    cache_forget(&cache, &name, HANDLE_NONE);
    cache_close(&cache);
    verifier_release(&taken.verifier); /* the last one who shares it */
    assert_null(taken.verifier);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(renumbered_handle_gives_no_wrong_signature_when_all_are_verified),
        TEST(renumbered_rsa_handle_never_gives_a_wrong_signature),
        TEST(slow_token_never_gives_a_wrong_signature),
        TEST(first_signature_after_a_look_up_a_new_session_or_a_second_is_verified),
        TEST(one_signature_in_64_of_a_fast_token_is_verified),
        TEST(wrong_signature_is_made_anew),
        TEST(second_wrong_signature_is_an_error_that_names_the_key),
        TEST(faulty_rsa_signature_never_leaves),
        TEST(short_signature_is_made_anew),
        TEST(handle_of_a_key_of_another_type_is_looked_up_again),
        TEST(key_whose_trial_signature_is_wrong_may_be_proven_next_time),
        TEST(many_threads_verify_with_one_key),
        TEST(a_key_that_the_cache_has_no_room_for_leaves_nothing_behind),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
