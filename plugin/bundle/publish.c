#include "plugin/bundle/publish.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "hsm/base/clock.h"
#include "hsm/base/scope.h"

enum {
    MODE_BITS = 07777,
    CONTENT_MAX = 64 * 1024 * 1024, /* a larger file is not one of ours */
    RANDOM_DIGITS = 16,
    AFFIX_MAX = 40, /* "." and ".tmp-<pid>-<random>" */
    LOOK_MS = 20,
};

static const int64_t lock_wait = 5 * CLOCK_SECOND;

/* Where it goes: a directory, held open, and a name in it. */
struct place {
    const char *path;
    const char *name;
    int directory;
};

/* ---- errors ---- */

/* What may pass without anyone's help. */
static bool is_passing(int error)
{
    static const int passing[] = {ENOSPC, EDQUOT, EROFS,  EIO,    ENOMEM, EMFILE, ENFILE,
                                  EAGAIN, EBUSY,  ESTALE, ENOLCK, EINTR,  EFBIG,  ETXTBSY};

    for (size_t i = 0; i < sizeof passing / sizeof passing[0]; i++)
        if (passing[i] == error)
            return true;
    return false;
}

static int disk_fault(struct fault *fault, int error, const char *what, const char *path)
{
    return fault_errno(fault, is_passing(error) ? FAULT_UNAVAILABLE : FAULT_FAILED_PRECONDITION,
                       error, "%s %s", what, path);
}

/* ---- the place ---- */

static void close_place(const struct place *place)
{
    scope_close(&place->directory);
}

static int open_place(const char *path, struct place *place, struct fault *fault)
{
    const char *slash = strrchr(path, '/');
    char directory[PATH_MAX];
    size_t length;

    if (*path != '/' || !slash[1] || strcmp(slash, "/.") == 0 || strcmp(slash, "/..") == 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "path %s is not an absolute path of a file", path);
    length = slash == path ? 1 : (size_t)(slash - path);
    if (length >= sizeof directory || strlen(slash + 1) + AFFIX_MAX > NAME_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "path %s is too long", path);
    memcpy(directory, path, length);
    directory[length] = '\0';
    place->path = path;
    place->name = slash + 1;
    place->directory = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (place->directory < 0)
        return disk_fault(fault, errno, "cannot open the directory", directory);
    return 0;
}

/* Is there a file that may be replaced (or none: *missing)? */
static int look_at_target(const struct place *place, bool *missing, struct fault *fault)
{
    struct stat status;
    const char *kind = "a device, pipe or socket";

    *missing = false;
    if (fstatat(place->directory, place->name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
        *missing = errno == ENOENT;
        return *missing ? 0 : disk_fault(fault, errno, "cannot look at", place->path);
    }
    if (S_ISREG(status.st_mode))
        return 0;
    if (S_ISDIR(status.st_mode))
        kind = "a directory";
    if (S_ISLNK(status.st_mode))
        kind = "a symbolic link";
    return fault_set(fault, FAULT_FAILED_PRECONDITION, "path %s is %s, not a file", place->path,
                     kind);
}

int publish_check(const char *path, struct fault *fault)
{
    OWNED(close_place) struct place place = {.directory = -1};
    bool missing;

    if (open_place(path, &place, fault) != 0 || look_at_target(&place, &missing, fault) != 0)
        return -1;
    if (faccessat(place.directory, ".", W_OK | X_OK, AT_EACCESS) != 0)
        return disk_fault(fault, errno, "cannot write in the directory of", path);
    return 0;
}

/* ---- the lock ---- */

/* Open for writing, though nothing is written: NFS grants no other exclusive flock. On a disk
 * that is read-only for now, a file that is as it should be is no mistake. */
static int open_lock(const struct place *place, const char *name, int *fd, struct fault *fault)
{
    const int flags = O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    struct stat status;

    *fd = openat(place->directory, name, O_RDWR | flags, 0600);
    if (*fd < 0 && errno == EROFS)
        *fd = openat(place->directory, name, O_RDONLY | flags, 0600);
    if (*fd < 0)
        return disk_fault(fault, errno, "cannot open the lock file of", place->path);
    if (fstat(*fd, &status) != 0)
        return disk_fault(fault, errno, "cannot look at the lock file of", place->path);
    if (S_ISREG(status.st_mode) && status.st_uid == geteuid())
        return 0;
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "the lock file %s beside %s is not a file of this user", name, place->path);
}

/* Somebody tidy may have removed it after it was opened: then it locks nothing. */
static bool is_still_there(const struct place *place, const char *name, int fd)
{
    struct stat held;
    struct stat named;

    return fstat(fd, &held) == 0 &&
           fstatat(place->directory, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

static void pause_looking(void)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * CLOCK_MILLISECOND};

    (void)nanosleep(&pause, NULL);
}

/* *fd is the lock, held until it is closed. */
static int take_lock(const struct place *place, int *fd, struct fault *fault)
{
    const int64_t end = clock_now() + lock_wait;
    char name[NAME_MAX + 1];

    (void)snprintf(name, sizeof name, ".%s.lock", place->name);
    for (;;) {
        if (*fd < 0 && open_lock(place, name, fd, fault) != 0)
            return -1;
        if (flock(*fd, LOCK_EX | LOCK_NB) == 0) {
            if (is_still_there(place, name, *fd))
                return 0;
            scope_close(fd);
            *fd = -1;
        } else if (errno != EWOULDBLOCK && errno != EINTR) {
            return disk_fault(fault, errno, "cannot lock", place->path);
        }
        if (clock_now() >= end)
            return fault_set(fault, FAULT_UNAVAILABLE,
                             "another process has held the lock beside %s for 5 s", place->path);
        pause_looking();
    }
}

/* ---- what is there ---- */

struct content {
    char *bytes;
    size_t length;
    uint32_t mode;
};

static void free_content(struct content *content)
{
    free(content->bytes);
}

/* 0 when all `length` bytes were there. */
static int read_whole(int fd, char *bytes, size_t length)
{
    size_t have = 0;

    while (have < length) {
        ssize_t got = pread(fd, bytes + have, length - have, (off_t)have);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        have += (size_t)got;
    }
    return 0;
}

/* A file that cannot be read or is not one of ours has to be replaced: no content. */
static void read_target(const struct place *place, struct content *content)
{
    OWNED(scope_close)
    int fd = openat(place->directory, place->name,
                    O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    OWNED(scope_free) char *bytes = NULL;
    struct stat status;
    size_t length;

    if (fd < 0 || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
        status.st_size > CONTENT_MAX)
        return;
    length = (size_t)status.st_size;
    bytes = malloc(length + 1);
    if (!bytes || read_whole(fd, bytes, length) != 0)
        return;
    bytes[length] = '\0';
    *content = (struct content){bytes, length, status.st_mode & MODE_BITS};
    bytes = NULL;
}

/* May the file stay as it is? */
static bool may_stay(const struct publish *publish, const struct place *place,
                     enum publish_outcome *outcome)
{
    OWNED(free_content) struct content content = {0};

    read_target(place, &content);
    if (!content.bytes)
        return false;
    *outcome = PUBLISH_UNCHANGED;
    if (content.length == publish->length && content.mode == publish->mode &&
        memcmp(content.bytes, publish->bytes, publish->length) == 0)
        return true;
    *outcome = PUBLISH_KEPT;
    return publish->keep && publish->keep(publish->context, content.bytes, content.length);
}

/* ---- temporary files ---- */

/* ".NAME.tmp-", digits, "-", 16 hex digits, and no more. */
static bool is_temporary(const struct place *place, const char *name)
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

static void close_directory(DIR **directory)
{
    if (*directory)
        (void)closedir(*directory);
}

/* Under the lock: nobody is writing one now. */
static void sweep(const struct place *place)
{
    int fd = openat(place->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    OWNED(close_directory) DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *entry;

    if (!directory) {
        scope_close(&fd);
        return;
    }
    while ((entry = readdir(directory)))
        if (is_temporary(place, entry->d_name))
            (void)unlinkat(place->directory, entry->d_name, 0);
}

struct temporary {
    const struct place *place;
    int fd;
    bool exists;
    char name[NAME_MAX + 1];
};

/* What was not renamed is of no use. */
static void drop_temporary(struct temporary *temporary)
{
    if (temporary->exists)
        (void)unlinkat(temporary->place->directory, temporary->name, 0);
    scope_close(&temporary->fd);
}

static int make_temporary(struct temporary *temporary, struct fault *fault)
{
    uint64_t random;

    if (getrandom(&random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random)
        random = (uint64_t)clock_now();
    (void)snprintf(temporary->name, sizeof temporary->name, ".%s.tmp-%ld-%016llx",
                   temporary->place->name, (long)getpid(), (unsigned long long)random);
    temporary->fd = openat(temporary->place->directory, temporary->name,
                           O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (temporary->fd < 0)
        return disk_fault(fault, errno, "cannot write beside", temporary->place->path);
    temporary->exists = true;
    return 0;
}

static int write_whole(int fd, const char *bytes, size_t length)
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

static int fill(const struct publish *publish, const struct temporary *temporary,
                struct fault *fault)
{
    if (write_whole(temporary->fd, publish->bytes, publish->length) != 0 ||
        fchmod(temporary->fd, (mode_t)publish->mode) != 0 || fsync(temporary->fd) != 0)
        return disk_fault(fault, errno, "cannot write beside", publish->path);
    return 0;
}

/* Disks have been seen to say yes and keep something else. */
static int read_back(const struct publish *publish, const struct temporary *temporary,
                     struct fault *fault)
{
    OWNED(scope_free) char *bytes = malloc(publish->length + 1);
    struct stat status;

    if (!bytes)
        return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
    bytes[publish->length] = '\0';
    if (fstat(temporary->fd, &status) != 0 || status.st_size != (off_t)publish->length ||
        read_whole(temporary->fd, bytes, publish->length) != 0 ||
        memcmp(bytes, publish->bytes, publish->length) != 0)
        return fault_set(fault, FAULT_UNAVAILABLE,
                         "what was written beside %s reads back differently", publish->path);
    return publish->check ? publish->check(publish->context, bytes, publish->length, fault) : 0;
}

/* Some file systems do not sync directories, and say so by EINVAL. */
static int put_in_place(struct temporary *temporary, struct fault *fault)
{
    const struct place *place = temporary->place;

    if (renameat(place->directory, temporary->name, place->directory, place->name) != 0)
        return disk_fault(fault, errno, "cannot replace", place->path);
    temporary->exists = false;
    if (fsync(place->directory) != 0 && errno != EINVAL)
        return disk_fault(fault, errno, "cannot sync the directory of", place->path);
    return 0;
}

static int replace(const struct publish *publish, const struct place *place, struct fault *fault)
{
    OWNED(drop_temporary) struct temporary temporary = {.place = place, .fd = -1};

    if (make_temporary(&temporary, fault) != 0 || fill(publish, &temporary, fault) != 0 ||
        read_back(publish, &temporary, fault) != 0)
        return -1;
    return put_in_place(&temporary, fault);
}

int publish_file(const struct publish *publish, enum publish_outcome *outcome, struct fault *fault)
{
    OWNED(close_place) struct place place = {.directory = -1};
    OWNED(scope_close) int lock = -1;
    enum publish_outcome found;
    bool missing;

    if (open_place(publish->path, &place, fault) != 0 || take_lock(&place, &lock, fault) != 0)
        return -1;
    sweep(&place);
    if (look_at_target(&place, &missing, fault) != 0)
        return -1;
    if (!missing && may_stay(publish, &place, &found)) {
        *outcome = found;
        return 0;
    }
    if (replace(publish, &place, fault) != 0)
        return -1;
    *outcome = PUBLISH_WRITTEN;
    return 0;
}
