/* Keys that may or may not have been made, are not what they should be, or will not go. */
#include "tests/support/hsm_bent.h"

#include <stdlib.h>
#include <string.h>

#include "hsm/wire/pubkey.h"

/* ---- generating ---- */

static CK_RV generates_and_denies(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                                  CK_ATTRIBUTE_PTR public_half, CK_ULONG public_count,
                                  CK_ATTRIBUTE_PTR private_half, CK_ULONG private_count,
                                  CK_OBJECT_HANDLE_PTR public_key, CK_OBJECT_HANDLE_PTR private_key)
{
    CK_RV rv = real->C_GenerateKeyPair(session, mechanism, public_half, public_count, private_half,
                                       private_count, public_key, private_key);

    return fails_now() ? plan.with : rv;
}

static void generation_that_may_have_worked_is_a_doubt_and_never_repeated(void **state)
{
    static const CK_RV codes[] = {CKR_DEVICE_ERROR,   CKR_GENERAL_ERROR,  CKR_FUNCTION_FAILED,
                                  CKR_SESSION_CLOSED, CKR_DEVICE_REMOVED, 0x80000001};
    static const char *const names[] = {"a", "b", "c", "d", "e", "f"};

    (void)state;
    bent.C_GenerateKeyPair = generates_and_denies;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        struct hsm_request request = room_request(HSM_GENERATE, names[i], HSM_EC_P256);

        fail_next(1, codes[i]);
        assert_int_equal(room_execute(token, &request).fault.code, FAULT_ABORTED);
        assert_int_equal(plan.calls, 1);
        assert_int_equal(room_state(token, names[i]), HSM_COMPLETE); /* PROVE settles it */
    }
}

/* The handles of "a", which the next key is to get. */
static struct object_pair handles_of_a;

static void find_a(void)
{
    struct hsm_request request = room_request(HSM_PROVE, "a", HSM_KEY_NONE);
    struct object_halves found = {.private_keys.count = 0};
    struct session session;
    struct fault fault;

    assert_int_equal(session_borrow(&token->pool, &session, &fault), 0);
    assert_int_equal(object_find(&session, &request.key, &found, &fault), 0);
    session_return(&token->pool, &session);
    handles_of_a.private_key = found.private_keys.handles[0];
    handles_of_a.public_key = found.public_keys.handles[0];
}

static CK_RV gives_the_handles_of_a(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                                    CK_ATTRIBUTE_PTR public_half, CK_ULONG public_count,
                                    CK_ATTRIBUTE_PTR private_half, CK_ULONG private_count,
                                    CK_OBJECT_HANDLE_PTR public_key,
                                    CK_OBJECT_HANDLE_PTR private_key)
{
    CK_RV rv = real->C_GenerateKeyPair(session, mechanism, public_half, public_count, private_half,
                                       private_count, public_key, private_key);

    *public_key = handles_of_a.public_key;
    *private_key = handles_of_a.private_key;
    return rv;
}

/* tpm2-pkcs11 does so, once the first of its objects was destroyed. */
static void handle_that_two_keys_share_costs_neither_its_life(void **state)
{
    struct hsm_request request = room_request(HSM_GENERATE, "b", HSM_EC_P256);
    struct hsm_reply reply;

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    find_a();
    bent.C_GenerateKeyPair = gives_the_handles_of_a;
    reply = room_execute(token, &request);
    assert_int_equal(reply.fault.code, FAULT_ABORTED);
    assert_non_null(strstr(reply.fault.message, "the handle of another key"));
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
    assert_int_equal(room_state(token, "b"), HSM_COMPLETE);
}

static CK_RV refuses_to_generate(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                                 CK_ATTRIBUTE_PTR public_half, CK_ULONG public_count,
                                 CK_ATTRIBUTE_PTR private_half, CK_ULONG private_count,
                                 CK_OBJECT_HANDLE_PTR public_key, CK_OBJECT_HANDLE_PTR private_key)
{
    return fails_now()
               ? plan.with
               : real->C_GenerateKeyPair(session, mechanism, public_half, public_count,
                                         private_half, private_count, public_key, private_key);
}

static void generation_that_was_not_begun_is_mended_and_done(void **state)
{
    static const CK_RV codes[] = {CKR_USER_NOT_LOGGED_IN, CKR_SESSION_HANDLE_INVALID,
                                  CKR_OPERATION_ACTIVE};
    static const char *const names[] = {"a", "b", "c"};

    (void)state;
    bent.C_GenerateKeyPair = refuses_to_generate;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        struct hsm_request request = room_request(HSM_GENERATE, names[i], HSM_EC_P256);

        fail_next(1, codes[i]);
        assert_int_equal(room_must(token, &request).state, HSM_COMPLETE);
        assert_int_equal(plan.calls, 2);
    }
}

static CK_RV destroys_in_word_only(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    (void)session;
    (void)object;
    return CKR_OK;
}

static void full_token_keeps_no_half(void **state)
{
    struct hsm_request request = room_request(HSM_GENERATE, "a", HSM_EC_P256);

    (void)state;
    bent.C_GenerateKeyPair = generates_and_denies;
    fail_next(1, CKR_DEVICE_MEMORY);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_RESOURCE_EXHAUSTED);
    assert_int_equal(room_state(token, "a"), HSM_ABSENT);
    bent.C_DestroyObject = destroys_in_word_only;
    fail_next(1, CKR_DEVICE_MEMORY);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_ABORTED);
}

static CK_RV no_search(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    (void)session;
    (void)template;
    (void)count;
    return CKR_DEVICE_ERROR;
}

static void full_token_that_cannot_be_looked_at_is_a_doubt(void **state)
{
    struct hsm_request request = room_request(HSM_GENERATE, "a", HSM_EC_P256);

    (void)state;
    bent.C_GenerateKeyPair = generates_and_denies;
    bent.C_FindObjectsInit = no_search;
    fail_next(1, CKR_DEVICE_MEMORY);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_ABORTED);
}

static void key_that_cannot_be_proven_yet_is_a_doubt(void **state)
{
    struct hsm_request request = room_request(HSM_GENERATE, "a", HSM_EC_P256);

    (void)state;
    bent.C_Sign = bad_sign;
    fail_next(1, CKR_DEVICE_ERROR);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_ABORTED);
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
}

static bool is_in(const CK_ATTRIBUTE *template, CK_ULONG count, CK_ATTRIBUTE_TYPE type)
{
    for (CK_ULONG i = 0; i < count; i++)
        if (template[i].type == type)
            return true;
    return false;
}

static CK_RV picky_generate(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                            CK_ATTRIBUTE_PTR public_half, CK_ULONG public_count,
                            CK_ATTRIBUTE_PTR private_half, CK_ULONG private_count,
                            CK_OBJECT_HANDLE_PTR public_key, CK_OBJECT_HANDLE_PTR private_key)
{
    plan.calls++;
    assert_true(is_in(private_half, private_count, CKA_SENSITIVE));
    assert_true(is_in(private_half, private_count, CKA_EXTRACTABLE));
    if (private_count > plan.most)
        return CKR_TEMPLATE_INCONSISTENT;
    return real->C_GenerateKeyPair(session, mechanism, public_half, public_count, private_half,
                                   private_count, public_key, private_key);
}

static void token_that_takes_few_attributes_is_asked_for_fewer(void **state)
{
    struct hsm_request request = room_request(HSM_GENERATE, "c", HSM_EC_P256);

    (void)state;
    bent.C_GenerateKeyPair = picky_generate;
    plan.most = 7; /* label, id, and the five that are never left out */
    (void)room_generate(token, "a", HSM_EC_P256);
    assert_int_equal(plan.calls, 3);
    (void)room_generate(token, "b", HSM_EC_P256);
    assert_int_equal(plan.calls, 4); /* it is remembered what the token takes */
    plan.most = 6;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_FAILED_PRECONDITION);
    assert_int_equal(room_state(token, "c"), HSM_ABSENT);
}

static CK_RV generate_short_label(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                                  CK_ATTRIBUTE_PTR public_half, CK_ULONG public_count,
                                  CK_ATTRIBUTE_PTR private_half, CK_ULONG private_count,
                                  CK_OBJECT_HANDLE_PTR public_key, CK_OBJECT_HANDLE_PTR private_key)
{
    CK_RV rv;

    assert_int_equal(private_half[0].type, CKA_LABEL);
    private_half[0].ulValueLen -= 1;
    rv = real->C_GenerateKeyPair(session, mechanism, public_half, public_count, private_half,
                                 private_count, public_key, private_key);
    private_half[0].ulValueLen += 1;
    return rv;
}

static void label_that_was_cut_short_is_noticed_and_the_key_destroyed(void **state)
{
    struct hsm_request request = room_request(HSM_GENERATE, "ab", HSM_EC_P256);

    (void)state;
    bent.C_GenerateKeyPair = generate_short_label;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_FAILED_PRECONDITION);
    assert_int_equal(room_state(token, "ab"), HSM_ABSENT);
    request.key.label[strlen(request.key.label) - 1] = '\0';
    request.op = HSM_PROVE;
    assert_int_equal(room_must(token, &request).state, HSM_ABSENT);
}

static CK_RV names_unreadable(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                              CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    return template->type == CKA_LABEL && plan.calls++ == (int)plan.most
               ? plan.with
               : real->C_GetAttributeValue(session, object, template, count);
}

/* The private key's is read first, then the public key's. */
static void name_that_cannot_be_read_is_no_reason_to_destroy(void **state)
{
    static const CK_RV codes[] = {CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_VALUE_INVALID,
                                  CKR_ATTRIBUTE_SENSITIVE};
    static const char *const names[] = {"a", "b", "c", "d", "e", "f"};

    (void)state;
    bent.C_GetAttributeValue = names_unreadable;
    for (size_t i = 0; i < 6; i++) {
        struct hsm_request request = room_request(HSM_GENERATE, names[i], HSM_EC_P256);

        fail_next(0, codes[i / 2]);
        plan.most = i % 2;
        assert_int_equal(room_execute(token, &request).fault.code, FAULT_ABORTED);
        assert_int_equal(room_state(token, names[i]), HSM_COMPLETE);
    }
}

static CK_RV names_unset(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                         CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    if (template->type != CKA_LABEL || plan.calls++ != 0)
        return real->C_GetAttributeValue(session, object, template, count);
    template->ulValueLen = 0;
    return CKR_OK;
}

static void name_that_is_unset_for_a_moment_costs_no_key(void **state)
{
    struct hsm_request request = room_request(HSM_GENERATE, "a", HSM_EC_P256);

    (void)state;
    bent.C_GetAttributeValue = names_unset;
    fail_next(0, CKR_OK);
    assert_int_equal(room_must(token, &request).state, HSM_COMPLETE);
    assert_true(plan.calls > 1);
}

/* ---- searches that go wrong ---- */

static CK_RV finds_everything(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR attributes,
                              CK_ULONG count)
{
    (void)attributes;
    (void)count;
    return real->C_FindObjectsInit(session, NULL, 0);
}

static void token_that_finds_too_much_costs_no_other_key(void **state)
{
    struct hsm_request destroy = room_request(HSM_DESTROY, "b", HSM_KEY_NONE);

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    (void)room_generate(token, "b", HSM_EC_P256);
    bent.C_FindObjectsInit = finds_everything;
    (void)room_must(token, &destroy);
    assert_int_equal(room_state(token, "b"), HSM_ABSENT);
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
}

static CK_OBJECT_HANDLE broken;

static CK_RV finds_no_name(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    return count > 0 ? CKR_GENERAL_ERROR : real->C_FindObjectsInit(session, template, count);
}

static CK_RV cannot_read_it(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                            CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    if (broken == CK_INVALID_HANDLE)
        broken = object;
    return object == broken ? CKR_GENERAL_ERROR
                            : real->C_GetAttributeValue(session, object, template, count);
}

static void object_that_breaks_each_search_by_name_costs_no_other_key(void **state)
{
    struct hsm_request request = room_request(HSM_PROVE, "c", HSM_KEY_NONE);

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    (void)room_generate(token, "b", HSM_EC_P256);
    bent.C_FindObjectsInit = finds_no_name;
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
    assert_int_equal(room_state(token, "c"), HSM_ABSENT);
    broken = CK_INVALID_HANDLE;
    bent.C_GetAttributeValue = cannot_read_it;
    request.key = room_request(HSM_PROVE, "a", HSM_KEY_NONE).key;
    if (room_execute(token, &request).fault.code == FAULT_NONE)
        request.key = room_request(HSM_PROVE, "b", HSM_KEY_NONE).key;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_UNAVAILABLE);
    request.key = room_request(HSM_PROVE, "c", HSM_KEY_NONE).key;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_UNAVAILABLE);
}

/* ---- attributes and permissions ---- */

static struct {
    CK_ATTRIBUTE_TYPE type;
    bool hidden;
    CK_BBOOL value;
} lie;

static CK_RV lies_about_one(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                            CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    if (count != 1 || template->type != lie.type)
        return real->C_GetAttributeValue(session, object, template, count);
    template->ulValueLen = lie.hidden ? CK_UNAVAILABLE_INFORMATION : sizeof lie.value;
    if (!lie.hidden)
        memcpy(template->pValue, &lie.value, sizeof lie.value);
    return lie.hidden ? CKR_ATTRIBUTE_TYPE_INVALID : CKR_OK;
}

static void only_a_history_that_cannot_be_read_is_a_matter_of_leniency(void **state)
{
    static const struct {
        CK_ATTRIBUTE_TYPE type;
        bool hidden;
        CK_BBOOL value;
        enum hsm_state strict;
        enum hsm_state lenient;
    } rows[] = {
        {CKA_SENSITIVE, false, CK_FALSE, HSM_UNFIT, HSM_UNFIT},
        {CKA_SENSITIVE, true, CK_FALSE, HSM_UNFIT, HSM_UNFIT},
        {CKA_EXTRACTABLE, false, CK_TRUE, HSM_UNFIT, HSM_UNFIT},
        {CKA_TOKEN, false, CK_FALSE, HSM_UNFIT, HSM_UNFIT},
        {CKA_PRIVATE, false, CK_FALSE, HSM_UNFIT, HSM_UNFIT},
        {CKA_SIGN, false, CK_FALSE, HSM_UNFIT, HSM_UNFIT},
        {CKA_ALWAYS_SENSITIVE, false, CK_FALSE, HSM_UNFIT, HSM_UNFIT},
        {CKA_ALWAYS_SENSITIVE, true, CK_FALSE, HSM_UNFIT, HSM_COMPLETE},
        {CKA_NEVER_EXTRACTABLE, true, CK_FALSE, HSM_UNFIT, HSM_COMPLETE},
        {CKA_LOCAL, true, CK_FALSE, HSM_UNFIT, HSM_COMPLETE},
        {CKA_LOCAL, false, CK_FALSE, HSM_UNFIT, HSM_COMPLETE},
        {CKA_ALWAYS_AUTHENTICATE, false, CK_TRUE, HSM_UNFIT, HSM_UNFIT},
        {CKA_ALWAYS_AUTHENTICATE, true, CK_TRUE, HSM_COMPLETE, HSM_COMPLETE},
        {CKA_EC_POINT, true, CK_FALSE, HSM_UNFIT, HSM_UNFIT},
    };

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    bent.C_GetAttributeValue = lies_about_one;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        lie.type = rows[i].type;
        lie.hidden = rows[i].hidden;
        lie.value = rows[i].value;
        token->lenient = false;
        assert_int_equal(room_state(token, "a"), rows[i].strict);
        token->lenient = true;
        assert_int_equal(room_state(token, "a"), rows[i].lenient);
    }
}

static CK_RV bad_destroy(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    (void)session;
    (void)object;
    plan.calls++;
    return plan.with;
}

static void role_that_may_not_destroy_is_told_so(void **state)
{
    struct hsm_request request = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);

    (void)state;
    (void)room_generate(token, "a", HSM_EC_P256);
    bent.C_DestroyObject = bad_destroy;
    plan.with = CKR_ACTION_PROHIBITED;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_PERMISSION_DENIED);
    assert_int_equal(plan.calls, 1);
    plan.with = CKR_OK; /* says it did, and did not */
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_UNAVAILABLE);
    bent.C_DestroyObject = real->C_DestroyObject;
    assert_int_equal(room_must(token, &request).state, HSM_ABSENT);
}

static void must_verify(const struct hsm_public_key *key, const struct hsm_request *request)
{
    struct hsm_reply reply = room_must(token, request);
    struct fault fault;

    if (pubkey_verify(key, request, reply.signature, reply.signature_length, &fault) != 0)
        fail_msg("%s", fault.message);
}

static void pss_that_a_token_refuses_is_done_in_another_way(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_RSA_2048);
    struct hsm_request request = room_signature("a", &a, HSM_SHA256, 0);

    (void)state;
    bent.C_SignInit = bad_sign_init;
    request.scheme = HSM_PSS;
    request.salt_length = HSM_SALT_MAX; /* with a shorter salt */
    fail_next(1, CKR_MECHANISM_PARAM_INVALID);
    must_verify(&a, &request);
    assert_int_equal(plan.calls, 2);
    request.salt_length = 100; /* padded here */
    fail_next(1, CKR_MECHANISM_PARAM_INVALID);
    must_verify(&a, &request);
    fail_next(2, CKR_MECHANISM_INVALID); /* not at all */
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_INVALID_ARGUMENT);
    assert_int_equal(plan.calls, 2);
}

/* As in FIPS modes, which seldom have raw RSA either. */
static CK_RV takes_short_salts_alone(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                                     CK_OBJECT_HANDLE key)
{
    const CK_RSA_PKCS_PSS_PARAMS *pss = mechanism->pParameter;

    if (mechanism->mechanism == CKM_RSA_X_509)
        return CKR_MECHANISM_INVALID;
    return pss && pss->sLen > 32 ? CKR_MECHANISM_PARAM_INVALID
                                 : real->C_SignInit(session, mechanism, key);
}

static void longest_salt_is_as_long_as_the_token_allows(void **state)
{
    struct hsm_public_key a = room_generate(token, "a", HSM_RSA_2048);
    struct hsm_request request = room_signature("a", &a, HSM_SHA256, 0);

    (void)state;
    bent.C_SignInit = takes_short_salts_alone;
    request.scheme = HSM_PSS;
    request.salt_length = HSM_SALT_MAX;
    must_verify(&a, &request);
}

/* What goes wrong in making a key is told best where nothing else does. */
static int setup_ready_to_make(void **state)
{
    if (softhsm_is("full") || softhsm_is("lag") || softhsm_is("cloudhsm"))
        (void)setenv("HSM_PROFILE", "", 1);
    return setup(state);
}

#define MAKING(test) cmocka_unit_test_setup_teardown(test, setup_ready_to_make, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(only_a_history_that_cannot_be_read_is_a_matter_of_leniency),
        TEST(role_that_may_not_destroy_is_told_so),
        TEST(pss_that_a_token_refuses_is_done_in_another_way),
        TEST(longest_salt_is_as_long_as_the_token_allows),
        MAKING(generation_that_may_have_worked_is_a_doubt_and_never_repeated),
        MAKING(handle_that_two_keys_share_costs_neither_its_life),
        MAKING(generation_that_was_not_begun_is_mended_and_done),
        MAKING(full_token_keeps_no_half),
        MAKING(full_token_that_cannot_be_looked_at_is_a_doubt),
        MAKING(key_that_cannot_be_proven_yet_is_a_doubt),
        MAKING(token_that_takes_few_attributes_is_asked_for_fewer),
        MAKING(label_that_was_cut_short_is_noticed_and_the_key_destroyed),
        MAKING(name_that_cannot_be_read_is_no_reason_to_destroy),
        MAKING(name_that_is_unset_for_a_moment_costs_no_key),
        TEST(token_that_finds_too_much_costs_no_other_key),
        MAKING(object_that_breaks_each_search_by_name_costs_no_other_key),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
