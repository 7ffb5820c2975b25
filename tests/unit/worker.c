/* The worker process, hsm_worker(), with a made-up token in it and the test as its front.
 *
 * The functions of hsm/hsm.h are replaced in this file. Each test forks a worker, which gets the
 * descriptors it would get in production: the socket (3), the shared page (4) and the identity
 * lock (5). The test then sends it frames by hand and reads the answers.
 *
 * The token does what a request's label says. "wait" ends when the test writes a byte to the
 * pipe that is descriptor 5 here. "die" and "hang" do that; "report" describes the process. Any
 * other label is answered at once, with the digest's first byte as the signature. */
#include "hsm/hsm.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "hsm/wire/frame.h"

enum { SOCKET = 3, PAGE = 4, LOCK = 5, SESSIONS = 3, STATUS_CLOSED = 42 };

/* A call that hangs is left behind on purpose. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "report_thread_leaks=0";
}

/* ---- the token (in the worker's process) ---- */

static int status_at_exit = EXIT_FAILURE;

int hsm_open(const struct hsm_settings *settings, struct hsm_token **token,
             struct hsm_token_info *info, struct fault *fault)
{
    if (strcmp(settings->module, "missing") == 0)
        return fault_set(fault, FAULT_UNAVAILABLE, "no such module");
    if (strcmp(settings->module, "hangs") == 0 || strcmp(settings->keys_file, "/hangs") == 0)
        for (;;)
            (void)pause();
    if (strcmp(settings->pin_text, "1234") != 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "PIN refused");
    *token = (struct hsm_token *)&status_at_exit;
    *info = (struct hsm_token_info){.label = "made up", .sessions = settings->sessions};
    return 0;
}

void hsm_close(struct hsm_token *token)
{
    if (token)
        _exit(STATUS_CLOSED); /* so that the front sees it was done */
}

void hsm_listen(struct hsm_token *token, hsm_progress_fn *waits, hsm_progress_fn *proves)
{
    (void)token;
    (void)waits;
    (void)proves;
}

static void report(struct hsm_reply *reply)
{
    struct rlimit core;
    uint32_t open_fds = 0;

    for (int fd = 0; fd < 32; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            open_fds |= 1U << fd;
    (void)getrlimit(RLIMIT_CORE, &core);
    (void)snprintf(reply->why, sizeof reply->why, "fds %x dumpable %d privs %d core %lu", open_fds,
                   prctl(PR_GET_DUMPABLE), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), core.rlim_max);
}

void hsm_execute(struct hsm_token *token, const struct hsm_request *request,
                 struct hsm_reply *reply, hsm_item_fn *item, void *context)
{
    const char *label = request->key.label;
    struct hsm_item found = {.state = HSM_COMPLETE};
    char byte = 0;

    (void)token;
    if (strcmp(label, "wait") == 0 && read(LOCK, &byte, 1) != 1)
        (void)fault_set(&reply->fault, FAULT_INTERNAL, "descriptor 5 is not the lock");
    if (strcmp(label, "report") == 0)
        report(reply);
    if (strcmp(label, "die") == 0)
        (void)raise(SIGKILL);
    while (strcmp(label, "hang") == 0)
        (void)pause();
    for (reply->items = 0; request->op == HSM_SCAN && reply->items < 100; reply->items++) {
        (void)snprintf(found.key.label, sizeof found.key.label, "item %u", reply->items);
        item(context, &found);
    }
    reply->signature_length = 1;
    reply->signature[0] = request->digest[0];
}

/* ---- the front ---- */

struct front {
    pid_t worker;
    int socket;
    int gate; /* a byte written here lets one "wait" end */
    struct frame_page *page;
};

static void become_worker(int socket, int page, int gate)
{
    (void)dup2(gate, 20);
    (void)dup2(socket, 21);
    (void)dup2(page, 22);
    (void)dup2(21, SOCKET);
    (void)dup2(22, PAGE);
    (void)dup2(20, LOCK);
    _exit(hsm_worker(SOCKET, PAGE));
}

static int start(void **state)
{
    struct front *front = calloc(1, sizeof *front);
    int page = memfd_create("page", 0);
    int pair[2];
    int gate[2];

    assert_non_null(front);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(pipe(gate), 0);
    assert_int_equal(ftruncate(page, sizeof *front->page), 0);
    front->page = mmap(NULL, sizeof *front->page, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
    assert_ptr_not_equal(front->page, MAP_FAILED);
    front->worker = fork();
    if (front->worker == 0)
        become_worker(pair[1], page, gate[0]);
    front->socket = pair[0];
    front->gate = gate[1];
    (void)close(pair[1]);
    (void)close(page);
    (void)close(gate[0]);
    *state = front;
    return 0;
}

static void hang_up(struct front *front)
{
    if (front->socket >= 0)
        (void)close(front->socket);
    front->socket = -1;
}

static int status_of(struct front *front)
{
    int status = 0;

    assert_int_equal(waitpid(front->worker, &status, 0), front->worker);
    front->worker = 0;
    return status;
}

static int end(void **state)
{
    struct front *front = *state;

    hang_up(front);
    if (front->worker > 0) {
        (void)kill(front->worker, SIGKILL);
        (void)status_of(front);
    }
    (void)close(front->gate);
    (void)munmap(front->page, sizeof *front->page);
    free(front);
    return 0;
}

static void send_bytes(const struct front *front, const uint8_t *bytes, size_t length)
{
    assert_int_equal(send(front->socket, bytes, length, MSG_NOSIGNAL), length);
}

static void send_open_with(const struct front *front, const char *module, enum hsm_pin_kind kind,
                           const char *pin)
{
    struct frame frame = {.kind = FRAME_OPEN};
    uint8_t bytes[FRAME_MAX];

    (void)strcpy(frame.settings.module, module);
    (void)strcpy(frame.settings.pin_text, pin);
    frame.settings.pin_kind = kind;
    frame.settings.sessions = SESSIONS;
    send_bytes(front, bytes, frame_encode(&frame, bytes));
}

static void send_open(const struct front *front, const char *module, const char *pin)
{
    send_open_with(front, module, HSM_PIN_INLINE, pin);
}

static void send_request(const struct front *front, uint32_t number, enum hsm_op op,
                         const char *label)
{
    struct frame frame = {.kind = FRAME_REQUEST, .number = number};
    uint8_t bytes[FRAME_MAX];

    frame.request.op = op;
    (void)strcpy(frame.request.key.label, label);
    frame.request.digest_length = 1;
    frame.request.digest[0] = (uint8_t)number;
    send_bytes(front, bytes, frame_encode(&frame, bytes));
}

static struct frame receive(const struct front *front, enum frame_kind kind)
{
    uint8_t bytes[FRAME_MAX];
    ssize_t length = recv(front->socket, bytes, sizeof bytes, 0);
    struct frame frame;

    assert_true(length > 0);
    assert_int_equal(frame_decode(bytes, (size_t)length, &frame, NULL), 0);
    assert_int_equal(frame.kind, kind);
    return frame;
}

static void open_token(const struct front *front)
{
    send_open(front, "good", "1234");
    assert_int_equal(receive(front, FRAME_READY).info.sessions, SESSIONS);
}

static bool is_executing(const struct front *front, uint32_t number)
{
    for (size_t i = 0; i < HSM_SESSIONS_MAX; i++)
        if (atomic_load(&front->page->slots[i].number) == number)
            return atomic_load(&front->page->slots[i].started) > 0;
    return false;
}

static void await_executing(const struct front *front, uint32_t number)
{
    while (!is_executing(front, number))
        (void)poll(NULL, 0, 1);
}

/* ---- tests ---- */

static void ready_tells_what_was_opened_and_requests_are_answered(void **state)
{
    struct front *front = *state;

    open_token(front);
    for (uint32_t number = 1; number <= 200; number++) {
        struct frame reply;

        send_request(front, number, HSM_SIGN, "");
        reply = receive(front, FRAME_REPLY);
        assert_int_equal(reply.number, number);
        assert_int_equal(reply.reply.fault.code, FAULT_NONE);
        assert_int_equal(reply.reply.signature[0], (uint8_t)number);
    }
    hang_up(front);
    assert_int_equal(WEXITSTATUS(status_of(front)), STATUS_CLOSED);
}

static void refused_token_is_told_and_the_worker_leaves(void **state)
{
    struct front *front = *state;
    struct frame reply;
    char byte;

    send_open(front, "good", "wrong");
    reply = receive(front, FRAME_REPLY);
    assert_int_equal(reply.reply.fault.code, FAULT_FAILED_PRECONDITION);
    assert_string_equal(reply.reply.fault.message, "PIN refused");
    assert_int_equal(recv(front->socket, &byte, 1, 0), 0);
    assert_int_equal(WEXITSTATUS(status_of(front)), EXIT_FAILURE);
}

/* The token is opened (and says no) only if the file looks otherwise than `before`. */
static void open_after_refusal(const struct front *front, const char *path,
                               const struct file_stamp *before, bool opened)
{
    struct file_stamp now;
    struct frame reply;

    front->page->refused = true;
    front->page->pin = *before;
    send_open_with(front, "good", HSM_PIN_FILE, path);
    reply = receive(front, FRAME_REPLY);
    assert_string_equal(reply.reply.fault.message,
                        opened ? "PIN refused" : "the PIN's file has not changed");
    assert_int_equal(front->page->refused, !opened);
    assert_int_equal(file_stamp_path(path, &now), 0);
    assert_true(file_stamp_untouched(&front->page->pin, &now));
    assert_int_equal(front->page->looking, 0);
}

static void a_pin_that_was_refused_is_left_alone_until_its_file_has_changed(void **state)
{
    char path[] = "/tmp/worker-pin-XXXXXX";
    int file = mkstemp(path);
    struct file_stamp before;

    assert_true(file >= 0);
    assert_int_equal(file_stamp_open(file, &before), 0);
    open_after_refusal(*state, path, &before, false);
    assert_int_equal(end(state), 0);
    assert_int_equal(start(state), 0);
    assert_int_equal(write(file, "1", 1), 1);
    open_after_refusal(*state, path, &before, true);
    (void)close(file);
    (void)unlink(path);
}

/* Its limit is that of a look: the page says since when it has been reading. */
static void a_keys_file_whose_disk_hangs_is_told_from_a_slow_token(void **state)
{
    struct front *front = *state;
    struct frame open = {.kind = FRAME_OPEN,
                         .settings = {.sessions = SESSIONS, .keys_file = "/hangs"}};
    uint8_t bytes[FRAME_MAX];
    int64_t before = clock_now();

    send_bytes(front, bytes, frame_encode(&open, bytes));
    while (atomic_load(&front->page->looking) == 0 && clock_now() - before < CLOCK_SECOND * 60)
        (void)sched_yield();
    assert_in_range(atomic_load(&front->page->looking), before, clock_now());
    (void)kill(front->worker, SIGKILL);
    (void)status_of(front);
}

static void a_keys_file_that_was_read_is_looked_at_no_more(void **state)
{
    struct front *front = *state;
    struct frame open = {.kind = FRAME_OPEN,
                         .settings = {.sessions = SESSIONS, .keys_file = "/fine"}};
    uint8_t bytes[FRAME_MAX];

    (void)strcpy(open.settings.pin_text, "1234");
    send_bytes(front, bytes, frame_encode(&open, bytes));
    (void)receive(front, FRAME_READY);
    assert_int_equal(atomic_load(&front->page->looking), 0);
}

static void front_of_another_build_is_refused(void **state)
{
    struct front *front = *state;
    struct frame open = {.kind = FRAME_OPEN, .settings = {.sessions = 1}};
    uint8_t bytes[FRAME_MAX];
    size_t length = frame_encode(&open, bytes);

    bytes[5] ^= 1;
    send_bytes(front, bytes, length);
    assert_int_equal(receive(front, FRAME_REPLY).reply.fault.code, FAULT_FAILED_PRECONDITION);
    assert_int_equal(WEXITSTATUS(status_of(front)), EXIT_FAILURE);
}

static void as_many_calls_run_at_once_as_there_are_sessions(void **state)
{
    struct front *front = *state;
    bool answered[SESSIONS + 1] = {false};

    open_token(front);
    for (uint32_t number = 1; number <= SESSIONS; number++)
        send_request(front, number, HSM_SIGN, "wait");
    for (uint32_t number = 1; number <= SESSIONS; number++)
        await_executing(front, number);
    send_request(front, 99, HSM_SIGN, "");
    assert_false(is_executing(front, 99));
    for (uint32_t i = 0; i < SESSIONS; i++)
        assert_int_equal(write(front->gate, "x", 1), 1);
    for (uint32_t i = 0; i <= SESSIONS; i++) {
        struct frame reply = receive(front, FRAME_REPLY);

        assert_int_equal(reply.reply.fault.code, FAULT_NONE);
        if (reply.number <= SESSIONS)
            answered[reply.number] = true;
        else
            assert_int_equal(reply.number, 99);
    }
    for (uint32_t number = 1; number <= SESSIONS; number++)
        assert_true(answered[number]);
}

static void page_is_clear_when_nothing_is_executed(void **state)
{
    struct front *front = *state;

    open_token(front);
    send_request(front, 7, HSM_SIGN, "");
    (void)receive(front, FRAME_REPLY);
    while (is_executing(front, 7))
        (void)poll(NULL, 0, 1);
    hang_up(front);
    (void)status_of(front);
    for (size_t i = 0; i < HSM_SESSIONS_MAX; i++)
        assert_int_equal(atomic_load(&front->page->slots[i].number), 0);
}

static void death_names_what_was_executed(void **state)
{
    struct front *front = *state;
    char byte;

    open_token(front);
    send_request(front, 4711, HSM_SIGN, "die");
    assert_true(recv(front->socket, &byte, 1, 0) <= 0);
    assert_true(WIFSIGNALED(status_of(front)));
    assert_true(is_executing(front, 4711));
}

static void scan_comes_item_by_item(void **state)
{
    struct front *front = *state;
    char expected[32];

    open_token(front);
    send_request(front, 5, HSM_SCAN, "");
    for (unsigned i = 0; i < 100; i++) {
        struct frame frame = receive(front, FRAME_ITEM);

        (void)snprintf(expected, sizeof expected, "item %u", i);
        assert_int_equal(frame.number, 5);
        assert_string_equal(frame.item.key.label, expected);
    }
    assert_int_equal(receive(front, FRAME_REPLY).reply.items, 100);
}

static void broken_packets_are_answered_and_survived(void **state)
{
    struct front *front = *state;
    uint8_t bytes[2 * FRAME_MAX] = {FRAME_REQUEST, 6, 0, 0, 0, 99};
    struct frame reply;

    open_token(front);
    send_bytes(front, bytes, 6);
    reply = receive(front, FRAME_REPLY);
    assert_int_equal(reply.number, 6);
    assert_int_equal(reply.reply.fault.code, FAULT_INTERNAL);
    send_bytes(front, bytes, sizeof bytes);
    reply = receive(front, FRAME_REPLY);
    assert_int_equal(reply.number, 6);
    assert_int_equal(reply.reply.fault.code, FAULT_INTERNAL);
    send_open(front, "good", "1234");
    assert_int_equal(receive(front, FRAME_REPLY).reply.fault.code, FAULT_INTERNAL);
    send_request(front, 8, HSM_SIGN, "");
    assert_int_equal(receive(front, FRAME_REPLY).number, 8);
}

/* systemd and Ctrl-C signal the whole group; the front alone decides. */
static void termination_signals_do_not_end_it(void **state)
{
    struct front *front = *state;

    open_token(front);
    (void)kill(front->worker, SIGTERM);
    (void)kill(front->worker, SIGINT);
    send_request(front, 1, HSM_SIGN, "");
    assert_int_equal(receive(front, FRAME_REPLY).number, 1);
}

static void process_is_hardened_and_has_no_foreign_descriptors(void **state)
{
    struct front *front = *state;
    struct frame reply;

    open_token(front);
    send_request(front, 1, HSM_SIGN, "report");
    reply = receive(front, FRAME_REPLY);
#ifdef __SANITIZE_ADDRESS__
    assert_string_equal(reply.reply.why, "fds 3f dumpable 1 privs 1 core 0");
#else
    assert_string_equal(reply.reply.why, "fds 3f dumpable 0 privs 1 core 0");
#endif
}

/* A key half written is worse than a late exit. And what had not begun does not begin:
 * nobody would learn of a key made then. */
static void front_gone_lets_the_call_end_and_begins_no_other(void **state)
{
    struct front *front = *state;

    open_token(front);
    for (uint32_t number = 1; number <= SESSIONS; number++)
        send_request(front, number, HSM_GENERATE, "wait");
    for (uint32_t number = 1; number <= SESSIONS; number++)
        await_executing(front, number);
    send_request(front, 98, HSM_GENERATE, "hang");
    send_request(front, 99, HSM_GENERATE, "die");
    hang_up(front);
    for (uint32_t i = 0; i < SESSIONS; i++)
        assert_int_equal(write(front->gate, "x", 1), 1);
    assert_int_equal(WEXITSTATUS(status_of(front)), STATUS_CLOSED);
}

static void what_a_front_sent_before_it_went_is_not_begun(void **state)
{
    struct front *front = *state;
    int status;

    open_token(front);
    (void)kill(front->worker, SIGSTOP);
    assert_int_equal(waitpid(front->worker, &status, WUNTRACED), front->worker);
    send_request(front, 1, HSM_GENERATE, "die");
    hang_up(front);
    (void)kill(front->worker, SIGCONT);
    assert_int_equal(WEXITSTATUS(status_of(front)), STATUS_CLOSED);
}

static void worker_without_a_front_leaves_at_once(void **state)
{
    struct front *front = *state;

    hang_up(front);
    assert_int_equal(WEXITSTATUS(status_of(front)), EXIT_FAILURE);
}

static void module_that_hangs_does_not_outlive_the_front_for_long(void **state)
{
    struct front *front = *state;

    open_token(front);
    send_request(front, 1, HSM_SIGN, "hang");
    await_executing(front, 1);
    hang_up(front);
    assert_int_equal(WEXITSTATUS(status_of(front)), EXIT_FAILURE);
}

static void module_that_hangs_at_opening_does_not_either(void **state)
{
    struct front *front = *state;

    send_open(front, "hangs", "1234");
    hang_up(front);
    assert_int_equal(WEXITSTATUS(status_of(front)), EXIT_FAILURE);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(ready_tells_what_was_opened_and_requests_are_answered),
        TEST(refused_token_is_told_and_the_worker_leaves),
        TEST(a_pin_that_was_refused_is_left_alone_until_its_file_has_changed),
        TEST(a_keys_file_whose_disk_hangs_is_told_from_a_slow_token),
        TEST(a_keys_file_that_was_read_is_looked_at_no_more),
        TEST(front_of_another_build_is_refused),
        TEST(as_many_calls_run_at_once_as_there_are_sessions),
        TEST(page_is_clear_when_nothing_is_executed),
        TEST(death_names_what_was_executed),
        TEST(scan_comes_item_by_item),
        TEST(broken_packets_are_answered_and_survived),
        TEST(termination_signals_do_not_end_it),
        TEST(process_is_hardened_and_has_no_foreign_descriptors),
        TEST(front_gone_lets_the_call_end_and_begins_no_other),
        TEST(what_a_front_sent_before_it_went_is_not_begun),
        TEST(worker_without_a_front_leaves_at_once),
        TEST(module_that_hangs_does_not_outlive_the_front_for_long),
        TEST(module_that_hangs_at_opening_does_not_either),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
