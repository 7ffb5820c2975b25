/* Which issuers have a document, and what stands in it. */
#include "plugin/bundle/oidc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void a_url_with_one_spelling_is_an_issuer(void **state)
{
    static const char *const good[] = {
        "https://oidc.example.org",  "https://oidc.example.org:8443",
        "https://127.0.0.1:65535",   "https://[::1]",
        "https://[::1]:1",           "https://a.example/spire/Prod_1~x.y-z",
        "https://a.example/..x/...",
    };

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        if (oidc_issuer_wrong(good[i]))
            fail_msg("%s: %s", good[i], oidc_issuer_wrong(good[i]));
}

static void any_other_is_refused_with_the_reason(void **state)
{
    static const struct {
        const char *url;
        const char *why;
    } bad[] = {
        {"", "begins with https://"},
        {"http://a.example", "begins with https://"},
        {"HTTPS://a.example", "begins with https://"},
        {"a.example", "begins with https://"},
        {"https://", "must not end with /"},
        {"https://a.example/", "must not end with /"},
        {"https://a.example/b/", "must not end with /"},
        {"https://a.example?b=c", "without user, query and fragment"},
        {"https://a.example#b", "without user, query and fragment"},
        {"https://me@a.example", "without user, query and fragment"},
        {"https://A.example", "lower-case host name"},
        {"https://:443", "lower-case host name"},
        {"https://[::1", "lower-case host name"},
        {"https://[]", "lower-case host name"},
        {"https://a.example:", "a port from 1 to 65535"},
        {"https://a.example:0", "a port from 1 to 65535"},
        {"https://a.example:08443", "a port from 1 to 65535"},
        {"https://a.example:65536", "a port from 1 to 65535"},
        {"https://a.example:99999999999999999999", "a port from 1 to 65535"},
        {"https://a.example:443", "but not 443"},
        {"https://a.example:84a3", "between single slashes"},
        {"https://a.example//b", "between single slashes"},
        {"https://a.example/./b", "between single slashes"},
        {"https://a.example/b/..", "between single slashes"},
        {"https://a.example/b%20c", "between single slashes"},
        {"https://a.example/b c", "between single slashes"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const char *wrong = oidc_issuer_wrong(bad[i].url);

        if (!wrong || !strstr(wrong, bad[i].why))
            fail_msg("\"%s\": %s", bad[i].url, wrong ? wrong : "not refused");
    }
}

static void the_document_names_the_keys_below_the_issuer(void **state)
{
    static const char expected[] = "{\n"
                                   "    \"issuer\": \"https://a.example/b\",\n"
                                   "    \"jwks_uri\": \"https://a.example/b/keys\",\n"
                                   "    \"authorization_endpoint\": \"\",\n"
                                   "    \"response_types_supported\": [\n"
                                   "        \"id_token\"\n"
                                   "    ],\n"
                                   "    \"subject_types_supported\": [\n"
                                   "        \"public\"\n"
                                   "    ],\n"
                                   "    \"id_token_signing_alg_values_supported\": [\n"
                                   "        \"RS256\",\n"
                                   "        \"ES256\",\n"
                                   "        \"ES384\"\n"
                                   "    ]\n"
                                   "}\n";
    struct fault fault;
    char *bytes;
    size_t length;

    (void)state;
    assert_int_equal(oidc_document("https://a.example/b", &bytes, &length, &fault), 0);
    assert_string_equal(bytes, expected);
    assert_int_equal(length, strlen(expected));
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_url_with_one_spelling_is_an_issuer),
        cmocka_unit_test(any_other_is_refused_with_the_reason),
        cmocka_unit_test(the_document_names_the_keys_below_the_issuer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
