/* Tokens that say something untrue of themselves, or answer in a form of their own, and do what
 * they are asked all the same: the product tries, and goes by what the operation answers. One row
 * for each habit; the OASIS wiki keeps a list of them ("CommonBugs"). */
#include "tests/support/hsm_room.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <p11-kit/pkcs11.h>

#include "hsm/wire/pubkey.h"

static struct hsm_token *token; /* or NULL */
static struct hsm_token_info info;

static void reopen(const struct hsm_settings *settings)
{
    struct fault fault = {.code = FAULT_NONE};

    hsm_close(token);
    token = NULL;
    if (hsm_open(settings, &token, &info, &fault) != 0)
        fail_msg("hsm_open: %s", fault.message);
    assert_true(info.can_generate[HSM_EC_P256]);
    assert_false(info.write_protected);
}

/* One habit's trouble is not the next one's. */
static int close_room(void **state)
{
    hsm_close(token);
    token = NULL;
    return room_teardown(state);
}

/* ---- a key's life ---- */

static void count_whole(void *context, const struct hsm_item *item)
{
    unsigned *whole = context;

    *whole += item->state == HSM_COMPLETE;
}

static void assert_scanned(unsigned expected)
{
    struct hsm_request request = {.op = HSM_SCAN, .prefix = "sp1-"};
    struct hsm_reply reply;
    unsigned whole = 0;

    hsm_execute(token, &request, &reply, count_whole, &whole);
    if (reply.fault.code != FAULT_NONE)
        fail_msg("scan: %s", reply.fault.message);
    assert_int_equal(whole, expected);
}

static void assert_signs(const struct hsm_public_key *key)
{
    struct hsm_request request = room_signature("a", key, HSM_SHA256, 1);
    struct hsm_reply reply = room_must(token, &request);

    assert_int_equal(
        pubkey_verify(key, &request, reply.signature, reply.signature_length, &reply.fault), 0);
}

static void live(const struct hsm_settings *settings)
{
    struct hsm_request ping = room_request(HSM_PING, "", HSM_KEY_NONE);
    struct hsm_request destroy = room_request(HSM_DESTROY, "a", HSM_KEY_NONE);
    struct hsm_public_key key;

    reopen(settings);
    assert_int_equal(room_state(token, "a"), HSM_ABSENT);
    key = room_generate(token, "a", HSM_EC_P256);
    assert_scanned(1);
    assert_signs(&key);
    (void)room_must(token, &ping);
    reopen(settings);
    assert_scanned(1);
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
    assert_signs(&key);
    destroy.expect = HSM_EXPECT_KEY;
    memcpy(destroy.fingerprint, key.fingerprint, sizeof destroy.fingerprint);
    assert_int_equal(room_must(token, &destroy).state, HSM_ABSENT);
    assert_scanned(0);
}

/* ---- the habits ---- */

static const struct habit {
    const char *script;
    const char *what;
} habits[] = {
    {"profile token-flags-off 0x400", "is said not to be initialized"},
    {"profile token-flags-off 0x4", "is said to need no login"},
    {"profile token-flags-off 0x8", "is said to have no user PIN yet"},
    {"profile token-flags-off 0x1", "is said to have no random numbers"},
    {"profile token-flags-off 0xffffffff", "says nothing in its flags"},
    {"profile token-flags 0x2", "is said to be write-protected"},
    {"profile token-flags 0x100", "is said to have a keypad for its PIN"},
    {"profile token-flags 0x10000", "is said to have few tries left"},
    {"profile token-flags 0x80000", "is said to want another PIN"},
    {"profile unpadded", "has texts that end with a NUL"},
    {"profile not-present", "is in a slot that is said to be empty"},
    {"profile plain-start", "has a library that is started with NULL alone"},
    {"profile blank-mechanisms", "tells zeros of its mechanisms"},
    {"profile stateless", "says of no session that it is logged in"},
    {"profile own-login", "counts a login for its session alone"},
    {"profile own-login\nC_GetSessionInfo before CKR_FUNCTION_NOT_SUPPORTED",
     "counts a login for its session alone and does not tell of sessions"},
    {"profile own-login\nC_GetSessionInfo before CKR_GENERAL_ERROR",
     "counts a login for its session alone and fails when asked about it"},
    {"profile exact", "gives attributes to a buffer of their size alone"},
    {"profile one-attribute", "gives attributes one at a time"},
    {"profile exact\nprofile one-attribute", "gives attributes one at a time and size"},
    {"profile no-lengths", "tells an attribute's length without a buffer alone"},
    {"profile narrow", "has numbers and truth in four bytes"},
    {"profile no-lengths\nprofile narrow", "has numbers in four bytes and does not say so"},
    {"profile one-object", "finds one object at a time"},
    {"profile no-search", "lists its keys and finds none by its name"},
    {"profile no-search\nprofile crowd 40", "finds none by its name among others' objects"},
    {"profile from-zero", "counts sessions and objects from zero"},
    {"profile rawpoint\nprofile one-object", "has points without DER, one at a time"},
    {"C_GetMechanismInfo before CKR_FUNCTION_NOT_SUPPORTED", "does not tell of mechanisms"},
    {"C_GetMechanismInfo before CKR_MECHANISM_INVALID", "knows none of its mechanisms"},
    {"C_GetMechanismList before CKR_FUNCTION_NOT_SUPPORTED", "does not list mechanisms"},
    {"C_GetSessionInfo before CKR_FUNCTION_NOT_SUPPORTED", "does not tell of sessions"},
    {"C_GetSessionInfo before CKR_GENERAL_ERROR", "fails when asked about a session"},
    {"C_GetSlotInfo before CKR_FUNCTION_NOT_SUPPORTED", "does not tell of slots"},
    {"C_GetInfo before CKR_FUNCTION_NOT_SUPPORTED", "has a library that tells nothing of itself"},
    {"C_GenerateRandom before CKR_FUNCTION_NOT_SUPPORTED", "has no random numbers"},
    {"C_GenerateRandom before CKR_FUNCTION_FAILED", "fails to make random numbers"},
    {"C_Logout before CKR_FUNCTION_NOT_SUPPORTED", "cannot log out"},
};

enum { HABITS = sizeof habits / sizeof habits[0] };

static void a_token_that(void **state)
{
    const struct habit *habit = *state;
    const struct hsm_settings settings = room_faulty(habit->script);

    live(&settings);
}

/* ---- what is not so, and what is ---- */

static CK_FUNCTION_LIST *list; /* SoftHSM's own, as hsm_open will get it */
static CK_FUNCTION_LIST honest;

static int open_list(void **state)
{
    CK_RV (*get_list)(CK_FUNCTION_LIST **);
    void *library = dlopen(softhsm_library(), RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "C_GetFunctionList") : NULL;

    softhsm_must(symbol != NULL, softhsm_library());
    memcpy(&get_list, &symbol, sizeof get_list);
    softhsm_must(get_list(&list) == CKR_OK, "C_GetFunctionList");
    honest = *list;
    return room_setup(state);
}

static int close_list(void **state)
{
    *list = honest;
    return close_room(state);
}

static CK_FLAGS added;
static CK_FLAGS removed;

static CK_RV token_of_flags(CK_SLOT_ID slot, CK_TOKEN_INFO *about)
{
    CK_RV rv = honest.C_GetTokenInfo(slot, about);

    about->flags = (about->flags | added) & ~removed;
    return rv;
}

static void say(CK_FLAGS more, CK_FLAGS less)
{
    added = more;
    removed = less;
    list->C_GetTokenInfo = token_of_flags;
}

/* Somebody types the right PIN there. */
static CK_RV login_at_keypad(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin,
                             CK_ULONG length)
{
    static CK_UTF8CHAR typed[] = SOFTHSM_PIN;

    if (pin || length > 0)
        return CKR_ARGUMENTS_BAD;
    return honest.C_Login(session, user, typed, sizeof typed - 1);
}

static void without_a_pin_a_keypad_is_asked_for_it(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    list->C_Login = login_at_keypad;
    say(CKF_PROTECTED_AUTHENTICATION_PATH, 0);
    (void)room_refused(&settings, FAULT_INTERNAL,
                       "it has a keypad for its PIN: then configure no PIN");
    settings.pin_kind = HSM_PIN_NONE;
    settings.pin_text[0] = '\0';
    live(&settings);
    say(0, CKF_PROTECTED_AUTHENTICATION_PATH);
    hsm_close(token);
    token = NULL;
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "none is configured");
}

static unsigned logins;

static CK_RV counted_login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin,
                           CK_ULONG length)
{
    logins++;
    return honest.C_Login(session, user, pin, length);
}

/* A flag that may be untrue is believed here, as a try is what it may cost. */
static void the_last_try_is_never_taken(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    list->C_Login = counted_login;
    logins = 0;
    say(CKF_USER_PIN_FINAL_TRY, 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "one PIN try left");
    say(CKF_USER_PIN_LOCKED, 0);
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "its user PIN is locked");
    assert_int_equal(logins, 0);
}

static void a_token_that_needs_a_login_and_says_it_does_not_gets_a_sentence(void **state)
{
    struct hsm_settings settings = room_good();
    struct hsm_request request = room_request(HSM_GENERATE, "a", HSM_EC_P256);

    (void)state;
    settings.pin_kind = HSM_PIN_NONE;
    say(0, CKF_LOGIN_REQUIRED);
    reopen(&settings);
    assert_non_null(strstr(room_execute(token, &request).fault.message,
                           "no PIN is configured, as the token says that it needs no login"));
}

static CK_RV open_for_reading_alone(CK_SLOT_ID slot, CK_FLAGS flags, void *application,
                                    CK_NOTIFY notify, CK_SESSION_HANDLE *session)
{
    return (flags & CKF_RW_SESSION) != 0
               ? CKR_TOKEN_WRITE_PROTECTED
               : honest.C_OpenSession(slot, flags, application, notify, session);
}

static void a_token_that_is_write_protected_is_read(void **state)
{
    struct hsm_settings settings = room_good();
    struct hsm_request request = room_request(HSM_GENERATE, "b", HSM_EC_P256);
    struct hsm_public_key key;
    struct fault fault;

    (void)state;
    reopen(&settings);
    key = room_generate(token, "a", HSM_EC_P256);
    hsm_close(token);
    token = NULL;
    list->C_OpenSession = open_for_reading_alone;
    (void)room_refused(&settings, FAULT_FAILED_PRECONDITION, "CKR_TOKEN_WRITE_PROTECTED");
    say(CKF_WRITE_PROTECTED, 0);
    assert_int_equal(hsm_open(&settings, &token, &info, &fault), 0);
    assert_true(info.write_protected);
    assert_signs(&key);
    assert_int_equal(room_execute(token, &request).fault.code, FAULT_FAILED_PRECONDITION);
}

/* Nobody would notice by the session's word. */
static void a_lost_login_is_noticed_though_the_session_does_not_tell(void **state)
{
    struct hsm_settings settings = room_faulty("profile stateless");
    struct hsm_public_key key;

    (void)state;
    reopen(&settings);
    key = room_generate(token, "a", HSM_EC_P256);
    softhsm_script("profile stateless\nprofile logout");
    assert_int_equal(room_state(token, "a"), HSM_COMPLETE);
    softhsm_script("profile stateless\nprofile logout ");
    assert_scanned(1);
    assert_signs(&key);
}

static CK_RV no_rsa(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public,
                    CK_ULONG public_count, CK_ATTRIBUTE *private, CK_ULONG private_count,
                    CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key)
{
    if (mechanism->mechanism == CKM_RSA_PKCS_KEY_PAIR_GEN)
        return CKR_GENERAL_ERROR;
    return honest.C_GenerateKeyPair(session, mechanism, public, public_count, private,
                                    private_count, public_key, private_key);
}

static CK_RV small_rsa(CK_SLOT_ID slot, CK_MECHANISM_TYPE mechanism, CK_MECHANISM_INFO *about)
{
    CK_RV rv = honest.C_GetMechanismInfo(slot, mechanism, about);

    about->ulMaxKeySize = 256; /* bytes, or too little */
    return rv;
}

static CK_RV ones_alone(CK_SLOT_ID slot, CK_MECHANISM_TYPE mechanism, CK_MECHANISM_INFO *about)
{
    (void)slot;
    (void)mechanism;
    memset(about, 0xff, sizeof *about);
    return CKR_OK;
}

static CK_RV nothing_filled_in(CK_SLOT_ID slot, CK_MECHANISM_TYPE mechanism,
                               CK_MECHANISM_INFO *about)
{
    (void)slot;
    (void)mechanism;
    (void)about;
    return CKR_OK;
}

static void nonsense_about_mechanisms_is_only_a_hint(void **state)
{
    struct hsm_settings settings = room_good();

    (void)state;
    list->C_GetMechanismInfo = ones_alone;
    live(&settings);
    list->C_GetMechanismInfo = nothing_filled_in;
    live(&settings);
}

/* One that does what it says it cannot is believed, and one that cannot too. */
static void what_a_token_says_it_cannot_is_tried_once(void **state)
{
    struct hsm_settings settings = room_good();
    struct hsm_request request = room_request(HSM_GENERATE, "b", HSM_RSA_2048);
    struct fault refusal;

    (void)state;
    list->C_GetMechanismInfo = small_rsa;
    reopen(&settings);
    assert_true(info.can_generate[HSM_RSA_2048] && info.doubtful[HSM_RSA_2048]);
    (void)room_generate(token, "a", HSM_RSA_2048);
    list->C_GenerateKeyPair = no_rsa;
    refusal = room_execute(token, &request).fault;
    assert_int_equal(refusal.code, FAULT_INVALID_ARGUMENT);
    assert_non_null(strstr(refusal.message, "the token says that it cannot make rsa-2048 keys: "
                                            "C_GenerateKeyPair: CKR_GENERAL_ERROR"));
}

static void what_a_token_said_and_was_not_so_is_remarked(void **state)
{
    struct hsm_settings settings = room_faulty("profile token-flags 0x2\nprofile unpadded\n"
                                               "profile token-flags-off 0x400");

    (void)state;
    reopen(&settings);
    assert_string_equal(info.remarks,
                        "it says that it is not initialized; the plugin opened it nevertheless\n"
                        "it says that it is write-protected, but it opened a session for writing\n"
                        "its texts end with a NUL instead of blanks");
    settings = room_faulty("");
    reopen(&settings);
    assert_string_equal(info.remarks, "");
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, open_list, close_list)

static const struct CMUnitTest others[] = {
    TEST(without_a_pin_a_keypad_is_asked_for_it),
    TEST(the_last_try_is_never_taken),
    TEST(a_token_that_needs_a_login_and_says_it_does_not_gets_a_sentence),
    TEST(a_token_that_is_write_protected_is_read),
    TEST(a_lost_login_is_noticed_though_the_session_does_not_tell),
    TEST(what_a_token_says_it_cannot_is_tried_once),
    TEST(nonsense_about_mechanisms_is_only_a_hint),
    TEST(what_a_token_said_and_was_not_so_is_remarked),
};
enum { OTHERS = sizeof others / sizeof others[0] };

int main(void)
{
    struct CMUnitTest tests[HABITS + OTHERS];

    for (size_t i = 0; i < HABITS; i++)
        tests[i] = (struct CMUnitTest){habits[i].what, a_token_that, room_setup, close_room,
                                       (void *)(uintptr_t)&habits[i]};
    memcpy(tests + HABITS, others, sizeof others);
    return _cmocka_run_group_tests("a token that ..", tests, HABITS + OTHERS, NULL, NULL);
}
