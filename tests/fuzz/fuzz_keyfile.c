/* The file of SPIRE's disk key manager. What is accepted lists keys that are proven; what is
 * refused says so in one sentence with the setting's name. */
#include "hsm/keyfile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"
#include "hsm/hsm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds)
{
    if (!holds)
        abort();
}

static void check_item(void *context, const struct hsm_item *item)
{
    struct hsm_request prove = {.op = HSM_PROVE, .key = item->key};
    struct hsm_reply reply;

    hsm_execute(context, &prove, &reply, NULL, NULL);
    must(item->state == HSM_COMPLETE && reply.state == HSM_COMPLETE &&
         reply.public_key.type != HSM_KEY_NONE &&
         memcmp(reply.public_key.fingerprint, item->public_key.fingerprint, HSM_FINGERPRINT) == 0);
}

static void check_keys(struct hsm_token *token)
{
    const struct hsm_request scan = {.op = HSM_SCAN};
    struct hsm_reply reply;

    hsm_execute(token, &scan, &reply, check_item, token);
    must(reply.fault.code == FAULT_NONE && reply.items > 0 && reply.items <= KEYFILE_KEYS_MAX);
    hsm_close(token);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    OWNED(scope_close) int fd = memfd_create("keys.json", MFD_CLOEXEC);
    struct hsm_settings settings = {.sessions = 1};
    struct hsm_token_info info;
    struct hsm_token *token;
    struct fault fault = {.code = FAULT_NONE};

    must(fd >= 0 && fchmod(fd, 0600) == 0 && write(fd, data, size) == (ssize_t)size);
    (void)snprintf(settings.keys_file, sizeof settings.keys_file, "/proc/self/fd/%d", fd);
    if (hsm_open(&settings, &token, &info, &fault) == 0) {
        check_keys(token);
        return 0;
    }
    must(fault.code == FAULT_FAILED_PRECONDITION &&
         strncmp(fault.message, "previous: keys_file /proc", 25) == 0 &&
         utf8_is_text(fault.message, strlen(fault.message)) && !strpbrk(fault.message, "\n\r\t"));
    return 0;
}
