/* The file of the record and its copy: which of the two counts, and how they are written. */
#include "plugin/keys/scribe_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/sha.h>

#include "hsm/base/clock.h"
#include "hsm/base/file.h"
#include "hsm/base/hex.h"
#include "hsm/base/scope.h"
#include "plugin/report/log.h"

enum { COPY_MAX = HSM_PATH_MAX + 1, PRIVATE = S_IRUSR | S_IWUSR };

/* ---- one file ---- */

/* The state of a file. All but GOOD and ABSENT come with a fault: a clause with its subject. */
enum look {
    LOOK_GOOD,
    LOOK_ABSENT,
    LOOK_DAMAGED,
    LOOK_REFUSED, /* not damaged, but no other file may replace it */
};

struct source {
    const char *what;
    const char *path;
    bool mend;
};

static void cannot(const struct source *source, const char *what, int error, struct fault *fault)
{
    char text[64];

    (void)snprintf(text, sizeof text, "cannot %s %s", what, source->what);
    (void)file_fault(fault, error, text, source->path);
}

static void mend_mode(const struct source *source, int fd, mode_t mode)
{
    char text[8];

    if ((mode & 07777 & ~(mode_t)PRIVATE) == 0)
        return;
    (void)snprintf(text, sizeof text, "%04o", mode & 07777);
    if (fchmod(fd, PRIVATE) == 0)
        log_write(LOG_WARN,
                  "other users had access to record_file: the plugin set its mode to 0600", "path",
                  source->path, "mode", text, NULL);
    else
        log_write(LOG_WARN,
                  "other users have access to record_file, and the plugin cannot change its mode",
                  "path", source->path, "mode", text, "error", strerror(errno), NULL);
}

/* One byte more than a record may have, to see that a file is too long. */
enum { READ_MAX = RECORD_BYTES_MAX + 1 };

static enum look look_into(const struct source *source, int fd, struct record *record, bool *known,
                           struct fault *fault)
{
    OWNED(scope_free) char *bytes = malloc(READ_MAX);
    const struct label_scope scope = record->scope;
    ssize_t length = bytes ? file_read(fd, bytes, READ_MAX) : -1;
    struct fault why;

    if (length < 0) {
        cannot(source, "read", bytes ? errno : ENOMEM, fault);
        return LOOK_REFUSED;
    }
    if (record_parse(bytes, (size_t)length, &scope, record, known, &why) == 0)
        return LOOK_GOOD;
    (void)fault_set(fault, why.code, "%s \"%s\" %s", source->what, source->path, why.message);
    return why.code == FAULT_FAILED_PRECONDITION ? LOOK_DAMAGED : LOOK_REFUSED;
}

static enum look look_at(const struct source *source, struct record *record, bool *known,
                         struct fault *fault)
{
    OWNED(scope_close) int fd = open(source->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat status;

    if (fd < 0 && errno == ENOENT)
        return LOOK_ABSENT;
    if (fd < 0 && errno == ELOOP)
        (void)fault_set(fault, FAULT_FAILED_PRECONDITION,
                        "%s \"%s\" is a symbolic link: name the file itself", source->what,
                        source->path);
    else if (fd < 0 || fstat(fd, &status) != 0)
        cannot(source, "open", errno, fault);
    else if (file_check(FILE_RECORD, &status, fault, "%s \"%s\"", source->what, source->path) ==
             0) {
        if (source->mend)
            mend_mode(source, fd, status.st_mode);
        return look_into(source, fd, record, known, fault);
    }
    return LOOK_REFUSED;
}

/* ---- both ---- */

static int refuse_newer(struct fault *fault)
{
    const struct fault why = *fault;

    return fault_set(fault, FAULT_FAILED_PRECONDITION, "%s: install the newer version again",
                     why.message);
}

static int refuse_both(const struct fault *first, const struct fault *second, struct fault *fault)
{
    const bool passes = second->code == FAULT_UNAVAILABLE;

    return fault_set(fault, passes ? FAULT_UNAVAILABLE : FAULT_FAILED_PRECONDITION,
                     "%s; %s: restore one of them, or remove both, and the record begins anew with "
                     "the keys on the token",
                     first->message, second->message);
}

static void log_copy(const struct source *main, const struct source *copy, enum look look,
                     const struct fault *fault)
{
    if (look == LOOK_ABSENT)
        log_write(LOG_WARN, "record_file is missing: the plugin uses the copy beside it", "path",
                  main->path, "copy", copy->path, NULL);
    else
        log_fault(LOG_WARN, fault, "record_file is damaged: the plugin uses the copy beside it",
                  "path", main->path, "copy", copy->path, NULL);
}

/* The copy is older. It may lack our section because the damaged record was the first to have one.
 * Then the start must not take the copy for a record without us. */
static enum look look_at_copy(const struct source *copy, bool damaged, struct record *record,
                              bool *known, struct fault *fault)
{
    enum look look = look_at(copy, record, known, fault);

    if (look == LOOK_ABSENT && damaged)
        (void)fault_set(fault, FAULT_FAILED_PRECONDITION, "%s \"%s\" is missing", copy->what,
                        copy->path);
    else if (look == LOOK_GOOD && damaged && !*known)
        (void)fault_set(fault, FAULT_FAILED_PRECONDITION, "%s \"%s\" knows nothing of this server",
                        copy->what, copy->path);
    else
        return look;
    return LOOK_DAMAGED;
}

static int read_copy(const struct source *main, enum look look, const struct fault *first,
                     struct record *record, bool *known, struct fault *fault)
{
    char path[COPY_MAX + 1];
    const struct source copy = {"its copy", path, main->mend};
    struct fault second;
    enum look found;

    (void)snprintf(path, sizeof path, "%s~", main->path);
    found = look_at_copy(&copy, look == LOOK_DAMAGED, record, known, &second);
    if (found == LOOK_GOOD)
        log_copy(main, &copy, look, first);
    if (found == LOOK_GOOD || (found == LOOK_ABSENT && look == LOOK_ABSENT))
        return 0;
    return refuse_both(first, &second, fault);
}

static int read_either(struct scribe_file *file, bool mend, struct record *record, bool *known,
                       struct fault *fault)
{
    const struct source main = {"record_file", file->path, mend};
    struct fault why;
    enum look look = look_at(&main, record, known, &why);

    file->good = look == LOOK_GOOD;
    if (file->good)
        return 0;
    if (look == LOOK_REFUSED) {
        *fault = why;
        return why.code == FAULT_UNIMPLEMENTED ? refuse_newer(fault) : -1;
    }
    if (look == LOOK_ABSENT)
        (void)fault_set(&why, FAULT_FAILED_PRECONDITION, "%s \"%s\" is missing", main.what,
                        main.path);
    return read_copy(&main, look, &why, record, known, fault);
}

int scribe_file_read(struct scribe_file *file, bool mend, const struct label_scope *scope,
                     struct record *record, enum scribe_found *found, struct fault *fault)
{
    struct record read;
    bool known = false;
    struct fault why;

    record_open(scope, &read);
    if (read_either(file, mend, &read, &known, &why) != 0) {
        record_close(&read);
        if (fault)
            *fault = why;
        return -1;
    }
    *record = read;
    *found = known ? SCRIBE_RECORD : SCRIBE_NOTHING;
    return 0;
}

/* ---- damage ---- */

/* The digest of the content; zeros if there is no file. */
static bool digest_of(const char *path, uint8_t digest[SHA256_DIGEST_LENGTH])
{
    OWNED(scope_close) int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    OWNED(scope_free) uint8_t *bytes = malloc(READ_MAX);
    ssize_t length;

    memset(digest, 0, SHA256_DIGEST_LENGTH);
    if (fd < 0)
        return errno == ENOENT;
    length = bytes ? file_read(fd, bytes, READ_MAX) : -1;
    return length >= 0 && SHA256(bytes, (size_t)length, digest);
}

static bool damage_code(const char *path, const char *copy, char code[RECORD_CODE + 1])
{
    uint8_t digests[2 * SHA256_DIGEST_LENGTH];
    uint8_t digest[SHA256_DIGEST_LENGTH];

    if (!digest_of(path, digests) || !digest_of(copy, digests + SHA256_DIGEST_LENGTH) ||
        !SHA256(digests, sizeof digests, digest))
        return false;
    hex_encode(digest, RECORD_CODE / 2, code);
    return true;
}

bool scribe_file_is_damaged(const char *path, const struct label_scope *scope,
                            char code[RECORD_CODE + 1])
{
    OWNED(record_close) struct record record;
    char beside[COPY_MAX + 1];
    const struct source main = {"record_file", path, false};
    const struct source copy = {"its copy", beside, false};
    struct fault fault;
    bool known;
    enum look look;

    (void)snprintf(beside, sizeof beside, "%s~", path);
    record_open(scope, &record);
    look = look_at(&main, &record, &known, &fault);
    if (look == LOOK_GOOD || look == LOOK_REFUSED)
        return false;
    return look_at_copy(&copy, look == LOOK_DAMAGED, &record, &known, &fault) == LOOK_DAMAGED &&
           damage_code(path, beside, code);
}

/* ---- writing ---- */

/* If the copy cannot be kept, the record is written all the same: FAT and similar file systems have
 * no links. */
static void keep_copy(const struct file_place *place)
{
    char link[NAME_MAX + 1];
    char copy[NAME_MAX + 1];

    (void)snprintf(copy, sizeof copy, "%s~", place->name);
    (void)snprintf(link, sizeof link, ".%s.tmp-%ld-%016llx", place->name, (long)getpid(),
                   (unsigned long long)clock_now()); /* a draft's name: sweepable */
    if (linkat(place->folder, place->name, place->folder, link, 0) != 0)
        return;
    (void)renameat(place->folder, link, place->folder, copy);
    (void)unlinkat(place->folder, link, 0); /* rename keeps it if both were the same file */
}

static void sweep(struct scribe_file *file, const struct file_place *place)
{
    if (!file->swept)
        file_sweep(place);
    file->swept = true;
}

int scribe_file_write(struct scribe_file *file, const char *bytes, size_t length,
                      struct fault *fault)
{
    OWNED(file_place_close) struct file_place place = {.folder = -1};
    OWNED(file_draft_close) struct file_draft draft = {.fd = -1};

    if (file_place_open(file->path, &place, fault) != 0)
        return -1;
    sweep(file, &place);
    if (file_draft_open(&place, PRIVATE, &draft, fault) != 0 ||
        file_draft_write(&draft, bytes, length, fault) != 0)
        return -1;
    if (file->good)
        keep_copy(&place);
    if (file_draft_replace(&draft, fault) != 0)
        return -1;
    file->good = true;
    return 0;
}
