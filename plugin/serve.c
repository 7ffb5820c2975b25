/* A plugin process from its handshake to its exit: signals, the death of the host, and the order of
 * stopping. */
#include "plugin/serve.h"

#include <errno.h>
#include <linux/close_range.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "plugin/report/log.h"
#include "plugin/rpc/goplugin.h"
#include "plugin/rpc/handshake.h"
#include "plugin/rpc/rpc.h"
#include "plugin/service/host.h"
#include "plugin/service/lane.h"
#include "plugin/service/svc.h"
#include "plugin/worker/child.h"

/* go-plugin kills the process 2 s after Shutdown. Closing a role takes up to one. */
enum {
    GRACE_MS = 300,
    JOIN_MS = 300,
    LAST_RESORT_S = 5,
    TICK_MS = 1000,
};

static const int64_t after_term = 5 * CLOCK_SECOND;

enum { WATCH_SIGNALS, WATCH_WAKE, WATCH_PARENT, WATCHED };

static struct {
    struct pollfd fds[WATCHED];
    pid_t parent;
    int64_t term_end; /* CLOCK_NEVER: no SIGTERM has come */
    struct rpc *rpc;
    pthread_t thread;
    int thread_end; /* readable when rpc_run has returned */
    char path[RPC_PATH_MAX];
} server;

static void raise_event(int event)
{
    const uint64_t one = 1;

    (void)!write(event, &one, sizeof one);
}

/* Called on the gRPC thread. The main thread does the stopping. */
static void wake(void)
{
    raise_event(server.fds[WATCH_WAKE].fd);
}

/* Operators signal the host by name ("pkill -USR1 spire"), by terminal and by control group, which
 * also hits its plugins. So the plugin ignores these signals. SIGHUP in particular: a host started
 * with nohup lives on without its terminal, and any other host dies of it, which we notice. */
static void arrange_signals(sigset_t *watched)
{
    static const int ignored[] = {SIGHUP, SIGINT, SIGPIPE, SIGUSR1, SIGUSR2};
    struct sigaction ignore = {.sa_handler = SIG_IGN};

    for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++)
        (void)sigaction(ignored[i], &ignore, NULL);
    (void)sigemptyset(watched);
    (void)sigaddset(watched, SIGTERM);
    (void)pthread_sigmask(SIG_BLOCK, watched, NULL);
}

/* SPIRE asks the kernel to kill us when it dies. That leaves our socket behind, gives the
 * worker no word, and follows the thread that started us, not the process: a thread that
 * ends early takes the plugin along. We see the parent's end ourselves.
 *
 * Where there is no pidfd of the parent (old kernel, other pid namespace), the tick
 * notices it later. */
static int open_watch(struct fault *fault)
{
    sigset_t signals;

    arrange_signals(&signals);
    server.term_end = CLOCK_NEVER;
    server.parent = getppid(); /* set before the kernel is told to spare us */
    (void)prctl(PR_SET_PDEATHSIG, 0);
    server.fds[WATCH_SIGNALS].fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    server.fds[WATCH_WAKE].fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server.thread_end = eventfd(0, EFD_CLOEXEC);
    server.fds[WATCH_PARENT].fd = pidfd_open(server.parent, 0);
    for (size_t i = 0; i < WATCHED; i++)
        server.fds[i].events = POLLIN;
    if (server.fds[WATCH_SIGNALS].fd < 0 || server.fds[WATCH_WAKE].fd < 0 || server.thread_end < 0)
        return fault_errno(fault, FAULT_INTERNAL, errno, "cannot watch for signals");
    return 0;
}

static void *rpc_thread(void *unused)
{
    rpc_run(server.rpc);
    raise_event(server.thread_end);
    return unused;
}

static int start_rpc(const struct role *role, struct fault *fault)
{
    const struct rpc_method *const tables[] = {
        goplugin_methods, init_methods, config_methods, role->methods, role->agent_methods, NULL,
    };
    int error;

    goplugin_open(wake);
    host_open(role);
    init_open(role);
    config_open(role);
    if (rpc_open(server.path, tables, &server.rpc, fault) != 0 ||
        handshake_share(server.path, fault) != 0)
        return -1;
    error = pthread_create(&server.thread, NULL, rpc_thread, NULL);
    if (error != 0)
        return fault_errno(fault, FAULT_RESOURCE_EXHAUSTED, error, "cannot start a thread");
    return 0;
}

/* gRPC 1.51 stops listening for good if accept() finds no free descriptor (CVE-2023-4785). */
static void raise_open_files(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

static int start_serving(const struct role *role, struct fault *fault)
{
    child_prepare();
    raise_open_files();
    if (handshake_check(fault) != 0 || open_watch(fault) != 0 ||
        handshake_choose(server.path, fault) != 0 || lane_open(fault) != 0 ||
        start_rpc(role, fault) != 0)
        return -1;
    return handshake_announce(server.path, fault);
}

static void take_signal(void)
{
    struct signalfd_siginfo info;

    while (read(server.fds[WATCH_SIGNALS].fd, &info, sizeof info) > 0) {
        if (server.term_end != CLOCK_NEVER)
            continue;
        server.term_end = clock_now() + after_term;
        log_write(LOG_DEBUG, "asked to end: serving until the host stops the plugin, at most 5 s",
                  NULL);
    }
}

/* Returns the reason to stop, or NULL. */
static const char *reason_to_stop(void)
{
    if (server.fds[WATCH_WAKE].revents != 0)
        return "shutdown";
    if (server.fds[WATCH_PARENT].revents != 0 || getppid() != server.parent)
        return "the host has ended";
    if (clock_now() >= server.term_end)
        return "SIGTERM";
    return NULL;
}

static const char *watch(void)
{
    const char *reason;

    do {
        if (poll(server.fds, WATCHED, TICK_MS) > 0 && server.fds[WATCH_SIGNALS].revents != 0)
            take_signal();
        lane_tick();
        host_tick(server.rpc);
        reason = reason_to_stop();
    } while (!reason);
    return reason;
}

static bool join_rpc(void)
{
    struct pollfd end = {.fd = server.thread_end, .events = POLLIN};

    return poll(&end, 1, JOIN_MS) == 1 && pthread_join(server.thread, NULL) == 0;
}

/* A job that does not end in time, as in a file system that hangs, ends with the process. */
static void stop(const struct role *role)
{
    (void)alarm(LAST_RESORT_S);
    rpc_stop(server.rpc, GRACE_MS);
    if (role->close)
        role->close();
    lane_close(GRACE_MS * CLOCK_MILLISECOND);
    if (!join_rpc()) {
        (void)unlink(server.path);
        _exit(0);
    }
    rpc_close(server.rpc);
    (void)unlink(server.path);
}

int serve(const struct role *role)
{
    struct fault fault;

    (void)close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
    (void)umask(077);
    log_open(role->type);
    if (start_serving(role, &fault) != 0) {
        log_fault(LOG_ERROR, &fault, "cannot start", NULL);
        if (*server.path)
            (void)unlink(server.path);
        _exit(1);
    }
    log_write(LOG_DEBUG, "stopping", "reason", watch(), NULL);
    stop(role);
    return 0;
}
