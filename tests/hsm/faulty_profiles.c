/* Profiles of faulty.so: each shows the habit of a real token that it is named after. For every
 * profile there is a step, which makes PKCS#11 calls in a process of its own. */
#include "tests/support/steps.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <sys/wait.h>
#include <unistd.h>

static void step_cloudhsm(void)
{
    CK_BBOOL no = CK_FALSE;
    CK_ATTRIBUTE immutable = {CKA_MODIFIABLE, &no, 1};
    CK_ATTRIBUTE public = {CKA_PRIVATE, &no, 1};
    CK_ATTRIBUTE empty = {CKA_SUBJECT, NULL, 0};
    uint8_t label[] = "renamed";
    CK_ATTRIBUTE renamed = {CKA_LABEL, label, sizeof label};
    CK_OBJECT_HANDLE keys[2];

    begin_with("profile cloudhsm");
    RV(CKR_TEMPLATE_INCONSISTENT, generate_with("picky", "12", 2, keys, &immutable));
    RV(CKR_TEMPLATE_INCONSISTENT, generate_with("picky", "12", 2, keys, &public));
    RV(CKR_TEMPLATE_INCONSISTENT, generate_with("picky", "12", 2, keys, &empty));
    OK(generate("cloud", keys));
    RV(CKR_KEY_FUNCTION_NOT_PERMITTED, sign(keys[1]));
    RV(CKR_FUNCTION_NOT_SUPPORTED, p11->C_SetAttributeValue(session, keys[1], &renamed, 1));
    RV(CKR_FUNCTION_NOT_SUPPORTED, p11->C_CopyObject(session, keys[1], &renamed, 1, keys));
    RV(CKR_TEMPLATE_INCONSISTENT, p11->C_FindObjectsInit(session, &empty, 1));
}

static void cloudhsm_refuses_changes_odd_templates_and_new_keys(void **state)
{
    (void)state;
    run(step_cloudhsm);
}

static void step_newborn(void)
{
    CK_OBJECT_HANDLE keys[2];
    CK_RV rv;

    begin_with("profile newborn 500 CKR_GENERAL_ERROR");
    OK(generate("newborn", keys));
    RV(CKR_GENERAL_ERROR, sign(keys[1]));
    while ((rv = sign(keys[1])) == CKR_GENERAL_ERROR)
        (void)usleep(1000);
    OK(rv);
}

static void a_new_key_signs_in_the_end(void **state)
{
    (void)state;
    run(step_newborn);
}

#define FORTY "a label of forty bytes, neither more nor"

static void step_yubihsm(void)
{
    CK_OBJECT_HANDLE keys[2];
    CK_SESSION_HANDLE more;
    uint8_t id[16];
    CK_ATTRIBUTE wanted = {CKA_ID, id, sizeof id};

    begin_with("profile yubihsm");
    OK(generate(FORTY " less", keys));
    CHECK(find(FORTY) == 2 && find(FORTY " less") == 0);
    OK(p11->C_GetAttributeValue(session, keys[0], &wanted, 1));
    CHECK(wanted.ulValueLen == 2);
    for (int i = 1; i < 16; i++)
        open_session(&more);
    RV(CKR_SESSION_COUNT, p11->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session));
    OK(p11->C_CloseSession(more));
    open_session(&more);
}

static void step_idle(void)
{
    CK_SESSION_HANDLE busy;
    CK_SESSION_INFO info;
    int64_t start;

    begin_with("profile idle 1000");
    open_session(&busy);
    OK(p11->C_GetSessionInfo(session, &info));
    for (start = milliseconds(); milliseconds() < start + 1200; (void)usleep(20000))
        OK(p11->C_GetSessionInfo(busy, &info));
    RV(CKR_SESSION_HANDLE_INVALID, p11->C_GetSessionInfo(session, &info));
    OK(p11->C_GetSessionInfo(busy, &info));
}

static void yubihsm_cuts_names_and_has_few_sessions_that_die_idle(void **state)
{
    (void)state;
    run(step_yubihsm);
    run(step_idle);
}

static void step_rawpoint(void)
{
    CK_OBJECT_HANDLE keys[2];
    uint8_t point[67];
    CK_ULONG length = sizeof point;

    begin_with("");
    OK(generate("raw", keys));
    OK(get_point(keys[0], point, &length));
    CHECK(length == 67 && point[0] == 0x04 && point[1] == 65 && point[2] == 0x04);
    script("profile rawpoint");
    OK(get_point(keys[0], NULL, &length));
    CHECK(length == 65);
    OK(get_point(keys[0], point, &length));
    CHECK(length == 65 && point[0] == 0x04);
    length = 64;
    RV(CKR_BUFFER_TOO_SMALL, get_point(keys[0], point, &length));
}

static void rawpoint_leaves_the_octet_string_out(void **state)
{
    (void)state;
    run(step_rawpoint);
}

static void step_nopub(void)
{
    CK_OBJECT_HANDLE keys[2];
    uint8_t point[67];
    uint8_t same[67];
    CK_ULONG length = sizeof point;

    begin_with("");
    OK(generate("nopub", keys));
    OK(get_point(keys[0], point, &length));
    script("profile nopub");
    length = sizeof same;
    RV(CKR_ATTRIBUTE_TYPE_INVALID, get_point(keys[0], same, &length));
    CHECK(length == CK_UNAVAILABLE_INFORMATION);
    length = sizeof same;
    OK(get_point(keys[1], same, &length));
    CHECK(length == 67 && memcmp(point, same, 67) == 0);
}

static void nopub_has_the_point_at_the_private_key(void **state)
{
    (void)state;
    run(step_nopub);
}

static void step_lag(void)
{
    CK_OBJECT_HANDLE keys[2];

    begin_with("profile lag 2");
    OK(generate("lag", keys));
    CHECK(find("lag") == 0);
}

static void step_lag_on(void)
{
    load();
    begin();
    CHECK(find("lag") == 0);
    CHECK(find("lag") == 2);
}

static void lag_hides_new_objects_from_the_next_process_too(void **state)
{
    (void)state;
    run(step_lag);
    run(step_lag_on);
}

static void step_apart(void)
{
    CK_OBJECT_HANDLE keys[2];

    begin_with("profile apart 600000");
    OK(generate("apart", keys));
    CHECK(find("apart") == 2);
}

static void step_apart_elsewhere(void)
{
    load();
    begin();
    CHECK(find("apart") == 0);
    script("profile apart 1");
    CHECK(find("apart") == 2);
}

static void apart_hides_new_objects_from_other_processes_alone(void **state)
{
    (void)state;
    run(step_apart);
    run(step_apart_elsewhere);
}

static void step_trouble(void)
{
    CK_OBJECT_CLASS class;
    CK_ATTRIBUTE wanted = {CKA_CLASS, &class, sizeof class};
    CK_OBJECT_HANDLE keys[2];

    begin_with("profile hide private 600000 trou");
    OK(generate("trouble", keys));
    OK(generate("other", keys));
    CHECK(find("trouble") == 1);
    CHECK(find("other") == 2);
    script("profile hide both 600000");
    CHECK(find("other") == 0);
    script("profile hide both 1");
    (void)find("trouble"); /* loads it */
    (void)nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    CHECK(find("trouble") == 2);
    script("profile unreadable CKR_DEVICE_ERROR public 600000 oth");
    OK(p11->C_GetAttributeValue(session, keys[1], &wanted, 1));
    RV(CKR_DEVICE_ERROR, p11->C_GetAttributeValue(session, keys[0], &wanted, 1));
}

static void trouble_hits_some_keys_for_a_while(void **state)
{
    (void)state;
    run(step_trouble);
}

static void step_logout(void)
{
    CK_OBJECT_HANDLE keys[2];
    CK_SESSION_INFO info;

    begin_with("");
    OK(generate("logout", keys));
    script("profile logout");
    CHECK(find("logout") == 0);
    OK(p11->C_GetSessionInfo(session, &info));
    CHECK(info.state == CKS_RW_PUBLIC_SESSION);
    CHECK(sign(keys[1]) != CKR_OK);
    OK(p11->C_Login(session, CKU_USER, pin, sizeof pin - 1));
    CHECK(find("logout") == 2);
}

static void logout_is_silent_and_a_login_mends_it(void **state)
{
    (void)state;
    run(step_logout);
}

static void step_die(void)
{
    CK_OBJECT_HANDLE keys[2];
    CK_SESSION_INFO info;

    begin_with("");
    script("profile die-until-finalize");
    RV(CKR_DEVICE_ERROR, generate("die", keys));
    RV(CKR_DEVICE_ERROR, p11->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session));
    RV(CKR_DEVICE_ERROR, p11->C_GetInfo(&(CK_INFO){.flags = 0}));
    OK(p11->C_Finalize(NULL));
    begin();
    OK(generate("die", keys));
    script("C_GetSessionInfo 2 before die");
    OK(p11->C_GetSessionInfo(session, &info));
    OK(sign(keys[1]));
    RV(CKR_DEVICE_ERROR, p11->C_GetSessionInfo(session, &info));
    RV(CKR_DEVICE_ERROR, sign(keys[1]));
}

static void step_die_not(void)
{
    CK_OBJECT_HANDLE keys[2];

    begin_with("profile die-until-finalize");
    OK(generate("die not", keys));
}

static void a_dead_library_lives_again_when_initialized_again(void **state)
{
    (void)state;
    run(step_die);
    run(step_die_not);
}

static void step_full(void)
{
    CK_OBJECT_HANDLE keys[2];

    begin_with("profile full");
    RV(CKR_DEVICE_MEMORY, generate("full", keys));
    CHECK(find("full") == 0);
}

static void full_makes_no_keys(void **state)
{
    (void)state;
    run(step_full);
}

static void step_hold_and_die(void)
{
    CK_SESSION_HANDLE more;

    begin_with("profile sessions 99"); /* forgets those of the steps before */
    script("profile dangling 3 1");
    open_session(&more);
    (void)raise(SIGKILL);
}

static void step_dangling(void)
{
    CK_SESSION_HANDLE more;
    CK_RV rv;

    load();
    begin();
    RV(CKR_SESSION_COUNT, p11->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &more));
    while ((rv = p11->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &more)) ==
           CKR_SESSION_COUNT)
        (void)usleep(1000);
    OK(rv);
}

static void sessions_of_a_killed_process_count_for_a_while(void **state)
{
    (void)state;
    assert_int_equal(WTERMSIG(status_of(step_hold_and_die)), SIGKILL);
    run(step_dangling);
}

static CK_OBJECT_HANDLE slow_key;

static void *sign_slowly(void *unused)
{
    CK_SESSION_HANDLE own;

    open_session(&own);
    OK(sign_in(own, slow_key));
    return unused;
}

/* Eight at once take less than eight in a row. */
static void step_latency(void)
{
    CK_OBJECT_HANDLE keys[2];
    pthread_t threads[8];
    int64_t start = milliseconds();
    int64_t took;

    begin_with("profile latency 300\nprofile slowgen 50");
    OK(generate("slow", keys));
    CHECK(milliseconds() >= start + 50);
    slow_key = keys[1];
    start = milliseconds();
    for (int i = 0; i < 8; i++)
        CHECK(pthread_create(&threads[i], NULL, sign_slowly, NULL) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    took = milliseconds() - start;
    CHECK(took >= 299 && took < INT64_C(8) * 300);
}

static void latency_is_each_sessions_own(void **state)
{
    (void)state;
    run(step_latency);
}

/* ---- signatures ---- */

/* What the module behind says of a signature with the private key; it has no part in the faults. */
static CK_RV sign_and_verify(CK_OBJECT_HANDLE private_key, CK_OBJECT_HANDLE public_key)
{
    CK_MECHANISM mechanism = {.mechanism = CKM_ECDSA};
    uint8_t digest[32] = {1};
    uint8_t signature[64];
    CK_ULONG length = sizeof signature;

    OK(p11->C_SignInit(session, &mechanism, private_key));
    OK(p11->C_Sign(session, digest, sizeof digest, signature, &length));
    OK(p11->C_VerifyInit(session, &mechanism, public_key));
    return p11->C_Verify(session, digest, sizeof digest, signature, length);
}

static CK_OBJECT_HANDLE find_private(const char *label)
{
    CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
    char copy[16] = "";
    CK_ATTRIBUTE wanted[] = {{CKA_CLASS, &class, sizeof class}, {CKA_LABEL, copy, strlen(label)}};
    CK_OBJECT_HANDLE found = CK_INVALID_HANDLE;
    CK_ULONG count = 0;

    memcpy(copy, label, strlen(label));
    OK(p11->C_FindObjectsInit(session, wanted, 2));
    OK(p11->C_FindObjects(session, &found, 1, &count));
    OK(p11->C_FindObjectsFinal(session));
    return found;
}

static void step_renumber(void)
{
    CK_OBJECT_HANDLE one[2];
    CK_OBJECT_HANDLE two[2];
    CK_OBJECT_HANDLE found;

    begin_with("");
    OK(generate("one", one));
    OK(generate("two", two));
    OK(sign_and_verify(one[1], one[0]));
    script("profile renumber 60000");
    RV(CKR_SIGNATURE_INVALID, sign_and_verify(one[1], one[0]));
    RV(CKR_OBJECT_HANDLE_INVALID, p11->C_DestroyObject(session, one[1]));
    found = find_private("one");
    CHECK(found != one[1]);
    OK(sign_and_verify(found, one[0]));
    script("");
    OK(sign_and_verify(one[1], one[0]));
    OK(sign_and_verify(found, one[0]));
}

static void handles_from_before_a_renumbering_reach_other_keys(void **state)
{
    (void)state;
    run(step_renumber);
}

static void step_spoilt(void)
{
    CK_OBJECT_HANDLE keys[2];

    begin_with("C_Sign 2 before bend\nC_Sign 3 before shorten");
    OK(generate("spoilt", keys));
    OK(sign_and_verify(keys[1], keys[0]));
    RV(CKR_SIGNATURE_INVALID, sign_and_verify(keys[1], keys[0]));
    RV(CKR_SIGNATURE_LEN_RANGE, sign_and_verify(keys[1], keys[0]));
    OK(sign_and_verify(keys[1], keys[0]));
}

static void a_bent_signature_is_wrong_and_a_shortened_one_short(void **state)
{
    (void)state;
    run(step_spoilt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cloudhsm_refuses_changes_odd_templates_and_new_keys),
        cmocka_unit_test(a_new_key_signs_in_the_end),
        cmocka_unit_test(yubihsm_cuts_names_and_has_few_sessions_that_die_idle),
        cmocka_unit_test(rawpoint_leaves_the_octet_string_out),
        cmocka_unit_test(nopub_has_the_point_at_the_private_key),
        cmocka_unit_test(lag_hides_new_objects_from_the_next_process_too),
        cmocka_unit_test(apart_hides_new_objects_from_other_processes_alone),
        cmocka_unit_test(trouble_hits_some_keys_for_a_while),
        cmocka_unit_test(logout_is_silent_and_a_login_mends_it),
        cmocka_unit_test(a_dead_library_lives_again_when_initialized_again),
        cmocka_unit_test(full_makes_no_keys),
        cmocka_unit_test(sessions_of_a_killed_process_count_for_a_while),
        cmocka_unit_test(latency_is_each_sessions_own),
        cmocka_unit_test(handles_from_before_a_renumbering_reach_other_keys),
        cmocka_unit_test(a_bent_signature_is_wrong_and_a_shortened_one_short),
    };

    return cmocka_run_group_tests(tests, make_token, remove_token);
}
