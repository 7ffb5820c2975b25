/* The beginning and the end of a supervisor, its limits, and what its worker inherits. */
#include "plugin/worker/supervisor.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "tests/support/supervisor_stage.h"

/* ---- opening ---- */

static void a_refusal_for_good_is_not_waited_out(void **state)
{
    const struct supervisor_options options = usual();
    const atomic_bool cancel = false;
    struct hsm_token_info info;
    struct fault fault;

    (void)state;
    script->opening = REFUSES;
    start_with(&options);
    assert_int_equal(supervisor_wait(front.supervisor, CLOCK_NEVER, &cancel, &info, &fault), -1);
    assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
    assert_string_equal(fault.message, "PIN refused");
    finish();
}

/* Of a PIN that no file holds nothing but this remembers that it was wrong. */
static void a_refused_pin_is_not_tried_again_by_another_worker(void **state)
{
    const struct supervisor_options options = usual();

    (void)state;
    script->opening = PIN_IS_WRONG;
    start_with(&options);
    assert_true(await_more(&front.ticks, 15)); /* three seconds */
    assert_int_equal(script->starts, 1);
    finish();
}

static void an_idle_worker_is_not_taken_for_one_that_hangs(void **state)
{
    struct supervisor_options options = usual();

    (void)state;
    options.operation_limit = CLOCK_SECOND / 2;
    start_with(&options);
    await_token();
    assert_true(await_more(&front.ticks, 5)); /* a second */
    assert_done_at_once();
    assert_int_equal(supervisor_restarts(front.supervisor), 0);
    finish();
}

static void an_absent_token_is_waited_for(void **state)
{
    const struct supervisor_options options = usual();
    struct call call;

    (void)state;
    script->opening = ABSENT;
    start_with(&options);
    ask(&call, HSM_SIGN, "echo");
    while (script->starts < 3)
        nap();
    script->opening = OPENS;
    await_token();
    assert_done(&call);
    assert_int_equal(supervisor_restarts(front.supervisor), 0);
    finish();
}

static atomic_bool called_off;

static void call_off(void *context)
{
    (void)context;
    called_off = script->starts > 0;
}

static void waiting_for_a_token_that_never_opens_can_be_called_off(void **state)
{
    struct supervisor_options options = usual();
    struct hsm_token_info info;
    struct fault fault;

    (void)state;
    called_off = false;
    options.tick = call_off;
    script->opening = NEVER_OPENS;
    start_with(&options);
    assert_int_equal(supervisor_wait(front.supervisor, CLOCK_NEVER, &called_off, &info, &fault),
                     -1);
    assert_int_equal(fault.code, FAULT_UNAVAILABLE);
    finish();
}

/* Its operation_limit alone would end each worker before it is there. */
static void a_library_that_came_up_slowly_gets_the_same_time_again(void **state)
{
    struct supervisor_options options = usual();

    (void)state;
    options.operation_limit = CLOCK_SECOND / 2;
    script->opening = OPENS_SLOWLY;
    start_with(&options);
    await_token();
    assert_int_equal(kill(script->pid, SIGKILL), 0);
    assert_done_at_once();
    assert_int_equal(script->starts, 2);
    finish();
}

/* What another supervisor has seen of a library is known to this one from its first worker on:
 * one that hangs in its opening is not waited for as long as a start waits for a token. */
static void an_opening_that_hangs_ends_soon_where_it_is_known_how_long_one_takes(void **state)
{
    struct supervisor_options options = usual();
    int64_t begun;

    (void)state;
    options.operation_limit = CLOCK_SECOND / 2;
    options.startup_wait = 60 * CLOCK_SECOND;
    options.opened_in = CLOCK_MILLISECOND;
    script->opening = NEVER_OPENS;
    begun = clock_now();
    start_with(&options);
    while (script->starts == 0)
        nap();
    script->opening = OPENS;
    await_token();
    assert_true(clock_now() - begun < options.startup_wait);
    finish();
}

static void an_opening_gets_the_time_that_one_took_before(void **state)
{
    struct supervisor_options options = usual();

    (void)state;
    options.operation_limit = CLOCK_SECOND / 4;
    options.opened_in = 20 * CLOCK_SECOND;
    script->opening = OPENS_SLOWLY;
    start_with(&options);
    await_token();
    assert_int_equal(script->starts, 1);
    finish();
}

/* ---- deadlines and limits ---- */

static atomic_bool freezing;

static void freeze(void *context)
{
    (void)context;
    if (freezing)
        (void)nanosleep(&(struct timespec){.tv_sec = 3}, NULL);
    freezing = false;
}

static void who_stood_still_does_not_blame_the_worker(void **state)
{
    struct supervisor_options options = usual();
    struct call call;

    (void)state;
    options.operation_limit = 2 * CLOCK_SECOND;
    options.tick = freeze;
    start_with(&options);
    await_token();
    ask(&call, HSM_SIGN, "wait");
    await_waiting(1);
    freezing = true;
    while (freezing)
        nap();
    assert_done_at_once(); /* it is awake, and has looked at the clock or is about to */
    for (unsigned i = 0; i < 500; i++)
        nap();
    script->gate = true;
    assert_done(&call);
    assert_int_equal(supervisor_restarts(front.supervisor), 0);
    finish();
}

static void a_late_answer_reaches_nobody(void **state)
{
    struct call late = {.request = {.op = HSM_SIGN, .key.label = "wait", .digest_length = 64}};
    struct call next[2 * SESSIONS];

    (void)state;
    start();
    late.deadline = clock_now() + CLOCK_SECOND / 2;
    submit(&late);
    await_waiting(1);
    assert_fails(&late, FAULT_DEADLINE_EXCEEDED, "in time");
    for (size_t i = 0; i < 2 * SESSIONS; i++)
        ask(&next[i], HSM_SIGN, "slow");
    script->gate = true;
    for (size_t i = 0; i < 2 * SESSIONS; i++)
        assert_done(&next[i]);
    assert_int_equal(late.answers, 1);
    finish();
}

static void more_than_2048_requests_are_refused_at_once_and_abandoned_in_the_end(void **state)
{
    static struct call calls[SUPERVISOR_REQUESTS_MAX];
    const struct supervisor_options options = usual();
    struct call refused;

    (void)state;
    script->opening = NEVER_OPENS;
    start_with(&options);
    while (script->starts == 0)
        nap();
    for (size_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++)
        ask(&calls[i], HSM_SIGN, "echo");
    ask(&refused, HSM_SIGN, "echo");
    assert_int_equal(refused.answers, 1);
    assert_fails(&refused, FAULT_UNAVAILABLE, "too many");
    supervisor_abandon(front.supervisor);
    for (size_t i = 0; i < SUPERVISOR_REQUESTS_MAX; i++)
        assert_fails(&calls[i], FAULT_UNAVAILABLE, "shutting down");
    supervisor_retire(front.supervisor);
    await_end();
    reap_worker();
}

/* ---- a worker that cannot be killed ---- */

static char freezer[64];

static void write_freezer(const char *file, const char *text)
{
    char path[sizeof freezer + 32];
    int fd;

    (void)snprintf(path, sizeof path, "%s/%s", freezer, file);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    (void)close(fd);
}

/* What is frozen there dies only when it is thawed, as does what a driver keeps in the kernel. */
static int make_freezer(void **state)
{
    (void)snprintf(freezer, sizeof freezer, "/sys/fs/cgroup/freezer/unit-supervisor-%d",
                   (int)getpid());
    if (mkdir(freezer, 0755) != 0)
        freezer[0] = '\0';
    return begin_test(state);
}

static int remove_freezer(void **state)
{
    int result;

    if (freezer[0] != '\0')
        write_freezer("freezer.state", "THAWED");
    result = end_test(state);
    return freezer[0] == '\0' || rmdir(freezer) == 0 ? result : -1;
}

/* The worker hangs in a request, and is out of SIGKILL's reach. */
static pid_t get_stuck(struct call *hang)
{
    char pid[16];

    script->faults_left = 1;
    ask(hang, HSM_SIGN, "hang");
    while (script->faults_left > 0)
        nap();
    (void)snprintf(pid, sizeof pid, "%d", (int)script->pid);
    write_freezer("cgroup.procs", pid);
    write_freezer("freezer.state", "FROZEN");
    return script->pid;
}

static void a_worker_that_cannot_be_killed_is_left_behind_and_a_second_one_is_waited_for(
    void **state)
{
    struct supervisor_options options = usual();
    struct call hang;
    struct call late;
    struct fault fault;
    pid_t first;
    pid_t second;

    (void)state;
    if (freezer[0] == '\0') {
        print_message("needs root and a freezer of the first kind of cgroups\n");
        skip();
    }
    options.operation_limit = CLOCK_SECOND;
    start_with(&options);
    await_token();
    first = get_stuck(&hang);
    assert_done(&hang); /* by another */
    assert_int_equal(kill(first, 0), 0);
    assert_int_equal(supervisor_restarts(front.supervisor), 1);
    second = get_stuck(&hang);
    while (!supervisor_away(front.supervisor, &fault))
        nap();
    late = (struct call){.request = {.op = HSM_SIGN, .digest_length = HSM_DIGEST_MAX},
                         .deadline = clock_now() + 7 * CLOCK_SECOND};
    submit(&late);
    assert_fails(&late, FAULT_UNAVAILABLE, "the token is away: the PKCS#11 module hangs");
    assert_int_equal(kill(first, 0) + kill(second, 0), 0);
    assert_int_equal(script->starts, 2);
    write_freezer("freezer.state", "THAWED");
    assert_done(&hang);
    assert_int_equal(supervisor_restarts(front.supervisor), 2);
    finish();
}

static void retiring_waits_for_a_worker_that_was_left_behind(void **state)
{
    struct supervisor_options options = usual();
    struct call hang;
    pid_t first;

    (void)state;
    if (freezer[0] == '\0')
        skip();
    options.operation_limit = CLOCK_SECOND;
    start_with(&options);
    await_token();
    first = get_stuck(&hang);
    assert_done(&hang);
    supervisor_retire(front.supervisor);
    while (kill(script->pid, 0) == 0)
        nap();
    assert_int_equal(front.ended, 0);
    assert_int_equal(kill(first, 0), 0);
    write_freezer("freezer.state", "THAWED");
    await_end();
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(count_fds(), front.fds);
}

/* ---- the end ---- */

static void abandoning_answers_everything_once(void **state)
{
    struct call calls[4 * SESSIONS];
    struct call after;

    (void)state;
    start();
    for (size_t i = 0; i < 4 * SESSIONS; i++)
        ask(&calls[i], i % 4 ? HSM_SIGN : HSM_GENERATE, "wait");
    await_waiting(SESSIONS);
    supervisor_abandon(front.supervisor);
    for (size_t i = 0; i < 4 * SESSIONS; i++) {
        assert_int_equal(calls[i].answers, 1);
        assert_fails(&calls[i], FAULT_UNAVAILABLE, "shutting down");
    }
    ask(&after, HSM_SIGN, "echo");
    assert_int_equal(after.answers, 1);
    assert_fails(&after, FAULT_UNAVAILABLE, "shutting down");
    assert_int_equal(front.ended, 0);
    supervisor_retire(front.supervisor);
    assert_int_equal(front.ended, 1);
    reap_worker();
}

static void retiring_lets_what_was_asked_be_answered(void **state)
{
    struct call calls[4 * SESSIONS];

    (void)state;
    start();
    for (size_t i = 0; i < 4 * SESSIONS; i++)
        ask(&calls[i], HSM_SIGN, "slow");
    supervisor_retire(front.supervisor);
    for (size_t i = 0; i < 4 * SESSIONS; i++)
        assert_done(&calls[i]);
    await_end();
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(count_fds(), front.fds);
}

static void retiring_works_while_the_token_is_away(void **state)
{
    static const enum opening openings[] = {DIES, NEVER_OPENS, REFUSES, ABSENT};
    const struct supervisor_options options = usual();

    (void)state;
    for (size_t i = 0; i < sizeof openings / sizeof openings[0]; i++) {
        assert_int_equal(begin_test(NULL), 0);
        script->opening = openings[i];
        start_with(&options);
        while (script->starts < 1)
            nap();
        finish();
    }
}

/* ---- descriptors ---- */

static void the_lock_reaches_the_worker_whatever_its_number(void **state)
{
    struct supervisor_options options = usual();

    (void)state;
    for (options.lock = 3; options.lock <= 6; options.lock++) {
        int lock = fcntl(options.lock, F_GETFD) >= 0 ? dup(options.lock) : -1;
        int low = memfd_create("lock", MFD_CLOEXEC);
        int file = fcntl(low, F_DUPFD_CLOEXEC, 20);
        struct stat st;
        struct call call;

        (void)close(low);
        assert_int_equal(begin_test(NULL), 0);
        assert_int_equal(fstat(file, &st), 0);
        assert_int_equal(dup3(file, options.lock, O_CLOEXEC), options.lock);
        start_with(&options);
        await_token();
        ask(&call, HSM_SIGN, "tell lock");
        assert_done(&call);
        assert_int_equal(call.reply.items, (uint32_t)st.st_ino);
        supervisor_retire(front.supervisor);
        await_end();
        (void)close(options.lock);
        if (lock >= 0)
            (void)dup3(lock, options.lock, O_CLOEXEC);
        (void)close(lock);
        (void)close(file);
    }
}

/* ---- ends that the socket does not tell ---- */

static void a_worker_that_was_stopped_while_it_was_idle_is_replaced(void **state)
{
    struct supervisor_options options = usual();
    siginfo_t stopped;

    (void)state;
    options.operation_limit = CLOCK_SECOND;
    start_with(&options);
    await_token();
    assert_int_equal(kill(script->pid, SIGSTOP), 0);
    assert_int_equal(waitid(P_PID, (id_t)script->pid, &stopped, WSTOPPED), 0);
    assert_done_at_once();
    assert_int_equal(supervisor_restarts(front.supervisor), 1);
    finish();
}

static void a_worker_whose_child_holds_its_socket_is_replaced_when_it_ends(void **state)
{
    struct call call;

    (void)state;
    start();
    ask(&call, HSM_SIGN, "fork");
    assert_done(&call);
    assert_int_equal(kill(script->pid, SIGKILL), 0);
    assert_done_at_once();
    assert_int_equal(supervisor_restarts(front.supervisor), 1);
    script->gate = true;
    finish();
}

static void programs_that_a_library_starts_get_nothing_of_the_worker(void **state)
{
    struct supervisor_options options = usual();
    struct call call;

    (void)state;
    options.lock = open("/dev/null", O_RDWR | O_CLOEXEC);
    start_with(&options);
    await_token();
    ask(&call, HSM_SIGN, "tell inheritable");
    assert_done(&call);
    assert_int_equal(call.reply.items, 0);
    front.fds++;
    finish();
    (void)close(options.lock);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        PLAY(a_refusal_for_good_is_not_waited_out),
        PLAY(a_refused_pin_is_not_tried_again_by_another_worker),
        PLAY(an_idle_worker_is_not_taken_for_one_that_hangs),
        PLAY(an_absent_token_is_waited_for),
        PLAY(waiting_for_a_token_that_never_opens_can_be_called_off),
        PLAY(a_library_that_came_up_slowly_gets_the_same_time_again),
        PLAY(an_opening_that_hangs_ends_soon_where_it_is_known_how_long_one_takes),
        PLAY(an_opening_gets_the_time_that_one_took_before),
        PLAY(who_stood_still_does_not_blame_the_worker),
        PLAY(a_late_answer_reaches_nobody),
        PLAY(more_than_2048_requests_are_refused_at_once_and_abandoned_in_the_end),
        cmocka_unit_test_setup_teardown(
            a_worker_that_cannot_be_killed_is_left_behind_and_a_second_one_is_waited_for,
            make_freezer, remove_freezer),
        cmocka_unit_test_setup_teardown(retiring_waits_for_a_worker_that_was_left_behind,
                                        make_freezer, remove_freezer),
        PLAY(abandoning_answers_everything_once),
        PLAY(retiring_lets_what_was_asked_be_answered),
        PLAY(retiring_works_while_the_token_is_away),
        PLAY(the_lock_reaches_the_worker_whatever_its_number),
        PLAY(a_worker_that_was_stopped_while_it_was_idle_is_replaced),
        PLAY(a_worker_whose_child_holds_its_socket_is_replaced_when_it_ends),
        PLAY(programs_that_a_library_starts_get_nothing_of_the_worker),
    };

    if (argc == 2 && strcmp(argv[1], "worker") == 0)
        return become_worker();
    return cmocka_run_group_tests(tests, make_script, remove_script);
}
