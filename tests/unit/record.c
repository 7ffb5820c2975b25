/* What the record says comes back from its file, or the file is refused: nothing between. And the
 * rules that are asked of it. */
#include "plugin/keys/record.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <openssl/x509.h>

#include "hsm/base/hex.h"
#include "hsm/base/openssl.h"
#include "hsm/base/scope.h"
#include "hsm/wire/pubkey.h"

static struct label_scope scope;
static struct hsm_public_key p256;

static void free_json(json_t **json)
{
    json_decref(*json);
}

static int set_scene(void **state)
{
    OWNED(pkey_free) EVP_PKEY *pkey = EVP_EC_gen("P-256");
    uint8_t pkix[HSM_PKIX_MAX];
    uint8_t *end = pkix;
    int length = i2d_PUBKEY(pkey, &end);

    (void)state;
    label_scope("example.org", "server-7", 8, &scope);
    return length > 0 ? pubkey_from_pkix(pkix, (size_t)length, &p256, NULL) : -1;
}

/* ---- keys and records ---- */

static struct record_key key_of(enum record_state state, const char *id, uint32_t generation)
{
    struct record_key key = {.state = state, .made = true};

    key.label = (struct label){.scope = scope, .generation = generation};
    (void)strcpy(key.label.key_id, id);
    label_format(&key.label, key.name.label);
    memset(key.name.id, (int)generation, sizeof key.name.id);
    key.name.id_length = sizeof key.name.id;
    key.public_key.type = HSM_EC_P256;
    if (state != RECORD_ATTEMPTED && state != RECORD_FOUND)
        key.public_key = p256;
    return key;
}

static struct record_key in_use(struct record_key key)
{
    key.in_use = true;
    return key;
}

static struct record_key condemned(const char *id, uint32_t generation, int64_t since)
{
    struct record_key key = key_of(RECORD_CONDEMNED, id, generation);

    key.since = since;
    return key;
}

static void put(struct record *record, struct record_key key)
{
    assert_int_equal(record_put(record, &key), 0);
}

static struct record empty(void)
{
    struct record record;

    record_open(&scope, &record);
    return record;
}

/* One key of each state. */
static struct record full(void)
{
    struct record record = empty();

    record.ran = 86400;
    record.identity_length = 8;
    memcpy(record.identity, "server-7", 8);
    (void)strcpy(record.token_label, "the token \"5\"");
    (void)strcpy(record.token_serial, "0123456789abcdef");
    (void)record_take_place(&record, "host 1", (const uint8_t *)"0123456789abcdef0123456789abcdef",
                            1);
    (void)record_take_place(&record, "host 2", (const uint8_t *)"fedcba9876543210fedcba9876543210",
                            4);
    put(&record, in_use(key_of(RECORD_SERVED, "x509-CA-A", 7)));
    put(&record, key_of(RECORD_MISSING, "x509-CA-B", 5));
    put(&record, condemned("x509-CA-A", 6, 400));
    put(&record, key_of(RECORD_ATTEMPTED, "x509-CA-B", 9));
    put(&record, key_of(RECORD_FOUND, "JWT-Signer-A", 1));
    return record;
}

static char *format(struct record *record)
{
    size_t length;
    char *text = record_format(record, &length);

    assert_non_null(text);
    assert_int_equal(length, strlen(text));
    return text;
}

static struct record parsed(const char *text)
{
    struct record record;
    struct fault fault = {0};
    bool known = false;

    if (record_parse(text, strlen(text), &scope, &record, &known, &fault) != 0)
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

static void assert_same(struct record *a, struct record *b)
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
}

/* ---- documents made by hand ---- */

/* With the digest it ought to have. */
static char *seal(json_t *document)
{
    OWNED(scope_free) char *bytes = NULL;
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char text[2 * SHA256_DIGEST_LENGTH + 1];

    (void)json_object_del(document, "sha256");
    bytes = json_dumps(document, JSON_COMPACT | JSON_SORT_KEYS);
    (void)SHA256((const uint8_t *)bytes, strlen(bytes), digest);
    hex_encode(digest, sizeof digest, text);
    assert_int_equal(json_object_set_new(document, "sha256", json_string(text)), 0);
    return json_dumps(document, JSON_INDENT(1));
}

static json_t *document_of(struct record *record)
{
    OWNED(scope_free) char *text = format(record);
    json_t *document = json_loads(text, 0, NULL);

    assert_non_null(document);
    return document;
}

static json_t *section_in(json_t *document)
{
    char name[64];
    json_t *section;

    (void)snprintf(name, sizeof name, "%s%s", scope.trust_domain, scope.server);
    section = json_object_get(json_object_get(document, "scopes"), name);
    assert_non_null(section);
    return section;
}

static json_t *key_in(json_t *document, size_t i)
{
    json_t *key = json_array_get(json_object_get(section_in(document), "keys"), i);

    assert_non_null(key);
    return key;
}

/* The member becomes what the JSON text says, or goes with NULL. */
static void change(json_t *object, const char *member, const char *json)
{
    json_t *value = json ? json_loads(json, JSON_DECODE_ANY, NULL) : NULL;

    if (value)
        assert_int_equal(json_object_set_new(object, member, value), 0);
    else
        assert_int_equal(json_object_del(object, member), 0);
}

static void refuses_bytes(const char *bytes, size_t length, enum fault_code code, const char *why)
{
    struct record record;
    struct fault fault = {0};
    bool known = false;

    assert_int_equal(record_parse(bytes, length, &scope, &record, &known, &fault), -1);
    assert_int_equal(record.count, 0);
    assert_null(record.document);
    assert_int_equal(fault.code, code);
    if (!strstr(fault.message, why))
        fail_msg("\"%s\" does not say \"%s\"", fault.message, why);
}

static void refuses(const char *text, const char *why)
{
    refuses_bytes(text, strlen(text), FAULT_FAILED_PRECONDITION, why);
}

static void refuses_document(json_t *document, const char *why)
{
    OWNED(scope_free) char *text = seal(document);

    refuses(text, why);
}

/* ---- the file ---- */

static void all_of_it_comes_back(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(scope_free) char *text = format(&record);
    OWNED(record_close) struct record again = parsed(text);

    (void)state;
    assert_int_equal(record.written, 1);
    assert_same(&record, &again);
    assert_same(&again, &record);
}

static void the_same_record_is_the_same_text(void **state)
{
    OWNED(record_close) struct record one = full();
    OWNED(record_close) struct record other = empty();
    OWNED(scope_free) char *first = format(&one);
    OWNED(scope_free) char *second = NULL;
    OWNED(scope_free) char *third = NULL;
    OWNED(record_close) struct record again = parsed(first);
    struct record keys = one;

    (void)state;
    again.written = 0;
    second = format(&again);
    assert_string_equal(first, second);
    other = one;
    other.document = NULL;
    other.keys = NULL;
    other.count = other.room = 0;
    other.written = 0;
    for (size_t i = keys.count; i-- > 0;)
        put(&other, keys.keys[i]);
    third = format(&other);
    assert_string_equal(first, third);
}

static void it_counts_how_often_it_was_written(void **state)
{
    OWNED(record_close) struct record record = full();

    (void)state;
    for (uint64_t i = 1; i < 4; i++) {
        OWNED(scope_free) char *text = format(&record);
        OWNED(record_close) struct record again = parsed(text);

        assert_int_equal(again.written, i);
    }
}

static void what_a_newer_version_wrote_is_kept(void **state)
{
    static const char news[] = "{\"a\": [1, 2.5, null, \"\\u00e4\"]}";
    OWNED(record_close) struct record record = full();
    OWNED(free_json) json_t *document = document_of(&record);
    OWNED(free_json) json_t *written = NULL;
    OWNED(free_json) json_t *expected = json_loads(news, 0, NULL);
    OWNED(scope_free) char *text = NULL;
    OWNED(record_close) struct record again;

    (void)state;
    change(document, "spire_hsm_record", "3");
    change(document, "new", news);
    change(section_in(document), "new", news);
    change(json_object_get(section_in(document), "token"), "new", news);
    change(key_in(document, 0), "new", news);
    change(json_object_get(document, "scopes"), "otherotherotherx", news);
    text = seal(document);
    again = parsed(text);
    record_remove(&again, &record.keys[0].name);
    put(&again, key_of(RECORD_SERVED, "new", 12));
    written = document_of(&again);
    assert_true(json_equal(json_object_get(written, "new"), expected));
    assert_true(json_equal(json_object_get(section_in(written), "new"), expected));
    assert_true(json_equal(json_object_get(json_object_get(section_in(written), "token"), "new"),
                           expected));
    assert_true(json_equal(json_object_get(key_in(written, 0), "new"), expected));
    assert_true(json_equal(json_object_get(json_object_get(written, "scopes"), "otherotherotherx"),
                           expected));
    assert_int_equal(json_array_size(json_object_get(section_in(written), "keys")), 5);
}

static void other_scopes_are_kept_and_not_read(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(scope_free) char *text = format(&record);
    OWNED(scope_free) char *both = NULL;
    OWNED(record_close) struct record other;
    OWNED(record_close) struct record again;
    struct label_scope renamed;
    struct fault fault;
    bool known = true;

    (void)state;
    label_scope("other.example.org", "server-7", 8, &renamed);
    assert_int_equal(record_parse(text, strlen(text), &renamed, &other, &known, &fault), 0);
    assert_false(known);
    assert_int_equal(other.count, 0);
    assert_int_equal(other.maker_count, 0);
    both = format(&other);
    again = parsed(both);
    assert_int_equal(again.written, 2);
    again.written = 1;
    assert_same(&record, &again);
}

static void a_token_may_have_any_name(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(scope_free) char *text = NULL;
    OWNED(record_close) struct record again;

    (void)state;
    (void)strcpy(record.token_label, "a\xff\x01z");
    text = format(&record);
    again = parsed(text);
    assert_string_equal(again.token_label, "a??z");
}

/* Sections by the names of their scopes: the first 8 characters are the trust domain's. */
static void the_identity_is_that_of_the_trust_domain_or_of_all(void **state)
{
    static const struct {
        const char *sections[2][2]; /* "own" or "other" trust domain, identity in hex */
        const char *identity;
    } rows[] = {
        {{{"own", "6161"}}, "aa"},
        {{{"other", "6161"}}, "aa"},
        {{{"own", "6161"}, {"other", "6262"}}, "aa"},
        {{{"own", "6161"}, {"own", "6262"}}, ""},
        {{{"other", "6161"}, {"other", "6161"}}, "aa"},
        {{{"other", "6161"}, {"other", "6262"}}, ""},
        {{{"own", ""}, {"other", "6262"}}, "bb"},
        {{{"own", "xy"}}, ""},
        {{{NULL}}, ""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OWNED(record_close) struct record record = empty();
        uint8_t identity[CONFIG_IDENTITY_MAX];
        json_t *scopes = json_object();
        size_t length;

        record.document = json_pack("{s: o}", "scopes", scopes);
        for (size_t k = 0; k < 2 && rows[i].sections[k][0]; k++) {
            bool own = strcmp(rows[i].sections[k][0], "own") == 0;
            char name[32];

            (void)snprintf(name, sizeof name, "%.8s%zuservers",
                           own ? scope.trust_domain : "other678", k);
            assert_int_equal(
                json_object_set_new(scopes, name,
                                    json_pack("{s: s}", "identity", rows[i].sections[k][1])),
                0);
        }
        length = record_identity(&record, identity);
        if (length != strlen(rows[i].identity) || memcmp(identity, rows[i].identity, length) != 0)
            fail_msg("row %zu: %.*s", i, (int)length, (const char *)identity);
    }
}

/* ---- damage ---- */

static void a_file_that_ends_early_is_refused(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(scope_free) char *text = format(&record);
    size_t length = strlen(text);

    (void)state;
    refuses_bytes(text, 0, FAULT_FAILED_PRECONDITION, "is empty");
    for (size_t i = 1; i < length - 1; i++)
        refuses_bytes(text, i, FAULT_FAILED_PRECONDITION, "is damaged: its end is missing");
}

/* What is accepted all the same means the same: a blank that became another. */
static void a_changed_byte_is_refused_or_harmless(void **state)
{
    OWNED(record_close) struct record record = empty();
    OWNED(scope_free) char *text = NULL;
    size_t harmless = 0;
    size_t length;

    (void)state;
    put(&record, in_use(key_of(RECORD_SERVED, "x509-CA-A", 7)));
    put(&record, condemned("x509-CA-A", 6, 400));
    text = format(&record);
    length = strlen(text);
    for (size_t change = 0; change < 255 * length; change++) {
        const char mask = (char)(1 + change % 255);
        struct record again;
        struct fault fault;
        bool known = false;

        text[change / 255] ^= mask;
        if (record_parse(text, length, &scope, &again, &known, &fault) == 0) {
            assert_true(known);
            assert_same(&record, &again);
            harmless++;
        }
        record_close(&again);
        text[change / 255] ^= mask;
    }
    print_message("%zu bytes, each changed in 255 ways: %zu harmless\n", length, harmless);
    assert_true(harmless > 0 && harmless < length);
}

static void what_is_no_record_is_told(void **state)
{
    static char large[RECORD_BYTES_MAX + 1];
    static const struct {
        const char *text;
        const char *why;
    } rows[] = {
        {"{}", "is no record of spire-hsm"},
        {"[]", "is no record of spire-hsm"},
        {"[{\"spire_hsm_record\": 1}]", "is no record of spire-hsm"},
        {"{\"spire_hsm_record\": \"1\"}", "is no record of spire-hsm"},
        {"{\"spire_hsm_record\": 1}", "is damaged: its \"sha256\" is missing"},
        {"{\"spire_hsm_record\": 1, \"sha256\": 1}", "is damaged: its \"sha256\" is missing"},
        {"{\"spire_hsm_record\": 1, \"sha256\": \"00\"}", "is not that of its content"},
        {"{\"spire_hsm_record\": 1, \"spire_hsm_record\": 1}", "is damaged: line 1 is not JSON"},
        {"{} {}", "is damaged: something follows its end"},
        {"{}\n}", "is damaged: something follows its end"},
        {"\n\nkey\n", "is damaged: line 3 is not JSON"},
        {"{\"\xff\": 1}", "is damaged: line 1 is not JSON"},
        {"spire-hsm-record 1", "is damaged: line 1 is not JSON"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        refuses(rows[i].text, rows[i].why);
    refuses_bytes("{}\0", 3, FAULT_FAILED_PRECONDITION, "something follows its end");
    memset(large, ' ', sizeof large);
    refuses_bytes(large, sizeof large, FAULT_FAILED_PRECONDITION, "more than 4194304 bytes");
    memset(large, '[', sizeof large);
    refuses_bytes(large, sizeof large - 1, FAULT_FAILED_PRECONDITION, "is damaged: line 1");
}

static void a_record_for_newer_readers_is_refused(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(free_json) json_t *document = document_of(&record);
    OWNED(scope_free) char *text = NULL;

    (void)state;
    change(document, "min_reader", "17");
    text = seal(document);
    refuses_bytes(text, strlen(text), FAULT_UNIMPLEMENTED,
                  "is of a newer version: its min_reader is 17, and this version reads 1");
}

enum where { DOCUMENT, SECTION, TOKEN, MAKER, KEY };

static json_t *object_at(json_t *document, enum where where)
{
    switch (where) {
    case DOCUMENT:
        return document;
    case SECTION:
        return section_in(document);
    case TOKEN:
        return json_object_get(section_in(document), "token");
    case MAKER:
        return json_array_get(json_object_get(section_in(document), "makers"), 0);
    default:
        return key_in(document, 0);
    }
}

#define DIGITS16 "0123456789abcdef"
#define DIGITS64 DIGITS16 DIGITS16 DIGITS16 DIGITS16

/* The first key is that of the lowest generation: FOUND, without a public key. */
static void members_that_are_wrong_are_named(void **state)
{
    static const char *const values[] = {NULL, "null", "[]", "-1", "\"x\"", "1.5"};
    static const struct {
        enum where where;
        const char *member;
        const char *value; /* beside all of the above */
        const char *why;
    } rows[] = {
        {DOCUMENT, "min_reader", "{}", "the \"min_reader\" of the record is wrong"},
        {DOCUMENT, "written", "true", "the \"written\" of the record is wrong"},
        {DOCUMENT, "scopes", "0", "the \"scopes\" of the record is wrong"},
        {SECTION, "identity", "\"ABCD\"", "the \"identity\" of its scope is wrong"},
        {SECTION, "identity", "\"abc\"", "the \"identity\" of its scope is wrong"},
        {SECTION, "ran", "\"1\"", "the \"ran\" of its scope is wrong"},
        {SECTION, "token", "{}", "the \"token\" of its scope is wrong"},
        {SECTION, "makers", "[{}]", "the \"makers\" of its scope is wrong"},
        {SECTION, "makers", "[[]]", "the \"makers\" of its scope is wrong"},
        {SECTION, "keys", "{}", "the \"keys\" of its scope is wrong"},
        {SECTION, "keys", "[1]", "the \"state\" of key 1 is wrong"},
        {MAKER, "key", "\"" DIGITS64 "00\"", "the \"makers\" of its scope is wrong"},
        {MAKER, "until", "4294967296", "the \"makers\" of its scope is wrong"},
        {MAKER, "key", "\"00\"", "the \"makers\" of its scope is wrong"},
        {KEY, "state", "\"Served\"", "the \"state\" of key 1 is wrong"},
        {KEY, "label", "\"sp2-\"", "the \"label\" of key 1 is wrong"},
        {KEY, "cka_id", "\"\"", "the \"cka_id\" of key 1 is wrong"},
        {KEY, "cka_id", "\"" DIGITS16 DIGITS16 "00\"", "the \"cka_id\" of key 1 is wrong"},
        {KEY, "type", "\"ec-p257\"", "the \"type\" of key 1 is wrong"},
        {KEY, "public_key", "\"AAAA\"", "the \"public_key\" of key 1 is wrong"},
        {KEY, "made", "0", "the \"made\" of key 1 is wrong"},
        {KEY, "in_use", "0", "the \"in_use\" of key 1 is wrong"},
        {KEY, "since", "\"0\"", "the \"since\" of key 1 is wrong"},
    };
    OWNED(record_close) struct record record = full();

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (size_t v = 0; v <= sizeof values / sizeof values[0]; v++) {
            OWNED(free_json) json_t *document = document_of(&record);
            const char *value = v == 0 ? rows[i].value : values[v - 1];

            if (v > 0 && rows[i].value[0] == '[') /* these are about what is in the array */
                break;
            if (v == 3 && strcmp(rows[i].member, "keys") == 0)
                continue;
            change(object_at(document, rows[i].where), rows[i].member, value);
            refuses_document(document, rows[i].why);
        }
}

static void texts_that_are_too_long_are_refused(void **state)
{
    static const struct {
        enum where where;
        const char *member;
        size_t length;
    } rows[] = {
        {TOKEN, "label", HSM_TOKEN_TEXT_MAX + 1},
        {TOKEN, "serial", HSM_TOKEN_SERIAL_MAX + 1},
        {MAKER, "place", RECORD_PLACE_MAX},
        {SECTION, "identity", 2 * CONFIG_IDENTITY_MAX + 2},
        {KEY, "label", HSM_LABEL_MAX + 1},
        {KEY, "public_key", 4096},
    };
    OWNED(record_close) struct record record = full();

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OWNED(free_json) json_t *document = document_of(&record);
        char text[5000] = "";

        memset(text, 'a', rows[i].length);
        assert_int_equal(json_object_set_new(object_at(document, rows[i].where), rows[i].member,
                                             json_string(text)),
                         0);
        refuses_document(document, "is wrong");
    }
}

static void a_key_of_another_scope_is_refused(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(free_json) json_t *document = document_of(&record);
    char label[HSM_LABEL_MAX + 3];
    struct label other = record.keys[0].label;
    char text[HSM_LABEL_MAX + 1];

    (void)state;
    label_scope("example.org", "server-8", 8, &other.scope);
    label_format(&other, text);
    (void)snprintf(label, sizeof label, "\"%s\"", text);
    change(key_in(document, 0), "label", label);
    refuses_document(document, "the \"label\" of key 1 is wrong");
}

/* OpenSSL's decoder reads blanks and stray bits. 91 bytes end in "x==", whose letter has four bits
 * to spare. */
static void a_public_key_has_one_spelling(void **state)
{
    OWNED(record_close) struct record record = empty();
    OWNED(free_json) json_t *document = NULL;
    const char *good;

    (void)state;
    put(&record, key_of(RECORD_SERVED, "a", 1));
    document = document_of(&record);
    good = json_string_value(json_object_get(key_in(document, 0), "public_key"));
    assert_int_equal(strlen(good), 124);
    for (int i = 0; i < 4; i++) {
        OWNED(free_json) json_t *copy = json_deep_copy(document);
        char text[140];

        (void)snprintf(text, sizeof text, "%s%s%s", i == 0 ? "    " : "", good,
                       i == 1 ? "   \n" : "");
        if (i == 2)
            text[121]++;
        if (i == 3) /* another point, not on the curve */
            text[100] = text[100] == 'A' ? 'B' : 'A';
        assert_int_equal(json_object_set_new(key_in(copy, 0), "public_key", json_string(text)), 0);
        refuses_document(copy, "the \"public_key\" of key 1 is wrong");
    }
    change(key_in(document, 0), "type", "\"ec-p384\"");
    refuses_document(document, "the \"public_key\" of key 1 is wrong");
}

static void nothing_is_there_twice(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(free_json) json_t *document = document_of(&record);
    OWNED(free_json) json_t *served = NULL;
    json_t *keys = json_object_get(section_in(document), "keys");

    (void)state;
    assert_int_equal(json_array_append_new(keys, json_deep_copy(key_in(document, 1))), 0);
    refuses_document(document, "is damaged: it has key 6 twice");
    served = document_of(&record);
    change(key_in(served, 2), "state", "\"served\"");
    refuses_document(served, "it has two served keys of the id \"x509-CA-A\"");
}

/* ---- no memory ---- */

static size_t memory_left;

static void *scarce(size_t size)
{
    if (memory_left == 0)
        return NULL;
    memory_left--;
    return malloc(size);
}

/* jansson tells few of these from damage. */
static void with_too_little_memory_nothing_is_accepted(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(scope_free) char *text = format(&record);
    size_t allowed = 0;
    size_t told = 0;
    int result = -1;

    (void)state;
    json_set_alloc_funcs(scarce, free);
    while (result != 0) {
        struct record again;
        struct fault fault = {0};
        bool known;

        memory_left = allowed++;
        result = record_parse(text, strlen(text), &scope, &again, &known, &fault);
        told += fault.code == FAULT_UNAVAILABLE;
        if (result == 0)
            assert_same(&record, &again);
        else
            assert_int_equal(again.count, 0);
        record_close(&again);
    }
    json_set_alloc_funcs(malloc, free);
    print_message("refused with 0 to %zu pieces of memory, %zu times for want of it\n", allowed - 2,
                  told);
    assert_true(allowed > 50 && told > 10);
}

static void a_text_that_could_not_be_made_is_made_later(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(scope_free) char *text = NULL;
    OWNED(record_close) struct record again = empty();
    size_t allowed = 0;
    size_t length;

    (void)state;
    json_set_alloc_funcs(scarce, free);
    while (!text) {
        memory_left = allowed++;
        text = record_format(&record, &length);
    }
    json_set_alloc_funcs(malloc, free);
    assert_true(allowed > 20);
    again = parsed(text);
    assert_same(&record, &again);
}

/* ---- looking ---- */

static void a_key_is_found_by_label_and_id(void **state)
{
    OWNED(record_close) struct record record = full();
    struct hsm_key_name name = record.keys[2].name;

    (void)state;
    assert_ptr_equal(record_find(&record, &name), &record.keys[2]);
    name.id[15] ^= 1;
    assert_null(record_find(&record, &name));
    name.id[15] ^= 1;
    name.id_length = 15;
    assert_null(record_find(&record, &name));
    assert_ptr_equal(record_served(&record, "x509-CA-A"), &record.keys[0]);
    assert_null(record_served(&record, "x509-CA-B"));
}

static void ours_is_what_we_wrote_down_or_marked(void **state)
{
    OWNED(record_close) struct record record = full();
    struct record_key key = key_of(RECORD_SERVED, "x509-CA-A", 70);

    (void)state;
    for (size_t i = 0; i < record.count; i++)
        assert_int_equal(record_knows(&record, &record.keys[i].name),
                         record.keys[i].state != RECORD_FOUND);
    assert_false(record_knows(&record, &key.name));
    for (size_t i = 0; i < record.maker_count; i++) {
        key = key_of(RECORD_SERVED, "x509-CA-A", 4);
        assert_int_equal(label_new_id(4, 16, &record.makers[i].maker, &key.name, NULL), 0);
        assert_true(record_knows(&record, &key.name));
        assert_int_equal(record_made_here(&record, &key.name), i == 0);
    }
    assert_int_equal(label_new_id(70, 16, &(struct label_maker){0}, &key.name, NULL), 0);
    assert_false(record_knows(&record, &key.name));
}

/* ---- needed ---- */

/* Keys by age: "x509-CA-A" + is in use, - was never; "(..)" is not served any more. */
static const struct {
    const char *keys[5]; /* the first letter says the state */
    const char *needed;  /* a letter each: n, or - */
} needs[] = {
    /* all is new */
    {{"s-x509-CA-A", "s-JWT-Signer-A"}, "n-"},
    {{"s-x509-CA-A", "s-x509-CA-B"}, "nn"},
    /* A signs */
    {{"s+x509-CA-A", "s+JWT-Signer-A"}, "n-"},
    /* and B is prepared */
    {{"s+x509-CA-A", "s+JWT-Signer-A", "s-x509-CA-B", "s-JWT-Signer-B"}, "n-n-"},
    /* B signs, A is old */
    {{"s+x509-CA-A", "s+JWT-Signer-A", "s+x509-CA-B", "s+JWT-Signer-B"}, "--n-"},
    /* A is prepared anew */
    {{"c+x509-CA-A", "s+x509-CA-B", "s-x509-CA-A"}, "-nn"},
    /* a key that was never in use is older than one that is */
    {{"s-x509-CA-A", "s+x509-CA-B"}, "-n"},
    /* the newest was lost: what is left counts */
    {{"s+x509-CA-A", "m+x509-CA-B", "s-x509-CA-B"}, "n-n"},
    {{"s+x509-CA-A", "c+x509-CA-B"}, "n-"},
    /* never needed is what is not served */
    {{"a-x509-CA-A", "f-x509-CA-A", "m-x509-CA-B", "c-x509-CA-B"}, "----"},
    /* an agent */
    {{"s+agent-svid-A", "s-agent-svid-B"}, "nn"},
    {{"s+agent-svid-A", "s+agent-svid-B"}, "-n"},
    {{"s-agent-svid-A"}, "n"},
    /* one family says nothing of the other */
    {{"s+x509-CA-A", "s+agent-svid-A"}, "nn"},
    /* other ids are a blip */
    {{"s+JWT-Signer-A", "s+WIT-Signer-A", "s+x509-CA", "s+X509-CA-A", "s+my-x509-CA-A"}, "-----"},
};

static struct record_key key_from(const char *text, uint32_t generation)
{
    static const char letters[] = "smcaf";
    struct record_key key =
        key_of((enum record_state)(strchr(letters, text[0]) - letters), text + 2, generation);

    key.in_use = text[1] == '+';
    return key;
}

static void the_keys_that_no_start_does_without(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof needs / sizeof needs[0]; i++) {
        OWNED(record_close) struct record record = empty();
        size_t count = strlen(needs[i].needed);

        for (size_t k = 0; k < count; k++)
            put(&record, key_from(needs[i].keys[k], 10 + (uint32_t)k));
        for (size_t k = 0; k < count; k++)
            if (record_is_needed(&record, &record.keys[k]) != (needs[i].needed[k] == 'n'))
                fail_msg("row %zu: %s is %sneeded", i, needs[i].keys[k],
                         needs[i].needed[k] == 'n' ? "not " : "");
    }
}

/* ---- the code of a loss ---- */

struct lost {
    const struct record *record;
    unsigned which; /* bits */
};

static bool is_lost(void *context, const struct record_key *key)
{
    const struct lost *lost = context;

    assert_int_equal(key->state, RECORD_SERVED);
    return (lost->which >> (key->label.generation - 1) & 1) != 0;
}

static void code_of(const struct record *record, unsigned which, char code[RECORD_CODE + 1])
{
    struct lost lost = {record, which};

    record_loss_code(record, is_lost, &lost, code);
    assert_int_equal(strlen(code), RECORD_CODE);
    assert_int_equal(strspn(code, "0123456789abcdef"), RECORD_CODE);
}

static void a_code_stands_for_one_loss(void **state)
{
    static const char *const ids[] = {"x509-CA-A", "x509-CA-B", "JWT-Signer-A", "JWT-Signer-B"};
    OWNED(record_close) struct record record = empty();
    OWNED(record_close) struct record other = empty();
    char codes[16][RECORD_CODE + 1];
    char again[RECORD_CODE + 1];

    (void)state;
    for (uint32_t i = 0; i < 4; i++) {
        put(&record, key_of(RECORD_SERVED, ids[i], 1 + i));
        put(&other, key_of(RECORD_SERVED, ids[3 - i], 4 - i));
    }
    put(&other, key_of(RECORD_MISSING, "x509-CA-A", 9));
    for (unsigned which = 0; which < 16; which++) {
        code_of(&record, which, codes[which]);
        code_of(&other, which, again); /* whatever else there is, in whatever order */
        assert_string_equal(codes[which], again);
        for (unsigned before = 0; before < which; before++)
            assert_string_not_equal(codes[before], codes[which]);
    }
    record.keys[0].name.id[0] ^= 1;
    code_of(&record, 1, again);
    assert_string_not_equal(codes[1], again);
    code_of(&record, 2, again);
    assert_string_equal(codes[2], again);
}

/* ---- changing ---- */

static void a_key_that_is_put_again_is_replaced(void **state)
{
    OWNED(record_close) struct record record = full();
    struct record_key key = record.keys[3];
    size_t count = record.count;

    (void)state;
    key.state = RECORD_SERVED;
    put(&record, key);
    assert_int_equal(record.count, count);
    assert_int_equal(record_find(&record, &key.name)->state, RECORD_SERVED);
    record_remove(&record, &key.name);
    record_remove(&record, &key.name);
    assert_int_equal(record.count, count - 1);
    assert_null(record_find(&record, &key.name));
}

static size_t count_of(const struct record *record, enum record_state state)
{
    size_t count = 0;

    for (size_t i = 0; i < record->count; i++)
        count += record->keys[i].state == state;
    return count;
}

static void the_oldest_beyond_a_bound_is_forgotten(void **state)
{
    static const struct {
        enum record_state state;
        uint32_t most;
    } rows[] = {{RECORD_ATTEMPTED, RECORD_ATTEMPTED_MAX},
                {RECORD_FOUND, RECORD_FOUND_MAX},
                {RECORD_CONDEMNED, RECORD_CONDEMNED_MAX},
                {RECORD_MISSING, RECORD_MISSING_MAX}};

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OWNED(record_close) struct record record = empty();
        struct record_key first = key_of(rows[i].state, "a", 1);
        struct record_key late = key_of(rows[i].state, "a", 0); /* not the one that goes */

        put(&record, key_of(RECORD_SERVED, "a", 2));
        put(&record, first);
        for (uint32_t k = 1; k < rows[i].most; k++)
            put(&record, key_of(rows[i].state, "a", 10 + k));
        assert_int_equal(count_of(&record, rows[i].state), rows[i].most);
        put(&record, late);
        assert_int_equal(count_of(&record, rows[i].state), rows[i].most);
        assert_null(record_find(&record, &first.name));
        assert_non_null(record_find(&record, &late.name));
        assert_non_null(record_served(&record, "a"));
    }
}

static void what_was_served_is_condemned_if_it_is_ours(void **state)
{
    static const struct {
        bool made;
        bool lost;
        enum record_state becomes;
        int64_t since;
    } rows[] = {
        {true, false, RECORD_CONDEMNED, 1234},
        {false, false, RECORD_FOUND, 0},
        {true, true, RECORD_MISSING, 0},
        {false, true, RECORD_MISSING, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OWNED(record_close) struct record record = empty();
        struct record_key old = in_use(key_of(RECORD_SERVED, "a", 1));
        struct record_key key = key_of(RECORD_ATTEMPTED, "a", 2);
        const struct record_key *found;

        old.made = rows[i].made;
        put(&record, old);
        put(&record, key_of(RECORD_SERVED, "b", 1));
        put(&record, key);
        key.since = 77;
        assert_int_equal(record_serve(&record, &key, rows[i].lost, 1234), 0);
        assert_int_equal(record.count, 3);
        found = record_find(&record, &old.name);
        assert_int_equal(found->state, rows[i].becomes);
        assert_int_equal(found->since, rows[i].since);
        assert_true(found->in_use);
        found = record_served(&record, "a");
        assert_string_equal(found->name.label, key.name.label);
        assert_int_equal(found->since, 0);
        assert_int_equal(record_served(&record, "b")->label.generation, 1);
    }
}

static void to_serve_a_key_again_condemns_nothing(void **state)
{
    OWNED(record_close) struct record record = full();
    const size_t count = record.count;

    (void)state;
    assert_int_equal(record_serve(&record, record_served(&record, "x509-CA-A"), false, 5), 0);
    assert_int_equal(record.count, count);
    assert_int_equal(count_of(&record, RECORD_CONDEMNED), 1);
    assert_int_equal(count_of(&record, RECORD_SERVED), 1);
}

/* The key is one of the record's own, which moves as the record grows. */
static void a_key_of_the_record_can_be_served(void **state)
{
    OWNED(record_close) struct record record = empty();

    (void)state;
    for (uint32_t i = 0; i < 16; i++)
        put(&record, key_of(RECORD_MISSING, "a", i));
    for (uint32_t i = 0; i < 16; i++) {
        assert_int_equal(record_serve(&record, &record.keys[i], false, i), 0);
        assert_int_equal(record_served(&record, "a")->label.generation, i);
    }
    assert_int_equal(count_of(&record, RECORD_CONDEMNED), 15);
}

static void a_new_place_has_a_new_maker(void **state)
{
    OWNED(record_close) struct record record = empty();
    uint8_t random[32] = {0};
    char place[16];

    (void)state;
    for (uint8_t i = 0; i < 12; i++) {
        random[0] = i;
        (void)snprintf(place, sizeof place, "place %d", i);
        assert_true(record_take_place(&record, place, random, 100 + i));
        random[0] = 99;
        assert_false(record_take_place(&record, place, random, 200));
        assert_int_equal(record.makers[0].maker.key[0], i);
    }
    assert_int_equal(record.maker_count, RECORD_MAKERS);
    for (uint8_t i = 0; i < RECORD_MAKERS; i++) {
        assert_int_equal(record.makers[i].maker.key[0], 11 - i);
        assert_true(record.makers[i].maker.known);
        assert_int_equal(record.makers[i].until, i == 0 ? 0 : 100 + 12 - i);
    }
    assert_true(record_take_place(&record, "place 10", random, 300)); /* it went and came back */
}

/* A snapshot's copy goes on elsewhere, and so does the original: neither takes the other's new
 * keys for its own. */
static void an_earlier_maker_ends_with_its_place(void **state)
{
    static const struct {
        uint32_t generation;
        bool known;   /* at the new place */
        bool settled; /* and when the start there is over */
    } rows[] = {{5, true, true},   {9, true, true},    {10, true, false},
                {40, true, false}, {41, false, false}, {99, false, false}};
    static const uint8_t random[2][32] = {{1}, {2}};
    OWNED(record_close) struct record record = empty();
    struct hsm_key_name names[6];

    (void)state;
    put(&record, key_of(RECORD_SERVED, "a", 9));
    assert_true(record_take_place(&record, "here", random[0], 1));
    for (size_t i = 0; i < 6; i++) {
        names[i] = key_of(RECORD_SERVED, "b", rows[i].generation).name;
        assert_int_equal(
            label_new_id(rows[i].generation, 16, &record.makers[0].maker, &names[i], NULL), 0);
        assert_true(record_knows(&record, &names[i]));
        assert_true(record_made_here(&record, &names[i]));
    }
    assert_true(record_take_place(&record, "there", random[1], 40));
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(record_knows(&record, &names[i]), rows[i].known);
        assert_false(record_made_here(&record, &names[i]));
    }
    record_settle_makers(&record);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(record_knows(&record, &names[i]), rows[i].settled);
    assert_int_equal(record.makers[0].until, 0);
}

/* Generations may run ahead of the clock: what the record has is before the end. */
static void an_earlier_maker_ends_behind_the_newest_key(void **state)
{
    static const uint8_t random[32] = {1};
    OWNED(record_close) struct record record = empty();

    (void)state;
    put(&record, key_of(RECORD_CONDEMNED, "a", 50));
    put(&record, key_of(RECORD_SERVED, "a", 9));
    (void)record_take_place(&record, "here", random, 1);
    (void)record_take_place(&record, "there", random, 40);
    assert_int_equal(record.makers[1].until, 50);
}

static void a_place_of_any_bytes_is_known_again(void **state)
{
    static const uint8_t random[32] = {1};
    OWNED(record_close) struct record record = empty();
    OWNED(record_close) struct record again;
    OWNED(scope_free) char *text = NULL;
    char place[2 * RECORD_PLACE_MAX];

    (void)state;
    memset(place, 'x', sizeof place);
    memcpy(place, "\xff\n\"", 3);
    place[sizeof place - 1] = '\0';
    assert_true(record_take_place(&record, place, random, 1));
    text = format(&record);
    again = parsed(text);
    assert_false(record_take_place(&again, place, random, 2));
}

static void a_copy_stands_alone(void **state)
{
    OWNED(record_close) struct record record = full();
    OWNED(scope_free) char *text = format(&record);
    OWNED(record_close) struct record copy = empty();
    struct hsm_key_name name = record.keys[0].name;

    (void)state;
    assert_int_equal(record_copy(&record, &copy), 0);
    assert_null(copy.document);
    assert_same(&record, &copy);
    record_remove(&record, &name);
    assert_non_null(record_find(&copy, &name));
    put(&copy, key_of(RECORD_SERVED, "new", 99));
    assert_null(record_served(&record, "new"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_of_it_comes_back),
        cmocka_unit_test(the_same_record_is_the_same_text),
        cmocka_unit_test(it_counts_how_often_it_was_written),
        cmocka_unit_test(what_a_newer_version_wrote_is_kept),
        cmocka_unit_test(other_scopes_are_kept_and_not_read),
        cmocka_unit_test(a_token_may_have_any_name),
        cmocka_unit_test(the_identity_is_that_of_the_trust_domain_or_of_all),
        cmocka_unit_test(a_file_that_ends_early_is_refused),
        cmocka_unit_test(a_changed_byte_is_refused_or_harmless),
        cmocka_unit_test(what_is_no_record_is_told),
        cmocka_unit_test(a_record_for_newer_readers_is_refused),
        cmocka_unit_test(members_that_are_wrong_are_named),
        cmocka_unit_test(texts_that_are_too_long_are_refused),
        cmocka_unit_test(a_key_of_another_scope_is_refused),
        cmocka_unit_test(a_public_key_has_one_spelling),
        cmocka_unit_test(nothing_is_there_twice),
        cmocka_unit_test(with_too_little_memory_nothing_is_accepted),
        cmocka_unit_test(a_text_that_could_not_be_made_is_made_later),
        cmocka_unit_test(a_key_is_found_by_label_and_id),
        cmocka_unit_test(ours_is_what_we_wrote_down_or_marked),
        cmocka_unit_test(the_keys_that_no_start_does_without),
        cmocka_unit_test(a_code_stands_for_one_loss),
        cmocka_unit_test(a_key_that_is_put_again_is_replaced),
        cmocka_unit_test(the_oldest_beyond_a_bound_is_forgotten),
        cmocka_unit_test(what_was_served_is_condemned_if_it_is_ours),
        cmocka_unit_test(to_serve_a_key_again_condemns_nothing),
        cmocka_unit_test(a_key_of_the_record_can_be_served),
        cmocka_unit_test(a_new_place_has_a_new_maker),
        cmocka_unit_test(an_earlier_maker_ends_with_its_place),
        cmocka_unit_test(an_earlier_maker_ends_behind_the_newest_key),
        cmocka_unit_test(a_place_of_any_bytes_is_known_again),
        cmocka_unit_test(a_copy_stands_alone),
    };

    return cmocka_run_group_tests(tests, set_scene, NULL);
}
