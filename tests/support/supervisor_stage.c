/* The supervisor and the requests of supervisor_stage.h. */
#include "tests/support/supervisor_stage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "plugin/worker/child.h"
#include "plugin/worker/program.h"

struct front front = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

void changed(void)
{
    (void)pthread_cond_broadcast(&front.changed);
    (void)pthread_mutex_unlock(&front.mutex);
}

static void answered(void *context, const struct hsm_reply *reply)
{
    struct call *call = context;

    (void)pthread_mutex_lock(&front.mutex);
    call->answers++;
    call->reply = *reply;
    changed();
}

unsigned answers_of(const struct call *call)
{
    unsigned answers;

    (void)pthread_mutex_lock(&front.mutex);
    answers = call->answers;
    (void)pthread_mutex_unlock(&front.mutex);
    return answers;
}

static void found(void *context, const struct hsm_item *item)
{
    struct call *call = context;

    if (item && strtoul(item->key.label, NULL, 10) == call->items) {
        call->items++;
        return;
    }
    call->fresh_starts += !item;
    call->items = item ? ITEMS + 1 : 0; /* out of order: never right again */
}

static void count_tick(void *context)
{
    (void)context;
    (void)pthread_mutex_lock(&front.mutex);
    front.ticks++;
    changed();
}

static void count_end(void *context)
{
    (void)context;
    (void)pthread_mutex_lock(&front.mutex);
    front.ended++;
    changed();
}

bool wait_for_change(void)
{
    struct timespec until;

    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_S;
    return pthread_cond_timedwait(&front.changed, &front.mutex, &until) == 0;
}

bool await_more(const unsigned *count, unsigned by)
{
    bool moving = true;
    unsigned from;

    (void)pthread_mutex_lock(&front.mutex);
    from = *count;
    while (*count - from < by && moving)
        moving = wait_for_change();
    (void)pthread_mutex_unlock(&front.mutex);
    return moving;
}

void submit(struct call *call)
{
    supervisor_submit(front.supervisor, &(struct supervisor_request){.request = &call->request,
                                                                     .deadline = call->deadline,
                                                                     .done = answered,
                                                                     .item = found,
                                                                     .context = call});
}

void ask(struct call *call, enum hsm_op op, const char *label)
{
    ask_within(call, op, label, PATIENCE_S * INT64_C(1000));
}

void ask_within(struct call *call, enum hsm_op op, const char *label, int64_t milliseconds)
{
    static uint8_t serial;

    *call = (struct call){.request = {.op = op, .digest_length = HSM_DIGEST_MAX},
                          .deadline = clock_now() + milliseconds * CLOCK_MILLISECOND};
    (void)snprintf(call->request.key.label, sizeof call->request.key.label, "%s", label);
    memset(call->request.digest, ++serial, sizeof call->request.digest);
    submit(call);
}

void hear(struct call *call)
{
    bool moving = true;

    (void)pthread_mutex_lock(&front.mutex);
    while (call->answers == 0 && moving)
        moving = wait_for_change();
    (void)pthread_mutex_unlock(&front.mutex);
    assert_int_equal(call->answers, 1);
}

void assert_done(struct call *call)
{
    hear(call);
    if (call->reply.fault.code != FAULT_NONE)
        print_error("%s\n", call->reply.fault.message);
    assert_int_equal(call->reply.fault.code, FAULT_NONE);
    assert_memory_equal(call->reply.signature, call->request.digest, HSM_DIGEST_MAX);
}

void assert_fails(struct call *call, enum fault_code code, const char *why)
{
    hear(call);
    if (!strstr(call->reply.fault.message, why))
        print_error("%s\n", call->reply.fault.message);
    assert_int_equal(call->reply.fault.code, code);
    assert_non_null(strstr(call->reply.fault.message, why));
}

void assert_done_at_once(void)
{
    struct call call;

    ask(&call, HSM_SIGN, "echo");
    assert_done(&call);
}

void await_waiting(unsigned count)
{
    while (script->waiting != count)
        nap();
}

struct supervisor_options usual(void)
{
    return (struct supervisor_options){.settings = {.sessions = SESSIONS},
                                       .lock = -1,
                                       .operation_limit = PATIENCE_S * CLOCK_SECOND,
                                       .generate_limit = PATIENCE_S * CLOCK_SECOND,
                                       .tick = count_tick,
                                       .ended = count_end};
}

void start_with(const struct supervisor_options *options)
{
    assert_int_equal(supervisor_start(options, &front.supervisor, NULL), 0);
}

void await_token(void)
{
    const atomic_bool cancel = false;
    struct hsm_token_info info;
    struct fault fault;
    int64_t deadline = clock_now() + PATIENCE_S * CLOCK_SECOND;

    if (supervisor_wait(front.supervisor, deadline, &cancel, &info, &fault) != 0)
        fail_msg("%s", fault.message);
    assert_string_equal(info.label, "made up");
}

void start(void)
{
    const struct supervisor_options options = usual();

    start_with(&options);
    await_token();
}

void await_end(void)
{
    bool moving = true;

    (void)pthread_mutex_lock(&front.mutex);
    while (front.ended == 0 && moving)
        moving = wait_for_change();
    (void)pthread_mutex_unlock(&front.mutex);
    assert_int_equal(front.ended, 1);
}

int count_fds(void)
{
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;

    while (readdir(folder))
        count++;
    (void)closedir(folder);
    return count;
}

void finish(void)
{
    supervisor_retire(front.supervisor);
    await_end();
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
    assert_int_equal(count_fds(), front.fds);
}

int begin_test(void **state)
{
    (void)state;
    memset(script, 0, sizeof *script);
    front.supervisor = NULL;
    front.ended = 0;
    front.ticks = 0;
    front.fds = count_fds();
    return 0;
}

int end_test(void **state)
{
    (void)state;
    if (!front.supervisor || front.ended > 0)
        return 0;
    script->gate = true;
    supervisor_abandon(front.supervisor);
    supervisor_retire(front.supervisor);
    (void)kill(script->pid, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        continue;
    return 0;
}

void reap_worker(void)
{
    assert_int_equal(kill(script->pid, SIGKILL), 0);
    assert_int_equal(waitpid(script->pid, NULL, 0), script->pid);
}

int make_script(void **state)
{
    char path[] = "/tmp/unit-supervisor-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);
    int result;

    (void)state;
    result = ftruncate(fd, sizeof *script) == 0 && map_script(fd) == 0 &&
                     setenv(script_variable, path, 1) == 0
                 ? 0
                 : -1;
    (void)close(fd);
    program_is("/proc/self/exe", NULL); /* the test is its own worker */
    child_prepare();
    return result;
}

int remove_script(void **state)
{
    (void)state;
    return unlink(getenv(script_variable));
}
