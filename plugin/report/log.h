/* Lines for SPIRE's log: hclog's JSON on stderr, which go-plugin turns into an entry of the host's
 * log with level and fields. The services, the key manager, the supervisor of the worker, gRPC's
 * room and serve.c log. Pure functions and those that use the token return a struct fault, and
 * their caller logs it.
 *
 * Any thread; one write(2) per line, so lines never mix. A line that cannot be
 * written (the host is gone) is dropped. */
#ifndef PLUGIN_REPORT_LOG_H
#define PLUGIN_REPORT_LOG_H

#include "hsm/base/fault.h"

enum log_level { LOG_TRACE, LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* The "@module" of every line: the role. Before the first line; a string constant. */
void log_open(const char *module);

/* For the commands, whose reader is a person: from now on warnings and errors are lines of
 * plain text, "spire-hsm: message: error (key=value ..)", and lesser lines are left out. */
void log_open_plain(void);

/* log_write(LOG_INFO, "key made", "key_id", id, "label", label, NULL): the fields
 * are pairs of strings; a pair whose value is NULL or "" is left out. Invalid UTF-8
 * is replaced, so anything read from a token may be passed. */
void log_write(enum log_level level, const char *message, ...) __attribute__((sentinel));

/* The same with the fault's sentence as "error" and its CKR by name as "ckr". */
void log_fault(enum log_level level, const struct fault *fault, const char *message, ...)
    __attribute__((sentinel));

#endif
