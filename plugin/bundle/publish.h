/* Replaces a file so that a reader sees the whole old or the whole new one, at any moment and after
 * any crash. Written beside the target, fsynced, read back and handed to `check`, renamed,
 * directory fsynced. Nothing here waits without a limit.
 *
 * Beside a target NAME stand `.NAME.lock`, which stays and holds the number of what was published
 * last (written before the target is, so that a crash leaves one that is too high at most), and
 * while publishing `.NAME.tmp-<pid>-<16 hex digits>`. Temporary files are made only under the lock,
 * so its holder removes those that a crash has left. */
#ifndef PLUGIN_BUNDLE_PUBLISH_H
#define PLUGIN_BUNDLE_PUBLISH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hsm/base/fault.h"

enum publish_outcome {
    PUBLISH_WRITTEN,
    PUBLISH_UNCHANGED, /* the file had these very bytes and this mode */
    PUBLISH_KEPT,      /* `keep` said that the file is newer */
};

struct publish {
    const char *path; /* absolute */
    const char *bytes;
    size_t length;
    uint32_t mode;
    uint64_t number; /* of the content; kept beside it, in the lock file. 0 = none is kept */

    /* Should the file on disk be kept? (It was read under the lock. A missing file is never asked
     * about.) `number` is the one kept with it, 0 = none. And are the bytes just written good? NULL
     * = no, yes. */
    bool (*keep)(void *context, const char *bytes, size_t length, uint64_t number);
    int (*check)(void *context, const char *bytes, size_t length, struct fault *fault);
    void *context;
};

/* Publishes. Two processes on one file agree through a lock beside it, waited for at
 * most 5 s (FAULT_UNAVAILABLE). A target that is a directory, symlink or device is
 * refused (FAULT_FAILED_PRECONDITION); a full or read-only disk is FAULT_UNAVAILABLE;
 * the old file stays as it was, and no temporary file is left. */
int publish_file(const struct publish *publish, enum publish_outcome *outcome, struct fault *fault);

/* Could it be published there, by all that can be seen without writing? The same codes. */
int publish_check(const char *path, struct fault *fault);

#endif
