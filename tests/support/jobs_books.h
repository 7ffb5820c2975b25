/* The supervisor's books (struct jobs), empty before each test, and requests to put in them.
 *
 * Register tests with BOOKS(): *state is then a struct jobs of the test's own. Closing
 * releases every job that the test left, and fails if the counts do not come back to 0. */
#ifndef TESTS_JOBS_BOOKS_H
#define TESTS_JOBS_BOOKS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "hsm/base/clock.h"
#include "plugin/worker/jobs.h"

enum { NOW = 1000, FOUR_THREADS = 4 };

#define BOOKS(test) cmocka_unit_test_setup_teardown(test, open_books, close_books)
int open_books(void **state);
int close_books(void **state);

/* A request in the books. `add` fails the test where there is no room; `add_until` returns
 * NULL. Its answer goes to nobody. */
struct job *add(struct jobs *jobs, enum hsm_op op);
struct job *add_until(struct jobs *jobs, enum hsm_op op, int64_t deadline);

/* One more request, and it is sent whatever waits before it. */
struct job *send_one(struct jobs *jobs, enum hsm_op op);

/* Sends what a worker of four threads is due at NOW. NULL: nothing. */
struct job *send_next(struct jobs *jobs);

/* For requests that the test makes by itself: takes a reply and forgets it. */
void unused_done(void *context, const struct hsm_reply *reply);

#endif
