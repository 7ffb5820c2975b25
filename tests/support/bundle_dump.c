/* bundle_dump spiffe|jwks|pem|oidc: a serialised Bundle message on stdin, the file's bytes on
 * stdout. For peers/bundle, which lets the real readers judge them. */
#include "plugin/service/svc_bundle_view.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hsm/base/scope.h"
#include "proto/bundle.pb-c.h"

enum { INPUT_MAX = 1 << 22 };

static void free_message(Bundle__Bundle **message)
{
    bundle__bundle__free_unpacked(*message, NULL);
}

static int format_of(const char *name, enum bundle_format *format)
{
    static const char *const names[] = {[BUNDLE_SPIFFE] = "spiffe",
                                        [BUNDLE_JWKS] = "jwks",
                                        [BUNDLE_PEM] = "pem",
                                        [BUNDLE_OIDC] = "oidc"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i], name) == 0) {
            *format = (enum bundle_format)i;
            return 0;
        }
    return -1;
}

int main(int argc, char **argv)
{
    static uint8_t input[INPUT_MAX];
    size_t length = fread(input, 1, sizeof input, stdin);
    OWNED(free_message) Bundle__Bundle *message = bundle__bundle__unpack(NULL, length, input);
    OWNED(bundle_free_view) struct bundle bundle = {0};
    OWNED(scope_free) char *bytes = NULL;
    enum bundle_format format;
    struct fault fault;

    if (argc != 2 || format_of(argv[1], &format) != 0 || !message) {
        (void)fputs("usage: bundle_dump spiffe|jwks|pem|oidc < MESSAGE\n", stderr);
        return 2;
    }
    if (bundle_view(message, &bundle, &fault) != 0 ||
        bundle_encode(&bundle, format, &bytes, &length, &fault) != 0) {
        (void)fprintf(stderr, "%s\n", fault.message);
        return 1;
    }
    return fwrite(bytes, 1, length, stdout) == length && fflush(stdout) == 0 ? 0 : 1;
}
