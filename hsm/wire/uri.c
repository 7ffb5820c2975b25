/* PKCS#11 URIs (RFC 7512). p11-kit parses them; the checks here refuse the mistakes that it passes
 * over in silence. */
#include "hsm/wire/uri.h"

#include <stdio.h>
#include <string.h>

#include <p11-kit/uri.h>

#include "hsm/base/scope.h"

void uri_free(struct p11_kit_uri **uri)
{
    p11_kit_uri_free(*uri);
}

/* ---- what p11-kit lets pass, and nobody means ---- */

enum { SLOT_DIGITS = 10 };

static const char expected[] =
    "expected, separated by ';', some of token, serial, model, manufacturer, slot-id (a number), "
    "slot-description and slot-manufacturer, none longer than PKCS#11 allows";

static const char nul[] = "%00";
static const char has_nul[] = "the URI contains a NUL";

/* p11-kit takes everything behind an empty attribute for a query, which has no effect. Of two equal
 * attributes it takes the last. An empty value matches a blank field only, an empty slot-id is slot
 * 0, and a value that begins with a NUL matches any. A slot-id that is too large becomes another
 * one. p11-kit accepts pin-source here, but prefers the one behind '?'. */
static const char *path_wrong(const char *path)
{
    static const char slot[] = "slot-id=";
    const char *at = path;

    while (*at != '?' && *at != '\0') {
        size_t length = strcspn(at, ";?");
        size_t name = strcspn(at, "=;?") + 1;

        if (name >= length)
            return length == 0 ? "the URI has a ';' too many" : "an attribute has no value";
        for (const char *other = path; other < at; other += strcspn(other, ";") + 1)
            if (strncmp(other, at, name) == 0)
                return "an attribute is given twice";
        if (strncmp(at + name, nul, sizeof nul - 1) == 0)
            return has_nul;
        if (strncmp(at, "pin", 3) == 0)
            return "pin-source must come after '?'";
        if (strncmp(at, slot, name) == 0 && length - name > SLOT_DIGITS)
            return expected;
        at += length + (at[length] == ';');
    }
    return NULL;
}

/* p11-kit ignores unknown attributes behind '?', and cuts the path of pin-source at a NUL. */
static const char *query_wrong(const char *query)
{
    static const char source[] = "pin-source=";

    if (strncmp(query, source, sizeof source - 1) != 0 || strpbrk(query, "&;"))
        return "only pin-source may come after '?'";
    return strstr(query, nul) ? has_nul : NULL;
}

/* p11-kit drops blanks, so that "My Token" would name another token. */
static bool has_odd_characters(const char *text)
{
    static const char fit[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                              "-._~:/?[]@!$'()*+,;=&%";

    return text[strspn(text, fit)] != '\0';
}

static const char *text_wrong(const char *text)
{
    const char *query = strchr(text, '?');
    const char *wrong;

    if (has_odd_characters(text))
        return "characters such as spaces must be percent-encoded (%20)";
    wrong = path_wrong(strchr(text, ':') + 1);
    return wrong || !query ? wrong : query_wrong(query + 1);
}

/* ---- reading ---- */

static const char no_pin[] = "the URI must not contain a PIN: use pin_file";

static const char *parse_wrong(int result)
{
    switch (result) {
    case P11_KIT_URI_OK:
        return NULL;
    case P11_KIT_URI_BAD_SCHEME:
        return "expected a URI that begins with pkcs11:";
    case P11_KIT_URI_BAD_ENCODING:
        return "a '%' lacks its two hexadecimal digits";
    case P11_KIT_URI_BAD_SYNTAX:
        return expected;
    default:
        return "p11-kit cannot read the URI";
    }
}

static bool has_good_source(P11KitUri *uri)
{
    const char *source = p11_kit_uri_get_pin_source(uri);
    const char *path;

    return !source || uri_pin_path(source, &path, NULL) == 0;
}

/* A URI with the PIN itself is kept from p11-kit, which would leave copies in memory. */
static const char *read_into(const char *text, P11KitUri *uri)
{
    const char *wrong;

    if (strstr(text, "pin-value="))
        return no_pin;
    wrong = parse_wrong(p11_kit_uri_parse(text, P11_KIT_URI_FOR_TOKEN | P11_KIT_URI_FOR_SLOT, uri));
    if (!wrong && p11_kit_uri_get_pin_value(uri))
        wrong = no_pin;
    if (!wrong && !has_good_source(uri))
        wrong = "pin-source must be an absolute path or file:/path";
    if (!wrong)
        wrong = text_wrong(text);
    if (!wrong && p11_kit_uri_any_unrecognized(uri))
        wrong = expected;
    return wrong;
}

const char *uri_wrong(const char *text)
{
    OWNED(uri_free) P11KitUri *uri = p11_kit_uri_new();

    return uri ? read_into(text, uri) : "out of memory";
}

bool uri_has_pin_source(const char *text)
{
    return strchr(text, '?') != NULL;
}

int uri_parse(const char *text, struct p11_kit_uri **uri, char pin_source[HSM_PATH_MAX],
              struct fault *fault)
{
    OWNED(uri_free) P11KitUri *made = p11_kit_uri_new();
    const char *source;
    const char *wrong;

    if (!made)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    wrong = read_into(text, made);
    if (wrong)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "token: %s", wrong);
    source = p11_kit_uri_get_pin_source(made);
    if (source && strlen(source) >= HSM_PATH_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "token: pin-source is too long");
    (void)snprintf(pin_source, HSM_PATH_MAX, "%s", source ? source : "");
    *uri = made;
    made = NULL;
    return 0;
}

char *uri_printable(struct p11_kit_uri *uri)
{
    char *text = NULL;

    p11_kit_uri_set_pin_source(uri, NULL);
    if (p11_kit_uri_format(uri, P11_KIT_URI_FOR_TOKEN | P11_KIT_URI_FOR_SLOT, &text) !=
        P11_KIT_URI_OK)
        return NULL;
    return text;
}

int uri_pin_path(const char *source, const char **path, struct fault *fault)
{
    static const char scheme[] = "file:";
    const char *rest = source;

    if (strncmp(source, scheme, sizeof scheme - 1) == 0)
        rest += sizeof scheme - 1;
    if (rest != source && strncmp(rest, "///", 3) == 0)
        rest += 2;
    if (rest[0] != '/' || rest[1] == '/')
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "token: pin-source must be an absolute path or file:/path");
    *path = rest;
    return 0;
}
