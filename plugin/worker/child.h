/* The worker as a process: spire-hsm-worker (program.h), a SOCK_SEQPACKET pair to talk through, a
 * shared page that names the requests it executes, a pipe for its stderr.
 *
 * No pipe of go-plugin's reaches it: the host notices our exit only when those close. The
 * environment goes on as it came: vendor libraries are configured there.
 *
 * One thread (the supervisor's) uses a child; the page may be read by any. */
#ifndef PLUGIN_WORKER_CHILD_H
#define PLUGIN_WORKER_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "hsm/base/fault.h"
#include "hsm/wire/frame.h"

struct child {
    pid_t pid;   /* 0 = none */
    int process; /* pidfd: readable once it has ended */
    int socket;  /* ours; -1 once hung up */
    int err;     /* non-blocking read end of its stderr */
    struct frame_page *page;
    unsigned err_lines; /* logged in this second, see child_log_stderr */
    int64_t err_second;
};

/* Once, at process start, before RLIMIT_NOFILE is raised: workers get the limit of that moment.
 * Opens the worker's program, so that a later upgrade cannot replace it. If it is absent,
 * child_spawn reports that. */
void child_prepare(void);

/* Starts a worker. It inherits `lock` (-1 = none), and with it the identity lock, for
 * its whole life. Receiving from child->socket gives up after `patience_ms`. */
int child_spawn(int lock, unsigned patience_ms, struct child *child, struct fault *fault);

/* Closes our end: the worker ends the PKCS#11 call it is in and leaves. */
void child_hang_up(struct child *child);

/* Ends it now, whatever it does. */
void child_kill(struct child *child);

/* The socket does not tell this, because a program that the vendor's library has started may hold
 * its other end. */
bool child_ended(const struct child *child, int patience_ms);

/* Has it ended, or does it within `patience_ms`? Then releases everything, sets pid 0
 * and says how ("signal 11 (Segmentation fault)", "exit status 3"). */
bool child_reap(struct child *child, int patience_ms, char *how, size_t size);

/* Passes on what it (or the vendor's library) wrote to stderr, at most 20 lines a
 * second: an abort's last words may be the only clue. */
void child_log_stderr(struct child *child);

#endif
