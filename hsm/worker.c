/* The worker process: one thread for each session takes requests from the socket and answers them,
 * until the front is gone. */
#include "hsm/hsm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "hsm/pin.h"
#include "hsm/wire/frame.h"

/* How long a call into the module may go on after the front is gone. A key or a token file that is
 * being written should be whole. But a hung module must end soon: this process holds the identity
 * lock, and the next server waits for it. */
enum { LEAVE_SECONDS = 2, LEAVE_SECONDS_WRITING = 10 };

struct worker {
    int socket;
    struct frame_page *page;
    struct hsm_token *token;
    struct hsm_token_info info;
    atomic_bool opening;
    struct server {
        pthread_t thread;
        struct worker *worker;
        struct frame_slot *slot;
        atomic_bool writes; /* its request changes the token */
        int64_t spent;      /* time of its request before slot->started, in ns */
    } servers[HSM_SESSIONS_MAX];
    uint32_t server_count;
};

/* ---- the process ---- */

/* A child that the module forks must not have these, or the front would take the child for the
 * worker. */
static struct {
    int socket;
    int page;
    int lock; /* -1 = none */
    struct frame_page *map;
} kept = {-1, -1, -1, NULL};

static void forget(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

/* Runs in a child that has not called exec. The child may live long, and an open descriptor would
 * hold the identity lock. Once only: the child's own children come here too, and there these
 * numbers may be the child's own files. */
static void forget_in_child(void)
{
    forget(&kept.socket);
    forget(&kept.page);
    forget(&kept.lock);
    if (kept.map)
        (void)munmap(kept.map, sizeof *kept.map);
    kept.map = NULL;
}

/* Descriptors 0 to 2 are as the front made them, two are ours, and the identity lock may follow.
 * Programs that a library starts must get none of them: the lock would outlive this process. */
static void keep_descriptors(int socket, int page)
{
    unsigned first = (unsigned)(page < socket ? page : socket);
    unsigned last = (unsigned)(page > socket ? page : socket) + 1;

    (void)close_range(last + 1, ~0U, 0);
    (void)close_range(first, last, CLOSE_RANGE_CLOEXEC);
    kept.socket = socket;
    kept.page = page;
    kept.lock = fcntl((int)last, F_GETFD) >= 0 ? (int)last : -1;
    (void)pthread_atfork(NULL, NULL, forget_in_child);
}

/* systemd and Ctrl-C signal the whole group, but the front decides when the worker leaves. The
 * process name is set because an execution by descriptor shows a number instead. */
static void harden(void)
{
    static const struct rlimit no_core = {0, 0};

#ifndef __SANITIZE_ADDRESS__ /* LeakSanitizer looks at its process with ptrace */
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    (void)prctl(PR_SET_NAME, "spire-hsm-worker", 0, 0, 0);
    (void)setrlimit(RLIMIT_CORE, &no_core);
    (void)signal(SIGTERM, SIG_IGN);
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
}

/* The front raises its own limit. A library that calls select() gets the host's. */
static void restore_open_files(const struct frame_page *page)
{
    struct rlimit limit;

    if (page->open_files == 0 || getrlimit(RLIMIT_NOFILE, &limit) != 0 ||
        page->open_files >= limit.rlim_cur)
        return;
    limit.rlim_cur = page->open_files;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

static bool front_is_gone(const struct worker *worker, int patience_ms)
{
    struct pollfd front = {.fd = worker->socket, .events = POLLRDHUP};

    return poll(&front, 1, patience_ms) > 0;
}

static bool may_write(const struct worker *worker)
{
    for (size_t i = 0; i < HSM_SESSIONS_MAX; i++)
        if (atomic_load(&worker->servers[i].writes))
            return true;
    return atomic_load(&worker->opening);
}

static void rest_a_second(void)
{
    struct timespec left = {.tv_sec = 1};

    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        continue;
}

/* Waits for the front to go, then gives the running calls their time. The process usually ends
 * before that. */
static void *watch_front(void *context)
{
    const struct worker *worker = context;

    while (!front_is_gone(worker, -1))
        continue;
    for (int i = 0; i < LEAVE_SECONDS || (i < LEAVE_SECONDS_WRITING && may_write(worker)); i++)
        rest_a_second();
    _exit(EXIT_FAILURE);
}

/* ---- packets ---- */

static void hang_up(const struct worker *worker)
{
    (void)shutdown(worker->socket, SHUT_RDWR);
}

/* If a packet cannot be sent, the front would wait for it for ever. So this process ends, which the
 * front sees. */
static int send_frame(const struct worker *worker, const struct frame *frame)
{
    uint8_t bytes[FRAME_MAX];
    size_t length = frame_encode(frame, bytes);
    ssize_t sent;

    do
        sent = send(worker->socket, bytes, length, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent == (ssize_t)length)
        return 0;
    hang_up(worker);
    return -1;
}

static void send_fault(const struct worker *worker, uint32_t number, const struct fault *fault)
{
    struct frame reply = {.kind = FRAME_REPLY, .number = number};

    reply.reply.fault = *fault;
    (void)send_frame(worker, &reply);
}

/* Returns 0 if the front is gone. With MSG_TRUNC the length is that of the whole packet. */
static size_t receive_packet(const struct worker *worker, uint8_t bytes[FRAME_MAX])
{
    ssize_t got;

    do
        got = recv(worker->socket, bytes, FRAME_MAX, MSG_TRUNC);
    while (got < 0 && errno == EINTR);
    return got > 0 ? (size_t)got : 0;
}

static int decode(const uint8_t *bytes, size_t length, enum frame_kind kind, struct frame *frame,
                  struct fault *fault)
{
    if (length > FRAME_MAX)
        return fault_set(fault, FAULT_INTERNAL, "packet of %zu bytes is too long", length);
    if (frame_decode(bytes, length, frame, fault) != 0)
        return -1;
    if (frame->kind != kind)
        return fault_set(fault, FAULT_INTERNAL, "packet of kind %d came out of turn",
                         (int)frame->kind);
    return 0;
}

/* ---- requests ---- */

static _Thread_local struct server *me;

/* A token may have fewer sessions than this worker has threads. Then a request may wait behind a
 * slow generation, and that wait does not count as hanging. */
static void begin_again(void)
{
    atomic_store(&me->slot->started, clock_now());
}

/* Making a key pair may take minutes. Its trial signature takes as long as any other, or it
 * hangs. */
static void begin_proof(void)
{
    int64_t now = clock_now();

    me->spent = now - atomic_load(&me->slot->started);
    atomic_store(&me->slot->started, now);
    atomic_store(&me->slot->op, HSM_PROVE);
}

struct scan {
    const struct worker *worker;
    uint32_t number;
};

static void send_item(void *context, const struct hsm_item *item)
{
    const struct scan *scan = context;
    struct frame frame = {.kind = FRAME_ITEM, .number = scan->number};

    frame.item = *item;
    (void)send_frame(scan->worker, &frame);
}

static uint32_t microseconds_of(const struct server *server)
{
    int64_t past = (server->spent + clock_now() - atomic_load(&server->slot->started)) / 1000;

    return past < UINT32_MAX ? (uint32_t)past : UINT32_MAX;
}

/* While this runs, the front blames a death or a time limit on what the slot says. */
static int execute(struct server *server, const struct frame *request)
{
    const struct worker *worker = server->worker;
    struct scan scan = {worker, request->number};
    struct frame reply = {.kind = FRAME_REPLY, .number = request->number};
    enum hsm_op op = request->request.op;
    int sent;

    atomic_store(&server->writes, op == HSM_GENERATE || op == HSM_DESTROY);
    server->spent = 0;
    atomic_store(&server->slot->op, op);
    atomic_store(&server->slot->started, clock_now());
    atomic_store(&server->slot->number, request->number);
    hsm_execute(worker->token, &request->request, &reply.reply, send_item, &scan);
    reply.reply.microseconds = microseconds_of(server);
    sent = send_frame(worker, &reply);
    atomic_store(&server->slot->number, 0);
    atomic_store(&server->writes, false);
    return sent;
}

/* Nobody would learn of a key made now. A signature that nobody waits for does no harm, and the
 * check costs a system call. */
static bool too_late(const struct worker *worker, const struct hsm_request *request)
{
    return request->op != HSM_SIGN && front_is_gone(worker, 0);
}

/* The kernel hands each packet to one thread. A request that the front sent before it went is not
 * begun. */
static void *serve_requests(void *context)
{
    struct server *server = context;
    const struct worker *worker = server->worker;
    uint8_t bytes[FRAME_MAX];
    struct frame request;
    struct fault fault;
    size_t length;

    me = server;
    while ((length = receive_packet(worker, bytes)) > 0) {
        if (decode(bytes, length, FRAME_REQUEST, &request, &fault) != 0)
            send_fault(worker, frame_number(bytes, length), &fault);
        else if (too_late(worker, &request.request) || execute(server, &request) != 0)
            break;
    }
    return NULL;
}

/* ---- the worker's life ---- */

static int begin_work(struct worker *worker, int page, struct fault *fault)
{
    pthread_t watcher;
    int error;

    worker->page = mmap(NULL, sizeof *worker->page, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
    if (worker->page == MAP_FAILED)
        return fault_errno(fault, FAULT_INTERNAL, errno, "worker cannot map its shared page");
    kept.map = worker->page;
    restore_open_files(worker->page);
    error = pthread_create(&watcher, NULL, watch_front, worker);
    if (error != 0)
        return fault_errno(fault, FAULT_UNAVAILABLE, error, "worker cannot start a thread");
    (void)pthread_detach(watcher);
    return 0;
}

/* A refused PIN is tried again only if its file was touched since. */
static int look_at_pin(struct frame_page *page, const struct hsm_settings *settings,
                       struct fault *fault)
{
    struct file_stamp now;

    atomic_store(&page->looking, clock_now());
    pin_look(settings, &now);
    atomic_store(&page->looking, 0);
    if (page->refused && file_stamp_untouched(&now, &page->pin))
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "the PIN's file has not changed");
    page->refused = false;
    page->pin = now;
    return 0;
}

/* A file either answers while its disk does, or hangs: a slow token is no excuse here. */
static int open_source(struct worker *worker, const struct hsm_settings *settings,
                       struct fault *fault)
{
    int done;

    if (settings->keys_file[0] != '\0')
        atomic_store(&worker->page->looking, clock_now());
    done = hsm_open(settings, &worker->token, &worker->info, fault);
    atomic_store(&worker->page->looking, 0);
    return done;
}

/* No copy of the settings stays here: the token has its own. */
static int open_token(struct worker *worker, struct fault *fault)
{
    uint8_t bytes[FRAME_MAX];
    struct frame open;
    size_t length = receive_packet(worker, bytes);
    int done = -1;

    if (length == 0)
        return fault_set(fault, FAULT_CANCELLED, "front is gone");
    if (decode(bytes, length, FRAME_OPEN, &open, fault) == 0 &&
        look_at_pin(worker->page, &open.settings, fault) == 0)
        done = open_source(worker, &open.settings, fault);
    explicit_bzero(bytes, sizeof bytes);
    explicit_bzero(&open, sizeof open);
    return done;
}

/* A thread without a session would only wait for one. If the system has no more threads, fewer will
 * do. */
static int start_servers(struct worker *worker, struct fault *fault)
{
    for (uint32_t i = 0; i < worker->info.sessions && i < HSM_SESSIONS_MAX; i++) {
        struct server *server = &worker->servers[i];
        int error;

        server->worker = worker;
        server->slot = &worker->page->slots[i];
        error = pthread_create(&server->thread, NULL, serve_requests, server);
        if (error != 0 && i == 0)
            return fault_errno(fault, FAULT_UNAVAILABLE, error, "worker cannot start a thread");
        if (error != 0)
            break;
        worker->server_count++;
    }
    return 0;
}

static int serve_until_gone(struct worker *worker, struct fault *fault)
{
    struct frame ready = {.kind = FRAME_READY, .info = worker->info};

    atomic_store(&worker->opening, false);
    hsm_listen(worker->token, begin_again, begin_proof);
    if (start_servers(worker, fault) != 0)
        return -1;
    (void)send_frame(worker, &ready);
    for (uint32_t i = 0; i < worker->server_count; i++)
        (void)pthread_join(worker->servers[i].thread, NULL);
    return 0;
}

int hsm_worker(int socket, int page)
{
    static struct worker worker; /* watch_front reads this until the process ends */
    struct fault fault;
    int done;

    worker.socket = socket;
    worker.opening = true;
    keep_descriptors(socket, page);
    harden();
    done = begin_work(&worker, page, &fault);
    if (done == 0)
        done = open_token(&worker, &fault);
    if (done == 0)
        done = serve_until_gone(&worker, &fault);
    if (done != 0)
        send_fault(&worker, 0, &fault);
    hsm_close(worker.token);
    return done == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
