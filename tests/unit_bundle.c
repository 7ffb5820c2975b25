/* The bundle as a file: what is written can be read, and what a reader would choke on is
 * not written. That the readers are the real ones is shown in peers/bundle. */
#include "../plugin/bundle.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <openssl/ec.h>
#include <openssl/pem.h>

#include "authority.h"

static const char *const kinds[] = {"P-256", "P-384", "P-521", "RSA-2048", "RSA-4096", "ED25519"};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static struct authority certificates[KINDS];
static struct authority keys[KINDS];

static struct bundle_bytes x509[KINDS];
static struct bundle_jwt_key jwt[KINDS];
static const char *const ids[KINDS] = {"b", "a", "c/d +", "schl\xc3\xbcssel", "\"q\"\\", "e"};

static int make_authorities(void **state)
{
    (void)state;
    for (size_t i = 0; i < KINDS; i++) {
        certificates[i] = authority_new_certificate(kinds[i], (long)i + 1);
        keys[i] = authority_new_pkix(kinds[i]);
        x509[i] = (struct bundle_bytes){certificates[i].bytes, certificates[i].length};
        jwt[i] = (struct bundle_jwt_key){{keys[i].bytes, keys[i].length}, ids[i]};
    }
    return 0;
}

static struct bundle whole_bundle(void)
{
    return (struct bundle){"example.org", x509, KINDS, jwt, KINDS, 300, 42};
}

static char *encode(const struct bundle *bundle, enum bundle_format format, size_t *length)
{
    struct fault fault = {.message = "none"};
    char *bytes = NULL;

    if (bundle_encode(bundle, format, &bytes, length, &fault) != 0)
        fail_msg("not encoded: %s", fault.message);
    assert_int_equal(bytes[*length], '\0');
    return bytes;
}

static void assert_refused(const struct bundle *bundle, enum bundle_format format, const char *why)
{
    struct fault fault = {0};
    char *bytes = NULL;
    size_t length = 77;

    assert_int_equal(bundle_encode(bundle, format, &bytes, &length, &fault), -1);
    assert_null(bytes);
    assert_int_equal(length, 77);
    assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
    if (!strstr(fault.message, why))
        fail_msg("\"%s\" does not say \"%s\"", fault.message, why);
}

static void assert_unreadable(const char *text, size_t length, enum bundle_format format)
{
    struct bundle_summary summary = {1, 2, 3};
    struct fault fault = {0};

    if (bundle_read(text, length, format, &summary, &fault) == 0)
        fail_msg("was read: %.*s", (int)length, text);
    assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
    assert_true(*fault.message);
    assert_int_equal(summary.x509, 1);
}

static void every_kind_of_authority_comes_back_in_every_format(void **state)
{
    static const struct bundle_summary expected[] = {
        [BUNDLE_SPIFFE] = {KINDS, KINDS, 42},
        [BUNDLE_JWKS] = {KINDS, KINDS, 0},
        [BUNDLE_PEM] = {KINDS, 0, 0},
    };
    const struct bundle bundle = whole_bundle();

    (void)state;
    for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_PEM; format++) {
        struct bundle_summary summary;
        struct fault fault;
        size_t length;
        char *bytes = encode(&bundle, format, &length);

        if (bundle_read(bytes, length, format, &summary, &fault) != 0)
            fail_msg("not read: %s", fault.message);
        assert_memory_equal(&summary, &expected[format], sizeof summary);
        free(bytes);
    }
}

static void the_same_bundle_gives_the_same_bytes_in_any_order_of_keys(void **state)
{
    struct bundle bundle = whole_bundle();
    struct bundle_jwt_key reversed[KINDS];

    (void)state;
    for (size_t i = 0; i < KINDS; i++)
        reversed[i] = jwt[KINDS - 1 - i];
    for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_PEM; format++) {
        size_t lengths[2];
        char *one = encode(&bundle, format, &lengths[0]);
        char *other;

        bundle.jwt = reversed;
        other = encode(&bundle, format, &lengths[1]);
        bundle.jwt = jwt;
        assert_int_equal(lengths[0], lengths[1]);
        assert_memory_equal(one, other, lengths[0]);
        free(one);
        free(other);
    }
}

static void a_spiffe_file_has_the_members_of_its_specification(void **state)
{
    const struct bundle bundle = whole_bundle();
    size_t length;
    char *bytes = encode(&bundle, BUNDLE_SPIFFE, &length);
    json_t *document = json_loadb(bytes, length, 0, NULL);
    const json_t *entries = json_object_get(document, "keys");
    const json_t *entry;
    size_t i;

    (void)state;
    assert_int_equal(json_integer_value(json_object_get(document, "spiffe_sequence")), 42);
    assert_int_equal(json_integer_value(json_object_get(document, "spiffe_refresh_hint")), 300);
    assert_int_equal(json_array_size(entries), 2 * KINDS);
    json_array_foreach (entries, i, entry) {
        const char *use = json_string_value(json_object_get(entry, "use"));

        assert_string_equal(use, i < KINDS ? "x509-svid" : "jwt-svid");
        assert_int_equal(json_array_size(json_object_get(entry, "x5c")), i < KINDS ? 1 : 0);
        assert_int_equal(json_object_get(entry, "kid") != NULL, i >= KINDS);
    }
    json_decref(document);
    free(bytes);
}

static void a_jwks_file_has_no_use_and_no_numbers(void **state)
{
    const struct bundle bundle = whole_bundle();
    size_t length;
    char *bytes = encode(&bundle, BUNDLE_JWKS, &length);

    (void)state;
    assert_null(strstr(bytes, "\"use\""));
    assert_null(strstr(bytes, "spiffe_"));
    free(bytes);
}

static void zero_sequence_and_hint_are_left_out(void **state)
{
    struct bundle bundle = whole_bundle();
    size_t length;
    char *bytes;

    (void)state;
    bundle.sequence = 0;
    bundle.refresh_hint = -5;
    bytes = encode(&bundle, BUNDLE_SPIFFE, &length);
    assert_null(strstr(bytes, "spiffe_"));
    free(bytes);
}

/* One coordinate in 128 begins with a zero byte; Go wants it written out. */
static void coordinates_keep_their_leading_zeros(void **state)
{
    struct authority made = {0};
    struct bundle_jwt_key key = {.key_id = "k"};
    struct bundle bundle = {.trust_domain = "example.org", .jwt = &key, .jwt_count = 1};
    size_t length;
    char *bytes;
    json_t *document;
    const json_t *entry;

    (void)state;
    do
        made = authority_new_pkix("P-256");
    while (made.bytes[made.length - 64] != 0 && made.bytes[made.length - 32] != 0);
    key.pkix = (struct bundle_bytes){made.bytes, made.length};
    bytes = encode(&bundle, BUNDLE_SPIFFE, &length);
    document = json_loadb(bytes, length, 0, NULL);
    entry = json_array_get(json_object_get(document, "keys"), 0);
    assert_int_equal(json_string_length(json_object_get(entry, "x")), 43);
    assert_int_equal(json_string_length(json_object_get(entry, "y")), 43);
    json_decref(document);
    free(bytes);
}

static void an_authority_there_twice_is_written_once(void **state)
{
    const struct bundle_bytes twice[] = {x509[0], x509[1], x509[0]};
    struct bundle bundle = whole_bundle();
    struct bundle_summary summary;

    (void)state;
    bundle.x509 = twice;
    bundle.x509_count = 3;
    for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_PEM; format++) {
        size_t length;
        char *bytes = encode(&bundle, format, &length);

        assert_int_equal(bundle_read(bytes, length, format, &summary, NULL), 0);
        assert_int_equal(summary.x509, 2);
        free(bytes);
    }
}

static void a_bundle_without_authorities_is_refused(void **state)
{
    struct bundle bundle = {.trust_domain = "example.org", .sequence = 1};

    (void)state;
    for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_PEM; format++)
        assert_refused(&bundle, format, "no authorities");
    bundle.jwt = jwt;
    bundle.jwt_count = 1;
    assert_refused(&bundle, BUNDLE_PEM, "no X.509 authorities");
}

static void a_bundle_without_jwt_authorities_is_written(void **state)
{
    struct bundle bundle = whole_bundle();
    size_t length;

    (void)state;
    bundle.jwt_count = 0;
    free(encode(&bundle, BUNDLE_SPIFFE, &length));
}

static void one_bad_certificate_is_refused_by_its_number(void **state)
{
    const struct bundle_bytes cut = {x509[1].bytes, x509[1].length - 1};
    struct authority longer = certificates[2];
    const struct bundle_bytes bad[] = {{NULL, 0},
                                       cut,
                                       {(const uint8_t *)"hello", 5},
                                       {longer.bytes, longer.length + 1},
                                       jwt[0].pkix};
    struct bundle bundle = whole_bundle();

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const struct bundle_bytes list[] = {x509[0], bad[i]};

        bundle.x509 = list;
        bundle.x509_count = 2;
        for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_PEM; format++)
            assert_refused(&bundle, format, "X.509 authority 2 of 2: not one DER certificate");
    }
}

static void one_bad_key_is_refused_by_its_id(void **state)
{
    struct authority longer = keys[0];
    const struct bundle_bytes bad[] = {{NULL, 0},
                                       {keys[0].bytes, keys[0].length - 1},
                                       {longer.bytes, longer.length + 1},
                                       {(const uint8_t *)"hello", 5},
                                       x509[0]};
    struct bundle bundle = whole_bundle();

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const struct bundle_jwt_key list[] = {jwt[0], {bad[i], "other"}};

        bundle.jwt = list;
        bundle.jwt_count = 2;
        assert_refused(&bundle, BUNDLE_SPIFFE, "JWT authority \"other\": ");
    }
}

static void kinds_that_readers_do_not_know_are_refused(void **state)
{
    static const char *const others[] = {"P-224", "secp256k1", "X25519"};
    struct bundle bundle = whole_bundle();

    (void)state;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        struct authority key = authority_new_pkix(others[i]);
        struct authority certificate = authority_new_certificate(others[i], 9);
        const struct bundle_jwt_key as_jwt = {{key.bytes, key.length}, "k"};
        const struct bundle_bytes as_x509 = {certificate.bytes, certificate.length};

        bundle = (struct bundle){"example.org", NULL, 0, &as_jwt, 1, 0, 1};
        assert_refused(&bundle, BUNDLE_SPIFFE, "JWT authority \"k\": ");
        bundle = (struct bundle){"example.org", &as_x509, 1, NULL, 0, 0, 1};
        assert_refused(&bundle, BUNDLE_SPIFFE, "X.509 authority 1 of 1: ");
        assert_refused(&bundle, BUNDLE_PEM, "X.509 authority 1 of 1: ");
    }
}

/* OpenSSL reads these, Go does not. */
static void keys_in_unusual_spellings_are_refused(void **state)
{
    EVP_PKEY *key = authority_key("P-256");
    struct authority compressed;
    struct authority explicit;
    struct authority certificate;
    struct bundle_jwt_key list[2] = {{.key_id = "k"}, {.key_id = "k"}};
    struct bundle_bytes as_x509;
    struct bundle bundle = {.trust_domain = "example.org", .jwt = list, .jwt_count = 1};

    (void)state;
    (void)EVP_PKEY_set_utf8_string_param(key, "point-format", "compressed");
    compressed = authority_pkix(key);
    certificate = authority_certificate(key, 1);
    (void)EVP_PKEY_set_utf8_string_param(key, "point-format", "uncompressed");
    (void)EVP_PKEY_set_utf8_string_param(key, "encoding", "explicit");
    explicit = authority_pkix(key);
    assert_true(compressed.length < 80);
    assert_true(explicit.length > 100);
    list[0].pkix = (struct bundle_bytes){compressed.bytes, compressed.length};
    assert_refused(&bundle, BUNDLE_SPIFFE, "unusual DER encoding");
    list[0].pkix = (struct bundle_bytes){explicit.bytes, explicit.length};
    assert_refused(&bundle, BUNDLE_SPIFFE, "JWT authority \"k\": ");
    as_x509 = (struct bundle_bytes){certificate.bytes, certificate.length};
    bundle = (struct bundle){"example.org", &as_x509, 1, NULL, 0, 0, 1};
    assert_refused(&bundle, BUNDLE_SPIFFE, "unusual DER encoding");
    EVP_PKEY_free(key);
}

static void key_ids_must_be_there_and_differ(void **state)
{
    struct bundle_jwt_key list[] = {jwt[0], jwt[1], jwt[2]};
    struct bundle bundle = whole_bundle();

    (void)state;
    bundle.jwt = list;
    bundle.jwt_count = 3;
    list[2].key_id = "";
    assert_refused(&bundle, BUNDLE_SPIFFE, "no key id");
    list[2].key_id = list[0].key_id;
    assert_refused(&bundle, BUNDLE_SPIFFE, "two JWT authorities have one key id, \"b\"");
    list[2].key_id = "\xff";
    assert_refused(&bundle, BUNDLE_SPIFFE, "UTF-8");
}

static void a_sequence_number_beyond_63_bits_is_refused(void **state)
{
    struct bundle bundle = whole_bundle();
    struct bundle_summary summary;
    size_t length;
    char *bytes;

    (void)state;
    bundle.sequence = (uint64_t)INT64_MAX + 1;
    assert_refused(&bundle, BUNDLE_SPIFFE, "sequence number");
    bundle.sequence = INT64_MAX;
    bytes = encode(&bundle, BUNDLE_SPIFFE, &length);
    assert_int_equal(bundle_read(bytes, length, BUNDLE_SPIFFE, &summary, NULL), 0);
    assert_int_equal(summary.sequence, INT64_MAX);
    free(bytes);
}

static void half_a_file_is_never_read(void **state)
{
    const struct bundle bundle = {"example.org", x509, 2, jwt, 2, 300, 42};

    (void)state;
    for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_PEM; format++) {
        size_t length;
        size_t first = 0; /* half a PEM file may be a whole one with fewer blocks */
        char *bytes = encode(&bundle, format, &length);

        if (format == BUNDLE_PEM)
            first = (size_t)(strstr(bytes + 1, "-----BEGIN") - bytes);
        for (size_t cut = 0; cut < length - 1; cut++)
            if (cut != first || first == 0)
                assert_unreadable(bytes, cut, format);
        free(bytes);
    }
}

/* A file with a byte changed is unreadable, or its change is seen in comparing; what may not
 * happen is that a damaged key or certificate passes. */
static void a_damaged_key_is_seen(void **state)
{
    const struct bundle bundle = {"example.org", x509, 1, jwt, 1, 0, 1};
    struct bundle_summary summary;
    size_t length;
    char *bytes = encode(&bundle, BUNDLE_SPIFFE, &length);

    (void)state;
    for (const char *member = bytes; (member = strstr(member, "\": \"")); member += 4) {
        char *value = bytes + (member + 4 - bytes);
        char old = *value;

        if (strncmp(member - 3, "kid", 3) == 0)
            continue;
        *value = old == 'A' ? 'B' : 'A';
        assert_int_equal(bundle_read(bytes, length, BUNDLE_SPIFFE, &summary, NULL), -1);
        *value = old;
    }
    assert_int_equal(bundle_read(bytes, length, BUNDLE_SPIFFE, &summary, NULL), 0);
    free(bytes);
}

static void files_that_are_not_bundles_are_not_read(void **state)
{
    static const char *const spiffe[] = {
        "",
        "{}",
        "[]",
        "null",
        "{\"keys\":null}",
        "{\"keys\":[]}",
        "{\"keys\":{}}",
        "{\"keys\":[1]}",
        "{\"keys\":[null]}",
        "{\"keys\":[{}]}",
        "{\"keys\":[{\"kty\":\"AKP\",\"use\":\"wit-svid\",\"kid\":\"k\"}]}",
        "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AA\",\"use\":\"jwt-svid\",\"kid\":\"k\"}]}",
        "{\"keys\":[{\"kty\":\"RSA\",\"n\":\"AQAB\",\"e\":\"AAAAAQAB\",\"use\":\"jwt-svid\","
        "\"kid\":\"k\"}]}",
        "{\"keys\":[{\"kty\":\"RSA\",\"n\":\"\",\"e\":\"AQAB\",\"use\":\"jwt-svid\",\"kid\":\"k\"}]"
        "}",
        "{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"AA\",\"y\":\"AA\",\"use\":\"jwt-"
        "svid\","
        "\"kid\":\"k\"}]}",
        "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"X25519\",\"x\":\"AA\",\"use\":\"jwt-svid\","
        "\"kid\":\"k\"}]}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof spiffe / sizeof spiffe[0]; i++)
        assert_unreadable(spiffe[i], strlen(spiffe[i]), BUNDLE_SPIFFE);
    for (size_t i = 0; i < sizeof spiffe / sizeof spiffe[0]; i++)
        assert_unreadable(spiffe[i], strlen(spiffe[i]), BUNDLE_PEM);
}

/* `use`, numbers and ids of a file that is whole otherwise. */
static void a_file_with_wrong_members_is_not_read(void **state)
{
    static const struct {
        const char *from;
        const char *to;
    } changes[] = {
        {"jwt-svid", "jwt_svid"},
        {"jwt-svid", "x509-svid"},
        {"\"use\": \"jwt-svid\",", ""},
        {"\"kid\": \"b\"", "\"kid\": \"\""},
        {"\"kid\": \"b\"", "\"kid\": 7"},
        {"\"kid\": \"b\"", "\"kid\": \"a\""},
        {"\"spiffe_sequence\": 42", "\"spiffe_sequence\": -1"},
        {"\"spiffe_sequence\": 42", "\"spiffe_sequence\": 4.2"},
        {"\"spiffe_sequence\": 42", "\"spiffe_sequence\": \"42\""},
        {"\"spiffe_sequence\": 42", "\"spiffe_sequence\": 99999999999999999999"},
        {"\"spiffe_refresh_hint\": 300", "\"spiffe_refresh_hint\": true"},
        {"\"spiffe_refresh_hint\"", "\"spiffe_sequence\""},
        {"\"x5c\": [", "\"x5c\": [\"AAAA\","},
        {"\"x5c\": [", "\"x5c\": [ ], \"y5c\": ["},
    };
    const struct bundle bundle = {"example.org", x509, 1, jwt, 2, 300, 42};
    size_t length;
    char *bytes = encode(&bundle, BUNDLE_SPIFFE, &length);

    (void)state;
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        const char *found = strstr(bytes, changes[i].from);
        char changed[8192];
        int size;

        assert_non_null(found);
        size = snprintf(changed, sizeof changed, "%.*s%s%s", (int)(found - bytes), bytes,
                        changes[i].to, found + strlen(changes[i].from));
        assert_unreadable(changed, (size_t)size, BUNDLE_SPIFFE);
    }
    free(bytes);
}

static void a_certificate_beside_another_key_is_not_read(void **state)
{
    const struct bundle one = {"example.org", &x509[0], 1, NULL, 0, 0, 1};
    struct authority other = authority_new_certificate("P-256", 2);
    const struct bundle_bytes certificate = {other.bytes, other.length};
    const struct bundle two = {"example.org", &certificate, 1, NULL, 0, 0, 1};
    size_t length;
    char *a = encode(&one, BUNDLE_SPIFFE, &length);
    char *b = encode(&two, BUNDLE_SPIFFE, &length);
    char *mixed = NULL;
    int size;

    (void)state;
    size = asprintf(&mixed, "%.*s%s", (int)(strstr(a, "\"x5c\"") - a), a, strstr(b, "\"x5c\""));
    assert_unreadable(mixed, (size_t)size, BUNDLE_SPIFFE);
    free(mixed);
    free(a);
    free(b);
}

static void pem_with_more_around_it_is_not_read(void **state)
{
    const struct bundle bundle = {"example.org", x509, 1, NULL, 0, 0, 1};
    EVP_PKEY *key = authority_key("P-256");
    BIO *bio = BIO_new(BIO_s_mem());
    size_t length;
    char *bytes = encode(&bundle, BUNDLE_PEM, &length);
    char *text;

    (void)state;
    (void)BIO_write(bio, bytes, (int)length);
    (void)PEM_write_bio_PUBKEY(bio, key);
    length = (size_t)BIO_get_mem_data(bio, &text);
    assert_unreadable(text, length, BUNDLE_PEM);
    (void)BIO_reset(bio);
    (void)BIO_puts(bio, "# our CA\n");
    (void)BIO_puts(bio, bytes);
    length = (size_t)BIO_get_mem_data(bio, &text);
    assert_unreadable(text, length, BUNDLE_PEM);
    BIO_free(bio);
    EVP_PKEY_free(key);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_authority_comes_back_in_every_format),
        cmocka_unit_test(the_same_bundle_gives_the_same_bytes_in_any_order_of_keys),
        cmocka_unit_test(a_spiffe_file_has_the_members_of_its_specification),
        cmocka_unit_test(a_jwks_file_has_no_use_and_no_numbers),
        cmocka_unit_test(zero_sequence_and_hint_are_left_out),
        cmocka_unit_test(coordinates_keep_their_leading_zeros),
        cmocka_unit_test(an_authority_there_twice_is_written_once),
        cmocka_unit_test(a_bundle_without_authorities_is_refused),
        cmocka_unit_test(a_bundle_without_jwt_authorities_is_written),
        cmocka_unit_test(one_bad_certificate_is_refused_by_its_number),
        cmocka_unit_test(one_bad_key_is_refused_by_its_id),
        cmocka_unit_test(kinds_that_readers_do_not_know_are_refused),
        cmocka_unit_test(keys_in_unusual_spellings_are_refused),
        cmocka_unit_test(key_ids_must_be_there_and_differ),
        cmocka_unit_test(a_sequence_number_beyond_63_bits_is_refused),
        cmocka_unit_test(half_a_file_is_never_read),
        cmocka_unit_test(a_damaged_key_is_seen),
        cmocka_unit_test(files_that_are_not_bundles_are_not_read),
        cmocka_unit_test(a_file_with_wrong_members_is_not_read),
        cmocka_unit_test(a_certificate_beside_another_key_is_not_read),
        cmocka_unit_test(pem_with_more_around_it_is_not_read),
    };

    return cmocka_run_group_tests(tests, make_authorities, NULL);
}
