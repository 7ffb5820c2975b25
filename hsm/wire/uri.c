#include "hsm/wire/uri.h"

#include <stdio.h>
#include <string.h>

#include <p11-kit/uri.h>

#include "hsm/base/scope.h"

void uri_free(struct p11_kit_uri **uri)
{
    p11_kit_uri_free(*uri);
}

static int read_into(const char *text, P11KitUri *uri, char pin_source[HSM_PATH_MAX],
                     struct fault *fault)
{
    int result = p11_kit_uri_parse(text, P11_KIT_URI_FOR_TOKEN | P11_KIT_URI_FOR_SLOT, uri);
    const char *source = p11_kit_uri_get_pin_source(uri);

    if (result != P11_KIT_URI_OK)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "token: not a PKCS#11 URI: %s",
                         p11_kit_uri_message(result));
    if (p11_kit_uri_get_pin_value(uri))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "token: a PIN has no place in the URI, use pin_file");
    if (p11_kit_uri_any_unrecognized(uri))
        return fault_set(fault, FAULT_FAILED_PRECONDITION,
                         "token: the URI has attributes that are not a token's or slot's");
    if (source && strlen(source) >= HSM_PATH_MAX)
        return fault_set(fault, FAULT_FAILED_PRECONDITION, "token: pin-source is too long");
    (void)snprintf(pin_source, HSM_PATH_MAX, "%s", source ? source : "");
    return 0;
}

int uri_parse(const char *text, struct p11_kit_uri **uri, char pin_source[HSM_PATH_MAX],
              struct fault *fault)
{
    OWNED(uri_free) P11KitUri *made = p11_kit_uri_new();

    if (!made)
        return fault_set(fault, FAULT_UNAVAILABLE, "out of memory");
    if (read_into(text, made, pin_source, fault) != 0)
        return -1;
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
