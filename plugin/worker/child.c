/* Starting the worker's process: what it is given, and nothing else; its end, and its last
 * words. */
#include "plugin/worker/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hsm/base/clock.h"
#include "plugin/report/log.h"
#include "plugin/worker/program.h"

enum {
    FIRST_FREE_FD = 16, /* high enough not to collide with a worker's fixed descriptors */
    ERR_LINES_A_SECOND = 20,
    ERR_READS = 512,
};

/* The limit that the host gave us. A vendor's library may call select() on its descriptors. */
static uint64_t open_files;

extern char **environ;

/* Moves a descriptor out of the way of the worker's fixed numbers. */
static int move_up(int fd)
{
    int moved = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FREE_FD);

    if (fd >= 0)
        (void)close(fd);
    return moved;
}

void child_prepare(void)
{
    struct rlimit limit;
    int fd;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        open_files = limit.rlim_cur;
    (void)program_open(&fd, NULL);
}

/* Both ends of all that the worker is given; -1 if not (yet) open. */
struct ends {
    int ours;
    int theirs;
    int page;
    int err_read;
    int err_write;
};

static void close_end(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

static void ends_close(struct ends *ends)
{
    close_end(&ends->ours);
    close_end(&ends->theirs);
    close_end(&ends->page);
    close_end(&ends->err_read);
    close_end(&ends->err_write);
}

/* The page is sealed: if the worker could shorten it, our next read would end us with SIGBUS. */
static int ends_open(unsigned patience_ms, struct ends *ends)
{
    struct timeval patience = {.tv_sec = patience_ms / 1000,
                               .tv_usec = (suseconds_t)(patience_ms % 1000) * 1000};
    int pair[2];
    int pipe_ends[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return -1;
    ends->ours = move_up(pair[0]);
    ends->theirs = move_up(pair[1]);
    if (pipe2(pipe_ends, O_CLOEXEC) != 0)
        return -1;
    ends->err_read = move_up(pipe_ends[0]);
    ends->err_write = move_up(pipe_ends[1]);
    ends->page = move_up(memfd_create("spire-hsm-page", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (ends->ours < 0 || ends->theirs < 0 || ends->err_read < 0 || ends->err_write < 0 ||
        ends->page < 0)
        return -1;
    if (fcntl(ends->err_read, F_SETFL, O_NONBLOCK) != 0 ||
        ftruncate(ends->page, sizeof(struct frame_page)) != 0 ||
        fcntl(ends->page, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return -1;
    return setsockopt(ends->ours, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
}

/* posix_spawn functions return errno values. Their sum is 0 if all succeeded. */
static int file_actions(const struct ends *ends, int lock, posix_spawn_file_actions_t *actions)
{
    int error = 0;

    if (lock >= 0) /* first: only this descriptor may have one of the numbers below */
        error = posix_spawn_file_actions_adddup2(actions, lock, FRAME_LOCK_FD);
    if (error == 0)
        error = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDWR, 0);
    if (error == 0)
        error = posix_spawn_file_actions_adddup2(actions, 0, 1);
    if (error == 0)
        error = posix_spawn_file_actions_adddup2(actions, ends->err_write, 2);
    if (error == 0)
        error = posix_spawn_file_actions_adddup2(actions, ends->theirs, FRAME_SOCKET_FD);
    if (error == 0)
        error = posix_spawn_file_actions_adddup2(actions, ends->page, FRAME_PAGE_FD);
    return error;
}

/* The front blocks signals and ignores SIGPIPE. A vendor's library must inherit neither: its
 * threads may need signals of their own. */
static int attributes(posix_spawnattr_t *attr)
{
    sigset_t none;
    sigset_t all;
    int error;

    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    (void)sigdelset(&all, SIGKILL);
    (void)sigdelset(&all, SIGSTOP);
    error = posix_spawnattr_setsigmask(attr, &none);
    if (error == 0)
        error = posix_spawnattr_setsigdefault(attr, &all);
    if (error == 0)
        error = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    return error;
}

static int start(const struct ends *ends, int lock, int program, pid_t *pid)
{
    char name[] = "spire-hsm-worker";
    char mode[] = FRAME_WORKER_ARGUMENT;
    char *const argv[] = {name, mode, NULL};
    char path[64];
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    int error;

    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", program);
    error = posix_spawn_file_actions_init(&actions);
    if (error != 0)
        return error;
    error = posix_spawnattr_init(&attr);
    if (error == 0) {
        error = file_actions(ends, lock, &actions);
        if (error == 0)
            error = attributes(&attr);
        if (error == 0)
            error = posix_spawn(pid, path, &actions, &attr, argv, environ);
        (void)posix_spawnattr_destroy(&attr);
    }
    (void)posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* During a reconfiguration two supervisors run, each with its thread. The program's descriptor must
 * stay the same between the check of its bytes and the execution. */
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;

/* Starts a process with these ends, which the caller keeps, and maps its page. */
static int spawn(const struct ends *ends, int lock, struct child *child, struct fault *fault)
{
    struct frame_page *page;
    pid_t pid = 0;
    int program;
    int error;

    if (program_open(&program, fault) != 0)
        return -1;
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, ends->page, 0);
    if (page == MAP_FAILED)
        return fault_errno(fault, FAULT_UNAVAILABLE, errno, "cannot start a worker process");
    page->open_files = open_files;
    error = start(ends, lock, program, &pid);
    if (error != 0) {
        (void)munmap(page, sizeof *page);
        return program_refused(error, fault);
    }
    *child = (struct child){.pid = pid, .socket = ends->ours, .err = ends->err_read, .page = page};
    child->process = pidfd_open(pid, 0);
    return 0;
}

int child_spawn(int lock, unsigned patience_ms, struct child *child, struct fault *fault)
{
    struct ends ends = {-1, -1, -1, -1, -1};
    int result;

    if (ends_open(patience_ms, &ends) != 0) {
        result = fault_errno(fault, FAULT_UNAVAILABLE, errno, "cannot start a worker process");
    } else {
        (void)pthread_mutex_lock(&starting);
        result = spawn(&ends, lock, child, fault);
        (void)pthread_mutex_unlock(&starting);
    }
    if (result == 0) {
        ends.ours = -1;
        ends.err_read = -1;
    }
    ends_close(&ends);
    return result;
}

void child_hang_up(struct child *child)
{
    close_end(&child->socket);
}

void child_kill(struct child *child)
{
    if (child->pid > 0)
        (void)kill(child->pid, SIGKILL);
    child_hang_up(child);
}

static void describe(int status, char *how, size_t size)
{
    if (WIFSIGNALED(status))
        (void)snprintf(how, size, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        (void)snprintf(how, size, "exit status %d", WEXITSTATUS(status));
}

bool child_ended(const struct child *child, int patience_ms)
{
    struct pollfd ended = {.fd = child->process, .events = POLLIN};

    return poll(&ended, 1, patience_ms) > 0;
}

bool child_reap(struct child *child, int patience_ms, char *how, size_t size)
{
    int status = 0;
    pid_t got;

    (void)child_ended(child, patience_ms);
    got = waitpid(child->pid, &status, WNOHANG);

    if (got == 0 || (got < 0 && errno == EINTR))
        return false;
    if (got == child->pid)
        describe(status, how, size);
    else
        (void)snprintf(how, size, "unknown (another process reaped it)");
    child_log_stderr(child);
    child_hang_up(child);
    close_end(&child->err);
    close_end(&child->process);
    (void)munmap(child->page, sizeof *child->page);
    child->page = NULL;
    child->pid = 0;
    return true;
}

static void log_line(struct child *child, char *line)
{
    int64_t second = clock_now() / CLOCK_SECOND;

    if (second != child->err_second) {
        child->err_second = second;
        child->err_lines = 0;
    }
    if (*line != '\0' && child->err_lines++ < ERR_LINES_A_SECOND)
        log_write(LOG_WARN, "PKCS#11 worker wrote to stderr", "text", line, NULL);
}

void child_log_stderr(struct child *child)
{
    char text[2048];
    char *rest;
    char *line;
    ssize_t got;

    /* a library that writes without end must not keep us here for ever */
    for (int reads = 0; reads < ERR_READS && child->err >= 0; reads++) {
        if ((got = read(child->err, text, sizeof text - 1)) <= 0)
            return;
        rest = text;
        text[got] = '\0';
        while ((line = strsep(&rest, "\n")) != NULL)
            log_line(child, line);
    }
}
