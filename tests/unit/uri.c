/* Which URIs may name a token, which may not, and in which words they are refused. */
#include "hsm/wire/uri.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <p11-kit/uri.h>

#include <cmocka.h>

#include "hsm/base/scope.h"

#define SCHEME "expected a URI that begins with pkcs11:"
#define ATTRIBUTES                                                                                \
    "expected, separated by ';', some of token, serial, model, manufacturer, slot-id (a number)," \
    " slot-description and slot-manufacturer, none longer than PKCS#11 allows"
#define NO_PIN "the URI must not contain a PIN: use pin_file"
#define CHARACTERS "characters such as spaces must be percent-encoded (%20)"
#define ESCAPE "a '%' lacks its two hexadecimal digits"
#define NO_VALUE "an attribute has no value"
#define TWICE "an attribute is given twice"
#define SEMICOLON "the URI has a ';' too many"
#define QUERY "only pin-source may come after '?'"
#define SOURCE "pin-source must be an absolute path or file:/path"
#define SOURCE_PLACE "pin-source must come after '?'"

static const struct {
    const char *uri;
    const char *wrong; /* NULL = nothing */
} rows[] = {
    /* a token, by whatever is known of it */
    {"pkcs11:", NULL},
    {"pkcs11:token=spire", NULL},
    {"pkcs11:token=My%20Token;serial=01%2f;model=SoftHSM%20v2;manufacturer=a;slot-id=12", NULL},
    {"pkcs11:slot-description=a%20reader;slot-manufacturer=b", NULL},
    {"pkcs11:token=a:[]@!$'()*+,=&b~._-", NULL},
    {"pkcs11:token=a/b", NULL},
    {"pkcs11:token=pin", NULL},
    {"pkcs11:token=a:pin-source=b", NULL},
    {"pkcs11:token=%C3%a9", NULL},
    {"pkcs11:token=%20", NULL},
    {"pkcs11:token=a%00", NULL}, /* for a token that pads with NULs */
    {"pkcs11:serial=0123456789abcdef", NULL},
    {"pkcs11:slot-id=9999999999", NULL},
    {"pkcs11:token=a;", NULL},
    {"PKCS11:token=a", NULL}, /* as with any URI */

    /* its PIN's file */
    {"pkcs11:token=a?pin-source=/etc/pin", NULL},
    {"pkcs11:token=a?pin-source=file:/etc/pin", NULL},
    {"pkcs11:token=a;?pin-source=%2fetc/my%20pin", NULL},
    {"pkcs11:?pin-source=file:///etc/pin", NULL},
    {"pkcs11:token=a?pin-source=/etc/pin?", NULL},
    {"pkcs11:token=a?pin-source=pin", SOURCE},
    {"pkcs11:token=a?pin-source=", SOURCE},
    {"pkcs11:token=a?pin-source=|cmd", SOURCE},
    {"pkcs11:token=a?pin-source=%7Ccmd", SOURCE},
    {"pkcs11:token=a?pin-source=file:pin", SOURCE},
    {"pkcs11:token=a?pin-source=file://host/pin", SOURCE},
    {"pkcs11:token=a?pin-source=/etc/pin%00.old", "the URI contains a NUL"},
    {"pkcs11:token=a?pin-source=/a&pin-source=/b", QUERY},
    {"pkcs11:token=a?pin-source=/a;token=b", QUERY},
    {"pkcs11:token=a;pin-source=/etc/pin", SOURCE_PLACE},
    {"pkcs11:pinfile=/etc/pin?pin-source=/b", SOURCE_PLACE},

    /* a PIN */
    {"pkcs11:token=a?pin-value=1234", NO_PIN},
    {"pkcs11:token=a;pin-value=1234", NO_PIN},
    {"pkcs11:token=a?pin-value=", NO_PIN},
    {"pkcs11:token=%zz?pin-value=1234", NO_PIN},
    {"pkcs11:token=a?pin -value=1234", NO_PIN},
    {"pkcs11:token=a?pin-source=/a&pin-value=1234", NO_PIN},

    /* no URI */
    {"", SCHEME},
    {"spire", SCHEME},
    {"pkcs11", SCHEME},
    {"pkcs12:token=a", SCHEME},
    {"pkcs11:token=a b", CHARACTERS},
    {" pkcs11:token=a", CHARACTERS},
    {"pkcs11:to ken=a", CHARACTERS},
    {"pkcs11:token=\xc3\xa9", CHARACTERS},
    {"pkcs11:token=a#b", CHARACTERS},
    {"pkcs11:token=\"a\"", CHARACTERS},
    {"pkcs11:token=a?pin-source=/etc/my pin", CHARACTERS},
    {"pkcs11:token=a%2", ESCAPE},
    {"pkcs11:token=%zz", ESCAPE},
    {"pkcs11:token=a?pin-source=/%", ESCAPE},

    /* other attributes, or what p11-kit would read otherwise than it looks */
    {"pkcs11:1234", ATTRIBUTES},
    {"pkcs11:token", ATTRIBUTES},
    {"pkcs11:=a", ATTRIBUTES},
    {"pkcs11:Token=a", ATTRIBUTES},
    {"pkcs11:to%6ben=a", ATTRIBUTES},
    {"pkcs11:token=a;object=k", ATTRIBUTES},
    {"pkcs11:type=private", ATTRIBUTES},
    {"pkcs11:id=%01", ATTRIBUTES},
    {"pkcs11:library-description=a", ATTRIBUTES},
    {"pkcs11:token=a;module-path=/x", ATTRIBUTES},
    {"pkcs11:x-vendor=1", ATTRIBUTES},
    {"pkcs11:model=seventeen-letters", ATTRIBUTES},
    {"pkcs11:slot-id=x", ATTRIBUTES},
    {"pkcs11:slot-id=-1", ATTRIBUTES},
    {"pkcs11:slot-id=12345678901", ATTRIBUTES},
    {"pkcs11:slot-id=18446744073709551617", ATTRIBUTES}, /* 1 */
    {"pkcs11:slot-id=18446744073709551615", ATTRIBUTES}, /* any */
    {"pkcs11:token=%00", "the URI contains a NUL"},
    {"pkcs11:serial=1;token=%00a", "the URI contains a NUL"},
    {"pkcs11:slot-id=", NO_VALUE},
    {"pkcs11:token=", NO_VALUE},
    {"pkcs11:token=;serial=1", NO_VALUE},
    {"pkcs11:serial=1;token=?pin-source=/a", NO_VALUE},
    {"pkcs11:token=a;token=b", TWICE},
    {"pkcs11:token=a;serial=1;token=a", TWICE},
    {"pkcs11:serial=1;token=a;token=b", TWICE},
    {"pkcs11:slot-id=1;slot-id=2", TWICE},
    {"pkcs11:;", SEMICOLON},
    {"pkcs11:;token=a", SEMICOLON},
    {"pkcs11:token=a;;serial=1", SEMICOLON},
    {"pkcs11:token=a;;", SEMICOLON},
    {"pkcs11:?", QUERY},
    {"pkcs11:token=a?", QUERY},
    {"pkcs11:token=a?module-path=/x", QUERY},
    {"pkcs11:token=a?module-name=x", QUERY},
    {"pkcs11:token=a?x-vendor=1", QUERY},
    {"pkcs11:token=a?PIN-SOURCE=/x", "p11-kit cannot read the URI"},
};

static void each_uri_is_taken_or_refused_in_these_words(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const char *wrong = uri_wrong(rows[i].uri);

        if (wrong ? !rows[i].wrong || strcmp(wrong, rows[i].wrong) != 0 : rows[i].wrong != NULL)
            fail_msg("\"%s\": %s", rows[i].uri, wrong ? wrong : "taken");
    }
}

/* Where the URI is used, the same is refused in the same words, and its text is not told. */
static void what_is_wrong_is_not_parsed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        OWNED(uri_free) P11KitUri *uri = NULL;
        struct fault fault = {.code = FAULT_NONE};
        char source[HSM_PATH_MAX] = "untouched";
        int result = uri_parse(rows[i].uri, &uri, source, &fault);

        assert_int_equal(result, rows[i].wrong ? -1 : 0);
        assert_true((uri != NULL) == (result == 0));
        if (result == 0) {
            assert_true((source[0] != '\0') == uri_has_pin_source(rows[i].uri));
            continue;
        }
        assert_int_equal(fault.code, FAULT_FAILED_PRECONDITION);
        assert_memory_equal(fault.message, "token: ", 7);
        assert_string_equal(fault.message + 7, rows[i].wrong);
        assert_string_equal(source, "untouched");
    }
}

static void a_pin_source_is_read_without_its_escapes(void **state)
{
    OWNED(uri_free) P11KitUri *uri = NULL;
    char source[HSM_PATH_MAX];
    const char *path;

    (void)state;
    assert_int_equal(
        uri_parse("pkcs11:token=a?pin-source=file:%2Fetc/my%20pin", &uri, source, NULL), 0);
    assert_string_equal(source, "file:/etc/my pin");
    assert_int_equal(uri_pin_path(source, &path, NULL), 0);
    assert_string_equal(path, "/etc/my pin");
}

static void a_uri_is_shown_without_its_pin_source(void **state)
{
    OWNED(uri_free) P11KitUri *uri = NULL;
    OWNED(scope_free) char *text = NULL;
    char source[HSM_PATH_MAX];

    (void)state;
    assert_int_equal(
        uri_parse("PKCS11:serial=1;token=a%20b;?pin-source=/etc/pin", &uri, source, NULL), 0);
    text = uri_printable(uri);
    assert_string_equal(text, "pkcs11:serial=1;token=a%20b");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_uri_is_taken_or_refused_in_these_words),
        cmocka_unit_test(what_is_wrong_is_not_parsed),
        cmocka_unit_test(a_pin_source_is_read_without_its_escapes),
        cmocka_unit_test(a_uri_is_shown_without_its_pin_source),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
