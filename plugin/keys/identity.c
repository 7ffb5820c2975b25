/* Which server this is: the content of a file or a configured value. A lock keeps two processes on
 * one host from sharing it. Nothing keeps a value, or a copy of the file, from use on two hosts. */
#include "plugin/keys/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <openssl/rand.h>

#include "hsm/base/clock.h"
#include "hsm/base/file.h"
#include "hsm/base/file_stamp.h"
#include "hsm/base/scope.h"
#include "plugin/keys/holder.h"
#include "plugin/keys/scribe.h"
#include "plugin/report/log.h"

static const int64_t lock_wait = 12 * CLOCK_SECOND;

/* A file that holds an identity, or one that marks the place of a configured value. */
struct source {
    const char *what;
    const char *path;
    int flags;          /* flags of open(2) */
    const char *record; /* the record beside it, or "" */
    const char *trust_domain;
};

static struct source file_of(const struct config *config)
{
    return (struct source){.what = "key_identifier_file",
                           .path = config->keymanager.place.key_identifier_file,
                           .record = config->keymanager.record_file,
                           .trust_domain = config->trust_domain};
}

/* In /dev/shm everybody may create links, so none is followed. */
static struct source place_of(const char *path)
{
    return (struct source){
        .what = "place of key_identifier_value", .path = path, .flags = O_NOFOLLOW, .record = ""};
}

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

/* Somebody removed the file by mistake. Only one content is right, and we know it. */
static int write_back(const struct source *source, const void *bytes, size_t length, bool *existed,
                      struct fault *fault)
{
    struct fault why;

    if (file_make(source->path, bytes, length, S_IRUSR | S_IWUSR, existed, &why) != 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "%s \"%s\" has vanished and cannot be written back: %s", source->what,
                         source->path, why.message);
    log_write(LOG_WARN, "key_identifier_file had vanished and was written back", "path",
              source->path, NULL);
    *existed = true;
    return 0;
}

/* If the record exists and its identity file does not, that file has vanished. A new identity would
 * forget every key, so the record restores it. */
static int from_record(const struct source *source, bool *existed, bool *restored,
                       struct fault *fault)
{
    uint8_t bytes[CONFIG_IDENTITY_MAX];
    size_t length = 0;

    *restored = false;
    if (source->record[0] == '\0')
        return 0;
    if (scribe_identity(source->record, source->trust_domain, bytes, &length, fault) != 0)
        return fault->code == FAULT_NOT_FOUND ? 0 : -1;
    *restored = true;
    return write_back(source, bytes, length, existed, fault);
}

/* The file never shows a half-written identity. If two processes start at once, one creates the
 * file and the other finds it. */
static int create(const struct source *source, bool *existed, struct fault *fault)
{
    char uuid[40];
    struct fault why;
    bool restored;

    if (from_record(source, existed, &restored, fault) != 0)
        return -1;
    if (restored)
        return 0;
    if (make_uuid(uuid) != 0)
        return fault_set(fault, FAULT_INTERNAL, "no random numbers for %s", source->path);
    if (file_make(source->path, uuid, strlen(uuid), S_IRUSR | S_IWUSR, existed, &why) != 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "cannot create %s \"%s\": %s",
                         source->what, source->path, why.message);
    return 0;
}

/* Opened for writing although only read: NFS grants an exclusive flock only then. */
static int open_source(const struct source *source)
{
    int flags = O_CLOEXEC | O_NONBLOCK | source->flags;
    int fd = open(source->path, O_RDWR | flags);

    if (fd < 0 && errno != ENOENT)
        fd = open(source->path, O_RDONLY | flags);
    return fd;
}

static bool is_held(const struct source *source, const struct identity *held)
{
    return held && strcmp(held->path, source->path) == 0;
}

static int open_file(const struct source *source, const struct identity *held, bool *existed,
                     int *fd, struct fault *fault)
{
    *existed = true;
    *fd = open_source(source);
    if (*fd < 0 && errno == ENOENT) {
        if ((is_held(source, held) ? write_back(source, held->bytes, held->length, existed, fault)
                                   : create(source, existed, fault)) != 0)
            return -1;
        *fd = open_source(source);
    }
    if (*fd < 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno, "cannot open %s \"%s\"",
                           source->what, source->path);
    return 0;
}

static int check_file(const struct source *source, int fd, struct fault *fault)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno, "cannot look at %s \"%s\"",
                           source->what, source->path);
    return file_check(FILE_IDENTITY, &st, fault, "%s \"%s\"", source->what, source->path);
}

static int read_file(const struct source *source, int fd, struct identity *identity,
                     struct fault *fault)
{
    char bytes[CONFIG_IDENTITY_MAX + 2];
    ssize_t got = pread(fd, bytes, sizeof bytes, 0);

    if (got < 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno, "cannot read %s \"%s\"",
                           source->what, source->path);
    if (got > 0 && bytes[got - 1] == '\n')
        got--;
    if (got == 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "%s \"%s\" is empty: restore it, or remove it to start as a new server "
                         "(the keys of the old identity are then not found)",
                         source->what, source->path);
    if (got > CONFIG_IDENTITY_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "%s \"%s\" holds more than %d bytes",
                         source->what, source->path, CONFIG_IDENTITY_MAX);
    memcpy(identity->bytes, bytes, (size_t)got);
    identity->length = (size_t)got;
    return 0;
}

static int in_use(const struct source *source, int fd, struct fault *fault)
{
    char holder[HOLDER_TEXT];

    holder_of(fd, holder);
    return fault_set(fault, FAULT_FAILED_PRECONDITION,
                     "%s \"%s\" is in use by another process%s: two servers must not share one "
                     "identity",
                     source->what, source->path, holder);
}

static int take_lock(const struct source *source, int fd, int64_t wait, struct fault *fault)
{
    const struct timespec pause = {.tv_nsec = 50 * CLOCK_MILLISECOND};
    int64_t until = clock_now() + wait;

    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno, "cannot lock %s \"%s\"",
                               source->what, source->path);
        if (clock_now() >= until)
            return in_use(source, fd, fault);
        (void)nanosleep(&pause, NULL);
    }
    return 0;
}

static bool same_file(int a, int b)
{
    struct file_stamp first;
    struct file_stamp second;

    return file_stamp_open(a, &first) == 0 && file_stamp_open(b, &second) == 0 &&
           file_stamp_same_file(&first, &second);
}

/* Somebody may have moved the file away while we waited for the lock. */
static bool is_at(const char *path, int fd)
{
    struct file_stamp now;
    struct file_stamp locked;

    return file_stamp_path(path, &now) == 0 && file_stamp_open(fd, &locked) == 0 &&
           file_stamp_same_file(&now, &locked);
}

/* *lock is -1 if the caller has to open the file anew. */
static int lock_file(const struct source *source, const struct identity *held, int *fd, int *lock,
                     struct fault *fault)
{
    *lock = -1;
    if (held && held->lock >= 0 && same_file(held->lock, *fd)) {
        /* flock belongs to the open file, and a duplicate shares it */
        *lock = fcntl(held->lock, F_DUPFD_CLOEXEC, 0);
        return *lock >= 0 ? 0
                          : fault_errno(fault, FAULT_UNAVAILABLE, errno,
                                        "cannot duplicate the identity lock");
    }
    if (take_lock(source, *fd, lock_wait, fault) != 0)
        return -1;
    if (is_at(source->path, *fd)) {
        *lock = *fd;
        *fd = -1;
    }
    return 0;
}

static int make_or_read(const struct source *source, const struct identity *held,
                        struct identity *identity, int *fd, struct fault *fault)
{
    if (open_file(source, held, &identity->existed, fd, fault) != 0 ||
        check_file(source, *fd, fault) != 0 || read_file(source, *fd, identity, fault) != 0)
        return -1;
    return 0;
}

/* ---- the place ---- */

/* When the host was booted: by proc(5), or by the clocks where /proc hides it. */
static void boot_text(char text[40])
{
    OWNED(scope_close) int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, text, 36) : -1;
    struct timespec up;

    if (got == 36)
        text[36] = '\0';
    else if (clock_gettime(CLOCK_BOOTTIME, &up) == 0)
        (void)snprintf(text, 40, "%lld", (long long)(time(NULL) - up.tv_sec) / 60);
    else
        (void)snprintf(text, 40, "unknown");
}

/* A copy of the file has another inode or birth time. A cloned host has another boot. */
static void place_text(int fd, char text[IDENTITY_PLACE_TEXT])
{
    struct statx file = {.stx_mask = 0};
    char boot[40];

    boot_text(boot);
    (void)statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &file);
    (void)snprintf(text, IDENTITY_PLACE_TEXT, "%u:%u:%llu:%lld.%u:%s", file.stx_dev_major,
                   file.stx_dev_minor, (unsigned long long)file.stx_ino,
                   (long long)file.stx_btime.tv_sec, file.stx_btime.tv_nsec, boot);
}

static int from_file(const struct source *source, const struct identity *held,
                     struct identity *identity, struct fault *fault)
{
    while (identity->lock < 0) {
        OWNED(scope_close) int fd = -1;

        if (make_or_read(source, held, identity, &fd, fault) != 0 ||
            lock_file(source, held, &fd, &identity->lock, fault) != 0)
            return -1;
    }
    place_text(identity->lock, identity->place);
    (void)snprintf(identity->path, sizeof identity->path, "%s", source->path);
    return 0;
}

static int find_file(const struct source *source, bool lock, struct identity *identity,
                     struct fault *fault)
{
    OWNED(scope_close) int fd = open_source(source);

    if (fd < 0)
        return fault_errno(fault, errno == ENOENT ? FAULT_NOT_FOUND : FAULT_FAILED_PRECONDITION,
                           errno, "cannot open %s \"%s\"", source->what, source->path);
    if (check_file(source, fd, fault) != 0 || read_file(source, fd, identity, fault) != 0)
        return -1;
    place_text(fd, identity->place);
    identity->existed = true;
    if (!lock)
        return 0;
    if (take_lock(source, fd, 0, fault) != 0)
        return -1;
    identity->lock = fd;
    fd = -1;
    return 0;
}

/* ---- a value ---- */

static void take_value(const struct config *config, struct identity *identity)
{
    const char *value = config->keymanager.place.key_identifier_value;

    identity->length = strlen(value);
    memcpy(identity->bytes, value, identity->length);
    (void)snprintf(identity->place, sizeof identity->place, "process %ld since %lld",
                   (long)getpid(), (long long)clock_now());
}

static void take_scope(const struct config *config, struct identity *identity)
{
    label_scope(config->trust_domain, identity->bytes, identity->length, &identity->scope);
}

/* Without a place the plugin goes on, only more cautiously. But if another process holds the place,
 * two servers share one identity. */
static int take_place(const struct identity *held, struct identity *identity, struct fault *fault)
{
    struct identity place = {.lock = -1};
    char path[IDENTITY_PLACE_MAX] = "";
    const struct source source = place_of(path);

    identity_place(&identity->scope, path);
    while (place.lock < 0) {
        OWNED(scope_close) int fd = -1;
        struct fault why;

        if (make_or_read(&source, NULL, &place, &fd, &why) != 0) {
            log_fault(LOG_WARN, &why, "only superseded keys that this process made are destroyed",
                      NULL);
            return 0;
        }
        if (lock_file(&source, held, &fd, &place.lock, fault) != 0)
            return -1;
    }
    identity->lock = place.lock;
    label_maker(place.bytes, place.length, &identity->maker);
    (void)snprintf(identity->place, sizeof identity->place, "%s", path);
    return 0;
}

/* ---- the door ---- */

static bool has_file(const struct config *config)
{
    return config->keymanager.place.key_identifier_file[0] != '\0';
}

int identity_find(const struct config *config, bool lock, struct identity *identity,
                  struct fault *fault)
{
    const struct source source = file_of(config);
    struct identity found = {.lock = -1};

    if (!has_file(config))
        take_value(config, &found);
    else if (find_file(&source, lock, &found, fault) != 0)
        return -1;
    take_scope(config, &found);
    if (!has_file(config))
        identity_place(&found.scope, found.place);
    *identity = found;
    return 0;
}

int identity_open(const struct config *config, const struct identity *held,
                  struct identity *identity, struct fault *fault)
{
    const struct source source = file_of(config);
    struct identity made = {.lock = -1};

    if (!has_file(config))
        take_value(config, &made);
    else if (from_file(&source, held, &made, fault) != 0)
        return -1;
    take_scope(config, &made);
    if (!has_file(config) && take_place(held, &made, fault) != 0)
        return -1;
    *identity = made;
    return 0;
}

void identity_close(struct identity *identity)
{
    scope_close(&identity->lock);
    identity->lock = -1;
}
