/* The token of supervisor_stage.h's workers. It does what a request's label says.
 *
 * This is a stand-in: it replaces hsm_open(), hsm_execute() and the rest of hsm/hsm.h behind
 * hsm_worker(). A worker is the test program started again, with "worker" as its argument,
 * upon which main() returns become_worker().
 *
 * Labels, where a SCAN does in the middle of its items what others do at once:
 *
 *   wait, slow        until script->gate is open; 30 ms
 *   queue             until then, saying all the time that it waits for a session
 *   die, hang, rave   SIGKILL, no end, a packet that is no frame    } only while
 *   fail, miss        FAULT_UNAVAILABLE, FAULT_NOT_FOUND            } script->faults_left > 0
 *   unproven          hangs, and says before that the pair is made and only to be proven yet; also
 *                     while script->faults_left > 0
 *   fork              leaves a child that holds all descriptors until the gate is open
 *   shrink            reply.items = could it shorten the shared page?
 *   tell lock         reply.items = the inode of descriptor 5
 *   tell inheritable  reply.items = how many descriptors a program started would inherit
 *
 * A label may have a digit behind it, so that it is of another key: hang1, hang2. Every reply has
 * the digest as its signature. Any other label does nothing more. */
#ifndef TESTS_SUPERVISOR_TOKEN_H
#define TESTS_SUPERVISOR_TOKEN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

enum { WORKER_SOCKET = 3, WORKER_PAGE = 4, WORKER_LOCK = 5, SESSIONS = 4 };
enum { PATIENCE_S = 60 /* then a test is stuck */, ITEMS = 20 /* of every SCAN */ };

#define script_variable "UNIT_SUPERVISOR_SCRIPT"

/* What hsm_open() does. */
enum opening {
    OPENS,
    OPENS_SLOWLY /* in 1.5 s */,
    DIES,
    NEVER_OPENS,
    REFUSES,
    PIN_IS_WRONG,
    ABSENT
};

/* A page shared by the test and all its workers; zeros before each test. */
extern struct script {
    _Atomic enum opening opening;
    _Atomic pid_t pid; /* of the last worker that began to open */
    atomic_uint starts;
    atomic_int faults_left; /* how often the labels above still do what they say */
    atomic_bool gate;
    atomic_uint waiting; /* in "wait" */
    atomic_uint pings;
} * script;

/* 0, or -1. `fd` is of a file as long as the struct. */
int map_script(int fd);

/* For main() of a worker; script_variable is the path of the script's file. */
int become_worker(void);

void nap(void); /* a millisecond */

#endif
