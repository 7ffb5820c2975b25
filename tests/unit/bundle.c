/* The bundle as a file: what is written can be read, and what a reader would choke on is
 * not written. That the readers are the real ones is shown in peers/bundle. */
#include "plugin/bundle/bundle.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tests/support/bundle_sample.h"

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

static void every_kind_of_authority_comes_back_in_every_format(void **state)
{
    static const struct bundle_summary expected[] = {
        [BUNDLE_SPIFFE] = {KINDS, KINDS, 0, 42},
        [BUNDLE_JWKS] = {KINDS, KINDS, 0, 0},
        [BUNDLE_PEM] = {KINDS, 0, 0, 0},
        [BUNDLE_OIDC] = {0, KINDS, 0, 0},
    };
    const struct bundle bundle = whole_bundle();

    (void)state;
    for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_OIDC; format++) {
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
    for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_OIDC; format++) {
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
    for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_OIDC; format++)
        assert_refused(&bundle, format, "no authorities");
    bundle.jwt = jwt;
    bundle.jwt_count = 1;
    assert_refused(&bundle, BUNDLE_PEM, "no X.509 authorities");
    bundle = whole_bundle();
    bundle.jwt_count = 0;
    assert_refused(&bundle, BUNDLE_OIDC, "no JWT authorities");
}

static void a_bundle_without_jwt_authorities_is_written(void **state)
{
    struct bundle bundle = whole_bundle();
    size_t length;

    (void)state;
    bundle.jwt_count = 0;
    free(encode(&bundle, BUNDLE_SPIFFE, &length));
}

/* What is wrong with those it leaves out is no concern of OIDC's. */
static void oidc_looks_at_jwt_authorities_alone(void **state)
{
    const struct bundle_bytes bad = {(const uint8_t *)"hello", 5};
    struct bundle bundle = whole_bundle();
    size_t length;

    (void)state;
    bundle.x509 = &bad;
    bundle.x509_count = 1;
    free(encode(&bundle, BUNDLE_OIDC, &length));
    bundle.x509_count = 0;
    free(encode(&bundle, BUNDLE_OIDC, &length));
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
        cmocka_unit_test(oidc_looks_at_jwt_authorities_alone),
        cmocka_unit_test(one_bad_certificate_is_refused_by_its_number),
        cmocka_unit_test(one_bad_key_is_refused_by_its_id),
        cmocka_unit_test(kinds_that_readers_do_not_know_are_refused),
        cmocka_unit_test(keys_in_unusual_spellings_are_refused),
        cmocka_unit_test(key_ids_must_be_there_and_differ),
        cmocka_unit_test(a_sequence_number_beyond_63_bits_is_refused),
    };

    return cmocka_run_group_tests(tests, make_authorities, NULL);
}
