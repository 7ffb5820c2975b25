/* The keys in service, sorted by id, each with a count of its holders: a superseded key lives until
 * its last signature is done. */
#include "plugin/keys/catalogue.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/sha.h>
#include <openssl/x509.h>

#include "hsm/base/hex.h"

_Static_assert(CATALOGUE_AUTHORITY_ID == 2 * SHA_DIGEST_LENGTH + 1, "its hexadecimal fits");

void catalogue_open(struct catalogue *catalogue)
{
    *catalogue = (struct catalogue){.keys = NULL};
    (void)pthread_mutex_init(&catalogue->mutex, NULL);
}

void catalogue_close(struct catalogue *catalogue)
{
    for (size_t i = 0; i < catalogue->count; i++)
        if (catalogue_drop(catalogue->keys[i]))
            free(catalogue->keys[i]);
    free(catalogue->keys);
    (void)pthread_mutex_destroy(&catalogue->mutex);
}

static void authority_id(const struct hsm_public_key *key, char text[CATALOGUE_AUTHORITY_ID])
{
    const unsigned char *der = key->pkix;
    X509_PUBKEY *pkix = d2i_X509_PUBKEY(NULL, &der, (long)key->pkix_length);
    const unsigned char *bits = NULL;
    unsigned char digest[SHA_DIGEST_LENGTH];
    int length = 0;

    text[0] = '\0';
    if (pkix && X509_PUBKEY_get0_param(NULL, &bits, &length, NULL, pkix) == 1 &&
        EVP_Digest(bits, (size_t)length, digest, NULL, EVP_sha1(), NULL) == 1)
        hex_encode(digest, sizeof digest, text);
    X509_PUBKEY_free(pkix);
}

struct catalogue_key *catalogue_key_new(const struct label *label, const struct hsm_key_name *name,
                                        const struct hsm_public_key *public_key)
{
    struct catalogue_key *key = calloc(1, sizeof *key);

    if (!key)
        return NULL;
    memcpy(key->key_id, label->key_id, sizeof key->key_id);
    key->generation = label->generation;
    key->name = *name;
    key->public_key = *public_key;
    hex_encode(public_key->fingerprint, HSM_FINGERPRINT, key->fingerprint);
    authority_id(public_key, key->authority_id);
    key->holders = 1;
    return key;
}

struct catalogue_key *catalogue_hold(struct catalogue_key *key)
{
    atomic_fetch_add(&key->holders, 1);
    return key;
}

bool catalogue_drop(struct catalogue_key *key)
{
    return atomic_fetch_sub(&key->holders, 1) == 1;
}

/* With the mutex held. Returns the index of the id, or where it would be inserted. */
static size_t position(const struct catalogue *catalogue, const char *key_id)
{
    size_t low = 0;
    size_t high = catalogue->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (strcmp(catalogue->keys[middle]->key_id, key_id) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_at(const struct catalogue *catalogue, size_t at, const char *key_id)
{
    return at < catalogue->count && strcmp(catalogue->keys[at]->key_id, key_id) == 0;
}

struct catalogue_key *catalogue_find(struct catalogue *catalogue, const char *key_id)
{
    struct catalogue_key *key = NULL;
    size_t at;

    (void)pthread_mutex_lock(&catalogue->mutex);
    at = position(catalogue, key_id);
    if (is_at(catalogue, at, key_id))
        key = catalogue_hold(catalogue->keys[at]);
    (void)pthread_mutex_unlock(&catalogue->mutex);
    return key;
}

static int insert(struct catalogue *catalogue, size_t at, struct catalogue_key *key)
{
    if (catalogue->count == catalogue->room) {
        size_t room = catalogue->room ? 2 * catalogue->room : 16;
        struct catalogue_key **keys = reallocarray(catalogue->keys, room, sizeof *keys);

        if (!keys)
            return -1;
        catalogue->keys = keys;
        catalogue->room = room;
    }
    memmove(&catalogue->keys[at + 1], &catalogue->keys[at],
            (catalogue->count - at) * sizeof catalogue->keys[0]);
    catalogue->keys[at] = key;
    catalogue->count++;
    return 0;
}

int catalogue_serve(struct catalogue *catalogue, struct catalogue_key *key,
                    struct catalogue_key **old)
{
    int result = 0;
    size_t at;

    *old = NULL;
    (void)pthread_mutex_lock(&catalogue->mutex);
    at = position(catalogue, key->key_id);
    if (is_at(catalogue, at, key->key_id)) {
        *old = catalogue->keys[at];
        (*old)->superseded = true;
        catalogue->keys[at] = key;
    } else {
        result = insert(catalogue, at, key);
    }
    (void)pthread_mutex_unlock(&catalogue->mutex);
    return result;
}

struct catalogue_key **catalogue_list(struct catalogue *catalogue, size_t *count)
{
    struct catalogue_key **list;

    (void)pthread_mutex_lock(&catalogue->mutex);
    *count = catalogue->count;
    list = calloc(catalogue->count + 1, sizeof(struct catalogue_key *));
    for (size_t i = 0; list && i < catalogue->count; i++)
        list[i] = catalogue_hold(catalogue->keys[i]);
    (void)pthread_mutex_unlock(&catalogue->mutex);
    return list;
}
