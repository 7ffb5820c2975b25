/* A module that lies. Its code runs in the worker, where it can do what it likes; but what
 * it answers must not be followed beyond our memory, and ends in a fault. SoftHSM's own list
 * of functions is bent for this, the one that hsm_open will get. */
#include "tests/support/hsm_room.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST *list;
static CK_FUNCTION_LIST honest;

static int setup(void **state)
{
    CK_RV (*get_list)(CK_FUNCTION_LIST **);
    void *library = dlopen(softhsm_library(), RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "C_GetFunctionList") : NULL;

    (void)state;
    softhsm_must(symbol != NULL, softhsm_library());
    memcpy(&get_list, &symbol, sizeof get_list);
    softhsm_must(get_list(&list) == CKR_OK, "C_GetFunctionList");
    honest = *list;
    softhsm_make(&softhsm);
    softhsm_token("spire");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    *list = honest;
    softhsm_remove(&softhsm);
    return 0;
}

static int opening(struct hsm_token **token, struct fault *fault)
{
    struct hsm_settings settings = room_good();
    struct hsm_token_info info;

    return hsm_open(&settings, token, &info, fault);
}

static void refused(const char *words)
{
    struct hsm_token *token = NULL;
    struct fault fault = {.code = FAULT_NONE};

    assert_int_equal(opening(&token, &fault), -1);
    if (!strstr(fault.message, words))
        fail_msg("code %d, '%s'", (int)fault.code, fault.message);
}

/* ---- the list of functions ---- */

#define FUNCTION(name)                          \
    {                                           \
#name, offsetof(CK_FUNCTION_LIST, name) \
    }

static const struct function {
    const char *name;
    size_t offset;
} needed[] = {
    FUNCTION(C_Initialize),
    FUNCTION(C_Finalize),
    FUNCTION(C_GetSlotList),
    FUNCTION(C_GetTokenInfo),
    FUNCTION(C_OpenSession),
    FUNCTION(C_CloseSession),
    FUNCTION(C_Login),
    FUNCTION(C_FindObjectsInit),
    FUNCTION(C_FindObjects),
    FUNCTION(C_FindObjectsFinal),
    FUNCTION(C_GetAttributeValue),
    FUNCTION(C_DestroyObject),
    FUNCTION(C_GenerateKeyPair),
    FUNCTION(C_SignInit),
    FUNCTION(C_Sign),
};
enum { NEEDED = sizeof needed / sizeof needed[0] };

static void function_that_is_missing_is_noticed_before_it_is_called(void **state)
{
    (void)state;
    for (size_t i = 0; i < NEEDED; i++) {
        memset((uint8_t *)list + needed[i].offset, 0, sizeof list->C_Sign);
        refused("lacks functions of PKCS#11");
        *list = honest;
    }
}

/* The list without all that we have no need of: what merely tells of something, too. */
static void function_that_is_missing_elsewhere_is_not_missed(void **state)
{
    CK_FUNCTION_LIST bare = {.version = honest.version};
    struct hsm_token *token = NULL;
    struct hsm_public_key key;
    struct hsm_request request;
    struct fault fault;

    (void)state;
    for (size_t i = 0; i < NEEDED; i++)
        memcpy((uint8_t *)&bare + needed[i].offset, (const uint8_t *)&honest + needed[i].offset,
               sizeof honest.C_Sign);
    *list = bare;
    list->C_GetFunctionList = honest.C_GetFunctionList; /* p11-kit's */
    assert_int_equal(opening(&token, &fault), 0);
    key = room_generate(token, "a", HSM_EC_P256);
    request = room_signature("a", &key, HSM_SHA256, 1);
    (void)room_must(token, &request);
    request = room_request(HSM_PING, "", HSM_KEY_NONE);
    (void)room_must(token, &request);
    request = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);
    (void)room_must(token, &request);
    hsm_close(token);
}

/* The list of PKCS#11 3.0 is that of 2.40 with more behind it, and has its number. */
static void list_of_another_kind_is_not_read(void **state)
{
    static const CK_VERSION known[] = {{2, 1}, {2, 20}, {2, 40}, {3, 0}, {3, 1}};
    static const CK_VERSION strange[] = {{0, 0}, {1, 0}, {4, 0}, {255, 255}};
    struct hsm_token *token = NULL;
    struct fault fault;

    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        list->version = known[i];
        assert_int_equal(opening(&token, &fault), 0);
        hsm_close(token);
    }
    for (size_t i = 0; i < sizeof strange / sizeof strange[0]; i++) {
        list->version = strange[i];
        refused("lacks functions of PKCS#11");
    }
}

/* ---- what the functions answer ---- */

static const CK_ULONG huge = (CK_ULONG)-2; /* -1 is PKCS#11's "cannot say" */

static CK_RV slots_without_end(CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count)
{
    CK_RV rv = honest.C_GetSlotList(present, slots, count);

    *count = huge;
    return rv;
}

static CK_RV token_of_noise(CK_SLOT_ID slot, CK_TOKEN_INFO *info)
{
    CK_RV rv = honest.C_GetTokenInfo(slot, info);

    memset(info->label, 0x1b, sizeof info->label);
    memset(info->serialNumber, 0xff, sizeof info->serialNumber);
    return rv;
}

static CK_RV mechanisms_without_end(CK_SLOT_ID slot, CK_MECHANISM_TYPE *types, CK_ULONG *count)
{
    CK_RV rv = honest.C_GetMechanismList(slot, types, count);

    *count = huge;
    return rv;
}

static CK_RV session_of_no_state(CK_SESSION_HANDLE session, CK_SESSION_INFO *info)
{
    CK_RV rv = honest.C_GetSessionInfo(session, info);

    info->state = huge;
    return rv;
}

static void opening_survives_what_it_is_told(void **state)
{
    struct hsm_token *token = NULL;
    struct fault fault;
    char noise[sizeof((CK_TOKEN_INFO *)0)->label + 1] = "";
    char seen[96];

    (void)state;
    list->C_GetSlotList = slots_without_end;
    assert_int_equal(opening(&token, &fault), 0); /* the real slots are among them */
    hsm_close(token);
    *list = honest;
    list->C_GetTokenInfo = token_of_noise;
    for (size_t i = 0; i < sizeof noise - 1; i++)
        noise[i] = '?'; /* a row of them in the source would be trigraphs */
    (void)snprintf(seen, sizeof seen, "tokens seen: '%s' (serial %.16s, slot", noise, noise);
    refused(seen);
    *list = honest;
    list->C_GetMechanismList = mechanisms_without_end;
    refused("token named 18446744073709551614 mechanisms where 4096 were asked");
}

static unsigned logins;

static CK_RV counted_login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin,
                           CK_ULONG length)
{
    logins++;
    return honest.C_Login(session, user, pin, length);
}

/* "There is no such key" is not believed of a session that nobody is logged in to, by what it
 * says: whether that is so, C_Login tells. */
static void session_of_no_state_is_asked_by_another_login(void **state)
{
    struct hsm_request request = room_request(HSM_PROVE, "a", HSM_KEY_NONE);
    struct hsm_token *token = NULL;
    struct fault fault;

    (void)state;
    assert_int_equal(opening(&token, &fault), 0);
    list->C_GetSessionInfo = session_of_no_state;
    list->C_Login = counted_login;
    logins = 0;
    assert_int_equal(room_must(token, &request).state, HSM_ABSENT);
    assert_true(logins > 0);
    logins = 0;
    assert_int_equal(room_must(token, &request).state, HSM_ABSENT);
    assert_true(logins > 0);
    hsm_close(token);
}

static CK_RV objects_without_end(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects,
                                 CK_ULONG most, CK_ULONG *count)
{
    (void)session;
    for (CK_ULONG i = 0; i < most; i++)
        objects[i] = i;
    *count = most;
    return CKR_OK;
}

static CK_RV objects_beyond_the_room(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects,
                                     CK_ULONG most, CK_ULONG *count)
{
    CK_RV rv = honest.C_FindObjects(session, objects, most, count);

    *count = huge;
    return rv;
}

static CK_RV attributes_beyond_the_room(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                        CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    CK_RV rv = honest.C_GetAttributeValue(session, object, attributes, count);

    for (CK_ULONG i = 0; i < count; i++)
        attributes[i].ulValueLen = huge;
    return rv;
}

static CK_RV attributes_of_noise(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                 CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    (void)session;
    (void)object;
    for (CK_ULONG i = 0; i < count; i++)
        if (attributes[i].pValue)
            memset(attributes[i].pValue, 0xff, attributes[i].ulValueLen);
    return CKR_OK;
}

static CK_RV attributes_that_are_not_written(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                             CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    (void)session;
    (void)object;
    (void)attributes;
    (void)count;
    return CKR_OK;
}

static CK_RV attributes_of_no_length(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                     CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    (void)session;
    (void)object;
    for (CK_ULONG i = 0; i < count; i++)
        attributes[i].ulValueLen = 0;
    return CKR_OK;
}

static CK_RV keys_that_are_not_there(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism,
                                     CK_ATTRIBUTE *public_half, CK_ULONG public_count,
                                     CK_ATTRIBUTE *private_half, CK_ULONG private_count,
                                     CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key)
{
    (void)session;
    (void)mechanism;
    (void)public_half;
    (void)public_count;
    (void)private_half;
    (void)private_count;
    *public_key = huge;
    *private_key = huge;
    return CKR_OK;
}

static CK_RV signature_beyond_the_room(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length,
                                       CK_BYTE *signature, CK_ULONG *signature_length)
{
    CK_RV rv = honest.C_Sign(session, data, length, signature, signature_length);

    *signature_length = huge;
    return rv;
}

static CK_RV signature_of_zeros(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length,
                                CK_BYTE *signature, CK_ULONG *signature_length)
{
    CK_RV rv = honest.C_Sign(session, data, length, signature, signature_length);

    memset(signature, 0, *signature_length);
    return rv;
}

static CK_RV signature_of_another_key(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length,
                                      CK_BYTE *signature, CK_ULONG *signature_length)
{
    CK_RV rv = honest.C_Sign(session, data, length, signature, signature_length);

    signature[*signature_length - 1] ^= 1;
    return rv;
}

static void ignore(void *context, const struct hsm_item *item)
{
    (void)context;
    (void)item;
}

/* Nothing that is made or found by way of a lie may pass for a key. */
static void no_key_comes_of(const char *lie, struct hsm_token *token)
{
    struct hsm_request request = room_request(HSM_GENERATE, "b", HSM_EC_P256);
    struct hsm_reply reply = room_execute(token, &request);

    if (reply.fault.code == FAULT_NONE && reply.state == HSM_COMPLETE)
        fail_msg("%s: a key was made", lie);
    request = room_request(HSM_PROVE, "a", HSM_KEY_NONE);
    reply = room_execute(token, &request);
    if (reply.fault.code == FAULT_NONE && reply.state == HSM_COMPLETE)
        fail_msg("%s: a key was proven", lie);
    request = (struct hsm_request){.op = HSM_SCAN, .prefix = "sp1-"};
    hsm_execute(token, &request, &reply, ignore, NULL);
    request = room_request(HSM_DESTROY, "c", HSM_KEY_NONE);
    (void)room_execute(token, &request);
    request = (struct hsm_request){.op = HSM_PING};
    (void)room_execute(token, &request);
}

#define LIE(function, answer)                          \
    {                                                  \
#answer, offsetof(CK_FUNCTION_LIST, function), \
        {                                              \
            .for_##function = answer                   \
        }                                              \
    }

static void no_lie_makes_a_key_of_nothing(void **state)
{
    static const struct {
        const char *name;
        size_t offset;
        union {
            CK_C_FindObjects for_C_FindObjects;
            CK_C_GetAttributeValue for_C_GetAttributeValue;
            CK_C_GenerateKeyPair for_C_GenerateKeyPair;
            CK_C_Sign for_C_Sign;
        } answer;
    } lies[] = {
        LIE(C_FindObjects, objects_without_end),
        LIE(C_FindObjects, objects_beyond_the_room),
        LIE(C_GetAttributeValue, attributes_beyond_the_room),
        LIE(C_GetAttributeValue, attributes_of_noise),
        LIE(C_GetAttributeValue, attributes_that_are_not_written),
        LIE(C_GetAttributeValue, attributes_of_no_length),
        LIE(C_Sign, signature_beyond_the_room),
        LIE(C_Sign, signature_of_zeros),
        LIE(C_Sign, signature_of_another_key),
    };

    (void)state;
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct hsm_token *token = NULL;
        struct fault fault;

        assert_int_equal(opening(&token, &fault), 0);
        (void)room_generate(token, "a", HSM_EC_P256);
        memcpy((uint8_t *)list + lies[i].offset, &lies[i].answer, sizeof lies[i].answer);
        no_key_comes_of(lies[i].name, token);
        *list = honest;
        assert_int_equal(room_state(token, "a"), HSM_COMPLETE); /* and it was not destroyed */
        hsm_close(token);
        softhsm_remove(&softhsm);
        softhsm_make(&softhsm);
        softhsm_token("spire");
    }
}

static void pair_that_is_not_there_is_a_doubt(void **state)
{
    struct hsm_request request = room_request(HSM_GENERATE, "a", HSM_EC_P256);
    struct hsm_token *token = NULL;
    struct fault fault;

    (void)state;
    assert_int_equal(opening(&token, &fault), 0);
    list->C_GenerateKeyPair = keys_that_are_not_there;
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_ABORTED);
    assert_int_equal(room_state(token, "a"), HSM_ABSENT);
    hsm_close(token);
}

/* In a scan, which asks for three attributes at once, and then for one: which of them is the label
 * in a buffer that holds one too long? */
static CK_ATTRIBUTE *find_label(CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    CK_ATTRIBUTE *label = &attributes[count == 3 ? 1 : 0];

    return label->type == CKA_LABEL && label->pValue && label->ulValueLen > HSM_LABEL_MAX ? label
                                                                                          : NULL;
}

static CK_RV labels_that_fill_the_room(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                       CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    CK_ATTRIBUTE *label = find_label(attributes, count);
    CK_RV rv = honest.C_GetAttributeValue(session, object, attributes, count);

    if (label) {
        memset((char *)label->pValue + label->ulValueLen, 'a',
               HSM_LABEL_MAX + 1 - label->ulValueLen);
        label->ulValueLen = HSM_LABEL_MAX + 1;
    }
    return rv;
}

static CK_RV labels_that_end_and_go_on(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                       CK_ATTRIBUTE *attributes, CK_ULONG count)
{
    CK_RV rv = honest.C_GetAttributeValue(session, object, attributes, count);
    CK_ATTRIBUTE *label = &attributes[1];

    if (count == 3) {
        memcpy((char *)label->pValue + label->ulValueLen, "\0a", 2);
        label->ulValueLen += 2;
    }
    return rv;
}

static void labels_that_we_do_not_make_are_foreign(void **state)
{
    static const CK_C_GetAttributeValue lies[] = {labels_that_fill_the_room,
                                                  labels_that_end_and_go_on};
    struct hsm_request request = {.op = HSM_SCAN, .prefix = "sp1-"};
    struct hsm_token *token = NULL;
    struct fault fault;

    (void)state;
    assert_int_equal(opening(&token, &fault), 0);
    (void)room_generate(token, "a", HSM_EC_P256);
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct hsm_reply reply;

        list->C_GetAttributeValue = lies[i];
        hsm_execute(token, &request, &reply, ignore, NULL);
        assert_int_equal(reply.fault.code, FAULT_NONE);
        assert_int_equal(reply.items, 0);
        assert_int_equal(reply.foreign, 2);
    }
    hsm_close(token);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(function_that_is_missing_is_noticed_before_it_is_called),
        TEST(function_that_is_missing_elsewhere_is_not_missed),
        TEST(list_of_another_kind_is_not_read),
        TEST(opening_survives_what_it_is_told),
        TEST(session_of_no_state_is_asked_by_another_login),
        TEST(no_lie_makes_a_key_of_nothing),
        TEST(pair_that_is_not_there_is_a_doubt),
        TEST(labels_that_we_do_not_make_are_foreign),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
