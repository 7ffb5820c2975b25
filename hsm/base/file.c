/* Files that appear whole or not at all: a draft beside the place, synced, then renamed or linked.
 * And the rules on who may own and change a file that the plugin trusts. */
#include "hsm/base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"

enum {
    PRIVATE = S_IRUSR | S_IWUSR,
    RANDOM_DIGITS = 16,
    AFFIX_MAX = 40, /* "." and ".tmp-<pid>-<random>" */
    WRONG_MAX = 160,
};

/* ---- errors ---- */

/* Trouble that may end without anyone's help. */
static bool is_passing(int error)
{
    static const int passing[] = {ENOSPC, EDQUOT, EROFS,  EIO,    ENOMEM, EMFILE, ENFILE,
                                  EAGAIN, EBUSY,  ESTALE, ENOLCK, EINTR,  EFBIG,  ETXTBSY};

    for (size_t i = 0; i < sizeof passing / sizeof passing[0]; i++)
        if (passing[i] == error)
            return true;
    return false;
}

int file_fault(struct fault *fault, int error, const char *what, const char *path)
{
    return fault_errno(fault, is_passing(error) ? FAULT_UNAVAILABLE : FAULT_FAILED_PRECONDITION,
                       error, "%s %s", what, path);
}

/* ---- the place ---- */

void file_place_close(const struct file_place *place)
{
    scope_close(&place->folder);
}

int file_place_open(const char *path, struct file_place *place, struct fault *fault)
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX];
    size_t length;

    if (*path != '/' || !slash[1] || strcmp(slash, "/.") == 0 || strcmp(slash, "/..") == 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "path %s is not an absolute path of a file", path);
    length = slash == path ? 1 : (size_t)(slash - path);
    if (length >= sizeof folder || strlen(slash + 1) + AFFIX_MAX > NAME_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "path %s is too long", path);
    memcpy(folder, path, length);
    folder[length] = '\0';
    place->path = path;
    place->name = slash + 1;
    place->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (place->folder < 0)
        return file_fault(fault, errno, "cannot open the directory", folder);
    return 0;
}

/* Some file systems cannot sync a directory. Linux says EINVAL for them, a FUSE server may
 * say ENOTSUP. EROFS counts as a failure: ext4 says so once an error has made it read-only. */
static int sync_folder(const struct file_place *place, struct fault *fault)
{
    if (fsync(place->folder) == 0 || errno == EINVAL || errno == ENOTSUP)
        return 0;
    return file_fault(fault, errno, "cannot sync the directory of", place->path);
}

/* ---- the draft ---- */

static void remove_draft(struct file_draft *draft)
{
    if (draft->name[0] != '\0')
        (void)unlinkat(draft->place->folder, draft->name, 0);
    draft->name[0] = '\0';
}

void file_draft_close(struct file_draft *draft)
{
    remove_draft(draft);
    scope_close(&draft->fd);
    draft->fd = -1;
}

/* File systems such as FAT refuse fchmod. A private file is written there all the same. */
static int set_mode(int fd, mode_t mode)
{
    return mode == PRIVATE ? 0 : fchmod(fd, mode);
}

int file_draft_open(const struct file_place *place, mode_t mode, struct file_draft *draft,
                    struct fault *fault)
{
    uint64_t random;

    *draft = (struct file_draft){.place = place, .fd = -1};
    if (getrandom(&random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random)
        random = (uint64_t)clock_now();
    (void)snprintf(draft->name, sizeof draft->name, ".%s.tmp-%ld-%016llx", place->name,
                   (long)getpid(), (unsigned long long)random);
    draft->fd = openat(place->folder, draft->name,
                       O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, PRIVATE);
    if (draft->fd < 0) {
        draft->name[0] = '\0'; /* not ours to remove */
        return file_fault(fault, errno, "cannot write beside", place->path);
    }
    if (set_mode(draft->fd, mode) != 0)
        return file_fault(fault, errno, "cannot set the mode of what stands beside", place->path);
    return 0;
}

/* A disk can take a part of the bytes, and a signal can interrupt. */
static int write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t put = write(fd, bytes, length);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -1;
        bytes += put;
        length -= (size_t)put;
    }
    return 0;
}

int file_draft_write(struct file_draft *draft, const void *bytes, size_t length,
                     struct fault *fault)
{
    if (write_all(draft->fd, bytes, length) != 0 || fsync(draft->fd) != 0)
        return file_fault(fault, errno, "cannot write beside", draft->place->path);
    return 0;
}

int file_draft_replace(struct file_draft *draft, struct fault *fault)
{
    const struct file_place *place = draft->place;

    if (renameat(place->folder, draft->name, place->folder, place->name) != 0)
        return file_fault(fault, errno, "cannot replace", place->path);
    draft->name[0] = '\0';
    return sync_folder(place, fault);
}

/* FAT, CIFS and some FUSE file systems have no links. NFS has no rename that refuses to replace a
 * file. */
static bool has_no_links(int error)
{
    return error == EPERM || error == EOPNOTSUPP || error == ENOSYS;
}

static int link_draft(const struct file_draft *draft)
{
    const struct file_place *place = draft->place;

    if (linkat(place->folder, draft->name, place->folder, place->name, 0) == 0)
        return 0;
    return has_no_links(errno)
               ? renameat2(place->folder, draft->name, place->folder, place->name, RENAME_NOREPLACE)
               : -1;
}

/* The draft's name is removed in any case: after a link the file has two names, after a rename the
 * draft's is gone. */
int file_draft_make(struct file_draft *draft, bool *existed, struct fault *fault)
{
    int error = link_draft(draft) == 0 ? 0 : errno;

    remove_draft(draft);
    if (error != 0 && error != EEXIST)
        return file_fault(fault, error, "cannot make", draft->place->path);
    if (error == 0 && sync_folder(draft->place, fault) != 0)
        return -1;
    *existed = error == EEXIST;
    return 0;
}

/* ---- all at once ---- */

static int draft_whole(const struct file_place *place, const void *bytes, size_t length,
                       mode_t mode, struct file_draft *draft, struct fault *fault)
{
    if (file_draft_open(place, mode, draft, fault) != 0)
        return -1;
    return file_draft_write(draft, bytes, length, fault);
}

int file_replace(const char *path, const void *bytes, size_t length, mode_t mode,
                 struct fault *fault)
{
    OWNED(file_place_close) struct file_place place = {.folder = -1};
    OWNED(file_draft_close) struct file_draft draft = {.fd = -1};

    if (file_place_open(path, &place, fault) != 0 ||
        draft_whole(&place, bytes, length, mode, &draft, fault) != 0)
        return -1;
    return file_draft_replace(&draft, fault);
}

int file_make(const char *path, const void *bytes, size_t length, mode_t mode, bool *existed,
              struct fault *fault)
{
    OWNED(file_place_close) struct file_place place = {.folder = -1};
    OWNED(file_draft_close) struct file_draft draft = {.fd = -1};

    if (file_place_open(path, &place, fault) != 0 ||
        draft_whole(&place, bytes, length, mode, &draft, fault) != 0)
        return -1;
    return file_draft_make(&draft, existed, fault);
}

/* ---- what the dead have left ---- */

/* Exactly ".NAME.tmp-", digits, "-" and 16 hex digits: nobody else's file is swept away. */
static bool is_draft(const struct file_place *place, const char *name)
{
    char prefix[NAME_MAX + 1];
    size_t length = (size_t)snprintf(prefix, sizeof prefix, ".%s.tmp-", place->name);
    size_t digits;

    if (strncmp(name, prefix, length) != 0)
        return false;
    name += length;
    digits = strspn(name, "0123456789");
    return digits > 0 && name[digits] == '-' &&
           strspn(name + digits + 1, "0123456789abcdef") == RANDOM_DIGITS &&
           name[digits + 1 + RANDOM_DIGITS] == '\0';
}

void file_sweep(const struct file_place *place)
{
    int fd = openat(place->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    OWNED(scope_closedir) DIR *listing = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *entry;

    if (!listing) {
        scope_close(&fd);
        return;
    }
    while ((entry = readdir(listing)))
        if (is_draft(place, entry->d_name))
            (void)unlinkat(place->folder, entry->d_name, 0);
}

/* ---- reading ---- */

ssize_t file_read(int fd, void *bytes, size_t size)
{
    uint8_t *to = bytes;
    size_t length = 0;

    while (length < size) {
        ssize_t got = read(fd, to + length, size - length);

        if (got < 0 && errno != EINTR)
            return -1;
        if (got == 0)
            break;
        length += got > 0 ? (size_t)got : 0;
    }
    return (ssize_t)length;
}

/* ---- what is trusted ---- */

/* A sentence and the number that it holds. */
struct around {
    const char *before;
    const char *behind;
};

static const struct rule {
    bool regular;       /* true: a folder, fifo or device is refused */
    bool ours;          /* true: the owner must be root or our user */
    mode_t forbidden;   /* bits of the mode */
    bool sticky_is_fit; /* true: such bits do no harm in a sticky folder such as /tmp, where others
                           cannot replace our file */
    struct around owner;
    struct around mode;
} rules[] = {
    [FILE_PIN] = {.regular = true,
                  .ours = true,
                  .forbidden = S_IWGRP | S_IRWXO,
                  .owner = {"belongs to user ", ", neither to root nor to the server's user"},
                  .mode = {"has mode ",
                           ": other users must have no access, and its group must not write"}},
    [FILE_IDENTITY] = {.regular = true,
                       .ours = true,
                       .forbidden = S_IWGRP | S_IWOTH,
                       .owner = {"belongs to somebody else (user ", ")"},
                       .mode = {"may be written by others (mode ",
                                "): its content decides which keys are ours"}},
    [FILE_RECORD] = {.regular = true,
                     .ours = true,
                     .owner = {"belongs to user ", ": it must belong to the server's user"}},
    [FILE_MODULE] = {.regular = true,
                     .forbidden = S_IWGRP | S_IWOTH,
                     .mode = {"can be written by its group or by everybody (mode ", ")"}},
    [FILE_MODULE_FOLDER] = {.forbidden = S_IWGRP | S_IWOTH,
                            .sticky_is_fit = true,
                            .mode = {"can be written by its group or by everybody (mode ",
                                     "), who could put another library there"}},
    [FILE_KEYS] = {.regular = true,
                   .ours = true,
                   .forbidden =
                       S_IRWXO, /* Kubernetes' fsGroup gives its group access at each mount */
                   .owner = {"belongs to user ", ", neither to root nor to us"},
                   .mode = {"has mode ", ", but others must have no access: chmod 0600 it"}},
};

static bool has_forbidden_bits(const struct rule *rule, mode_t mode)
{
    return (mode & rule->forbidden) != 0 && !(rule->sticky_is_fit && (mode & S_ISVTX) != 0);
}

/* If not, `wrong` says what is wrong, as the end of a sentence. */
static bool is_fit(const struct rule *rule, const struct stat *file, char wrong[WRONG_MAX])
{
    if (rule->regular && !S_ISREG(file->st_mode))
        (void)snprintf(wrong, WRONG_MAX, "is not a regular file");
    else if (rule->ours && file->st_uid != 0 && file->st_uid != geteuid())
        (void)snprintf(wrong, WRONG_MAX, "%s%u%s", rule->owner.before, file->st_uid,
                       rule->owner.behind);
    else if (has_forbidden_bits(rule, file->st_mode))
        (void)snprintf(wrong, WRONG_MAX, "%s%04o%s", rule->mode.before, file->st_mode & 07777,
                       rule->mode.behind);
    else
        return true;
    return false;
}

int file_check(enum file_rule rule, const struct stat *file, struct fault *fault,
               const char *subject, ...)
{
    char text[FAULT_MESSAGE_MAX];
    char wrong[WRONG_MAX];
    va_list args;

    if (is_fit(&rules[rule], file, wrong))
        return 0;
    va_start(args, subject);
    (void)vsnprintf(text, sizeof text, subject, args);
    va_end(args);
    return fault_set(fault, FAULT_FAILED_PRECONDITION, "%s %s", text, wrong);
}
