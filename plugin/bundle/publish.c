/* One file for many readers and several writers: a lock beside it, a check whether it may stay, and
 * a replacement that is whole. */
#include "plugin/bundle/publish.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "hsm/base/clock.h"
#include "hsm/base/file.h"
#include "hsm/base/scope.h"

enum {
    MODE_BITS = 07777,
    CONTENT_MAX = 64 * 1024 * 1024, /* we never write a larger file */
    LOOK_MS = 20,
};

static const int64_t lock_wait = 5 * CLOCK_SECOND;

/* ---- the place ---- */

/* A rename cannot replace a file that was mounted by itself. If the kernel or sandbox cannot tell,
 * the first publication finds out. */
static bool is_mount(const struct file_place *place)
{
    struct statx about;

    return statx(place->folder, place->name, AT_SYMLINK_NOFOLLOW, 0, &about) == 0 &&
           (about.stx_attributes_mask & about.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

/* Is there a file that may be replaced? *missing: there is none. */
static int look_at_target(const struct file_place *place, bool *missing, struct fault *fault)
{
    struct stat status;
    const char *kind = "a device, pipe or socket";

    *missing = false;
    if (fstatat(place->folder, place->name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
        *missing = errno == ENOENT;
        return *missing ? 0 : file_fault(fault, errno, "cannot look at", place->path);
    }
    if (S_ISREG(status.st_mode) && !is_mount(place))
        return 0;
    if (S_ISREG(status.st_mode))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "path %s is a mount point and cannot be replaced: mount its folder "
                         "(docker -v FOLDER:FOLDER, Kubernetes without subPath)",
                         place->path);
    if (S_ISDIR(status.st_mode))
        kind = "a directory";
    if (S_ISLNK(status.st_mode))
        kind = "a symbolic link";
    return fault_set(fault, FAULT_FAILED_PRECONDITION, "path %s is %s, not a file", place->path,
                     kind);
}

int publish_check(const char *path, struct fault *fault)
{
    OWNED(file_place_close) struct file_place place = {.folder = -1};
    bool missing;

    if (file_place_open(path, &place, fault) != 0 || look_at_target(&place, &missing, fault) != 0)
        return -1;
    /* Some container runtimes answer EPERM to every system call that they do not know. */
    if (faccessat(place.folder, ".", W_OK | X_OK, AT_EACCESS) != 0 && errno != EPERM &&
        errno != ENOSYS)
        return file_fault(fault, errno, "cannot write in the directory of", path);
    return 0;
}

/* ---- the lock ---- */

/* Opened for writing although nothing is written: NFS grants an exclusive flock only then. If the
 * disk is read-only for now and the file is up to date, that is no error. */
static int open_lock(const struct file_place *place, const char *name, int *fd, struct fault *fault)
{
    const int flags = O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    struct stat status;

    *fd = openat(place->folder, name, O_RDWR | flags, 0600);
    if (*fd < 0 && errno == EROFS)
        *fd = openat(place->folder, name, O_RDONLY | flags, 0600);
    if (*fd < 0)
        return file_fault(fault, errno, "cannot open the lock file of", place->path);
    if (fstat(*fd, &status) != 0)
        return file_fault(fault, errno, "cannot look at the lock file of", place->path);
    if (S_ISREG(status.st_mode) && status.st_uid == geteuid())
        return 0;
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "the lock file %s beside %s is not a file of this user", name, place->path);
}

/* Somebody may have removed the file after we opened it. Then it locks nothing. */
static bool is_still_there(const struct file_place *place, const char *name, int fd)
{
    struct stat held;
    struct stat named;

    return fstat(fd, &held) == 0 &&
           fstatat(place->folder, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

static void pause_looking(void)
{
    const struct timespec pause = {.tv_nsec = LOOK_MS * CLOCK_MILLISECOND};

    (void)nanosleep(&pause, NULL);
}

/* The lock is held until *fd is closed. */
static int take_lock(const struct file_place *place, int *fd, struct fault *fault)
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
            return file_fault(fault, errno, "cannot lock", place->path);
        }
        if (clock_now() >= end)
            return fault_set(fault, FAULT_UNAVAILABLE,
                             "another process has held the lock beside %s for 5 s", place->path);
        pause_looking();
    }
}

/* ---- the number in it ---- */

static const char number_out[] = "%" PRIu64 "\n";
enum { NUMBER_MAX = 24 };

/* Only up to the first newline: behind a short number, the end of a longer one may be left over. */
static uint64_t read_number(int lock)
{
    char text[NUMBER_MAX + 1] = "";
    char *end;
    uint64_t number;

    if (pread(lock, text, NUMBER_MAX, 0) <= 0 || text[0] < '0' || text[0] > '9')
        return 0;
    errno = 0;
    number = strtoull(text, &end, 10);
    return errno == 0 && *end == '\n' ? number : 0;
}

/* If the disk refuses this, it will refuse the bundle too, and that is reported. Until a restart
 * the process itself remembers the number. */
static void write_number(int lock, uint64_t number)
{
    char text[NUMBER_MAX];
    int length = snprintf(text, sizeof text, number_out, number);

    if (number != 0 && number != read_number(lock))
        (void)!pwrite(lock, text, (size_t)length, 0);
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

/* Returns 0 if all `length` bytes were there. */
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

/* A file that cannot be read, or that we did not write, has to be replaced: it counts as empty. */
static void read_target(const struct file_place *place, struct content *content)
{
    OWNED(scope_close)
    int fd = openat(place->folder, place->name,
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

/* Is the file right as it is? */
static bool may_stay(const struct publish *publish, const struct file_place *place, int lock,
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
    return publish->keep &&
           publish->keep(publish->context, content.bytes, content.length, read_number(lock));
}

/* ---- writing ---- */

/* Some disks have confirmed a write and kept other bytes. */
static int read_back(const struct publish *publish, const struct file_draft *draft,
                     struct fault *fault)
{
    OWNED(scope_free) char *bytes = malloc(publish->length + 1);
    struct stat status;

    if (!bytes)
        return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
    bytes[publish->length] = '\0';
    if (fstat(draft->fd, &status) != 0 || status.st_size != (off_t)publish->length ||
        read_whole(draft->fd, bytes, publish->length) != 0 ||
        memcmp(bytes, publish->bytes, publish->length) != 0)
        return fault_set(fault, FAULT_UNAVAILABLE,
                         "the file just written beside %s has other content when read back",
                         publish->path);
    return publish->check ? publish->check(publish->context, bytes, publish->length, fault) : 0;
}

static int replace(const struct publish *publish, const struct file_place *place,
                   struct fault *fault)
{
    OWNED(file_draft_close) struct file_draft draft = {.fd = -1};

    if (file_draft_open(place, (mode_t)publish->mode, &draft, fault) != 0 ||
        file_draft_write(&draft, publish->bytes, publish->length, fault) != 0 ||
        read_back(publish, &draft, fault) != 0)
        return -1;
    return file_draft_replace(&draft, fault);
}

int publish_file(const struct publish *publish, enum publish_outcome *outcome, struct fault *fault)
{
    OWNED(file_place_close) struct file_place place = {.folder = -1};
    OWNED(scope_close) int lock = -1;
    enum publish_outcome found;
    bool missing;

    if (file_place_open(publish->path, &place, fault) != 0 || take_lock(&place, &lock, fault) != 0)
        return -1;
    file_sweep(&place); /* under the lock: nobody else is writing */
    if (look_at_target(&place, &missing, fault) != 0)
        return -1;
    if (!missing && may_stay(publish, &place, lock, &found)) {
        if (found == PUBLISH_UNCHANGED)
            write_number(lock, publish->number);
        *outcome = found;
        return 0;
    }
    write_number(lock, publish->number);
    if (replace(publish, &place, fault) != 0)
        return -1;
    *outcome = PUBLISH_WRITTEN;
    return 0;
}
