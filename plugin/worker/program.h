/* The worker's program on disk: spire-hsm-worker, in the real folder of our own executable.
 *
 * It is opened once and started from that descriptor ever after, never by path: an upgrade
 * beside a running server must not mix two builds. Before each start its SHA-256 is compared
 * with the one that the build wrote into us, on the same descriptor, so that SPIRE's
 * plugin_checksum of spire-hsm covers both programs. A program that was written to in place
 * no longer matches, and one that the kernel refuses may have been installed anew: then the
 * path is opened again, in case the right one is there.
 *
 * Faults are FAULT_FAILED_PRECONDITION unless memory or descriptors ran out, and each names the
 * path and what to do. One thread at a time, but for program_is. */
#ifndef PLUGIN_WORKER_PROGRAM_H
#define PLUGIN_WORKER_PROGRAM_H

#include "hsm/base/fault.h"

/* Which program it is, before anything else here. Both strings stay the caller's and must
 * last. path NULL: the one beside our executable. sha256: 64 hex digits; NULL: whatever it is
 * (for tests, which are their own worker). */
void program_is(const char *path, const char *sha256);

/* A descriptor of the program, checked just now. It stays program.c's. */
int program_open(int *fd, struct fault *fault);

/* Why the kernel did not start it: `error` is execve's. Returns -1. */
int program_refused(int error, struct fault *fault);

#endif
