/* A folder and a disk for the tests of plugin/keys/scribe.h.
 *
 * Register tests with IN_ROOM(): *state is then a struct room, with an empty folder of the test's
 * own. What is logged goes to a file of it, and to stderr at the end. The test fails at its end
 * if a thread or a descriptor is left. Give start_a_thread() to cmocka_run_group_tests().
 *
 * This is a stand-in: it replaces fsync() and linkat(), which do what the disk is set to. The
 * Makefile links it to the programs it names. */
#ifndef TESTS_SCRIBE_ROOM_H
#define TESTS_SCRIBE_ROOM_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plugin/keys/scribe.h"

/* ---- the disk ---- */

extern struct disk {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool blocked;
    int error;     /* of each write */
    int links;     /* error of each link */
    size_t begun;  /* files synced, or being synced */
    size_t passed; /* files synced, well or not */
} disk;

/* A good one, that has done nothing yet; `links` is the error of each link. */
void make_disk(int links);
void set_disk(bool blocked, int error);

/* Waits until one of the disk's counters is so high. */
void await_writes(const size_t *counter, size_t count);
size_t writes(void); /* begun */

/* ---- the folder, and the log ---- */

struct room {
    char folder[64];
    char path[96];
    char copy[96];
    int log; /* stands for stderr while the test runs */
    int stderr_before;
    size_t threads;
    size_t descriptors;
};

#define IN_ROOM(test) cmocka_unit_test_setup_teardown(test, make_room, remove_room)

int make_room(void **state);
int remove_room(void **state);
int start_a_thread(void **state);

size_t entries(const char *folder);

/* Between two looks at what comes by itself. */
void look_again(void);

/* The thread of a scribe that was released ends by itself; not after a test that failed. */
void await_threads(const struct room *room);

size_t logged(const struct room *room, const char *text);
void await_log(const struct room *room, const char *text);

/* ---- records and files ---- */

extern struct label_scope own_scope;
extern struct label_scope other_scope;

void write_file(const char *path, const char *text, size_t length);

/* A record of that scope with one key; of write_record() it is ATTEMPTED. */
void write_state(const char *path, const struct label_scope *whose, enum record_state state,
                 uint32_t generation);
void write_record(const char *path, const struct label_scope *whose, uint32_t generation);

/* How many keys are in the file, -1: it is no record. `written` may be NULL. */
int keys_in(const char *path, uint64_t *written);

/* Opens the room's path, where that is to be found; the caller releases it. */
struct scribe *opened(const struct room *room, enum scribe_found expected);

/* Of our scope. The scribe is locked then. */
void add_key(struct scribe *scribe, enum record_state state, uint32_t generation);

/* ---- who waits ---- */

struct answer {
    size_t times;
    bool written;
    pthread_t thread;
};

void take_answer(void *context, bool written); /* a scribe_done, with a struct answer */
size_t times(const struct answer *answer);

/* Waits for the answer. */
void assert_answered(const struct answer *answer, bool written);

/* Commits another key, which gets to the disk. */
void must_write(struct scribe *scribe, uint32_t generation);

#endif
