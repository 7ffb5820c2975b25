/* The life of keys on a real software token: made, proven, signed with, found again,
 * destroyed; and what others have on the token left alone. */
#include "tests/support/hsm_room.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "hsm/object.h"
#include "hsm/token.h"
#include "hsm/wire/pubkey.h"

static struct hsm_token *open_token(void)
{
    struct hsm_settings settings = room_good();

    return room_open(&settings);
}

/* Signs, and verifies with OpenSSL. */
static struct hsm_reply sign(struct hsm_token *token, const struct hsm_request *request,
                             const struct hsm_public_key *key)
{
    struct hsm_reply reply = room_must(token, request);
    struct fault fault = {.code = FAULT_NONE};

    if (pubkey_verify(key, request, reply.signature, reply.signature_length, &fault) != 0)
        fail_msg("%s %d: %s", hsm_key_type_name(key->type), (int)request->hash, fault.message);
    return reply;
}

/* What a SCAN tells, as "name=state" words in its order. */
struct told {
    char words[512];
    struct hsm_reply reply;
};

static void tell(void *context, const struct hsm_item *item)
{
    static const char *const states[] = {"absent", "half", "complete", "unfit", "duplicate"};
    struct told *told = context;
    size_t used = strlen(told->words);

    (void)snprintf(told->words + used, sizeof told->words - used, "%s=%s ",
                   item->key.label + strlen(ROOM_LABEL), states[item->state]);
}

static struct told scan_token(struct hsm_token *token)
{
    struct hsm_request request = {.op = HSM_SCAN, .prefix = "sp1-"};
    struct told told = {.words = ""};

    hsm_execute(token, &request, &told.reply, tell, &told);
    assert_int_equal(told.reply.fault.code, FAULT_NONE);
    return told;
}

/* ---- what SPIRE needs ---- */

static const enum hsm_hash hashes[] = {
    HSM_SHA224,   HSM_SHA256,   HSM_SHA384,   HSM_SHA512,     HSM_SHA3_224,
    HSM_SHA3_256, HSM_SHA3_384, HSM_SHA3_512, HSM_SHA512_224, HSM_SHA512_256,
};
enum { HASHES = sizeof hashes / sizeof hashes[0] };

static void sign_with_every_hash(struct hsm_token *token, const char *name,
                                 const struct hsm_public_key *key)
{
    for (size_t i = 0; i < HASHES; i++) {
        struct hsm_request request = room_signature(name, key, hashes[i], 0);

        (void)sign(token, &request, key);
    }
}

static void every_ec_key_signs_every_hash(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_public_key p256 = room_generate(token, "p256", HSM_EC_P256);
    struct hsm_public_key p384 = room_generate(token, "p384", HSM_EC_P384);

    (void)state;
    assert_int_equal(p256.pkix_length, 91);
    assert_int_equal(p384.pkix_length, 120);
    sign_with_every_hash(token, "p256", &p256);
    sign_with_every_hash(token, "p384", &p384);
    hsm_close(token);
}

/* SoftHSM 2 knows PSS with SHA-2 only, what it does not know is padded here. */
static void sign_pss(struct hsm_token *token, const char *name, const struct hsm_public_key *key)
{
    static const int32_t salts[] = {HSM_SALT_HASH, HSM_SALT_MAX, 20, 1};

    for (size_t i = 0; i < HASHES; i++)
        for (size_t j = 0; j < 4; j++) {
            struct hsm_request request = room_signature(name, key, hashes[i], 0);

            request.scheme = HSM_PSS;
            request.salt_length = salts[j];
            assert_int_equal(sign(token, &request, key).signature_length,
                             key->type == HSM_RSA_2048 ? 256 : 512);
        }
}

static void every_rsa_key_signs_every_hash_and_scheme(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_public_key small = room_generate(token, "2048", HSM_RSA_2048);
    struct hsm_public_key large = room_generate(token, "4096", HSM_RSA_4096);

    (void)state;
    sign_with_every_hash(token, "2048", &small);
    sign_with_every_hash(token, "4096", &large);
    sign_pss(token, "2048", &small);
    sign_pss(token, "4096", &large);
    hsm_close(token);
}

static void key_is_the_same_after_a_restart(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_public_key made = room_generate(token, "a", HSM_EC_P256);
    struct hsm_request request = room_request(HSM_PROVE, "a", HSM_EC_P256);
    struct hsm_reply reply;

    (void)state;
    hsm_close(token);
    token = open_token();
    reply = room_must(token, &request);
    assert_int_equal(reply.state, HSM_COMPLETE);
    assert_memory_equal(reply.public_key.fingerprint, made.fingerprint, HSM_FINGERPRINT);
    request = room_signature("a", &made, HSM_SHA256, 0);
    (void)sign(token, &request, &made);
    hsm_close(token);
    token = open_token(); /* and without a PROVE before it, as a fresh worker has it */
    (void)sign(token, &request, &made);
    hsm_close(token);
}

static void key_is_made_as_it_must_be(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_request request = room_request(HSM_SIGN, "a", HSM_EC_P256);
    struct session session;
    struct object_halves found;
    CK_OBJECT_HANDLE key;
    struct object_value value;
    struct fault fault;
    char why[HSM_WHY_MAX];

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    assert_int_equal(session_borrow(&token->pool, &session, &fault), 0);
    assert_int_equal(object_find(&session, &request.key, &found, &fault), 0);
    assert_int_equal(found.private_keys.count, 1);
    key = found.private_keys.handles[0];
    assert_int_equal(object_check(&session, key, false, why, &fault), 0);
    assert_string_equal(why, "");
    assert_int_equal(object_read(&session, key, CKA_VALUE, &value, &fault), 0);
    assert_false(value.readable);
    assert_int_equal(object_read(&session, key, CKA_DECRYPT, &value, &fault), 0);
    assert_int_equal(value.bytes[0], CK_FALSE);
    assert_int_equal(object_read(&session, key, CKA_MODIFIABLE, &value, &fault), 0);
    assert_int_equal(value.bytes[0], softhsm_is("cloudhsm") ? CK_TRUE : CK_FALSE);
    session_return(&token->pool, &session);
    hsm_close(token);
}

static void signing_refuses_a_key_that_is_not_the_one_asked_for(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct hsm_public_key b = room_generate(token, "b", HSM_EC_P256);
    struct hsm_request request = room_signature("a", &b, HSM_SHA256, 0);

    (void)state;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_NOT_FOUND);
    request = room_signature("none", &a, HSM_SHA256, 0);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_NOT_FOUND);
    request = room_signature("a", &a, HSM_SHA256, 0);
    request.digest_length--;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_INVALID_ARGUMENT);
    request = room_request(HSM_PROVE, "a", HSM_RSA_2048);
    assert_int_equal(room_must(token, &request).state, HSM_UNFIT);
    request = room_request(HSM_PROVE, "none", HSM_KEY_NONE);
    assert_int_equal(room_must(token, &request).state, HSM_ABSENT);
    hsm_close(token);
}

enum { SIGNERS = 8, SIGNATURES = 50 };

struct signer {
    pthread_t thread;
    struct hsm_token *token;
    const struct hsm_public_key *keys;
    uint32_t number;
    uint32_t good;
};

static void *sign_many(void *context)
{
    struct signer *signer = context;

    for (uint32_t i = 0; i < SIGNATURES; i++) {
        uint32_t which = (signer->number + i) % 2;
        struct hsm_request request = room_signature(which == 0 ? "a" : "b", &signer->keys[which],
                                                    HSM_SHA256, signer->number << 16 | i);
        struct hsm_reply reply = room_execute(signer->token, &request);

        if (reply.fault.code == FAULT_NONE &&
            pubkey_verify(&signer->keys[which], &request, reply.signature, reply.signature_length,
                          NULL) == 0)
            signer->good++;
    }
    return NULL;
}

/* Twice as many threads as sessions, and nothing cached. */
static void many_threads_sign_at_once(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_public_key keys[2] = {room_generate(token, "a", HSM_EC_P256),
                                     room_generate(token, "b", HSM_EC_P256)};
    struct signer signers[SIGNERS];

    (void)state;
    hsm_close(token);
    token = open_token();
    for (uint32_t i = 0; i < SIGNERS; i++) {
        signers[i] = (struct signer){.token = token, .keys = keys, .number = i};
        assert_int_equal(pthread_create(&signers[i].thread, NULL, sign_many, &signers[i]), 0);
    }
    for (uint32_t i = 0; i < SIGNERS; i++) {
        assert_int_equal(pthread_join(signers[i].thread, NULL), 0);
        assert_int_equal(signers[i].good, SIGNATURES);
    }
    hsm_close(token);
}

/* ---- destroying, halves and neighbours ---- */

static void destroyed_key_is_gone_for_good(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct hsm_request destroy = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);
    struct hsm_request request = room_signature("a", &a, HSM_SHA256, 0);
    struct hsm_reply reply;

    (void)state;
    (void)room_generate(token, "b", HSM_EC_P256);
    (void)sign(token, &request, &a);
    reply = room_must(token, &destroy);
    assert_int_equal(reply.state, HSM_ABSENT);
    assert_int_equal(reply.items, 2);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_NOT_FOUND);
    reply = room_must(token, &destroy); /* once more does no harm */
    assert_int_equal(reply.state, HSM_ABSENT);
    assert_int_equal(reply.items, 0);
    hsm_close(token);
    token = open_token();
    assert_int_equal(room_state(token, "a"), HSM_ABSENT);
    assert_int_equal(room_state(token, "b"), HSM_COMPLETE);
    hsm_close(token);
}

/* An object made by hand, as another program or a crash may leave it. */
static void make_object(struct hsm_token *token, CK_OBJECT_CLASS class,
                        const struct hsm_key_name *name)
{
    static uint8_t oid[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
    static uint8_t point[67] = {0x04, 0x41, 0x04, 1};
    static uint8_t value[32] = {7};
    struct hsm_key_name copy = *name;
    CK_KEY_TYPE type = CKK_EC;
    CK_BBOOL yes = CK_TRUE;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof class},
        {CKA_KEY_TYPE, &type, sizeof type},
        {CKA_TOKEN, &yes, sizeof yes},
        {CKA_EC_PARAMS, oid, sizeof oid},
        {CKA_LABEL, copy.label, strlen(copy.label)},
        {CKA_ID, copy.id, copy.id_length},
        {class == CKO_PRIVATE_KEY ? CKA_VALUE : CKA_EC_POINT,
         class == CKO_PRIVATE_KEY ? value : point,
         class == CKO_PRIVATE_KEY ? sizeof value : sizeof point},
        {class == CKO_PRIVATE_KEY ? CKA_SIGN : CKA_VERIFY, &yes, sizeof yes},
    };
    CK_OBJECT_HANDLE handle;
    struct session session;
    struct fault fault;

    softhsm_habits(""); /* they are not what is tested here */
    assert_int_equal(session_borrow(&token->pool, &session, &fault), 0);
    assert_int_equal(MODULE_CALL(session.module, C_CreateObject, session.handle, template,
                                 sizeof template / sizeof template[0], &handle),
                     CKR_OK);
    session_return(&token->pool, &session);
    softhsm_habits(softhsm_profile());
}

static void destroy_half(struct hsm_token *token, const char *name, CK_OBJECT_CLASS class)
{
    struct hsm_request request = room_request(HSM_DESTROY, name, HSM_KEY_NONE);
    struct session session;
    struct object_halves found;
    struct fault fault;

    assert_int_equal(session_borrow(&token->pool, &session, &fault), 0);
    assert_int_equal(object_find(&session, &request.key, &found, &fault), 0);
    if (class == CKO_PRIVATE_KEY)
        found.public_keys.count = 0;
    else
        found.private_keys.count = 0;
    assert_int_equal(object_destroy_halves(&session, &found, &fault), 0);
    session_return(&token->pool, &session);
}

static void half_keys_are_seen_and_can_be_destroyed(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_request request = room_request(HSM_DESTROY, "pub", HSM_KEY_NONE);

    (void)state;
    (void)room_generate(token, "pub", HSM_EC_P256);
    (void)room_generate(token, "prv", HSM_EC_P256);
    (void)room_generate(token, "rsa", HSM_RSA_2048);
    destroy_half(token, "pub", CKO_PRIVATE_KEY);
    destroy_half(token, "prv", CKO_PUBLIC_KEY);
    destroy_half(token, "rsa", CKO_PUBLIC_KEY);
    assert_int_equal(room_state(token, "pub"), HSM_HALF);
    assert_int_equal(room_state(token, "prv"), HSM_BARE);
    assert_int_equal(room_state(token, "rsa"), HSM_COMPLETE); /* it knows its public half */
    assert_string_equal(scan_token(token).words, "prv=half pub=half rsa=half ");
    (void)room_must(token, &request);
    request = room_request(HSM_DESTROY, "prv", HSM_KEY_NONE);
    (void)room_must(token, &request);
    assert_string_equal(scan_token(token).words, "rsa=half ");
    hsm_close(token);
}

/* What is to be destroyed is told with the request: something else of the name stays. */
static void only_what_is_expected_is_destroyed(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_request request = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);
    struct hsm_public_key a;
    struct hsm_reply reply;

    (void)state;
    a = room_generate(token, "a", HSM_EC_P256);
    request.expect = HSM_EXPECT_HALF; /* its private half had not been seen */
    reply = room_execute(token, &request);
    assert_int_equal(reply.fault.code, FAULT_FAILED_PRECONDITION);
    request.expect = HSM_EXPECT_KEY; /* another key was meant */
    reply = room_execute(token, &request);
    assert_int_equal(reply.fault.code, FAULT_FAILED_PRECONDITION);
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
    destroy_half(token, "a", CKO_PRIVATE_KEY); /* a crash in the middle of destroying it */
    memcpy(request.fingerprint, a.fingerprint, sizeof request.fingerprint);
    (void)room_must(token, &request);
    assert_int_equal(room_state(token, "a"), HSM_ABSENT);
    (void)room_generate(token, "a", HSM_EC_P256);
    destroy_half(token, "a", CKO_PRIVATE_KEY);
    request.expect = HSM_EXPECT_HALF;
    (void)room_must(token, &request);
    assert_int_equal(room_state(token, "a"), HSM_ABSENT);
    hsm_close(token);
}

static void planted_key_is_not_taken_for_ours(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_request request = room_request(HSM_PROVE, "a", HSM_KEY_NONE);
    struct hsm_public_key b;
    struct hsm_reply reply;

    (void)state;
    make_object(token, CKO_PRIVATE_KEY, &request.key);
    assert_int_equal(room_state(token, "a"), HSM_BARE);
    make_object(token, CKO_PUBLIC_KEY, &request.key);
    assert_int_not_equal(room_state(token, "a"), HSM_COMPLETE);
    b = room_generate(token, "b", HSM_EC_P256);
    request = room_request(HSM_PROVE, "b", HSM_KEY_NONE);
    make_object(token, CKO_PRIVATE_KEY, &request.key);
    assert_int_equal(room_state(token, "b"), HSM_DUPLICATE);
    hsm_close(token);
    token = open_token();
    request = room_signature("b", &b, HSM_SHA256, 0);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_FAILED_PRECONDITION);
    (void)room_generate(token, "c", HSM_EC_P256);
    destroy_half(token, "c", CKO_PRIVATE_KEY);
    request = room_request(HSM_PROVE, "c", HSM_KEY_NONE);
    make_object(token, CKO_PRIVATE_KEY, &request.key);
    reply = room_must(token, &request);
    assert_int_equal(reply.state, HSM_UNFIT);
    assert_string_equal(reply.why, "CKA_SENSITIVE is not true");
    hsm_close(token);
}

static void others_keys_are_counted_and_never_touched(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_key_name theirs = {.label = "JWT-Signer-A", .id = {1, 2}, .id_length = 2};
    struct hsm_key_name none = {.label = "", .id_length = 0};
    struct hsm_request request = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);
    struct told told;

    (void)state;
    make_object(token, CKO_PRIVATE_KEY, &theirs);
    make_object(token, CKO_PUBLIC_KEY, &theirs);
    make_object(token, CKO_PRIVATE_KEY, &none);
    (void)room_generate(token, "a", HSM_EC_P256);
    (void)room_generate(token, "b", HSM_EC_P256);
    theirs = room_request(HSM_DESTROY, "b", HSM_KEY_NONE).key;
    theirs.label[2] = '2'; /* of a later format, and of an id of ours */
    make_object(token, CKO_PRIVATE_KEY, &theirs);
    told = scan_token(token);
    assert_string_equal(told.words, "a=complete b=complete ");
    assert_int_equal(told.reply.items, 2);
    assert_int_equal(told.reply.foreign, 3);
    assert_int_equal(told.reply.nameless, 1);
    (void)room_must(token, &request);
    request = room_request(HSM_DESTROY, "b", HSM_KEY_NONE);
    request.key.id_length = 0;
    (void)room_must(token, &request);
    told = scan_token(token);
    assert_string_equal(told.words, "");
    assert_int_equal(told.reply.foreign, 3);
    assert_int_equal(told.reply.nameless, 1);
    hsm_close(token);
}

/* A PROVE after a SCAN does not search, but believes only what it sees. */
static void pairs_seen_by_a_scan_are_proven_from_what_is_there_now(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_request request = room_request(HSM_PROVE, "c", HSM_KEY_NONE);

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    (void)room_generate(token, "b", HSM_EC_P256);
    (void)room_generate(token, "c", HSM_EC_P256);
    (void)scan_token(token);
    assert_int_equal(token->hints.count, 3);
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
    assert_int_equal(token->hints.count, 2);
    destroy_half(token, "b", CKO_PRIVATE_KEY);
    assert_int_equal(room_state(token, "b"), HSM_HALF);
    destroy_half(token, "c", CKO_PUBLIC_KEY);
    destroy_half(token, "c", CKO_PRIVATE_KEY);
    assert_int_equal(room_state(token, "c"), HSM_ABSENT);
    (void)scan_token(token);
    assert_int_equal(token->hints.count, 1);
    make_object(token, CKO_PRIVATE_KEY, &request.key);
    assert_int_equal(room_state(token, "c"), HSM_BARE);
    make_object(token, CKO_PRIVATE_KEY, &request.key);
    assert_string_equal(scan_token(token).words, "a=complete b=half c=duplicate ");
    hsm_close(token);
}

static void same_label_with_another_id_is_another_key(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_public_key a = room_generate(token, "a", HSM_EC_P256);
    struct hsm_request request = room_request(HSM_GENERATE, "a", HSM_EC_P256);
    struct hsm_request wanted = room_signature("a", &a, HSM_SHA256, 0);

    (void)state;
    request.key.id[request.key.id_length - 1] = 0;
    (void)room_make(token, &request);
    assert_string_equal(scan_token(token).words, "a=complete a=complete ");
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
    request.op = HSM_PROVE;
    request.key.id_length = 0;
    assert_int_equal(room_must(token, &request).state, HSM_DUPLICATE);
    request = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);
    request.key.id[request.key.id_length - 1] = 0;
    (void)room_must(token, &request);
    (void)sign(token, &wanted, &a);
    hsm_close(token);
}

static void longest_label_is_kept_whole(void **state)
{
    struct hsm_token *token = open_token();
    struct hsm_request request = room_request(HSM_GENERATE, "a", HSM_EC_P256);

    (void)state;
    memset(request.key.label + 20, 'x', room_label_max() - 20);
    assert_int_equal(room_make(token, &request).state, HSM_COMPLETE);
    request.op = HSM_PROVE;
    assert_int_equal(room_must(token, &request).state, HSM_COMPLETE);
    assert_int_equal(scan_token(token).reply.items, 1);
    request.op = HSM_DESTROY;
    assert_int_equal(room_must(token, &request).state, HSM_ABSENT);
    hsm_close(token);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, room_setup, room_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_ec_key_signs_every_hash),
        TEST(every_rsa_key_signs_every_hash_and_scheme),
        TEST(key_is_the_same_after_a_restart),
        TEST(key_is_made_as_it_must_be),
        TEST(signing_refuses_a_key_that_is_not_the_one_asked_for),
        TEST(many_threads_sign_at_once),
        TEST(destroyed_key_is_gone_for_good),
        TEST(half_keys_are_seen_and_can_be_destroyed),
        TEST(only_what_is_expected_is_destroyed),
        TEST(planted_key_is_not_taken_for_ours),
        TEST(others_keys_are_counted_and_never_touched),
        TEST(pairs_seen_by_a_scan_are_proven_from_what_is_there_now),
        TEST(same_label_with_another_id_is_another_key),
        TEST(longest_label_is_kept_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
