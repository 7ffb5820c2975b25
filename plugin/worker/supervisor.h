/* Requests to the token, through a worker process that may die at any time.
 *
 * A request goes in with a deadline and a callback; the callback comes exactly once. In between the
 * worker may crash, hang or lose its token: it is replaced (at once, but not more often than three
 * times and then once a second), and the requests in flight are sent again where this does no harm.
 * HSM_GENERATE is the exception: it is answered with FAULT_ABORTED, and the caller looks for the
 * label. A scan starts over, and its item callback is called with NULL.
 *
 * Nothing waits here but the supervisor's own thread, which reads replies, watches
 * deadlines and keeps the worker alive. supervisor_submit never blocks. Callbacks run
 * on that thread (or, when a request is refused at once, inside supervisor_submit),
 * with no lock held; they must not block and may submit again.
 *
 * Deadlines: a request ends by its deadline or by a definite answer, not by a count of failures. A
 * request with trouble that may pass (an error of the device, a worker that died or hung) is tried
 * again with growing pauses until then, and answered with the latest reason; patience.h has the
 * rules. So trouble with one key slows that key down and nothing else. There are two exceptions: if
 * other requests succeed, a look (HSM_SCAN, HSM_PROVE, HSM_DESTROY) is answered after three failed
 * tries, as its caller looks again by itself; and a request for a key that has failed for a minute
 * waits for one try only. How long the worker may execute one request is another matter, counted
 * from the start of its execution (operation_limit, generate_limit); past that, the worker is
 * ended. Where this process itself stood still for more than a second, these limits begin anew.
 *
 * Calling sequence: supervisor_start, supervisor_wait, any number of submissions, then
 * supervisor_retire, which ends the caller's right to the pointer. */
#ifndef PLUGIN_WORKER_SUPERVISOR_H
#define PLUGIN_WORKER_SUPERVISOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "hsm/wire/types.h"

enum { SUPERVISOR_REQUESTS_MAX = 2048 }; /* queued and in flight together */

struct supervisor;

struct supervisor_options {
    struct hsm_settings settings; /* copied; the copy is wiped at the end */
    int lock;                     /* identity lock the worker inherits, or -1; stays the caller's,
                                     and open, until the supervisor has ended */
    int64_t operation_limit;      /* ns a worker may execute one request */
    int64_t generate_limit;       /* the same for HSM_SCAN, and HSM_GENERATE until it proves */
    int64_t keep_alive;           /* HSM_PING after so many idle ns; 0 = never */
    int64_t startup_wait;         /* ns that the first opening of the token may take, counted from
                                     supervisor_start; 60 s if that is more */
    int64_t opened_in;            /* ns that this module took to open when another supervisor had
                                     it first; 0 = not known */
    bool one_caller; /* the caller waits for nothing else: a request that has failed three times is
                        answered before its deadline */

    /* Called about five times a second, on the supervisor's thread. */
    void (*tick)(void *context);
    /* Called last of all, when no callback will come any more. */
    void (*ended)(void *context);
    void *context;
};

typedef void supervisor_done(void *context, const struct hsm_reply *reply);

struct supervisor_request {
    const struct hsm_request *request; /* copied */
    int64_t deadline;                  /* on clock_now()'s clock; CLOCK_NEVER = none. Of
                                          HSM_GENERATE: to be begun by then */
    supervisor_done *done;
    hsm_item_fn *item; /* HSM_SCAN only; a NULL item = forget the items so far */
    void *context;
};

/* Starts the thread, which starts the worker. Returns before the token is open. */
int supervisor_start(const struct supervisor_options *options, struct supervisor **supervisor,
                     struct fault *fault);

/* Waits until a worker has the token open, the token refuses for good (wrong setting,
 * wrong PIN: FAULT_FAILED_PRECONDITION and the like), *cancel is set, or `deadline`
 * has passed and at least one worker has tried: FAULT_UNAVAILABLE with the last reason. Logs that
 * reason every 10 s. */
int supervisor_wait(struct supervisor *supervisor, int64_t deadline, const atomic_bool *cancel,
                    struct hsm_token_info *info, struct fault *fault);

/* Any thread. Refused at once (callback inside) only when 2048 requests are waiting, 512 of them
 * for one key that fails, or the supervisor was abandoned: FAULT_UNAVAILABLE. */
void supervisor_submit(struct supervisor *supervisor, const struct supervisor_request *request);

/* The caller doubts the current worker's answers. It is ended, once it is idle or after a moment,
 * and another one takes its place. No request is lost. */
void supervisor_renew(struct supervisor *supervisor);

/* Nothing will be submitted any more: lets it answer what it has, end its worker and then
 * itself. Does not wait; may be called from a callback. */
void supervisor_retire(struct supervisor *supervisor);

/* At process exit: answers everything with FAULT_UNAVAILABLE and hangs up on the worker,
 * which ends the call it is in and leaves without us. From any thread; may be followed by
 * supervisor_retire, as later submissions are still refused properly. */
void supervisor_abandon(struct supervisor *supervisor);

/* The token as the latest worker found it when it opened it. After supervisor_wait. */
void supervisor_info(struct supervisor *supervisor, struct hsm_token_info *info);

/* Is there no worker with an open token just now? Then fault says why. */
bool supervisor_away(struct supervisor *supervisor, struct fault *fault);

/* Why requests have to wait: the reason why there is no worker, or the fault of a request that is
 * being repeated, which its caller does not hear of otherwise. Returns false if none waits. */
bool supervisor_trouble(struct supervisor *supervisor, struct fault *fault);

struct supervisor_figures {
    int64_t away;      /* ns that no worker has had the token open; 0 = one has */
    int64_t silent;    /* ns since the token last did what it was asked */
    int64_t waited;    /* ns that the request has waited that has waited longest; 0 = none does */
    unsigned queued;   /* requests that wait to be sent */
    uint32_t busy;     /* sessions at work */
    uint32_t sessions; /* as many as the token allowed */
    int64_t opened_in; /* ns that the first opening took; 0 = there was none yet */
};

/* Any thread, after supervisor_wait. The token is not asked. */
void supervisor_measure(struct supervisor *supervisor, struct supervisor_figures *figures);

/* How many workers have been started in place of one that ended. For tests. */
unsigned supervisor_restarts(const struct supervisor *supervisor);

#endif
