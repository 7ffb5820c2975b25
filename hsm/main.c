/* spire-hsm-worker: the process in which a vendor's PKCS#11 module runs. spire-hsm starts it; it is
 * of no use by hand. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include "hsm/hsm.h"
#include "hsm/wire/frame.h"

#ifndef VERSION
#define VERSION "unknown"
#endif

/* Naming libc's stdout or stderr would make this program export them to the module; hence dprintf.
 * jansson names stdin in a function that nobody calls, so it gets this one. */
__attribute__((visibility("hidden"))) FILE *stdin;

/* Did the front start this process? */
static bool has_front(void)
{
    int type = 0;
    socklen_t length = sizeof type;

    return getsockopt(FRAME_SOCKET_FD, SOL_SOCKET, SO_TYPE, &type, &length) == 0 &&
           type == SOCK_SEQPACKET;
}

int main(int argc, char **argv)
{
    const char *argument = argc > 1 ? argv[1] : "";

    if (strcmp(argument, FRAME_WORKER_ARGUMENT) == 0 && has_front()) {
        /* This program's libcrypto is its own. The host's openssl.cnf is meant for the module's.
         * A thread that hangs in the module while main returns must not find OpenSSL taken down. */
        (void)OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, NULL);
        return hsm_worker(FRAME_SOCKET_FD, FRAME_PAGE_FD);
    }
    if (strcmp(argument, "--version") == 0 || strcmp(argument, "-version") == 0)
        return dprintf(STDOUT_FILENO, "spire-hsm-worker %s\n", VERSION) < 0;
    (void)dprintf(STDERR_FILENO,
                  "spire-hsm-worker is a part of spire-hsm, which starts it and looks for it\n"
                  "beside itself. `spire-hsm --help` lists the commands for operators.\n");
    return 2;
}
