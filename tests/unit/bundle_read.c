/* A file on disk that is not a whole bundle is known for it. */
#include "plugin/bundle/bundle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/pem.h>

#include "tests/support/bundle_sample.h"

static void assert_unreadable(const char *text, size_t length, enum bundle_format format)
{
    struct bundle_summary summary = {.x509 = 1, .jwt = 2};
    struct fault fault = {0};

    if (bundle_read(text, length, format, &summary, &fault) == 0)
        fail_msg("was read: %.*s", (int)length, text);
    assert_int_equal(fault.code, FAULT_INVALID_ARGUMENT);
    assert_true(*fault.message);
    assert_int_equal(summary.x509, 1);
}

static void half_a_file_is_never_read(void **state)
{
    const struct bundle bundle = {"example.org", x509, 2, jwt, 2, 300, 42};

    (void)state;
    for (enum bundle_format format = BUNDLE_SPIFFE; format <= BUNDLE_OIDC; format++) {
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

        if (strncmp(member - 3, "kid", 3) == 0 || strncmp(member - 3, "use", 3) == 0)
            continue;
        *value = old == 'A' ? 'B' : 'A';
        assert_int_equal(bundle_read(bytes, length, BUNDLE_SPIFFE, &summary, NULL), -1);
        *value = old;
    }
    assert_int_equal(bundle_read(bytes, length, BUNDLE_SPIFFE, &summary, NULL), 0);
    free(bytes);
}

static void a_key_set_for_oidc_has_no_other_keys(void **state)
{
    static const char one[] = "{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-256\",\"kid\":\"k\"%s,\"x\":"
                              "\"axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY\","
                              "\"y\":\"T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU\"}]}";
    static const char *const wrong[] = {
        "",
        ",\"alg\":7",
        ",\"alg\":\"ES384\"",
        ",\"alg\":\"ES256\",\"use\":\"jwt-svid\"",
        ",\"alg\":\"ES256\",\"x5c\":[\"AAAA\"]",
    };
    struct bundle_summary summary;
    char text[512];

    (void)state;
    (void)snprintf(text, sizeof text, one, ",\"alg\":\"ES256\"");
    assert_int_equal(bundle_read(text, strlen(text), BUNDLE_OIDC, &summary, NULL), 0);
    assert_int_equal(summary.jwt, 1);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        (void)snprintf(text, sizeof text, one, wrong[i]);
        assert_unreadable(text, strlen(text), BUNDLE_OIDC);
    }
}

static void files_that_are_not_bundles_are_not_read(void **state)
{
    static const char *const spiffe[] = {
        "",
        "{}",
        "[]",
        "null",
        "{\"keys\":null}",
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
        /* P-256's generator, with a byte more behind its y */
        "{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":"
        "\"axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY\","
        "\"y\":\"T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfUA\","
        "\"use\":\"jwt-svid\",\"kid\":\"k\"}]}",
        "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"X25519\",\"use\":\"jwt-svid\",\"kid\":\"k\","
        "\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}",
        /* an exponent of 32 bits */
        "{\"keys\":[{\"kty\":\"RSA\",\"n\":\"AQAB\",\"e\":\"gAAAAQ\",\"use\":\"jwt-svid\","
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
        {"jwt-svid", "x509-svid"},
        {"\"use\": \"jwt-svid\",", "\"use\": 7,"},
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
        {"]", ", \"AAAA\"]"}, /* of x5c, the first there is */
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

/* As go-spiffe does (tests/peers/commands): but the key must be one it knows. */
static void keys_of_another_use_are_passed_over(void **state)
{
    static const char another[] = "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"use\":\"tls\","
                                  "\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}";
    static const char *const empty[] = {"{\"keys\":[]}", another};
    struct bundle_summary summary;
    struct fault fault;

    (void)state;
    for (size_t i = 0; i < sizeof empty / sizeof empty[0]; i++) {
        assert_int_equal(bundle_read(empty[i], strlen(empty[i]), BUNDLE_SPIFFE, &summary, &fault),
                         -1);
        assert_int_equal(fault.code, FAULT_NOT_FOUND);
    }
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
        cmocka_unit_test(half_a_file_is_never_read),
        cmocka_unit_test(a_damaged_key_is_seen),
        cmocka_unit_test(a_key_set_for_oidc_has_no_other_keys),
        cmocka_unit_test(files_that_are_not_bundles_are_not_read),
        cmocka_unit_test(a_file_with_wrong_members_is_not_read),
        cmocka_unit_test(keys_of_another_use_are_passed_over),
        cmocka_unit_test(a_certificate_beside_another_key_is_not_read),
        cmocka_unit_test(pem_with_more_around_it_is_not_read),
    };

    return cmocka_run_group_tests(tests, make_authorities, NULL);
}
