/* A supervisor with real worker processes, and requests whose answers are waited for.
 *
 *   the group:   make_script, remove_script; the workers' token is supervisor_token.h
 *   each test:   PLAY(test), in which
 *     start();                            a supervisor; its token is open when this returns
 *     ask(&call, HSM_SIGN, "wait");       as many as wanted
 *     assert_done(&call);                 or assert_fails(), once for each
 *     finish();                           it ends, and leaves no process and no descriptor
 *
 * A struct call is the test's and lives until its answer is there: the supervisor's thread
 * writes into it. Nobody waits longer than PATIENCE_S. */
#ifndef TESTS_SUPERVISOR_STAGE_H
#define TESTS_SUPERVISOR_STAGE_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plugin/worker/supervisor.h"
#include "tests/support/supervisor_token.h"

/* The counts change with the mutex held, and `changed` is signalled. */
extern struct front {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct supervisor *supervisor;
    unsigned ended;
    unsigned ticks; /* five a second */
    int fds;        /* open before the test */
} front;

/* A request and what became of it. */
struct call {
    struct hsm_request request;
    int64_t deadline;
    unsigned answers;
    struct hsm_reply reply;
    unsigned items;        /* of a SCAN, in order; more than ITEMS if they were not */
    unsigned fresh_starts; /* of its items */
};

#define PLAY(test) cmocka_unit_test_setup_teardown(test, begin_test, end_test)
int make_script(void **state);
int remove_script(void **state);
int begin_test(void **state);
int end_test(void **state); /* also clears up after a test that failed half-way */

/* ---- the supervisor ---- */

/* start() = start_with(usual()), then await_token(). */
struct supervisor_options usual(void);
void start_with(const struct supervisor_options *options);
void await_token(void);
void start(void);

/* finish() = retire, await_end(), and nothing may be left. */
void await_end(void);
void finish(void);

/* Ends the worker of a supervisor that was abandoned: it may be in the middle of a call. */
void reap_worker(void);

int count_fds(void);

/* ---- requests ---- */

/* A call with that label and a digest of its own; or submits one the test has filled in. */
void ask(struct call *call, enum hsm_op op, const char *label);
void ask_within(struct call *call, enum hsm_op op, const char *label, int64_t milliseconds);
void submit(struct call *call);

/* Each waits for the answer, which must be the only one. assert_done: a good one. */
void hear(struct call *call);
void assert_done(struct call *call);
void assert_fails(struct call *call, enum fault_code code, const char *why);
void assert_done_at_once(void); /* a signature more */

/* Answers so far, without waiting. */
unsigned answers_of(const struct call *call);

/* ---- waiting ---- */

void await_waiting(unsigned count); /* until so many requests are in "wait" */

/* Until *count, which the mutex guards, is `by` more; false if it does not come to that. */
bool await_more(const unsigned *count, unsigned by);

/* For a test's own counts. The caller has locked the mutex. changed() signals and unlocks it.
 * wait_for_change() waits for that with it locked, or returns false: the test is stuck. */
void changed(void);
bool wait_for_change(void);

#endif
