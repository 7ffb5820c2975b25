/* A function that runs in a child, and is stopped or killed at one of its system calls: what a
 * crash at that moment leaves is then on the disk. */
#ifndef TESTS_TRACED_H
#define TESTS_TRACED_H

#include <stdbool.h>
#include <sys/types.h>

/* In the child; the exit status is 0 if it returns true. */
typedef bool traced_run(void *context);

/* A child that has stopped before its first step. -1 = this machine does not let us. */
pid_t traced_start(traced_run *run, void *context);

/* Into the kernel or out of it. false: it has ended. */
bool traced_step(pid_t child);

/* Runs it up to its nth step and kills it there. 1 = killed, 0 = it had ended before, -1 = this
 * machine does not let us. */
int traced_kill(traced_run *run, void *context, int steps);

#endif
