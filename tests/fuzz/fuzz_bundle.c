/* Two readers of foreign bytes: the file as it is found on disk, and the bundle as it comes
 * from the host. The first byte says which, and in which format; whatever is encoded must
 * be readable. */
#include "plugin/service/svc_bundle_view.h"

#include <stdlib.h>

#include "hsm/base/scope.h"
#include "proto/bundle.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_file(const uint8_t *data, size_t size, enum bundle_format format)
{
    struct bundle_summary summary;
    struct fault fault;

    if (bundle_read((const char *)data, size, format, &summary, &fault) == 0 &&
        summary.x509 + summary.jwt == 0)
        abort();
}

static void free_message(Bundle__Bundle **message)
{
    bundle__bundle__free_unpacked(*message, NULL);
}

static void encode_message(const uint8_t *data, size_t size, enum bundle_format format)
{
    OWNED(free_message) Bundle__Bundle *message = bundle__bundle__unpack(NULL, size, data);
    OWNED(bundle_free_view) struct bundle bundle = {0};
    OWNED(scope_free) char *bytes = NULL;
    struct bundle_summary summary;
    struct fault fault;
    size_t length;

    if (!message || bundle_view(message, &bundle, &fault) != 0 ||
        bundle_encode(&bundle, format, &bytes, &length, &fault) != 0)
        return;
    if (bundle_read(bytes, length, format, &summary, &fault) != 0 ||
        summary.x509 > bundle.x509_count ||
        (format != BUNDLE_PEM && summary.jwt != bundle.jwt_count) ||
        (format == BUNDLE_SPIFFE && summary.sequence != bundle.sequence))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const enum bundle_format formats[] = {BUNDLE_SPIFFE, BUNDLE_JWKS, BUNDLE_PEM,
                                                 BUNDLE_OIDC};
    enum bundle_format format;

    if (size == 0)
        return 0;
    format = formats[data[0] / 2 % 4];
    if (data[0] % 2 == 0)
        read_file(data + 1, size - 1, format);
    else
        encode_message(data + 1, size - 1, format);
    return 0;
}
