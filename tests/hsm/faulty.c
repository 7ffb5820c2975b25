/* Scripts of faulty.so: which call fails, how and how often. Each rule is tried on a SoftHSM with
 * plain PKCS#11 calls, in processes of its own. */
#include "tests/support/steps.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- rules ---- */

static void step_nothing(void)
{
    CK_OBJECT_HANDLE keys[2];

    (void)unlink(script_path);
    load();
    begin();
    OK(generate("nothing", keys));
    OK(sign(keys[1]));
    CHECK(find("nothing") == 2);
    script("C_SignInit before CKR_DEVICE_ERROR");
    RV(CKR_DEVICE_ERROR, sign(keys[1]));
    script("");
    OK(sign(keys[1]));
}

static void without_a_script_everything_passes(void **state)
{
    (void)state;
    run(step_nothing);
}

static void step_before_after(void)
{
    CK_OBJECT_HANDLE keys[2];

    begin_with("C_GenerateKeyPair 1 before CKR_DEVICE_ERROR\n"
               "C_GenerateKeyPair 2 after 0x80000042 # of those that were made");
    RV(CKR_DEVICE_ERROR, generate("before", keys));
    CHECK(find("before") == 0);
    OK(generate("between", keys));
    RV(0x80000042, generate("after", keys));
    CHECK(find("after") == 2);
    OK(generate("later", keys));
}

static void before_means_no_effect_and_after_means_done(void **state)
{
    (void)state;
    run(step_before_after);
}

static void step_counts(void)
{
    CK_SESSION_INFO info;

    begin_with("C_GetSessionInfo 2-3 before CKR_GENERAL_ERROR");
    OK(p11->C_GetSessionInfo(session, &info));
    RV(CKR_GENERAL_ERROR, p11->C_GetSessionInfo(session, &info));
    RV(CKR_GENERAL_ERROR, p11->C_GetSessionInfo(session, &info));
    OK(p11->C_GetSessionInfo(session, &info));
    script("C_GetSessionInfo every before CKR_GENERAL_ERROR times 2");
    RV(CKR_GENERAL_ERROR, p11->C_GetSessionInfo(session, &info));
    RV(CKR_GENERAL_ERROR, p11->C_GetSessionInfo(session, &info));
    OK(p11->C_GetSessionInfo(session, &info));
    script("* 3 before CKR_FUNCTION_FAILED\n"
           "C_GetSessionInfo 2 before CKR_HOST_MEMORY once");
    OK(p11->C_GetSessionInfo(session, &info));
    RV(CKR_HOST_MEMORY, p11->C_GetSessionInfo(session, &info));
    RV(CKR_FUNCTION_FAILED, p11->C_GetSessionInfo(session, &info));
    OK(p11->C_GetSessionInfo(session, &info));
}

static void calls_are_counted_from_the_scripts_loading(void **state)
{
    (void)state;
    run(step_counts);
}

static void step_times(void)
{
    CK_SESSION_INFO info;
    int64_t start;

    begin_with("C_GetSessionInfo before CKR_GENERAL_ERROR for 100");
    start = milliseconds();
    while (p11->C_GetSessionInfo(session, &info) != CKR_OK)
        CHECK(milliseconds() < start + 60000);
    script("C_GetSessionInfo 1 before sleep 30\n"
           "C_GetSessionInfo 2 after sleep 30");
    for (int i = 0; i < 2; i++) {
        start = milliseconds();
        OK(p11->C_GetSessionInfo(session, &info));
        CHECK(milliseconds() >= start + 29);
    }
}

static void faults_end_and_calls_are_slow_as_the_script_says(void **state)
{
    (void)state;
    run(step_times);
}

static void step_percent(void)
{
    CK_SESSION_INFO info;
    int failed = 0;

    begin_with("C_GetSessionInfo before CKR_GENERAL_ERROR percent 30");
    for (int i = 0; i < 1000; i++)
        failed += p11->C_GetSessionInfo(session, &info) != CKR_OK;
    CHECK(failed > 250 && failed < 350);
}

static void some_calls_fail_at_random(void **state)
{
    (void)state;
    run(step_percent);
}

static void step_part(void)
{
    CK_OBJECT_HANDLE well[2];
    CK_OBJECT_HANDLE ill[2];

    begin_with("");
    OK(generate("well", well));
    OK(generate("one that is ill", ill));
    script("C_Sign before CKR_DEVICE_ERROR on ill");
    OK(sign(well[1]));
    RV(CKR_DEVICE_ERROR, sign(ill[1]));
    script("C_SignInit before CKR_KEY_HANDLE_INVALID on ill");
    OK(sign(well[1]));
    RV(CKR_KEY_HANDLE_INVALID, sign(ill[1]));
}

static void some_keys_alone_are_in_trouble(void **state)
{
    (void)state;
    run(step_part);
}

static void step_sign_again(void)
{
    CK_OBJECT_HANDLE keys[2];

    begin_with("C_Sign 1 before CKR_DEVICE_ERROR\nC_Sign 1 after CKR_DEVICE_ERROR");
    OK(generate("again", keys));
    RV(CKR_DEVICE_ERROR, sign(keys[1]));
    RV(CKR_DEVICE_ERROR, sign(keys[1]));
    OK(sign(keys[1]));
}

static void a_failed_signature_ends_its_operation(void **state)
{
    (void)state;
    run(step_sign_again);
}

static void *hang(void *unused)
{
    CK_SESSION_INFO info;

    (void)p11->C_GetSessionInfo(session, &info);
    return unused;
}

static void step_hang(void)
{
    CK_OBJECT_HANDLE keys[2];
    pthread_t thread;
    char fired[96];

    begin_with("");
    OK(generate("hang", keys));
    script("C_GetSessionInfo before hang");
    (void)snprintf(fired, sizeof fired, "%s.fired", script_path);
    (void)unlink(fired);
    CHECK(pthread_create(&thread, NULL, hang, NULL) == 0);
    while (access(fired, F_OK) != 0)
        (void)usleep(1000);
    OK(sign(keys[1]));
}

static void one_call_that_hangs_leaves_the_others_alone(void **state)
{
    (void)state;
    run(step_hang);
}

static void first_call(const char *text)
{
    CK_INFO info;

    begin_with(text);
    OK(p11->C_GetInfo(&info));
}

static void step_segv(void)
{
    first_call("C_GetInfo before segv");
}

static void step_abort(void)
{
    first_call("C_GetInfo before abort");
}

static void step_kill(void)
{
    first_call("C_GetInfo before kill");
}

static void step_exit(void)
{
    (void)close(STDERR_FILENO); /* atexit handlers of ours would complain */
    first_call("C_GetInfo before exit");
}

static void step_misspelt(void)
{
    first_call("C_Sing before kill");
}

static void a_crash_ends_the_process_the_way_asked_for(void **state)
{
    (void)state;
    assert_int_equal(WTERMSIG(status_of(step_segv)), SIGSEGV);
    assert_int_equal(WTERMSIG(status_of(step_abort)), SIGABRT);
    assert_int_equal(WTERMSIG(status_of(step_kill)), SIGKILL);
    assert_int_equal(WEXITSTATUS(status_of(step_exit)), EXIT_FAILURE);
    assert_int_equal(WTERMSIG(status_of(step_misspelt)), SIGABRT);
}

static void step_crash_once_shared(void)
{
    script("C_GetInfo before kill once shared");
}

static void step_crash_once_each(void)
{
    script("C_GetInfo before kill once");
}

static void step_get_info(void)
{
    CK_INFO info;

    load();
    begin();
    OK(p11->C_GetInfo(&info));
}

static void a_shared_fault_spares_the_next_process(void **state)
{
    (void)state;
    run(step_crash_once_shared);
    assert_int_equal(WTERMSIG(status_of(step_get_info)), SIGKILL);
    run(step_get_info);
    run(step_crash_once_each);
    assert_int_equal(WTERMSIG(status_of(step_get_info)), SIGKILL);
    assert_int_equal(WTERMSIG(status_of(step_get_info)), SIGKILL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_script_everything_passes),
        cmocka_unit_test(before_means_no_effect_and_after_means_done),
        cmocka_unit_test(calls_are_counted_from_the_scripts_loading),
        cmocka_unit_test(faults_end_and_calls_are_slow_as_the_script_says),
        cmocka_unit_test(some_calls_fail_at_random),
        cmocka_unit_test(some_keys_alone_are_in_trouble),
        cmocka_unit_test(a_failed_signature_ends_its_operation),
        cmocka_unit_test(one_call_that_hangs_leaves_the_others_alone),
        cmocka_unit_test(a_crash_ends_the_process_the_way_asked_for),
        cmocka_unit_test(a_shared_fault_spares_the_next_process),
    };

    return cmocka_run_group_tests(tests, make_token, remove_token);
}
