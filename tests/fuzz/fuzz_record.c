/* The file of a record. The digest would stop nearly all that is made here, so each input is also
 * read with the digest it ought to have. What is accepted must come back from its own text, with
 * all that was not understood. */
#include "plugin/keys/record.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <openssl/sha.h>

#include "hsm/base/hex.h"
#include "hsm/base/scope.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void free_json(json_t **json)
{
    json_decref(*json);
}

static void must(bool holds)
{
    if (!holds)
        abort();
}

static char *seal(const char *bytes, size_t length)
{
    OWNED(free_json) json_t *document = json_loadb(bytes, length, JSON_REJECT_DUPLICATES, NULL);
    OWNED(scope_free) char *text = NULL;
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char hex[2 * SHA256_DIGEST_LENGTH + 1];

    if (!json_is_object(document))
        return NULL;
    (void)json_object_del(document, "sha256");
    text = json_dumps(document, JSON_COMPACT | JSON_SORT_KEYS);
    must(text != NULL);
    (void)SHA256((const uint8_t *)text, strlen(text), digest);
    hex_encode(digest, sizeof digest, hex);
    (void)json_object_set_new(document, "sha256", json_string(hex));
    return json_dumps(document, 0);
}

/* All keys of the one are in the other. */
static void compare(const struct record *one, struct record *other)
{
    must(one->count == other->count && one->maker_count == other->maker_count &&
         one->ran == other->ran && one->identity_length == other->identity_length);
    for (size_t i = 0; i < one->count; i++) {
        const struct record_key *key = record_find(other, &one->keys[i].name);

        must(key && key->state == one->keys[i].state && key->since == one->keys[i].since &&
             key->public_key.pkix_length == one->keys[i].public_key.pkix_length);
    }
}

static void try_file(const char *bytes, size_t length, const struct label_scope *scope)
{
    OWNED(record_close) struct record record;
    OWNED(record_close) struct record again;
    OWNED(scope_free) char *text = NULL;
    OWNED(scope_free) char *same = NULL;
    struct fault fault;
    size_t size;
    bool known;

    record_open(scope, &again);
    if (record_parse(bytes, length, scope, &record, &known, &fault) != 0)
        return;
    text = record_format(&record, &size);
    must(text && record_parse(text, size, scope, &again, &known, &fault) == 0 && known);
    compare(&record, &again);
    again.written--;
    same = record_format(&again, &size);
    must(same && strcmp(text, same) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    OWNED(scope_free) char *sealed = seal((const char *)data, size);
    struct label_scope scope;

    label_scope("example.org", "server-7", 8, &scope);
    try_file((const char *)data, size, &scope);
    if (sealed)
        try_file(sealed, strlen(sealed), &scope);
    return 0;
}
