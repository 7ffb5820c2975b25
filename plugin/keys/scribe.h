/* The scribe: keeps a record on a disk, by a thread of its own, so that nobody else ever waits for
 * one. The record in memory is always the truth of this process; the file follows.
 *
 *   record = scribe_edit(scribe);          locked: change it, do nothing that takes time
 *   scribe_commit(scribe, done, context);  unlocked; `done` comes once it is on the disk
 *
 * Files: `path`, replaced whole (hsm/base/file.h); `path~`, the one before it. Both 0600, owned by
 * us. Only the holder of the identity lock may open a scribe, and one process has one for a path.
 * A write that fails is tried again every 5 s and at each commit that somebody waits for. There is
 * one WARN when somebody waits in vain, one when it begins to fail, and one INFO when it works
 * again; nothing else fails for it.
 *
 * Without a path (key_identifier_value without record_file) nothing is written: every commit is
 * done at once. */
#ifndef PLUGIN_KEYS_SCRIBE_H
#define PLUGIN_KEYS_SCRIBE_H

#include <stdbool.h>
#include <stdint.h>

#include "plugin/keys/record.h"

struct scribe;

/* The state of the files at the path. */
enum scribe_found {
    SCRIBE_NOTHING, /* no file, or none with a section for this scope */
    SCRIBE_RECORD,  /* a good one; or, with a WARN, the good one beside it: `path~` */
};

/* Reads the file, or makes an empty record, and starts the thread; writes nothing. `path` "" = no
 * file. A mode that is too wide is mended, with a WARN. FAULT_FAILED_PRECONDITION: neither file
 * can be believed, or the file belongs to somebody else, or is of a newer version; the sentence
 * names record_file, the path and what to do. A copy without a section for this scope is not
 * believed in place of a damaged file. FAULT_UNAVAILABLE: the disk fails just now, or there is no
 * memory. Blocks on the disk: for the slow lane. */
int scribe_open(const char *path, const struct label_scope *scope, struct scribe **scribe,
                enum scribe_found *found, struct fault *fault);

/* Is a record there no more, as the file and its copy are damaged, or one of them is while the
 * other is missing or has no section for this scope? Then `code` stands for exactly what they hold.
 */
bool scribe_is_damaged(const char *path, const struct label_scope *scope,
                       char code[RECORD_CODE + 1]);

/* As scribe_open, but does not look at the files: for those whose damage was accepted. The first
 * write replaces the file. */
int scribe_open_anew(const char *path, const struct label_scope *scope, struct scribe **scribe,
                     struct fault *fault);

/* Reads the file at the path, for commands: no thread, no mending, no lock. The caller owns
 * *record. */
int scribe_read(const char *path, const struct label_scope *scope, struct record *record,
                enum scribe_found *found, struct fault *fault);

/* The identity that the file has: the one of its section for this trust domain, or the one that all
 * of its sections share. FAULT_NOT_FOUND: there is no file, or no identity in it. */
int scribe_identity(const char *path, const char *trust_domain,
                    uint8_t identity[CONFIG_IDENTITY_MAX], size_t *length, struct fault *fault);

/* The caller that opened it holds it, and so do keymanagers that share it. After the last release
 * the thread ends when all commits are written, or cannot be; the release does not wait. The thread
 * answers those that still wait for a commit, as nobody is left to tick. */
struct scribe *scribe_hold(struct scribe *scribe);
void scribe_release(struct scribe *scribe);

const char *scribe_path(const struct scribe *scribe);

/* The record, for the caller alone until scribe_commit or scribe_leave. Never blocks on a disk. */
struct record *scribe_edit(struct scribe *scribe);

/* Gives it back unchanged. */
void scribe_leave(struct scribe *scribe);

/* Gives it back changed. `done` comes exactly once, on any thread, possibly before this returns:
 * `written` is true when the change is on the disk, false when 2 s have passed without; or sooner,
 * when a write hangs already or the last one failed and this one does, too. With a NULL `done`
 * nobody waits, and the change may go to the disk with the next one. */
typedef void scribe_done(void *context, bool written);
void scribe_commit(struct scribe *scribe, scribe_done *done, void *context);

/* The same, and waits: at most 2 s, whatever the disk does, while another thread ticks. true: it is
 * on the disk. */
bool scribe_commit_and_wait(struct scribe *scribe);

/* Is all that was committed with a `done` on the disk? (True without a path.) */
bool scribe_is_written(struct scribe *scribe);

/* Running time in s: the record's, and this process's since then. Also between scribe_edit and
 * scribe_commit. The scribe itself puts it into the record, with each write. */
int64_t scribe_ran(struct scribe *scribe);

/* About five times a second: gives up on waits of more than 2 s; writes the running time hourly
 * while something is condemned. */
void scribe_tick(struct scribe *scribe);

#endif
