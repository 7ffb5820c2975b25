/* Whole files, written so that a reader sees the old bytes or the new ones, at any moment and
 * after any crash.
 *
 * The bytes are written beside the file's place, under a name that nobody can guess. When all of
 * them are on the disk, they get the file's own name, and the folder is synced. A failure removes
 * the draft. A killed process leaves its draft behind, and file_sweep removes it.
 *
 * Every fault is one sentence with the path and errno's text. It is FAULT_UNAVAILABLE if the
 * trouble may pass by itself (a full disk), FAULT_FAILED_PRECONDITION if a person must act.
 *
 * file_check decides which files are trusted. */
#ifndef HSM_BASE_FILE_H
#define HSM_BASE_FILE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "hsm/base/fault.h"

/* ---- all at once ---- */

/* A link at `path` is replaced, and is not followed. */
int file_replace(const char *path, const void *bytes, size_t length, mode_t mode,
                 struct fault *fault);

/* If two processes make one file at the same time, one wins. The other gets *existed = true and has
 * changed nothing. */
int file_make(const char *path, const void *bytes, size_t length, mode_t mode, bool *existed,
              struct fault *fault);

/* ---- step by step ---- */

/* Where a file is, or will be: a folder, held open, and a name in it. */
struct file_place {
    const char *path; /* the caller's */
    const char *name;
    int folder; /* -1 = not open */
};

/* Refused: a path that is not absolute, or names no file. */
int file_place_open(const char *path, struct file_place *place, struct fault *fault);
void file_place_close(const struct file_place *place);

/* A draft beside the file: `.NAME.tmp-<pid>-<16 hex digits>`. */
struct file_draft {
    const struct file_place *place;
    int fd;                  /* for reading and writing */
    char name[NAME_MAX + 1]; /* "" = there is no draft (any more) */
};

/* The draft is empty and has `mode`, whatever the umask. Whatever becomes of it, and also
 * after a failure of this, it ends with file_draft_close. */
int file_draft_open(const struct file_place *place, mode_t mode, struct file_draft *draft,
                    struct fault *fault);

/* All bytes, down to the disk. */
int file_draft_write(struct file_draft *draft, const void *bytes, size_t length,
                     struct fault *fault);

/* As file_replace and file_make end. After a fault that speaks of the directory the file has
 * its name, but a power cut may take it away again. */
int file_draft_replace(struct file_draft *draft, struct fault *fault);
int file_draft_make(struct file_draft *draft, bool *existed, struct fault *fault);

void file_draft_close(struct file_draft *draft);

/* Removes drafts of this place that processes left when they were killed. It is for a caller
 * who knows, by a lock, that nobody else is writing here. */
void file_sweep(const struct file_place *place);

/* ---- what is trusted ---- */

/* The rules stand side by side in file.c. */
enum file_rule {
    FILE_PIN,
    FILE_IDENTITY,
    FILE_RECORD, /* whatever its mode */
    FILE_MODULE,
    FILE_MODULE_FOLDER,
    FILE_KEYS, /* private keys that another program wrote */
};

/* May the plugin trust `file`, which is open or was just looked at? The fault is
 * FAULT_FAILED_PRECONDITION, and its sentence begins with the subject. */
int file_check(enum file_rule rule, const struct stat *file, struct fault *fault,
               const char *subject, ...) __attribute__((format(printf, 4, 5)));

/* ---- reading ---- */

/* Reads the rest of the file, but at most `size` bytes. Returns their number, or -1 with errno. */
ssize_t file_read(int fd, void *bytes, size_t size);

/* ---- errors ---- */

/* "WHAT PATH: errno's text", with the code as above. */
int file_fault(struct fault *fault, int error, const char *what, const char *path);

#endif
