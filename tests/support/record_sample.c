#include "tests/support/record_sample.h"

#include <string.h>

#include <openssl/evp.h>
#include <openssl/x509.h>

#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/wire/pubkey.h"
#include "plugin/keys/previous.h"

struct label_scope sample_scope;
struct hsm_public_key sample_p256;

int sample_set_up(void **state)
{
    OWNED(pkey_free) EVP_PKEY *pkey = EVP_EC_gen("P-256");
    uint8_t pkix[HSM_PKIX_MAX];
    uint8_t *end = pkix;
    int length = i2d_PUBKEY(pkey, &end);

    (void)state;
    label_scope("example.org", "server-7", 8, &sample_scope);
    return length > 0 ? pubkey_from_pkix(pkix, (size_t)length, &sample_p256, NULL) : -1;
}

struct record_key sample_key(enum record_state state, const char *id, uint32_t generation)
{
    struct record_key key = {.state = state, .made = true};

    key.label = (struct label){.scope = sample_scope, .generation = generation};
    (void)strcpy(key.label.key_id, id);
    label_format(&key.label, key.name.label);
    memset(key.name.id, (int)generation, sizeof key.name.id);
    key.name.id_length = sizeof key.name.id;
    key.public_key.type = HSM_EC_P256;
    if (state != RECORD_ATTEMPTED && state != RECORD_FOUND)
        key.public_key = sample_p256;
    return key;
}

struct record_key sample_in_use(struct record_key key)
{
    key.in_use = true;
    return key;
}

struct record_key sample_condemned(const char *id, uint32_t generation, int64_t since)
{
    struct record_key key = sample_key(RECORD_CONDEMNED, id, generation);

    key.since = since;
    return key;
}

void sample_put(struct record *record, struct record_key key)
{
    assert_int_equal(record_put(record, &key), 0);
}

struct record sample_empty(void)
{
    struct record record;

    record_open(&sample_scope, &record);
    return record;
}

/* One of a file, one of a token. */
static void put_previous(struct record *record)
{
    struct record_previous key = {
        .key_id = "x509-CA-A", .name = {.label = "x509-CA-A"}, .moved = true};

    key.public_key = sample_p256;
    assert_int_equal(previous_add(record, &key), 0);
    key = (struct record_previous){.key_id = "x509-CA-B",
                                   .name = {.label = "sp1-x", .id = {1, 2}, .id_length = 2},
                                   .in_use = true};
    key.public_key = sample_p256;
    assert_int_equal(previous_add(record, &key), 0);
}

struct record sample_record(void)
{
    struct record record = sample_empty();

    record.ran = 86400;
    record.identity_length = 8;
    memcpy(record.identity, "server-7", 8);
    (void)strcpy(record.token_label, "the token \"5\"");
    (void)strcpy(record.token_serial, "0123456789abcdef");
    (void)record_take_place(&record, "host 1", (const uint8_t *)"0123456789abcdef0123456789abcdef",
                            1);
    (void)record_take_place(&record, "host 2", (const uint8_t *)"fedcba9876543210fedcba9876543210",
                            4);
    sample_put(&record, sample_in_use(sample_key(RECORD_SERVED, "x509-CA-A", 7)));
    sample_put(&record, sample_key(RECORD_MISSING, "x509-CA-B", 5));
    sample_put(&record, sample_condemned("x509-CA-A", 6, 400));
    sample_put(&record, sample_key(RECORD_ATTEMPTED, "x509-CA-B", 9));
    sample_put(&record, sample_key(RECORD_FOUND, "JWT-Signer-A", 1));
    put_previous(&record);
    return record;
}

char *sample_format(struct record *record)
{
    size_t length;
    char *text = record_format(record, &length);

    assert_non_null(text);
    assert_int_equal(length, strlen(text));
    return text;
}

struct record sample_parsed(const char *text)
{
    struct record record;
    struct fault fault = {0};
    bool known = false;

    if (record_parse(text, strlen(text), &sample_scope, &record, &known, &fault) != 0)
        fail_msg("%s", fault.message);
    assert_true(known);
    return record;
}

static void assert_same_key(const struct record_key *a, const struct record_key *b)
{
    assert_int_equal(a->state, b->state);
    assert_true(label_same_scope(&a->label.scope, &b->label.scope));
    assert_int_equal(a->label.generation, b->label.generation);
    assert_string_equal(a->label.key_id, b->label.key_id);
    assert_int_equal(a->public_key.type, b->public_key.type);
    assert_int_equal(a->public_key.pkix_length, b->public_key.pkix_length);
    assert_memory_equal(&a->public_key.pkix, &b->public_key.pkix, a->public_key.pkix_length);
    assert_memory_equal(&a->public_key.fingerprint, &b->public_key.fingerprint, HSM_FINGERPRINT);
    assert_int_equal(a->made, b->made);
    assert_int_equal(a->in_use, b->in_use);
    assert_int_equal(a->since, b->since);
}

static void assert_same_previous(const struct record_previous *a, const struct record_previous *b)
{
    assert_string_equal(a->key_id, b->key_id);
    assert_string_equal(a->name.label, b->name.label);
    assert_int_equal(a->name.id_length, b->name.id_length);
    assert_memory_equal(a->name.id, b->name.id, a->name.id_length);
    assert_memory_equal(&a->public_key, &b->public_key, sizeof a->public_key);
    assert_int_equal(a->in_use, b->in_use);
    assert_int_equal(a->moved, b->moved);
}

void assert_same_record(struct record *a, struct record *b)
{
    assert_int_equal(a->written, b->written);
    assert_int_equal(a->ran, b->ran);
    assert_int_equal(a->identity_length, b->identity_length);
    assert_memory_equal(a->identity, b->identity, a->identity_length);
    assert_string_equal(a->token_label, b->token_label);
    assert_string_equal(a->token_serial, b->token_serial);
    assert_int_equal(a->maker_count, b->maker_count);
    for (size_t i = 0; i < a->maker_count; i++) {
        assert_memory_equal(&a->makers[i].maker, &b->makers[i].maker, sizeof a->makers[i].maker);
        assert_string_equal(a->makers[i].place, b->makers[i].place);
        assert_int_equal(a->makers[i].until, b->makers[i].until);
    }
    assert_int_equal(a->count, b->count);
    for (size_t i = 0; i < a->count; i++) {
        struct record_key *key = record_find(b, &a->keys[i].name);

        assert_non_null(key);
        assert_same_key(&a->keys[i], key);
    }
    assert_int_equal(a->previous_count, b->previous_count);
    for (size_t i = 0; i < a->previous_count; i++)
        assert_same_previous(&a->previous[i], &b->previous[i]);
}
