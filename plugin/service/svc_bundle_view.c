/* SPIRE's message of a bundle as a struct bundle that points into it. */
#include "plugin/service/svc_bundle_view.h"

#include <stdlib.h>

#include "proto/bundle.pb-c.h"

static struct bundle_bytes bytes_of(const ProtobufCBinaryData *data)
{
    return (struct bundle_bytes){data->data, data->len};
}

/* The view owns these arrays. They are const for its readers only. */
static void free_array(const void *array)
{
    free((void *)(uintptr_t)array);
}

void bundle_free_view(struct bundle *view)
{
    free_array(view->x509);
    free_array(view->jwt);
}

/* Tainted authorities are published like all others, as by SPIRE's own publishers: SVIDs that they
 * signed are still in use. They disappear when SPIRE revokes them. */
int bundle_view(const struct Bundle__Bundle *message, struct bundle *view, struct fault *fault)
{
    struct bundle_bytes *x509 = calloc(message->n_x509_authorities + 1, sizeof *x509);
    struct bundle_jwt_key *jwt = calloc(message->n_jwt_authorities + 1, sizeof *jwt);

    if (!x509 || !jwt) {
        free(x509);
        free(jwt);
        return fault_set(fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
    }
    for (size_t i = 0; i < message->n_x509_authorities; i++)
        x509[i] = bytes_of(&message->x509_authorities[i]->asn1);
    for (size_t i = 0; i < message->n_jwt_authorities; i++) {
        jwt[i].pkix = bytes_of(&message->jwt_authorities[i]->public_key);
        jwt[i].key_id = message->jwt_authorities[i]->key_id;
    }
    *view = (struct bundle){
        .trust_domain = message->trust_domain,
        .x509 = x509,
        .x509_count = message->n_x509_authorities,
        .jwt = jwt,
        .jwt_count = message->n_jwt_authorities,
        .refresh_hint = message->refresh_hint,
        .sequence = message->sequence_number,
    };
    return 0;
}
