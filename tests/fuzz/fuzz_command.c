/* Any bytes as the file behind --config, which may be all of server.conf. The first one says
 * whether variables in it are replaced. What is accepted has what a command then needs. */
#include "plugin/command/command_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The file, and no notes: a sanitizer writes to its descriptor, not to the stream. */
static int open_once(void)
{
    static int file = -1;

    if (file < 0) {
        file = memfd_create("config", 0);
        stderr = fopen("/dev/null", "w");
        if (file < 0 || !stderr || setenv("SET", "\"${SET}", 1) != 0)
            abort();
    }
    return file;
}

/* What has no variable in it stays as it is. */
static void check_expansion(const uint8_t *data, size_t size)
{
    char *text = calloc(1, size + 1);
    unsigned unset = 0;
    char *made;

    if (!text)
        return;
    memcpy(text, data, size);
    made = command_expand(text, &unset);
    if (made && !strchr(text, '$') && (strcmp(made, text) != 0 || unset > 0))
        abort();
    free(made);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct command_options options = {.trust_domain = "example.org"};
    struct command_config config;
    struct fault fault = {0};
    int file = open_once();
    char path[64];

    if (size == 0)
        return 0;
    options.expand_env = data[0] % 2 != 0;
    check_expansion(data + 1, size - 1);
    if (ftruncate(file, 0) != 0 || pwrite(file, data + 1, size - 1, 0) != (ssize_t)(size - 1))
        abort();
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    options.config = path;
    if (command_read_config(&options, &config, &fault) != 0) {
        if (fault.message[0] == '\0')
            abort();
        return 0;
    }
    if (config.config.keymanager.place.module[0] == '\0' || config.config.trust_domain[0] == '\0' ||
        !(config.needed[HSM_EC_P256] || config.needed[HSM_EC_P384] || config.needed[HSM_RSA_2048] ||
          config.needed[HSM_RSA_4096]))
        abort();
    command_wipe_config(&config);
    return 0;
}
