/* The place of the keys of `previous`, behind a worker of its own: a keys_file, or another token.
 * The source only reads and signs there: it makes, destroys, locks and writes nothing.
 *
 * Calling sequence: source_open, source_read any number of times by one thread, requests to its
 * supervisor, then source_retire, which ends the caller's right to the pointer. */
#ifndef PLUGIN_KEYS_SOURCE_H
#define PLUGIN_KEYS_SOURCE_H

#include "plugin/config/config.h"
#include "plugin/keys/record.h"
#include "plugin/worker/supervisor.h"

struct source;

/* `previous` comes from config_previous. `one_caller` as in supervisor.h. Returns before anything
 * is opened. */
int source_open(const struct config *previous, bool one_caller, struct source **source,
                struct fault *fault);

/* The newest whole key of each id, malloc'd, the caller's also if there are none after a failure.
 * Waits until `deadline` for a source that is away, less when *cancel is set. FAULT_UNAVAILABLE: it
 * is away. Any other fault: its content cannot be used. A sentence names `previous`. Blocks: for
 * the slow lane.
 * */
int source_read(struct source *source, int64_t deadline, const atomic_bool *cancel,
                struct record_previous **keys, size_t *count, struct fault *fault);

struct supervisor *source_supervisor(const struct source *source);

/* For sentences: the file's path, or the token's URI. */
const char *source_name(const struct source *source);
bool source_is_file(const struct source *source);

void source_abandon(struct source *source);
void source_retire(struct source *source);

#endif
