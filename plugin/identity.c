#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <openssl/rand.h>

#include "../hsm/clock.h"
#include "../hsm/scope.h"

static const int64_t lock_wait = 12 * CLOCK_SECOND;

static int make_uuid(char text[40])
{
    unsigned char b[16];

    if (RAND_bytes(b, sizeof b) != 1)
        return -1;
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40); /* RFC 9562: version 4, variant 10 */
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    (void)snprintf(text, 40, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
                   b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12],
                   b[13], b[14], b[15]);
    return 0;
}

static int sync_directory(const char *path)
{
    char copy[HSM_PATH_MAX];
    OWNED(scope_close) int fd = -1;

    (void)snprintf(copy, sizeof copy, "%s", path);
    fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -1 : fsync(fd);
}

static int write_whole(const char *path, const char *text)
{
    OWNED(scope_close) int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    size_t length = strlen(text);

    if (fd < 0)
        return -1;
    if (write(fd, text, length) != (ssize_t)length || fsync(fd) != 0)
        return -1;
    return 0;
}

/* Of two processes starting at once one wins. The other found a file, like any later one. */
static int put_in_place(const char *temp, const char *path, bool *existed)
{
    if (link(temp, path) == 0)
        return 0;
    *existed = errno == EEXIST;
    return *existed ? 0 : -1;
}

/* Beside the target and linked into place, so that the name never shows a half-written
 * identity. */
static int create(const char *path, bool *existed, struct fault *fault)
{
    char temp[HSM_PATH_MAX + 64];
    char uuid[40];
    int error = 0;

    if (make_uuid(uuid) != 0)
        return fault_set(fault, FAULT_INTERNAL, "no random numbers for %s", path);
    (void)snprintf(temp, sizeof temp, "%s.tmp-%s", path, uuid);
    if (write_whole(temp, uuid) != 0 || put_in_place(temp, path, existed) != 0 ||
        sync_directory(path) != 0)
        error = errno;
    (void)unlink(temp);
    if (error != 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, error,
                           "cannot create key_identifier_file \"%s\"", path);
    return 0;
}

static int open_file(const char *path, bool *existed, int *fd, struct fault *fault)
{
    *existed = true;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0 && errno == ENOENT) {
        *existed = false;
        if (create(path, existed, fault) != 0)
            return -1;
        *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    }
    if (*fd < 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno,
                           "cannot open key_identifier_file \"%s\"", path);
    return 0;
}

static int check_file(const char *path, int fd, struct fault *fault)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno,
                           "cannot look at key_identifier_file \"%s\"", path);
    if (!S_ISREG(st.st_mode))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "key_identifier_file \"%s\" is not a regular file", path);
    if (st.st_uid != 0 && st.st_uid != geteuid())
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "key_identifier_file \"%s\" belongs to somebody else (user %u)", path,
                         (unsigned)st.st_uid);
    if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "key_identifier_file \"%s\" may be written by others (mode %04o): its "
                         "content decides which keys are ours",
                         path, (unsigned)(st.st_mode & 07777));
    return 0;
}

static int read_file(const char *path, int fd, struct identity *identity, struct fault *fault)
{
    char bytes[CONFIG_IDENTITY_MAX + 2];
    ssize_t got = pread(fd, bytes, sizeof bytes, 0);

    if (got < 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno,
                           "cannot read key_identifier_file \"%s\"", path);
    if (got > 0 && bytes[got - 1] == '\n')
        got--;
    if (got == 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "key_identifier_file \"%s\" is empty: restore it, or remove it to start "
                         "as a new server (the keys of the old identity are then not found)",
                         path);
    if (got > CONFIG_IDENTITY_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "key_identifier_file \"%s\" holds more than %d bytes", path,
                         CONFIG_IDENTITY_MAX);
    memcpy(identity->bytes, bytes, (size_t)got);
    identity->length = (size_t)got;
    return 0;
}

static bool same_file(int a, int b)
{
    struct stat first;
    struct stat second;

    return fstat(a, &first) == 0 && fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

static int take_lock(const char *path, int fd, int64_t wait, struct fault *fault)
{
    const struct timespec pause = {.tv_nsec = 50 * CLOCK_MILLISECOND};
    int64_t until = clock_now() + wait;

    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno,
                               "cannot lock key_identifier_file \"%s\"", path);
        if (clock_now() >= until)
            return fault_set(fault, FAULT_FAILED_PRECONDITION,
                             "key_identifier_file \"%s\" is in use by another process: two "
                             "servers must not share one identity",
                             path);
        (void)nanosleep(&pause, NULL);
    }
    return 0;
}

/* Whoever made the file may have taken it back while we waited for the lock. */
static bool is_at(const char *path, int fd)
{
    struct stat now;
    struct stat locked;

    return stat(path, &now) == 0 && fstat(fd, &locked) == 0 && now.st_dev == locked.st_dev &&
           now.st_ino == locked.st_ino;
}

/* *lock is -1 when the file has to be opened anew. */
static int lock_file(const char *path, const struct identity *held, int *fd, int *lock,
                     struct fault *fault)
{
    *lock = -1;
    if (held && held->lock >= 0 && same_file(held->lock, *fd)) {
        /* flock belongs to the open file, which a duplicate shares */
        *lock = fcntl(held->lock, F_DUPFD_CLOEXEC, 0);
        return *lock >= 0 ? 0
                          : fault_errno(fault, FAULT_UNAVAILABLE, errno,
                                        "cannot duplicate the identity lock");
    }
    if (take_lock(path, *fd, lock_wait, fault) != 0)
        return -1;
    if (is_at(path, *fd)) {
        *lock = *fd;
        *fd = -1;
    }
    return 0;
}

static int from_file(const char *path, const struct identity *held, struct identity *identity,
                     struct fault *fault)
{
    while (identity->lock < 0) {
        OWNED(scope_close) int fd = -1;

        if (open_file(path, &identity->existed, &fd, fault) != 0 ||
            check_file(path, fd, fault) != 0 || read_file(path, fd, identity, fault) != 0 ||
            lock_file(path, held, &fd, &identity->lock, fault) != 0)
            return -1;
    }
    return 0;
}

static int find_file(const char *path, bool lock, struct identity *identity, struct fault *fault)
{
    OWNED(scope_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return fault_errno(fault, errno == ENOENT ? FAULT_NOT_FOUND : FAULT_FAILED_PRECONDITION,
                           errno, "cannot open key_identifier_file \"%s\"", path);
    if (check_file(path, fd, fault) != 0 || read_file(path, fd, identity, fault) != 0)
        return -1;
    identity->existed = true;
    if (!lock)
        return 0;
    if (take_lock(path, fd, 0, fault) != 0)
        return -1;
    identity->lock = fd;
    fd = -1;
    return 0;
}

static void take_value(const struct config_keymanager *config, struct identity *identity)
{
    identity->length = strlen(config->key_identifier_value);
    memcpy(identity->bytes, config->key_identifier_value, identity->length);
}

int identity_find(const struct config_keymanager *config, bool lock, struct identity *identity,
                  struct fault *fault)
{
    struct identity found = {.lock = -1};

    if (config->key_identifier_file[0] == '\0')
        take_value(config, &found);
    else if (find_file(config->key_identifier_file, lock, &found, fault) != 0)
        return -1;
    *identity = found;
    return 0;
}

int identity_open(const struct config_keymanager *config, const struct identity *held,
                  struct identity *identity, struct fault *fault)
{
    struct identity made = {.lock = -1};

    if (config->key_identifier_file[0] != '\0') {
        if (from_file(config->key_identifier_file, held, &made, fault) != 0)
            return -1;
    } else {
        take_value(config, &made);
    }
    *identity = made;
    return 0;
}

void identity_undo(const struct config_keymanager *config, struct identity *identity)
{
    if (identity->lock >= 0 && !identity->existed)
        (void)unlink(config->key_identifier_file);
}

void identity_close(struct identity *identity)
{
    scope_close(&identity->lock);
    identity->lock = -1;
}
