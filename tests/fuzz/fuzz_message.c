/* Every request a host may send, as bytes: parsed, or refused. The first byte picks the
 * message type. */
#include <stddef.h>
#include <stdint.h>

#include "plugin/rpc/message.h"
#include "proto/bundle.pb-c.h"
#include "proto/goplugin.pb-c.h"
#include "proto/keymanager.pb-c.h"
#include "proto/spire.pb-c.h"

static const ProtobufCMessageDescriptor *const types[] = {
    &keymanager__sign_data_request__descriptor,
    &keymanager__generate_key_request__descriptor,
    &keymanager__get_public_key_request__descriptor,
    &keymanager__get_public_keys_request__descriptor,
    &bundle__publish_bundle_request__descriptor,
    &bundle__notify_request__descriptor,
    &bundle__notify_and_advise_request__descriptor,
    &spire__init_request__descriptor,
    &spire__configure_request__descriptor,
    &goplugin__conn_info__descriptor,
    &goplugin__health_check_request__descriptor,
};

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    struct fault fault;
    void *message;

    if (length == 0)
        return 0;
    message = message_parse(types[bytes[0] % (sizeof types / sizeof types[0])], bytes + 1,
                            length - 1, &fault);
    if (message)
        message_free(message);
    return 0;
}
