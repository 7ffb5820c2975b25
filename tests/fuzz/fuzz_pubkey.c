/* Public keys as a token might hand them out. The first byte says from what (0: EC, 1:
 * RSA, else SubjectPublicKeyInfo); for the first two, the next two are the length of
 * the parameters or the modulus, and the rest of the input is the point or exponent. */
#include "hsm/wire/pubkey.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int read_key(const uint8_t *data, size_t size, struct hsm_public_key *key)
{
    struct fault fault;
    size_t first;

    if (data[0] > 1)
        return pubkey_from_pkix(data + 1, size - 1, key, &fault);
    if (size < 3)
        return -1;
    first = (size_t)data[1] << 8 | data[2];
    if (first > size - 3)
        return -1;
    if (data[0] == 0)
        return pubkey_from_ec(data + 3, first, data + 3 + first, size - 3 - first, key, &fault);
    return pubkey_from_rsa(data + 3, first, data + 3 + first, size - 3 - first, key, &fault);
}

/* A key that was read is one of ours, and its own encoding is read as the same key. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hsm_public_key key;
    struct hsm_public_key again;

    if (size == 0 || read_key(data, size, &key) != 0)
        return 0;
    if (key.type < HSM_EC_P256 || key.type > HSM_RSA_4096 || key.pkix_length > HSM_PKIX_MAX ||
        pubkey_from_pkix(key.pkix, key.pkix_length, &again, NULL) != 0 || again.type != key.type ||
        again.pkix_length != key.pkix_length || memcmp(again.pkix, key.pkix, key.pkix_length) != 0)
        abort();
    return 0;
}
