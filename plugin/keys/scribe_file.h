/* The scribe's two files: the record at a path, and the one before it at `path~`. No lock, no
 * thread: only one thread writes (scribe.h), and every call may block on the disk. */
#ifndef PLUGIN_KEYS_SCRIBE_FILE_H
#define PLUGIN_KEYS_SCRIBE_FILE_H

#include "plugin/keys/scribe.h"

struct scribe_file {
    const char *path; /* the caller's, absolute */
    bool good;        /* the file is a record, and worth keeping at `path~` */
    bool swept;       /* drafts of killed processes are removed */
};

/* As scribe_read; with `mend` a mode that is too wide is set to 0600. */
int scribe_file_read(struct scribe_file *file, bool mend, const struct label_scope *scope,
                     struct record *record, enum scribe_found *found, struct fault *fault);

/* As scribe_is_damaged. */
bool scribe_file_is_damaged(const char *path, const struct label_scope *scope,
                            char code[RECORD_CODE + 1]);

/* The record that is there becomes `path~` by a second link, once the new one is whole on the
 * disk; without that where the file system has no links. */
int scribe_file_write(struct scribe_file *file, const char *bytes, size_t length,
                      struct fault *fault);

#endif
