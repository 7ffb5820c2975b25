/* spire-hsm: decides from the command line and the environment whether SPIRE or a person has
 * started it, and makes the process safe for secrets. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include "plugin/command/command.h"
#include "plugin/config/config.h"
#include "plugin/serve.h"
#include "plugin/service/role.h"
#include "plugin/worker/program.h"
#include "plugin/worker_hash.h"

#ifndef VERSION
#define VERSION "unknown"
#endif

static const char not_a_command[] =
    "spire-hsm is a plugin: spire-server or spire-agent starts it, from a block like this one\n"
    "in its configuration file:\n"
    "\n"
    "    KeyManager \"pkcs11\" {\n"
    "        plugin_cmd = \"/usr/local/libexec/spire-hsm\"\n"
    "        plugin_data {\n"
    "            module = \"/usr/lib/softhsm/libsofthsm2.so\"\n"
    "            token = \"pkcs11:token=spire\"\n"
    "            pin_file = \"/etc/spire/hsm-pin\"\n"
    "            key_identifier_file = \"/var/lib/spire/server/hsm-id\"\n"
    "        }\n"
    "    }\n"
    "\n"
    "`spire-hsm --help` lists all options, and the commands for operators.\n";

/* A PIN may be in this process's memory, in every role: so there is no core dump, and only root may
 * look in. The leak checker of a sanitizer needs to look. */
static void refuse_dumps(void)
{
#ifndef __SANITIZE_ADDRESS__
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
}

/* The caller may have closed some of these descriptors. The next files we open would get their
 * numbers, and a line for stderr would go into the identity file. The stand-ins cannot be written
 * to. */
static void open_standard_descriptors(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        (void)close(fd);
}

static int help(void)
{
    static const struct {
        enum config_kind kind;
        const char *title;
    } blocks[] = {
        {CONFIG_KEYMANAGER, "KeyManager: keys in a PKCS#11 token"},
        {CONFIG_PREVIOUS, "KeyManager, in its block previous"},
        {CONFIG_PUBLISHER, "BundlePublisher: the trust bundle in a file"},
        {CONFIG_NOTIFIER, "Notifier: the same, at once when the bundle changes"},
    };

    (void)printf("spire-hsm %s: SPIRE's signing keys in a PKCS#11 token, its trust bundle in a "
                 "file\n\n%s\n"
                 "usage: spire-hsm --help | --version\n",
                 VERSION, not_a_command);
    command_list(stdout);
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
        (void)printf("\nplugin_data of %s\n\n", blocks[i].title);
        config_help(blocks[i].kind, stdout);
    }
    return fflush(stdout) == 0 ? 0 : 1;
}

static int no_such_command(const char *word)
{
    (void)fprintf(stderr, "spire-hsm: there is no command \"%s\"; see --help\n", word);
    return 2;
}

int main(int argc, char **argv)
{
    const char *argument = argc > 1 ? argv[1] : "";
    const struct role *role;

    open_standard_descriptors();
    /* Our own computations must not depend on the host's openssl.cnf, which may load providers and
     * whole PKCS#11 modules into this process. And a thread that still writes the record while main
     * returns must not find OpenSSL taken down. */
    (void)OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, NULL);
    refuse_dumps();
    program_is(NULL, WORKER_SHA256);
    if (strcmp(argument, "--version") == 0 || strcmp(argument, "-version") == 0)
        return printf("spire-hsm %s\n", VERSION) < 0 || fflush(stdout) != 0;
    if (strcmp(argument, "help") == 0 || command_is_help(argument))
        return help();
    if (command_is(argument))
        return command_run(argc - 1, argv + 1);
    role = role_from_environment();
    if (role)
        return serve(role);
    if (*argument)
        return no_such_command(argument);
    (void)fputs(not_a_command, stderr);
    return 1;
}
