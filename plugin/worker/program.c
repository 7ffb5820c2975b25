/* The worker's program: found beside ours, compared with the digest that we were built with, and
 * kept open. */
#include "plugin/worker/program.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "hsm/base/hex.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"

enum {
    FIRST_FREE_FD = 16, /* high enough not to collide with a worker's fixed descriptors */
    SHA256_BYTES = 32,
    SHA256_TEXT = 2 * SHA256_BYTES + 1,
    PIECE = 1 << 16,
};

static const char worker_name[] = "spire-hsm-worker";

static struct {
    const char *given; /* NULL: beside our executable */
    const char *sha256;
    char path[PATH_MAX]; /* "" = not looked for yet */
    int fd;
    bool refused; /* the kernel refused it; it may have been installed anew since */
} program = {.fd = -1};

void program_is(const char *path, const char *sha256)
{
    program.given = path;
    program.sha256 = sha256;
}

/* ---- where ---- */

/* If our executable was replaced, the kernel adds " (deleted)" to its name. Only the folder counts
 * here. */
static int find_path(struct fault *fault)
{
    char self[PATH_MAX];
    ssize_t length;
    char *slash;

    if (program.given) {
        (void)snprintf(program.path, sizeof program.path, "%s", program.given);
        return 0;
    }
    length = readlink("/proc/self/exe", self, sizeof self - sizeof worker_name - 1);
    if (length < 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno,
                           "cannot tell where spire-hsm-worker is: /proc/self/exe");
    self[length] = '\0';
    slash = strrchr(self, '/');
    (void)snprintf(program.path, sizeof program.path, "%.*s%s", slash ? (int)(slash + 1 - self) : 0,
                   self, worker_name);
    return 0;
}

/* O_NONBLOCK: a pipe in the program's place must not block us. */
static int open_path(int *fd, struct fault *fault)
{
    OWNED(scope_close) int low = open(program.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int error = errno;
    struct stat file;

    if (low < 0)
        return fault_set(fault,
                         error == EMFILE || error == ENFILE ? FAULT_UNAVAILABLE
                                                            : FAULT_FAILED_PRECONDITION,
                         "cannot open the worker's program %s: %s; it must be beside spire-hsm and "
                         "come from the same build",
                         program.path, strerrordesc_np(error));
    if (fstat(low, &file) == 0 && !S_ISREG(file.st_mode))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the worker's program %s is not a file; it must come from the same build "
                         "as spire-hsm",
                         program.path);
    *fd = fcntl(low, F_DUPFD_CLOEXEC, FIRST_FREE_FD);
    if (*fd < 0)
        return fault_errno(fault, FAULT_UNAVAILABLE, errno, "cannot open %s", program.path);
    return 0;
}

/* ---- whether it is ours ---- */

static bool digest_file(int fd, EVP_MD_CTX *context, uint8_t digest[SHA256_BYTES])
{
    uint8_t piece[PIECE];
    off_t at = 0;
    ssize_t got;

    while ((got = pread(fd, piece, sizeof piece, at)) > 0) {
        if (EVP_DigestUpdate(context, piece, (size_t)got) != 1)
            return false;
        at += got;
    }
    return got == 0 && EVP_DigestFinal_ex(context, digest, NULL) == 1;
}

static int sha256_of(int fd, char text[SHA256_TEXT], struct fault *fault)
{
    OWNED(md_ctx_free) EVP_MD_CTX *context = EVP_MD_CTX_new();
    uint8_t digest[SHA256_BYTES];

    if (!context || EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1 ||
        !digest_file(fd, context, digest))
        return fault_set(fault, FAULT_UNAVAILABLE, "cannot read the worker's program %s",
                         program.path);
    hex_encode(digest, sizeof digest, text);
    return 0;
}

/* FAULT_UNAVAILABLE means that nobody can tell now. */
static int check(int fd, struct fault *fault)
{
    char found[SHA256_TEXT];

    if (!program.sha256)
        return 0;
    if (sha256_of(fd, found, fault) != 0)
        return -1;
    if (strcmp(found, program.sha256) == 0)
        return 0;
    return fault_set(
        fault, FAULT_FAILED_PRECONDITION,
        "%s is not the worker that this spire-hsm was built with: its SHA-256 is %s, but %s is "
        "expected; install both programs from one build, unstripped and unchanged",
        program.path, found, program.sha256);
}

/* Opens the file at the path in place of the open one, if it is our worker. */
static int open_anew(struct fault *fault)
{
    int fd = -1;

    if ((program.path[0] == '\0' && find_path(fault) != 0) || open_path(&fd, fault) != 0)
        return -1;
    if (check(fd, fault) != 0) {
        (void)close(fd);
        return -1;
    }
    if (program.fd >= 0)
        (void)close(program.fd);
    program.fd = fd;
    return 0;
}

int program_open(int *fd, struct fault *fault)
{
    struct fault why = {.code = FAULT_FAILED_PRECONDITION};
    bool right = program.fd >= 0 && check(program.fd, &why) == 0;

    if (!right && why.code == FAULT_UNAVAILABLE) {
        if (fault)
            *fault = why;
        return -1;
    }
    if ((!right || program.refused) && open_anew(right ? NULL : fault) != 0 && !right)
        return -1;
    program.refused = false;
    *fd = program.fd;
    return 0;
}

/* ---- why it does not start ---- */

static int refused_access(struct fault *fault)
{
    struct statvfs mount;
    struct stat file;

    if (fstat(program.fd, &file) == 0 && (file.st_mode & (S_IXUSR | S_IXGRP | S_IXOTH)) == 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the worker's program %s is not executable (mode %04o): chmod 755 it",
                         program.path, file.st_mode & 07777);
    if (fstatvfs(program.fd, &mount) == 0 && (mount.f_flag & ST_NOEXEC) != 0)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the worker's program %s is on a file system that is mounted noexec: "
                         "install both programs elsewhere, or mount with exec",
                         program.path);
    return fault_errno(fault, FAULT_FAILED_PRECONDITION, EACCES,
                       "the worker's program %s may not be executed by user %u (mode %04o, or a "
                       "security module of the system)",
                       program.path, (unsigned)geteuid(), file.st_mode & 07777);
}

int program_refused(int error, struct fault *fault)
{
    program.refused = true;
    switch (error) {
    case EACCES:
    case EPERM:
        return refused_access(fault);
    case ENOENT:
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the worker's program %s does not start: its loader is missing, or /proc "
                         "is not mounted",
                         program.path);
    case ENOEXEC:
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, error,
                           "the worker's program %s does not start", program.path);
    default:
        return fault_errno(fault, FAULT_UNAVAILABLE, error, "cannot start a worker process");
    }
}
