/* The token of supervisor_token.h, in the worker processes. */
#include "tests/support/supervisor_token.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "hsm/hsm.h"

struct script *script;

/* Calls that hang are left behind on purpose. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "report_thread_leaks=0";
}

int map_script(int fd)
{
    script = mmap(NULL, sizeof *script, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return script == MAP_FAILED ? -1 : 0;
}

void nap(void)
{
    (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

int hsm_open(const struct hsm_settings *settings, struct hsm_token **token,
             struct hsm_token_info *info, struct fault *fault)
{
    atomic_fetch_add(&script->starts, 1);
    script->pid = getpid();
    switch (script->opening) {
    case OPENS_SLOWLY:
        (void)nanosleep(&(struct timespec){.tv_sec = 1, .tv_nsec = 500000000}, NULL);
        break;
    case DIES:
        (void)raise(SIGKILL);
        break;
    case NEVER_OPENS:
        for (;;)
            (void)pause();
    case REFUSES:
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "PIN refused");
    case PIN_IS_WRONG:
        (void)fault_set(fault, FAULT_FAILED_PRECONDITION, "PIN refused");
        fault->ckr = 0xa0; /* CKR_PIN_INCORRECT */
        return -1;
    case ABSENT:
        return fault_set(fault, FAULT_UNAVAILABLE, "no such token");
    default:
        break;
    }
    *token = (struct hsm_token *)script;
    *info = (struct hsm_token_info){.label = "made up", .sessions = settings->sessions};
    return 0;
}

void hsm_close(struct hsm_token *token)
{
    (void)token;
}

static hsm_progress_fn *waits;
static hsm_progress_fn *proves;

void hsm_listen(struct hsm_token *token, hsm_progress_fn *when_it_waits,
                hsm_progress_fn *when_it_proves)
{
    (void)token;
    waits = when_it_waits;
    proves = when_it_proves;
}

static bool fault_is_due(void)
{
    return atomic_fetch_sub(&script->faults_left, 1) > 0;
}

/* A test that has ended opens no gate. */
static bool is_orphan(void)
{
    return getppid() == 1;
}

static void do_wait(struct hsm_reply *reply)
{
    (void)reply;
    atomic_fetch_add(&script->waiting, 1);
    while (!script->gate && !is_orphan())
        nap();
    atomic_fetch_sub(&script->waiting, 1);
}

static void do_queue(struct hsm_reply *reply)
{
    (void)reply;
    while (!script->gate && !is_orphan()) {
        nap();
        waits();
    }
}

static void do_slow(struct hsm_reply *reply)
{
    (void)reply;
    for (unsigned i = 0; i < 30; i++)
        nap();
}

static void do_die(struct hsm_reply *reply)
{
    (void)reply;
    if (fault_is_due())
        (void)raise(SIGKILL);
}

static void do_hang(struct hsm_reply *reply)
{
    (void)reply;
    while (fault_is_due())
        for (;;)
            (void)pause();
}

static void do_hang_unproven(struct hsm_reply *reply)
{
    proves();
    do_hang(reply);
}

static void do_rave(struct hsm_reply *reply)
{
    (void)reply;
    if (fault_is_due())
        (void)send(WORKER_SOCKET, "\377 is no frame", 14, MSG_NOSIGNAL);
}

static void do_fail(struct hsm_reply *reply)
{
    if (fault_is_due())
        (void)fault_set(&reply->fault, FAULT_UNAVAILABLE, "CKR_DEVICE_ERROR");
}

static void do_miss(struct hsm_reply *reply)
{
    if (fault_is_due())
        (void)fault_set(&reply->fault, FAULT_NOT_FOUND, "no such key");
}

static void do_tell_lock(struct hsm_reply *reply)
{
    struct stat st;

    reply->items = fstat(WORKER_LOCK, &st) == 0 ? (uint32_t)st.st_ino : 0;
}

static void do_shrink(struct hsm_reply *reply)
{
    reply->items = ftruncate(WORKER_PAGE, 0) == 0;
}

/* As a library may that has a helper. */
static void do_fork(struct hsm_reply *reply)
{
    (void)reply;
    if (fork() != 0)
        return;
    while (!script->gate)
        nap();
    _exit(EXIT_SUCCESS);
}

static void do_tell_inheritable(struct hsm_reply *reply)
{
    for (int fd = WORKER_SOCKET; fd <= WORKER_LOCK; fd++)
        reply->items += fcntl(fd, F_GETFD) == 0;
}

static const struct {
    const char *label;
    void (*act)(struct hsm_reply *reply);
} deeds[] = {
    {"wait", do_wait},
    {"slow", do_slow},
    {"die", do_die},
    {"hang", do_hang},
    {"rave", do_rave},
    {"fail", do_fail},
    {"miss", do_miss},
    {"tell lock", do_tell_lock},
    {"shrink", do_shrink},
    {"queue", do_queue},
    {"fork", do_fork},
    {"tell inheritable", do_tell_inheritable},
    {"unproven", do_hang_unproven},
};

static void act(const char *label, struct hsm_reply *reply)
{
    for (size_t i = 0; i < sizeof deeds / sizeof deeds[0]; i++) {
        size_t length = strlen(deeds[i].label);

        if (strncmp(label, deeds[i].label, length) == 0 &&
            label[length + strspn(label + length, "0123456789")] == '\0')
            deeds[i].act(reply);
    }
}

void hsm_execute(struct hsm_token *token, const struct hsm_request *request,
                 struct hsm_reply *reply, hsm_item_fn *item, void *context)
{
    struct hsm_item found = {.state = HSM_COMPLETE};

    (void)token;
    if (request->op == HSM_PING)
        atomic_fetch_add(&script->pings, 1);
    for (unsigned i = 0; request->op == HSM_SCAN && i < ITEMS; i++) {
        (void)snprintf(found.key.label, sizeof found.key.label, "%u", i);
        item(context, &found);
        if (i == ITEMS / 2)
            act(request->key.label, reply);
    }
    if (request->op != HSM_SCAN)
        act(request->key.label, reply);
    reply->signature_length = sizeof request->digest;
    memcpy(reply->signature, request->digest, sizeof request->digest);
}

int become_worker(void)
{
    const char *path = getenv(script_variable);
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;

    if (fd < 0 || map_script(fd) != 0)
        return EXIT_FAILURE;
    return hsm_worker(WORKER_SOCKET, WORKER_PAGE);
}
