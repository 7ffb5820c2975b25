/* What the record says comes back from its file, or the file is refused: nothing between. */
#include "tests/support/record_sample.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include "hsm/base/hex.h"
#include "hsm/base/scope.h"
#include "plugin/keys/previous.h"

static void free_json(json_t **json)
{
    json_decref(*json);
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
    OWNED(scope_free) char *text = sample_format(record);
    json_t *document = json_loads(text, 0, NULL);

    assert_non_null(document);
    return document;
}

static json_t *section_in(json_t *document)
{
    char name[64];
    json_t *section;

    (void)snprintf(name, sizeof name, "%s%s", sample_scope.trust_domain, sample_scope.server);
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

    assert_int_equal(record_parse(bytes, length, &sample_scope, &record, &known, &fault), -1);
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
    OWNED(record_close) struct record record = sample_record();
    OWNED(scope_free) char *text = sample_format(&record);
    OWNED(record_close) struct record again = sample_parsed(text);

    (void)state;
    assert_int_equal(record.written, 1);
    assert_same_record(&record, &again);
    assert_same_record(&again, &record);
}

static void the_same_record_is_the_same_text(void **state)
{
    OWNED(record_close) struct record one = sample_record();
    OWNED(record_close) struct record other = sample_empty();
    OWNED(scope_free) char *first = sample_format(&one);
    OWNED(scope_free) char *second = NULL;
    OWNED(scope_free) char *third = NULL;
    OWNED(record_close) struct record again = sample_parsed(first);
    struct record keys = one;

    (void)state;
    again.written = 0;
    second = sample_format(&again);
    assert_string_equal(first, second);
    other = one;
    other.document = NULL;
    other.keys = NULL;
    other.count = other.room = 0;
    other.previous = NULL;
    other.previous_count = 0;
    other.written = 0;
    for (size_t i = 0; i < keys.previous_count; i++)
        assert_int_equal(previous_add(&other, &keys.previous[i]), 0);
    for (size_t i = keys.count; i-- > 0;)
        sample_put(&other, keys.keys[i]);
    third = sample_format(&other);
    assert_string_equal(first, third);
}

static void it_counts_how_often_it_was_written(void **state)
{
    OWNED(record_close) struct record record = sample_record();

    (void)state;
    for (uint64_t i = 1; i < 4; i++) {
        OWNED(scope_free) char *text = sample_format(&record);
        OWNED(record_close) struct record again = sample_parsed(text);

        assert_int_equal(again.written, i);
    }
}

static void what_a_newer_version_wrote_is_kept(void **state)
{
    static const char news[] = "{\"a\": [1, 2.5, null, \"\\u00e4\"]}";
    OWNED(record_close) struct record record = sample_record();
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
    again = sample_parsed(text);
    record_remove(&again, &record.keys[0].name);
    sample_put(&again, sample_key(RECORD_SERVED, "new", 12));
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
    OWNED(record_close) struct record record = sample_record();
    OWNED(scope_free) char *text = sample_format(&record);
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
    both = sample_format(&other);
    again = sample_parsed(both);
    assert_int_equal(again.written, 2);
    again.written = 1;
    assert_same_record(&record, &again);
}

static void a_token_may_have_any_name(void **state)
{
    OWNED(record_close) struct record record = sample_record();
    OWNED(scope_free) char *text = NULL;
    OWNED(record_close) struct record again;

    (void)state;
    (void)strcpy(record.token_label, "a\xff\x01z");
    text = sample_format(&record);
    again = sample_parsed(text);
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
        OWNED(record_close) struct record record = sample_empty();
        uint8_t identity[CONFIG_IDENTITY_MAX];
        json_t *scopes = json_object();
        size_t length;

        record.document = json_pack("{s: o}", "scopes", scopes);
        for (size_t k = 0; k < 2 && rows[i].sections[k][0]; k++) {
            bool own = strcmp(rows[i].sections[k][0], "own") == 0;
            char name[32];

            (void)snprintf(name, sizeof name, "%.8s%zuservers",
                           own ? sample_scope.trust_domain : "other678", k);
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

/* As the server of that trust domain and identity finds it. */
static bool is_anothers(const char *text, const char *trust_domain, const char *identity,
                        char code[RECORD_CODE + 1])
{
    OWNED(record_close) struct record record;
    struct label_scope scope;
    bool known;

    label_scope(trust_domain, identity, strlen(identity), &scope);
    assert_int_equal(record_parse(text, strlen(text), &scope, &record, &known, NULL), 0);
    return record_is_anothers(&record, code);
}

static void a_record_of_other_identities_alone_is_anothers(void **state)
{
    OWNED(record_close) struct record empty = sample_empty();
    OWNED(record_close) struct record record = sample_record();
    OWNED(scope_free) char *text = NULL;
    char code[RECORD_CODE + 1] = "";
    char again[RECORD_CODE + 1] = "";
    char third[RECORD_CODE + 1] = "";

    (void)state;
    label_scope("example.org", "server-7", 8, &record.scope);
    record.count = 0;
    text = sample_format(&record);
    assert_false(is_anothers(text, "example.org", "server-7", code));
    assert_false(is_anothers(text, "other.example.org", "server-7", code));
    assert_false(record_is_anothers(&empty, code));
    assert_true(is_anothers(text, "example.org", "server-8", code));
    assert_true(is_anothers(text, "example.org", "server-8", again));
    assert_true(is_anothers(text, "example.org", "server-9", third));
    assert_int_equal(strlen(code), RECORD_CODE);
    assert_string_equal(code, again);
    assert_string_not_equal(code, third);
}

static void a_file_that_ends_early_is_refused(void **state)
{
    OWNED(record_close) struct record record = sample_record();
    OWNED(scope_free) char *text = sample_format(&record);
    size_t length = strlen(text);

    (void)state;
    refuses_bytes(text, 0, FAULT_FAILED_PRECONDITION, "is empty");
    for (size_t i = 1; i < length - 1; i++)
        refuses_bytes(text, i, FAULT_FAILED_PRECONDITION, "is damaged: its end is missing");
}

/* What is accepted all the same means the same: a blank that became another. */
static void a_changed_byte_is_refused_or_harmless(void **state)
{
    OWNED(record_close) struct record record = sample_empty();
    OWNED(scope_free) char *text = NULL;
    size_t harmless = 0;
    size_t length;

    (void)state;
    sample_put(&record, sample_in_use(sample_key(RECORD_SERVED, "x509-CA-A", 7)));
    sample_put(&record, sample_condemned("x509-CA-A", 6, 400));
    text = sample_format(&record);
    length = strlen(text);
    for (size_t change = 0; change < 255 * length; change++) {
        const char mask = (char)(1 + change % 255);
        struct record again;
        struct fault fault;
        bool known = false;

        text[change / 255] ^= mask;
        if (record_parse(text, length, &sample_scope, &again, &known, &fault) == 0) {
            assert_true(known);
            assert_same_record(&record, &again);
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
    OWNED(record_close) struct record record = sample_record();
    OWNED(free_json) json_t *document = document_of(&record);
    OWNED(scope_free) char *text = NULL;

    (void)state;
    change(document, "min_reader", "17");
    text = seal(document);
    refuses_bytes(text, strlen(text), FAULT_UNIMPLEMENTED,
                  "is of a newer version: its min_reader is 17, and this version reads 1");
}

enum where { DOCUMENT, SECTION, TOKEN, MAKER, PREVIOUS, KEY };

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
    case PREVIOUS:
        return json_array_get(json_object_get(section_in(document), "previous"), 1);
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
        {SECTION, "previous", "[1]", "the \"state\" of key 1 of previous is wrong"},
        {PREVIOUS, "state", "\"found\"", "the \"state\" of key 2 of previous is wrong"},
        {PREVIOUS, "cka_id", "\"1\"", "the \"cka_id\" of key 2 of previous is wrong"},
        {PREVIOUS, "type", "\"ec-p257\"", "the \"type\" of key 2 of previous is wrong"},
        {PREVIOUS, "public_key", "\"\"", "the \"public_key\" of key 2 of previous is wrong"},
        {PREVIOUS, "in_use", "0", "the \"in_use\" of key 2 of previous is wrong"},
    };
    OWNED(record_close) struct record record = sample_record();

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
    OWNED(record_close) struct record record = sample_record();

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
    OWNED(record_close) struct record record = sample_record();
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
    OWNED(record_close) struct record record = sample_empty();
    OWNED(free_json) json_t *document = NULL;
    const char *good;

    (void)state;
    sample_put(&record, sample_key(RECORD_SERVED, "a", 1));
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
    OWNED(record_close) struct record record = sample_record();
    OWNED(free_json) json_t *document = document_of(&record);
    OWNED(free_json) json_t *served = NULL;
    json_t *keys = json_object_get(section_in(document), "keys");

    (void)state;
    assert_int_equal(json_array_append_new(keys, json_deep_copy(key_in(document, 1))), 0);
    refuses_document(document, "is damaged: it has key 6 twice");
    served = document_of(&record);
    change(object_at(served, PREVIOUS), "id", "\"x509-CA-A\"");
    refuses_document(served, "is damaged: it has key 2 of previous twice");
    change(object_at(served, PREVIOUS), "id", "\"x509-CA-B\"");
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
    OWNED(record_close) struct record record = sample_record();
    OWNED(scope_free) char *text = sample_format(&record);
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
        result = record_parse(text, strlen(text), &sample_scope, &again, &known, &fault);
        told += fault.code == FAULT_UNAVAILABLE;
        if (result == 0)
            assert_same_record(&record, &again);
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
    OWNED(record_close) struct record record = sample_record();
    OWNED(scope_free) char *text = NULL;
    OWNED(record_close) struct record again = sample_empty();
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
    again = sample_parsed(text);
    assert_same_record(&record, &again);
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
        cmocka_unit_test(a_record_of_other_identities_alone_is_anothers),
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
    };

    return cmocka_run_group_tests(tests, sample_set_up, NULL);
}
