/* go-plugin's handshake: the cookie, the socket, and the one line on stdout. */
#include "plugin/rpc/handshake.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "hsm/base/scope.h"

_Static_assert(sizeof((struct sockaddr_un *)NULL)->sun_path == RPC_PATH_MAX, "a path fits");

enum { GROUP_BUFFER = 65536 };

static const char *variable(const char *name)
{
    const char *value = getenv(name);

    return value && *value ? value : NULL;
}

static bool lists_version_1(const char *versions)
{
    char *end;

    for (;;) {
        if (strtol(versions, &end, 10) == 1 && (*end == ',' || *end == '\0'))
            return true;
        versions = strchr(versions, ',');
        if (!versions)
            return false;
        versions++;
    }
}

int handshake_check(struct fault *fault)
{
    const char *versions = variable("PLUGIN_PROTOCOL_VERSIONS");

    if (variable("PLUGIN_CLIENT_CERT"))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the host asks for mutual TLS (PLUGIN_CLIENT_CERT), but this plugin does "
                         "not offer it: only its owner can use its socket");
    if (versions && !lists_version_1(versions))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the host speaks plugin protocol %.60s (PLUGIN_PROTOCOL_VERSIONS), but "
                         "this plugin only 1",
                         versions);
    return 0;
}

int handshake_choose(char path[RPC_PATH_MAX], struct fault *fault)
{
    const char *folder = variable("PLUGIN_UNIX_SOCKET_DIR");
    uint64_t name;
    int length;

    if (!folder)
        folder = variable("TMPDIR");
    if (!folder)
        folder = "/tmp";
    if (strpbrk(folder, "|\n\r"))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the socket's folder \"%.100s\" has a character that go-plugin's line "
                         "cannot carry",
                         folder);
    if (getrandom(&name, sizeof name, 0) != (ssize_t)sizeof name)
        return fault_errno(fault, FAULT_INTERNAL, errno, "no random bytes");
    length = snprintf(path, RPC_PATH_MAX, "%s/spire-hsm-%016" PRIx64, folder, name);
    if (length < 0 || length >= RPC_PATH_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "the socket's folder \"%.100s\" is too long a path: set "
                         "PLUGIN_UNIX_SOCKET_DIR or TMPDIR to one of at most 80 bytes",
                         folder);
    return 0;
}

static int find_group(const char *name, gid_t *gid, struct fault *fault)
{
    OWNED(scope_free) char *buffer = malloc(GROUP_BUFFER);
    struct group group;
    struct group *found = NULL;
    unsigned long number;
    char *end;

    errno = 0;
    number = strtoul(name, &end, 10);
    if (errno == 0 && *end == '\0' && number < (gid_t)-1) {
        *gid = (gid_t)number;
        return 0;
    }
    if (!buffer || getgrnam_r(name, &group, buffer, GROUP_BUFFER, &found) != 0 || !found)
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "there is no group \"%.100s\" (PLUGIN_UNIX_SOCKET_GROUP)", name);
    *gid = found->gr_gid;
    return 0;
}

int handshake_share(const char *path, struct fault *fault)
{
    const char *name = variable("PLUGIN_UNIX_SOCKET_GROUP");
    gid_t gid = 0;

    if (!name)
        return 0;
    if (find_group(name, &gid, fault) != 0)
        return -1;
    if (chown(path, (uid_t)-1, gid) != 0 || chmod(path, 0660) != 0)
        return fault_errno(fault, FAULT_FAILED_PRECONDITION, errno,
                           "cannot give %s to group %.100s", path, name);
    return 0;
}

/* Replaces stdout by /dev/null. Returns the old stdout, or -1. */
static int take_stdout(void)
{
    OWNED(scope_close) int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    int old = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);

    if (null >= 0 && old >= 0 && dup2(null, STDOUT_FILENO) >= 0)
        return old;
    scope_close(&old);
    return -1;
}

/* The seventh field says that broker connections cannot share this socket. Hosts that are too old
 * to ask would read it as part of the sixth field (a certificate). */
int handshake_announce(const char *path, struct fault *fault)
{
    const char *multiplex = variable("PLUGIN_MULTIPLEX_GRPC") ? "|false" : "";
    OWNED(scope_close) int out = take_stdout();

    if (out < 0 || dprintf(out, "1|1|unix|%s|grpc|%s\n", path, multiplex) < 0)
        return fault_errno(fault, FAULT_INTERNAL, errno, "cannot write go-plugin's line");
    return 0;
}
